/* The inner loops of matrix products, on tiles of FL_PRODUCT_TILE rows and 128 bytes of lanes, held in registers.
 *
 * Every element is one chain of multiply-adds in the order of k on every instruction set, so all that have fma agree
 * bit for bit. Operand B always lies as panels [k][lanes]. Operand A is read one number at a time and broadcast, so it
 * have any layout: each function below reads it at fixed distances, which become part of the instructions.
 */
#ifndef FL_PRODUCT_H
#define FL_PRODUCT_H
#include <stddef.h>
#include "math/vmath.h"

#define FL_PRODUCT_TILE 12      /* rows of a tile: 24 of 32 registers with AVX-512, twice 12 of 16 below */
#define FL_PRODUCT_CHUNK 132    /* elements of a row of the table packed together: a panel of X so long fits level 1 */
#define FL_PRODUCT_PITCH 136    /* from row to row of a packed chunk: no power of two, or the rows share cache sets */
#define FL_PRODUCT_LANESF 32
#define FL_PRODUCT_LANES 16

typedef struct {        /* operand C: a tile, set or added to */
    void *at;
    ptrdiff_t pitch;    /* from row to row */
    int add;
    const void *later;  /* the next tile, if it has to be fetched too; or NULL */
} fl_target;

#if defined(__AVX512F__)
#include <immintrin.h>
#define FL_PRODUCT_PART 12
typedef __m512 fl_vecf;
typedef __m512d fl_vec;
#define FL_PRODUCT_V(name) _mm512_##name
#define FL_PRODUCT_V_FMA(name) _mm512_fmadd_##name
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define FL_PRODUCT_PART 6
typedef __m256 fl_vecf;
typedef __m256d fl_vec;
#define FL_PRODUCT_V(name) _mm256_##name
#define FL_PRODUCT_V_FMA(name) _mm256_fmadd_##name
#elif defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define FL_PRODUCT_PART 6
typedef __m128 fl_vecf;
typedef __m128d fl_vec;
#define FL_PRODUCT_V(name) _mm_##name
#define FL_PRODUCT_V_FMA(name) fl_multiply_add_##name
FL_INLINE __m128 fl_multiply_add_ps(__m128 a, __m128 b, __m128 c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
FL_INLINE __m128d fl_multiply_add_pd(__m128d a, __m128d b, __m128d c) { return _mm_add_pd(_mm_mul_pd(a, b), c); }
#endif

#if defined(__GNUC__)
#define FL_PRODUCT_UNROLL _Pragma("GCC unroll 12")
#else
#define FL_PRODUCT_UNROLL
#endif

#define FL_T float
#define FL_N FL_PRODUCT_LANESF
#define FL_NAME(name) name##f
#ifdef FL_PRODUCT_PART
#define FL_VEC fl_vecf
#define FL_LOAD FL_PRODUCT_V(loadu_ps)
#define FL_STORE FL_PRODUCT_V(storeu_ps)
#define FL_SPLAT FL_PRODUCT_V(set1_ps)
#define FL_ADD FL_PRODUCT_V(add_ps)
#define FL_MULTIPLY_ADD FL_PRODUCT_V_FMA(ps)
#else
#define FL_MULTIPLY_ADD FL_FMAF
#endif
#include "matmul/product_tile.h"
#undef FL_T
#undef FL_N
#undef FL_NAME
#undef FL_MULTIPLY_ADD

#define FL_T double
#define FL_N FL_PRODUCT_LANES
#define FL_NAME(name) name
#ifdef FL_PRODUCT_PART
#undef FL_VEC
#undef FL_LOAD
#undef FL_STORE
#undef FL_SPLAT
#undef FL_ADD
#define FL_VEC fl_vec
#define FL_LOAD FL_PRODUCT_V(loadu_pd)
#define FL_STORE FL_PRODUCT_V(storeu_pd)
#define FL_SPLAT FL_PRODUCT_V(set1_pd)
#define FL_ADD FL_PRODUCT_V(add_pd)
#define FL_MULTIPLY_ADD FL_PRODUCT_V_FMA(pd)
#else
#define FL_MULTIPLY_ADD FL_FMA
#endif
#include "matmul/product_tile.h"
#undef FL_T
#undef FL_N
#undef FL_NAME
#undef FL_MULTIPLY_ADD
#undef FL_VEC
#undef FL_LOAD
#undef FL_STORE
#undef FL_SPLAT
#undef FL_ADD
#endif
