"""What does not depend on the size of the arrays: a call on one row."""

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
