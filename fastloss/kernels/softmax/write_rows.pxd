"""How a row's gradient, or its softmax, is written from its terms."""
from fastloss.kernels.arrays.arrays cimport Rows, is_direct, row_at
from fastloss.kernels.math.vmath cimport FL_PREFETCH, real, scaled
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.softmax.call cimport Slope, put
from fastloss.kernels.row_sums.deferred cimport Deferred, defer, flush
from fastloss.kernels.row_sums.groups cimport BLOCK


cdef inline void put_scaled(const Rows* out, Py_ssize_t i, const real* e, Slope s) noexcept nogil:
    """Row i of out = e times the slope."""
    cdef real v[BLOCK]
    cdef real c = <real>s.c, rest = <real>s.rest, apart = <real>s.apart
    cdef Py_ssize_t b = 0, n, k, done = 0
    while b < out.width:
        n = out.width - b if out.width - b < BLOCK else BLOCK
        if out.step == out.itemsize and out.width <= BLOCK:     # where the next row is written, if rows lie together
            for k in range(0, n*out.itemsize, 64):
                FL_PREFETCH(row_at(out, i) + n*out.itemsize + k)
        for k in range(n):
            v[k] = scaled(e[b + k], c, rest)
        if apart != 1:
            for k in range(n):
                v[k] = v[k]*apart
        put(out, i, b, v, n, False)
        b += n
        if b < out.width and stopped(&done, n):
            break


cdef inline void put_scaled_row(const Rows* grad, Py_ssize_t i, const real* e, Slope s, Deferred* due,
                                bint stream) noexcept nogil:
    """Row i of the gradient = e times the slope: later, if it can wait."""
    flush(due, False, e[0])
    if s.apart == 1 and is_direct(grad, e[0]):
        due.target = row_at(grad, i)
        due.terms = e
        due.n = grad.width
        due.slope = s.c
        due.rest = s.rest
        due.past = stream
        defer(due, False, e[0])
    else:
        put_scaled(grad, i, e, s)


cdef inline void put_log_softmax(const Rows* out, Py_ssize_t i, const real* x, real m, double ratio,
                                 bint stream) noexcept nogil:
    """Row i of out = (x - m) - ratio: no difference of large numbers beside the first, which is exact enough."""
    cdef real w[BLOCK]
    cdef Py_ssize_t b = 0, n, k, c = out.width, done = 0
    cdef real above = <real>ratio
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        for k in range(n):
            w[k] = (x[b + k] - m) - above
        put(out, i, b, w, n, stream)
        b += n
        if b < c and stopped(&done, n):
            break
