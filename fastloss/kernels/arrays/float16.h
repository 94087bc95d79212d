/* Conversion of spans of float16, by the instruction where there is one; it gives the same numbers as vmath.h. */
#ifndef FL_FLOAT16_H
#define FL_FLOAT16_H
#include <stddef.h>
#include "math/vmath.h"
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

FL_INLINE void fl_widen_halves(const char *source, float *target, ptrdiff_t n) {
    ptrdiff_t k = 0;
    uint16_t h;
#if defined(__AVX512F__)
    for (; k + 16 <= n; k += 16)
        _mm512_storeu_ps(target + k, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(source + 2 * k))));
#elif defined(__F16C__)
    for (; k + 8 <= n; k += 8)
        _mm256_storeu_ps(target + k, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(source + 2 * k))));
#endif
    for (; k < n; k++) {
        memcpy(&h, source + 2 * k, 2);
        target[k] = fl_float_of_half(h);
    }
}

FL_INLINE void fl_narrow_halves(const float *source, char *target, ptrdiff_t n) {
    ptrdiff_t k = 0;
    uint16_t h;
#if defined(__AVX512F__)
    for (; k + 16 <= n; k += 16)
        _mm256_storeu_si256((__m256i *)(target + 2 * k), _mm512_cvtps_ph(_mm512_loadu_ps(source + k), 0));
#elif defined(__F16C__)
    for (; k + 8 <= n; k += 8)
        _mm_storeu_si128((__m128i *)(target + 2 * k), _mm256_cvtps_ph(_mm256_loadu_ps(source + k), 0));
#endif
    for (; k < n; k++) {
        h = fl_half_of_float(source[k]);
        memcpy(target + 2 * k, &h, 2);
    }
}
#endif
