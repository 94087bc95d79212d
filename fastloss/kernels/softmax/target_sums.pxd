"""Sums along a row with a target for every class: of exp, of targets, and of targets times logits."""
from libc.math cimport INFINITY

from fastloss.kernels.math.vmath cimport FL_PREFETCH, FL_PREFETCH_FAR, real
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.softmax.call cimport target
from fastloss.kernels.row_sums.deferred cimport Deferred, put_next, what_is
from fastloss.kernels.row_sums.groups cimport BLOCK, Part, Row, Source, next_block, open_source, skip_groups
from fastloss.kernels.row_sums.lane_sums cimport PAIRS, L, add_block, add_part, lanes_sum, settled
from fastloss.kernels.row_sums.row_sums cimport (
    FL_HAS_BLOCK, Reference, Terms, exp_lanes, fl_pending, fl_unit, note_done, pending_of, reference_at, terms_at,
    unit_of,
)

cdef extern from "row_sums/row_sums_avx512.h" nogil:
    void fl_target_blockf(const Source*, const Source*, const fl_unit*, float*, double*, fl_pending*) noexcept

cdef enum:
    AHEAD = 12288       # bytes after which logits and targets are fetched into the second level: maxima come first
    NEAR = 2048         # and targets into the first


cdef struct Sums:       # over all elements but the maximum
    double exps
    double dots         # of t_k (m - x_k) over t_k != 0
    double rest         # of t_k


cdef inline void flush_growing(const target* part, double* total, double* carry) noexcept nogil:
    """add_part in fewer operations where the total is the larger one; where it is not, as the sum then doubles, half a
    unit of the part may be lost."""
    cdef double z
    cdef Py_ssize_t j
    for j in range(L):
        z = total[j] + <double>part[j]
        if target is double:
            carry[j] = carry[j] + (part[j] - (z - total[j]))
        total[j] = z


cdef inline void target_block(const Source* logits, const Source* targets, const Reference* reference, real* e,
                              Sums* sums, Deferred* due, target dummy) noexcept nogil:
    """The sums of a block, all in the shape of exp_block's; the terms are kept in e unless it is NULL."""
    cdef real part[L]
    cdef real v[L]
    cdef real w[L]
    cdef target dot[L]
    cdef target rest[L]
    cdef double exps[L]
    cdef double exp_carry[L]
    cdef double dots[L]
    cdef double dot_carry[L]
    cdef double rests[L]
    cdef double rest_carry[L]
    cdef Source here = logits[0], there = targets[0]
    cdef const real* x = <const real*>here.elements
    cdef const target* t = <const target*>there.elements
    cdef Py_ssize_t g = 0, g_end, j, n_groups = here.n_groups
    cdef const real* p
    cdef const real* q
    cdef const target* r
    cdef const target* s
    cdef real shift = <real>reference.shift, lo = <real>reference.lo, magic = <real>reference.magic
    cdef target a, b, top = <target>reference.m
    cdef Deferred now = what_is(due)
    for j in range(L):
        dot[j] = rest[j] = 0
        exps[j] = exp_carry[j] = dots[j] = dot_carry[j] = rests[j] = rest_carry[j] = 0
    while g < n_groups:
        g_end = g + (2*PAIRS if real is float else 4)
        if g_end > n_groups:
            g_end = n_groups
        for j in range(L):
            part[j] = 0
            if target is float:
                dot[j] = rest[j] = 0
        while g < g_end:
            p = <const real*>here.tail_group if g == here.tail else x + g*L
            p = <const real*>here.out_group if g == here.out else p
            q = <const real*>here.tail_group if g + 1 == here.tail else x + (g + 1)*L
            q = <const real*>here.out_group if g + 1 == here.out else q
            q = <const real*>here.empty_group if g + 1 == n_groups else q
            r = <const target*>there.tail_group if g == here.tail else t + g*L
            r = <const target*>there.out_group if g == here.out else r
            s = <const target*>there.tail_group if g + 1 == here.tail else t + (g + 1)*L
            s = <const target*>there.out_group if g + 1 == here.out else s
            s = <const target*>there.empty_group if g + 1 == n_groups else s
            for j in range(0, 2*L*<Py_ssize_t>sizeof(real), 64):
                FL_PREFETCH_FAR(<const char*>(x + g*L) + AHEAD + j)
            for j in range(0, 2*L*<Py_ssize_t>sizeof(target), 64):
                FL_PREFETCH_FAR(<const char*>(t + g*L) + AHEAD + j)
                FL_PREFETCH(<const char*>(t + g*L) + NEAR + j)
            exp_lanes(p, shift, lo, magic, v, <real*>NULL)
            exp_lanes(q, shift, lo, magic, w, <real*>NULL)
            for j in range(L):
                part[j] = part[j] + (v[j] + w[j])
            for j in range(L):
                a = r[j]*(top - <target>p[j])
                a = a if r[j] != 0 else <target>0
                b = s[j]*(top - <target>q[j])
                b = b if s[j] != 0 else <target>0
                dot[j] = dot[j] + (a + b)
                rest[j] = rest[j] + (r[j] + s[j])
            if e != NULL:
                for j in range(L):
                    e[g*L + j] = v[j]
                    e[(g + 1)*L + j] = w[j]
                put_next(&now, True, shift)
            if target is double and (g & 2 or g + 2 >= n_groups):
                flush_growing(dot, dots, dot_carry)
                flush_growing(rest, rests, rest_carry)
                for j in range(L):
                    dot[j] = rest[j] = 0
            g = g + 2
        add_part(part, exps, exp_carry)
        if target is float:
            flush_growing(dot, dots, dot_carry)
            flush_growing(rest, rests, rest_carry)
    if e != NULL and due != NULL:
        due.done = now.done
    sums.exps = lanes_sum(exps, exp_carry, real is double)
    sums.dots = lanes_sum(dots, dot_carry, target is double)
    sums.rest = lanes_sum(rests, rest_carry, target is double)


cdef struct Totals:     # compensated
    Sums sum
    Sums carry


cdef inline void no_sums(Totals* total) noexcept nogil:
    total.sum.exps = total.sum.dots = total.sum.rest = total.carry.exps = total.carry.dots = total.carry.rest = 0


cdef inline void add_sums(Totals* total, const Sums* block) noexcept nogil:
    add_block(&total.sum.exps, &total.carry.exps, block.exps)
    add_block(&total.sum.dots, &total.carry.dots, block.dots)
    add_block(&total.sum.rest, &total.carry.rest, block.rest)


cdef inline void settle_sums(Sums* sums, const Totals* total) noexcept nogil:
    sums.exps = settled(total.sum.exps, total.carry.exps)
    sums.dots = settled(total.sum.dots, total.carry.dots)
    sums.rest = settled(total.sum.rest, total.carry.rest)


cdef inline void target_blocks(const Row* row, const target* t, const Reference* at, const Part* part, real* e,
                               Totals* total, Deferred* due) noexcept nogil:
    """Sums over all blocks of a row, or of a part each block's own; e (room for n + 2 L, or NULL): the terms, 0 for the
    element left out.

    Writes the deferred gradient, if terms are kept.
    """
    cdef real x_copies[3*L]
    cdef target t_copies[3*L]
    cdef const real* x = <const real*>row.x
    cdef Source logits, targets
    cdef Sums block
    cdef fl_pending pending
    cdef fl_unit unit = unit_of(at)
    cdef Py_ssize_t left = (row.n + L - 1)//L, done = 0, b = 0
    open_source(&logits, x, row.n, row.out, x_copies, <real>-INFINITY)
    open_source(&targets, t, row.n, row.out, t_copies, <target>0)
    logits.ahead = logits.elements + AHEAD
    if part != NULL:
        skip_groups(&logits, part.start, sizeof(real))
        skip_groups(&targets, part.start, sizeof(target))
        e = e + part.start*L if e != NULL else e
        left = part.stop - part.start
    logits.n_groups = targets.n_groups = left if left < BLOCK//L else BLOCK//L
    while True:
        if real is float and target is float and FL_HAS_BLOCK and at.shift == 0:
            pending = pending_of(due if e != NULL else NULL)
            fl_target_blockf(&logits, &targets, &unit, <float*>e, &block.exps, &pending)
            note_done(due, &pending)
        elif e == NULL:
            target_block(&logits, &targets, at, <real*>NULL, &block, due, t[0])
        else:
            target_block(&logits, &targets, at, e, &block, due, t[0])
        if part != NULL:
            (<Sums*>part.sums)[b] = block
            b += 1
        else:
            add_sums(total, &block)
        left -= logits.n_groups
        if left <= 0 or stopped(&done, logits.n_groups*L):
            break
        e = e + logits.n_groups*L if e != NULL else e
        next_block(&logits, left, sizeof(real))
        next_block(&targets, left, sizeof(target))


cdef inline void target_sums(const Row* row, const target* t, real m, real* e, Terms* terms, Sums* sums,
                             Deferred* due) noexcept nogil:
    """Of a row whose maximum is m, the element left out: see target_blocks."""
    cdef Reference at = reference_at(m)
    cdef Totals total
    no_sums(&total)
    target_blocks(row, t, &at, NULL, e, &total, due)
    settle_sums(sums, &total)
    terms.others = sums.exps
    terms_at(terms, &at, m)
