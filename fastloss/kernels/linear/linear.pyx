"""Cross entropy of a linear layer, on blocks of rows x classes: its logits exist only one block at a time.

The wrapper hands in scratch; every function here does one step for one block of rows, over all classes of a shard of
the table.  block.pxd has what is done to one block.
"""
from libc.math cimport INFINITY, fmax, fmin, ldexp, rint
from libc.stdint cimport int64_t

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.arrays cimport Held, release, take
from fastloss.kernels.linear.block cimport (
    ARGMAX, FIELDS, REST, ROWS, SCALE, SLOPE, SPREAD, STEP, SUM, TILT, TOP, Job, biases_gradient, group_of,
    inputs_product, logits, pack_inputs_group, pack_table_tile, parts_of_columns, settle_logits, slopes, sums,
    table_product, table_tasks, unit_ratio, unpack_inputs_group,
)
from fastloss.kernels.matmul.product cimport FL_CHUNK, FL_PITCH, FL_TILE, LANES, lanes_of, least, parts_of
from fastloss.kernels.softmax.lane_sums cimport sum_rest
from fastloss.kernels.softmax.row_sums cimport Terms, log_ratios
from fastloss.kernels.math.vmath cimport (
    FL_BIAS, FL_LN2, FL_LN2_HIGH, FL_LN2_LOW, bias_of, fl_exp_label, fl_log, fl_log1p, power_of, real, shift_of,
)

cdef enum:
    SERIAL = 1 << 21        # multiply-adds below which a second thread costs more than it saves

TILE, PANEL, ROW_STEP = FL_TILE, STEP, ROWS    # blocks are multiples of these: of classes, if they can, and of rows
ARGMAX_ROW = ARGMAX

cdef enum:                  # tasks of one block
    PACK_TABLE
    LOGITS
    SUMS
    LOGITS_SUMS
    SLOPES
    INPUTS
    SLOPES_INPUTS
    LOGITS_SLOPES_INPUTS
    TABLE
    PACK_INPUTS
    UNPACK_INPUTS

# ------------------------------------------------------------------ all of it, in tasks

cdef void run_task(const Job* job, int what, Py_ssize_t i, real dummy) noexcept nogil:
    cdef Py_ssize_t tiles = (job.nc + FL_TILE - 1)//FL_TILE, part = STEP//FL_TILE
    if what == PACK_TABLE:
        pack_table_tile(job, i, dummy)
    elif what == LOGITS:
        logits(job, i//job.parts, i % job.parts*part, least(tiles, (i % job.parts + 1)*part), dummy)
    elif what == SUMS:
        sums(job, i, dummy)
    elif what == LOGITS_SUMS:
        logits(job, i, 0, tiles, dummy)
        sums(job, i, dummy)
    elif what == SLOPES:
        slopes(job, i, dummy)
    elif what == INPUTS:
        inputs_product(job, i//job.chunks, i % job.chunks, i % job.chunks + 1, dummy)
    elif what == SLOPES_INPUTS or what == LOGITS_SLOPES_INPUTS:
        if what == LOGITS_SLOPES_INPUTS:
            logits(job, i, 0, tiles, dummy)
            settle_again(job, i, dummy)
        slopes(job, i, dummy)
        if job.dx != NULL:
            inputs_product(job, i, 0, job.chunks, dummy)
    elif what == TABLE:
        if job.xr != NULL:
            table_product(job, i, dummy)
        if job.bias_grad != NULL and i % parts_of_columns(job, dummy) == 0:
            biases_gradient(job, i//parts_of_columns(job, dummy), dummy)
    elif what == PACK_INPUTS:
        pack_inputs_group(job, i, dummy)
    else:
        unpack_inputs_group(job, i, dummy)


cdef void settle_again(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    cdef real top[LANES]
    cdef real arg[LANES]
    settle_logits(job, group_of(job, g, dummy), top, arg)


cdef void hide_rows(const Job* job, real dummy) noexcept nogil:
    """Inputs of rows that do not count become 0: whatever they hold, the table's gradient is free of it."""
    cdef Py_ssize_t lanes = lanes_of(dummy), j
    cdef Py_ssize_t i, p, rows = job.groups*lanes
    for i in range(job.n):
        if job.state[SCALE*rows + i] == 0:
            for p in range(parts_of(job.d, lanes)):
                for j in range(lanes):
                    (<real*>job.xr)[(p*rows + i)*lanes + j] = 0


cdef struct Tasks:
    const Job* job
    int what
    bint wide


cdef void run_block(void* call, Py_ssize_t i, int thread) noexcept nogil:
    cdef const Tasks* at = <const Tasks*>call
    if at.wide:
        run_task(at.job, at.what, i, <double>0)
    else:
        run_task(at.job, at.what, i, <float>0)


cdef int run_tasks(const Job* job, int what, Py_ssize_t n, int n_threads, real dummy) except -1 nogil:
    cdef Tasks at
    at.job = job
    at.what = what
    at.wide = real is double
    return for_blocks(run_block, &at, n, n_threads)


cdef int run_forward(Job* job, int n_threads, real dummy) except -1 nogil:
    cdef Py_ssize_t c = 0
    while c < job.weights.n:
        set_block(job, c)
        run_tasks(job, PACK_TABLE, (job.nc + FL_TILE - 1)//FL_TILE, n_threads, dummy)
        if job.groups >= n_threads:
            run_tasks(job, LOGITS_SUMS, job.groups, n_threads, dummy)
        else:
            run_tasks(job, LOGITS, job.groups*job.parts, n_threads, dummy)
            run_tasks(job, SUMS, job.groups, n_threads, dummy)
        c += job.nc
    return 0


cdef int run_backward(Job* job, int n_threads, real dummy) except -1 nogil:
    cdef Py_ssize_t c = 0, g
    if job.xr != NULL:
        hide_rows(job, dummy)
    while c < job.weights.n:
        set_block(job, c)
        if job.dx != NULL or not job.kept:
            run_tasks(job, PACK_TABLE, (job.nc + FL_TILE - 1)//FL_TILE, n_threads, dummy)
        if job.groups >= n_threads:
            run_tasks(job, SLOPES_INPUTS if job.kept else LOGITS_SLOPES_INPUTS, job.groups, n_threads, dummy)
        else:
            if not job.kept:
                run_tasks(job, LOGITS, job.groups*job.parts, n_threads, dummy)
                for g in range(job.groups):
                    settle_again(job, g, dummy)
            run_tasks(job, SLOPES, job.groups, n_threads, dummy)
            if job.dx != NULL:
                run_tasks(job, INPUTS, job.groups*job.chunks, n_threads, dummy)
        if job.xr != NULL or job.bias_grad != NULL:
            run_tasks(job, TABLE, table_tasks(job, dummy), n_threads, dummy)
        c += job.nc
    return 0


cdef void set_block(Job* job, Py_ssize_t c) noexcept nogil:
    job.c = c
    job.nc = least(job.block, job.weights.n - c)
    job.parts = (job.nc + STEP - 1)//STEP
    job.place = job.first + c if job.kept else 0


# ------------------------------------------------------------------ the end of a row

cdef struct Ends:           # what finish() reads and writes, for the rows of one block
    Py_ssize_t n
    Py_ssize_t rows         # lanes of all groups
    Py_ssize_t k
    const int64_t* marks
    const double* targets   # [n, k]
    const double* other     # [n] or NULL: target of all unmarked classes together
    const double* weight    # [n] or NULL: of z_loss
    const double* scale     # [n] or NULL
    const double* smooth
    double factor
    double smooth_sum
    double z_loss
    double cap
    double temperature
    double* state
    const double* marked
    double* slopes          # [n, k] or NULL: no gradients
    double* loss            # [n]
    double* lse             # [n] or NULL, and then the next two
    double* log_prob        # [n, k]
    double* entropy         # [n]


cdef inline double log_sum(double others, double power, double shift, int bias) noexcept nogil:
    cdef double s = ldexp(others, -bias)            # about 1: logarithms of large powers would cost digits
    if s >= 1e-280:
        return fl_log(s) + power*FL_LN2 + shift
    if others > 0:
        return fl_log(others) + (power - bias)*FL_LN2 + shift
    return <double>(-INFINITY) if others == 0 else others


cdef inline void put_argmax(const Ends* at, Py_ssize_t i) noexcept nogil:
    """Marked classes are compared with the largest of the others."""
    cdef double top = at.state[TOP*at.rows + i], arg = at.state[ARGMAX*at.rows + i], z
    cdef Py_ssize_t q
    for q in range(at.k):
        z = at.marked[i*at.k + q]
        if z > top or (z == top and at.marks[i*at.k + q] < arg):
            top = z
            arg = at.marks[i*at.k + q]
    at.state[ARGMAX*at.rows + i] = arg


cdef void finish_row(const Ends* at, Py_ssize_t i, real dummy) noexcept nogil:
    cdef Terms terms
    cdef const int64_t* y = at.marks + i*at.k
    cdef const double* t = at.targets + i*at.k
    cdef const double* z = at.marked + i*at.k
    cdef double* state = at.state + i
    cdef Py_ssize_t q, p, best = 0, rows = at.rows
    cdef bint some = False          # targets that are not 0
    cdef int bias = bias_of(dummy)
    cdef real m = <real>state[TOP*rows]
    cdef real unmarked = m              # `apart`: the others' own reference; `own` is their sum in its unit
    cdef double others, e, each, total, ratio, lse, weight, scale, slope, loss, sum_t = 0, other, u, v, entropy
    cdef double own, down = 1           # from that unit to the one of the largest logit
    others = state[SUM*rows] + state[REST*rows] if state[SUM*rows] < <double>INFINITY else state[SUM*rows]
    own = others
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
        entropy = (state[SPREAD*rows]*down + others*(lse - unmarked))/total
        if at.other != NULL:
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
        state[SLOPE*rows] = state[SCALE*rows] = 0
        for q in range(at.k if at.slopes != NULL else 0):
            at.slopes[i*at.k + q] = 0
        return
    v = sum_t + at.smooth_sum if z[best] > <double>(-INFINITY) else sum_t
    loss = v*ratio if v != 0 else 0.0
    for q in range(at.k):
        if q != best and t[q] != 0:
            loss += t[q]*(z[best] - z[q])
    if at.smooth_sum != 0:
        loss += at.smooth_sum*(z[best] if z[best] > <double>(-INFINITY) else lse) - state[TILT*rows]
    if other != 0:
        if others > 1e-280:                         # else its digits are lost below the largest logit
            loss += other*fl_log1p((each + e)/others)
        else:
            loss += other*(lse - log_sum(own, power_of(unmarked, shift_of(unmarked)), shift_of(unmarked), bias))
    if weight != 0:
        loss += weight*lse*lse
    at.loss[i] = loss
    if at.slopes == NULL:
        return
    scale = at.factor*at.scale[i] if at.scale != NULL else at.factor
    state[SCALE*rows] = scale
    slope = sum_t + at.smooth_sum + other + 2*weight*lse
    v = slope/total*down - (other/own if other != 0 else 0.0)
    v = ldexp(v, bias)*scale
    state[SLOPE*rows] = 0 if own == 0 or scale == 0 else v
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


def sizes(bint wide, Py_ssize_t d, Py_ssize_t block, Py_ssize_t rows, Py_ssize_t pitch, bint dx, bint dw):
    """Numbers in each piece of scratch for so many rows, `block` classes packed and `pitch` logits kept a row.

    The pieces: logits, the table, the inputs, sums of their gradient, the inputs by columns, sums of the table's.
    """
    cdef Py_ssize_t side = lanes(wide), chunks = parts_of(d, FL_CHUNK) if d > 0 else 1
    cdef Py_ssize_t columns = parts_of(d, side)*side if dw else 0
    return (rows*pitch, chunks*block*FL_PITCH, rows*d, rows*chunks*FL_CHUNK if dx else 0, rows*columns, block*columns)


def empty_state(bint wide, Py_ssize_t n):
    """Shape of the sums of n rows, and which of its rows starts at -inf, the others at 0."""
    return (FIELDS, parts_of(n, lanes(wide))*lanes(wide)), TOP


cdef inline void* at(unsigned char[::1] memory):
    return &memory[0] if memory is not None else NULL


cdef inline int set_plan(Job* job, tuple plan, real dummy) except -1:
    """Sizes that all steps share."""
    cdef Py_ssize_t lanes = lanes_of(dummy)
    (job.n, job.d, job.k, job.block, job.pitch, job.turn, job.kept, job.cap, job.temperature, job.stats,
     job.apart) = plan
    job.groups = parts_of(job.n, lanes)
    job.chunks = parts_of(job.d, FL_CHUNK) if job.d > 0 else 1    # of no columns: zeros
    job.pitch = job.pitch*lanes
    job.xp = job.xr = job.z = job.dx = job.wp = job.dw = NULL
    job.bias = job.smooth = NULL
    job.bias_grad = NULL
    job.inputs.data = job.inputs_grad.data = job.weights.data = job.weights_grad.data = NULL
    return 0


cdef inline int team(const Job* job, Py_ssize_t c, int n_threads) noexcept:
    return 1 if <double>job.n*<double>job.d*<double>c < SERIAL else n_threads


def pack(tuple plan, bint wide, inputs, int axis, Py_ssize_t start, unsigned char[::1] xp, unsigned char[::1] xr,
         int n_threads):
    """Rows start .. start + n of the batch into xp and, if given, xr."""
    cdef Job job
    cdef Held held
    held.count = 0
    try:
        set_plan(&job, plan, <double>0) if wide else set_plan(&job, plan, <float>0)
        take(&held, inputs, axis, False, &job.inputs)
        job.start = start
        job.xp = at(xp)
        job.xr = at(xr)
        n_threads = team(&job, 256, n_threads)
        with nogil:
            if wide:
                run_tasks(&job, PACK_INPUTS, job.groups, n_threads, <double>0)
            else:
                run_tasks(&job, PACK_INPUTS, job.groups, n_threads, <float>0)
    finally:
        release(&held)


def unpack(tuple plan, bint wide, unsigned char[::1] dx, double[:, ::1] state, inputs_grad, int axis, Py_ssize_t start,
           int n_threads):
    """The gradient of rows start .. start + n, from dx to where it goes."""
    cdef Job job
    cdef Held held
    held.count = 0
    try:
        set_plan(&job, plan, <double>0) if wide else set_plan(&job, plan, <float>0)
        take(&held, inputs_grad, axis, True, &job.inputs_grad)
        job.start = start
        job.dx = at(dx)
        job.state = &state[0, 0]
        n_threads = team(&job, 256, n_threads)
        with nogil:
            if wide:
                run_tasks(&job, UNPACK_INPUTS, job.groups, n_threads, <double>0)
            else:
                run_tasks(&job, UNPACK_INPUTS, job.groups, n_threads, <float>0)
    finally:
        release(&held)


def forward(tuple plan, bint wide, weights, const double[::1] bias, const double[::1] smooth, Py_ssize_t first,
            unsigned char[::1] xp, unsigned char[::1] z, unsigned char[::1] wp, double[:, ::1] state,
            const int64_t[:, ::1] marks, double[:, ::1] marked, int n_threads):
    """A shard's logits, into z where it keeps them, and their sums into `state`."""
    cdef Job job
    cdef Held held
    held.count = 0
    try:
        set_plan(&job, plan, <double>0) if wide else set_plan(&job, plan, <float>0)
        take(&held, weights, 1, False, &job.weights)
        job.bias = &bias[0] if bias is not None else NULL
        job.smooth = &smooth[0] if smooth is not None else NULL
        job.first = first
        job.xp = at(xp)
        job.z = at(z)
        job.wp = at(wp)
        job.state = &state[0, 0]
        job.marks = &marks[0, 0]
        job.marked = &marked[0, 0]
        n_threads = team(&job, job.weights.n, n_threads)
        with nogil:
            if wide:
                run_forward(&job, n_threads, <double>0)
            else:
                run_forward(&job, n_threads, <float>0)
    finally:
        release(&held)


def backward(tuple plan, bint wide, weights, weights_grad, const double[::1] bias, double[::1] bias_grad,
             const double[::1] smooth, Py_ssize_t first, bint first_rows, unsigned char[::1] xp,
             unsigned char[::1] xr, unsigned char[::1] z, unsigned char[::1] dx, unsigned char[::1] wp,
             unsigned char[::1] dw, double[:, ::1] state, const int64_t[:, ::1] marks, double[:, ::1] marked,
             int n_threads):
    """A shard's share of the gradients; what is None is not wanted.  `marked`: slopes, from finish()."""
    cdef Job job
    cdef Held held
    held.count = 0
    try:
        set_plan(&job, plan, <double>0) if wide else set_plan(&job, plan, <float>0)
        take(&held, weights, 1, False, &job.weights)
        take(&held, weights_grad, 1, True, &job.weights_grad)
        job.bias = &bias[0] if bias is not None else NULL
        job.bias_grad = &bias_grad[0] if bias_grad is not None else NULL
        job.smooth = &smooth[0] if smooth is not None else NULL
        job.stats = False
        job.first = first
        job.first_rows = first_rows
        job.xp = at(xp)
        job.xr = at(xr) if job.weights_grad.data != NULL else NULL
        job.z = at(z)
        job.dx = at(dx)
        job.wp = at(wp)
        job.dw = at(dw)
        job.state = &state[0, 0]
        job.marks = &marks[0, 0]
        job.marked = &marked[0, 0]
        n_threads = team(&job, job.weights.n, n_threads)
        with nogil:
            if wide:
                run_backward(&job, n_threads, <double>0)
            else:
                run_backward(&job, n_threads, <float>0)
    finally:
        release(&held)


def finish(bint wide, Py_ssize_t n, const int64_t[:, ::1] marks, const double[:, ::1] targets, const double[::1] other,
           const double[::1] weight, const double[::1] scale, double factor, const double[::1] smooth,
           double smooth_sum, double z_loss, double cap, double temperature, double[:, ::1] state,
           const double[:, ::1] marked, double[:, ::1] marked_slopes, double[::1] loss, double[::1] lse,
           double[:, ::1] log_prob, double[::1] entropy):
    """Losses of the rows, what the gradients need and, if asked for, statistics."""
    cdef Ends ends
    cdef Py_ssize_t i
    ends.n = n
    ends.rows = state.shape[1]
    ends.k = marks.shape[1]
    ends.marks = &marks[0, 0]
    ends.targets = &targets[0, 0]
    ends.other = &other[0] if other is not None else NULL
    ends.weight = &weight[0] if weight is not None else NULL
    ends.scale = &scale[0] if scale is not None else NULL
    ends.smooth = &smooth[0] if smooth is not None else NULL
    ends.factor = factor
    ends.smooth_sum = smooth_sum
    ends.z_loss = z_loss
    ends.cap = cap
    ends.temperature = temperature
    ends.state = &state[0, 0]
    ends.marked = &marked[0, 0]
    ends.slopes = &marked_slopes[0, 0] if marked_slopes is not None else NULL
    ends.loss = &loss[0]
    ends.lse = &lse[0] if lse is not None else NULL
    ends.log_prob = &log_prob[0, 0] if lse is not None else NULL
    ends.entropy = &entropy[0] if lse is not None else NULL
    with nogil:
        for i in range(n):
            if wide:
                finish_row(&ends, i, <double>0)
            else:
                finish_row(&ends, i, <float>0)


# ------------------------------------------------------------------ a vocabulary in several places

cdef struct Partial:        # of a row, over some classes: a sum of exp over all but the label, in the unit 2^power
    double power
    double sum
    double rest             # compensates the sum
    double label            # the label's logit; -inf where it is elsewhere


cdef inline double scale_between(double lower, double upper) noexcept nogil:
    """2^(lower - upper); powers of large logits lie further apart than an int reaches, and those of NaN nowhere."""
    cdef double d = lower - upper
    return ldexp(1.0, <int>d) if d > -2000 else 0.0


cdef inline void merge_into(Partial* a, const Partial* b) noexcept nogil:
    """Powers of two scale exactly, and the sum keeps what it rounds off: the order of merging does not matter."""
    cdef double t, f, s, r
    if a.sum == 0 or (b.sum != 0 and b.power > a.power):
        f = scale_between(a.power, b.power) if a.sum != 0 else 0.0
        a.power = b.power
        s, r = a.sum*f, a.rest*f
        a.sum, a.rest = b.sum, b.rest
    else:
        f = scale_between(b.power, a.power) if b.sum != 0 else 0.0
        s, r = b.sum*f, b.rest*f
    t = a.sum + s
    a.rest += sum_rest(a.sum, s, t) + r
    a.sum = t
    a.label = b.label if a.label == <double>(-INFINITY) else a.label


cdef inline double less_powers(double x, double k) noexcept nogil:
    """x - k ln 2, k the nearest power; within 1 also where x is so large that rounding leaves nothing of it."""
    return fmin(fmax((x - k*FL_LN2_HIGH) - k*FL_LN2_LOW, -1), 1)


def partials(bint wide, Py_ssize_t n, const double[:, ::1] state, const double[:, ::1] marked, double[:, ::1] out):
    """The rows' sums as Partials."""
    cdef Py_ssize_t i
    cdef double shift, power, k, s, t
    for i in range(n):
        t = state[TOP, i] if state[TOP, i] > <double>(-INFINITY) else 0.0
        if wide:
            shift = shift_of(t)
            power = power_of(t, shift)
        else:
            shift = shift_of(<float>t)
            power = power_of(<float>t, <float>shift)
        power -= bias_of(<double>0) if wide else bias_of(<float>0)
        k = rint(shift/FL_LN2)                          # a shift is no power of two: its remainder goes into the sum
        s = fl_exp_label(less_powers(shift, k), FL_BIAS, FL_BIAS)
        s = s if shift != 0 else 1.0
        t = state[SUM, i]
        out[i, 0] = power + k
        out[i, 1] = t*s
        out[i, 2] = state[REST, i]*s if abs(t) < <double>INFINITY else 0.0
        out[i, 3] = marked[i, 0]


def merge(const double[:, ::1] a, const double[:, ::1] b, double[:, ::1] out):
    """The Partials of both, row by row; out may be a or b."""
    cdef Partial p, q
    cdef Py_ssize_t i
    for i in range(a.shape[0]):
        p.power, p.sum, p.rest, p.label = a[i, 0], a[i, 1], a[i, 2], a[i, 3]
        q.power, q.sum, q.rest, q.label = b[i, 0], b[i, 1], b[i, 2], b[i, 3]
        merge_into(&p, &q)
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = p.power, p.sum, p.rest, p.label


def partial_losses(const double[:, ::1] a, double[::1] out):
    """The losses of merged Partials: log-sum-exp minus the label's logit."""
    cdef Terms terms
    cdef Py_ssize_t i
    cdef double k
    for i in range(a.shape[0]):
        terms.others = a[i, 1] + a[i, 2]
        terms.power = a[i, 0] + FL_BIAS
        terms.shift = 0
        terms.gap = a[i, 3]
        k = rint(a[i, 3]/FL_LN2)
        if k - a[i, 0] > 512 and k < <double>INFINITY:  # exp of the label's logit may overflow in the others' unit
            terms.others *= scale_between(a[i, 0] + FL_BIAS, k)
            terms.power = 0
            terms.gap = less_powers(a[i, 3], k)
        log_ratios(1, &terms, &out[i], <double>0)
        if terms.others == 0 and a[i, 3] > <double>(-INFINITY):     # no class but the label
            out[i] = 0
