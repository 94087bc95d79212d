"""A guard against slow-down that needs no quiet machine: instructions per call, against recorded ones.

    python -m asv_bench.instructions [--record]

Runs a few kernels under valgrind, on one thread, once for each instruction set that was built but AVX-512, which
valgrind does not know.  Every kernel is called twice, then twenty times between two calls of ``getppid``, at which
valgrind notes what was counted since the last.  The exit status is 1 where a count has grown by more than 5 %.  Counts
depend on the compiler: with another one than they were recorded with there are only warnings.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05
FEW, MANY = 2, 20


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


def run() -> None:
    """Every kernel a few times, then many, marked off for valgrind."""
    gc.disable()
    for call in kernels().values():
        for _ in range(FEW):
            call()
        os.getppid()
        for _ in range(MANY):
            call()
        os.getppid()


def count(isa: str) -> dict[str, int]:
    """Instructions of one call of each kernel."""
    environment = os.environ | {"FASTLOSS_ISA": isa, "PYTHONHASHSEED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/counts", "--dump-before=getppid"]
        command += [sys.executable, "-m", "asv_bench.instructions", "--run"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        dumps = [Path(folder, f"counts.{i}") for i in range(1, 2 * len(kernels()) + 1)]
        if done.returncode or not all(map(Path.exists, dumps)):
            raise SystemExit(f"valgrind failed:\n{done.stderr}")
        totals = [re.search(r"^totals: (\d+)", path.read_text(), re.MULTILINE) for path in dumps]
    return {name: int(found[1]) // MANY for name, found in zip(kernels(), totals[1::2], strict=True) if found}


def compiler() -> str:
    gcc = shutil.which("gcc")
    return subprocess.check_output([gcc, "-dumpfullversion"], text=True).strip() if gcc else "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.instructions", description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name} anew")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run()
        return 0
    if not shutil.which("valgrind"):
        print("valgrind is not installed: instructions were not counted")
        return 0
    from fastloss import _native

    isas = [isa for isa in ("avx2", "baseline") if isa in _native.available]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = dict(zip(isas, pool.map(count, isas), strict=True))
    recorded = json.loads(RECORD.read_text())
    if options.record:
        counts = recorded["counts"] | counts
        RECORD.write_text(json.dumps({"compiler": f"gcc {compiler()}", "counts": counts}, indent=1) + "\n")
        print(f"recorded {len(kernels())} counts of {', '.join(isas)} in {RECORD.name}")
        return 0
    grown = False
    for isa in isas:
        for name, n in counts[isa].items():
            before = recorded["counts"].get(isa, {}).get(name)
            change = n / before - 1 if before else 0.0
            verdict = "not recorded" if not before else "GROWN" if change > TOLERANCE else f"{change:+.1%}"
            if change < -TOLERANCE:
                verdict += ", fewer: --record it"
            grown |= change > TOLERANCE
            print(f"{isa:10}{name:40}{n:>12,}  was {before or 0:>12,}  {verdict}")
    if recorded["compiler"] != f"gcc {compiler()}":
        print(f"warning: recorded with {recorded['compiler']}, this is gcc {compiler()}: growth may be the compiler's")
        return 0
    return int(grown)


if __name__ == "__main__":
    raise SystemExit(main())
