"""How many blocks work is cut into, and when a block asks whether to stop; fastloss/_parallel.pxd runs the blocks."""
from fastloss._parallel cimport interrupted

cdef extern from *:
    """
    /* Sets a flag that several threads may set. */
    #if defined(_MSC_VER)
    static void fl_set(int* flag) { *(volatile int*)flag = 1; }
    #else
    static inline void fl_set(int* flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
    #endif
    """
    void fl_set(int* flag) noexcept nogil

cdef enum:
    GRAIN = 32768       # elements below which a second thread costs more than it saves
    BLOCK = 1 << 22     # most elements of a block, some ten milliseconds: signals are seen between blocks
    ASK = 1 << 16       # elements between two looks inside a block


cdef inline Py_ssize_t blocks(Py_ssize_t rows, Py_ssize_t cols, int n_threads) noexcept nogil:
    """Into how many blocks to cut the rows; no results depend on it."""
    cdef double n = <double>rows*<double>cols
    cdef Py_ssize_t k = 1, most
    if n >= 2*GRAIN and n_threads > 1:
        k = n_threads if n >= <double>n_threads*GRAIN else <Py_ssize_t>(n/GRAIN)
    if n > BLOCK:               # so that every thread gets as many blocks
        most = <Py_ssize_t>(n/BLOCK) + 1
        k = (most + k - 1)//k*k
    return k if k < rows else (rows if rows > 1 else 1)


cdef inline Py_ssize_t cut(Py_ssize_t rows, Py_ssize_t k, Py_ssize_t blocks) noexcept nogil:
    """First row of block k of `blocks`, which are fewer than 2^31."""
    return rows//blocks*k + rows % blocks*k//blocks


cdef inline int team(Py_ssize_t blocks, int n_threads) noexcept nogil:
    """How many threads can work on this many blocks, and so need scratch."""
    return <int>blocks if blocks < n_threads else n_threads


cdef inline bint stopped(Py_ssize_t* done, Py_ssize_t n) noexcept nogil:
    """Whether to stop in the middle of a block.  Call it after every n elements; `done` must be 0 at first."""
    done[0] += n
    if done[0] < ASK:
        return False
    done[0] = 0
    return interrupted()


cdef inline int pending(bint interrupted) except -1:
    """Passes on the exception that interrupted() has reported outside a block."""
    return -1 if interrupted else 0
