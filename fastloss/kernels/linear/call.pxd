"""What the kernels of a linear layer's loss share: one block of rows, a shard of the table, and their scratch.

Everything lies in panels [k][lanes]: rows of the batch are lanes, so what is summed over classes is summed down a lane
and a row's bits depend on nothing but the row.
"""
from libc.stdint cimport int64_t

from fastloss.kernels.arrays.arrays cimport Rows
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.matmul.product cimport lanes_of

cdef enum:
    STEP = 96               # classes of a panel that fits the first-level cache, and of a task
    SHARE = 96              # classes of a task of the table's gradient
    PANELS = 8              # and panels of columns
    ROWS = 128              # rows of the batch whose products are one chain: block sizes are multiples of it
    ROW_SUMS = 10           # pointers of RowSums

cdef struct RowSums:        # each of them [groups*LANES], a number for every row of the block
    double* top             # largest logit so far, of the other classes where `exact_others`: the reference of all sums
    double* sum             # of exp over classes that are no label, in that unit; with rest, compensated
    double* rest
    double* entropy_sum     # sum of exp times (top - logit)
    double* smooth_dot      # sum of smoothing times half of (top - logit): the whole could overflow
    double* smooth_rest     # what that has rounded off
    double* smoothed        # sum of smoothing so far
    double* argmax
    double* slope           # what multiplies exp in the gradient
    double* scale           # what multiplies the row's gradient

cdef struct LinearCall:
    Rows weights            # a shard of the table
    Rows weights_grad
    Rows inputs             # rows start .. start + n of the batch
    Rows inputs_grad
    Py_ssize_t start
    Py_ssize_t n            # rows of the batch in this block
    Py_ssize_t groups       # of LANES rows
    Py_ssize_t d
    Py_ssize_t chunks       # of FL_CHUNK elements of a row of the table
    Py_ssize_t block        # classes packed together: a multiple of FL_TILE
    Py_ssize_t first        # the shard's first class
    Py_ssize_t class_start  # this block's first class within the shard
    Py_ssize_t n_classes    # and how many it has
    Py_ssize_t offset       # where its logits stand in a group's
    Py_ssize_t pitch        # elements from group to group of z
    Py_ssize_t rotation     # columns stand this far to the right in xr and dw, the last ones first: see table_product
    Py_ssize_t k            # labels of a row
    Py_ssize_t parts        # into which a group's logits are cut
    const double* bias      # [classes of the shard] or NULL
    const double* smooth    # [all classes] or NULL: each one's share of smoothing
    const int64_t* labels   # [n, k], -1: none
    double* label_logits    # [n, k]
    const double* label_slopes  # [n, k]: derivatives of the rows' losses by them
    RowSums sums
    double* bias_grad       # [classes of the shard] or NULL
    double cap              # 0: none
    double temperature
    bint stats
    bint exact_others       # labels do not move the reference: the sum of the others counts, however small
    bint first_rows         # the table's gradient starts here
    bint kept               # z holds the logits of all classes
    void* xp                # [groups, d, LANES]: inputs, rows as lanes
    void* xr                # [panels, groups*LANES, LANES]: inputs, columns as lanes, rotated; or NULL
    void* z                 # [groups, pitch]
    void* dx                # [groups, chunks*FL_CHUNK, LANES] or NULL
    void* wp                # [chunks, block, FL_PITCH]
    void* dw                # [block, panels*LANES]


cdef inline RowSums sums_of(const LinearCall* call, Py_ssize_t g, real dummy) noexcept nogil:
    """Those of a group's rows."""
    cdef RowSums s = call.sums
    cdef Py_ssize_t start = g*lanes_of(dummy)
    s.top += start
    s.sum += start
    s.rest += start
    s.entropy_sum += start
    s.smooth_dot += start
    s.smooth_rest += start
    s.smoothed += start
    s.argmax += start
    s.slope += start
    s.scale += start
    return s
