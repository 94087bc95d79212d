"""What CTC knows of an entry before its lattice: labels, moves, and the probabilities of its frames."""
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from fastloss.kernels.arrays.arrays cimport Rows, index_at, row_at, store
from fastloss.kernels.arrays.id_sets cimport slot_of
from fastloss.kernels.sequence.ctc_frame cimport (
    FRAME_LANES, Frames, Softmax, add_terms, exponentials, fl_largest, fl_sum, padded, read_logits, whole,
)
from fastloss.kernels.math.vmath cimport FL_BIAS, FL_PREFETCH, fl_exp_fine, fl_lo, fl_magic

cdef extern from "arrays/find.h" nogil:
    int64_t fl_find(const double*, int64_t, double) noexcept

cdef extern from "sequence/lattice.h" nogil:
    double FL_NOTHING "FL_LATTICE_NOTHING"
    double FL_TINY "FL_LATTICE_TINY"
    int64_t FL_PART "FL_LATTICE_PART"(int64_t) noexcept
    double fl_two_to(double) noexcept
    void fl_exp_wide(double, double*, double*) noexcept
    int64_t fl_gather(const double*, const int64_t*, int64_t, double, double*) noexcept
    ctypedef struct fl_rest:
        int64_t k[3]
        double p[3]
        double others
        double lost

cdef enum:
    GROUP_FRAMES = 4                   # frames read together at most
    AHEAD_FRAMES = 4                   # frames fetched in advance: they lie too far apart for the machine to guess

cdef struct CtcCall:
    Frames logits
    Frames grad
    Rows labels                 # one row an element
    Rows loss
    const int64_t* offset       # an entry's first element of the labels
    const int64_t* label_length
    const int64_t* logit_length
    const double* scale         # what an entry's gradient is multiplied by, or NULL
    double factor               # and every entry's
    Py_ssize_t n_classes
    Py_ssize_t n_frames
    Py_ssize_t most_labels      # of an entry
    Py_ssize_t most_frames
    int64_t blank
    bint collapse               # adjacent equal labels become one
    bint merge                  # a label may last several frames
    bint skip_long              # entries with more labels than frames are 0
    bint zero_infinity

cdef struct Top:                # a frame's likeliest class where it has more than half of the probability, or -1
    int64_t k
    double others               # what the others have

cdef struct Scratch:            # of one thread
    double* x                   # a group's logits, and their exp
    double* e
    double* p                   # [frames, W] probabilities of the labels, times 2^pe
    double* pe
    double* blank               # [frames, 2] of the blank
    bint* wide                  # [frames] whether pe is not 0
    double* plain               # [W] a row of pe that is
    double* alpha               # rows of four parts: [frames + 1], or 2 where there is no gradient
    double* beta                # 2 rows
    double* mass                # [2, W] of blanks and labels, to whole FRAME_LANES
    double* skip                # [W + 8]
    double* hop                 # [W + 8] 1 where skip is 0
    double* share               # [labels] of the frame, by class
    double* more                # the same, where a second one is needed
    double* q                   # [W + 8] plain probabilities of the labels
    double* off                 # 1 row
    double* arrived             # [W]
    fl_rest* rest               # [frames]
    Top* top                    # [frames]
    int64_t* label              # [W + 8], -1 past the labels
    int64_t* slot               # [labels] where its class stands in `classes`
    int64_t* classes            # the distinct ones, and the position of the first of each
    int64_t* first

cdef struct Entry:
    Py_ssize_t frames
    Py_ssize_t n                # labels
    Py_ssize_t W
    Py_ssize_t distinct
    double stay
    double plain_stay           # the same as 1 or 0
    bint confident              # so far most of the probability is the labelling's
    double lost                 # how much of it is not, by now
    const char* logits
    char* grad
    double scale
    double m                    # probability of the labelling: m 2^e
    double e


# ------------------------------------------------------------------ scratch

cdef inline Py_ssize_t group_of(const CtcCall* call) noexcept nogil:
    """Frames read together: what stays in the first-level cache."""
    return GROUP_FRAMES if call.n_classes <= 256 else 1


cdef inline char* part_of(char** free, size_t size) noexcept nogil:
    """The next `size` bytes, on a cache line."""
    cdef char* p = free[0]
    free[0] = p + (size + 63)//64*64
    return p


cdef inline size_t lay_out(const CtcCall* call, Scratch* s, char* memory) noexcept nogil:
    """Divides the memory up; returns how much it takes."""
    cdef char* free = memory
    cdef size_t n = call.most_labels, W = padded(n + 1), T = call.most_frames, rows = T + 1 if call.grad.data else 2
    s.x = <double*>part_of(&free, group_of(call)*whole(call.n_classes)*8)
    s.e = <double*>part_of(&free, group_of(call)*whole(call.n_classes)*8)
    s.p = <double*>part_of(&free, T*W*8)
    s.pe = <double*>part_of(&free, T*W*8)
    s.blank = <double*>part_of(&free, T*16)
    s.wide = <bint*>part_of(&free, T*sizeof(bint))
    s.plain = <double*>part_of(&free, W*8)
    s.alpha = <double*>part_of(&free, rows*4*FL_PART(W)*8)
    s.beta = <double*>part_of(&free, 2*4*FL_PART(W)*8)
    s.mass = <double*>part_of(&free, 2*(W + FRAME_LANES)*8)
    s.skip = <double*>part_of(&free, (W + 8)*8)
    s.hop = <double*>part_of(&free, (W + 8)*8)
    s.share = <double*>part_of(&free, n*8)
    s.more = <double*>part_of(&free, n*8)
    s.q = <double*>part_of(&free, (W + 8)*8)
    s.off = <double*>part_of(&free, 2*FL_PART(W)*8)
    s.arrived = <double*>part_of(&free, W*8)
    s.rest = <fl_rest*>part_of(&free, T*sizeof(fl_rest))
    s.top = <Top*>part_of(&free, T*sizeof(Top))
    s.label = <int64_t*>part_of(&free, (W + 8)*8)
    s.slot = <int64_t*>part_of(&free, n*8)
    s.classes = <int64_t*>part_of(&free, n*8)
    s.first = <int64_t*>part_of(&free, n*8)
    return free - memory


cdef inline const double* exponents(const Entry* it, const Scratch* s, Py_ssize_t t) noexcept nogil:
    return s.pe + t*it.W if s.wide[t] else s.plain


# ------------------------------------------------------------------ labels

cdef inline Py_ssize_t read_labels(const CtcCall* call, Py_ssize_t b, Scratch* s) noexcept nogil:
    """The entry's labels into s.label; how many are left."""
    cdef Py_ssize_t k, n = 0
    cdef int64_t y
    for k in range(call.label_length[b]):
        y = index_at(row_at(&call.labels, call.offset[b] + k), call.labels.kind)
        if <uint64_t>y >= <uint64_t>call.n_classes:      # checked before, but the array may have changed since
            y = 0
        if call.collapse and n > 0 and s.label[n - 1] == y:
            continue
        s.label[n] = y
        n += 1
    return n


cdef inline void set_moves(const CtcCall* call, Entry* it, Scratch* s) noexcept nogil:
    """Which moves the lattice has."""
    cdef Py_ssize_t u
    it.stay = 0 if call.merge else FL_NOTHING
    it.plain_stay = 1 if call.merge else 0
    for u in range(it.W + 8):
        s.skip[u] = FL_NOTHING
        s.hop[u] = s.q[u] = 0
    for u in range(it.n, it.W + 8):
        s.label[u] = -1
    for u in range(1, it.n):
        if not call.merge or s.label[u] != s.label[u - 1]:
            s.skip[u] = 0
            s.hop[u] = 1
    for u in range(it.W):
        s.plain[u] = 0 if u < it.n else FL_NOTHING


cdef inline void find_classes(Entry* it, Scratch* s) noexcept nogil:
    """The distinct labels, in order of appearance, by a hash table in s.mass."""
    cdef Py_ssize_t u, size = 8             # a power of two in (W, 2 W], for fewer than W labels
    cdef int64_t* table = <int64_t*>s.mass
    cdef uint64_t h
    while size <= it.W:
        size *= 2
    memset(table, 0, size*sizeof(int64_t))
    it.distinct = 0
    for u in range(it.n):
        h = slot_of(table, size - 1, s.classes, s.label[u])
        if table[h] == 0:
            s.classes[it.distinct] = s.label[u]
            s.first[it.distinct] = u
            it.distinct += 1
            table[h] = it.distinct
        s.slot[u] = table[h] - 1


# ------------------------------------------------------------------ frames

cdef inline void widen(double p, double x, const Softmax* f, double* m, double* e) noexcept nogil:
    """p, the probability of a logit x, as m 2^e, also where it underflows."""
    m[0] = p
    e[0] = 0
    if p >= FL_TINY:
        return
    m[0] = 1
    e[0] = FL_NOTHING
    if x - f.shift > -INFINITY:
        fl_exp_wide(x - f.shift, m, e)
        m[0] = m[0]*(f.c*2.0**FL_BIAS)
        if e[0] > -2.0**50 or fabs(f.power) > 900:
            e[0] = e[0] - f.power
        else:                           # of a mask: its exponent has no units, and they count (see shrink in ctc.pyx)
            m[0] = m[0]*fl_two_to(-f.power)


cdef inline void fetch_ahead(const char* frame, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t k = 0
    while k < size:
        FL_PREFETCH(frame + k)
        k += 64


cdef inline void set_top(double* e, Py_ssize_t n, Py_ssize_t k, double c, Top* top) noexcept nogil:
    cdef double v = e[k]
    e[k] = 0
    top.k = k
    top.others = fl_sum(e, n)*c
    e[k] = v


cdef inline void set_rest(double* e, Py_ssize_t n, double c, fl_rest* rest) noexcept nogil:
    """The three largest of the terms, which become 0, and the sum of the others."""
    cdef int j
    for j in range(3):
        rest.p[j] = fl_largest(e, n)
        rest.k[j] = -2                          # no class, nor what stands past the labels
        if rest.p[j] > 0:
            rest.k[j] = fl_find(e, n, rest.p[j])
            e[rest.k[j]] = 0
        rest.p[j] *= c
    rest.others = fl_sum(e, n)*c


cdef inline void settle_frame(const CtcCall* call, const Entry* it, Py_ssize_t t, const Softmax* f, double* x,
                              double* e, Scratch* s) noexcept nogil:
    """What the lattice needs of a frame, and its gradient but for the blank and the labels; x and e are used up."""
    cdef Py_ssize_t c = call.n_classes, n = whole(c), k, u
    cdef double scaled
    cdef double* p = s.p + t*it.W
    cdef double* pe = s.pe + t*it.W
    cdef int64_t tiny = fl_gather(e, s.label, it.n, f.c, p)
    for u in range(it.n, it.W):
        p[u] = 0
    s.wide[t] = tiny > 0
    if tiny:
        for u in range(it.W):
            pe[u] = FL_NOTHING
        for u in range(it.n):
            widen(p[u], x[s.label[u]], f, &p[u], &pe[u])
    widen(e[call.blank]*f.c, x[call.blank], f, &s.blank[2*t], &s.blank[2*t + 1])
    if it.grad != NULL:
        s.top[t].k = -1
        # the first condition is weaker and needs no exp
        if 1.5*2.0**FL_BIAS*f.c > 0.5 and fl_exp_fine(f.top - f.shift, fl_lo(f.power), fl_magic(f.power))*f.c > 0.5:
            set_top(e, n, fl_find(x, n, f.top), f.c, &s.top[t])
        scaled = f.c*it.scale
        for k in range(c):
            x[k] = e[k]*scaled
        store(it.grad + t*call.grad.frame, call.grad.step, call.grad.kind, x, c)
    if it.confident:
        set_rest(e, n, f.c, &s.rest[t])


cdef inline bint read_frames(const CtcCall* call, const Entry* it, Py_ssize_t start, Py_ssize_t stop,
                             Scratch* s) noexcept nogil:
    """Probabilities of at most GROUP_FRAMES frames; False if one has none.

    Each step is done for all of them, for its last result is waited for before the next one.
    """
    cdef Py_ssize_t c = call.n_classes, n = whole(c), t, i
    cdef bint good = True
    cdef Softmax f[GROUP_FRAMES]
    for i in range(stop - start):
        read_logits(&call.logits, it.logits + (start + i)*call.logits.frame, c, s.x + i*n, &f[i])
    for i in range(stop - start):
        t = start + i + AHEAD_FRAMES
        if t < it.frames:
            fetch_ahead(it.logits + t*call.logits.frame, c*call.logits.step)
            if it.grad != NULL:
                fetch_ahead(it.grad + t*call.grad.frame, c*call.grad.step)
        exponentials(c, s.x + i*n, s.e + i*n, &f[i])
    for i in range(stop - start):
        good = add_terms(c, s.e + i*n, &f[i]) and good
    if not good:
        return False
    for i in range(stop - start):
        settle_frame(call, it, start + i, &f[i], s.x + i*n, s.e + i*n, s)
    return True


cdef inline void fill(const CtcCall* call, char* grad, Py_ssize_t start, Py_ssize_t stop, double v) noexcept nogil:
    """The gradient of these frames = v."""
    cdef Py_ssize_t t, k
    for t in range(start, stop):
        for k in range(call.n_classes):
            store(grad + t*call.grad.frame + k*call.grad.step, 0, call.grad.kind, &v, 1)
