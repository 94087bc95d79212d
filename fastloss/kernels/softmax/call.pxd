"""What one call of the softmax kernels is about: its arrays, and its options row by row."""
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from fastloss.kernels.arrays.arrays cimport (
    I64, Rows, even_run, index_at, is_direct, load, row_at, run_stride, store,
)
from fastloss.kernels.row_sums.row_sums cimport ROWS
from fastloss.kernels.math.vmath cimport fl_quotient_rest, real

cdef extern from "arrays/nontemporal.h" nogil:
    void fl_stream(void*, const void*, size_t) noexcept

ctypedef fused target:          # targets as they lie, or built in float64: see targets()
    float
    double

cdef enum:                      # what is asked for
    LOSS
    SOFTMAX
    LOG_SOFTMAX
    LOGSUMEXP
cdef enum:                      # what is written as Hessian; its numbers are those of _softmax.HESSIANS
    DIAGONAL
    UPPER                       # twice that
    RESIDUAL                    # the gradient's magnitude

cdef struct SoftmaxCall:
    int what
    Rows logits
    Rows labels                 # class indices, or one target per class
    Rows where                  # True: the class takes part
    Rows loss                   # or log-sum-exp
    Rows grad                   # or softmax, log-softmax
    Rows labels_grad
    Rows hess                   # diagonal of the Hessian, or what stands for it; only beside grad
    int law                     # of the losses: one of softmax.pyx's numbers
    double parameters[4]        # its tag
    bint index                  # labels are class indices
    bint soft                   # the row's targets are not the bare label: see targets()
    bint wide                   # what only float64_rows.pxd can do is asked for
    bint has_ignore
    bint stream
    int64_t ignore
    const double* class_weight  # [c] or NULL
    const double* scale         # [n] or NULL: what the row's gradient is multiplied by
    double factor               # and every row's
    double smoothing
    double z_loss               # its factor
    double softcap              # 0: none
    double temperature
    int hessian
    double mean                 # of the loss, where the labels' gradient has to go through its denominator
    int group                   # rows whose losses are finished together
    int together                # rows fetched together: where their elements share cache lines
    Py_ssize_t built            # elements of scratch: targets in float64,
    Py_ssize_t kept             # then the terms of one row, and of another,
    Py_ssize_t fetched          # then gathered rows, from here on


# ------------------------------------------------------------------ rows in, rows out

cdef inline void mask(real* x, const Rows* where, Py_ssize_t i) noexcept nogil:
    cdef const char* p = row_at(where, i)
    cdef Py_ssize_t k
    for k in range(where.width):
        x[k] = x[k] if p[k*where.step] else <real>(-INFINITY)


cdef inline Rows piece_of_rows(const Rows* rows, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """Elements start .. start + n of every row."""
    cdef Rows piece = rows[0]
    piece.width = n
    if piece.data != NULL:
        piece.data += start*piece.step
    return piece


cdef inline void fetch(const Rows* rows, const Rows* where, Py_ssize_t i, Py_ssize_t n, real* scratch,
                       Py_ssize_t pitch, const real** row) noexcept nogil:
    """row[r], unless NULL, = row i + r: where it lies, or converted and masked in scratch, `pitch` elements apart."""
    cdef real across[ROWS]
    cdef Py_ssize_t r, k, c = rows.width
    if where.data == NULL and is_direct(rows, scratch[0]):
        for r in range(n):
            row[r] = <const real*>row_at(rows, i + r)
        return
    if n > 1 and rows.step != rows.itemsize and even_run(rows, i, n):   # across the rows, which share cache lines
        for k in range(c):
            load(across, row_at(rows, i) + k*rows.step, run_stride(rows), n, rows.kind)
            for r in range(n):
                scratch[r*pitch + k] = across[r]
    else:
        for r in range(n):
            load(scratch + r*pitch, row_at(rows, i + r), rows.step, c, rows.kind)
    for r in range(n):
        if row != NULL:
            row[r] = scratch + r*pitch
        if where.data != NULL:
            mask(scratch + r*pitch, where, i + r)


cdef inline void put(const Rows* rows, Py_ssize_t i, Py_ssize_t k, const real* v, Py_ssize_t n,
                     bint stream) noexcept nogil:
    """Elements k .. k + n of row i = v."""
    if stream:
        fl_stream(row_at(rows, i) + k*<Py_ssize_t>sizeof(real), v, n*sizeof(real))
    else:
        store(row_at(rows, i) + k*rows.step, rows.step, rows.kind, v, n)


cdef inline void put_one(const Rows* rows, Py_ssize_t i, Py_ssize_t k, real v) noexcept nogil:
    store(row_at(rows, i) + k*rows.step, rows.step, rows.kind, &v, 1)


cdef inline void put_run(const Rows* rows, Py_ssize_t i, Py_ssize_t n, const real* v) noexcept nogil:
    """Rows i .. i + n, of one element each, = v."""
    cdef Py_ssize_t r
    if even_run(rows, i, n):
        store(row_at(rows, i), run_stride(rows), rows.kind, v, n)
    else:
        for r in range(n):
            store(row_at(rows, i + r), 0, rows.kind, v + r, 1)


cdef inline void put_zeros(const Rows* rows, Py_ssize_t i) noexcept nogil:
    """Row i = 0, if there is such an array."""
    cdef Py_ssize_t k
    if rows.data == NULL:
        return
    if rows.step == rows.itemsize:
        memset(row_at(rows, i), 0, rows.width*rows.itemsize)
    else:
        for k in range(rows.width):
            memset(row_at(rows, i) + k*rows.step, 0, rows.itemsize)


# ------------------------------------------------------------------ labels and scales

cdef inline int64_t label_of(const SoftmaxCall* job, Py_ssize_t i) noexcept nogil:
    """The row's class, or -1 if it is ignored.  Checked before; again here, for the array may have changed since."""
    cdef int64_t y = index_at(row_at(&job.labels, i), job.labels.kind)
    if job.has_ignore and y == job.ignore:
        return -1
    return y if <uint64_t>y < <uint64_t>job.logits.width else 0


cdef inline void labels_of(const SoftmaxCall* job, Py_ssize_t i, Py_ssize_t n, int64_t* y,
                           double* weight) noexcept nogil:
    """Classes and class weights of rows i .. i + n; an ignored row has class 0 and weight 0."""
    cdef Py_ssize_t r
    cdef const char* p = row_at(&job.labels, i)
    if job.labels.kind == I64 and job.labels.ndim == 1 and job.labels.stride[0] == 8 and not job.has_ignore:
        memcpy(y, p, n*8)           # the common case
        for r in range(n):
            y[r] = y[r] if <uint64_t>y[r] < <uint64_t>job.logits.width else 0
            weight[r] = 1
    else:
        for r in range(n):
            y[r] = label_of(job, i + r)
            weight[r] = 1 if y[r] >= 0 else 0
            y[r] = y[r] if y[r] >= 0 else 0
    if job.class_weight != NULL:
        for r in range(n):
            weight[r] *= job.class_weight[y[r]]


cdef inline double scale_of(const SoftmaxCall* job, Py_ssize_t i) noexcept nogil:
    return job.factor*job.scale[i] if job.scale != NULL else job.factor


cdef inline double share_of(const SoftmaxCall* job, Py_ssize_t i) noexcept nogil:
    """s/K, s: smoothing, K the classes of row i that `where` keeps."""
    cdef const char* p
    cdef Py_ssize_t k, kept = job.logits.width
    if job.smoothing != 0 and job.where.data != NULL:
        p = row_at(&job.where, i)
        kept = 0
        for k in range(job.where.width):
            kept += p[k*job.where.step] != 0
    return job.smoothing/kept if kept else 0.0


cdef inline void targets_by(const SoftmaxCall* job, Py_ssize_t i, int64_t y, double share, double* t) noexcept nogil:
    """t_k = w_k ((1 - s) y_k + share), the share of classes that `where` keeps; w: class weights, y: the label's class.

    In float64: rounded to float, the share alone would shift every term alike and cost the loss half a unit.
    """
    cdef Py_ssize_t k, c = job.logits.width
    cdef const char* p = row_at(&job.where, i) if job.where.data != NULL else NULL
    if job.index:
        memset(t, 0, c*sizeof(double))
        if 0 <= y < c:
            t[y] = 1
    else:
        load(t, row_at(&job.labels, i), job.labels.step, c, job.labels.kind)
    if job.smoothing != 0:
        for k in range(c):
            t[k] = (1 - job.smoothing)*t[k] + (share if p == NULL or p[k*job.where.step] else 0.0)
    if job.class_weight != NULL:
        for k in range(c):
            t[k] = t[k]*job.class_weight[k]


cdef inline void targets(const SoftmaxCall* job, Py_ssize_t i, double* t) noexcept nogil:
    """The row's targets; an ignored one's mean nothing."""
    targets_by(job, i, label_of(job, i) if job.index else 0, share_of(job, i), t)


cdef struct Slope:      # a gradient's factor: its two words, or the scale apart where the factor would be subnormal
    double c
    double rest
    double apart


cdef inline Slope slope_of(double scale, double total, double inverse, real dummy) noexcept nogil:
    """scale/total, the inverse of the total given."""
    cdef Slope s
    cdef double least = 1e-36 if real is float else 1e-290
    cdef bint tiny = fabs(scale*inverse) < least and scale != 0
    s.apart = scale if tiny else 1.0
    s.c = inverse if tiny else scale*inverse
    s.rest = fl_quotient_rest(1.0 if tiny else scale, total, s.c)*inverse if real is double else 0.0
    return s
