"""The tree of counts of the learned unigram, made, changed and read: see tree.pxd."""
from libc.stdint cimport int32_t, int64_t

from fastloss.kernels.sampling.law cimport BUDGET, check_signals, data_of, view_of
from fastloss.kernels.sampling.tree cimport NARROW_IDS, NARROW_SUM, Sum, Tree, add_ids, count_of, init_tree


def is_wide(int64_t n, int64_t added):
    """Whether a tree over n ids must be wide for so many added ones."""
    return n > NARROW_IDS or added > NARROW_SUM


def tree_size(int64_t n, bint wide):
    """Entries of a tree of counts over n ids; zeros are the tree in which every count is one."""
    cdef Tree t
    init_tree(&t, NULL, wide, n)
    return t.size


cdef int take_tree(Tree* t, object tree, int64_t n) except -1:
    cdef int64_t size, itemsize = 0
    cdef void* entry = view_of(tree, &size, &itemsize, True)
    init_tree(t, entry, itemsize == 8, n)
    return 0


def tree_add(object tree, int64_t n, object ids):
    """Adds one to the count of every id, which must lie in [0, n); there must be room."""
    cdef Tree t
    cdef int64_t m
    cdef const int64_t* id = <const int64_t*>data_of(ids, &m, False)
    take_tree(&t, tree, n)
    with nogil:
        add_ids(&t, id, m)


def tree_counts(object tree, int64_t[::1] counts):
    """Reads the counts."""
    cdef Tree t
    cdef int64_t v, n = counts.shape[0]
    take_tree(&t, tree, n)
    with nogil:
        for v in range(n):
            counts[v] = count_of(&t, v)
            if v % BUDGET == BUDGET - 1:
                check_signals()


cdef int build_nodes(const Tree* t, Sum* entry, const int64_t* counts, int64_t n) except -1 nogil:
    cdef int64_t v, nodes = n, s
    cdef Py_ssize_t j
    cdef Sum* node
    cdef int level
    for v in range(n):
        entry[v] = <Sum>(counts[v] - 1)
        if v % BUDGET == BUDGET - 1:
            check_signals()
    for level in range(t.levels):
        nodes = ((nodes - 1) >> t.bits) + 1
        for v in range(nodes):
            node = entry + t.start[level] + (v << t.bits)
            s = 0
            for j in range(1 << t.bits):
                s += node[j]
                node[j] = <Sum>s
            if level + 1 < t.levels:
                entry[t.start[level + 1] + v] = <Sum>s
            if v % BUDGET == BUDGET - 1:
                check_signals()
    return 0


def tree_build(object tree, const int64_t[::1] counts):
    """Sets the counts, whose sum must fit the tree, in a tree of zeros."""
    cdef Tree t
    take_tree(&t, tree, counts.shape[0])
    with nogil:
        if t.wide:
            build_nodes(&t, <int64_t*>t.entry, &counts[0], counts.shape[0])
        else:
            build_nodes(&t, <int32_t*>t.entry, &counts[0], counts.shape[0])
