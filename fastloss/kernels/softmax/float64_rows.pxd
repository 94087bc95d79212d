"""Softmax rows in float64, with everything: any law, a target for every class, capped logits, second derivatives.

A row's loss is the sum over its classes of target times law, around its maximum: the one class whose p may be near 1,
so that of all others 1 - p loses nothing. Rows of any dtype are read and written; only scratch is float64.
"""
from libc.math cimport INFINITY, fabs

from fastloss.kernels.arrays.arrays cimport load, row_at
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.softmax.empty_rows cimport nothing_left
from fastloss.kernels.softmax.call cimport (
    RESIDUAL, UPPER, SoftmaxCall, label_of, mask, put, put_one, put_zeros, scale_of, targets,
)
from fastloss.kernels.softmax.laws cimport Label, Law, Worth, quotient, worth
from fastloss.kernels.math.sigmoid_math cimport fl_exp_minus, tanh_of
from fastloss.kernels.row_sums.lane_sums cimport L, find, row_max, sum_groups
from fastloss.kernels.row_sums.groups cimport BLOCK, Row
from fastloss.kernels.row_sums.row_sums cimport Terms, label_of_terms, log_ratios, row_terms

cdef enum:
    WIDE_ARRAYS = 8     # of WideRow

cdef struct WideRow:
    double* x           # logits, capped
    double* t           # targets
    double* e           # exps, 0 at the maximum
    double* share       # of each class in the loss; then the gradient
    double* slope       # t mass/q, 0 at the maximum
    double* bend        # t bend/q^2, likewise
    double* tilt        # derivative of the capped logit by the one given
    double* curve       # and the second
    Py_ssize_t top      # where the maximum stands
    double m            # and what it is
    double ratio        # log-sum-exp minus m
    double others       # sum of exp over all but the maximum
    double label        # exp of the maximum
    double total
    double z            # factor of the row's z-loss
    double lse
    double slopes       # sums of these
    double bends
    double push         # derivative of the z-loss by the log-sum-exp


cdef inline Py_ssize_t wide_room(Py_ssize_t c) noexcept nogil:
    """Elements of each of a row's arrays: whole groups, and one more."""
    return (c + 2*L - 1)//L*L


cdef inline void cut_scratch(WideRow* row, double* scratch, Py_ssize_t c) noexcept nogil:
    cdef Py_ssize_t room = wide_room(c)
    row.x = scratch
    row.t = row.x + room
    row.e = row.t + room
    row.share = row.e + room
    row.slope = row.share + room
    row.bend = row.slope + room
    row.tilt = row.bend + room
    row.curve = row.tilt + room


cdef inline double sum_of(double* v, Py_ssize_t c) noexcept nogil:
    cdef Py_ssize_t k, groups = (c + L - 1)//L
    for k in range(c, groups*L):
        v[k] = 0
    return sum_groups(v, groups)


cdef inline void cap(const SoftmaxCall* job, const WideRow* row, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """x = softcap tanh(x/softcap)/temperature, and its derivatives: 1 - tanh^2 without cancellation."""
    cdef Py_ssize_t k
    cdef double u, w, h, c = job.softcap, t = job.temperature
    cdef bint slopes = job.grad.data != NULL
    for k in range(start, stop):
        row.tilt[k] = 1/t
        row.curve[k] = 0
    if c != 0:
        for k in range(start, stop if slopes else start):
            w = fl_exp_minus(2*fabs(row.x[k]/c))
            row.tilt[k] = 4*w/((1 + w)*(1 + w))/t
        for k in range(start, stop):
            u = row.x[k]/c
            h = u if u != u else tanh_of(u)
            row.x[k] = c*h
            row.curve[k] = -2*h/c*row.tilt[k]
    for k in range(start, stop):
        row.x[k] = row.x[k]/t


cdef inline void cap_row(const SoftmaxCall* job, Py_ssize_t i, const WideRow* row) noexcept nogil:
    """All of the row; a class that `where` takes out is not capped, whatever its logit is."""
    cdef Py_ssize_t b = 0, n, k, done = 0, c = job.logits.width
    cdef const char* p = row_at(&job.where, i) if job.where.data != NULL else NULL
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        cap(job, row, b, b + n)
        for k in range(b, b + n if p != NULL else b):
            if not p[k*job.where.step]:
                row.tilt[k] = 1/job.temperature
                row.curve[k] = 0
        b += n
        if b < c and stopped(&done, 8*n):
            break


cdef inline double row_weight(const SoftmaxCall* job, Py_ssize_t i, double* labels) noexcept nogil:
    """The row's class weight, which multiplies its z-loss."""
    cdef Py_ssize_t k
    if job.class_weight == NULL:
        return 1
    if job.index:
        return job.class_weight[label_of(job, i)]
    load(labels, row_at(&job.labels, i), job.labels.step, job.logits.width, job.labels.kind)
    for k in range(job.logits.width):
        labels[k] = labels[k]*job.class_weight[k] if labels[k] != 0 else 0.0
    return sum_of(labels, job.logits.width)


cdef inline void read_row(const SoftmaxCall* job, Py_ssize_t i, WideRow* row) noexcept nogil:
    """The row's logits, targets and sums."""
    cdef Py_ssize_t c = job.logits.width
    cdef Terms terms
    cdef Row logits
    load(row.x, row_at(&job.logits, i), job.logits.step, c, job.logits.kind)
    if job.softcap != 0 or job.temperature != 1:
        cap_row(job, i, row)
    if job.where.data != NULL:
        mask(row.x, &job.where, i)
    targets(job, i, row.t)
    row.z = job.z_loss*row_weight(job, i, row.share) if job.z_loss != 0 else 0.0
    row.m = row_max(row.x, c)
    row.top = find(row.x, c, row.m)
    logits.x = row.x
    logits.n = c
    logits.out = row.top
    logits.ahead = NULL
    row_terms(&logits, row.m, row.e, &terms, NULL)
    log_ratios(1, &terms, &row.ratio, row.m)
    row.others = terms.others
    row.label = label_of_terms(&terms, row.m)
    row.total = row.others + row.label
    row.lse = row.m + row.ratio


cdef inline Label label_at(const WideRow* row, Py_ssize_t k) noexcept nogil:
    cdef Label y
    y.s = (row.m - row.x[k]) + row.ratio
    if k == row.top:
        y.q = quotient(row.others, row.label, row.total, &y.q_rest)
        y.p = row.label/row.total
    else:
        y.p = row.e[k]/row.total
        y.q = 1 - y.p
        y.q_rest = 0
    return y


cdef inline Worth shares(const Law* law, const WideRow* row, Py_ssize_t c) noexcept nogil:
    """What every class adds to the loss and to its derivatives; the maximum's, times its target, is returned."""
    cdef Py_ssize_t k, done = 0
    cdef Label y
    cdef Worth w, best
    cdef double t
    best.value = best.mass = best.bend = best.push = 0
    for k in range(c):
        row.share[k] = row.slope[k] = row.bend[k] = 0
        t = row.t[k]
        if t == 0:
            continue
        y = label_at(row, k)
        w = worth(law, &y)
        row.share[k] = t*w.value
        if k == row.top:
            best.mass = t*w.mass
            best.bend = t*w.bend
        else:
            row.slope[k] = t*(w.mass/y.q)
            row.bend[k] = t*(w.bend/(y.q*y.q))
        if stopped(&done, 16):
            break
    return best


cdef inline void put_labels_slopes(const SoftmaxCall* job, const Law* law, Py_ssize_t i, const WideRow* row,
                                   double scale) noexcept nogil:
    """d loss/d y_k = w_k ((1 - s) value_k - mean), and the z-loss's where it is weighted by the labels."""
    cdef const char* kept = row_at(&job.where, i) if job.where.data != NULL else NULL
    cdef double more = -job.mean, w, v
    cdef Label y
    cdef Py_ssize_t k, done = 0
    if job.class_weight != NULL:
        more = more + job.z_loss*row.lse*row.lse
    for k in range(job.logits.width):
        w = job.class_weight[k] if job.class_weight != NULL else 1
        y = label_at(row, k)
        v = (worth(law, &y).value*(1 - job.smoothing) + more)*w*scale
        if w == 0 or scale == 0 or (kept != NULL and not kept[k*job.where.step]):
            v = 0
        put_one(&job.labels_grad, i, k, v)
        if stopped(&done, 16):
            break


cdef inline void derive(const SoftmaxCall* job, const WideRow* row, const Worth* best, Py_ssize_t start,
                        Py_ssize_t stop) noexcept nogil:
    """Derivatives by the capped logits: sums over all classes but k, and k's own, which cancel only where the truth
    does."""
    cdef Py_ssize_t k, top = row.top
    cdef double slopes = row.slopes, bends = row.bends, push = row.push
    cdef double each = 1/row.others if row.others != 0 else 0.0, p, q, r, h
    cdef bint here = start <= top < stop
    for k in range(start, stop):
        p = row.e[k]/row.total
        r = row.e[k]*each
        row.share[k] = p*((slopes - row.slope[k]) + push) + r*best.mass - row.slope[k]*(1 - p)
    if here:
        p = row.label/row.total
        row.share[top] = p*(slopes + push) - best.mass
    if job.hess.data == NULL or job.hessian == RESIDUAL:
        return
    for k in range(start, stop):
        p = row.e[k]/row.total
        q = 1 - p
        r = row.e[k]*each
        h = p*p*(bends - row.bend[k]) + p*q*(slopes + push) + r*(q*best.mass + r*best.bend) + q*q*row.bend[k]
        row.bend[k] = h
    if here:
        p = row.label/row.total
        q = row.others/row.total
        row.bend[top] = p*p*bends + p*q*(slopes + push) + p*best.mass + best.bend


cdef inline void put_derived(const SoftmaxCall* job, Py_ssize_t i, const WideRow* row, double scale, Py_ssize_t start,
                             Py_ssize_t n) noexcept nogil:
    """Gradient and Hessian diagonal of n classes, by the logits as they were given."""
    cdef Py_ssize_t k
    cdef double s = scale*(2 if job.hessian == UPPER else 1)
    if job.softcap != 0 or job.temperature != 1:
        for k in range(start, start + n):
            row.bend[k] = row.bend[k]*row.tilt[k]*row.tilt[k] + row.share[k]*row.curve[k]
            row.share[k] = row.share[k]*row.tilt[k]
    for k in range(start, start + n):
        row.share[k] = row.share[k]*scale
    put(&job.grad, i, start, row.share + start, n, False)
    if job.hess.data == NULL:
        return
    for k in range(start, start + n):
        row.bend[k] = fabs(row.share[k]) if job.hessian == RESIDUAL else row.bend[k]*s
    put(&job.hess, i, start, row.bend + start, n, False)


cdef inline void put_derivatives(const SoftmaxCall* job, Py_ssize_t i, WideRow* row, const Worth* best, bint left,
                                 double scale) noexcept nogil:
    """Of a row of which no class is left, as if the label's probability were 0 and nothing else moved."""
    cdef Py_ssize_t b = 0, n, k, done = 0, c = job.logits.width
    if left:
        row.slopes = sum_of(row.slope, c)
        row.bends = sum_of(row.bend, c) + 2*row.z
        row.push = 2*row.z*row.lse
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        if left:
            derive(job, row, best, b, b + n)
        else:
            for k in range(b, b + n):
                row.share[k] = -row.t[k]
                row.bend[k] = 0
        put_derived(job, i, row, scale, b, n)
        b += n
        if b < c and stopped(&done, 4*n):
            break


cdef inline double infinite(const WideRow* row, Py_ssize_t c) noexcept nogil:
    """The loss of a row of which no class is left."""
    cdef double loss = row.z*INFINITY if row.z != 0 else 0.0
    cdef Py_ssize_t k
    for k in range(c):
        loss += row.t[k]*INFINITY if row.t[k] != 0 else 0.0
    return loss


cdef inline bint counts(const WideRow* row, Py_ssize_t c) noexcept nogil:
    """Whether a coefficient is not 0."""
    cdef Py_ssize_t k
    for k in range(c):
        if row.t[k] != 0:
            return True
    return row.z != 0


cdef inline void wide_rows(const SoftmaxCall* job, const Law* law, Py_ssize_t start, Py_ssize_t stop,
                           double* scratch) noexcept nogil:
    cdef Py_ssize_t i, c = job.logits.width
    cdef WideRow row
    cdef Worth best
    cdef double loss, scale
    cdef bint left
    cut_scratch(&row, scratch, c)
    for i in range(start, stop):
        scale = scale_of(job, i)
        loss = 0
        left = True
        if job.index and label_of(job, i) < 0:
            scale = 0
        else:
            read_row(job, i, &row)
            best = shares(law, &row, c)
            left = not nothing_left(job, i)
            if job.labels_grad.data != NULL:
                put_labels_slopes(job, law, i, &row, scale)
            if not counts(&row, c):
                scale = 0
            elif not left:
                loss = infinite(&row, c)
            else:
                loss = sum_of(row.share, c) + 0*row.others      # NaN stays
                if row.z != 0:
                    loss = loss + row.z*row.lse*row.lse
        put_one(&job.loss, i, 0, loss)
        if job.grad.data == NULL:
            continue
        if scale == 0:
            put_zeros(&job.grad, i)
            put_zeros(&job.hess, i)
        else:
            put_derivatives(job, i, &row, &best, left, scale)
