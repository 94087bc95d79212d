/* What the element-wise losses need beyond vmath.h. All is branch-free; float functions end in f. */
#ifndef FL_SIGMOID_MATH_H
#define FL_SIGMOID_MATH_H
#include "math/vmath.h"

/* ---- rounding error of a product p = a b: exact where nothing over- or underflows -------------------------------- */
FL_INLINE float fl_product_restf(float a, float b, float p) {
#if FL_HAS_FMA
    return FL_FMAF(a, b, -p);
#else
    return (float)((double)a * b - p);
#endif
}

FL_INLINE double fl_product_rest(double a, double b, double p) {
#if FL_HAS_FMA
    return FL_FMA(a, b, -p);
#else
    double s = a * 134217729.0, t = b * 134217729.0, a1 = s - (s - a), a2 = a - a1, b1 = t - (t - b), b2 = b - b1;
    return (((a1 * b1 - p) + a1 * b2) + a2 * b1) + a2 * b2;
#endif
}

/* ---- exp(-a), a >= 0: nothing overflows, subnormals come out right, NaN stays; it is 0 from FL_SIGMOID_FAR on ----- */
#define FL_SIGMOID_SCALEDF 0x1p49f                        /* the unit of the scaled ones, which are never subnormal */
#define FL_SIGMOID_SCALED 0x1p120
#define FL_SIGMOID_FARF (-fl_lof(0.0f))
#define FL_SIGMOID_FAR (-fl_lo(0.0))
#define FL_SIGMOID_NEARF 64.0f                            /* up to here nothing has to be scaled */
#define FL_SIGMOID_NEAR 512.0
FL_INLINE double fl_exp_scaled(double a) { return fl_exp_fine(-a, fl_lo(0.0), fl_magic(0.0)); }
FL_INLINE double fl_exp_minus(double a) { return fl_exp_scaled(a) * (1.0 / FL_SIGMOID_SCALED); }

/* ---- exp(x + low), |low| below an ulp of x: inf and subnormals where they belong --------------------------------- */
FL_INLINE double fl_exp_any(double x, double low) {
    double high = x > 720.0 ? 720.0 : x, e;               /* two units: each end of the range is normal in one */
    e = fl_exp_fine(high, fl_lo(0.0), x > 0.0 ? fl_magic(1000.0) : fl_magic(0.0));
    return FL_FMA(e, low, e) * (x > 0.0 ? 0x1p880 : 0x1p-120);
}

/* ---- log(1 + u), u in [0, 1], as result and rounding error; 0.5 ulp, besides u's own error ----------------------- */
FL_INLINE float fl_log1p_unitf(float u, float *low) {
#if FL_HAS_FMA                                            /* a division would take as long as all of this */
    float z = u * u, p, q, h;                             /* u + u^2 p(u), p the fit of least relative error, 2^-27.5 */
    q = FL_FMAF(-0.0575699061f, u, 0.106709197f);         /* Estrin's form but for the last step: half the chain */
    p = FL_FMAF(-0.00330740749f, u, 0.020154506f);
    p = FL_FMAF(p, z, q);
    q = FL_FMAF(-0.153496653f, u, 0.19693397f);
    p = FL_FMAF(p, z, q);
    q = FL_FMAF(-0.249581948f, u, 0.333304733f);
    p = FL_FMAF(p, z, q);
    p = FL_FMAF(p, u, -0.499999315f);
    h = FL_FMAF(z, p, u);
    *low = FL_FMAF(z, p, u - h);
#else
    float s = u / (2.0f + u), z = s * s, r, p, h;         /* u - s (u - R(s^2)) */
    r = 0.2801198661327362f;
    r = FL_FMAF(r, z, 0.28001806139945984f);
    r = FL_FMAF(r, z, 0.4002152681350708f);
    r = FL_FMAF(r, z, 0.666664183139801f);
    p = s * FL_FMAF(r, z, -u);
    h = u + p;
    *low = (u - h) + p;
#endif
    return h;
}

FL_INLINE double fl_log1p_unit(double u, double *low) {
    *low = 0.0;
    return fl_log1p(u);
}

/* ---- for labels 0 and 1 only: integer operations, which run on other units than those of floats ------------------ */
FL_INLINE uint32_t fl_onesf(float z) { return 0 - (fl_bits_of_float(z) >> 29); }          /* all bits set, or none */
FL_INLINE uint64_t fl_ones(double z) { return 0 - (fl_bits_of_double(z) >> 61); }

/* z ? a : b */
FL_INLINE float fl_choosef(float z, float a, float b) {
    uint32_t bits = fl_bits_of_float(b);
    return fl_float_of(bits ^ (fl_onesf(z) & (fl_bits_of_float(a) ^ bits)));
}
FL_INLINE double fl_choose(double z, double a, double b) {
    uint64_t bits = fl_bits_of_double(b);
    return fl_double_of(bits ^ (fl_ones(z) & (fl_bits_of_double(a) ^ bits)));
}

/* z ? -x : x */
FL_INLINE float fl_towardsf(float z, float x) {
    return fl_float_of(fl_bits_of_float(x) ^ (fl_onesf(z) & 0x80000000));
}
FL_INLINE double fl_towards(double z, double x) {
    return fl_double_of(fl_bits_of_double(x) ^ (fl_ones(z) & 0x8000000000000000));
}

/* a with more bits set unless z is 0 or 1 */
FL_INLINE float fl_odd_bitsf(float a, float z) {
    return fl_float_of(fl_bits_of_float(a) | (fl_bits_of_float(z) ^ (fl_onesf(z) & 0x3f800000)));
}
FL_INLINE double fl_odd_bits(double a, double z) {
    return fl_double_of(fl_bits_of_double(a) | (fl_bits_of_double(z) ^ (fl_ones(z) & 0x3ff0000000000000)));
}

/* the smaller of two numbers >= 0; NaN is large */
FL_INLINE float fl_min_bitsf(float a, float b) { return fl_bits_of_float(a) < fl_bits_of_float(b) ? a : b; }
FL_INLINE double fl_min_bits(double a, double b) { return fl_bits_of_double(a) < fl_bits_of_double(b) ? a : b; }

/* ---- log(x) for any x >= 0: -inf, inf and subnormals as they should be; NaN for the rest ------------------------- */
FL_INLINE double fl_log_any(double x) {
    double tiny = x < 0x1p-1022 ? 0x1p54 : 1.0, y = x * tiny, r;
    r = fl_log(y) - (x < 0x1p-1022 ? 37.429947750237048 : 0.0);
    r = x <= 1.7976931348623157e308 ? r : x;              /* inf, and NaN */
    r = x == 0.0 ? -__builtin_inf() : r;
    return x < 0.0 ? __builtin_nan("") : r;
}
#endif
