"""Negatives for each row of a batch, and accidental hits."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastloss._parallel cimport for_blocks, interrupted

from fastloss.kernels.sampling.draws cimport BUDGET, CHUNK, Ids, Job, Law, _ids, _is_new, _law, _probability, _run, _set_size, _signals
from fastloss.kernels.parallel.parallel cimport GRAIN
from fastloss.kernels.sampling.philox cimport fl_rng, fl_rng_start


# --- negatives of each row --------------------------------------------------------------------------------------------

cdef void _row(const Law* w, uint64_t key, uint64_t stream, const int64_t* positives, Py_ssize_t known, int64_t* out,
               Py_ssize_t size, int64_t* filled, uint64_t* word, bint unique, int64_t limit) noexcept nogil:
    """Fills one row with ids that are not among its positives, as far as `limit` draws do."""
    cdef fl_rng g
    cdef Ids s
    cdef Job job
    cdef Py_ssize_t i, words = _set_size(w.n, known + size)
    memset(word, 0, <size_t>words*8)
    _ids(&s, word, words, w.n)
    for i in range(known):
        _is_new(&s, <uint64_t>positives[i], True)
        if i % BUDGET == BUDGET - 1 and interrupted():
            return
    fl_rng_start(&g, key, stream, 0)
    job.out, job.size, job.filled, job.tries, job.limit, job.unique, job.weight = out, size, 0, 0, limit, unique, NULL
    job.rare = False
    while True:
        _run(w, &g, &s, &job, BUDGET)
        if job.filled == job.size or job.tries >= job.limit or interrupted():
            break
    filled[0] = job.filled


cdef struct Run:
    Law w
    uint64_t key
    const int64_t* starts
    const int64_t* ids
    int64_t* out
    Py_ssize_t rows
    Py_ssize_t size
    Py_ssize_t step             # rows of a block
    int64_t* filled
    uint64_t* seen              # so many words for each thread
    Py_ssize_t words
    bint unique
    int64_t limit


cdef void _rows(void* call, Py_ssize_t block, int thread) noexcept nogil:
    cdef const Run* at = <const Run*>call
    cdef Py_ssize_t i, first = block*at.step, last = first + at.step
    for i in range(first, last if last < at.rows else at.rows):
        _row(&at.w, at.key, <uint64_t>i, at.ids + at.starts[i], at.starts[i + 1] - at.starts[i], at.out + i*at.size,
             at.size, at.filled + i, at.seen + thread*at.words, at.unique, at.limit)


def negatives(tuple law, uint64_t key, const int64_t[::1] starts, const int64_t[::1] ids, int64_t[:, ::1] out,
              int64_t[::1] filled, uint64_t[:, ::1] seen, bint unique, int64_t limit):
    """Fill each row of out with ids that are not among its positives, ids[starts[i]:starts[i + 1]].

    Row i reads the stream i of the key, so the result does not depend on threads: one for each row of `seen`, scratch
    for the largest set.  Sets filled[i] to the number of ids found, less than wanted where `limit` draws did not do.
    """
    cdef Run at
    cdef Py_ssize_t rows = out.shape[0], size = out.shape[1], share
    cdef int n_threads = <int>seen.shape[0]
    if rows == 0 or size == 0:
        return
    _law(&at.w, law)
    at.key = key
    at.starts = &starts[0]
    at.ids = &ids[0] if ids.shape[0] else NULL
    at.out = &out[0, 0]
    at.rows, at.size = rows, size
    at.filled = &filled[0]
    at.seen = &seen[0, 0]
    at.words = seen.shape[1]
    at.unique = unique
    at.limit = limit
    at.step = 1 + BUDGET//(16*size)                 # rows between two looks at pending signals
    share = 1 + (rows - 1)//n_threads
    if share < at.step:                             # of each thread, if they are worth one
        at.step = share if share > GRAIN//size else 1 + GRAIN//size
    with nogil:
        for_blocks(_rows, &at, 1 + (rows - 1)//at.step, n_threads)


def too_few(tuple law, const int64_t[::1] starts, const int64_t[::1] ids, int64_t drawable, int64_t wanted,
            uint64_t[::1] seen):
    """The first row whose positives leave fewer than `wanted` of the `drawable` ids, and how many; or (-1, 0)."""
    cdef Law w
    cdef Ids s
    cdef Py_ssize_t i, j, words
    cdef int64_t left
    _law(&w, law)
    for i in range(starts.shape[0] - 1):
        left = drawable
        if left - (starts[i + 1] - starts[i]) < wanted:
            words = _set_size(w.n, starts[i + 1] - starts[i])
            with nogil:
                memset(&seen[0], 0, <size_t>words*8)
                _ids(&s, &seen[0], words, w.n)
                for j in range(starts[i], starts[i + 1]):
                    left -= _is_new(&s, <uint64_t>ids[j], True) and _probability(&w, ids[j]) > 0
                    if j % BUDGET == BUDGET - 1:
                        _signals()
            if left < wanted:
                return i, left
            PyErr_CheckSignals()
        elif i % BUDGET == BUDGET - 1:
            PyErr_CheckSignals()
    return -1, 0


# --- accidental hits --------------------------------------------------------------------------------------------------

def hits(const int64_t[:, ::1] true, const int64_t[::1] sampled, int64_t[::1] heads, int64_t[::1] follows,
         int64_t[::1] rows, int64_t[::1] places):
    """Pairs (row of true, place in sampled) of equal ids, rows first, then columns, then places; returns their number.

    `heads`, zeroed, is a table of first places (its size a power of two), `follows` the chains through them.  Writes
    nothing where `rows` is too small for all pairs.
    """
    cdef Py_ssize_t i, j, k, size = sampled.shape[0], count = 0, looked = 0
    cdef uint64_t h, mask = heads.shape[0] - 1
    cdef int64_t at
    with nogil:
        for k in range(size - 1, -1, -1):
            h = _slot(&heads[0], mask, &sampled[0], sampled[k])
            follows[k] = heads[h]
            heads[h] = k + 1
            if k % BUDGET == 0:
                _signals()
        for i in range(true.shape[0]):
            for j in range(true.shape[1]):
                at = heads[_slot(&heads[0], mask, &sampled[0], true[i, j])]
                while at:
                    if count < rows.shape[0]:
                        rows[count] = i
                        places[count] = at - 1
                    count += 1
                    at = follows[at - 1]
                    if count % BUDGET == 0:
                        _signals()
                looked += 1
                if looked % BUDGET == 0:
                    _signals()
    return count


cdef inline uint64_t _slot(const int64_t* heads, uint64_t mask, const int64_t* sampled, int64_t v) noexcept nogil:
    """Where the chain of v begins, or would."""
    cdef uint64_t h = (<uint64_t>v*<uint64_t>0x9E3779B97F4A7C15) >> 20 & mask
    while heads[h] and sampled[heads[h] - 1] != v:
        h = (h + 1) & mask
    return h
