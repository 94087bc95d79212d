"""Few classes: tiles of rows, transposed so that row r is lane r.

Every lane has its own reference; no sum runs across lanes, so a row's bits do not depend on its neighbours.
"""
from fastloss.kernels.arrays cimport Rows, even_run, is_direct, load, row_at, run_stride, store
from fastloss.kernels.terms cimport settled, sum_rest
from fastloss.kernels.vmath cimport (
    FL_LN2, bias_of, exp_fine, fl_exp_label, fl_log1p, fl_log1p_short, fl_quotient_rest, lo_of, magic_of,
    power_of, real, shift_of,
)

cdef extern from "transpose.h" nogil:
    void fl_lanes_of_rowsf(const float*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*, Py_ssize_t) noexcept
    void fl_rows_of_lanesf(const float*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*, Py_ssize_t) noexcept
    void fl_lanes_of_rows(const double*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, Py_ssize_t) noexcept
    void fl_rows_of_lanes(const double*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, Py_ssize_t) noexcept

cdef enum:
    TILE = 64               # classes at most
    LANES = 64              # of float; half as many of double
    TILE_SIZE = 64*64 + 4*64    # lane_sums pads to a multiple of 4 classes


cdef inline int lanes_for(Py_ssize_t n, real dummy) noexcept nogil:
    """Lanes that n rows fill, whole registers of them."""
    cdef int lanes = 16
    if n > 16:
        lanes = LANES if real is float else LANES//2
    return lanes


cdef inline void load_tile(const Rows* rows, Py_ssize_t i, Py_ssize_t n, real* b, int lanes) noexcept nogil:
    """b[k, r] = element k of row i + r; 0 in idle lanes."""
    cdef real row[TILE]
    cdef Py_ssize_t r, k, c = rows.width, stride = run_stride(rows)
    cdef bint even = even_run(rows, i, n)
    if even and is_direct(rows, b[0]):
        if real is float:
            fl_lanes_of_rowsf(<const float*>row_at(rows, i), stride//4, n, c, b, lanes)
        else:
            fl_lanes_of_rows(<const double*>row_at(rows, i), stride//8, n, c, b, lanes)
    elif even and rows.step != rows.itemsize:
        for k in range(c):
            load(b + k*lanes, row_at(rows, i) + k*rows.step, stride, n, rows.kind)
    else:
        for r in range(n):
            load(row, row_at(rows, i + r), rows.step, c, rows.kind)
            for k in range(c):
                b[k*lanes + r] = row[k]
    if n < lanes:
        for k in range(c):
            for r in range(n, lanes):
                b[k*lanes + r] = 0


cdef inline void store_tile(const Rows* rows, Py_ssize_t i, Py_ssize_t n, const real* b, int lanes) noexcept nogil:
    """Element k of row i + r = b[k, r]."""
    cdef real row[TILE]
    cdef Py_ssize_t r, k, c = rows.width, stride = run_stride(rows)
    cdef bint even = even_run(rows, i, n)
    if even and is_direct(rows, b[0]):
        if real is float:
            fl_rows_of_lanesf(b, lanes, n, c, <float*>row_at(rows, i), stride//4)
        else:
            fl_rows_of_lanes(b, lanes, n, c, <double*>row_at(rows, i), stride//8)
    elif even and rows.step != rows.itemsize:
        for k in range(c):
            store(row_at(rows, i) + k*rows.step, stride, rows.kind, b + k*lanes, n)
    else:
        for r in range(n):
            for k in range(c):
                row[k] = b[k*lanes + r]
            store(row_at(rows, i + r), rows.step, rows.kind, row, c)


cdef inline void lane_sums(real* b, Py_ssize_t c, int lanes, double* total) noexcept nogil:
    """total[r] = sum of b[k, r] over k; b is padded with zeros to a multiple of 4 classes."""
    cdef double carry[LANES]
    cdef double w, z
    cdef Py_ssize_t k
    cdef int j
    for k in range(c*lanes, (c + 3)//4*4*lanes):
        b[k] = 0
    if real is float:
        for j in range(lanes):
            total[j] = (<double>b[j] + <double>b[lanes + j]) + (<double>b[2*lanes + j] + <double>b[3*lanes + j])
        for k in range(4, c, 4):
            for j in range(lanes):
                w = <double>((b[k*lanes + j] + b[(k + 1)*lanes + j]) + (b[(k + 2)*lanes + j] + b[(k + 3)*lanes + j]))
                total[j] = total[j] + w
    else:
        for j in range(lanes):
            total[j] = b[j] + b[lanes + j]
            carry[j] = sum_rest(b[j], b[lanes + j], total[j])
        for k in range(2, c, 2):
            for j in range(lanes):
                w = b[k*lanes + j] + b[(k + 1)*lanes + j]
                z = total[j] + w
                carry[j] = carry[j] + sum_rest(total[j], w, z)
                total[j] = z
        for j in range(lanes):
            total[j] = settled(total[j], carry[j])


cdef struct Lanes:          # what is known of each row of a tile
    double others[LANES]    # sum of exp over all classes but one
    double label[LANES]     # exp of that one
    double gap[LANES]       # its logit minus shift
    double power[LANES]
    double total[LANES]
    double ratio[LANES]     # log(1 + others/label)


cdef inline void tile_max(const real* b, Py_ssize_t c, int lanes, real* m) noexcept nogil:
    cdef Py_ssize_t k
    cdef int j
    cdef real v
    for j in range(lanes):
        m[j] = b[j]
    for k in range(1, c):
        for j in range(lanes):
            v = b[k*lanes + j]
            m[j] = v if v > m[j] else m[j]


cdef inline void tile_argmax(const real* b, Py_ssize_t c, int lanes, real* m, real* top) noexcept nogil:
    """Maxima and where they first stand.

    Class numbers are of the logits' type, exact up to TILE: they compare and select in the same registers.
    """
    cdef Py_ssize_t k
    cdef int j
    cdef real v
    for j in range(lanes):
        m[j] = b[j]
        top[j] = 0
    for k in range(1, c):
        for j in range(lanes):
            v = b[k*lanes + j]
            top[j] = <real>k if v > m[j] else top[j]
            m[j] = v if v > m[j] else m[j]


cdef inline void tile_terms(real* b, Py_ssize_t c, int lanes, const real* m, const real* out, Lanes* rows) noexcept nogil:
    """b becomes exp(b) in the unit of each lane's maximum m, 0 at class out[r]; sums of every lane, ratios not."""
    cdef real shift[LANES]
    cdef real power[LANES]
    cdef real lo[LANES]
    cdef real magic[LANES]
    cdef real x_out[LANES]
    cdef real e_out[LANES]
    cdef real v, e
    cdef Py_ssize_t k
    cdef int j, bias = bias_of(b[0])
    for j in range(lanes):
        shift[j] = shift_of(m[j])
        power[j] = power_of(m[j], shift[j])
        lo[j] = lo_of(power[j])
        magic[j] = magic_of(power[j])
        x_out[j] = 0
        e_out[j] = 0
    for k in range(c):
        for j in range(lanes):
            v = b[k*lanes + j]
            e = exp_fine(v - shift[j], lo[j], magic[j])
            x_out[j] = v if out[j] == <real>k else x_out[j]
            if real is double:
                e_out[j] = e if out[j] == <real>k else e_out[j]
            b[k*lanes + j] = <real>0 if out[j] == <real>k else e
    for j in range(lanes):
        rows.power[j] = power[j]
        rows.gap[j] = <double>x_out[j] - <double>shift[j]
        if real is float:           # rounded to float it would cost the loss half a unit or more
            rows.label[j] = fl_exp_label(rows.gap[j], rows.power[j], bias)
        else:
            rows.label[j] = e_out[j]
    lane_sums(b, c, lanes, rows.others)
    for j in range(lanes):
        rows.total[j] = rows.others[j] + rows.label[j]


cdef inline void tile_ratios(int lanes, Lanes* rows, real dummy) noexcept nogil:
    """log(1 + others/label); where the label underflowed, log(others) - log(label)."""
    cdef double u, far, rest, least = 2.0**-16 if real is float else 2.0**-600
    cdef int j, bias = bias_of(dummy)
    for j in range(lanes):
        u = rows.others[j] if rows.label[j] < least else rows.others[j]/rows.label[j]
        far = (rows.power[j] - bias)*FL_LN2 - rows.gap[j] if rows.label[j] < least else 0.0
        if real is float:
            rows.ratio[j] = fl_log1p_short(u) + far
        else:
            rest = fl_quotient_rest(rows.others[j], rows.label[j], u)/rows.total[j]
            rest = 0.0 if rows.label[j] < least else rest
            rows.ratio[j] = (fl_log1p(u) + rest) + far
