"""The laws of softmax losses: what a row with one label is worth, from its sums.

A law is a tag (a struct that holds its parameters, all double) and an inline function from what a row's sums give
exactly to its value and derivatives. With T the sum of exp over the other classes, the gradient of another class k is
e_k/T mass + p_k push, that of the label -mass + p push. Losses with a target for every class are sums of laws.
"""
from libc.math cimport ldexp, log, pow

from fastloss.kernels.math.sigmoid_math cimport fl_product_rest
from fastloss.kernels.row_sums.lane_sums cimport sum_rest
from fastloss.kernels.row_sums.row_sums cimport Terms, label_of_terms, log_ratios
from fastloss.kernels.math.vmath cimport FL_LN2, bias_of, real

cdef struct Label:      # what is known of a row's label, or of any class
    double s            # -log p
    double p
    double q            # 1 - p, without cancellation
    double q_rest       # what q has rounded off


cdef struct Worth:
    double value
    double mass         # q dvalue/ds
    double bend         # q^2 d2value/ds2
    double push         # of every class by its probability: what the log-sum-exp itself is worth


cdef struct CrossEntropy:
    double unused


cdef struct Focal:
    double gamma


cdef struct Poly1:
    double epsilon


ctypedef fused Law:
    CrossEntropy
    Focal
    Poly1


cdef inline Worth cross_entropy(const CrossEntropy* law, const Label* y) noexcept nogil:
    cdef Worth w
    w.value = y.s
    w.mass = y.q
    w.bend = w.push = 0
    return w


cdef inline Worth focal(const Focal* law, const Label* y) noexcept nogil:
    """value = q^g s."""
    cdef Worth w
    cdef double g = law.gamma, ps = y.p*y.s if y.p != 0 else 0.0, power
    power = pow(y.q, g)*(1 + (g*(y.q_rest/y.q) if y.q > 1e-290 else 0.0))
    w.value = power*y.s if power != 0 else 0.0
    w.mass = power*(y.q + g*ps)
    w.bend = g*power*(2*y.p*y.q + ps*(g*y.p - 1))
    w.push = 0
    return w


cdef inline Worth poly1(const Poly1* law, const Label* y) noexcept nogil:
    """value = s + e q."""
    cdef Worth w
    w.value = y.s + law.epsilon*y.q
    w.mass = y.q*(1 + law.epsilon*y.p)
    w.bend = -law.epsilon*y.p*y.q*y.q
    w.push = 0
    return w


cdef inline Worth worth(const Law* law, const Label* y) noexcept nogil:
    if Law is CrossEntropy:
        return cross_entropy(law, y)
    elif Law is Focal:
        return focal(law, y)
    else:
        return poly1(law, y)


cdef inline double quotient(double others, double label, double total, double* rest) noexcept nogil:
    """others/total, total the rounded sum of both; rest: what the quotient and the sum have rounded off."""
    cdef double q = others/total, back = q*total
    rest[0] = ((others - back) - fl_product_rest(q, total, back))/total - q*sum_rest(others, label, total)/total
    return q


cdef inline void add_z_loss(Worth* w, double z, double lse) noexcept nogil:
    w.value = w.value + z*lse*lse
    w.push = w.push + 2*z*lse


cdef inline Worth worth_of_sums(const Law* law, double z, double s, double others, double label, double total,
                                double lse) noexcept nogil:
    """Of a row whose sums these are, with a z-loss."""
    cdef Label y
    cdef Worth w
    y.s = s
    y.q = quotient(others, label, total, &y.q_rest)
    y.p = label/total
    w = worth(law, &y)
    if z != 0:
        add_z_loss(&w, z, lse)
    return w


cdef inline double slope_of_law(const Worth* w, double q) noexcept nogil:
    """What each other class's gradient has by its probability."""
    return (w.mass/q if q != 0 else 0.0) + w.push


cdef inline double entry_of_law(const Worth* w, double p) noexcept nogil:
    """The label's gradient."""
    return p*w.push - w.mass


cdef inline double lse_of(double s, double x, double total, double power, double shift, int bias) noexcept nogil:
    """Log-sum-exp: x + s, x the logit left out, unless they cancel, or s is inf."""
    if s <= 1:
        return x + s
    return shift + (log(ldexp(total, -bias)) + power*FL_LN2)


cdef inline Worth worth_of_row(const Law* law, double z, const Terms* row, real dummy) noexcept nogil:
    cdef double s, label = label_of_terms(row, dummy)
    log_ratios(1, row, &s, dummy)
    return worth_of_sums(law, z, s, row.others, label, row.others + label,
                         lse_of(s, row.gap + row.shift, row.others + label, row.power, row.shift, bias_of(dummy)))
