"""The race: fastloss against every installed peer, interleaved in one process.

    python -m asv_bench.race [--stem softmax] [--threads 1 2] [--seconds 2] [--json FILE]

For every case of the targets' table each contender runs once per round (A B C A B C ...); what counts is the ratio of
the medians, best peer over fastloss.  A thread count is a process of its own, pinned to as many cores, for most
frameworks take what they see when they start.  The machine's own limits are measured in the same run.  A peer that is
not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

STEMS = ["elementwise", "linear", "sampled", "samplers", "sequence", "softmax"]


@dataclass
class Case:
    """One row of the table: prepare() gives the contenders, fastloss first; each is called without arguments."""

    name: str
    prepare: Callable[[Peers], dict[str, Callable[[], Any]]]
    must: float
    aim: float
    elements: int = 0  # read, for the share of the machine's limit
    written: int = 0
    note: str = ""


@dataclass
class Peers:
    """The peers that are installed, imported when first asked for."""

    threads: int
    missing: set[str] = field(default_factory=set)

    def get(self, name: str) -> Any:
        try:
            module = importlib.import_module(name)
        except ImportError:
            self.missing.add(name)
            return None
        if name == "torch" and module.get_num_threads() != self.threads:
            module.set_num_threads(self.threads)
        return module


def interleave(contenders: dict[str, Callable[[], Any]], seconds: float, least: int = 7) -> dict[str, list[float]]:
    """Seconds per call, one figure a round and contender."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    repeats = {}
    for name, f in contenders.items():
        f()
        start = time.perf_counter()
        f()
        repeats[name] = max(1, int(1e-3 / max(1e-9, time.perf_counter() - start)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[name]) < least:
        for name, f in contenders.items():
            n = repeats[name]
            start = time.perf_counter()
            for _ in range(n):
                f()
            times[name].append((time.perf_counter() - start) / n)
        if len(times[name]) >= 400:
            break
    return times


def limits() -> dict[str, float]:
    """What the machine can do, with the threads of this process: GB/s read and copied."""
    import numpy as np

    import fastloss as fl

    a = np.ones(1 << 25, np.float32)
    b = np.empty_like(a)
    small = np.ones((64, 2048), np.float32)
    labels = np.zeros(64, int)
    times = interleave(
        {
            "read": lambda: a.max(),
            "copy": lambda: np.copyto(b, a),
            "loss in cache": lambda: fl.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=small),
        },
        1.0,
    )
    best = {name: min(t) for name, t in times.items()}
    return {
        "read_GB_s": a.nbytes / best["read"] / 1e9,
        "copy_GB_s": 2 * a.nbytes / best["copy"] / 1e9,
        "loss_in_cache_G_s": small.size / best["loss in cache"] / 1e9,
    }


def measure(stems: list[str], threads: int, seconds: float, only: str) -> dict[str, Any]:
    """All cases, in this process."""
    peers = Peers(threads)
    rows = []
    for stem in stems:
        for case in importlib.import_module(f"asv_bench.race_{stem}").CASES:
            if only not in case.name:
                continue
            times = interleave(case.prepare(peers), seconds)
            medians = {name: statistics.median(t) for name, t in times.items()}
            ours, *others = medians
            best = min(others, key=medians.__getitem__) if others else None
            row = {
                "case": case.name,
                "threads": threads,
                "fastloss_ms": medians[ours] * 1e3,
                "best_peer": best,
                "peer_ms": medians[best] * 1e3 if best else None,
                "ratio": medians[best] / medians[ours] if best else None,
                "must": case.must,
                "aim": case.aim,
                "GB_s": (case.elements + case.written) / medians[ours] / 1e9,
                "all_ms": {name: m * 1e3 for name, m in medians.items()},
                "min_ms": {name: min(t) * 1e3 for name, t in times.items()},
            }
            rows.append(row)
            print(line(row), file=sys.stderr, flush=True)
    return {"rows": rows, "limits": limits(), "missing": sorted(peers.missing)}


def line(row: dict[str, Any]) -> str:
    peer = f"{row['best_peer']} {row['peer_ms']:.3f} | {row['ratio']:.2f}" if row["best_peer"] else "- | -"
    verdict = "" if row["ratio"] is None or row["ratio"] >= row["must"] else " **short**"
    return (
        f"| {row['case']} | {row['threads']} | {row['fastloss_ms']:.3f} | {peer} | {row['must']:g} | {row['aim']:g} |"
        f" {row['GB_s']:.1f} |{verdict}"
    )


def versions() -> str:
    names = ["numpy", "torch", "jax", "tensorflow-cpu", "scipy", "scikit-learn"]
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(text.split(":")[1].strip() for text in f if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.race", description=__doc__.split("\n")[0])
    parser.add_argument("--stem", nargs="+", default=STEMS, choices=STEMS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case and thread count")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", help="write all figures here")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.stem, options.worker, options.seconds, options.only)))
        return 0
    results = []
    for threads in options.threads:
        n = str(threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n, "MKL_NUM_THREADS": n, "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_NUM_INTRAOP_THREADS": n, "TF_NUM_INTEROP_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "asv_bench.race", "--worker", n, "--seconds", str(options.seconds)]
        command += ["--only", options.only, "--stem", *options.stem]
        cores = sorted(os.sched_getaffinity(0))[:threads]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, text=True,
            preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        results.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{processor()}; {versions()}\n")
    for threads, result in zip(options.threads, results, strict=True):
        print(f"{threads} thread(s): " + ", ".join(f"{k} {v:.1f}" for k, v in result["limits"].items()))
    print("\n| case | threads | fastloss ms | best peer ms | ratio | must | aim | GB/s |\n|---|---|---|---|---|---|---|---|")
    for result in results:
        for row in result["rows"]:
            print(line(row))
    if missing := sorted({name for result in results for name in result["missing"]}):
        print("\nnot installed: " + ", ".join(missing))
    if options.json:
        with open(options.json, "w") as f:
            json.dump({"processor": processor(), "versions": versions(), "results": results}, f, indent=1)
    return int(any(r["ratio"] is not None and r["ratio"] < r["must"] for result in results for r in result["rows"]))


if __name__ == "__main__":
    raise SystemExit(main())
