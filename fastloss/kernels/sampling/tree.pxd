"""The tree of counts of the learned unigram: a draw and an update take a step for each level.

An entry holds what was added to the counts of its subtree and of its elder siblings'; the ones that every id begins
with are not stored.  Ids beyond the range would have counts of one too, but lie after all that can be drawn.  A node,
the entries of siblings, is a cache line: of int32 (narrow) as long as no sum can overflow, else of int64 (wide).
"""
from libc.stdint cimport int32_t, int64_t

from fastloss.kernels.math.sampler_math cimport (
    fl_add_narrow, fl_add_wide, fl_child_narrow, fl_child_wide, fl_children_narrow, fl_children_wide,
)
from fastloss.kernels.math.vmath cimport FL_PREFETCH_FAR

cdef enum:
    LEVELS = 16
    NARROW_IDS = 1 << 28                            # range and sum that a narrow tree can hold
    NARROW_SUM = 0x7FFFFFFF - NARROW_IDS

ctypedef fused Sum:
    int32_t
    int64_t

cdef struct Tree:
    void* entry
    bint wide
    bint cold                   # too large for the nearer caches
    int bits                    # a node has 2^bits entries
    int levels
    int64_t start[LEVELS]       # of each level, leaves first
    int64_t size
    const int64_t* next         # ids that will be read and raised after the next draws
    Py_ssize_t n_next


cdef inline void init_tree(Tree* t, void* entry, bint wide, int64_t n) noexcept nogil:
    """A tree of counts over n ids that lies in `entry`."""
    t.entry, t.wide, t.cold, t.bits = entry, wide, n > 1 << 14, 3 if wide else 4
    t.levels, t.size, t.n_next = 0, 0, 0
    while t.levels == 0 or n > 1:
        t.start[t.levels] = t.size
        t.levels += 1
        n = ((n - 1) >> t.bits) + 1
        t.size += n << t.bits


cdef inline int64_t n_added(const Tree* t) noexcept nogil:
    """How many ids were added."""
    return (<int64_t*>t.entry)[t.size - 1] if t.wide else (<int32_t*>t.entry)[t.size - 1]


cdef inline bint has_room(const Tree* t, int64_t m) noexcept nogil:
    """Whether m more ids can be added."""
    return t.wide or n_added(t) + m <= NARROW_SUM


cdef inline int64_t count_in(const Sum* entry, int64_t v) noexcept nogil:
    cdef int64_t younger
    if Sum is int32_t:
        younger = v & 15 != 0                       # no branch to mispredict
    else:
        younger = v & 7 != 0
    return <int64_t>entry[v] + 1 - (entry[v - younger] & -younger)


cdef inline int64_t count_of(const Tree* t, int64_t v) noexcept nogil:
    return count_in(<const int64_t*>t.entry, v) if t.wide else count_in(<const int32_t*>t.entry, v)


cdef inline void counts_of(const Tree* t, const int64_t* ids, double* counts, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i
    if t.wide:
        for i in range(m):
            counts[i] = <double>count_in(<const int64_t*>t.entry, ids[i])
    else:
        for i in range(m):
            counts[i] = <double>count_in(<const int32_t*>t.entry, ids[i])


cdef inline void prefetch_count(const Tree* t, int64_t v) noexcept nogil:
    FL_PREFETCH_FAR(<char*>t.entry + (v << (3 if t.wide else 2)))


cdef inline void prefetch_parent(const Tree* t, int64_t v) noexcept nogil:
    FL_PREFETCH_FAR(<char*>t.entry + (t.start[1] + (v >> t.bits) << (3 if t.wide else 2)))


cdef inline int64_t child_of(const Sum* nodes, int bits, int64_t* left, int64_t at) noexcept nogil:
    if Sum is int32_t:
        return at + fl_child_narrow(nodes + at, bits, left)
    else:
        return at + fl_child_wide(nodes + at, bits, left)


cdef inline void find_in_nodes(const Tree* t, const Sum* entry, int64_t* left, int64_t* ids,
                               Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t j, n_next
    cdef int64_t at
    cdef int level, bits = 4 if Sum is int32_t else 3
    cdef const Sum* nodes
    cdef const Sum* children
    level = t.levels - 1
    if Sum is int32_t:
        fl_children_narrow(entry + t.start[level], bits*level, left, ids, m)
    else:
        fl_children_wide(entry + t.start[level], bits*level, left, ids, m)
    for level in range(t.levels - 2, -1, -1):
        nodes = entry + t.start[level]
        if t.cold and level:
            children = entry + t.start[level - 1]
            n_next = t.n_next if level < 4 else 0
            for j in range(m):
                if j < n_next and level == 2:       # where memory would be idle
                    prefetch_count(t, t.next[j])
                elif j < n_next and level == 3:
                    prefetch_parent(t, t.next[j])
                at = child_of(nodes, bits*level, &left[j], ids[j] << bits)
                ids[j] = at
                FL_PREFETCH_FAR(children + (at << bits))
        else:
            for j in range(m):
                ids[j] = child_of(nodes, bits*level, &left[j], ids[j] << bits)


cdef inline void find_ids(const Tree* t, int64_t* left, int64_t* ids, Py_ssize_t m) noexcept nogil:
    """The ids that hold the places `left` in the order of all counts, which it overwrites; all abreast."""
    if t.wide:
        find_in_nodes(t, <const int64_t*>t.entry, left, ids, m)
    else:
        find_in_nodes(t, <const int32_t*>t.entry, left, ids, m)


cdef inline void add_to_node(Sum* node, const int64_t* ids, Py_ssize_t m, int shift) noexcept nogil:
    if Sum is int32_t:
        fl_add_narrow(node, ids, m, shift)
    else:
        fl_add_wide(node, ids, m, shift)


cdef inline void add_to_nodes(const Tree* t, Sum* entry, const int64_t* ids, Py_ssize_t m) noexcept nogil:
    cdef Py_ssize_t i, first, last
    cdef int level, bits = 4 if Sum is int32_t else 3
    for first in range(0, m, 64):                   # that many abreast, so that their cache misses overlap
        last = m if m - first < 64 else first + 64
        for i in range(first, last if t.cold else first):
            prefetch_count(t, ids[i])
            prefetch_parent(t, ids[i])
        for i in range(first, last):
            for level in range(t.levels - 1):
                add_to_node(entry + t.start[level] + (ids[i] >> bits*(level + 1) << bits), ids + i, 1, bits*level)
    add_to_node(entry + t.start[t.levels - 1], ids, m, bits*(t.levels - 1))


cdef inline void add_ids(const Tree* t, const int64_t* ids, Py_ssize_t m) noexcept nogil:
    """Adds one to the count of every id; there must be room."""
    if t.wide:
        add_to_nodes(t, <int64_t*>t.entry, ids, m)
    else:
        add_to_nodes(t, <int32_t*>t.entry, ids, m)
