/* Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), a counter-based generator.

   Block b of a stream is the cipher of the counter (b, stream) under the key; its four 32-bit words are used in order.
   Any block can be had without those before it, so results need not depend on threads or on the instruction set.
   Blocks are computed FL_PHILOX_LANES at a time in 64-bit lanes whose upper halves are never read. */
#ifndef FL_PHILOX_H
#define FL_PHILOX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define FL_PHILOX_UNROLL _Pragma("GCC unroll 4")
#else
#define FL_PHILOX_UNROLL
#endif

#define FL_PHILOX_MUL0 0xD2511F53u
#define FL_PHILOX_MUL1 0xCD9E8D57u
#define FL_PHILOX_KEY0 0x9E3779B9u
#define FL_PHILOX_KEY1 0xBB67AE85u

#if defined(__AVX512F__)
#include <immintrin.h>
#define FL_PHILOX_LANES 8
typedef __m512i fl_philox_lanes;
static inline fl_philox_lanes fl_philox_all(uint64_t x) { return _mm512_set1_epi64((long long)x); }
static inline fl_philox_lanes fl_philox_count(uint64_t x) {
    return _mm512_add_epi64(fl_philox_all(x), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
}
static inline fl_philox_lanes fl_philox_high(fl_philox_lanes a) { return _mm512_srli_epi64(a, 32); }
static inline fl_philox_lanes fl_philox_times(fl_philox_lanes a, fl_philox_lanes b) { return _mm512_mul_epu32(a, b); }
static inline fl_philox_lanes fl_philox_xor3(fl_philox_lanes a, fl_philox_lanes b, fl_philox_lanes c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
static inline void fl_philox_put(uint32_t *out, fl_philox_lanes c0, fl_philox_lanes c1, fl_philox_lanes c2, fl_philox_lanes c3) {
    const fl_philox_lanes a = _mm512_mask_mov_epi32(c0, 0xAAAA, _mm512_slli_epi64(c1, 32));
    const fl_philox_lanes b = _mm512_mask_mov_epi32(c2, 0xAAAA, _mm512_slli_epi64(c3, 32));
    const fl_philox_lanes front = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0);
    const fl_philox_lanes back = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    _mm512_storeu_si512((void *)out, _mm512_permutex2var_epi64(a, front, b));
    _mm512_storeu_si512((void *)(out + 16), _mm512_permutex2var_epi64(a, back, b));
}
#elif defined(__AVX2__)
#include <immintrin.h>
#define FL_PHILOX_LANES 4
typedef __m256i fl_philox_lanes;
static inline fl_philox_lanes fl_philox_all(uint64_t x) { return _mm256_set1_epi64x((long long)x); }
static inline fl_philox_lanes fl_philox_count(uint64_t x) { return _mm256_add_epi64(fl_philox_all(x), _mm256_set_epi64x(3, 2, 1, 0)); }
static inline fl_philox_lanes fl_philox_high(fl_philox_lanes a) { return _mm256_srli_epi64(a, 32); }
static inline fl_philox_lanes fl_philox_times(fl_philox_lanes a, fl_philox_lanes b) { return _mm256_mul_epu32(a, b); }
static inline fl_philox_lanes fl_philox_xor3(fl_philox_lanes a, fl_philox_lanes b, fl_philox_lanes c) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}
static inline void fl_philox_put(uint32_t *out, fl_philox_lanes c0, fl_philox_lanes c1, fl_philox_lanes c2, fl_philox_lanes c3) {
    const fl_philox_lanes a = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
    const fl_philox_lanes b = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
    const fl_philox_lanes even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 8), _mm256_permute2x128_si256(even, odd, 0x31));
}
#elif defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define FL_PHILOX_LANES 2
typedef __m128i fl_philox_lanes;
static inline fl_philox_lanes fl_philox_all(uint64_t x) { return _mm_set1_epi64x((long long)x); }
static inline fl_philox_lanes fl_philox_count(uint64_t x) { return _mm_add_epi64(fl_philox_all(x), _mm_set_epi64x(1, 0)); }
static inline fl_philox_lanes fl_philox_high(fl_philox_lanes a) { return _mm_srli_epi64(a, 32); }
static inline fl_philox_lanes fl_philox_times(fl_philox_lanes a, fl_philox_lanes b) { return _mm_mul_epu32(a, b); }
static inline fl_philox_lanes fl_philox_xor3(fl_philox_lanes a, fl_philox_lanes b, fl_philox_lanes c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
static inline void fl_philox_put(uint32_t *out, fl_philox_lanes c0, fl_philox_lanes c1, fl_philox_lanes c2, fl_philox_lanes c3) {
    const __m128i low = _mm_set_epi32(0, -1, 0, -1);
    const fl_philox_lanes a = _mm_or_si128(_mm_and_si128(c0, low), _mm_slli_epi64(c1, 32));
    const fl_philox_lanes b = _mm_or_si128(_mm_and_si128(c2, low), _mm_slli_epi64(c3, 32));
    _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi64(a, b));
    _mm_storeu_si128((__m128i *)(out + 4), _mm_unpackhi_epi64(a, b));
}
#else
#define FL_PHILOX_LANES 1
typedef uint64_t fl_philox_lanes;
static inline fl_philox_lanes fl_philox_all(uint64_t x) { return x; }
static inline fl_philox_lanes fl_philox_count(uint64_t x) { return x; }
static inline fl_philox_lanes fl_philox_high(fl_philox_lanes a) { return a >> 32; }
static inline fl_philox_lanes fl_philox_times(fl_philox_lanes a, fl_philox_lanes b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
static inline fl_philox_lanes fl_philox_xor3(fl_philox_lanes a, fl_philox_lanes b, fl_philox_lanes c) { return a ^ b ^ c; }
static inline void fl_philox_put(uint32_t *out, fl_philox_lanes c0, fl_philox_lanes c1, fl_philox_lanes c2, fl_philox_lanes c3) {
    out[0] = (uint32_t)c0;
    out[1] = (uint32_t)c1;
    out[2] = (uint32_t)c2;
    out[3] = (uint32_t)c3;
}
#endif

/* The next chains*FL_PHILOX_LANES blocks: chains of operations that overlap, as many as registers hold. */
#if defined(__AVX512F__)
#define FL_PHILOX_CHAINS 4
#else
#define FL_PHILOX_CHAINS 2
#endif
static inline void fl_philox_group(uint64_t key, uint64_t stream, uint64_t block, uint32_t *out, const int chains) {
    const fl_philox_lanes m0 = fl_philox_all(FL_PHILOX_MUL0), m1 = fl_philox_all(FL_PHILOX_MUL1), s0 = fl_philox_all(stream), s1 = fl_philox_high(s0);
    fl_philox_lanes c[FL_PHILOX_CHAINS][4];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    int round, i;
    FL_PHILOX_UNROLL for (i = 0; i < chains; i++) {
        c[i][0] = fl_philox_count(block + i * FL_PHILOX_LANES);
        c[i][1] = fl_philox_high(c[i][0]);
        c[i][2] = s0;
        c[i][3] = s1;
    }
    for (round = 0; round < 10; round++) {
        const fl_philox_lanes key0 = fl_philox_all(k0), key1 = fl_philox_all(k1);
        FL_PHILOX_UNROLL for (i = 0; i < chains; i++) {
            const fl_philox_lanes p02 = fl_philox_times(c[i][0], m0), p13 = fl_philox_times(c[i][2], m1);
            c[i][0] = fl_philox_xor3(fl_philox_high(p13), c[i][1], key0);
            c[i][2] = fl_philox_xor3(fl_philox_high(p02), c[i][3], key1);
            c[i][1] = p13;
            c[i][3] = p02;
        }
        k0 += FL_PHILOX_KEY0;
        k1 += FL_PHILOX_KEY1;
    }
    FL_PHILOX_UNROLL for (i = 0; i < chains; i++) fl_philox_put(out + 4 * FL_PHILOX_LANES * i, c[i][0], c[i][1], c[i][2], c[i][3]);
}

/* The words of `blocks` successive blocks. */
static inline void fl_philox(uint64_t key, uint64_t stream, uint64_t block, uint32_t *out, ptrdiff_t blocks) {
    const int group = FL_PHILOX_CHAINS * FL_PHILOX_LANES;
    uint32_t rest[4 * FL_PHILOX_CHAINS * FL_PHILOX_LANES];
    for (; blocks >= group; blocks -= group, block += group, out += 4 * group)
        fl_philox_group(key, stream, block, out, FL_PHILOX_CHAINS);
    if (blocks > 0) {
        if (blocks <= 2 * FL_PHILOX_LANES)
            fl_philox_group(key, stream, block, rest, 2);
        else
            fl_philox_group(key, stream, block, rest, FL_PHILOX_CHAINS);
        memcpy(out, rest, (size_t)blocks * 16);
    }
}

/* A reader of one stream, with words in store. */
#define FL_RNG_STORE 1024
typedef struct {
    uint64_t key, stream, block;
    int next, end;
    uint32_t word[FL_RNG_STORE];
} fl_rng;

static inline void fl_rng_start(fl_rng *g, uint64_t key, uint64_t stream, uint64_t block) {
    g->key = key;
    g->stream = stream;
    g->block = block;
    g->next = g->end = 0;
}

/* Brings the store up to about `want` words, at least four more than there were; what is unread moves to the front. */
static inline void fl_rng_fill(fl_rng *g, ptrdiff_t want) {
    const int left = g->end - g->next;
    ptrdiff_t blocks = (want - left + 3) / 4;
    if (blocks < 1) blocks = 1;
    if (blocks > (FL_RNG_STORE - left) / 4) blocks = (FL_RNG_STORE - left) / 4;
    memmove(g->word, g->word + g->next, (size_t)left * 4);
    fl_philox(g->key, g->stream, g->block, g->word + left, blocks);
    g->block += (uint64_t)blocks;
    g->next = 0;
    g->end = left + (int)blocks * 4;
}

static inline uint32_t fl_rng_word(fl_rng *g) {
    if (g->next == g->end) fl_rng_fill(g, 64);
    return g->word[g->next++];
}

/* Two words as one number, the first one low. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static inline uint64_t fl_philox_pair(const uint32_t *w) { return (uint64_t)w[1] << 32 | w[0]; }
#else
static inline uint64_t fl_philox_pair(const uint32_t *w) {        /* one load, which vectorises */
    uint64_t x;
    memcpy(&x, w, 8);
    return x;
}
#endif

#if defined(__SIZEOF_INT128__)
static inline uint64_t fl_wide(uint64_t a, uint64_t b, uint64_t *low) {
    const unsigned __int128 p = (unsigned __int128)a * b;
    *low = (uint64_t)p;
    return (uint64_t)(p >> 64);
}
#elif defined(_M_X64)
#include <intrin.h>
static inline uint64_t fl_wide(uint64_t a, uint64_t b, uint64_t *low) {
    uint64_t high;
    *low = _umul128(a, b, &high);
    return high;
}
#else
static inline uint64_t fl_wide(uint64_t a, uint64_t b, uint64_t *low) {
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t p = a0 * b0, q = a1 * b0 + (p >> 32), r = a0 * b1 + (uint32_t)q;
    *low = r << 32 | (uint32_t)p;
    return a1 * b1 + (q >> 32) + (r >> 32);
}
#endif

/* x mod n, given floor((2^64-1)/n): the quotient so found is at most one too small. */
static inline uint64_t fl_mod64(uint64_t x, uint64_t n, uint64_t reciprocal) {
    uint64_t low;
    const uint64_t r = x - fl_wide(x, reciprocal, &low) * n;
    return r >= n ? r - n : r;
}

static inline uint32_t fl_mod32(uint32_t x, uint32_t n, uint32_t reciprocal) {
    const uint32_t r = x - (uint32_t)((uint64_t)x * reciprocal >> 32) * n;
    return r >= n ? r - n : r;
}

/* The number 1 + m/2^52, less 1: in [0, 1), from the low 52 bits of x. */
static inline double fl_rng_unit(uint64_t x) {
    double f;
    x = (x & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u;
    memcpy(&f, &x, 8);
    return f - 1.0;
}

/* A number in (0, 1), never an end. */
static inline double fl_rng_open(uint64_t x) { return ((double)(int64_t)(x >> 12) + 0.5) * (1.0 / 4503599627370496.0); }

#endif
