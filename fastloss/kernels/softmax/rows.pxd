"""Softmax row by row: any number of classes."""
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int64_t, uintptr_t

from fastloss.kernels.arrays.arrays cimport BF16, F16, Rows, is_direct, load, row_at
from fastloss.kernels.softmax.deferred cimport Deferred, defer, flush, nothing_deferred, put_tail
from fastloss.kernels.parallel.parallel cimport stopped
from fastloss.kernels.softmax.call cimport (
    LOG_SOFTMAX, SOFTMAX, Job, Slope, fetch, labels_of, put, put_one, put_run, put_zeros, scale_of, slope_of,
)
from fastloss.kernels.softmax.laws cimport CrossEntropy, Law, Worth, entry_of_law, slope_of_law, worth_of_row
from fastloss.kernels.softmax.lane_sums cimport L, find, row_max
from fastloss.kernels.softmax.row_sums cimport (
    BLOCK, FL_HAS_BLOCK, ROWS, Row, Terms, exp_row_of_halves, label_of_terms, log_ratios, reference_of,
    reference_of_halves, row_terms, total_of,
)
from fastloss.kernels.math.vmath cimport FL_PREFETCH, real, scaled

cdef enum:
    LONG = 1 << 14      # classes: two rows of terms would leave the second level


# ------------------------------------------------------------------ row by row: class indices

cdef inline void put_scaled(const Rows* out, Py_ssize_t i, const real* e, Slope s) noexcept nogil:
    """Row i of out = e times the slope."""
    cdef real v[BLOCK]
    cdef real c = <real>s.c, rest = <real>s.rest, apart = <real>s.apart
    cdef Py_ssize_t b = 0, n, k, done = 0
    while b < out.width:
        n = out.width - b if out.width - b < BLOCK else BLOCK
        if out.step == out.itemsize and out.width <= BLOCK:     # where the next row is written, if rows lie together
            for k in range(0, n*out.itemsize, 64):
                FL_PREFETCH(row_at(out, i) + n*out.itemsize + k)
        for k in range(n):
            v[k] = scaled(e[b + k], c, rest)
        if apart != 1:
            for k in range(n):
                v[k] = v[k]*apart
        put(out, i, b, v, n, False)
        b += n
        if b < out.width and stopped(&done, n):
            break


cdef inline void put_terms(const Rows* grad, Py_ssize_t i, const real* e, Slope s, Deferred* due,
                           bint stream) noexcept nogil:
    """Row i of the gradient = e times the slope: later, if it can wait."""
    flush(due, False, e[0])
    if s.apart == 1 and is_direct(grad, e[0]):
        due.target = row_at(grad, i)
        due.terms = e
        due.n = grad.width
        due.slope = s.c
        due.rest = s.rest
        due.past = stream
        defer(due, False, e[0])
    else:
        put_scaled(grad, i, e, s)


cdef inline const char* source_of(const Job* job, Py_ssize_t i, Py_ssize_t stop, real dummy) noexcept nogil:
    """Row i of the logits if it will have to be converted and lies in one piece."""
    if i >= stop or job.logits.step != job.logits.itemsize or is_direct(&job.logits, dummy):
        return NULL
    return row_at(&job.logits, i)


cdef inline Py_ssize_t fetch_from(const Job* job, Py_ssize_t i, Py_ssize_t r, Py_ssize_t n, real* scratch,
                                  const real** row) noexcept nogil:
    """row[r ..] = rows i + r .., as many of n as are fetched together; how many of n there are now."""
    cdef Py_ssize_t k = n - r if n - r < job.together else job.together
    fetch(&job.logits, &job.where, i + r, k, scratch + job.fetched, row + r)
    return r + k


cdef inline bint lies_in_halves(const Job* job) noexcept nogil:
    """Whether rows are of half precision, and can be read as they lie."""
    cdef uintptr_t bits = <uintptr_t>job.logits.data
    cdef int d
    for d in range(job.logits.ndim):
        bits |= <uintptr_t>job.logits.stride[d]
    return (FL_HAS_BLOCK and (job.logits.kind == F16 or job.logits.kind == BF16) and job.where.data == NULL
            and job.logits.step == 2 and bits % 2 == 0)


cdef inline Slope slope_by_law(real* e, const Terms* terms, const Worth* worth, double scale,
                               bint* whole) noexcept nogil:
    """The row's one factor, and e of the label for it; not the whole gradient where that would be too large a number."""
    cdef double label = label_of_terms(terms, e[0]), total = terms.others + label
    cdef double slope = slope_of_law(worth, terms.others/total), entry
    e[0] = <real>-terms.others          # minus the sum of the others
    whole[0] = True
    if worth.push != 0:
        entry = entry_of_law(worth, label/total)
        whole[0] = fabs(slope) > 1e-3*fabs(entry)
        e[0] = <real>(total*(entry/slope)) if whole[0] else <real>0
    return slope_of(scale*slope, total, 1/total, e[0])


cdef inline void index_rows(const Job* job, const Law* law, Py_ssize_t start, Py_ssize_t stop,
                            real* scratch) noexcept nogil:
    cdef const real* row[ROWS]
    cdef Terms terms[ROWS]
    cdef double ratio[ROWS]
    cdef double weight[ROWS]
    cdef int64_t y[ROWS]
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, fetched
    cdef real* e = scratch              # the terms of this row; of short rows another's may wait in the other half
    cdef Deferred due = nothing_deferred()
    cdef Row logits
    cdef real loss[ROWS]
    cdef real m, next_m = 0
    cdef double total, s
    cdef Worth worth
    cdef Slope slope
    cdef bint whole
    cdef bint bfloat16 = job.logits.kind == BF16, as_it_lies = real is float and lies_in_halves(job)
    logits.n = c
    logits.pace = L*job.logits.itemsize
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        labels_of(job, i, n, y, weight)
        fetched = 0
        for r in range(n):
            m = next_m
            logits.out = y[r]
            if as_it_lies:
                logits.x = row_at(&job.logits, i + r)
                row[r] = scratch + job.fetched
                m = reference_of_halves(&logits, bfloat16)
            elif r == fetched:
                fetched = fetch_from(job, i, r, n, scratch, row)
                m = reference_of(row[r], c, y[r])
            if r + 1 < fetched:         # the next row's reference early, to overlap its latency
                next_m = reference_of(row[r + 1], c, y[r + 1])
            s = scale_of(job, i + r)*weight[r]
            if weight[r] == 0:
                terms[r].others = terms[r].gap = terms[r].power = 0
            elif not (as_it_lies and exp_row_of_halves(&logits, bfloat16, <float>m,
                                                       <float*>e if job.grad.data != NULL else NULL, &terms[r], &due)):
                if as_it_lies:
                    load(scratch + job.fetched, <const char*>logits.x, 2, c, job.logits.kind)
                logits.x = row[r]
                logits.ahead = source_of(job, i + r + job.together, stop, e[0])
                row_terms(&logits, m, e if job.grad.data != NULL else NULL, &terms[r], &due)
            if Law is not CrossEntropy:
                worth = worth_of_row(law, job.z_loss, &terms[r], e[0])
                ratio[r] = worth.value
            if job.grad.data == NULL:
                continue
            if s == 0:
                put_zeros(&job.grad, i + r)
                continue
            if c >= LONG:
                flush(&due, False, e[0])               # nothing is left, unless row_terms gave up
            if Law is CrossEntropy:
                total = total_of(&terms[r], e[0])
                e[y[r]] = <real>-terms[r].others        # p - 1 times the total, without cancellation
                slope = slope_of(s, total, 1/total, e[0])
            else:
                slope = slope_by_law(&e[y[r]], &terms[r], &worth, s, &whole)
                if not whole:
                    put_scaled(&job.grad, i + r, e, slope)
                    total = total_of(&terms[r], e[0])
                    s = entry_of_law(&worth, label_of_terms(&terms[r], e[0])/total)*s
                    put_one(&job.grad, i + r, y[r], <real>s)
                    continue
            put_terms(&job.grad, i + r, e, slope, &due, job.stream)
            if c >= LONG and due.target != NULL:
                put_tail(&due, e[0])
            elif c < LONG:
                e = scratch + job.kept if e == scratch else scratch
        if Law is CrossEntropy:                         # by many at once
            log_ratios(n, terms, ratio, scratch[0])
        for r in range(n):
            loss[r] = <real>(ratio[r]*weight[r]) if weight[r] != 0 else 0
        put_run(&job.loss, i, n, loss)
        i += n
    flush(&due, False, e[0])


# ------------------------------------------------------------------ row by row: softmax, log-softmax, log-sum-exp

cdef inline real log_sum(const real* x, Py_ssize_t step, Py_ssize_t c, real m, double ratio) noexcept nogil:
    """Log-sum-exp of a row with maximum m: where m is infinite it is m, unless a NaN is about."""
    cdef real v = 0
    cdef Py_ssize_t k
    if fabs(<double>m) < <double>INFINITY:
        return <real>(<double>m + ratio)
    for k in range(c):
        v = v + (x[k*step] if x[k*step] != x[k*step] else <real>0)
    return m + v


cdef inline void put_log_softmax(const Rows* out, Py_ssize_t i, const real* x, real m, double ratio, real* w,
                                 bint stream) noexcept nogil:
    """Row i of out = (x - m) - ratio: no difference of large numbers beside the first, which is exact enough."""
    cdef Py_ssize_t b = 0, n, k, c = out.width, done = 0
    cdef real above = <real>ratio
    while b < c:
        n = c - b if c - b < BLOCK else BLOCK
        for k in range(n):
            w[k] = (x[b + k] - m) - above
        put(out, i, b, w, n, stream)
        b += n
        if b < c and stopped(&done, n):
            break


cdef inline void normal_rows(const Job* job, Py_ssize_t start, Py_ssize_t stop, real* scratch) noexcept nogil:
    cdef const real* row[ROWS]
    cdef real w[BLOCK + L]
    cdef Terms terms
    cdef Deferred due = nothing_deferred()
    cdef Row logits
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, fetched
    cdef real* e = scratch
    cdef real m
    cdef double total, ratio
    logits.n = c
    logits.pace = L*job.logits.itemsize
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        fetched = 0
        for r in range(n):
            if r == fetched:
                fetched = fetch_from(job, i, r, n, scratch, row)
            logits.x = row[r]
            logits.ahead = NULL
            if job.what == SOFTMAX:
                logits.out = 0
                logits.ahead = source_of(job, i + r + job.together, stop, e[0])
                row_terms(&logits, reference_of(row[r], c, 0), e, &terms, &due)
                total = total_of(&terms, e[0])
                e[0] = <real>label_of_terms(&terms, e[0])
                put_terms(&job.grad, i + r, e, slope_of(1.0, total, 1/total, e[0]), &due, job.stream)
                e = scratch + job.kept if e == scratch else scratch
                continue
            m = row_max(row[r], c)
            logits.out = find(row[r], c, m)
            row_terms(&logits, m, <real*>NULL, &terms, NULL)
            log_ratios(1, &terms, &ratio, m)
            if job.what == LOG_SOFTMAX:
                put_log_softmax(&job.grad, i + r, row[r], m, ratio, w, job.stream)
            else:
                put_one(&job.loss, i + r, 0, log_sum(row[r], 1, c, m, ratio))
        i += n
    flush(&due, False, e[0])
