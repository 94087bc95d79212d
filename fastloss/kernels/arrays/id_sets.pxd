"""Sets of ids, and a hash table of where each stands in an array."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    BYTES, BITS, TABLE      # kinds of set: one for each id, or an open-addressing one of id + 1
    L1_BYTES = 1 << 14      # of the first-level cache that a set may take
    SMALL_WORDS = 512       # of a set that may lie on the stack

cdef struct IdSet:                # a set of ids
    int kind
    uint64_t* word
    int shift                   # of a TABLE
    uint64_t mask
    int64_t low             # ids below it are all there, as far as is known: draws.pxd keeps it


cdef inline uint64_t hash_of(uint64_t v) noexcept nogil:
    """v times 2^64 over the golden ratio (Knuth): the upper bits are well mixed."""
    return v*<uint64_t>0x9E3779B97F4A7C15


cdef inline uint64_t slot_of(const int64_t* table, uint64_t mask, const int64_t* ids, int64_t v) noexcept nogil:
    """Where v stands, or would, in a table of each id's place among the ids, + 1; 0: free; mask + 1 entries, a power of
    two."""
    cdef uint64_t h = hash_of(<uint64_t>v) >> 20 & mask
    while table[h] and ids[table[h] - 1] != v:
        h = (h + 1) & mask
    return h


# ------------------------------------------------------------------ sets

cdef inline void init_ids(IdSet* s, uint64_t* word, Py_ssize_t size, int64_t n) noexcept nogil:
    """An empty set in zeroed words: as many as `set_words` says, for a table a power of two."""
    s.word = word
    s.kind = BYTES if n <= 8*size else BITS if n <= 64*size else TABLE
    s.mask = size - 1
    s.low = 0
    s.shift = 64
    while size > 1:
        size >>= 1
        s.shift -= 1


cdef inline bint is_new(const IdSet* s, uint64_t v, bint insert) noexcept nogil:
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
    h = hash_of(v) >> s.shift
    while True:
        u = s.word[h]
        if u == v + 1:
            return False
        if u == 0:
            if insert:
                s.word[h] = v + 1
            return True
        h = (h + 1) & s.mask


cdef inline Py_ssize_t keep_new(const IdSet* s, int64_t* ids, double* weight, Py_ssize_t m, bint insert,
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
            if is_new(s, v, insert):
                ids[kept] = <int64_t>v
                if weight != NULL:
                    weight[kept] = weight[i]
                kept += 1
    return kept


cdef inline int64_t set_words(int64_t n, int64_t ids) noexcept nogil:
    """Words for a set of ids in [0, n): one for each where that is not much larger than a table at most half full.

    Never fewer for more ids, so that scratch for the largest of several sets serves them all.
    """
    cdef int64_t size = 8
    if ids > <int64_t>1 << 60:                      # more than there is memory for; no overflow below
        ids = <int64_t>1 << 60
    if n <= L1_BYTES and n//8 <= 4*ids:
        return n//8 + 1
    if n//64 <= 4*ids:
        return n//64 + 1
    while size < (4*ids if 4*ids <= SMALL_WORDS else 2*ids):      # emptier where that costs nothing
        size *= 2
    return size if size <= n//64 else n//64 + 1

