"""Losses of a logit x and a label z: terms built on u = exp(-|x|) and log(1 + u), so that no tail cancels.

With m = |x| and s = log(1 + u): softplus(x) = s + max(x, 0), softplus(-x) = s + max(-x, 0).
"""
from libc.math cimport INFINITY, fabs

from fastloss.kernels.arrays.operands cimport STRIP
from fastloss.kernels.math.sigmoid_math cimport (
    choose, fl_exp_minus, fl_product_rest, fma, log1p_unit, min_bits, odd_bits, product_rest, scaled_unit,
    towards,
)
from fastloss.kernels.math.vmath cimport fl_log1p, magnitude, real

cdef struct ElementTerms:          # of one element; what a loop does not use is not computed
    double value
    double slope            # d value / d x
    double curvature        # d2 value / d x2
    double label_slope      # d value / d label
    double weight_slope     # d value / d pos_weight

cdef struct Sigmoid:        # functions of x alone
    char unused

cdef struct LogSigmoid:
    char unused

cdef struct Softplus:
    char unused

cdef struct SigmoidCrossEntropy:
    char unused

cdef struct WeightedCrossEntropy:
    char unused

cdef struct OrdinaryCrossEntropy:   # weighted, value and slope, where is_ordinary
    char unused

cdef struct SigmoidFocal:
    double gamma
    double positive         # weight of label 1
    double negative


cdef inline real times(real a, real b) noexcept nogil:
    """a b, 0 where a is 0 whatever b is."""
    return a*(b if a != 0 else <real>0)


cdef inline ElementTerms softplus(real x, real u) noexcept nogil:
    cdef ElementTerms t
    cdef real one = 1, low, s = log1p_unit(u, &low), v = one + u, near = one if x >= 0 else u, p = near/v
    t.value = s + (low + (x if x > 0 else <real>0))
    t.slope = p - p*((one - v) + u)                           # what 1 + u lost; only where 1/v is near 1 is it much
    t.curvature = u/(v*v)
    return t


cdef inline real far_part(real x, real z) noexcept nogil:
    """sigmoid_cross_entropy's value, all but log(1 + u)."""
    cdef real c = 1 - z, k = z if x < 0 else c
    return k*(magnitude(x) if k != 0 else <real>0)


cdef inline ElementTerms sigmoid_cross_entropy(real x, real z, real u) noexcept nogil:
    cdef ElementTerms t
    cdef real low, s = log1p_unit(u, &low), c = 1 - z
    cdef real k = z if x < 0 else c, v = 1 + u, top = fma(c, u, -z) if x < 0 else fma(-z, u, c)
    t.value = fma(k, magnitude(x) if k != 0 else <real>0, low) + s
    t.slope = top/v
    t.curvature = u/(v*v)
    t.label_slope = -x
    return t


cdef inline ElementTerms weighted_cross_entropy(real x, real z, real q, real scaled) noexcept nogil:
    """scaled is u times a power of two: where u is subnormal, q u need not be, and is rounded once."""
    cdef ElementTerms t
    cdef real unit = scaled_unit(x), m = magnitude(x), u = scaled/unit, low, s = log1p_unit(u, &low)
    cdef real one = 1, a = q*z, a_rest = product_rest(q, z, a), c = one - z, c_rest = (one - c) - z
    cdef real sum = a + c, v = sum - a, sum_rest = (a - (sum - v)) + (c - v)
    cdef real k = a if x < 0 else c, k_rest = a_rest if x < 0 else c_rest
    cdef real top = fma(c, scaled, -a*unit) if x < 0 else fma(-a, scaled, c*unit), v1 = unit + scaled
    cdef real near = scaled if scaled < 1 else s*unit, rest
    m = m if k != 0 else <real>0
    rest = fma((a_rest + c_rest) + sum_rest, s, fma(k_rest, m, sum*low))
    rest = rest if rest == rest else <real>0                # an infinite logit
    t.value = fma(sum/unit, near, fma(k, m, rest))
    t.slope = top/v1
    t.curvature = (sum*scaled/v1)*(unit/v1)
    sum = magnitude(a) + magnitude(c)                       # 0: neither term counts, whatever x is
    t.value = t.value if sum != 0 else <real>0
    t.slope = t.slope if sum != 0 else <real>0
    t.curvature = t.curvature if sum != 0 else <real>0
    t.label_slope = fma(q - 1, s, times(q, -x) if x < 0 else -x)
    t.weight_slope = times(z, s + (low + (-x if x < 0 else <real>0)))
    return t


cdef inline bint ordinary_bits(const real* odd, const real* low, Py_ssize_t n) noexcept nogil:
    """Whether no odd_bits are set, and no |x| was too large for u to be taken as it is."""
    cdef real least = 2e-28 if real is float else 1e-222    # somewhat above exp(-near_of)
    cdef int any = 0
    cdef Py_ssize_t j
    for j in range(n):
        any |= (odd[j] != 0) | (low[j] <= least)
    return any == 0


cdef inline bint is_ordinary(const real* z, const real* u, Py_ssize_t n) noexcept nogil:
    """Whether all labels are 0 or 1, and u can be taken as it is; n a multiple of STRIP."""
    cdef real odd[STRIP]
    cdef real low[STRIP]
    cdef Py_ssize_t g = 0, j
    for j in range(STRIP):
        odd[j] = 0
        low[j] = INFINITY
    while g < n:
        for j in range(STRIP):
            odd[j] = odd_bits(odd[j], z[g + j])
            low[j] = min_bits(low[j], u[g + j])
        g += STRIP
    return ordinary_bits(odd, low, STRIP)


cdef inline ElementTerms ordinary_cross_entropy(real x, real z, real q, real u) noexcept nogil:
    """weighted_cross_entropy's value and slope, to the bit, for labels 0 and 1: softplus(x) and q softplus(-x)."""
    cdef ElementTerms t
    cdef real low, s = log1p_unit(u, &low), one = 1, w = choose(z, q, one), y = towards(z, x)
    cdef real far = y if y > 0 else <real>0, near = u if y < 0 else one
    t.value = fma(w, s, fma(w, far, w*low))
    t.slope = choose(z, 0 - q, one)*near/(one + u)      # never -0
    return t


cdef inline ElementTerms sigmoid_focal(const SigmoidFocal* p, double x, double z) noexcept nogil:
    """F(x) = (1 - p)^gamma softplus(-x) for label 1, F(-x) for label 0: one of them at m, the other at -m."""
    cdef ElementTerms t
    cdef double g = p.gamma, m = fabs(x), u = fl_exp_minus(m), s = fl_log1p(u), d = 1/(1 + u), b, lost, far
    cdef double positive = p.positive*z, negative = p.negative*(1 - z)
    cdef double near_weight = negative if x < 0 else positive, far_weight = positive if x < 0 else negative
    cdef double near_power, far_power, near_slope, far_slope, near_curve, far_curve
    b = times(g, m)
    far_power = fl_exp_minus(g*s)                           # (1 + u)^-gamma
    lost = fl_product_rest(g, m, b)
    lost = lost if fabs(lost) < 1 else 0.0                  # NaN where m is infinite
    near_power = far_power*fl_exp_minus(b)*(1 - lost)
    far = s + m
    t.value = times(near_weight, near_power*s) + times(far_weight, far_power*far)
    far = u*(far if u != 0 else 0.0)                        # from here on only p softplus: 0 at infinity
    near_slope = -near_power*(g*s + u)*d
    far_slope = -far_power*(g*far + 1)*d
    t.slope = times(near_weight, near_slope) - times(far_weight, far_slope)
    t.slope = -t.slope if x < 0 else t.slope
    near_curve = near_power*d*d*(g*s*(g - u) + (2*g + 1)*u)
    far_curve = far_power*d*d*(g*far*(g*u - 1) + (2*g + 1)*u)
    t.curvature = times(near_weight, near_curve) + times(far_weight, far_curve)
    far = far_power*(s + m)
    near_power = near_power*s
    t.label_slope = p.positive*(far if x < 0 else near_power) - p.negative*(near_power if x < 0 else far)
    return t
