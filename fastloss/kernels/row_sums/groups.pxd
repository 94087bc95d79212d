"""A row in groups of L elements, of which two are read from padded copies: see Source."""
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.row_sums.lane_sums cimport L

cdef extern from *:
    """
    /* The result of a function that must not be inlined: all functions of .pxd are declared inline. */
    #if defined(__GNUC__)
    #pragma GCC diagnostic ignored "-Wattributes"
    #define fl_apart void __attribute__((noinline))
    #else
    #define fl_apart void
    #endif
    """
    ctypedef void fl_apart

cdef extern from "row_sums/row_sums_avx512.h" nogil:
    ctypedef struct Source "fl_source":
        const char* elements
        const char* out_group
        const char* tail_group
        const char* empty_group
        Py_ssize_t n_groups
        Py_ssize_t out
        Py_ssize_t tail
        const char* ahead
        Py_ssize_t pace

cdef enum:
    BLOCK = 2048        # terms whose exp stays in the first-level cache between its two uses
    AHEAD = 16384       # bytes after which logits are asked for into the second-level cache


cdef struct Row:        # of logits
    const void* x
    Py_ssize_t n
    Py_ssize_t out      # the element left out
    const char* ahead   # what to fetch meanwhile instead of the logits further on, which are but copies; or NULL
    Py_ssize_t pace     # bytes of it for each group of logits


cdef struct Part:       # of a row: whole blocks but at the row's end
    Py_ssize_t start    # groups
    Py_ssize_t stop
    double* sums        # of its blocks, one after the other


cdef inline void put_group(real* group, const real* x, Py_ssize_t n, Py_ssize_t out, real fill) noexcept nogil:
    """group = n elements of x, `fill` in place of x[out] and where there are no more.

    Selected lane by lane: a vector read after one of its elements was stored waits for the store.
    """
    cdef int j, stop = <int>n, skip = <int>out
    for j in range(L):
        group[j] = x[j] if (j < stop) & (j != skip) else fill


cdef inline void open_source(Source* source, const real* x, Py_ssize_t c, Py_ssize_t out, real* copies,
                             real fill) noexcept nogil:
    """The groups of a row of c elements; copies (3 L) gets those without x[out] and past the row's end."""
    cdef Py_ssize_t j
    source.elements = <const char*>x
    source.out_group = <const char*>copies
    source.tail_group = <const char*>(copies + L)
    source.empty_group = <const char*>(copies + 2*L)
    source.out = out//L
    source.tail = c//L if c % L else -1
    source.ahead = source.elements + AHEAD
    source.pace = L*<Py_ssize_t>sizeof(real)
    for j in range(L):
        copies[2*L + j] = fill
    if source.tail >= 0:
        put_group(copies + L, x + source.tail*L, c - source.tail*L, out - source.tail*L, fill)
    if source.out == source.tail:
        source.out = -1
    else:
        put_group(copies, x + source.out*L, L, out - source.out*L, fill)


cdef inline void whole_groups(Source* source, const real* x, const real* empty) noexcept nogil:
    """Nothing but whole groups, with no element left out."""
    source.elements = <const char*>x
    source.out_group = source.tail_group = source.empty_group = <const char*>empty
    source.n_groups = 0
    source.out = source.tail = -1
    source.ahead = source.elements + AHEAD
    source.pace = L*<Py_ssize_t>sizeof(real)


cdef inline void skip_groups(Source* source, Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    """n groups further on."""
    source.elements += n*L*itemsize
    source.out -= n
    source.tail -= n
    source.ahead += n*source.pace


cdef inline void next_block(Source* source, Py_ssize_t left, Py_ssize_t itemsize) noexcept nogil:
    """Past the block just read, `left` groups before the row's end."""
    skip_groups(source, source.n_groups, itemsize)
    source.n_groups = left if left < BLOCK//L else BLOCK//L
