"""A linear layer's loss as tasks for threads: each does one step for one group, tile or share of a block of classes."""
from fastloss._parallel cimport for_blocks
from fastloss.kernels.linear.block cimport (
    biases_gradient, group_of, inputs_product, logits, parts_of_columns, settle_logits, slopes, sums, table_product,
    table_tasks,
)
from fastloss.kernels.linear.call cimport STEP, LinearCall
from fastloss.kernels.linear.packing cimport pack_inputs_group, pack_table_tile, unpack_inputs_group
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.matmul.product cimport FL_TILE, LANES, lanes_of, least, parts_of

cdef enum:                  # tasks of one block
    PACK_TABLE
    LOGITS
    SUMS
    LOGITS_SUMS
    SLOPES
    INPUTS
    SLOPES_INPUTS
    LOGITS_SLOPES_INPUTS
    TABLE
    PACK_INPUTS
    UNPACK_INPUTS


cdef inline void run_task(const LinearCall* call, int what, Py_ssize_t i, real dummy) noexcept nogil:
    cdef Py_ssize_t tiles = (call.n_classes + FL_TILE - 1)//FL_TILE, part = STEP//FL_TILE
    if what == PACK_TABLE:
        pack_table_tile(call, i, dummy)
    elif what == LOGITS:
        logits(call, i//call.parts, i % call.parts*part, least(tiles, (i % call.parts + 1)*part), dummy)
    elif what == SUMS:
        sums(call, i, dummy)
    elif what == LOGITS_SUMS:
        logits(call, i, 0, tiles, dummy)
        sums(call, i, dummy)
    elif what == SLOPES:
        slopes(call, i, dummy)
    elif what == INPUTS:
        inputs_product(call, i//call.chunks, i % call.chunks, i % call.chunks + 1, dummy)
    elif what == SLOPES_INPUTS or what == LOGITS_SLOPES_INPUTS:
        if what == LOGITS_SLOPES_INPUTS:
            logits(call, i, 0, tiles, dummy)
            settle_again(call, i, dummy)
        slopes(call, i, dummy)
        if call.dx != NULL:
            inputs_product(call, i, 0, call.chunks, dummy)
    elif what == TABLE:
        if call.xr != NULL:
            table_product(call, i, dummy)
        if call.bias_grad != NULL and i % parts_of_columns(call, dummy) == 0:
            biases_gradient(call, i//parts_of_columns(call, dummy), dummy)
    elif what == PACK_INPUTS:
        pack_inputs_group(call, i, dummy)
    else:
        unpack_inputs_group(call, i, dummy)


cdef inline void settle_again(const LinearCall* call, Py_ssize_t g, real dummy) noexcept nogil:
    cdef real top[LANES]
    cdef real arg[LANES]
    settle_logits(call, group_of(call, g, dummy), top, arg)


cdef inline void hide_rows(const LinearCall* call, real dummy) noexcept nogil:
    """Inputs of rows that do not count become 0: whatever they hold, the table's gradient is free of it."""
    cdef Py_ssize_t lanes = lanes_of(dummy), j
    cdef Py_ssize_t i, p, rows = call.groups*lanes
    for i in range(call.n):
        if call.sums.scale[i] == 0:
            for p in range(parts_of(call.d, lanes)):
                for j in range(lanes):
                    (<real*>call.xr)[(p*rows + i)*lanes + j] = 0


cdef struct Tasks:
    const LinearCall* call
    int what
    bint wide


cdef inline void run_block(void* tasks, Py_ssize_t i, int thread) noexcept nogil:
    cdef const Tasks* at = <const Tasks*>tasks
    if at.wide:
        run_task(at.call, at.what, i, <double>0)
    else:
        run_task(at.call, at.what, i, <float>0)


cdef inline int run_tasks(const LinearCall* call, int what, Py_ssize_t n, int n_threads, real dummy) except -1 nogil:
    cdef Tasks at
    at.call = call
    at.what = what
    at.wide = real is double
    return for_blocks(run_block, &at, n, n_threads)


cdef inline int run_forward(LinearCall* call, int n_threads, real dummy) except -1 nogil:
    cdef Py_ssize_t c = 0
    while c < call.weights.n:
        set_block(call, c)
        run_tasks(call, PACK_TABLE, (call.n_classes + FL_TILE - 1)//FL_TILE, n_threads, dummy)
        if call.groups >= n_threads:
            run_tasks(call, LOGITS_SUMS, call.groups, n_threads, dummy)
        else:
            run_tasks(call, LOGITS, call.groups*call.parts, n_threads, dummy)
            run_tasks(call, SUMS, call.groups, n_threads, dummy)
        c += call.n_classes
    return 0


cdef inline int run_backward(LinearCall* call, int n_threads, real dummy) except -1 nogil:
    cdef Py_ssize_t c = 0, g
    if call.xr != NULL:
        hide_rows(call, dummy)
    while c < call.weights.n:
        set_block(call, c)
        if call.dx != NULL or not call.kept:
            run_tasks(call, PACK_TABLE, (call.n_classes + FL_TILE - 1)//FL_TILE, n_threads, dummy)
        if call.groups >= n_threads:
            run_tasks(call, SLOPES_INPUTS if call.kept else LOGITS_SLOPES_INPUTS, call.groups, n_threads, dummy)
        else:
            if not call.kept:
                run_tasks(call, LOGITS, call.groups*call.parts, n_threads, dummy)
                for g in range(call.groups):
                    settle_again(call, g, dummy)
            run_tasks(call, SLOPES, call.groups, n_threads, dummy)
            if call.dx != NULL:
                run_tasks(call, INPUTS, call.groups*call.chunks, n_threads, dummy)
        if call.xr != NULL or call.bias_grad != NULL:
            run_tasks(call, TABLE, table_tasks(call, dummy), n_threads, dummy)
        c += call.n_classes
    return 0


cdef inline void set_block(LinearCall* call, Py_ssize_t c) noexcept nogil:
    call.class_start = c
    call.n_classes = least(call.block, call.weights.n - c)
    call.parts = (call.n_classes + STEP - 1)//STEP
    call.offset = call.first + c if call.kept else 0
