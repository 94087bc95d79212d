/* For one type; product.h includes this once for each. */

/* Operand A: at[o*outer + i*row + k*column]; `ahead` and `pace`: where the next tile's lies, and how much of it to
 * fetch per k (worth a tenth). */
typedef struct {
    const FL_T *at;
    ptrdiff_t outer, row, column, ahead, pace;
} FL_NAME(fl_left);

/* C[i][lanes] = or += the sum over outer < n and k < K of A[outer][i][k] B[outer*K + k][lanes]
 *
 * `beyond`: how far ahead B is fetched, 0 where it is near (worth a fifth where it is not). Only so many `lanes` of C
 * are made.
 */
FL_INLINE void FL_NAME(fl_tile)(ptrdiff_t n, ptrdiff_t K, FL_NAME(fl_left) left_of, const FL_T *B, ptrdiff_t beyond,
                                ptrdiff_t lanes, const fl_target *target) {
    const FL_T *A = left_of.at, *later = (const FL_T *)target->later;
    const ptrdiff_t a_outer = left_of.outer, ai = left_of.row, ak = left_of.column;
    const ptrdiff_t ahead = left_of.ahead, pace = left_of.pace, pitch = target->pitch;
    const int add = target->add;
    FL_T *C = (FL_T *)target->at;
#ifdef FL_PRODUCT_PART
    enum { WIDE = (int)(sizeof(FL_VEC) / sizeof(FL_T)) };
    ptrdiff_t i0, j0, o, k;
    int i;
    for (j0 = 0; j0 < lanes; j0 += 2 * WIDE) {
        const int two = lanes - j0 > WIDE;
        for (i0 = 0; i0 < FL_PRODUCT_TILE; i0 += FL_PRODUCT_PART) {
            FL_VEC left[FL_PRODUCT_PART], right[FL_PRODUCT_PART], b0, b1 = FL_SPLAT(0), a;
            const FL_T *p = A + i0 * ai, *q = B + j0;
            FL_T *c = C + i0 * pitch + j0;
FL_PRODUCT_UNROLL
            for (i = 0; i < FL_PRODUCT_PART; i++) {
                left[i] = FL_SPLAT(0);
                right[i] = FL_SPLAT(0);
            }
            for (o = 0; o < n; o++) {
                const FL_T *r = p + o * a_outer, *next = A + o * a_outer + ahead;
                if (later && i0 + j0 == 0)
                    for (k = o; k < FL_PRODUCT_TILE; k += n) {
                        FL_PREFETCH_FAR(later + k * pitch);       /* rows a page apart share cache sets of level 1 */
                        FL_PREFETCH_FAR(later + k * pitch + FL_N / 2);
                    }
                for (k = 0; k < K; k++) {
                    b0 = FL_LOAD(q);
                    if (two) b1 = FL_LOAD(q + WIDE);
FL_PRODUCT_UNROLL
                    for (i = 0; i < FL_PRODUCT_PART; i++) {
                        a = FL_SPLAT(r[i * ai]);
                        left[i] = FL_MULTIPLY_ADD(a, b0, left[i]);
                        if (two) right[i] = FL_MULTIPLY_ADD(a, b1, right[i]);
                    }
                    FL_PREFETCH(next);
                    if (beyond) {
                        FL_PREFETCH_FAR(q + beyond);
                        FL_PREFETCH_FAR(q + beyond + FL_N / 2);
                    }
                    next += pace;
                    q += FL_N;
                    r += ak;
                }
            }
FL_PRODUCT_UNROLL
            for (i = 0; i < FL_PRODUCT_PART; i++) {
                if (add) {
                    left[i] = FL_ADD(left[i], FL_LOAD(c + i * pitch));
                    if (two) right[i] = FL_ADD(right[i], FL_LOAD(c + i * pitch + WIDE));
                }
                FL_STORE(c + i * pitch, left[i]);
                if (two) FL_STORE(c + i * pitch + WIDE, right[i]);
            }
        }
    }
#else
    ptrdiff_t i, j, j0, o, k;
    (void)ahead;
    (void)pace;
    (void)beyond;
    (void)later;
    for (i = 0; i < FL_PRODUCT_TILE; i++) {
        for (j0 = 0; j0 < lanes; j0 += 8) {
            FL_T sum[8] = {0};
            for (o = 0; o < n; o++)
                for (k = 0; k < K; k++)
                    for (j = 0; j < 8; j++)
                        sum[j] = FL_MULTIPLY_ADD(A[o * a_outer + i * ai + k * ak], B[(o * K + k) * FL_N + j0 + j], sum[j]);
            for (j = 0; j < 8; j++)
                C[i * pitch + j0 + j] = add ? sum[j] + C[i * pitch + j0 + j] : sum[j];
        }
    }
#endif
}

/* A: rows of a packed chunk; logits */
static void FL_NAME(fl_tile_rows)(ptrdiff_t K, const FL_T *A, const FL_T *B, FL_T *C, ptrdiff_t pitch, int add) {
    const FL_NAME(fl_left) left = {A, 0, FL_PRODUCT_PITCH, 1, FL_PRODUCT_TILE * FL_PRODUCT_PITCH, 13};
    const fl_target target = {C, pitch, add, NULL};
    FL_NAME(fl_tile)(1, K, left, B, FL_PRODUCT_CHUNK * FL_N, FL_N, &target);
}

/* the same for the first half of the lanes */
static void FL_NAME(fl_tile_rows_half)(ptrdiff_t K, const FL_T *A, const FL_T *B, FL_T *C, ptrdiff_t pitch, int add) {
    const FL_NAME(fl_left) left = {A, 0, FL_PRODUCT_PITCH, 1, FL_PRODUCT_TILE * FL_PRODUCT_PITCH, 13};
    const fl_target target = {C, pitch, add, NULL};
    FL_NAME(fl_tile)(1, K, left, B, FL_PRODUCT_CHUNK * FL_N, FL_N / 2, &target);
}

/* A: columns of a packed chunk; gradient to the inputs */
static void FL_NAME(fl_tile_columns)(ptrdiff_t K, const FL_T *A, const FL_T *B, FL_T *C, ptrdiff_t pitch, int add) {
    const FL_NAME(fl_left) left = {A, 0, 1, FL_PRODUCT_PITCH, 2 * FL_PRODUCT_TILE - 1, FL_PRODUCT_PITCH};
    const fl_target target = {C, pitch, add, NULL};
    FL_NAME(fl_tile)(1, K, left, B, 0, FL_N, &target);
}

/* A: n panels, `step` apart, whose lanes are k; gradient to the table */
static void FL_NAME(fl_tile_lanes)(ptrdiff_t n, ptrdiff_t step, const FL_T *A, const FL_T *B, const fl_target *target) {
    const FL_NAME(fl_left) left = {A, step, FL_N, 1, FL_PRODUCT_TILE * FL_N, FL_PRODUCT_TILE};
    FL_NAME(fl_tile)(n, FL_N, left, B, 0, FL_N, target);
}
