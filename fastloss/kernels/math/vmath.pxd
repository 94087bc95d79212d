from libc.math cimport fabs, fabsf
from libc.stdint cimport uint16_t, uint32_t, uint64_t

ctypedef fused real:
    float
    double


cdef extern from "math/vmath.h" nogil:
    enum:
        FL_BIASF
        FL_BIAS
    double FL_LN2
    double FL_LN2_HIGH
    double FL_LN2_LOW
    void FL_PREFETCH(const void*) noexcept
    void FL_PREFETCH_FAR(const void*) noexcept
    float fl_shiftf(float) noexcept
    float fl_powerf(float, float) noexcept
    float fl_lof(float) noexcept
    float fl_magicf(float) noexcept
    double fl_shift(double) noexcept
    double fl_power(double, double) noexcept
    double fl_lo(double) noexcept
    double fl_magic(double) noexcept
    float fl_expf(float, float, float) noexcept
    float fl_expf_fine(float, float, float) noexcept
    double fl_exp(double, double, double) noexcept
    double fl_exp_fine(double, double, double) noexcept
    double fl_exp_label(double, double, int) noexcept
    double fl_exp_label_short(double, double, int) noexcept
    double fl_log1p(double) noexcept
    double fl_log1p_short(double) noexcept
    double fl_log(double) noexcept
    double fl_quotient_rest(double, double, double) noexcept
    double fl_scaled(double, double, double) noexcept
    uint32_t fl_bits_of_float(float) noexcept
    uint64_t fl_bits_of_double(double) noexcept
    double fl_double_of(uint64_t) noexcept
    float fl_float_of_half(uint16_t) noexcept
    uint16_t fl_half_of_float(float) noexcept
    float fl_float_of_bfloat(uint16_t) noexcept
    uint16_t fl_bfloat_of_float(float) noexcept


# One name for both types. A reference is the (shift, power) of a logit near the row's maximum: see vmath.h.

cdef inline real shift_of(real m) noexcept nogil:
    if real is float:
        return fl_shiftf(m)
    else:
        return fl_shift(m)


cdef inline real power_of(real m, real shift) noexcept nogil:
    if real is float:
        return fl_powerf(m, shift)
    else:
        return fl_power(m, shift)


cdef inline real lo_of(real power) noexcept nogil:
    if real is float:
        return fl_lof(power)
    else:
        return fl_lo(power)


cdef inline real magic_of(real power) noexcept nogil:
    if real is float:
        return fl_magicf(power)
    else:
        return fl_magic(power)


cdef inline int bias_of(real power) noexcept nogil:
    if real is float:
        return FL_BIASF
    else:
        return FL_BIAS


cdef inline real exp_of(real d, real lo, real magic) noexcept nogil:
    if real is float:
        return fl_expf(d, lo, magic)
    else:
        return fl_exp(d, lo, magic)


cdef inline real exp_fine(real d, real lo, real magic) noexcept nogil:
    if real is float:
        return fl_expf_fine(d, lo, magic)
    else:
        return fl_exp_fine(d, lo, magic)


cdef inline real scaled(real e, real c, real rest) noexcept nogil:
    """e times c; in float64 c is a number of two words."""
    if real is float:
        return e*c
    else:
        return fl_scaled(e, c, rest)


cdef inline real magnitude(real x) noexcept nogil:
    if real is float:
        return fabsf(x)
    else:
        return fabs(x)
