"""The focal loss of a softmax: row by row, exact at both ends."""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.math cimport INFINITY, pow
from libc.stdint cimport int64_t

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays cimport F64, NO_AXIS, Held, Rows, index_at, load, release, row_at, store, take
from fastloss.kernels.due cimport Due, nothing_due
from fastloss.kernels.parallel cimport blocks, cut, team
from fastloss.kernels.scratch cimport no_memory
from fastloss.kernels.special cimport fl_product_rest
from fastloss.kernels.terms cimport (
    L, Terms, label_of_terms, log_ratios, reference_of, row_terms, sum_rest,
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


cdef bint nothing_left(const Job* job, Py_ssize_t i) noexcept nogil:
    """Whether `where` leaves no class of row i."""
    cdef const char* p = row_at(&job.where, i) if job.where.data != NULL else NULL
    cdef Py_ssize_t k
    for k in range(job.where.width if p != NULL else 0):
        if p[k*job.where.step]:
            return False
    return p != NULL


cdef double focal_row(const Job* job, double factor, Py_ssize_t y, real* x, real* e) noexcept nogil:
    """The loss; x becomes its gradient.  With s = -log p and T the sum of the others' exp, dloss/dx_k is e_k/T times
    (1 - p)^(gamma + 1) + gamma (1 - p)^gamma p s, which is finite whatever gamma and p are."""
    cdef Terms terms
    cdef Due nothing
    cdef double s, total, label, rest, lost, power, common
    cdef Py_ssize_t k, c = job.logits.width
    nothing_due(&nothing, sizeof(real))
    row_terms(x, c, y, reference_of(x, c, y), e, &terms, &nothing)
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
            if v != v and nothing_left(job, i):     # as for any label that is masked out
                v = <real>(INFINITY*weight)
                for k in range(c):
                    x[k] = <real>(-factor) if k == y else <real>0
        if factor == 0:
            for k in range(c):
                x[k] = 0
        store(row_at(&job.loss, i), 0, job.loss.kind, &v, 1)
        if job.grad.data != NULL:
            store(row_at(&job.grad, i), job.grad.step, job.grad.kind, x, c)


cdef struct Run:
    const Job* job
    bint wide
    char* scratch               # rooms of so many bytes, one a thread
    Py_ssize_t room
    Py_ssize_t blocks


cdef void run_block(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef const Run* at = <const Run*>call
    cdef Py_ssize_t start = cut(at.job.logits.n, b, at.blocks), stop = cut(at.job.logits.n, b + 1, at.blocks)
    if at.wide:
        run_rows(at.job, start, stop, <double*>(at.scratch + thread*at.room))
    else:
        run_rows(at.job, start, stop, <float*>(at.scratch + thread*at.room))


cdef int run(const Job* job, int n_threads, real dummy) except -1:
    cdef Py_ssize_t n = job.logits.n, room = (2*job.logits.width + 2*L + 31)//16*16
    cdef size_t size
    cdef Run at
    if n == 0 or job.logits.width == 0:
        return 0
    at.job = job
    at.wide = real is double
    at.room = room*sizeof(real)
    at.blocks = blocks(n, job.logits.width, n_threads)
    size = team(at.blocks, n_threads)*at.room
    at.scratch = <char*>PyMem_RawMalloc(size)
    if at.scratch == NULL:
        no_memory(size)
    try:
        with nogil:
            for_blocks(run_block, &at, at.blocks, n_threads)
    finally:
        PyMem_RawFree(at.scratch)
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
