"""A row of terms whose gradient is still to be written: that happens bit by bit while the next row is read.

Reading misses the caches and so does writing; one after the other would cost their sum.
"""
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from fastloss.kernels.parallel cimport stopped
from fastloss.kernels.special cimport fma
from fastloss.kernels.vmath cimport FL_PREFETCH, real, scaled

cdef extern from "stream.h" nogil:
    void fl_put_groupf(float*, const float*, float, float, const float*, float, int) noexcept
    void fl_put_group(double*, const double*, double, double, const double*, double, int) noexcept
    void fl_stream(void*, const void*, size_t) noexcept

cdef enum:
    GROUP = 32          # elements; terms.pxd reads two groups at a time, so two are written
    LINE = 64           # bytes
    AHEAD = 2048        # bytes

cdef struct Due:
    void* target        # NULL: nothing is due
    const void* terms
    const void* labels
    double slope        # target = terms (slope + rest) - labels scale; labels as `dense` says
    double rest
    double scale
    double entry        # but this one, if dense
    Py_ssize_t at       # here
    Py_ssize_t n
    Py_ssize_t done     # elements written
    bint past           # the caches
    const char* ahead   # what to fetch meanwhile instead of the logits further on, which are but copies; or NULL
    Py_ssize_t pace     # bytes of it for each group of logits


cdef inline void write_group(real* target, const real* terms, const real* labels, const Due* due,
                             bint past) noexcept nogil:
    if real is float:
        fl_put_groupf(target, terms, <float>due.slope, 0, labels, <float>due.scale, past)
    else:
        fl_put_group(target, terms, due.slope, due.rest, labels, due.scale, past)


cdef inline void put_elements(Due* due, bint dense, Py_ssize_t n, real dummy) noexcept nogil:
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


cdef inline void put_groups(Due* due, bint dense, int n, real dummy) noexcept nogil:
    """The next n groups, one or two; `dense`, whether there are labels to subtract, and n are constants."""
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
        for k in range(0, n*GROUP*<Py_ssize_t>sizeof(real), 64):       # lines are read before they are written: in time
            FL_PREFETCH(<char*>target + AHEAD + k)
        write_group(target, terms, labels, due, False)
        if n == 2:
            write_group(target + GROUP, terms + GROUP, more, due, False)


cdef inline void put_due(Due* due, bint dense, real dummy) noexcept nogil:
    """The next two groups, if there are two."""
    if due.done + 2*GROUP <= due.n:
        put_groups(due, dense, 2, dummy)


cdef inline void nothing_due(Due* due, Py_ssize_t itemsize) noexcept nogil:
    due.target = NULL
    due.terms = due.labels = NULL
    due.slope = due.rest = due.scale = due.entry = 0
    due.at = due.n = due.done = 0
    due.past = False
    due.ahead = NULL
    due.pace = GROUP*itemsize


cdef inline void defer(Due* due, bint dense, void* target, const real* terms, Py_ssize_t n, double slope, double rest,
                       const real* labels, double scale, Py_ssize_t at, double entry, bint past) noexcept nogil:
    """target[k] = terms[k] (slope + rest) - labels[k] scale, but if dense target[at] = entry, when there is time."""
    cdef Py_ssize_t head
    due.target = target
    due.terms = terms
    due.labels = labels
    due.slope = slope
    due.rest = rest
    due.scale = scale
    due.entry = entry
    due.at = at
    due.n = n
    due.done = 0
    due.past = past
    head = <Py_ssize_t>((LINE - <uintptr_t>target % LINE) % LINE//sizeof(real))
    put_elements(due, dense, head if head < n else n, terms[0])
    FL_PREFETCH(<char*>target + (n - 1)*<Py_ssize_t>sizeof(real))       # the next row's too: written in two halves


cdef inline void put_tail(Due* due, real dummy) noexcept nogil:
    """What put_due would leave, of a row without labels: so the next row's terms may take the places of this one's."""
    cdef Py_ssize_t done = due.done, rest = (due.n - done) % (2*GROUP)
    due.n -= rest
    due.done = due.n
    put_elements(due, False, rest, dummy)
    due.done = done


cdef inline void settle(Due* due, bint dense, real dummy) noexcept nogil:
    """Writes what is left of the row."""
    cdef Py_ssize_t done = 0
    if due.target != NULL:
        while due.done + GROUP <= due.n:
            put_groups(due, dense, 1, dummy)
            if stopped(&done, GROUP):
                due.done = due.n
        put_elements(due, dense, due.n - due.done, dummy)
        due.target = NULL
