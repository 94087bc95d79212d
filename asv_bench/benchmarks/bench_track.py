"""What is no time: accuracy, peak memory, size and import."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import fastloss as fl


class Accuracy:
    """Largest error in units in the last place, on fixed rows of which every other one is more or less sure."""

    params = (["loss", "gradient"], [10, 1000], ["float32", "float64"])
    param_names = ("of", "classes", "dtype")
    unit = "ulp"

    def setup(self, of, classes, dtype):
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, classes, 500)
        logits = 3 * rng.standard_normal((500, classes))
        logits[np.arange(500), self.labels] += np.where(np.arange(500) % 2, np.linspace(0, 60, 500), 0)
        self.logits = logits.astype(dtype)
        at = np.arange(500), self.labels
        exact = np.exp(self.logits.astype(np.longdouble) - self.logits[at].astype(np.longdouble)[:, None])
        exact[at] = 0
        others = exact.sum(1)
        self.loss = np.log1p(others)
        exact[at] = -others
        self.gradient = exact / (1 + others)[:, None]

    def track_max_ulp(self, of, classes, dtype):
        loss, gradient = fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(
            labels=self.labels, logits=self.logits
        )
        got, want = (loss, self.loss) if of == "loss" else (gradient, self.gradient)
        unit = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
        return float((np.abs(got.astype(np.longdouble) - want) / unit).max())


class LinearMemory:
    """Peak of the process, inputs and gradients (66 MiB) included; the logits would take 512 MiB."""

    params = ([8 << 20, 64 << 20, None],)
    param_names = ("max_memory",)

    def setup(self, max_memory):
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((2048, 128), np.float32), rng.standard_normal((65536, 128), np.float32)
        self.options = {"inputs": x, "weights": w, "labels": rng.integers(0, len(w), len(x)), "max_memory": max_memory}
        self.options["grad_out"] = np.zeros_like(x), np.zeros_like(w)
        self.both = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))

    def peakmem_gradients(self, max_memory):
        self.both(**self.options)


class InBatchMemory:
    """Peak of the process; the logits of the largest batch would take 1 GiB."""

    params = ([1024, 4096, 16384],)
    param_names = ("batch",)

    def setup(self, batch):
        self.queries, self.keys = np.random.default_rng(0).standard_normal((2, batch, 32), np.float32)
        self.both = fl.value_and_grad(fl.in_batch_softmax_loss, ("queries", "keys"))

    def peakmem_gradients(self, batch):
        self.both(self.queries, self.keys)


def track_size_MB():
    """Of the wheel that FASTLOSS_WHEEL names; else of the installed kernels, all instruction sets, not compressed."""
    if wheel := os.environ.get("FASTLOSS_WHEEL"):
        return os.path.getsize(wheel) / 1e6
    files = [p for p in Path(fl.__file__).parent.rglob("*") if p.suffix in (".so", ".pyd")]
    return sum(p.stat().st_size for p in files) / 1e6


track_size_MB.unit = "MB"


def track_import_ms():
    """Over NumPy's own import; the least of several."""
    code = "import numpy, time; t = time.perf_counter(); import fastloss; print(time.perf_counter() - t)"
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(Path(fl.__file__).parents[1])}
    runs = [float(subprocess.check_output(command, env=env)) for _ in range(7)]
    return min(runs) * 1e3


track_import_ms.unit = "ms"


def track_clock_us():
    """The cost of reading the clock, which any timing contains."""
    start = time.perf_counter()
    for _ in range(1000):
        time.perf_counter()
    return (time.perf_counter() - start) * 1e3


track_clock_us.unit = "us"
