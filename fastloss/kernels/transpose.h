/* Rows of few classes <-> lanes of rows: in 4 x 4 (float) and 2 x 2 (double) blocks of SSE registers. The last block of
 * classes overlaps the one before, so that any class count of at least 4 (2) goes without a remainder.
 *
 *     fl_lanes_of_rows*:  b[k*lanes + r] = x[r*stride + k]     fl_rows_of_lanes*:  x[r*stride + k] = b[k*lanes + r]
 *
 * for r < rows, k < classes; rows <= lanes; strides count elements.
 */
#ifndef FL_TRANSPOSE_H
#define FL_TRANSPOSE_H
#include <stddef.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define FL_SIDEF 4
#define FL_SIDE 2

static void fl_blockf(const float *s, ptrdiff_t s_step, float *d, ptrdiff_t d_step) {
    __m128 p = _mm_loadu_ps(s), q = _mm_loadu_ps(s + s_step);
    __m128 u = _mm_loadu_ps(s + 2 * s_step), v = _mm_loadu_ps(s + 3 * s_step);
    _MM_TRANSPOSE4_PS(p, q, u, v);
    _mm_storeu_ps(d, p);
    _mm_storeu_ps(d + d_step, q);
    _mm_storeu_ps(d + 2 * d_step, u);
    _mm_storeu_ps(d + 3 * d_step, v);
}

static void fl_block(const double *s, ptrdiff_t s_step, double *d, ptrdiff_t d_step) {
    __m128d p = _mm_loadu_pd(s), q = _mm_loadu_pd(s + s_step);
    _mm_storeu_pd(d, _mm_unpacklo_pd(p, q));
    _mm_storeu_pd(d + d_step, _mm_unpackhi_pd(p, q));
}
#else                                   /* no registers to transpose in: element by element */
#define FL_SIDEF 1
#define FL_SIDE 1

static void fl_blockf(const float *s, ptrdiff_t s_step, float *d, ptrdiff_t d_step) {
    (void)s_step; (void)d_step;
    *d = *s;
}

static void fl_block(const double *s, ptrdiff_t s_step, double *d, ptrdiff_t d_step) {
    (void)s_step; (void)d_step;
    *d = *s;
}
#endif

static void fl_lanes_of_rowsf(const float *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t classes, float *b, ptrdiff_t lanes) {
    ptrdiff_t r = 0, k, last = classes - FL_SIDEF;
    for (; last >= 0 && r + FL_SIDEF <= rows; r += FL_SIDEF) {
        for (k = 0; k < last; k += FL_SIDEF) fl_blockf(x + r * stride + k, stride, b + k * lanes + r, lanes);
        fl_blockf(x + r * stride + last, stride, b + last * lanes + r, lanes);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) b[k * lanes + r] = x[r * stride + k];
}

static void fl_rows_of_lanesf(const float *b, ptrdiff_t lanes, ptrdiff_t rows, ptrdiff_t classes, float *x, ptrdiff_t stride) {
    ptrdiff_t r = 0, k, last = classes - FL_SIDEF;
    for (; last >= 0 && r + FL_SIDEF <= rows; r += FL_SIDEF) {
        for (k = 0; k < last; k += FL_SIDEF) fl_blockf(b + k * lanes + r, lanes, x + r * stride + k, stride);
        fl_blockf(b + last * lanes + r, lanes, x + r * stride + last, stride);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) x[r * stride + k] = b[k * lanes + r];
}

static void fl_lanes_of_rows(const double *x, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t classes, double *b, ptrdiff_t lanes) {
    ptrdiff_t r = 0, k, last = classes - FL_SIDE;
    for (; last >= 0 && r + FL_SIDE <= rows; r += FL_SIDE) {
        for (k = 0; k < last; k += FL_SIDE) fl_block(x + r * stride + k, stride, b + k * lanes + r, lanes);
        fl_block(x + r * stride + last, stride, b + last * lanes + r, lanes);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) b[k * lanes + r] = x[r * stride + k];
}

static void fl_rows_of_lanes(const double *b, ptrdiff_t lanes, ptrdiff_t rows, ptrdiff_t classes, double *x, ptrdiff_t stride) {
    ptrdiff_t r = 0, k, last = classes - FL_SIDE;
    for (; last >= 0 && r + FL_SIDE <= rows; r += FL_SIDE) {
        for (k = 0; k < last; k += FL_SIDE) fl_block(b + k * lanes + r, lanes, x + r * stride + k, stride);
        fl_block(b + last * lanes + r, lanes, x + r * stride + last, stride);
    }
    for (; r < rows; r++)
        for (k = 0; k < classes; k++) x[r * stride + k] = b[k * lanes + r];
}
#endif
