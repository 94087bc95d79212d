"""Losses of a prediction x and a label y.  Computed in float64, which costs little beside reading the numbers."""
from libc.math cimport INFINITY, fabs, sqrt

from fastloss.kernels.elementwise.sigmoid cimport ElementTerms, times
from fastloss.kernels.math.sigmoid_math cimport (
    fl_exp_any, fl_exp_minus, fl_log_any, fl_product_rest, fma,
)
from fastloss.kernels.math.vmath cimport FL_LN2, fl_log1p

cdef struct SquaredError:
    char unused

cdef struct AbsoluteError:
    char unused

cdef struct Huber:
    double delta

cdef struct LogCosh:
    char unused

cdef struct Quantile:
    double quantile

cdef struct Poisson:
    bint full

cdef struct Gamma:
    char unused

cdef struct Tweedie:
    double two              # 2 - power and 1 - power, and what these lost
    double two_rest
    double one
    double one_rest

cdef struct Hinge:
    char unused

cdef struct SquaredHinge:
    char unused

cdef struct Divergence:
    char unused


cdef inline double zero(double d) noexcept nogil:
    """0, and NaN for NaN."""
    return 0.0 if d == d else d


cdef inline ElementTerms squared_error(double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double d = x - y
    t.value = d*d
    t.slope = 2*d
    t.curvature = 2
    t.label_slope = -2*d
    return t


cdef inline ElementTerms absolute_error(double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double d = x - y
    t.value = fabs(d)
    t.slope = 1.0 if d > 0 else (-1.0 if d < 0 else zero(d))
    t.curvature = zero(d)
    t.label_slope = -t.slope
    return t


cdef inline ElementTerms huber(const Huber* p, double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double d = x - y, a = fabs(d), delta = p.delta, inner = a if a <= delta else delta
    t.value = 0.5*a*a if a <= delta else delta*(a - 0.5*delta)
    t.slope = -inner if d < 0 else inner
    t.slope = t.slope if d == d else d
    t.curvature = 1.0 if a <= delta else zero(d)
    t.label_slope = -t.slope
    return t


cdef inline ElementTerms log_cosh(double x, double y) noexcept nogil:
    """log(1 + 2 sinh(d/2)^2) near 0, |d| - log 2 + log(1 + exp(-2|d|)) far from it."""
    cdef ElementTerms t
    cdef double d = x - y, a = fabs(d), h = 0.5*(a if a < 2 else 2.0), h2 = h*h, e = fl_exp_minus(2*a), p, c
    p = 2.81145725434552076e-15     # 1/(2k + 1)!
    p = fma(p, h2, 7.64716373181981648e-13)
    p = fma(p, h2, 1.60590438368216146e-10)
    p = fma(p, h2, 2.50521083854417188e-08)
    p = fma(p, h2, 2.75573192239858907e-06)
    p = fma(p, h2, 1.98412698412698413e-04)
    p = fma(p, h2, 8.33333333333333333e-03)
    p = fma(p, h2, 1.66666666666666667e-01)
    p = fma(p*h2, h, h)             # sinh(h)
    c = 2*p*p
    t.value = fl_log1p(c if a < 2 else e) + (0.0 if a < 2 else a - FL_LN2)
    t.value = t.value if d == d else d
    t.slope = 2*p*sqrt(1 + p*p)/(1 + c) if a < 2 else (1 - e)/(1 + e)
    t.slope = -t.slope if d < 0 else t.slope
    t.slope = t.slope if d == d else d
    t.curvature = 1/((1 + c)*(1 + c)) if a < 2 else 4*e/((1 + e)*(1 + e))
    t.curvature = t.curvature if d == d else d
    t.label_slope = -t.slope
    return t


cdef inline ElementTerms quantile(const Quantile* p, double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double d = x - y, above = 1 - p.quantile, below = -p.quantile
    t.slope = above if d > 0 else (below if d < 0 else zero(d))
    t.value = times(t.slope, d)
    t.curvature = zero(d)
    t.label_slope = -t.slope
    return t


cdef inline ElementTerms poisson(const Poisson* p, double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double e = fl_exp_any(x, 0), log_y
    t.value = fma(-y, x if y != 0 else 0.0, e) if e < <double>INFINITY else e
    t.value = t.value if x == x else x
    t.slope = e - y
    t.curvature = e
    t.label_slope = -x
    if p.full:                      # Stirling's approximation of log y!, 0 where y <= 1
        log_y = fl_log_any(y)
        t.value += (y*log_y - y) + 0.5*(log_y + 1.8378770664093453) if y > 1 else 0.0
        t.label_slope += log_y + 0.5/y if y > 1 else 0.0
    return t


cdef inline ElementTerms gamma(double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double e = fl_exp_any(-x, 0)
    t.curvature = times(y, e)
    t.value = x + t.curvature if t.curvature < <double>INFINITY else t.curvature
    t.slope = 1 - t.curvature
    t.label_slope = e
    return t


cdef inline double exp_product(double a, double a_rest, double x) noexcept nogil:
    """exp((a + a_rest) x): what the product loses would be many ulps of the exponential."""
    cdef double b = a*x
    return fl_exp_any(b, fma(a_rest, x, fl_product_rest(a, x, b)) if fabs(b) < 1e3 else 0.0)


cdef inline ElementTerms tweedie(const Tweedie* p, double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double two = exp_product(p.two, p.two_rest, x), one = exp_product(p.one, p.one_rest, x)
    cdef double ye = times(y, one), a = two/p.two, b = -ye/p.one
    cdef bint over = two == <double>INFINITY and ye == <double>INFINITY     # the one with the larger power wins
    t.value = <double>INFINITY if over else a + b
    t.slope = two - ye
    t.curvature = p.two*two - p.one*ye
    if p.two == 2:                  # power 0: half the square
        t.value = 0.5*(one - y)*(one - y)
    if over:
        t.slope = two if x > 0 else -ye
        t.curvature = <double>INFINITY
    t.label_slope = y - one if p.two == 2 else -one/p.one
    return t


cdef inline ElementTerms hinge(double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double z = 2*y - 1, margin = fma(-z, x if z != 0 else 0.0, 1.0)
    t.value = 0.0 if margin < 0 else margin
    t.slope = -z if margin > 0 else zero(t.value)
    t.curvature = zero(t.slope)
    t.label_slope = -2*x if margin > 0 else zero(t.value)
    return t


cdef inline ElementTerms squared_hinge(double x, double y) noexcept nogil:
    cdef ElementTerms t
    cdef double z = 2*y - 1, margin = fma(-z, x if z != 0 else 0.0, 1.0)
    margin = 0.0 if margin < 0 else margin
    t.value = margin*margin
    t.slope = -2*z*margin
    t.curvature = 2*z*z if margin > 0 else zero(margin)
    t.label_slope = times(margin, -4*x)
    return t


cdef inline ElementTerms divergence(double x, double y) noexcept nogil:
    """y (log y - x), x the logarithm of a probability."""
    cdef ElementTerms t
    cdef double log_y = fl_log_any(y)
    t.value = times(y, log_y - x)
    t.slope = -y if x == x or y == 0 else x
    t.curvature = zero(x + y) if y != 0 else 0.0
    t.label_slope = (log_y + 1) - x
    return t
