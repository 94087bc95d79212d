"""The focal loss of a softmax: row by row, exact at both ends."""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython.parallel cimport prange
from libc.math cimport INFINITY, pow
from libc.stdint cimport int64_t

from fastloss.kernels.arrays cimport F64, NO_AXIS, Held, Rows, index_at, load, release, row_at, store, take
from fastloss.kernels.parallel cimport blocks, cut
from fastloss.kernels.special cimport fl_product_rest
from fastloss.kernels.terms cimport (
    L, Row, Terms, label_of_terms, log_ratios, reference_of, row_terms, sum_rest,
)
from fastloss.kernels.vmath cimport real

cdef struct Job:
    Rows logits
    Rows labels
    Rows where
    Rows loss
    Rows grad
    const double* class_weight  # [c] or NULL
    const double* scale         # [n] or NULL
    double factor
    double gamma
    bint has_ignore
    int64_t ignore


cdef void read_row(const Job* job, Py_ssize_t i, real* x) noexcept nogil:
    cdef const char* p
    cdef Py_ssize_t k
    load(x, row_at(&job.logits, i), job.logits.step, job.logits.width, job.logits.kind)
    if job.where.data != NULL:
        p = row_at(&job.where, i)
        for k in range(job.where.width):
            x[k] = x[k] if p[k*job.where.step] else <real>(-INFINITY)


cdef double focal_row(const Job* job, double factor, Py_ssize_t y, real* x, real* e) noexcept nogil:
    """The loss; x becomes its gradient.  With s = -log p and T the sum of the others' exp, dloss/dx_k is e_k/T times
    (1 - p)^(gamma + 1) + gamma (1 - p)^gamma p s, which is finite whatever gamma and p are."""
    cdef Terms terms
    cdef Row logits
    cdef double s, total, label, rest, lost, power, common
    cdef Py_ssize_t k, c = job.logits.width
    logits.x = x
    logits.n = c
    logits.out = y
    logits.ahead = NULL
    row_terms(&logits, reference_of(x, c, y), e, &terms, NULL)
    log_ratios(1, &terms, &s, e[0])
    label = label_of_terms(&terms, e[0])
    total = terms.others + label
    rest = terms.others/total
    lost = rest*total
    lost = (terms.others - lost) - fl_product_rest(rest, total, lost)       # of the quotient, and then of the sum
    lost = lost/total - rest*sum_rest(terms.others, label, total)/total
    power = pow(rest, job.gamma)*(1 + (job.gamma*(lost/rest) if rest > 1e-290 else 0.0))
    common = power*(rest + (job.gamma*(label/total)*s if label != 0 else 0.0))*factor
    for k in range(c):
        x[k] = <real>(e[k]/terms.others*common) if terms.others != 0 else <real>0
    x[y] = <real>(-common)
    return power*s if power != 0 else 0.0


cdef void run_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef Py_ssize_t i, y, k, c = job.logits.width
    cdef real* x = scratch
    cdef real* e = scratch + c
    cdef real v
    cdef double factor, weight
    for i in range(start, stop):
        factor = job.factor
        if job.scale != NULL:
            factor = factor*job.scale[i]
        weight = 1
        y = index_at(row_at(&job.labels, i), job.labels.kind)
        if (job.has_ignore and y == job.ignore) or y < 0 or y >= c:     # checked; the array may have changed since
            weight = 0
        elif job.class_weight != NULL:
            weight = job.class_weight[y]
        factor = factor*weight
        read_row(job, i, x)
        v = 0
        if weight != 0:
            v = <real>(focal_row(job, factor, y, x, e)*weight)
        if factor == 0:
            for k in range(c):
                x[k] = 0
        store(row_at(&job.loss, i), 0, job.loss.kind, &v, 1)
        if job.grad.data != NULL:
            store(row_at(&job.grad, i), job.grad.step, job.grad.kind, x, c)


cdef int run(const Job* job, int n_threads, real dummy) except -1:
    cdef Py_ssize_t n = job.logits.n, room = (2*job.logits.width + 2*L + 31)//16*16
    cdef int k = blocks(n, job.logits.width, n_threads), b
    cdef real* scratch
    if n == 0 or job.logits.width == 0:
        return 0
    scratch = <real*>PyMem_RawMalloc(k*room*sizeof(real))
    if scratch == NULL:
        raise MemoryError()
    with nogil:
        if k == 1:
            run_rows(job, 0, n, scratch)
        else:
            for b in prange(k, schedule="static", chunksize=1, num_threads=n_threads):
                run_rows(job, cut(n, b, k), cut(n, b + 1, k), scratch + b*room)
    PyMem_RawFree(scratch)
    return 0


def softmax_focal(logits, labels, int axis, loss, grad, double gamma, const double[::1] class_weight,
                  const double[::1] scale, double factor, where, ignore, int n_threads):
    """Losses and gradients of all rows, whose labels have been checked."""
    cdef Job job
    cdef Held held
    held.count = 0
    try:
        take(&held, logits, axis, False, &job.logits)
        take(&held, labels, NO_AXIS, False, &job.labels)
        take(&held, where, axis, False, &job.where)
        take(&held, loss, NO_AXIS, True, &job.loss)
        take(&held, grad, axis, True, &job.grad)
        job.class_weight = &class_weight[0] if class_weight is not None and class_weight.shape[0] > 0 else NULL
        job.scale = &scale[0] if scale is not None and scale.shape[0] > 0 else NULL
        job.factor = factor
        job.gamma = gamma
        job.has_ignore = ignore is not None
        job.ignore = ignore if job.has_ignore else 0
        if job.logits.kind == F64:
            run[double](&job, n_threads, 0)
        else:
            run[float](&job, n_threads, 0)
    finally:
        release(&held)
