"""Negatives for each row of a batch, and accidental hits."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastloss._parallel cimport for_blocks, interrupted
from fastloss.kernels.arrays.id_sets cimport IdSet, init_ids, is_new, set_words, slot_of
from fastloss.kernels.parallel.parallel cimport GRAIN
from fastloss.kernels.sampling.draws cimport DrawsCall, draw
from fastloss.kernels.sampling.law cimport BUDGET, Law, check_signals, probability_of, take_law
from fastloss.kernels.sampling.philox cimport fl_rng, fl_rng_start

# --- negatives of each row --------------------------------------------------------------------------------------------

cdef struct NegativesCall:
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


cdef void fill_row(const NegativesCall* at, Py_ssize_t row, uint64_t* word) noexcept nogil:
    """Fills one row with ids that are not among its positives, as far as `limit` draws do."""
    cdef fl_rng g
    cdef IdSet s
    cdef DrawsCall call
    cdef const int64_t* positives = at.ids + at.starts[row]
    cdef Py_ssize_t i, known = at.starts[row + 1] - at.starts[row], words = set_words(at.w.n, known + at.size)
    memset(word, 0, <size_t>words*8)
    init_ids(&s, word, words, at.w.n)
    for i in range(known):
        is_new(&s, <uint64_t>positives[i], True)
        if i % BUDGET == BUDGET - 1 and interrupted():
            return
    fl_rng_start(&g, at.key, <uint64_t>row, 0)
    call.out, call.size, call.filled, call.tries = at.out + row*at.size, at.size, 0, 0
    call.limit, call.unique, call.weight, call.rare = at.limit, at.unique, NULL, False
    while True:
        draw(&at.w, &g, &s, &call, BUDGET)
        if call.filled == call.size or call.tries >= call.limit or interrupted():
            break
    at.filled[row] = call.filled


cdef void run_block(void* call, Py_ssize_t block, int thread) noexcept nogil:
    cdef const NegativesCall* at = <const NegativesCall*>call
    cdef Py_ssize_t i, first = block*at.step, last = first + at.step
    for i in range(first, last if last < at.rows else at.rows):
        fill_row(at, i, at.seen + thread*at.words)


def negatives(law, uint64_t key, const int64_t[::1] starts, const int64_t[::1] ids, int64_t[:, ::1] out, *,
              int64_t[::1] filled, uint64_t[:, ::1] seen, bint unique, int64_t limit):
    """Fill each row of out with ids that are not among its positives, ids[starts[i]:starts[i + 1]].

    Row i reads the stream i of the key, so the result does not depend on threads: one for each row of `seen`, scratch
    for the largest set.  Sets filled[i] to the number of ids found, less than wanted where `limit` draws did not do.
    """
    cdef NegativesCall at
    cdef Py_ssize_t rows = out.shape[0], size = out.shape[1], share
    cdef int n_threads = <int>seen.shape[0]
    if rows == 0 or size == 0:
        return
    take_law(&at.w, law)
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
        for_blocks(run_block, &at, 1 + (rows - 1)//at.step, n_threads)


def too_few(law, const int64_t[::1] starts, const int64_t[::1] ids, int64_t drawable, int64_t wanted,
            uint64_t[::1] seen):
    """The first row whose positives leave fewer than `wanted` of the `drawable` ids, and how many; or (-1, 0)."""
    cdef Law w
    cdef IdSet s
    cdef Py_ssize_t i, j, words
    cdef int64_t left
    take_law(&w, law)
    for i in range(starts.shape[0] - 1):
        left = drawable
        if left - (starts[i + 1] - starts[i]) < wanted:
            words = set_words(w.n, starts[i + 1] - starts[i])
            with nogil:
                memset(&seen[0], 0, <size_t>words*8)
                init_ids(&s, &seen[0], words, w.n)
                for j in range(starts[i], starts[i + 1]):
                    left -= is_new(&s, <uint64_t>ids[j], True) and probability_of(&w, ids[j]) > 0
                    if j % BUDGET == BUDGET - 1:
                        check_signals()
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
            h = slot_of(&heads[0], mask, &sampled[0], sampled[k])
            follows[k] = heads[h]
            heads[h] = k + 1
            if k % BUDGET == 0:
                check_signals()
        for i in range(true.shape[0]):
            for j in range(true.shape[1]):
                at = heads[slot_of(&heads[0], mask, &sampled[0], true[i, j])]
                while at:
                    if count < rows.shape[0]:
                        rows[count] = i
                        places[count] = at - 1
                    count += 1
                    at = follows[at - 1]
                    if count % BUDGET == 0:
                        check_signals()
                looked += 1
                if looked % BUDGET == 0:
                    check_signals()
    return count
