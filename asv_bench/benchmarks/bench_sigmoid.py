"""Losses of independent logits, from one element to more than any cache holds."""

import numpy as np

import fastloss as fl


class Sigmoid:
    params = (
        ["sigmoid_cross_entropy_with_logits", "weighted_cross_entropy_with_logits", "sigmoid_focal_loss"],
        ["float16", "float32", "float64"],
        [1, 10_000, 1_000_000, 20_000_000],
    )
    param_names = ("loss", "dtype", "n")

    def setup(self, loss, dtype, n):
        rng = np.random.default_rng(0)
        x = (3 * rng.standard_normal(n, dtype=np.float32)).astype(dtype)
        self.loss = getattr(fl, loss)
        self.both = fl.value_and_grad(self.loss)
        self.options = {"labels": rng.integers(0, 2, n).astype(dtype), "logits": x}
        if "weighted" in loss:
            self.options["pos_weight"] = 3.0
        self.grad = np.zeros_like(x)

    def time_mean(self, loss, dtype, n):
        self.loss(**self.options, reduction="mean")

    def time_mean_and_gradient(self, loss, dtype, n):
        self.both(**self.options, reduction="mean", grad_out=self.grad)


class Functions:
    params = (["sigmoid", "log_sigmoid", "softplus"], ["float32", "float64"], [1_000_000])
    param_names = ("function", "dtype", "n")

    def setup(self, function, dtype, n):
        self.x = np.random.default_rng(0).standard_normal(n).astype(dtype)
        self.out = np.zeros_like(self.x)
        self.function = getattr(fl, function)

    def time_function(self, function, dtype, n):
        self.function(self.x, out=self.out)
