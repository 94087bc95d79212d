"""Noise-contrastive estimation: sums of log(1 + exp(z)), as logarithms of products of 1 + exp(-|z|).

A product is held as u = product - 1, so that it loses nothing where all its factors are near 1: four factors in the
type of z, then in float64.
"""
from libc.math cimport fabs

from fastloss.kernels.math.exp_table cimport exps, steps_magic_of
from fastloss.kernels.math.reduce_lanes cimport fl_halve_product, fl_halve_sum
from fastloss.kernels.math.sigmoid_math cimport joined
from fastloss.kernels.row_sums.lane_sums cimport L
from fastloss.kernels.row_sums.row_sums cimport ROWS
from fastloss.kernels.math.vmath cimport (
    FL_BIAS, bias_of, fl_exp_fine, fl_lo, fl_log1p, fl_magic, magnitude, real,
)

cdef enum:
    FACTORS = 512       # columns at a time: one product, at most 2^512
    STRIP = 4*L         # side by side, so that their chains of operations overlap


cdef inline void exp_strip(const real* z, real* q, int n, real far) noexcept nogil:
    """q = exp(-|z|), 0 from far on, above which it would be subnormal; n is a constant."""
    cdef real m[STRIP]
    cdef int j
    for j in range(n):
        m[j] = magnitude(z[j])
        m[j] = far if far < m[j] else m[j]
    exps(m, -1, steps_magic_of(<real>bias_of(far)), q, n, False)
    for j in range(n):
        q[j] = <real>0 if m[j] >= far else q[j]


cdef inline double nce_row(real* z, Py_ssize_t n, real s, bint kept, double* product) noexcept nogil:
    """The sum of max(z, 0) over n <= FACTORS columns, whole lanes, and the product; if kept, z becomes s sigmoid(z)."""
    cdef real q[FACTORS]
    cdef real above[FACTORS]
    cdef double u[L]
    cdef double top[L]
    cdef double w
    cdef real far = 87.3 if real is float else 708.3, v, c, d
    cdef Py_ssize_t g, whole = n//STRIP*STRIP
    cdef Py_ssize_t j
    g = 0
    while g < whole:
        exp_strip(z + g, q + g, STRIP, far)
        g += STRIP
    while g < n:
        exp_strip(z + g, q + g, L, far)
        g += L
    for j in range(n):
        above[j] = z[j] if z[j] > 0 else <real>0
    if kept:
        for j in range(n):
            v = q[j] if z[j] < 0 else <real>1
            c = 1 + q[j]
            d = v/c
            z[j] = s*d
    for j in range(L):
        u[j] = top[j] = 0
    g = 0
    while g < whole:
        for j in range(L):
            c = joined(q[g + j], q[g + L + j])
            d = joined(q[g + 2*L + j], q[g + 3*L + j])
            w = joined(c, d)
            u[j] = joined(u[j], w)
            v = (above[g + j] + above[g + L + j]) + (above[g + 2*L + j] + above[g + 3*L + j])
            top[j] = top[j] + <double>v
        g += STRIP
    while g < n:
        for j in range(L):
            w = q[g + j]
            u[j] = joined(u[j], w)
            top[j] = top[j] + <double>above[g + j]
        g += L
    fl_halve_product(u, 16)
    fl_halve_product(u, 8)
    fl_halve_product(u, 4)
    fl_halve_product(u, 2)
    fl_halve_sum(top, 16)
    fl_halve_sum(top, 8)
    fl_halve_sum(top, 4)
    fl_halve_sum(top, 2)
    product[0] = joined(u[0], u[1])
    return top[0] + top[1]


cdef inline void nce_true(const double* zt, Py_ssize_t n, double num_true, const double* s, double* term,
                          double* g) noexcept nogil:
    """Losses of n <= ROWS true logits, each a target of 1/num_true: terms that are never negative; g = s slope."""
    cdef double share = 1/num_true, rest = (num_true - 1)*share, lo = fl_lo(FL_BIAS), magic = fl_magic(FL_BIAS)
    cdef double v, q, near, far, up, down, below, p
    cdef Py_ssize_t j
    for j in range(n):
        v = zt[j]
        q = fl_exp_fine(-fabs(v), lo, magic)
        near = fl_log1p(q)
        far = near + fabs(v)
        up = share*(near if v > 0 else far)
        down = rest*(far if v > 0 else near)
        term[j] = up + (down if rest > 0 else 0.0)
    if s == NULL:
        return
    for j in range(n):
        v = zt[j]
        q = fl_exp_fine(-fabs(v), lo, magic)
        p = 1 + q                                           # sigmoid(v), and sigmoid(-v) = 1 - p without cancellation
        up = (1.0 if v > 0 else q)/p
        below = (q if v > 0 else 1.0)/p
        p = s[j]*(rest*up - share*below)
        g[j] = p if s[j] != 0 else 0.0
