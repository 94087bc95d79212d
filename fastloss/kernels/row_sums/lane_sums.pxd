"""Sums and maxima along a row.

Sums have one fixed shape on every instruction set, for any number of threads: L lanes side by side; in a lane, pairs
of terms, in float chains of PAIRS pairs, then float64; blocks of terms (row_sums.pxd), added with compensation; in
float64 two pairs are added with compensation, too. In a longer chain equal terms (a constant background) would drift
by many units in the last place.
"""
from libc.math cimport INFINITY, fabs

from fastloss.kernels.math.vmath cimport real

cdef extern from "arrays/find.h" nogil:
    Py_ssize_t fl_findf(const float*, Py_ssize_t, float) noexcept
    Py_ssize_t fl_find(const double*, Py_ssize_t, double) noexcept

cdef enum:
    L = 32              # lanes
    PAIRS = 4


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
