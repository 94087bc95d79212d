/* Stores past the caches, for results larger than the last of them: they need not be read before they are written.
 *
 *     fl_streams        whether that pays for this many bytes, written by this many threads
 *     fl_reads_ahead    whether the processor needs no prefetches of arrays that are only read
 *     fl_stream         copies n bytes past the caches
 *     fl_put_group*     d[0..32) = e[0..32) (c + rest), minus t[0..32) u unless t is NULL; if `past`, past the caches:
 *                       then d must be aligned to 64 bytes
 *     fl_stream_end     must follow the last of these stores before other threads read
 */
#ifndef FL_NONTEMPORAL_H
#define FL_NONTEMPORAL_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "math/vmath.h"

#define FL_STREAM_FROM 16777216.0        /* bytes: below, the last cache may keep them for who reads them next */

/* A third less time on AMD's cores. One Intel core takes a quarter to a half more than with prefetched lines, as its
 * few line buffers wait for memory: there only many cores, which share the bandwidth, gain by the saved traffic. */
FL_INLINE int fl_streams(double bytes, int n_threads) {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    return bytes > FL_STREAM_FROM && (n_threads > 4 || __builtin_cpu_is("amd"));
#else
    return bytes > FL_STREAM_FROM && n_threads > 4;
#endif
}

/* AMD's cores prefetch whole arrays by themselves; with prefetches added, a sum of squares takes a quarter more time.
 * Intel's cores gain by them. */
FL_INLINE int fl_reads_ahead(void) {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}

#if defined(__AVX512F__)
#include <immintrin.h>
#define FL_STREAM_LINE(d, s) _mm512_stream_si512((__m512i *)(d), _mm512_loadu_si512(s))
#define FL_STREAM_SF 16
#define FL_STREAM_SD 8
#define FL_STREAM_TIMESF(e, c) _mm512_mul_ps(_mm512_loadu_ps(e), _mm512_set1_ps(c))
#define FL_STREAM_TIMESD(e, c, rest) \
    _mm512_fmadd_pd(_mm512_loadu_pd(e), _mm512_set1_pd(c), _mm512_mul_pd(_mm512_loadu_pd(e), _mm512_set1_pd(rest)))
#define FL_STREAM_LESSF(v, t, u) _mm512_fnmadd_ps(_mm512_loadu_ps(t), _mm512_set1_ps(u), v)
#define FL_STREAM_LESSD(v, t, u) _mm512_fnmadd_pd(_mm512_loadu_pd(t), _mm512_set1_pd(u), v)
#define FL_STREAM_VF __m512
#define FL_STREAM_VD __m512d
#define FL_STREAM_PUTF _mm512_storeu_ps
#define FL_STREAM_PUTD _mm512_storeu_pd
#define FL_STREAM_PASTF _mm512_stream_ps
#define FL_STREAM_PASTD _mm512_stream_pd
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define FL_STREAM_LINE(d, s)                                                  \
    (_mm256_stream_si256((__m256i *)(d), _mm256_loadu_si256((const __m256i *)(s))), \
     _mm256_stream_si256((__m256i *)(d) + 1, _mm256_loadu_si256((const __m256i *)(s) + 1)))
#define FL_STREAM_SF 8
#define FL_STREAM_SD 4
#define FL_STREAM_TIMESF(e, c) _mm256_mul_ps(_mm256_loadu_ps(e), _mm256_set1_ps(c))
#define FL_STREAM_TIMESD(e, c, rest) \
    _mm256_fmadd_pd(_mm256_loadu_pd(e), _mm256_set1_pd(c), _mm256_mul_pd(_mm256_loadu_pd(e), _mm256_set1_pd(rest)))
#define FL_STREAM_LESSF(v, t, u) _mm256_fnmadd_ps(_mm256_loadu_ps(t), _mm256_set1_ps(u), v)
#define FL_STREAM_LESSD(v, t, u) _mm256_fnmadd_pd(_mm256_loadu_pd(t), _mm256_set1_pd(u), v)
#define FL_STREAM_VF __m256
#define FL_STREAM_VD __m256d
#define FL_STREAM_PUTF _mm256_storeu_ps
#define FL_STREAM_PUTD _mm256_storeu_pd
#define FL_STREAM_PASTF _mm256_stream_ps
#define FL_STREAM_PASTD _mm256_stream_pd
#elif defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define FL_STREAM_LINE(d, s)                                                  \
    do                                                                        \
        for (int j = 0; j < 4; j++)                                           \
            _mm_stream_si128((__m128i *)(d) + j, _mm_loadu_si128((const __m128i *)(s) + j)); \
    while (0)
#define FL_STREAM_SF 4
#define FL_STREAM_SD 2
#define FL_STREAM_TIMESF(e, c) _mm_mul_ps(_mm_loadu_ps(e), _mm_set1_ps(c))
#define FL_STREAM_TIMESD(e, c, rest) \
    _mm_add_pd(_mm_mul_pd(_mm_loadu_pd(e), _mm_set1_pd(c)), _mm_mul_pd(_mm_loadu_pd(e), _mm_set1_pd(rest)))
#define FL_STREAM_LESSF(v, t, u) _mm_sub_ps(v, _mm_mul_ps(_mm_loadu_ps(t), _mm_set1_ps(u)))
#define FL_STREAM_LESSD(v, t, u) _mm_sub_pd(v, _mm_mul_pd(_mm_loadu_pd(t), _mm_set1_pd(u)))
#define FL_STREAM_VF __m128
#define FL_STREAM_VD __m128d
#define FL_STREAM_PUTF _mm_storeu_ps
#define FL_STREAM_PUTD _mm_storeu_pd
#define FL_STREAM_PASTF _mm_stream_ps
#define FL_STREAM_PASTD _mm_stream_pd
#endif

#if defined(FL_STREAM_SF)
FL_INLINE void fl_put_groupf(float *d, const float *e, float c, float rest, const float *t, float u, int past) {
    int k;
    (void)rest;
    for (k = 0; k < 32; k += FL_STREAM_SF) {
        FL_STREAM_VF v = FL_STREAM_TIMESF(e + k, c);
        if (t) v = FL_STREAM_LESSF(v, t + k, u);
        if (past) FL_STREAM_PASTF(d + k, v);
        else FL_STREAM_PUTF(d + k, v);
    }
}

FL_INLINE void fl_put_group(double *d, const double *e, double c, double rest, const double *t, double u, int past) {
    int k;
    for (k = 0; k < 32; k += FL_STREAM_SD) {
        FL_STREAM_VD v = FL_STREAM_TIMESD(e + k, c, rest);
        if (t) v = FL_STREAM_LESSD(v, t + k, u);
        if (past) FL_STREAM_PASTD(d + k, v);
        else FL_STREAM_PUTD(d + k, v);
    }
}

FL_INLINE void fl_stream(void *target, const void *source, size_t n) {
    char *d = (char *)target;
    const char *s = (const char *)source;
    size_t head = (64 - ((uintptr_t)d & 63)) & 63, k;
    if (n < 256) {
        memcpy(d, s, n);
        return;
    }
    memcpy(d, s, head);
    d += head; s += head; n -= head;
    for (k = 0; k + 64 <= n; k += 64) FL_STREAM_LINE(d + k, s + k);
    memcpy(d + k, s + k, n - k);
}
FL_INLINE void fl_stream_end(void) { _mm_sfence(); }
#else
FL_INLINE void fl_put_groupf(float *d, const float *e, float c, float rest, const float *t, float u, int past) {
    int k;
    (void)rest; (void)past;
    for (k = 0; k < 32; k++) d[k] = t ? FL_FMAF(-t[k], u, e[k] * c) : e[k] * c;
}

FL_INLINE void fl_put_group(double *d, const double *e, double c, double rest, const double *t, double u, int past) {
    int k;
    (void)past;
    for (k = 0; k < 32; k++) d[k] = t ? FL_FMA(-t[k], u, fl_scaled(e[k], c, rest)) : fl_scaled(e[k], c, rest);
}

FL_INLINE void fl_stream(void *target, const void *source, size_t n) { memcpy(target, source, n); }
FL_INLINE void fl_stream_end(void) {}
#endif
#endif
