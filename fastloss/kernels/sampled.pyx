"""Sampled losses: everything around the matrix products.

The logits of a block of rows lie in z, one candidate a column, padded to a multiple of L columns; those of the true
classes lie apart, in float64.  One pass over a row corrects, masks, sums, and leaves the gradient in its place.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.float cimport DBL_MIN
from libc.math cimport INFINITY, fabs, log
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from fastloss.kernels.arrays cimport Held, Rows, is_direct, load, release, row_at, store, take
from fastloss.kernels.due cimport Due, nothing_due
from fastloss.kernels.lanes cimport halve_sum
from fastloss.kernels.nce cimport FACTORS, nce_row, nce_true
from fastloss.kernels.special cimport fma
from fastloss.kernels.terms cimport (
    BLOCK, HEADROOM, HEADROOMF, L, ROWS, Groups, Terms, add_block, exp_block, exp_block_kept, label_of_terms,
    lanes_magic_of, log_ratios, row_max, settled,
)
from fastloss.kernels.vmath cimport (
    FL_LN2, FL_PREFETCH, bias_of, fl_exp_label, fl_log, fl_log1p, lo_of, power_of, real, shift_of,
)

cdef enum:
    NONE = -1
    AHEAD = 4           # table rows asked for before they are needed
    WIDE = 256          # columns of a table row converted at a time
    CHUNK_ROWS = 64     # rows whose gradients are summed by column in one go, for any number of threads

CHUNK = CHUNK_ROWS
LANES = L
COLUMNS = FACTORS


# ------------------------------------------------------------------ rows of tables

cdef inline void ask_for(const Rows* table, Py_ssize_t i) noexcept nogil:
    cdef const char* p = row_at(table, i)
    cdef Py_ssize_t k, n = table.width*table.itemsize if table.step == table.itemsize else 1
    n = n if n < 1024 else 1024
    for k in range(0, n, 64):
        FL_PREFETCH(p + k)
    FL_PREFETCH(p + n - 1)


def gather(table, int axis, const int64_t[::1] rows, places, real[:, ::1] out):
    """out[places[k]] = table[rows[k]], in the type of out; `axis` as in take."""
    cdef Held held
    cdef Rows t
    cdef Py_ssize_t k, n = rows.shape[0]
    cdef const int64_t[::1] at = places
    cdef bint all_of_them = places is None, direct
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
    cdef Py_ssize_t k, p, i, b, m, n = rows.shape[0], d = x.shape[1]
    cdef const int64_t[::1] at = places
    cdef bint all_of_them = places is None, direct
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
                for b in range(0, d, 256):      # WIDE, in the same parts for every kind of table: the same sums
                    m = d - b if d - b < WIDE else WIDE
                    if direct:
                        out[p] += dot(&x[i, b], <const real*>row + b, m)
                    else:
                        load(w, row + b*t.step, t.step, m, t.kind)
                        out[p] += dot(&x[i, b], w, m)
    finally:
        release(&held)


def add_true(table, const int64_t[::1] rows, places, Py_ssize_t num_true, const double[::1] g, real[:, ::1] dx):
    """dx[p // num_true] += g[p] table[rows[k]], p = places[k]."""
    cdef Held held
    cdef Rows t
    cdef Py_ssize_t k, p, b, m, n = rows.shape[0], d = dx.shape[1]
    cdef Py_ssize_t j
    cdef const int64_t[::1] at = places
    cdef bint all_of_them = places is None, direct
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
                for b in range(0, d, 256):
                    m = d - b if d - b < WIDE else WIDE
                    v = <const real*>row + b
                    if not direct:
                        load(w, row + b*t.step, t.step, m, t.kind)
                        v = w
                    target = &dx[p//num_true, b]
                    for j in range(m):
                        target[j] = target[j] + c*v[j]
    finally:
        release(&held)


def outer(const double[::1] g, Py_ssize_t num_true, const real[:, ::1] x, real[:, ::1] out):
    """out[p] = g[p] x[p // num_true]: the true classes' share of the table's gradient."""
    cdef Py_ssize_t p, d = x.shape[1]
    cdef Py_ssize_t j
    cdef const real* v
    cdef real* target
    cdef real c
    with nogil:
        for p in range(g.shape[0] if d > 0 else 0):
            v = &x[p//num_true, 0]
            target = &out[p, 0]
            c = <real>g[p]
            for j in range(d):
                target[j] = c*v[j]


# ------------------------------------------------------------------ corrections

def bad_count(const double[::1] counts):
    """Where the first expected count is that is not a positive finite number, or -1."""
    cdef Py_ssize_t k
    for k in range(counts.shape[0]):
        if not 0 < counts[k] < <double>INFINITY:
            return k
    return NONE


def subtract_log(double[::1] values, const double[::1] counts):
    """values -= log(counts), positive and finite."""
    cdef Py_ssize_t k
    with nogil:
        for k in range(values.shape[0]):
            values[k] -= fl_log(counts[k]) if counts[k] >= DBL_MIN else log(counts[k])


# ------------------------------------------------------------------ accidental hits

cdef inline uint64_t slot(const int64_t* heads, uint64_t mask, const int64_t* ids, int64_t v) noexcept nogil:
    """Where the chain of v begins, or would."""
    cdef uint64_t h = (<uint64_t>v*<uint64_t>0x9E3779B97F4A7C15) >> 20 & mask
    while heads[h] and ids[heads[h] - 1] != v:
        h = (h + 1) & mask
    return h


def index(const int64_t[::1] ids, int64_t[::1] heads, int64_t[::1] follows):
    """A table of where each id stands: `heads`, zeroed, of a power of two, and chains through equal ids."""
    cdef Py_ssize_t k
    cdef uint64_t h, mask = heads.shape[0] - 1
    with nogil:
        for k in range(ids.shape[0] - 1, -1, -1):
            h = slot(&heads[0], mask, &ids[0], ids[k])
            follows[k] = heads[h]
            heads[h] = k + 1


# ------------------------------------------------------------------ one row

cdef struct Job:
    Py_ssize_t k            # candidates
    Py_ssize_t first        # columns of z are candidates from here on
    Py_ssize_t groups       # of L columns
    Py_ssize_t num_true
    Py_ssize_t diagonal     # in-batch: the label of row i is column diagonal + i; else NONE
    double slope
    const int64_t* labels   # to be masked; or NULL
    const int64_t* ids
    const int64_t* heads
    const int64_t* follows
    uint64_t mask
    const int64_t* items    # in-batch: equal ones are masked; or NULL
    double* zt
    double* g               # gradient to zt; or NULL: no gradient
    const double* scale
    double factor
    double* sums            # one row of columns for each chunk; or NULL


cdef inline void correct(const Job* job, Py_ssize_t i, real* z, const real* shift) noexcept nogil:
    """Logits of row i: corrected, masked, padded; in-batch the label's is taken out of the row."""
    cdef Py_ssize_t j, at
    cdef real a = <real>job.slope
    cdef int64_t v
    if a == 1:
        for j in range(job.k):
            z[j] = z[j] + shift[j]
    else:
        for j in range(job.k):
            z[j] = a*z[j] + shift[j]
    for j in range(job.k, job.groups*L):
        z[j] = -INFINITY
    if job.diagonal >= 0:
        at = job.diagonal + i
        job.zt[i] = z[at]
        z[at] = -INFINITY
        if job.items != NULL:
            v = job.items[at]
            for j in range(job.k):
                z[j] = <real>-INFINITY if job.items[j] == v else z[j]
    if job.labels != NULL:
        for j in range(job.num_true):
            v = job.labels[i*job.num_true + j]
            at = job.heads[slot(job.heads, job.mask, job.ids, v)]
            while at:
                if job.first < at <= job.first + job.k:
                    z[at - 1 - job.first] = -INFINITY
                at = job.follows[at - 1]


cdef inline bint softmax_terms(const Job* job, const real* z, const double* zt, Py_ssize_t best, real m, real* e,
                               Terms* terms) noexcept nogil:
    """Sum of exp over all but the best true class; False when a logit lies too far above the reference m."""
    cdef real empty[L]
    cdef real shift = shift_of(m), power = power_of(m, shift), lo = lo_of(power)
    cdef real magic = lanes_magic_of(power), top, limit
    cdef double total = 0, carry = 0, t
    cdef Py_ssize_t b = 0, n, k
    cdef Py_ssize_t j
    cdef Groups nowhere
    cdef Due nothing
    nothing_due(&nothing, sizeof(real))
    nowhere.out = NONE
    nowhere.tail = NONE
    limit = (power + (HEADROOMF if real is float else HEADROOM))*<real>FL_LN2
    for j in range(L):
        empty[j] = -INFINITY
    while b < job.groups:
        n = job.groups - b if job.groups - b < BLOCK//L else BLOCK//L
        if e != NULL:
            t = exp_block_kept(z + b*L, n, nowhere, empty, empty, shift, lo, magic, e + b*L, &top, &nothing)
        else:
            t = exp_block(z + b*L, n, nowhere, empty, empty, empty, shift, lo, magic, NULL, &top, &nothing)
        if top - shift > limit:
            return False
        add_block(&total, &carry, t)
        b += n
    for k in range(job.num_true):
        if k != best:
            add_block(&total, &carry, fl_exp_label(zt[k] - <double>shift, power, bias_of(m)))
    terms.others = settled(total, carry)
    terms.gap = zt[best] - <double>shift
    terms.power = power
    terms.shift = shift
    return True


cdef inline Py_ssize_t softmax_row(const Job* job, Py_ssize_t i, const real* z, real* e, Terms* terms) noexcept nogil:
    """The terms of row i; returns its best true class."""
    cdef const double* zt = job.zt + i*job.num_true
    cdef Py_ssize_t best = 0, k
    cdef real m = row_max(z, L if job.groups else 0), v
    for k in range(job.num_true):
        best = k if zt[k] > zt[best] else best
    v = <real>zt[best]
    m = v if v > m else m
    if fabs(<double>m) < <double>INFINITY and softmax_terms(job, z, zt, best, m, e, terms):
        return best
    m = row_max(z, job.groups*L)
    m = v if v > m else m
    if not (fabs(<double>m) < <double>INFINITY and softmax_terms(job, z, zt, best, m, e, terms)):
        terms.others = <double>INFINITY - <double>INFINITY
        terms.gap = terms.power = terms.shift = 0
        if e != NULL:
            for k in range(job.groups*L):
                e[k] = <real>terms.others
    return best


cdef inline double softmax_slopes(const Job* job, Py_ssize_t i, Py_ssize_t best, const Terms* terms, double s,
                                  real dummy) noexcept nogil:
    """Gradients to the true logits of row i; returns what multiplies the terms of the others."""
    cdef double total = terms.others + label_of_terms(terms, dummy), share = 1/<double>job.num_true
    cdef Py_ssize_t k
    cdef double* g = job.g + i*job.num_true
    cdef const double* zt = job.zt + i*job.num_true
    for k in range(job.num_true):
        if k == best:       # 1 - share without rounding where there is one class: minus the sum of the others
            g[k] = s*((job.num_true - 1)*share - terms.others/total)
        else:
            g[k] = s*(fl_exp_label(zt[k] - terms.shift, terms.power, bias_of(dummy))/total - share)
    return s/total


# ------------------------------------------------------------------ all rows

cdef inline void clear(real* z, Py_ssize_t n, double* g, Py_ssize_t num_true) noexcept nogil:
    """The gradient of a row that does not count: exactly 0, whatever the row holds."""
    cdef Py_ssize_t k
    for k in range(n):
        z[k] = 0
    for k in range(num_true):
        g[k] = 0


cdef inline void add_columns(double* sums, const real* z, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(n):
        sums[j] = sums[j] + <double>z[j]


cdef void softmax_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* logits, const real* shift, real* loss,
                       real* e) noexcept nogil:
    cdef Terms terms[ROWS]
    cdef double ratio[ROWS]
    cdef double far[ROWS]
    cdef Py_ssize_t i = start, n, r, best, k, stride = job.groups*L
    cdef double s
    cdef real f
    cdef Py_ssize_t j
    cdef const double* zt
    cdef real* z
    cdef real* kept = e if job.g != NULL else NULL
    while i < stop:
        n = stop - i if stop - i < ROWS else ROWS
        for r in range(n):
            z = logits + (i + r)*stride
            zt = job.zt + (i + r)*job.num_true
            correct(job, i + r, z, shift)
            best = softmax_row(job, i + r, z, kept, &terms[r])
            far[r] = 0
            for k in range(job.num_true):
                if k != best:
                    far[r] += zt[best] - zt[k]
            far[r] = far[r]/job.num_true
            if job.g == NULL:
                continue
            s = job.factor*(job.scale[i + r] if job.scale != NULL else 1.0)
            if s == 0:
                clear(z, stride, job.g + (i + r)*job.num_true, job.num_true)
                continue
            f = <real>softmax_slopes(job, i + r, best, &terms[r], s, shift[0])
            for j in range(stride):         # the row's gradient takes the place of its logits
                z[j] = e[j]*f
            if job.diagonal >= 0:
                z[job.diagonal + i + r] = <real>job.g[i + r]
            if job.sums != NULL:
                add_columns(job.sums + (i + r)//CHUNK_ROWS*stride, z, job.k)
        log_ratios(n, terms, ratio, shift[0])
        for r in range(n):
            loss[i + r] = <real>(ratio[r] + far[r])
        i += n


cdef void nce_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* logits, const real* shift,
                   double* loss, bint kept) noexcept nogil:
    cdef double product[ROWS]
    cdef double above[ROWS]
    cdef Py_ssize_t i = start, n, r, stride = job.groups*L
    cdef double s = 0
    cdef real* z
    while i < stop:
        n = stop - i if stop - i < ROWS else ROWS
        for r in range(n):
            z = logits + (i + r)*stride
            correct(job, i + r, z, shift)
            if kept:
                s = job.factor*(job.scale[i + r] if job.scale != NULL else 1.0)
            above[r] = nce_row(z, stride, <real>s, kept, &product[r])
            if kept and s == 0:
                clear(z, stride, NULL, 0)
            elif job.sums != NULL:
                add_columns(job.sums + (i + r)//CHUNK_ROWS*stride, z, job.k)
        for r in range(n):
            loss[i + r] = loss[i + r] + (above[r] + fl_log1p(product[r]))
        i += n


cdef int describe(Job* job, Py_ssize_t first, Py_ssize_t k, Py_ssize_t groups, const int64_t[:, ::1] labels,
                  const int64_t[::1] ids, const int64_t[::1] heads, const int64_t[::1] follows,
                  const double[::1] scale, double factor, double[:, ::1] sums) except -1:
    """What both losses have in common."""
    job.first = first
    job.k = k
    job.groups = groups
    job.diagonal = NONE
    job.slope = 1
    job.labels = &labels[0, 0] if labels is not None else NULL
    job.num_true = labels.shape[1] if labels is not None else 0
    job.ids = &ids[0] if ids is not None and labels is not None else NULL
    job.items = &ids[0] if ids is not None and labels is None else NULL
    job.heads = &heads[0] if heads is not None else NULL
    job.follows = &follows[0] if follows is not None else NULL
    job.mask = heads.shape[0] - 1 if heads is not None else 0
    job.zt = NULL
    job.g = NULL
    job.scale = &scale[0] if scale is not None else NULL
    job.factor = factor
    job.sums = &sums[0, 0] if sums is not None else NULL
    return 0


def softmax(real[:, ::1] z, Py_ssize_t k, double slope, const real[::1] shift, double[:, ::1] zt,
            const int64_t[:, ::1] labels, const int64_t[::1] ids, const int64_t[::1] heads,
            const int64_t[::1] follows, Py_ssize_t diagonal, real[::1] loss, double[:, ::1] g,
            const double[::1] scale, double factor, double[:, ::1] sums, Py_ssize_t start, Py_ssize_t stop):
    """Losses of rows start .. stop, and, if there is g, their gradients: to the true logits in g, to the others in z.

    `labels` are masked where `ids` hold them (`heads`, `follows`: see index); in-batch `ids` are the items.  `sums` has
    a row of column sums, zeroed, for every CHUNK rows.
    """
    cdef Job job
    cdef real* e
    if stop <= start:
        return
    describe(&job, 0, k, z.shape[1]//L, labels, ids, heads, follows, scale, factor, sums)
    job.diagonal = diagonal
    job.slope = slope
    job.num_true = zt.shape[1]
    job.zt = &zt[0, 0]
    job.g = &g[0, 0] if g is not None else NULL
    e = <real*>PyMem_RawMalloc((z.shape[1] + 2*L)*sizeof(real))
    if e == NULL:
        raise MemoryError()
    with nogil:
        softmax_rows(&job, start, stop, &z[0, 0], &shift[0], &loss[0], e)
    PyMem_RawFree(e)


def nce(real[:, ::1] z, Py_ssize_t first, Py_ssize_t k, const real[::1] shift, const int64_t[:, ::1] labels,
        const int64_t[::1] ids, const int64_t[::1] heads, const int64_t[::1] follows, double[::1] loss, bint kept,
        const double[::1] scale, double factor, double[:, ::1] sums, Py_ssize_t start, Py_ssize_t stop):
    """loss += the losses of at most COLUMNS candidates from the `first` on; z becomes their gradients if `kept`."""
    cdef Job job
    if stop <= start:
        return
    describe(&job, first, k, z.shape[1]//L, labels, ids, heads, follows, scale, factor, sums)
    with nogil:
        nce_rows(&job, start, stop, &z[0, 0], &shift[first], &loss[0], kept)


def nce_targets(const double[:, ::1] zt, double[::1] loss, double[:, ::1] g, const double[::1] scale, double factor):
    """loss = the losses of the true logits; their gradients in g."""
    cdef double s[ROWS]
    cdef double term[ROWS]
    cdef double* slopes
    cdef Py_ssize_t num_true = zt.shape[1], total = zt.shape[0]*num_true, p = 0, n, r
    with nogil:
        for r in range(zt.shape[0]):
            loss[r] = 0
        while p < total:
            n = total - p if total - p < ROWS else ROWS
            slopes = NULL
            if g is not None:
                slopes = &g[0, 0] + p
                for r in range(n):
                    s[r] = factor*(scale[(p + r)//num_true] if scale is not None else 1.0)
            nce_true(&zt[0, 0] + p, n, num_true, s if slopes != NULL else NULL, term, slopes)
            for r in range(n):
                loss[(p + r)//num_true] += term[r]
            p += n


# ------------------------------------------------------------------ sums of equal rows

def sum_runs(values, const int64_t[::1] order, const int64_t[::1] starts, target, rows, double scale, bint add,
             Py_ssize_t first, Py_ssize_t last):
    """target[rows[r]] (+)= scale times the sum of values[order[k]], k from starts[r] to starts[r + 1].

    Summed in float64, in order; rounded once.  No `rows`: target[r].
    """
    cdef Held held
    cdef Rows v, t
    cdef const int64_t[::1] at = rows
    cdef bint compact = rows is None
    cdef double w[WIDE]
    cdef double total[WIDE]
    cdef Py_ssize_t r, k, b, m
    cdef Py_ssize_t j
    cdef char* place
    held.count = 0
    try:
        take(&held, values, 1, False, &v)
        take(&held, target, 1, True, &t)
        with nogil:
            for r in range(first, last):
                place = row_at(&t, r if compact else at[r])
                if r + AHEAD < last:
                    ask_for(&v, order[starts[r + AHEAD]])
                    if not compact:
                        ask_for(&t, at[r + AHEAD])
                for b in range(0, t.width, 256):
                    m = t.width - b if t.width - b < WIDE else WIDE
                    load(total, row_at(&v, order[starts[r]]) + b*v.step, v.step, m, v.kind)
                    for k in range(starts[r] + 1, starts[r + 1]):
                        load(w, row_at(&v, order[k]) + b*v.step, v.step, m, v.kind)
                        for j in range(m):
                            total[j] = total[j] + w[j]
                    if add:
                        load(w, place + b*t.step, t.step, m, t.kind)
                        for j in range(m):
                            total[j] = w[j] + scale*total[j]
                    store(place + b*t.step, t.step, t.kind, total, m)
    finally:
        release(&held)
