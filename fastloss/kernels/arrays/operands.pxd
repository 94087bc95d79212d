"""Operands of an element-wise kernel: arrays of one shape and of any layout and dtype."""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyObject_GetBuffer
from libc.stdint cimport uintptr_t

from fastloss.kernels.arrays.arrays cimport MAX_DIMS, Held, kind_of
from fastloss.kernels.math.vmath cimport FL_PREFETCH, real

cdef extern from *:
    """
    #if defined(__AVX512F__)
    #define FL_STRIP 64
    #else
    #define FL_STRIP 32
    #endif
    """
    enum:
        STRIP "FL_STRIP"    # elements computed together: four registers, whose chains of operations overlap

cdef enum:                  # arrays of a call
    X
    LABEL
    POS_WEIGHT
    WEIGHT                  # of the loss, and of its gradients
    COTANGENT               # of the gradients
    LOSS
    GRAD
    LABEL_GRAD
    POS_WEIGHT_GRAD
    HESSIAN
    ARRAYS

cdef enum:                  # how an operand lies
    ABSENT
    DIRECT                  # as the kernel computes: contiguous, aligned, its own type
    EVEN                    # at one stride
    CONSTANT                # one element for all
    UNEVEN

cdef struct Operand:
    char* data
    int kind
    int lies
    Py_ssize_t itemsize
    Py_ssize_t step                 # of an EVEN one
    Py_ssize_t stride[MAX_DIMS]

cdef struct ElementwiseCall:
    Operand a[ARRAYS]
    int ndim                        # axes merged where that is possible in all operands
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t n
    double factor                   # of all gradients
    double far                      # exp(-a) is 0 from here on
    double near                     # up to here it need not be scaled
    bint total                      # the sum of the losses is asked for
    bint stream
    int n_asked
    const char* asked[ARRAYS]       # what is worth prefetching


cdef inline int hold(Held* held, object array, bint writable, ElementwiseCall* call, Operand* a) except -1:
    """Fills the operand from an array; the first one gives the shape."""
    cdef Py_buffer* view
    cdef int d
    a.data = NULL
    if array is None:
        return 0
    view = &held.view[held.count]
    PyObject_GetBuffer(array, view, PyBUF_FORMAT | PyBUF_STRIDES | (PyBUF_WRITABLE if writable else 0))
    held.count += 1
    if held.count == 1:
        call.ndim = view.ndim
        call.n = 1
        for d in range(view.ndim):
            call.shape[d] = view.shape[d]
            call.n *= view.shape[d]
    a.kind = kind_of(view)
    a.data = <char*>view.buf
    a.itemsize = view.itemsize
    for d in range(call.ndim):
        a.stride[d] = view.strides[d]
    return 0


cdef inline void swap_axes(ElementwiseCall* call, int c, int d) noexcept:
    cdef int k
    call.shape[c], call.shape[d] = call.shape[d], call.shape[c]
    for k in range(ARRAYS):
        if call.a[k].data != NULL:
            call.a[k].stride[c], call.a[k].stride[d] = call.a[k].stride[d], call.a[k].stride[c]


cdef inline void arrange(ElementwiseCall* call) noexcept:
    """Drops axes of length 1 and merges axes that are contiguous in all operands.  First sorts them by the strides of
    x, unless a sum is asked for: its order is that of the indices."""
    cdef int d, k, last = -1
    cdef bint together
    cdef Operand* a
    if not call.total:
        for k in range(1, call.ndim):
            d = k
            while d > 0 and abs(call.a[X].stride[d - 1]) < abs(call.a[X].stride[d]):
                swap_axes(call, d - 1, d)
                d -= 1
    for d in range(call.ndim):
        if call.shape[d] == 1:
            continue
        together = last >= 0
        for k in range(ARRAYS):
            a = &call.a[k]
            if together and a.data != NULL:
                together = a.stride[last] == call.shape[d]*a.stride[d]
        if together:
            call.shape[last] *= call.shape[d]
        else:
            last += 1
            call.shape[last] = call.shape[d]
        for k in range(ARRAYS):
            if call.a[k].data != NULL:
                call.a[k].stride[last] = call.a[k].stride[d]
    if last < 0:
        last = 0
        call.shape[0] = 1
        for k in range(ARRAYS):
            call.a[k].stride[0] = 0
    call.ndim = last + 1


cdef inline bint is_even(const ElementwiseCall* call, const Operand* a) noexcept nogil:
    """Whether one stride serves all axes."""
    cdef int d
    for d in range(call.ndim - 1):
        if a.stride[d] != a.stride[d + 1]*call.shape[d + 1]:
            return False
    return True


cdef inline void settle(ElementwiseCall* call, Operand* a, int own_kind) noexcept nogil:
    if a.data == NULL:
        a.lies = ABSENT
        return
    a.step = a.stride[call.ndim - 1]
    a.lies = EVEN if is_even(call, a) else UNEVEN
    if a.lies == EVEN:
        if a.step == 0:
            a.lies = CONSTANT
        elif a.kind == own_kind and a.step == a.itemsize and <uintptr_t>a.data % <uintptr_t>a.itemsize == 0:
            a.lies = DIRECT


cdef inline char* place(const ElementwiseCall* call, const Operand* a, Py_ssize_t i, Py_ssize_t* left) noexcept nogil:
    """The address of element i, and how many elements are left on the innermost axis."""
    cdef char* p = a.data
    cdef int d = call.ndim - 1
    cdef Py_ssize_t k = i % call.shape[d]
    left[0] = call.shape[d] - k
    p += k*a.stride[d]
    i = i//call.shape[d]
    while i > 0:
        d -= 1
        p += i % call.shape[d]*a.stride[d]
        i = i//call.shape[d]
    return p


cdef struct Ahead:                  # the part of every array to prefetch while a span is computed: the next span
    Py_ssize_t next
    Py_ssize_t stop
    const char* first               # the arrays, without a loop: mostly there are three at most
    const char* second
    const char* third


cdef inline void look_ahead(const ElementwiseCall* call, Ahead* ahead) noexcept nogil:
    ahead.first = call.asked[0] if call.n_asked > 0 else NULL
    ahead.second = call.asked[1] if call.n_asked > 1 else ahead.first
    ahead.third = call.asked[2] if call.n_asked > 2 else ahead.second


cdef inline void ask(const ElementwiseCall* call, Ahead* ahead, real dummy) noexcept nogil:
    """Prefetches half a strip of every array; more lines at once would fill the queue of misses and stall the loop."""
    cdef Py_ssize_t k, a, at = ahead.next
    if at >= ahead.stop:
        return
    for k in range(STRIP//2*<Py_ssize_t>sizeof(real)//64):
        FL_PREFETCH(ahead.first + at + k*64)
        FL_PREFETCH(ahead.second + at + k*64)
        FL_PREFETCH(ahead.third + at + k*64)
    for a in range(3, call.n_asked):
        for k in range(STRIP//2*<Py_ssize_t>sizeof(real)//64):
            FL_PREFETCH(call.asked[a] + at + k*64)
    ahead.next = at + STRIP//2*<Py_ssize_t>sizeof(real)
