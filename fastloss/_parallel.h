/* What _parallel.pyx needs of the system: clocks, atomics, what a thread knows of itself, and whether threads can be
   made.  Numbers that several threads use are atomic; those of a single thread are thread-local. */
#ifndef FL_PARALLEL_H
#define FL_PARALLEL_H

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_MSC_VER)
#include <windows.h>
#include <intrin.h>
#define FL_LOCAL static __declspec(thread)
static int64_t fl_add(volatile int64_t *p, int64_t n) { return _InterlockedExchangeAdd64(p, n); }
static int64_t fl_get(volatile int64_t *p) { return _InterlockedExchangeAdd64(p, 0); }
static void fl_put(volatile int64_t *p, int64_t v) { _InterlockedExchange64(p, v); }
#else
#include <pthread.h>
#include <time.h>
#include <unistd.h>
#ifdef __GLIBC__                /* otherwise it allocates thread-local memory, with a heap for each thread */
#define FL_LOCAL static __thread __attribute__((tls_model("initial-exec")))
#else
#define FL_LOCAL static __thread
#endif
static int64_t fl_add(int64_t *p, int64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }
static int64_t fl_get(int64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static void fl_put(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
#endif
#ifdef __linux__
#include <sys/syscall.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    FL_STACK = 128 << 10,       /* bytes of stack that a thread of a team must have; kernels use 64 KB */
    FL_LOOK = 50000000,         /* nanoseconds between two looks at pending signals */
    FL_LONG = 500000,           /* ns in a region after which a thread may have been kept from its processor */
    FL_WAKING = 200000,         /* ns that the first region after a pause may lose by waking the team */
    FL_SHORTEST = 10000000,     /* shortest pause after a region that lost time, */
    FL_LONGEST = 1000000000     /* and the longest after several */
};

typedef struct {
    void (*body)(void *call, Py_ssize_t block, int thread);
    void *call;
    int64_t blocks;
    int64_t next;               /* atomic: the next block that no thread has claimed */
    int64_t stop;               /* atomic: an exception is set, leave all other blocks */
    int64_t spent;              /* atomic: nanoseconds of work by the other threads */
    int64_t own;                /* and by the caller */
} fl_region;

/* ---------------------------------------------------------------- what a thread knows of itself */

FL_LOCAL fl_region *fl_region_here; /* the region whose blocks it runs */
FL_LOCAL int fl_alive;          /* threads of its last team, with itself: libgomp keeps exactly those */
FL_LOCAL int fl_by_default;     /* the number of threads of its call was chosen by default, not asked for */
FL_LOCAL int fl_wary;           /* for how many regions it will check whether it was kept from its processor */

static fl_region *fl_here(void) { return fl_region_here; }
static void fl_set_here(fl_region *r) { fl_region_here = r; }

/* ---------------------------------------------------------------- clocks, in nanoseconds */

#if defined(_MSC_VER)
static int64_t fl_now(void) {
    LARGE_INTEGER ticks, rate;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&rate);
    return (int64_t)((double)ticks.QuadPart/(double)rate.QuadPart*1e9);
}
static int64_t fl_work_time(void) { return 0; }
#else
static int64_t fl_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec*1000000000 + t.tv_nsec;
}
static int64_t fl_now(void) { return fl_clock(CLOCK_MONOTONIC); }
static int64_t fl_work_time(void) { return fl_clock(CLOCK_THREAD_CPUTIME_ID); }   /* a system call, unlike the other */
#endif

/* ---------------------------------------------------------------- signals */

static int64_t fl_main;         /* atomic: Python's main thread, the only one that may get KeyboardInterrupt */
static int64_t fl_next_look;    /* these two are the main thread's alone */
static int fl_postponed;

/* Whether a signal's handler has raised an exception; looks every FL_LOOK.  Does not wait for Python's lock at the
   beginning of a call, because Python itself has just looked. */
static int fl_signalled(void) {
    int64_t now;
    int raised;
    PyGILState_STATE state;
    if ((int64_t)PyThread_get_thread_ident() != fl_get(&fl_main)) return 0;
    now = fl_now();
    if (now < fl_next_look) return 0;
    if (now - fl_next_look > 2*FL_LOOK && !fl_postponed) {
        fl_postponed = 1;
        fl_next_look = now + FL_LOOK/2;
        return 0;
    }
    state = PyGILState_Ensure();
    raised = PyErr_CheckSignals() < 0;
    PyGILState_Release(state);
    fl_postponed = 0;
    fl_next_look = fl_now() + FL_LOOK;
    return raised;
}

/* ---------------------------------------------------------------- forks, and who has the team */

static int64_t fl_forked;       /* atomic: libgomp waits for ever in a forked child */
static int64_t fl_owner;        /* atomic: the thread whose calls take several threads by default; 0: nobody yet */

#if defined(_MSC_VER)
static int fl_is_owner(void) { return 1; }
static void fl_watch(void) {}
#else
static pthread_key_t fl_end_of_thread;
static void fl_leave(void *unused) { (void)unused; fl_put(&fl_owner, 0); }
static int fl_is_owner(void) {
    int64_t me = (int64_t)(uintptr_t)pthread_self(), nobody = 0;
    if (fl_get(&fl_owner) == me) return 1;
    if (!__atomic_compare_exchange_n(&fl_owner, &nobody, me, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return 0;
    if (pthread_setspecific(fl_end_of_thread, &fl_owner) != 0) fl_put(&fl_owner, 0);
    return fl_get(&fl_owner) == me;
}
static void fl_after_fork(void) {
    fl_put(&fl_forked, 1);
    fl_put(&fl_main, (int64_t)PyThread_get_thread_ident());
    fl_region_here = NULL;
}
static void fl_watch(void) {
    if (pthread_key_create(&fl_end_of_thread, fl_leave) != 0 || pthread_atfork(NULL, NULL, fl_after_fork) != 0)
        fl_put(&fl_forked, 1);          /* one thread, then */
}
#endif

/* ---------------------------------------------------------------- whether several threads gain anything */

static int64_t fl_resume;       /* atomic: until then calls with a default number of threads take one */
static int64_t fl_pause;        /* atomic: how long the last pause was; 0 after a region that gained */
static int64_t fl_asleep;       /* atomic: whether no region has come after that pause yet */

/* Judges a region that took `whole` nanoseconds, for which one thread would have taken `work`. */
static void fl_judge(int64_t whole, int64_t work) {
    int64_t lost = whole - work - work/8 - 10000, pause;
    if (lost <= 0) {
        if (fl_get(&fl_pause)) fl_put(&fl_pause, 0);
        return;
    }
    if (lost < FL_WAKING && fl_get(&fl_asleep)) {
        fl_put(&fl_asleep, 0);
        return;
    }
    pause = 2*fl_get(&fl_pause);
    pause = pause > 10*lost ? pause : 10*lost;          /* so that trying loses at most a tenth of the time */
    pause = pause > FL_SHORTEST ? pause : FL_SHORTEST;
    pause = pause < FL_LONGEST ? pause : FL_LONGEST;
    fl_put(&fl_pause, pause);
    fl_put(&fl_asleep, 1);
    fl_put(&fl_resume, fl_now() + pause);
}

static int fl_is_busy(void) { return fl_get(&fl_resume) && fl_now() < fl_get(&fl_resume); }

/* ---------------------------------------------------------------- whether threads can be made */

static int64_t fl_stack_size;   /* of libgomp's threads; 0: the system's default */

#ifdef _OPENMP
/* The smaller one of OMP_STACKSIZE and GOMP_STACKSIZE, because libgomp takes one or the other. */
static void fl_read_stack_size(void) {
    static const char *names[] = {"OMP_STACKSIZE", "GOMP_STACKSIZE"};
    int i;
    for (i = 0; i < 2; i++) {
        const char *text = getenv(names[i]);
        char *end;
        double size, unit = 1024;
        if (text == NULL) continue;
        size = strtod(text, &end);
        if (end == text || !(size > 0)) continue;
        while (*end == ' ' || *end == '\t') end++;
        if (*end == 'b' || *end == 'B') unit = 1;
        if (*end == 'm' || *end == 'M') unit = 1 << 20;
        if (*end == 'g' || *end == 'G') unit = 1 << 30;
        size = size*unit < 9e18 ? size*unit : 9e18;
        if (fl_stack_size == 0 || (int64_t)size < fl_stack_size) fl_stack_size = size < 1 ? 1 : (int64_t)size;
    }
}
#else
static void fl_read_stack_size(void) {}
#endif

#if defined(_OPENMP) && !defined(_MSC_VER)
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int go;
} fl_gate;

typedef struct {
    fl_gate *gate;
    pthread_t thread;
    long id;
} fl_guest;

static void *fl_be_there(void *a) {
    fl_guest *me = (fl_guest *)a;
#ifdef __linux__
    me->id = syscall(SYS_gettid);
#endif
    pthread_mutex_lock(&me->gate->lock);
    while (!me->gate->go) pthread_cond_wait(&me->gate->changed, &me->gate->lock);
    pthread_mutex_unlock(&me->gate->lock);
    return NULL;
}

/* How many of n threads can be made; libgomp would end the process if one cannot.  They all exist at once, and when
   this returns the system no longer counts them. */
static int fl_try_threads(int n) {
    fl_gate gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    fl_guest *guests = (fl_guest *)calloc(n, sizeof(fl_guest));
    pthread_attr_t attr;
    size_t stack = 0;
    int made = 0, i;
    if (guests == NULL) return 0;
    if (pthread_attr_init(&attr) != 0) {
        free(guests);
        return 0;
    }
    if (fl_stack_size == 0 || pthread_attr_setstacksize(&attr, (size_t)fl_stack_size) == 0)
        pthread_attr_getstacksize(&attr, &stack);
    while (stack >= FL_STACK && made < n) {
        guests[made].gate = &gate;
        if (pthread_create(&guests[made].thread, &attr, fl_be_there, &guests[made]) != 0) break;
        made++;
    }
    pthread_attr_destroy(&attr);
    pthread_mutex_lock(&gate.lock);
    gate.go = 1;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
    for (i = 0; i < made; i++) pthread_join(guests[i].thread, NULL);
#ifdef __linux__
    for (i = 0; i < made; i++) {
        struct timespec moment = {0, 20000};
        int turns = 0;
        while (syscall(SYS_tgkill, (long)getpid(), guests[i].id, 0) == 0 && turns++ < 1000) nanosleep(&moment, NULL);
    }
#endif
    free(guests);
    return made;
}
#else
static int fl_try_threads(int n) { return n; }
#endif

/* How many threads, at most n, a region of this thread may have. */
static int fl_team(int n) {
    if (fl_get(&fl_forked) || (fl_stack_size && fl_stack_size < FL_STACK)) return 1;
    if (fl_alive < 1) fl_alive = 1;
#ifdef _OPENMP
    n = n < omp_get_thread_limit() ? n : omp_get_thread_limit();
#endif
    return n <= fl_alive ? n : fl_alive + fl_try_threads(n - fl_alive);
}

/* ---------------------------------------------------------------- one thread's share of a region */

static int fl_max_threads(void) {
#ifdef _OPENMP
    int most = omp_get_thread_limit();
    return omp_get_max_threads() < most ? omp_get_max_threads() : most;
#else
    return 0;
#endif
}

/* Runs blocks until none is left. */
static void fl_work(fl_region *r, int thread) {
    fl_region *outer = fl_region_here;
    int64_t began = fl_now(), worked = 0, b;
    int look = fl_wary > 0 && thread > 0;
    if (look) worked = fl_work_time();
#ifdef _OPENMP
    if (thread == 0) fl_alive = omp_get_num_threads();
#endif
    fl_region_here = r;
    while ((b = fl_add(&r->next, 1)) < r->blocks && !fl_get(&r->stop)) {
        r->body(r->call, (Py_ssize_t)b, thread);
        if (fl_signalled()) fl_put(&r->stop, 1);
    }
    fl_region_here = outer;
    began = fl_now() - began;
    if (thread == 0) {
        r->own = began;
        return;
    }
    if (began > FL_LONG) fl_wary = 16;
    else if (fl_wary > 0) fl_wary--;
    fl_add(&r->spent, look && began > FL_LONG ? fl_work_time() - worked : began);
}

#endif
