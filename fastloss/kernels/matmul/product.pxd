"""Matrix products, in the tiles of product.h.

The left operand of a product lies in slabs [chunks of columns][SLAB rows][FL_PITCH], the right operand in panels
[k][lanes].
"""
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.math.vmath cimport real

cdef extern from "matmul/product.h" nogil:
    enum:
        FL_TILE "FL_PRODUCT_TILE"
        FL_CHUNK "FL_PRODUCT_CHUNK"
        FL_PITCH "FL_PRODUCT_PITCH"
    ctypedef struct Target "fl_target":
        void* at
        Py_ssize_t pitch
        bint add
        const void* later
    void fl_tile_rowsf(Py_ssize_t, const float*, const float*, float*, Py_ssize_t, int) noexcept
    void fl_tile_rows(Py_ssize_t, const double*, const double*, double*, Py_ssize_t, int) noexcept
    void fl_tile_rows_halff(Py_ssize_t, const float*, const float*, float*, Py_ssize_t, int) noexcept
    void fl_tile_rows_half(Py_ssize_t, const double*, const double*, double*, Py_ssize_t, int) noexcept
    void fl_tile_columnsf(Py_ssize_t, const float*, const float*, float*, Py_ssize_t, int) noexcept
    void fl_tile_columns(Py_ssize_t, const double*, const double*, double*, Py_ssize_t, int) noexcept
    void fl_tile_lanesf(Py_ssize_t, Py_ssize_t, const float*, const float*, const Target*) noexcept
    void fl_tile_lanes(Py_ssize_t, Py_ssize_t, const double*, const double*, const Target*) noexcept

cdef extern from "arrays/transpose.h" nogil:
    void fl_lanes_of_rowsf(const float*, Py_ssize_t, Py_ssize_t, Py_ssize_t, float*, Py_ssize_t) noexcept
    void fl_lanes_of_rows(const double*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, Py_ssize_t) noexcept

cdef enum:
    LANES = 32              # of float; half as many of double
    SLAB = 48               # rows packed together, in whole tiles
    SERIAL = 1 << 21        # multiply-adds below which a second thread costs more than it saves


cdef inline Py_ssize_t lanes_of(real dummy) noexcept nogil:
    if real is float:
        return LANES
    else:
        return LANES//2


cdef inline void tile_rows(Py_ssize_t k, const real* a, const real* b, real* c, Py_ssize_t pitch,
                           bint add) noexcept nogil:
    if real is float:
        fl_tile_rowsf(k, a, b, c, pitch, add)
    else:
        fl_tile_rows(k, a, b, c, pitch, add)


cdef inline void tile_rows_half(Py_ssize_t k, const real* a, const real* b, real* c, Py_ssize_t pitch,
                                bint add) noexcept nogil:
    if real is float:
        fl_tile_rows_halff(k, a, b, c, pitch, add)
    else:
        fl_tile_rows_half(k, a, b, c, pitch, add)


cdef inline void tile_columns(Py_ssize_t k, const real* a, const real* b, real* c, Py_ssize_t pitch,
                              bint add) noexcept nogil:
    if real is float:
        fl_tile_columnsf(k, a, b, c, pitch, add)
    else:
        fl_tile_columns(k, a, b, c, pitch, add)


cdef inline void tile_lanes(Py_ssize_t n, Py_ssize_t step, const real* a, const real* b,
                            const Target* c) noexcept nogil:
    if real is float:
        fl_tile_lanesf(n, step, a, b, c)
    else:
        fl_tile_lanes(n, step, a, b, c)


cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t parts_of(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    return (n + size - 1)//size


# ------------------------------------------------------------------ packing

cdef inline Py_ssize_t slab_size(Py_ssize_t d) noexcept nogil:
    return parts_of(d, FL_CHUNK)*SLAB*FL_PITCH


cdef inline void pack_slab(const real* rows, Py_ssize_t stride, Py_ssize_t n, Py_ssize_t d, Py_ssize_t whole,
                           real* slab) noexcept nogil:
    """Packs n <= SLAB rows, followed by zeros up to `whole` rows and up to a whole tile of columns."""
    cdef Py_ssize_t q, r, k, m
    cdef real* p
    cdef const real* v
    for q in range(parts_of(d, FL_CHUNK)):
        for r in range(whole):
            m = least(FL_CHUNK, d - q*FL_CHUNK) if r < n else 0
            p = slab + (q*SLAB + r)*FL_PITCH
            v = rows + r*stride + q*FL_CHUNK
            for k in range(m):
                p[k] = v[k]
            for k in range(m, least(FL_CHUNK, parts_of(d - q*FL_CHUNK, FL_TILE)*FL_TILE)):
                p[k] = 0


cdef inline void pack_rows(const real* rows, Py_ssize_t n, Py_ssize_t d, real* panels) noexcept nogil:
    """Packs rows as lanes, with zeros after the last: [groups of rows][d][lanes]."""
    cdef Py_ssize_t lanes = lanes_of(panels[0]), i = 0, m, r, k
    while i < n:
        m = least(lanes, n - i)
        if real is float:
            fl_lanes_of_rowsf(rows + i*d, d, m, d, panels + i*d, lanes)
        else:
            fl_lanes_of_rows(rows + i*d, d, m, d, panels + i*d, lanes)
        for k in range(d if m < lanes else 0):
            for r in range(m, lanes):
                panels[i*d + k*lanes + r] = 0
        i += lanes


cdef inline void pack_columns(const real* rows, Py_ssize_t n, Py_ssize_t d, Py_ssize_t first, Py_ssize_t whole,
                              real* panels) noexcept nogil:
    """Packs columns as lanes, zeros after the last: [groups of columns][whole rows][lanes], n rows from `first` on."""
    cdef Py_ssize_t lanes = lanes_of(panels[0]), i, k, j, m
    cdef real* p
    for i in range(n):
        k = 0
        while k < d:
            m = least(lanes, d - k)
            p = panels + k*whole + (first + i)*lanes
            for j in range(m):
                p[j] = rows[i*d + k + j]
            for j in range(m, lanes):
                p[j] = 0
            k += lanes


# ------------------------------------------------------------------ products

cdef inline void products(const real* slab, Py_ssize_t n, Py_ssize_t d, const real* panels, Py_ssize_t width, real* out,
                          Py_ssize_t pitch) noexcept nogil:
    """out = the first n rows of a slab times `width` columns, both in whole tiles; `pitch` from row to row."""
    cdef Py_ssize_t lanes = lanes_of(out[0]), chunks = parts_of(d, FL_CHUNK), p, q, t, m, done = 0
    cdef const real* a
    cdef const real* b
    chunks = chunks if chunks > 0 else 1                # without columns the products are zeros
    for p in range(parts_of(width, lanes)):
        for q in range(chunks):
            m = least(FL_CHUNK, d - q*FL_CHUNK)
            b = panels + (p*d + q*FL_CHUNK)*lanes
            for t in range(parts_of(n, FL_TILE)):
                a = slab + (q*SLAB + t*FL_TILE)*FL_PITCH
                if width - p*lanes > lanes//2:
                    tile_rows(m, a, b, out + t*FL_TILE*pitch + p*lanes, pitch, q > 0)
                else:
                    tile_rows_half(m, a, b, out + t*FL_TILE*pitch + p*lanes, pitch, q > 0)
            if stopped(&done, n*m):
                return
