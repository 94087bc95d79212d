"""Inputs and the table into panels, the gradient to the inputs out of them; from and to whatever they are stored in."""
from fastloss.kernels.arrays.arrays cimport load, row_at, store
from fastloss.kernels.linear.call cimport LinearCall, sums_of
from fastloss.kernels.math.vmath cimport FL_PREFETCH, real
from fastloss.kernels.matmul.product cimport FL_CHUNK, FL_PITCH, FL_TILE, lanes_of, least, parts_of

cdef enum:
    SPAN = 256              # columns converted at a time


cdef inline void pack_inputs_group(const LinearCall* call, Py_ssize_t g, real dummy) noexcept nogil:
    """Rows of one group, as lanes and, if asked for, as they are in panels; zeros where there is none."""
    cdef real part[SPAN]
    cdef Py_ssize_t lanes = lanes_of(dummy), r
    cdef Py_ssize_t k, j, m, i, row, rows = call.groups*lanes, width = parts_of(call.d, lanes)*lanes
    cdef real* p = <real*>call.xp + g*call.d*lanes
    cdef real* q
    cdef char* source
    for r in range(lanes):
        row = g*lanes + r
        k = 0
        while k < width:
            m = least(SPAN, width - k)
            for j in range(m):
                part[j] = 0
            if row < call.n and k < call.d:
                source = row_at(&call.inputs, call.start + row)
                load(part, source + k*call.inputs.step, call.inputs.step, least(m, call.d - k), call.inputs.kind)
            for j in range(least(m, call.d - k)):
                p[(k + j)*lanes + r] = part[j]
            if call.xr != NULL:
                for j in range(m):
                    i = k + j + call.rotation
                    i = i - width if i >= width else i
                    q = <real*>call.xr + (i//lanes*rows + row)*lanes
                    q[i % lanes] = part[j]
            k += m


cdef inline void unpack_inputs_group(const LinearCall* call, Py_ssize_t g, real dummy) noexcept nogil:
    cdef real part[SPAN]
    cdef Py_ssize_t lanes = lanes_of(dummy), r
    cdef Py_ssize_t k, j, m
    cdef const real* p = <const real*>call.dx + g*call.chunks*FL_CHUNK*lanes
    cdef const double* scale = sums_of(call, g, dummy).scale
    for r in range(least(lanes, call.n - g*lanes)):
        k = 0
        while k < call.d:
            m = least(SPAN, call.d - k)
            for j in range(m):      # of a row that does not count 0, whatever the table holds
                part[j] = p[(k + j)*lanes + r] if scale[r] != 0 else <real>0
            store(row_at(&call.inputs_grad, call.start + g*lanes + r) + k*call.inputs_grad.step, call.inputs_grad.step,
                  call.inputs_grad.kind, part, m)
            k += m


cdef inline void pack_table_tile(const LinearCall* call, Py_ssize_t t, real dummy) noexcept nogil:
    """Twelve classes of the block, chunk by chunk; zeros after the last."""
    cdef Py_ssize_t c, q, m, j, tail
    cdef real* p
    cdef char* source
    for c in range(t*FL_TILE, (t + 1)*FL_TILE):
        for q in range(call.chunks):
            p = <real*>call.wp + (q*call.block + c)*FL_PITCH
            m = least(FL_CHUNK, call.d - q*FL_CHUNK) if c < call.n_classes else 0
            if m > 0:
                source = row_at(&call.weights, call.class_start + c) + q*FL_CHUNK*call.weights.step
                for j in range(0, FL_CHUNK*call.weights.itemsize, 64):       # the next class: another page
                    FL_PREFETCH(source + call.weights.stride[0] + j)
                load(p, source, call.weights.step, m, call.weights.kind)
            tail = (m + FL_TILE - 1)//FL_TILE*FL_TILE if c < call.n_classes else FL_CHUNK
            for j in range(m, tail):
                p[j] = 0
