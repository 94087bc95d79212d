"""Sequence losses, by number of classes and by how much of the batch is padding."""

import numpy as np

import fastloss as fl


class Positions:
    params = ([100, 10_000], [0.0, 0.5])
    param_names = ("classes", "padding")

    def setup(self, classes, padding):
        size, steps = (64, 200) if classes < 1000 else (8, 100)
        rng = np.random.default_rng(0)
        self.logits = rng.standard_normal((size, steps, classes), dtype=np.float32)
        self.targets = rng.integers(0, classes, (size, steps))
        self.lengths = np.full(size, int(steps * (1 - padding)))
        self.grad = np.zeros_like(self.logits)
        self.value_and_grad = fl.value_and_grad(fl.sequence_loss)

    def time_loss(self, classes, padding):
        fl.sequence_loss(self.logits, self.targets, lengths=self.lengths)

    def time_value_and_grad(self, classes, padding):
        self.value_and_grad(self.logits, self.targets, lengths=self.lengths, grad_out=self.grad)


class Packed:
    params = ("sum", "mean", "perplexity")
    param_names = ("reduction",)

    def setup(self, reduction):
        rng = np.random.default_rng(0)
        self.logits = rng.standard_normal((6400, 1000), dtype=np.float32)
        self.targets = rng.integers(0, 1000, 6400)
        self.offsets = np.append(0, np.sort(rng.integers(0, 6401, 63)))

    def time_loss(self, reduction):
        fl.packed_sequence_loss(self.logits, self.targets, self.offsets, reduction=reduction)

    def time_value_and_grad(self, reduction):
        fl.value_and_grad(fl.packed_sequence_loss)(self.logits, self.targets, self.offsets, reduction=reduction)
