"""Lanes folded to half as many."""
from fastloss.kernels.math.vmath cimport real

cdef extern from "math/reduce_lanes.h" nogil:
    void fl_halve_sumf(float*, int) noexcept
    void fl_halve_sum(double*, int) noexcept
    void fl_halve_product(double*, int) noexcept


cdef inline void halve_sum(real* a, int n) noexcept nogil:
    if real is float:
        fl_halve_sumf(a, n)
    else:
        fl_halve_sum(a, n)
