/* Stores past the caches, for results larger than the last of them: they need not be read before they are written. */
#ifndef FL_STREAM_H
#define FL_STREAM_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
static void fl_stream(void *target, const void *source, size_t n) {
    char *d = (char *)target;
    const char *s = (const char *)source;
    size_t head = (64 - ((uintptr_t)d & 63)) & 63, k;
    if (n < 256) {
        memcpy(d, s, n);
        return;
    }
    memcpy(d, s, head);
    d += head; s += head; n -= head;
    for (k = 0; k + 64 <= n; k += 64) {
        __m128i p = _mm_loadu_si128((const __m128i *)(s + k)), q = _mm_loadu_si128((const __m128i *)(s + k + 16));
        __m128i u = _mm_loadu_si128((const __m128i *)(s + k + 32)), v = _mm_loadu_si128((const __m128i *)(s + k + 48));
        _mm_stream_si128((__m128i *)(d + k), p);
        _mm_stream_si128((__m128i *)(d + k + 16), q);
        _mm_stream_si128((__m128i *)(d + k + 32), u);
        _mm_stream_si128((__m128i *)(d + k + 48), v);
    }
    memcpy(d + k, s + k, n - k);
}
static void fl_stream_end(void) { _mm_sfence(); }
#else
static void fl_stream(void *target, const void *source, size_t n) { memcpy(target, source, n); }
static void fl_stream_end(void) {}
#endif
#endif
