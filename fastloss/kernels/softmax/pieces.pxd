"""Long rows in pieces: several threads on one row, where there are too few rows to give each thread its own.

A piece is a run of the blocks that row_sums.pxd adds up. Here each block's sum is kept, and the calling thread then
adds them in the order in which one thread does: a row's bits depend neither on pieces nor on threads.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from fastloss._parallel cimport Body, for_blocks
from fastloss.kernels.arrays.arrays cimport Rows, is_direct
from fastloss.kernels.math.vmath cimport real
from fastloss.kernels.parallel.parallel cimport GRAIN, blocks, cut, fl_set
from fastloss.kernels.softmax.call cimport SoftmaxCall, Slope, fetch, piece_of_rows
from fastloss.kernels.row_sums.deferred cimport Deferred, flush, nothing_deferred
from fastloss.kernels.row_sums.lane_sums cimport L, find, row_max
from fastloss.kernels.row_sums.groups cimport BLOCK, Part, Row
from fastloss.kernels.row_sums.row_sums cimport (
    Reference, Terms, exp_part, reference_at, row_terms, sum_of_blocks, terms_at,
)
from fastloss.kernels.softmax.write_rows cimport put_log_softmax, put_scaled, put_scaled_row

cdef extern from "arrays/nontemporal.h" nogil:
    void fl_stream_end() noexcept

# for_blocks, but what a signal's handler raised waits until the call ends
ctypedef int (*Quiet)(Body, void*, Py_ssize_t, int) noexcept nogil

cdef enum:
    LEAST = 2*GRAIN     # classes that are worth a second thread


cdef struct Alone:      # a thread that does whole rows
    Deferred due        # the gradient of the row before


cdef struct Team:       # the threads of a call that do each row together
    const SoftmaxCall* job
    int n_threads
    bint wide           # rows are float64
    bint interrupted    # an exception is set: nothing matters any more
    Py_ssize_t pieces
    double* sums        # of each block, three where there are targets
    double* tops        # of each piece
    int above           # atomic: a logit lies too far above the reference
    # what is done just now
    Py_ssize_t i        # row
    Py_ssize_t n        # rows fetched together
    Row row
    Reference at
    void* fetched
    const void* targets
    void* e
    Slope slope
    const void* slopes  # see targets.pxd
    int64_t label       # and its share of smoothing
    double share
    double top
    double ratio


ctypedef fused Workers:
    Alone
    Team


cdef inline bint too_few_rows(Py_ssize_t n, Py_ssize_t c, int n_threads) noexcept nogil:
    """Whether whole rows would leave threads idle for more than an eighth of the time, and rows are worth cutting."""
    cdef Py_ssize_t rounds = (n + n_threads - 1)//n_threads
    return n_threads > 1 and c >= LEAST and n < 8*<Py_ssize_t>n_threads and (rounds*n_threads - n)*8 > n


cdef inline Py_ssize_t blocks_of(Py_ssize_t c) noexcept nogil:
    return (c + BLOCK - 1)//BLOCK


cdef inline Py_ssize_t pieces_of(Py_ssize_t c, int n_threads) noexcept nogil:
    return blocks(blocks_of(c), BLOCK, n_threads)


cdef inline Py_ssize_t room_of_sums(Py_ssize_t c, int n_threads) noexcept nogil:
    """Numbers that a team keeps."""
    return 3*blocks_of(c) + pieces_of(c, n_threads)


cdef inline void make_team(Team* team, const SoftmaxCall* job, bint wide, int n_threads,
                           double* scratch) noexcept nogil:
    team.job = job
    team.n_threads = n_threads
    team.wide = wide
    team.interrupted = False
    team.pieces = pieces_of(job.logits.width, n_threads)
    team.sums = scratch
    team.tops = scratch + 3*blocks_of(job.logits.width)


cdef inline void each_piece(Team* team, Body body) noexcept nogil:
    if not team.interrupted and (<Quiet>for_blocks)(body, team, team.pieces, team.n_threads) != 0:
        team.interrupted = True


cdef inline Py_ssize_t start_of(const Team* team, Py_ssize_t b) noexcept nogil:
    """The first class of piece b; of the one after the last, how many classes there are."""
    cdef Py_ssize_t c = team.job.logits.width
    return cut(blocks_of(c), b, team.pieces)*BLOCK if b < team.pieces else c


cdef inline void piece_of_call(const Team* team, Py_ssize_t b, SoftmaxCall* piece) noexcept nogil:
    """The call, of these classes only; class indices stay what they are."""
    cdef Py_ssize_t start = start_of(team, b), n = start_of(team, b + 1) - start
    piece[0] = team.job[0]
    piece.logits = piece_of_rows(&team.job.logits, start, n)
    piece.where = piece_of_rows(&team.job.where, start, n)
    piece.grad = piece_of_rows(&team.job.grad, start, n)
    piece.labels_grad = piece_of_rows(&team.job.labels_grad, start, n)
    piece.hess = piece_of_rows(&team.job.hess, start, n)
    if not piece.index:
        piece.labels = piece_of_rows(&team.job.labels, start, n)
    if piece.class_weight != NULL:
        piece.class_weight += start


# ------------------------------------------------------------------ rows in

cdef inline void fetch_piece_of(const Team* team, Py_ssize_t b, real* scratch) noexcept nogil:
    cdef Py_ssize_t start = start_of(team, b), n = start_of(team, b + 1) - start
    cdef Rows logits = piece_of_rows(&team.job.logits, start, n), where = piece_of_rows(&team.job.where, start, n)
    fetch(&logits, &where, team.i, team.n, scratch + start, team.job.logits.width, <const real**>NULL)


cdef inline void fetch_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    if team.wide:
        fetch_piece_of(team, b, <double*>team.fetched)
    else:
        fetch_piece_of(team, b, <float*>team.fetched)


cdef inline void fetch_rows(const SoftmaxCall* job, Py_ssize_t i, Py_ssize_t n, real* scratch, const real** row,
                            Workers* workers) noexcept nogil:
    """fetch, of logits."""
    cdef Py_ssize_t r
    if Workers is Team:
        if job.where.data != NULL or not is_direct(&job.logits, scratch[0]):
            workers.i = i
            workers.n = n
            workers.fetched = scratch
            each_piece(workers, fetch_piece)
            for r in range(n):
                row[r] = scratch + r*job.logits.width
            return
    fetch(&job.logits, &job.where, i, n, scratch, job.logits.width, row)


# ------------------------------------------------------------------ maxima

cdef inline void max_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    cdef Py_ssize_t start = start_of(team, b), n = start_of(team, b + 1) - start
    if team.wide:
        team.tops[b] = row_max(<const double*>team.row.x + start, n)
    else:
        team.tops[b] = row_max(<const float*>team.row.x + start, n)


cdef inline real max_of(const real* x, Py_ssize_t c, Workers* workers) noexcept nogil:
    """row_max"""
    cdef Py_ssize_t b
    cdef real m = -INFINITY
    if Workers is Team:
        workers.row.x = x
        each_piece(workers, max_piece)
        for b in range(workers.pieces):
            m = <real>workers.tops[b] if workers.tops[b] > m else m
        return m
    else:
        return row_max(x, c)


cdef inline Py_ssize_t find_max(const real* x, Py_ssize_t c, real m, Workers* workers) noexcept nogil:
    """find, of the maximum that max_of has just found."""
    cdef Py_ssize_t b, start, k
    if Workers is Team:
        for b in range(workers.pieces):
            start = start_of(workers, b)
            if workers.tops[b] == m:
                k = start + find(x + start, start_of(workers, b + 1) - start, m)
                if x[k] == m:
                    return k
        return c - 1
    else:
        return find(x, c, m)


# ------------------------------------------------------------------ sums

cdef inline Part part_of(const Team* team, Py_ssize_t b, Py_ssize_t numbers) noexcept nogil:
    """Piece b, of whose blocks so many numbers each are kept."""
    cdef Part part
    part.start = start_of(team, b)//L
    part.stop = (start_of(team, b + 1) + L - 1)//L
    part.sums = team.sums + part.start//(BLOCK//L)*numbers
    return part


cdef inline void sum_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    cdef Part part = part_of(team, b, 1)
    cdef bint near
    if team.wide:
        near = exp_part(&team.row, &team.at, &part, <double*>team.e)
    else:
        near = exp_part(&team.row, &team.at, &part, <float*>team.e)
    if not near:
        fl_set(&team.above)


cdef inline bint sum_pieces(Team* team, real m, real* e, Terms* terms) noexcept nogil:
    """exp_row"""
    team.at = reference_at(m)
    team.e = e
    team.above = False
    each_piece(team, sum_piece)
    if team.above:
        return False
    terms.others = sum_of_blocks(team.sums, blocks_of(team.row.n))
    terms_at(terms, &team.at, (<const real*>team.row.x)[team.row.out])
    return True


cdef inline void sum_row(const Row* row, real m, real* e, Terms* terms, Workers* workers) noexcept nogil:
    """row_terms"""
    cdef bint last = not m > -INFINITY
    if Workers is Team:
        workers.row = row[0]
        workers.row.ahead = NULL
        if last:
            m = max_of(<const real*>row.x, row.n, workers)
        while not sum_pieces(workers, m, e, terms):
            if last:
                terms.others = <double>INFINITY - <double>INFINITY
                return
            m = max_of(<const real*>row.x, row.n, workers)
            last = True
    else:
        row_terms(row, m, e, terms, &workers.due)


# ------------------------------------------------------------------ rows out

cdef inline void put_piece_of(const Team* team, Py_ssize_t b, const real* e) noexcept nogil:
    cdef Py_ssize_t start = start_of(team, b), n = start_of(team, b + 1) - start
    cdef Rows out = piece_of_rows(&team.job.grad, start, n)
    cdef Deferred due = nothing_deferred()
    put_scaled_row(&out, team.i, e + start, team.slope, &due, team.job.stream)
    flush(&due, False, e[0])
    if team.job.stream:
        fl_stream_end()


cdef inline void put_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    if team.wide:
        put_piece_of(team, b, <const double*>team.e)
    else:
        put_piece_of(team, b, <const float*>team.e)


cdef inline void put_terms(const SoftmaxCall* job, Py_ssize_t i, real* e, Slope s, Workers* workers) noexcept nogil:
    """Row i of the gradient = e times the slope: of one thread later, if it can wait."""
    if Workers is Team:
        workers.i = i
        workers.e = e
        workers.slope = s
        each_piece(workers, put_piece)
    else:
        put_scaled_row(&job.grad, i, e, s, &workers.due, job.stream)


cdef inline void put_terms_now(const SoftmaxCall* job, Py_ssize_t i, real* e, Slope s, Workers* workers) noexcept nogil:
    if Workers is Team:
        put_terms(job, i, e, s, workers)
    else:
        put_scaled(&job.grad, i, e, s)


cdef inline void log_piece_of(const Team* team, Py_ssize_t b, const real* x) noexcept nogil:
    cdef Py_ssize_t start = start_of(team, b), n = start_of(team, b + 1) - start
    cdef Rows out = piece_of_rows(&team.job.grad, start, n)
    put_log_softmax(&out, team.i, x + start, <real>team.top, team.ratio, team.job.stream)
    if team.job.stream:
        fl_stream_end()


cdef inline void log_piece(void* call, Py_ssize_t b, int thread) noexcept nogil:
    cdef Team* team = <Team*>call
    if team.wide:
        log_piece_of(team, b, <const double*>team.row.x)
    else:
        log_piece_of(team, b, <const float*>team.row.x)


cdef inline void put_logs(const SoftmaxCall* job, Py_ssize_t i, const real* x, real m, double ratio,
                          Workers* workers) noexcept nogil:
    """Row i of the log-softmax."""
    if Workers is Team:
        workers.i = i
        workers.row.x = x
        workers.top = m
        workers.ratio = ratio
        each_piece(workers, log_piece)
    else:
        put_log_softmax(&job.grad, i, x, m, ratio, job.stream)
