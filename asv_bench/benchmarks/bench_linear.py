"""Linear cross entropy: time and peak memory."""

from __future__ import annotations

from timeit import default_timer
from typing import Any, ClassVar

import numpy as np

import fastloss as fl


class Linear:
    timer = default_timer  # wall time: several threads
    params: ClassVar[list[list[Any]]] = [
        [(1, 256, 1000), (256, 256, 32000), (1024, 512, 32000)],
        ["float32", "float64", "float16"],
        [False, True],
    ]
    param_names: ClassVar[list[str]] = ["N, D, C", "dtype", "gradients"]

    def setup(self, shape: tuple[int, int, int], dtype: str, gradients: bool) -> None:
        n, d, c = shape
        if dtype != "float32" and n > 256:
            raise NotImplementedError("one dtype is enough at this size")
        rng = np.random.default_rng(0)
        self.kwargs = {
            "inputs": rng.standard_normal((n, d), np.float32).astype(dtype),
            "weights": (rng.standard_normal((c, d), np.float32) / d**0.5).astype(dtype),
            "labels": rng.integers(0, c, n),
            "reduction": "mean",
        }
        names = ("inputs", "weights")
        self.run = fl.linear_cross_entropy
        if gradients:
            self.run = fl.value_and_grad(fl.linear_cross_entropy, names)
            self.kwargs["grad_out"] = tuple(np.zeros_like(self.kwargs[name]) for name in names)

    def time_call(self, shape: tuple[int, int, int], dtype: str, gradients: bool) -> None:
        self.run(**self.kwargs)

    def peakmem_call(self, shape: tuple[int, int, int], dtype: str, gradients: bool) -> None:
        self.run(**self.kwargs)
