"""The lattice of an entry in numbers m 2^e: forward, its loss, back, and the gradient at blank and labels."""
from libc.math cimport INFINITY, rint
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastloss.kernels.arrays.arrays cimport F32, F64, store
from fastloss.kernels.math.vmath cimport FL_LN2_HIGH, FL_LN2_LOW, fl_log
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.sequence.ctc_entry cimport (
    AHEAD_FRAMES, FL_NOTHING, FL_PART, CtcCall, Entry, Scratch, exponents, fetch_ahead, fl_two_to,
)
from fastloss.kernels.sequence.ctc_frame cimport fl_sum, whole

cdef extern from "sequence/lattice.h" nogil:
    ctypedef struct fl_step:
        const double* p
        const double* pe
        const double* skip
        double blank
        double blank_e
        double stay
        double unit
    void fl_normal(double, double, double*, double*) noexcept
    double fl_sum2 "fl_lattice_sum2"(double, double, double, double, double*) noexcept
    void fl_lattice_forward(int64_t, const double*, const fl_step*, double*) noexcept
    void fl_lattice_backward(int64_t, const double*, const double*, const fl_step*, double*, double*, double*) noexcept
    void fl_shares(const double*, const int64_t*, int64_t, double*) noexcept
    void fl_slopes(const double*, const double*, const int64_t*, int64_t, double, double, double*) noexcept
    void fl_scatterf(char*, int64_t, const int64_t*, const double*, int64_t) noexcept
    void fl_scatter(char*, int64_t, const int64_t*, const double*, int64_t) noexcept


cdef inline void set_step(const Entry* it, const Scratch* s, Py_ssize_t t, fl_step* step) noexcept nogil:
    step.p, step.pe, step.skip = s.p + t*it.W, exponents(it, s, t), s.skip
    step.blank, step.blank_e, step.stay, step.unit = s.blank[2*t], s.blank[2*t + 1], it.stay, it.e


cdef inline void clear(double* row, Py_ssize_t W) noexcept nogil:
    cdef Py_ssize_t k, n = FL_PART(W)
    for k in range(n):
        row[k] = row[2*n + k] = 1
        row[n + k] = row[3*n + k] = FL_NOTHING


cdef inline void clear_ends(double* row, Py_ssize_t W) noexcept nogil:
    """What a step does not write of a row, but may read."""
    cdef Py_ssize_t k, n = FL_PART(W)
    for k in range(W, n):
        row[k] = row[2*n + k] = 1
        row[n + k] = row[3*n + k] = FL_NOTHING


cdef inline void forward(Entry* it, Scratch* s, bint keep) noexcept nogil:
    """alpha of every frame (of the last, unless they are kept), and the probability of the labelling."""
    cdef Py_ssize_t t, n = FL_PART(it.W), to, done = 0
    cdef double* row = s.alpha
    cdef double top
    cdef fl_step step
    clear(s.alpha, it.W)
    if not keep:
        clear(s.alpha + 4*n, it.W)
    row[n] = 0                          # before the first frame all mass is on the first blank
    for t in range(it.frames):
        if stopped(&done, 4*it.W):
            return
        to = t + 1 if keep else (t + 1) % 2
        if keep:
            clear_ends(s.alpha + 4*n*to, it.W)
        set_step(it, s, t, &step)
        fl_lattice_forward(it.W, row, &step, s.alpha + 4*n*to)
        row = s.alpha + 4*n*to
    it.m = fl_sum2(row[it.n], row[n + it.n], row[2*n + it.n], row[3*n + it.n], &top)
    fl_normal(it.m, top, &it.m, &it.e)


cdef inline double loss_of(const Entry* it) noexcept nogil:
    """-log(m 2^e), the product e ln 2 in two words."""
    if it.e < 0.5*FL_NOTHING:
        return INFINITY
    return -(it.e*FL_LN2_HIGH + (it.e*FL_LN2_LOW + fl_log(it.m)))


cdef inline void scatter(char* row, Py_ssize_t step, int kind, const int64_t* classes, const double* v,
                         Py_ssize_t n) noexcept nogil:
    """row[classes[j]] = v[j]."""
    cdef Py_ssize_t j
    if kind == F32:
        fl_scatterf(row, step, classes, v, n)
    elif kind == F64:
        fl_scatter(row, step, classes, v, n)
    else:
        for j in range(n):
            store(row + classes[j]*step, 0, kind, &v[j], 1)


cdef inline Py_ssize_t find_class(const Entry* it, const Scratch* s, int64_t k) noexcept nogil:
    """Where a class stands among the distinct labels, or -1."""
    cdef Py_ssize_t j
    for j in range(it.distinct):
        if s.classes[j] == k:
            return j
    return -1


cdef inline double others_of(const Entry* it, const Scratch* s, Py_ssize_t top, double total) noexcept nogil:
    """total + the shares of all labels but one."""
    cdef Py_ssize_t j
    for j in range(it.distinct):
        if j != top:
            total += s.share[j]
    return total


cdef inline double put_slopes(const CtcCall* call, const Entry* it, Scratch* s, Py_ssize_t t) noexcept nogil:
    """The gradient of a frame whose s.mass is alpha beta, in any unit; returns its sum."""
    cdef Py_ssize_t M = whole(it.W), top = -1
    cdef const double* p = s.p + t*it.W
    cdef const double* pe = s.pe + t*it.W if s.wide[t] else NULL
    cdef double blanks = fl_sum(s.mass, M), total = blanks + fl_sum(s.mass + M, M), c = 1/total, v, top_v = 0
    memset(s.share, 0, it.distinct*sizeof(double))
    fl_shares(s.mass + M, s.slot, it.n, s.share)
    v = (s.blank[2*t]*fl_two_to(s.blank[2*t + 1]) - blanks*c)*it.scale
    if s.top[t].k == call.blank:
        if blanks*c > 0.5:          # 1 - gamma and 1 - p, sums of small terms both
            v = (fl_sum(s.mass + M, M)*c - s.top[t].others)*it.scale
    elif s.top[t].k >= 0:
        top = find_class(it, s, s.top[t].k)
        if top >= 0 and s.share[top]*c > 0.5:
            top_v = (others_of(it, s, top, blanks)*c - s.top[t].others)*it.scale
        else:
            top = -1
    fl_slopes(p, pe, s.first, it.distinct, c, it.scale, s.share)
    if top >= 0:
        s.share[top] = top_v
    scatter(it.grad + t*call.grad.frame, call.grad.step, call.grad.kind, s.classes, s.share, it.distinct)
    scatter(it.grad + t*call.grad.frame, call.grad.step, call.grad.kind, &call.blank, &v, 1)
    return total


cdef inline void backward(const CtcCall* call, const Entry* it, Scratch* s) noexcept nogil:
    """The gradient, p - gamma, at the blank and the labels; the other classes have theirs already."""
    cdef Py_ssize_t t, n = FL_PART(it.W), W = it.W, M = whole(W), done = 0
    cdef double* row = s.beta
    cdef double* to = s.beta + 4*n
    cdef double* alpha
    cdef fl_step step
    clear(row, W)
    clear(to, W)
    memset(s.mass, 0, 2*M*sizeof(double))
    row[n + it.n] = 0                   # after the last frame: the last blank, from it or from the last label
    for t in range(it.frames - 1, -1, -1):
        if stopped(&done, 8*W):
            return
        if t >= AHEAD_FRAMES:
            fetch_ahead(it.grad + (t - AHEAD_FRAMES)*call.grad.frame, call.n_classes*call.grad.step)
        alpha = s.alpha + 4*n*(t + 1)
        set_step(it, s, t, &step)
        fl_lattice_backward(W, row, alpha, &step, to, s.mass, s.mass + M)
        row, to = to, row
        put_slopes(call, it, s, t)


# ------------------------------------------------------------------ entries with masks
# Where every alignment needs a logit of -1e15 or less, exponents are so large that sums of them lose their units.  For
# the gradient, which does not depend on how large a mask is, they are brought down to where sums are exact.

cdef inline double shrunk(double e, double by) noexcept nogil:
    """An exponent beyond 2^32 times `by`, a whole number; nothing stays nothing."""
    if e > -2.0**32 or e <= 0.5*FL_NOTHING:
        return e
    e = rint(e*by)
    return e if e > -2.0**47 else -2.0**47


cdef inline bint shrink(Entry* it, Scratch* s) noexcept nogil:
    """Whether exponents were too large, and now are not."""
    cdef double by
    cdef Py_ssize_t t, k
    if it.e > -2.0**50:
        return False
    by = -2.0**45/it.e
    for t in range(it.frames):
        s.blank[2*t + 1] = shrunk(s.blank[2*t + 1], by)
        for k in range(it.W if s.wide[t] else 0):
            s.pe[t*it.W + k] = shrunk(s.pe[t*it.W + k], by)
    return True
