from fastloss.kernels.math.vmath cimport bias_of, exp_of, lo_of, magic_of, real


cdef extern from "math/sigmoid_math.h" nogil:
    float fl_product_restf(float, float, float) noexcept
    double fl_product_rest(double, double, double) noexcept
    float FL_SCALEDF "FL_SIGMOID_SCALEDF"
    double FL_SCALED "FL_SIGMOID_SCALED"
    float FL_FARF "FL_SIGMOID_FARF"
    double FL_FAR "FL_SIGMOID_FAR"
    float FL_NEARF "FL_SIGMOID_NEARF"
    double FL_NEAR "FL_SIGMOID_NEAR"
    double fl_exp_minus(double) noexcept
    double fl_exp_any(double, double) noexcept
    float fl_log1p_unitf(float, float*) noexcept
    double fl_log1p_unit(double, double*) noexcept
    double fl_log_any(double) noexcept
    float fl_choosef(float, float, float) noexcept
    double fl_choose(double, double, double) noexcept
    float fl_towardsf(float, float) noexcept
    double fl_towards(double, double) noexcept
    float fl_odd_bitsf(float, float) noexcept
    double fl_odd_bits(double, double) noexcept
    float fl_min_bitsf(float, float) noexcept
    double fl_min_bits(double, double) noexcept
    float FL_FMAF(float, float, float) noexcept
    double FL_FMA(double, double, double) noexcept


# One name for both types.

cdef inline real fma(real a, real b, real c) noexcept nogil:
    if real is float:
        return FL_FMAF(a, b, c)
    else:
        return FL_FMA(a, b, c)


cdef inline real product_rest(real a, real b, real p) noexcept nogil:
    if real is float:
        return fl_product_restf(a, b, p)
    else:
        return fl_product_rest(a, b, p)


cdef inline real far_of(real dummy) noexcept nogil:
    """From this a on exp(-a) is 0."""
    if real is float:
        return FL_FARF
    else:
        return FL_FAR


cdef inline real near_of(real dummy) noexcept nogil:
    """Up to this a exp(-a) need not be scaled."""
    if real is float:
        return FL_NEARF
    else:
        return FL_NEAR


cdef inline real scaled_unit(real dummy) noexcept nogil:
    if real is float:
        return FL_SCALEDF
    else:
        return FL_SCALED


cdef inline real log1p_unit(real u, real* low) noexcept nogil:
    if real is float:
        return fl_log1p_unitf(u, low)
    else:
        return fl_log1p_unit(u, low)


cdef inline real tanh_of(real u) noexcept nogil:
    """A continued fraction near 0, exp elsewhere: relative error of some units in the last place."""
    cdef real a = u if u > 0 else -u, s = u*u, e, near, far
    near = u/(1 + s/(3 + s/(5 + s/(7 + s/(9 + s/(11 + s/13))))))
    if real is float:
        e = exp_of(-2*a, lo_of(<float>bias_of(a)), magic_of(<float>bias_of(a)))
    else:
        e = exp_of(-2*a, lo_of(<double>bias_of(a)), magic_of(<double>bias_of(a)))
    far = (1 - e)/(1 + e)
    far = far if u > 0 else -far
    return near if a < <real>0.5 else far


cdef inline real choose(real z, real a, real b) noexcept nogil:
    if real is float:
        return fl_choosef(z, a, b)
    else:
        return fl_choose(z, a, b)


cdef inline real towards(real z, real x) noexcept nogil:
    if real is float:
        return fl_towardsf(z, x)
    else:
        return fl_towards(z, x)


cdef inline real odd_bits(real a, real z) noexcept nogil:
    if real is float:
        return fl_odd_bitsf(a, z)
    else:
        return fl_odd_bits(a, z)


cdef inline real min_bits(real a, real b) noexcept nogil:
    if real is float:
        return fl_min_bitsf(a, b)
    else:
        return fl_min_bits(a, b)


cdef inline real joined(real a, real b) noexcept nogil:
    """(1 + a)(1 + b) - 1."""
    return fma(a, b, a + b)
