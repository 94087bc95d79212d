"""A guard against slow-down that needs no quiet machine: instructions per call, against recorded ones.

    python -m asv_bench.instructions [--record]

Runs a few kernels under valgrind, which has no AVX-512, so on the baseline instruction set and one thread.  One run
makes 2 calls of everything, one more for each kernel makes 12 of it: what differs is 10 calls, without the
interpreter's start.  The exit status is 1 where a count has grown by more than 5 %.  Counts depend on the compiler:
with another one than they were recorded with there are only warnings.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05
FEW, MANY = 2, 12


def kernels() -> dict[str, Callable[[], Any]]:
    """Calls that take about a million instructions each, and the same at every turn."""
    import numpy as np

    import fastloss as fl

    rng = np.random.default_rng(0)
    sparse = fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)
    sigmoid, ctc = fl.value_and_grad(fl.sigmoid_cross_entropy_with_logits), fl.value_and_grad(fl.ctc_loss)
    calls: dict[str, Callable[[], Any]] = {}
    for rows, classes in ((64, 1000), (6400, 10)):
        x, y = rng.standard_normal((rows, classes), np.float32), rng.integers(0, classes, rows)
        grad = np.zeros_like(x)
        calls[f"sparse softmax loss, C={classes}"] = lambda x=x, y=y: fl.sparse_softmax_cross_entropy_with_logits(
            labels=y, logits=x
        )
        calls[f"sparse softmax loss and gradient, C={classes}"] = lambda x=x, y=y, grad=grad: sparse(
            labels=y, logits=x, grad_out=grad
        )
    z, t = rng.standard_normal(50_000, np.float32), rng.random(50_000, np.float32)
    out = np.zeros_like(z)
    calls["sigmoid gradient"] = lambda: sigmoid(labels=t, logits=z, reduction="mean", grad_out=out)
    true = rng.integers(0, 1_000_000, (64, 1))
    calls["log-uniform sampler, 8192"] = lambda: fl.LogUniformSampler(1_000_000, seed=5).candidates(true, 8192, True)
    speech = {
        "labels": rng.integers(1, 50, (4, 20)),
        "logits": rng.standard_normal((80, 4, 50), np.float32),
        "label_length": np.full(4, 20),
        "logit_length": np.full(4, 80),
    }
    calls["CTC loss and gradient"] = lambda: ctc(**speech)
    return calls


def run(often: str) -> None:
    """Every kernel a few times, one of them often."""
    for name, call in kernels().items():
        for _ in range(MANY if name == often else FEW):
            call()


def instructions(often: str) -> int:
    """Of a process that calls one kernel often."""
    environment = os.environ | {"FASTLOSS_ISA": "baseline", "PYTHONHASHSEED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    command += ["-m", "asv_bench.instructions", "--run", often]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"valgrind failed:\n{done.stderr}")
    return int(found[1])


def compiler() -> str:
    gcc = shutil.which("gcc")
    return subprocess.check_output([gcc, "-dumpfullversion"], text=True).strip() if gcc else "unknown"


def count() -> dict[str, int]:
    """Instructions of one call of each kernel."""
    names = list(kernels())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        few, *many = pool.map(instructions, ["", *names])
    return {name: (n - few) // (MANY - FEW) for name, n in zip(names, many, strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.instructions", description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} anew")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        run(options.run)
        return 0
    if not shutil.which("valgrind"):
        print("valgrind is not installed: instructions were not counted")
        return 0
    counts = count()
    if options.record:
        RECORD.write_text(json.dumps({"compiler": f"gcc {compiler()}", "counts": counts}, indent=1) + "\n")
        print(f"recorded {len(counts)} counts in {RECORD.name}")
        return 0
    recorded = json.loads(RECORD.read_text())
    grown = False
    for name, n in counts.items():
        before = recorded["counts"].get(name)
        change = n / before - 1 if before else 0.0
        verdict = "not recorded" if not before else "GROWN" if change > TOLERANCE else f"{change:+.1%}"
        if change < -TOLERANCE:
            verdict += ", fewer: --record it"
        grown |= change > TOLERANCE
        print(f"{name:40}{n:>12,}  was {before or 0:>12,}  {verdict}")
    if recorded["compiler"] != f"gcc {compiler()}":
        print(f"warning: recorded with {recorded['compiler']}, this is gcc {compiler()}: growth may be the compiler's")
        return 0
    return int(grown)


if __name__ == "__main__":
    raise SystemExit(main())
