"""One block of rows x classes of a linear layer's loss: its logits, their sums, and what gradients need of it.

A block is read by three products: logits (lanes: rows), gradient to the inputs (lanes: rows) and gradient to the table
(lanes: its columns), all in the layout the first one wrote.  The table is packed once per block.

A row's labels (one, or the k best of a teacher) stay out of its sum of exp: see row_sums.pxd for why.  With smoothing its
largest logit does too, if it is not one of them: log-sum-exp less that one may be all there is of a loss.
"""
from libc.math cimport INFINITY, ldexp

from fastloss.kernels.arrays.arrays cimport is_direct, load, row_at, store
from fastloss.kernels.linear.call cimport PANELS, ROWS, SHARE, STEP, LinearCall, RowSums, sums_of
from fastloss.kernels.math.sigmoid_math cimport tanh_of
from fastloss.kernels.math.vmath cimport (
    FL_LN2, bias_of, exp_of, fl_exp_label, lo_of, magic_of, power_of, real, shift_of,
)
from fastloss.kernels.matmul.product cimport (
    FL_CHUNK, FL_PITCH, FL_TILE, LANES, Target, lanes_of, least, parts_of, tile_columns, tile_lanes, tile_rows,
)
from fastloss.kernels.row_sums.lane_sums cimport add_block, sum_rest

# ------------------------------------------------------------------ logits and their sums

cdef inline real* group_of(const LinearCall* call, Py_ssize_t g, real dummy) noexcept nogil:
    """The block's logits of a group: [n_classes][lanes], and room for the rest of a tile."""
    return <real*>call.z + g*call.pitch + call.offset*lanes_of(dummy)


cdef inline void logits(const LinearCall* call, Py_ssize_t g, Py_ssize_t start, Py_ssize_t stop,
                        real dummy) noexcept nogil:
    """z = x w, of tiles start .. stop."""
    cdef Py_ssize_t lanes = lanes_of(dummy)
    cdef Py_ssize_t q, t, k
    cdef real* z = group_of(call, g, dummy)
    cdef const real* x
    for q in range(call.chunks):
        k = least(FL_CHUNK, call.d - q*FL_CHUNK)
        x = <const real*>call.xp + (g*call.d + q*FL_CHUNK)*lanes
        for t in range(start, stop):
            tile_rows(k, <const real*>call.wp + (q*call.block + t*FL_TILE)*FL_PITCH, x, z + t*FL_TILE*lanes, lanes,
                      q > 0)


cdef inline void settle_logits(const LinearCall* call, real* z, real* top, real* arg) noexcept nogil:
    """Bias, cap and temperature; each lane's largest logit, NaN left aside, and its class."""
    cdef Py_ssize_t lanes = lanes_of(z[0]), j
    cdef Py_ssize_t c
    cdef real b, v, cap = <real>call.cap, t = <real>call.temperature
    cdef real* x
    for j in range(lanes):
        top[j] = -INFINITY
        arg[j] = 0
    for c in range(call.n_classes):
        x = z + c*lanes
        if call.bias != NULL:
            b = <real>call.bias[call.class_start + c]
            for j in range(lanes):
                x[j] = x[j] + b
        if cap > 0:
            for j in range(lanes):
                x[j] = cap*tanh_of(x[j]/cap)
        if t != 1:
            for j in range(lanes):
                x[j] = x[j]/t
        if call.stats:
            for j in range(lanes):
                arg[j] = <real>c if x[j] > top[j] else arg[j]
        for j in range(lanes):
            v = x[j]
            top[j] = v if v > top[j] else top[j]


cdef inline void largest(const LinearCall* call, const real* z, real* top, real* arg) noexcept nogil:
    """Each lane's largest logit, NaN left aside, and its class."""
    cdef Py_ssize_t lanes = lanes_of(z[0]), c, j
    cdef real v
    for j in range(lanes):
        top[j] = -INFINITY
        arg[j] = 0
    for c in range(call.n_classes):
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


cdef inline bint is_label(const LinearCall* call, Py_ssize_t row, Py_ssize_t c) noexcept nogil:
    cdef Py_ssize_t q
    for q in range(call.k if row < call.n else 0):
        if call.labels[row*call.k + q] == c:
            return True
    return False


cdef inline double exp_at(real x, real m) noexcept nogil:
    """exp(x), in the unit of the reference m."""
    cdef real shift = shift_of(m)
    return fl_exp_label(<double>x - <double>shift, power_of(m, shift), bias_of(m))


cdef inline void references(const LinearCall* call, Py_ssize_t g, const real* top, const real* arg,
                            real* m) noexcept nogil:
    """m = each lane's largest logit so far; what was summed around a smaller one comes to its unit."""
    cdef Py_ssize_t lanes = lanes_of(m[0]), j
    cdef RowSums of = sums_of(call, g, m[0])
    cdef double f, old, s
    for j in range(lanes):
        old = of.top[j]
        m[j] = <real>old
        if top[j] > m[j]:
            if call.smooth != NULL and old > <double>(-INFINITY):
                if not is_label(call, g*lanes + j, <Py_ssize_t>of.argmax[j]):   # it was left out
                    f = exp_at(m[j], m[j])
                    s = of.sum[j]
                    of.sum[j] = s + f
                    of.rest[j] += sum_rest(s, f, s + f)
            if of.sum[j] != 0:
                f = unit_ratio(m[j], top[j])
                of.sum[j] *= f
                of.rest[j] *= f
                of.entropy_sum[j] = of.entropy_sum[j]*f + of.sum[j]*(<double>top[j] - old)
            if call.smooth != NULL and old > <double>(-INFINITY):
                add_block(&of.smooth_dot[j], &of.smooth_rest[j], of.smoothed[j]*(0.5*<double>top[j] - 0.5*old))
            m[j] = top[j]
            of.top[j] = m[j]
            of.argmax[j] = call.first + call.class_start + <Py_ssize_t>arg[j]


cdef inline void take_labels(const LinearCall* call, Py_ssize_t g, real* z) noexcept nogil:
    """The labels' logits of this block, out of the sums."""
    cdef Py_ssize_t lanes = lanes_of(z[0])
    cdef Py_ssize_t r, q, i, y
    for r in range(least(lanes, call.n - g*lanes)):
        for q in range(call.k):
            i = (g*lanes + r)*call.k + q
            y = call.labels[i] - call.first - call.class_start
            if call.labels[i] >= 0 and 0 <= y < call.n_classes:
                call.label_logits[i] = z[y*lanes + r]
                z[y*lanes + r] = -INFINITY


cdef inline void smooth_dots(const LinearCall* call, Py_ssize_t g, const real* z, const real* m) noexcept nogil:
    """Adds to smooth_dot and smoothed, where smoothing is not 0: large logits that differ little keep their digits."""
    cdef double sum[LANES]
    cdef double rest[LANES]
    cdef double top[LANES]
    cdef Py_ssize_t lanes = lanes_of(z[0]), j
    cdef Py_ssize_t c
    cdef double u, v, t, share = 0, share_rest = 0
    cdef RowSums of = sums_of(call, g, z[0])
    for j in range(lanes):
        sum[j] = rest[j] = 0
        top[j] = 0.5*<double>m[j] if m[j] > <real>(-INFINITY) else 0.0
    for c in range(call.n_classes):
        u = call.smooth[call.first + call.class_start + c]
        add_block(&share, &share_rest, u)
        if u != 0:
            for j in range(lanes):
                v = u*(top[j] - 0.5*<double>z[c*lanes + j])
                t = sum[j] + v
                rest[j] += sum_rest(sum[j], v, t)
                sum[j] = t
    for j in range(lanes):
        add_block(&of.smooth_dot[j], &of.smooth_rest[j], sum[j])
        of.smooth_rest[j] += rest[j]
        of.smoothed[j] += share + share_rest


cdef inline void sums(const LinearCall* call, Py_ssize_t g, real dummy) noexcept nogil:
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
    cdef Py_ssize_t c, stop
    cdef real* z = group_of(call, g, dummy)
    cdef real e, f, power
    cdef double s, t
    cdef RowSums of = sums_of(call, g, dummy)
    settle_logits(call, z, top, arg)
    if call.exact_others:
        take_labels(call, g, z)
    if call.exact_others or call.smooth != NULL:
        largest(call, z, top, arg)
    references(call, g, top, arg, m)
    if call.smooth != NULL:
        smooth_dots(call, g, z, m)
    if not call.exact_others:
        take_labels(call, g, z)
    if call.smooth != NULL:
        for j in range(lanes):      # the largest logit so far, if it is here
            place[j] = <Py_ssize_t>arg[j]*lanes + j
            left_out[j] = z[place[j]]
            if m[j] > <real>(-INFINITY) and of.argmax[j] == call.first + call.class_start + <Py_ssize_t>arg[j]:
                z[place[j]] = -INFINITY
    for j in range(lanes):
        m[j] = m[j] if m[j] > <real>(-INFINITY) else <real>0
        shift[j] = shift_of(m[j])
        power = power_of(m[j], shift[j])
        lo[j] = lo_of(power)
        magic[j] = magic_of(power)
        total[j] = rest[j] = wide[j] = 0
    c = 0
    while c < call.n_classes:                           # eight terms a chain, in pairs; then float64
        stop = least(c + 8, call.n_classes)
        for j in range(lanes):
            part[j] = spread[j] = 0
        if call.stats:
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
        s = of.sum[j]
        t = s + total[j]
        of.rest[j] += sum_rest(s, total[j], t) + rest[j]
        of.sum[j] = t
        of.entropy_sum[j] += wide[j]
    if call.smooth != NULL:
        for j in range(lanes):
            z[place[j]] = left_out[j]


# ------------------------------------------------------------------ gradients

cdef inline void slopes(const LinearCall* call, Py_ssize_t g, real dummy) noexcept nogil:
    """Logits become the derivatives of the rows' losses, times what multiplies each row."""
    cdef real shift[LANES]
    cdef real lo[LANES]
    cdef real magic[LANES]
    cdef real slope[LANES]
    cdef real scale[LANES]
    cdef real was[LANES]
    cdef Py_ssize_t lanes = lanes_of(dummy), j
    cdef Py_ssize_t c, r, q, i, y
    cdef real* z = group_of(call, g, dummy)
    cdef real* x
    cdef real m, power, u, v, cap = <real>call.cap, t = <real>call.temperature
    cdef RowSums of = sums_of(call, g, dummy)
    for j in range(lanes):
        m = <real>of.top[j]
        m = m if m > <real>(-INFINITY) else <real>0
        shift[j] = shift_of(m)
        power = power_of(m, shift[j]) + bias_of(m)      # of the top itself, without the bias: no scale underflows
        lo[j] = lo_of(power)
        magic[j] = magic_of(power)
        slope[j] = <real>of.slope[j]
        scale[j] = <real>of.scale[j]
        was[j] = 0
    for c in range(call.n_classes):
        x = z + c*lanes
        u = <real>call.smooth[call.first + call.class_start + c] if call.smooth != NULL else 0
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
    for r in range(least(lanes, call.n - g*lanes)):
        for q in range(call.k):
            i = (g*lanes + r)*call.k + q
            y = call.labels[i] - call.first - call.class_start
            if call.labels[i] >= 0 and 0 <= y < call.n_classes:
                z[y*lanes + r] = <real>call.label_slopes[i]


cdef inline void inputs_product(const LinearCall* call, Py_ssize_t g, Py_ssize_t q_start, Py_ssize_t q_stop,
                                real dummy) noexcept nogil:
    """dx += slopes w, of these chunks of columns."""
    cdef Py_ssize_t lanes = lanes_of(dummy)
    cdef Py_ssize_t c, k, q, j, width
    cdef const real* z = group_of(call, g, dummy)
    cdef real* dx
    c = 0
    while c < call.n_classes:
        k = least(STEP, call.n_classes - c)
        for q in range(q_start, q_stop):
            dx = <real*>call.dx + (g*call.chunks + q)*FL_CHUNK*lanes
            width = least(FL_CHUNK, call.d - q*FL_CHUNK)
            j = 0
            while j < width:
                tile_columns(k, <const real*>call.wp + (q*call.block + c)*FL_PITCH + j, z + c*lanes, dx + j*lanes,
                             lanes, True)
                j += FL_TILE
        c += k


cdef inline Py_ssize_t parts_of_columns(const LinearCall* call, real dummy) noexcept nogil:
    return parts_of(parts_of(call.d, lanes_of(dummy)), PANELS) if call.xr != NULL and call.d > 0 else 1


cdef inline Py_ssize_t table_tasks(const LinearCall* call, real dummy) noexcept nogil:
    return parts_of(call.n_classes, SHARE)*parts_of_columns(call, dummy)


cdef inline void exchange(const LinearCall* call, Py_ssize_t c, Py_ssize_t start, Py_ssize_t stop, real* row,
                          bint out) noexcept nogil:
    """Rotated columns start .. stop of a class's gradient, between `row` and where they go."""
    cdef Py_ssize_t step = call.weights_grad.step, n = least(stop, call.rotation) - start, first
    cdef char* place = row_at(&call.weights_grad, call.class_start + c)
    if n > 0:
        if out:
            store(place + (call.d - call.rotation + start)*step, step, call.weights_grad.kind, row, n)
        else:
            load(row, place + (call.d - call.rotation + start)*step, step, n, call.weights_grad.kind)
    first = start if start > call.rotation else call.rotation
    n = least(stop, call.d) - first
    if n > 0:
        if out:
            store(place + (first - call.rotation)*step, step, call.weights_grad.kind, row + first - start, n)
        else:
            load(row + first - start, place + (first - call.rotation)*step, step, n, call.weights_grad.kind)


cdef inline void table_product(const LinearCall* call, Py_ssize_t task, real dummy) noexcept nogil:
    """Some rows and columns of the table's gradient: slopes times inputs, over the block's rows.

    Whole tiles of a gradient stored like ours are summed where they belong; columns are rotated so that its panels lie
    on whole cache lines there, all but the first, which holds both ends of a row.
    """
    cdef Py_ssize_t lanes = lanes_of(dummy), parts = parts_of_columns(call, dummy), step = ROWS//lanes
    cdef Py_ssize_t start = task//parts*SHARE, stop = least(call.n_classes, start + SHARE), c, p, g, n, t
    cdef Py_ssize_t first = task % parts*PANELS, last = least(parts_of(call.d, lanes), first + PANELS)
    cdef Py_ssize_t copied = last               # panels before this one are summed in scratch
    cdef Py_ssize_t width = parts_of(call.d, lanes)*lanes, pitch, next_row
    cdef real* dw = <real*>call.dw + start*width
    cdef real* direct = NULL
    cdef real* target
    cdef Target tile
    cdef const real* z = <const real*>call.z + call.offset*lanes
    cdef const real* x
    if (stop - start) % FL_TILE == 0 and call.d % lanes == 0 and call.weights_grad.ndim <= 1:
        if is_direct(&call.weights_grad, dummy):
            direct = <real*>row_at(&call.weights_grad, call.class_start + start)
            copied = least(last, 1) if first == 0 and call.rotation > 0 else first
    if copied > first and not call.first_rows:
        for c in range(start, stop):
            exchange(call, c, first*lanes, copied*lanes, dw + (c - start)*width + first*lanes, False)
    g = 0
    while g < call.groups:
        n = least(step, call.groups - g)
        for p in range(first, last):
            x = <const real*>call.xr + (p*call.groups + g)*lanes*lanes
            target = dw + p*lanes
            pitch = width
            if p >= copied:
                target = direct + p*lanes - call.rotation
                pitch = call.weights_grad.stride[0]//<Py_ssize_t>sizeof(real)
            tile.pitch = pitch
            tile.add = g > 0 or not call.first_rows
            t = start
            while t < stop:
                next_row = t + FL_TILE - start if t + FL_TILE < stop else 0
                tile.at = target + (t - start)*pitch
                tile.later = target + next_row*pitch + (lanes if next_row == 0 else 0)
                tile_lanes(n, call.pitch, z + g*call.pitch + t*lanes, x, &tile)
                t += FL_TILE
        g += n
    if copied > first:
        for c in range(start, stop):
            exchange(call, c, first*lanes, copied*lanes, dw + (c - start)*width + first*lanes, True)


cdef inline void biases_gradient(const LinearCall* call, Py_ssize_t task, real dummy) noexcept nogil:
    """The gradient of some classes' biases: slopes summed over the block's rows."""
    cdef Py_ssize_t lanes = lanes_of(dummy), j
    cdef Py_ssize_t start = task*SHARE, stop = least(call.n_classes, start + SHARE), step = ROWS//lanes, c, g, n, t
    cdef const real* z = <const real*>call.z + call.offset*lanes
    cdef const real* v
    cdef double sum[LANES]
    for c in range(start, stop):
        g = 0
        while g < call.groups:
            n = least(step, call.groups - g)
            for j in range(lanes):
                sum[j] = 0
            for t in range(g, g + n):
                v = z + t*call.pitch + c*lanes
                for j in range(lanes):
                    sum[j] += v[j]
            for j in range(1, lanes):
                sum[0] += sum[j]
            call.bias_grad[call.class_start + c] += sum[0]
            g += n
