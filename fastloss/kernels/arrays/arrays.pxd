"""What a kernel knows of an array: address, strides, kind of element.

Any layout is read in place: rows may be strided, broadcast (stride 0) or unaligned, and the axis of a row may be any.
Rows of another kind than the kernel computes in are converted span by span in scratch.
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from fastloss.kernels.math.vmath cimport (
    fl_bfloat_of_float, fl_float_of_bfloat, fl_float_of_half, fl_half_of_float, real,
)

cdef extern from "arrays/float16.h" nogil:
    void fl_widen_halves(const char*, float*, Py_ssize_t) noexcept
    void fl_narrow_halves(const float*, char*, Py_ssize_t) noexcept

cdef enum:
    MAX_DIMS = 64       # NumPy's own limit
    MAX_ARRAYS = 12     # arrays of one call
    NO_AXIS = -1        # every element is a row of one
    SPAN_ELEMENTS = 256     # converted at a time

cdef enum:              # kinds of element
    F32
    F64
    F16
    BF16
    BOOL
    I8
    I16
    I32
    I64
    U8
    U16
    U32
    U64

ctypedef fused stored:
    float
    double
    int8_t
    int16_t
    int32_t
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t

cdef struct Rows:
    char* data          # NULL: no such array
    Py_ssize_t n        # rows
    Py_ssize_t width    # elements of a row
    Py_ssize_t step     # bytes between elements of a row
    Py_ssize_t itemsize
    int kind
    int ndim            # the axes that are not the row's, merged where possible, outermost first
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t stride[MAX_DIMS]

cdef struct Held:       # the buffers of one call, to be released together
    Py_buffer view[MAX_ARRAYS]
    int count


cdef inline int kind_of(const Py_buffer* view) except -1:
    cdef const char* f = view.format
    cdef char letter
    cdef bint signed
    if f == NULL:
        return U8
    if f[0] == b"^" or f[0] == b"@" or f[0] == b"=":   # NumPy marks unaligned arrays so
        f += 1
    letter = f[0]
    if letter == b"2" and f[1] == b"x":                 # two bytes without a type: how wrappers pass bfloat16
        return BF16
    if letter != 0 and f[1] == 0:
        if letter == b"f":
            return F32
        if letter == b"d":
            return F64
        if letter == b"e":
            return F16
        if letter == b"?":
            return BOOL
        signed = letter in b"bhilqn"
        if signed or letter in b"BHILQN":
            if view.itemsize == 1:
                return I8 if signed else U8
            if view.itemsize == 2:
                return I16 if signed else U16
            if view.itemsize == 4:
                return I32 if signed else U32
            return I64 if signed else U64
        if letter == b"g" and view.itemsize == 8:
            return F64
    raise TypeError(f"arrays must hold native numbers, got format {f.decode()!r}")


cdef inline int take(Held* held, object array, int axis, bint writable, Rows* rows) except -1:
    """Fills `rows` from an array or None. `axis` is the axis of a row, counted from the front, or NO_AXIS."""
    cdef Py_buffer* view
    cdef int d, last
    rows.data = NULL
    rows.n = 0
    if array is None:
        return 0
    view = &held.view[held.count]
    PyObject_GetBuffer(array, view, PyBUF_FORMAT | PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    held.count += 1
    rows.kind = kind_of(view)
    rows.data = <char*>view.buf
    rows.itemsize = view.itemsize
    rows.n = 1
    rows.width = 1
    rows.step = view.itemsize
    rows.ndim = 0
    rows.shape[0] = 1
    rows.stride[0] = 0
    for d in range(view.ndim):
        if d == axis:
            rows.width = view.shape[d]
            rows.step = view.strides[d]
            continue
        rows.n *= view.shape[d]
        if view.shape[d] == 1:
            continue
        last = rows.ndim - 1
        if last >= 0 and rows.stride[last] == view.shape[d]*view.strides[d]:
            rows.shape[last] *= view.shape[d]
            rows.stride[last] = view.strides[d]
            continue
        rows.shape[rows.ndim] = view.shape[d]
        rows.stride[rows.ndim] = view.strides[d]
        rows.ndim += 1
    return 0


cdef inline void release(Held* held) noexcept:
    while held.count > 0:
        held.count -= 1
        PyBuffer_Release(&held.view[held.count])


cdef inline char* row_at(const Rows* rows, Py_ssize_t i) noexcept nogil:
    cdef char* p = rows.data
    cdef int d = rows.ndim - 1
    while d > 0:
        p += i % rows.shape[d]*rows.stride[d]
        i = i//rows.shape[d]
        d -= 1
    return p + i*rows.stride[0]


cdef inline bint is_direct(const Rows* rows, real dummy) noexcept nogil:
    """Whether a row can be read as it lies: the kernel's own type, contiguous and aligned."""
    cdef int d
    cdef uintptr_t bits = <uintptr_t>rows.data
    if rows.kind != (F32 if sizeof(real) == 4 else F64) or (rows.step != sizeof(real) and rows.width > 1):
        return False
    for d in range(rows.ndim):
        bits |= <uintptr_t>rows.stride[d]
    return bits % sizeof(real) == 0


cdef inline bint even_run(const Rows* rows, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """Whether rows i .. i + n are one stride apart, that of the innermost axis."""
    return rows.ndim <= 1 or i % rows.shape[rows.ndim - 1] + n <= rows.shape[rows.ndim - 1]


cdef inline Py_ssize_t run_stride(const Rows* rows) noexcept nogil:
    return rows.stride[rows.ndim - 1] if rows.ndim else 0


# ------------------------------------------------------------------ spans: n elements, `step` bytes apart

cdef inline void load_plain(real* target, const char* source, Py_ssize_t step, Py_ssize_t n, stored v) noexcept nogil:
    cdef Py_ssize_t k
    if step == sizeof(stored):
        for k in range(n):
            memcpy(&v, source + k*<Py_ssize_t>sizeof(stored), sizeof(stored))
            target[k] = <real>v
    else:
        for k in range(n):
            memcpy(&v, source + k*step, sizeof(stored))
            target[k] = <real>v


cdef inline void load_half(real* target, const char* source, Py_ssize_t step, Py_ssize_t n,
                           bint bfloat16) noexcept nogil:
    cdef Py_ssize_t k
    cdef uint16_t bits
    if step == 2 and bfloat16:
        for k in range(n):
            memcpy(&bits, source + k*2, 2)
            target[k] = fl_float_of_bfloat(bits)
    elif step == 2 and real is float:
        fl_widen_halves(source, <float*>target, n)
    else:
        for k in range(n):
            memcpy(&bits, source + k*step, 2)
            target[k] = fl_float_of_bfloat(bits) if bfloat16 else fl_float_of_half(bits)


cdef inline void load(real* target, const char* source, Py_ssize_t step, Py_ssize_t n, int kind) noexcept nogil:
    """target = the span, converted."""
    if kind == F32:
        load_plain[real, float](target, source, step, n, 0)
    elif kind == F64:
        load_plain[real, double](target, source, step, n, 0)
    elif kind == F16 or kind == BF16:
        load_half(target, source, step, n, kind == BF16)
    elif kind == I64:
        load_plain[real, int64_t](target, source, step, n, 0)
    elif kind == I32:
        load_plain[real, int32_t](target, source, step, n, 0)
    elif kind == I16:
        load_plain[real, int16_t](target, source, step, n, 0)
    elif kind == I8:
        load_plain[real, int8_t](target, source, step, n, 0)
    elif kind == U64:
        load_plain[real, uint64_t](target, source, step, n, 0)
    elif kind == U32:
        load_plain[real, uint32_t](target, source, step, n, 0)
    elif kind == U16:
        load_plain[real, uint16_t](target, source, step, n, 0)
    else:                               # U8, BOOL
        load_plain[real, uint8_t](target, source, step, n, 0)


cdef inline void store(char* target, Py_ssize_t step, int kind, const real* source, Py_ssize_t n) noexcept nogil:
    """The span = source, rounded to a float kind."""
    cdef uint16_t bits[SPAN_ELEMENTS]
    cdef Py_ssize_t k = 0, m, j
    cdef float f
    cdef double d
    if kind == F32 and step == 4:
        for k in range(n):
            f = <float>source[k]
            memcpy(target + k*4, &f, 4)
    elif kind == F32:
        for k in range(n):
            f = <float>source[k]
            memcpy(target + k*step, &f, 4)
    elif kind == F64 and step == 8:
        for k in range(n):
            d = source[k]
            memcpy(target + k*8, &d, 8)
    elif kind == F64:
        for k in range(n):
            d = source[k]
            memcpy(target + k*step, &d, 8)
    elif kind == F16 and step == 2 and real is float:
        fl_narrow_halves(<const float*>source, target, n)
    else:
        while k < n:
            m = n - k if n - k < SPAN_ELEMENTS else SPAN_ELEMENTS
            if kind == BF16:
                for j in range(m):
                    bits[j] = fl_bfloat_of_float(<float>source[k + j])
            else:
                for j in range(m):
                    bits[j] = fl_half_of_float(<float>source[k + j])
            if step == 2:
                memcpy(target + k*2, bits, m*2)
            else:
                for j in range(m):
                    memcpy(target + (k + j)*step, &bits[j], 2)
            k += m


cdef inline int64_t index_at(const char* source, int kind) noexcept nogil:
    """The integer at `source`; one too large for int64 becomes the largest."""
    cdef int64_t v8
    cdef uint64_t u8
    cdef int32_t v4
    cdef uint32_t u4
    cdef int16_t v2
    cdef uint16_t u2
    if kind == I64:
        memcpy(&v8, source, 8)
        return v8
    if kind == I32:
        memcpy(&v4, source, 4)
        return v4
    if kind == U64:
        memcpy(&u8, source, 8)
        return <int64_t>u8 if u8 <= <uint64_t>INT64_MAX else INT64_MAX
    if kind == U32:
        memcpy(&u4, source, 4)
        return u4
    if kind == I16:
        memcpy(&v2, source, 2)
        return v2
    if kind == U16:
        memcpy(&u2, source, 2)
        return u2
    if kind == I8:
        return (<const int8_t*>source)[0]
    return (<const uint8_t*>source)[0]
