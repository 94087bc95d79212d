"""Sampled losses.

Logits are made by the chunk of rows and read while they are near, one candidate a column, padded to a multiple of L
columns; those of the true classes lie apart, in float64.  One pass over a row corrects, masks, sums, and leaves the
gradient in its place.
"""
from libc.float cimport DBL_MIN
from libc.math cimport INFINITY, fabs, log
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastloss._parallel cimport for_blocks, interrupted
from fastloss.kernels.arrays.id_sets cimport slot_of
from fastloss.kernels.sampled.nce cimport FACTORS, nce_row, nce_true
from fastloss.kernels.matmul.product cimport (
    FL_CHUNK, FL_PITCH, FL_TILE, SLAB, lanes_of, least, pack_columns, pack_rows, pack_slab, parts_of, products,
    products_across, slab_size,
)
from fastloss.kernels.parallel.scratch cimport Scratches, free_scratch, new_scratch, scratch_of
from fastloss.kernels.softmax.lane_sums cimport L, add_block, row_max, settled
from fastloss.kernels.softmax.row_sums cimport (
    HEADROOM, HEADROOMF, ROWS, Reference, Source, Terms, block_sum, label_of_terms, log_ratios, next_block,
    reference_at, terms_at, whole_groups,
)
from fastloss.kernels.math.vmath cimport FL_LN2, bias_of, fl_exp_label, fl_log, fl_log1p, real

cdef enum:
    NONE = -1
    SERIAL = 1 << 21    # multiply-adds below which a second thread costs more than it saves

GATHERED = 512          # candidates packed at a time: whole lanes of either type


# ------------------------------------------------------------------ sizes of what the wrapper hands in

def padded(Py_ssize_t k):
    """Columns in whole groups of L; rows that are pages apart would share their place in the cache."""
    cdef Py_ssize_t width = parts_of(k, L)*L
    return width if width % 1024 else width + L


def sizes(Py_ssize_t itemsize, Py_ssize_t n, Py_ssize_t k, Py_ssize_t d, bint to_x, bint to_candidates,
          Py_ssize_t most):
    """How many rows `losses` takes at a time, slabs in them, and numbers in each piece of scratch.

    The pieces: candidates by rows, by columns, slabs of gradients to the logits (at most about `most` numbers), columns
    of x.
    """
    cdef Py_ssize_t lanes = lanes_of(<float>0) if itemsize == sizeof(float) else lanes_of(<double>0)
    cdef Py_ssize_t columns = parts_of(d, lanes)*lanes, rows = n if n > 1 else 1, slabs = parts_of(rows, SLAB)
    cdef Py_ssize_t some = most//(padded(k)*SLAB) if k > 0 else slabs
    if to_candidates:
        slabs = least(slabs, some if some > 1 else 1)
        rows = slabs*SLAB
    return (rows, slabs, parts_of(k, lanes)*lanes*d, k*columns if to_x else 0,
            slabs*slab_size(k) if to_candidates else 0, slabs*SLAB*columns if to_candidates else 0)


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

def index(const int64_t[::1] ids, int64_t[::1] heads, int64_t[::1] follows):
    """A table of where each id stands: `heads`, zeroed, of a power of two, and chains through equal ids."""
    cdef Py_ssize_t k
    cdef uint64_t h, mask = heads.shape[0] - 1
    with nogil:
        for k in range(ids.shape[0] - 1, -1, -1):
            h = slot_of(&heads[0], mask, &ids[0], ids[k])
            follows[k] = heads[h]
            heads[h] = k + 1


# ------------------------------------------------------------------ one row

cdef struct Job:
    bint nce
    Py_ssize_t n            # rows
    Py_ssize_t d            # of the products that are the logits
    Py_ssize_t k            # candidates
    Py_ssize_t first        # columns of z are candidates from here on
    Py_ssize_t groups       # of L columns
    Py_ssize_t stride       # from row to row of z
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
    double* loss
    double* sums            # one row of columns for each chunk; or NULL

cdef struct Operands:       # of one type with the logits
    const void* x           # [rows, d]
    const void* rows        # candidates, rows as lanes
    const void* columns     # and columns as lanes; NULL: no gradient to x
    const void* shift
    void* slopes            # slabs of gradients to the logits; NULL: not kept
    void* dx                # [n, d] or NULL


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
            at = job.heads[slot_of(job.heads, job.mask, job.ids, v)]
            while at:
                if job.first < at <= job.first + job.k:
                    z[at - 1 - job.first] = -INFINITY
                at = job.follows[at - 1]


cdef inline bint softmax_terms(const Job* job, const real* z, const double* zt, Py_ssize_t best, real m, real* e,
                               Terms* terms) noexcept nogil:
    """Sum of exp over all but the best true class; False when a logit lies too far above the reference m."""
    cdef real empty[L]
    cdef Source source
    cdef Reference at = reference_at(m)
    cdef real top, limit
    cdef double total = 0, carry = 0, t
    cdef Py_ssize_t b = 0, k
    cdef Py_ssize_t j
    limit = (<real>at.power + (HEADROOMF if real is float else HEADROOM))*<real>FL_LN2
    for j in range(L):
        empty[j] = -INFINITY
    whole_groups(&source, z, empty)
    while b < job.groups:
        next_block(&source, job.groups - b, sizeof(real))
        t = block_sum(&source, &at, e + b*L if e != NULL else NULL, &top, NULL)
        if top - <real>at.shift > limit:
            return False
        add_block(&total, &carry, t)
        b += source.n_groups
    for k in range(job.num_true):
        if k != best:
            add_block(&total, &carry, fl_exp_label(zt[k] - at.shift, at.power, bias_of(m)))
    terms.others = settled(total, carry)
    terms_at(terms, &at, zt[best])
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


cdef inline void softmax_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* logits, const real* shift,
                              real* e) noexcept nogil:
    """Rows start .. stop, of which the first lies at `logits`."""
    cdef Terms terms[ROWS]
    cdef double ratio[ROWS]
    cdef double far[ROWS]
    cdef Py_ssize_t i = start, n, r, best, k, width = job.groups*L
    cdef double s
    cdef real f
    cdef Py_ssize_t j
    cdef const double* zt
    cdef real* z
    cdef real* kept = e if job.g != NULL else NULL
    while i < stop:
        n = stop - i if stop - i < ROWS else ROWS
        for r in range(n):
            z = logits + (i + r - start)*job.stride
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
                clear(z, width, job.g + (i + r)*job.num_true, job.num_true)
                continue
            f = <real>softmax_slopes(job, i + r, best, &terms[r], s, shift[0])
            for j in range(width):          # the row's gradient takes the place of its logits
                z[j] = e[j]*f
            if job.diagonal >= 0:
                z[job.diagonal + i + r] = <real>job.g[i + r]
            if job.sums != NULL:
                add_columns(job.sums + (i + r)//SLAB*job.stride + job.first, z, job.k)
        log_ratios(n, terms, ratio, shift[0])
        for r in range(n):
            job.loss[i + r] = ratio[r] + far[r]
        i += n


cdef inline void nce_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* logits,
                          const real* shift) noexcept nogil:
    """The same for at most FACTORS columns; adds to the losses."""
    cdef double product[ROWS]
    cdef double above[ROWS]
    cdef Py_ssize_t i = start, n, r, width = job.groups*L
    cdef double s = 0
    cdef real* z
    cdef bint kept = job.g != NULL
    while i < stop:
        n = stop - i if stop - i < ROWS else ROWS
        for r in range(n):
            z = logits + (i + r - start)*job.stride
            correct(job, i + r, z, shift)
            if kept:
                s = job.factor*(job.scale[i + r] if job.scale != NULL else 1.0)
            above[r] = nce_row(z, width, <real>s, kept, &product[r])
            if kept and s == 0:
                clear(z, width, NULL, 0)
            elif job.sums != NULL:
                add_columns(job.sums + (i + r)//SLAB*job.stride + job.first, z, job.k)
        for r in range(n):
            job.loss[i + r] += above[r] + fl_log1p(product[r])
        i += n


cdef inline Py_ssize_t room_of(const Job* job, Py_ssize_t lanes) noexcept nogil:
    """Numbers of a thread's scratch: the logits of a slab, a row of terms, slabs of x and of slopes, rows of dx."""
    return ((SLAB + 1)*job.stride + 2*L + slab_size(job.d)
            + (slab_size(job.k) + SLAB*parts_of(job.d, lanes)*lanes if job.g != NULL else 0))


cdef void run_slab(const Job* job, const Operands* at, Py_ssize_t slab, real* z) noexcept nogil:
    """Losses of SLAB rows, and what their gradients are to the inputs and to the logits; z: scratch."""
    cdef Job part = job[0]
    cdef Py_ssize_t lanes = lanes_of(z[0]), d = job.d, i = slab*SLAB, n = least(SLAB, job.n - i), c, r, j
    cdef Py_ssize_t panels = parts_of(d, lanes), whole = parts_of(n, FL_TILE)*FL_TILE
    cdef const real* shift = <const real*>at.shift
    cdef const real* rows = <const real*>at.rows
    cdef real* e = z + SLAB*job.stride
    cdef real* left = e + job.stride + 2*L
    cdef real* out = left + slab_size(d)
    cdef real* slopes = out + SLAB*panels*lanes
    cdef real* dx
    pack_slab(<const real*>at.x + i*d, d, n, d, whole, left)
    for c in range(0, job.k, 512):      # FACTORS: while a part of NCE's logits is near, it is read
        if c % (1 << 13) == 1 << 12 and interrupted():
            return
        part.first = c
        part.k = least(FACTORS, job.k - c)
        part.groups = parts_of(part.k, L)
        products(left, n, d, rows + c*d, part.k, z + c, job.stride)
        if job.nce:
            nce_rows(&part, i, i + n, z + c, shift + c)
    if not job.nce:
        softmax_rows(job, i, i + n, z, shift, e)
    if at.slopes != NULL:
        slopes = <real*>at.slopes + slab*slab_size(job.k)
        whole = SLAB
    if at.slopes != NULL or at.dx != NULL:
        pack_slab(z, job.stride, n, job.k, whole, slopes)
    if at.dx != NULL:
        products(slopes, n, job.k, <const real*>at.columns, d, out, panels*lanes)
        dx = <real*>at.dx + i*d
        for r in range(n):
            for j in range(d):
                dx[r*d + j] = out[r*panels*lanes + j]


cdef struct Run:
    const Job* job
    const Operands* at
    bint wide
    Scratches scratch


cdef void run_block(void* call, Py_ssize_t slab, int thread) noexcept nogil:
    cdef Run* run = <Run*>call
    cdef char* scratch = scratch_of(&run.scratch, thread)
    if scratch == NULL:
        return
    if run.wide:
        run_slab(run.job, run.at, slab, <double*>scratch)
    else:
        run_slab(run.job, run.at, slab, <float*>scratch)


cdef int run(const Job* job, const Operands* at, int n_threads, real dummy) except -1:
    cdef Run call
    n_threads = 1 if <double>job.n*<double>job.k*<double>(job.d + 32) < SERIAL else n_threads
    call.job = job
    call.at = at
    call.wide = real is double
    new_scratch(&call.scratch, n_threads, room_of(job, lanes_of(dummy))*sizeof(real))
    try:
        with nogil:
            for_blocks(run_block, &call, parts_of(job.n, SLAB), n_threads)
    finally:
        free_scratch(&call.scratch)
    return 0


def pack_candidates(const real[:, ::1] some, Py_ssize_t first, Py_ssize_t k, real[::1] rows, real[::1] columns):
    """Candidates of k, from the first on, a multiple of GATHERED: into panels of rows and, unless empty, of columns."""
    cdef Py_ssize_t n = some.shape[0], d = some.shape[1]
    with nogil:
        if n > 0 and d > 0:
            pack_rows(&some[0, 0], n, d, &rows[first*d])
            if columns.shape[0] > 0:
                pack_columns(&some[0, 0], n, d, first, k, &columns[0])


def losses(bint nce, const real[:, ::1] x, const real[::1] rows, const real[::1] columns, Py_ssize_t k,
           Py_ssize_t stride, double slope, const real[::1] shift, double[:, ::1] zt, const int64_t[:, ::1] labels,
           const int64_t[::1] ids, const int64_t[::1] heads, const int64_t[::1] follows, Py_ssize_t diagonal,
           double[::1] loss, double[:, ::1] g, real[::1] slopes, real[:, ::1] dx, const double[::1] scale,
           double factor, double[:, ::1] sums, int n_threads):
    """The rows' losses, added to those of nce_targets for NCE.

    If there is g, gradients too: to the true logits in g, to the others in `slopes` (slabs) unless that is empty,
    summed by column in `sums` (a zeroed row for each slab), and to x in dx.  `labels` are masked where `ids` hold them
    (`heads`, `follows`: see index); in-batch `ids` are the items.  `rows`, `columns`: see pack_candidates.
    """
    cdef Job job
    cdef Operands at
    job.nce = nce
    job.n, job.d = x.shape[0], x.shape[1]
    job.first = 0
    job.k = k
    job.groups = parts_of(k, L)
    job.stride = stride
    job.num_true = zt.shape[1]
    job.diagonal = diagonal
    job.slope = slope
    job.labels = &labels[0, 0] if labels is not None else NULL
    job.ids = &ids[0] if ids is not None and labels is not None else NULL
    job.items = &ids[0] if ids is not None and labels is None else NULL
    job.heads = &heads[0] if heads is not None else NULL
    job.follows = &follows[0] if follows is not None else NULL
    job.mask = heads.shape[0] - 1 if heads is not None else 0
    job.zt = &zt[0, 0]
    job.g = &g[0, 0] if g is not None else NULL
    job.scale = &scale[0] if scale is not None else NULL
    job.factor = factor
    job.loss = &loss[0]
    job.sums = &sums[0, 0] if sums is not None else NULL
    at.x = &x[0, 0] if job.d > 0 else NULL
    at.rows = &rows[0]
    at.columns = &columns[0]
    at.shift = &shift[0]
    at.slopes = &slopes[0] if slopes.shape[0] > 0 else NULL
    at.dx = &dx[0, 0] if dx is not None and job.d > 0 else NULL
    run(&job, &at, n_threads, <real>0)


cdef struct TableJob:       # of one type
    const void* slopes      # slabs
    const void* columns     # x, columns as lanes
    void* out               # [k, d]
    Py_ssize_t slabs
    Py_ssize_t k
    Py_ssize_t d
    bint more
    bint wide
    Scratches scratch


cdef void table_block(void* call, Py_ssize_t chunk, int thread) noexcept nogil:
    cdef TableJob* job = <TableJob*>call
    cdef char* scratch = scratch_of(&job.scratch, thread)
    if scratch == NULL:
        return
    if job.wide:
        table_chunk(job, chunk, <double*>scratch)
    else:
        table_chunk(job, chunk, <float*>scratch)


cdef void table_chunk(const TableJob* job, Py_ssize_t chunk, real* sum) noexcept nogil:
    """The gradient to a chunk of candidates; sum: scratch."""
    cdef Py_ssize_t width = least(FL_CHUNK, job.k - chunk*FL_CHUNK), d = job.d, r, j
    cdef Py_ssize_t panels = parts_of(d, lanes_of(sum[0])), pitch = panels*lanes_of(sum[0])
    cdef real* out = <real*>job.out + chunk*FL_CHUNK*d
    for r in range(parts_of(width, FL_TILE)*FL_TILE):
        for j in range(pitch):
            sum[r*pitch + j] = out[r*d + j] if job.more and r < width and j < d else <real>0
    products_across(<const real*>job.slopes + chunk*SLAB*FL_PITCH, slab_size(job.k), job.slabs, width,
                    <const real*>job.columns, panels, sum, pitch)
    for r in range(width):
        for j in range(d):
            out[r*d + j] = sum[r*pitch + j]


def table_gradient(const real[::1] slopes, const real[:, ::1] x, real[::1] columns, real[:, ::1] out, bint more,
                   int n_threads):
    """out (+)= slopes of these rows, transposed, times the rows; columns: scratch for whole slabs of them."""
    cdef TableJob job
    cdef Py_ssize_t n = x.shape[0], lanes = lanes_of(<real>0), i, panels = parts_of(out.shape[1], lanes)
    job.slabs = parts_of(n, SLAB)
    job.k, job.d = out.shape[0], out.shape[1]
    if job.d == 0:
        return
    job.slopes, job.columns, job.out = &slopes[0], &columns[0], &out[0, 0]
    job.more = more
    job.wide = real is double
    n_threads = 1 if <double>n*<double>job.k*<double>job.d < SERIAL else n_threads
    new_scratch(&job.scratch, n_threads, FL_CHUNK*panels*lanes*sizeof(real))
    try:
        with nogil:
            pack_columns(&x[0, 0], n, job.d, 0, job.slabs*SLAB, &columns[0])
            for i in range(panels):         # rows that there are not
                memset(&columns[(i*job.slabs*SLAB + n)*lanes], 0, (job.slabs*SLAB - n)*lanes*sizeof(real))
            for_blocks(table_block, &job, parts_of(job.k, FL_CHUNK), n_threads)
    finally:
        free_scratch(&job.scratch)


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
