"""The one place that decides how many threads a call may use.

A number that was asked for, by ``n_threads`` or ``OMP_NUM_THREADS``, is taken as it is, up to `MOST`.  By default a
call takes as many threads as this process may use processors.  It takes one thread in workers of multiprocessing, Ray,
Spark and Dask, because there are as many of them as processors; in every Python thread but the first that called, as
long as that lives; and for a while after a call that lost time to other processes.  A forked child always takes one.
"""

from __future__ import annotations

import os
import sys

from fastloss import _parallel
from fastloss._core.inputs.values import index, shown

GRAIN = 32768  # elements; kernels/parallel/parallel.pxd has it too
MOST = 1024  # threads of one call, whatever is asked for


def _cpus() -> int:
    """CPUs this process may use: the affinity mask, capped by the cgroup's quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()
        return n if quota == "max" else max(1, min(n, int(quota) // int(period)))
    except (OSError, ValueError):
        return n


_CPUS = _cpus()


def _is_of_an_engine() -> bool:
    """Whether Ray or Spark started this process to run tasks."""
    program = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
    ray = getattr(sys.modules.get("ray._private.worker"), "global_worker", None)
    return program in ("pyspark.daemon", "pyspark.worker") or getattr(ray, "mode", None) == 1  # ray.WORKER_MODE


_OF_AN_ENGINE = _is_of_an_engine()  # such a process knows it before it runs a task, and so before it imports this


def _is_worker() -> bool:
    """Whether other processes make calls like this one: in multiprocessing's children and in engines' tasks."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        return True
    dask = sys.modules.get("distributed.worker")
    return _OF_AN_ENGINE or (dask is not None and hasattr(getattr(dask, "thread_state", None), "execution_state"))


def resolve(n_threads: int | None = None, work: int = sys.maxsize) -> int:
    """Threads of a call on `work` elements.

    Limits are read at each call, so changes by threadpoolctl and in the environment take effect at once.
    """
    if n_threads is not None:
        n_threads = index("n_threads", n_threads)
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {shown(n_threads)}")
        if n_threads == 1:
            return 1
    elif work < GRAIN:
        return 1  # a second thread would not pay
    limit = _parallel.openmp_max_threads()
    if limit == 0 or _parallel.forked():
        return 1
    if n_threads is not None:
        return _parallel.wish(min(n_threads, MOST))
    if os.environ.get("OMP_NUM_THREADS"):
        return _parallel.wish(min(limit, MOST))
    return 1 if _is_worker() else _parallel.default(min(limit, _CPUS, MOST))
