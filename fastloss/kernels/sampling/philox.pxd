from libc.stdint cimport uint32_t, uint64_t

cdef extern from "sampling/philox.h" nogil:
    enum:
        FL_RNG_STORE
    ctypedef struct fl_rng:
        uint64_t key
        uint64_t stream
        uint64_t block
        int next
        int end
        uint32_t word[1]
    void fl_philox(uint64_t key, uint64_t stream, uint64_t block, uint32_t* out, Py_ssize_t blocks) noexcept
    void fl_rng_start(fl_rng* g, uint64_t key, uint64_t stream, uint64_t block) noexcept
    void fl_rng_fill(fl_rng* g, Py_ssize_t want) noexcept
    uint32_t fl_rng_word(fl_rng* g) noexcept
    uint64_t fl_pair "fl_philox_pair"(const uint32_t* w) noexcept
    uint64_t fl_wide(uint64_t a, uint64_t b, uint64_t* low) noexcept
    uint64_t fl_mod64(uint64_t x, uint64_t n, uint64_t reciprocal) noexcept
    uint32_t fl_mod32(uint32_t x, uint32_t n, uint32_t reciprocal) noexcept
    double fl_rng_unit(uint64_t x) noexcept
    double fl_rng_open(uint64_t x) noexcept
