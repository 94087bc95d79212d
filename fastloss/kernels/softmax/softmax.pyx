"""Softmax cross entropy, softmax, log-softmax and log-sum-exp of rows.

Two shapes of the same work: row by row (row_sums.pxd), and for few classes tiles of transposed rows (tile.pxd); and a
slower loop in float64 for what these two do not know (float64_rows.pxd).  Which one is taken depends on options and the
number of classes alone, so a row's bits depend on nothing but the row.
"""
from libc.stdlib cimport free, malloc
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.arrays cimport (
    F64, I32, I64, NO_AXIS, Held, Rows, index_at, is_direct, load, release, row_at, stored, take,
)
from fastloss.kernels.parallel.parallel cimport blocks, cut, fl_set, pending, stopped, team
from fastloss.kernels.parallel.scratch cimport no_memory
from fastloss.kernels.softmax.empty_rows cimport amend
from fastloss.kernels.softmax.call cimport LOG_SOFTMAX, LOGSUMEXP, LOSS, SOFTMAX, SoftmaxCall
from fastloss.kernels.softmax.laws cimport CrossEntropy, Focal, Law, Poly1
from fastloss.kernels.softmax.pieces cimport Alone, Team, make_team, room_of_sums, too_few_rows
from fastloss.kernels.softmax.rows cimport index_rows, normal_rows
from fastloss.kernels.softmax.targets cimport target_rows
from fastloss.kernels.softmax.tiles cimport DENSE_TILE, index_tiles, normal_tiles, target_tiles
from fastloss.kernels.softmax.float64_rows cimport WIDE_ARRAYS, wide_room, wide_rows
from fastloss.kernels.row_sums.lane_sums cimport L
from fastloss.kernels.row_sums.row_sums cimport ROWS
from fastloss.kernels.softmax.tile cimport TILE
from fastloss.kernels.math.vmath cimport real

cdef extern from "arrays/nontemporal.h" nogil:
    int fl_streams(double, int) noexcept
    void fl_stream_end() noexcept

cdef enum:
    STRIDED = 1 << 20           # elements of scratch when rows are gathered from a strided class axis
    APART = 16384               # bytes between two threads' scratch: what is asked for ahead of one is not the other's

NORMALIZATIONS = {"softmax": SOFTMAX, "log_softmax": LOG_SOFTMAX, "logsumexp": LOGSUMEXP}


cpdef enum:             # the laws
    CROSS_ENTROPY
    FOCAL
    POLY1


cdef void run_law(const SoftmaxCall* job, const Law* law, Py_ssize_t start, Py_ssize_t stop, real* scratch,
                  Team* team) noexcept nogil:
    cdef Alone alone
    if job.wide:
        if real is double:
            wide_rows(job, law, start, stop, scratch)
    elif job.logits.width <= TILE:
        index_tiles(job, law, start, stop, scratch[0])
    elif team != NULL:
        index_rows(job, law, start, stop, scratch, team)
    else:
        index_rows(job, law, start, stop, scratch, &alone)


cdef void run_rows(const SoftmaxCall* job, Py_ssize_t start, Py_ssize_t stop, real* scratch, Team* team) noexcept nogil:
    """Some rows, each by this thread alone, or unless it is NULL by the team."""
    cdef Py_ssize_t c = job.logits.width
    cdef Alone alone
    if job.what != LOSS:
        if c <= TILE:
            normal_tiles(job, start, stop, scratch[0])
        elif team != NULL:
            normal_rows(job, start, stop, scratch, team)
        else:
            normal_rows(job, start, stop, scratch, &alone)
    elif job.wide or (job.index and not job.soft):
        if job.law == FOCAL:
            run_law(job, <const Focal*>job.parameters, start, stop, scratch, team)
        elif job.law == POLY1 or job.z_loss != 0:       # a cross entropy with z_loss: of epsilon 0, and as exact
            run_law(job, <const Poly1*>job.parameters, start, stop, scratch, team)
        else:
            run_law(job, <const CrossEntropy*>job.parameters, start, stop, scratch, team)
    elif c <= DENSE_TILE:
        target_tiles(job, start, stop, scratch[0])
    elif team != NULL:
        target_rows(job, start, stop, scratch, team)
    else:
        target_rows(job, start, stop, scratch, &alone)
    if job.stream:
        fl_stream_end()
    if not job.wide:
        amend(job, start, stop, scratch[0])


cdef struct Run:
    const SoftmaxCall* job
    bint wide
    void* scratch               # rooms of so many bytes, one a thread
    Py_ssize_t room
    Py_ssize_t blocks


cdef void run_block(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef const Run* at = <const Run*>call
    cdef Py_ssize_t start = cut(at.job.logits.n, b, at.blocks), stop = cut(at.job.logits.n, b + 1, at.blocks)
    cdef char* scratch = <char*>at.scratch + thread*at.room
    if at.wide:
        run_rows(at.job, start, stop, <double*>scratch, NULL)
    else:
        run_rows(at.job, start, stop, <float*>scratch, NULL)


cdef int run(SoftmaxCall* job, real dummy, int n_threads) except -1:
    """Every row once: in blocks of rows, or where these are few and long each by all threads."""
    cdef Py_ssize_t n = job.logits.n, c = job.logits.width, k = blocks(n, c, n_threads), room, sums = 0
    cdef int threads = team(k, n_threads)
    cdef Run at
    cdef bint direct = is_direct(&job.logits, dummy) and job.where.data == NULL, kept, built
    cdef bint together = not job.wide and too_few_rows(n, c, n_threads)
    cdef Team team_of_call
    cdef size_t size
    cdef void* memory
    job.group = ROWS
    job.together = ROWS if direct else 1
    if job.logits.step != job.logits.itemsize:
        if c*ROWS > STRIDED:
            job.group = <int>(STRIDED//c) if c < STRIDED else 1
        job.together = job.group
        if k > n_threads and k > n//job.group:      # rows that share cache lines belong together
            k = n//job.group if n//job.group > n_threads else n_threads
    job.stream = (c > TILE and job.grad.data != NULL and is_direct(&job.grad, dummy)
                  and fl_streams(<double>n*<double>c*sizeof(real), n_threads))
    kept = job.grad.data != NULL and job.what != LOG_SOFTMAX
    built = job.what == LOSS and (job.soft or (not job.index and not is_direct(&job.labels, dummy)))
    job.built = (2*c + 15)//16*16 if built else 0
    job.kept = (c + 2*L + 15)//16*16 if kept else 0
    job.fetched = job.built + (1 if together else 2)*job.kept
    room = (job.fetched + (0 if direct else job.together*c) + 31)//16*16 if c > DENSE_TILE else 16
    room = WIDE_ARRAYS*wide_room(c) if job.wide else room
    room += APART//<Py_ssize_t>sizeof(real) if threads > 1 else 0
    if together:
        threads = 1
        sums = room_of_sums(c, n_threads)
    size = threads*room*sizeof(real) + sums*sizeof(double) + 64
    memory = malloc(size)
    if memory == NULL:
        no_memory(size)
    at.job = job
    at.wide = real is double
    at.scratch = <void*>(<uintptr_t>(<char*>memory + 63)//64*64)
    at.room = room*sizeof(real)
    at.blocks = k
    try:
        with nogil:
            (<real*>at.scratch)[0] = 0
            if together:
                make_team(&team_of_call, job, real is double, n_threads, <double*>(<char*>at.scratch + at.room))
                run_rows(job, 0, n, <real*>at.scratch, &team_of_call)
            else:
                for_blocks(run_block, &at, k, n_threads)
        pending(together and team_of_call.interrupted)
    finally:
        free(memory)
    return 0


cdef inline bint any_bad(const char* y, Py_ssize_t n, Py_ssize_t c, stored dummy) noexcept nogil:
    cdef stored v
    cdef Py_ssize_t k
    cdef int bad = 0
    for k in range(n):
        memcpy(&v, y + k*<Py_ssize_t>sizeof(stored), sizeof(stored))
        bad |= (v < 0) | (v >= <stored>c)
    return bad


cdef struct Check:
    const Rows* labels
    Py_ssize_t c
    Py_ssize_t blocks
    int bad                     # atomic


cdef void check_block(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Check* at = <Check*>call
    if part_bad(at.labels, at.c, cut(at.labels.n, b, at.blocks), cut(at.labels.n, b + 1, at.blocks)):
        fl_set(&at.bad)


cdef int all_good(const Rows* labels, Py_ssize_t c, int n_threads) except -1 nogil:
    """Whether all labels are classes, at the speed of memory; False for layouts that are not the common ones."""
    cdef Check at
    if labels.ndim > 1 or labels.stride[0] != labels.itemsize:
        return False
    if labels.kind != I64 and (labels.kind != I32 or c > INT32_MAX):
        return False
    at.labels = labels
    at.c = c
    at.blocks = blocks(labels.n, 1, n_threads)
    at.bad = False
    for_blocks(check_block, &at, at.blocks, n_threads)
    return not at.bad


cdef bint part_bad(const Rows* labels, Py_ssize_t c, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    if labels.kind == I64:
        return any_bad[int64_t](labels.data + start*8, stop - start, c, 0)
    return any_bad[int32_t](labels.data + start*4, stop - start, c, 0)


cdef Py_ssize_t first_bad(const Rows* labels, Py_ssize_t c, bint has_ignore, int64_t ignore,
                          int n_threads) except -2 nogil:
    """First row whose label is no class, or -1."""
    cdef Py_ssize_t i, done = 0
    cdef int64_t y
    if not has_ignore and all_good(labels, c, n_threads):
        return -1
    for i in range(labels.n):
        y = index_at(row_at(labels, i), labels.kind)
        if (y < 0 or y >= c) and not (has_ignore and y == ignore):
            return i
        if stopped(&done, 1):
            return -2
    return -1


cdef int run_call(SoftmaxCall* job, int n_threads) except -1:
    if job.logits.n == 0 or job.logits.width == 0:
        return 0
    if job.logits.kind == F64 or job.wide:
        return run[double](job, 0, n_threads)
    return run[float](job, 0, n_threads)


cdef Py_ssize_t run_checked(SoftmaxCall* job, int n_threads) except -2:
    """-1, or the first row whose label is no class: then nothing was written."""
    cdef Py_ssize_t bad = -1
    if job.index:
        with nogil:
            bad = first_bad(&job.labels, job.logits.width, job.has_ignore, job.ignore, n_threads)
    if bad < 0:
        run_call(job, n_threads)
    return bad


cdef void no_options(SoftmaxCall* job, bint index) noexcept:
    """The plain sum of cross entropies, without anything that is optional."""
    job.what = LOSS
    job.law = CROSS_ENTROPY
    job.parameters[0] = 0
    job.index = index
    job.soft = job.wide = job.has_ignore = False
    job.ignore = 0
    job.class_weight = job.scale = NULL
    job.factor = job.temperature = 1
    job.smoothing = job.z_loss = job.softcap = job.mean = 0
    job.hessian = 0


def plain(logits, labels, int axis, bint index, loss, grad, int n_threads):
    """Cross entropies of all rows and, unless None, their gradients, without options.  Returns as losses."""
    cdef SoftmaxCall job
    cdef Held held
    held.count = 0
    try:
        take(&held, logits, axis, False, &job.logits)
        take(&held, labels, NO_AXIS if index else axis, False, &job.labels)
        take(&held, loss, NO_AXIS, True, &job.loss)
        take(&held, grad, axis, True, &job.grad)
        job.where.data = job.labels_grad.data = job.hess.data = NULL
        no_options(&job, index)
        return run_checked(&job, n_threads)
    finally:
        release(&held)


def losses(logits, labels, int axis, bint index, loss, int n_threads, *, int law=CROSS_ENTROPY, tuple parameters=(),
           grad=None, labels_grad=None, hess=None, int hessian=0, const double[::1] class_weight=None,
           const double[::1] scale=None, double factor=1, double smoothing=0, where=None, ignore=None, double mean=0,
           double z_loss=0, double softcap=0, double temperature=1):
    """Losses of all rows by a law, their gradients times scale and factor, and the Hessians' diagonals.

    Returns -1, or the first row whose label is no class: then nothing was written.
    """
    cdef SoftmaxCall job
    cdef Held held
    cdef Py_ssize_t k
    held.count = 0
    try:
        take(&held, logits, axis, False, &job.logits)
        take(&held, labels, NO_AXIS if index else axis, False, &job.labels)
        take(&held, where, axis, False, &job.where)
        take(&held, loss, NO_AXIS, True, &job.loss)
        take(&held, grad, axis, True, &job.grad)
        take(&held, labels_grad, axis, True, &job.labels_grad)
        take(&held, hess, axis, True, &job.hess)
        no_options(&job, index)
        job.law = law
        for k, value in enumerate(parameters):
            job.parameters[k] = value
        job.hessian = hessian
        job.has_ignore = ignore is not None
        job.ignore = ignore if job.has_ignore else 0
        job.class_weight = &class_weight[0] if class_weight is not None and class_weight.shape[0] else NULL
        job.scale = &scale[0] if scale is not None and scale.shape[0] else NULL
        job.factor = factor
        job.smoothing = smoothing
        job.mean = mean
        job.z_loss = z_loss
        job.softcap = softcap
        job.temperature = temperature
        job.soft = smoothing != 0 or (hess is not None if index else class_weight is not None)
        job.wide = softcap != 0 or temperature != 1 or ((law != CROSS_ENTROPY or z_loss != 0)
                                                        and (job.soft or not index))
        return run_checked(&job, n_threads)
    finally:
        release(&held)


def normalize(str name, logits, int axis, out, where, int n_threads):
    """One of NORMALIZATIONS (out: as the logits, of logsumexp one value a row) of all rows."""
    cdef SoftmaxCall job
    cdef Held held
    held.count = 0
    try:
        take(&held, logits, axis, False, &job.logits)
        take(&held, where, axis, False, &job.where)
        no_options(&job, False)
        job.what = NORMALIZATIONS[name]
        job.labels.data = job.labels_grad.data = job.hess.data = NULL
        take(&held, None if job.what == LOGSUMEXP else out, axis, True, &job.grad)
        take(&held, out if job.what == LOGSUMEXP else None, NO_AXIS, True, &job.loss)
        run_call(&job, n_threads)
    finally:
        release(&held)


def class_weights(labels, int axis, bint index, const double[::1] class_weight, ignore, Py_ssize_t c,
                  double[::1] out):
    """out = the rows' class weights: sum of class_weight times label, 0 where ignored.  Returns as cross_entropy."""
    cdef Rows rows
    cdef Held held
    cdef Py_ssize_t bad = -1, i, k, done = 0
    cdef int64_t y
    cdef double w, v
    cdef bint given_up = False
    cdef bint has_ignore = ignore is not None
    cdef int64_t ignored = ignore if has_ignore else 0
    held.count = 0
    try:
        take(&held, labels, NO_AXIS if index else axis, False, &rows)
        with nogil:
            if index:
                bad = first_bad(&rows, c, has_ignore, ignored, 1)
            for i in range(rows.n if bad < 0 else 0):
                if index:
                    y = index_at(row_at(&rows, i), rows.kind)
                    if has_ignore and y == ignored:
                        w = 0
                    elif class_weight is None:
                        w = 1
                    else:
                        w = class_weight[y] if <uint64_t>y < <uint64_t>c else 0
                else:
                    w = 0
                    for k in range(c):
                        load(&v, row_at(&rows, i) + k*rows.step, 0, 1, rows.kind)
                        if v != 0:
                            w = w + v*class_weight[k]
                out[i] = w
                if stopped(&done, 1 if index else c):
                    given_up = True
                    break
        pending(given_up)
    finally:
        release(&held)
    return bad
