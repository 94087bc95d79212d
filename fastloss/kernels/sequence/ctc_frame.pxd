"""Frames of logits, an array [entries, frames, classes]: where they lie, and their softmax in float64."""
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from fastloss.kernels.arrays.arrays cimport Held, Rows, load, take
from fastloss.kernels.math.vmath cimport fl_exp_fine, fl_lo, fl_magic, fl_power, fl_shift

cdef extern from "sequence/lattice.h" nogil:
    double fl_largest(const double*, int64_t) noexcept
    double fl_sum "fl_lattice_sum"(const double*, int64_t) noexcept

cdef enum:
    FRAME_LANES = 32              # of maxima and sums; rows of scratch are whole multiples

cdef struct Frames:
    char* data              # NULL: no such array
    Py_ssize_t entry        # strides in bytes
    Py_ssize_t frame
    Py_ssize_t step
    int kind

cdef struct Softmax:        # of a frame: exp(x - shift) 2^(FL_BIAS - power) are its terms, their sum is 1/c
    double top
    double shift
    double power
    double c


cdef inline int take_frames(Held* held, object array, bint writable, Frames* frames) except -1:
    cdef Rows rows
    take(held, array, 2, writable, &rows)
    frames.data = rows.data
    if array is not None:
        frames.entry = held.view[held.count - 1].strides[0]
        frames.frame = held.view[held.count - 1].strides[1]
        frames.step = held.view[held.count - 1].strides[2]
        frames.kind = rows.kind
    return 0


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + 7)//8*8


cdef inline Py_ssize_t whole(Py_ssize_t n) noexcept nogil:
    return (n + FRAME_LANES - 1)//FRAME_LANES*FRAME_LANES


cdef inline void read_logits(const Frames* frames, const char* frame, Py_ssize_t c, double* x,
                             Softmax* s) noexcept nogil:
    """x = a frame's logits, -inf past the classes."""
    cdef Py_ssize_t k, n = whole(c)
    load(x, frame, frames.step, c, frames.kind)
    for k in range(c, n):
        x[k] = -INFINITY
    s.top = fl_largest(x, n)
    s.shift = fl_shift(s.top)
    s.power = fl_power(s.top, s.shift)


cdef inline void exponentials(Py_ssize_t c, const double* x, double* e, const Softmax* s) noexcept nogil:
    """e = the frame's terms, 0 past the classes."""
    cdef Py_ssize_t k, n = padded(c)
    cdef double shift = s.shift, lo = fl_lo(s.power), magic = fl_magic(s.power)
    for k in range(n):
        e[k] = fl_exp_fine(x[k] - shift, lo, magic)
    for k in range(n, whole(c)):
        e[k] = 0


cdef inline bint add_terms(Py_ssize_t c, const double* e, Softmax* s) noexcept nogil:
    """s.c; False where there is none: NaN, +inf, nothing but -inf."""
    s.c = 1/fl_sum(e, whole(c))
    return s.c > 0


cdef inline bint read_terms(const Frames* frames, const char* frame, Py_ssize_t c, double* x, double* e,
                            Softmax* s) noexcept nogil:
    """All of it."""
    read_logits(frames, frame, c, x, s)
    exponentials(c, x, e, s)
    return add_terms(c, e, s)
