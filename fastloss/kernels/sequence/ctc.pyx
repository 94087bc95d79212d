"""Connectionist temporal classification: loss and gradient of every batch entry.

An entry is one thread's.  Its frames become probabilities of the labels (and, in the gradient's own memory, of all
classes); then the lattice of lattice.h is walked forward and, for the gradient, back.
"""
from libc.math cimport INFINITY, NAN, rint
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from fastloss._parallel cimport for_blocks
from fastloss.kernels.sequence.ctc_entry cimport (
    AHEAD, FL_NOTHING, FL_PART, FL_TINY, Entry, Job, Scratch, fetch_ahead, fill, find_classes, fl_rest, fl_two_to,
    group_of, lay_out, read_frames, read_labels, set_moves,
)
from fastloss.kernels.arrays.arrays cimport F32, F64, NO_AXIS, Held, Rows, index_at, release, row_at, store, take
from fastloss.kernels.sequence.ctc_frame cimport LANES, fl_sum, padded, take_frames, whole
from fastloss.kernels.parallel.parallel cimport blocks, stopped
from fastloss.kernels.parallel.scratch cimport Scratches, free_scratch, new_scratch, no_memory, scratch_of
from fastloss.kernels.math.vmath cimport fl_log, fl_log1p

cdef extern from "sequence/lattice.h" nogil:
    void fl_normal(double, double, double*, double*) noexcept
    double fl_sum2 "fl_lattice_sum2"(double, double, double, double, double*) noexcept
    void fl_lattice_forward(int64_t, const double*, const double*, const double*, double, double, double,
                            const double*, double*) noexcept
    void fl_lattice_backward(int64_t, const double*, const double*, const double*, const double*, double, double,
                             double, const double*, double, double*, double*, double*) noexcept
    double fl_unit "fl_lattice_unit"(const double*, int64_t) noexcept
    void fl_shares(const double*, const int64_t*, int64_t, double*) noexcept
    void fl_slopes(const double*, const double*, const int64_t*, int64_t, double, double, double*) noexcept
    void fl_scatterf(char*, int64_t, const int64_t*, const double*, int64_t) noexcept
    void fl_scatter(char*, int64_t, const int64_t*, const double*, int64_t) noexcept
    void fl_astray(int64_t, const int64_t*, const double*, const fl_rest*, int64_t, double, double, const double*,
                   double*) noexcept
    void fl_plain_forward(int64_t, const double*, const double*, double, double, const double*, double*,
                          double*) noexcept
    int64_t fl_scaled_forward(int64_t, const double*, const double*, double, double, const double*, double,
                              double*) noexcept
    void fl_plain_backward(int64_t, const double*, const double*, double, double, const double*, double*) noexcept
    void fl_products(int64_t, const double*, const double*, double*, double*) noexcept

# ------------------------------------------------------------------ the lattice

cdef inline const double* exponents(const Entry* it, const Scratch* s, Py_ssize_t t) noexcept nogil:
    return s.pe + t*it.W if s.wide[t] else s.plain


cdef inline void clear(double* row, Py_ssize_t W) noexcept nogil:
    cdef Py_ssize_t k, n = FL_PART(W)
    for k in range(n):
        row[k] = row[2*n + k] = 1
        row[n + k] = row[3*n + k] = FL_NOTHING


cdef void forward(Entry* it, Scratch* s, bint keep) noexcept nogil:
    """alpha of every frame (of the last, unless they are kept), and the probability of the labelling."""
    cdef Py_ssize_t t, n = FL_PART(it.W), to, done = 0
    cdef double* row = s.alpha
    cdef double top
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
        fl_lattice_forward(it.W, row, s.p + t*it.W, exponents(it, s, t), s.blank[2*t], s.blank[2*t + 1], it.stay,
                           s.skip, s.alpha + 4*n*to)
        row = s.alpha + 4*n*to
    it.m = fl_sum2(row[it.n], row[n + it.n], row[2*n + it.n], row[3*n + it.n], &top)
    fl_normal(it.m, top, &it.m, &it.e)


cdef inline void clear_ends(double* row, Py_ssize_t W) noexcept nogil:
    """What a step does not write of a row, but may read."""
    cdef Py_ssize_t k, n = FL_PART(W)
    for k in range(W, n):
        row[k] = row[2*n + k] = 1
        row[n + k] = row[3*n + k] = FL_NOTHING


cdef double loss_of(const Entry* it) noexcept nogil:
    """-log(m 2^e), the product e ln 2 in two words."""
    if it.e < 0.5*FL_NOTHING:
        return INFINITY
    return -(it.e*6.93147180369123816490e-01 + (it.e*1.90821492927058770002e-10 + fl_log(it.m)))


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


cdef double put_slopes(const Job* job, const Entry* it, Scratch* s, Py_ssize_t t) noexcept nogil:
    """The gradient of a frame whose s.mass is alpha beta, in any unit; returns its sum."""
    cdef Py_ssize_t M = whole(it.W), top = -1
    cdef const double* p = s.p + t*it.W
    cdef const double* pe = s.pe + t*it.W if s.wide[t] else NULL
    cdef double blanks = fl_sum(s.mass, M), total = blanks + fl_sum(s.mass + M, M), c = 1/total, v, top_v = 0
    memset(s.share, 0, it.distinct*sizeof(double))
    fl_shares(s.mass + M, s.slot, it.n, s.share)
    v = (s.blank[2*t]*fl_two_to(s.blank[2*t + 1]) - blanks*c)*it.scale
    if s.top[t].k == job.blank:
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
    scatter(it.grad + t*job.grad.frame, job.grad.step, job.grad.kind, s.classes, s.share, it.distinct)
    scatter(it.grad + t*job.grad.frame, job.grad.step, job.grad.kind, &job.blank, &v, 1)
    return total


cdef void backward(const Job* job, const Entry* it, Scratch* s) noexcept nogil:
    """The gradient, p - gamma, at the blank and the labels; the other classes have theirs already."""
    cdef Py_ssize_t t, n = FL_PART(it.W), W = it.W, M = whole(W), done = 0
    cdef double* row = s.beta
    cdef double* to = s.beta + 4*n
    cdef double* alpha
    cdef const double* p
    cdef const double* pe
    clear(row, W)
    clear(to, W)
    memset(s.mass, 0, 2*M*sizeof(double))
    row[n + it.n] = 0                   # after the last frame: the last blank, from it or from the last label
    for t in range(it.frames - 1, -1, -1):
        if stopped(&done, 8*W):
            return
        if t >= AHEAD:
            fetch_ahead(it.grad + (t - AHEAD)*job.grad.frame, job.n_classes*job.grad.step)
        alpha = s.alpha + 4*n*(t + 1)
        p = s.p + t*W
        pe = exponents(it, s, t)
        fl_lattice_backward(W, row, alpha, p, pe, s.blank[2*t], s.blank[2*t + 1], it.stay, s.skip, it.e, to, s.mass,
                            s.mass + M)
        row, to = to, row
        put_slopes(job, it, s, t)


# ------------------------------------------------------------------ entries with masks
# Where every alignment needs a logit of -1e15 or less, exponents are so large that sums of them lose their units.  For
# the gradient, which does not depend on how large a mask is, they are brought down to where sums are exact.

cdef inline double shrunk(double e, double by) noexcept nogil:
    """An exponent beyond 2^32 times `by`, a whole number; nothing stays nothing."""
    if e > -2.0**32 or e <= 0.5*FL_NOTHING:
        return e
    e = rint(e*by)
    return e if e > -2.0**47 else -2.0**47


cdef bint shrink(Entry* it, Scratch* s) noexcept nogil:
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


# ------------------------------------------------------------------ confident entries, in plain probabilities

cdef enum:
    MOST_LOST = 62      # hundredths: a loss above about 1 has no use for this


cdef inline double* plain_row(const Entry* it, const Scratch* s, Py_ssize_t t) noexcept nogil:
    """alpha before frame t, in the same memory as the other kind."""
    return s.alpha + 4*FL_PART(it.W)*(t if it.grad != NULL else t % 2)


cdef inline void set_plain(const Entry* it, Scratch* s, Py_ssize_t t) noexcept nogil:
    """s.q = probabilities of the labels in frame t, and s.off."""
    cdef Py_ssize_t u
    cdef const double* pe = exponents(it, s, t)
    for u in range(it.n):
        s.q[u] = s.p[t*it.W + u]*fl_two_to(pe[u])


cdef inline double blank_of(const Scratch* s, Py_ssize_t t) noexcept nogil:
    return s.blank[2*t]*fl_two_to(s.blank[2*t + 1])


cdef void start_plain(Entry* it, Scratch* s) noexcept nogil:
    cdef double* row = plain_row(it, s, 0)
    memset(row, 0, 2*FL_PART(it.W)*sizeof(double))
    memset(plain_row(it, s, 1), 0, 2*FL_PART(it.W)*sizeof(double))
    memset(s.mass, 0, 2*(it.W + LANES)*sizeof(double))
    memset(s.off, 0, 2*FL_PART(it.W)*sizeof(double))
    row[0] = 1
    it.lost = 0
    it.confident = True


cdef void plain_forward(const Job* job, Entry* it, Scratch* s, Py_ssize_t t) noexcept nogil:
    """alpha after frame t, and what is lost by it."""
    cdef double* row = plain_row(it, s, t)
    cdef double* to = plain_row(it, s, t + 1)
    cdef Py_ssize_t M = whole(it.W)
    set_plain(it, s, t)
    fl_astray(it.W, s.label, s.q, &s.rest[t], job.blank, blank_of(s, t), it.plain_stay, s.hop, s.off)
    fl_products(it.W, row, s.off, s.mass, s.mass + M)
    s.rest[t].lost = it.lost
    it.lost += fl_sum(s.mass, 2*M)
    if it.grad != NULL:
        memset(to, 0, 2*FL_PART(it.W)*sizeof(double))
    fl_plain_forward(it.W, row, s.q, blank_of(s, t), it.plain_stay, s.hop, s.arrived, to)
    it.confident = it.lost < MOST_LOST*0.01


cdef double plain_loss(Entry* it, Scratch* s) noexcept nogil:
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


cdef double elsewhere(const Job* job, const Entry* it, const Scratch* s, const double* row, int64_t k) noexcept nogil:
    """Mass of the states from which class k, a label, is no move."""
    cdef Py_ssize_t u, n = FL_PART(it.W)
    cdef double total = row[it.n]
    for u in range(it.n):
        if s.label[u] != k:
            total += row[u]
        if not (job.merge and s.label[u] == k) and not (s.hop[u + 1] != 0 and s.label[u + 1] == k):
            total += row[n + u + 1]
    return total


cdef void plain_backward(const Job* job, const Entry* it, Scratch* s) noexcept nogil:
    """The gradient at blank and labels: P(class and not the labelling) - gamma Q, gamma = P(class | the labelling)."""
    cdef Py_ssize_t t, j, n = FL_PART(it.W), W = it.W, M = whole(W), done = 0
    cdef double* right = s.beta                 # probability of ending as the labelling, and of not doing so
    cdef double* wrong = s.beta + 2*n
    cdef double* right_to = s.beta + 4*n
    cdef double* wrong_to = s.beta + 6*n
    cdef double* row
    cdef double c = it.lost/it.m, v, away
    memset(s.beta, 0, 8*n*sizeof(double))
    memset(s.mass, 0, 2*(W + LANES)*sizeof(double))
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
        set_plain(it, s, t)
        memset(s.share, 0, it.distinct*sizeof(double))
        memset(s.more, 0, it.distinct*sizeof(double))
        fl_products(W, row, wrong, s.mass, s.mass + M)
        fl_shares(s.mass + M, s.slot, it.n, s.share)
        v = blank_of(s, t)*s.rest[t].lost + fl_sum(s.mass, M)
        fl_products(W, row, right, s.mass, s.mass + M)
        fl_shares(s.mass + M, s.slot, it.n, s.more)
        v = (v - fl_sum(s.mass, M)*c)*it.scale
        scatter(it.grad + t*job.grad.frame, job.grad.step, job.grad.kind, &job.blank, &v, 1)
        for j in range(it.distinct):
            s.share[j] -= s.more[j]*c
        row = plain_row(it, s, t)
        fl_plain_forward(W, row, s.q, blank_of(s, t), it.plain_stay, s.hop, s.arrived, right_to)
        memset(s.more, 0, it.distinct*sizeof(double))
        fl_shares(s.arrived, s.slot, it.n, s.more)
        for j in range(it.distinct):
            away = 1 - s.more[j]
            if away < 0.5:
                away = s.rest[t].lost + elsewhere(job, it, s, row, s.classes[j])
            s.share[j] = (s.share[j] + s.q[s.first[j]]*away)*it.scale
        scatter(it.grad + t*job.grad.frame, job.grad.step, job.grad.kind, s.classes, s.share, it.distinct)
        fl_astray(W, s.label, s.q, &s.rest[t], job.blank, blank_of(s, t), it.plain_stay, s.hop, s.off)
        fl_plain_backward(W, right, s.q, blank_of(s, t), it.plain_stay, s.hop, right_to)
        fl_plain_backward(W, wrong, s.q, blank_of(s, t), it.plain_stay, s.hop, wrong_to)
        for j in range(2*n):
            wrong_to[j] += s.off[j]
        right, right_to = right_to, right
        wrong, wrong_to = wrong_to, wrong


# ------------------------------------------------------------------ most entries: plain numbers, a row in one unit
# As long as no mass of a frame falls below 2^-900 of about the largest, nothing is lost by it.  That is counted: of all
# states that can be reached none may be small.  Then alpha is right; and so is beta where alpha beta, which its own
# small masses can change by no more than 2^-1000, stays above 2^-700.

cdef enum:
    EVERY = 8           # frames after which the unit is chosen anew


cdef inline const double* plain_q(const Entry* it, Scratch* s, Py_ssize_t t) noexcept nogil:
    memcpy(s.q, s.p + t*it.W, it.W*sizeof(double))
    return s.q


cdef bint scaled_forward(Entry* it, Scratch* s) noexcept nogil:
    """alpha of all frames, and the probability of the labelling; False where plain numbers do not do."""
    cdef Py_ssize_t t, k, blanks = 0, labels = 0, first = 1, done = 0
    cdef double* row = plain_row(it, s, 0)
    cdef double* to
    cdef double scale = 1, e
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
        if fl_scaled_forward(it.W, row, plain_q(it, s, t), s.blank[2*t], it.plain_stay, s.hop, scale,
                             to) != blanks + labels:
            return False
        row = to
        scale = 1
        if t % EVERY == EVERY - 1:
            scale = fl_unit(row, 2*FL_PART(it.W))
            fl_normal(scale, 0, &e, &e)
            it.e -= e
    it.m = row[it.n] + row[FL_PART(it.W) + it.n]
    if not it.m >= FL_TINY:
        return False
    if it.frames % EVERY == 0 and it.frames > 0:
        it.e += e                       # that unit was not used any more
    fl_normal(it.m, it.e, &it.m, &it.e)
    return True


cdef bint scaled_backward(const Job* job, const Entry* it, Scratch* s) noexcept nogil:
    """The gradient at blank and labels; False where plain numbers do not do."""
    cdef Py_ssize_t t, k, n = FL_PART(it.W), M = whole(it.W), done = 0
    cdef double* row = s.beta
    cdef double* to = s.beta + 4*n
    cdef double scale
    memset(s.beta, 0, 8*n*sizeof(double))
    memset(s.mass, 0, 2*M*sizeof(double))
    row[it.n] = 1
    if it.n > 0:
        row[n + it.n - 1] = 1
    for t in range(it.frames - 1, -1, -1):
        if t >= AHEAD:
            fetch_ahead(it.grad + (t - AHEAD)*job.grad.frame, job.n_classes*job.grad.step)
        if stopped(&done, 2*it.W):
            return False
        fl_products(it.W, plain_row(it, s, t + 1), row, s.mass, s.mass + M)
        if not put_slopes(job, it, s, t) >= 2.0**-700:
            return False
        fl_plain_backward(it.W, row, plain_q(it, s, t), s.blank[2*t], it.plain_stay, s.hop, to)
        row, to = to, row
        if t % EVERY == 0:
            scale = fl_unit(row, 2*FL_PART(it.W))
            for k in range(2*n):
                row[k] *= scale
    return True


# ------------------------------------------------------------------ entries

cdef void put_loss(const Job* job, Py_ssize_t b, double loss) noexcept nogil:
    store(row_at(&job.loss, b), 0, job.loss.kind, &loss, 1)


cdef void run_entry(const Job* job, Py_ssize_t b, Scratch* s) noexcept nogil:
    cdef Py_ssize_t frames = job.logit_length[b]
    cdef char* grad = job.grad.data + b*job.grad.entry if job.grad.data != NULL else NULL
    cdef double scale = job.factor*job.scale[b] if job.scale != NULL else job.factor
    if grad != NULL:
        fill(job, grad, frames, job.n_frames, 0.0)
    evaluate(job, b, s, grad if scale != 0 else NULL, scale)
    if grad != NULL and scale == 0:                 # last: it may lie over the logits
        fill(job, grad, 0, frames, 0.0)


cdef void evaluate(const Job* job, Py_ssize_t b, Scratch* s, char* grad, double scale) noexcept nogil:
    """The loss of an entry and, where `grad` is, its gradient."""
    cdef Entry it
    cdef Py_ssize_t t, start, stop = 0, group = group_of(job), done = 0
    cdef double loss
    cdef bint plain = False
    it.frames = job.logit_length[b]
    it.m = it.e = 0
    it.logits = job.logits.data + b*job.logits.entry
    it.scale = scale
    it.grad = grad
    if job.skip_long and job.label_length[b] > it.frames:
        put_loss(job, b, 0.0)
        if grad != NULL:
            fill(job, grad, 0, it.frames, 0.0)
        return
    it.n = read_labels(job, b, s)
    it.W = padded(it.n + 1)
    set_moves(job, &it, s)
    start_plain(&it, s)
    while stop < it.frames:
        if stopped(&done, group*(job.n_classes + it.W)):
            return
        start = stop
        stop = start + group if start + group < it.frames else it.frames
        if not read_frames(job, &it, start, stop, s):
            put_loss(job, b, NAN)
            if it.grad != NULL:
                fill(job, grad, 0, it.frames, NAN)
            return
        for t in range(start, stop):
            if it.confident:
                plain_forward(job, &it, s, t)
    loss = plain_loss(&it, s) if it.confident else INFINITY
    if not it.confident:
        plain = scaled_forward(&it, s)
        if not plain:
            forward(&it, s, it.grad != NULL)
        loss = loss_of(&it)
    if loss == INFINITY:                # no alignment: a constant without a slope
        put_loss(job, b, 0.0 if job.zero_infinity else INFINITY)
        if it.grad != NULL:
            fill(job, grad, 0, it.frames, 0.0 if job.zero_infinity else NAN)
        return
    put_loss(job, b, loss)
    if it.grad != NULL:
        find_classes(&it, s)
        if it.confident:
            plain_backward(job, &it, s)
        elif not plain or not scaled_backward(job, &it, s):
            if plain or shrink(&it, s):
                forward(&it, s, True)
            backward(job, &it, s)


cdef struct Run:
    const Job* job
    const int64_t* order
    Scratches scratch


cdef void run_block(void* call, Py_ssize_t k, int thread) noexcept nogil:
    cdef Run* at = <Run*>call
    cdef Scratch s
    cdef char* memory = scratch_of(&at.scratch, thread)
    if memory != NULL:
        lay_out(at.job, &s, memory)
        run_entry(at.job, at.order[k], &s)


def bad_label(labels, const int64_t[::1] offset, const int64_t[::1] length, Py_ssize_t n_classes, int64_t blank):
    """The first entry with a label that is no class or the blank, and which of its labels; or -1."""
    cdef Rows rows
    cdef Held held
    cdef Py_ssize_t b, k
    cdef int64_t y
    held.count = 0
    try:
        take(&held, labels, NO_AXIS, False, &rows)
        for b in range(length.shape[0]):
            for k in range(length[b]):
                y = index_at(row_at(&rows, offset[b] + k), rows.kind)
                if y < 0 or y >= n_classes or y == blank:
                    return b, k
    finally:
        release(&held)
    return -1, -1


def ctc(logits, labels, const int64_t[::1] offset, const int64_t[::1] label_length, const int64_t[::1] logit_length,
        const int64_t[::1] order, int64_t blank, bint collapse, bint merge, bint skip_long, bint zero_infinity, loss,
        grad, const double[::1] scale, double factor, int n_threads):
    """Losses and gradients of all entries of logits [entries, frames, classes], begun in this order."""
    cdef Job job
    cdef Scratch s
    cdef Held held
    cdef Py_ssize_t n = logit_length.shape[0], b, work = 0
    cdef Run at
    cdef double size
    held.count = 0
    if n == 0:
        return
    try:
        take_frames(&held, logits, False, &job.logits)
        take_frames(&held, grad, True, &job.grad)
        take(&held, labels, NO_AXIS, False, &job.labels)
        take(&held, loss, NO_AXIS, True, &job.loss)
        job.n_frames, job.n_classes = logits.shape[1:]
        job.offset = &offset[0]
        job.label_length = &label_length[0]
        job.logit_length = &logit_length[0]
        job.scale = &scale[0] if scale is not None else NULL
        job.factor = factor
        job.blank = blank
        job.collapse = collapse
        job.merge = merge
        job.skip_long = skip_long
        job.zero_infinity = zero_infinity
        job.most_labels = job.most_frames = 0
        for b in range(n):
            job.most_labels = max(job.most_labels, label_length[b])
            job.most_frames = max(job.most_frames, logit_length[b])
            work += logit_length[b]*(job.n_classes + label_length[b]*4)
        size = (job.most_frames + 1)*(job.most_labels + 16.0)*64 + job.n_classes*128.0
        if size > 2.0**62:
            no_memory(<size_t>size)
        if blocks(n, work//n + 1, n_threads) == 1:
            n_threads = 1
        at.job = &job
        at.order = &order[0]
        new_scratch(&at.scratch, n_threads, lay_out(&job, &s, NULL))
        try:
            with nogil:
                for_blocks(run_block, &at, n, n_threads)
        finally:
            free_scratch(&at.scratch)
    finally:
        release(&held)
