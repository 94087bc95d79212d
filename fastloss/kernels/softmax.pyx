"""Softmax cross entropy, softmax, log-softmax and log-sum-exp of rows.

Two shapes of the same work: row by row (terms.pxd), and for few classes tiles of transposed rows (tiles.pxd).  Which
one is taken depends on the number of classes alone, so a row's bits depend on nothing but the row.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython.parallel cimport prange
from libc.math cimport INFINITY, fabs
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from fastloss.kernels.arrays cimport (
    F64, I32, I64, NO_AXIS, Held, Rows, even_run, index_at, is_direct, load, release, row_at, run_stride, store,
    stored, take,
)
from fastloss.kernels.parallel cimport blocks, cut
from fastloss.kernels.terms cimport (
    BLOCK, ROWS, L, Terms, add_block, find, label_of_terms, log_ratios, row_max, row_terms, row_terms_from, settled,
    sum_groups, total_of,
)
from fastloss.kernels.tiles cimport (
    LANES, TILE, TILE_SIZE, Lanes, S, lanes_of, load_tile, rows_of_tile, store_tile, strip_sums, tile_argmax, tile_max,
    tile_ratios, tile_terms,
)
from fastloss.kernels.vmath cimport fl_quotient_rest, fl_scaled, real

cdef extern from "stream.h" nogil:
    void fl_stream(void*, const void*, size_t) noexcept
    void fl_stream_end() noexcept

cdef enum:
    DENSE_TILE = 32             # with a target for every class row by row is faster from here on
    DENSE_SIZE = 32*64
    STREAMED = 32 << 20         # bytes of output from which stores bypass the caches
    STRIDED = 1 << 20           # elements of scratch when rows are gathered from a strided class axis

ctypedef fused target:          # targets as they lie, or built in float64: see targets()
    float
    double

cpdef enum:                     # what is asked for
    CROSS_ENTROPY
    SOFTMAX
    LOG_SOFTMAX
    LOGSUMEXP

cdef struct Job:
    int what
    Rows logits
    Rows labels                 # class indices, or one target per class
    Rows where                  # True: the class takes part
    Rows loss                   # or log-sum-exp
    Rows grad                   # or softmax, log-softmax
    Rows labels_grad
    bint index                  # labels are class indices
    bint soft                   # the row's targets are not the bare label: see targets()
    bint has_ignore
    bint stream
    int64_t ignore
    const double* class_weight  # [c] or NULL
    const double* scale         # [n] or NULL: what the row's gradient is multiplied by
    double factor               # and every row's
    double smoothing
    double mean                 # of the loss, where the labels' gradient has to go through its denominator
    int group                   # rows fetched together
    Py_ssize_t built            # elements of scratch: targets in float64,
    Py_ssize_t kept             # then kept terms, then gathered rows


# ------------------------------------------------------------------ rows in, rows out

cdef inline void mask(real* x, const Rows* where, Py_ssize_t i) noexcept nogil:
    cdef const char* p = row_at(where, i)
    cdef Py_ssize_t k
    for k in range(where.width):
        x[k] = x[k] if p[k*where.step] else <real>(-INFINITY)


cdef void fetch(const Rows* rows, const Rows* where, Py_ssize_t i, Py_ssize_t n, real* scratch,
                const real** row) noexcept nogil:
    """row[r] = row i + r: where it lies, or converted and masked in scratch."""
    cdef real across[ROWS]
    cdef Py_ssize_t r, k, c = rows.width
    if where.data == NULL and is_direct(rows, scratch[0]):
        for r in range(n):
            row[r] = <const real*>row_at(rows, i + r)
        return
    if n > 1 and even_run(rows, i, n):          # class axis strided: read across the rows, they share cache lines
        for k in range(c):
            load(across, row_at(rows, i) + k*rows.step, run_stride(rows), n, rows.kind)
            for r in range(n):
                scratch[r*c + k] = across[r]
    else:
        for r in range(n):
            load(scratch + r*c, row_at(rows, i + r), rows.step, c, rows.kind)
    for r in range(n):
        row[r] = scratch + r*c
        if where.data != NULL:
            mask(scratch + r*c, where, i + r)


cdef inline void put(const Rows* rows, Py_ssize_t i, Py_ssize_t k, const real* v, Py_ssize_t n, bint stream) noexcept nogil:
    """Elements k .. k + n of row i = v."""
    if stream:
        fl_stream(row_at(rows, i) + k*<Py_ssize_t>sizeof(real), v, n*sizeof(real))
    else:
        store(row_at(rows, i) + k*rows.step, rows.step, rows.kind, v, n)


cdef inline void put_one(const Rows* rows, Py_ssize_t i, Py_ssize_t k, real v) noexcept nogil:
    store(row_at(rows, i) + k*rows.step, rows.step, rows.kind, &v, 1)


cdef inline void put_run(const Rows* rows, Py_ssize_t i, Py_ssize_t n, const real* v) noexcept nogil:
    """Rows i .. i + n, of one element each, = v."""
    cdef Py_ssize_t r
    if even_run(rows, i, n):
        store(row_at(rows, i), run_stride(rows), rows.kind, v, n)
    else:
        for r in range(n):
            store(row_at(rows, i + r), 0, rows.kind, v + r, 1)


cdef void put_zeros(const Rows* rows, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t k
    if rows.step == rows.itemsize:
        memset(row_at(rows, i), 0, rows.width*rows.itemsize)
    else:
        for k in range(rows.width):
            memset(row_at(rows, i) + k*rows.step, 0, rows.itemsize)


# ------------------------------------------------------------------ labels and scales

cdef inline int64_t label_of(const Job* job, Py_ssize_t i) noexcept nogil:
    """The row's class, or -1 if it is ignored.  Checked before; again here, for the array may have changed since."""
    cdef int64_t y = index_at(row_at(&job.labels, i), job.labels.kind)
    if job.has_ignore and y == job.ignore:
        return -1
    return y if <uint64_t>y < <uint64_t>job.logits.width else 0


cdef inline void labels_of(const Job* job, Py_ssize_t i, Py_ssize_t n, int64_t* y, double* weight) noexcept nogil:
    """Classes and class weights of rows i .. i + n; an ignored row has class 0 and weight 0."""
    cdef Py_ssize_t r
    cdef const char* p = row_at(&job.labels, i)
    if job.labels.kind == I64 and job.labels.ndim == 1 and job.labels.stride[0] == 8 and not job.has_ignore:
        memcpy(y, p, n*8)           # the common case
        for r in range(n):
            y[r] = y[r] if <uint64_t>y[r] < <uint64_t>job.logits.width else 0
            weight[r] = 1
    else:
        for r in range(n):
            y[r] = label_of(job, i + r)
            weight[r] = 1 if y[r] >= 0 else 0
            y[r] = y[r] if y[r] >= 0 else 0
    if job.class_weight != NULL:
        for r in range(n):
            weight[r] *= job.class_weight[y[r]]


cdef inline double scale_of(const Job* job, Py_ssize_t i) noexcept nogil:
    return job.factor*job.scale[i] if job.scale != NULL else job.factor


cdef void targets(const Job* job, Py_ssize_t i, double* t) noexcept nogil:
    """t_k = w_k ((1 - s) y_k + s/K), K the classes that `where` keeps; w: class weights, s: smoothing.

    In float64: rounded to float, s/K alone would shift every term alike and cost the loss half a unit.
    """
    cdef Py_ssize_t k, c = job.logits.width, kept = c
    cdef double share
    cdef const char* p = row_at(&job.where, i) if job.where.data != NULL else NULL
    if job.index:
        memset(t, 0, c*sizeof(double))
        k = label_of(job, i)
        t[k if k >= 0 else 0] = 1
    else:
        load(t, row_at(&job.labels, i), job.labels.step, c, job.labels.kind)
    if job.smoothing != 0:
        if p != NULL:
            kept = 0
            for k in range(c):
                kept += p[k*job.where.step] != 0
        share = job.smoothing/kept if kept else 0.0
        for k in range(c):
            t[k] = (1 - job.smoothing)*t[k] + (share if p == NULL or p[k*job.where.step] else 0.0)
    if job.class_weight != NULL:
        for k in range(c):
            t[k] = t[k]*job.class_weight[k]


cdef struct Slope:      # a gradient's factor: its two words, or the scale apart where the factor would be subnormal
    double c
    double rest
    double apart


cdef inline Slope slope_of(double scale, double total, double inverse, real dummy) noexcept nogil:
    """scale/total, the inverse of the total given."""
    cdef Slope s
    cdef double least = 1e-36 if real is float else 1e-290
    cdef bint tiny = fabs(scale*inverse) < least and scale != 0
    s.apart = scale if tiny else 1.0
    s.c = inverse if tiny else scale*inverse
    s.rest = fl_quotient_rest(1.0 if tiny else scale, total, s.c)*inverse if real is double else 0.0
    return s


cdef inline real scaled(real e, real c, real rest) noexcept nogil:
    if real is float:
        return e*c
    else:
        return fl_scaled(e, c, rest)


# ------------------------------------------------------------------ row by row: class indices

cdef void put_scaled(const Rows* out, Py_ssize_t i, const real* e, Slope s, bint stream) noexcept nogil:
    """Row i of out = e times the slope."""
    cdef real v[BLOCK]
    cdef real c = <real>s.c, rest = <real>s.rest, apart = <real>s.apart
    cdef real* target
    cdef Py_ssize_t b = 0, n, k
    while b < out.width:
        n = out.width - b if out.width - b < BLOCK else BLOCK
        if not stream and is_direct(out, c):
            target = <real*>row_at(out, i) + b
            for k in range(n):
                target[k] = scaled(e[b + k], c, rest)
            if apart != 1:
                for k in range(n):
                    target[k] = target[k]*apart
        else:
            for k in range(n):
                v[k] = scaled(e[b + k], c, rest)
            if apart != 1:
                for k in range(n):
                    v[k] = v[k]*apart
            put(out, i, b, v, n, stream)
        b += n


cdef void index_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef const real* row[ROWS]
    cdef Terms terms[ROWS]
    cdef double ratio[ROWS]
    cdef double weight[ROWS]
    cdef int64_t y[ROWS]
    cdef Py_ssize_t i = start, c = job.logits.width, n, r
    cdef real* e = scratch
    cdef real loss[ROWS]
    cdef double total, s
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        fetch(&job.logits, &job.where, i, n, scratch + job.kept, row)
        labels_of(job, i, n, y, weight)
        for r in range(n):
            if weight[r] == 0:
                terms[r].others = terms[r].gap = terms[r].power = 0
                if job.grad.data != NULL:
                    put_zeros(&job.grad, i + r)
                continue
            row_terms(row[r], c, y[r], e if job.grad.data != NULL else NULL, &terms[r])
            if job.grad.data != NULL:
                s = scale_of(job, i + r)*weight[r]
                if s == 0:
                    put_zeros(&job.grad, i + r)
                    continue
                total = total_of(&terms[r], e[0])
                put_scaled(&job.grad, i + r, e, slope_of(s, total, 1/total, e[0]), job.stream)
                put_one(&job.grad, i + r, y[r], <real>(-(terms[r].others/total)*s))
        log_ratios(n, terms, ratio, scratch[0])
        for r in range(n):
            loss[r] = <real>(ratio[r]*weight[r]) if weight[r] != 0 else 0
        put_run(&job.loss, i, n, loss)
        i += n


# ------------------------------------------------------------------ row by row: a target for every class

cdef inline double masked_dot(const real* x, const target* t, Py_ssize_t c, Py_ssize_t top, real m,
                              double* others) noexcept nogil:
    """sum of t_k (m - x_k) over t_k != 0; others = sum of t_k, k != top."""
    cdef target w[BLOCK + L]
    cdef double dot = 0, dot_carry = 0, rest = 0, rest_carry = 0
    cdef Py_ssize_t b = 0, n, k
    cdef target v
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        for k in range(n):
            v = t[b + k]*(<target>m - <target>x[b + k])
            w[k] = v if t[b + k] != 0 else <target>0
        for k in range(n, (n + L - 1)//L*L):
            w[k] = 0
        add_block(&dot, &dot_carry, sum_groups(w, (n + L - 1)//L))
        for k in range(n):
            w[k] = t[b + k]
        for k in range(n, (n + L - 1)//L*L):
            w[k] = 0
        if b <= top < b + n:
            w[top - b] = 0
        add_block(&rest, &rest_carry, sum_groups(w, (n + L - 1)//L))
        b += n
    others[0] = settled(rest, rest_carry)
    return settled(dot, dot_carry)


cdef inline void put_target_grad(const Job* job, Py_ssize_t i, const real* e, const target* t, Slope s,
                                 double scale) noexcept nogil:
    cdef real w[BLOCK]
    cdef Py_ssize_t b = 0, n, k, c = job.logits.width
    cdef real f = <real>s.c, rest = <real>s.rest, apart = <real>s.apart, u = <real>scale
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        for k in range(n):
            w[k] = scaled(e[b + k], f, rest)
        if apart != 1:
            for k in range(n):
                w[k] = w[k]*apart
        for k in range(n):
            w[k] = w[k] - <real>t[b + k]*u
        put(&job.grad, i, b, w, n, job.stream)
        b += n


cdef void put_log_softmax(const Rows* out, Py_ssize_t i, const real* x, Py_ssize_t c, real m, double ratio,
                          real* w, bint stream) noexcept nogil:
    """Row i of out = (x - m) - ratio: no difference of large numbers beside the first, which is exact enough."""
    cdef Py_ssize_t b = 0, n, k
    cdef real l = <real>ratio
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        for k in range(n):
            w[k] = (x[b + k] - m) - l
        put(out, i, b, w, n, stream)
        b += n


cdef void put_labels_grad(const Job* job, Py_ssize_t i, const real* x, real m, double ratio, double scale) noexcept nogil:
    """d loss / d y_k = w_k ((1 - s) (-log p_k) - mean)."""
    cdef Py_ssize_t k
    cdef double w, v
    cdef const char* p = row_at(&job.where, i) if job.where.data != NULL else NULL
    for k in range(job.logits.width):
        w = job.class_weight[k] if job.class_weight != NULL else 1
        v = ((<double>m - <double>x[k]) + ratio)*(1 - job.smoothing) - job.mean
        if w == 0 or scale == 0 or (p != NULL and not p[k*job.where.step]):
            v = 0
        put_one(&job.labels_grad, i, k, <real>(v*w*scale))


cdef inline void target_row(const Job* job, Py_ssize_t i, const real* x, const target* t, real* e) noexcept nogil:
    """Loss and gradients of row i, around its maximum."""
    cdef Terms terms
    cdef Py_ssize_t c = job.logits.width, top
    cdef real m = row_max(x, c)
    cdef double total, dot, rest, ratio, s = scale_of(job, i), top_slope
    top = find(x, c, m)
    row_terms_from(x, c, top, m, e if job.grad.data != NULL else NULL, &terms)
    log_ratios(1, &terms, &ratio, m)
    dot = masked_dot(x, t, c, top, m, &rest)
    put_one(&job.loss, i, 0, <real>(dot + (rest + t[top])*ratio))
    if job.labels_grad.data != NULL:
        put_labels_grad(job, i, x, m, ratio, s)
    if job.grad.data == NULL:
        return
    if s == 0:
        put_zeros(&job.grad, i)
        return
    # the maximum's entry apart, as two terms that cancel only where the truth does
    total = total_of(&terms, m)
    top_slope = rest*(label_of_terms(&terms, m)/total) - t[top]*(terms.others/total)
    put_target_grad(job, i, e, t, slope_of(s*(rest + t[top]), total, 1/total, m), s)
    put_one(&job.grad, i, top, <real>(top_slope*s))


cdef void target_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef const real* row[ROWS]
    cdef const real* t
    cdef Rows everything                # no mask
    cdef Py_ssize_t i = start, c = job.logits.width, n, r
    cdef double* built = <double*>scratch   # the row's targets, where they are not read as they lie
    cdef real* e = scratch + job.built
    everything.data = NULL
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        fetch(&job.logits, &job.where, i, n, e + job.kept, row)
        for r in range(n):
            if job.index and label_of(job, i + r) < 0:
                put_one(&job.loss, i + r, 0, <real>0)
                if job.grad.data != NULL:
                    put_zeros(&job.grad, i + r)
            elif job.soft:
                targets(job, i + r, built)
                target_row(job, i + r, row[r], built, e)
            else:
                fetch(&job.labels, &everything, i + r, 1, <real*>built, &t)
                target_row(job, i + r, row[r], t, e)
        i += n


# ------------------------------------------------------------------ few classes: tiles

cdef inline void load_masked(const Job* job, Py_ssize_t i, Py_ssize_t n, real* b) noexcept nogil:
    cdef Py_ssize_t k, r, c = job.logits.width
    cdef const char* p
    load_tile(&job.logits, i, n, b)
    if job.where.data != NULL:
        for r in range(n):
            p = row_at(&job.where, i + r)
            for k in range(c):
                if not p[k*job.where.step]:
                    b[r//S*S*c + k*S + r % S] = -INFINITY


cdef inline void scale_tile(real* b, Py_ssize_t c, Py_ssize_t lanes, const double* scale, const double* inverse,
                            const double* total, const real* out, const double* entry) noexcept nogil:
    """b times each lane's slope, but entry at class out; all 0 where the scale is 0."""
    cdef real f[S]
    cdef real rest[S]
    cdef real apart[S]
    cdef real skip[S]
    cdef real put[S]
    cdef real v
    cdef real* p
    cdef Py_ssize_t k
    cdef Py_ssize_t s, j
    cdef int unusual
    cdef Slope slope
    for s in range(0, lanes, 32):
        p = b + s*c
        unusual = 0
        for j in range(S):
            slope = slope_of(scale[s + j], total[s + j], inverse[s + j], b[0])
            f[j] = <real>slope.c
            rest[j] = <real>slope.rest
            apart[j] = <real>slope.apart
            skip[j] = out[s + j]
            put[j] = <real>entry[s + j]
        for j in range(S):
            unusual |= apart[j] != 1 or scale[s + j] == 0
        if unusual:
            for k in range(c):
                for j in range(S):
                    v = scaled(p[k*S + j], f[j], rest[j])*apart[j]
                    p[k*S + j] = v if scale[s + j] != 0 else <real>0
            for j in range(S):
                f[j] = 1
                rest[j] = 0
                put[j] = put[j] if scale[s + j] != 0 else <real>0
        for k in range(c):
            for j in range(S):
                v = scaled(p[k*S + j], f[j], rest[j])
                p[k*S + j] = put[j] if skip[j] == <real>k else v


cdef void index_tiles(const Job* job, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    cdef real b[TILE_SIZE]
    cdef real m[LANES]
    cdef real label[LANES]
    cdef int64_t y[LANES]
    cdef double weight[LANES]
    cdef double inverse[LANES]
    cdef double entry[LANES]
    cdef Lanes rows
    cdef Py_ssize_t i = start, c = job.logits.width, n, r
    cdef Py_ssize_t lanes, j
    cdef real v
    for j in range(LANES):
        y[j] = 0
        weight[j] = 0
    while i < stop:
        n = rows_of_tile(stop - i, dummy)
        lanes = lanes_of(n)
        load_masked(job, i, n, b)
        labels_of(job, i, n, y, weight)
        for j in range(lanes):
            label[j] = <real>y[j]
        tile_max(b, c, lanes, m)
        tile_terms(b, c, lanes, m, label, &rows)
        tile_ratios(lanes, &rows, m[0])
        for j in range(lanes):
            v = <real>(rows.ratio[j]*weight[j])
            m[j] = v if weight[j] != 0 else <real>0
        put_run(&job.loss, i, n, m)
        if job.grad.data != NULL:
            for r in range(n):
                weight[r] *= job.factor
            if job.scale != NULL:
                for r in range(n):
                    weight[r] *= job.scale[i + r]
            for j in range(lanes):
                inverse[j] = 1/rows.total[j]
                entry[j] = -(rows.others[j]*inverse[j])*weight[j]
            scale_tile(b, c, lanes, weight, inverse, rows.total, label, entry)
            store_tile(&job.grad, i, n, b)
        i += n


cdef inline void dot_tile(const real* b, target* t, Py_ssize_t c, Py_ssize_t lanes, const real* m, const real* top,
                          double* dot, double* t_top, double* rest) noexcept nogil:
    """Lane by lane: sum of t_k (m - b_k) over t_k != 0; t of the maximum, taken out of t; sum of the other t_k."""
    cdef target w[DENSE_TILE*S]
    cdef target at_top[S]
    cdef real most[S]
    cdef real skip[S]
    cdef target u, v
    cdef const real* x
    cdef target* p
    cdef Py_ssize_t k
    cdef Py_ssize_t s, j
    for s in range(0, lanes, 32):
        x = b + s*c
        p = t + s*c
        for j in range(S):
            at_top[j] = 0
            most[j] = m[s + j]
            skip[j] = top[s + j]
        for k in range(c):
            for j in range(S):
                u = p[k*S + j]
                v = u*(<target>most[j] - <target>x[k*S + j])
                w[k*S + j] = v if u != 0 else <target>0
                at_top[j] = u if skip[j] == <real>k else at_top[j]
                p[k*S + j] = <target>0 if skip[j] == <real>k else u
        strip_sums(w, c, dot + s)
        strip_sums(p, c, rest + s)
        for j in range(S):
            t_top[s + j] = at_top[j]


cdef void target_tiles(const Job* job, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    cdef real b[DENSE_SIZE]
    cdef real t[DENSE_SIZE]
    cdef real x[DENSE_SIZE]             # the logits, for the labels' gradient: exp takes their place
    cdef double built[DENSE_SIZE]
    cdef double targets_row[DENSE_TILE]
    cdef real row[DENSE_TILE]
    cdef real m[LANES]
    cdef real u[LANES]
    cdef real top[LANES]
    cdef double dot[LANES]
    cdef double rest[LANES]
    cdef double t_top[LANES]
    cdef double scale[LANES]
    cdef double inverse[LANES]
    cdef double entry[LANES]
    cdef Lanes rows
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, k
    cdef Py_ssize_t lanes, s, j
    for j in range(LANES):
        scale[j] = 1
    while i < stop:
        n = rows_of_tile(stop - i, dummy)
        lanes = lanes_of(n)
        load_masked(job, i, n, b)
        tile_argmax(b, c, lanes, m, top)
        if job.soft:
            memset(built, 0, c*lanes*sizeof(double))
            for r in range(n):
                targets(job, i + r, targets_row)
                for k in range(c):
                    built[r//S*S*c + k*S + r % S] = targets_row[k]
            dot_tile(b, built, c, lanes, m, top, dot, t_top, rest)
            for k in range(c*lanes):
                t[k] = <real>built[k]
        else:
            load_tile(&job.labels, i, n, t)
            dot_tile(b, t, c, lanes, m, top, dot, t_top, rest)
        if job.labels_grad.data != NULL:
            for k in range(c*lanes):
                x[k] = b[k]
        tile_terms(b, c, lanes, m, top, &rows)
        tile_ratios(lanes, &rows, m[0])
        for j in range(lanes):
            u[j] = <real>(dot[j] + (rest[j] + t_top[j])*rows.ratio[j])
        for r in range(n):
            scale[r] = scale_of(job, i + r)
        if job.index and job.has_ignore:
            for r in range(n):
                if label_of(job, i + r) < 0:
                    u[r] = 0
                    scale[r] = 0
        put_run(&job.loss, i, n, u)
        if job.labels_grad.data != NULL:
            for r in range(n):
                for k in range(c):
                    row[k] = x[r//S*S*c + k*S + r % S]
                put_labels_grad(job, i + r, row, m[r], rows.ratio[r], scale[r])
        if job.grad.data != NULL:
            for j in range(lanes):
                inverse[j] = 1/rows.total[j]
                dot[j] = scale[j]*(rest[j] + t_top[j])
                # the maximum's entry apart, as two terms that cancel only where the truth does
                entry[j] = (rest[j]*(rows.label[j]*inverse[j]) - t_top[j]*(rows.others[j]*inverse[j]))*scale[j]
                u[j] = <real>scale[j]
            scale_tile(b, c, lanes, dot, inverse, rows.total, top, entry)
            for s in range(0, lanes, 32):
                for k in range(c):
                    for j in range(S):          # t is 0 at the maximum
                        b[s*c + k*S + j] = b[s*c + k*S + j] - t[s*c + k*S + j]*u[s + j]
            for r in range(n):
                if scale[r] == 0:
                    for k in range(c):
                        b[r//S*S*c + k*S + r % S] = 0
            store_tile(&job.grad, i, n, b)
        i += n


# ------------------------------------------------------------------ softmax, log-softmax, log-sum-exp

cdef real log_sum(const real* x, Py_ssize_t step, Py_ssize_t c, real m, double ratio) noexcept nogil:
    """Log-sum-exp of a row with maximum m: where m is infinite it is m, unless a NaN is about."""
    cdef real v = 0
    cdef Py_ssize_t k
    if fabs(<double>m) < <double>INFINITY:
        return <real>(<double>m + ratio)
    for k in range(c):
        v = v + (x[k*step] if x[k*step] != x[k*step] else <real>0)
    return m + v


cdef void normal_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef const real* row[ROWS]
    cdef real w[BLOCK + L]
    cdef Terms terms
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, top
    cdef real* e = scratch
    cdef real m
    cdef double total, ratio
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        fetch(&job.logits, &job.where, i, n, scratch + job.kept, row)
        for r in range(n):
            if job.what == SOFTMAX:
                row_terms(row[r], c, 0, e, &terms)
                total = total_of(&terms, e[0])
                put_scaled(&job.grad, i + r, e, slope_of(1.0, total, 1/total, e[0]), job.stream)
                put_one(&job.grad, i + r, 0, <real>(label_of_terms(&terms, e[0])/total))
                continue
            m = row_max(row[r], c)
            top = find(row[r], c, m)
            row_terms_from(row[r], c, top, m, NULL, &terms)
            log_ratios(1, &terms, &ratio, m)
            if job.what == LOG_SOFTMAX:
                put_log_softmax(&job.grad, i + r, row[r], c, m, ratio, w, job.stream)
            else:
                put_one(&job.loss, i + r, 0, log_sum(row[r], 1, c, m, ratio))
        i += n


cdef void normal_tiles(const Job* job, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    cdef real b[TILE_SIZE]
    cdef real x[TILE_SIZE]
    cdef real m[LANES]
    cdef real l[LANES]
    cdef real top[LANES]
    cdef double inverse[LANES]
    cdef double entry[LANES]
    cdef double ones[LANES]
    cdef Lanes rows
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, k
    cdef Py_ssize_t lanes, s, j
    for j in range(LANES):
        ones[j] = 1
    while i < stop:
        n = rows_of_tile(stop - i, dummy)
        lanes = lanes_of(n)
        load_masked(job, i, n, b)
        tile_argmax(b, c, lanes, m, top)
        if job.what != SOFTMAX:
            for k in range(c*lanes):
                x[k] = b[k]
        tile_terms(b, c, lanes, m, top, &rows)
        if job.what == SOFTMAX:
            for j in range(lanes):
                inverse[j] = 1/rows.total[j]
                entry[j] = rows.label[j]*inverse[j]
            scale_tile(b, c, lanes, ones, inverse, rows.total, top, entry)
            store_tile(&job.grad, i, n, b)
            i += n
            continue
        tile_ratios(lanes, &rows, m[0])
        if job.what == LOGSUMEXP:
            for r in range(n):
                l[r] = log_sum(x + r//S*S*c + r % S, S, c, m[r], rows.ratio[r])
            put_run(&job.loss, i, n, l)
        else:
            for j in range(lanes):
                l[j] = <real>rows.ratio[j]
            for s in range(0, lanes, 32):
                for k in range(c):
                    for j in range(S):
                        x[s*c + k*S + j] = (x[s*c + k*S + j] - m[s + j]) - l[s + j]
            store_tile(&job.grad, i, n, x)
        i += n


# ------------------------------------------------------------------ all rows

cdef void run_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef Py_ssize_t c = job.logits.width
    if job.what != CROSS_ENTROPY:
        if c <= TILE:
            normal_tiles(job, start, stop, scratch[0])
        else:
            normal_rows(job, start, stop, scratch)
    elif job.index and not job.soft:
        if c <= TILE:
            index_tiles(job, start, stop, scratch[0])
        else:
            index_rows(job, start, stop, scratch)
    elif c <= DENSE_TILE:
        target_tiles(job, start, stop, scratch[0])
    else:
        target_rows(job, start, stop, scratch)
    if job.stream:
        fl_stream_end()


cdef int run(Job* job, real dummy, int n_threads) except -1:
    """Every row once, in blocks of rows."""
    cdef Py_ssize_t n = job.logits.n, c = job.logits.width, room
    cdef int k = blocks(n, c, n_threads), b
    cdef bint direct = is_direct(&job.logits, dummy) and job.where.data == NULL, kept, built
    cdef real* scratch
    cdef void* memory
    job.group = ROWS
    if not direct:
        room = STRIDED if job.logits.step != job.logits.itemsize else BLOCK*ROWS
        if c*ROWS > room:
            job.group = <int>(room//c) if c < room else 1
    job.stream = (c > TILE and job.grad.data != NULL and is_direct(&job.grad, dummy)
                  and <double>n*<double>c*sizeof(real) > STREAMED)
    kept = job.grad.data != NULL and job.what != LOG_SOFTMAX
    built = job.what == CROSS_ENTROPY and (job.soft or (not job.index and not is_direct(&job.labels, dummy)))
    room = (2*c if built else 0) + (c + 2*L if kept else 0) + (0 if direct else job.group*c)
    job.kept = c + 2*L if kept else 0
    job.built = 2*c if built else 0
    room = (room + 31)//16*16 if c > DENSE_TILE else 16
    memory = PyMem_RawMalloc(k*room*sizeof(real) + 64)
    if memory == NULL:
        raise MemoryError()
    scratch = <real*>(<uintptr_t>(<char*>memory + 63)//64*64)
    with nogil:
        scratch[0] = 0
        if k == 1:
            run_rows(job, 0, n, scratch)
        else:
            for b in prange(k, schedule="static", chunksize=1, num_threads=n_threads):
                run_rows(job, cut(n, b, k), cut(n, b + 1, k), scratch + b*room)
    PyMem_RawFree(memory)
    return 0


cdef inline bint any_bad(const char* y, Py_ssize_t n, Py_ssize_t c, stored dummy) noexcept nogil:
    cdef stored v
    cdef Py_ssize_t k
    cdef int bad = 0
    for k in range(n):
        memcpy(&v, y + k*<Py_ssize_t>sizeof(stored), sizeof(stored))
        bad |= v < 0 or v >= <stored>c
    return bad


cdef Py_ssize_t first_bad(const Rows* labels, Py_ssize_t c, bint has_ignore, int64_t ignore) noexcept nogil:
    """First row whose label is no class, or -1."""
    cdef Py_ssize_t i
    cdef int64_t y
    if labels.ndim <= 1 and not has_ignore:     # the common ones at the speed of memory
        if labels.kind == I64 and labels.stride[0] == 8 and not any_bad[int64_t](labels.data, labels.n, c, 0):
            return -1
        if labels.kind == I32 and labels.stride[0] == 4 and c <= INT32_MAX and not any_bad[int32_t](labels.data, labels.n, c, 0):
            return -1
    for i in range(labels.n):
        y = index_at(row_at(labels, i), labels.kind)
        if (y < 0 or y >= c) and not (has_ignore and y == ignore):
            return i
    return -1


def cross_entropy(logits, labels, int axis, bint index, loss, grad, labels_grad, const double[::1] class_weight,
                  const double[::1] scale, double factor, double smoothing, where, ignore, double mean, int n_threads):
    """Losses and gradients of all rows.  -1, or the first row whose label is no class: then nothing was written."""
    cdef Job job
    cdef Held held
    cdef Py_ssize_t bad = -1
    held.count = 0
    try:
        take(&held, logits, axis, False, &job.logits)
        take(&held, labels, NO_AXIS if index else axis, False, &job.labels)
        take(&held, where, axis, False, &job.where)
        take(&held, loss, NO_AXIS, True, &job.loss)
        take(&held, grad, axis, True, &job.grad)
        take(&held, labels_grad, axis, True, &job.labels_grad)
        job.what = CROSS_ENTROPY
        job.index = index
        job.soft = smoothing != 0 or (class_weight is not None and not index)
        job.has_ignore = ignore is not None
        job.ignore = ignore if job.has_ignore else 0
        job.class_weight = &class_weight[0] if class_weight is not None else NULL
        job.scale = &scale[0] if scale is not None else NULL
        job.factor = factor
        job.smoothing = smoothing
        job.mean = mean
        if index:
            with nogil:
                bad = first_bad(&job.labels, job.logits.width, job.has_ignore, job.ignore)
        if bad < 0 and job.logits.n > 0 and job.logits.width > 0:
            if job.logits.kind == F64:
                run[double](&job, 0, n_threads)
            else:
                run[float](&job, 0, n_threads)
    finally:
        release(&held)
    return bad


def normalize(int what, logits, int axis, out, where, int n_threads):
    """SOFTMAX, LOG_SOFTMAX (out: as the logits) or LOGSUMEXP (out: one value a row) of all rows."""
    cdef Job job
    cdef Held held
    held.count = 0
    try:
        take(&held, logits, axis, False, &job.logits)
        take(&held, where, axis, False, &job.where)
        take(&held, None if what == LOGSUMEXP else out, axis, True, &job.grad)
        take(&held, out if what == LOGSUMEXP else None, NO_AXIS, True, &job.loss)
        job.what = what
        if job.logits.n > 0 and job.logits.width > 0:
            if job.logits.kind == F64:
                run[double](&job, 0, n_threads)
            else:
                run[float](&job, 0, n_threads)
    finally:
        release(&held)


def class_weights(labels, int axis, bint index, const double[::1] class_weight, ignore, Py_ssize_t c,
                  double[::1] out):
    """out = the rows' class weights: sum of class_weight times label, 0 where ignored.  As cross_entropy, -1 or a row."""
    cdef Rows rows
    cdef Held held
    cdef Py_ssize_t bad = -1, i, k
    cdef int64_t y
    cdef double w, v
    cdef bint has_ignore = ignore is not None
    cdef int64_t ignored = ignore if has_ignore else 0
    held.count = 0
    try:
        take(&held, labels, NO_AXIS if index else axis, False, &rows)
        with nogil:
            if index:
                bad = first_bad(&rows, c, has_ignore, ignored)
            for i in range(rows.n if bad < 0 else 0):
                if index:
                    y = index_at(row_at(&rows, i), rows.kind)
                    if has_ignore and y == ignored:
                        w = 0
                    elif class_weight is None:
                        w = 1
                    else:
                        w = class_weight[y] if <uint64_t>y < <uint64_t>c else 0
                else:
                    w = 0
                    for k in range(c):
                        load(&v, row_at(&rows, i) + k*rows.step, 0, 1, rows.kind)
                        if v != 0:
                            w = w + v*class_weight[k]
                out[i] = w
    finally:
        release(&held)
    return bad
