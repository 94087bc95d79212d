/* Elementary functions of the samplers' laws: branch-free, so that plain loops over them vectorise.  Polynomials are in two
   halves, even and odd powers, to shorten the chain of dependent operations.  Without fma the last bit may differ. */
#ifndef FL_SAMPLER_MATH_H
#define FL_SAMPLER_MATH_H

#include <stddef.h>
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#include "math/vmath.h"

/* x = k ln 2 + r, |r| <= ln 2 / 2; returns 2^k. |x| <= 708 */
FL_INLINE double fl_power_and_rest(double x, double *r) {
    const double t = FL_FMA(x, 1.4426950408889634, FL_ROUND);    /* 1.5 * 2^52: rounds to an integer */
    const double k = t - FL_ROUND;
    *r = FL_FMA(k, -FL_LN2_LOW, FL_FMA(k, -FL_LN2_HIGH, x));
    return fl_double_of((fl_bits_of_double(t) + 1023) << 52);
}

/* exp(r) - 1 for |r| <= 0.35, by its Taylor series */
FL_INLINE double fl_expm1_near(double r) {
    const double z = r * r;
    double even = 2.08767569878681e-09;
    double odd = 2.505210838544172e-08;
    even = FL_FMA(even, z, 2.755731922398589e-07);
    even = FL_FMA(even, z, 2.48015873015873e-05);
    even = FL_FMA(even, z, 0.001388888888888889);
    even = FL_FMA(even, z, 0.041666666666666664);
    even = FL_FMA(even, z, 0.5);
    odd = FL_FMA(odd, z, 2.7557319223985893e-06);
    odd = FL_FMA(odd, z, 0.0001984126984126984);
    odd = FL_FMA(odd, z, 0.008333333333333333);
    odd = FL_FMA(odd, z, 0.16666666666666666);
    return FL_FMA(z, FL_FMA(odd, r, even), r);
}

/* exp(x) for |x| <= 700, within 2 units in the last place */
FL_INLINE double fl_exp_middle(double x) {
    double r;
    const double power = fl_power_and_rest(x, &r);
    return FL_FMA(power, fl_expm1_near(r), power);
}

/* 1 - exp(-y) for y >= 0 */
FL_INLINE double fl_one_minus_exp(double y) {
    double r, power;
    y = y < 700.0 ? y : 700.0;
    power = fl_power_and_rest(-y, &r);
    return FL_FMA(-power, fl_expm1_near(r), 1.0 - power);
}

/* log((1 + s)/(1 - s)) for 0 <= s <= 1/3, by its series */
FL_INLINE double fl_two_atanh(double s) {
    const double z = s * s, zz = z * z;
    double even = 2.0 / 35;
    double odd = 2.0 / 33;
    even = FL_FMA(even, zz, 2.0 / 31);
    even = FL_FMA(even, zz, 2.0 / 27);
    even = FL_FMA(even, zz, 2.0 / 23);
    even = FL_FMA(even, zz, 2.0 / 19);
    even = FL_FMA(even, zz, 2.0 / 15);
    even = FL_FMA(even, zz, 2.0 / 11);
    even = FL_FMA(even, zz, 2.0 / 7);
    even = FL_FMA(even, zz, 2.0 / 3);
    odd = FL_FMA(odd, zz, 2.0 / 29);
    odd = FL_FMA(odd, zz, 2.0 / 25);
    odd = FL_FMA(odd, zz, 2.0 / 21);
    odd = FL_FMA(odd, zz, 2.0 / 17);
    odd = FL_FMA(odd, zz, 2.0 / 13);
    odd = FL_FMA(odd, zz, 2.0 / 9);
    odd = FL_FMA(odd, zz, 2.0 / 5);
    return FL_FMA(s * z, FL_FMA(odd, z, even), 2.0 * s);
}

/* The same for 0 <= s <= 1/127, of which most terms are not needed */
FL_INLINE double fl_two_atanh_small(double s) {
    const double z = s * s;
    return FL_FMA(s * z, FL_FMA(z, FL_FMA(z, 2.0 / 7, 2.0 / 5), 2.0 / 3), 2.0 * s);
}

/* v >= 0 as a double: AVX2 has no instruction for it. Its halves ride on 2^84 and 2^52; only the last sum rounds */
FL_INLINE double fl_from_id(int64_t v) {
    const double high = fl_double_of(((uint64_t)v >> 32) | 0x4530000000000000u);
    const double low = fl_double_of(((uint64_t)v & 0xFFFFFFFFu) | 0x4330000000000000u);
    return (high - 19342813118337666422669312.0) + low;
}

/* floor(exp(y)) - 1 for 0 <= y <= log(2^50); `near` is set where another exp might give another integer */
FL_INLINE int64_t fl_log_uniform(double y, int64_t *near) {
    const double e = fl_exp_middle(y);
    const double t = e + FL_ROUND, nearest = t - FL_ROUND;
    const double gap = e - nearest;
    *near |= (gap < 0 ? -gap : gap) <= e * 3.6e-15;        /* 16 units in the last place */
    return (int64_t)(fl_bits_of_double(t) - 0x4338000000000000u) - 1 - (gap < 0);
}

/* Which of the two ids of a bucket: the bucket itself below the threshold, in the low half of its entry, else the one in
   the high half.  A compiler would branch, which is mispredicted half the time, or gather, which is slower. */
FL_INLINE int64_t fl_pick(int64_t entry, int64_t bucket, uint32_t share) {
    int64_t id = (int64_t)((uint64_t)entry >> 32);
#if defined(__GNUC__) && defined(__x86_64__)
    __asm__("cmp %2, %1\n\tcmovb %3, %0" : "+r"(id) : "r"(share), "r"((uint32_t)entry), "r"(bucket) : "cc");
#else
    id ^= (id ^ bucket) & -(int64_t)(share < (uint32_t)entry);
#endif
    return id;
}

/* A node of the tree of counts is a cache line of running sums: 16 of 32 bits, narrow, or 8 of 64 bits, wide. */

/* One more in place v >> shift, modulo the entries of a node, for each v of m ids.  The sums stay in a register: stores to
   one line, each of which waits for the last, would take most of the time at the root.  Left to itself, gcc adds one by
   one. */
#if defined(__GNUC__)
typedef int32_t fl_narrow_node __attribute__((vector_size(64), aligned(4)));
typedef int64_t fl_wide_node __attribute__((vector_size(64), aligned(8)));
#define FL_ADD_ONES(type, node, steps, entries)                                                                           \
    type sum = *(type *)(node);                                                                                          \
    for (i = 0; i < m; i++) sum += *(const type *)((steps) + (entries) - ((uint64_t)ids[i] >> shift) % (entries));       \
    *(type *)(node) = sum
#else
#define FL_ADD_ONES(type, node, steps, entries)                                                                           \
    for (i = 0; i < m * (entries); i++)                                                                                  \
        (node)[i % (entries)] += ((steps) + (entries) - ((uint64_t)ids[i / (entries)] >> shift) % (entries))[i % (entries)]
#endif
FL_INLINE void fl_add_narrow(int32_t *node, const int64_t *ids, ptrdiff_t m, int shift) {
    static const int32_t steps[32] = {[16] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    ptrdiff_t i;
    FL_ADD_ONES(fl_narrow_node, node, steps, 16);
}
FL_INLINE void fl_add_wide(int64_t *node, const int64_t *ids, ptrdiff_t m, int shift) {
    static const int64_t steps[16] = {[8] = 1, 1, 1, 1, 1, 1, 1, 1};
    ptrdiff_t i;
    FL_ADD_ONES(fl_wide_node, node, steps, 8);
}

/* Which child of a node holds place `left`, and the place within it.  Child j, which has 2^bits ids, ends before
   added[j] + (j + 1) 2^bits.  Without AVX-512, bisection; nowhere a branch to mispredict. */
FL_INLINE int64_t fl_child_narrow(const int32_t *added, int bits, int64_t *left) {
    const int32_t r = (int32_t)*left;
    int64_t first;
#if defined(__AVX512F__)
    const __m512i ramp = _mm512_set_epi32(16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1);
    const __m512i end = _mm512_add_epi32(_mm512_loadu_si512(added), _mm512_sll_epi32(ramp, _mm_cvtsi32_si128(bits)));
    const int64_t below = __builtin_popcount(_mm512_cmple_epi32_mask(end, _mm512_set1_epi32(r)));
#else
    int64_t below = 8 * (added[7] + (8 << bits) <= r);
    below += 4 * (added[below + 3] + ((int32_t)(below + 4) << bits) <= r);
    below += 2 * (added[below + 1] + ((int32_t)(below + 2) << bits) <= r);
    below += added[below] + ((int32_t)(below + 1) << bits) <= r;
#endif
    first = below != 0;
    *left = r - (below << bits) - (added[below - first] & -first);
    return below;
}
FL_INLINE int64_t fl_child_wide(const int64_t *added, int bits, int64_t *left) {
    const int64_t r = *left;
    int64_t first;
#if defined(__AVX512F__)
    const __m512i ramp = _mm512_set_epi64(8, 7, 6, 5, 4, 3, 2, 1);
    const __m512i end = _mm512_add_epi64(_mm512_loadu_si512(added), _mm512_sll_epi64(ramp, _mm_cvtsi32_si128(bits)));
    const int64_t below = __builtin_popcount(_mm512_cmple_epi64_mask(end, _mm512_set1_epi64(r)));
#else
    int64_t below = 4 * (added[3] + ((int64_t)4 << bits) <= r);
    below += 2 * (added[below + 1] + ((below + 2) << bits) <= r);
    below += added[below] + ((below + 1) << bits) <= r;
#endif
    first = below != 0;
    *left = r - (below << bits) - (added[below - first] & -first);
    return below;
}

/* The same for m draws at the root, which all of them start from. */
#define FL_ALL_CHILDREN(type, entries)                                                                                   \
    type end[entries];                                                                                                   \
    ptrdiff_t i;                                                                                                         \
    int j;                                                                                                               \
    for (j = 0; j < (entries); j++) end[j] = added[j] + ((type)(j + 1) << bits);                                         \
    for (i = 0; i < m; i++) {                                                                                            \
        const type r = (type)left[i];                                                                                    \
        type below = 0, before = 0;                                                                                      \
        for (j = 0; j < (entries); j++) {                                                                                \
            below += end[j] <= r;                                                                                        \
            before = end[j] <= r ? end[j] : before;                                                                      \
        }                                                                                                                \
        left[i] = r - before;                                                                                            \
        ids[i] = below;                                                                                                  \
    }
FL_INLINE void fl_children_narrow(const int32_t *added, int bits, int64_t *left, int64_t *ids, ptrdiff_t m) {
    FL_ALL_CHILDREN(int32_t, 16)
}
FL_INLINE void fl_children_wide(const int64_t *added, int bits, int64_t *left, int64_t *ids, ptrdiff_t m) {
    FL_ALL_CHILDREN(int64_t, 8)
}

/* The Gauss-Legendre rule of 32 points on [-1, 1]: its 16 nodes above 0 and their weights, rounded from 60 digits, for
   libraries differ in the last bit. */
static const double fl_gauss_nodes[16] = {
    0.04830766568773832, 0.1444719615827965, 0.23928736225213706, 0.33186860228212767,
    0.42135127613063533, 0.5068999089322294, 0.5877157572407623, 0.6630442669302152,
    0.7321821187402897, 0.7944837959679424, 0.84936761373257, 0.8963211557660521,
    0.9349060759377397, 0.9647622555875064, 0.9856115115452684, 0.9972638618494816,
};
static const double fl_gauss_weights[16] = {
    0.0965400885147278, 0.09563872007927486, 0.09384439908080457, 0.09117387869576389,
    0.08765209300440381, 0.08331192422694675, 0.07819389578707031, 0.0723457941088485,
    0.06582222277636185, 0.058684093478535544, 0.050998059262376175, 0.04283589802222668,
    0.03427386291302143, 0.02539206530926206, 0.01627439473090567, 0.007018610009470096,
};

#endif
