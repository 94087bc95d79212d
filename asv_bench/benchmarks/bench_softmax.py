"""The softmax stem: losses, gradients and normalizations, by shape and dtype."""

import numpy as np

import fastloss as fl

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

SHAPES = {
    "1x10": (1, 10),
    "65536x10": (65536, 10),
    "40000x17": (40000, 17),
    "8192x1001": (8192, 1001),
    "512x50257": (512, 50257),
}
DTYPES = {"bfloat16": bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
FUNCTIONS = ["softmax", "log_softmax", "logsumexp"]


def logits(shape, dtype):
    if DTYPES[dtype] is None:
        raise NotImplementedError("bfloat16 needs ml_dtypes")  # asv skips it
    return (3 * np.random.default_rng(0).standard_normal(SHAPES[shape], dtype=np.float32)).astype(DTYPES[dtype])


class CrossEntropy:
    """Value, and value with gradient into a buffer that has been touched before."""

    params = (["sparse", "dense"], list(SHAPES), list(DTYPES))
    param_names = ("labels", "shape", "dtype")

    def setup(self, labels, shape, dtype):
        self.x = logits(shape, dtype)
        n, c = self.x.shape
        rng = np.random.default_rng(1)
        if labels == "sparse":
            self.y, self.loss = rng.integers(0, c, n), fl.sparse_softmax_cross_entropy_with_logits
        else:
            self.y = rng.random((n, c), dtype=np.float32).astype(self.x.dtype)
            self.loss = fl.softmax_cross_entropy_with_logits
        self.grad = np.zeros_like(self.x)
        self.both = fl.value_and_grad(self.loss)

    def time_loss(self, labels, shape, dtype):
        self.loss(labels=self.y, logits=self.x)

    def time_loss_and_grad(self, labels, shape, dtype):
        self.both(labels=self.y, logits=self.x, grad_out=self.grad)


class Normalize:
    params = (FUNCTIONS, list(SHAPES), list(DTYPES))
    param_names = ("function", "shape", "dtype")

    def setup(self, function, shape, dtype):
        self.x = logits(shape, dtype)
        self.out = np.zeros_like(self.x) if function != "logsumexp" else None
        self.function = getattr(fl, function)

    def time_into_out(self, function, shape, dtype):
        self.function(self.x, out=self.out)
