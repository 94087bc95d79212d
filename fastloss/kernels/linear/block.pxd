"""One block of rows x classes of a linear layer's loss: its logits, their sums, and what gradients need of it.

Everything lies in panels [k][lanes]: rows of the batch are lanes, so what is summed over classes is summed down a lane
and a row's bits depend on nothing but the row.  A block is read by three products: logits (lanes: rows), gradient to
the inputs (lanes: rows) and gradient to the table (lanes: its columns), all in the layout the first one wrote.  The
table is packed once per block, from whatever it is stored in.

A row's marked classes (its label, or the k best of a teacher) stay out of its sum of exp: see row_sums.pxd for why.  With
smoothing its largest logit does too, if it is not one of them: log-sum-exp less that one may be all there is of a loss.
"""
from libc.math cimport INFINITY, ldexp
from libc.stdint cimport int64_t

from fastloss.kernels.arrays.arrays cimport Rows, is_direct, load, row_at, store
from fastloss.kernels.matmul.product cimport (
    FL_CHUNK, FL_PITCH, FL_TILE, LANES, lanes_of, least, parts_of, tile_columns, tile_lanes, tile_rows,
)
from fastloss.kernels.math.sigmoid_math cimport tanh_of
from fastloss.kernels.softmax.lane_sums cimport sum_rest
from fastloss.kernels.math.vmath cimport (
    FL_LN2, FL_PREFETCH, bias_of, exp_of, fl_exp_label, lo_of, magic_of, power_of, real, shift_of,
)

cdef enum:
    STEP = 96               # classes of a panel that fits the first-level cache, and of a task
    SHARE = 96              # classes of a task of the table's gradient
    PANELS = 8              # and panels of columns
    ROWS = 128              # rows of the batch whose products are one chain: block sizes are multiples of it

cdef enum:                  # rows of `state`, one number for each row of the batch
    TOP                     # largest logit so far, of unmarked classes where those are `apart`: the reference of all sums
    SUM                     # of exp over unmarked classes, in that unit; with REST, compensated
    REST
    SPREAD                  # sum of exp times (TOP - logit): what entropy needs
    TILT                    # sum of smoothing times half of (TOP - logit): the whole could overflow
    SMOOTHED                # sum of smoothing so far
    ARGMAX
    SLOPE                   # what multiplies exp in the gradient
    SCALE                   # what multiplies the row's gradient
    FIELDS

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
    Py_ssize_t turn         # columns stand this far to the right in xr and dw, the last ones first: see table_product
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
    bint apart              # marked classes do not move the reference: the sum of the others counts, however small
    bint first_rows         # the table's gradient starts here
    bint kept               # z holds the logits of all classes
    void* xp                # [groups, d, LANES]: inputs, rows as lanes
    void* xr                # [panels, groups*LANES, LANES]: inputs, columns as lanes, turned; or NULL
    void* z                 # [groups, pitch]
    void* dx                # [groups, chunks*FL_CHUNK, LANES] or NULL
    void* wp                # [chunks, block, FL_PITCH]
    void* dw                # [block, panels*LANES]


# ------------------------------------------------------------------ packing

cdef inline void pack_inputs_group(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    """Rows of one group, as lanes and, if asked for, as they are in panels; zeros where there is none."""
    cdef real part[256]
    cdef Py_ssize_t lanes = lanes_of(dummy), r
    cdef Py_ssize_t k, j, m, i, row, rows = job.groups*lanes, width = parts_of(job.d, lanes)*lanes
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
                    i = k + j + job.turn
                    i = i - width if i >= width else i
                    q = <real*>job.xr + (i//lanes*rows + row)*lanes
                    q[i % lanes] = part[j]
            k += m


cdef inline void unpack_inputs_group(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    cdef real part[256]
    cdef Py_ssize_t lanes = lanes_of(dummy), r
    cdef Py_ssize_t k, j, m
    cdef const real* p = <const real*>job.dx + g*job.chunks*FL_CHUNK*lanes
    cdef const double* scale = job.state + (SCALE*job.groups + g)*lanes
    for r in range(least(lanes, job.n - g*lanes)):
        k = 0
        while k < job.d:
            m = least(256, job.d - k)
            for j in range(m):      # of a row that does not count 0, whatever the table holds
                part[j] = p[(k + j)*lanes + r] if scale[r] != 0 else <real>0
            store(row_at(&job.inputs_grad, job.start + g*lanes + r) + k*job.inputs_grad.step, job.inputs_grad.step,
                  job.inputs_grad.kind, part, m)
            k += m


cdef inline void pack_table_tile(const Job* job, Py_ssize_t t, real dummy) noexcept nogil:
    """Twelve classes of the block, chunk by chunk; zeros after the last."""
    cdef Py_ssize_t c, q, m, j, tail
    cdef real* p
    cdef char* source
    for c in range(t*FL_TILE, (t + 1)*FL_TILE):
        for q in range(job.chunks):
            p = <real*>job.wp + (q*job.block + c)*FL_PITCH
            m = least(FL_CHUNK, job.d - q*FL_CHUNK) if c < job.nc else 0
            if m > 0:
                source = row_at(&job.weights, job.c + c) + q*FL_CHUNK*job.weights.step
                for j in range(0, FL_CHUNK*job.weights.itemsize, 64):       # the next class: another page
                    FL_PREFETCH(source + job.weights.stride[0] + j)
                load(p, source, job.weights.step, m, job.weights.kind)
            tail = (m + FL_TILE - 1)//FL_TILE*FL_TILE if c < job.nc else FL_CHUNK
            for j in range(m, tail):
                p[j] = 0


# ------------------------------------------------------------------ logits and their sums

cdef inline real* group_of(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    """The block's logits of a group: [nc][lanes], and room for the rest of a tile."""
    return <real*>job.z + g*job.pitch + job.place*lanes_of(dummy)


cdef inline void logits(const Job* job, Py_ssize_t g, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    """z = x w, of tiles start .. stop."""
    cdef Py_ssize_t lanes = lanes_of(dummy)
    cdef Py_ssize_t q, t, k
    cdef real* z = group_of(job, g, dummy)
    cdef const real* x
    for q in range(job.chunks):
        k = least(FL_CHUNK, job.d - q*FL_CHUNK)
        x = <const real*>job.xp + (g*job.d + q*FL_CHUNK)*lanes
        for t in range(start, stop):
            tile_rows(k, <const real*>job.wp + (q*job.block + t*FL_TILE)*FL_PITCH, x, z + t*FL_TILE*lanes, lanes,
                      q > 0)


cdef inline void settle_logits(const Job* job, real* z, real* top, real* arg) noexcept nogil:
    """Bias, cap and temperature; each lane's largest logit, NaN left aside, and its class."""
    cdef Py_ssize_t lanes = lanes_of(z[0]), j
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


cdef inline void largest(const Job* job, const real* z, real* top, real* arg) noexcept nogil:
    """Each lane's largest logit, NaN left aside, and its class."""
    cdef Py_ssize_t lanes = lanes_of(z[0]), c, j
    cdef real v
    for j in range(lanes):
        top[j] = -INFINITY
        arg[j] = 0
    for c in range(job.nc):
        for j in range(lanes):
            v = z[c*lanes + j]
            arg[j] = <real>c if v > top[j] else arg[j]
            top[j] = v if v > top[j] else top[j]


cdef inline double unit_ratio(real old, real new) noexcept nogil:
    """What a sum in the unit of the reference `old` is times, in that of `new`."""
    cdef real s = shift_of(old), t = shift_of(new)
    cdef double d = <double>power_of(old, s) - <double>power_of(new, t)
    if s == t:
        return ldexp(1.0, <int>d)
    return fl_exp_label((<double>s - <double>t) + d*FL_LN2, bias_of(old), bias_of(old))


cdef inline bint is_marked(const Job* job, Py_ssize_t row, Py_ssize_t c) noexcept nogil:
    cdef Py_ssize_t q
    for q in range(job.k if row < job.n else 0):
        if job.marks[row*job.k + q] == c:
            return True
    return False


cdef inline double exp_at(real x, real m) noexcept nogil:
    """exp(x), in the unit of the reference m."""
    cdef real shift = shift_of(m)
    return fl_exp_label(<double>x - <double>shift, power_of(m, shift), bias_of(m))


cdef inline void references(const Job* job, Py_ssize_t g, const real* top, const real* arg, real* m) noexcept nogil:
    """m = each lane's largest logit so far; what was summed around a smaller one comes to its unit."""
    cdef Py_ssize_t lanes = lanes_of(m[0]), j
    cdef Py_ssize_t rows = job.groups*lanes
    cdef double* state = job.state + g*lanes
    cdef double f, old, s
    for j in range(lanes):
        old = state[TOP*rows + j]
        m[j] = <real>old
        if top[j] > m[j]:
            if job.smooth != NULL and old > <double>(-INFINITY):
                if not is_marked(job, g*lanes + j, <Py_ssize_t>state[ARGMAX*rows + j]):     # it was left out
                    f = exp_at(m[j], m[j])
                    s = state[SUM*rows + j]
                    state[SUM*rows + j] = s + f
                    state[REST*rows + j] += sum_rest(s, f, s + f)
            if state[SUM*rows + j] != 0:
                f = unit_ratio(m[j], top[j])
                state[SUM*rows + j] *= f
                state[REST*rows + j] *= f
                state[SPREAD*rows + j] = state[SPREAD*rows + j]*f + state[SUM*rows + j]*(<double>top[j] - old)
            if job.smooth != NULL and old > <double>(-INFINITY):
                state[TILT*rows + j] += state[SMOOTHED*rows + j]*(0.5*<double>top[j] - 0.5*old)
            m[j] = top[j]
            state[TOP*rows + j] = m[j]
            state[ARGMAX*rows + j] = job.first + job.c + <Py_ssize_t>arg[j]


cdef inline void take_marks(const Job* job, Py_ssize_t g, real* z) noexcept nogil:
    """Marked logits of this block, out of the sums."""
    cdef Py_ssize_t lanes = lanes_of(z[0])
    cdef Py_ssize_t r, q, i, y
    for r in range(least(lanes, job.n - g*lanes)):
        for q in range(job.k):
            i = (g*lanes + r)*job.k + q
            y = job.marks[i] - job.first - job.c
            if job.marks[i] >= 0 and 0 <= y < job.nc:
                job.marked[i] = z[y*lanes + r]
                z[y*lanes + r] = -INFINITY


cdef inline void tilts(const Job* job, Py_ssize_t g, const real* z, const real* m) noexcept nogil:
    """Adds to TILT and SMOOTHED, where smoothing is not 0: logits far from 0 that differ little keep their digits."""
    cdef double sum[LANES]
    cdef double top[LANES]
    cdef Py_ssize_t lanes = lanes_of(z[0]), j
    cdef Py_ssize_t c, rows = job.groups*lanes
    cdef double u, share = 0
    for j in range(lanes):
        sum[j] = 0
        top[j] = 0.5*<double>m[j] if m[j] > <real>(-INFINITY) else 0.0
    for c in range(job.nc):
        u = job.smooth[job.first + job.c + c]
        share += u
        if u != 0:
            for j in range(lanes):
                sum[j] += u*(top[j] - 0.5*<double>z[c*lanes + j])
    for j in range(lanes):
        job.state[TILT*rows + g*lanes + j] += sum[j]
        job.state[SMOOTHED*rows + g*lanes + j] += share


cdef inline void sums(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
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
    cdef real left_out[LANES]
    cdef Py_ssize_t place[LANES]
    cdef Py_ssize_t lanes = lanes_of(dummy), j
    cdef Py_ssize_t c, stop, rows = job.groups*lanes
    cdef real* z = group_of(job, g, dummy)
    cdef real e, f, power
    cdef double s, t
    cdef double* state = job.state + g*lanes
    settle_logits(job, z, top, arg)
    if job.apart:
        take_marks(job, g, z)
    if job.apart or job.smooth != NULL:
        largest(job, z, top, arg)
    references(job, g, top, arg, m)
    if job.smooth != NULL:
        tilts(job, g, z, m)
    if not job.apart:
        take_marks(job, g, z)
    if job.smooth != NULL:
        for j in range(lanes):      # the largest logit so far, if it is here
            place[j] = <Py_ssize_t>arg[j]*lanes + j
            left_out[j] = z[place[j]]
            if m[j] > <real>(-INFINITY) and state[ARGMAX*rows + j] == job.first + job.c + <Py_ssize_t>arg[j]:
                z[place[j]] = -INFINITY
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
    if job.smooth != NULL:
        for j in range(lanes):
            z[place[j]] = left_out[j]


# ------------------------------------------------------------------ gradients

cdef inline void slopes(const Job* job, Py_ssize_t g, real dummy) noexcept nogil:
    """Logits become the derivatives of the rows' losses, times what multiplies each row."""
    cdef real shift[LANES]
    cdef real lo[LANES]
    cdef real magic[LANES]
    cdef real slope[LANES]
    cdef real scale[LANES]
    cdef real was[LANES]
    cdef Py_ssize_t lanes = lanes_of(dummy), j
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


cdef inline void inputs_product(const Job* job, Py_ssize_t g, Py_ssize_t q_start, Py_ssize_t q_stop,
                                real dummy) noexcept nogil:
    """dx += slopes w, of these chunks of columns."""
    cdef Py_ssize_t lanes = lanes_of(dummy)
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
                tile_columns(k, <const real*>job.wp + (q*job.block + c)*FL_PITCH + j, z + c*lanes, dx + j*lanes, lanes,
                             True)
                j += FL_TILE
        c += k


cdef inline Py_ssize_t parts_of_columns(const Job* job, real dummy) noexcept nogil:
    return parts_of(parts_of(job.d, lanes_of(dummy)), PANELS) if job.xr != NULL and job.d > 0 else 1


cdef inline Py_ssize_t table_tasks(const Job* job, real dummy) noexcept nogil:
    return parts_of(job.nc, SHARE)*parts_of_columns(job, dummy)


cdef inline void exchange(const Job* job, Py_ssize_t c, Py_ssize_t start, Py_ssize_t stop, real* row,
                          bint out) noexcept nogil:
    """Turned columns start .. stop of a class's gradient, between `row` and where they go."""
    cdef Py_ssize_t step = job.weights_grad.step, n = least(stop, job.turn) - start, first
    cdef char* place = row_at(&job.weights_grad, job.c + c)
    if n > 0:
        if out:
            store(place + (job.d - job.turn + start)*step, step, job.weights_grad.kind, row, n)
        else:
            load(row, place + (job.d - job.turn + start)*step, step, n, job.weights_grad.kind)
    first = start if start > job.turn else job.turn
    n = least(stop, job.d) - first
    if n > 0:
        if out:
            store(place + (first - job.turn)*step, step, job.weights_grad.kind, row + first - start, n)
        else:
            load(row + first - start, place + (first - job.turn)*step, step, n, job.weights_grad.kind)


cdef inline void table_product(const Job* job, Py_ssize_t task, real dummy) noexcept nogil:
    """Some rows and columns of the table's gradient: slopes times inputs, over the block's rows.

    Whole tiles of a gradient stored like ours are summed where they belong; columns are turned so that its panels lie
    on whole cache lines there, all but the first, which holds both ends of a row.
    """
    cdef Py_ssize_t lanes = lanes_of(dummy), parts = parts_of_columns(job, dummy), step = ROWS//lanes
    cdef Py_ssize_t start = task//parts*SHARE, stop = least(job.nc, start + SHARE), c, p, g, n, t
    cdef Py_ssize_t first = task % parts*PANELS, last = least(parts_of(job.d, lanes), first + PANELS)
    cdef Py_ssize_t copied = last               # panels before this one are summed in scratch
    cdef Py_ssize_t width = parts_of(job.d, lanes)*lanes, pitch, next_row
    cdef real* dw = <real*>job.dw + start*width
    cdef real* direct = NULL
    cdef real* target
    cdef const real* z = <const real*>job.z + job.place*lanes
    cdef const real* x
    if (stop - start) % FL_TILE == 0 and job.d % lanes == 0 and job.weights_grad.ndim <= 1:
        if is_direct(&job.weights_grad, dummy):
            direct = <real*>row_at(&job.weights_grad, job.c + start)
            copied = least(last, 1) if first == 0 and job.turn > 0 else first
    if copied > first and not job.first_rows:
        for c in range(start, stop):
            exchange(job, c, first*lanes, copied*lanes, dw + (c - start)*width + first*lanes, False)
    g = 0
    while g < job.groups:
        n = least(step, job.groups - g)
        for p in range(first, last):
            x = <const real*>job.xr + (p*job.groups + g)*lanes*lanes
            target = dw + p*lanes
            pitch = width
            if p >= copied:
                target = direct + p*lanes - job.turn
                pitch = job.weights_grad.stride[0]//<Py_ssize_t>sizeof(real)
            t = start
            while t < stop:
                next_row = t + FL_TILE - start if t + FL_TILE < stop else 0
                tile_lanes(n, job.pitch, z + g*job.pitch + t*lanes, x, target + (t - start)*pitch, pitch,
                           g > 0 or not job.first_rows, target + next_row*pitch + (lanes if next_row == 0 else 0))
                t += FL_TILE
        g += n
    if copied > first:
        for c in range(start, stop):
            exchange(job, c, first*lanes, copied*lanes, dw + (c - start)*width + first*lanes, True)


cdef inline void biases_gradient(const Job* job, Py_ssize_t task, real dummy) noexcept nogil:
    """The gradient of some classes' biases: slopes summed over the block's rows."""
    cdef Py_ssize_t lanes = lanes_of(dummy), j
    cdef Py_ssize_t start = task*SHARE, stop = least(job.nc, start + SHARE), step = ROWS//lanes, c, g, n, t
    cdef const real* z = <const real*>job.z + job.place*lanes
    cdef const real* v
    cdef double sum[LANES]
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
