"""Few classes: tiles of up to LANES rows, transposed so that a row is a lane.

A tile is cut into strips of S lanes, stored class by class: element k of row r is b[at(r, k, c)].  Loops over a strip
have a constant length, so that each lane's values stay in registers.  Every lane has its own reference, and no sum runs
across lanes, so a row's bits do not depend on its neighbours.
"""
from fastloss.kernels.arrays.arrays cimport Rows, even_run, is_direct, load, row_at, run_stride, store
from fastloss.kernels.math.exp_table cimport exps_by, steps_magic_of
from fastloss.kernels.row_sums.lane_sums cimport settled, sum_rest
from fastloss.kernels.math.vmath cimport (
    FL_LN2, FL_PREFETCH, bias_of, exp_of, fl_exp_label_short, fl_log1p, fl_log1p_short, fl_quotient_rest, lo_of,
    magic_of, power_of, real, shift_of,
)

cdef extern from "arrays/transpose.h" nogil:
    void fl_lanes_of_rowsf(const float*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*, Py_ssize_t) noexcept
    void fl_rows_of_lanesf(const float*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*, Py_ssize_t) noexcept
    void fl_lanes_of_rows(const double*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, Py_ssize_t) noexcept
    void fl_rows_of_lanes(const double*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, Py_ssize_t) noexcept

cdef enum:
    TILE = 64               # classes at most
    LANES = 64              # rows of a tile at most; half as many of float64
    S = 32                  # lanes of a strip, more than gcc unrolls; range() steps by 32: S would be a Python object
    TILE_SIZE = 64*64
    NEAR = 8192             # bytes of the next tile that may be prefetched into the first-level cache


cdef inline Py_ssize_t rows_of_tile(Py_ssize_t left, real dummy) noexcept nogil:
    cdef Py_ssize_t most = LANES
    if real is double:
        most = LANES//2
    return left if left < most else most


cdef inline Py_ssize_t at(Py_ssize_t r, Py_ssize_t k, Py_ssize_t c) noexcept nogil:
    """The index of element k of row r in a tile of c classes."""
    return r//S*S*c + k*S + r % S


cdef inline Py_ssize_t lanes_of(Py_ssize_t n) noexcept nogil:
    """Lanes of n rows, rounded up to whole strips."""
    return (n + S - 1)//S*S


cdef struct Ask:            # rows to prefetch
    const char* base
    Py_ssize_t stride       # bytes from row to row; 0: nothing to prefetch
    Py_ssize_t step         # bytes for each class of a strip: all its classes together cover its rows


cdef struct Asks:           # a tile's gradient, and the next tile's logits and labels
    Ask logits
    Ask labels
    Ask grad
    Py_ssize_t i            # the tile's first row


cdef inline Ask ask_for(const Rows* rows, Py_ssize_t c, const real* otherwise) noexcept nogil:
    """The rows, if they are contiguous and a tile of them is small; otherwise memory that is in the cache anyway."""
    cdef Ask ask
    cdef Py_ssize_t size = rows.width*rows.itemsize
    ask.base = <const char*>otherwise
    ask.stride = ask.step = 0
    if (rows.data != NULL and rows.ndim <= 1 and run_stride(rows) == size
            and size*rows_of_tile(LANES, otherwise[0]) <= NEAR):
        ask.base = rows.data
        ask.stride = size
        ask.step = S*size//c
    return ask


cdef inline const char* ask_more(const char* next, const Ask* ask, real dummy) noexcept nogil:
    """Prefetches one class's share: a few lines at a time, because all at once would fill the queue of misses."""
    cdef Py_ssize_t j
    for j in range(S*<Py_ssize_t>sizeof(real)//64):
        FL_PREFETCH(next + j*64)
    return next + ask.step


cdef inline void load_tile(const Rows* rows, Py_ssize_t i, Py_ssize_t n, real* b) noexcept nogil:
    """Loads rows i .. i + n as a tile, with 0 in unused lanes."""
    cdef real row[TILE]
    cdef Py_ssize_t s, r, k, left, c = rows.width, stride = run_stride(rows)
    cdef bint even = even_run(rows, i, n), direct = is_direct(rows, b[0])
    cdef real* p
    for s in range(0, n, 32):
        p = b + s*c
        left = n - s if n - s < S else S
        if left < S:
            for k in range(c*S):
                p[k] = 0
        if even and direct:
            if real is float:
                fl_lanes_of_rowsf(<const float*>row_at(rows, i + s), stride//4, left, c, p, S)
            else:
                fl_lanes_of_rows(<const double*>row_at(rows, i + s), stride//8, left, c, p, S)
        elif even and rows.step != rows.itemsize:
            for k in range(c):
                load(p + k*S, row_at(rows, i + s) + k*rows.step, stride, left, rows.kind)
        else:
            for r in range(left):
                load(row, row_at(rows, i + s + r), rows.step, c, rows.kind)
                for k in range(c):
                    p[k*S + r] = row[k]


cdef inline void store_tile(const Rows* rows, Py_ssize_t i, Py_ssize_t n, const real* b) noexcept nogil:
    """Stores the tile to rows i .. i + n."""
    cdef real row[TILE]
    cdef Py_ssize_t s, r, k, left, c = rows.width, stride = run_stride(rows)
    cdef bint even = even_run(rows, i, n), direct = is_direct(rows, b[0])
    cdef const real* p
    for s in range(0, n, 32):
        p = b + s*c
        left = n - s if n - s < S else S
        if even and direct:
            if real is float:
                fl_rows_of_lanesf(p, S, left, c, <float*>row_at(rows, i + s), stride//4)
            else:
                fl_rows_of_lanes(p, S, left, c, <double*>row_at(rows, i + s), stride//8)
        elif even and rows.step != rows.itemsize:
            for k in range(c):
                store(row_at(rows, i + s) + k*rows.step, stride, rows.kind, p + k*S, left)
        else:
            for r in range(left):
                for k in range(c):
                    row[k] = p[k*S + r]
                store(row_at(rows, i + s + r), rows.step, rows.kind, row, c)


cdef inline void strip_sums(const real* p, Py_ssize_t c, double* total) noexcept nogil:
    """total[j] = sum of p[k, j] over k: float in fours, then float64; float64 in pairs, with compensation."""
    cdef double sums[S]
    cdef double carry[S]
    cdef real part[S]
    cdef double w, z
    cdef Py_ssize_t k = 0
    cdef Py_ssize_t j
    for j in range(S):
        sums[j] = 0
        carry[j] = 0
    if real is float:
        if c >= 4:
            for j in range(S):
                sums[j] = (<double>p[j] + <double>p[S + j]) + (<double>p[2*S + j] + <double>p[3*S + j])
            k = 4
        while k + 4 <= c:
            for j in range(S):
                part[j] = (p[k*S + j] + p[(k + 1)*S + j]) + (p[(k + 2)*S + j] + p[(k + 3)*S + j])
            for j in range(S):
                sums[j] = sums[j] + <double>part[j]
            k += 4
        while k < c:
            for j in range(S):
                sums[j] = sums[j] + <double>p[k*S + j]
            k += 1
    else:
        while k < c:
            if k + 1 < c:
                for j in range(S):
                    part[j] = p[k*S + j] + p[(k + 1)*S + j]
            else:
                for j in range(S):
                    part[j] = p[k*S + j]
            for j in range(S):
                w = part[j]
                z = sums[j] + w
                carry[j] = carry[j] + sum_rest(sums[j], w, z)
                sums[j] = z
            k += 2
        for j in range(S):
            sums[j] = settled(sums[j], carry[j])
    for j in range(S):
        total[j] = sums[j]


cdef struct Lanes:          # of each row of a tile
    double others[LANES]    # sum of exp over all classes but one
    double label[LANES]     # exp of that one
    double gap[LANES]       # its logit minus shift
    double power[LANES]
    double total[LANES]
    double inverse[LANES]   # of the total
    double ratio[LANES]     # log(1 + others/label)


cdef inline void tile_max(const real* b, Py_ssize_t c, Py_ssize_t lanes, real* m) noexcept nogil:
    cdef real top[S]
    cdef const real* p
    cdef Py_ssize_t k
    cdef Py_ssize_t s, j
    cdef real v
    for s in range(0, lanes, 32):
        p = b + s*c
        for j in range(S):
            top[j] = p[j]
        for k in range(1, c):
            for j in range(S):
                v = p[k*S + j]
                top[j] = v if v > top[j] else top[j]
        for j in range(S):
            m[s + j] = top[j]


cdef inline void tile_argmax(const real* b, Py_ssize_t c, Py_ssize_t lanes, real* m, real* top) noexcept nogil:
    """Maxima and the first class of each; TILE where there is none, for NaN.

    Class numbers have the logits' type, exact up to TILE, so they are compared and selected in the same registers.
    Keeping the number while searching the maximum would need a branch.
    """
    cdef real at[S]
    cdef const real* p
    cdef Py_ssize_t k
    cdef Py_ssize_t s, j
    cdef real w
    tile_max(b, c, lanes, m)
    for s in range(0, lanes, 32):
        p = b + s*c
        for j in range(S):
            at[j] = TILE
        for k in range(c):
            for j in range(S):
                w = <real>k if p[k*S + j] == m[s + j] else <real>TILE
                at[j] = w if w < at[j] else at[j]
        for j in range(S):
            top[s + j] = at[j]


cdef inline void tile_terms(real* b, Py_ssize_t c, Py_ssize_t n, const real* m, const real* out, Lanes* rows,
                            const Asks* asks) noexcept nogil:
    """Replaces b by exp(b) relative to each row's maximum m, and by 0 at class out[r]; fills `rows` but its ratios."""
    cdef real shift[S]
    cdef real power[S]
    cdef real lo[S]
    cdef real magic[S]
    cdef real x_out[S]
    cdef real e_out[S]
    cdef real skip[S]
    cdef real d[S]
    cdef real v, e
    cdef real* p
    cdef Py_ssize_t k
    cdef Py_ssize_t s, j, lanes = lanes_of(n)
    cdef int bias = bias_of(b[0])
    cdef const char* logits = asks.logits.base + (asks.i + n)*asks.logits.stride
    cdef const char* labels = asks.labels.base + (asks.i + n)*asks.labels.stride
    cdef const char* grad = asks.grad.base + asks.i*asks.grad.stride
    for s in range(0, lanes, 32):
        p = b + s*c
        for j in range(S):
            shift[j] = shift_of(m[s + j])
            power[j] = power_of(m[s + j], shift[j])
            lo[j] = lo_of(power[j])
            magic[j] = magic_of(power[j]) if real is float else steps_magic_of(power[j])
            skip[j] = out[s + j]
            x_out[j] = 0
            e_out[j] = 0
        for k in range(c):
            logits = ask_more(logits, &asks.logits, shift[0])
            labels = ask_more(labels, &asks.labels, shift[0])
            grad = ask_more(grad, &asks.grad, shift[0])
            if real is double:      # float is as fast by the series
                for j in range(S):
                    v = p[k*S + j] - shift[j]
                    d[j] = lo[j] if lo[j] > v else v
                exps_by(d, 1, magic, 1, d, S, True)
            for j in range(S):
                v = p[k*S + j]
                e = exp_of(v - shift[j], lo[j], magic[j]) if real is float else d[j]
                x_out[j] = x_out[j] + (v if skip[j] == <real>k else <real>0)    # keeping the old one would be a branch
                if real is double:
                    e_out[j] = e_out[j] + (e if skip[j] == <real>k else <real>0)
                p[k*S + j] = <real>0 if skip[j] == <real>k else e
        strip_sums(p, c, &rows.others[s])
        for j in range(S):
            rows.power[s + j] = power[j]
            rows.gap[s + j] = <double>x_out[j] - <double>shift[j]
            rows.label[s + j] = e_out[j]
    for j in range(lanes):
        if real is float:           # rounding it to float would cost the loss half an ulp or more
            rows.label[j] = fl_exp_label_short(rows.gap[j], rows.power[j], bias)
        rows.total[j] = rows.others[j] + rows.label[j]


cdef inline void tile_ratios(Py_ssize_t lanes, Lanes* rows, bint inverses, real dummy) noexcept nogil:
    """Fills ratio = log(1 + others/label), as log(others) - log(label) where the label underflows; and the inverses."""
    cdef double u, far, rest, label, both, least = 2.0**-16 if real is float else 2.0**-600
    cdef Py_ssize_t j
    cdef int bias = bias_of(dummy)
    for j in range(lanes):
        far = (rows.power[j] - bias)*FL_LN2 - rows.gap[j] if rows.label[j] < least else 0.0
        label = 1.0 if rows.label[j] < least else rows.label[j]
        if real is float:           # one division for both: they need not be exact
            both = 1/(label*rows.total[j])
            rows.inverse[j] = label*both
            rows.ratio[j] = fl_log1p_short(rows.others[j]*(rows.total[j]*both)) + far
        else:
            u = rows.others[j]/label
            rest = fl_quotient_rest(rows.others[j], rows.label[j], u)/rows.total[j]
            rest = 0.0 if rows.label[j] < least else rest
            rows.ratio[j] = (fl_log1p(u) + rest) + far
    if real is double:
        if inverses:
            for j in range(lanes):
                rows.inverse[j] = 1/rows.total[j]
