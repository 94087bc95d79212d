"""What does not depend on the size of the arrays: a call on one row, and the import."""

import subprocess
import sys
import time

import numpy as np

import fastloss as fl


class Call:
    def setup(self):
        self.x, self.y = np.zeros((1, 10), np.float32), np.zeros(1, int)
        self.both = fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)

    def time_loss_of_one_row(self):
        fl.sparse_softmax_cross_entropy_with_logits(labels=self.y, logits=self.x)

    def time_loss_and_grad_of_one_row(self):
        self.both(labels=self.y, logits=self.x)

    def time_mean_of_one_row(self):
        fl.sparse_softmax_cross_entropy_with_logits(labels=self.y, logits=self.x, reduction="mean")


def track_import_ms():
    """Over NumPy's own import; the least of several."""
    code = "import numpy, time; t = time.perf_counter(); import fastloss; print(time.perf_counter() - t)"
    runs = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(7)]
    return min(runs) * 1e3


track_import_ms.unit = "ms"


def track_clock_us():
    """The cost of reading the clock, which any timing contains."""
    start = time.perf_counter()
    for _ in range(1000):
        time.perf_counter()
    return (time.perf_counter() - start) * 1e3


track_clock_us.unit = "us"
