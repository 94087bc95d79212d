"""The tree of counts of the learned unigram.

An entry holds what was added to the counts of its subtree and of its elder siblings'.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from draws cimport CACHED, CHUNK, FANOUT, LEVELS, _data, _levels, _signals
from laws cimport fl_raise
from rng cimport fl_prefetch


def tree_size(int64_t n):
    """Entries of a tree of counts over n ids; zeros are the tree in which every count is one."""
    cdef int64_t start[LEVELS]
    cdef int levels
    return _levels(n, start, &levels)


def tree_add(object tree, int64_t n, object ids):
    """Adds one to the count of every id, which must lie in [0, n)."""
    cdef int64_t start[LEVELS]
    cdef int levels, level
    cdef Py_ssize_t i, first, last
    cdef int64_t size, m
    cdef uint64_t v
    cdef int64_t* entry = <int64_t*>_data(tree, &size, True)
    cdef const int64_t* id = <const int64_t*>_data(ids, &m, False)
    _levels(n, start, &levels)
    with nogil:
        for first in range(0, m, 64):
            last = m if m - first < 64 else first + 64
            for i in range(first, last if n > CACHED else first):
                fl_prefetch(entry + id[i])
                fl_prefetch(entry + start[1] + id[i]//FANOUT)
            for i in range(first, last):
                v = <uint64_t>id[i]
                for level in range(levels):
                    fl_raise(entry + start[level] + (v & ~<uint64_t>(FANOUT - 1)), v % FANOUT)
                    v //= FANOUT


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
