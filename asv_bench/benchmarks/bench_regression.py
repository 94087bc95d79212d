"""Losses of predicted numbers."""

import numpy as np

import fastloss as fl

LOSSES = [
    "mean_squared_error", "mean_absolute_error", "huber_loss", "log_cosh_loss", "quantile_loss", "poisson_loss",
    "gamma_loss", "tweedie_loss", "hinge_loss", "squared_hinge_loss", "kl_divergence",
]  # fmt: skip


class Regression:
    params = (LOSSES, ["float32", "float64"], [1, 10_000, 1_000_000])
    param_names = ("loss", "dtype", "n")

    def setup(self, loss, dtype, n):
        rng = np.random.default_rng(0)
        x = rng.standard_normal(n).astype(dtype)
        self.loss = getattr(fl, loss)
        self.both = fl.value_and_grad(self.loss)
        self.hessian = fl.value_grad_hess(self.loss)
        self.options = {"labels": rng.random(n).astype(dtype), "predictions": x}
        self.buffers = {"grad_out": np.zeros_like(x), "hess_out": np.zeros_like(x)}

    def time_mean(self, loss, dtype, n):
        self.loss(**self.options)

    def time_mean_and_gradient(self, loss, dtype, n):
        self.both(**self.options, grad_out=self.buffers["grad_out"])

    def time_hessian(self, loss, dtype, n):
        self.hessian(**self.options, reduction="mean", **self.buffers)


class Layout:
    """A weight for each row, rows in either order."""

    params = (["C", "F"],)
    param_names = ("order",)

    def setup(self, order):
        self.x = np.asarray(np.random.default_rng(0).random((100_000, 20), np.float32), order=order)
        self.weight = np.random.default_rng(1).random((100_000, 1))
        self.both = fl.value_and_grad(fl.mean_squared_error)

    def time_weighted_gradient(self, order):
        self.both(labels=0.5, predictions=self.x, sample_weight=self.weight, reduction="none")
