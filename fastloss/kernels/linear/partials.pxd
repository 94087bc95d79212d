"""A vocabulary in several places: sums over some of its classes, which merge in any order into a row's loss."""
from libc.math cimport INFINITY, fabs, fmax, fmin, ldexp, rint

from fastloss.kernels.linear.call cimport RowSums
from fastloss.kernels.math.vmath cimport (
    FL_BIAS, FL_LN2, FL_LN2_HIGH, FL_LN2_LOW, bias_of, fl_exp_label, power_of, real, shift_of,
)
from fastloss.kernels.row_sums.lane_sums cimport sum_rest
from fastloss.kernels.row_sums.row_sums cimport Terms, log_ratios

cdef struct Partial:        # of a row, over some classes: a sum of exp over all but the label, in the unit 2^power
    double power
    double sum
    double rest             # compensates the sum
    double label            # the label's logit; -inf where it is elsewhere


cdef inline double scale_between(double lower, double upper) noexcept nogil:
    """2^(lower - upper); powers of large logits lie further apart than an int reaches, and those of NaN nowhere."""
    cdef double d = lower - upper
    return ldexp(1.0, <int>d) if d > -2000 else 0.0


cdef inline void merge_into(Partial* a, const Partial* b) noexcept nogil:
    """Powers of two scale exactly, and the sum keeps what it rounds off: the order of merging does not matter."""
    cdef double t, f, s, r
    if a.sum == 0 or (b.sum != 0 and b.power > a.power):
        f = scale_between(a.power, b.power) if a.sum != 0 else 0.0
        a.power = b.power
        s, r = a.sum*f, a.rest*f
        a.sum, a.rest = b.sum, b.rest
    else:
        f = scale_between(b.power, a.power) if b.sum != 0 else 0.0
        s, r = b.sum*f, b.rest*f
    t = a.sum + s
    a.rest += sum_rest(a.sum, s, t) + r
    a.sum = t
    a.label = b.label if a.label == <double>(-INFINITY) else a.label


cdef inline double less_powers(double x, double k) noexcept nogil:
    """x - k ln 2, k the nearest power; within 1 also where x is so large that rounding leaves nothing of it."""
    return fmin(fmax((x - k*FL_LN2_HIGH) - k*FL_LN2_LOW, -1), 1)


cdef inline Partial partial_of(const RowSums* sums, Py_ssize_t i, double label_logit, real dummy) noexcept nogil:
    """The sums of row i, which are around its largest logit."""
    cdef Partial p
    cdef double top = sums.top[i] if sums.top[i] > <double>(-INFINITY) else 0.0, k, s, t = sums.sum[i]
    cdef real shift = shift_of(<real>top)
    cdef double power = power_of(<real>top, shift)
    power -= bias_of(dummy)
    k = rint(<double>shift/FL_LN2)                  # a shift is no power of two: its remainder goes into the sum
    s = fl_exp_label(less_powers(shift, k), FL_BIAS, FL_BIAS)
    s = s if shift != 0 else 1.0
    p.power = power + k
    p.sum = t*s
    p.rest = sums.rest[i]*s if fabs(t) < <double>INFINITY else 0.0
    p.label = label_logit
    return p


cdef inline double loss_of(const Partial* p) noexcept nogil:
    """Of a row's merged partial: log-sum-exp minus the label's logit."""
    cdef Terms terms
    cdef double k = rint(p.label/FL_LN2), loss
    terms.others = p.sum + p.rest
    terms.power = p.power + FL_BIAS
    terms.shift = 0
    terms.gap = p.label
    if k - p.power > 512 and k < <double>INFINITY:      # exp of the label's logit may overflow in the others' unit
        terms.others *= scale_between(p.power + FL_BIAS, k)
        terms.power = 0
        terms.gap = less_powers(p.label, k)
    log_ratios(1, &terms, &loss, <double>0)
    if terms.others == 0 and p.label > <double>(-INFINITY):     # no class but the label
        loss = 0
    return loss
