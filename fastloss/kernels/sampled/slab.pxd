"""The losses and gradients of a slab of rows: its logits are made, read, and turned into gradients while they are near.

One pass over a row corrects, masks, sums, and leaves the gradient in its place.
"""
from libc.math cimport INFINITY, fabs

from fastloss._parallel cimport interrupted
from fastloss.kernels.math.vmath cimport FL_LN2, bias_of, fl_exp_label, fl_log1p, real
from fastloss.kernels.matmul.product cimport (
    FL_TILE, SLAB, lanes_of, least, pack_slab, parts_of, products, slab_size,
)
from fastloss.kernels.sampled.call cimport Operands, SampledCall, correct
from fastloss.kernels.sampled.nce cimport FACTORS, nce_row
from fastloss.kernels.row_sums.lane_sums cimport L, add_block, row_max, settled
from fastloss.kernels.row_sums.groups cimport Source, next_block, whole_groups
from fastloss.kernels.row_sums.row_sums cimport (
    HEADROOM, HEADROOMF, ROWS, Reference, Terms, block_sum, label_of_terms, log_ratios, reference_at, terms_at,
)


cdef inline bint softmax_terms(const SampledCall* call, const real* z, const double* zt, Py_ssize_t best, real m,
                               real* e, Terms* terms) noexcept nogil:
    """Sum of exp over all but the best true class; False when a logit lies too far above the reference m."""
    cdef real empty[L]
    cdef Source source
    cdef Reference at = reference_at(m)
    cdef real top, limit
    cdef double total = 0, carry = 0, t
    cdef Py_ssize_t b = 0, k
    cdef Py_ssize_t j
    limit = (<real>at.power + (HEADROOMF if real is float else HEADROOM))*<real>FL_LN2
    for j in range(L):
        empty[j] = -INFINITY
    whole_groups(&source, z, empty)
    while b < call.groups:
        next_block(&source, call.groups - b, sizeof(real))
        t = block_sum(&source, &at, e + b*L if e != NULL else NULL, &top, NULL)
        if top - <real>at.shift > limit:
            return False
        add_block(&total, &carry, t)
        b += source.n_groups
    for k in range(call.num_true):
        if k != best:
            add_block(&total, &carry, fl_exp_label(zt[k] - at.shift, at.power, bias_of(m)))
    terms.others = settled(total, carry)
    terms_at(terms, &at, zt[best])
    return True


cdef inline Py_ssize_t softmax_row(const SampledCall* call, Py_ssize_t i, const real* z, real* e,
                                   Terms* terms) noexcept nogil:
    """The terms of row i; returns its best true class."""
    cdef const double* zt = call.true_logits + i*call.num_true
    cdef Py_ssize_t best = 0, k
    cdef real m = row_max(z, L if call.groups else 0), v
    for k in range(call.num_true):
        best = k if zt[k] > zt[best] else best
    v = <real>zt[best]
    m = v if v > m else m
    if fabs(<double>m) < <double>INFINITY and softmax_terms(call, z, zt, best, m, e, terms):
        return best
    m = row_max(z, call.groups*L)
    m = v if v > m else m
    if not (fabs(<double>m) < <double>INFINITY and softmax_terms(call, z, zt, best, m, e, terms)):
        terms.others = <double>INFINITY - <double>INFINITY
        terms.gap = terms.power = terms.shift = 0
        if e != NULL:
            for k in range(call.groups*L):
                e[k] = <real>terms.others
    return best


cdef inline double softmax_slopes(const SampledCall* call, Py_ssize_t i, Py_ssize_t best, const Terms* terms, double s,
                                  real dummy) noexcept nogil:
    """Gradients to the true logits of row i; returns what multiplies the terms of the others."""
    cdef double total = terms.others + label_of_terms(terms, dummy), share = 1/<double>call.num_true
    cdef Py_ssize_t k
    cdef double* g = call.true_grad + i*call.num_true
    cdef const double* zt = call.true_logits + i*call.num_true
    for k in range(call.num_true):
        if k == best:       # 1 - share without rounding where there is one class: minus the sum of the others
            g[k] = s*((call.num_true - 1)*share - terms.others/total)
        else:
            g[k] = s*(fl_exp_label(zt[k] - terms.shift, terms.power, bias_of(dummy))/total - share)
    return s/total


# ------------------------------------------------------------------ all rows

cdef inline void clear(real* z, Py_ssize_t n, double* g, Py_ssize_t num_true) noexcept nogil:
    """The gradient of a row that does not count: exactly 0, whatever the row holds."""
    cdef Py_ssize_t k
    for k in range(n):
        z[k] = 0
    for k in range(num_true):
        g[k] = 0


cdef inline void add_columns(double* sums, const real* z, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(n):
        sums[j] = sums[j] + <double>z[j]


cdef inline void softmax_rows(const SampledCall* call, Py_ssize_t start, Py_ssize_t stop, real* logits,
                              const real* shift, real* e) noexcept nogil:
    """Rows start .. stop, of which the first lies at `logits`."""
    cdef Terms terms[ROWS]
    cdef double ratio[ROWS]
    cdef double far[ROWS]
    cdef Py_ssize_t i = start, n, r, best, k, width = call.groups*L
    cdef double s
    cdef real f
    cdef Py_ssize_t j
    cdef const double* zt
    cdef real* z
    cdef real* kept = e if call.true_grad != NULL else NULL
    while i < stop:
        n = stop - i if stop - i < ROWS else ROWS
        for r in range(n):
            z = logits + (i + r - start)*call.stride
            zt = call.true_logits + (i + r)*call.num_true
            correct(call, i + r, z, shift)
            best = softmax_row(call, i + r, z, kept, &terms[r])
            far[r] = 0
            for k in range(call.num_true):
                if k != best:
                    far[r] += zt[best] - zt[k]
            far[r] = far[r]/call.num_true
            if call.true_grad == NULL:
                continue
            s = call.factor*(call.scale[i + r] if call.scale != NULL else 1.0)
            if s == 0:
                clear(z, width, call.true_grad + (i + r)*call.num_true, call.num_true)
                continue
            f = <real>softmax_slopes(call, i + r, best, &terms[r], s, shift[0])
            for j in range(width):          # the row's gradient takes the place of its logits
                z[j] = e[j]*f
            if call.diagonal >= 0:
                z[call.diagonal + i + r] = <real>call.true_grad[i + r]
            if call.sums != NULL:
                add_columns(call.sums + (i + r)//SLAB*call.stride + call.first, z, call.k)
        log_ratios(n, terms, ratio, shift[0])
        for r in range(n):
            call.loss[i + r] = ratio[r] + far[r]
        i += n


cdef inline void nce_rows(const SampledCall* call, Py_ssize_t start, Py_ssize_t stop, real* logits,
                          const real* shift) noexcept nogil:
    """The same for at most FACTORS columns; adds to the losses."""
    cdef double product[ROWS]
    cdef double above[ROWS]
    cdef Py_ssize_t i = start, n, r, width = call.groups*L
    cdef double s = 0
    cdef real* z
    cdef bint kept = call.true_grad != NULL
    while i < stop:
        n = stop - i if stop - i < ROWS else ROWS
        for r in range(n):
            z = logits + (i + r - start)*call.stride
            correct(call, i + r, z, shift)
            if kept:
                s = call.factor*(call.scale[i + r] if call.scale != NULL else 1.0)
            above[r] = nce_row(z, width, <real>s, kept, &product[r])
            if kept and s == 0:
                clear(z, width, NULL, 0)
            elif call.sums != NULL:
                add_columns(call.sums + (i + r)//SLAB*call.stride + call.first, z, call.k)
        for r in range(n):
            call.loss[i + r] += above[r] + fl_log1p(product[r])
        i += n


cdef inline Py_ssize_t room_of(const SampledCall* call, Py_ssize_t lanes) noexcept nogil:
    """Numbers of a thread's scratch: the logits of a slab, a row of terms, slabs of x and of slopes, rows of dx."""
    return ((SLAB + 1)*call.stride + 2*L + slab_size(call.d)
            + (slab_size(call.k) + SLAB*parts_of(call.d, lanes)*lanes if call.true_grad != NULL else 0))


cdef inline void run_slab(const SampledCall* call, const Operands* at, Py_ssize_t slab, real* z) noexcept nogil:
    """Losses of SLAB rows, and what their gradients are to the inputs and to the logits; z: scratch."""
    cdef SampledCall part = call[0]
    cdef Py_ssize_t lanes = lanes_of(z[0]), d = call.d, i = slab*SLAB, n = least(SLAB, call.n - i), c = 0, r, j
    cdef Py_ssize_t panels = parts_of(d, lanes), whole = parts_of(n, FL_TILE)*FL_TILE
    cdef const real* shift = <const real*>at.shift
    cdef const real* rows = <const real*>at.rows
    cdef real* e = z + SLAB*call.stride
    cdef real* left = e + call.stride + 2*L
    cdef real* out = left + slab_size(d)
    cdef real* slopes = out + SLAB*panels*lanes
    cdef real* dx
    pack_slab(<const real*>at.x + i*d, d, n, d, whole, left)
    while c < call.k:               # while a part of NCE's logits is near, it is read
        if c % (1 << 13) == 1 << 12 and interrupted():
            return
        part.first = c
        part.k = least(FACTORS, call.k - c)
        part.groups = parts_of(part.k, L)
        products(left, n, d, rows + c*d, part.k, z + c, call.stride)
        if call.nce:
            nce_rows(&part, i, i + n, z + c, shift + c)
        c += FACTORS
    if not call.nce:
        softmax_rows(call, i, i + n, z, shift, e)
    if at.slopes != NULL:
        slopes = <real*>at.slopes + slab*slab_size(call.k)
        whole = SLAB
    if at.slopes != NULL or at.dx != NULL:
        pack_slab(z, call.stride, n, call.k, whole, slopes)
    if at.dx != NULL:
        products(slopes, n, call.k, <const real*>at.columns, d, out, panels*lanes)
        dx = <real*>at.dx + i*d
        for r in range(n):
            for j in range(d):
                dx[r*d + j] = out[r*panels*lanes + j]
