"""Softmax row by row: any number of classes, a target for each."""
from libc.math cimport INFINITY

from fastloss.kernels.arrays.arrays cimport Rows, is_direct, row_at
from fastloss.kernels.softmax.deferred cimport Deferred, defer, flush, nothing_deferred, put_next, what_is
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.softmax.call cimport (
    RESIDUAL, UPPER, Job, Slope, fetch, label_of, put, put_one, put_run, put_zeros, scale_of, slope_of, target, targets,
)
from fastloss.kernels.softmax.rows cimport fetch_from
from fastloss.kernels.math.sigmoid_math cimport fma
from fastloss.kernels.softmax.lane_sums cimport PAIRS, L, add_block, add_part, find, lanes_sum, row_max, settled
from fastloss.kernels.softmax.row_sums cimport (
    BLOCK, FL_HAS_BLOCK, ROWS, Reference, Row, Source, Terms, exp_lanes, fl_pending, fl_unit, label_of_terms, log_ratios,
    next_block, note_done, open_source, pending_of, reference_at, terms_at, total_of, unit_of,
)
from fastloss.kernels.math.vmath cimport FL_PREFETCH, FL_PREFETCH_FAR, magnitude, real, scaled

cdef extern from "softmax/row_sums_avx512.h" nogil:
    void fl_target_blockf(const Source*, const Source*, const fl_unit*, float*, double*, fl_pending*) noexcept

cdef enum:
    AHEAD = 12288       # bytes after which logits and targets are fetched into the second level: maxima come first
    NEAR = 2048         # and targets into the first


cdef struct Sums:       # over all elements but the maximum
    double exps
    double dots         # of t_k (m - x_k) over t_k != 0
    double rest         # of t_k


cdef inline void flush_growing(const target* part, double* total, double* carry) noexcept nogil:
    """add_part in fewer operations where the total is the larger one; where it is not, as the sum then doubles, half a
    unit of the part may be lost."""
    cdef double z
    cdef Py_ssize_t j
    for j in range(L):
        z = total[j] + <double>part[j]
        if target is double:
            carry[j] = carry[j] + (part[j] - (z - total[j]))
        total[j] = z


cdef inline void target_block(const Source* logits, const Source* targets, const Reference* reference, real* e,
                              Sums* sums, Deferred* due, target dummy) noexcept nogil:
    """The sums of a block, all in the shape of exp_block's; the terms are kept in e unless it is NULL."""
    cdef real part[L]
    cdef real v[L]
    cdef real w[L]
    cdef target dot[L]
    cdef target rest[L]
    cdef double exps[L]
    cdef double exp_carry[L]
    cdef double dots[L]
    cdef double dot_carry[L]
    cdef double rests[L]
    cdef double rest_carry[L]
    cdef Source here = logits[0], there = targets[0]
    cdef const real* x = <const real*>here.elements
    cdef const target* t = <const target*>there.elements
    cdef Py_ssize_t g = 0, g_end, j, n_groups = here.n_groups
    cdef const real* p
    cdef const real* q
    cdef const target* r
    cdef const target* s
    cdef real shift = <real>reference.shift, lo = <real>reference.lo, magic = <real>reference.magic
    cdef target a, b, top = <target>reference.m
    cdef Deferred now = what_is(due)
    for j in range(L):
        dot[j] = rest[j] = 0
        exps[j] = exp_carry[j] = dots[j] = dot_carry[j] = rests[j] = rest_carry[j] = 0
    while g < n_groups:
        g_end = g + (2*PAIRS if real is float else 4)
        if g_end > n_groups:
            g_end = n_groups
        for j in range(L):
            part[j] = 0
            if target is float:
                dot[j] = rest[j] = 0
        while g < g_end:
            p = <const real*>here.tail_group if g == here.tail else x + g*L
            p = <const real*>here.out_group if g == here.out else p
            q = <const real*>here.tail_group if g + 1 == here.tail else x + (g + 1)*L
            q = <const real*>here.out_group if g + 1 == here.out else q
            q = <const real*>here.empty_group if g + 1 == n_groups else q
            r = <const target*>there.tail_group if g == here.tail else t + g*L
            r = <const target*>there.out_group if g == here.out else r
            s = <const target*>there.tail_group if g + 1 == here.tail else t + (g + 1)*L
            s = <const target*>there.out_group if g + 1 == here.out else s
            s = <const target*>there.empty_group if g + 1 == n_groups else s
            for j in range(0, 2*L*<Py_ssize_t>sizeof(real), 64):
                FL_PREFETCH_FAR(<const char*>(x + g*L) + AHEAD + j)
            for j in range(0, 2*L*<Py_ssize_t>sizeof(target), 64):
                FL_PREFETCH_FAR(<const char*>(t + g*L) + AHEAD + j)
                FL_PREFETCH(<const char*>(t + g*L) + NEAR + j)
            exp_lanes(p, shift, lo, magic, v, <real*>NULL)
            exp_lanes(q, shift, lo, magic, w, <real*>NULL)
            for j in range(L):
                part[j] = part[j] + (v[j] + w[j])
            for j in range(L):
                a = r[j]*(top - <target>p[j])
                a = a if r[j] != 0 else <target>0
                b = s[j]*(top - <target>q[j])
                b = b if s[j] != 0 else <target>0
                dot[j] = dot[j] + (a + b)
                rest[j] = rest[j] + (r[j] + s[j])
            if e != NULL:
                for j in range(L):
                    e[g*L + j] = v[j]
                    e[(g + 1)*L + j] = w[j]
                put_next(&now, True, shift)
            if target is double and (g & 2 or g + 2 >= n_groups):
                flush_growing(dot, dots, dot_carry)
                flush_growing(rest, rests, rest_carry)
                for j in range(L):
                    dot[j] = rest[j] = 0
            g = g + 2
        add_part(part, exps, exp_carry)
        if target is float:
            flush_growing(dot, dots, dot_carry)
            flush_growing(rest, rests, rest_carry)
    if e != NULL and due != NULL:
        due.done = now.done
    sums.exps = lanes_sum(exps, exp_carry, real is double)
    sums.dots = lanes_sum(dots, dot_carry, target is double)
    sums.rest = lanes_sum(rests, rest_carry, target is double)


cdef inline void target_sums(const Row* row, const target* t, real m, real* e, Terms* terms, Sums* sums,
                             Deferred* due) noexcept nogil:
    """Sums of a row whose maximum is m, the element left out; e (room for n + 2 L, or NULL): the terms, 0 for it.

    Writes the deferred gradient, if terms are kept.
    """
    cdef real x_copies[3*L]
    cdef target t_copies[3*L]
    cdef const real* x = <const real*>row.x
    cdef Source logits, targets
    cdef Reference at = reference_at(m)
    cdef Sums block, carry
    cdef fl_pending pending
    cdef fl_unit unit = unit_of(&at)
    cdef Py_ssize_t left = (row.n + L - 1)//L, done = 0
    open_source(&logits, x, row.n, row.out, x_copies, <real>-INFINITY)
    open_source(&targets, t, row.n, row.out, t_copies, <target>0)
    logits.ahead = logits.elements + AHEAD
    logits.n_groups = targets.n_groups = left if left < BLOCK//L else BLOCK//L
    sums.exps = sums.dots = sums.rest = carry.exps = carry.dots = carry.rest = 0
    while True:
        if real is float and target is float and FL_HAS_BLOCK and at.shift == 0:
            pending = pending_of(due if e != NULL else NULL)
            fl_target_blockf(&logits, &targets, &unit, <float*>e, &block.exps, &pending)
            note_done(due, &pending)
        elif e == NULL:
            target_block(&logits, &targets, &at, <real*>NULL, &block, due, t[0])
        else:
            target_block(&logits, &targets, &at, e, &block, due, t[0])
        add_block(&sums.exps, &carry.exps, block.exps)
        add_block(&sums.dots, &carry.dots, block.dots)
        add_block(&sums.rest, &carry.rest, block.rest)
        left -= logits.n_groups
        if left <= 0 or stopped(&done, logits.n_groups*L):
            break
        e = e + logits.n_groups*L if e != NULL else e
        next_block(&logits, left, sizeof(real))
        next_block(&targets, left, sizeof(target))
    sums.dots = settled(sums.dots, carry.dots)
    sums.rest = settled(sums.rest, carry.rest)
    terms.others = settled(sums.exps, carry.exps)
    terms_at(terms, &at, m)


cdef inline void put_target_grad(const Job* job, Py_ssize_t i, const real* e, const target* t, Slope s,
                                 double scale) noexcept nogil:
    cdef real w[BLOCK]
    cdef Py_ssize_t b = 0, n, k, c = job.logits.width, done = 0
    cdef real f = <real>s.c, rest = <real>s.rest, apart = <real>s.apart, u = <real>scale
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        if apart == 1:
            for k in range(n):
                w[k] = fma(-<real>t[b + k], u, scaled(e[b + k], f, rest))
        else:
            for k in range(n):
                w[k] = fma(-<real>t[b + k], u, scaled(e[b + k], f, rest)*apart)
        put(&job.grad, i, b, w, n, job.stream)
        if job.hess.data != NULL and job.hessian == RESIDUAL:
            for k in range(n):
                w[k] = magnitude(w[k])
            put(&job.hess, i, b, w, n, False)
        b += n
        if b < c and stopped(&done, n):
            break


cdef inline bint can_wait(const Job* job, Py_ssize_t i, const target* t, Slope s, real dummy) noexcept nogil:
    """Whether a gradient may be written later: nothing else is, and the targets stay where they are."""
    return (sizeof(target) == sizeof(real) and <const char*>t == row_at(&job.labels, i) and s.apart == 1
            and is_direct(&job.grad, dummy) and job.hess.data == NULL and job.labels_grad.data == NULL)


cdef inline void put_curvature(const Job* job, Py_ssize_t i, const real* e, double inverse,
                               double factor) noexcept nogil:
    """p (1 - p) times the factor: all but the maximum are at most 1/2, so 1 - p loses nothing."""
    cdef real w[BLOCK]
    cdef Py_ssize_t b = 0, n, k, c = job.logits.width, done = 0
    cdef double p
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        for k in range(n):
            p = e[b + k]*inverse
            w[k] = <real>(p*(1 - p)*factor)
        put(&job.hess, i, b, w, n, False)
        b += n
        if b < c and stopped(&done, n):
            break


cdef inline void put_labels_grad(const Job* job, Py_ssize_t i, const real* x, real m, double ratio,
                                 double scale) noexcept nogil:
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


cdef struct TargetLoss:     # of a row: dots + weight times the log ratio of its terms
    double dots
    double weight


cdef inline TargetLoss target_row(const Job* job, Py_ssize_t i, const real* x, const target* t, real* e, Terms* terms,
                                  Deferred* due) noexcept nogil:
    """Gradients of row i, around its maximum, and its loss.

    The gradient may be left due, and then needs e.
    """
    cdef TargetLoss loss
    cdef Sums sums
    cdef Slope slope
    cdef Row logits
    cdef Py_ssize_t c = job.logits.width, top
    cdef real m = row_max(x, c)
    cdef double total, ratio, s = scale_of(job, i), top_slope
    top = find(x, c, m)
    logits.x = x
    logits.n = c
    logits.out = top
    target_sums(&logits, t, m, e if job.grad.data != NULL else NULL, terms, &sums, due)
    loss.dots = sums.dots
    loss.weight = sums.rest + t[top]
    if job.labels_grad.data != NULL:
        log_ratios(1, terms, &ratio, m)
        put_labels_grad(job, i, x, m, ratio, s)
    if job.grad.data == NULL:
        return loss
    if s == 0:
        put_zeros(&job.grad, i)
        put_zeros(&job.hess, i)
        return loss
    # the maximum's entry apart, as two terms that cancel only where the truth does
    total = total_of(terms, m)
    top_slope = sums.rest*(label_of_terms(terms, m)/total) - t[top]*(terms.others/total)
    slope = slope_of(s*loss.weight, total, 1/total, m)
    flush(due, True, m)
    if can_wait(job, i, t, slope, m):
        due.target = row_at(&job.grad, i)
        due.terms = e
        due.labels = t
        due.n = c
        due.slope = slope.c
        due.rest = slope.rest
        due.scale = s
        due.at = top
        due.entry = top_slope*s
        due.past = job.stream
        defer(due, True, m)
        return loss
    put_target_grad(job, i, e, t, slope, s)
    put_one(&job.grad, i, top, <real>(top_slope*s))
    if job.hess.data == NULL:
        return loss
    if job.hessian == RESIDUAL:
        put_one(&job.hess, i, top, magnitude(<real>(top_slope*s)))
        return loss
    s = s*loss.weight*(2 if job.hessian == UPPER else 1)
    put_curvature(job, i, e, 1/total, s)
    put_one(&job.hess, i, top, <real>((label_of_terms(terms, m)/total)*(terms.others/total)*s))
    return loss


cdef inline void target_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef const real* row[ROWS]
    cdef const real* t
    cdef Rows everything                # no mask
    cdef Terms terms[ROWS]
    cdef TargetLoss part[ROWS]
    cdef double ratio[ROWS]
    cdef real loss[ROWS]
    cdef Py_ssize_t i = start, n, r, fetched
    cdef double* built = <double*>scratch   # the row's targets, where they are not read as they lie
    cdef real* e = scratch + job.built  # the terms of this row; another row's may wait in the other half
    cdef Deferred due = nothing_deferred()
    everything.data = NULL
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        fetched = 0
        for r in range(n):
            if r == fetched:
                fetched = fetch_from(job, i, r, n, scratch, row)
            if job.index and label_of(job, i + r) < 0:
                terms[r].others = terms[r].gap = terms[r].power = part[r].dots = part[r].weight = 0
                put_zeros(&job.grad, i + r)
                put_zeros(&job.hess, i + r)
            elif job.soft:
                targets(job, i + r, built)
                part[r] = target_row(job, i + r, row[r], built, e, &terms[r], &due)
            else:
                fetch(&job.labels, &everything, i + r, 1, <real*>built, &t)
                part[r] = target_row(job, i + r, row[r], t, e, &terms[r], &due)
                if due.terms == e:
                    e = scratch + job.built + (job.kept if e == scratch + job.built else 0)
        log_ratios(n, terms, ratio, e[0])
        for r in range(n):
            loss[r] = <real>(part[r].dots + part[r].weight*ratio[r])
        put_run(&job.loss, i, n, loss)
        i += n
    flush(&due, True, e[0])
