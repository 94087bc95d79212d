"""Losses over a sample of the classes, by how many are drawn."""

import numpy as np

import fastloss as fl

CLASSES, DIMENSIONS, BATCH = 200_000, 128, 1024


class Sampled:
    params = (["sampled_softmax_loss", "nce_loss"], [64, 1001, 8192], [False, True])
    param_names = ("loss", "num_sampled", "gradient")

    def setup(self, loss, num_sampled, gradient):
        rng = np.random.default_rng(0)
        self.run = getattr(fl, loss)
        if gradient:
            self.run = fl.value_and_grad(self.run, ("weights", "biases", "inputs"))
        self.options = {
            "weights": rng.standard_normal((CLASSES, DIMENSIONS), np.float32) * np.float32(0.1),
            "biases": np.zeros(CLASSES, np.float32),
            "labels": np.minimum(rng.zipf(1.1, (BATCH, 1)) - 1, CLASSES - 1),
            "inputs": rng.standard_normal((BATCH, DIMENSIONS), np.float32),
            "num_sampled": num_sampled,
            "num_classes": CLASSES,
            "sampler": fl.LogUniformSampler(CLASSES, seed=0),
        }

    def time_call(self, loss, num_sampled, gradient):
        self.run(**self.options)


class Table:
    """What becomes of the gradient of a table."""

    params = (["coalesce", "add_to"], [1000, 10_000_000])
    param_names = ("what", "classes")

    def setup(self, what, classes):
        rng = np.random.default_rng(0)
        ids = np.minimum(rng.zipf(1.1, 9216) - 1, classes - 1)
        self.rows = fl.SparseRows(ids, rng.standard_normal((9216, 16), np.float32), (classes, 16))
        self.table = np.zeros((classes, 16), np.float32)

    def time_call(self, what, classes):
        self.rows.coalesce() if what == "coalesce" else self.rows.add_to(self.table, -0.1)


class InBatch:
    params = ([1000, 8192], ["float32", "float64"], [False, True])
    param_names = ("batch", "dtype", "gradient")

    def setup(self, batch, dtype, gradient):
        rng = np.random.default_rng(0)
        self.run = fl.in_batch_softmax_loss
        if gradient:
            self.run = fl.value_and_grad(self.run, ("queries", "keys"))
        self.queries, self.keys = rng.standard_normal((2, batch, 64), dtype)
        self.items = rng.integers(0, 2 * batch, batch)

    def time_call(self, batch, dtype, gradient):
        self.run(self.queries, self.keys, self.items, temperature=8.0)
