"""Samples, with and without repeats, and their expected counts."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free
from libc.math cimport fabs, floor, log, log1p
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.id_sets cimport SMALL_WORDS, IdSet, init_ids, set_words
from fastloss.kernels.math.sampler_math cimport (
    fl_from_id, fl_gauss_nodes, fl_gauss_weights, fl_one_minus_exp, fl_two_atanh, fl_two_atanh_small,
)
from fastloss.kernels.parallel.parallel cimport GRAIN
from fastloss.kernels.sampling.draws cimport TILE_DRAWS, DrawsCall, draw, fill_draws, ready_pairs
from fastloss.kernels.sampling.inclusion cimport (
    CLASSES, NODES, Groups, class_of, interpolate_times, survival_time, survival_times,
)
from fastloss.kernels.sampling.law cimport (
    ALIAS, BUDGET, CACHED, CHUNK, FIXED, LEARNED, LOG_UNIFORM, UNIFORM, Law, check_signals, data_of, has_weights,
    probability_of, read_weights, take_law,
)
from fastloss.kernels.sampling.philox cimport fl_pair, fl_philox, fl_rng, fl_rng_open, fl_rng_start
from fastloss.kernels.sampling.race cimport Racers, has_bit, keep_smallest, mark_bits, sort_keys, unseen_mass
from fastloss.kernels.sampling.tree cimport add_ids, has_room

cdef enum:
    PROBABILITY, COUNT, TRIES, INCLUSION            # what `measure` gives

cdef struct Measure:            # what `measure` gives of a probability: see there
    int what
    double x
    const double* times

LAWS = {"uniform": UNIFORM, "log_uniform": LOG_UNIFORM, "learned_unigram": LEARNED, "fixed_unigram": FIXED,
        "alias": ALIAS}
MEASURES = {"probability": PROBABILITY, "count": COUNT, "tries": TRIES, "inclusion": INCLUSION}


def sample(list now, object out, bint unique, int64_t limit, object true, object true_count, object count):
    """Fill out with draws, distinct ones if `unique`.

    `now` is all that a call changes: the law, key, stream and block of the place in the random bits, and the last
    sample (how many ids, whether unique, in how many draws).  Where `limit` draws were enough, and counts are wanted or
    no true ids given, gives the expected counts of the true and sampled ids, a learned law learns the true ones, and
    `now` goes on to the next call, at once: neither a signal nor a fork comes between.  Returns the position of the
    first true id outside the range, or -1 (if there is one, nothing is done); how many ids there are; how many draws
    were made, as a float; and whether all was done, which else is left to `advance`.
    """
    law = now[0]
    cdef uint64_t key = now[1], stream = now[2], block = now[3]
    cdef Law w
    cdef fl_rng g
    cdef IdSet s
    cdef IdSet* known = NULL
    cdef DrawsCall call
    cdef uint64_t small[SMALL_WORDS]
    cdef uint64_t* large = NULL
    cdef int64_t bad, size, trues, unused
    cdef const int64_t* ids = <const int64_t*>data_of(true, &trues, False)
    cdef bytes own
    cdef double* expected = <double*>data_of(true_count, &unused, True)
    cdef double* counted = <double*>data_of(count, &unused, True)
    take_law(&w, law)
    if has_weights(&w) and trues:                       # a copy: nobody changes them between this look and their use
        own = (<const char*>ids)[:trues*8]
        ids = <const int64_t*><const char*>own
    bad = first_outside(ids, trues, w.n)
    call.out = <int64_t*>data_of(out, &call.size, True)
    if bad >= 0 or call.size == 0:
        return bad, 0, 0.0, False
    call.filled, call.tries, call.limit, call.unique, call.rare = 0, 0, limit, True, False
    call.weight = NULL
    if has_weights(&w) and w.n > CACHED:
        call.weight = counted                        # reading them with the draws is one access instead of two
        w.tree.next, w.tree.n_next = ids, trues
    fl_rng_start(&g, key, stream, block)
    if unique:
        size = set_words(w.n, call.size)
        if size > SMALL_WORDS:
            large = <uint64_t*>calloc(<size_t>size, 8)
            if large == NULL:
                raise MemoryError(f"no room for the set of num_sampled = {call.size} ids, {8*size} bytes")
        else:
            memset(small, 0, <size_t>size*8)
        init_ids(&s, large if large != NULL else small, size, w.n)
        known = &s
    try:
        while True:
            with nogil:
                draw(&w, &g, known, &call, BUDGET)
            if call.filled == call.size or call.tries >= call.limit:
                break
            PyErr_CheckSignals()
            call.rare = False
    finally:
        free(large)
    drawn = <double>call.tries
    if call.filled < call.size or true is not None and counted == NULL:
        return -1, call.filled, drawn, False
    if counted != NULL:
        with nogil:
            expected_counts(&w, ids, expected, trues, call.size, <double>call.tries, False)
            expected_counts(&w, call.out, counted, call.size, call.size, <double>call.tries, call.weight != NULL)
    if w.kind == LEARNED and (trues > CHUNK or not has_room(&w.tree, trues)):
        return -1, call.filled, drawn, False
    result = -1, call.filled, drawn, True            # nothing below can fail
    last = call.size, unique, drawn
    following = block + 512*<uint64_t>call.size      # TensorFlow sets 2048 words of the stream aside for each id
    if w.kind == LEARNED:
        add_ids(&w.tree, ids, trues)                  # holding the GIL
    now[3] = following
    now[4] = last
    return result


def advance(list now, law, object ids, object block, object last):
    """What a call changes, at once: neither a signal nor a fork comes between.

    A learned law learns the ids; or all is left as it was, and the answer False, if it has no room, or they are many.
    """
    cdef Law w
    cdef int64_t m
    cdef const int64_t* id = <const int64_t*>data_of(ids, &m, False)
    take_law(&w, law)
    if w.kind == LEARNED:
        if m > CHUNK or not has_room(&w.tree, m):
            return False
        add_ids(&w.tree, id, m)                       # holding the GIL
    now[0] = law
    now[3] = block
    now[4] = last
    return True


cdef struct SpreadCall:
    Law w
    uint64_t key
    uint64_t stream
    int64_t size
    int64_t step                # draws of a block, whole tiles
    int64_t* out


cdef void spread_block(void* call, Py_ssize_t block, int thread) noexcept nogil:
    cdef const SpreadCall* at = <const SpreadCall*>call
    cdef fl_rng g
    cdef int64_t first = block*at.step, n = at.size - first
    fl_rng_start(&g, at.key, at.stream, <uint64_t>first//2)
    fill_draws(&at.w, &g, at.out + first, n if n < at.step else at.step, NULL)


def spread(law, uint64_t key, uint64_t stream, object out, int n_threads):
    """Fill out with draws of a law that takes two words for each, as alias tables do; threads do not change them."""
    cdef SpreadCall at
    cdef int64_t share
    at.out = <int64_t*>data_of(out, &at.size, True)
    if at.size == 0:
        return
    take_law(&at.w, law)
    at.key = key
    at.stream = stream
    share = (at.size - 1)//n_threads + 1
    share = share if share > GRAIN else GRAIN
    at.step = ((share if share < BUDGET else BUDGET) + TILE_DRAWS - 1)//TILE_DRAWS*TILE_DRAWS
    with nogil:
        for_blocks(spread_block, &at, (at.size - 1)//at.step + 1, n_threads)


def set_size(int64_t n, int64_t ids):
    """Words for a set of so many ids in [0, n)."""
    return set_words(n, ids)


def derive(uint64_t key, uint64_t stream, uint64_t block):
    """A key for numbers that must not meet those of the stream itself."""
    cdef uint32_t word[4]
    fl_philox(key ^ <uint64_t>0xD1B54A32D192ED03, stream, block, word, 1)
    return fl_pair(word)


# --- what is left when draws by rejection took too long ---------------------------------------------------------------

def race(law, uint64_t key, uint64_t stream, int64_t[::1] out, Py_ssize_t filled, *, const int64_t[::1] excluded,
         uint64_t[::1] seen, double[::1] scratch):
    """Fill the rest of out with distinct ids that are not excluded, in the order in which they would have been drawn.

    Ids in the order of exponential times of their rates have the law of draws of which repeats are skipped (Efraimidis
    and Spirakis, "Weighted random sampling with a reservoir", 2006).  `seen` is a bitmap of zeros; scratch is
    one for each missing id.  Returns the number of draws that skipping repeats would have taken.
    """
    cdef Law w
    cdef fl_rng g
    cdef int64_t first = 0, last
    cdef Racers r
    cdef Py_ssize_t i, wanted = out.shape[0] - filled
    cdef double mass = 0, tries = 0
    r.key, r.ids, r.held, r.wanted = &scratch[0], &out[filled], 0, wanted
    take_law(&w, law)
    fl_rng_start(&g, key, stream, 0)
    with nogil:
        mark_bits(&seen[0], &excluded[0], 0, excluded.shape[0])
        mark_bits(&seen[0], &out[0], 0, filled)
    while first < w.n:
        last = w.n if w.n - first < CHUNK else first + CHUNK
        with nogil:
            keep_smallest(&w, &g, &seen[0], first, last, &r)
        first = last
        PyErr_CheckSignals()
    if r.held < wanted:
        raise ValueError(f"too few ids are left: {wanted} wanted, {r.held} left")
    with nogil:
        sort_keys(r.key, r.ids, wanted)
        mark_bits(&seen[0], &out[0], filled, filled + wanted)
    first = 0
    while first < w.n:
        last = w.n if w.n - first < CHUNK else first + CHUNK
        with nogil:
            mass += unseen_mass(&w, &seen[0], first, last)
        first = last
        PyErr_CheckSignals()
    with nogil:
        for i in range(filled + wanted - 1, filled - 1, -1):
            mass += probability_of(&w, out[i])
            ready_pairs(&g, 128)
            tries += 1 + floor(log(fl_rng_open(fl_pair(g.word + g.next)))/log1p(-mass if mass < 1 else -1.0))
            g.next += 2
            if i % CHUNK == 0:
                check_signals()
    return tries


def redraw(law, uint64_t key, uint64_t stream, int64_t[::1] out, Py_ssize_t filled, *,
           const int64_t[::1] excluded, uint64_t[::1] seen, double[::1] scratch):
    """Fill the rest of out with independent draws among ids that are not excluded, by bisection of their running sums.

    `seen` is a bitmap of zeros; scratch, for the sums, is one for each id.
    """
    cdef Law w
    cdef fl_rng g
    cdef int64_t v, low, high, middle
    cdef Py_ssize_t i
    cdef double mass = 0, at
    take_law(&w, law)
    fl_rng_start(&g, key, stream, 0)
    with nogil:
        mark_bits(&seen[0], &excluded[0], 0, excluded.shape[0])
        for v in range(w.n):
            mass += 0.0 if has_bit(&seen[0], v) else probability_of(&w, v)
            scratch[v] = mass
            if v % CHUNK == CHUNK - 1:
                check_signals()
        for i in range(filled, out.shape[0]):
            ready_pairs(&g, 128)
            at = fl_rng_open(fl_pair(g.word + g.next))*mass
            g.next += 2
            low, high = 0, w.n - 1                  # first id whose sum exceeds `at`; at the end, the last unseen one
            while low < high:
                middle = low + (high - low)//2
                if scratch[middle] > at or scratch[middle] == mass:
                    high = middle
                else:
                    low = middle + 1
            out[i] = low
            if i % CHUNK == CHUNK - 1:
                check_signals()


# --- expected counts --------------------------------------------------------------------------------------------------

cdef void read_probabilities(const Law* w, const int64_t* ids, double* p, Py_ssize_t m, bint weighed) noexcept nogil:
    """`weighed`: p are the weights."""
    cdef Py_ssize_t i
    cdef double scale
    if w.kind == LOG_UNIFORM:
        scale = w.per_log
        for i in range(m):
            p[i] = fl_two_atanh(1.0/(2.0*fl_from_id(ids[i]) + 3.0))*scale
    elif has_weights(w):
        if not weighed:
            read_weights(w, ids, p, m)
        scale = w.total
        for i in range(m):
            p[i] /= scale
    else:
        for i in range(m):
            p[i] = probability_of(w, ids[i])


cdef void measured(double* p, Py_ssize_t m, const Measure* by) noexcept nogil:
    """Turns probabilities into what is asked for."""
    cdef Py_ssize_t i
    cdef int64_t large = 0, middling = 0
    cdef int what = by.what
    cdef double x = by.x
    cdef const double* times = by.times
    if what == COUNT:
        for i in range(m):
            p[i] *= x
    elif what == TRIES:
        x = x if x < 1e300 else 1e300               # no infinity times zero
        for i in range(m):
            large |= p[i] > 0.5
            middling |= p[i] > 1.0/64
        if large:
            for i in range(m):
                p[i] = fl_one_minus_exp(-x*log1p(-p[i] if p[i] < 1 else -1.0))
        elif middling:
            for i in range(m):
                p[i] = fl_one_minus_exp(x*fl_two_atanh(p[i]/(2.0 - p[i])))
        else:
            for i in range(m):
                p[i] = fl_one_minus_exp(x*fl_two_atanh_small(p[i]/(2.0 - p[i])))
    elif what == INCLUSION and times != NULL:
        for i in range(m):
            p[i] = fl_one_minus_exp(p[i]*x*survival_time(times, p[i]))
    elif what == INCLUSION:
        for i in range(m):
            p[i] = p[i] > 0


cdef int measure_ids(const Law* w, const int64_t* ids, double* out, Py_ssize_t size, const Measure* by,
                     bint weighed) except -1 nogil:
    """`weighed`: out holds the weights."""
    cdef Py_ssize_t i = 0, m = size, some
    if w.kind == UNIFORM:                           # one for all
        m = 1 if size else 0
    while i < m:
        some = m - i if m - i < TILE_DRAWS else TILE_DRAWS
        read_probabilities(w, ids + i, out + i, some, weighed)
        measured(out + i, some, by)
        i += some
        if i % CHUNK == 0:
            check_signals()
    while m < size:
        some = size - m if size - m < BUDGET else BUDGET
        for i in range(m, m + some):
            out[i] = out[0]
        m += some
        if m < size:
            check_signals()
    return 0


cdef int expected_counts(const Law* w, const int64_t* ids, double* out, Py_ssize_t size, int64_t wanted,
                   double tries, bint weighed) except -1 nogil:
    """TensorFlow's expected counts of ids in a sample of `wanted` ids."""
    cdef Measure by = Measure(COUNT if tries == wanted else TRIES, tries, NULL)
    return measure_ids(w, ids, out, size, &by, weighed)


cdef int64_t first_outside(const int64_t* ids, int64_t size, int64_t n) except -2 nogil:
    cdef int64_t i, first = 0, last
    cdef uint64_t top = <uint64_t>n
    while first < size:
        last = size if size - first < BUDGET else first + BUDGET
        for i in range(first, last):
            if <uint64_t>ids[i] >= top:
                return i
        first = last
        if first < size:
            check_signals()
    return -1


def outside(object ids, int64_t n):
    """Position of the first id outside [0, n), or -1."""
    cdef int64_t size, bad
    cdef const int64_t* data = <const int64_t*>data_of(ids, &size, False)
    with nogil:
        bad = first_outside(data, size, n)
    return bad


def measure(law, object ids, object out, int what, double x, object times):
    """Of each id, which must lie in [0, n), by `what` and with x:

    its probability P (x unused); its expected count x P in x draws; the probability 1 - (1 - P)^x that it is among x
    draws; the probability that a sample of distinct ids holds it, by the x and times of `inclusion_times`, or, without
    times, 1 where P > 0.
    """
    cdef Law w
    cdef int64_t size
    cdef Measure by = Measure(what, x, <const double*>data_of(times, &size, False))
    cdef const int64_t* data = <const int64_t*>data_of(ids, &size, False)
    cdef double* result = <double*>data_of(out, &size, True)
    take_law(&w, law)
    with nogil:
        measure_ids(&w, data, result, size, &by, False)


cdef Py_ssize_t next_tile(const Law* w, int64_t* v, int64_t single, double* p, double* number) noexcept nogil:
    """Probabilities from id v on, and how many ids each stands for; returns how many there are, and moves v on.

    From `single` on, which is for log-uniform ids, ids within 2^-8 of one another are a group, by Gauss's rule of two
    points over the smooth p: sums over it are right to 1e-12.
    """
    cdef int64_t ids[TILE_DRAWS]
    cdef int64_t first, last, end = w.n if w.n < single else single
    cdef Py_ssize_t i, k, m
    if v[0] < end:
        m = end - v[0] if end - v[0] < TILE_DRAWS else TILE_DRAWS
        for i in range(m):
            ids[i] = v[0] + i
            number[i] = 1
        read_probabilities(w, ids, p, m, False)
        v[0] += m
        return m
    m = 0
    while m < TILE_DRAWS and v[0] < w.n:
        first = v[0]
        last = w.n if w.n - first <= (first >> 8) + 1 else first + (first >> 8) + 1
        for k in range(2):
            number[m] = 0.5*<double>(last - first)
            # the ids' middle is (first + last - 1)/2; the points are 1/sqrt(12) of their number off it
            p[m] = <double>first + (number[m] - 0.5) + (2*k - 1)*0.28867513459481287*<double>(last - first)
            p[m] = fl_two_atanh(1.0/(2.0*p[m] + 3.0))*w.per_log
            m += 1
        v[0] = last
    return m


def gauss():
    """Nodes and weights of the Gauss rule of 32 points on [0, 1), where it is symmetric: 16 of each."""
    return [fl_gauss_nodes[i] for i in range(NODES)], [fl_gauss_weights[i] for i in range(NODES)]


def inclusion_times(law, double wanted, double[::1] times, int64_t single):
    """The x and times with which `measure` gives the probabilities that a sample of distinct ids holds an id.

    For so many ids `wanted`, less than there are of weight.  Ids below `single` are summed one by one; beyond, only a
    log-uniform law may have any.  Returns x, which makes the sum of the probabilities right to the last digit, and how
    many of `times`, of 2^15 + 2, are used.
    """
    cdef Law w
    cdef Groups c
    cdef Measure by
    cdef double p[TILE_DRAWS]
    cdef double y[TILE_DRAWS]
    cdef double number[TILE_DRAWS]
    cdef double x = 1, drawn, slope, block, step, error
    cdef int64_t v = 0, tiles
    cdef Py_ssize_t i, m, used
    cdef int _turn
    cdef double* scratch = <double*>calloc(6*CLASSES, 8)
    if scratch == NULL:
        raise MemoryError()
    try:
        take_law(&w, law)
        c.size, c.wanted = 0, wanted
        c.number, c.rate, c.absent = scratch, scratch + CLASSES, scratch + 2*CLASSES
        c.present, c.fewer = scratch + 3*CLASSES, scratch + 4*CLASSES
        while v < w.n:
            with nogil:
                tiles = 0
                while v < w.n and tiles < CHUNK//TILE_DRAWS:
                    m = next_tile(&w, &v, single, p, number)
                    for i in range(m):
                        c.number[class_of(p[i])] += number[i] if p[i] > 0 else 0
                        c.rate[class_of(p[i])] += number[i]*p[i]
                    tiles += 1
            PyErr_CheckSignals()
        with nogil:
            for i in range(CLASSES):
                if c.number[i] > 0:
                    c.rate[c.size], c.number[c.size] = c.rate[i]/c.number[i], c.number[i]
                    c.size += 1
            survival_times(&c, scratch + 5*CLASSES)
            used = interpolate_times(&c, scratch + 5*CLASSES, &times[0])
    finally:
        free(scratch)
    for _turn in range(50):                         # Newton's method: the sum is concave in x
        by = Measure(INCLUSION, x, &times[0])
        drawn = slope = error = 0
        v = 0
        while v < w.n:
            with nogil:
                tiles = 0
                while v < w.n and tiles < CHUNK//TILE_DRAWS:
                    m = next_tile(&w, &v, single, p, number)
                    for i in range(m):
                        y[i] = p[i]
                    measured(y, m, &by)
                    block = 0
                    for i in range(m):
                        block += number[i]*y[i]
                        slope += number[i]*(p[i]*survival_time(&times[0], p[i])*(1.0 - y[i]))
                    block -= error                  # compensated: a million terms to the last digit
                    step = drawn + block
                    error = (step - drawn) - block
                    drawn = step
                    tiles += 1
            PyErr_CheckSignals()
        step = (wanted - drawn)/slope if slope > 0 else 0
        if not fabs(step) > x*4e-16:
            break
        x += step
    return x, used
