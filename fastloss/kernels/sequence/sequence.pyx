"""Sequence losses: what is done with the cross entropies of positions [batch, time], or of packed tokens.

The softmax kernels make the cross entropies; here are the weights before and the sums after.  A position of weight 0 is
never looked at.  Sums are in float64, compensated, in one fixed order.
"""
from libc.math cimport exp
from libc.stdint cimport INT64_MIN, int64_t

from fastloss.kernels.arrays.arrays cimport NO_AXIS, Held, Rows, index_at, load, release, row_at, store, take
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.row_sums.lane_sums cimport add_block, settled

cpdef enum:
    NONE                # one value a position: no denominator
    AVERAGE             # divide by the sum of the weights
    COUNT               # divide by how many weights are not 0

cpdef enum:             # of a packed sequence
    SUM
    MEAN
    PERPLEXITY

IGNORED = INT64_MIN     # the label of a position of weight 0


def positions(weights, const int64_t[::1] lengths, double[:, ::1] out):
    """out = weights, ones if None, but 0 from each row's length on, if there are lengths."""
    cdef Rows rows
    cdef Held held
    cdef Py_ssize_t b, t, T = out.shape[1]
    held.count = 0
    try:
        take(&held, weights, NO_AXIS, False, &rows)
        with nogil:
            for b in range(out.shape[0]):
                for t in range(T):
                    if lengths is not None and t >= lengths[b]:
                        out[b, t] = 0
                    elif rows.data == NULL:
                        out[b, t] = 1
                    else:
                        load(&out[b, t], row_at(&rows, b*T + t), 0, 1, rows.kind)
    finally:
        release(&held)


def mark(targets, const double[::1] weights, Py_ssize_t n_classes, int64_t[::1] out):
    """out = targets, IGNORED where the weight is 0.  -1, or the first row that counts and has no class for a target."""
    cdef Rows rows
    cdef Held held
    cdef Py_ssize_t i, bad = -1
    cdef int64_t y
    held.count = 0
    try:
        take(&held, targets, NO_AXIS, False, &rows)
        with nogil:
            for i in range(rows.n):
                y = INT64_MIN
                if weights[i] != 0:
                    y = index_at(row_at(&rows, i), rows.kind)
                    if bad < 0 and (y < 0 or y >= n_classes):
                        bad = i
                out[i] = y
    finally:
        release(&held)
    return bad


# ------------------------------------------------------------------ groups: position b, t belongs to result b sb + t st

cdef inline void sums(double[::1] out, const double[:, ::1] w, const double[:, ::1] v, bint count, Py_ssize_t sb,
                      Py_ssize_t st) noexcept nogil:
    """out = sums of w v, or of w where v is None, or of 1, over the positions whose w is not 0; along a row first.

    Compensated: the sum of many equal terms would drift.
    """
    cdef Py_ssize_t B = w.shape[0], T = w.shape[1], row, column, b, t
    cdef double x, total, rest
    for row in range(B if sb else 1):
        for column in range(T if st else 1):
            total = rest = 0
            for b in range(row, row + 1 if sb else B):
                for t in range(column, column + 1 if st else T):
                    if w[b, t] != 0:
                        x = 1 if count else w[b, t]
                        if v is not None:
                            x = w[b, t]*v[b, t]
                        add_block(&total, &rest, x)
            out[row*sb + column*st] = settled(total, rest)


def denominators(const double[:, ::1] weights, int kind, Py_ssize_t sb, Py_ssize_t st, double[::1] out):
    with nogil:
        if kind == NONE:
            out[:] = 1
        else:
            sums(out, weights, None, kind == COUNT, sb, st)


def scales(const double[:, ::1] weights, const double[::1] denominator, const double[::1] cotangent, Py_ssize_t sb,
           Py_ssize_t st, double[:, ::1] out):
    """out = what multiplies a position's gradient: its weight, over its denominator, times its cotangent."""
    cdef Py_ssize_t b, t, g
    with nogil:
        for b in range(weights.shape[0]):
            for t in range(weights.shape[1]):
                g = b*sb + t*st
                out[b, t] = 0
                if weights[b, t] != 0 and denominator[g] != 0:
                    out[b, t] = weights[b, t]/denominator[g]
                    if cotangent is not None:
                        out[b, t] *= cotangent[g]


def combine(const double[:, ::1] weights, const double[:, ::1] losses, const double[::1] denominator, Py_ssize_t sb,
            Py_ssize_t st, double[::1] out):
    """out = sum of weight times loss, over the denominator; 0 where that is 0."""
    cdef Py_ssize_t g
    with nogil:
        sums(out, weights, losses, False, sb, st)
        for g in range(out.shape[0]):
            out[g] = out[g]/denominator[g] if denominator[g] != 0 else 0


def weight_slopes(const double[:, ::1] weights, const double[:, ::1] losses, out, *, const double[::1] denominator,
                  const double[::1] value, const double[::1] cotangent, int kind, Py_ssize_t sb, Py_ssize_t st):
    """out = the values' derivatives by the weights; 0 where the weight is."""
    cdef Rows rows
    cdef Held held
    cdef Py_ssize_t b, t, g
    cdef double v
    held.count = 0
    try:
        take(&held, out, NO_AXIS, True, &rows)
        with nogil:
            for b in range(weights.shape[0]):
                for t in range(weights.shape[1]):
                    g = b*sb + t*st
                    v = 0
                    if weights[b, t] != 0 and denominator[g] != 0 and not (cotangent is not None and cotangent[g] == 0):
                        v = losses[b, t]
                        if kind == AVERAGE:
                            v = v - value[g]
                        v = v/denominator[g]*(cotangent[g] if cotangent is not None else 1.0)
                    store(row_at(&rows, b*weights.shape[1] + t), 0, rows.kind, &v, 1)
    finally:
        release(&held)


# ------------------------------------------------------------------ packed sequences

def packed(const double[::1] weights, const real[::1] losses, const int64_t[::1] offsets, int kind, double[::1] out,
           double[::1] denominator):
    """out = each sequence's sum, mean or perplexity; denominator = its weights' sum (1 for sums)."""
    cdef Py_ssize_t b, i
    cdef double total, weight, w, rest, weight_rest
    with nogil:
        for b in range(out.shape[0]):
            total = weight = rest = weight_rest = 0
            for i in range(offsets[b], offsets[b + 1]):
                w = weights[i] if weights is not None else 1.0
                if w != 0:
                    add_block(&total, &rest, w*losses[i])
                    add_block(&weight, &weight_rest, w)
            total = settled(total, rest)
            weight = settled(weight, weight_rest)
            if kind != SUM:
                total = total/weight if weight != 0 else 0
            out[b] = exp(total) if kind == PERPLEXITY else total
            denominator[b] = 1 if kind == SUM else weight


def packed_scales(const double[::1] weights, const double[::1] denominator, const double[::1] value,
                  const double[::1] cotangent, const int64_t[::1] offsets, int kind, double[::1] out):
    """out = what multiplies a token's gradient; 0 outside the sequences."""
    cdef Py_ssize_t b, i
    cdef double s
    with nogil:
        out[:] = 0
        for b in range(denominator.shape[0]):
            s = cotangent[b] if cotangent is not None else 1.0
            if kind == PERPLEXITY:
                s = s*value[b]
            for i in range(offsets[b], offsets[b + 1]):
                if denominator[b] != 0 and (weights is None or weights[i] != 0):
                    out[i] = s*(weights[i] if weights is not None else 1.0)/denominator[b]
