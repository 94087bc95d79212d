"""The exponential race: what gives distinct ids where skipping repeats takes too long."""
from libc.math cimport log
from libc.stdint cimport int64_t, uint64_t

from fastloss.kernels.sampling.draws cimport ready_pairs
from fastloss.kernels.sampling.law cimport BUDGET, CHUNK, Law, check_signals, has_weights, probability_of, weight_of
from fastloss.kernels.sampling.philox cimport fl_pair, fl_rng, fl_rng_open

cdef struct Racers:             # the ids of the smallest keys so far: a heap, the largest key first, when all are there
    double* key
    int64_t* ids
    Py_ssize_t held
    Py_ssize_t wanted


# --- bitmaps of ids ---------------------------------------------------------------------------------------------------

cdef inline bint has_bit(const uint64_t* bits, int64_t v) noexcept nogil:
    return bits[v >> 6] >> (v & 63) & 1


cdef inline void mark_bit(uint64_t* bits, int64_t v) noexcept nogil:
    bits[v >> 6] |= <uint64_t>1 << (v & 63)


cdef inline int mark_bits(uint64_t* bits, const int64_t* ids, Py_ssize_t first, Py_ssize_t last) except -1 nogil:
    cdef Py_ssize_t i
    for i in range(first, last):
        mark_bit(bits, ids[i])
        if i % BUDGET == BUDGET - 1:
            check_signals()
    return 0


# --- the race ---------------------------------------------------------------------------------------------------------

cdef inline void sift_down(double* key, int64_t* ids, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
    """Restores a heap, largest key first, below position i."""
    cdef Py_ssize_t child
    cdef double k = key[i]
    cdef int64_t v = ids[i]
    while True:
        child = 2*i + 1
        if child >= size:
            break
        if child + 1 < size and key[child + 1] > key[child]:
            child += 1
        if key[child] <= k:
            break
        key[i] = key[child]
        ids[i] = ids[child]
        i = child
    key[i] = k
    ids[i] = v


cdef inline int keep_smallest(const Law* w, fl_rng* g, const uint64_t* seen, int64_t first, int64_t last,
                              Racers* r) except -1 nogil:
    """Gives each unseen id of weight in [first, last) an exponential key; keeps the smallest ones."""
    cdef int64_t v
    cdef Py_ssize_t i
    cdef double p, k
    for v in range(first, last):
        if has_bit(seen, v):
            continue
        p = weight_of(w, v) if has_weights(w) else probability_of(w, v)     # a quotient may be too small for a double
        if not p > 0:
            continue
        ready_pairs(g, 128)
        k = -log(fl_rng_open(fl_pair(g.word + g.next)))/p
        g.next += 2
        if r.held < r.wanted:
            r.key[r.held] = k
            r.ids[r.held] = v
            r.held += 1
            if r.held == r.wanted:
                for i in range(r.wanted//2 - 1, -1, -1):
                    sift_down(r.key, r.ids, i, r.wanted)
                    if i % CHUNK == 0:
                        check_signals()
        elif k < r.key[0]:
            r.key[0] = k
            r.ids[0] = v
            sift_down(r.key, r.ids, 0, r.wanted)
    return 0


cdef inline int sort_keys(double* key, int64_t* ids, Py_ssize_t size) except -1 nogil:
    """Smallest key first, from a heap."""
    cdef Py_ssize_t last
    cdef double k
    cdef int64_t v
    for last in range(size - 1, 0, -1):
        k, v = key[last], ids[last]
        key[last], ids[last] = key[0], ids[0]
        key[0], ids[0] = k, v
        sift_down(key, ids, 0, last)
        if last % CHUNK == 0:
            check_signals()
    return 0


cdef inline double unseen_mass(const Law* w, const uint64_t* seen, int64_t first, int64_t last) noexcept nogil:
    """The probability of the unseen ids in [first, last)."""
    cdef double s = 0
    cdef int64_t v
    for v in range(first, last):
        if not has_bit(seen, v):
            s += probability_of(w, v)
    return s
