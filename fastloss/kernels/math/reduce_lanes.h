/* Folds lanes to half as many: a[j] and a[j + n] become a[j], for j < n.  Inlined with a constant n, a fold is a few
 * vector operations. Without the pragma gcc unrolls such short loops before it vectorises, and leaves them scalar. */
#ifndef FL_REDUCE_LANES_H
#define FL_REDUCE_LANES_H
#include "math/vmath.h"

#if defined(__GNUC__) && !defined(__clang__)
#define FL_KEEP_LOOP _Pragma("GCC unroll 1")
#else
#define FL_KEEP_LOOP
#endif

FL_INLINE void fl_halve_sumf(float *a, int n) { FL_KEEP_LOOP for (int j = 0; j < n; j++) a[j] = a[j] + a[j + n]; }
FL_INLINE void fl_halve_sum(double *a, int n) { FL_KEEP_LOOP for (int j = 0; j < n; j++) a[j] = a[j] + a[j + n]; }
FL_INLINE void fl_halve_max(double *a, int n) {
    FL_KEEP_LOOP for (int j = 0; j < n; j++) a[j] = a[j] > a[j + n] ? a[j] : a[j + n];
}

/* the product of (1 + a[j]) and (1 + a[j + n]), minus 1 */
FL_INLINE void fl_halve_product(double *a, int n) {
    FL_KEEP_LOOP for (int j = 0; j < n; j++) a[j] = FL_FMA(a[j], a[j + n], a[j] + a[j + n]);
}
#endif
