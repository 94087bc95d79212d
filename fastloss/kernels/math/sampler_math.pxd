from libc.stdint cimport int32_t, int64_t, uint32_t

cdef extern from "math/sampler_math.h" nogil:
    const double fl_gauss_nodes[16]
    const double fl_gauss_weights[16]
    double fl_one_minus_exp(double y) noexcept
    double fl_two_atanh(double s) noexcept
    double fl_two_atanh_small(double s) noexcept
    double fl_from_id(int64_t v) noexcept
    int64_t fl_log_uniform(double y, int64_t* near) noexcept
    int64_t fl_pick(int64_t entry, int64_t bucket, uint32_t share) noexcept
    void fl_add_narrow(int32_t* node, const int64_t* ids, Py_ssize_t m, int shift) noexcept
    void fl_add_wide(int64_t* node, const int64_t* ids, Py_ssize_t m, int shift) noexcept
    int64_t fl_child_narrow(const int32_t* added, int bits, int64_t* left) noexcept
    int64_t fl_child_wide(const int64_t* added, int bits, int64_t* left) noexcept
    void fl_children_narrow(const int32_t* added, int bits, int64_t* left, int64_t* ids, Py_ssize_t m) noexcept
    void fl_children_wide(const int64_t* added, int bits, int64_t* left, int64_t* ids, Py_ssize_t m) noexcept
