"""Rows of which nothing counts, or of which `where` leaves no class: put right after the others, not to slow them.

One rule: a term whose coefficient is exactly 0 adds exactly 0, to the value and to every gradient.  Where no class is
left all probabilities are 0, and a label that counts has the loss of any other that is masked out: infinite.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from fastloss.kernels.arrays.arrays cimport even_run, load, row_at, run_stride, store
from fastloss.kernels.softmax.call cimport (
    LOG_SOFTMAX, LOSS, RESIDUAL, SOFTMAX, SoftmaxCall, label_of, put_one, put_zeros, scale_of,
)
from fastloss.kernels.math.vmath cimport real

cdef enum:
    RUN = 64            # losses looked at together


cdef inline Py_ssize_t first_left(const SoftmaxCall* job, Py_ssize_t i) noexcept nogil:
    """The row's first class that is not masked, or how many there are."""
    cdef const char* p
    cdef Py_ssize_t k
    if job.where.data == NULL:
        return 0
    p = row_at(&job.where, i)
    for k in range(job.where.width):
        if p[k*job.where.step]:
            return k
    return job.where.width


cdef inline bint nothing_left(const SoftmaxCall* job, Py_ssize_t i) noexcept nogil:
    """Whether the row has no class but masked ones."""
    return job.where.data != NULL and first_left(job, i) == job.where.width


cdef inline void amend_masked(const SoftmaxCall* job, Py_ssize_t i, real value) noexcept nogil:
    """Masked classes of a row that is NaN, or of which none is left, have the value of any masked class."""
    cdef Py_ssize_t k = first_left(job, i)
    cdef const char* p = row_at(&job.where, i)
    cdef real first
    if k < job.where.width:
        load(&first, row_at(&job.grad, i) + k*job.grad.step, 0, 1, job.grad.kind)
        if first == first:
            return
    for k in range(job.where.width):
        if not p[k*job.where.step]:
            put_one(&job.grad, i, k, value)


cdef inline double target_of(const SoftmaxCall* job, Py_ssize_t i, Py_ssize_t k, int64_t y, bint left) noexcept nogil:
    """As targets() in softmax_job, but of one class, and any other number than 0 for a share of smoothing."""
    cdef double t = k == y
    cdef const char* p = row_at(&job.where, i) if job.where.data != NULL else NULL
    if not job.index:
        load(&t, row_at(&job.labels, i) + k*job.labels.step, 0, 1, job.labels.kind)
    if job.smoothing != 0:
        t = (1 - job.smoothing)*t
        if left and (p == NULL or p[k*job.where.step]):
            t += job.smoothing
    return t*job.class_weight[k] if job.class_weight != NULL else t


cdef inline void amend_loss(const SoftmaxCall* job, Py_ssize_t i, real* loss) noexcept nogil:
    """A row whose loss is NaN."""
    cdef bint left = not nothing_left(job, i), counts = False
    cdef int64_t y = label_of(job, i) if job.index else 0
    cdef Py_ssize_t k
    cdef double t, total = 0, s = scale_of(job, i)
    cdef real v
    for k in range(job.logits.width):
        t = target_of(job, i, k, y, left)
        counts = counts or t != 0
        total += t*INFINITY if t != 0 else 0.0
    if counts and left:
        return
    loss[0] = <real>total
    store(row_at(&job.loss, i), 0, job.loss.kind, loss, 1)
    put_zeros(&job.grad, i)
    put_zeros(&job.hess, i)
    for k in range(job.logits.width if counts and s != 0 and job.grad.data != NULL else 0):
        v = <real>(-s*target_of(job, i, k, y, left))
        put_one(&job.grad, i, k, v)
        if job.hess.data != NULL and job.hessian == RESIDUAL:
            put_one(&job.hess, i, k, v if v > 0 else -v)


cdef inline void amend(const SoftmaxCall* job, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    """Rows start .. stop, when all else has been written."""
    cdef real v[RUN]
    cdef Py_ssize_t i, n, r
    cdef int wrong
    if job.where.data == NULL and (job.what != LOSS or (job.index and not job.soft)):
        return
    if job.what == SOFTMAX or job.what == LOG_SOFTMAX:
        v[0] = <real>0 if job.what == SOFTMAX else <real>(-INFINITY)
        for i in range(start, stop):
            amend_masked(job, i, v[0])
    if job.what != LOSS:
        return
    i = start
    while i < stop:
        n = stop - i if stop - i < RUN else RUN
        if even_run(&job.loss, i, n):
            load(v, row_at(&job.loss, i), run_stride(&job.loss), n, job.loss.kind)
        else:
            for r in range(n):
                load(v + r, row_at(&job.loss, i + r), 0, 1, job.loss.kind)
        wrong = 0
        for r in range(n):
            wrong |= v[r] != v[r]
        for r in range(n if wrong else 0):
            if v[r] != v[r]:
                amend_loss(job, i + r, v + r)
        i += n
