"""The gradient to a table of candidates: slabs of gradients to the logits, transposed, times the rows."""
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.matmul.product cimport (
    FL_CHUNK, FL_PITCH, FL_TILE, SLAB, lanes_of, least, parts_of, slab_size, tile_columns,
)
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.parallel.scratch cimport Scratches, scratch_of

cdef struct TableGradient:  # arrays of one type
    const void* slopes      # slabs
    const void* columns     # x, columns as lanes
    void* out               # [k, d]
    Py_ssize_t slabs
    Py_ssize_t k
    Py_ssize_t d
    bint more
    bint wide
    Scratches scratch


cdef inline void table_chunk(const TableGradient* call, Py_ssize_t chunk, real* sum) noexcept nogil:
    """The gradient to a chunk of candidates; sum: scratch."""
    cdef Py_ssize_t width = least(FL_CHUNK, call.k - chunk*FL_CHUNK), d = call.d, r, j, p, t, done = 0
    cdef Py_ssize_t lanes = lanes_of(sum[0]), panels = parts_of(d, lanes), pitch = panels*lanes
    cdef const real* slopes
    cdef real* out = <real*>call.out + chunk*FL_CHUNK*d
    for r in range(parts_of(width, FL_TILE)*FL_TILE):
        for j in range(pitch):
            sum[r*pitch + j] = out[r*d + j] if call.more and r < width and j < d else <real>0
    for r in range(call.slabs):
        slopes = <const real*>call.slopes + r*slab_size(call.k) + chunk*SLAB*FL_PITCH
        for p in range(panels):
            if stopped(&done, SLAB*width):
                return
            for t in range(parts_of(width, FL_TILE)):
                tile_columns(SLAB, slopes + t*FL_TILE, <const real*>call.columns + (p*call.slabs + r)*SLAB*lanes,
                             sum + t*FL_TILE*pitch + p*lanes, pitch, True)
    for r in range(width):
        for j in range(d):
            out[r*d + j] = sum[r*pitch + j]


cdef inline void table_block(void* of, Py_ssize_t chunk, int thread) noexcept nogil:
    cdef TableGradient* call = <TableGradient*>of
    cdef char* scratch = scratch_of(&call.scratch, thread)
    if scratch == NULL:
        return
    if call.wide:
        table_chunk(call, chunk, <double*>scratch)
    else:
        table_chunk(call, chunk, <float*>scratch)
