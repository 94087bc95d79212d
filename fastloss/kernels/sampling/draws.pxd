"""Laws and draws, shared by the kernels that sample.

A law is a probability for each id in [0, n).  Kernels take one as a tuple: its kind, n, its table, and the weights and
their total where it has any.  Random words come from Philox by (key, stream, block), in TensorFlow's order.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport exp, log1p
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastloss.kernels.sampling.sampler_math cimport fl_from_id, fl_log_uniform, fl_pick, fl_two_atanh
from fastloss.kernels.sampling.philox cimport (
    fl_mod32, fl_mod64, fl_pair, fl_prefetch, fl_rng, fl_rng_fill, fl_rng_word, fl_unit, fl_wide,
)
from fastloss.kernels.sampling.tree cimport Tree, count_of, counts_of, descend, learned, plant, prefetch_count

cdef enum:
    UNIFORM, LOG_UNIFORM, LEARNED, FIXED, ALIAS     # kinds of law
    BYTES, BITS, TABLE                              # kinds of set: one for each id, or an open-addressing one of id + 1
    PROBABILITY, COUNT, TRIES, INCLUSION            # what `measure` gives
    TILE = 256                                      # draws whose memory accesses overlap
    AHEAD = 128                                     # how many of them are under way
    BATCH = 4*TILE
    FEW = 32                                        # below so many missing ids, look at each draw
    CHUNK = 1 << 16                                 # ids between two looks at pending signals
    FLOAT_BITS = 0x7FFFFF                           # of a word, for TensorFlow's float in [0, 1)
    L1 = 1 << 14                                    # bytes of the first-level cache that a set may take
    CACHED = 1 << 14                                # entries of a table that need no prefetch
    SMALL = 512                                     # words of a set on the stack
    BUDGET = 1 << 20                                # draws, or short steps, between two looks at pending signals

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


cdef struct Ids:                # a set of ids
    int kind
    uint64_t* word
    int shift                   # of a TABLE
    uint64_t mask


cdef struct Job:
    int64_t* out
    int64_t size            # ids wanted
    int64_t filled          # ids there
    int64_t tries           # draws made
    int64_t limit           # draws allowed
    bint unique
    bint rare               # whether hardly any draw was new
    double* weight          # of each id, or NULL; only of large ranges and laws that `_weighs`


# --- the law ----------------------------------------------------------------------------------------------------------

cdef inline void _uniform_below(Law* w, uint64_t size, uint64_t top) noexcept nogil:
    """Exact uniform integers below size from words in [0, top], as TensorFlow draws them."""
    w.size = size
    w.reciprocal = top//size
    w.limit = 0 if size & (size - 1) == 0 else top % size + 1


cdef inline int _signals() except -1 with gil:
    PyErr_CheckSignals()
    return 0


cdef inline void* _view(object array, int64_t* size, int64_t* itemsize, bint write) except? NULL:
    """Where an array, which its owner keeps, begins; a tenth of the time of a memoryview."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE if write else PyBUF_SIMPLE)
    size[0], itemsize[0] = view.len//view.itemsize, view.itemsize
    PyBuffer_Release(&view)
    return view.buf


cdef inline void* _data(object array, int64_t* size, bint write) except? NULL:
    """The same, of numbers whose size is known; NULL for None."""
    cdef int64_t itemsize
    size[0] = 0
    return _view(array, size, &itemsize, write) if array is not None else NULL


cdef inline int _law(Law* w, tuple law) except -1:
    cdef int64_t size, itemsize = 0
    kind, n, table, weights, total = law
    w.kind, w.n, w.total, w.low = kind, n, total, NULL
    w.table = <const int64_t*>_view(table, &size, &itemsize, False) if table is not None else NULL
    w.weights = <const double*>_data(weights, &size, False)
    if w.kind == UNIFORM:
        _uniform_below(w, w.n, <uint64_t>-1)
        w.total = <double>w.n
    elif w.kind == LOG_UNIFORM:
        w.log_range = log1p(<double>w.n)
        w.per_log = 1.0/w.log_range
    elif w.kind == LEARNED:
        plant(&w.tree, <void*>w.table, itemsize == 8, w.n)
        size = w.n + learned(&w.tree)               # the sum of all counts
        w.total = <double>size
        _uniform_below(w, size, <uint32_t>-1 if size <= <uint32_t>-1 else <uint64_t>-1)
    elif w.kind == FIXED:
        _uniform_below(w, w.n, <uint32_t>-1)
    else:
        w.size = w.n
        w.low = <const uint32_t*>(w.table + w.n)
    return 0


# --- probabilities ----------------------------------------------------------------------------------------------------

cdef inline bint _weighs(const Law* w) noexcept nogil:
    """Whether probabilities are weights that lie in memory, over their total."""
    return w.kind == LEARNED or w.kind == FIXED or w.kind == ALIAS


cdef inline const float* _pair_of(const Law* w, int64_t v) noexcept nogil:
    """The weights of the two ids of a fixed unigram's bucket: beside its entry, for one access to bring both; or, where
    all lies in a cache anyway, after the last entry."""
    return <const float*>(w.table + (2*v + 1 if w.n > CACHED else w.n + v))


cdef inline double _weight(const Law* w, int64_t v) noexcept nogil:
    if w.kind == LEARNED:
        return <double>count_of(&w.tree, v)
    if w.kind == FIXED:
        return _pair_of(w, v)[0]
    return w.weights[v]


cdef inline double _probability(const Law* w, int64_t v) noexcept nogil:
    if w.kind == UNIFORM:
        return 1.0/w.total
    if w.kind == LOG_UNIFORM:
        return fl_two_atanh(1.0/(2.0*fl_from_id(v) + 3.0))*w.per_log
    return _weight(w, v)/w.total


cdef inline void _weights(const Law* w, const int64_t* ids, double* out, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(m if w.n > CACHED else 0):
        _prefetch(w, ids[i])
    if w.kind == LEARNED:
        counts_of(&w.tree, ids, out, m)
    elif w.kind == FIXED:
        for i in range(m):
            out[i] = _pair_of(w, ids[i])[0]
    else:
        for i in range(m):
            out[i] = w.weights[ids[i]]


cdef inline void _prefetch(const Law* w, int64_t v) noexcept nogil:
    """What `_weight` reads."""
    if w.kind == LEARNED:
        prefetch_count(&w.tree, v)
    elif w.kind == FIXED:
        fl_prefetch(w.table + 2*v)
    else:
        fl_prefetch(w.weights + v)


# --- draws ------------------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t _pairs(fl_rng* g, Py_ssize_t want) noexcept nogil:
    """How many pairs of words, at most `want` and at least one, lie ready."""
    cdef Py_ssize_t ready
    if g.end - g.next < 2:
        fl_rng_fill(g, 2*want)
    ready = (g.end - g.next)//2
    return ready if ready < want else want


cdef inline void _fill_uniform(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
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


cdef inline Py_ssize_t _fill_log_uniform(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m,
                                         uint64_t skip, int* place) noexcept nogil:
    """floor(exp(u log(n + 1))) - 1: where the vectorised exp could fall on the wrong side of an integer, ask libm.

    Draws with 2^64 u below `skip` are left out; the places of the others among the m are given, if asked for.  Returns
    how many are there.
    """
    cdef Py_ssize_t i = 0, j, ready, some, kept = 0
    cdef int64_t k, n = w.n, near
    cdef uint64_t x
    cdef double log_range = w.log_range
    cdef uint64_t bits[TILE]
    cdef double y[TILE]
    cdef const uint32_t* p
    while i < m:
        ready = _pairs(g, m - i)
        if ready > TILE:
            ready = TILE
        p = g.word + g.next
        some = 0
        if skip or place != NULL:
            for j in range(ready):
                x = fl_pair(p + 2*j)
                x = (x << 32 | x >> 32) << 12
                bits[some] = x
                if place != NULL:
                    place[kept + some] = <int>(i + j)
                some += x >= skip
        else:
            some = ready
            for j in range(ready):
                x = fl_pair(p + 2*j)
                bits[j] = (x << 32 | x >> 32) << 12
        for j in range(some):
            y[j] = fl_unit(bits[j] >> 12)*log_range
        near = n >> 50
        if not near:
            for j in range(some):
                out[kept + j] = fl_log_uniform(y[j], &near)
        if near:
            for j in range(some):
                out[kept + j] = <int64_t>exp(y[j]) - 1
        for j in range(some):
            k = out[kept + j]
            out[kept + j] = k - n if k >= n else k
        g.next += <int>(2*ready)
        i += ready
        kept += some
    return kept


cdef inline uint64_t _all_seen(const Law* w, const Ids* s, int64_t* low) noexcept nogil:
    """A number below which log-uniform draws give seen ids; `low` and all ids below it are, as far as is known."""
    cdef int64_t ids = 8 if s.kind == BYTES else 64         # in a word
    cdef uint64_t full = <uint64_t>0x0101010101010101 if s.kind == BYTES else ~<uint64_t>0
    while low[0] + ids <= w.n and s.word[low[0]//ids] == full:
        low[0] += ids
    return <uint64_t>(18446744073709551616.0*(1 - 1e-12)*(log1p(<double>low[0])/w.log_range)) if low[0] < w.n else 0


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


cdef inline void _integers32(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i = 0, j, ready
    cdef uint32_t x, n = <uint32_t>w.size, reciprocal = <uint32_t>w.reciprocal, limit = <uint32_t>w.limit
    cdef int64_t redrawn
    cdef const uint32_t* p
    while i < m:
        if g.end == g.next:
            fl_rng_fill(g, m - i)
        ready = g.end - g.next if g.end - g.next < m - i else m - i
        p = g.word + g.next
        redrawn = 0
        for j in range(ready):
            x = p[j]
            redrawn |= x < limit
            out[i + j] = fl_mod32(x, n, reciprocal)
        if redrawn:                                 # rare: a draw takes more than one word
            for j in range(ready):
                out[i + j] = <int64_t>_integer32(w, g)
        else:
            g.next += <int>ready
        i += ready


cdef inline void _fill_learned(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m, double* weight) noexcept nogil:
    """TILE draws abreast, so that their cache misses overlap."""
    cdef Py_ssize_t i = 0, j, ready
    cdef int64_t left[TILE]
    while i < m:
        ready = m - i if m - i < TILE else TILE
        if w.size <= <uint32_t>-1:
            _integers32(w, g, left, ready)
        else:
            for j in range(ready):
                left[j] = <int64_t>_integer64(w, g)
        descend(&w.tree, left, out + i, ready)
        if weight != NULL:
            counts_of(&w.tree, out + i, weight + i, ready)
        i += ready


cdef inline Py_ssize_t _fill_fixed(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m, double* weight,
                                   const Ids* seen, int* place) noexcept nogil:
    """TensorFlow's alias draw: first the float, then the bucket.

    With a set `seen`, BYTES or BITS, draws that are in it are left out, and instead of weights the places of the others
    among the m are given.  Returns how many are there.
    """
    cdef Py_ssize_t i = 0, j, ready, kept = 0
    cdef uint32_t share[TILE]
    cdef uint32_t bucket[TILE + AHEAD]
    cdef uint32_t x, n = <uint32_t>w.size, reciprocal = <uint32_t>w.reciprocal, limit = <uint32_t>w.limit
    cdef int64_t redrawn, v
    cdef bint cold = n > CACHED, bytes = seen != NULL and seen.kind == BYTES
    cdef const uint64_t* word = seen.word if seen != NULL else NULL
    cdef const uint8_t* byte = <const uint8_t*>word
    cdef const int64_t* table = w.table
    cdef const float* pair = _pair_of(w, 0)
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
            bucket[j] = fl_mod32(x, n, reciprocal)
        if redrawn:                                 # rare: a draw takes more than two words
            for j in range(ready):
                share[j] = fl_rng_word(g) & FLOAT_BITS
                bucket[j] = <uint32_t>_integer32(w, g)
        else:
            g.next += <int>(2*ready)
        memset(&bucket[ready], 0, AHEAD*4)          # prefetched for nothing: a condition would slow all draws down
        if cold:
            for j in range(ready if ready < AHEAD else AHEAD):
                fl_prefetch(table + 2*<int64_t>bucket[j])
        for j in range(ready):
            if cold:
                fl_prefetch(table + 2*<int64_t>bucket[j + AHEAD])
            v = fl_pick(table[2*<int64_t>bucket[j]] if cold else table[bucket[j]], bucket[j], share[j])
            out[kept] = v
            if seen == NULL:
                if cold and weight != NULL:
                    weight[kept] = pair[4*<int64_t>bucket[j] + (v != <int64_t>bucket[j])]
                kept += 1
            else:
                place[kept] = <int>(i + j)
                kept += 1 - (byte[v] if bytes else word[<uint64_t>v >> 6] >> (v & 63) & 1)
        i += ready
    return kept


cdef inline void _fill_alias(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
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
            out[i + j] = fl_pick(w.table[bucket], <int64_t>bucket, <uint32_t>(share >> 32))
            if share >> 32 == <uint32_t>w.table[bucket] and <uint32_t>share < w.low[bucket]:
                out[i + j] = <int64_t>bucket        # once in 2^32 draws the lower halves decide
        g.next += <int>(2*ready)
        i += ready


cdef inline void _fill(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m, double* weight) noexcept nogil:
    """The next m draws, with their weights if there is room for them, the law `_weighs`, and the range is large."""
    if w.kind == UNIFORM:
        _fill_uniform(w, g, out, m)
    elif w.kind == LOG_UNIFORM:
        _fill_log_uniform(w, g, out, m, 0, NULL)
    elif w.kind == LEARNED:
        _fill_learned(w, g, out, m, weight)
    elif w.kind == FIXED:
        _fill_fixed(w, g, out, m, weight, NULL, NULL)
    else:
        _fill_alias(w, g, out, m)


# --- distinct draws ---------------------------------------------------------------------------------------------------

cdef inline void _ids(Ids* s, uint64_t* word, Py_ssize_t size, int64_t n) noexcept nogil:
    """A set in zeroed words: as many as `_set_size` says, for a table a power of two."""
    s.word = word
    s.kind = BYTES if n <= 8*size else BITS if n <= 64*size else TABLE
    s.mask = size - 1
    s.shift = 64
    while size > 1:
        size >>= 1
        s.shift -= 1


cdef inline bint _is_new(const Ids* s, uint64_t v, bint insert) noexcept nogil:
    """Whether v is not in the set; puts it there if told to."""
    cdef uint64_t h, u
    cdef uint8_t* byte = <uint8_t*>s.word
    if s.kind == BYTES:
        h = byte[v]
        byte[v] = <uint8_t>(h | insert)
        return h == 0
    if s.kind == BITS:
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


cdef inline Py_ssize_t _keep_new(const Ids* s, int64_t* ids, double* weight, Py_ssize_t m, bint insert,
                                 bint rare) noexcept nogil:
    """Moves the ids that are new to the front, in order; returns how many there are.

    Their weights, if there are any, go along.  `rare`: hardly any are new, and there are no weights.
    """
    cdef Py_ssize_t i, size = m, kept = 0
    cdef uint64_t u, h, v
    cdef uint64_t put = <uint64_t>0 - <uint64_t>insert
    cdef uint64_t* word = s.word
    cdef uint8_t* byte = <uint8_t*>word
    if s.kind == BYTES:                             # no branch to mispredict
        for i in range(m):
            v = <uint64_t>ids[i]
            h = byte[v]
            byte[v] = <uint8_t>(h | insert)
            ids[kept] = <int64_t>v
            if weight != NULL:
                weight[kept] = weight[i]
            kept += 1 - <Py_ssize_t>h
    elif s.kind == BITS:
        if rare:                                    # first without writes, for which reads of the same word wait
            size = 0
            for i in range(m):
                v = <uint64_t>ids[i]
                ids[size] = <int64_t>v
                size += 1 - (word[v >> 6] >> (v & 63) & 1)
        for i in range(size):
            v = <uint64_t>ids[i]
            u = word[v >> 6]
            h = <uint64_t>1 << (v & 63)
            word[v >> 6] = u | (h & put)
            ids[kept] = <int64_t>v
            if weight != NULL:
                weight[kept] = weight[i]
            kept += (u & h) == 0
    else:
        for i in range(m):
            v = <uint64_t>ids[i]
            if _is_new(s, v, insert):
                ids[kept] = <int64_t>v
                if weight != NULL:
                    weight[kept] = weight[i]
                kept += 1
    return kept


cdef inline Py_ssize_t _fill_rare(const Law* w, fl_rng* g, const Ids* s, int64_t* low, int64_t* ids, int* place,
                                  bint placed, Py_ssize_t m) noexcept nogil:
    """Those of the next m draws that may not be in the set; if `placed`, those that are not, and their places among
    the m.  Returns how many there are."""
    cdef Py_ssize_t i, there = m, kept = 0
    cdef uint64_t v
    cdef const uint8_t* byte = <const uint8_t*>s.word
    if w.kind == FIXED and s.kind != TABLE:
        return _fill_fixed(w, g, ids, m, NULL, s, place)
    if w.kind == LOG_UNIFORM and s.kind != TABLE:
        there = _fill_log_uniform(w, g, ids, m, _all_seen(w, s, low), place if placed else NULL)
    else:
        _fill(w, g, ids, m, NULL)
        for i in range(m if placed else 0):
            place[i] = <int>i
    if not placed:
        return there
    for i in range(there):
        v = <uint64_t>ids[i]
        ids[kept] = <int64_t>v
        place[kept] = place[i]
        if s.kind == BYTES:
            kept += 1 - byte[v]
        elif s.kind == BITS:
            kept += 1 - (s.word[v >> 6] >> (v & 63) & 1)
        else:
            kept += _is_new(s, v, False)
    return kept


cdef inline void _run(const Law* w, fl_rng* g, const Ids* s, Job* job, int64_t budget) noexcept nogil:
    """Draws until the job is done, its limit is reached, or the budget is spent.

    With a set, ids already in it are skipped, and `unique` adds the others to it; without one every draw counts.  Draws
    made in excess are forgotten: the stream of the next call begins elsewhere.
    """
    cdef Py_ssize_t j, m, left, there, kept
    cdef int64_t low = 0
    cdef int64_t some[BATCH]
    cdef int place[BATCH]
    cdef int64_t stop = job.limit if job.limit - job.tries < budget else job.tries + budget
    cdef bint rare = job.rare
    cdef bint spare                                 # whether draws are made for those that will not be
    cdef double heavy[TILE]
    cdef int64_t* ids
    cdef double* weight
    while job.filled < job.size and job.tries < stop:
        left = job.size - job.filled
        ids = job.out + job.filled
        weight = job.weight + job.filled if job.weight != NULL else NULL
        # a later round for the few that turn out to be missing would wait for its own cache misses
        spare = s != NULL and not rare and w.kind == FIXED and w.n > CACHED and left + FEW <= TILE
        if not spare and (s == NULL or left > FEW and not rare or left >= BATCH and w.kind == LOG_UNIFORM):
            kept = there = m = left if left < BATCH else BATCH
            if rare:
                there = _fill_rare(w, g, s, &low, ids, place, False, m)
            else:
                _fill(w, g, ids, m, weight)
            if s != NULL:
                kept = _keep_new(s, ids, NULL if rare else weight, there, job.unique, rare)
        else:                                       # more than are left, for some or most will be in the set
            m = 4*left if rare else left + left//4 + 4 if spare else left if job.tries == 0 else FEW
            m = FEW if rare and m < FEW else BATCH if m > BATCH else m
            there = m
            if spare:
                _fill(w, g, some, m, heavy if weight != NULL else NULL)
            else:
                there = _fill_rare(w, g, s, &low, some, place, True, m)
            kept = 0
            for j in range(there):
                if _is_new(s, <uint64_t>some[j], job.unique):
                    ids[kept] = some[j]
                    if spare and weight != NULL:
                        weight[kept] = heavy[j]
                    kept += 1
                    if kept == left:
                        m = j + 1 if spare else place[j] + 1
                        break
            rare = not spare
        if rare and weight != NULL:
            _weights(w, ids, weight, kept)
        job.filled += kept
        job.tries += m
        rare = 4*kept < m
    job.rare = rare


cdef inline int64_t _set_size(int64_t n, int64_t ids) noexcept nogil:
    """Words for a set of ids in [0, n): one for each where that is not much larger than a table at most half full.

    Never fewer for more ids, so that scratch for the largest of several sets serves them all.
    """
    cdef int64_t size = 8
    if ids > <int64_t>1 << 60:                      # more than there is memory for; no overflow below
        ids = <int64_t>1 << 60
    if n <= L1 and n//8 <= 4*ids:
        return n//8 + 1
    if n//64 <= 4*ids:
        return n//64 + 1
    while size < (4*ids if 4*ids <= SMALL else 2*ids):      # emptier where that costs nothing
        size *= 2
    return size if size <= n//64 else n//64 + 1


# --- bitmaps ----------------------------------------------------------------------------------------------------------

cdef inline bint _has(const uint64_t* bits, int64_t v) noexcept nogil:
    return bits[v >> 6] >> (v & 63) & 1


cdef inline void _mark(uint64_t* bits, int64_t v) noexcept nogil:
    bits[v >> 6] |= <uint64_t>1 << (v & 63)


cdef inline int _mark_all(uint64_t* bits, const int64_t* ids, Py_ssize_t first, Py_ssize_t last) except -1 nogil:
    cdef Py_ssize_t i
    for i in range(first, last):
        _mark(bits, ids[i])
        if i % BUDGET == BUDGET - 1:
            _signals()
    return 0
