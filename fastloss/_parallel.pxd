"""Where kernels get their threads, and learn that a call must end."""

ctypedef void (*Body)(void* call, Py_ssize_t block, int thread) noexcept nogil

# Calls body(call, block, thread) for every block, in any order, on at most n_threads threads and no more than there are
# blocks; `thread` is below both.  -1 with an exception if a signal's handler raised one: then blocks may be missing.
cdef int for_blocks(Body body, void* call, Py_ssize_t n_blocks, int n_threads) except -1 nogil

# Whether to stop at once, because a signal's handler has raised an exception.  It looks at the clock, so call it every
# ten microseconds at most, from any thread, in a block or outside.  Outside, the caller must pass on the exception;
# in a block for_blocks does.
cdef bint interrupted() noexcept nogil
