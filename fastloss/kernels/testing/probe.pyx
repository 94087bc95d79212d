"""The functions of vmath.h over arrays, for the tests; half types as arrays.pxd converts them."""
from libc.stdint cimport uint16_t

from fastloss.kernels.arrays.arrays cimport BF16, F16, load, store
from fastloss.kernels.math.exp_table cimport exps, steps_magic_of
from fastloss.kernels.math.vmath cimport (
    FL_BIAS, FL_BIASF, exp_fine, exp_of, fl_exp_label_short, fl_log, fl_log1p, fl_log1p_short, lo_of, magic_of, real,
)

BIAS = {"float32": FL_BIASF, "float64": FL_BIAS}


def exp(const real[::1] x, real[::1] out, bint fine):
    """out = exp(x) 2^BIAS."""
    cdef Py_ssize_t k
    cdef real zero = 0, lo = lo_of(zero), magic = magic_of(zero)
    with nogil:
        if fine:
            for k in range(x.shape[0]):
                out[k] = exp_fine(x[k], lo, magic)
        else:
            for k in range(x.shape[0]):
                out[k] = exp_of(x[k], lo, magic)


def exp_many(const real[::1] x, real[::1] out, bint minus, bint summed):
    """out = exp(x) 2^BIAS, or exp(-x), as kernels take it of whole registers, for sums or not; the length is a multiple
    of 64."""
    cdef real d[64]
    cdef Py_ssize_t g, j
    cdef real zero = 0, lo = lo_of(zero), magic = steps_magic_of(zero), v
    with nogil:
        for g in range(x.shape[0]//64):
            for j in range(64):
                v = -x[64*g + j] if minus else x[64*g + j]
                v = lo if lo > v else v
                d[j] = -v if minus else v
            if minus and summed:
                exps(d, -1, magic, &out[64*g], 64, True)
            elif minus:
                exps(d, -1, magic, &out[64*g], 64, False)
            elif summed:
                exps(d, 1, magic, &out[64*g], 64, True)
            else:
                exps(d, 1, magic, &out[64*g], 64, False)


def exp_short(const double[::1] x, double[::1] out):
    """out = exp(x) 2^BIAS, as exact as a float32 result needs."""
    cdef Py_ssize_t k
    with nogil:
        for k in range(x.shape[0]):
            out[k] = fl_exp_label_short(x[k], 0, FL_BIAS)


def log(const double[::1] x, double[::1] out):
    cdef Py_ssize_t k
    with nogil:
        for k in range(x.shape[0]):
            out[k] = fl_log(x[k])


def log1p(const double[::1] x, double[::1] out, bint short):
    cdef Py_ssize_t k
    with nogil:
        if short:
            for k in range(x.shape[0]):
                out[k] = fl_log1p_short(x[k])
        else:
            for k in range(x.shape[0]):
                out[k] = fl_log1p(x[k])


def widen(const uint16_t[::1] x, float[::1] out, bint bfloat16):
    with nogil:
        load(&out[0], <const char*>&x[0], 2, x.shape[0], BF16 if bfloat16 else F16)


def narrow(const float[::1] x, uint16_t[::1] out, bint bfloat16):
    with nogil:
        store(<char*>&out[0], 2, BF16 if bfloat16 else F16, &x[0], x.shape[0])
