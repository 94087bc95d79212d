/* What this processor and operating system can run; also compiled by setup.py, which builds for what it says. */
#ifndef FL_HOST_H
#define FL_HOST_H

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#include <immintrin.h>
/* the instruction set counts only if the operating system saves its registers: XGETBV */
static int fl_has_avx2(void) {
    int r[4];
    const int need = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29;      /* fma, osxsave, avx, f16c */
    __cpuid(r, 1);
    if ((r[2] & need) != need || (_xgetbv(0) & 0x06) != 0x06) return 0;
    __cpuidex(r, 7, 0);
    return (r[1] & (1 << 5)) != 0 && (r[1] & (1 << 8)) != 0;     /* avx2, bmi2 */
}
static int fl_has_avx512(void) {
    int r[4];
    const int need = 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30;      /* f, dq, cd, bw */
    if (!fl_has_avx2() || (_xgetbv(0) & 0xe6) != 0xe6) return 0;
    __cpuidex(r, 7, 0);
    return (r[1] & need) == need && r[1] < 0;                    /* vl is the sign bit */
}
#elif defined(__x86_64__)
#include <cpuid.h>
static int fl_has_avx2(void) {
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")
        && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);     /* clang 14's builtin does not know f16c */
}
static int fl_has_avx512(void) {
    return fl_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl");
}
#else
static int fl_has_avx2(void) { return 0; }
static int fl_has_avx512(void) { return 0; }
#endif

#endif
