/* The CTC lattice in numbers m 2^e, m in [1, 2), e an integer in a double: a path's mass is never lost, however far the
 * logits lie apart, and a step is additions and multiplications, without exp or log. Nothing is 2^FL_LATTICE_NOTHING.
 *
 * A labelling of n labels has blanks B[0 .. n] and labels L[0 .. n - 1], in rows of W >= n + 1, W a multiple of 8; what
 * lies past them is nothing. Every row has four parts of FL_LATTICE_PART(W) doubles: m and e of the blanks, m and e of the labels.
 * Sums of a row have one fixed order.
 */
#ifndef FL_LATTICE_H
#define FL_LATTICE_H
#include "math/reduce_lanes.h"
#include "math/vmath.h"

#define FL_LATTICE_NOTHING (-1e308)
#define FL_LATTICE_TINY 9.332636185032189e-302                    /* 2^-1000: what lies below gets an exponent of its own */
#define FL_LATTICE_PART(W) ((W) + 8)
#if defined(__GNUC__)
#define FL_APART __restrict__
#define FL_NO_INLINE __attribute__((noinline))
#elif defined(_MSC_VER)
#define FL_APART __restrict
#define FL_NO_INLINE __declspec(noinline)
#else
#define FL_APART
#define FL_NO_INLINE
#endif

FL_INLINE double fl_larger(double a, double b) { return a > b ? a : b; }

/* 2^d, d an integer of at most 1023; 0 below -1022 */
FL_INLINE double fl_two_to(double d) {
    return fl_double_of(fl_bits_of_double(fl_larger(d, -1023.0) + (4503599627370496.0 + 1023.0)) << 52);
}

/* v 2^e in normal form, v positive and normal */
FL_INLINE void fl_normal(double v, double e, double *m_out, double *e_out) {
    uint64_t bits = fl_bits_of_double(v);
    *m_out = fl_double_of((bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL);
    *e_out = fl_larger(e + (fl_double_of(bits >> 52 | 0x4330000000000000ULL) - (4503599627370496.0 + 1023.0)), FL_LATTICE_NOTHING);
}

FL_INLINE double fl_lattice_sum2(double m0, double e0, double m1, double e1, double *top) {
    *top = fl_larger(e0, e1);
    return FL_FMA(m0, fl_two_to(e0 - *top), m1 * fl_two_to(e1 - *top));
}

FL_INLINE double fl_lattice_sum3(double m0, double e0, double m1, double e1, double m2, double e2, double *top) {
    *top = fl_larger(fl_larger(e0, e1), e2);
    return FL_FMA(m0, fl_two_to(e0 - *top), FL_FMA(m1, fl_two_to(e1 - *top), m2 * fl_two_to(e2 - *top)));
}

/* exp(d) = m 2^e for any d <= 0, m in (1/2, 2) */
FL_INLINE void fl_exp_wide(double d, double *m, double *e) {
    double n, r;
    if (d < -1e15) {                                      /* a unit in the last place of d is as much as m can be */
        n = fl_larger(d * 1.4426950408889634, FL_LATTICE_NOTHING);
        *m = 1.0;
        *e = n > -9e18 ? (double)(int64_t)n : n;
        return;
    }
    n = FL_FMA(d, 1.4426950408889634, FL_ROUND) - FL_ROUND;
    r = FL_FMA(n, -FL_LN2_HIGH, d);
    r = FL_FMA(n, -FL_LN2_LOW, r);
    *m = fl_exp_fine(r, -1.0, FL_ROUND + 1023.0);
    *e = n;
}

/* p[j] = terms[labels[j]] c; how many of them are tiny */
FL_NO_INLINE static int64_t fl_gather(const double *FL_APART terms, const int64_t *FL_APART labels, int64_t n, double c,
                                      double *FL_APART p) {
    int64_t j, tiny = 0;
    for (j = 0; j < n; j++) {
        double v = terms[labels[j]] * c;
        p[j] = v;
        tiny += v < FL_LATTICE_TINY;
    }
    return tiny;
}

/* A frame's emissions p 2^pe of the labels, blank 2^blank_e of the blank, and the moves: stay and skip are 0, or FL_LATTICE_NOTHING
 * where the move from a label to itself, or from the label before, is not allowed. 2^unit is that of masses. */
typedef struct {
    const double *p, *pe, *skip;
    double blank, blank_e, stay, unit;
} fl_step;

/* One frame on: to = alpha of this frame, from that of the last one. Labels lie one place up: L[u] at u + 1. */
FL_NO_INLINE static void fl_lattice_forward(int64_t W, const double *FL_APART from, const fl_step *step,
                                            double *FL_APART to) {
    const double *p = step->p, *pe = step->pe, *skip = step->skip;
    const double blank = step->blank, blank_e = step->blank_e, stay = step->stay;
    const int64_t part = FL_LATTICE_PART(W);
    const double *Bm = from, *Be = from + part, *Lm = from + 2 * part, *Le = from + 3 * part;
    double *Bm_to = to, *Be_to = to + part, *Lm_to = to + 2 * part, *Le_to = to + 3 * part;
    int64_t u;
    Lm_to[0] = 1.0;
    Le_to[0] = FL_LATTICE_NOTHING;
    for (u = 0; u < W; u++) {
        double top, v;
        v = fl_lattice_sum2(Bm[u], Be[u], Lm[u], Le[u], &top);
        fl_normal(v * blank, top + blank_e, &Bm_to[u], &Be_to[u]);
        v = fl_lattice_sum3(Bm[u], Be[u], Lm[u + 1], Le[u + 1] + stay, Lm[u], Le[u] + skip[u], &top);
        fl_normal(v * p[u], top + pe[u], &Lm_to[u + 1], &Le_to[u + 1]);
    }
}

/* One frame back. from: beta times emission of the next frame; to: of this one. mass = alpha beta in units of 2^unit, of
 * blanks and of labels. Here L[u] lies at u. */
FL_NO_INLINE static void fl_lattice_backward(int64_t W, const double *FL_APART from, const double *FL_APART alpha,
                                             const fl_step *step, double *FL_APART to, double *FL_APART mass,
                                             double *FL_APART label_mass) {
    const double *p = step->p, *pe = step->pe, *skip = step->skip;
    const double blank = step->blank, blank_e = step->blank_e, stay = step->stay, unit = step->unit;
    const int64_t part = FL_LATTICE_PART(W);
    const double *Bm = from, *Be = from + part, *Lm = from + 2 * part, *Le = from + 3 * part;
    const double *Am = alpha, *Ae = alpha + part, *Cm = alpha + 2 * part + 1, *Ce = alpha + 3 * part + 1;
    double *Bm_to = to, *Be_to = to + part, *Lm_to = to + 2 * part, *Le_to = to + 3 * part;
    int64_t u;
    for (u = 0; u < W; u++) {
        double top, v;
        v = fl_lattice_sum2(Bm[u], Be[u], Lm[u], Le[u], &top);
        mass[u] = Am[u] * v * fl_two_to((Ae[u] - unit) + top);
        fl_normal(v * blank, top + blank_e, &Bm_to[u], &Be_to[u]);
        v = fl_lattice_sum3(Bm[u + 1], Be[u + 1], Lm[u], Le[u] + stay, Lm[u + 1], Le[u + 1] + skip[u + 1], &top);
        label_mass[u] = Cm[u] * v * fl_two_to((Ce[u] - unit) + top);
        fl_normal(v * p[u], top + pe[u], &Lm_to[u], &Le_to[u]);
    }
}

/* ---- frames: sums and maxima of n elements, n a multiple of 32, in one fixed order; NaN is left aside by a maximum ---- */
#define FL_LATTICE_LANES 32

static double fl_largest(const double *x, int64_t n) {
    double lane[FL_LATTICE_LANES];
    int64_t k;
    int j;
    for (j = 0; j < FL_LATTICE_LANES; j++) lane[j] = x[j];
    for (k = FL_LATTICE_LANES; k < n; k += FL_LATTICE_LANES)
        for (j = 0; j < FL_LATTICE_LANES; j++) lane[j] = fl_larger(x[k + j], lane[j]);
    fl_halve_max(lane, 16);
    fl_halve_max(lane, 8);
    fl_halve_max(lane, 4);
    fl_halve_max(lane, 2);
    return fl_larger(lane[0], lane[1]);
}

static double fl_lattice_sum(const double *x, int64_t n) {
    double lane[FL_LATTICE_LANES], total = 0;
    int64_t k, stop;
    int j;
    for (k = 0; k < n;) {                                 /* longer chains would drift */
        stop = n - k < 4096 ? n : k + 4096;
        for (j = 0; j < FL_LATTICE_LANES; j++) lane[j] = x[k + j];
        for (k += FL_LATTICE_LANES; k < stop; k += FL_LATTICE_LANES)
            for (j = 0; j < FL_LATTICE_LANES; j++) lane[j] += x[k + j];
        fl_halve_sum(lane, 16);
        fl_halve_sum(lane, 8);
        fl_halve_sum(lane, 4);
        fl_halve_sum(lane, 2);
        total += lane[0] + lane[1];
    }
    return total;
}

/* The power of two that brings the largest of n elements, a multiple of 8 and none negative, into [1, 2); 1 where there
 * is none such */
static double fl_lattice_unit(const double *x, int64_t n) {
    double lane[8], top, m, e;
    int64_t k;
    int j;
    for (j = 0; j < 8; j++) lane[j] = x[j];
    for (k = 8; k < n; k += 8)
        FL_KEEP_LOOP for (j = 0; j < 8; j++) lane[j] = fl_larger(x[k + j], lane[j]);
    fl_halve_max(lane, 4);
    fl_halve_max(lane, 2);
    top = fl_larger(lane[0], lane[1]);
    if (!(top >= FL_LATTICE_TINY && top <= 1.7976931348623157e308)) return 1.0;
    fl_normal(top, 0.0, &m, &e);
    return fl_two_to(-e);
}

/* ---- the gradient at the labels -------------------------------------------------------------------------------- */
/* share[slot[u]] += mass[u] */
static void fl_shares(const double *FL_APART mass, const int64_t *FL_APART slot, int64_t n, double *FL_APART share) {
    int64_t u;
    for (u = 0; u < n; u++) share[slot[u]] += mass[u];
}

/* share[j] = (p of the label that stands first - c share[j]) scale; all pe are 0 where it is NULL */
static void fl_slopes(const double *FL_APART p, const double *FL_APART pe, const int64_t *FL_APART first, int64_t n,
                      double c, double scale, double *FL_APART share) {
    int64_t j;
    if (!pe)
        for (j = 0; j < n; j++) share[j] = (p[first[j]] - share[j] * c) * scale;
    else
        for (j = 0; j < n; j++) share[j] = (p[first[j]] * fl_two_to(pe[first[j]]) - share[j] * c) * scale;
}

/* the element at row + classes[j] step = v[j] */
static void fl_scatterf(char *row, int64_t step, const int64_t *classes, const double *v, int64_t n) {
    int64_t j;
    for (j = 0; j < n; j++) {
        float f = (float)v[j];
        memcpy(row + classes[j] * step, &f, 4);
    }
}

static void fl_scatter(char *row, int64_t step, const int64_t *classes, const double *v, int64_t n) {
    int64_t j;
    for (j = 0; j < n; j++) memcpy(row + classes[j] * step, &v[j], 8);
}

/* ---- confident entries ------------------------------------------------------------------------------------------
 * Where the labelling has most of the probability, the loss is log(1 + Q/P), Q the mass of everything else: what leaves
 * the lattice, frame by frame, and what does not end where it should. Sums of positive terms, so that the loss and its
 * gradient keep their digits however small they are. Here plain probabilities do. Rows are blanks and labels, each
 * FL_LATTICE_PART(W); q is the emission of the labels, 0 past them; stay and hop, 0 or 1, are what stay and skip are above. */
typedef struct {
    const double *q, *hop;
    double blank, stay;
} fl_plain_step;

typedef struct {            /* a frame's three likeliest classes, the sum of all others, and the mass lost before it */
    int64_t k[3];
    double p[3], others, lost;
} fl_rest;

/* off = probability that the frame's class is no move from the state: without what a state allows, at most the blank and
 * two labels. One of the three likeliest is left, or all it allows is among them: no sum loses its digits. */
FL_NO_INLINE static void fl_astray(int64_t W, const int64_t *FL_APART label, const fl_plain_step *step,
                                   const fl_rest *rest, int64_t blank, double *FL_APART off) {
    const double *q = step->q, *hop = step->hop, stay = step->stay;
    double p[3], others = rest->others - step->blank, *off_labels = off + FL_LATTICE_PART(W);
    int64_t k0 = rest->k[0], k1 = rest->k[1], k2 = rest->k[2], u;
    for (u = 0; u < 3; u++) {
        p[u] = rest->k[u] == blank ? 0.0 : rest->p[u];
        if (rest->k[u] == blank) others = rest->others;
    }
    for (u = 0; u < W; u++) {
        double a0 = label[u] == k0 ? 1.0 : 0.0, a1 = label[u] == k1 ? 1.0 : 0.0, a2 = label[u] == k2 ? 1.0 : 0.0;
        double b0 = label[u + 1] == k0 ? 1.0 : 0.0, b1 = label[u + 1] == k1 ? 1.0 : 0.0, b2 = label[u + 1] == k2 ? 1.0 : 0.0;
        double a = (1.0 - (a0 + a1 + a2)) * q[u], b = (1.0 - (b0 + b1 + b2)) * q[u + 1], h = hop[u + 1];
        off[u] = (p[0] * (1.0 - a0) + p[1] * (1.0 - a1) + p[2] * (1.0 - a2)) + fl_larger(others - a, 0.0);
        off_labels[u] = (p[0] * ((1.0 - stay * a0) * (1.0 - h * b0)) + p[1] * ((1.0 - stay * a1) * (1.0 - h * b1)) +
                         p[2] * ((1.0 - stay * a2) * (1.0 - h * b2))) + fl_larger((others - stay * a) - h * b, 0.0);
    }
}

/* arrived = mass that may emit label u; to = alpha of this frame. Labels one place up. */
FL_NO_INLINE static void fl_plain_forward(int64_t W, const double *FL_APART from, const fl_plain_step *step,
                                          double *FL_APART arrived, double *FL_APART to) {
    const double *q = step->q, *hop = step->hop, blank = step->blank, stay = step->stay;
    const double *B = from, *L = from + FL_LATTICE_PART(W);
    double *L_to = to + FL_LATTICE_PART(W);
    int64_t u;
    L_to[0] = 0.0;
    for (u = 0; u < W; u++) {
        double v = (B[u] + stay * L[u + 1]) + hop[u] * L[u];
        arrived[u] = v;
        to[u] = (B[u] + L[u]) * blank;
        L_to[u + 1] = v * q[u];
    }
}

/* The same with all masses times `scale`, a power of two; how many of the new ones are not small */
#define FL_LATTICE_SMALL 1.1830521861667747e-271                  /* 2^-900 */
FL_NO_INLINE static int64_t fl_scaled_forward(int64_t W, const double *FL_APART from, const fl_plain_step *step,
                                              double scale, double *FL_APART to) {
    const double *q = step->q, *hop = step->hop, blank = step->blank * scale, stay = step->stay;
    const double *B = from, *L = from + FL_LATTICE_PART(W);
    double *L_to = to + FL_LATTICE_PART(W);
    int64_t u, hits = 0;
    L_to[0] = 0.0;
    for (u = 0; u < W; u++) {
        double b = (B[u] + L[u]) * blank, l = ((B[u] + stay * L[u + 1]) + hop[u] * L[u]) * (q[u] * scale);
        to[u] = b;
        L_to[u + 1] = l;
        hits += (b >= FL_LATTICE_SMALL) + (l >= FL_LATTICE_SMALL);
    }
    return hits;
}

/* to = what `from` is one frame later, on the average over the moves; labels in place */
FL_NO_INLINE static void fl_plain_backward(int64_t W, const double *FL_APART from, const fl_plain_step *step,
                                           double *FL_APART to) {
    const double *q = step->q, *hop = step->hop, blank = step->blank, stay = step->stay;
    const double *B = from, *L = from + FL_LATTICE_PART(W);
    double *L_to = to + FL_LATTICE_PART(W);
    int64_t u;
    for (u = 0; u < W; u++) {
        to[u] = B[u] * blank + L[u] * q[u];
        L_to[u] = (stay * L[u] * q[u] + B[u + 1] * blank) + hop[u + 1] * L[u + 1] * q[u + 1];
    }
}

/* mass = alpha (labels one place up) times v (in place), of blanks and of labels */
static void fl_products(int64_t W, const double *FL_APART alpha, const double *FL_APART v, double *FL_APART mass,
                        double *FL_APART label_mass) {
    const int64_t part = FL_LATTICE_PART(W);
    int64_t u;
    for (u = 0; u < W; u++) {
        mass[u] = alpha[u] * v[u];
        label_mass[u] = alpha[part + u + 1] * v[part + u];
    }
}
#endif
