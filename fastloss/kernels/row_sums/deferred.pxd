"""Deferred gradient store: row i's gradient is written while row i + 1 is read.

Both miss the caches; done one after the other they would take the sum of their times.
"""
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.math.sigmoid_math cimport fma
from fastloss.kernels.math.vmath cimport FL_PREFETCH, real, scaled

cdef extern from "arrays/nontemporal.h" nogil:
    void fl_put_groupf(float*, const float*, float, float, const float*, float, int) noexcept
    void fl_put_group(double*, const double*, double, double, const double*, double, int) noexcept
    void fl_stream(void*, const void*, size_t) noexcept

cdef enum:
    GROUP = 32          # elements; row_sums.pxd reads two groups at a time, so two are written
    LINE = 64           # bytes
    AHEAD = 2048        # bytes

cdef struct Deferred:
    void* target        # NULL: nothing is deferred
    const void* terms
    const void* labels
    double slope        # target = terms (slope + rest) - labels scale; labels as `dense` says
    double rest
    double scale
    double entry        # what target[at] is instead, if dense
    Py_ssize_t at
    Py_ssize_t n
    Py_ssize_t done     # elements written
    bint past           # whether to write past the caches


cdef inline void write_group(real* target, const real* terms, const real* labels, const Deferred* due,
                             bint past) noexcept nogil:
    if real is float:
        fl_put_groupf(target, terms, <float>due.slope, 0, labels, <float>due.scale, past)
    else:
        fl_put_group(target, terms, due.slope, due.rest, labels, due.scale, past)


cdef inline void put_elements(Deferred* due, bint dense, Py_ssize_t n, real dummy) noexcept nogil:
    cdef real* target = <real*>due.target + due.done
    cdef const real* terms = <const real*>due.terms + due.done
    cdef const real* labels = <const real*>due.labels + due.done if dense else NULL
    cdef real slope = <real>due.slope, rest = <real>due.rest, scale = <real>due.scale
    cdef Py_ssize_t k, at = due.at - due.done
    for k in range(n):
        target[k] = fma(-labels[k], scale, scaled(terms[k], slope, rest)) if dense else scaled(terms[k], slope, rest)
    if dense and 0 <= at < n:
        target[at] = <real>due.entry
    due.done += n


cdef inline void put_groups(Deferred* due, bint dense, int n, real dummy) noexcept nogil:
    """Writes the next n groups, one or two.  `dense` (there are labels to subtract) and n are constants."""
    cdef real groups[2*GROUP]
    cdef real* target = <real*>due.target + due.done
    cdef const real* terms = <const real*>due.terms + due.done
    cdef const real* labels = <const real*>due.labels + due.done if dense else NULL
    cdef const real* more = labels + GROUP if dense else NULL
    cdef Py_ssize_t k, at = due.at - due.done
    due.done += n*GROUP
    if dense and 0 <= at < n*GROUP:             # a line written past the caches must be whole at once
        write_group(&groups[0], terms, labels, due, False)
        if n == 2:
            write_group(&groups[GROUP], terms + GROUP, more, due, False)
        groups[at] = <real>due.entry
        if due.past:
            fl_stream(target, groups, n*GROUP*sizeof(real))
        else:
            memcpy(target, groups, n*GROUP*sizeof(real))
    elif due.past:
        write_group(target, terms, labels, due, True)
        if n == 2:
            write_group(target + GROUP, terms + GROUP, more, due, True)
    else:
        for k in range(0, n*GROUP*<Py_ssize_t>sizeof(real), 64):       # a line must be read before it can be written
            FL_PREFETCH(<char*>target + AHEAD + k)
        write_group(target, terms, labels, due, False)
        if n == 2:
            write_group(target + GROUP, terms + GROUP, more, due, False)


cdef inline void put_next(Deferred* due, bint dense, real dummy) noexcept nogil:
    """Writes the next two groups, if there are two."""
    if due.done + 2*GROUP <= due.n:
        put_groups(due, dense, 2, dummy)


cdef inline Deferred nothing_deferred() noexcept nogil:
    cdef Deferred d
    d.target = NULL
    d.terms = d.labels = NULL
    d.slope = d.rest = d.scale = d.entry = 0
    d.at = d.n = d.done = 0
    d.past = False
    return d


cdef inline Deferred what_is(const Deferred* deferred) noexcept nogil:
    """A copy, which no store of the loop can change; nothing_deferred() for NULL."""
    return deferred[0] if deferred != NULL else nothing_deferred()


cdef inline void defer(Deferred* due, bint dense, real dummy) noexcept nogil:
    """Writes up to the first whole cache line; put_next and flush write the rest of the row."""
    cdef Py_ssize_t head = <Py_ssize_t>((LINE - <uintptr_t>due.target % LINE) % LINE//sizeof(real))
    due.done = 0
    put_elements(due, dense, head if head < due.n else due.n, dummy)
    FL_PREFETCH(<char*>due.target + (due.n - 1)*<Py_ssize_t>sizeof(real))   # the next row's too: written in halves


cdef inline void put_tail(Deferred* due, real dummy) noexcept nogil:
    """Writes the tail that put_next would leave (no labels), so the next row may store its terms over this row's."""
    cdef Py_ssize_t done = due.done, rest = (due.n - done) % (2*GROUP)
    due.n -= rest
    due.done = due.n
    put_elements(due, False, rest, dummy)
    due.done = done


cdef inline void flush(Deferred* due, bint dense, real dummy) noexcept nogil:
    """Writes the rest of the row."""
    cdef Py_ssize_t done = 0
    if due.target != NULL:
        while due.done + GROUP <= due.n:
            put_groups(due, dense, 1, dummy)
            if stopped(&done, GROUP):
                due.done = due.n
        put_elements(due, dense, due.n - due.done, dummy)
        due.target = NULL
