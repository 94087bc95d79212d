"""Cross entropy of a linear layer, on blocks of rows x classes: its logits exist only one block at a time.

The wrapper hands in scratch; every method of RowBlock does one step for one block of rows, over all classes of a shard
of the table.  tasks.pxd cuts a step into tasks for threads, block.pxd and packing.pxd have what is done in them.
"""
cimport cython
from libc.math cimport INFINITY, ldexp
from libc.stdint cimport int64_t

from fastloss.kernels.arrays.arrays cimport Held, release, take
from fastloss.kernels.linear.block cimport exp_at, unit_ratio
from fastloss.kernels.linear.call cimport ROW_SUMS, ROWS, STEP, LinearCall, RowSums
from fastloss.kernels.linear.partials cimport Partial, loss_of, merge_into, partial_of
from fastloss.kernels.linear.tasks cimport PACK_INPUTS, UNPACK_INPUTS, run_backward, run_forward, run_tasks
from fastloss.kernels.math.vmath cimport FL_LN2, bias_of, fl_exp_label, fl_log, fl_log1p, power_of, real, shift_of
from fastloss.kernels.matmul.product cimport FL_CHUNK, FL_PITCH, FL_TILE, SERIAL, lanes_of, parts_of
from fastloss.kernels.row_sums.lane_sums cimport settled
from fastloss.kernels.row_sums.row_sums cimport Terms, log_ratios

cdef enum:
    CLASSES_OF_PACKING = 256    # whose multiply-adds take as long as to pack a row of inputs

TILE, PANEL, ROW_STEP = FL_TILE, STEP, ROWS    # blocks are multiples of these: of classes, if they can, and of rows

# ------------------------------------------------------------------ the end of a row

cdef struct Ends:           # what finish() reads and writes, for the rows of one block
    Py_ssize_t n
    Py_ssize_t k
    const int64_t* labels   # [n, k]
    const double* targets   # [n, k]
    const double* other     # [n] or NULL: target of all other classes together
    const double* weight    # [n] or NULL: of z_loss
    const double* scale     # [n] or NULL
    const double* smooth
    double factor
    double smooth_sum
    double z_loss
    double cap
    double temperature
    RowSums sums
    const double* label_logits
    double* slopes          # [n, k] or NULL: no gradients
    double* loss            # [n]
    double* lse             # [n] or NULL, and then the next three
    double* log_prob        # [n, k]
    double* entropy         # [n]
    int64_t* argmax         # [n]


cdef inline double log_sum(double others, double power, double shift, int bias) noexcept nogil:
    cdef double s = ldexp(others, -bias)            # about 1: logarithms of large powers would cost digits
    if s >= 1e-280:
        return fl_log(s) + power*FL_LN2 + shift
    if others > 0:
        return fl_log(others) + (power - bias)*FL_LN2 + shift
    return <double>(-INFINITY) if others == 0 else others


cdef inline void put_argmax(const Ends* at, Py_ssize_t i) noexcept nogil:
    """Labels that are not among the sums are compared with the largest of the others."""
    cdef double top = at.sums.top[i], arg = at.sums.argmax[i], z
    cdef Py_ssize_t q
    for q in range(at.k if at.other != NULL else 0):
        z = at.label_logits[i*at.k + q]
        if z > top or (z == top and at.labels[i*at.k + q] < arg):
            top = z
            arg = at.labels[i*at.k + q]
    at.argmax[i] = <int64_t>arg


cdef void finish_row(const Ends* at, Py_ssize_t i, real dummy) noexcept nogil:
    cdef Terms terms
    cdef const int64_t* y = at.labels + i*at.k
    cdef const double* t = at.targets + i*at.k
    cdef const double* z = at.label_logits + i*at.k
    cdef const RowSums* sums = &at.sums
    cdef Py_ssize_t q, p, best = 0
    cdef bint some = False          # targets that are not 0
    cdef int bias = bias_of(dummy)
    cdef real m = <real>sums.top[i]
    cdef real unmarked = m              # `exact_others`: the others' own reference; `own` is their sum in its unit
    cdef double others, e, each, total, ratio, lse, weight, scale, slope, loss, sum_t = 0, other, u, v, entropy
    cdef double own, down = 1           # from that unit to the one of the largest logit
    cdef double top = 0                 # exp of the largest logit, where smoothing left it out of the others' sum
    cdef double rest                    # the sum without it
    rest = sums.sum[i] + sums.rest[i] if sums.sum[i] < <double>INFINITY else sums.sum[i]
    if at.smooth != NULL:
        top = exp_at(m, m) if m > <real>(-INFINITY) else <double>0
        for q in range(at.k):
            top = top if y[q] != <int64_t>sums.argmax[i] else 0.0
    others = own = rest + top
    for q in range(at.k if at.other != NULL else 0):
        m = <real>z[q] if z[q] > m else m
    if m > unmarked:
        down = unit_ratio(unmarked, m) if unmarked > <real>(-INFINITY) else 0.0
        others = others*down
    unmarked = unmarked if unmarked > <real>(-INFINITY) else <real>0
    others = others if m > <real>(-INFINITY) else <double>INFINITY - <double>INFINITY     # no logit above -inf
    m = m if m > <real>(-INFINITY) else <real>0
    terms.shift = shift_of(m)
    terms.power = power_of(m, <real>terms.shift)
    each = 0                                        # of marked classes but the best
    for q in range(1, at.k):
        best = q if z[q] > z[best] else best
    for q in range(at.k):
        sum_t += t[q]
        some = some or t[q] != 0
        if q != best:
            each += fl_exp_label(z[q] - terms.shift, terms.power, bias)
    terms.gap = z[best] - terms.shift
    terms.others = others + each
    log_ratios(1, &terms, &ratio, dummy)
    e = fl_exp_label(terms.gap, terms.power, bias)
    total = terms.others + e
    lse = z[best] + ratio if z[best] > <double>(-INFINITY) else log_sum(terms.others, terms.power, terms.shift, bias)
    other = at.other[i] if at.other != NULL else 0
    weight = at.z_loss*(at.weight[i] if at.weight != NULL else 1)
    if at.lse != NULL:
        at.lse[i] = lse
        v = fl_log(total/exp_at(m, m)) + (<double>m - <double>unmarked)     # lse less the others' reference
        entropy = sums.entropy_sum[i]*down/total + (others/total*v if others != 0 else 0.0)
        put_argmax(at, i)
        for q in range(at.k):
            v = ratio if q == best else ratio + (z[best] - z[q])
            at.log_prob[i*at.k + q] = -v if y[0] >= 0 else 0.0
            u = fl_exp_label(z[q] - terms.shift, terms.power, bias)/total
            entropy += u*v if u != 0 else 0.0
        at.entropy[i] = entropy
    # an ignored row, or one whose every target is 0
    if y[0] < 0 or (not some and at.smooth_sum == 0 and other == 0 and weight == 0):
        at.loss[i] = 0
        sums.slope[i] = sums.scale[i] = 0
        for q in range(at.k if at.slopes != NULL else 0):
            at.slopes[i*at.k + q] = 0
        return
    loss = sum_t*ratio if sum_t != 0 else 0.0
    for q in range(at.k):
        if q != best and t[q] != 0:
            loss += t[q]*(z[best] - z[q])
    if at.smooth_sum != 0:
        v = fl_log1p((rest + each + e)/top) if top != 0 else ratio          # log-sum-exp less the largest logit
        loss += at.smooth_sum*v + 2*settled(sums.smooth_dot[i], sums.smooth_rest[i])
    if other != 0:
        if others > 1e-280:                         # else its digits are lost below the largest logit
            loss += other*fl_log1p((each + e)/others)
        else:
            u = shift_of(unmarked)      # of both, so that nothing is lost where they are large
            loss += other*(ratio + ((z[best] - u) - log_sum(own, power_of(unmarked, <real>u), 0, bias)))
    if weight != 0:
        loss += weight*lse*lse
    at.loss[i] = loss
    if at.slopes == NULL:
        return
    scale = at.factor*at.scale[i] if at.scale != NULL else at.factor
    sums.scale[i] = scale
    slope = sum_t + at.smooth_sum + other + 2*weight*lse
    v = slope/total*down - (other/own if other != 0 else 0.0)
    v = ldexp(v, bias)*scale
    sums.slope[i] = 0 if own == 0 or scale == 0 else v
    for q in range(at.k):
        # in two terms that cancel only where the truth does; p, and 1 - p without subtraction
        v = t[q] + (at.smooth[y[q]] if at.smooth != NULL else 0.0)
        u = others
        for p in range(at.k):
            u += fl_exp_label(z[p] - terms.shift, terms.power, bias) if p != q else 0.0
        e = fl_exp_label(z[q] - terms.shift, terms.power, bias)
        v = ((slope - v)*(e/total) - v*(u/total))*scale/at.temperature
        if at.cap > 0:
            u = z[q]*at.temperature/at.cap
            v = v*(1 - u*u)
        at.slopes[i*at.k + q] = v if scale != 0 else 0.0


# ------------------------------------------------------------------ called from Python

def lanes(bint wide):
    """Rows of the batch side by side: a block has a multiple of so many."""
    return lanes_of(<double>0) if wide else lanes_of(<float>0)


def sizes(bint wide, Py_ssize_t d, Py_ssize_t block, Py_ssize_t rows, Py_ssize_t pitch, *, bint dx, bint dw):
    """Numbers in each piece of scratch for so many rows, `block` classes packed and `pitch` logits kept a row.

    The pieces: logits, the table, the inputs, sums of their gradient, the inputs by columns, sums of the table's.
    """
    cdef Py_ssize_t side = lanes(wide), chunks = parts_of(d, FL_CHUNK) if d > 0 else 1
    cdef Py_ssize_t columns = parts_of(d, side)*side if dw else 0
    return (rows*pitch, chunks*block*FL_PITCH, rows*d, rows*chunks*FL_CHUNK if dx else 0, rows*columns, block*columns)


def sums_shape(bint wide, Py_ssize_t n):
    """Shape of the sums that a RowBlock keeps of n rows."""
    return ROW_SUMS, parts_of(n, lanes(wide))*lanes(wide)


cdef inline void* at(unsigned char[::1] memory):
    return &memory[0] if memory is not None else NULL


cdef inline RowSums no_sums(double[:, ::1] numbers):
    """Sums over no class, in these numbers."""
    cdef RowSums s
    numbers[:] = 0
    numbers[0, :] = -INFINITY
    s.top = &numbers[0, 0]
    s.sum = &numbers[1, 0]
    s.rest = &numbers[2, 0]
    s.entropy_sum = &numbers[3, 0]
    s.smooth_dot = &numbers[4, 0]
    s.smooth_rest = &numbers[5, 0]
    s.smoothed = &numbers[6, 0]
    s.argmax = &numbers[7, 0]
    s.slope = &numbers[8, 0]
    s.scale = &numbers[9, 0]
    return s


@cython.final
cdef class RowBlock:
    """Rows start .. start + n of the batch, whose logits are made, summed and turned into gradients, shard by shard.

    `labels` [n, k] (-1: none), `label_logits` like them, `sums` (see sums_shape) and the scratch (see sizes) are used
    until the last step is done.  `smooth`: each class's share of smoothing.  `stats`: entropy and argmax are wanted.
    `exact_others`: the sum of the classes that are no label counts by itself, however small.
    """
    cdef LinearCall call
    cdef bint wide
    cdef int n_threads
    cdef const int64_t[:, ::1] labels
    cdef double[:, ::1] label_logits
    cdef double[:, ::1] sums
    cdef double[:, ::1] label_slopes
    cdef const double[::1] smooth
    cdef unsigned char[::1] xp, xr, z, dx, wp, dw

    def __init__(self, bint wide, Py_ssize_t start, Py_ssize_t d, int n_threads, *,
                 const int64_t[:, ::1] labels, double[:, ::1] label_logits, double[:, ::1] sums,
                 Py_ssize_t block, Py_ssize_t pitch, Py_ssize_t rotation, bint kept, double softcap, double temperature,
                 const double[::1] smooth, bint stats, bint exact_others, unsigned char[::1] xp, unsigned char[::1] xr,
                 unsigned char[::1] z, unsigned char[::1] dx, unsigned char[::1] wp, unsigned char[::1] dw):
        cdef LinearCall* call = &self.call
        self.wide, self.n_threads = wide, n_threads
        self.labels, self.label_logits, self.sums, self.smooth = labels, label_logits, sums, smooth
        self.xp, self.xr, self.z, self.dx, self.wp, self.dw = xp, xr, z, dx, wp, dw
        call.start, call.d = start, d
        call.n, call.k = labels.shape[0], labels.shape[1]
        call.groups = parts_of(call.n, lanes(wide))
        call.chunks = parts_of(d, FL_CHUNK) if d > 0 else 1    # of no columns: zeros
        call.block = block
        call.pitch = pitch*<Py_ssize_t>lanes(wide)
        call.rotation = rotation
        call.kept = kept
        call.cap, call.temperature = softcap, temperature
        call.stats, call.exact_others = stats, exact_others
        call.labels = &labels[0, 0]
        call.label_logits = &label_logits[0, 0]
        call.sums = no_sums(sums)
        call.smooth = &smooth[0] if smooth is not None else NULL
        call.xp, call.xr, call.z = at(xp), at(xr), at(z)
        call.dx, call.wp, call.dw = at(dx), at(wp), at(dw)
        label_logits[:] = -INFINITY

    cdef int team(self, Py_ssize_t classes) noexcept:
        """Threads that so many classes are worth."""
        return 1 if <double>self.call.n*<double>self.call.d*<double>classes < SERIAL else self.n_threads

    cdef int run(self, LinearCall* call, int what) except -1:
        """One task for each group of rows."""
        cdef int n_threads = self.team(CLASSES_OF_PACKING)
        with nogil:
            if self.wide:
                run_tasks(call, what, call.groups, n_threads, <double>0)
            else:
                run_tasks(call, what, call.groups, n_threads, <float>0)
        return 0

    def pack(self, inputs, int axis):
        """The rows into scratch."""
        cdef LinearCall call = self.call
        cdef Held held
        held.count = 0
        try:
            take(&held, inputs, axis, False, &call.inputs)
            self.run(&call, PACK_INPUTS)
        finally:
            release(&held)

    def forward(self, weights, const double[::1] bias, Py_ssize_t first):
        """A shard's logits, of classes `first` and on, into z where it keeps them, and their sums."""
        cdef LinearCall call = self.call
        cdef Held held
        cdef int n_threads
        held.count = 0
        try:
            take(&held, weights, 1, False, &call.weights)
            call.bias = &bias[0] if bias is not None else NULL
            call.first = first
            n_threads = self.team(call.weights.n)
            with nogil:
                if self.wide:
                    run_forward(&call, n_threads, <double>0)
                else:
                    run_forward(&call, n_threads, <float>0)
        finally:
            release(&held)

    def finish(self, const double[:, ::1] targets, double[::1] loss, *, const double[::1] other, double smooth_sum,
               double z_loss, const double[::1] weight, const double[::1] scale, double factor,
               double[:, ::1] label_slopes, double[::1] lse=None, double[:, ::1] log_prob=None,
               double[::1] entropy=None, int64_t[::1] argmax=None):
        """Losses of the rows, what the gradients need (label_slopes: None, no gradients) and, if given, statistics."""
        cdef Ends ends
        cdef Py_ssize_t i
        self.label_slopes = label_slopes
        ends.n, ends.k = self.call.n, self.call.k
        ends.labels = self.call.labels
        ends.targets = &targets[0, 0]
        ends.other = &other[0] if other is not None else NULL
        ends.weight = &weight[0] if weight is not None else NULL
        ends.scale = &scale[0] if scale is not None else NULL
        ends.smooth = self.call.smooth
        ends.factor = factor
        ends.smooth_sum = smooth_sum
        ends.z_loss = z_loss
        ends.cap, ends.temperature = self.call.cap, self.call.temperature
        ends.sums = self.call.sums
        ends.label_logits = self.call.label_logits
        ends.slopes = &label_slopes[0, 0] if label_slopes is not None else NULL
        ends.loss = &loss[0]
        ends.lse = &lse[0] if lse is not None else NULL
        ends.log_prob = &log_prob[0, 0] if lse is not None else NULL
        ends.entropy = &entropy[0] if lse is not None else NULL
        ends.argmax = &argmax[0] if lse is not None else NULL
        with nogil:
            for i in range(ends.n):
                if self.wide:
                    finish_row(&ends, i, <double>0)
                else:
                    finish_row(&ends, i, <float>0)

    def backward(self, weights, const double[::1] bias, Py_ssize_t first, *, weights_grad, double[::1] bias_grad,
                 bint first_rows):
        """A shard's share of the gradients; what is None is not wanted.  `first_rows`: weights_grad is not read."""
        cdef LinearCall call = self.call
        cdef Held held
        cdef int n_threads
        held.count = 0
        try:
            take(&held, weights, 1, False, &call.weights)
            take(&held, weights_grad, 1, True, &call.weights_grad)
            call.bias = &bias[0] if bias is not None else NULL
            call.bias_grad = &bias_grad[0] if bias_grad is not None else NULL
            call.stats = False
            call.first = first
            call.first_rows = first_rows
            call.label_slopes = &self.label_slopes[0, 0]
            n_threads = self.team(call.weights.n)
            with nogil:
                if self.wide:
                    run_backward(&call, n_threads, <double>0)
                else:
                    run_backward(&call, n_threads, <float>0)
        finally:
            release(&held)

    def unpack(self, inputs_grad, int axis):
        """The gradient of the rows from scratch to where it goes."""
        cdef LinearCall call = self.call
        cdef Held held
        held.count = 0
        try:
            take(&held, inputs_grad, axis, True, &call.inputs_grad)
            self.run(&call, UNPACK_INPUTS)
        finally:
            release(&held)

    def partials(self, double[:, ::1] out):
        """The rows' sums as Partials."""
        cdef Py_ssize_t i
        for i in range(self.call.n):
            if self.wide:
                put_partial(partial_of(&self.call.sums, i, self.call.label_logits[i], <double>0), out, i)
            else:
                put_partial(partial_of(&self.call.sums, i, self.call.label_logits[i], <float>0), out, i)


# ------------------------------------------------------------------ a vocabulary in several places

cdef inline Partial partial_at(const double[:, ::1] a, Py_ssize_t i) noexcept:
    cdef Partial p
    p.power, p.sum, p.rest, p.label = a[i, 0], a[i, 1], a[i, 2], a[i, 3]
    return p


cdef inline void put_partial(Partial p, double[:, ::1] out, Py_ssize_t i) noexcept:
    out[i, 0], out[i, 1], out[i, 2], out[i, 3] = p.power, p.sum, p.rest, p.label


def merge(const double[:, ::1] a, const double[:, ::1] b, double[:, ::1] out):
    """The Partials of both, row by row; out may be a or b."""
    cdef Partial p, q
    cdef Py_ssize_t i
    for i in range(a.shape[0]):
        p, q = partial_at(a, i), partial_at(b, i)
        merge_into(&p, &q)
        put_partial(p, out, i)


def partial_losses(const double[:, ::1] a, double[::1] out):
    """The losses of merged Partials."""
    cdef Partial p
    cdef Py_ssize_t i
    for i in range(a.shape[0]):
        p = partial_at(a, i)
        out[i] = loss_of(&p)
