"""The one loop of all element-wise losses.

A loss is a tag (a struct with its parameters) and an inline function from (prediction, label) to its terms; the fused
type of the tags (registry.pxd) makes a loop of its own for each, without a call or a switch in it.  Operands have one
shape and any layout and dtype: they are read in spans, in place where they can be, and so are results written
(spans.pxi; the loops over a span: span_loops.pxi).
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
    POS_WEIGHT_GRAD, STRIP, UNEVEN, WEIGHT, X, Ahead, ElementwiseCall, Operand, arrange, ask, hold, look_ahead, place,
    settle,
)
from fastloss.kernels.parallel.parallel cimport blocks, cut
from fastloss.kernels.elementwise.regression cimport SquaredError
from fastloss.kernels.parallel.scratch cimport no_memory
from fastloss.kernels.elementwise.sigmoid cimport (
    OrdinaryCrossEntropy, SigmoidCrossEntropy, ElementTerms, WeightedCrossEntropy, far_part, is_ordinary, ordinary_bits,
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
    SPAN_ELEMENTS = 512     # computed at a time, in scratch of the first-level cache
    PART_ELEMENTS = 16384   # whose sum is one term of the total; a multiple of SPAN_ELEMENTS
    SUM_LANES = 32
    APART_ELEMENTS = 64     # that add_apart takes at a time, whatever a strip is
    PAGE_BYTES = 4096

cdef struct PartSums:
    double lane[SUM_LANES]
    double growth[2*SUM_LANES]  # what add_apart leaves; of so many elements it is below 2^512

cdef struct Span:           # elements that are computed together
    Py_ssize_t start
    Py_ssize_t n
    Py_ssize_t whole        # n, up to a whole strip
    const void* x           # of the type that is computed in
    const void* y
    const void* q
    const double* w         # of every element, or NULL
    const double* c
    void* u                 # room for four spans: exponentials, and results

cdef enum:                  # fields of the terms
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


include "spans.pxi"
include "span_loops.pxi"

# ------------------------------------------------------------------ a part

cdef bint only_total(const ElementwiseCall* call) noexcept nogil:
    """Whether the sum of the losses is all that is asked for, and logits and labels are read in place."""
    cdef int k
    for k in range(ARRAYS):
        if call.a[k].lies != (DIRECT if k == X or k == LABEL else ABSENT):
            return False
    return call.total


cdef double run_part_in_place(const ElementwiseCall* call, const Loss* loss, Py_ssize_t start, Py_ssize_t stop,
                              real dummy) noexcept nogil:
    """run_part where only_total holds and no exp is taken: the time is memory's, which would wait while that is set up.
    """
    cdef real x_[STRIP]
    cdef real y_[STRIP]
    cdef double wide[STRIP]
    cdef double lane[SUM_LANES]
    cdef Ahead ahead
    cdef Span s
    cdef Py_ssize_t rest = (stop - start) % STRIP
    cdef int j
    for j in range(SUM_LANES):
        lane[j] = 0
    look_ahead(call, &ahead)
    ahead.next = (start + SPAN_ELEMENTS)*<Py_ssize_t>sizeof(real)
    ahead.stop = (stop + SPAN_ELEMENTS)*<Py_ssize_t>sizeof(real) if call.n_asked > 0 else 0
    s.whole = stop - rest - start
    s.x = s.q = s.u = <real*>call.a[X].data + start
    s.y = <real*>call.a[LABEL].data + start
    add_values(call, loss, &s, &ahead, lane, dummy)
    if rest > 0:
        s.whole = STRIP
        s.x = s.q = fetch(call, &call.a[X], stop - rest, rest, x_)
        s.y = fetch(call, &call.a[LABEL], stop - rest, rest, y_)
        wide_values(call, loss, &s, &ahead, wide, dummy)
        add_to(lane, wide, rest)
    return lanes_sum(lane)


cdef inline bint run_span(const ElementwiseCall* call, const Loss* loss, const Span* s, PartSums* sums, Ahead* ahead,
                          real dummy) noexcept nogil:
    """All that is asked for of a span.

    False, and nothing is written or added, where the loss is OrdinaryCrossEntropy and they are not.
    """
    cdef double wide[SPAN_ELEMENTS]
    cdef double by[SPAN_ELEMENTS]
    cdef const Operand* a = call.a
    cdef const real* x = <const real*>s.x
    cdef const double* w = s.w
    cdef const double* c = s.c
    cdef Py_ssize_t i = s.start, n = s.n, k
    cdef real* v = <real*>(<char*>(<real*>s.u + SPAN_ELEMENTS) + PAGE_BYTES//8)
    cdef real* g = v + SPAN_ELEMENTS
    cdef real* to = place_of(call, &a[LOSS], i, n, x, v)
    cdef const double* each = by if w != NULL or c != NULL else NULL
    cdef bint added = False, written = False
    if Loss is OrdinaryCrossEntropy:
        if (<const real*>s.q)[0] == 0 and any_nan(x, n):     # times 0 it is 0, which only the general form looks at
            return False
    exponentials(call, loss, s, ahead, dummy)
    if Loss is SigmoidCrossEntropy or Loss is OrdinaryCrossEntropy:
        if call.total and w == NULL and n % APART_ELEMENTS == 0:
            added = add_apart(call, loss, s, ahead, sums, dummy)
    if Loss is OrdinaryCrossEntropy:
        if not added and a[LOSS].lies != ABSENT:
            written = ordinary_values(call, loss, s, ahead, to)
        if not (added or written or is_ordinary(<const real*>s.y, <const real*>s.u, s.whole)):
            return False
    if call.total and not added:
        if w == NULL and n == s.whole:
            add_values(call, loss, s, ahead, sums.lane, dummy)
        else:
            wide_values(call, loss, s, ahead, wide, dummy)
            if w != NULL:
                scale(wide, w, n)
            add_to(sums.lane, wide, n)
    if a[LOSS].lies != ABSENT:
        if not written:
            compute(call, loss, s, VALUE, ahead, to)
        if w != NULL:
            scale(to, w, n)
        if to == v:
            put(call, &a[LOSS], i, n, v)
    if each != NULL:
        for k in range(n):
            by[k] = call.factor
        if w != NULL:
            scale(by, w, n)
        if c != NULL:
            scale(by, c, n)
    if a[GRAD].lies != ABSENT:
        compute(call, loss, s, SLOPE, ahead, g)
    if Loss is OrdinaryCrossEntropy:
        pass                            # has value and slope only
    else:
        if a[HESSIAN].lies != ABSENT:
            compute(call, loss, s, CURVATURE, ahead, v)
            finish(call, &a[HESSIAN], i, n, v, each)
        if a[LABEL_GRAD].lies != ABSENT:
            compute(call, loss, s, LABEL_SLOPE, ahead, v)
            finish(call, &a[LABEL_GRAD], i, n, v, each)
    if Loss is WeightedCrossEntropy:
        if a[POS_WEIGHT_GRAD].lies != ABSENT:
            compute(call, loss, s, WEIGHT_SLOPE, ahead, v)
            finish(call, &a[POS_WEIGHT_GRAD], i, n, v, each)
    if a[GRAD].lies != ABSENT:          # last, for it may be written over x
        finish(call, &a[GRAD], i, n, g, each)
    return True


cdef double run_part(const ElementwiseCall* call, const Loss* loss, Py_ssize_t start, Py_ssize_t stop,
                     real dummy) noexcept nogil:
    """All that is asked for of elements start .. stop; the sum of their losses, if that is."""
    cdef real x_[SPAN_ELEMENTS]
    cdef real y_[SPAN_ELEMENTS]
    cdef real q_[SPAN_ELEMENTS]
    cdef double room[4*SPAN_ELEMENTS]
    cdef double w_[SPAN_ELEMENTS]
    cdef double c_[SPAN_ELEMENTS]
    cdef PartSums sums
    cdef double logs = 0
    cdef Ahead ahead
    cdef OrdinaryCrossEntropy plain
    cdef const Operand* a = call.a
    cdef bint ordinary
    cdef Span s
    cdef Py_ssize_t i = start, n = stop - start if stop - start < SPAN_ELEMENTS else SPAN_ELEMENTS
    cdef int j
    for j in range(SUM_LANES):
        sums.lane[j] = sums.growth[j] = sums.growth[SUM_LANES + j] = 0
    look_ahead(call, &ahead)
    fill(&a[X], n, x_)
    fill(&a[LABEL], n, y_)
    fill(&a[POS_WEIGHT], n, q_)
    fill(&a[WEIGHT], n, w_)
    fill(&a[COTANGENT], n, c_)
    ordinary = (a[POS_WEIGHT].lies == CONSTANT and 0 <= q_[0] < <double>INFINITY and a[HESSIAN].lies == ABSENT
                and a[LABEL_GRAD].lies == ABSENT and a[POS_WEIGHT_GRAD].lies == ABSENT)
    s.u = apart(room, a[X].data if a[X].lies == DIRECT else <char*>x_)
    s.w = s.c = NULL
    while i < stop:
        n = stop - i if stop - i < SPAN_ELEMENTS else SPAN_ELEMENTS
        s.start, s.n, s.whole = i, n, whole(n)
        ahead.next = (i + SPAN_ELEMENTS)*<Py_ssize_t>sizeof(real)
        ahead.stop = ahead.next + s.whole*<Py_ssize_t>sizeof(real) if call.n_asked > 0 else 0
        s.x = s.y = s.q = fetch(call, &a[X], i, n, x_)
        if a[LABEL].lies != ABSENT:
            s.y = fetch(call, &a[LABEL], i, n, y_)
        if a[POS_WEIGHT].lies != ABSENT:
            s.q = fetch(call, &a[POS_WEIGHT], i, n, q_)
        if a[WEIGHT].lies != ABSENT:
            s.w = fetch(call, &a[WEIGHT], i, n, w_)
        if a[COTANGENT].lies != ABSENT:
            s.c = fetch(call, &a[COTANGENT], i, n, c_)
        if Loss is WeightedCrossEntropy:
            if not (ordinary and run_span(call, &plain, &s, &sums, &ahead, dummy)):
                run_span(call, loss, &s, &sums, &ahead, dummy)
        else:
            run_span(call, loss, &s, &sums, &ahead, dummy)
        i += n
    if call.stream:
        fl_stream_end()
    if Loss is SigmoidCrossEntropy or Loss is WeightedCrossEntropy:
        for j in range(2*SUM_LANES):
            sums.growth[j] = fl_log1p(sums.growth[j])
        logs = lanes_sum(sums.growth)
        if ordinary:
            logs += q_[0]*lanes_sum(sums.growth + SUM_LANES)
    return lanes_sum(sums.lane) + logs


# ------------------------------------------------------------------ all elements

ctypedef void (*RunParts)(const AllParts*, const void*, const void*, Py_ssize_t, Py_ssize_t) noexcept nogil

cdef struct AllParts:
    const ElementwiseCall* call
    const void* loss
    RunParts run_parts          # of this loss and type
    double* sums
    Py_ssize_t parts
    Py_ssize_t blocks


cdef void run_block(void* all, Py_ssize_t b, int thread) noexcept nogil:
    cdef const AllParts* at = <const AllParts*>all
    at.run_parts(at, at.loss, NULL, cut(at.parts, b, at.blocks), cut(at.parts, b + 1, at.blocks))


cdef double run_all(ElementwiseCall* call, const Loss* loss, int n_threads, real dummy) except? -1:
    """Every part once; the sum of the losses."""
    cdef Py_ssize_t p
    cdef int own = F32 if real is float else F64, b
    cdef AllParts at
    cdef double one
    cdef double total = 0, carry = 0, y, z
    call.n_asked = 0
    call.far = far_of(dummy)
    call.near = near_of(dummy)
    for b in range(ARRAYS):
        settle(call, &call.a[b], F64 if b == WEIGHT or b == COTANGENT else own)
        if call.a[b].lies == DIRECT and call.a[b].kind == own and not (call.stream and b >= LOSS):
            call.asked[call.n_asked] = call.a[b].data
            call.n_asked += 1
    if not takes_exp(loss) and only_total(call) and fl_reads_ahead():
        call.n_asked = 0
    at.call = call
    at.loss = loss
    at.run_parts = <RunParts>run_parts[Loss, real]
    at.parts = (call.n + PART_ELEMENTS - 1)//PART_ELEMENTS
    at.blocks = min(at.parts, blocks(call.n, 1, n_threads))
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


cdef void run_parts(const AllParts* at, const Loss* loss, const real* none, Py_ssize_t start,
                    Py_ssize_t stop) noexcept nogil:
    """Parts start .. stop; `none` is NULL, of the type to compute in."""
    cdef const ElementwiseCall* call = at.call
    cdef Py_ssize_t p, end
    cdef bint in_place = not takes_exp(loss) and only_total(call)
    for p in range(start, stop):
        end = min(call.n, (p + 1)*PART_ELEMENTS)
        if in_place:
            at.sums[p] = run_part_in_place(call, loss, p*PART_ELEMENTS, end, <real>0)
        else:
            at.sums[p] = run_part(call, loss, p*PART_ELEMENTS, end, <real>0)


cdef double dispatch_dtype(ElementwiseCall* call, const Loss* loss, int n_threads) except? -1:
    if call.a[X].kind == F64:
        return run_all[Loss, double](call, loss, n_threads, 0)
    return run_all[Loss, float](call, loss, n_threads, 0)


def run(int what, tuple parameters, x, label, loss, double factor, int n_threads, *, pos_weight=None, weight=None,
        cotangent=None, grad=None, label_grad=None, pos_weight_grad=None, hessian=None):
    """Losses of all elements, or, where `loss` is None, their sum; and their gradients times `factor`; all arrays of
    one shape, or None."""
    cdef ElementwiseCall call
    cdef Held held
    cdef Parameters of
    cdef Py_ssize_t written
    cdef double power
    held.count = 0
    try:
        hold(&held, x, False, &call, &call.a[X])
        hold(&held, label, False, &call, &call.a[LABEL])
        hold(&held, pos_weight, False, &call, &call.a[POS_WEIGHT])
        hold(&held, weight, False, &call, &call.a[WEIGHT])
        hold(&held, cotangent, False, &call, &call.a[COTANGENT])
        hold(&held, loss, True, &call, &call.a[LOSS])
        hold(&held, grad, True, &call, &call.a[GRAD])
        hold(&held, label_grad, True, &call, &call.a[LABEL_GRAD])
        hold(&held, pos_weight_grad, True, &call, &call.a[POS_WEIGHT_GRAD])
        hold(&held, hessian, True, &call, &call.a[HESSIAN])
        if call.n == 0:
            return 0.0
        call.total = loss is None
        call.factor = factor
        written = (loss is not None) + (grad is not None) + (label_grad is not None) + (hessian is not None)
        call.stream = fl_streams(<double>written*<double>call.n*call.a[X].itemsize, n_threads)
        arrange(&call)
        if what == SIGMOID:
            return dispatch_dtype(&call, &of.sigmoid, n_threads)
        elif what == LOG_SIGMOID:
            return dispatch_dtype(&call, &of.log_sigmoid, n_threads)
        elif what == SOFTPLUS:
            return dispatch_dtype(&call, &of.softplus, n_threads)
        elif what == SIGMOID_CROSS_ENTROPY:
            return dispatch_dtype(&call, &of.sigmoid_cross_entropy, n_threads)
        elif what == WEIGHTED_CROSS_ENTROPY:
            return dispatch_dtype(&call, &of.weighted_cross_entropy, n_threads)
        elif what == SIGMOID_FOCAL:
            of.sigmoid_focal.gamma, of.sigmoid_focal.positive, of.sigmoid_focal.negative = parameters
            return dispatch_dtype(&call, &of.sigmoid_focal, n_threads)
        elif what == SQUARED_ERROR:
            return dispatch_dtype(&call, &of.squared_error, n_threads)
        elif what == ABSOLUTE_ERROR:
            return dispatch_dtype(&call, &of.absolute_error, n_threads)
        elif what == HUBER:
            of.huber.delta, = parameters
            return dispatch_dtype(&call, &of.huber, n_threads)
        elif what == LOG_COSH:
            return dispatch_dtype(&call, &of.log_cosh, n_threads)
        elif what == QUANTILE:
            of.quantile.quantile, = parameters
            return dispatch_dtype(&call, &of.quantile, n_threads)
        elif what == POISSON:
            of.poisson.full, = parameters
            return dispatch_dtype(&call, &of.poisson, n_threads)
        elif what == GAMMA:
            return dispatch_dtype(&call, &of.gamma, n_threads)
        elif what == TWEEDIE:
            power, = parameters
            of.tweedie.two = 2 - power
            of.tweedie.two_rest = (2 - of.tweedie.two) - power
            of.tweedie.one = 1 - power
            of.tweedie.one_rest = (1 - of.tweedie.one) - power
            return dispatch_dtype(&call, &of.tweedie, n_threads)
        elif what == HINGE:
            return dispatch_dtype(&call, &of.hinge, n_threads)
        elif what == SQUARED_HINGE:
            return dispatch_dtype(&call, &of.squared_hinge, n_threads)
        elif what == DIVERGENCE:
            return dispatch_dtype(&call, &of.divergence, n_threads)
        raise ValueError(f"no loss {what}")
    finally:
        release(&held)
