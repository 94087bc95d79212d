"""exp of many at once: exp_table.h under one name for both types."""
from fastloss.kernels.math.vmath cimport real

cdef extern from "math/exp_table.h" nogil:
    float fl_steps_magicf(float) noexcept
    double fl_steps_magic(double) noexcept
    float fl_exp_firstf(float, float, float, float*) noexcept
    double fl_exp_first(double, double, double, double*) noexcept
    void fl_exp_rootsf(const float*, float*, float*, int) noexcept
    void fl_exp_roots(const double*, double*, double*, int) noexcept
    float fl_exp_lastf(float, float, float, float, float) noexcept
    float fl_exp_last_shortf(float, float, float, float) noexcept
    double fl_exp_last(double, double, double, double) noexcept

cdef enum:
    MOST = 128


cdef inline real steps_magic_of(real power) noexcept nogil:
    if real is float:
        return fl_steps_magicf(power)
    else:
        return fl_steps_magic(power)


cdef inline void exps(const real* d, real sign, real magic, real* e, int n, bint summed) noexcept nogil:
    """e = exp(sign d) 2^bias, d in range; n, whole registers and at most MOST, and sign are constants.

    Terms of sums, which must not all be off the same way, take an operation more in float.
    """
    exps_by(d, sign, &magic, 0, e, n, summed)


cdef inline void exps_by(const real* d, real sign, const real* magic, int each, real* e, int n,
                         bint summed) noexcept nogil:
    """The same with one magic for all d or, where the constant `each` is 1, with one for each d."""
    cdef real s[MOST]
    cdef real r[MOST]
    cdef real rest[MOST]
    cdef real whole[MOST]
    cdef int j
    for j in range(n):
        if real is float:
            s[j] = fl_exp_firstf(d[j], sign, magic[j*each], &r[j])
            whole[j] = s[j] - magic[j*each]
        else:
            s[j] = fl_exp_first(d[j], sign, magic[j*each], &r[j])
    if real is float:
        fl_exp_rootsf(s, s, rest, n)
    else:
        fl_exp_roots(s, s, rest, n)
    for j in range(n):
        if real is float and summed:
            e[j] = fl_exp_lastf(s[j], rest[j], r[j], whole[j], sign)
        elif real is float:
            e[j] = fl_exp_last_shortf(s[j], r[j], whole[j], sign)
        else:
            e[j] = fl_exp_last(s[j], rest[j], r[j], sign)
