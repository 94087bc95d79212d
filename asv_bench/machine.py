"""The machine: what it is, what it can do, and how calls are timed on it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PACKAGES = ["numpy", "torch", "jax", "optax", "tensorflow-cpu", "scipy", "scikit-learn"]


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(text.split(":")[1].strip() for text in f if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def facts() -> dict[str, Any]:
    """What belongs to every table of figures."""
    return {"processor": processor(), "versions": versions(), "date": datetime.date.today().isoformat()}


def cache_bytes() -> int:
    """Of the last level; 32 MiB where the system does not tell."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cache/index3/size") as f:
            return int(f.read().strip().rstrip("K")) << 10
    except (OSError, ValueError):
        return 32 << 20


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    with open("/proc/meminfo") as f:
        return next(int(text.split()[1]) << 10 for text in f if text.startswith("MemAvailable"))


REST = 0.01  # seconds; OpenMP's threads look for work for some 5 ms before they sleep


def interleave(
    contenders: dict[str, Callable[[], Any]], seconds: float, least: int = 7, threads: int = 1
) -> dict[str, list[float]]:
    """Seconds per call, one figure a round and contender.

    A round calls each for about a millisecond, or once.  It has an order of its own, for whoever runs leaves caches and
    freed memory to the next; a call that is not counted comes first.  Threads of one library that wait for more work
    would take a core from the next one: with more than one thread there is a rest before each turn.  Neither is where
    calls take so long that it does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    repeats = {}
    short = set()
    for name, f in contenders.items():
        f()
        calls = 0
        start = time.perf_counter()
        while calls == 0 or time.perf_counter() - start < 1e-3:  # the first ones find cold caches
            f()
            calls += 1
        repeats[name] = calls
        if (time.perf_counter() - start) / calls < 10 * REST:
            short.add(name)
    end = time.perf_counter() + seconds
    shuffled = random.Random(0)
    for done in range(400):
        if done >= least and time.perf_counter() >= end:
            break
        for name in shuffled.sample(list(contenders), len(contenders)):
            f, n = contenders[name], repeats[name]
            if name in short:
                if threads > 1:
                    time.sleep(REST)
                f()
            start = time.perf_counter()
            for _ in range(n):
                f()
            times[name].append((time.perf_counter() - start) / n)
    return times


def worker(arguments: list[str], threads: int) -> Any:
    """What `python -m` these arguments prints last, as JSON: a process with so many threads and cores."""
    n = str(threads)
    environment = os.environ | {
        "OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "MKL_NUM_THREADS": n, "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_NUM_INTRAOP_THREADS": n, "TF_NUM_INTEROP_THREADS": "1",
    }  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))[:threads]
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, stdout=subprocess.PIPE, check=True, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def limits(threads: int) -> dict[str, float]:
    """The most that so many threads can read, copy, exponentiate and multiply."""
    import numpy as np

    from fastloss._native import probe

    a = np.ones(1 << 25, np.float32)
    b = np.empty_like(a)
    square = np.ones((1024, 1024), np.float32)
    cached = [np.linspace(-20, 0, 1 << 14, dtype=np.float32) for _ in range(threads)]
    results = [np.empty_like(x) for x in cached]
    parts = [slice(len(a) * k // threads, len(a) * (k + 1) // threads) for k in range(threads)]
    turns = 64

    def exp(k: int) -> None:
        for _ in range(turns):
            probe.exp(cached[k], results[k], False)

    with ThreadPoolExecutor(threads) as pool:
        each = map if threads == 1 else pool.map
        times = interleave(
            {
                "read": lambda: list(each(lambda k: a[parts[k]].max(), range(threads))),
                "copy": lambda: list(each(lambda k: np.copyto(b[parts[k]], a[parts[k]]), range(threads))),
                "exp": lambda: list(each(exp, range(threads))),
                "fma": lambda: square @ square,
            },
            1.0,
        )
    best = {name: min(t) for name, t in times.items()}
    return {
        "read_GB_s": a.nbytes / best["read"] / 1e9,
        "copy_GB_s": 2 * a.nbytes / best["copy"] / 1e9,
        "exp_G_s": threads * turns * len(cached[0]) / best["exp"] / 1e9,
        "fma_GFLOP_s": 2 * len(square) ** 3 / best["fma"] / 1e9,
    }
