"""Scratch of one call: each thread's is allocated by the first entry it works on, and used by all."""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uintptr_t
from libc.string cimport memset


cdef inline char** new_scratch(int team) except NULL:
    cdef char** memory = <char**>PyMem_RawMalloc(team*sizeof(char*))
    if memory == NULL:
        raise MemoryError()
    memset(memory, 0, team*sizeof(char*))
    return memory


cdef inline char* scratch_of(char** memory, int thread, size_t size, int* failed) noexcept nogil:
    """This thread's, on a cache line; NULL, and failed is set, where there is none to be had."""
    if memory[thread] == NULL:
        memory[thread] = <char*>PyMem_RawMalloc(size + 64)
        if memory[thread] == NULL:
            failed[0] = 1
            return NULL
    return <char*>((<uintptr_t>memory[thread] + 63)//64*64)


cdef inline int free_scratch(char** memory, int team, int failed) except -1:
    cdef int k
    for k in range(team):
        PyMem_RawFree(memory[k])
    PyMem_RawFree(memory)
    if failed:
        raise MemoryError()
    return 0
