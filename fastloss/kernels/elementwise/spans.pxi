# Included by elementwise.pyx, for not all of it is to be inlined, as what a .pxd file defines is: how spans of operands
# are read and written.

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


cdef const real* fetch(const ElementwiseCall* call, const Operand* a, Py_ssize_t i, Py_ssize_t n,
                       real* scratch) noexcept nogil:
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
            p = place(call, a, i + k, &left)
            m = left if left < n - k else n - k
            load(scratch + k, p, a.stride[call.ndim - 1], m, a.kind)
            k += m
    if a.lies != CONSTANT:
        for k in range(n, whole(n)):
            scratch[k] = scratch[0]
    return scratch


cdef void put(const ElementwiseCall* call, const Operand* a, Py_ssize_t i, Py_ssize_t n, const real* v) noexcept nogil:
    """Elements i .. i + n = v."""
    cdef Py_ssize_t k = 0, m, left
    cdef char* p
    if a.lies == DIRECT and a.itemsize == sizeof(real):
        if call.stream:
            fl_stream(a.data + i*a.step, v, n*sizeof(real))
        else:
            memcpy(a.data + i*a.step, v, n*sizeof(real))
    elif a.lies != UNEVEN:
        store(a.data + i*a.step, a.step, a.kind, v, n)
    else:
        while k < n:
            p = place(call, a, i + k, &left)
            m = left if left < n - k else n - k
            store(p, a.stride[call.ndim - 1], a.kind, v + k, m)
            k += m


cdef inline real* place_of(const ElementwiseCall* call, const Operand* a, Py_ssize_t i, Py_ssize_t n, const real* x,
                           real* scratch) noexcept nogil:
    """Where a span from i on can be written to: where it lies, or, if it must be put there or is x itself, scratch."""
    cdef real* p = <real*>a.data + i
    cdef bint whole_strips = n % STRIP == 0
    return p if (a.lies == DIRECT and a.itemsize == sizeof(real) and whole_strips and not call.stream
                 and p != x) else scratch


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


cdef void finish(const ElementwiseCall* call, const Operand* a, Py_ssize_t i, Py_ssize_t n, real* v,
                 const double* by) noexcept nogil:
    """A span of a gradient: scaled and written."""
    cdef real* to = v
    if by != NULL:
        scale(v, by, n)
    elif call.factor != 1:
        to = place_of(call, a, i, n, <const real*>NULL, v)
        scale_all(v, call.factor, n, to)
    if to == v:
        put(call, a, i, n, v)


cdef inline char* apart(double* room, const char* x) noexcept nogil:
    """A place in the room half a span of floats off x, and off all arrays that lie like x, as large ones do.

    A load waits for an earlier store whose address has the same last 12 bits.
    """
    return <char*>room + ((<uintptr_t>x//64*64 - <uintptr_t>room) & (PAGE_BYTES//2 - 1)) + PAGE_BYTES//4
