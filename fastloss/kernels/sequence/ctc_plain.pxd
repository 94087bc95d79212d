"""The lattice of an entry in plain numbers: of confident entries, and of most others."""
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastloss.kernels.math.vmath cimport fl_log1p
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.sequence.ctc_entry cimport (
    AHEAD_FRAMES, FL_PART, FL_TINY, CtcCall, Entry, Scratch, exponents, fetch_ahead, fl_rest, fl_two_to,
)
from fastloss.kernels.sequence.ctc_frame cimport FRAME_LANES, fl_sum, whole
from fastloss.kernels.sequence.ctc_lattice cimport fl_normal, fl_shares, put_slopes, scatter

cdef extern from "sequence/lattice.h" nogil:
    ctypedef struct fl_plain_step:
        const double* q
        const double* hop
        double blank
        double stay
    double fl_lattice_unit(const double*, int64_t) noexcept
    void fl_astray(int64_t, const int64_t*, const fl_plain_step*, const fl_rest*, int64_t, double*) noexcept
    void fl_plain_forward(int64_t, const double*, const fl_plain_step*, double*, double*) noexcept
    int64_t fl_scaled_forward(int64_t, const double*, const fl_plain_step*, double, double*) noexcept
    void fl_plain_backward(int64_t, const double*, const fl_plain_step*, double*) noexcept
    void fl_products(int64_t, const double*, const double*, double*, double*) noexcept

# ------------------------------------------------------------------ confident entries, in plain probabilities

cdef enum:
    MOST_LOST = 62      # hundredths: a loss above about 1 has no use for this


cdef inline double* plain_row(const Entry* it, const Scratch* s, Py_ssize_t t) noexcept nogil:
    """alpha before frame t, in the same memory as the other kind."""
    return s.alpha + 4*FL_PART(it.W)*(t if it.grad != NULL else t % 2)


cdef inline double blank_of(const Scratch* s, Py_ssize_t t) noexcept nogil:
    return s.blank[2*t]*fl_two_to(s.blank[2*t + 1])


cdef inline void set_plain(const Entry* it, Scratch* s, Py_ssize_t t, fl_plain_step* step) noexcept nogil:
    """The step of frame t, with s.q = probabilities of its labels."""
    cdef Py_ssize_t u
    cdef const double* pe = exponents(it, s, t)
    for u in range(it.n):
        s.q[u] = s.p[t*it.W + u]*fl_two_to(pe[u])
    step.q, step.hop, step.blank, step.stay = s.q, s.hop, blank_of(s, t), it.plain_stay


cdef inline void start_plain(Entry* it, Scratch* s) noexcept nogil:
    cdef double* row = plain_row(it, s, 0)
    memset(row, 0, 2*FL_PART(it.W)*sizeof(double))
    memset(plain_row(it, s, 1), 0, 2*FL_PART(it.W)*sizeof(double))
    memset(s.mass, 0, 2*(it.W + FRAME_LANES)*sizeof(double))
    memset(s.off, 0, 2*FL_PART(it.W)*sizeof(double))
    row[0] = 1
    it.lost = 0
    it.confident = True


cdef inline void plain_forward(const CtcCall* call, Entry* it, Scratch* s, Py_ssize_t t) noexcept nogil:
    """alpha after frame t, and what is lost by it."""
    cdef double* row = plain_row(it, s, t)
    cdef double* to = plain_row(it, s, t + 1)
    cdef Py_ssize_t M = whole(it.W)
    cdef fl_plain_step step
    set_plain(it, s, t, &step)
    fl_astray(it.W, s.label, &step, &s.rest[t], call.blank, s.off)
    fl_products(it.W, row, s.off, s.mass, s.mass + M)
    s.rest[t].lost = it.lost
    it.lost += fl_sum(s.mass, 2*M)
    if it.grad != NULL:
        memset(to, 0, 2*FL_PART(it.W)*sizeof(double))
    fl_plain_forward(it.W, row, &step, s.arrived, to)
    it.confident = it.lost < MOST_LOST*0.01


cdef inline double plain_loss(Entry* it, Scratch* s) noexcept nogil:
    """log(1 + Q/P); leaves Q in it.lost and P in it.m."""
    cdef Py_ssize_t u, n = FL_PART(it.W)
    cdef double* row = plain_row(it, s, it.frames)
    it.m = row[it.n] + row[n + it.n]
    for u in range(it.n):
        it.lost += row[u]
        if u < it.n - 1:
            it.lost += row[n + u + 1]
    it.confident = it.lost < MOST_LOST*0.01
    return fl_log1p(it.lost/it.m)


cdef inline double elsewhere(const CtcCall* call, const Entry* it, const Scratch* s, const double* row,
                             int64_t k) noexcept nogil:
    """Mass of the states from which class k, a label, is no move."""
    cdef Py_ssize_t u, n = FL_PART(it.W)
    cdef double total = row[it.n]
    for u in range(it.n):
        if s.label[u] != k:
            total += row[u]
        if not (call.merge and s.label[u] == k) and not (s.hop[u + 1] != 0 and s.label[u + 1] == k):
            total += row[n + u + 1]
    return total


cdef inline void plain_backward(const CtcCall* call, const Entry* it, Scratch* s) noexcept nogil:
    """The gradient at blank and labels: P(class and not the labelling) - gamma Q, gamma = P(class | the labelling)."""
    cdef Py_ssize_t t, j, n = FL_PART(it.W), W = it.W, M = whole(W), done = 0
    cdef double* right = s.beta                 # probability of ending as the labelling, and of not doing so
    cdef double* wrong = s.beta + 2*n
    cdef double* right_to = s.beta + 4*n
    cdef double* wrong_to = s.beta + 6*n
    cdef double* row
    cdef double c = it.lost/it.m, v, away
    cdef fl_plain_step step
    memset(s.beta, 0, 8*n*sizeof(double))
    memset(s.mass, 0, 2*(W + FRAME_LANES)*sizeof(double))
    right[it.n] = 1
    for j in range(it.n):
        wrong[j] = wrong[n + j] = 1
    if it.n > 0:
        right[n + it.n - 1] = 1
        wrong[n + it.n - 1] = 0
    for t in range(it.frames - 1, -1, -1):
        if stopped(&done, 8*W):
            return
        row = plain_row(it, s, t + 1)
        set_plain(it, s, t, &step)
        memset(s.share, 0, it.distinct*sizeof(double))
        memset(s.more, 0, it.distinct*sizeof(double))
        fl_products(W, row, wrong, s.mass, s.mass + M)
        fl_shares(s.mass + M, s.slot, it.n, s.share)
        v = step.blank*s.rest[t].lost + fl_sum(s.mass, M)
        fl_products(W, row, right, s.mass, s.mass + M)
        fl_shares(s.mass + M, s.slot, it.n, s.more)
        v = (v - fl_sum(s.mass, M)*c)*it.scale
        scatter(it.grad + t*call.grad.frame, call.grad.step, call.grad.kind, &call.blank, &v, 1)
        for j in range(it.distinct):
            s.share[j] -= s.more[j]*c
        row = plain_row(it, s, t)
        fl_plain_forward(W, row, &step, s.arrived, right_to)
        memset(s.more, 0, it.distinct*sizeof(double))
        fl_shares(s.arrived, s.slot, it.n, s.more)
        for j in range(it.distinct):
            away = 1 - s.more[j]
            if away < 0.5:
                away = s.rest[t].lost + elsewhere(call, it, s, row, s.classes[j])
            s.share[j] = (s.share[j] + s.q[s.first[j]]*away)*it.scale
        scatter(it.grad + t*call.grad.frame, call.grad.step, call.grad.kind, s.classes, s.share, it.distinct)
        fl_astray(W, s.label, &step, &s.rest[t], call.blank, s.off)
        fl_plain_backward(W, right, &step, right_to)
        fl_plain_backward(W, wrong, &step, wrong_to)
        for j in range(2*n):
            wrong_to[j] += s.off[j]
        right, right_to = right_to, right
        wrong, wrong_to = wrong_to, wrong


# ------------------------------------------------------------------ most entries: plain numbers, a row in one unit
# As long as no mass of a frame falls below 2^-900 of about the largest, nothing is lost by it.  That is counted: of all
# states that can be reached none may be small.  Then alpha is right; and so is beta where alpha beta, which its own
# small masses can change by no more than 2^-1000, stays above 2^-700.

cdef enum:
    EVERY_FRAMES = 8           # frames after which the unit is chosen anew


cdef inline void set_unscaled(const Entry* it, Scratch* s, Py_ssize_t t, fl_plain_step* step) noexcept nogil:
    """The step of frame t, of which no probability has an exponent."""
    memcpy(s.q, s.p + t*it.W, it.W*sizeof(double))
    step.q, step.hop, step.blank, step.stay = s.q, s.hop, s.blank[2*t], it.plain_stay


cdef inline bint scaled_forward(Entry* it, Scratch* s) noexcept nogil:
    """alpha of all frames, and the probability of the labelling; False where plain numbers do not do."""
    cdef Py_ssize_t t, k, blanks = 0, labels = 0, first = 1, done = 0
    cdef double* row = plain_row(it, s, 0)
    cdef double* to
    cdef double scale = 1, e
    cdef fl_plain_step step
    memset(row, 0, 2*FL_PART(it.W)*sizeof(double))
    memset(plain_row(it, s, 1), 0, 2*FL_PART(it.W)*sizeof(double))
    row[0] = 1
    it.e = 0
    for t in range(it.frames):
        if s.wide[t] or s.blank[2*t + 1] != 0 or stopped(&done, it.W):
            return False
        to = plain_row(it, s, t + 1)
        for k in range(8 if it.grad != NULL else 0):    # what a step does not write, but the next one may read
            to[it.W + k] = to[FL_PART(it.W) + it.W + k] = 0
        # states that t + 1 frames can reach: label u needs u + 1, and one more for every repeat up to it
        blanks = labels + 1
        while labels < it.n and first <= t + 1:
            labels += 1
            first += 1 if s.hop[labels] != 0 else 2
        set_unscaled(it, s, t, &step)
        if fl_scaled_forward(it.W, row, &step, scale, to) != blanks + labels:
            return False
        row = to
        scale = 1
        if t % EVERY_FRAMES == EVERY_FRAMES - 1:
            scale = fl_lattice_unit(row, 2*FL_PART(it.W))
            fl_normal(scale, 0, &e, &e)
            it.e -= e
    it.m = row[it.n] + row[FL_PART(it.W) + it.n]
    if not it.m >= FL_TINY:
        return False
    if it.frames % EVERY_FRAMES == 0 and it.frames > 0:
        it.e += e                       # that unit was not used any more
    fl_normal(it.m, it.e, &it.m, &it.e)
    return True


cdef inline bint scaled_backward(const CtcCall* call, const Entry* it, Scratch* s) noexcept nogil:
    """The gradient at blank and labels; False where plain numbers do not do."""
    cdef Py_ssize_t t, k, n = FL_PART(it.W), M = whole(it.W), done = 0
    cdef double* row = s.beta
    cdef double* to = s.beta + 4*n
    cdef double scale
    cdef fl_plain_step step
    memset(s.beta, 0, 8*n*sizeof(double))
    memset(s.mass, 0, 2*M*sizeof(double))
    row[it.n] = 1
    if it.n > 0:
        row[n + it.n - 1] = 1
    for t in range(it.frames - 1, -1, -1):
        if t >= AHEAD_FRAMES:
            fetch_ahead(it.grad + (t - AHEAD_FRAMES)*call.grad.frame, call.n_classes*call.grad.step)
        if stopped(&done, 2*it.W):
            return False
        fl_products(it.W, plain_row(it, s, t + 1), row, s.mass, s.mass + M)
        if not put_slopes(call, it, s, t) >= 2.0**-700:
            return False
        set_unscaled(it, s, t, &step)
        fl_plain_backward(it.W, row, &step, to)
        row, to = to, row
        if t % EVERY_FRAMES == 0:
            scale = fl_lattice_unit(row, 2*FL_PART(it.W))
            for k in range(2*n):
                row[k] *= scale
    return True
