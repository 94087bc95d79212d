"""Inclusion probabilities of distinct draws.

Let each id arrive at an exponential time, its probability p the rate: the order of arrival is the order of distinct
draws.  An id is among the first k with the probability

    pi = integral of p exp(-p t) S(t) dt,   S(t) the probability that fewer than k of the others have arrived by t.

S comes from the characteristic function of the number that have arrived: summed over a circle, the error falls as
fast as the function does, so that a dozen points do for any k.  Ids of nearly the same p are one class, 32 an octave;
written as 1 - exp(-p T), pi has a T which hardly depends on p, and is interpolated between the classes.
"""
from libc.math cimport atan2, ceil, cos, exp, expm1, floor, log, log1p, sin, sqrt
from libc.stdint cimport int64_t, uint64_t

from fastloss.kernels.math.sampler_math cimport fl_gauss_nodes, fl_gauss_weights
from fastloss.kernels.math.vmath cimport fl_bits_of_double, fl_double_of
from fastloss.kernels.sampling.law cimport check_signals

cdef enum:
    CLASS_BITS = 47         # of a double, within one class
    CLASSES = 1 << 15       # of the numbers in [0, 1]
    NODES = 16              # of a Gauss rule of twice as many, on one side of 0
    RARE = 1000000          # where S is within one part in so many of 1 or 0 it counts as that

cdef struct Groups:
    Py_ssize_t size         # classes that are not empty
    double wanted
    double* rate            # of each: the mean p, the number of ids
    double* number
    double* absent          # by time t: the probability that one of them has not arrived, and that it has
    double* present
    double* fewer           # S


cdef inline Py_ssize_t class_of(double p) noexcept nogil:
    return <Py_ssize_t>(fl_bits_of_double(p) >> CLASS_BITS)


cdef inline double survival_time(const double* times, double p) noexcept nogil:
    """T of an id; the first entry says to which class the second belongs."""
    cdef uint64_t bits = fl_bits_of_double(p)
    cdef Py_ssize_t i = <Py_ssize_t>(bits >> CLASS_BITS) - <Py_ssize_t>times[0] + 1
    cdef double part = <double><int64_t>(bits & ((<uint64_t>1 << CLASS_BITS) - 1))*(1.0/140737488355328.0)
    i = i if i > 1 else 1                           # of probability 0, where T does not matter
    return times[i] + part*(times[i + 1] - times[i])


cdef inline double fewer_arrived(Groups* c, double t, bint others) except -1 nogil:
    """The probability that fewer than the wanted ids have arrived by t: all ids, or for each class the others."""
    cdef Py_ssize_t b, j, points
    cdef double mean = 0, variance = 0, half, first, count, total, step, angle
    cdef double x, y, size, turn, re, im, weight, all_ids
    for b in range(c.size):
        c.absent[b] = exp(-c.rate[b]*t)
        c.present[b] = -expm1(-c.rate[b]*t)
        mean += c.number[b]*c.present[b]
        variance += c.number[b]*c.present[b]*c.absent[b]
    half = ceil(7*sqrt(variance) + 6)               # numbers further from the mean do not occur
    total = 2*half + 1
    first = floor(mean + 0.5) - half
    count = c.wanted - first if c.wanted > first else 0
    count = count if count < total else total
    step = 6.283185307179586/total
    points = <Py_ssize_t>half
    if 5.5 < sqrt(variance)*step*half:              # where the function is no longer but rounding
        points = <Py_ssize_t>ceil(5.5/(sqrt(variance)*step))
    all_ids = count
    if others:
        for b in range(c.size):
            c.fewer[b] = count
    for j in range(1, points + 1):
        if j % 8 == 1:
            check_signals()
        angle = step*j
        x = cos(angle)
        y = sin(angle)
        size = turn = 0
        for b in range(c.size):
            size += c.number[b]*log1p(-2*c.absent[b]*c.present[b]*(1 - x))
            turn += c.number[b]*atan2(c.present[b]*y, c.absent[b] + c.present[b]*x)
        turn -= angle*(first + 0.5*(count - 1))
        weight = 2*exp(0.5*size)*sin(0.5*angle*count)/sin(0.5*angle)
        re = weight*cos(turn)
        im = weight*sin(turn)
        all_ids += re
        if others:
            for b in range(c.size):
                c.fewer[b] += (re*(c.absent[b] + c.present[b]*x) + im*c.present[b]*y)/(
                    1 - 2*c.absent[b]*c.present[b]*(1 - x))
    if others:
        for b in range(c.size):
            c.fewer[b] /= total
    return all_ids/total


cdef inline double time_of_fall(Groups* c, double level, double low, double high) except? -1 nogil:
    """The logarithm of the time when the probability that fewer have arrived falls below a level."""
    cdef double middle
    cdef int _turn
    for _turn in range(30):
        middle = 0.5*(low + high)
        if fewer_arrived(c, exp(middle), False) > level:
            low = middle
        else:
            high = middle
    return low


cdef inline int survival_times(Groups* c, double* wait) except -1 nogil:
    """T of each class; the nodes of a Gauss rule cover the time in which S falls, on a logarithmic scale."""
    cdef Py_ssize_t b, j, k
    cdef double low, high, t, p, sum_of_rates = 0
    for b in range(c.size):
        sum_of_rates += c.number[b]*c.rate[b]
    low = log(1e-8/sum_of_rates)
    high = log(40/c.rate[0])
    high = time_of_fall(c, 1.0/RARE, low, high if high < 700 else 700)
    low = time_of_fall(c, 1 - 1.0/RARE, low, high)
    t = exp(low)
    for b in range(c.size):
        wait[b] = -expm1(-c.rate[b]*t)              # at first pi, of the time when S is 1
    for j in range(2*NODES):                        # from the smallest node to the largest
        k = NODES - 1 - j if j < NODES else j - NODES
        t = exp(low + 0.5*(high - low)*(1 + (-fl_gauss_nodes[k] if j < NODES else fl_gauss_nodes[k])))
        fewer_arrived(c, t, True)
        for b in range(c.size):
            p = c.rate[b]*t
            wait[b] += 0.5*(high - low)*fl_gauss_weights[k]*p*exp(-p)*c.fewer[b]
    for b in range(c.size):
        if wait[b] < 1 - 1.0/RARE:
            wait[b] = -log1p(-wait[b])/c.rate[b]
        else:                                       # as good as certain, for any such T
            wait[b] = wait[b - 1] if b else log(<double>RARE)/c.rate[b]
    return 0


cdef inline Py_ssize_t interpolate_times(const Groups* c, const double* wait, double* times) noexcept nogil:
    """T where each class begins, for `survival_time`; returns the number of entries."""
    cdef Py_ssize_t b = 0, i, begin = class_of(c.rate[0]), end = class_of(c.rate[c.size - 1]) + 2
    cdef double p
    times[0] = <double>begin
    for i in range(begin, end):
        p = fl_double_of(<uint64_t>i << CLASS_BITS)
        while b + 2 < c.size and c.rate[b + 1] < p:
            b += 1
        if p <= c.rate[0]:
            times[1 + i - begin] = wait[0]
        elif p >= c.rate[c.size - 1]:
            times[1 + i - begin] = wait[c.size - 1]
        else:
            times[1 + i - begin] = wait[b] + (wait[b + 1] - wait[b])*((p - c.rate[b])/(c.rate[b + 1] - c.rate[b]))
    return 1 + end - begin
