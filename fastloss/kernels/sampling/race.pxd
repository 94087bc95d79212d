"""The exponential race: what gives distinct ids where skipping repeats takes too long."""
from libc.math cimport log
from libc.stdint cimport int64_t, uint64_t

from fastloss.kernels.sampling.draws cimport CHUNK, Law, _has, _pairs, _probability, _signals, _weighs, _weight
from fastloss.kernels.sampling.philox cimport fl_open, fl_pair, fl_rng


cdef inline void _sink(double* key, int64_t* ids, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
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


cdef inline Py_ssize_t _race(const Law* w, fl_rng* g, const uint64_t* seen, int64_t first, int64_t last,
                             double* key, int64_t* ids, Py_ssize_t held, Py_ssize_t wanted) except -1 nogil:
    """Gives each unseen id of weight an exponential key; keeps the smallest ones."""
    cdef int64_t v
    cdef Py_ssize_t i
    cdef double p, k
    for v in range(first, last):
        if _has(seen, v):
            continue
        p = _weight(w, v) if _weighs(w) else _probability(w, v)        # a quotient may be too small for a double
        if not p > 0:
            continue
        _pairs(g, 128)
        k = -log(fl_open(fl_pair(g.word + g.next)))/p
        g.next += 2
        if held < wanted:
            key[held] = k
            ids[held] = v
            held += 1
            if held == wanted:
                for i in range(wanted//2 - 1, -1, -1):
                    _sink(key, ids, i, wanted)
                    if i % CHUNK == 0:
                        _signals()
        elif k < key[0]:
            key[0] = k
            ids[0] = v
            _sink(key, ids, 0, wanted)
    return held


cdef inline int _sort(double* key, int64_t* ids, Py_ssize_t size) except -1 nogil:
    """Smallest key first, from a heap."""
    cdef Py_ssize_t last
    cdef double k
    cdef int64_t v
    for last in range(size - 1, 0, -1):
        k, v = key[last], ids[last]
        key[last], ids[last] = key[0], ids[0]
        key[0], ids[0] = k, v
        _sink(key, ids, 0, last)
        if last % CHUNK == 0:
            _signals()
    return 0


cdef inline double _unseen(const Law* w, const uint64_t* seen, int64_t first, int64_t last) noexcept nogil:
    """The probability of the unseen ids in [first, last)."""
    cdef double s = 0
    cdef int64_t v
    for v in range(first, last):
        if not _has(seen, v):
            s += _probability(w, v)
    return s
