"""Cross entropy of a linear layer, on blocks of rows x classes: its logits exist only one block at a time.

Everything on a block lies in panels [k][lanes]: rows of the batch are lanes, so what is summed over classes is summed
down a lane and a row's bits depend on nothing but the row.  A block is read by three products: logits (lanes: rows),
gradient to the inputs (lanes: rows) and gradient to the table (lanes: its columns), all in the layout the first one
wrote.  The table is packed once per block, from whatever it is stored in.

A row's marked classes (its label, or the k best of a teacher) stay out of its sum of exp: see terms.pxd for why.

The wrapper hands in scratch; every function here does one step for one block of rows, over all classes of a shard.
"""
from cython.parallel cimport prange
from libc.math cimport INFINITY, ldexp
from libc.stdint cimport int64_t, uintptr_t

from fastloss.kernels.arrays cimport F64, NO_AXIS, Held, Rows, load, release, row_at, store, take
from fastloss.kernels.terms cimport Terms, log_ratios, sum_rest
from fastloss.kernels.vmath cimport (
    FL_LN2, bias_of, fl_exp_label, exp_of, fl_log, fl_log1p, lo_of, magic_of, power_of, real, shift_of,
)

cdef extern from "product.h" nogil:
    enum:
        FL_TILE
        FL_CHUNK
        FL_PITCH
    void fl_tile_rowsf(Py_ssize_t, const float*, const float*, float*, int) noexcept
    void fl_tile_rows(Py_ssize_t, const double*, const double*, double*, int) noexcept
    void fl_tile_columnsf(Py_ssize_t, const float*, const float*, float*, int) noexcept
    void fl_tile_columns(Py_ssize_t, const double*, const double*, double*, int) noexcept
    void fl_tile_lanesf(Py_ssize_t, Py_ssize_t, const float*, const float*, float*, Py_ssize_t, int) noexcept
    void fl_tile_lanes(Py_ssize_t, Py_ssize_t, const double*, const double*, double*, Py_ssize_t, int) noexcept

cdef enum:
    LANES = 32              # of float; half as many of double
    STEP = 96               # classes of a panel that fits the first-level cache, and of a task
    SHARE = 48              # classes of a task of the table's gradient
    ROWS = 128              # rows of the batch whose products are one chain: block sizes are multiples of it
    SERIAL = 1 << 21        # multiply-adds below which a second thread costs more than it saves

TILE, CHUNK, PITCH, ROW_STEP = FL_TILE, FL_CHUNK, FL_PITCH, ROWS   # the wrapper sizes scratch by these

cpdef enum:                 # rows of `state`, one number for each row of the batch
    TOP                     # largest logit so far: the reference of all sums
    SUM                     # of exp over unmarked classes, in that unit; with REST, compensated
    REST
    SPREAD                  # sum of exp times (TOP - logit): what entropy needs
    TILT                    # sum of smoothing times logit
    ARGMAX
    SLOPE                   # what multiplies exp in the gradient
    SCALE                   # what multiplies the row's gradient
    FIELDS

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

cdef struct Job:
    Rows weights            # a shard of the table
    Rows weights_grad
    Rows inputs             # rows start .. start + n of the batch
    Rows inputs_grad
    Py_ssize_t start
    Py_ssize_t n            # rows of the batch in this block
    Py_ssize_t groups       # of LANES rows
    Py_ssize_t d
    Py_ssize_t chunks       # of FL_CHUNK elements of a row of the table
    Py_ssize_t block        # classes packed together: a multiple of FL_TILE
    Py_ssize_t first        # the shard's first class
    Py_ssize_t c            # this block's first class within the shard
    Py_ssize_t nc           # and how many it has
    Py_ssize_t place        # where its logits stand in a group's
    Py_ssize_t pitch        # elements from group to group of z
    Py_ssize_t k            # marked classes of a row
    Py_ssize_t parts        # into which a group's logits are cut
    const double* bias      # [classes of the shard] or NULL
    const double* smooth    # [all classes] or NULL: each one's share of smoothing
    const int64_t* marks    # [n, k], -1: none
    double* state           # [FIELDS, groups*LANES]
    double* marked          # [n, k]: marked logits, then their slopes
    double* bias_grad       # [classes of the shard] or NULL
    double cap
    double temperature
    bint stats
    bint first_rows         # the table's gradient starts here
    bint kept               # z holds the logits of all classes
    void* xp                # [groups, d, LANES]: inputs, rows as lanes
    void* xr                # [panels, groups*LANES, LANES]: inputs, columns as lanes; or NULL
    void* z                 # [groups, pitch]
    void* dx                # [groups, chunks*FL_CHUNK, LANES] or NULL
    void* wp                # [chunks, block, FL_PITCH]
    void* dw                # [block, panels*LANES]


# ------------------------------------------------------------------ one name for both types

cdef inline int lanes_of(real dummy) noexcept nogil:
    if real is float:
        return LANES
    else:
        return LANES//2


cdef inline void tile_rows(Py_ssize_t k, const real* a, const real* b, real* c, bint add) noexcept nogil:
    if real is float:
        fl_tile_rowsf(k, a, b, c, add)
    else:
        fl_tile_rows(k, a, b, c, add)


cdef inline void tile_columns(Py_ssize_t k, const real* a, const real* b, real* c, bint add) noexcept nogil:
    if real is float:
        fl_tile_columnsf(k, a, b, c, add)
    else:
        fl_tile_columns(k, a, b, c, add)


cdef inline void tile_lanes(Py_ssize_t n, Py_ssize_t step, const real* a, const real* b, real* c, Py_ssize_t pitch,
                            bint add) noexcept nogil:
    if real is float:
        fl_tile_lanesf(n, step, a, b, c, pitch, add)
    else:
        fl_tile_lanes(n, step, a, b, c, pitch, add)


cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t panels_of(Py_ssize_t d, int lanes) noexcept nogil:
    return (d + lanes - 1)//lanes


# ------------------------------------------------------------------ packing

cdef void pack_inputs_group(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    """Rows of one group, as lanes and, if asked for, as they are in panels; zeros where there is none."""
    cdef real part[256]
    cdef int lanes = lanes_of(dummy), r
    cdef Py_ssize_t k, j, m, row, rows = job.groups*lanes, width = panels_of(job.d, lanes)*lanes
    cdef real* p = <real*>job.xp + g*job.d*lanes
    cdef real* q
    cdef char* source
    for r in range(lanes):
        row = g*lanes + r
        k = 0
        while k < width:
            m = least(256, width - k)
            for j in range(m):
                part[j] = 0
            if row < job.n and k < job.d:
                source = row_at(&job.inputs, job.start + row)
                load(part, source + k*job.inputs.step, job.inputs.step, least(m, job.d - k), job.inputs.kind)
            for j in range(least(m, job.d - k)):
                p[(k + j)*lanes + r] = part[j]
            if job.xr != NULL:
                for j in range(m):
                    q = <real*>job.xr + ((k + j)//lanes*rows + row)*lanes
                    q[(k + j) % lanes] = part[j]
            k += m


cdef void unpack_inputs_group(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    cdef real part[256]
    cdef int lanes = lanes_of(dummy), r
    cdef Py_ssize_t k, j, m
    cdef const real* p = <const real*>job.dx + g*job.chunks*FL_CHUNK*lanes
    for r in range(least(lanes, job.n - g*lanes)):
        k = 0
        while k < job.d:
            m = least(256, job.d - k)
            for j in range(m):
                part[j] = p[(k + j)*lanes + r]
            store(row_at(&job.inputs_grad, job.start + g*lanes + r) + k*job.inputs_grad.step, job.inputs_grad.step,
                  job.inputs_grad.kind, part, m)
            k += m


cdef void pack_table_tile(const Job* job, Py_ssize_t t, real dummy) noexcept nogil:
    """Twelve classes of the block, chunk by chunk; zeros after the last."""
    cdef Py_ssize_t c, q, m, j, tail
    cdef real* p
    for c in range(t*FL_TILE, (t + 1)*FL_TILE):
        for q in range(job.chunks):
            p = <real*>job.wp + (q*job.block + c)*FL_PITCH
            m = least(FL_CHUNK, job.d - q*FL_CHUNK) if c < job.nc else 0
            if m > 0:
                load(p, row_at(&job.weights, job.c + c) + q*FL_CHUNK*job.weights.step, job.weights.step, m,
                     job.weights.kind)
            tail = (m + FL_TILE - 1)//FL_TILE*FL_TILE if c < job.nc else FL_CHUNK
            for j in range(m, tail):
                p[j] = 0


# ------------------------------------------------------------------ logits and their sums

cdef inline real* group_of(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    """The block's logits of a group: [nc][lanes], and room for the rest of a tile."""
    return <real*>job.z + g*job.pitch + job.place*lanes_of(dummy)


cdef void logits(const Job* job, Py_ssize_t g, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    """z = x w, of tiles start .. stop."""
    cdef int lanes = lanes_of(dummy)
    cdef Py_ssize_t q, t, k
    cdef real* z = group_of(job, g, dummy)
    cdef const real* x
    for q in range(job.chunks):
        k = least(FL_CHUNK, job.d - q*FL_CHUNK)
        x = <const real*>job.xp + (g*job.d + q*FL_CHUNK)*lanes
        for t in range(start, stop):
            tile_rows(k, <const real*>job.wp + (q*job.block + t*FL_TILE)*FL_PITCH, x, z + t*FL_TILE*lanes, q > 0)


cdef inline real tanh_of(real u) noexcept nogil:
    """A continued fraction near 0, exp elsewhere: relative error of some units in the last place."""
    cdef real a = u if u > 0 else -u, s = u*u, e, near, far
    near = u/(1 + s/(3 + s/(5 + s/(7 + s/(9 + s/(11 + s/13))))))
    if real is float:
        e = exp_of(-2*a, lo_of(<float>bias_of(a)), magic_of(<float>bias_of(a)))
    else:
        e = exp_of(-2*a, lo_of(<double>bias_of(a)), magic_of(<double>bias_of(a)))
    far = (1 - e)/(1 + e)
    far = far if u > 0 else -far
    return near if a < <real>0.5 else far


cdef void settle_logits(const Job* job, real* z, real* top, real* arg) noexcept nogil:
    """Bias, cap and temperature; each lane's largest logit, NaN left aside, and its class."""
    cdef int lanes = lanes_of(z[0]), j
    cdef Py_ssize_t c
    cdef real b, v, cap = <real>job.cap, t = <real>job.temperature
    cdef real* x
    for j in range(lanes):
        top[j] = -INFINITY
        arg[j] = 0
    for c in range(job.nc):
        x = z + c*lanes
        if job.bias != NULL:
            b = <real>job.bias[job.c + c]
            for j in range(lanes):
                x[j] = x[j] + b
        if cap > 0:
            for j in range(lanes):
                x[j] = cap*tanh_of(x[j]/cap)
        if t != 1:
            for j in range(lanes):
                x[j] = x[j]/t
        if job.stats:
            for j in range(lanes):
                arg[j] = <real>c if x[j] > top[j] else arg[j]
        for j in range(lanes):
            v = x[j]
            top[j] = v if v > top[j] else top[j]


cdef inline double unit_ratio(real old, real new) noexcept nogil:
    """What a sum in the unit of the reference `old` is times, in that of `new`."""
    cdef real s = shift_of(old), t = shift_of(new)
    cdef double d = <double>power_of(old, s) - <double>power_of(new, t)
    if s == t:
        return ldexp(1.0, <int>d)
    return fl_exp_label((<double>s - <double>t) + d*FL_LN2, bias_of(old), bias_of(old))


cdef void references(const Job* job, Py_ssize_t g, const real* top, const real* arg, real* m) noexcept nogil:
    """m = each lane's largest logit so far; what was summed around a smaller one comes to its unit."""
    cdef int lanes = lanes_of(m[0]), j
    cdef Py_ssize_t rows = job.groups*lanes
    cdef double* state = job.state + g*lanes
    cdef double f, old
    for j in range(lanes):
        old = state[TOP*rows + j]
        m[j] = <real>old
        if top[j] > m[j]:
            if state[SUM*rows + j] != 0:
                f = unit_ratio(m[j], top[j])
                state[SUM*rows + j] *= f
                state[REST*rows + j] *= f
                state[SPREAD*rows + j] = state[SPREAD*rows + j]*f + state[SUM*rows + j]*(<double>top[j] - old)
            m[j] = top[j]
            state[TOP*rows + j] = m[j]
            state[ARGMAX*rows + j] = job.first + job.c + <Py_ssize_t>arg[j]


cdef void take_marks(const Job* job, Py_ssize_t g, real* z) noexcept nogil:
    """Marked logits of this block, out of the sums."""
    cdef int lanes = lanes_of(z[0])
    cdef Py_ssize_t r, q, i, y
    for r in range(least(lanes, job.n - g*lanes)):
        for q in range(job.k):
            i = (g*lanes + r)*job.k + q
            y = job.marks[i] - job.first - job.c
            if job.marks[i] >= 0 and 0 <= y < job.nc:
                job.marked[i] = z[y*lanes + r]
                z[y*lanes + r] = -INFINITY


cdef void tilts(const Job* job, Py_ssize_t g, const real* z) noexcept nogil:
    """Sum of smoothing times logit, where smoothing is not 0."""
    cdef double sum[LANES]
    cdef int lanes = lanes_of(z[0]), j
    cdef Py_ssize_t c, rows = job.groups*lanes
    cdef double u
    for j in range(lanes):
        sum[j] = 0
    for c in range(job.nc):
        u = job.smooth[job.first + job.c + c]
        if u != 0:
            for j in range(lanes):
                sum[j] += u*<double>z[c*lanes + j]
    for j in range(lanes):
        job.state[TILT*rows + g*lanes + j] += sum[j]


cdef void sums(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    """The block's sums of exp, added to the rows'."""
    cdef real top[LANES]
    cdef real arg[LANES]
    cdef real m[LANES]
    cdef real shift[LANES]
    cdef real lo[LANES]
    cdef real magic[LANES]
    cdef real part[LANES]
    cdef real spread[LANES]
    cdef double total[LANES]
    cdef double rest[LANES]
    cdef double wide[LANES]
    cdef int lanes = lanes_of(dummy), j
    cdef Py_ssize_t c, stop, rows = job.groups*lanes
    cdef real* z = group_of(job, g, dummy)
    cdef real e, f, power
    cdef double s, t
    cdef double* state = job.state + g*lanes
    settle_logits(job, z, top, arg)
    references(job, g, top, arg, m)
    if job.smooth != NULL:
        tilts(job, g, z)
    take_marks(job, g, z)
    for j in range(lanes):
        m[j] = m[j] if m[j] > <real>(-INFINITY) else <real>0
        shift[j] = shift_of(m[j])
        power = power_of(m[j], shift[j])
        lo[j] = lo_of(power)
        magic[j] = magic_of(power)
        total[j] = rest[j] = wide[j] = 0
    c = 0
    while c < job.nc:                           # eight terms a chain, in pairs; then float64
        stop = least(c + 8, job.nc)
        for j in range(lanes):
            part[j] = spread[j] = 0
        if job.stats:
            while c < stop:
                for j in range(lanes):
                    e = exp_of(z[c*lanes + j] - shift[j], lo[j], magic[j])
                    f = e*(m[j] - z[c*lanes + j])
                    part[j] = part[j] + e
                    spread[j] = spread[j] + (f if e != 0 else <real>0)
                c += 1
        while c + 1 < stop:
            for j in range(lanes):
                e = exp_of(z[c*lanes + j] - shift[j], lo[j], magic[j])
                f = exp_of(z[(c + 1)*lanes + j] - shift[j], lo[j], magic[j])
                part[j] = part[j] + (e + f)
            c += 2
        if c < stop:
            for j in range(lanes):
                part[j] = part[j] + exp_of(z[c*lanes + j] - shift[j], lo[j], magic[j])
            c += 1
        for j in range(lanes):
            t = total[j] + <double>part[j]
            if real is double:
                rest[j] += sum_rest(total[j], part[j], t)
            total[j] = t
            wide[j] += <double>spread[j]
    for j in range(lanes):
        s = state[SUM*rows + j]
        t = s + total[j]
        state[REST*rows + j] += sum_rest(s, total[j], t) + rest[j]
        state[SUM*rows + j] = t
        state[SPREAD*rows + j] += wide[j]


# ------------------------------------------------------------------ gradients

cdef void slopes(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    """Logits become the derivatives of the rows' losses, times what multiplies each row."""
    cdef real shift[LANES]
    cdef real lo[LANES]
    cdef real magic[LANES]
    cdef real slope[LANES]
    cdef real scale[LANES]
    cdef real was[LANES]
    cdef int lanes = lanes_of(dummy), j
    cdef Py_ssize_t c, r, q, i, y, rows = job.groups*lanes
    cdef real* z = group_of(job, g, dummy)
    cdef real* x
    cdef real m, power, u, v, cap = <real>job.cap, t = <real>job.temperature
    cdef double* state = job.state + g*lanes
    for j in range(lanes):
        m = <real>state[TOP*rows + j]
        m = m if m > <real>(-INFINITY) else <real>0
        shift[j] = shift_of(m)
        power = power_of(m, shift[j]) + bias_of(m)      # of the top itself, without the bias: no scale underflows
        lo[j] = lo_of(power)
        magic[j] = magic_of(power)
        slope[j] = <real>state[SLOPE*rows + j]
        scale[j] = <real>state[SCALE*rows + j]
        was[j] = 0
    for c in range(job.nc):
        x = z + c*lanes
        u = <real>job.smooth[job.first + job.c + c] if job.smooth != NULL else 0
        if cap > 0:
            for j in range(lanes):
                was[j] = x[j]*t/cap
        for j in range(lanes):
            v = exp_of(x[j] - shift[j], lo[j], magic[j])*slope[j] - u*scale[j]
            x[j] = v if scale[j] != 0 else <real>0
        if cap > 0:
            for j in range(lanes):
                v = x[j]*(1 - was[j]*was[j])
                x[j] = v if scale[j] != 0 else <real>0
        if t != 1:
            for j in range(lanes):
                x[j] = x[j]/t
    for r in range(least(lanes, job.n - g*lanes)):
        for q in range(job.k):
            i = (g*lanes + r)*job.k + q
            y = job.marks[i] - job.first - job.c
            if job.marks[i] >= 0 and 0 <= y < job.nc:
                z[y*lanes + r] = <real>job.marked[i]


cdef void inputs_product(const Job* job, Py_ssize_t g, Py_ssize_t q_start, Py_ssize_t q_stop, real dummy) noexcept nogil:
    """dx += slopes w, of these chunks of columns."""
    cdef int lanes = lanes_of(dummy)
    cdef Py_ssize_t c, k, q, j, width
    cdef const real* z = group_of(job, g, dummy)
    cdef real* dx
    c = 0
    while c < job.nc:
        k = least(STEP, job.nc - c)
        for q in range(q_start, q_stop):
            dx = <real*>job.dx + (g*job.chunks + q)*FL_CHUNK*lanes
            width = least(FL_CHUNK, job.d - q*FL_CHUNK)
            j = 0
            while j < width:
                tile_columns(k, <const real*>job.wp + (q*job.block + c)*FL_PITCH + j, z + c*lanes, dx + j*lanes, True)
                j += FL_TILE
        c += k


cdef void table_product(const Job* job, Py_ssize_t task, real dummy) noexcept nogil:
    """Rows of the table's gradient, and of the biases': slopes times inputs, over the block's rows."""
    cdef int lanes = lanes_of(dummy), j
    cdef Py_ssize_t start = task*SHARE, stop = least(job.nc, start + SHARE), c, p, g, n, t
    cdef Py_ssize_t panels = panels_of(job.d, lanes), width = panels*lanes, step = ROWS//lanes
    cdef real* dw = <real*>job.dw
    cdef const real* z = <const real*>job.z + job.place*lanes
    cdef const real* v
    cdef double sum[LANES]
    if job.xr != NULL:
        if not job.first_rows:
            for c in range(start, stop):
                load(dw + c*width, row_at(&job.weights_grad, job.c + c), job.weights_grad.step, job.d,
                     job.weights_grad.kind)
        g = 0
        while g < job.groups:
            n = least(step, job.groups - g)
            for p in range(panels):
                t = start
                while t < stop:
                    tile_lanes(n, job.pitch, z + g*job.pitch + t*lanes,
                               <const real*>job.xr + (p*job.groups + g)*lanes*lanes,
                               dw + t*width + p*lanes, width, g > 0 or not job.first_rows)
                    t += FL_TILE
            g += n
        for c in range(start, stop):
            store(row_at(&job.weights_grad, job.c + c), job.weights_grad.step, job.weights_grad.kind, dw + c*width,
                  job.d)
    if job.bias_grad != NULL:
        for c in range(start, stop):
            g = 0
            while g < job.groups:
                n = least(step, job.groups - g)
                for j in range(lanes):
                    sum[j] = 0
                for t in range(g, g + n):
                    v = z + t*job.pitch + c*lanes
                    for j in range(lanes):
                        sum[j] += v[j]
                for j in range(1, lanes):
                    sum[0] += sum[j]
                job.bias_grad[job.c + c] += sum[0]
                g += n


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
        table_product(job, i, dummy)
    elif what == PACK_INPUTS:
        pack_inputs_group(job, i, dummy)
    else:
        unpack_inputs_group(job, i, dummy)


cdef void settle_again(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    cdef real top[LANES]
    cdef real arg[LANES]
    settle_logits(job, group_of(job, g, dummy), top, arg)


cdef void run_tasks(const Job* job, int what, Py_ssize_t n, int n_threads, real dummy) noexcept nogil:
    cdef Py_ssize_t i
    if n_threads == 1 or n == 1:
        for i in range(n):
            run_task(job, what, i, dummy)
    else:
        for i in prange(n, schedule="dynamic", chunksize=1, num_threads=n_threads):
            run_task(job, what, i, dummy)


cdef void run_forward(Job* job, int n_threads, real dummy) noexcept nogil:
    cdef Py_ssize_t c = 0, g
    while c < job.weights.n:
        set_block(job, c)
        run_tasks(job, PACK_TABLE, (job.nc + FL_TILE - 1)//FL_TILE, n_threads, dummy)
        if job.groups >= n_threads:
            run_tasks(job, LOGITS_SUMS, job.groups, n_threads, dummy)
        else:
            run_tasks(job, LOGITS, job.groups*job.parts, n_threads, dummy)
            run_tasks(job, SUMS, job.groups, n_threads, dummy)
        c += job.nc


cdef void run_backward(Job* job, int n_threads, real dummy) noexcept nogil:
    cdef Py_ssize_t c = 0, g
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
            run_tasks(job, TABLE, (job.nc + SHARE - 1)//SHARE, n_threads, dummy)
        c += job.nc


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
    return fl_log(others) + (power - bias)*FL_LN2 + shift if others > 0 else <double>(-INFINITY)


cdef void finish_row(const Ends* at, Py_ssize_t i, real dummy) noexcept nogil:
    cdef Terms terms
    cdef const int64_t* y = at.marks + i*at.k
    cdef const double* t = at.targets + i*at.k
    cdef const double* z = at.marked + i*at.k
    cdef double* state = at.state + i
    cdef Py_ssize_t q, p, best = 0, rows = at.rows
    cdef int bias = bias_of(dummy)
    cdef real m = <real>state[TOP*rows]
    cdef double others, e, each, total, ratio, lse, weight, scale, slope, loss, sum_t = 0, other, u, v, entropy
    others = state[SUM*rows] + state[REST*rows] if state[SUM*rows] < <double>INFINITY else state[SUM*rows]
    m = m if m > <real>(-INFINITY) else <real>0
    terms.shift = shift_of(m)
    terms.power = power_of(m, <real>terms.shift)
    each = 0                                        # of marked classes but the best
    for q in range(1, at.k):
        best = q if z[q] > z[best] else best
    for q in range(at.k):
        sum_t += t[q]
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
        entropy = (state[SPREAD*rows] + others*(lse - m))/total
        for q in range(at.k):
            v = ratio if q == best else ratio + (z[best] - z[q])
            at.log_prob[i*at.k + q] = -v if y[0] >= 0 else 0.0
            u = fl_exp_label(z[q] - terms.shift, terms.power, bias)/total
            entropy += u*v if u != 0 else 0.0
        at.entropy[i] = entropy
    # an ignored row, or one whose every target is 0
    if y[0] < 0 or (sum_t == 0 and at.smooth_sum == 0 and other == 0 and weight == 0):
        at.loss[i] = 0
        state[SLOPE*rows] = state[SCALE*rows] = 0
        for q in range(at.k if at.slopes != NULL else 0):
            at.slopes[i*at.k + q] = 0
        return
    loss = (sum_t + at.smooth_sum)*ratio
    for q in range(at.k):
        if q != best and t[q] != 0:
            loss += t[q]*(z[best] - z[q])
    if at.smooth_sum != 0:
        loss += at.smooth_sum*z[best] - state[TILT*rows]
    if other != 0:
        loss += other*fl_log1p((each + e)/others) if others > 0 else <double>INFINITY
    if weight != 0:
        loss += weight*lse*lse
    at.loss[i] = loss
    if at.slopes == NULL:
        return
    scale = at.factor*at.scale[i] if at.scale != NULL else at.factor
    state[SCALE*rows] = scale
    slope = sum_t + at.smooth_sum + other + 2*weight*lse
    v = slope/total - (other/others if other != 0 else 0.0)
    v = ldexp(v, bias)*scale
    state[SLOPE*rows] = 0 if others == 0 or scale == 0 else v
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

cdef inline void* at(unsigned char[::1] memory):
    return &memory[0] if memory is not None else NULL


cdef inline int set_plan(Job* job, tuple plan, real dummy) except -1:
    """Sizes that all steps share."""
    cdef int lanes = lanes_of(dummy)
    job.n, job.d, job.k, job.block, job.pitch, job.kept, job.cap, job.temperature, job.stats = plan
    job.groups = panels_of(job.n, lanes)
    job.chunks = panels_of(job.d, FL_CHUNK) if job.d > 0 else 1    # of no columns: zeros
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


def unpack(tuple plan, bint wide, unsigned char[::1] dx, inputs_grad, int axis, Py_ssize_t start, int n_threads):
    """The gradient of rows start .. start + n, from dx to where it goes."""
    cdef Job job
    cdef Held held
    held.count = 0
    try:
        set_plan(&job, plan, <double>0) if wide else set_plan(&job, plan, <float>0)
        take(&held, inputs_grad, axis, True, &job.inputs_grad)
        job.start = start
        job.dx = at(dx)
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
             unsigned char[::1] dw, double[:, ::1] state, const int64_t[:, ::1] marks, double[:, ::1] slopes,
             int n_threads):
    """A shard's share of the gradients; what is None is not wanted."""
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
        job.marked = &slopes[0, 0]
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
           const double[:, ::1] marked, double[:, ::1] slopes, double[::1] loss, double[::1] lse,
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
    ends.slopes = &slopes[0, 0] if slopes is not None else NULL
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
