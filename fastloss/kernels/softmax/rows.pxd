"""Softmax row by row: any number of classes."""
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int64_t, uintptr_t

from fastloss.kernels.arrays.arrays cimport BF16, F16, is_direct, load, row_at
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.softmax.call cimport (
    LOG_SOFTMAX, SOFTMAX, SoftmaxCall, Slope, labels_of, put_one, put_run, put_zeros, scale_of, slope_of,
)
from fastloss.kernels.row_sums.deferred cimport flush, nothing_deferred, put_tail
from fastloss.kernels.row_sums.lane_sums cimport L
from fastloss.kernels.softmax.laws cimport CrossEntropy, Law, Worth, entry_of_law, slope_of_law, worth_of_row
from fastloss.kernels.softmax.pieces cimport (
    Alone, Workers, fetch_rows, find_max, max_of, put_logs, put_terms, put_terms_now, sum_row,
)
from fastloss.kernels.row_sums.groups cimport Row
from fastloss.kernels.row_sums.row_sums cimport (
    FL_HAS_BLOCK, ROWS, Terms, exp_row_of_halves, label_of_terms, log_ratios, reference_of, reference_of_halves,
    total_of,
)

cdef enum:
    LONG = 1 << 14      # classes: two rows of terms would leave the second level


# ------------------------------------------------------------------ row by row: class indices

cdef inline const char* source_of(const SoftmaxCall* job, Py_ssize_t i, Py_ssize_t stop, real dummy) noexcept nogil:
    """Row i of the logits if it will have to be converted and lies in one piece."""
    if i >= stop or job.logits.step != job.logits.itemsize or is_direct(&job.logits, dummy):
        return NULL
    return row_at(&job.logits, i)


cdef inline Py_ssize_t fetch_from(const SoftmaxCall* job, Py_ssize_t i, Py_ssize_t r, Py_ssize_t n, real* scratch,
                                  const real** row, Workers* workers) noexcept nogil:
    """row[r ..] = rows i + r .., as many of n as are fetched together; how many of n there are now."""
    cdef Py_ssize_t k = n - r if n - r < job.together else job.together
    fetch_rows(job, i + r, k, scratch + job.fetched, row + r, workers)
    return r + k


cdef inline bint lies_in_halves(const SoftmaxCall* job) noexcept nogil:
    """Whether rows are of half precision, and can be read as they lie."""
    cdef uintptr_t bits = <uintptr_t>job.logits.data
    cdef int d
    for d in range(job.logits.ndim):
        bits |= <uintptr_t>job.logits.stride[d]
    return (FL_HAS_BLOCK and (job.logits.kind == F16 or job.logits.kind == BF16) and job.where.data == NULL
            and job.logits.step == 2 and bits % 2 == 0)


cdef inline Slope slope_by_law(real* e, const Terms* terms, const Worth* worth, double scale,
                               bint* whole) noexcept nogil:
    """The row's factor; e of the label becomes what this factor makes its gradient.

    Unless that would be too large: then the gradient is not `whole`, and the label's entry has to be written apart.
    """
    cdef double label = label_of_terms(terms, e[0]), total = terms.others + label
    cdef double slope = slope_of_law(worth, terms.others/total), entry
    e[0] = <real>-terms.others          # minus the sum of the others
    whole[0] = True
    if worth.push != 0:
        entry = entry_of_law(worth, label/total)
        whole[0] = fabs(slope) > 1e-3*fabs(entry)
        e[0] = <real>(total*(entry/slope)) if whole[0] else <real>0
    return slope_of(scale*slope, total, 1/total, e[0])


cdef inline bint sum_halves(const Row* row, bint bfloat16, real m, real* e, Terms* terms,
                            Workers* workers) noexcept nogil:
    """exp_row_of_halves, by a thread alone."""
    if Workers is Alone and real is float:
        return exp_row_of_halves(row, bfloat16, m, e, terms, &workers.due)
    else:
        return False


cdef inline void index_rows(const SoftmaxCall* job, const Law* law, Py_ssize_t start, Py_ssize_t stop, real* scratch,
                            Workers* workers) noexcept nogil:
    cdef const real* row[ROWS]
    cdef Terms terms[ROWS]
    cdef double ratio[ROWS]
    cdef double weight[ROWS]
    cdef int64_t y[ROWS]
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, fetched
    cdef real* e = scratch              # the terms of this row; of short rows another's may wait in the other half
    cdef Row logits
    cdef real loss[ROWS]
    cdef real m, next_m = 0
    cdef double total, s
    cdef Worth worth
    cdef Slope slope
    cdef bint whole
    cdef bint bfloat16 = job.logits.kind == BF16, as_it_lies = False
    if Workers is Alone:
        as_it_lies = real is float and lies_in_halves(job)
        workers.due = nothing_deferred()
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
                fetched = fetch_from(job, i, r, n, scratch, row, workers)
                m = reference_of(row[r], c, y[r])
            if r + 1 < fetched:         # the next row's reference early, to overlap its latency
                next_m = reference_of(row[r + 1], c, y[r + 1])
            s = scale_of(job, i + r)*weight[r]
            if weight[r] == 0:
                terms[r].others = terms[r].gap = terms[r].power = 0
            elif not (as_it_lies and sum_halves(&logits, bfloat16, m, e if job.grad.data != NULL else NULL, &terms[r],
                                                workers)):
                if as_it_lies:
                    load(scratch + job.fetched, <const char*>logits.x, 2, c, job.logits.kind)
                logits.x = row[r]
                logits.ahead = source_of(job, i + r + job.together, stop, e[0])
                sum_row(&logits, m, e if job.grad.data != NULL else NULL, &terms[r], workers)
            if Law is not CrossEntropy:
                worth = worth_of_row(law, job.z_loss, &terms[r], e[0])
                ratio[r] = worth.value
            if job.grad.data == NULL:
                continue
            if s == 0:
                put_zeros(&job.grad, i + r)
                continue
            if Workers is Alone and c >= LONG:
                flush(&workers.due, False, e[0])        # nothing is left, unless row_terms gave up
            if Law is CrossEntropy:
                total = total_of(&terms[r], e[0])
                e[y[r]] = <real>-terms[r].others        # p - 1 times the total, without cancellation
                slope = slope_of(s, total, 1/total, e[0])
            else:
                slope = slope_by_law(&e[y[r]], &terms[r], &worth, s, &whole)
                if not whole:
                    put_terms_now(job, i + r, e, slope, workers)
                    total = total_of(&terms[r], e[0])
                    s = entry_of_law(&worth, label_of_terms(&terms[r], e[0])/total)*s
                    put_one(&job.grad, i + r, y[r], <real>s)
                    continue
            put_terms(job, i + r, e, slope, workers)
            if Workers is Alone:
                if c >= LONG and workers.due.target != NULL:
                    put_tail(&workers.due, e[0])
                elif c < LONG:
                    e = scratch + job.kept if e == scratch else scratch
        if Law is CrossEntropy:                         # by many at once
            log_ratios(n, terms, ratio, scratch[0])
        for r in range(n):
            loss[r] = <real>(ratio[r]*weight[r]) if weight[r] != 0 else 0
        put_run(&job.loss, i, n, loss)
        i += n
    if Workers is Alone:
        flush(&workers.due, False, e[0])


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


cdef inline void normal_rows(const SoftmaxCall* job, Py_ssize_t start, Py_ssize_t stop, real* scratch,
                             Workers* workers) noexcept nogil:
    cdef const real* row[ROWS]
    cdef Terms terms
    cdef Row logits
    cdef Py_ssize_t i = start, c = job.logits.width, n, r, fetched
    cdef real* e = scratch
    cdef real m
    cdef double total, ratio
    if Workers is Alone:
        workers.due = nothing_deferred()
    logits.n = c
    logits.pace = L*job.logits.itemsize
    while i < stop:
        n = stop - i if stop - i < job.group else job.group
        fetched = 0
        for r in range(n):
            if r == fetched:
                fetched = fetch_from(job, i, r, n, scratch, row, workers)
            logits.x = row[r]
            logits.ahead = NULL
            if job.what == SOFTMAX:
                logits.out = 0
                logits.ahead = source_of(job, i + r + job.together, stop, e[0])
                sum_row(&logits, reference_of(row[r], c, 0), e, &terms, workers)
                total = total_of(&terms, e[0])
                e[0] = <real>label_of_terms(&terms, e[0])
                put_terms(job, i + r, e, slope_of(1.0, total, 1/total, e[0]), workers)
                if Workers is Alone:
                    e = scratch + job.kept if e == scratch else scratch
                continue
            m = max_of(row[r], c, workers)
            logits.out = find_max(row[r], c, m, workers)
            sum_row(&logits, m, <real*>NULL, &terms, workers)
            log_ratios(1, &terms, &ratio, m)
            if job.what == LOG_SOFTMAX:
                put_logs(job, i + r, row[r], m, ratio, workers)
            else:
                put_one(&job.loss, i + r, 0, log_sum(row[r], 1, c, m, ratio))
        i += n
    if Workers is Alone:
        flush(&workers.due, False, e[0])
