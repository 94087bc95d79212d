"""The functions of vmath.h over arrays, for the tests."""
from libc.stdint cimport uint16_t

from fastloss.kernels.vmath cimport (
    FL_BIAS, FL_BIASF, exp_fine, exp_of, fl_bfloat_of_float, fl_float_of_bfloat, fl_float_of_half, fl_half_of_float,
    fl_log, fl_log1p, fl_log1p_short, lo_of, magic_of, real,
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


def widen(const uint16_t[::1] x, float[::1] out, bint brain):
    cdef Py_ssize_t k
    with nogil:
        for k in range(x.shape[0]):
            out[k] = fl_float_of_bfloat(x[k]) if brain else fl_float_of_half(x[k])


def narrow(const float[::1] x, uint16_t[::1] out, bint brain):
    cdef Py_ssize_t k
    with nogil:
        for k in range(x.shape[0]):
            out[k] = fl_bfloat_of_float(x[k]) if brain else fl_half_of_float(x[k])
