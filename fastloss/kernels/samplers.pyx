"""Candidate samplers: draws with and without replacement, expected counts, accidental hits.

A law is a probability for each id in [0, n).  Every kernel takes one as five arguments: its kind, n, its table, and the
weights and their total where it has any.  Random words come from Philox by (key, stream, block), in TensorFlow's order.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.math cimport exp, floor, log, log1p
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from laws cimport fl_from_id, fl_log_uniform, fl_one_minus_exp, fl_pick, fl_two_atanh
from parallel cimport blocks, cut
from rng cimport (
    fl_mod32, fl_mod64, fl_open, fl_pair, fl_philox, fl_prefetch, fl_rng, fl_rng_fill, fl_rng_start, fl_rng_word,
    fl_unit, fl_wide,
)

cdef enum:
    UNIFORM, LOG_UNIFORM, LEARNED, FIXED, ALIAS     # kinds of law
    PROBABILITY, COUNT, TRIES, INCLUSION            # what `measure` gives
    TILE = 256                                      # draws whose memory accesses overlap
    FEW = 32                                        # below so many missing ids, look at each draw
    FANOUT = 16                                     # children of a node of the tree of counts
    LEVELS = 16
    CHUNK = 1 << 16                                 # ids between two looks at pending signals
    FLOAT_BITS = 0x7FFFFF                           # of a word, for TensorFlow's float in [0, 1)
    CACHED = 1 << 14                                # entries of a table that need no prefetch
    SMALL = 512                                     # words of a set on the stack
    BUDGET = 1 << 20                                # draws between two looks at pending signals

LAWS = {"uniform": UNIFORM, "log_uniform": LOG_UNIFORM, "learned_unigram": LEARNED, "fixed_unigram": FIXED,
        "alias": ALIAS}
MEASURES = {"probability": PROBABILITY, "count": COUNT, "tries": TRIES, "inclusion": INCLUSION}


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
    const double* weights
    double total
    int levels
    int64_t start[LEVELS]       # of each level of the tree of counts


cdef struct Ids:                # a set of ids: a bitmap, or for wide ranges an open-addressing table of id + 1
    uint64_t* word
    bint bitmap
    int shift
    uint64_t mask


# --- the law -----------------------------------------------------------------------------------------------------------

cdef int64_t _levels(int64_t n, int64_t* start, int* levels) noexcept nogil:
    """Where the levels of a tree of counts over n ids begin, leaves first; returns its size."""
    cdef int64_t size = 0
    levels[0] = 0
    while True:
        start[levels[0]] = size
        levels[0] += 1
        n = n//FANOUT + (n % FANOUT != 0)
        size += n*FANOUT
        if n == 1:
            return size


cdef void _uniform_below(Law* w, uint64_t size, uint64_t top) noexcept nogil:
    """Exact uniform integers below size from words in [0, top], as TensorFlow draws them."""
    w.size = size
    w.reciprocal = top//size
    w.limit = 0 if size & (size - 1) == 0 else top % size + 1


cdef int _signals() except -1 with gil:
    PyErr_CheckSignals()
    return 0


cdef void* _data(object array, int64_t* size, bint write) except? NULL:
    """Where an array of 8-byte numbers, which its owner keeps, begins; a tenth of the time of a memoryview."""
    cdef Py_buffer view
    size[0] = 0
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE if write else PyBUF_SIMPLE)
    size[0] = view.len//8
    PyBuffer_Release(&view)
    return view.buf


cdef int _law(Law* w, int kind, int64_t n, object table, object weights, double total) except -1:
    cdef int64_t size
    w.kind, w.n, w.total, w.low = kind, n, total, NULL
    w.table = <const int64_t*>_data(table, &size, False)
    w.weights = <const double*>_data(weights, &size, False)
    if kind == UNIFORM:
        _uniform_below(w, n, <uint64_t>-1)
        w.total = n
    elif kind == LOG_UNIFORM:
        w.log_range = log1p(<double>n)
        w.per_log = 1.0/w.log_range
    elif kind == LEARNED:
        size = _levels(n, w.start, &w.levels)
        w.total = <double>n + w.table[size - 1]
        _uniform_below(w, n + w.table[size - 1], <uint32_t>-1 if n + w.table[size - 1] <= <uint32_t>-1 else <uint64_t>-1)
    elif kind == FIXED:
        _uniform_below(w, n, <uint32_t>-1)
    else:
        w.size = n
        w.low = <const uint32_t*>(w.table + n)
    return 0


# --- draws -------------------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t _pairs(fl_rng* g, Py_ssize_t want) noexcept nogil:
    """How many pairs of words, at most `want` and at least one, lie ready."""
    cdef Py_ssize_t ready
    if g.end - g.next < 2:
        fl_rng_fill(g, 2*want)
    ready = (g.end - g.next)//2
    return ready if ready < want else want


cdef void _fill_uniform(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i = 0, j, ready
    cdef uint64_t x, n = w.size, reciprocal = w.reciprocal, limit = w.limit
    cdef const uint32_t* p
    while i < m:
        ready = _pairs(g, m - i)
        p = g.word + g.next
        for j in range(ready):
            x = fl_pair(p + 2*j)
            out[i] = <int64_t>fl_mod64(x, n, reciprocal)
            i += x >= limit
        g.next += <int>(2*ready)


cdef void _fill_log_uniform(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    """floor(exp(u log(n + 1))) - 1: where the vectorised exp could fall on the wrong side of an integer, ask libm."""
    cdef Py_ssize_t i = 0, j, ready
    cdef int64_t k, n = w.n, near
    cdef uint64_t x
    cdef double log_range = w.log_range
    cdef double y[TILE]
    cdef const uint32_t* p
    while i < m:
        ready = _pairs(g, m - i)
        if ready > TILE:
            ready = TILE
        p = g.word + g.next
        for j in range(ready):
            x = fl_pair(p + 2*j)
            y[j] = fl_unit(x << 32 | x >> 32)*log_range
        near = n >> 50
        if not near:
            for j in range(ready):
                out[i + j] = fl_log_uniform(y[j], &near)
        if near:
            for j in range(ready):
                out[i + j] = <int64_t>exp(y[j]) - 1
        for j in range(ready):
            k = out[i + j]
            out[i + j] = k - n if k >= n else k
        g.next += <int>(2*ready)
        i += ready


cdef inline uint64_t _integer32(const Law* w, fl_rng* g) noexcept nogil:
    cdef uint32_t x = fl_rng_word(g)
    while x < w.limit:
        x = fl_rng_word(g)
    return fl_mod32(x, <uint32_t>w.size, <uint32_t>w.reciprocal)


cdef inline uint64_t _integer64(const Law* w, fl_rng* g) noexcept nogil:
    cdef uint64_t x
    while True:
        _pairs(g, 1)
        x = fl_pair(g.word + g.next)
        g.next += 2
        if x >= w.limit:
            return fl_mod64(x, w.size, w.reciprocal)


cdef void _fill_learned(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    """Descend the tree of counts, TILE draws abreast so that their cache misses overlap.

    An entry holds what was added to the counts of its subtree and of its elder siblings'; the ones that every id begins
    with are not stored.  Ids beyond the range would have counts of one too, but lie after all that can be drawn.
    """
    cdef Py_ssize_t i = 0, j, ready
    cdef int64_t left[TILE]
    cdef int64_t node[TILE]
    cdef int64_t each, below, at, r
    cdef const int64_t* added
    cdef int level
    while i < m:
        ready = m - i if m - i < TILE else TILE
        if w.size <= <uint32_t>-1:
            for j in range(ready):
                left[j] = <int64_t>_integer32(w, g)
        else:
            for j in range(ready):
                left[j] = <int64_t>_integer64(w, g)
        for j in range(ready):
            node[j] = 0
        each = 1
        for level in range(1, w.levels):
            each *= FANOUT
        for level in range(w.levels - 1, -1, -1):
            for j in range(ready):
                added = w.table + w.start[level] + node[j]*FANOUT
                r = left[j]
                below = 8*(added[7] + 8*each <= r)                              # bisection without branches
                below += 4*(added[below + 3] + (below + 4)*each <= r)
                below += 2*(added[below + 1] + (below + 2)*each <= r)
                below += added[below] + (below + 1)*each <= r
                left[j] = r - (added[below - 1] + below*each if below else 0)
                at = node[j]*FANOUT + below
                node[j] = at
                if level:
                    fl_prefetch(w.table + w.start[level - 1] + at*FANOUT)
                    fl_prefetch(w.table + w.start[level - 1] + at*FANOUT + FANOUT//2)
            each //= FANOUT
        for j in range(ready):
            out[i + j] = node[j]
        i += ready


cdef void _fill_fixed(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    """TensorFlow's alias draw: first the float, then the bucket."""
    cdef Py_ssize_t i = 0, j, ready
    cdef uint32_t share[TILE]
    cdef uint32_t x, n = <uint32_t>w.size, reciprocal = <uint32_t>w.reciprocal, limit = <uint32_t>w.limit
    cdef int64_t redrawn
    cdef const uint32_t* p
    while i < m:
        ready = _pairs(g, m - i)
        if ready > TILE:
            ready = TILE
        p = g.word + g.next
        redrawn = 0
        for j in range(ready):
            x = p[2*j + 1]
            redrawn |= x < limit
            share[j] = p[2*j] & FLOAT_BITS
            out[i + j] = fl_mod32(x, n, reciprocal)
        if redrawn:                                 # rare: a draw takes more than two words
            for j in range(ready):
                share[j] = fl_rng_word(g) & FLOAT_BITS
                out[i + j] = <int64_t>_integer32(w, g)
        else:
            g.next += <int>(2*ready)
        if n > CACHED:
            for j in range(ready):
                fl_prefetch(w.table + out[i + j])
        for j in range(ready):
            out[i + j] = fl_pick(w.table, <uint64_t>out[i + j], share[j])
        i += ready


cdef void _fill_alias(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    """One 64-bit number gives the bucket (upper half of its product with n) and the share of it (lower half)."""
    cdef Py_ssize_t i = 0, j, ready
    cdef uint64_t bucket, share
    cdef const uint32_t* p
    while i < m:
        ready = _pairs(g, m - i)
        if ready > TILE:
            ready = TILE
        p = g.word + g.next
        if w.size > CACHED:
            for j in range(ready):
                fl_prefetch(w.table + fl_wide(fl_pair(p + 2*j), w.size, &share))
        for j in range(ready):
            bucket = fl_wide(fl_pair(p + 2*j), w.size, &share)
            out[i + j] = fl_pick(w.table, bucket, <uint32_t>(share >> 32))
            if share >> 32 == <uint32_t>w.table[bucket] and <uint32_t>share < w.low[bucket]:
                out[i + j] = <int64_t>bucket        # once in 2^32 draws the lower halves decide
        g.next += <int>(2*ready)
        i += ready


cdef void _fill(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    """The next m draws."""
    if w.kind == UNIFORM:
        _fill_uniform(w, g, out, m)
    elif w.kind == LOG_UNIFORM:
        _fill_log_uniform(w, g, out, m)
    elif w.kind == LEARNED:
        _fill_learned(w, g, out, m)
    elif w.kind == FIXED:
        _fill_fixed(w, g, out, m)
    else:
        _fill_alias(w, g, out, m)


# --- distinct draws ----------------------------------------------------------------------------------------------------

cdef void _ids(Ids* s, uint64_t* word, Py_ssize_t size, int64_t n) noexcept nogil:
    """A set in zeroed words: a bitmap where they suffice for n bits, else a table (their number is a power of two)."""
    s.word = word
    s.bitmap = n <= 64*size
    s.mask = size - 1
    s.shift = 64
    while not s.bitmap and size > 1:
        size >>= 1
        s.shift -= 1


cdef inline bint _is_new(const Ids* s, uint64_t v, bint insert) noexcept nogil:
    """Whether v is not in the set; puts it there if told to."""
    cdef uint64_t h, u
    if s.bitmap:
        u = s.word[v >> 6]
        h = <uint64_t>1 << (v & 63)
        if insert:
            s.word[v >> 6] = u | h
        return u & h == 0
    h = (v*<uint64_t>0x9E3779B97F4A7C15) >> s.shift
    while True:
        u = s.word[h]
        if u == v + 1:
            return False
        if u == 0:
            if insert:
                s.word[h] = v + 1
            return True
        h = (h + 1) & s.mask


cdef Py_ssize_t _keep_new(const Ids* s, int64_t* ids, Py_ssize_t m, bint insert, bint rare) noexcept nogil:
    """Moves the ids that are new to the front, in order; returns how many there are.  `rare`: hardly any are new."""
    cdef Py_ssize_t i, kept = 0
    cdef uint64_t u, h, v
    cdef uint64_t put = <uint64_t>0 - <uint64_t>insert
    cdef uint64_t* word = s.word
    if s.bitmap and not rare:
        for i in range(m):                           # no branch to mispredict
            v = <uint64_t>ids[i]
            u = word[v >> 6]
            h = <uint64_t>1 << (v & 63)
            word[v >> 6] = u | (h & put)
            ids[kept] = <int64_t>v
            kept += (u & h) == 0
    else:
        for i in range(m):
            v = <uint64_t>ids[i]
            if _is_new(s, v, insert):
                ids[kept] = <int64_t>v
                kept += 1
    return kept


cdef struct Job:
    int64_t* out
    int64_t size            # ids wanted
    int64_t filled          # ids there
    int64_t tries           # draws made
    int64_t limit           # draws allowed
    bint unique


cdef void _run(const Law* w, fl_rng* g, const Ids* s, Job* job, int64_t budget) noexcept nogil:
    """Draws until the job is done, its limit is reached, or the budget is spent.

    With a set, ids already in it are skipped, and `unique` adds the others to it; without one every draw counts.
    """
    cdef Py_ssize_t m, j, kept = job.size
    cdef int64_t few[FEW]
    cdef int64_t stop = job.limit if job.limit - job.tries < budget else job.tries + budget
    while job.filled < job.size and job.tries < stop:
        m = job.size - job.filled
        if s == NULL or m > FEW:
            m = m if m < 4*TILE else 4*TILE
            _fill(w, g, job.out + job.filled, m)
            job.tries += m
            kept = m if s == NULL else _keep_new(s, job.out + job.filled, m, job.unique, 4*kept < m)
            job.filled += kept
        else:
            # draws made in excess are forgotten: the stream of the next call begins elsewhere
            m = FEW if job.tries else m
            _fill(w, g, few, m)
            for j in range(m):
                job.tries += 1
                if _is_new(s, <uint64_t>few[j], job.unique):
                    job.out[job.filled] = few[j]
                    job.filled += 1
                    if job.filled == job.size:
                        break


def sample(int kind, int64_t n, object table, object weights, double total,
           uint64_t key, uint64_t stream, uint64_t block, object out, bint unique, object seen, int64_t limit,
           object true, object true_count, object count):
    """Fill out with draws, distinct ones if `unique`; `seen` is scratch for them, zeroed, if `set_size` is not 0.

    Where `limit` draws were enough, and counts are wanted, gives the expected counts of the true and sampled ids, too.
    Returns the position of the first true id outside the range, or -1 (if there is one, nothing is done); how many ids
    there are; and how many draws were made.
    """
    cdef Law w
    cdef fl_rng g
    cdef Ids s
    cdef Ids* known = NULL
    cdef Job job
    cdef uint64_t small[SMALL]
    cdef int64_t bad, size, trues, unused
    cdef const int64_t* ids = <const int64_t*>_data(true, &trues, False)
    cdef double* expected = <double*>_data(true_count, &unused, True)
    cdef double* counted = <double*>_data(count, &unused, True)
    cdef uint64_t* set_words = <uint64_t*>_data(seen, &size, True)
    _law(&w, kind, n, table, weights, total)
    bad = _outside(ids, trues, n)
    job.out = <int64_t*>_data(out, &job.size, True)
    if bad >= 0 or job.size == 0:
        return bad, 0, 0
    job.filled, job.tries, job.limit, job.unique = 0, 0, limit, True
    fl_rng_start(&g, key, stream, block)
    if unique:
        if seen is None:
            size = _set_size(n, job.size)
            memset(small, 0, <size_t>size*8)
            set_words = small
        _ids(&s, set_words, size, n)
        known = &s
    while True:
        with nogil:
            _run(&w, &g, known, &job, BUDGET)
        if job.filled == job.size or job.tries >= job.limit:
            break
        PyErr_CheckSignals()
    if counted != NULL and job.filled == job.size:
        with nogil:
            _expected(&w, ids, expected, trues, job.size, <double>job.tries)
            _expected(&w, job.out, counted, job.size, job.size, <double>job.tries)
    return -1, job.filled, job.tries


cdef void _spread(const Law* w, uint64_t key, uint64_t stream, int64_t first, int64_t last,
                  int64_t* out) noexcept nogil:
    cdef fl_rng g
    fl_rng_start(&g, key, stream, <uint64_t>first//2)
    _fill(w, &g, out + first, last - first)


def spread(int kind, int64_t n, object table, object weights, double total,
           uint64_t key, uint64_t stream, object out, int n_threads):
    """Fill out with draws of a law that takes two words for each (an alias table); any number of threads give the same."""
    cdef Law w
    cdef int64_t size, first = 0, last, tiles
    cdef int64_t* ids = <int64_t*>_data(out, &size, True)
    cdef int k, count
    _law(&w, kind, n, table, weights, total)
    while first < size:
        last = size if size - first < 16*BUDGET else first + 16*BUDGET
        tiles = (last - first + TILE - 1)//TILE
        count = blocks(tiles, TILE, n_threads)
        if count == 1:
            with nogil:
                _spread(&w, key, stream, first, last, ids)
        else:
            for k in prange(count, nogil=True, num_threads=n_threads, schedule="static"):
                _spread(&w, key, stream, first + TILE*cut(tiles, k, count),
                        last if k == count - 1 else first + TILE*cut(tiles, k + 1, count), ids)
        first = last
        PyErr_CheckSignals()


cdef int64_t _set_size(int64_t n, int64_t ids) noexcept nogil:
    """Words for a set of ids in [0, n): a bitmap if it is not much larger, else a table at most half full."""
    cdef int64_t size = 8
    if n//64 <= 4*ids:
        return n//64 + 1
    while size < 2*ids:
        size *= 2
    return size


def set_size(int64_t n, int64_t ids, int64_t spare=SMALL):
    """Words for a set of so many ids in [0, n); 0 where the spare ones, which `sample` has itself, are enough."""
    cdef int64_t size = _set_size(n, ids)
    return size if size > spare else 0


def derive(uint64_t key, uint64_t stream, uint64_t block):
    """A key for numbers that must not meet those of the stream itself."""
    cdef uint32_t word[4]
    fl_philox(key ^ <uint64_t>0xD1B54A32D192ED03, stream, block, word, 1)
    return fl_pair(word)


# --- what is left when draws by rejection took too long -------------------------------------------------------------------

cdef inline double _probability(const Law* w, int64_t v) noexcept nogil:
    cdef int64_t c
    if w.kind == UNIFORM:
        return 1.0/w.total
    if w.kind == LOG_UNIFORM:
        return fl_two_atanh(1.0/(2.0*fl_from_id(v) + 3.0))*w.per_log
    if w.kind == LEARNED:
        c = w.table[v] + 1
        if v % FANOUT:
            c -= w.table[v - 1]
        return <double>c/w.total
    return w.weights[v]/w.total


cdef inline bint _has(const uint64_t* bits, int64_t v) noexcept nogil:
    return bits[v >> 6] >> (v & 63) & 1


cdef inline void _mark(uint64_t* bits, int64_t v) noexcept nogil:
    bits[v >> 6] |= <uint64_t>1 << (v & 63)


cdef void _sink(double* key, int64_t* ids, Py_ssize_t i, Py_ssize_t size) noexcept nogil:
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


cdef Py_ssize_t _race(const Law* w, fl_rng* g, const uint64_t* seen, int64_t first, int64_t last,
                      double* key, int64_t* ids, Py_ssize_t held, Py_ssize_t wanted) noexcept nogil:
    """Gives each unseen id of weight an exponential key; keeps the smallest ones."""
    cdef int64_t v
    cdef Py_ssize_t i
    cdef double p, k
    for v in range(first, last):
        if _has(seen, v):
            continue
        p = w.weights[v] if w.weights else _probability(w, v)      # which may be too small for a double
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
        elif k < key[0]:
            key[0] = k
            ids[0] = v
            _sink(key, ids, 0, wanted)
    return held


cdef void _sort(double* key, int64_t* ids, Py_ssize_t size) noexcept nogil:
    """Smallest key first, from a heap."""
    cdef Py_ssize_t last
    cdef double k
    cdef int64_t v
    for last in range(size - 1, 0, -1):
        k, v = key[last], ids[last]
        key[last], ids[last] = key[0], ids[0]
        key[0], ids[0] = k, v
        _sink(key, ids, 0, last)


cdef double _unseen(const Law* w, const uint64_t* seen, int64_t first, int64_t last) noexcept nogil:
    """The probability of the unseen ids in [first, last)."""
    cdef double s = 0
    cdef int64_t v
    for v in range(first, last):
        if not _has(seen, v):
            s += _probability(w, v)
    return s


def race(int kind, int64_t n, object table, object weights, double total,
         uint64_t key, uint64_t stream, int64_t[::1] out, Py_ssize_t filled, const int64_t[::1] excluded,
         uint64_t[::1] seen, double[::1] keys):
    """Fill the rest of out with distinct ids that are not excluded, in the order in which they would have been drawn.

    Ids in the order of exponential times of their rates have the law of draws of which repeats are skipped (Efraimidis
    and Spirakis, "Weighted random sampling with a reservoir", 2006).  `seen` is a bitmap of zeros, `keys` is scratch, one
    for each missing id.  Returns the number of draws that skipping repeats would have taken.
    """
    cdef Law w
    cdef fl_rng g
    cdef int64_t first = 0, last
    cdef Py_ssize_t i, held = 0, wanted = out.shape[0] - filled
    cdef double mass = 0, tries = 0
    _law(&w, kind, n, table, weights, total)
    fl_rng_start(&g, key, stream, 0)
    with nogil:
        for i in range(excluded.shape[0]):
            _mark(&seen[0], excluded[i])
        for i in range(filled):
            _mark(&seen[0], out[i])
    while first < n:
        last = n if n - first < CHUNK else first + CHUNK
        with nogil:
            held = _race(&w, &g, &seen[0], first, last, &keys[0], &out[filled], held, wanted)
        first = last
        PyErr_CheckSignals()
    if held < wanted:
        raise ValueError(f"too few ids are left: {wanted} wanted, {held} left")
    with nogil:
        _sort(&keys[0], &out[filled], wanted)
        for i in range(filled, filled + wanted):
            _mark(&seen[0], out[i])
    first = 0
    while first < n:
        last = n if n - first < CHUNK else first + CHUNK
        with nogil:
            mass += _unseen(&w, &seen[0], first, last)
        first = last
        PyErr_CheckSignals()
    with nogil:
        for i in range(filled + wanted - 1, filled - 1, -1):
            mass += _probability(&w, out[i])
            _pairs(&g, 128)
            tries += 1 + floor(log(fl_open(fl_pair(g.word + g.next)))/log1p(-mass if mass < 1 else -1.0))
            g.next += 2
    return tries


def redraw(int kind, int64_t n, object table, object weights, double total,
           uint64_t key, uint64_t stream, int64_t[::1] out, Py_ssize_t filled, const int64_t[::1] excluded,
           uint64_t[::1] seen, double[::1] sums):
    """Fill the rest of out with independent draws among ids that are not excluded, by bisection of their running sums.

    `seen` is a bitmap of zeros, `sums` is scratch, one for each id.
    """
    cdef Law w
    cdef fl_rng g
    cdef int64_t v, low, high, middle
    cdef Py_ssize_t i
    cdef double mass = 0, at
    _law(&w, kind, n, table, weights, total)
    fl_rng_start(&g, key, stream, 0)
    with nogil:
        for i in range(excluded.shape[0]):
            _mark(&seen[0], excluded[i])
        for v in range(n):
            mass += 0.0 if _has(&seen[0], v) else _probability(&w, v)
            sums[v] = mass
            if v % CHUNK == CHUNK - 1:
                _signals()
        for i in range(filled, out.shape[0]):
            _pairs(&g, 128)
            at = fl_open(fl_pair(g.word + g.next))*mass
            g.next += 2
            low, high = 0, n - 1                    # the first id whose sum exceeds `at`; the last unseen one at the end
            while low < high:
                middle = low + (high - low)//2
                if sums[middle] > at or sums[middle] == mass:
                    high = middle
                else:
                    low = middle + 1
            out[i] = low
            if i % CHUNK == CHUNK - 1:
                _signals()


# --- negatives of each row ------------------------------------------------------------------------------------------------

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
    fl_rng_start(&g, key, stream, 0)
    job.out, job.size, job.filled, job.tries, job.limit, job.unique = out, size, 0, 0, limit, unique
    _run(w, &g, &s, &job, limit)
    filled[0] = job.filled


cdef void _rows(const Law* w, uint64_t key, const int64_t* starts, const int64_t* ids, Py_ssize_t first,
                Py_ssize_t last, int64_t* out, Py_ssize_t size, int64_t* filled, uint64_t* word, bint unique,
                int64_t limit) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(first, last):
        _row(w, key, <uint64_t>i, ids + starts[i], starts[i + 1] - starts[i], out + i*size, size, filled + i, word,
             unique, limit)


def negatives(int kind, int64_t n, object table, object weights, double total, uint64_t key,
              const int64_t[::1] starts, const int64_t[::1] ids, int64_t[:, ::1] out, int64_t[::1] filled,
              uint64_t[:, ::1] seen, bint unique, int64_t limit):
    """Fill each row of out with ids that are not among its positives, ids[starts[i]:starts[i + 1]].

    Row i reads the stream i of the key, so the result does not depend on threads: one for each row of `seen`, scratch
    for the largest set.  Sets filled[i] to the number of ids found, less than wanted where `limit` draws did not do.
    """
    cdef Law w
    cdef Py_ssize_t rows = out.shape[0], size = out.shape[1], first = 0, some, step
    cdef const int64_t* positives = &ids[0] if ids.shape[0] else NULL
    cdef int k, count, n_threads = <int>seen.shape[0]
    if rows == 0 or size == 0:
        return
    _law(&w, kind, n, table, weights, total)
    step = 1 + BUDGET//(4*size)                     # rows between two looks at pending signals
    while first < rows:
        some = rows - first if rows - first < step else step
        count = blocks(some, size, n_threads)
        if count == 1:
            with nogil:
                _rows(&w, key, &starts[0], positives, first, first + some, &out[0, 0], size, &filled[0], &seen[0, 0],
                      unique, limit)
        else:
            for k in prange(count, nogil=True, num_threads=n_threads, schedule="static"):
                _rows(&w, key, &starts[0], positives, first + cut(some, k, count), first + cut(some, k + 1, count),
                      &out[0, 0], size, &filled[0], &seen[k, 0], unique, limit)
        first = first + some
        PyErr_CheckSignals()


def too_few(int kind, int64_t n, object table, object weights, double total,
            const int64_t[::1] starts, const int64_t[::1] ids, int64_t drawable, int64_t wanted, uint64_t[::1] seen):
    """The first row whose positives leave fewer than `wanted` of the `drawable` ids, and how many; or (-1, 0)."""
    cdef Law w
    cdef Ids s
    cdef Py_ssize_t i, j, words
    cdef int64_t left
    _law(&w, kind, n, table, weights, total)
    for i in range(starts.shape[0] - 1):
        left = drawable
        if left - (starts[i + 1] - starts[i]) < wanted:
            words = _set_size(n, starts[i + 1] - starts[i])
            with nogil:
                memset(&seen[0], 0, <size_t>words*8)
                _ids(&s, &seen[0], words, n)
                for j in range(starts[i], starts[i + 1]):
                    left -= _is_new(&s, <uint64_t>ids[j], True) and _probability(&w, ids[j]) > 0
            if left < wanted:
                return i, left
            PyErr_CheckSignals()
    return -1, 0


# --- expected counts -----------------------------------------------------------------------------------------------------

cdef void _probabilities(const Law* w, const int64_t* ids, double* p, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i
    cdef double scale
    if w.kind == LOG_UNIFORM:
        scale = w.per_log
        for i in range(m):
            p[i] = fl_two_atanh(1.0/(2.0*fl_from_id(ids[i]) + 3.0))*scale
    else:
        for i in range(m):
            p[i] = _probability(w, ids[i])


cdef void _measured(double* p, Py_ssize_t m, int what, double x) noexcept nogil:
    """Turns probabilities into what is asked for."""
    cdef Py_ssize_t i
    cdef int64_t large = 0
    if what == COUNT:
        for i in range(m):
            p[i] *= x
    elif what == TRIES:
        x = x if x < 1e300 else 1e300               # no infinity times zero
        for i in range(m):
            large |= p[i] > 0.5
        if large:
            for i in range(m):
                p[i] = fl_one_minus_exp(-x*log1p(-p[i] if p[i] < 1 else -1.0))
        else:
            for i in range(m):
                p[i] = fl_one_minus_exp(x*fl_two_atanh(p[i]/(2.0 - p[i])))
    elif what == INCLUSION:
        for i in range(m):
            p[i] = fl_one_minus_exp(p[i]*x if p[i] > 0 else 0.0)


cdef void _measure(const Law* w, const int64_t* ids, double* out, Py_ssize_t size, int what,
                   double x) noexcept nogil:
    cdef Py_ssize_t i = 0, m
    while i < size:
        m = size - i if size - i < TILE else TILE
        _probabilities(w, ids + i, out + i, m)
        _measured(out + i, m, what, x)
        i += m


cdef void _expected(const Law* w, const int64_t* ids, double* out, Py_ssize_t size, int64_t wanted,
                    double tries) noexcept nogil:
    """TensorFlow's expected counts of ids in a sample of `wanted` ids."""
    if tries == wanted:
        _measure(w, ids, out, size, COUNT, <double>wanted)
    else:
        _measure(w, ids, out, size, TRIES, tries)


cdef int64_t _outside(const int64_t* ids, int64_t size, int64_t n) noexcept nogil:
    cdef int64_t i
    cdef uint64_t top = <uint64_t>n
    for i in range(size):
        if <uint64_t>ids[i] >= top:
            return i
    return -1


def outside(object ids, int64_t n):
    """Position of the first id outside [0, n), or -1."""
    cdef int64_t size, bad
    cdef const int64_t* data = <const int64_t*>_data(ids, &size, False)
    with nogil:
        bad = _outside(data, size, n)
    return bad


def measure(int kind, int64_t n, object table, object weights, double total,
            object ids, object out, int what, double x):
    """Of each id, which must lie in [0, n), by `what` and with x:

    its probability P (x unused); its expected count x P in x draws; the probability 1 - (1 - P)^x that it is among x
    draws; the probability 1 - exp(-x P) that it is drawn before time x when ids arrive at the rates P.
    """
    cdef Law w
    cdef int64_t size
    cdef const int64_t* data = <const int64_t*>_data(ids, &size, False)
    cdef double* result = <double*>_data(out, &size, True)
    _law(&w, kind, n, table, weights, total)
    with nogil:
        _measure(&w, data, result, size, what, x)


def inclusion_time(int kind, int64_t n, object table, object weights, double total, double count):
    """The time t with sum_v 1 - exp(-t P(v)) = count, which must be below the number of ids of weight.

    Newton's method from t = count, where the sum is too small; it is concave, so t grows until it is right.
    """
    cdef Law w
    cdef double t = count, drawn, slope, block, step, error
    cdef double p[TILE]
    cdef double y[TILE]
    cdef int64_t ids[TILE]
    cdef int64_t v
    cdef Py_ssize_t i, m
    cdef int turn
    _law(&w, kind, n, table, weights, total)
    for turn in range(200):
        drawn = slope = error = 0
        v = 0
        while v < n:
            with nogil:
                while v < n:
                    m = n - v if n - v < TILE else TILE
                    for i in range(m):
                        ids[i] = v + i
                    _probabilities(&w, ids, p, m)
                    for i in range(m):
                        y[i] = p[i]
                    _measured(y, m, INCLUSION, t)
                    block = 0
                    for i in range(m):
                        block += y[i]
                        slope += p[i]*(1.0 - y[i])
                    block -= error                  # compensated: a million terms to the last digit
                    step = drawn + block
                    error = (step - drawn) - block
                    drawn = step
                    v += m
                    if v % CHUNK < TILE:
                        break
            PyErr_CheckSignals()
        step = (count - drawn)/slope
        if not step > t*1e-16:
            break
        t += step
    return t


# --- the tree of counts of the learned unigram ------------------------------------------------------------------------------

def tree_size(int64_t n):
    """Entries of a tree of counts over n ids; zeros are the tree in which every count is one."""
    cdef int64_t start[LEVELS]
    cdef int levels
    return _levels(n, start, &levels)


def tree_add(int64_t[::1] tree, int64_t n, const int64_t[::1] ids):
    """Adds one to the count of every id, which must lie in [0, n)."""
    cdef int64_t start[LEVELS]
    cdef int levels, level
    cdef Py_ssize_t i, j, m
    cdef int64_t v, place
    cdef int64_t* node
    _levels(n, start, &levels)
    m = ids.shape[0]
    with nogil:
        for i in range(m):
            v = ids[i]
            for level in range(levels):
                place = v % FANOUT
                v //= FANOUT
                node = &tree[start[level] + v*FANOUT]
                for j in range(FANOUT):
                    node[j] += j >= place


def tree_counts(const int64_t[::1] tree, int64_t[::1] counts):
    """Reads the counts."""
    cdef int64_t v, n = counts.shape[0]
    with nogil:
        for v in range(n):
            counts[v] = 1 + tree[v] - (tree[v - 1] if v % FANOUT else 0)
            if v % CHUNK == CHUNK - 1:
                _signals()


def tree_build(int64_t[::1] tree, const int64_t[::1] counts):
    """Sets the counts."""
    cdef int64_t start[LEVELS]
    cdef int levels, level
    cdef int64_t v, s, nodes, n = counts.shape[0]
    cdef Py_ssize_t j
    cdef int64_t* node
    _levels(n, start, &levels)
    with nogil:
        memset(&tree[0], 0, <size_t>tree.shape[0]*8)
        for v in range(n):
            tree[v] = counts[v] - 1
        nodes = n
        for level in range(levels):
            nodes = nodes//FANOUT + (nodes % FANOUT != 0)
            for v in range(nodes):
                node = &tree[start[level] + v*FANOUT]
                s = 0
                for j in range(FANOUT):
                    s += node[j]
                    node[j] = s
                if level + 1 < levels:
                    tree[start[level + 1] + v] = s


# --- accidental hits ----------------------------------------------------------------------------------------------------

def hits(const int64_t[:, ::1] true, const int64_t[::1] sampled, int64_t[::1] heads, int64_t[::1] follows,
         int64_t[::1] rows, int64_t[::1] places):
    """Pairs (row of true, place in sampled) of equal ids, rows first, then columns, then places; returns their number.

    `heads`, zeroed, is a table of first places (its size a power of two), `follows` the chains through them.  Writes
    nothing where `rows` is too small for all pairs.
    """
    cdef Py_ssize_t i, j, k, size = sampled.shape[0], count = 0
    cdef uint64_t h, mask = heads.shape[0] - 1
    cdef int64_t at
    cdef bint write
    cdef int turn
    with nogil:
        for k in range(size - 1, -1, -1):
            h = _slot(&heads[0], mask, &sampled[0], sampled[k])
            follows[k] = heads[h]
            heads[h] = k + 1
        for i in range(true.shape[0]):
            for j in range(true.shape[1]):
                at = heads[_slot(&heads[0], mask, &sampled[0], true[i, j])]
                while at:
                    if count < rows.shape[0]:
                        rows[count] = i
                        places[count] = at - 1
                    count += 1
                    at = follows[at - 1]
            if i % CHUNK == CHUNK - 1:
                _signals()
    return count


cdef inline uint64_t _slot(const int64_t* heads, uint64_t mask, const int64_t* sampled, int64_t v) noexcept nogil:
    """Where the chain of v begins, or would."""
    cdef uint64_t h = (<uint64_t>v*<uint64_t>0x9E3779B97F4A7C15) >> 20 & mask
    while heads[h] and sampled[heads[h] - 1] != v:
        h = (h + 1) & mask
    return h
