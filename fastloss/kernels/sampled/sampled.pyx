"""Sampled losses.

Logits are made by the chunk of rows and read while they are near (slab.pxd), one candidate a column, padded to a
multiple of L columns; those of the true classes lie apart, in float64.
"""
from libc.float cimport DBL_MIN
from libc.math cimport INFINITY, log
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.id_sets cimport slot_of
from fastloss.kernels.math.vmath cimport fl_log, real
from fastloss.kernels.matmul.product cimport (
    FL_CHUNK, SERIAL, SLAB, lanes_of, least, pack_columns, pack_rows, parts_of, slab_size,
)
from fastloss.kernels.parallel.scratch cimport Scratches, free_scratch, new_scratch, scratch_of
from fastloss.kernels.sampled.call cimport Operands, SampledCall
from fastloss.kernels.sampled.nce cimport nce_true
from fastloss.kernels.sampled.slab cimport room_of, run_slab
from fastloss.kernels.sampled.table_gradient cimport TableGradient, table_block
from fastloss.kernels.row_sums.lane_sums cimport L
from fastloss.kernels.row_sums.row_sums cimport ROWS

cdef enum:
    NONE = -1

GATHERED = 512          # candidates packed at a time: whole lanes of either type


# ------------------------------------------------------------------ sizes of what the wrapper hands in

def padded(Py_ssize_t k):
    """Columns in whole groups of L; rows that are pages apart would share their place in the cache."""
    cdef Py_ssize_t width = parts_of(k, L)*L
    return width if width % 1024 else width + L


def sizes(Py_ssize_t itemsize, Py_ssize_t n, Py_ssize_t k, Py_ssize_t d, *, bint to_x, bint to_candidates,
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


# ------------------------------------------------------------------ all rows

cdef struct Run:
    const SampledCall* call
    const Operands* at
    bint wide
    Scratches scratch


cdef void run_block(void* of, Py_ssize_t slab, int thread) noexcept nogil:
    cdef Run* run = <Run*>of
    cdef char* scratch = scratch_of(&run.scratch, thread)
    if scratch == NULL:
        return
    if run.wide:
        run_slab(run.call, run.at, slab, <double*>scratch)
    else:
        run_slab(run.call, run.at, slab, <float*>scratch)


cdef int run(const SampledCall* call, const Operands* at, int n_threads, real dummy) except -1:
    cdef Run of
    n_threads = 1 if <double>call.n*<double>call.k*<double>(call.d + 32) < SERIAL else n_threads
    of.call = call
    of.at = at
    of.wide = real is double
    new_scratch(&of.scratch, n_threads, room_of(call, lanes_of(dummy))*sizeof(real))
    try:
        with nogil:
            for_blocks(run_block, &of, parts_of(call.n, SLAB), n_threads)
    finally:
        free_scratch(&of.scratch)
    return 0


def pack_candidates(const real[:, ::1] some, Py_ssize_t first, Py_ssize_t k, real[::1] rows, real[::1] columns):
    """Candidates of k, from the first on, a multiple of GATHERED: into panels of rows and, unless empty, of columns."""
    cdef Py_ssize_t n = some.shape[0], d = some.shape[1]
    with nogil:
        if n > 0 and d > 0:
            pack_rows(&some[0, 0], n, d, &rows[first*d])
            if columns.shape[0] > 0:
                pack_columns(&some[0, 0], n, d, first, k, &columns[0])


def losses(const real[:, ::1] x, double[:, ::1] true_logits, double[::1] loss, int n_threads, *, bint nce,
           Py_ssize_t k, Py_ssize_t stride, const real[::1] rows, const real[::1] columns, double slope,
           const real[::1] shift, const int64_t[:, ::1] labels, const int64_t[::1] ids, const int64_t[::1] heads,
           const int64_t[::1] follows, Py_ssize_t diagonal, const double[::1] scale, double factor,
           double[:, ::1] true_grad, real[:, ::1] x_grad, real[::1] slopes, double[:, ::1] sums):
    """The rows' losses, added to those of nce_targets for NCE.

    The logits of k candidates, `stride` from row to row, are products with x times `slope`, plus `shift`; `rows` and
    `columns`: see pack_candidates.  `labels` are masked where `ids` hold them (`heads`, `follows`: see index).  With
    `diagonal`, not -1, row i's label is candidate diagonal + i, and others of its `ids` are masked.
    If there is true_grad, gradients too, times `scale` and `factor`: to the true logits there, to the others in
    `slopes` (slabs) unless that is empty, summed by column in `sums` (a zeroed row for each slab), to x in x_grad.
    """
    cdef SampledCall call
    cdef Operands at
    call.nce = nce
    call.n, call.d = x.shape[0], x.shape[1]
    call.first = 0
    call.k = k
    call.groups = parts_of(k, L)
    call.stride = stride
    call.num_true = true_logits.shape[1]
    call.diagonal = diagonal
    call.slope = slope
    call.labels = &labels[0, 0] if labels is not None else NULL
    call.ids = &ids[0] if ids is not None and labels is not None else NULL
    call.items = &ids[0] if ids is not None and labels is None else NULL
    call.heads = &heads[0] if heads is not None else NULL
    call.follows = &follows[0] if follows is not None else NULL
    call.mask = heads.shape[0] - 1 if heads is not None else 0
    call.true_logits = &true_logits[0, 0]
    call.true_grad = &true_grad[0, 0] if true_grad is not None else NULL
    call.scale = &scale[0] if scale is not None else NULL
    call.factor = factor
    call.loss = &loss[0]
    call.sums = &sums[0, 0] if sums is not None else NULL
    at.x = &x[0, 0] if call.d > 0 else NULL
    at.rows = &rows[0]
    at.columns = &columns[0]
    at.shift = &shift[0]
    at.slopes = &slopes[0] if slopes.shape[0] > 0 else NULL
    at.dx = &x_grad[0, 0] if x_grad is not None and call.d > 0 else NULL
    run(&call, &at, n_threads, <real>0)


def table_gradient(const real[::1] slopes, const real[:, ::1] x, real[::1] columns, real[:, ::1] out, bint more,
                   int n_threads):
    """out (+)= slopes of these rows, transposed, times the rows; columns: scratch for whole slabs of them."""
    cdef TableGradient call
    cdef Py_ssize_t n = x.shape[0], lanes = lanes_of(<real>0), i, panels = parts_of(out.shape[1], lanes)
    call.slabs = parts_of(n, SLAB)
    call.k, call.d = out.shape[0], out.shape[1]
    if call.d == 0:
        return
    call.slopes, call.columns, call.out = &slopes[0], &columns[0], &out[0, 0]
    call.more = more
    call.wide = real is double
    n_threads = 1 if <double>n*<double>call.k*<double>call.d < SERIAL else n_threads
    new_scratch(&call.scratch, n_threads, FL_CHUNK*panels*lanes*sizeof(real))
    try:
        with nogil:
            pack_columns(&x[0, 0], n, call.d, 0, call.slabs*SLAB, &columns[0])
            for i in range(panels):         # rows that there are not
                memset(&columns[(i*call.slabs*SLAB + n)*lanes], 0, (call.slabs*SLAB - n)*lanes*sizeof(real))
            for_blocks(table_block, &call, parts_of(call.k, FL_CHUNK), n_threads)
    finally:
        free_scratch(&call.scratch)


def nce_targets(const double[:, ::1] true_logits, double[::1] loss, double[:, ::1] true_grad, const double[::1] scale,
                double factor):
    """loss = the losses of the true logits; their gradients, if asked for, in true_grad."""
    cdef double s[ROWS]
    cdef double term[ROWS]
    cdef double* slopes
    cdef Py_ssize_t num_true = true_logits.shape[1], total = true_logits.shape[0]*num_true, p = 0, n, r
    with nogil:
        for r in range(true_logits.shape[0]):
            loss[r] = 0
        while p < total:
            n = total - p if total - p < ROWS else ROWS
            slopes = NULL
            if true_grad is not None:
                slopes = &true_grad[0, 0] + p
                for r in range(n):
                    s[r] = factor*(scale[(p + r)//num_true] if scale is not None else 1.0)
            nce_true(&true_logits[0, 0] + p, n, num_true, s if slopes != NULL else NULL, term, slopes)
            for r in range(n):
                loss[(p + r)//num_true] += term[r]
            p += n
