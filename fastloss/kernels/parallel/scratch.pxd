"""Scratch of one call: a thread's first block allocates it, and all its blocks use it."""
from libc.stdlib cimport free, malloc
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from fastloss.kernels.parallel.parallel cimport fl_set


cdef struct Scratches:
    char** memory
    size_t size             # bytes of each
    int team
    int failed              # atomic


cdef inline int no_memory(size_t size) except -1:
    raise MemoryError(f"cannot allocate {size} bytes of scratch")


cdef inline int new_scratch(Scratches* s, int team, size_t size) except -1:
    s.size = size
    s.team = team
    s.failed = 0
    s.memory = <char**>malloc(team*sizeof(char*))
    if s.memory == NULL:
        no_memory(team*sizeof(char*))
    memset(s.memory, 0, team*sizeof(char*))
    return 0


cdef inline char* scratch_of(Scratches* s, int thread) noexcept nogil:
    """This thread's scratch, from the start of a cache line; NULL, with `failed` set, if it cannot be allocated."""
    if s.memory[thread] == NULL:
        s.memory[thread] = <char*>malloc(s.size + 64)
        if s.memory[thread] == NULL:
            fl_set(&s.failed)
            return NULL
    return <char*>((<uintptr_t>s.memory[thread] + 63)//64*64)


cdef inline int free_scratch(Scratches* s) except -1:
    cdef int k
    for k in range(s.team):
        free(s.memory[k])
    free(s.memory)
    if s.failed:
        no_memory(s.size)
    return 0
