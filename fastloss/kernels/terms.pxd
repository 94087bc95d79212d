"""Row-wise building blocks of softmax: maxima, and sums of exp against a power of two, one element left out.

The element left out (the label, or the maximum) is what makes the results exact: with E its own exp and T the sum of
all others, log-sum-exp minus its logit is log1p(T/E), and 1 - p = T/(T + E), at any margin.

Sums have one fixed shape on every instruction set, for any number of threads: L lanes side by side; in a lane, pairs
of terms, in float chains of PAIRS pairs, then float64; blocks of BLOCK terms; in float64 two pairs are added with
compensation. In a longer chain equal terms (a constant background) would drift by many units in the last place.
"""
from libc.math cimport INFINITY, fabs
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

from fastloss.kernels.arrays cimport load_half
from fastloss.kernels.due cimport Due, put_due
from fastloss.kernels.exps cimport exps, steps_magic_of
from fastloss.kernels.parallel cimport stopped
from fastloss.kernels.vmath cimport (
    FL_LN2, FL_PREFETCH_FAR, bias_of, fl_exp_label, fl_float_of_bfloat, fl_float_of_half, fl_log1p, fl_log1p_short,
    fl_quotient_rest, lo_of, power_of, real, shift_of,
)

cdef extern from *:
    """
    #if defined(__AVX512F__)
    #define FL_MANY_REGISTERS 1
    #else
    #define FL_MANY_REGISTERS 0
    #endif
    """
    enum:
        FL_MANY_REGISTERS

cdef extern from "find.h" nogil:
    Py_ssize_t fl_findf(const float*, Py_ssize_t, float) noexcept
    Py_ssize_t fl_find(const double*, Py_ssize_t, double) noexcept

cdef extern from "block.h" nogil:
    enum:
        FL_HAS_BLOCK
    ctypedef struct fl_late:
        float* target
        const float* terms
        const float* labels
        float slope
        float scale
        float entry
        Py_ssize_t at
        Py_ssize_t left
        bint past
    double fl_exp_blockf(const float*, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float*, const float*, const float*,
                         float, float, float*, float*, const char*, Py_ssize_t, fl_late*) noexcept
    double fl_exp_block_halves(const uint16_t*, Py_ssize_t, Py_ssize_t, Py_ssize_t, const uint16_t*, const uint16_t*,
                               const uint16_t*, float, float, float*, float*, const char*, Py_ssize_t,
                               fl_late*) noexcept
    double fl_exp_block_bfloats(const uint16_t*, Py_ssize_t, Py_ssize_t, Py_ssize_t, const uint16_t*, const uint16_t*,
                                const uint16_t*, float, float, float*, float*, const char*, Py_ssize_t,
                                fl_late*) noexcept

cdef enum:
    L = 32              # lanes
    BLOCK = 2048        # terms whose exp stays in the first-level cache between its two uses
    AHEAD = 16384       # bytes after which logits are asked for into the second-level cache
    PAIRS = 4
    ROWS = 16           # rows whose losses are finished together
    HEADROOMF = 29      # powers of two by which a logit may exceed the reference before its row is done again
    HEADROOM = 400


# ------------------------------------------------------------------ sums

cdef inline double sum_rest(double a, double b, double z) noexcept nogil:
    """What z = a + b lost."""
    return (a - (z - (z - a))) + (b - (z - a))


cdef inline double settled(double total, double carry) noexcept nogil:
    """A compensated sum's result: of an infinite one the carry is NaN and means nothing."""
    return total + carry if fabs(total) < <double>INFINITY else total


cdef inline void fold(double* a, double* carry, int n, bint compensate) noexcept nogil:
    cdef double z
    cdef Py_ssize_t j
    for j in range(n):
        z = a[j] + a[j + n]
        if compensate:
            carry[j] = carry[j] + carry[j + n] + sum_rest(a[j], a[j + n], z)
        a[j] = z


cdef inline double lanes_sum(double* a, double* carry, bint compensate) noexcept nogil:
    fold(a, carry, 16, compensate)
    fold(a, carry, 8, compensate)
    fold(a, carry, 4, compensate)
    fold(a, carry, 2, compensate)
    fold(a, carry, 1, compensate)
    return settled(a[0], carry[0]) if compensate else a[0]


cdef inline void add_block(double* total, double* carry, double term) noexcept nogil:
    cdef double z = total[0] + term
    carry[0] += sum_rest(total[0], term, z)
    total[0] = z


cdef inline void add_part(const real* part, double* total, double* carry) noexcept nogil:
    cdef double z
    cdef Py_ssize_t j
    for j in range(L):
        z = total[j] + <double>part[j]
        if real is double:
            carry[j] = carry[j] + sum_rest(total[j], part[j], z)
        total[j] = z


cdef inline double sum_groups(const real* e, Py_ssize_t n_groups) noexcept nogil:
    """Sum of n_groups groups of L terms; e has room for one group more, which may be overwritten with zeros."""
    cdef real part[L]
    cdef double total[L]
    cdef double carry[L]
    cdef Py_ssize_t g, p = 0, p_end
    cdef Py_ssize_t j
    for j in range(L):
        total[j] = 0
        carry[j] = 0
    if n_groups % 2:
        for j in range(L):
            (<real*>e)[n_groups*L + j] = 0
    while p < n_groups:
        p_end = p + (2*PAIRS if real is float else 4)
        if p_end > n_groups:
            p_end = n_groups
        for j in range(L):
            part[j] = 0
        for g in range((p_end - p + 1)//2):
            for j in range(L):
                part[j] = part[j] + (e[(p + 2*g)*L + j] + e[(p + 2*g + 1)*L + j])
        p = p_end
        add_part(part, total, carry)
    return lanes_sum(total, carry, real is double)


# ------------------------------------------------------------------ maxima

cdef inline real lanes_max(real* a) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(L//2):
        a[j] = a[j] if a[j] > a[j + L//2] else a[j + L//2]
    for j in range(L//4):
        a[j] = a[j] if a[j] > a[j + L//4] else a[j + L//4]
    for j in range(L//8):
        a[j] = a[j] if a[j] > a[j + L//8] else a[j + L//8]
    for j in range(L//16):
        a[j] = a[j] if a[j] > a[j + L//16] else a[j + L//16]
    return a[0] if a[0] > a[1] else a[1]


cdef inline real row_max(const real* x, Py_ssize_t n) noexcept nogil:
    """The largest element, NaN left aside; -inf where there is none."""
    cdef real top[L]
    cdef real more[L]           # a second set, for each waits for its last comparison
    cdef Py_ssize_t k = 0
    cdef Py_ssize_t j
    cdef real v
    for j in range(L):
        top[j] = more[j] = -INFINITY
    if n < L:
        for k in range(n):
            top[0] = x[k] if x[k] > top[0] else top[0]
        return top[0]
    while k + 2*L <= n:
        for j in range(L):
            v = x[k + j]
            top[j] = v if v > top[j] else top[j]
        for j in range(L):
            v = x[k + L + j]
            more[j] = v if v > more[j] else more[j]
        k += 2*L
    if k + L <= n:
        for j in range(L):
            v = x[k + j]
            top[j] = v if v > top[j] else top[j]
    for j in range(L):          # the last group overlaps those before
        v = x[n - L + j]
        more[j] = v if v > more[j] else more[j]
    for j in range(L):
        top[j] = top[j] if top[j] > more[j] else more[j]
    return lanes_max(top)


cdef inline Py_ssize_t find(const real* x, Py_ssize_t n, real v) noexcept nogil:
    """Where v first stands; n - 1 if nowhere."""
    if real is float:
        return fl_findf(x, n, v)
    else:
        return fl_find(x, n, v)


# ------------------------------------------------------------------ exp of one block

cdef struct Groups:     # which groups of the row are read from a padded copy: the one left out, and the tail
    Py_ssize_t out
    Py_ssize_t tail


cdef inline void exp_lanes(const real* x, real shift, real lo, real magic, real* e, real* top, const real* other,
                           real* part) noexcept nogil:
    """e = exp(x - shift) 2^bias, of L lanes; unless NULL, top takes their largest logits, and part += other + e."""
    cdef real d[L]
    cdef real v
    cdef Py_ssize_t j
    for j in range(L):
        v = x[j]
        if top != NULL:
            top[j] = v if v > top[j] else top[j]
        v = v - shift
        d[j] = lo if lo > v else v
    exps(d, 1, magic, e, L, True)
    if other != NULL:
        for j in range(L):
            part[j] = part[j] + (other[j] + e[j])


cdef inline void exp_pair(const real* x, Py_ssize_t g, Py_ssize_t n_groups, Groups at, const real* out_group,
                          const real* tail_group, const real* empty_group, real shift, real lo, real magic,
                          real* w, real* u, real* top, real* part, const char* ahead) noexcept nogil:
    """Terms of groups g and g + 1, their largest logits and their sum."""
    cdef Py_ssize_t k
    cdef const real* p = x + g*L
    cdef const real* q = p + L
    p = out_group if g == at.out else p
    p = tail_group if g == at.tail else p
    q = out_group if g + 1 == at.out else q
    q = tail_group if g + 1 == at.tail else q
    q = empty_group if g + 1 == n_groups else q
    for k in range(0, 2*L*<Py_ssize_t>sizeof(real), 64):
        FL_PREFETCH_FAR(ahead + k)
    exp_lanes(p, shift, lo, magic, w, top, NULL, NULL)
    exp_lanes(q, shift, lo, magic, u, top, w, part)


cdef inline double exp_block(const real* x, Py_ssize_t n_groups, Groups at, const real* out_group,
                             const real* tail_group, const real* empty_group, real shift, real lo, real magic,
                             real* e, real* top_out, Due* due) noexcept nogil:
    """Sum of exp over a block, and its largest logit; the terms are kept in e, unless it is NULL, and then as much is
    written of the row that is due."""
    cdef real top[L]
    cdef real part[L]
    cdef real w[L]
    cdef real u[L]
    cdef double total[L]
    cdef double carry[L]
    cdef Py_ssize_t g = 0, g_end
    cdef Py_ssize_t j
    cdef const char* ahead = due.ahead if due.ahead != NULL else <const char*>x + AHEAD
    cdef Py_ssize_t pace = due.pace if due.ahead != NULL else L*<Py_ssize_t>sizeof(real)
    cdef Due now = due[0]       # a copy, which no store can change
    for j in range(L):
        top[j] = -INFINITY
        total[j] = 0
        carry[j] = 0
    while g < n_groups:
        g_end = g + (2*PAIRS if real is float else 4)
        if g_end > n_groups:
            g_end = n_groups
        for j in range(L):
            part[j] = 0
        while g < g_end:
            exp_pair(x, g, n_groups, at, out_group, tail_group, empty_group, shift, lo, magic, w, u, top, part,
                     ahead)
            ahead += 2*pace
            if e != NULL:
                put_due(&now, False, shift)             # first: its terms may lie where these go
                for j in range(L):
                    e[g*L + j] = w[j]
                    e[(g + 1)*L + j] = u[j]
            elif real is double and g + 2 < g_end:      # another beside it; of float, or with stores, too much
                g = g + 2
                exp_pair(x, g, n_groups, at, out_group, tail_group, empty_group, shift, lo, magic, w, u, top, part,
                         ahead)
                ahead += 2*pace
            g = g + 2
        add_part(part, total, carry)
    due.done = now.done
    top_out[0] = lanes_max(top)
    return lanes_sum(total, carry, real is double)


cdef inline double exp_block_kept(const real* x, Py_ssize_t n_groups, Groups at, const real* out_group,
                                  const real* tail_group, real shift, real lo, real magic,
                                  real* e, real* top_out, Due* due) noexcept nogil:
    """The same, keeping the terms; in two loops, for one is too much for 16 registers. The same sums.

    Meanwhile as much is written of the row that is due.
    """
    cdef real top[L]
    cdef Py_ssize_t g, k
    cdef Py_ssize_t j
    cdef const real* p
    cdef const char* ahead = due.ahead if due.ahead != NULL else <const char*>x + AHEAD
    cdef Py_ssize_t pace = due.pace if due.ahead != NULL else L*<Py_ssize_t>sizeof(real)
    cdef Due now = due[0]
    for j in range(L):
        top[j] = -INFINITY
    for g in range(n_groups):
        p = x + g*L
        p = out_group if g == at.out else p
        p = tail_group if g == at.tail else p
        for k in range(0, L*<Py_ssize_t>sizeof(real), 64):
            FL_PREFETCH_FAR(ahead + k)
        ahead += pace
        if g % 2 == 0:
            put_due(&now, False, shift)
        exp_lanes(p, shift, lo, magic, e + g*L, top, NULL, NULL)
    due.done = now.done
    top_out[0] = lanes_max(top)
    return sum_groups(e, n_groups)


cdef inline fl_late late_of(const Due* due) noexcept nogil:
    """Of float rows what is due, whole pairs of groups, for block.h."""
    cdef fl_late late
    cdef Py_ssize_t done = due.done if due.target != NULL else 0
    late.target = <float*>due.target + done
    late.terms = <const float*>due.terms + done
    late.labels = <const float*>due.labels + done if due.labels != NULL else NULL
    late.slope = <float>due.slope
    late.scale = <float>due.scale
    late.entry = <float>due.entry
    late.at = due.at - done
    late.left = (due.n - done)//(2*L) if due.target != NULL else 0
    late.past = due.past
    return late


cdef inline double block_sum(const real* x, Py_ssize_t n_groups, Groups at, const real* out_group,
                             const real* tail_group, const real* empty_group, real shift, real lo, real magic, real* e,
                             real* top, Due* due) noexcept nogil:
    """exp_block, in the way that is the fastest here."""
    cdef fl_late late
    cdef double t
    if real is float and FL_HAS_BLOCK and shift == 0:
        late = late_of(due)
        t = fl_exp_blockf(<const float*>x, n_groups, at.out, at.tail, <const float*>out_group, <const float*>tail_group,
                          <const float*>empty_group, lo, magic, <float*>e, <float*>top,
                          due.ahead if due.ahead != NULL else <const char*>x + AHEAD,
                          due.pace if due.ahead != NULL else L*<Py_ssize_t>sizeof(float), &late)
        if e != NULL and due.target != NULL:
            due.done = late.terms - <const float*>due.terms
        return t
    elif e == NULL:
        return exp_block(x, n_groups, at, out_group, tail_group, empty_group, shift, lo, magic, NULL, top, due)
    elif FL_MANY_REGISTERS:
        return exp_block(x, n_groups, at, out_group, tail_group, empty_group, shift, lo, magic, e, top, due)
    else:
        return exp_block_kept(x, n_groups, at, out_group, tail_group, shift, lo, magic, e, top, due)


# ------------------------------------------------------------------ one row

cdef struct Terms:      # of a row, in the unit 2^(power - bias): see vmath.h
    double others       # sum of exp over all elements but one
    double gap          # that one's logit minus shift
    double power
    double shift


cdef inline void put_group(real* group, const real* x, Py_ssize_t n, Py_ssize_t out) noexcept nogil:
    """group = n elements of x, -inf in place of x[out] and where there are no more.

    Selected lane by lane: a vector read after one of its elements was stored waits for the store.
    """
    cdef int j, stop = <int>n, skip = <int>out
    for j in range(L):
        group[j] = x[j] if j < stop else <real>(-INFINITY)
    for j in range(L):
        group[j] = group[j] if j != skip else <real>(-INFINITY)


cdef inline bint exp_row(const real* x, Py_ssize_t c, Py_ssize_t out, real m, real* e, Terms* terms,
                         Due* due) noexcept nogil:
    """Sum of exp over all elements but `out`, with e (room for c + 2 L, or NULL) the terms, e[out] = 0.

    Meanwhile writes what is due, if anything and if terms are kept. False when a logit lies too far above m.
    """
    cdef real out_group[L]
    cdef real tail_group[L]
    cdef real empty_group[L]
    cdef real shift = shift_of(m), power = power_of(m, shift), lo = lo_of(power), magic = steps_magic_of(power)
    cdef real top, limit
    cdef Py_ssize_t b = 0, n, n_groups, done = 0
    cdef Groups row, at
    cdef Py_ssize_t j
    cdef double total = 0, carry = 0, t
    limit = (power + (HEADROOMF if real is float else HEADROOM))*<real>FL_LN2
    row.out = out//L
    row.tail = c//L if c % L else -1
    for j in range(L):
        empty_group[j] = -INFINITY
    if row.tail >= 0:
        put_group(tail_group, x + row.tail*L, c - row.tail*L, out - row.tail*L)
    if row.out == row.tail:
        row.out = -1
    else:
        put_group(out_group, x + row.out*L, L, out - row.out*L)
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        n_groups = (n + L - 1)//L
        at.out = row.out - b//L
        at.tail = row.tail - b//L
        t = block_sum(x + b, n_groups, at, out_group, tail_group, empty_group, shift, lo, magic,
                      e + b if e != NULL else NULL, &top, due)
        if top - shift > limit:
            return False
        if b == 0:
            total = t
        else:
            add_block(&total, &carry, t)
        b += n
        if b < c and stopped(&done, n):
            break
        due.ahead = due.ahead + n//L*due.pace if due.ahead != NULL else NULL
    terms.others = settled(total, carry)
    terms.gap = <double>x[out] - <double>shift
    terms.power = power
    terms.shift = shift
    return True


cdef inline float of_half(uint16_t bits, bint brain) noexcept nogil:
    return fl_float_of_bfloat(bits) if brain else fl_float_of_half(bits)


cdef inline bint exp_row_of_halves(const uint16_t* x, bint brain, Py_ssize_t c, Py_ssize_t out, float m, float* e,
                                   Terms* terms, Due* due) noexcept nogil:
    """exp_row of half-precision logits as they lie, to the same bits; False, too, where there is no way to do that."""
    cdef uint16_t groups[3*L]               # without the one left out; the tail; an empty one
    cdef uint16_t none = 0xFF80 if brain else 0xFC00            # -inf
    cdef float shift = shift_of(m), power = power_of(m, shift), lo = lo_of(power), magic = steps_magic_of(power)
    cdef float top, limit = (power + HEADROOMF)*<float>FL_LN2
    cdef Py_ssize_t b = 0, n, n_groups, row_out = out//L, row_tail = c//L if c % L else -1, k
    cdef Py_ssize_t done = 0
    cdef int j, skip
    cdef double total = 0, carry = 0, t
    cdef fl_late late
    if not FL_HAS_BLOCK or shift != 0 or not m > -INFINITY:
        return False
    for k in range(3*L):
        groups[k] = none
    if row_tail >= 0:
        memcpy(&groups[L], x + row_tail*L, (c - row_tail*L)*2)
    if row_out == row_tail:
        memcpy(&groups[0], &groups[L], 2*L)
    else:
        memcpy(&groups[0], x + row_out*L, 2*L)
    skip = <int>(out - row_out*L)
    for j in range(L):                      # lane by lane: see put_group
        groups[j] = groups[j] if j != skip else none
    if row_out == row_tail:
        row_tail = -1
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        n_groups = (n + L - 1)//L
        late = late_of(due)
        if brain:
            t = fl_exp_block_bfloats(x + b, n_groups, row_out - b//L, row_tail - b//L, groups, groups + L, groups + 2*L,
                                     lo, magic, e + b if e != NULL else NULL, &top, <const char*>(x + b) + AHEAD, 2*L,
                                     &late)
        else:
            t = fl_exp_block_halves(x + b, n_groups, row_out - b//L, row_tail - b//L, groups, groups + L, groups + 2*L,
                                    lo, magic, e + b if e != NULL else NULL, &top, <const char*>(x + b) + AHEAD, 2*L,
                                    &late)
        if e != NULL and due.target != NULL:
            due.done = late.terms - <const float*>due.terms
        if top > limit:
            return False
        if b == 0:
            total = t
        else:
            add_block(&total, &carry, t)
        b += n
        if b < c and stopped(&done, n):
            break
    terms.others = settled(total, carry)
    terms.gap = of_half(x[out], brain)
    terms.power = power
    terms.shift = 0
    return True


cdef inline float reference_of_halves(const uint16_t* x, bint brain, Py_ssize_t c, Py_ssize_t out) noexcept nogil:
    """reference_of half-precision logits."""
    cdef float some[L]
    cdef float m, v = of_half(x[out], brain)
    cdef Py_ssize_t n = c if c < L else L
    load_half(some, <const char*>x, 2, n, brain)
    m = row_max(some, n)
    return v if v > m else m


cdef inline real reference_of(const real* x, Py_ssize_t c, Py_ssize_t out) noexcept nogil:
    """The largest of the first L logits and x[out]: rarely far below the row's maximum."""
    cdef real m = row_max(x, c if c < L else L), v = x[out]
    return v if v > m else m


cdef inline void row_terms(const real* x, Py_ssize_t c, Py_ssize_t out, real m, real* e, Terms* terms,
                           Due* due) noexcept nogil:
    """exp_row in one pass, m being reference_of the row."""
    if m > -INFINITY and exp_row(x, c, out, m, e, terms, due):
        return
    row_terms_from(x, c, out, row_max(x, c), e, terms, due)


cdef inline void row_terms_from(const real* x, Py_ssize_t c, Py_ssize_t out, real m, real* e,
                                Terms* terms, Due* due) noexcept nogil:
    """exp_row with the row's maximum m known; NaN in all where it is infinite."""
    if not exp_row(x, c, out, m, e, terms, due):
        terms.others = <double>INFINITY - <double>INFINITY


# ------------------------------------------------------------------ many rows

cdef inline double label_of_terms(const Terms* terms, real dummy) noexcept nogil:
    """exp of the element left out."""
    return fl_exp_label(terms.gap, terms.power, bias_of(dummy))


cdef inline double total_of(const Terms* terms, real dummy) noexcept nogil:
    """Sum of exp over all elements."""
    return terms.others + label_of_terms(terms, dummy)


cdef inline void log_ratios(Py_ssize_t n, const Terms* terms, double* out, real dummy) noexcept nogil:
    """out = log(1 + T/E), log-sum-exp minus the logit left out; where E underflows log(T) - log(E)."""
    cdef double others[ROWS]
    cdef double gap[ROWS]
    cdef double power[ROWS]
    cdef double e, u, far, rest, limit = 60 if real is float else 400      # T may be e^277, HEADROOM, times the classes
    cdef int bias = bias_of(dummy)
    cdef Py_ssize_t r
    for r in range(n):
        others[r] = terms[r].others
        gap[r] = terms[r].gap
        power[r] = terms[r].power
    for r in range(n):
        e = fl_exp_label(gap[r], power[r], bias)
        far = power[r]*FL_LN2 - gap[r]
        u = others[r]/e
        rest = 0.0
        if real is double:
            rest = 0.0 if far > limit else fl_quotient_rest(others[r], e, u)/(others[r] + e)
        u = others[r] if far > limit else u
        u = fl_log1p_short(u) if real is float else fl_log1p(u) + rest
        out[r] = u + ((power[r] - bias)*FL_LN2 - gap[r] if far > limit else 0.0)
