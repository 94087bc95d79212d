"""Softmax row by row: any number of classes, a target for each."""
from libc.math cimport INFINITY

from fastloss.kernels.arrays.arrays cimport Rows, is_direct, row_at
from fastloss.kernels.math.sigmoid_math cimport fma
from fastloss.kernels.math.vmath cimport magnitude, real, scaled
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.softmax.call cimport (
    RESIDUAL, UPPER, SoftmaxCall, Slope, fetch, label_of, put, put_one, put_run, put_zeros, scale_of, share_of,
    slope_of, target,
    targets, targets_by,
)
from fastloss.kernels.row_sums.deferred cimport Deferred, defer, flush, nothing_deferred
from fastloss.kernels.softmax.pieces cimport (
    Alone, Team, Workers, blocks_of, each_piece, find_max, fl_stream_end, max_of, part_of, piece_of_call, start_of,
)
from fastloss.kernels.row_sums.groups cimport BLOCK, Part, Row
from fastloss.kernels.row_sums.row_sums cimport ROWS, Terms, label_of_terms, log_ratios, reference_at, terms_at, total_of
from fastloss.kernels.softmax.rows cimport fetch_from
from fastloss.kernels.softmax.target_sums cimport (
    Sums, Totals, add_sums, no_sums, settle_sums, target_blocks, target_sums,
)


cdef inline void put_target_grad(const SoftmaxCall* job, Py_ssize_t i, const real* e, const target* t, Slope s,
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


cdef inline bint can_wait(const SoftmaxCall* job, Py_ssize_t i, const target* t, Slope s, real dummy) noexcept nogil:
    """Whether a gradient may be written later: nothing else is, and the targets stay where they are."""
    return (sizeof(target) == sizeof(real) and <const char*>t == row_at(&job.labels, i) and s.apart == 1
            and is_direct(&job.grad, dummy) and job.hess.data == NULL and job.labels_grad.data == NULL)


cdef inline void put_curvature(const SoftmaxCall* job, Py_ssize_t i, const real* e, double inverse,
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


cdef inline void put_labels_grad(const SoftmaxCall* job, Py_ssize_t i, const real* x, real m, double ratio,
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


cdef struct TargetGrad:     # what a row's gradients are made of
    Slope slope             # of the terms,
    double scale            # of the targets
    double inverse          # of the total
    double curvature        # factor of p (1 - p)
    double ratio            # log-sum-exp minus the maximum
    double m                # the maximum
    Py_ssize_t top          # where it stands
    double entry            # its gradient,
    double bend             # and second derivative


cdef inline void put_targets(const SoftmaxCall* job, Py_ssize_t i, const real* x, const target* t, const real* e,
                             const TargetGrad* by, Deferred* due) noexcept nogil:
    """Gradients of row i; the one to the logits may be left due, and then needs e."""
    cdef Py_ssize_t c = job.logits.width, top = by.top
    cdef bint here = 0 <= top < c
    if job.labels_grad.data != NULL:
        put_labels_grad(job, i, x, <real>by.m, by.ratio, by.scale)
    if job.grad.data == NULL:
        return
    if by.scale == 0:
        put_zeros(&job.grad, i)
        put_zeros(&job.hess, i)
        return
    flush(due, True, e[0])
    if can_wait(job, i, t, by.slope, e[0]):
        due.target = row_at(&job.grad, i)
        due.terms = e
        due.labels = t
        due.n = c
        due.slope = by.slope.c
        due.rest = by.slope.rest
        due.scale = by.scale
        due.at = top
        due.entry = by.entry
        due.past = job.stream
        defer(due, True, e[0])
        return
    put_target_grad(job, i, e, t, by.slope, by.scale)
    if here:
        put_one(&job.grad, i, top, <real>by.entry)
    if job.hess.data == NULL:
        return
    if job.hessian != RESIDUAL:
        put_curvature(job, i, e, by.inverse, by.curvature)
    if here:
        put_one(&job.hess, i, top, magnitude(<real>by.entry) if job.hessian == RESIDUAL else <real>by.bend)


cdef inline TargetLoss target_row(const SoftmaxCall* job, Py_ssize_t i, const real* x, const target* t, real* e,
                                  Terms* terms,
                                  Workers* workers) noexcept nogil:
    """Gradients of row i, around its maximum, and its loss."""
    cdef TargetLoss loss
    cdef TargetGrad by
    cdef Sums sums
    cdef Row logits
    cdef real m = max_of(x, job.logits.width, workers)
    cdef Py_ssize_t top = find_max(x, job.logits.width, m, workers)
    cdef double total, p, q, s = scale_of(job, i)
    logits.x = x
    logits.n = job.logits.width
    logits.out = top
    sum_targets(&logits, t, m, e if job.grad.data != NULL else NULL, terms, &sums, workers)
    loss.dots = sums.dots
    loss.weight = sums.rest + t[top]
    if job.labels_grad.data != NULL:
        log_ratios(1, terms, &by.ratio, m)
    elif job.grad.data == NULL:
        return loss
    # the maximum's entry apart, as two terms that cancel only where the truth does
    total = total_of(terms, m)
    p = label_of_terms(terms, m)/total
    q = terms.others/total
    by.m = m
    by.top = top
    by.entry = (sums.rest*p - t[top]*q)*s
    by.inverse = 1/total
    by.slope = slope_of(s*loss.weight, total, by.inverse, m)
    by.scale = s
    by.curvature = s*loss.weight*(2 if job.hessian == UPPER else 1)
    by.bend = p*q*by.curvature
    put_target_row(job, i, x, t, e, &by, workers)
    return loss


# ------------------------------------------------------------------ several threads on one row

cdef inline void build_piece_of(const Team* team, Py_ssize_t b, real dummy) noexcept nogil:
    cdef Py_ssize_t start = start_of(team, b)
    cdef Rows everything                # no mask
    cdef SoftmaxCall piece
    piece_of_call(team, b, &piece)
    if piece.soft:
        targets_by(&piece, team.i, team.label - start, team.share, <double*>team.fetched + start)
    else:
        everything.data = NULL
        fetch(&piece.labels, &everything, team.i, 1, <real*>team.fetched + start, 0, <const real**>NULL)


cdef inline void build_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    if team.wide:
        build_piece_of(team, b, <double>0)
    else:
        build_piece_of(team, b, <float>0)


cdef inline void targets_of(const SoftmaxCall* job, Py_ssize_t i, double* t, Workers* workers) noexcept nogil:
    """Targets, in float64."""
    if Workers is Team:
        workers.i = i
        workers.label = label_of(job, i) if job.index else 0
        workers.share = share_of(job, i)
        workers.fetched = t
        each_piece(workers, build_piece)
    else:
        targets(job, i, t)


cdef inline const real* labels_as(const SoftmaxCall* job, Py_ssize_t i, real* scratch, Workers* workers) noexcept nogil:
    """The row's labels, where they lie or converted in scratch."""
    cdef const real* t
    cdef Rows everything
    if Workers is Team:
        if not is_direct(&job.labels, scratch[0]):
            workers.i = i
            workers.fetched = scratch
            each_piece(workers, build_piece)
            return scratch
    everything.data = NULL
    fetch(&job.labels, &everything, i, 1, scratch, 0, &t)
    return t


cdef inline void sum_targets_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    cdef Part part = part_of(team, b, sizeof(Sums)//sizeof(double))
    if team.wide:
        target_blocks(&team.row, <const double*>team.targets, &team.at, &part, <double*>team.e, NULL, NULL)
    elif team.job.soft:
        target_blocks(&team.row, <const double*>team.targets, &team.at, &part, <float*>team.e, NULL, NULL)
    else:
        target_blocks(&team.row, <const float*>team.targets, &team.at, &part, <float*>team.e, NULL, NULL)


cdef inline void sum_targets(const Row* row, const target* t, real m, real* e, Terms* terms, Sums* sums,
                             Workers* workers) noexcept nogil:
    """target_sums"""
    cdef Totals total
    cdef Py_ssize_t b
    if Workers is Team:
        workers.row = row[0]
        workers.targets = t
        workers.at = reference_at(m)
        workers.e = e
        each_piece(workers, sum_targets_piece)
        no_sums(&total)
        for b in range(blocks_of(row.n)):
            add_sums(&total, <const Sums*>workers.sums + b)
        settle_sums(sums, &total)
        terms.others = sums.exps
        terms_at(terms, &workers.at, m)
    else:
        target_sums(row, t, m, e, terms, sums, &workers.due)


cdef inline void put_targets_piece_of(const Team* team, Py_ssize_t b, const target* t, const real* e) noexcept nogil:
    cdef Py_ssize_t start = start_of(team, b)
    cdef TargetGrad by = (<const TargetGrad*>team.slopes)[0]
    cdef Deferred due = nothing_deferred()
    cdef SoftmaxCall piece
    piece_of_call(team, b, &piece)
    by.top -= start
    put_targets(&piece, team.i, <const real*>team.row.x + start, t + start, e + start, &by, &due)
    flush(&due, True, e[0])
    if piece.stream:
        fl_stream_end()


cdef inline void put_targets_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    if team.wide:
        put_targets_piece_of(team, b, <const double*>team.targets, <const double*>team.e)
    elif team.job.soft:
        put_targets_piece_of(team, b, <const double*>team.targets, <const float*>team.e)
    else:
        put_targets_piece_of(team, b, <const float*>team.targets, <const float*>team.e)


cdef inline void put_target_row(const SoftmaxCall* job, Py_ssize_t i, const real* x, const target* t, real* e,
                                const TargetGrad* by, Workers* workers) noexcept nogil:
    """Gradients of row i, by those who work on it."""
    if Workers is Team:
        workers.i = i
        workers.slopes = by
        workers.e = e
        each_piece(workers, put_targets_piece)
    else:
        put_targets(job, i, x, t, e, by, &workers.due)


# ------------------------------------------------------------------ all rows

cdef inline void target_rows(const SoftmaxCall* job, Py_ssize_t start, Py_ssize_t stop, real* scratch,
                             Workers* workers) noexcept nogil:
    cdef const real* row[ROWS]
    cdef const real* t
    cdef Terms terms[ROWS]
    cdef TargetLoss part[ROWS]
    cdef double ratio[ROWS]
    cdef real loss[ROWS]
    cdef Py_ssize_t i = start, n, r, fetched
    cdef double* built = <double*>scratch   # the row's targets, where they are not read as they lie
    cdef real* e = scratch + job.built  # the terms of this row; another row's may wait in the other half
    if Workers is Alone:
        workers.due = nothing_deferred()
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        fetched = 0
        for r in range(n):
            if r == fetched:
                fetched = fetch_from(job, i, r, n, scratch, row, workers)
            if job.index and label_of(job, i + r) < 0:
                terms[r].others = terms[r].gap = terms[r].power = part[r].dots = part[r].weight = 0
                put_zeros(&job.grad, i + r)
                put_zeros(&job.hess, i + r)
            elif job.soft:
                targets_of(job, i + r, built, workers)
                part[r] = target_row(job, i + r, row[r], built, e, &terms[r], workers)
            else:
                t = labels_as(job, i + r, <real*>built, workers)
                part[r] = target_row(job, i + r, row[r], t, e, &terms[r], workers)
                if Workers is Alone:
                    if workers.due.terms == e:
                        e = scratch + job.built + (job.kept if e == scratch + job.built else 0)
        log_ratios(n, terms, ratio, e[0])
        for r in range(n):
            loss[r] = <real>(part[r].dots + part[r].weight*ratio[r])
        put_run(&job.loss, i, n, loss)
        i += n
    if Workers is Alone:
        flush(&workers.due, True, e[0])
