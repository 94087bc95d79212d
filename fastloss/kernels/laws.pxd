from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "laws.h" nogil:
    double fl_one_minus_exp(double y) noexcept
    double fl_two_atanh(double s) noexcept
    double fl_from_id(int64_t v) noexcept
    int64_t fl_log_uniform(double y, int64_t* near) noexcept
    int64_t fl_pick(const int64_t* table, uint64_t bucket, uint32_t share) noexcept
