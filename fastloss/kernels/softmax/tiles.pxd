"""Softmax tile by tile: few classes."""
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastloss.kernels.arrays.arrays cimport row_at
from fastloss.kernels.softmax.call cimport (
    LOGSUMEXP, RESIDUAL, SOFTMAX, UPPER, SoftmaxCall, Slope, label_of, labels_of, put_run, scale_of, slope_of,
    target, targets,
)
from fastloss.kernels.softmax.laws cimport (
    CrossEntropy, Law, Worth, entry_of_law, lse_of, slope_of_law, worth_of_sums,
)
from fastloss.kernels.softmax.rows cimport log_sum
from fastloss.kernels.softmax.targets cimport put_labels_grad
from fastloss.kernels.softmax.tile cimport (
    LANES, TILE, TILE_SIZE, Asks, Lanes, S, ask_for, at, lanes_of, load_tile, rows_of_tile, store_tile, strip_sums,
    tile_argmax, tile_max, tile_ratios, tile_terms,
)
from fastloss.kernels.math.vmath cimport bias_of, magnitude, real, scaled, shift_of

cdef enum:
    DENSE_TILE = 32             # with a target for every class row by row is faster from here on
    DENSE_SIZE = 32*64

cdef extern from *:
    """
    /* In place of a slope of 0 where a row counts: times a probability 0, times NaN NaN. */
    #define FL_LEAST 5e-324
    """
    const double FL_LEAST


cdef inline void load_masked(const SoftmaxCall* job, Py_ssize_t i, Py_ssize_t n, real* b) noexcept nogil:
    cdef Py_ssize_t k, r, c = job.logits.width
    cdef const char* p
    load_tile(&job.logits, i, n, b)
    if job.where.data != NULL:
        for r in range(n):
            p = row_at(&job.where, i + r)
            for k in range(c):
                if not p[k*job.where.step]:
                    b[at(r, k, c)] = -INFINITY


cdef inline void asks_of(const SoftmaxCall* job, Asks* asks, const real* otherwise) noexcept nogil:
    asks.logits = ask_for(&job.logits, job.logits.width, otherwise)
    asks.labels = ask_for(&job.labels, job.logits.width, otherwise)
    asks.grad = ask_for(&job.grad, job.logits.width, otherwise)


cdef inline void scale_tile(real* b, Py_ssize_t c, Py_ssize_t lanes, const double* scale, const Lanes* rows,
                            const real* out, const double* entry) noexcept nogil:
    """b times each lane's slope, but entry at class out; all 0 where the scale is 0, but see FL_LEAST."""
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
            slope = slope_of(scale[s + j], rows.total[s + j], rows.inverse[s + j], b[0])
            f[j] = <real>slope.c
            rest[j] = <real>slope.rest
            apart[j] = <real>slope.apart
            skip[j] = out[s + j]
            put[j] = <real>entry[s + j]
        for j in range(S):
            unusual |= (apart[j] != 1) | (scale[s + j] == 0)
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


cdef inline void worth_of_lanes(const SoftmaxCall* job, const Law* law, const real* m, Lanes* rows, Worth* worth,
                                Py_ssize_t n) noexcept nogil:
    """Of n lanes; their ratios become values."""
    cdef Py_ssize_t r
    cdef double lse
    cdef real shift
    for r in range(n):
        shift = shift_of(m[r])
        lse = lse_of(rows.ratio[r], rows.gap[r] + shift, rows.total[r], rows.power[r], shift, bias_of(m[0]))
        worth[r] = worth_of_sums(law, job.z_loss, rows.ratio[r], rows.others[r], rows.label[r], rows.total[r], lse)
        rows.ratio[r] = worth[r].value


cdef inline void index_tiles(const SoftmaxCall* job, const Law* law, Py_ssize_t start, Py_ssize_t stop,
                             real dummy) noexcept nogil:
    cdef real b[TILE_SIZE]
    cdef real m[LANES]
    cdef real label[LANES]
    cdef int64_t y[LANES]
    cdef double weight[LANES]
    cdef double entry[LANES]
    cdef Worth worth[LANES]
    cdef double slope
    cdef Lanes rows
    cdef Asks asks
    cdef Py_ssize_t i = start, c = job.logits.width, n, r
    cdef Py_ssize_t lanes, j
    cdef real v
    for j in range(LANES):
        y[j] = 0
        weight[j] = 0
    asks_of(job, &asks, b)
    while i < stop:
        n = rows_of_tile(stop - i, dummy)
        lanes = lanes_of(n)
        load_masked(job, i, n, b)
        labels_of(job, i, n, y, weight)
        for j in range(lanes):
            label[j] = <real>y[j]
        tile_max(b, c, lanes, m)
        asks.i = i
        tile_terms(b, c, n, m, label, &rows, &asks)
        tile_ratios(lanes, &rows, job.grad.data != NULL, m[0])
        if Law is not CrossEntropy:
            worth_of_lanes(job, law, m, &rows, worth, n)
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
                entry[j] = -(rows.others[j]*rows.inverse[j])*weight[j]
            if Law is not CrossEntropy:
                for r in range(n):
                    slope = slope_of_law(&worth[r], rows.others[r]/rows.total[r])
                    if worth[r].push == 0:          # minus the sum of the others: a term like all
                        b[at(r, y[r], c)] = <real>-rows.others[r]
                        label[r] = TILE
                    else:
                        entry[r] = entry_of_law(&worth[r], rows.label[r]/rows.total[r])*weight[r]
                        slope = slope if slope != 0 else FL_LEAST      # of 0 the entry would be 0, too
                    weight[r] = weight[r]*slope if weight[r] != 0 else 0.0
            scale_tile(b, c, lanes, weight, &rows, label, entry)
            store_tile(&job.grad, i, n, b)
        i += n


cdef struct Dots:           # of each lane
    double dot[LANES]       # sum of t_k (m - b_k) over t_k != 0
    double top[LANES]       # t of the maximum
    double rest[LANES]      # sum of the other t_k


cdef inline void dot_tile(const real* b, target* t, Py_ssize_t c, Py_ssize_t lanes, const real* m, const real* top,
                          Dots* dots) noexcept nogil:
    """Sums of every lane; t becomes 0 at the maximum."""
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
                at_top[j] = at_top[j] + (u if skip[j] == <real>k else <target>0)
                p[k*S + j] = <target>0 if skip[j] == <real>k else u
        strip_sums(w, c, &dots.dot[s])
        strip_sums(p, c, &dots.rest[s])
        for j in range(S):
            dots.top[s + j] = at_top[j]


cdef inline void curvatures(const real* b, real* h, Py_ssize_t c, Py_ssize_t lanes, const Lanes* rows, const real* top,
                            const double* factor) noexcept nogil:
    """h = p (1 - p) times each lane's factor."""
    cdef double at_top[S]
    cdef double p
    cdef Py_ssize_t s, k, j, r
    for s in range(0, lanes, 32):
        for j in range(S):
            at_top[j] = (rows.label[s + j]*rows.inverse[s + j])*(rows.others[s + j]*rows.inverse[s + j])
        for k in range(c):
            for j in range(S):
                p = b[s*c + k*S + j]*rows.inverse[s + j]
                p = at_top[j] if top[s + j] == <real>k else p*(1 - p)
                h[s*c + k*S + j] = <real>(p*factor[s + j])
    for r in range(lanes):
        if factor[r] == 0:
            for k in range(c):
                h[at(r, k, c)] = 0


cdef inline void target_tiles(const SoftmaxCall* job, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    cdef real b[DENSE_SIZE]
    cdef real t[DENSE_SIZE]
    cdef real x[DENSE_SIZE]             # the logits, for the labels' gradient: exp takes their place
    cdef double built[DENSE_SIZE]
    cdef double targets_row[DENSE_TILE]
    cdef real row[DENSE_TILE]
    cdef real m[LANES]
    cdef real u[LANES]
    cdef real top[LANES]
    cdef Dots dots
    cdef double scale[LANES]
    cdef double entry[LANES]
    cdef double factor[LANES]
    cdef double label, total
    cdef Lanes rows
    cdef Asks asks
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, k
    cdef Py_ssize_t lanes, s, j
    for j in range(LANES):
        scale[j] = 1
    asks_of(job, &asks, b)
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
                    built[at(r, k, c)] = targets_row[k]
            dot_tile(b, built, c, lanes, m, top, &dots)
            for k in range(c*lanes):
                t[k] = <real>built[k]
        else:
            load_tile(&job.labels, i, n, t)
            dot_tile(b, t, c, lanes, m, top, &dots)
        if job.labels_grad.data != NULL:
            for k in range(c*lanes):
                x[k] = b[k]
        asks.i = i
        tile_terms(b, c, n, m, top, &rows, &asks)
        tile_ratios(lanes, &rows, job.grad.data != NULL, m[0])
        for j in range(lanes):
            u[j] = <real>(dots.dot[j] + (dots.rest[j] + dots.top[j])*rows.ratio[j])
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
                    row[k] = x[at(r, k, c)]
                put_labels_grad(job, i + r, row, m[r], rows.ratio[r], scale[r])
        if job.grad.data != NULL:
            for j in range(lanes):
                total = dots.rest[j] + dots.top[j]
                dots.dot[j] = scale[j]*total if total != 0 else 0.0
                if dots.dot[j] == 0 and scale[j] != 0:
                    dots.dot[j] = FL_LEAST
                # the maximum's entry apart, as two terms that cancel only where the truth does
                label = rows.label[j]*rows.inverse[j]
                entry[j] = (dots.rest[j]*label - dots.top[j]*(rows.others[j]*rows.inverse[j]))*scale[j]
                u[j] = <real>scale[j]
            if job.hess.data != NULL and job.hessian != RESIDUAL:
                for j in range(lanes):
                    factor[j] = dots.dot[j]*(2 if job.hessian == UPPER else 1)
                curvatures(b, x, c, lanes, &rows, top, factor)
                store_tile(&job.hess, i, n, x)
            scale_tile(b, c, lanes, dots.dot, &rows, top, entry)
            for s in range(0, lanes, 32):
                for k in range(c):
                    for j in range(S):          # t is 0 at the maximum
                        b[s*c + k*S + j] = b[s*c + k*S + j] - t[s*c + k*S + j]*u[s + j]
            for r in range(n):
                if scale[r] == 0:
                    for k in range(c):
                        b[at(r, k, c)] = 0
            store_tile(&job.grad, i, n, b)
            if job.hess.data != NULL and job.hessian == RESIDUAL:
                for k in range(c*lanes):
                    b[k] = magnitude(b[k])
                store_tile(&job.hess, i, n, b)
        i += n


cdef inline void normal_tiles(const SoftmaxCall* job, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    cdef real b[TILE_SIZE]
    cdef real x[TILE_SIZE]
    cdef real m[LANES]
    cdef real l[LANES]
    cdef real top[LANES]
    cdef double entry[LANES]
    cdef double ones[LANES]
    cdef Lanes rows
    cdef Asks asks
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, k
    cdef Py_ssize_t lanes, s, j
    for j in range(LANES):
        ones[j] = 1
    asks_of(job, &asks, b)
    while i < stop:
        n = rows_of_tile(stop - i, dummy)
        lanes = lanes_of(n)
        load_masked(job, i, n, b)
        tile_argmax(b, c, lanes, m, top)
        if job.what != SOFTMAX:
            for k in range(c*lanes):
                x[k] = b[k]
        asks.i = i
        tile_terms(b, c, n, m, top, &rows, &asks)
        if job.what == SOFTMAX:
            for j in range(lanes):
                rows.inverse[j] = 1/rows.total[j]
                entry[j] = rows.label[j]*rows.inverse[j]
            scale_tile(b, c, lanes, ones, &rows, top, entry)
            store_tile(&job.grad, i, n, b)
            i += n
            continue
        tile_ratios(lanes, &rows, False, m[0])
        if job.what == LOGSUMEXP:
            for r in range(n):
                l[r] = log_sum(x + at(r, 0, c), S, c, m[r], rows.ratio[r])
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
