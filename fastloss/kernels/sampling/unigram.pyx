"""The tree of counts of the learned unigram, made, changed and read: see tree.pxd."""
from libc.stdint cimport int32_t, int64_t

from fastloss.kernels.sampling.draws cimport BUDGET, _data, _signals, _view
from fastloss.kernels.sampling.tree cimport NARROW_IDS, NARROW_SUM, Sum, Tree, count_of, learn, plant


def is_wide(int64_t n, int64_t added):
    """Whether a tree over n ids must be wide for so many added ones."""
    return n > NARROW_IDS or added > NARROW_SUM


def tree_size(int64_t n, bint wide):
    """Entries of a tree of counts over n ids; zeros are the tree in which every count is one."""
    cdef Tree t
    plant(&t, NULL, wide, n)
    return t.size


cdef int _tree(Tree* t, object tree, int64_t n) except -1:
    cdef int64_t size, itemsize = 0
    cdef void* entry = _view(tree, &size, &itemsize, True)
    plant(t, entry, itemsize == 8, n)
    return 0


def tree_add(object tree, int64_t n, object ids):
    """Adds one to the count of every id, which must lie in [0, n); there must be room."""
    cdef Tree t
    cdef int64_t m
    cdef const int64_t* id = <const int64_t*>_data(ids, &m, False)
    _tree(&t, tree, n)
    with nogil:
        learn(&t, id, m)


def tree_counts(object tree, int64_t[::1] counts):
    """Reads the counts."""
    cdef Tree t
    cdef int64_t v, n = counts.shape[0]
    _tree(&t, tree, n)
    with nogil:
        for v in range(n):
            counts[v] = count_of(&t, v)
            if v % BUDGET == BUDGET - 1:
                _signals()


cdef int _build(const Tree* t, Sum* entry, const int64_t* counts, int64_t n) except -1 nogil:
    cdef int64_t v, nodes = n, s
    cdef Py_ssize_t j
    cdef Sum* node
    cdef int level
    for v in range(n):
        entry[v] = <Sum>(counts[v] - 1)
        if v % BUDGET == BUDGET - 1:
            _signals()
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
                _signals()
    return 0


def tree_build(object tree, const int64_t[::1] counts):
    """Sets the counts, whose sum must fit the tree, in a tree of zeros."""
    cdef Tree t
    _tree(&t, tree, counts.shape[0])
    with nogil:
        if t.wide:
            _build(&t, <int64_t*>t.entry, &counts[0], counts.shape[0])
        else:
            _build(&t, <int32_t*>t.entry, &counts[0], counts.shape[0])
