/* exp, log and log1p for the kernels: branch-free and without tables, so that the compiler vectorises plain loops.
 *
 * Every instruction set with fma evaluates the same expressions in the same order (the build pins contraction off), so
 * AVX2 and AVX-512 give the same bits. Without fma a product and a sum take its place: the last bit may differ.
 * Float functions end in f. Bounds below are measured maxima, in units in the last place (tests/kernels/test_vmath.py).
 */
#ifndef FL_VMATH_H
#define FL_VMATH_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_MSC_VER)
#define FL_INLINE static __forceinline
#define FL_PREFETCH(p) ((void)(p))
#define FL_PREFETCH_FAR(p) ((void)(p))
#define FL_FABSF(x) fabsf(x)
#define FL_FABS(x) fabs(x)
#else
#define FL_INLINE static inline __attribute__((always_inline))
#define FL_PREFETCH(p) __builtin_prefetch((const void *)(p))
/* into the second level, which has more misses under way than the first: a random access to 16 MB in memory takes 3.5 ns
 * then, 9 the other way, however far ahead it is asked for (Zen 4) */
#define FL_PREFETCH_FAR(p) __builtin_prefetch((const void *)(p), 0, 2)
#define FL_FABSF(x) __builtin_fabsf(x)
#define FL_FABS(x) __builtin_fabs(x)
#endif

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FL_HAS_FMA 1
#define FL_FMAF(a, b, c) __builtin_fmaf((a), (b), (c))
#define FL_FMA(a, b, c) __builtin_fma((a), (b), (c))
#else
#define FL_HAS_FMA 0
#define FL_FMAF(a, b, c) ((a) * (b) + (c))
#define FL_FMA(a, b, c) ((a) * (b) + (c))
#endif

FL_INLINE float fl_float_of(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
FL_INLINE uint32_t fl_bits_of_float(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
FL_INLINE double fl_double_of(uint64_t bits) { double f; memcpy(&f, &bits, 8); return f; }
FL_INLINE uint64_t fl_bits_of_double(double f) { uint64_t bits; memcpy(&bits, &f, 8); return bits; }

/* ---- the reference of an exp -----------------------------------------------------------------------------------
 * Softmax needs exp(x - m) for all x of a row. With m = M ln 2 + shift, M an integer, the subtraction becomes part of
 * the argument reduction: x - m is never rounded, and another M changes only exponents.
 *
 *     fl_expf(x - shift, lo, magic) = exp(x - shift) * 2^(BIAS - M)
 *
 * `magic` hides M in the rounding constant. BIAS keeps results in normal range, down to the smallest subnormal relative
 * to 2^M. Below `lo` the result is exactly 0, also for -inf; NaN stays NaN.
 * |m| small: shift = 0. |m| large: shift = m, and x - m is exact wherever exp(x - m) does not underflow (Sterbenz).
 */
#define FL_BIASF 49
#define FL_BIAS 120
#define FL_ROUNDF 12582912.0f         /* 1.5 * 2^23: adding it rounds to an integer */
#define FL_ROUND 6755399441055744.0   /* 1.5 * 2^52 */
#define FL_LN2 0.6931471805599453
#define FL_LN2_HIGH 6.93147180369123816490e-01   /* ln 2 in 33 bits, and what they lack */
#define FL_LN2_LOW 1.90821492927058770002e-10

FL_INLINE float fl_shiftf(float m) { return FL_FABSF(m) < 256.0f ? 0.0f : m; }
FL_INLINE float fl_powerf(float m, float shift) { return FL_FMAF(m - shift, 1.44269504f, FL_ROUNDF) - FL_ROUNDF; }
FL_INLINE float fl_lof(float M) { return (M - (float)(FL_BIASF + 127)) * 0.693147181f; }
FL_INLINE float fl_magicf(float M) { return (FL_ROUNDF + (float)(FL_BIASF + 127)) - M; }

FL_INLINE double fl_shift(double m) { return FL_FABS(m) < 2048.0 ? 0.0 : m; }
FL_INLINE double fl_power(double m, double shift) { return FL_FMA(m - shift, 1.4426950408889634, FL_ROUND) - FL_ROUND; }
FL_INLINE double fl_lo(double M) { return (M - (double)(FL_BIAS + 1023)) * FL_LN2; }
FL_INLINE double fl_magic(double M) { return (FL_ROUND + (double)(FL_BIAS + 1023)) - M; }

/* ---- exp -------------------------------------------------------------------------------------------------------
 * The sign (1 or -1) is multiplied into the constants, so exp(sign d) need not negate d.
 */
FL_INLINE float fl_exp_reducedf(float d, float sign, float magic, float *power) {     /* the remainder, times the sign */
    float t = FL_FMAF(d, sign * 1.44269504f, magic), n = t - magic;
    *power = fl_float_of(fl_bits_of_float(t) << 23);
    d = FL_FMAF(n, sign * -0.693115234375f, d);           /* ln 2 in 14 bits: exact for |n| < 1024 */
    return FL_FMAF(n, sign * -3.19461833e-05f, d);
}

FL_INLINE float fl_exp_seriesf(float r, float sign) {     /* exp(sign r) = 1 + r (sign + r series), |r| <= ln 2 / 2 */
    float p = 0.00138144672637811823f;
    p = FL_FMAF(p, r, sign * 0.0083687803232603949f);
    p = FL_FMAF(p, r, 0.0416683941774088599f);
    p = FL_FMAF(p, r, sign * 0.166665201098895081f);
    return FL_FMAF(p, r, 0.499999934129920636f);
}

/* 0.79 ulp, by 1 + r in two words; with fma a tenth slower than the next function. d must be in range, as below */
FL_INLINE float fl_exp_signed_finef(float d, float sign, float magic) {
    float power, r = fl_exp_reducedf(d, sign, magic, &power);
    float high = 1.0f + sign * r, low = (1.0f - high) + sign * r;
    return (high + FL_FMAF(r * r, fl_exp_seriesf(r, sign), low)) * power;
}

/* 0.88 ulp; 1.06 in the lowest binade, where r power is subnormal */
FL_INLINE float fl_exp_signedf(float d, float sign, float magic) {
#if FL_HAS_FMA
    float power, r = fl_exp_reducedf(d, sign, magic, &power);
    return FL_FMAF(FL_FMAF(fl_exp_seriesf(r, sign), r, sign), r * power, power);   /* (1 + r p) power: a longer chain */
#else
    return fl_exp_signed_finef(d, sign, magic);           /* Horner's form would cost 1.2 ulp without fma */
#endif
}

FL_INLINE float fl_expf(float d, float lo, float magic) { return fl_exp_signedf(lo > d ? lo : d, 1.0f, magic); }
FL_INLINE float fl_expf_fine(float d, float lo, float magic) {
    return fl_exp_signed_finef(lo > d ? lo : d, 1.0f, magic);             /* NaN passes */
}

FL_INLINE double fl_exp_reduced(double d, double magic, double *n, double *coarse, double *power) {
    double t = FL_FMA(d, 1.4426950408889634, magic);
    *n = t - magic;
    *power = fl_double_of(fl_bits_of_double(t) << 52);
    *coarse = FL_FMA(*n, -FL_LN2_HIGH, d); /* ln 2 in 33 bits: exact for |n| < 2^20 */
    return FL_FMA(*n, -FL_LN2_LOW, *coarse);
}

FL_INLINE double fl_exp_series(double r) {                /* exp(r) = 1 + r + r r series, |r| <= ln 2 / 2 */
    double p = 2.49999443819749157e-8;
    p = FL_FMA(p, r, 2.76303780577467382e-7);
    p = FL_FMA(p, r, 2.75575873989747433e-6);
    p = FL_FMA(p, r, 0.0000248014927644309942);
    p = FL_FMA(p, r, 0.000198412695047140968);
    p = FL_FMA(p, r, 0.0013888888943921016);
    p = FL_FMA(p, r, 0.00833333333349564107);
    p = FL_FMA(p, r, 0.0416666666665291949);
    p = FL_FMA(p, r, 0.166666666666664102);
    return FL_FMA(p, r, 0.500000000000001072);
}

/* 0.7 ulp, by r and 1 + r in two words. d must be in range */
FL_INLINE double fl_exp_in_range_fine(double d, double magic) {
    double n, s, power, high, low, r = fl_exp_reduced(d, magic, &n, &s, &power);
    high = 1.0 + r;
    low = (r - (high - 1.0)) + FL_FMA(n, -FL_LN2_LOW, s - r);
    return (high + FL_FMA(r * r, fl_exp_series(r), low)) * power;
}

/* 0.9 ulp, in three quarters of the operations */
FL_INLINE double fl_exp_in_range(double d, double magic) {
#if FL_HAS_FMA
    double n, s, power, r = fl_exp_reduced(d, magic, &n, &s, &power);
    return FL_FMA(FL_FMA(fl_exp_series(r), r, 1.0), r, 1.0) * power;
#else
    return fl_exp_in_range_fine(d, magic);
#endif
}

FL_INLINE double fl_exp_fine(double d, double lo, double magic) { return fl_exp_in_range_fine(lo > d ? lo : d, magic); }
FL_INLINE double fl_exp(double d, double lo, double magic) { return fl_exp_in_range(lo > d ? lo : d, magic); }

/* exp(d) in float64, in the unit 2^(power - bias) of a kernel with another bias */
FL_INLINE double fl_exp_label(double d, double power, int bias) {
    power += FL_BIAS - bias;
    return fl_exp_fine(d, fl_lo(power), fl_magic(power));
}

/* The same to 2^-33, which is enough for a float result */
FL_INLINE double fl_exp_label_short(double d, double power, int bias) {
    double lo, n, s, p, r;
    power += FL_BIAS - bias;
    lo = fl_lo(power);
    r = fl_exp_reduced(lo > d ? lo : d, fl_magic(power), &n, &s, &power);
    p = 0.000197903407804962422;
    p = FL_FMA(p, r, 0.00139446596090650795);
    p = FL_FMA(p, r, 0.00833349707616793662);
    p = FL_FMA(p, r, 0.0416662949475948509);
    p = FL_FMA(p, r, 0.166666658689301755);
    p = FL_FMA(p, r, 0.500000006768198873);
    return FL_FMA(FL_FMA(p, r, 1.0), r, 1.0) * power;
}

/* ---- log(1 + u), u >= 0 ---------------------------------------------------------------------------------------- */
/* 1 + u = 2^k (1 + f) with 1 + f in [sqrt 1/2, sqrt 2); for k = 0 f is u itself, so a tiny u loses nothing */
FL_INLINE double fl_split1p(double u, double *k, double *scale) {
    uint64_t e = (fl_bits_of_double(1.0 + u) - 0x3fe6a09e667f3bcdULL) >> 52;
    *scale = fl_double_of((1023ULL - e) << 52);
    *k = fl_double_of(e | 0x4330000000000000ULL) - 4503599627370496.0;
    return FL_FMA(u, *scale, *scale - 1.0);
}

/* k ln 2 + log(1 + f), plus `rest`, the rounding error of f; the series is fdlibm's */
FL_INLINE double fl_log_series(double k, double f, double rest) {
    double s = f / (2.0 + f), z = s * s, h = 0.5 * f * f, p;
    p = 1.479819860511658591e-01;
    p = FL_FMA(p, z, 1.531383769920937332e-01);
    p = FL_FMA(p, z, 1.818357216161805012e-01);
    p = FL_FMA(p, z, 2.222219843214978396e-01);
    p = FL_FMA(p, z, 2.857142874366239149e-01);
    p = FL_FMA(p, z, 3.999999999940941908e-01);
    p = FL_FMA(p, z, 6.666666666666735130e-01);
    p = FL_FMA(p, z, h);
    p = FL_FMA(k, FL_LN2_LOW, FL_FMA(s, p, rest));
    k = k * FL_LN2_HIGH;                   /* exact; the rounding error of k ln 2 + f goes back in */
    z = k + f;
    return z + ((f - (z - k)) - (h - p));
}

/* 0.8 ulp, u finite */
FL_INLINE double fl_log1p(double u) {
    double k, scale, f = fl_split1p(u, &k, &scale);
    return fl_log_series(k, f, FL_FMA(u, scale, (scale - 1.0) - f) * (1.0 - f));
}

/* 2^-30 relative, without division: enough for a float result */
FL_INLINE double fl_log1p_short(double u) {
    double k, scale, f = fl_split1p(u, &k, &scale), p;
    p = 0.0672494574541743945;
    p = FL_FMA(p, f, -0.116840236032655936);
    p = FL_FMA(p, f, 0.119053259199432674);
    p = FL_FMA(p, f, -0.124064454612364718);
    p = FL_FMA(p, f, 0.14217010495139267);
    p = FL_FMA(p, f, -0.16667707863114897);
    p = FL_FMA(p, f, 0.200022510642369295);
    p = FL_FMA(p, f, -0.250000260050229889);
    p = FL_FMA(p, f, 0.333333104046393706);
    p = FL_FMA(p, f, -0.499999997490359285);
    p = FL_FMA(p, f, 1.0);
    return FL_FMA(k, FL_LN2, f * p);
}

/* ---- log(x), x positive, normal and finite: 1 ulp ----------------------------------------------------------------- */
FL_INLINE double fl_log(double x) {
    uint64_t e = (fl_bits_of_double(x) + (0x3ff0000000000000ULL - 0x3fe6a09e667f3bcdULL)) >> 52;   /* k + 1023 */
    double k = fl_double_of(e | 0x4330000000000000ULL) - (4503599627370496.0 + 1023.0);
    return fl_log_series(k, fl_double_of(fl_bits_of_double(x) - ((e - 1023) << 52)) - 1.0, 0.0);
}

/* ---- rounding error of a quotient q = a / b, times b: a - b q in one rounding; without fma it is taken as 0 ------ */
FL_INLINE double fl_quotient_rest(double a, double b, double q) {
#if FL_HAS_FMA
    return FL_FMA(-b, q, a);
#else
    (void)a; (void)b; (void)q;
    return 0.0;
#endif
}

/* e (c + rest), c and rest the two words of one number */
FL_INLINE double fl_scaled(double e, double c, double rest) { return FL_FMA(e, c, e * rest); }

/* ---- half types: exact to float, round to nearest even from float; branch-free ------------------------------------ */
FL_INLINE float fl_float_of_half(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13, exponent = magnitude & 0x0f800000u;
    float normal = fl_float_of(magnitude + (exponent == 0x0f800000u ? 0x70000000u : 0x38000000u));
    float tiny = fl_float_of(magnitude + 0x38800000u) - fl_float_of(0x38800000u);
    return fl_float_of(fl_bits_of_float(exponent ? normal : tiny) | (uint32_t)(h & 0x8000u) << 16);
}

FL_INLINE uint16_t fl_half_of_float(float f) {
    uint32_t bits = fl_bits_of_float(f), sign = bits & 0x80000000u, normal, tiny, result;
    bits ^= sign;
    normal = (bits - 0x38000000u + 0x0fffu + (bits >> 13 & 1)) >> 13;            /* rebias, round to even */
    tiny = fl_bits_of_float(fl_float_of(bits) + 0.5f) - 0x3f000000u;              /* the addition rounds at 2^-24 */
    result = bits < 0x38800000u ? tiny : normal;
    result = bits >= 0x477ff000u ? 0x7c00u : result;                              /* overflow */
    result = bits > 0x7f800000u ? 0x7e00u : result;                               /* NaN */
    return (uint16_t)(result | sign >> 16);
}

FL_INLINE float fl_float_of_bfloat(uint16_t h) { return fl_float_of((uint32_t)h << 16); }

FL_INLINE uint16_t fl_bfloat_of_float(float f) {
    uint32_t bits = fl_bits_of_float(f), rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}
#endif
