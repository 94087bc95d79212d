"""Where kernels get their threads, and learn that a call is to end."""

ctypedef void (*Body)(void* call, Py_ssize_t block, int thread) noexcept nogil

# body(call, block, thread) for every block, in any order, by at most n_threads threads and as many as there are blocks,
# each with a number below that.  -1 with an exception where a signal's handler raised one: then blocks may be missing.
cdef int for_blocks(Body body, void* call, Py_ssize_t n_blocks, int n_threads) except -1 nogil

# Whether to give up what is half done, for a signal's handler has raised an exception.  Looks at the clock, so ask
# every ten microseconds at most; in any thread, in a block or outside.  Outside, the exception is the caller's to pass
# on; in a block for_blocks does.
cdef bint interrupted() noexcept nogil
