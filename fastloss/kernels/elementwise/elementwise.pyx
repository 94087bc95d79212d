"""The one loop of all element-wise losses.

A loss is a tag (a struct with its parameters) and an inline function from (prediction, label) to its Terms; the fused
type of the tags (registry.pxd) makes a loop of its own for each, without a call or a switch in it.  Operands have one
shape and any layout and dtype: they are read in spans, in place where they can be, and so are results written.
"""
from libc.stdlib cimport free, malloc
from libc.math cimport INFINITY, fabs
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.arrays cimport F32, F64, Held, load, release, store
from fastloss.kernels.math.exp_table cimport exps, steps_magic_of
from fastloss.kernels.math.reduce_lanes cimport halve_sum
from fastloss.kernels.elementwise.registry cimport Loss, Parameters, summand, takes_exp, takes_near, takes_scaled, terms
from fastloss.kernels.arrays.operands cimport (
    ABSENT, ARRAYS, CONSTANT, COTANGENT, DIRECT, EVEN, GRAD, HESSIAN, LABEL, LABEL_GRAD, LOSS, POS_WEIGHT,
    POS_WEIGHT_GRAD, STRIP, UNEVEN, WEIGHT, X, Ahead, Job, Operand, arrange, ask, hold, look_ahead, place, settle,
)
from fastloss.kernels.parallel.parallel cimport blocks, cut
from fastloss.kernels.elementwise.regression cimport SquaredError
from fastloss.kernels.parallel.scratch cimport no_memory
from fastloss.kernels.elementwise.sigmoid cimport (
    OrdinaryCrossEntropy, SigmoidCrossEntropy, Terms, WeightedCrossEntropy, far_part, is_ordinary, ordinary_bits,
)
from fastloss.kernels.math.sigmoid_math cimport far_of, fma, joined, min_bits, near_of, odd_bits, scaled_unit
from fastloss.kernels.math.vmath cimport bias_of, fl_log1p, magnitude, real

cdef extern from *:
    """
    /* A loss must be inlined into its loops or they are not vectorised, and gcc's limit is too low for some. */
    #undef CYTHON_INLINE
    #if defined(_MSC_VER)
    #define CYTHON_INLINE __forceinline
    #else
    #define CYTHON_INLINE inline __attribute__((always_inline))
    #endif
    """

cdef extern from "arrays/nontemporal.h" nogil:
    int fl_streams(double, int) noexcept
    int fl_reads_ahead() noexcept
    void fl_stream(void*, const void*, size_t) noexcept
    void fl_stream_end() noexcept

cdef enum:
    SPAN = 512              # elements computed at a time, in scratch of the first-level cache
    PART = 16384            # elements whose sum is one term of the total; a multiple of SPAN
    LANES = 32
    APART = 64              # elements that add_apart takes at a time, whatever a strip is
    PAGE = 4096

cdef struct Sums:           # of a part
    double lane[LANES]
    double growth[2*LANES]  # what add_apart leaves; of so many elements it is below 2^512

cdef enum:                  # fields of Terms
    VALUE
    SLOPE
    CURVATURE
    LABEL_SLOPE
    WEIGHT_SLOPE

cpdef enum:                 # losses
    SIGMOID
    LOG_SIGMOID
    SOFTPLUS
    SIGMOID_CROSS_ENTROPY
    WEIGHTED_CROSS_ENTROPY
    SIGMOID_FOCAL
    SQUARED_ERROR
    ABSOLUTE_ERROR
    HUBER
    LOG_COSH
    QUANTILE
    POISSON
    GAMMA
    TWEEDIE
    HINGE
    SQUARED_HINGE
    DIVERGENCE


# ------------------------------------------------------------------ spans in, spans out

cdef inline Py_ssize_t whole(Py_ssize_t n) noexcept nogil:
    """n, up to a whole strip."""
    return (n + STRIP - 1)//STRIP*STRIP


cdef void fill(const Operand* a, Py_ssize_t n, real* scratch) noexcept nogil:
    """What a CONSTANT leaves in scratch, once for all spans."""
    cdef Py_ssize_t k
    if a.lies == CONSTANT:
        load(scratch, a.data, 0, 1, a.kind)
        for k in range(1, whole(n)):
            scratch[k] = scratch[0]


cdef const real* fetch(const Job* job, const Operand* a, Py_ssize_t i, Py_ssize_t n, real* scratch) noexcept nogil:
    """Elements i .. i + n, where they lie or converted in scratch, there filled up to a whole strip; a CONSTANT is
    there already."""
    cdef Py_ssize_t k = 0, m, left
    cdef const char* p
    if a.lies == DIRECT and n % STRIP == 0:
        return <const real*>a.data + i
    if a.lies == DIRECT:
        memcpy(scratch, a.data + i*<Py_ssize_t>sizeof(real), n*sizeof(real))
    elif a.lies == EVEN:
        load(scratch, a.data + i*a.step, a.step, n, a.kind)
    elif a.lies == UNEVEN:
        while k < n:
            p = place(job, a, i + k, &left)
            m = left if left < n - k else n - k
            load(scratch + k, p, a.stride[job.ndim - 1], m, a.kind)
            k += m
    if a.lies != CONSTANT:
        for k in range(n, whole(n)):
            scratch[k] = scratch[0]
    return scratch


cdef void put(const Job* job, const Operand* a, Py_ssize_t i, Py_ssize_t n, const real* v) noexcept nogil:
    """Elements i .. i + n = v."""
    cdef Py_ssize_t k = 0, m, left
    cdef char* p
    if a.lies == DIRECT and a.itemsize == sizeof(real):
        if job.stream:
            fl_stream(a.data + i*a.step, v, n*sizeof(real))
        else:
            memcpy(a.data + i*a.step, v, n*sizeof(real))
    elif a.lies != UNEVEN:
        store(a.data + i*a.step, a.step, a.kind, v, n)
    else:
        while k < n:
            p = place(job, a, i + k, &left)
            m = left if left < n - k else n - k
            store(p, a.stride[job.ndim - 1], a.kind, v + k, m)
            k += m


cdef inline real* place_of(const Job* job, const Operand* a, Py_ssize_t i, Py_ssize_t n, const real* x,
                           real* scratch) noexcept nogil:
    """Where a span from i on can be written to: where it lies, or, if it must be put there or is x itself, scratch."""
    cdef real* p = <real*>a.data + i
    cdef bint whole_strips = n % STRIP == 0
    return p if (a.lies == DIRECT and a.itemsize == sizeof(real) and whole_strips and not job.stream
                 and p != x) else scratch


# ------------------------------------------------------------------ loops over a span
# of n elements, a multiple of STRIP: strips of constant length are unrolled, and their operations interleaved.

cdef inline void exp_of_some(const Loss* loss, const real* x, real* u, int n, real far) noexcept nogil:
    """u = exp(-|x|), |x| at most far, scaled if the loss takes it so; n is a constant, at most two strips.

    `far` is passed as a variable: gcc 12 compiles a minimum with a constant to two operations.
    """
    cdef real v[2*STRIP]        # results themselves might overlap x, for all that the compiler knows; likewise below
    cdef real power = bias_of(far) if takes_near(loss) else 0
    cdef int j
    for j in range(n):
        v[j] = magnitude(x[j])
        v[j] = far if far < v[j] else v[j]
    exps(v, -1, steps_magic_of(power), v, n, False)
    for j in range(n):
        u[j] = v[j] if takes_near(loss) or takes_scaled(loss) else v[j]*(1/scaled_unit(far))


cdef void exponentials(const Job* job, const Loss* loss, const real* x, real* u, Py_ssize_t n,
                       Ahead* ahead) noexcept nogil:
    """What a loss takes as u.  In a loop of its own: together, the chain of operations is too long to overlap.  Two
    strips at a time, for AMD's cores look only some sixty operations ahead."""
    cdef Py_ssize_t g = 0
    cdef real far = <real>(job.near if takes_near(loss) else job.far)
    if takes_exp(loss):
        while g + 2*STRIP <= n:
            ask(job, ahead, x[0])
            ask(job, ahead, x[0])
            exp_of_some(loss, x + g, u + g, 2*STRIP, far)
            g += 2*STRIP
        if g < n:
            ask(job, ahead, x[0])
            exp_of_some(loss, x + g, u + g, STRIP, far)


cdef inline void compute(const Job* job, const Loss* loss, int field, const real* x, const real* y, const real* q,
                         const real* u, Py_ssize_t n, real* out, Ahead* ahead) noexcept nogil:
    """One field of the Terms."""
    cdef real v[STRIP]
    cdef Terms t
    cdef Py_ssize_t g = 0, j
    while g < n:
        ask(job, ahead, x[0])
        if not takes_exp(loss):         # this may be the only loop
            ask(job, ahead, x[0])
        for j in range(STRIP):
            t = terms(loss, x[g + j], y[g + j], q[g + j], u[g + j])
            if field == VALUE:
                v[j] = <real>t.value
            elif field == SLOPE:
                v[j] = <real>t.slope
            elif field == CURVATURE:
                v[j] = <real>t.curvature
            elif field == LABEL_SLOPE:
                v[j] = <real>t.label_slope
            else:
                v[j] = <real>t.weight_slope
        for j in range(STRIP):
            out[g + j] = v[j]
        g += STRIP


cdef bint ordinary_values(const Job* job, const OrdinaryCrossEntropy* loss, const real* x, const real* y, real q,
                          const real* u, Py_ssize_t n, real* out, Ahead* ahead) noexcept nogil:
    """compute's values of a span, of one pos_weight; False, and nothing of use in out, where it is not ordinary."""
    cdef real odd[STRIP]
    cdef real low[STRIP]
    cdef real v[STRIP]
    cdef Py_ssize_t g = 0, j
    for j in range(STRIP):
        odd[j] = 0
        low[j] = INFINITY
    while g < n:
        ask(job, ahead, x[0])
        for j in range(STRIP):
            odd[j] = odd_bits(odd[j], y[g + j])
            low[j] = min_bits(low[j], u[g + j])
            v[j] = <real>terms(loss, x[g + j], y[g + j], q, u[g + j]).value
        for j in range(STRIP):
            out[g + j] = v[j]
        g += STRIP
    return ordinary_bits(odd, low, STRIP)


cdef inline void wide_values(const Job* job, const Loss* loss, const real* x, const real* y, const real* q,
                             const real* u, Py_ssize_t n, double* value, Ahead* ahead) noexcept nogil:
    cdef Py_ssize_t g = 0, j
    while g < n:
        ask(job, ahead, x[0])
        for j in range(STRIP):
            value[g + j] = summand(loss, x[g + j], y[g + j], q[g + j], u[g + j])
        g += STRIP


cdef inline void add_values(const Job* job, const Loss* loss, const real* x, const real* y, const real* q,
                            const real* u, Py_ssize_t n, double* lane, Ahead* ahead) noexcept nogil:
    """wide_values and add_to in one."""
    cdef double sum[LANES]
    cdef double v[STRIP]
    cdef Py_ssize_t g = 0, k
    cdef int j
    for j in range(LANES):
        sum[j] = lane[j]
    while g < n:
        ask(job, ahead, x[0])
        if not takes_exp(loss):
            ask(job, ahead, x[0])
        for j in range(STRIP):
            if Loss is SquaredError and real is float:
                v[j] = <real>(x[g + j] - y[g + j])
            else:
                v[j] = summand(loss, x[g + j], y[g + j], q[g + j], u[g + j])
        for k in range(0, STRIP, 32):
            for j in range(LANES):
                if Loss is SquaredError and real is float:      # the square is exact, so these are summand's bits
                    sum[j] = fma(v[k + j], v[k + j], sum[j])
                else:
                    sum[j] += v[k + j]
        g += STRIP
    for j in range(LANES):
        lane[j] = sum[j]


cdef bint add_apart(const Job* job, const Loss* loss, const real* x, const real* z, real q, const real* u,
                    Py_ssize_t n, Sums* sums, Ahead* ahead) noexcept nogil:
    """add_values of a cross entropy, all but log(1 + u): for that, growth takes the product of all 1 + u, less 1.

    Of OrdinaryCrossEntropy those of label 1 go into another LANES of them, for they weigh pos_weight; where not all
    turn out to be ordinary, False, and nothing is added.  Numbers are joined in pairs first, for conversions to double
    would take most of the time; n is a multiple of APART.
    """
    cdef double sum[LANES]
    cdef double grown[LANES]
    cdef double grown1[LANES]
    cdef real odd[LANES]
    cdef real low[LANES]
    cdef real v[LANES]
    cdef real near[LANES]
    cdef real near1[LANES]
    cdef real c, w, one = 1, none = 0
    cdef Py_ssize_t g = 0, h, i, _h
    cdef int j
    for j in range(LANES):
        sum[j] = sums.lane[j]
        grown[j] = sums.growth[j]
        grown1[j] = sums.growth[LANES + j]
        odd[j] = 0
        low[j] = INFINITY
    while g < n:
        for _h in range(APART//STRIP):
            ask(job, ahead, x[0])
        for h in range(0, LANES, 16):
            i = g + 2*h
            for j in range(LANES):
                if Loss is OrdinaryCrossEntropy:    # labels are factors, for selects would fill all mask registers
                    c = one - z[i + j]
                    odd[j] = odd_bits(odd[j], z[i + j])
                    low[j] = min_bits(low[j], u[i + j])
                    near1[j] = z[i + j]*u[i + j]
                    near[j] = u[i + j] - near1[j]
                    w = x[i + j]*fma(-q, z[i + j], c)
                    v[j] = w if w > 0 else none
                else:
                    near[j] = u[i + j]
                    v[j] = far_part(x[i + j], z[i + j])
            for j in range(16):
                sum[h + j] += v[j] + v[j + 16]
                grown[h + j] = joined(grown[h + j], joined(near[j], near[j + 16]))
                if Loss is OrdinaryCrossEntropy:
                    grown1[h + j] = joined(grown1[h + j], joined(near1[j], near1[j + 16]))
        g += APART
    if Loss is OrdinaryCrossEntropy and not ordinary_bits(odd, low, LANES):
        return False
    for j in range(LANES):
        sums.lane[j] = sum[j]
        sums.growth[j] = grown[j]
        sums.growth[LANES + j] = grown1[j]
    return True


cdef void scale(real* v, const double* by, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        v[k] = <real>(v[k]*by[k]) if by[k] != 0 else <real>0


cdef void scale_all(const real* v, double by, Py_ssize_t n, real* out) noexcept nogil:
    """out = v by, rounded once."""
    cdef Py_ssize_t k
    cdef float high = <float>(by*(1 - 2.0**-23)), low = <float>(by - high)     # of one sign, and not 0: inf stays inf
    if real is float and 1e-30 < fabs(by) < 1e30:
        for k in range(n):
            out[k] = fma(v[k], high, v[k]*low)
    else:
        for k in range(n):
            out[k] = <real>(v[k]*by) if by != 0 else <real>0


cdef void add_to(double* lane, double* v, Py_ssize_t n) noexcept nogil:
    """v has room for a multiple of LANES."""
    cdef Py_ssize_t g
    cdef int j
    for g in range(n, (n + LANES - 1)//LANES*LANES):
        v[g] = 0
    for g in range((n + LANES - 1)//LANES):
        for j in range(LANES):
            lane[j] += v[g*LANES + j]


cdef double lanes_sum(double* lane) noexcept nogil:
    halve_sum(lane, 16)
    halve_sum(lane, 8)
    halve_sum(lane, 4)
    halve_sum(lane, 2)
    return lane[0] + lane[1]


cdef void finish(const Job* job, const Operand* a, Py_ssize_t i, Py_ssize_t n, real* v,
                 const double* by) noexcept nogil:
    """A span of a gradient: scaled and written."""
    cdef real* to = v
    if by != NULL:
        scale(v, by, n)
    elif job.factor != 1:
        to = place_of(job, a, i, n, <const real*>NULL, v)
        scale_all(v, job.factor, n, to)
    if to == v:
        put(job, a, i, n, v)


cdef inline char* apart(double* room, const char* x) noexcept nogil:
    """A place in the room half a span of floats off x, and off all arrays that lie like x, as large ones do.

    A load waits for an earlier store whose address has the same last 12 bits.
    """
    return <char*>room + ((<uintptr_t>x//64*64 - <uintptr_t>room) & (PAGE//2 - 1)) + PAGE//4


cdef bint only_total(const Job* job) noexcept nogil:
    """Whether the sum of the losses is all that is asked for, and logits and labels are read in place."""
    cdef int k
    for k in range(ARRAYS):
        if job.a[k].lies != (DIRECT if k == X or k == LABEL else ABSENT):
            return False
    return job.total


cdef double part_in_place(const Job* job, const Loss* loss, Py_ssize_t start, Py_ssize_t stop,
                          real dummy) noexcept nogil:
    """part where only_total holds and no exp is taken: the time is memory's, which would wait while part is set up."""
    cdef real x_[STRIP]
    cdef real y_[STRIP]
    cdef double wide[STRIP]
    cdef double lane[LANES]
    cdef Ahead ahead
    cdef const real* x = <const real*>job.a[X].data + start
    cdef const real* y = <const real*>job.a[LABEL].data + start
    cdef Py_ssize_t rest = (stop - start) % STRIP
    cdef int j
    for j in range(LANES):
        lane[j] = 0
    look_ahead(job, &ahead)
    ahead.next = (start + SPAN)*<Py_ssize_t>sizeof(real)
    ahead.stop = (stop + SPAN)*<Py_ssize_t>sizeof(real) if job.n_asked > 0 else 0
    add_values(job, loss, x, y, x, x, stop - rest - start, lane, &ahead)
    if rest > 0:
        x = fetch(job, &job.a[X], stop - rest, rest, x_)
        y = fetch(job, &job.a[LABEL], stop - rest, rest, y_)
        wide_values(job, loss, x, y, x, x, STRIP, wide, &ahead)
        add_to(lane, wide, rest)
    return lanes_sum(lane)


cdef bint any_nan(const real* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    cdef int any = 0
    for k in range(n):
        any |= x[k] != x[k]
    return any


cdef inline bint span(const Job* job, const Loss* loss, Py_ssize_t i, Py_ssize_t n, const real* x, const real* y,
                      const real* q, const double* w, const double* c, real* u, Sums* sums,
                      Ahead* ahead) noexcept nogil:
    """All that is asked for of elements i .. i + n; u has room for four spans.

    False, and nothing is written or added, where the loss is OrdinaryCrossEntropy and they are not.
    """
    cdef double wide[SPAN]
    cdef double by[SPAN]
    cdef const Operand* a = job.a
    cdef Py_ssize_t m = whole(n), k
    cdef real* v = <real*>(<char*>(u + SPAN) + PAGE//8)
    cdef real* g = v + SPAN
    cdef real* to = place_of(job, &a[LOSS], i, n, x, v)
    cdef const double* each = by if w != NULL or c != NULL else NULL
    cdef bint added = False, written = False
    if Loss is OrdinaryCrossEntropy:
        if q[0] == 0 and any_nan(x, n):     # times 0 it is 0, which only the general form looks at
            return False
    exponentials(job, loss, x, u, m, ahead)
    if Loss is SigmoidCrossEntropy or Loss is OrdinaryCrossEntropy:
        if job.total and w == NULL and n % APART == 0:
            added = add_apart(job, loss, x, y, q[0], u, n, sums, ahead)
    if Loss is OrdinaryCrossEntropy:
        if not added and a[LOSS].lies != ABSENT:
            written = ordinary_values(job, loss, x, y, q[0], u, m, to, ahead)
        if not (added or written or is_ordinary(y, u, m)):
            return False
    if job.total and not added:
        if w == NULL and n == m:
            add_values(job, loss, x, y, q, u, m, sums.lane, ahead)
        else:
            wide_values(job, loss, x, y, q, u, m, wide, ahead)
            if w != NULL:
                scale(wide, w, n)
            add_to(sums.lane, wide, n)
    if a[LOSS].lies != ABSENT:
        if not written:
            compute(job, loss, VALUE, x, y, q, u, m, to, ahead)
        if w != NULL:
            scale(to, w, n)
        if to == v:
            put(job, &a[LOSS], i, n, v)
    if each != NULL:
        for k in range(n):
            by[k] = job.factor
        if w != NULL:
            scale(by, w, n)
        if c != NULL:
            scale(by, c, n)
    if a[GRAD].lies != ABSENT:
        compute(job, loss, SLOPE, x, y, q, u, m, g, ahead)
    if Loss is OrdinaryCrossEntropy:
        pass                            # has value and slope only
    else:
        if a[HESSIAN].lies != ABSENT:
            compute(job, loss, CURVATURE, x, y, q, u, m, v, ahead)
            finish(job, &a[HESSIAN], i, n, v, each)
        if a[LABEL_GRAD].lies != ABSENT:
            compute(job, loss, LABEL_SLOPE, x, y, q, u, m, v, ahead)
            finish(job, &a[LABEL_GRAD], i, n, v, each)
    if Loss is WeightedCrossEntropy:
        if a[POS_WEIGHT_GRAD].lies != ABSENT:
            compute(job, loss, WEIGHT_SLOPE, x, y, q, u, m, v, ahead)
            finish(job, &a[POS_WEIGHT_GRAD], i, n, v, each)
    if a[GRAD].lies != ABSENT:          # last, for it may be written over x
        finish(job, &a[GRAD], i, n, g, each)
    return True


cdef double part(const Job* job, const Loss* loss, Py_ssize_t start, Py_ssize_t stop, real dummy) noexcept nogil:
    """All that is asked for of elements start .. stop; the sum of their losses, if that is."""
    cdef real x_[SPAN]
    cdef real y_[SPAN]
    cdef real q_[SPAN]
    cdef double room[4*SPAN]
    cdef double w_[SPAN]
    cdef double c_[SPAN]
    cdef Sums sums
    cdef double logs = 0
    cdef Ahead ahead
    cdef OrdinaryCrossEntropy plain
    cdef const Operand* a = job.a
    cdef bint ordinary
    cdef real* u = <real*>apart(room, a[X].data if a[X].lies == DIRECT else <char*>x_)
    cdef const real* x = x_
    cdef const real* y = x_
    cdef const real* q = x_
    cdef const double* w = NULL
    cdef const double* c = NULL
    cdef Py_ssize_t i = start, n = stop - start if stop - start < SPAN else SPAN
    cdef int j
    for j in range(LANES):
        sums.lane[j] = sums.growth[j] = sums.growth[LANES + j] = 0
    look_ahead(job, &ahead)
    fill(&a[X], n, x_)
    fill(&a[LABEL], n, y_)
    fill(&a[POS_WEIGHT], n, q_)
    fill(&a[WEIGHT], n, w_)
    fill(&a[COTANGENT], n, c_)
    ordinary = (a[POS_WEIGHT].lies == CONSTANT and 0 <= q_[0] < <double>INFINITY and a[HESSIAN].lies == ABSENT
                and a[LABEL_GRAD].lies == ABSENT and a[POS_WEIGHT_GRAD].lies == ABSENT)
    while i < stop:
        n = stop - i if stop - i < SPAN else SPAN
        ahead.next = (i + SPAN)*<Py_ssize_t>sizeof(real)
        ahead.stop = ahead.next + whole(n)*<Py_ssize_t>sizeof(real) if job.n_asked > 0 else 0
        x = fetch(job, &a[X], i, n, x_)
        y = fetch(job, &a[LABEL], i, n, y_) if a[LABEL].lies != ABSENT else x
        q = fetch(job, &a[POS_WEIGHT], i, n, q_) if a[POS_WEIGHT].lies != ABSENT else x
        if a[WEIGHT].lies != ABSENT:
            w = fetch(job, &a[WEIGHT], i, n, w_)
        if a[COTANGENT].lies != ABSENT:
            c = fetch(job, &a[COTANGENT], i, n, c_)
        if Loss is WeightedCrossEntropy:
            if not (ordinary and span(job, &plain, i, n, x, y, q, w, c, u, &sums, &ahead)):
                span(job, loss, i, n, x, y, q, w, c, u, &sums, &ahead)
        else:
            span(job, loss, i, n, x, y, q, w, c, u, &sums, &ahead)
        i += n
    if job.stream:
        fl_stream_end()
    if Loss is SigmoidCrossEntropy or Loss is WeightedCrossEntropy:
        for j in range(2*LANES):
            sums.growth[j] = fl_log1p(sums.growth[j])
        logs = lanes_sum(sums.growth)
        if ordinary:
            logs += q_[0]*lanes_sum(sums.growth + LANES)
    return lanes_sum(sums.lane) + logs


# ------------------------------------------------------------------ all elements

ctypedef void (*Several)(const Run*, const void*, const void*, Py_ssize_t, Py_ssize_t) noexcept nogil

cdef struct Run:
    const Job* job
    const void* loss
    Several several             # of this loss and type
    double* sums
    Py_ssize_t parts
    Py_ssize_t blocks


cdef void run_block(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef const Run* at = <const Run*>call
    at.several(at, at.loss, NULL, cut(at.parts, b, at.blocks), cut(at.parts, b + 1, at.blocks))


cdef double over(Job* job, const Loss* loss, int n_threads, real dummy) except? -1:
    """Every part once; the sum of the losses."""
    cdef Py_ssize_t p
    cdef int own = F32 if real is float else F64, b
    cdef Run at
    cdef double one
    cdef double total = 0, carry = 0, y, z
    job.n_asked = 0
    job.far = far_of(dummy)
    job.near = near_of(dummy)
    for b in range(ARRAYS):
        settle(job, &job.a[b], F64 if b == WEIGHT or b == COTANGENT else own)
        if job.a[b].lies == DIRECT and job.a[b].kind == own and not (job.stream and b >= LOSS):
            job.asked[job.n_asked] = job.a[b].data
            job.n_asked += 1
    if not takes_exp(loss) and only_total(job) and fl_reads_ahead():
        job.n_asked = 0
    at.job = job
    at.loss = loss
    at.several = <Several>several[Loss, real]
    at.parts = (job.n + PART - 1)//PART
    at.blocks = min(at.parts, blocks(job.n, 1, n_threads))
    at.sums = &one if at.parts == 1 else <double*>malloc(at.parts*sizeof(double))
    if at.sums == NULL:
        no_memory(at.parts*sizeof(double))
    try:
        with nogil:
            for_blocks(run_block, &at, at.blocks, n_threads)
            for p in range(at.parts):           # compensated: 2^31 elements are many parts
                z = total + at.sums[p]
                if abs(z) < 1e308:
                    y = z - total
                    carry += (total - (z - y)) + (at.sums[p] - y)
                total = z
    finally:
        if at.sums != &one:
            free(at.sums)
    return total + carry


cdef void several(const Run* at, const Loss* loss, const real* none, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Parts start .. stop; `none` is NULL, of the type to compute in."""
    cdef const Job* job = at.job
    cdef Py_ssize_t p, end
    cdef bint in_place = not takes_exp(loss) and only_total(job)
    for p in range(start, stop):
        end = min(job.n, (p + 1)*PART)
        if in_place:
            at.sums[p] = part_in_place(job, loss, p*PART, end, <real>0)
        else:
            at.sums[p] = part(job, loss, p*PART, end, <real>0)


cdef double start(Job* job, const Loss* loss, int n_threads) except? -1:
    if job.a[X].kind == F64:
        return over[Loss, double](job, loss, n_threads, 0)
    return over[Loss, float](job, loss, n_threads, 0)


def run(int what, tuple parameters, x, label, pos_weight, weight, cotangent, loss, grad, label_grad, pos_weight_grad,
        hessian, bint total, double factor, int n_threads):
    """Losses of all elements, their gradients times `factor`, and the sum of the losses where `total`; all arrays of
    one shape, or None."""
    cdef Job job
    cdef Held held
    cdef Parameters of
    cdef Py_ssize_t written
    cdef double power
    held.count = 0
    try:
        hold(&held, x, False, &job, &job.a[X])
        hold(&held, label, False, &job, &job.a[LABEL])
        hold(&held, pos_weight, False, &job, &job.a[POS_WEIGHT])
        hold(&held, weight, False, &job, &job.a[WEIGHT])
        hold(&held, cotangent, False, &job, &job.a[COTANGENT])
        hold(&held, loss, True, &job, &job.a[LOSS])
        hold(&held, grad, True, &job, &job.a[GRAD])
        hold(&held, label_grad, True, &job, &job.a[LABEL_GRAD])
        hold(&held, pos_weight_grad, True, &job, &job.a[POS_WEIGHT_GRAD])
        hold(&held, hessian, True, &job, &job.a[HESSIAN])
        if job.n == 0:
            return 0.0
        job.total = total
        job.factor = factor
        written = (loss is not None) + (grad is not None) + (label_grad is not None) + (hessian is not None)
        job.stream = fl_streams(<double>written*<double>job.n*job.a[X].itemsize, n_threads)
        arrange(&job)
        if what == SIGMOID:
            return start(&job, &of.sigmoid, n_threads)
        elif what == LOG_SIGMOID:
            return start(&job, &of.log_sigmoid, n_threads)
        elif what == SOFTPLUS:
            return start(&job, &of.softplus, n_threads)
        elif what == SIGMOID_CROSS_ENTROPY:
            return start(&job, &of.sigmoid_cross_entropy, n_threads)
        elif what == WEIGHTED_CROSS_ENTROPY:
            return start(&job, &of.weighted_cross_entropy, n_threads)
        elif what == SIGMOID_FOCAL:
            of.sigmoid_focal.gamma, of.sigmoid_focal.positive, of.sigmoid_focal.negative = parameters
            return start(&job, &of.sigmoid_focal, n_threads)
        elif what == SQUARED_ERROR:
            return start(&job, &of.squared_error, n_threads)
        elif what == ABSOLUTE_ERROR:
            return start(&job, &of.absolute_error, n_threads)
        elif what == HUBER:
            of.huber.delta, = parameters
            return start(&job, &of.huber, n_threads)
        elif what == LOG_COSH:
            return start(&job, &of.log_cosh, n_threads)
        elif what == QUANTILE:
            of.quantile.quantile, = parameters
            return start(&job, &of.quantile, n_threads)
        elif what == POISSON:
            of.poisson.full, = parameters
            return start(&job, &of.poisson, n_threads)
        elif what == GAMMA:
            return start(&job, &of.gamma, n_threads)
        elif what == TWEEDIE:
            power, = parameters
            of.tweedie.two = 2 - power
            of.tweedie.two_rest = (2 - of.tweedie.two) - power
            of.tweedie.one = 1 - power
            of.tweedie.one_rest = (1 - of.tweedie.one) - power
            return start(&job, &of.tweedie, n_threads)
        elif what == HINGE:
            return start(&job, &of.hinge, n_threads)
        elif what == SQUARED_HINGE:
            return start(&job, &of.squared_hinge, n_threads)
        elif what == DIVERGENCE:
            return start(&job, &of.divergence, n_threads)
        raise ValueError(f"no loss {what}")
    finally:
        release(&held)
