/* Where v first stands among n numbers; n - 1 if nowhere.  A compiler vectorises no loop that it may leave early. */
#ifndef FL_FIND_H
#define FL_FIND_H
#include <stddef.h>
#include "vmath.h"

#if defined(__AVX512F__) && defined(__GNUC__)
#include <immintrin.h>
FL_INLINE ptrdiff_t fl_findf(const float *x, ptrdiff_t n, float v) {
    __m512 w = _mm512_set1_ps(v);
    ptrdiff_t k;
    for (k = 0; k + 64 <= n; k += 64) {
        unsigned a = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k), w, _CMP_EQ_OQ);
        unsigned b = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k + 16), w, _CMP_EQ_OQ);
        unsigned c = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k + 32), w, _CMP_EQ_OQ);
        unsigned d = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + k + 48), w, _CMP_EQ_OQ);
        unsigned long long hits = (a | b << 16) | (unsigned long long)(c | d << 16) << 32;
        if (hits) return k + __builtin_ctzll(hits);
    }
    while (k < n - 1 && x[k] != v) k++;
    return k;
}

FL_INLINE ptrdiff_t fl_find(const double *x, ptrdiff_t n, double v) {
    __m512d w = _mm512_set1_pd(v);
    ptrdiff_t k;
    for (k = 0; k + 32 <= n; k += 32) {
        unsigned a = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k), w, _CMP_EQ_OQ);
        unsigned b = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k + 8), w, _CMP_EQ_OQ);
        unsigned c = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k + 16), w, _CMP_EQ_OQ);
        unsigned d = _mm512_cmp_pd_mask(_mm512_loadu_pd(x + k + 24), w, _CMP_EQ_OQ);
        unsigned hits = (a | b << 8) | (c | d << 8) << 16;
        if (hits) return k + __builtin_ctz(hits);
    }
    while (k < n - 1 && x[k] != v) k++;
    return k;
}
#else
FL_INLINE ptrdiff_t fl_findf(const float *x, ptrdiff_t n, float v) {
    ptrdiff_t k = 0, j;
    for (; k + 32 <= n; k += 32) {
        int hits = 0;
        for (j = 0; j < 32; j++) hits |= x[k + j] == v;
        if (hits) break;
    }
    while (k < n - 1 && x[k] != v) k++;
    return k;
}

FL_INLINE ptrdiff_t fl_find(const double *x, ptrdiff_t n, double v) {
    ptrdiff_t k = 0, j;
    for (; k + 32 <= n; k += 32) {
        int hits = 0;
        for (j = 0; j < 32; j++) hits |= x[k + j] == v;
        if (hits) break;
    }
    while (k < n - 1 && x[k] != v) k++;
    return k;
}
#endif
#endif
