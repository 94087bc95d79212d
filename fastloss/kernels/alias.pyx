"""Alias tables (Walker 1977): a bucket for each id, shared with at most one other, so every draw costs the same.

An entry holds the upper half of its threshold (low 32 bits) and the other id (high 32 bits).  The lower halves of the
thresholds follow the n entries, two to a word; they matter once in 2^32 draws, and keep them exact to 2^-64.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport ceil, powf
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    CHUNK = 1 << 20     # ids between two looks at pending signals


cdef int _signals() except -1 with gil:
    PyErr_CheckSignals()
    return 0


cdef inline int64_t _entry(uint64_t threshold, int64_t other) noexcept nogil:
    return <int64_t>(threshold | <uint64_t>other << 32)


cdef inline void _put(int64_t* table, uint32_t* low, int64_t i, double share, int64_t other) noexcept nogil:
    """Bucket i: its own for this share, in [0, 1), and the other id's for the rest."""
    cdef uint64_t threshold = <uint64_t>(share*18446744073709551616.0)
    table[i] = _entry(threshold >> 32, other)
    low[i] = <uint32_t>threshold


cdef inline void _add(double* high, double* low, double x) noexcept nogil:
    """Adds to the unevaluated sum high + low without loss."""
    cdef double s = high[0] + x
    cdef double part = s - high[0]
    low[0] += (high[0] - (s - part)) + (x - part)
    high[0] = s


def total_and_support(const double[::1] weights):
    """Their compensated sum, the number of positive ones, and the position of the first that is not finite or is
    negative, or -1."""
    cdef double high = 0, low = 0
    cdef int64_t i, positive = 0, bad = -1, n = weights.shape[0]
    with nogil:
        for i in range(n):
            if not 0 <= weights[i] <= 1.7976931348623157e308:
                bad = i
                break
            _add(&high, &low, weights[i])
            positive += weights[i] > 0
            if i % CHUNK == CHUNK - 1:
                _signals()
    return high + low, positive, bad


def build(const double[::1] weights, double total, int64_t[::1] table):
    """The table of n positive or zero weights, in one sweep: a heavy id fills up light ones until it is light itself."""
    cdef int64_t n = weights.shape[0], light = 0, heavy = 0, following, steps = 0
    cdef double average = total/n, high, low = 0
    cdef int64_t* entry = &table[0]
    cdef uint32_t* lower = <uint32_t*>&table[n]
    with nogil:
        while light < n and weights[light] >= average:
            light += 1
        while heavy < n and not weights[heavy] >= average:
            heavy += 1
        high = weights[heavy]/average if heavy < n else 0   # what the heavy id has left, in buckets: high + low
        while heavy < n:
            steps += 1
            if steps % CHUNK == 0:
                _signals()
            if high + low < 1:
                following = heavy + 1
                while following < n and not weights[following] >= average:
                    following += 1
                if following == n:
                    break
                _put(entry, lower, heavy, high + low if high + low > 0 else 0, following)
                _add(&high, &low, weights[following]/average)
                _add(&high, &low, -1)
                heavy = following
            elif light < n:
                _put(entry, lower, light, weights[light]/average, heavy)
                _add(&high, &low, weights[light]/average)
                _add(&high, &low, -1)
                light += 1
                while light < n and weights[light] >= average:
                    light += 1
            else:
                entry[heavy] = _entry(0, heavy)
                high, low = 1, 0
                heavy += 1
                while heavy < n and not weights[heavy] >= average:
                    heavy += 1
        # rounding may leave some that are one bucket to the last digit
        following = heavy if heavy < n else light
        while heavy < n:
            entry[heavy] = _entry(0, heavy)
            heavy += 1
            while heavy < n and not weights[heavy] >= average:
                heavy += 1
        while light < n:
            entry[light] = _entry(0, light if weights[light] > 0 else following)
            light += 1
            while light < n and weights[light] >= average:
                light += 1


def float_weights(const double[::1] counts, float distortion, int64_t reserved, double[::1] weights):
    """float32(count)^distortion in float32, after `reserved` ids without weight."""
    cdef int64_t i
    with nogil:
        for i in range(reserved):
            weights[i] = 0
        for i in range(reserved, weights.shape[0]):
            weights[i] = powf(<float>counts[i - reserved], distortion)


def build_float(const double[::1] weights, double[::1] share, int64_t[::1] stack, int64_t[::1] table):
    """TensorFlow's table of float32 weights, in its arithmetic; `share` and `stack` are scratch.

    Thresholds are in units of 2^-23, the grain of the float that they are compared with.
    """
    cdef int64_t i, n = table.shape[0], lights = 0, heavies = n, light, heavy, drawable = 0
    cdef double total = 0
    with nogil:
        for i in range(n):
            total += weights[i]
            if weights[i] > 0:
                drawable = i
        for i in range(n):
            share[i] = <double>(<float>weights[i]*<float>n)/total
            if share[i] < 1:
                stack[lights] = i
                lights += 1
            else:
                heavies -= 1
                stack[heavies] = i
            if i % CHUNK == CHUNK - 1:
                _signals()
        while lights > 0 and heavies < n:
            lights -= 1
            light = stack[lights]
            heavy = stack[heavies]
            heavies += 1
            table[light] = _entry(<uint64_t>ceil(<float>share[light]*8388608.0), heavy)
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
                table[light] = _entry(0, light if weights[light] > 0 else drawable)
