"""Sums of exp along a row, relative to a power of two, with one element left out.

The element left out (the label, or the maximum) is what makes the results exact: with E its own exp and T the sum of
all others, log-sum-exp minus its logit is log1p(T/E), and 1 - p = T/(T + E), at any margin.

Sums have the shape that lane_sums.pxd fixes.
"""
from libc.math cimport INFINITY, fabs
from libc.stdint cimport uint16_t
from libc.string cimport memcpy

from fastloss.kernels.arrays.arrays cimport load_half
from fastloss.kernels.row_sums.deferred cimport Deferred, put_next, what_is
from fastloss.kernels.math.exp_table cimport exps, steps_magic_of
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.row_sums.groups cimport (
    AHEAD, BLOCK, Part, Row, Source, fl_apart, next_block, open_source, skip_groups,
)
from fastloss.kernels.row_sums.lane_sums cimport (
    PAIRS, L, add_block, add_part, lanes_max, lanes_sum, row_max, settled, sum_groups,
)
from fastloss.kernels.math.vmath cimport (
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

cdef extern from "row_sums/row_sums_avx512.h" nogil:
    enum:
        FL_HAS_BLOCK
    ctypedef struct fl_unit "fl_row_unit":
        float m
        float lo
        float magic
    ctypedef struct fl_pending:
        float* target
        const float* terms
        const float* labels
        float slope
        float scale
        float entry
        Py_ssize_t at
        Py_ssize_t left
        bint past
    double fl_exp_blockf(const Source*, const fl_unit*, float*, float*, fl_pending*) noexcept
    double fl_exp_block_halves(const Source*, const fl_unit*, float*, float*, fl_pending*) noexcept
    double fl_exp_block_bfloats(const Source*, const fl_unit*, float*, float*, fl_pending*) noexcept

cdef enum:
    ROWS = 16           # rows whose losses are finished together
    HEADROOMF = 29      # powers of two by which a logit may exceed the reference before its row is done again
    HEADROOM = 400


# ------------------------------------------------------------------ what is known of a row

cdef struct Terms:      # of a row, in the unit 2^(power - bias): see vmath.h
    double others       # sum of exp over all elements but one
    double gap          # that one's logit minus shift
    double power
    double shift


cdef struct Total:      # a compensated sum
    double sum
    double carry


cdef struct Reference:  # the power of two that exps are taken against, near m: exp(x - shift) 2^power
    double m
    double shift
    double power
    double lo
    double magic


cdef inline Reference reference_at(real m) noexcept nogil:
    cdef Reference at
    cdef real shift = shift_of(m), power = power_of(m, shift)
    at.m = m
    at.shift = shift
    at.power = power
    at.lo = lo_of(power)
    at.magic = steps_magic_of(power)
    return at


cdef inline fl_unit unit_of(const Reference* at) noexcept nogil:
    cdef fl_unit unit
    unit.m = <float>at.m
    unit.lo = <float>at.lo
    unit.magic = <float>at.magic
    return unit


cdef inline fl_pending pending_of(const Deferred* d) noexcept nogil:
    """For row_sums_avx512.h: a copy, so that what is deferred need not lie in memory."""
    cdef fl_pending p
    cdef Py_ssize_t done
    p.target = NULL
    p.left = 0
    if d == NULL or d.target == NULL:
        return p
    done = d.done
    p.target = <float*>d.target + done
    p.terms = <const float*>d.terms + done
    p.labels = <const float*>d.labels + done if d.labels != NULL else NULL
    p.slope = <float>d.slope
    p.scale = <float>d.scale
    p.entry = <float>d.entry
    p.at = d.at - done
    p.left = (d.n - done)//(2*L)
    p.past = d.past
    return p


cdef inline void note_done(Deferred* d, const fl_pending* p) noexcept nogil:
    if p.target != NULL:
        d.done = p.terms - <const float*>d.terms


# ------------------------------------------------------------------ exp of one block

cdef inline void exp_lanes(const real* x, real shift, real lo, real magic, real* e, real* top) noexcept nogil:
    """e = exp(x - shift) 2^bias, of L lanes; unless NULL, top takes their largest logits."""
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


cdef inline void exp_pair(Source* source, Py_ssize_t g, const Reference* at, real* w, real* u, real* top,
                          real* part) noexcept nogil:
    """Terms of groups g and g + 1, their largest logits and their sum."""
    cdef Py_ssize_t k
    cdef const real* p = <const real*>source.elements + g*L
    cdef const real* q = p + L
    p = <const real*>source.out_group if g == source.out else p
    p = <const real*>source.tail_group if g == source.tail else p
    q = <const real*>source.out_group if g + 1 == source.out else q
    q = <const real*>source.tail_group if g + 1 == source.tail else q
    q = <const real*>source.empty_group if g + 1 == source.n_groups else q
    for k in range(0, 2*L*<Py_ssize_t>sizeof(real), 64):
        FL_PREFETCH_FAR(source.ahead + k)
    source.ahead += 2*source.pace
    exp_lanes(p, <real>at.shift, <real>at.lo, <real>at.magic, w, top)
    exp_lanes(q, <real>at.shift, <real>at.lo, <real>at.magic, u, top)
    for k in range(L):
        part[k] = part[k] + (w[k] + u[k])


cdef inline double exp_block(const Source* source, const Reference* reference, real* e, real* top_out,
                             Deferred* deferred) noexcept nogil:
    """Sum of exp over a block, and its largest logit; the terms are kept in e, unless it is NULL, and then as much is
    written of the deferred gradient."""
    cdef real top[L]
    cdef real part[L]
    cdef real w[L]
    cdef real u[L]
    cdef double total[L]
    cdef double carry[L]
    cdef Py_ssize_t g = 0, g_end
    cdef Py_ssize_t j
    cdef Source here = source[0]
    cdef Reference at = reference[0]
    cdef Deferred now = what_is(deferred)
    for j in range(L):
        top[j] = -INFINITY
        total[j] = 0
        carry[j] = 0
    while g < here.n_groups:
        g_end = g + (2*PAIRS if real is float else 4)
        if g_end > here.n_groups:
            g_end = here.n_groups
        for j in range(L):
            part[j] = 0
        while g < g_end:
            exp_pair(&here, g, &at, w, u, top, part)
            if e != NULL:
                put_next(&now, False, part[0])          # first: its terms may lie where these go
                for j in range(L):
                    e[g*L + j] = w[j]
                    e[(g + 1)*L + j] = u[j]
            elif real is double and g + 2 < g_end:      # another beside it; of float, or with stores, too much
                g = g + 2
                exp_pair(&here, g, &at, w, u, top, part)
            g = g + 2
        add_part(part, total, carry)
    if e != NULL and deferred != NULL:
        deferred.done = now.done
    top_out[0] = lanes_max(top)
    return lanes_sum(total, carry, real is double)


cdef inline double exp_block_kept(const Source* source, const Reference* reference, real* e, real* top_out,
                                  Deferred* deferred) noexcept nogil:
    """The same, keeping the terms; in two loops, for one is too much for 16 registers. The same sums."""
    cdef real top[L]
    cdef Py_ssize_t g, k
    cdef Py_ssize_t j
    cdef const real* p
    cdef Source here = source[0]
    cdef real shift = <real>reference.shift, lo = <real>reference.lo, magic = <real>reference.magic
    cdef Deferred now = what_is(deferred)
    for j in range(L):
        top[j] = -INFINITY
    for g in range(here.n_groups):
        p = <const real*>here.elements + g*L
        p = <const real*>here.out_group if g == here.out else p
        p = <const real*>here.tail_group if g == here.tail else p
        for k in range(0, L*<Py_ssize_t>sizeof(real), 64):
            FL_PREFETCH_FAR(here.ahead + k)
        here.ahead += here.pace
        if g % 2 == 0:
            put_next(&now, False, shift)
        exp_lanes(p, shift, lo, magic, e + g*L, top)
    if deferred != NULL:
        deferred.done = now.done
    top_out[0] = lanes_max(top)
    return sum_groups(e, here.n_groups)


cdef inline double block_sum(const Source* source, const Reference* reference, real* e, real* top,
                             Deferred* deferred) noexcept nogil:
    """exp_block, in the way that is the fastest here."""
    cdef fl_pending pending
    cdef fl_unit unit
    cdef double t
    if real is float and FL_HAS_BLOCK and reference.shift == 0:
        unit = unit_of(reference)
        pending = pending_of(deferred if e != NULL else NULL)
        t = fl_exp_blockf(source, &unit, <float*>e, <float*>top, &pending)
        note_done(deferred, &pending)
        return t
    elif e == NULL:
        return exp_block(source, reference, <real*>NULL, top, deferred)
    elif FL_MANY_REGISTERS:
        return exp_block(source, reference, e, top, deferred)
    else:
        return exp_block_kept(source, reference, e, top, deferred)


# ------------------------------------------------------------------ one row

cdef inline void terms_at(Terms* terms, const Reference* at, double x_out) noexcept nogil:
    """What is known of a row's terms beside their sum."""
    terms.gap = x_out - at.shift
    terms.power = at.power
    terms.shift = at.shift


cdef inline bint exp_blocks(const Row* row, const Reference* at, const Part* part, real* e, Total* total,
                            Deferred* deferred) noexcept nogil:
    """Sums of exp over all blocks, or of a part each block's own; False when a logit lies too far above the reference.

    Unless it is NULL, e (room for n + 2 L) gets the terms, 0 for the element left out; only then is the deferred
    gradient written.
    """
    cdef real copies[3*L]
    cdef Source source
    cdef real top, limit
    cdef Py_ssize_t left = (row.n + L - 1)//L, done = 0, b = 0
    cdef double t
    cdef bint first = True
    limit = (<real>at.power + (HEADROOMF if real is float else HEADROOM))*<real>FL_LN2
    open_source(&source, <const real*>row.x, row.n, row.out, copies, <real>-INFINITY)
    if row.ahead != NULL:
        source.ahead = row.ahead
        source.pace = row.pace
    if part != NULL:
        skip_groups(&source, part.start, sizeof(real))
        e = e + part.start*L if e != NULL else e
        left = part.stop - part.start
    source.n_groups = left if left < BLOCK//L else BLOCK//L
    while True:
        t = block_sum(&source, at, e, &top, deferred)
        if top - <real>at.shift > limit:
            return False
        if part != NULL:
            part.sums[b] = t
            b += 1
        elif first:
            total.sum = t
        else:
            add_block(&total.sum, &total.carry, t)
        first = False
        left -= source.n_groups
        if left <= 0 or stopped(&done, source.n_groups*L):
            return True
        e = e + source.n_groups*L if e != NULL else e
        next_block(&source, left, sizeof(real))


cdef inline bint exp_row(const Row* row, real m, real* e, Terms* terms, Deferred* deferred) noexcept nogil:
    """Sum of exp over all elements but the one left out, see exp_blocks."""
    cdef Reference at = reference_at(m)
    cdef Total total
    total.sum = total.carry = 0
    if not exp_blocks(row, &at, NULL, e, &total, deferred):
        return False
    terms.others = settled(total.sum, total.carry)
    terms_at(terms, &at, (<const real*>row.x)[row.out])
    return True


cdef inline bint exp_part(const Row* row, const Reference* at, const Part* part, real* e) noexcept nogil:
    """Each block's sum of a part of the row, see exp_blocks."""
    return exp_blocks(row, at, part, e, NULL, NULL)


cdef inline double sum_of_blocks(const double* sums, Py_ssize_t n) noexcept nogil:
    """The same as exp_row's, of sums kept by exp_part."""
    cdef double total = sums[0], carry = 0
    cdef Py_ssize_t b
    for b in range(1, n):
        add_block(&total, &carry, sums[b])
    return settled(total, carry)


cdef inline float of_half(uint16_t bits, bint bfloat16) noexcept nogil:
    return fl_float_of_bfloat(bits) if bfloat16 else fl_float_of_half(bits)


cdef inline bint exp_row_of_halves(const Row* row, bint bfloat16, float m, float* e, Terms* terms,
                                   Deferred* deferred) noexcept nogil:
    """exp_row of half-precision logits as they lie, to the same bits; False, too, where there is no way to do that."""
    cdef uint16_t groups[3*L]               # without the one left out; the tail; an empty one
    cdef uint16_t none = 0xFF80 if bfloat16 else 0xFC00         # -inf
    cdef const uint16_t* x = <const uint16_t*>row.x
    cdef Source source
    cdef Reference at = reference_at(m)
    cdef fl_pending pending
    cdef fl_unit unit = unit_of(&at)
    cdef float top, limit = (<float>at.power + HEADROOMF)*<float>FL_LN2
    cdef Py_ssize_t left = (row.n + L - 1)//L, k, done = 0
    cdef int j, skip
    cdef double total = 0, carry = 0, t
    cdef bint first = True
    if not FL_HAS_BLOCK or at.shift != 0 or not m > -INFINITY:
        return False
    source.elements = <const char*>x
    source.out_group = <const char*>groups
    source.tail_group = <const char*>(groups + L)
    source.empty_group = <const char*>(groups + 2*L)
    source.out = row.out//L
    source.tail = row.n//L if row.n % L else -1
    source.ahead = source.elements + AHEAD
    source.pace = 2*L
    for k in range(3*L):
        groups[k] = none
    if source.tail >= 0:
        memcpy(&groups[L], x + source.tail*L, (row.n - source.tail*L)*2)
    if source.out == source.tail:
        memcpy(&groups[0], &groups[L], 2*L)
    else:
        memcpy(&groups[0], x + source.out*L, 2*L)
    skip = <int>(row.out - source.out*L)
    for j in range(L):                      # lane by lane: see put_group
        groups[j] = groups[j] if j != skip else none
    if source.out == source.tail:
        source.tail = -1
    source.n_groups = left if left < BLOCK//L else BLOCK//L
    while True:
        pending = pending_of(deferred if e != NULL else NULL)
        if bfloat16:
            t = fl_exp_block_bfloats(&source, &unit, e, &top, &pending)
        else:
            t = fl_exp_block_halves(&source, &unit, e, &top, &pending)
        note_done(deferred, &pending)
        if top > limit:
            return False
        if first:
            total = t
        else:
            add_block(&total, &carry, t)
        first = False
        left -= source.n_groups
        if left <= 0 or stopped(&done, source.n_groups*L):
            break
        e = e + source.n_groups*L if e != NULL else e
        next_block(&source, left, 2)
    terms.others = settled(total, carry)
    terms_at(terms, &at, of_half(x[row.out], bfloat16))
    return True


cdef inline float reference_of_halves(const Row* row, bint bfloat16) noexcept nogil:
    """reference_of half-precision logits."""
    cdef float some[L]
    cdef float m, v = of_half((<const uint16_t*>row.x)[row.out], bfloat16)
    cdef Py_ssize_t n = row.n if row.n < L else L
    load_half(some, <const char*>row.x, 2, n, bfloat16)
    m = row_max(some, n)
    return v if v > m else m


cdef inline real reference_of(const real* x, Py_ssize_t c, Py_ssize_t out) noexcept nogil:
    """The largest of the first L logits and x[out]: rarely far below the row's maximum."""
    cdef real m = row_max(x, c if c < L else L), v = x[out]
    return v if v > m else m


cdef inline fl_apart row_terms(const Row* row, real m, real* e, Terms* terms, Deferred* deferred) noexcept nogil:
    """exp_row in one pass where m is near the row's maximum (see reference_of), else in two; NaN if that is infinite.

    Inlined into the loop over rows it takes a sixth more of a gradient of 100 classes.
    """
    cdef bint last = not m > -INFINITY
    if last:
        m = row_max(<const real*>row.x, row.n)
    while not exp_row(row, m, e, terms, deferred):
        if last:
            terms.others = <double>INFINITY - <double>INFINITY
            return
        m = row_max(<const real*>row.x, row.n)
        last = True


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
