"""Laws: a probability for each id in [0, n).

Kernels take a law as a tuple, `Law` of samplers/draws.py: its kind, n, its table, and the weights and their total where
it has any.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport log1p
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastloss.kernels.math.sampler_math cimport fl_from_id, fl_two_atanh
from fastloss.kernels.math.vmath cimport FL_PREFETCH_FAR
from fastloss.kernels.sampling.tree cimport Tree, count_of, counts_of, init_tree, n_added, prefetch_count

cdef enum:
    UNIFORM, LOG_UNIFORM, LEARNED, FIXED, ALIAS     # kinds of law
    CHUNK = 1 << 16                                 # ids between two looks at pending signals
    BUDGET = 1 << 20                                # draws, or short steps, between two looks at pending signals
    CACHED = 1 << 14                                # entries of a table that need no prefetch

cdef struct Law:
    int kind
    int64_t n
    uint64_t size               # draws are uniform integers below it, then mapped to an id
    uint64_t reciprocal         # floor((2^b - 1)/size) for b-bit words
    uint64_t limit              # words below it are drawn again
    double log_range            # log(n + 1), and one over it
    double per_log
    const int64_t* table
    const uint32_t* low         # of an alias table: the lower halves of its thresholds
    const double* weights       # of an alias table
    double total
    Tree tree                   # of a learned unigram


# --- the law ----------------------------------------------------------------------------------------------------------

cdef inline void uniform_below(Law* w, uint64_t size, uint64_t top) noexcept nogil:
    """Exact uniform integers below size from words in [0, top], as TensorFlow draws them."""
    w.size = size
    w.reciprocal = top//size
    w.limit = 0 if size & (size - 1) == 0 else top % size + 1


cdef inline int check_signals() except -1 with gil:
    PyErr_CheckSignals()
    return 0


cdef inline void* view_of(object array, int64_t* size, int64_t* itemsize, bint write) except? NULL:
    """Where an array, which its owner keeps, begins; a tenth of the time of a memoryview."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE if write else PyBUF_SIMPLE)
    size[0], itemsize[0] = view.len//view.itemsize, view.itemsize
    PyBuffer_Release(&view)
    return view.buf


cdef inline void* data_of(object array, int64_t* size, bint write) except? NULL:
    """The same, of numbers whose size is known; NULL for None."""
    cdef int64_t itemsize
    size[0] = 0
    return view_of(array, size, &itemsize, write) if array is not None else NULL


cdef inline int take_law(Law* w, object law) except -1:
    cdef int64_t size, itemsize = 0
    if not isinstance(law, tuple):
        raise TypeError("a law must be a tuple")
    kind, n, table, weights, total = <tuple>law     # a cast, for a NamedTuple is no exact tuple
    w.kind, w.n, w.total, w.low = kind, n, total, NULL
    w.table = <const int64_t*>view_of(table, &size, &itemsize, False) if table is not None else NULL
    w.weights = <const double*>data_of(weights, &size, False)
    if w.kind == UNIFORM:
        uniform_below(w, w.n, <uint64_t>-1)
        w.total = <double>w.n
    elif w.kind == LOG_UNIFORM:
        w.log_range = log1p(<double>w.n)
        w.per_log = 1.0/w.log_range
    elif w.kind == LEARNED:
        init_tree(&w.tree, <void*>w.table, itemsize == 8, w.n)
        size = w.n + n_added(&w.tree)               # the sum of all counts
        w.total = <double>size
        uniform_below(w, size, <uint32_t>-1 if size <= <uint32_t>-1 else <uint64_t>-1)
    elif w.kind == FIXED:
        uniform_below(w, w.n, <uint32_t>-1)
    else:
        w.size = w.n
        w.low = <const uint32_t*>(w.table + w.n)
    return 0


# --- probabilities ----------------------------------------------------------------------------------------------------

cdef inline bint has_weights(const Law* w) noexcept nogil:
    """Whether probabilities are weights that lie in memory, over their total."""
    return w.kind == LEARNED or w.kind == FIXED or w.kind == ALIAS


cdef inline const float* pair_of(const Law* w, int64_t v) noexcept nogil:
    """The weights of the two ids of a fixed unigram's bucket: beside its entry, for one access to bring both; or, where
    all lies in a cache anyway, after the last entry."""
    return <const float*>(w.table + (2*v + 1 if w.n > CACHED else w.n + v))


cdef inline double weight_of(const Law* w, int64_t v) noexcept nogil:
    if w.kind == LEARNED:
        return <double>count_of(&w.tree, v)
    if w.kind == FIXED:
        return pair_of(w, v)[0]
    return w.weights[v]


cdef inline double probability_of(const Law* w, int64_t v) noexcept nogil:
    if w.kind == UNIFORM:
        return 1.0/w.total
    if w.kind == LOG_UNIFORM:
        return fl_two_atanh(1.0/(2.0*fl_from_id(v) + 3.0))*w.per_log
    return weight_of(w, v)/w.total


cdef inline void read_weights(const Law* w, const int64_t* ids, double* out, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(m if w.n > CACHED else 0):
        prefetch_weight(w, ids[i])
    if w.kind == LEARNED:
        counts_of(&w.tree, ids, out, m)
    elif w.kind == FIXED:
        for i in range(m):
            out[i] = pair_of(w, ids[i])[0]
    else:
        for i in range(m):
            out[i] = w.weights[ids[i]]


cdef inline void prefetch_weight(const Law* w, int64_t v) noexcept nogil:
    """What `weight_of` reads."""
    if w.kind == LEARNED:
        prefetch_count(&w.tree, v)
    elif w.kind == FIXED:
        FL_PREFETCH_FAR(w.table + 2*v)
    else:
        FL_PREFETCH_FAR(w.weights + v)

