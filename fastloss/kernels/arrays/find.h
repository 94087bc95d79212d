/* The index of the first v among n numbers; n - 1 if there is none.  Compilers do not vectorise loops that end early.
 *
 * Masks stay masks until they are stored: gcc 12 may spill one byte of a mask made a number, and reload four.
 */
#ifndef FL_FIND_H
#define FL_FIND_H
#include <stddef.h>
#include "math/vmath.h"

#if defined(__AVX512DQ__) && defined(__GNUC__)
#include <immintrin.h>
FL_INLINE ptrdiff_t fl_findf(const float *x, ptrdiff_t n, float v) {
    __m512 w = _mm512_set1_ps(v);
    ptrdiff_t k = 0;
    for (; k + 64 <= n; k += 64) {
        __mmask16 a = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k), w, _CMP_EQ_OQ);
        __mmask16 b = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k + 16), w, _CMP_EQ_OQ);
        __mmask16 c = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k + 32), w, _CMP_EQ_OQ);
        __mmask16 d = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k + 48), w, _CMP_EQ_OQ);
        __mmask16 any = _kor_mask16(_kor_mask16(a, b), _kor_mask16(c, d));
        if (!_kortestz_mask16_u8(any, any)) {
            __mmask16 hits[4];
            uint64_t bits;
            _store_mask16(hits, a);
            _store_mask16(hits + 1, b);
            _store_mask16(hits + 2, c);
            _store_mask16(hits + 3, d);
            memcpy(&bits, hits, 8);
            return k + __builtin_ctzll(bits);
        }
    }
    while (k < n && x[k] != v) k++;
    return k < n ? k : n - 1;
}

FL_INLINE ptrdiff_t fl_find(const double *x, ptrdiff_t n, double v) {
    __m512d w = _mm512_set1_pd(v);
    ptrdiff_t k = 0;
    for (; k + 32 <= n; k += 32) {
        __mmask8 a = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k), w, _CMP_EQ_OQ);
        __mmask8 b = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k + 8), w, _CMP_EQ_OQ);
        __mmask8 c = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k + 16), w, _CMP_EQ_OQ);
        __mmask8 d = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k + 24), w, _CMP_EQ_OQ);
        __mmask8 any = _kor_mask8(_kor_mask8(a, b), _kor_mask8(c, d));
        if (!_kortestz_mask8_u8(any, any)) {
            __mmask8 hits[4];
            uint32_t bits;
            _store_mask8(hits, a);
            _store_mask8(hits + 1, b);
            _store_mask8(hits + 2, c);
            _store_mask8(hits + 3, d);
            memcpy(&bits, hits, 4);
            return k + __builtin_ctz(bits);
        }
    }
    while (k < n && x[k] != v) k++;
    return k < n ? k : n - 1;
}
#else
#if defined(__AVX__)
#include <immintrin.h>
FL_INLINE __m256 fl_equalf(const float *x, __m256 v) { return _mm256_cmp_ps(_mm256_loadu_ps(x), v, _CMP_EQ_OQ); }
FL_INLINE __m256d fl_equal(const double *x, __m256d v) { return _mm256_cmp_pd(_mm256_loadu_pd(x), v, _CMP_EQ_OQ); }
FL_INLINE int fl_any_of_32f(const float *x, float v) {
    __m256 w = _mm256_set1_ps(v), a = _mm256_or_ps(fl_equalf(x, w), fl_equalf(x + 8, w));
    return _mm256_movemask_ps(_mm256_or_ps(a, _mm256_or_ps(fl_equalf(x + 16, w), fl_equalf(x + 24, w))));
}
FL_INLINE int fl_any_of_16(const double *x, double v) {
    __m256d w = _mm256_set1_pd(v), a = _mm256_or_pd(fl_equal(x, w), fl_equal(x + 4, w));
    return _mm256_movemask_pd(_mm256_or_pd(a, _mm256_or_pd(fl_equal(x + 8, w), fl_equal(x + 12, w))));
}
#else
FL_INLINE int fl_any_of_32f(const float *x, float v) {
    int hits = 0, j;
    for (j = 0; j < 32; j++) hits |= x[j] == v;
    return hits;
}
FL_INLINE int fl_any_of_16(const double *x, double v) {
    int hits = 0, j;
    for (j = 0; j < 16; j++) hits |= x[j] == v;
    return hits;
}
#endif

FL_INLINE ptrdiff_t fl_findf(const float *x, ptrdiff_t n, float v) {
    ptrdiff_t k = 0;
    while (k + 32 <= n && !fl_any_of_32f(x + k, v)) k += 32;
    while (k < n && x[k] != v) k++;
    return k < n ? k : n - 1;
}

FL_INLINE ptrdiff_t fl_find(const double *x, ptrdiff_t n, double v) {
    ptrdiff_t k = 0;
    while (k + 16 <= n && !fl_any_of_16(x + k, v)) k += 16;
    while (k < n && x[k] != v) k++;
    return k < n ? k : n - 1;
}
#endif
#endif
