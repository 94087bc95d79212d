"""Facts about the machine this process runs on."""

cdef extern from "_host.h" nogil:
    int fl_has_avx2()
    int fl_has_avx512()


def isas():
    """Instruction sets this processor and operating system can run, best first."""
    return [name for name, ok in (("avx512", fl_has_avx512()), ("avx2", fl_has_avx2()), ("baseline", True)) if ok]
