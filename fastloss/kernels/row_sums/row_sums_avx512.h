/* Sums over a block of float logits where there are 32 registers: exp_block of row_sums.pxd and target_block of
 * targets.pxd, for a shift of 0, with the same bits.  Given the whole row, gcc keeps neither sums nor constants in
 * registers, which costs a tenth of a loss and a sixth of a gradient.
 */
#ifndef FL_ROW_SUMS_AVX512_H
#define FL_ROW_SUMS_AVX512_H
#include "math/exp_table.h"
#include "arrays/nontemporal.h"

/* Elements of a row in groups of 32. Group `out` (it holds the element left out) and group `tail` (the row's end) are
 * read from padded copies, and a group past the end from an empty one. */
typedef struct {
    const char *elements;
    const char *out_group, *tail_group, *empty_group;
    ptrdiff_t n_groups, out, tail;                        /* numbers of groups; -1 or past the end: no such group */
    const char *ahead;                                    /* what to prefetch into the second-level cache */
    ptrdiff_t pace;                                       /* bytes of it for each group */
} fl_source;

/* What float exps need of a reference (row_sums.pxd) whose shift is 0. */
typedef struct { float m, lo, magic; } fl_row_unit;

/* The part of a deferred gradient (deferred.pxd) that is written in pairs of groups, `left` of them: target is terms
 * slope or, if there are labels, terms slope - labels scale, and `entry` at `at`. */
typedef struct {
    float *target;
    const float *terms, *labels;
    float slope, scale, entry;
    ptrdiff_t at, left;
    int past;                                             /* whether to write past the caches */
} fl_pending;

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__GNUC__)
#define FL_HAS_BLOCK 1
#define FL_BLOCK_NEAR 2048      /* bytes ahead of which lines are prefetched from the second level into the first */

typedef struct { __m512 lo, magic; __m512i roots, rests; } fl_exps;

/* fl_exp_firstf, fl_exp_rootsf and fl_exp_lastf, operation by operation */
FL_INLINE __m512 fl_exp16(__m512 x, const fl_exps *k) {
    __m512 d = _mm512_max_ps(k->lo, x);                   /* gives the second operand if one is NaN */
    __m512 s = _mm512_fmadd_ps(d, _mm512_set1_ps(FL_STEPS_PER_UNITF), k->magic), n = _mm512_sub_ps(s, k->magic);
    __m512i i = _mm512_castps_si512(s);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-FL_STEPF), d);
    __m512 rest = _mm512_castsi512_ps(_mm512_permutexvar_epi32(i, k->rests));
    __m512i root = _mm512_add_epi32(_mm512_permutexvar_epi32(i, k->roots), _mm512_slli_epi32(i, 20));
    __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(FL_EXP_CUBEF), _mm512_set1_ps(FL_EXP_SQUAREF));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, _mm512_fmadd_ps(n, _mm512_set1_ps(FL_STEP_RESTF), r), rest);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(root), p, _mm512_castsi512_ps(root));
}

/* 32 lanes in float64, and their sum as lanes_sum folds them */
typedef struct { __m512d a, b, c, d; } fl_row_lanes;

FL_INLINE __m512d fl_row_low(__m512 a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
FL_INLINE __m512d fl_row_high(__m512 a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }

FL_INLINE fl_row_lanes fl_row_no_lanes(void) {
    const __m512d zero = _mm512_setzero_pd();
    const fl_row_lanes none = {zero, zero, zero, zero};
    return none;
}

FL_INLINE void fl_add_part(fl_row_lanes *to, __m512 part, __m512 rest) {
    to->a = _mm512_add_pd(to->a, fl_row_low(part));
    to->b = _mm512_add_pd(to->b, fl_row_high(part));
    to->c = _mm512_add_pd(to->c, fl_row_low(rest));
    to->d = _mm512_add_pd(to->d, fl_row_high(rest));
}

FL_INLINE double fl_row_lanes_sum(const fl_row_lanes *l) {
    __m512d a = _mm512_add_pd(_mm512_add_pd(l->a, l->c), _mm512_add_pd(l->b, l->d));
    __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(c) + _mm_cvtsd_f64(_mm_unpackhi_pd(c, c));
}

FL_INLINE fl_exps fl_exps_of(float lo, float magic) {
    const fl_exps k = {
        _mm512_set1_ps(lo), _mm512_set1_ps(magic),
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)fl_rootsf)),
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)fl_restsf)),
    };
    return k;
}

FL_INLINE void fl_put_two(float *d, const fl_pending *p, int dense, int past) {
    const float *t = dense ? p->labels : NULL;
    fl_put_groupf(d, p->terms, p->slope, 0, t, p->scale, past);
    fl_put_groupf(d + 32, p->terms + 32, p->slope, 0, dense ? t + 32 : NULL, p->scale, past);
}

FL_INLINE void fl_put_pending(fl_pending *p, int dense) {
    float both[64];
    int j;
    if (p->left <= 0) return;
    if (dense && p->at >= 0 && p->at < 64) {              /* a line written past the caches must be whole at once */
        fl_put_two(both, p, dense, 0);
        both[p->at] = p->entry;
        if (p->past) fl_stream(p->target, both, sizeof both);
        else memcpy(p->target, both, sizeof both);
    } else if (p->past) {
        fl_put_two(p->target, p, dense, 1);
    } else {                                              /* a line must be read before it can be written */
        for (j = 0; j < 64; j += 16) FL_PREFETCH((const char *)(p->target + j) + FL_BLOCK_NEAR);
        fl_put_two(p->target, p, dense, 0);
    }
    p->target += 64;
    p->terms += 64;
    p->labels += dense ? 64 : 0;
    p->at -= 64;
    p->left--;
}

enum { FL_FLOATS, FL_HALVES, FL_BFLOATS };                /* kinds of logits */

FL_INLINE __m512 fl_load16(const char *x, int kind) {
    if (kind == FL_FLOATS) return _mm512_loadu_ps(x);
    const __m256i halves = _mm256_loadu_si256((const __m256i *)x);
    if (kind == FL_HALVES) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* Sums exp over groups of logits, and finds the largest logit. Unless e is NULL, also stores the exps there and writes
 * the same number of elements of the deferred gradient. */
FL_INLINE double fl_exp_block_of(
        const fl_source *from, int kind, const fl_row_unit *unit, float *e, float *top_out, fl_pending *pending) {
    const ptrdiff_t half = kind == FL_FLOATS ? 64 : 32, size = 2 * half;        /* bytes of a group */
    const ptrdiff_t n_groups = from->n_groups, out = from->out, tail = from->tail, pace = from->pace;
    const char *x = from->elements, *out_group = from->out_group, *tail_group = from->tail_group;
    const char *empty_group = from->empty_group, *ahead = from->ahead;
    fl_pending late = e ? *pending : (fl_pending){0};
    const fl_exps k = fl_exps_of(unit->lo, unit->magic);
    __m512 top = _mm512_set1_ps(-INFINITY), more = top;
    fl_row_lanes total = fl_row_no_lanes();
    ptrdiff_t g = 0;
    while (g < n_groups) {
        const ptrdiff_t end = g + 8 < n_groups ? g + 8 : n_groups;
        __m512 part = _mm512_setzero_ps(), rest = part;
        for (; g < end; g += 2) {
            const char *p = x + g * size, *q = p + size;
            __m512 p0, p1, q0, q1;
            ptrdiff_t j;
            p = g == out ? out_group : p;
            p = g == tail ? tail_group : p;
            q = g + 1 == out ? out_group : q;
            q = g + 1 == tail ? tail_group : q;
            q = g + 1 == n_groups ? empty_group : q;
            for (j = 0; j < 2 * size; j += 64) FL_PREFETCH_FAR(ahead + j);
            for (j = 0; j < 2 * size; j += 64) FL_PREFETCH(x + g * size + j + FL_BLOCK_NEAR);
            ahead += 2 * pace;
            p0 = fl_load16(p, kind), p1 = fl_load16(p + half, kind);
            q0 = fl_load16(q, kind), q1 = fl_load16(q + half, kind);
            top = _mm512_max_ps(q0, _mm512_max_ps(p0, top));
            more = _mm512_max_ps(q1, _mm512_max_ps(p1, more));
            p0 = fl_exp16(p0, &k), p1 = fl_exp16(p1, &k), q0 = fl_exp16(q0, &k), q1 = fl_exp16(q1, &k);
            part = _mm512_add_ps(part, _mm512_add_ps(p0, q0));
            rest = _mm512_add_ps(rest, _mm512_add_ps(p1, q1));
            if (e) {
                fl_put_pending(&late, 0);                 /* first: its terms may lie where these go */
                _mm512_storeu_ps(e + g * 32, p0);
                _mm512_storeu_ps(e + g * 32 + 16, p1);
                _mm512_storeu_ps(e + g * 32 + 32, q0);
                _mm512_storeu_ps(e + g * 32 + 48, q1);
            }
        }
        fl_add_part(&total, part, rest);
    }
    *top_out = _mm512_reduce_max_ps(_mm512_max_ps(top, more));
    if (e) *pending = late;
    return fl_row_lanes_sum(&total);
}

#define FL_EXP_BLOCK(name, kind)                                                                                         \
    static __attribute__((noinline)) double name(                                                                        \
            const fl_source *from, const fl_row_unit *unit, float *e, float *top, fl_pending *pending) {                 \
        if (e) return fl_exp_block_of(from, kind, unit, e, top, pending);                                                \
        return fl_exp_block_of(from, kind, unit, NULL, top, NULL);                                                       \
    }
FL_EXP_BLOCK(fl_exp_blockf, FL_FLOATS)
FL_EXP_BLOCK(fl_exp_block_halves, FL_HALVES)
FL_EXP_BLOCK(fl_exp_block_bfloats, FL_BFLOATS)

FL_INLINE __m512 fl_dot16(__m512 t, __m512 m, __m512 x) {                       /* t (m - x), 0 where t is */
    return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(t, _mm512_setzero_ps(), _CMP_NEQ_UQ), t, _mm512_sub_ps(m, x));
}

/* the same with targets t: sums of exp(x), of t (m - x), and of t */
FL_INLINE void fl_target_block_of(
        const fl_source *logits, const fl_source *targets, const fl_row_unit *unit, float *e, double *sums,
        fl_pending *pending) {
    const ptrdiff_t n_groups = logits->n_groups, out = logits->out, tail = logits->tail;
    const ptrdiff_t ahead = logits->ahead - logits->elements;
    const float *x = (const float *)logits->elements, *t = (const float *)targets->elements;
    const float *out_x = (const float *)logits->out_group, *out_t = (const float *)targets->out_group;
    const float *tail_x = (const float *)logits->tail_group, *tail_t = (const float *)targets->tail_group;
    const float *empty_x = (const float *)logits->empty_group, *empty_t = (const float *)targets->empty_group;
    fl_pending late = e ? *pending : (fl_pending){0};
    const fl_exps k = fl_exps_of(unit->lo, unit->magic);
    const __m512 m = _mm512_set1_ps(unit->m);
    fl_row_lanes exps = fl_row_no_lanes(), dots = exps, rests = exps;
    ptrdiff_t g = 0;
    while (g < n_groups) {
        const ptrdiff_t end = g + 8 < n_groups ? g + 8 : n_groups;
        __m512 e0 = _mm512_setzero_ps(), e1 = e0, d0 = e0, d1 = e0, r0 = e0, r1 = e0;
        for (; g < end; g += 2) {
            const float *p = x + g * 32, *q = p + 32, *r = t + g * 32, *s = r + 32;
            __m512 a, b, c, d;
            int j;
            for (j = 0; j < 64; j += 16) {
                FL_PREFETCH_FAR((const char *)(p + j) + ahead);
                FL_PREFETCH_FAR((const char *)(r + j) + ahead);
                FL_PREFETCH((const char *)(p + j) + 3 * FL_BLOCK_NEAR);               /* the next row's maximum comes first */
                FL_PREFETCH((const char *)(r + j) + FL_BLOCK_NEAR);
            }
            p = g == tail ? tail_x : p;
            p = g == out ? out_x : p;
            r = g == tail ? tail_t : r;
            r = g == out ? out_t : r;
            q = g + 1 == tail ? tail_x : q;
            q = g + 1 == out ? out_x : q;
            q = g + 1 == n_groups ? empty_x : q;
            s = g + 1 == tail ? tail_t : s;
            s = g + 1 == out ? out_t : s;
            s = g + 1 == n_groups ? empty_t : s;
            a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(q), c = _mm512_loadu_ps(r), d = _mm512_loadu_ps(s);
            d0 = _mm512_add_ps(d0, _mm512_add_ps(fl_dot16(c, m, a), fl_dot16(d, m, b)));
            r0 = _mm512_add_ps(r0, _mm512_add_ps(c, d));
            a = fl_exp16(a, &k), b = fl_exp16(b, &k);
            e0 = _mm512_add_ps(e0, _mm512_add_ps(a, b));
            if (e) _mm512_storeu_ps(e + g * 32, a), _mm512_storeu_ps(e + g * 32 + 32, b);
            a = _mm512_loadu_ps(p + 16), b = _mm512_loadu_ps(q + 16);
            c = _mm512_loadu_ps(r + 16), d = _mm512_loadu_ps(s + 16);
            d1 = _mm512_add_ps(d1, _mm512_add_ps(fl_dot16(c, m, a), fl_dot16(d, m, b)));
            r1 = _mm512_add_ps(r1, _mm512_add_ps(c, d));
            a = fl_exp16(a, &k), b = fl_exp16(b, &k);
            e1 = _mm512_add_ps(e1, _mm512_add_ps(a, b));
            if (e) {
                _mm512_storeu_ps(e + g * 32 + 16, a), _mm512_storeu_ps(e + g * 32 + 48, b);
                fl_put_pending(&late, 1);
            }
        }
        fl_add_part(&exps, e0, e1);
        fl_add_part(&dots, d0, d1);
        fl_add_part(&rests, r0, r1);
    }
    sums[0] = fl_row_lanes_sum(&exps);
    sums[1] = fl_row_lanes_sum(&dots);
    sums[2] = fl_row_lanes_sum(&rests);
    if (e) *pending = late;
}

static __attribute__((noinline)) void fl_target_blockf(
        const fl_source *x, const fl_source *t, const fl_row_unit *unit, float *e, double *sums, fl_pending *pending) {
    if (e) fl_target_block_of(x, t, unit, e, sums, pending);
    else fl_target_block_of(x, t, unit, NULL, sums, NULL);
}
#else
#define FL_HAS_BLOCK 0
#define fl_exp_blockf(...) 0.0
#define fl_exp_block_halves(...) 0.0
#define fl_exp_block_bfloats(...) 0.0
#define fl_target_blockf(...) ((void)0)
#endif
#endif
