"""Sums over rows, in float64 and in an order that does not depend on threads."""
from libc.stdlib cimport free, malloc
from libc.math cimport INFINITY

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.arrays cimport NO_AXIS, Held, Rows, load, release, row_at, store, take
from fastloss.kernels.parallel.parallel cimport blocks, cut
from fastloss.kernels.parallel.scratch cimport no_memory

cdef enum:
    PART = 16384        # elements summed by one thread; the parts' sums are added in order
    SPAN_ELEMENTS = 1024
    SUM_LANES = 16


cdef void read(const Rows* rows, Py_ssize_t i, Py_ssize_t n, double* target) noexcept nogil:
    """target = rows i .. i + n, each of one element."""
    cdef Py_ssize_t r
    if rows.ndim <= 1:
        load(target, row_at(rows, i), rows.stride[0], n, rows.kind)
    else:
        for r in range(n):
            load(target + r, row_at(rows, i + r), 0, 1, rows.kind)


cdef double part_sum(const Rows* x, const Rows* w, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Sum of x w over the elements whose w is not 0."""
    cdef double v[SPAN_ELEMENTS]
    cdef double u[SPAN_ELEMENTS]
    cdef double lane[SUM_LANES]
    cdef Py_ssize_t i = start, n, g
    cdef int j
    for j in range(SUM_LANES):
        lane[j] = 0
    while i < stop:
        n = stop - i if stop - i < SPAN_ELEMENTS else SPAN_ELEMENTS
        read(x, i, n, v)
        if w.data != NULL:
            read(w, i, n, u)
            for g in range(n):
                v[g] = v[g]*u[g] if u[g] != 0 else 0.0
        for g in range(n, (n + SUM_LANES - 1)//SUM_LANES*SUM_LANES):
            v[g] = 0
        for g in range((n + SUM_LANES - 1)//SUM_LANES):
            for j in range(SUM_LANES):
                lane[j] += v[g*SUM_LANES + j]
        i += n
    for j in range(8):
        lane[j] += lane[j + 8]
    for j in range(4):
        lane[j] += lane[j + 4]
    return (lane[0] + lane[2]) + (lane[1] + lane[3])


cdef struct Run:
    const Rows* x
    const Rows* w
    const Rows* out             # NULL: sums
    double* sums
    Py_ssize_t parts
    Py_ssize_t blocks


cdef void run_block(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef const Run* at = <const Run*>call
    cdef Py_ssize_t p, stop
    for p in range(cut(at.parts, b, at.blocks), cut(at.parts, b + 1, at.blocks)):
        stop = min(at.x.n, (p + 1)*PART)
        if at.out == NULL:
            at.sums[p] = part_sum(at.x, at.w, p*PART, stop)
        else:
            part_product(at.x, at.w, at.out, p*PART, stop)


cdef inline void set_run(Run* at, const Rows* x, const Rows* w, int n_threads) noexcept nogil:
    at.x, at.w, at.out = x, w, NULL
    at.parts = (x.n + PART - 1)//PART
    at.blocks = min(at.parts, blocks(x.n, 1, n_threads))


def weighted_sum(x, w, int n_threads):
    """Sum over x, times w if given; an element whose w is exactly 0 counts as 0."""
    cdef Rows rows, weight
    cdef Held held
    cdef Run at
    cdef Py_ssize_t p
    cdef double total = 0, carry = 0, y, z
    held.count = 0
    try:
        take(&held, x, NO_AXIS, False, &rows)
        take(&held, w, NO_AXIS, False, &weight)
        set_run(&at, &rows, &weight, n_threads)
        if at.parts <= 1:
            return part_sum(&rows, &weight, 0, rows.n)
        at.sums = <double*>malloc(at.parts*sizeof(double))
        if at.sums == NULL:
            no_memory(at.parts*sizeof(double))
        try:
            with nogil:
                for_blocks(run_block, &at, at.blocks, n_threads)
                for p in range(at.parts):       # compensated: 2^31 rows are many parts
                    z = total + at.sums[p]
                    y = z - total
                    carry += (total - (z - y)) + (at.sums[p] - y)
                    total = z
        finally:
            free(at.sums)
        return total + carry if abs(total) < <double>INFINITY else total
    finally:
        release(&held)


def multiply(x, w, out, int n_threads):
    """out = x w, exactly 0 where w is; out may be x."""
    cdef Rows rows, weight, target
    cdef Held held
    cdef Run at
    held.count = 0
    try:
        take(&held, x, NO_AXIS, False, &rows)
        take(&held, w, NO_AXIS, False, &weight)
        take(&held, out, NO_AXIS, True, &target)
        set_run(&at, &rows, &weight, n_threads)
        at.out = &target
        with nogil:
            for_blocks(run_block, &at, at.blocks, n_threads)
    finally:
        release(&held)


cdef void part_product(const Rows* x, const Rows* w, const Rows* out, Py_ssize_t start,
                       Py_ssize_t stop) noexcept nogil:
    cdef double v[SPAN_ELEMENTS]
    cdef double u[SPAN_ELEMENTS]
    cdef Py_ssize_t i = start, n, r
    while i < stop:
        n = stop - i if stop - i < SPAN_ELEMENTS else SPAN_ELEMENTS
        read(x, i, n, v)
        read(w, i, n, u)
        for r in range(n):
            v[r] = v[r]*u[r] if u[r] != 0 else 0.0
        if out.ndim <= 1:
            store(row_at(out, i), out.stride[0], out.kind, v, n)
        else:
            for r in range(n):
                store(row_at(out, i + r), 0, out.kind, v + r, 1)
        i += n
