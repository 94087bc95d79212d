"""Alias tables (Walker 1977): a bucket for each id, shared with at most one other, so every draw costs the same.

An entry holds the upper half of its threshold (low 32 bits) and the other id (high 32 bits).  The lower halves of the
thresholds follow the n entries, two to a word; they matter once in 2^32 draws, and keep them exact to 2^-64.
"""
from libc.math cimport ceil, fma, powf
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastloss.kernels.sampling.law cimport BUDGET, CACHED, check_signals


cdef inline int64_t entry_of(uint64_t threshold, int64_t other) noexcept nogil:
    return <int64_t>(threshold | <uint64_t>other << 32)


cdef struct Pair:           # an unevaluated sum, high the nearest double: twice the precision
    double high
    double low


cdef inline Pair two_sum(double a, double b) noexcept nogil:
    """a + b without loss."""
    cdef Pair s
    cdef double part
    s.high = a + b
    part = s.high - a
    s.low = (a - (s.high - part)) + (b - part)
    return s


cdef inline Pair plus(Pair a, Pair b) noexcept nogil:
    cdef Pair s = two_sum(a.high, b.high)
    return two_sum(s.high, s.low + (a.low + b.low))


cdef inline Pair quotient(double w, Pair average) noexcept nogil:
    """w/average."""
    cdef double q = w/average.high
    return two_sum(q, (fma(-q, average.high, w) - q*average.low)/average.high)


cdef inline Pair less_one(Pair a) noexcept nogil:
    cdef Pair s = two_sum(a.high, -1)
    return two_sum(s.high, s.low + a.low)


cdef inline void put_bucket(int64_t* table, uint32_t* low, int64_t i, Pair share, int64_t other) noexcept nogil:
    """Bucket i: its own for this share, below 1, and the other id's for the rest."""
    cdef uint64_t threshold = 0
    if share.high > 0:
        threshold = <uint64_t>(share.high*18446744073709551616.0)
        threshold += <uint64_t><int64_t>(share.low*18446744073709551616.0)
    table[i] = entry_of(threshold >> 32, other)
    low[i] = <uint32_t>threshold


def total_and_support(const double[::1] weights):
    """Their sum in twice the precision, high and low, the number of positive ones, and the position of the first that
    is not finite or is negative, or -1."""
    cdef Pair total = Pair(0, 0), weight = Pair(0, 0)
    cdef int64_t i, positive = 0, bad = -1, n = weights.shape[0]
    with nogil:
        for i in range(n):
            if not 0 <= weights[i] <= 1.7976931348623157e308:
                bad = i
                break
            weight.high = weights[i]
            total = plus(total, weight)
            positive += weights[i] > 0
            if i % BUDGET == BUDGET - 1:
                check_signals()
    return total.high, total.low, positive, bad


def build(const double[::1] weights, double total, double total_low, int64_t[::1] table):
    """The table of n weights, in one sweep: a heavy id fills up light ones until it is light itself.

    A quotient by the average weight, and what a heavy id has left, are kept in twice the precision, so that the shares
    are right to about 2^-64.
    """
    cdef int64_t n = weights.shape[0], light = 0, heavy = 0, following, steps = 0
    cdef Pair average = two_sum(total/n, (fma(-(total/n), n, total) + total_low)/n)
    cdef Pair left = Pair(0, 0)         # of the heavy id, in buckets
    cdef int64_t* entry = &table[0]
    cdef uint32_t* lower = <uint32_t*>&table[n]
    with nogil:
        light = next_of(weights, light, average.high, False)
        heavy = next_of(weights, heavy, average.high, True)
        if heavy < n:
            left = quotient(weights[heavy], average)
        while heavy < n:
            steps += 1
            if steps % BUDGET == 0:
                check_signals()
            if left.high < 1:
                following = next_of(weights, heavy + 1, average.high, True)
                if following == n:
                    break
                put_bucket(entry, lower, heavy, left, following)
                left = less_one(plus(left, quotient(weights[following], average)))
                heavy = following
            elif light < n:
                put_bucket(entry, lower, light, quotient(weights[light], average), heavy)
                left = less_one(plus(left, quotient(weights[light], average)))
                light = next_of(weights, light + 1, average.high, False)
            else:
                entry[heavy] = entry_of(0, heavy)
                left = Pair(1, 0)
                heavy = next_of(weights, heavy + 1, average.high, True)
        # rounding may leave some that are one bucket to the last digit
        following = heavy if heavy < n else light
        while heavy < n:
            entry[heavy] = entry_of(0, heavy)
            heavy = next_of(weights, heavy + 1, average.high, True)
        while light < n:
            entry[light] = entry_of(0, light if weights[light] > 0 else following)
            light = next_of(weights, light + 1, average.high, False)


cdef inline int64_t next_of(const double[::1] weights, int64_t i, double average, bint heavy) except -1 nogil:
    """The first id from i on that is heavy, or light."""
    if i % BUDGET == 0:
        check_signals()
    while i < weights.shape[0] and (weights[i] >= average) != heavy:
        i += 1
        if i % BUDGET == 0:
            check_signals()
    return i


def float_weights(const double[::1] counts, float distortion, int64_t reserved, double[::1] weights):
    """float32(count)^distortion in float32, after `reserved` ids without weight."""
    cdef int64_t i
    with nogil:
        for i in range(weights.shape[0]):
            weights[i] = powf(<float>counts[i - reserved], distortion) if i >= reserved else 0
            if i % BUDGET == BUDGET - 1:
                check_signals()


def build_float(const double[::1] weights, double[::1] share, int64_t[::1] stack, int64_t[::1] table):
    """TensorFlow's table of float32 weights, in its arithmetic; `share` and `stack` are scratch.

    Thresholds are in units of 2^-23, the grain of the float that they are compared with.  An entry goes with a word
    of the weights of its two ids, as float32, so that a draw brings its weight along: in a large table it lies beside
    its entry, in a small one all lie after the entries.
    """
    cdef int64_t i, n = weights.shape[0], lights = 0, heavies = n, light, heavy, drawable = 0, steps = 0
    cdef int64_t step = 2 if n > CACHED else 1, beside = 1 if n > CACHED else n
    cdef double total = 0
    cdef float* pair
    with nogil:
        for i in range(n):
            total += weights[i]
            if weights[i] > 0:
                drawable = i
            if i % BUDGET == BUDGET - 1:
                check_signals()
        for i in range(n):
            share[i] = <double>(<float>weights[i]*<float>n)/total
            if share[i] < 1:
                stack[lights] = i
                lights += 1
            else:
                heavies -= 1
                stack[heavies] = i
            if i % BUDGET == BUDGET - 1:
                check_signals()
        while lights > 0 and heavies < n:
            steps += 1
            if steps % BUDGET == 0:
                check_signals()
            lights -= 1
            light = stack[lights]
            heavy = stack[heavies]
            heavies += 1
            table[step*light] = entry_of(<uint64_t>ceil(<float>share[light]*8388608.0), heavy)
            share[heavy] -= 1 - share[light]
            if share[heavy] < 1:
                stack[lights] = heavy
                lights += 1
            else:
                heavies -= 1
                stack[heavies] = heavy
        for i in range(n):
            if i < lights or i >= heavies:
                light = stack[i]
                # TensorFlow would draw an id without weight that rounding left over
                table[step*light] = entry_of(0, light if weights[light] > 0 else drawable)
            if i % BUDGET == BUDGET - 1:
                check_signals()
        for i in range(n):
            pair = <float*>&table[step*i + beside]
            pair[0] = <float>weights[i]
            pair[1] = <float>weights[<uint64_t>table[step*i] >> 32]
            if i % BUDGET == BUDGET - 1:
                check_signals()
