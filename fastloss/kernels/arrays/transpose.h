/* Rows of few classes <-> lanes of rows, through registers. Every 128-bit part of a register holds 4 (double: 2) classes
 * of one row; parts of FL_TRANSPOSE_PARTS rows are transposed side by side. The last block of classes overlaps the one
 * before, so that any class count of at least 4 (2) goes without a remainder.
 *
 *     fl_lanes_of_rows*:  b[k*lanes + r] = x[r*stride + k]     fl_rows_of_lanes*:  x[r*stride + k] = b[k*lanes + r]
 *
 * for r < rows, k < classes; rows <= lanes; strides count elements.
 */
#ifndef FL_TRANSPOSE_H
#define FL_TRANSPOSE_H
#include <stddef.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define FL_TRANSPOSE_PARTS 4
typedef __m512 fl_wf;
typedef __m512d fl_wd;
#define FL_TRANSPOSE_LOW _mm512_unpacklo_ps
#define FL_TRANSPOSE_HIGH _mm512_unpackhi_ps
#define FL_TRANSPOSE_LOWD _mm512_unpacklo_pd
#define FL_TRANSPOSE_HIGHD _mm512_unpackhi_pd
#define FL_TRANSPOSE_AS_D _mm512_castps_pd
#define FL_TRANSPOSE_AS_F _mm512_castpd_ps
#define FL_TRANSPOSE_LOAD _mm512_loadu_ps
#define FL_TRANSPOSE_LOADD _mm512_loadu_pd
#define FL_TRANSPOSE_STORE _mm512_storeu_ps
#define FL_TRANSPOSE_STORED _mm512_storeu_pd
static inline fl_wf fl_partsf(const float *s, ptrdiff_t step) { /* 4 classes of as many rows as parts, `step` apart */
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(s));                 /* masked broadcasts need no shuffle port */
    v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(s + step));
    v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(s + 2 * step));
    return _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(s + 3 * step));
}
static inline void fl_put_partsf(float *d, ptrdiff_t step, fl_wf v) {
    _mm_storeu_ps(d, _mm512_castps512_ps128(v));
    _mm_storeu_ps(d + step, _mm512_extractf32x4_ps(v, 1));
    _mm_storeu_ps(d + 2 * step, _mm512_extractf32x4_ps(v, 2));
    _mm_storeu_ps(d + 3 * step, _mm512_extractf32x4_ps(v, 3));
}
static inline fl_wd fl_parts(const double *s, ptrdiff_t step) {
    __m512d v = _mm512_castpd128_pd512(_mm_loadu_pd(s));
    v = _mm512_mask_broadcast_f64x2(v, 0x0c, _mm_loadu_pd(s + step));
    v = _mm512_mask_broadcast_f64x2(v, 0x30, _mm_loadu_pd(s + 2 * step));
    return _mm512_mask_broadcast_f64x2(v, 0xc0, _mm_loadu_pd(s + 3 * step));
}
static inline void fl_put_parts(double *d, ptrdiff_t step, fl_wd v) {
    _mm_storeu_pd(d, _mm512_castpd512_pd128(v));
    _mm_storeu_pd(d + step, _mm512_extractf64x2_pd(v, 1));
    _mm_storeu_pd(d + 2 * step, _mm512_extractf64x2_pd(v, 2));
    _mm_storeu_pd(d + 3 * step, _mm512_extractf64x2_pd(v, 3));
}
#elif defined(__AVX__)
#include <immintrin.h>
#define FL_TRANSPOSE_PARTS 2
typedef __m256 fl_wf;
typedef __m256d fl_wd;
#define FL_TRANSPOSE_LOW _mm256_unpacklo_ps
#define FL_TRANSPOSE_HIGH _mm256_unpackhi_ps
#define FL_TRANSPOSE_LOWD _mm256_unpacklo_pd
#define FL_TRANSPOSE_HIGHD _mm256_unpackhi_pd
#define FL_TRANSPOSE_AS_D _mm256_castps_pd
#define FL_TRANSPOSE_AS_F _mm256_castpd_ps
#define FL_TRANSPOSE_LOAD _mm256_loadu_ps
#define FL_TRANSPOSE_LOADD _mm256_loadu_pd
#define FL_TRANSPOSE_STORE _mm256_storeu_ps
#define FL_TRANSPOSE_STORED _mm256_storeu_pd
static inline fl_wf fl_partsf(const float *s, ptrdiff_t step) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(s)), _mm_loadu_ps(s + step), 1);
}
static inline void fl_put_partsf(float *d, ptrdiff_t step, fl_wf v) {
    _mm_storeu_ps(d, _mm256_castps256_ps128(v));
    _mm_storeu_ps(d + step, _mm256_extractf128_ps(v, 1));
}
static inline fl_wd fl_parts(const double *s, ptrdiff_t step) {
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(s)), _mm_loadu_pd(s + step), 1);
}
static inline void fl_put_parts(double *d, ptrdiff_t step, fl_wd v) {
    _mm_storeu_pd(d, _mm256_castpd256_pd128(v));
    _mm_storeu_pd(d + step, _mm256_extractf128_pd(v, 1));
}
#elif defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define FL_TRANSPOSE_PARTS 1
typedef __m128 fl_wf;
typedef __m128d fl_wd;
#define FL_TRANSPOSE_LOW _mm_unpacklo_ps
#define FL_TRANSPOSE_HIGH _mm_unpackhi_ps
#define FL_TRANSPOSE_LOWD _mm_unpacklo_pd
#define FL_TRANSPOSE_HIGHD _mm_unpackhi_pd
#define FL_TRANSPOSE_AS_D _mm_castps_pd
#define FL_TRANSPOSE_AS_F _mm_castpd_ps
#define FL_TRANSPOSE_LOAD _mm_loadu_ps
#define FL_TRANSPOSE_LOADD _mm_loadu_pd
#define FL_TRANSPOSE_STORE _mm_storeu_ps
#define FL_TRANSPOSE_STORED _mm_storeu_pd
static inline fl_wf fl_partsf(const float *s, ptrdiff_t step) { (void)step; return _mm_loadu_ps(s); }
static inline void fl_put_partsf(float *d, ptrdiff_t step, fl_wf v) { (void)step; _mm_storeu_ps(d, v); }
static inline fl_wd fl_parts(const double *s, ptrdiff_t step) { (void)step; return _mm_loadu_pd(s); }
static inline void fl_put_parts(double *d, ptrdiff_t step, fl_wd v) { (void)step; _mm_storeu_pd(d, v); }
#endif

#if defined(FL_TRANSPOSE_PARTS)
#define FL_TRANSPOSE_SIDEF 4                      /* classes of a block; it has FL_TRANSPOSE_PARTS times as many rows */
#define FL_TRANSPOSE_SIDE 2

static inline void fl_turnf(fl_wf *v) { /* transposes the 4 x 4 part by part */
    fl_wf p = FL_TRANSPOSE_LOW(v[0], v[1]), q = FL_TRANSPOSE_HIGH(v[0], v[1]);
    fl_wf s = FL_TRANSPOSE_LOW(v[2], v[3]), t = FL_TRANSPOSE_HIGH(v[2], v[3]);
    v[0] = FL_TRANSPOSE_AS_F(FL_TRANSPOSE_LOWD(FL_TRANSPOSE_AS_D(p), FL_TRANSPOSE_AS_D(s)));
    v[1] = FL_TRANSPOSE_AS_F(FL_TRANSPOSE_HIGHD(FL_TRANSPOSE_AS_D(p), FL_TRANSPOSE_AS_D(s)));
    v[2] = FL_TRANSPOSE_AS_F(FL_TRANSPOSE_LOWD(FL_TRANSPOSE_AS_D(q), FL_TRANSPOSE_AS_D(t)));
    v[3] = FL_TRANSPOSE_AS_F(FL_TRANSPOSE_HIGHD(FL_TRANSPOSE_AS_D(q), FL_TRANSPOSE_AS_D(t)));
}

static inline void fl_block_inf(const float *x, ptrdiff_t stride, float *b, ptrdiff_t lanes) {
    fl_wf v[4];
    int i;
    for (i = 0; i < 4; i++) v[i] = fl_partsf(x + i * stride, 4 * stride);
    fl_turnf(v);
    for (i = 0; i < 4; i++) FL_TRANSPOSE_STORE(b + i * lanes, v[i]);
}

static inline void fl_block_outf(const float *b, ptrdiff_t lanes, float *x, ptrdiff_t stride) {
    fl_wf v[4];
    int i;
    for (i = 0; i < 4; i++) v[i] = FL_TRANSPOSE_LOAD(b + i * lanes);
    fl_turnf(v);
    for (i = 0; i < 4; i++) fl_put_partsf(x + i * stride, 4 * stride, v[i]);
}

static inline void fl_block_in(const double *x, ptrdiff_t stride, double *b, ptrdiff_t lanes) {
    fl_wd p = fl_parts(x, 2 * stride), q = fl_parts(x + stride, 2 * stride);
    FL_TRANSPOSE_STORED(b, FL_TRANSPOSE_LOWD(p, q));
    FL_TRANSPOSE_STORED(b + lanes, FL_TRANSPOSE_HIGHD(p, q));
}

static inline void fl_block_out(const double *b, ptrdiff_t lanes, double *x, ptrdiff_t stride) {
    fl_wd p = FL_TRANSPOSE_LOADD(b), q = FL_TRANSPOSE_LOADD(b + lanes);
    fl_put_parts(x, 2 * stride, FL_TRANSPOSE_LOWD(p, q));
    fl_put_parts(x + stride, 2 * stride, FL_TRANSPOSE_HIGHD(p, q));
}
#else                                   /* without such registers: element by element */
#define FL_TRANSPOSE_PARTS 1
#define FL_TRANSPOSE_SIDEF 1
#define FL_TRANSPOSE_SIDE 1
static inline void fl_block_inf(const float *x, ptrdiff_t stride, float *b, ptrdiff_t lanes) { (void)stride; (void)lanes; *b = *x; }
static inline void fl_block_outf(const float *b, ptrdiff_t lanes, float *x, ptrdiff_t stride) { (void)stride; (void)lanes; *x = *b; }
static inline void fl_block_in(const double *x, ptrdiff_t stride, double *b, ptrdiff_t lanes) { (void)stride; (void)lanes; *b = *x; }
static inline void fl_block_out(const double *b, ptrdiff_t lanes, double *x, ptrdiff_t stride) { (void)stride; (void)lanes; *x = *b; }
#endif

static void fl_lanes_of_rowsf(const float *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t classes, float *b, ptrdiff_t lanes) {
    const ptrdiff_t side = FL_TRANSPOSE_SIDEF, block = side * FL_TRANSPOSE_PARTS, last = classes - side;
    ptrdiff_t r = 0, k;
    for (; last >= 0 && r + block <= rows; r += block) {
        for (k = 0; k < last; k += side) fl_block_inf(x + r * stride + k, stride, b + k * lanes + r, lanes);
        fl_block_inf(x + r * stride + last, stride, b + last * lanes + r, lanes);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) b[k * lanes + r] = x[r * stride + k];
}

static void fl_rows_of_lanesf(const float *b, ptrdiff_t lanes, ptrdiff_t rows, ptrdiff_t classes, float *x, ptrdiff_t stride) {
    const ptrdiff_t side = FL_TRANSPOSE_SIDEF, block = side * FL_TRANSPOSE_PARTS, last = classes - side;
    ptrdiff_t r = 0, k;
    for (; last >= 0 && r + block <= rows; r += block) {
        for (k = 0; k < last; k += side) fl_block_outf(b + k * lanes + r, lanes, x + r * stride + k, stride);
        fl_block_outf(b + last * lanes + r, lanes, x + r * stride + last, stride);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) x[r * stride + k] = b[k * lanes + r];
}

static void fl_lanes_of_rows(const double *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t classes, double *b, ptrdiff_t lanes) {
    const ptrdiff_t side = FL_TRANSPOSE_SIDE, block = side * FL_TRANSPOSE_PARTS, last = classes - side;
    ptrdiff_t r = 0, k;
    for (; last >= 0 && r + block <= rows; r += block) {
        for (k = 0; k < last; k += side) fl_block_in(x + r * stride + k, stride, b + k * lanes + r, lanes);
        fl_block_in(x + r * stride + last, stride, b + last * lanes + r, lanes);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) b[k * lanes + r] = x[r * stride + k];
}

static void fl_rows_of_lanes(const double *b, ptrdiff_t lanes, ptrdiff_t rows, ptrdiff_t classes, double *x, ptrdiff_t stride) {
    const ptrdiff_t side = FL_TRANSPOSE_SIDE, block = side * FL_TRANSPOSE_PARTS, last = classes - side;
    ptrdiff_t r = 0, k;
    for (; last >= 0 && r + block <= rows; r += block) {
        for (k = 0; k < last; k += side) fl_block_out(b + k * lanes + r, lanes, x + r * stride + k, stride);
        fl_block_out(b + last * lanes + r, lanes, x + r * stride + last, stride);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) x[r * stride + k] = b[k * lanes + r];
}
#endif
