"""Connectionist temporal classification: loss and gradient of every batch entry.

An entry is one thread's.  Its frames become probabilities of the labels (and, in the gradient's own memory, of all
classes); then the lattice of lattice.h is walked forward and, for the gradient, back.
"""
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.arrays cimport NO_AXIS, Held, Rows, index_at, release, row_at, store, take
from fastloss.kernels.parallel.parallel cimport blocks, stopped
from fastloss.kernels.parallel.scratch cimport Scratches, free_scratch, new_scratch, no_memory, scratch_of
from fastloss.kernels.sequence.ctc_entry cimport (
    CtcCall, Entry, Scratch, fill, find_classes, group_of, lay_out, read_frames, read_labels, set_moves,
)
from fastloss.kernels.sequence.ctc_frame cimport padded, take_frames
from fastloss.kernels.sequence.ctc_lattice cimport backward, forward, loss_of, shrink
from fastloss.kernels.sequence.ctc_plain cimport (
    plain_backward, plain_forward, plain_loss, scaled_backward, scaled_forward, start_plain,
)


# ------------------------------------------------------------------ entries

cdef void put_loss(const CtcCall* call, Py_ssize_t b, double loss) noexcept nogil:
    store(row_at(&call.loss, b), 0, call.loss.kind, &loss, 1)


cdef void run_entry(const CtcCall* call, Py_ssize_t b, Scratch* s) noexcept nogil:
    cdef Py_ssize_t frames = call.logit_length[b]
    cdef char* grad = call.grad.data + b*call.grad.entry if call.grad.data != NULL else NULL
    cdef double scale = call.factor*call.scale[b] if call.scale != NULL else call.factor
    if grad != NULL:
        fill(call, grad, frames, call.n_frames, 0.0)
    evaluate(call, b, s, grad if scale != 0 else NULL, scale)
    if grad != NULL and scale == 0:                 # last: it may lie over the logits
        fill(call, grad, 0, frames, 0.0)


cdef void evaluate(const CtcCall* call, Py_ssize_t b, Scratch* s, char* grad, double scale) noexcept nogil:
    """The loss of an entry and, where `grad` is, its gradient."""
    cdef Entry it
    cdef Py_ssize_t t, start, stop = 0, group = group_of(call), done = 0
    cdef double loss
    cdef bint plain = False
    it.frames = call.logit_length[b]
    it.m = it.e = 0
    it.logits = call.logits.data + b*call.logits.entry
    it.scale = scale
    it.grad = grad
    if call.skip_long and call.label_length[b] > it.frames:
        put_loss(call, b, 0.0)
        if grad != NULL:
            fill(call, grad, 0, it.frames, 0.0)
        return
    it.n = read_labels(call, b, s)
    it.W = padded(it.n + 1)
    set_moves(call, &it, s)
    start_plain(&it, s)
    while stop < it.frames:
        if stopped(&done, group*(call.n_classes + it.W)):
            return
        start = stop
        stop = start + group if start + group < it.frames else it.frames
        if not read_frames(call, &it, start, stop, s):
            put_loss(call, b, NAN)
            if it.grad != NULL:
                fill(call, grad, 0, it.frames, NAN)
            return
        for t in range(start, stop):
            if it.confident:
                plain_forward(call, &it, s, t)
    loss = plain_loss(&it, s) if it.confident else INFINITY
    if not it.confident:
        plain = scaled_forward(&it, s)
        if not plain:
            forward(&it, s, it.grad != NULL)
        loss = loss_of(&it)
    if loss == INFINITY:                # no alignment: a constant without a slope
        put_loss(call, b, 0.0 if call.zero_infinity else INFINITY)
        if it.grad != NULL:
            fill(call, grad, 0, it.frames, 0.0 if call.zero_infinity else NAN)
        return
    put_loss(call, b, loss)
    if it.grad != NULL:
        find_classes(&it, s)
        if it.confident:
            plain_backward(call, &it, s)
        elif not plain or not scaled_backward(call, &it, s):
            if plain or shrink(&it, s):
                forward(&it, s, True)
            backward(call, &it, s)


cdef struct CtcRun:
    const CtcCall* call
    const int64_t* order
    Scratches scratch


cdef void run_block(void* run, Py_ssize_t k, int thread) noexcept nogil:
    cdef CtcRun* at = <CtcRun*>run
    cdef Scratch s
    cdef char* memory = scratch_of(&at.scratch, thread)
    if memory != NULL:
        lay_out(at.call, &s, memory)
        run_entry(at.call, at.order[k], &s)


def bad_label(labels, const int64_t[::1] offset, const int64_t[::1] length, Py_ssize_t n_classes, int64_t blank):
    """The first entry with a label that is no class or the blank, and which of its labels; or -1."""
    cdef Rows rows
    cdef Held held
    cdef Py_ssize_t b, k
    cdef int64_t y
    held.count = 0
    try:
        take(&held, labels, NO_AXIS, False, &rows)
        for b in range(length.shape[0]):
            for k in range(length[b]):
                y = index_at(row_at(&rows, offset[b] + k), rows.kind)
                if y < 0 or y >= n_classes or y == blank:
                    return b, k
    finally:
        release(&held)
    return -1, -1


def ctc(logits, labels, loss, grad=None, *, const int64_t[::1] offset, const int64_t[::1] label_length,
        const int64_t[::1] logit_length, const int64_t[::1] order, int64_t blank, bint collapse=False, bint merge=True,
        bint skip_long=False, bint zero_infinity=False, const double[::1] scale=None, double factor=1,
        int n_threads=1):
    """Losses and gradients of all entries of logits [entries, frames, classes], begun in this order."""
    cdef CtcCall call
    cdef Scratch s
    cdef Held held
    cdef Py_ssize_t n = logit_length.shape[0], b, work = 0
    cdef CtcRun at
    cdef double size
    held.count = 0
    if n == 0:
        return
    try:
        take_frames(&held, logits, False, &call.logits)
        take_frames(&held, grad, True, &call.grad)
        take(&held, labels, NO_AXIS, False, &call.labels)
        take(&held, loss, NO_AXIS, True, &call.loss)
        call.n_frames, call.n_classes = logits.shape[1:]
        call.offset = &offset[0]
        call.label_length = &label_length[0]
        call.logit_length = &logit_length[0]
        call.scale = &scale[0] if scale is not None else NULL
        call.factor = factor
        call.blank = blank
        call.collapse = collapse
        call.merge = merge
        call.skip_long = skip_long
        call.zero_infinity = zero_infinity
        call.most_labels = call.most_frames = 0
        for b in range(n):
            call.most_labels = max(call.most_labels, label_length[b])
            call.most_frames = max(call.most_frames, logit_length[b])
            work += logit_length[b]*(call.n_classes + label_length[b]*4)
        size = (call.most_frames + 1)*(call.most_labels + 16.0)*64 + call.n_classes*128.0
        if size > 2.0**62:
            no_memory(<size_t>size)
        if blocks(n, work//n + 1, n_threads) == 1:
            n_threads = 1
        at.call = &call
        at.order = &order[0]
        new_scratch(&at.scratch, n_threads, lay_out(&call, &s, NULL))
        try:
            with nogil:
                for_blocks(run_block, &at, n, n_threads)
        finally:
            free_scratch(&at.scratch)
    finally:
        release(&held)
