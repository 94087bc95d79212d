"""Draws by a law, with and without repeats.

Random words come from Philox by (key, stream, block), in TensorFlow's order.
"""
from libc.math cimport exp, log1p
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastloss.kernels.arrays.id_sets cimport BITS, BYTES, TABLE, IdSet, is_new, keep_new
from fastloss.kernels.math.sampler_math cimport fl_log_uniform, fl_pick
from fastloss.kernels.math.vmath cimport FL_PREFETCH_FAR
from fastloss.kernels.sampling.law cimport (
    CACHED, FIXED, LEARNED, LOG_UNIFORM, UNIFORM, Law, pair_of, read_weights,
)
from fastloss.kernels.sampling.philox cimport (
    fl_mod32, fl_mod64, fl_pair, fl_rng, fl_rng_fill, fl_rng_unit, fl_rng_word, fl_wide,
)
from fastloss.kernels.sampling.tree cimport counts_of, find_ids

cdef enum:
    TILE_DRAWS = 256                                # draws whose memory accesses overlap
    AHEAD_DRAWS = 128                               # how many of them are under way
    BATCH_DRAWS = 4*TILE_DRAWS
    FEW = 32                                        # below so many missing ids, look at each draw
    FLOAT_BITS = 0x7FFFFF                           # of a word, for TensorFlow's float in [0, 1)

cdef struct DrawsCall:
    int64_t* out
    int64_t size            # ids wanted
    int64_t filled          # ids there
    int64_t tries           # draws made
    int64_t limit           # draws allowed
    bint unique
    bint rare               # whether hardly any draw was new
    double* weight          # of each id, or NULL; only of large ranges and where `has_weights`


# --- draws ------------------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t ready_pairs(fl_rng* g, Py_ssize_t want) noexcept nogil:
    """How many pairs of words, at most `want` and at least one, lie ready."""
    cdef Py_ssize_t ready
    if g.end - g.next < 2:
        fl_rng_fill(g, 2*want)
    ready = (g.end - g.next)//2
    return ready if ready < want else want


cdef inline void fill_uniform(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i = 0, j, ready
    cdef uint64_t x, n = w.size, reciprocal = w.reciprocal, limit = w.limit
    cdef const uint32_t* p
    while i < m:
        ready = ready_pairs(g, m - i)
        p = g.word + g.next
        for j in range(ready):
            x = fl_pair(p + 2*j)
            out[i] = <int64_t>fl_mod64(x, n, reciprocal)
            i += x >= limit
        g.next += <int>(2*ready)


cdef inline Py_ssize_t fill_log_uniform(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m,
                                         uint64_t skip, int* place) noexcept nogil:
    """floor(exp(u log(n + 1))) - 1: where the vectorised exp could fall on the wrong side of an integer, ask libm.

    Draws with 2^64 u below `skip` are left out; the places of the others among the m are given, if asked for.  Returns
    how many are there.
    """
    cdef Py_ssize_t i = 0, j, ready, some, kept = 0
    cdef int64_t k, n = w.n, near
    cdef uint64_t x
    cdef double log_range = w.log_range
    cdef uint64_t bits[TILE_DRAWS]
    cdef double y[TILE_DRAWS]
    cdef const uint32_t* p
    while i < m:
        ready = ready_pairs(g, m - i)
        if ready > TILE_DRAWS:
            ready = TILE_DRAWS
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
            y[j] = fl_rng_unit(bits[j] >> 12)*log_range
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


cdef inline uint64_t all_seen(const Law* w, IdSet* s) noexcept nogil:
    """A number below which log-uniform draws give seen ids."""
    cdef int64_t ids = 8 if s.kind == BYTES else 64         # in a word
    cdef uint64_t full = <uint64_t>0x0101010101010101 if s.kind == BYTES else ~<uint64_t>0
    while s.low + ids <= w.n and s.word[s.low//ids] == full:
        s.low += ids
    return <uint64_t>(18446744073709551616.0*(1 - 1e-12)*(log1p(<double>s.low)/w.log_range)) if s.low < w.n else 0


cdef inline uint64_t integer32(const Law* w, fl_rng* g) noexcept nogil:
    cdef uint32_t x = fl_rng_word(g)
    while x < w.limit:
        x = fl_rng_word(g)
    return fl_mod32(x, <uint32_t>w.size, <uint32_t>w.reciprocal)


cdef inline uint64_t integer64(const Law* w, fl_rng* g) noexcept nogil:
    cdef uint64_t x
    while True:
        ready_pairs(g, 1)
        x = fl_pair(g.word + g.next)
        g.next += 2
        if x >= w.limit:
            return fl_mod64(x, w.size, w.reciprocal)


cdef inline void integers32(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
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
                out[i + j] = <int64_t>integer32(w, g)
        else:
            g.next += <int>ready
        i += ready


cdef inline void fill_learned(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m, double* weight) noexcept nogil:
    """TILE_DRAWS abreast, so that their cache misses overlap."""
    cdef Py_ssize_t i = 0, j, ready
    cdef int64_t left[TILE_DRAWS]
    while i < m:
        ready = m - i if m - i < TILE_DRAWS else TILE_DRAWS
        if w.size <= <uint32_t>-1:
            integers32(w, g, left, ready)
        else:
            for j in range(ready):
                left[j] = <int64_t>integer64(w, g)
        find_ids(&w.tree, left, out + i, ready)
        if weight != NULL:
            counts_of(&w.tree, out + i, weight + i, ready)
        i += ready


cdef inline Py_ssize_t fill_fixed(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m, double* weight,
                                   const IdSet* seen, int* place) noexcept nogil:
    """TensorFlow's alias draw: first the float, then the bucket.

    With a set `seen`, BYTES or BITS, draws that are in it are left out, and instead of weights the places of the others
    among the m are given.  Returns how many are there.
    """
    cdef Py_ssize_t i = 0, j, ready, kept = 0
    cdef uint32_t share[TILE_DRAWS]
    cdef uint32_t bucket[TILE_DRAWS + AHEAD_DRAWS]
    cdef uint32_t x, n = <uint32_t>w.size, reciprocal = <uint32_t>w.reciprocal, limit = <uint32_t>w.limit
    cdef int64_t redrawn, v
    cdef bint cold = n > CACHED, bytes = seen != NULL and seen.kind == BYTES
    cdef const uint64_t* word = seen.word if seen != NULL else NULL
    cdef const uint8_t* byte = <const uint8_t*>word
    cdef const int64_t* table = w.table
    cdef const float* pair = pair_of(w, 0)
    cdef const uint32_t* p
    while i < m:
        ready = ready_pairs(g, m - i)
        if ready > TILE_DRAWS:
            ready = TILE_DRAWS
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
                bucket[j] = <uint32_t>integer32(w, g)
        else:
            g.next += <int>(2*ready)
        memset(&bucket[ready], 0, AHEAD_DRAWS*4)    # prefetched for nothing: a condition would slow all draws down
        if cold:
            for j in range(ready if ready < AHEAD_DRAWS else AHEAD_DRAWS):
                FL_PREFETCH_FAR(table + 2*<int64_t>bucket[j])
        for j in range(ready):
            if cold:
                FL_PREFETCH_FAR(table + 2*<int64_t>bucket[j + AHEAD_DRAWS])
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


cdef inline void fill_alias(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m) noexcept nogil:
    """One 64-bit number gives the bucket (upper half of its product with n) and the share of it (lower half)."""
    cdef Py_ssize_t i = 0, j, ready
    cdef uint64_t bucket, share
    cdef const uint32_t* p
    while i < m:
        ready = ready_pairs(g, m - i)
        if ready > TILE_DRAWS:
            ready = TILE_DRAWS
        p = g.word + g.next
        if w.size > CACHED:
            for j in range(ready):
                FL_PREFETCH_FAR(w.table + fl_wide(fl_pair(p + 2*j), w.size, &share))
        for j in range(ready):
            bucket = fl_wide(fl_pair(p + 2*j), w.size, &share)
            out[i + j] = fl_pick(w.table[bucket], <int64_t>bucket, <uint32_t>(share >> 32))
            if share >> 32 == <uint32_t>w.table[bucket] and <uint32_t>share < w.low[bucket]:
                out[i + j] = <int64_t>bucket        # once in 2^32 draws the lower halves decide
        g.next += <int>(2*ready)
        i += ready


cdef inline void fill_draws(const Law* w, fl_rng* g, int64_t* out, Py_ssize_t m, double* weight) noexcept nogil:
    """The next m draws, with their weights if there is room for them, it `has_weights`, and the range is large."""
    if w.kind == UNIFORM:
        fill_uniform(w, g, out, m)
    elif w.kind == LOG_UNIFORM:
        fill_log_uniform(w, g, out, m, 0, NULL)
    elif w.kind == LEARNED:
        fill_learned(w, g, out, m, weight)
    elif w.kind == FIXED:
        fill_fixed(w, g, out, m, weight, NULL, NULL)
    else:
        fill_alias(w, g, out, m)


# --- distinct draws ---------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t fill_rare(const Law* w, fl_rng* g, IdSet* s, int64_t* ids, int* place, bint placed,
                                 Py_ssize_t m) noexcept nogil:
    """Those of the next m draws that may not be in the set; if `placed`, those that are not, and their places among
    the m.  Returns how many there are."""
    cdef Py_ssize_t i, there = m, kept = 0
    cdef uint64_t v
    cdef const uint8_t* byte = <const uint8_t*>s.word
    if w.kind == FIXED and s.kind != TABLE:
        return fill_fixed(w, g, ids, m, NULL, s, place)
    if w.kind == LOG_UNIFORM and s.kind != TABLE:
        there = fill_log_uniform(w, g, ids, m, all_seen(w, s), place if placed else NULL)
    else:
        fill_draws(w, g, ids, m, NULL)
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
            kept += is_new(s, v, False)
    return kept


cdef inline void draw(const Law* w, fl_rng* g, IdSet* s, DrawsCall* call, int64_t budget) noexcept nogil:
    """Draws until all ids are there, the call's limit is reached, or the budget is spent.

    With a set, ids already in it are skipped, and `unique` adds the others to it; without one every draw counts.  Draws
    made in excess are forgotten: the stream of the next call begins elsewhere.
    """
    cdef Py_ssize_t j, m, left, there, kept
    cdef int64_t some[BATCH_DRAWS]
    cdef int place[BATCH_DRAWS]
    cdef int64_t stop = call.limit if call.limit - call.tries < budget else call.tries + budget
    cdef bint rare = call.rare
    cdef bint spare                                 # whether draws are made for those that will not be
    cdef double heavy[TILE_DRAWS]
    cdef int64_t* ids
    cdef double* weight
    while call.filled < call.size and call.tries < stop:
        left = call.size - call.filled
        ids = call.out + call.filled
        weight = call.weight + call.filled if call.weight != NULL else NULL
        # a later round for the few that turn out to be missing would wait for its own cache misses
        spare = s != NULL and not rare and w.kind == FIXED and w.n > CACHED and left + FEW <= TILE_DRAWS
        if not spare and (s == NULL or left > FEW and not rare or left >= BATCH_DRAWS and w.kind == LOG_UNIFORM):
            kept = there = m = left if left < BATCH_DRAWS else BATCH_DRAWS
            if rare:
                there = fill_rare(w, g, s, ids, place, False, m)
            else:
                fill_draws(w, g, ids, m, weight)
            if s != NULL:
                kept = keep_new(s, ids, NULL if rare else weight, there, call.unique, rare)
        else:                                       # more than are left, for some or most will be in the set
            m = 4*left if rare else left + left//4 + 4 if spare else left if call.tries == 0 else FEW
            m = FEW if rare and m < FEW else BATCH_DRAWS if m > BATCH_DRAWS else m
            there = m
            if spare:
                fill_draws(w, g, some, m, heavy if weight != NULL else NULL)
            else:
                there = fill_rare(w, g, s, some, place, True, m)
            kept = 0
            for j in range(there):
                if is_new(s, <uint64_t>some[j], call.unique):
                    ids[kept] = some[j]
                    if spare and weight != NULL:
                        weight[kept] = heavy[j]
                    kept += 1
                    if kept == left:
                        m = j + 1 if spare else place[j] + 1
                        break
            rare = not spare
        if rare and weight != NULL:
            read_weights(w, ids, weight, kept)
        call.filled += kept
        call.tries += m
        rare = 4*kept < m
    call.rare = rare

