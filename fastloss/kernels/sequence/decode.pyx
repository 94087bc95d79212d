"""Decoding of frames into labels, and the edit distance between sequences; an entry is one thread's."""
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t

from fastloss._parallel cimport for_blocks
from fastloss.kernels.arrays.arrays cimport NO_AXIS, Held, Rows, index_at, release, row_at, take
from fastloss.kernels.sequence.ctc_frame cimport Frames, Softmax, fl_sum, read_terms, take_frames, whole
from fastloss.kernels.parallel.parallel cimport ASK, blocks, stopped
from fastloss.kernels.parallel.scratch cimport Scratches, free_scratch, new_scratch, no_memory, scratch_of
from fastloss.kernels.math.vmath cimport fl_log1p

cdef extern from "arrays/find.h" nogil:
    int64_t fl_find(const double*, int64_t, double) noexcept

cdef struct DecodeCall:
    Frames logits
    const int64_t* length
    Py_ssize_t n_classes
    Py_ssize_t most_frames
    int64_t blank
    bint merge
    Py_ssize_t width            # beams
    Py_ssize_t paths            # of them wanted
    Py_ssize_t room             # labels of a path
    int64_t* labels             # [entries, paths, room]
    int64_t* n_labels           # [entries, paths]; -1: no such path
    double* score               # [entries]
    Scratches scratch


# ------------------------------------------------------------------ greedy

cdef void decode_greedily(const DecodeCall* call, Py_ssize_t b, char* memory) noexcept nogil:
    """The likeliest class of every frame; the score is that alignment's log-probability."""
    cdef Py_ssize_t t, n = 0, c = call.n_classes, done = 0
    cdef double* x = <double*>memory
    cdef double* e = x + whole(c)
    cdef Softmax f
    cdef int64_t k, last = -1
    cdef double top, score = 0
    for t in range(call.length[b]):
        if stopped(&done, 2*c):
            return
        if not read_terms(&call.logits, call.logits.data + b*call.logits.entry + t*call.logits.frame, c, x, e, &f):
            score = NAN
            while n > 0:
                n -= 1
                call.labels[b*call.room + n] = -1
            break
        k = fl_find(x, c, f.top)
        top = e[k]
        e[k] = 0
        score -= fl_log1p(fl_sum(e, whole(c))/top)
        if k != call.blank and not (call.merge and k == last):
            call.labels[b*call.room + n] = k
            n += 1
        last = k
    call.n_labels[b] = n
    call.score[b] = score


# ------------------------------------------------------------------ beams
# A beam is a labelling, a node of a tree; its mass is that of the alignments found so far, apart those that end with a
# blank.  Masses are relative to the frame's best.

cdef struct Node:
    int64_t parent
    int64_t label
    int64_t child               # its first one
    int64_t sibling             # the next child of its parent
    int64_t beam                # which beam it is, or -1

cdef struct Beam:
    int64_t node                # -1: to be made, from `parent` and `label`
    int64_t parent
    int64_t label
    int64_t order               # breaks ties
    int64_t child               # a beam that is this one and a label more, and the next one of its parent
    int64_t sibling
    double blank                # mass of alignments that end with a blank, and with the last label
    double other

cdef struct Order:              # classes, the likeliest first
    double p
    int64_t k

cdef struct Search:
    double* x
    double* e
    Order* order
    Node* nodes
    Beam* beams
    Beam* next                  # a heap, the worst on top
    int64_t* taken              # by class: the beam whose child of this label is a beam itself, + 1
    Py_ssize_t n_nodes
    Py_ssize_t n_beams
    Py_ssize_t n_next


cdef inline bint worse(const Beam* a, const Beam* b) noexcept nogil:
    cdef double u = a.blank + a.other, v = b.blank + b.other
    return u < v or (u == v and a.order > b.order)


cdef void sift_down(Beam* heap, Py_ssize_t k, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j
    cdef Beam moved
    while 2*k + 1 < n:
        j = 2*k + 1
        if j + 1 < n and worse(&heap[j + 1], &heap[j]):
            j += 1
        if not worse(&heap[j], &heap[k]):
            return
        moved = heap[k]
        heap[k] = heap[j]
        heap[j] = moved
        k = j


cdef void offer(const DecodeCall* call, Search* s, const Beam* beam) noexcept nogil:
    """Keeps the beam if it is among the best so far."""
    cdef Py_ssize_t k
    cdef Beam moved
    if s.n_next < call.width:
        k = s.n_next
        s.next[k] = beam[0]
        s.n_next += 1
        while k > 0 and worse(&s.next[k], &s.next[(k - 1)//2]):
            moved = s.next[k]
            s.next[k] = s.next[(k - 1)//2]
            s.next[(k - 1)//2] = moved
            k = (k - 1)//2
    elif worse(&s.next[0], beam):
        s.next[0] = beam[0]
        sift_down(s.next, 0, s.n_next)


cdef inline bint after(const Order* a, const Order* b) noexcept nogil:
    return a.p < b.p or (a.p == b.p and a.k > b.k)


cdef void sort_classes(Order* a, Py_ssize_t n) noexcept nogil:
    """The likeliest first; a heap sort, for no input makes it slow."""
    cdef Py_ssize_t start = n//2 - 1, stop, k, j
    cdef Order moved
    stop = n
    while stop > 1:
        if start >= 0:
            k = start
            start -= 1
        else:
            stop -= 1
            moved = a[stop]
            a[stop] = a[0]
            a[0] = moved
            k = 0
        while 2*k + 1 < stop:
            j = 2*k + 1
            if j + 1 < stop and after(&a[j + 1], &a[j]):
                j += 1
            if not after(&a[j], &a[k]):
                break
            moved = a[k]
            a[k] = a[j]
            a[j] = moved
            k = j


cdef int64_t child_of(Search* s, int64_t parent, int64_t label) noexcept nogil:
    """The node of this labelling, an old one or a new."""
    cdef int64_t k = s.nodes[parent].child
    while k >= 0 and s.nodes[k].label != label:
        k = s.nodes[k].sibling
    if k < 0:
        k = s.n_nodes
        s.n_nodes += 1
        s.nodes[k].parent = parent
        s.nodes[k].label = label
        s.nodes[k].child = -1
        s.nodes[k].sibling = s.nodes[parent].child
        s.nodes[k].beam = -1
        s.nodes[parent].child = k
    return k


cdef void search_frame(const DecodeCall* call, Search* s, double c, Py_ssize_t* done) noexcept nogil:
    """One frame on: its terms are in s.e, times c probabilities."""
    cdef Py_ssize_t i, j, n = 0
    cdef int64_t k, up, order = s.n_beams
    cdef double blank = s.e[call.blank]*c, total, mass, best = 0
    cdef Beam beam
    cdef Beam* old
    for k in range(call.n_classes):
        if k != call.blank and s.e[k] > 0:
            s.order[n].p = s.e[k]*c
            s.order[n].k = k
            n += 1
    sort_classes(s.order, n)
    s.n_next = 0
    for i in range(s.n_beams):              # beams that stay what they are, or grow into one that is a beam already
        old = &s.beams[i]
        beam = old[0]
        beam.order = i
        beam.blank = (old.blank + old.other)*blank
        beam.other = 0
        if old.node > 0:
            beam.other = old.other*s.e[old.label]*c if call.merge else 0.0
            up = s.nodes[s.nodes[old.node].parent].beam
            if up >= 0:
                mass = s.beams[up].blank
                if not call.merge or s.beams[up].label != old.label:
                    mass += s.beams[up].other
                beam.other += mass*s.e[old.label]*c
        offer(call, s, &beam)
    for k in range(call.n_classes):
        s.taken[k] = 0
    for i in range(s.n_beams):
        s.beams[i].child = -1
    for i in range(s.n_beams):
        up = s.nodes[s.nodes[s.beams[i].node].parent].beam if s.beams[i].node > 0 else -1
        if up >= 0:
            s.beams[i].sibling = s.beams[up].child
            s.beams[up].child = i
    for i in range(s.n_beams):              # new ones
        old = &s.beams[i]
        total = old.blank + old.other
        k = old.child
        while k >= 0:
            s.taken[s.beams[k].label] = i + 1
            k = s.beams[k].sibling
        for j in range(n):
            if s.n_next == call.width and total*s.order[j].p < s.next[0].blank + s.next[0].other:
                break
            if stopped(done, 1):
                break
            k = s.order[j].k
            if s.taken[k] == i + 1:
                continue
            beam.node = -1
            beam.parent = old.node
            beam.label = k
            beam.order = order
            beam.blank = 0
            beam.other = (old.blank if call.merge and k == old.label else total)*s.order[j].p
            order += 1
            if beam.other > 0:
                offer(call, s, &beam)
    for i in range(s.n_beams):
        s.nodes[s.beams[i].node].beam = -1
    s.beams, s.next = s.next, s.beams
    s.n_beams = s.n_next
    for i in range(s.n_beams):
        total = s.beams[i].blank + s.beams[i].other
        best = total if total > best else best
    for i in range(s.n_beams):
        if s.beams[i].node < 0:
            s.beams[i].node = child_of(s, s.beams[i].parent, s.beams[i].label)
        s.nodes[s.beams[i].node].beam = i
        if best > 0:
            s.beams[i].blank = s.beams[i].blank/best
            s.beams[i].other = s.beams[i].other/best


cdef void decode_beams(const DecodeCall* call, Py_ssize_t b, char* memory) noexcept nogil:
    cdef Search s
    cdef Softmax f
    cdef Py_ssize_t t, i, n, c = call.n_classes, done = 0
    cdef int64_t k
    cdef int64_t* out
    cdef Beam moved
    s.x = <double*>memory
    s.e = s.x + whole(c)
    s.order = <Order*>(s.e + whole(c))
    s.taken = <int64_t*>(s.order + c)
    s.beams = <Beam*>(s.taken + c)
    s.next = s.beams + call.width
    s.nodes = <Node*>(s.next + call.width)
    s.n_nodes = s.n_beams = 1
    s.nodes[0].parent = s.nodes[0].label = s.nodes[0].child = s.nodes[0].sibling = -1
    s.nodes[0].beam = 0
    s.beams[0].node = 0
    s.beams[0].label = s.beams[0].parent = -1
    s.beams[0].order = 0
    s.beams[0].blank = 1
    s.beams[0].other = 0
    for t in range(call.length[b]):
        if stopped(&done, 16*(c + call.width)):      # sorting and heaps
            return
        if not read_terms(&call.logits, call.logits.data + b*call.logits.entry + t*call.logits.frame, c, s.x, s.e, &f):
            s.n_beams = 1                   # the first path, of no labels, tells that there is a NaN
            s.beams[0].node = 0
            break
        search_frame(call, &s, f.c, &done)
    n = s.n_beams                           # sort, the best first
    i = n//2 - 1
    while i >= 0:
        sift_down(s.beams, i, n)
        i -= 1
    while n > 1:
        n -= 1
        moved = s.beams[0]
        s.beams[0] = s.beams[n]
        s.beams[n] = moved
        sift_down(s.beams, 0, n)
    for i in range(call.paths):
        call.n_labels[b*call.paths + i] = -1
        if i >= s.n_beams or (i > 0 and not s.beams[i].blank + s.beams[i].other > 0):
            continue
        n = 0
        k = s.beams[i].node
        while k > 0:
            n += 1
            k = s.nodes[k].parent
        call.n_labels[b*call.paths + i] = n
        out = call.labels + (b*call.paths + i)*call.room
        k = s.beams[i].node
        while k > 0:
            n -= 1
            out[n] = s.nodes[k].label
            k = s.nodes[k].parent


# ------------------------------------------------------------------ entries

cdef void run_block(void* run, Py_ssize_t b, int thread) noexcept nogil:
    cdef DecodeCall* call = <DecodeCall*>run
    cdef char* memory = scratch_of(&call.scratch, thread)
    if memory != NULL and call.width:
        decode_beams(call, b, memory)
    elif memory != NULL:
        decode_greedily(call, b, memory)


def decode(logits, const int64_t[::1] length, *, int64_t blank, bint merge, Py_ssize_t width,
           int64_t[:, :, ::1] labels, int64_t[:, ::1] n_labels, double[::1] score, double most, int n_threads):
    """The best paths of every entry of logits [entries, frames, classes]; width 0 is greedy, of one path.

    MemoryError where a thread's scratch would take more than `most` bytes.
    """
    cdef DecodeCall call
    cdef Held held
    cdef Py_ssize_t n = length.shape[0], b, work = 0
    cdef double size
    held.count = 0
    if n == 0:
        return
    try:
        take_frames(&held, logits, False, &call.logits)
        call.n_classes = logits.shape[2]
        call.length = &length[0]
        call.blank = blank
        call.merge = merge
        call.width = width
        call.paths = labels.shape[1]
        call.room = labels.shape[2]
        call.labels = &labels[0, 0, 0] if call.room else NULL
        call.n_labels = &n_labels[0, 0]
        call.score = &score[0]
        call.most_frames = 0
        for b in range(n):
            call.most_frames = max(call.most_frames, length[b])
            work += length[b]*call.n_classes
        size = 16.0*whole(call.n_classes)
        if width:
            size += (sizeof(Order) + 8.0)*call.n_classes + 2.0*width*sizeof(Beam)
            size += (<double>call.most_frames*width + 1)*sizeof(Node)
        if size > most:
            raise MemoryError(f"beam_width must leave scratch that fits in memory, got {width}: {size:.0f} bytes")
        if blocks(n, work//n*(1 + width), n_threads) == 1:
            n_threads = 1
        new_scratch(&call.scratch, n_threads, <size_t>size)
        try:
            with nogil:
                for_blocks(run_block, &call, n, n_threads)
        finally:
            free_scratch(&call.scratch)
    finally:
        release(&held)


# ------------------------------------------------------------------ edit distance

cdef inline int64_t advance(int64_t* row, const int64_t* y, int64_t x, Py_ssize_t start, Py_ssize_t stop,
                            int64_t corner) noexcept nogil:
    """Entries start + 1 .. stop of the row of one more element, x; `corner` and the result: what the old row had."""
    cdef Py_ssize_t j
    cdef int64_t v
    for j in range(start, stop):
        v = corner + (x != y[j])
        corner = row[j + 1]
        v = v if v < corner + 1 else corner + 1
        row[j + 1] = v if v < row[j] + 1 else row[j] + 1
    return corner


cdef int64_t distance(const Rows* a, Py_ssize_t a_start, Py_ssize_t n, const Rows* b, Py_ssize_t b_start, Py_ssize_t m,
                      int64_t* memory) noexcept nogil:
    """Insertions, deletions and substitutions that make one of the other; memory: 2 m + 1 numbers."""
    cdef int64_t* row = memory              # distances from the first i of a to the first j of b
    cdef int64_t* y = memory + m + 1
    cdef int64_t x, corner
    cdef Py_ssize_t i, j, step = ASK, first = m if m < step else step, done = 0
    for j in range(m):
        y[j] = index_at(row_at(b, b_start + j), b.kind)
    for j in range(m + 1):
        row[j] = j
    for i in range(n):
        x = index_at(row_at(a, a_start + i), a.kind)
        corner = row[0]
        row[0] = i + 1
        corner = advance(row, y, x, 0, first, corner)
        j = first
        while j < m and not stopped(&done, step):
            corner = advance(row, y, x, j, j + step if m - j > step else m, corner)
            j += step
        if stopped(&done, first):
            return 0
    return row[m]


cdef struct DistancesCall:
    Rows a
    Rows b
    const int64_t* a_start
    const int64_t* a_length
    const int64_t* b_start
    const int64_t* b_length
    bint normalize
    double* out
    Py_ssize_t n
    Py_ssize_t step             # pairs of a block: one look at the clock for all
    Scratches scratch


cdef void run_distances(void* run, Py_ssize_t block, int thread) noexcept nogil:
    cdef DistancesCall* call = <DistancesCall*>run
    cdef Py_ssize_t k, n, m
    cdef char* memory = scratch_of(&call.scratch, thread)
    if memory == NULL:
        return
    for k in range(block*call.step, min((block + 1)*call.step, call.n)):
        n, m = call.a_length[k], call.b_length[k]
        call.out[k] = distance(&call.a, call.a_start[k], n, &call.b, call.b_start[k], m, <int64_t*>memory)
        if call.normalize:
            call.out[k] = call.out[k]/m if m else (INFINITY if n else 0)


def edit_distances(a, b, double[::1] out, *, const int64_t[::1] a_start, const int64_t[::1] a_length,
                   const int64_t[::1] b_start, const int64_t[::1] b_length, bint normalize, int n_threads):
    """out = distances; divided by the length of b if normalize, 0 and inf where that is 0."""
    cdef DistancesCall call
    cdef Held held
    cdef Py_ssize_t n = out.shape[0], k, room = 8, work = 0
    held.count = 0
    try:
        take(&held, a, NO_AXIS, False, &call.a)
        take(&held, b, NO_AXIS, False, &call.b)
        for k in range(n):
            room = max(room, 8*(2*b_length[k] + 1))
            work += a_length[k]*b_length[k]
        if n == 0:
            return
        if blocks(n, work//n, n_threads) == 1:
            n_threads = 1
        call.a_start, call.a_length = &a_start[0], &a_length[0]
        call.b_start, call.b_length = &b_start[0], &b_length[0]
        call.normalize = normalize
        call.out = &out[0]
        call.n = n
        call.step = 1 + 8192//(work//n + 1)
        new_scratch(&call.scratch, n_threads, room)
        try:
            with nogil:
                for_blocks(run_distances, &call, (n + call.step - 1)//call.step, n_threads)
        finally:
            free_scratch(&call.scratch)
    finally:
        release(&held)
