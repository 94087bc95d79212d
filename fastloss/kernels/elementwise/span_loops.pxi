# Included by elementwise.pyx, as spans.pxi is: loops over a span.

# ------------------------------------------------------------------ loops over a span
# of `whole` elements, a multiple of STRIP: strips of constant length are unrolled, and their operations interleaved.

cdef inline void exp_of_some(const Loss* loss, const real* x, real* u, int n, real far) noexcept nogil:
    """u = exp(-|x|), |x| at most far, scaled if the loss takes it so; n is a constant, at most two strips.

    far is a variable, for of a minimum of constants gcc makes two operations.
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


cdef void exponentials(const ElementwiseCall* call, const Loss* loss, const Span* s, Ahead* ahead,
                       real dummy) noexcept nogil:
    """What a loss takes as u.  In a loop of its own: together, the chain of operations is too long to overlap.  Two
    strips at a time, for AMD's cores look only some sixty operations ahead."""
    cdef const real* x = <const real*>s.x
    cdef real* u = <real*>s.u
    cdef Py_ssize_t g = 0, n = s.whole
    cdef real far = <real>(call.near if takes_near(loss) else call.far)
    if takes_exp(loss):
        while g + 2*STRIP <= n:
            ask(call, ahead, x[0])
            ask(call, ahead, x[0])
            exp_of_some(loss, x + g, u + g, 2*STRIP, far)
            g += 2*STRIP
        if g < n:
            ask(call, ahead, x[0])
            exp_of_some(loss, x + g, u + g, STRIP, far)


cdef inline void compute(const ElementwiseCall* call, const Loss* loss, const Span* s, int field, Ahead* ahead,
                         real* out) noexcept nogil:
    """One field of the terms."""
    cdef const real* x = <const real*>s.x
    cdef const real* y = <const real*>s.y
    cdef const real* q = <const real*>s.q
    cdef const real* u = <const real*>s.u
    cdef real v[STRIP]
    cdef ElementTerms t
    cdef Py_ssize_t g = 0, n = s.whole, j
    while g < n:
        ask(call, ahead, x[0])
        if not takes_exp(loss):         # this may be the only loop
            ask(call, ahead, x[0])
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


cdef bint ordinary_values(const ElementwiseCall* call, const OrdinaryCrossEntropy* loss, const Span* s, Ahead* ahead,
                          real* out) noexcept nogil:
    """compute's values of a span, of one pos_weight; False, and nothing of use in out, where it is not ordinary."""
    cdef const real* x = <const real*>s.x
    cdef const real* y = <const real*>s.y
    cdef real q = (<const real*>s.q)[0]
    cdef const real* u = <const real*>s.u
    cdef real odd[STRIP]
    cdef real low[STRIP]
    cdef real v[STRIP]
    cdef Py_ssize_t g = 0, n = s.whole, j
    for j in range(STRIP):
        odd[j] = 0
        low[j] = INFINITY
    while g < n:
        ask(call, ahead, x[0])
        for j in range(STRIP):
            odd[j] = odd_bits(odd[j], y[g + j])
            low[j] = min_bits(low[j], u[g + j])
            v[j] = <real>terms(loss, x[g + j], y[g + j], q, u[g + j]).value
        for j in range(STRIP):
            out[g + j] = v[j]
        g += STRIP
    return ordinary_bits(odd, low, STRIP)


cdef inline void wide_values(const ElementwiseCall* call, const Loss* loss, const Span* s, Ahead* ahead, double* value,
                             real dummy) noexcept nogil:
    cdef const real* x = <const real*>s.x
    cdef const real* y = <const real*>s.y
    cdef const real* q = <const real*>s.q
    cdef const real* u = <const real*>s.u
    cdef Py_ssize_t g = 0, n = s.whole, j
    while g < n:
        ask(call, ahead, x[0])
        for j in range(STRIP):
            value[g + j] = summand(loss, x[g + j], y[g + j], q[g + j], u[g + j])
        g += STRIP


cdef inline void add_values(const ElementwiseCall* call, const Loss* loss, const Span* s, Ahead* ahead, double* lane,
                            real dummy) noexcept nogil:
    """wide_values and add_to in one."""
    cdef const real* x = <const real*>s.x
    cdef const real* y = <const real*>s.y
    cdef const real* q = <const real*>s.q
    cdef const real* u = <const real*>s.u
    cdef double sum[SUM_LANES]
    cdef double v[STRIP]
    cdef Py_ssize_t g = 0, n = s.whole, k
    cdef int j
    for j in range(SUM_LANES):
        sum[j] = lane[j]
    while g < n:
        ask(call, ahead, x[0])
        if not takes_exp(loss):
            ask(call, ahead, x[0])
        for j in range(STRIP):
            if Loss is SquaredError and real is float:
                v[j] = <real>(x[g + j] - y[g + j])
            else:
                v[j] = summand(loss, x[g + j], y[g + j], q[g + j], u[g + j])
        for k in range(0, STRIP, 32):
            for j in range(SUM_LANES):
                if Loss is SquaredError and real is float:      # the square is exact, so these are summand's bits
                    sum[j] = fma(v[k + j], v[k + j], sum[j])
                else:
                    sum[j] += v[k + j]
        g += STRIP
    for j in range(SUM_LANES):
        lane[j] = sum[j]


cdef bint add_apart(const ElementwiseCall* call, const Loss* loss, const Span* s, Ahead* ahead, PartSums* sums,
                    real dummy) noexcept nogil:
    """add_values of a cross entropy, all but log(1 + u): for that, growth takes the product of all 1 + u, less 1.

    Of OrdinaryCrossEntropy those of label 1 go into another SUM_LANES of them, for they weigh pos_weight; where not all
    turn out to be ordinary, False, and nothing is added.  Numbers are joined in pairs first, for conversions to double
    would take most of the time; the span is a multiple of APART_ELEMENTS.
    """
    cdef const real* x = <const real*>s.x
    cdef const real* z = <const real*>s.y
    cdef real q = (<const real*>s.q)[0]
    cdef const real* u = <const real*>s.u
    cdef double sum[SUM_LANES]
    cdef double grown[SUM_LANES]
    cdef double grown1[SUM_LANES]
    cdef real odd[SUM_LANES]
    cdef real low[SUM_LANES]
    cdef real v[SUM_LANES]
    cdef real near[SUM_LANES]
    cdef real near1[SUM_LANES]
    cdef real c, w, one = 1, none = 0
    cdef Py_ssize_t g = 0, n = s.whole, h, i, _h
    cdef int j
    for j in range(SUM_LANES):
        sum[j] = sums.lane[j]
        grown[j] = sums.growth[j]
        grown1[j] = sums.growth[SUM_LANES + j]
        odd[j] = 0
        low[j] = INFINITY
    while g < n:
        for _h in range(APART_ELEMENTS//STRIP):
            ask(call, ahead, x[0])
        for h in range(0, SUM_LANES, 16):
            i = g + 2*h
            for j in range(SUM_LANES):
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
        g += APART_ELEMENTS
    if Loss is OrdinaryCrossEntropy and not ordinary_bits(odd, low, SUM_LANES):
        return False
    for j in range(SUM_LANES):
        sums.lane[j] = sum[j]
        sums.growth[j] = grown[j]
        sums.growth[SUM_LANES + j] = grown1[j]
    return True


cdef void add_to(double* lane, double* v, Py_ssize_t n) noexcept nogil:
    """v has room for a multiple of SUM_LANES."""
    cdef Py_ssize_t g
    cdef int j
    for g in range(n, (n + SUM_LANES - 1)//SUM_LANES*SUM_LANES):
        v[g] = 0
    for g in range((n + SUM_LANES - 1)//SUM_LANES):
        for j in range(SUM_LANES):
            lane[j] += v[g*SUM_LANES + j]


cdef double lanes_sum(double* lane) noexcept nogil:
    halve_sum(lane, 16)
    halve_sum(lane, 8)
    halve_sum(lane, 4)
    halve_sum(lane, 2)
    return lane[0] + lane[1]


cdef bint any_nan(const real* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    cdef int any = 0
    for k in range(n):
        any |= x[k] != x[k]
    return any
