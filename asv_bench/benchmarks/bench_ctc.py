"""CTC: loss, gradient, decoders, by number of classes, and by how sure the logits are."""

import numpy as np

import fastloss as fl


class Loss:
    params = ([30, 100, 5000], ["float32", "float64"], ["flat", "sure"])
    param_names = ("classes", "dtype", "logits")

    def setup(self, classes, dtype, logits):
        frames, size, n = (200, 32, 30) if classes < 1000 else (100, 8, 20)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((frames, size, classes))
        labels = rng.integers(1, classes, (size, n))
        if logits == "sure":  # an alignment stands out by e^15
            path = np.repeat(np.stack([labels, np.zeros_like(labels)], 2).reshape(size, -1), frames // (2 * n), 1)
            x[np.arange(path.shape[1])[None], np.arange(size)[:, None], path] += 15
            x[path.shape[1] :, :, 0] += 15
        self.kwargs = {
            "labels": labels,
            "logits": x.astype(dtype),
            "label_length": np.full(size, n),
            "logit_length": np.full(size, frames),
        }
        self.grad = np.zeros_like(self.kwargs["logits"])
        self.value_and_grad = fl.value_and_grad(fl.ctc_loss)

    def time_loss(self, classes, dtype, logits):
        fl.ctc_loss(**self.kwargs)

    def time_value_and_grad(self, classes, dtype, logits):
        self.value_and_grad(**self.kwargs, grad_out=self.grad)


class Decode:
    params = (1, 10, 100)
    param_names = ("beam_width",)

    def setup(self, beam_width):
        self.x = 3 * np.random.default_rng(0).standard_normal((200, 8, 50)).astype(np.float32)

    def time_beams(self, beam_width):
        fl.ctc_beam_search_decode(self.x, beam_width=beam_width)

    def time_greedy(self, beam_width):
        fl.ctc_greedy_decode(self.x)


class EditDistance:
    def setup(self):
        self.a, self.b = np.random.default_rng(0).integers(0, 50, (2, 64, 200))

    def time_batch(self):
        fl.edit_distance(self.a, self.b)
