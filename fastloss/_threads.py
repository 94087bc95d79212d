"""The one place that decides how many threads a call may use."""

from __future__ import annotations

import os
import sys

from fastloss import _host
from fastloss._values import index, shown

GRAIN = 32768  # elements; kernels/parallel.pxd has it too
MOST = 1024  # threads of one call, whatever is asked for

_forked = False  # libgomp deadlocks when a forked child opens a parallel region


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


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


def _is_worker() -> bool:
    """Whether multiprocessing started this process (PyTorch loaders, process pools)."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def resolve(n_threads: int | None = None, work: int = sys.maxsize) -> int:
    """Size of the OpenMP team for a call on `work` elements.

    Nothing is remembered, so threadpoolctl's limits and the environment hold at once.
    """
    if n_threads is not None:
        n_threads = index("n_threads", n_threads)
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {shown(n_threads)}")
    elif work < GRAIN:
        return 1  # the kernel would not enter OpenMP anyway
    limit = _host.openmp_max_threads()
    if limit == 0 or _forked:
        return 1
    if n_threads is not None:
        return min(n_threads, MOST)
    if os.environ.get("OMP_NUM_THREADS"):
        return limit
    return 1 if _is_worker() else min(limit, _CPUS)
