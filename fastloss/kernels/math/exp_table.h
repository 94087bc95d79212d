/* exp of many numbers at once: exp(sign d) = 2^(n/8) exp(r). The root of 2 is looked up in a register, so a shorter
 * series is enough. There are three steps, because only the second needs intrinsics:
 *
 *     s = fl_exp_first(d, sign, magic, &r)     of each; d in range, magic as below
 *     fl_exp_roots(s, root, rest, n)           of all; n whole registers
 *     fl_exp_last(root, rest, r, sign)         of each: the result, 0.66 ulp in float; or
 *     fl_exp_last_short(root, r, sign)         0.9 ulp in float; the float functions also take n, the rounded s
 *
 * References, bias, range and NaN are as in vmath.h, and AVX2 and AVX-512 give the same bits. A rounded root is wrong
 * in the same way for every term that uses it, and a sum led by one term keeps that error: `rest` corrects it. In float
 * the low word of ln 2 / 8 is added only in the last step; the series does without it, which shortens the chain.
 */
#ifndef FL_EXP_TABLE_H
#define FL_EXP_TABLE_H
#include "math/vmath.h"

#if FL_HAS_FMA && defined(__AVX2__)
#include <immintrin.h>
#define FL_EXP_STEPS 8

/* of the exp of floats: steps of ln 2 / 8 to a unit, a step as the first and what it lacks as the last subtracts it, and
 * the series (row_sums_avx512.h has them as vectors) */
#define FL_STEPS_PER_UNITF 11.54156f
#define FL_STEPF 0.0866433978f
#define FL_STEP_RESTF 2.38081787e-10f
#define FL_EXP_CUBEF 0.0416604243f
#define FL_EXP_SQUAREF 0.166680276f

/* bits of 2^(j/8), minus j shifted likewise: adding n, shifted so that n/8 lies in the exponent, adds j again */
static const uint32_t fl_rootsf[FL_EXP_STEPS] = {
    0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7,
};
static const uint64_t fl_roots[FL_EXP_STEPS] = {
    0x3ff0000000000000, 0x3fef72b83c7d517b, 0x3fef06fe0a31b715, 0x3feebfdad5362a27,
    0x3feea09e667f3bcd, 0x3feeace5422aa0db, 0x3feee89f995ad3ad, 0x3fef5818dcfba487,
};

/* rounding errors of the roots, relative to them */
static const float fl_restsf[FL_EXP_STEPS] = {
    0.0f, -1.1992157e-08f, 3.1934182e-08f, -3.099072e-08f,
    1.7114271e-08f, 5.2333342e-09f, -1.4719605e-08f, -6.1282597e-09f,
};
static const double fl_rests[FL_EXP_STEPS] = {
    0.0, -2.7939114859515733e-17, 3.3484623336251524e-17, 1.9572585293112036e-17,
    -6.835808657661923e-17, 5.1548301170786783e-17, 4.875160526227061e-17, 1.790126907604513e-17,
};

FL_INLINE float fl_steps_magicf(float M) { return FL_ROUNDF + FL_EXP_STEPS * ((float)FL_BIASF - M); }
FL_INLINE double fl_steps_magic(double M) { return FL_ROUND + FL_EXP_STEPS * ((double)FL_BIAS - M); }

FL_INLINE float fl_exp_firstf(float d, float sign, float magic, float *r) {
    float s = FL_FMAF(d, sign * FL_STEPS_PER_UNITF, magic);
    *r = FL_FMAF(s - magic, sign * -FL_STEPF, d);    /* exact: a multiple of 2^-28, and small */
    return s;
}

FL_INLINE double fl_exp_first(double d, double sign, double magic, double *r) {
    double s = FL_FMA(d, sign * (FL_EXP_STEPS * 1.4426950408889634), magic), n = s - magic;
    d = FL_FMA(n, sign * -0.08664339756999316, d);
    *r = FL_FMA(n, sign * -2.8988085173078744e-18, d);
    return s;
}

FL_INLINE float fl_exp_lastf(float root, float rest, float r, float n, float sign) {
    float p = FL_FMAF(FL_FMAF(FL_FMAF(r, FL_EXP_CUBEF, sign * FL_EXP_SQUAREF), r, 0.5f), r, sign);
    return FL_FMAF(root, FL_FMAF(p, FL_FMAF(n, sign * FL_STEP_RESTF, r), rest), root);
}

FL_INLINE float fl_exp_last_shortf(float root, float r, float n, float sign) {
    float p;
    r = FL_FMAF(n, sign * FL_STEP_RESTF, r);
    p = FL_FMAF(FL_FMAF(r, 0.04167063f, sign * 0.16668026f), r, 0.5f);
    return FL_FMAF(root, FL_FMAF(r * r, p, sign * r), root);
}

FL_INLINE double fl_exp_last(double root, double rest, double r, double sign) {
    double p = sign * 0.0001984247963943916;
    p = FL_FMA(p, r, 0.0013889652804550481);
    p = FL_FMA(p, r, sign * 0.008333333316476784);
    p = FL_FMA(p, r, 0.04166666660811519);
    p = FL_FMA(p, r, sign * 0.1666666666666739);
    p = FL_FMA(p, r, 0.5000000000000003);
    return FL_FMA(root, FL_FMA(r * r, p, sign * r + rest), root);
}

#if defined(__AVX512F__)
FL_INLINE void fl_exp_rootsf(const float *s, float *root, float *rest, int n) {
    const __m512i table = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)fl_rootsf));
    const __m512i rests = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)fl_restsf));
    int k;
    for (k = 0; k < n; k += 16) {
        __m512i i = _mm512_loadu_si512(s + k);
        _mm512_storeu_si512(rest + k, _mm512_permutexvar_epi32(i, rests));
        i = _mm512_add_epi32(_mm512_permutexvar_epi32(i, table), _mm512_slli_epi32(i, 20));
        _mm512_storeu_si512(root + k, i);
    }
}

FL_INLINE void fl_exp_roots(const double *s, double *root, double *rest, int n) {
    const __m512i table = _mm512_loadu_si512(fl_roots);
    const __m512d rests = _mm512_loadu_pd(fl_rests);
    int k;
    for (k = 0; k < n; k += 8) {
        __m512i i = _mm512_loadu_si512(s + k);
        _mm512_storeu_pd(rest + k, _mm512_permutexvar_pd(i, rests));
        i = _mm512_add_epi64(_mm512_permutexvar_epi64(i, table), _mm512_slli_epi64(i, 49));
        _mm512_storeu_si512(root + k, i);
    }
}
#else
FL_INLINE void fl_exp_rootsf(const float *s, float *root, float *rest, int n) {
    const __m256i table = _mm256_loadu_si256((const __m256i *)fl_rootsf);
    const __m256i rests = _mm256_loadu_si256((const __m256i *)fl_restsf);
    int k;
    for (k = 0; k < n; k += 8) {
        __m256i i = _mm256_loadu_si256((const __m256i *)(s + k));
        _mm256_storeu_si256((__m256i *)(rest + k), _mm256_permutevar8x32_epi32(rests, i));
        i = _mm256_add_epi32(_mm256_permutevar8x32_epi32(table, i), _mm256_slli_epi32(i, 20));
        _mm256_storeu_si256((__m256i *)(root + k), i);
    }
}

/* each of two registers holds half of the table, as words 2i and 2i + 1 */
FL_INLINE __m256d fl_look_up(__m256i i, __m256i words, __m256 low, __m256 high) {
    __m256d a = _mm256_castps_pd(_mm256_permutevar8x32_ps(low, words));
    __m256d b = _mm256_castps_pd(_mm256_permutevar8x32_ps(high, words));
    return _mm256_blendv_pd(a, b, _mm256_castsi256_pd(_mm256_slli_epi64(i, 61)));
}

FL_INLINE void fl_exp_roots(const double *s, double *root, double *rest, int n) {
    const __m256 low = _mm256_loadu_ps((const float *)fl_roots), high = _mm256_loadu_ps((const float *)(fl_roots + 4));
    const __m256 few = _mm256_loadu_ps((const float *)fl_rests), more = _mm256_loadu_ps((const float *)(fl_rests + 4));
    const __m256i second = _mm256_set1_epi64x(0x100000000);
    int k;
    for (k = 0; k < n; k += 4) {
        __m256i i = _mm256_castpd_si256(_mm256_loadu_pd(s + k));
        __m256i words = _mm256_add_epi32(_mm256_slli_epi32(_mm256_shuffle_epi32(i, 0xa0), 1), second);
        _mm256_storeu_pd(rest + k, fl_look_up(i, words, few, more));
        i = _mm256_add_epi64(_mm256_castpd_si256(fl_look_up(i, words, low, high)), _mm256_slli_epi64(i, 49));
        _mm256_storeu_pd(root + k, _mm256_castsi256_pd(i));
    }
}
#endif
#else                                                     /* no lookup in registers: the first step does all */
FL_INLINE float fl_steps_magicf(float M) { return fl_magicf(M); }
FL_INLINE double fl_steps_magic(double M) { return fl_magic(M); }
FL_INLINE float fl_exp_firstf(float d, float sign, float magic, float *r) {
    *r = 0.0f;
    return fl_exp_signedf(d, sign, magic);
}
FL_INLINE double fl_exp_first(double d, double sign, double magic, double *r) {
    *r = 0.0;
    return fl_exp_in_range(sign * d, magic);
}
FL_INLINE void fl_exp_rootsf(const float *s, float *root, float *rest, int n) {
    (void)rest;
    memmove(root, s, n * sizeof(float));
}
FL_INLINE void fl_exp_roots(const double *s, double *root, double *rest, int n) {
    (void)rest;
    memmove(root, s, n * sizeof(double));
}
FL_INLINE float fl_exp_lastf(float root, float rest, float r, float n, float sign) {
    (void)rest; (void)r; (void)n; (void)sign;
    return root;
}
FL_INLINE float fl_exp_last_shortf(float root, float r, float n, float sign) {
    (void)r; (void)n; (void)sign;
    return root;
}
FL_INLINE double fl_exp_last(double root, double rest, double r, double sign) {
    (void)rest; (void)r; (void)sign;
    return root;
}
#endif
#endif
