"""The one place that enters a parallel region."""
from cpython.exc cimport PyErr_Occurred
from cython.parallel cimport prange
from libc.stdint cimport int64_t

from threading import main_thread

cdef extern from "_parallel.h" nogil:
    ctypedef struct fl_region:
        Body body
        void* call
        int64_t blocks
        int64_t next
        int64_t stop
        int64_t spent
        int64_t own
    int fl_alive
    int fl_by_default
    int64_t fl_main
    int64_t fl_forked
    int64_t fl_resume
    int64_t fl_pause
    int64_t fl_get(int64_t*) noexcept
    void fl_put(int64_t*, int64_t) noexcept
    fl_region* fl_here() noexcept
    void fl_set_here(fl_region*) noexcept
    int64_t fl_now() noexcept
    bint fl_signalled() noexcept
    bint fl_is_owner() noexcept
    bint fl_is_busy() noexcept
    void fl_watch() noexcept
    void fl_read_stack_size() noexcept
    void fl_judge(int64_t, int64_t) noexcept
    int fl_team(int) noexcept
    int fl_max_threads() noexcept
    void fl_work(fl_region*, int) noexcept

fl_read_stack_size()
fl_watch()
fl_put(&fl_main, main_thread().ident)


cdef bint interrupted() noexcept nogil:
    cdef fl_region* region = fl_here()
    if region != NULL and fl_get(&region.stop):
        return True
    if not fl_signalled():
        return False
    if region != NULL:
        fl_put(&region.stop, 1)
    return True


cdef int for_blocks(Body body, void* call, Py_ssize_t n_blocks, int n_threads) except -1 nogil:
    cdef fl_region region
    cdef fl_region* outer = fl_here()       # not NULL: a signal's handler calls this in the middle of another call
    cdef Py_ssize_t b
    region.stop = 0
    if n_threads > 1 and n_blocks > 1 and outer == NULL and not (fl_by_default and fl_is_busy()):
        n_threads = fl_team(n_threads)
        if n_threads > 1:
            region.body, region.call, region.blocks = body, call, n_blocks
            region.next = region.spent = region.own = 0
            run_team(&region, n_threads)
            return -1 if region.stop else 0
    fl_set_here(&region)
    for b in range(n_blocks):
        if b > 0 and interrupted():
            break
        body(call, b, 0)
    fl_set_here(outer)
    return -1 if region.stop else 0


cdef void run_team(fl_region* region, int n_threads) noexcept nogil:
    """Runs a region on n_threads threads, and judges whether one alone would have been faster."""
    cdef int t, shares = <int>min(region.blocks, <int64_t>n_threads), alive = fl_alive
    cdef int64_t began = fl_now()
    for t in prange(shares, schedule="static", chunksize=1, num_threads=n_threads):    # libgomp keeps equal teams
        fl_work(region, t)
    if fl_by_default and fl_alive == alive and not region.stop:     # making threads takes time only once
        fl_judge(fl_now() - began, region.own + region.spent)


def openmp_max_threads():
    """``omp_get_max_threads()``, or 0 when built without OpenMP."""
    return fl_max_threads()


def forked():
    """Whether this process is a forked child of one that had loaded this module."""
    return fl_get(&fl_forked) != 0


def wish(int n_threads):
    """n_threads, as asked for: this thread's regions are not judged from now on."""
    global fl_by_default
    fl_by_default = False
    return n_threads


def default(int n_threads):
    """n_threads where they may gain; 1 where other processes, or another Python thread, use the processors."""
    global fl_by_default
    if not fl_is_owner() or fl_is_busy():
        return 1
    fl_by_default = True
    return n_threads


def pause():
    """Seconds for which default calls will still take one thread, because other processes have the processors."""
    return max(0, fl_get(&fl_resume) - fl_now())*1e-9 if fl_get(&fl_resume) else 0.0
