"""Rows of tables: gathered, multiplied with inputs, and summed where they are equal."""
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.arrays cimport Held, Rows, is_direct, load, release, row_at, store, take
from fastloss.kernels.math.reduce_lanes cimport halve_sum
from fastloss.kernels.parallel.parallel cimport pending, stopped
from fastloss.kernels.math.sigmoid_math cimport fma
from fastloss.kernels.math.vmath cimport FL_PREFETCH_FAR, real

cdef enum:
    AHEAD = 16          # table rows asked for before they are needed
    WIDE = 256          # columns of a table row converted at a time
    GRAIN = 1 << 17     # numbers that are worth a thread, and a block


cdef inline void ask_for(const Rows* table, Py_ssize_t i) noexcept nogil:
    cdef const char* p = row_at(table, i)
    cdef Py_ssize_t k, n = table.width*table.itemsize if table.step == table.itemsize else 1
    n = n if n < 1024 else 1024
    for k in range(0, n, 64):
        FL_PREFETCH_FAR(p + k)
    FL_PREFETCH_FAR(p + n - 1)


def gather(table, int axis, const int64_t[::1] rows, places, real[:, ::1] out):
    """out[places[k]] = table[rows[k]], in the type of out; `axis` as in take."""
    cdef Held held
    cdef Rows t
    cdef Py_ssize_t k, n = rows.shape[0], done = 0
    cdef const int64_t[::1] at = places
    cdef bint all_of_them = places is None, direct, given_up = False
    cdef real* target
    held.count = 0
    try:
        take(&held, table, axis, False, &t)
        with nogil:
            direct = is_direct(&t, <real>0)
            for k in range(n):
                if k + AHEAD < n:
                    ask_for(&t, rows[k + AHEAD])
                target = &out[k if all_of_them else at[k], 0]
                if direct:
                    memcpy(target, row_at(&t, rows[k]), t.width*sizeof(real))
                else:
                    load(target, row_at(&t, rows[k]), t.step, t.width, t.kind)
                if stopped(&done, t.width):
                    given_up = True
                    break
        pending(given_up)
    finally:
        release(&held)


cdef inline double dot(const real* a, const real* b, Py_ssize_t n) noexcept nogil:
    """n <= WIDE: a lane sums 8 products at most, as rounded as those of a matrix product."""
    cdef real lane[32]
    cdef double rest = 0
    cdef Py_ssize_t g, j
    for j in range(32):
        lane[j] = 0
    for g in range(0, n//32*32, 32):
        for j in range(32):
            lane[j] = fma(a[g + j], b[g + j], lane[j])
    for g in range(n//32*32, n):
        rest += <double>a[g]*<double>b[g]
    halve_sum(lane, 16)
    halve_sum(lane, 8)
    halve_sum(lane, 4)
    return rest + ((<double>lane[0] + <double>lane[2]) + (<double>lane[1] + <double>lane[3]))


def dots(table, const int64_t[::1] rows, places, Py_ssize_t num_true, const real[:, ::1] x, double[::1] out):
    """out[p] += x[p // num_true] . table[rows[k]], p = places[k]: true products, row by row of the table."""
    cdef Held held
    cdef Rows t
    cdef Py_ssize_t k, p, i, b, m, n = rows.shape[0], d = x.shape[1], done = 0
    cdef const int64_t[::1] at = places
    cdef bint all_of_them = places is None, direct, given_up = False
    cdef real w[WIDE]
    cdef const char* row
    held.count = 0
    try:
        take(&held, table, 1, False, &t)
        with nogil:
            direct = is_direct(&t, <real>0)
            for k in range(n if d > 0 else 0):
                if k + AHEAD < n:
                    ask_for(&t, rows[k + AHEAD])
                p = k if all_of_them else at[k]
                i = p if num_true == 1 else p//num_true
                row = row_at(&t, rows[k])
                b = 0
                while b < d:                    # in the same parts for every kind of table: the same sums
                    m = d - b if d - b < WIDE else WIDE
                    if direct:
                        out[p] += dot(&x[i, b], <const real*>row + b, m)
                    else:
                        load(w, row + b*t.step, t.step, m, t.kind)
                        out[p] += dot(&x[i, b], w, m)
                    b += WIDE
                if stopped(&done, d):
                    given_up = True
                    break
        pending(given_up)
    finally:
        release(&held)


def add_true(table, const int64_t[::1] rows, places, Py_ssize_t num_true, const double[::1] g, real[:, ::1] dx):
    """dx[p // num_true] += g[p] table[rows[k]], p = places[k]."""
    cdef Held held
    cdef Rows t
    cdef Py_ssize_t k, p, b, m, n = rows.shape[0], d = dx.shape[1], done = 0
    cdef Py_ssize_t j
    cdef const int64_t[::1] at = places
    cdef bint all_of_them = places is None, direct, given_up = False
    cdef real w[WIDE]
    cdef const real* v
    cdef real* target
    cdef real c
    cdef const char* row
    held.count = 0
    try:
        take(&held, table, 1, False, &t)
        with nogil:
            direct = is_direct(&t, <real>0)
            for k in range(n if d > 0 else 0):
                if k + AHEAD < n:
                    ask_for(&t, rows[k + AHEAD])
                p = k if all_of_them else at[k]
                if g[p] == 0:
                    continue
                c = <real>g[p]
                row = row_at(&t, rows[k])
                b = 0
                while b < d:
                    m = d - b if d - b < WIDE else WIDE
                    v = <const real*>row + b
                    if not direct:
                        load(w, row + b*t.step, t.step, m, t.kind)
                        v = w
                    target = &dx[p//num_true, b]
                    for j in range(m):
                        target[j] = target[j] + c*v[j]
                    b += WIDE
                if stopped(&done, d):
                    given_up = True
                    break
        pending(given_up)
    finally:
        release(&held)


def outer(const double[::1] g, Py_ssize_t num_true, const real[:, ::1] x, real[:, ::1] out):
    """out[p] = g[p] x[p // num_true]: the true classes' share of the table's gradient."""
    cdef Py_ssize_t p, d = x.shape[1], done = 0
    cdef Py_ssize_t j
    cdef const real* v
    cdef real* target
    cdef real c
    cdef bint given_up = False
    with nogil:
        for p in range(g.shape[0] if d > 0 else 0):
            v = &x[p//num_true, 0]
            target = &out[p, 0]
            c = <real>g[p]
            for j in range(d):
                target[j] = c*v[j]
            if stopped(&done, d):
                given_up = True
                break
    pending(given_up)


# ------------------------------------------------------------------ sums of equal rows

cdef struct RunSums:
    Rows values
    Rows target
    const int64_t* order
    const int64_t* starts
    const int64_t* rows     # of the target; NULL: one after the other
    double scale
    bint add
    Py_ssize_t n            # sums
    Py_ssize_t block        # and those of a block


cdef void sum_rows(void* call, Py_ssize_t block, int thread) noexcept nogil:
    cdef const RunSums* job = <const RunSums*>call
    cdef Py_ssize_t first = block*job.block, last = first + job.block if job.n - first > job.block else job.n
    cdef Py_ssize_t done = 0
    cdef double w[WIDE]
    cdef double total[WIDE]
    cdef const Rows* v = &job.values
    cdef const Rows* t = &job.target
    cdef Py_ssize_t r, k, b, m
    cdef Py_ssize_t j
    cdef char* place
    for r in range(first, last):
        place = row_at(t, job.rows[r] if job.rows != NULL else r)
        if r + AHEAD < last:
            ask_for(v, job.order[job.starts[r + AHEAD]])
            if job.rows != NULL:
                ask_for(t, job.rows[r + AHEAD])
        b = 0
        while b < t.width:
            m = t.width - b if t.width - b < WIDE else WIDE
            load(total, row_at(v, job.order[job.starts[r]]) + b*v.step, v.step, m, v.kind)
            for k in range(job.starts[r] + 1, job.starts[r + 1]):
                load(w, row_at(v, job.order[k]) + b*v.step, v.step, m, v.kind)
                for j in range(m):
                    total[j] = total[j] + w[j]
                if stopped(&done, m):               # of many equal rows
                    return
            if job.add:
                load(w, place + b*t.step, t.step, m, t.kind)
                for j in range(m):
                    total[j] = w[j] + job.scale*total[j]
            store(place + b*t.step, t.step, t.kind, total, m)
            b += WIDE


def sum_runs(values, const int64_t[::1] order, const int64_t[::1] starts, target, int n_threads, *, rows=None,
             double scale=1, bint add=False):
    """target[rows[r]] = the sum of values[order[k]], k from starts[r] to starts[r + 1]; `add`: += scale times that.

    Summed in float64, in order; rounded once.  No `rows`: target[r].
    """
    cdef Held held
    cdef RunSums job
    cdef const int64_t[::1] at = rows
    held.count = 0
    try:
        take(&held, values, 1, False, &job.values)
        take(&held, target, 1, True, &job.target)
        job.order = &order[0]
        job.starts = &starts[0]
        job.rows = &at[0] if rows is not None else NULL
        job.scale = scale
        job.add = add
        job.n = starts.shape[0] - 1
        job.block = 1 + GRAIN//(job.values.width + 1)
        with nogil:
            for_blocks(sum_rows, &job, (job.n + job.block - 1)//job.block, n_threads)
    finally:
        release(&held)
