cdef enum:
    GRAIN = 32768   # elements below which a second thread costs more than it saves


cdef inline int blocks(Py_ssize_t rows, Py_ssize_t cols, int n_threads) noexcept nogil:
    """Into how many blocks to cut the rows; 1 means do not enter OpenMP.

    Only the number of blocks varies: the team is always `n_threads`, for libgomp starts its threads anew when the
    team's size changes.
    """
    cdef Py_ssize_t k = n_threads
    if rows < k:
        k = rows
    if k > 1 and <double>rows*<double>cols < <double>k*GRAIN:
        k = <Py_ssize_t>(<double>rows*<double>cols/GRAIN)
    return <int>k if k > 1 else 1


cdef inline Py_ssize_t cut(Py_ssize_t rows, int k, int blocks) noexcept nogil:
    """First row of block k of `blocks`; never overflows."""
    return rows//blocks*k + rows % blocks*k//blocks
