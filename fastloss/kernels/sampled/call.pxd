"""What one call of the sampled losses is about, and what becomes of a row's products: corrected and masked logits."""
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t

from fastloss.kernels.arrays.id_sets cimport slot_of
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.row_sums.lane_sums cimport L

cdef struct SampledCall:
    bint nce
    Py_ssize_t n            # rows
    Py_ssize_t d            # of the products that are the logits
    Py_ssize_t k            # candidates
    Py_ssize_t first        # columns of z are candidates from here on
    Py_ssize_t groups       # of L columns
    Py_ssize_t stride       # from row to row of z
    Py_ssize_t num_true
    Py_ssize_t diagonal     # in-batch: the label of row i is column diagonal + i; else NONE
    double slope            # what multiplies the products
    const int64_t* labels   # [n, num_true], to be masked; or NULL
    const int64_t* ids      # [candidates], where these three say; see index
    const int64_t* heads
    const int64_t* follows
    uint64_t mask
    const int64_t* items    # in-batch: equal ones are masked; or NULL
    double* true_logits     # [n, num_true]
    double* true_grad       # gradient to them; or NULL: no gradient
    const double* scale     # [n] or NULL: what multiplies the rows' gradients
    double factor           # and all of them
    double* loss
    double* sums            # of the gradients to the logits, a row of columns for each slab; or NULL

cdef struct Operands:       # of one type, that of the logits
    const void* x           # [rows, d]
    const void* rows        # candidates, rows as lanes
    const void* columns     # and columns as lanes; NULL: no gradient to x
    const void* shift       # added to the products
    void* slopes            # slabs of gradients to the logits; NULL: not kept
    void* dx                # [n, d] or NULL


# ------------------------------------------------------------------ accidental hits

cdef inline void correct(const SampledCall* call, Py_ssize_t i, real* z, const real* shift) noexcept nogil:
    """Logits of row i: corrected, masked, padded; in-batch the label's is taken out of the row."""
    cdef Py_ssize_t j, at
    cdef real a = <real>call.slope
    cdef int64_t v
    if a == 1:
        for j in range(call.k):
            z[j] = z[j] + shift[j]
    else:
        for j in range(call.k):
            z[j] = a*z[j] + shift[j]
    for j in range(call.k, call.groups*L):
        z[j] = -INFINITY
    if call.diagonal >= 0:
        at = call.diagonal + i
        call.true_logits[i] = z[at]
        z[at] = -INFINITY
        if call.items != NULL:
            v = call.items[at]
            for j in range(call.k):
                z[j] = <real>-INFINITY if call.items[j] == v else z[j]
    if call.labels != NULL:
        for j in range(call.num_true):
            v = call.labels[i*call.num_true + j]
            at = call.heads[slot_of(call.heads, call.mask, call.ids, v)]
            while at:
                if call.first < at <= call.first + call.k:
                    z[at - 1 - call.first] = -INFINITY
                at = call.follows[at - 1]
