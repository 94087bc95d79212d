"""Exact, fast, reproducible loss functions and candidate samplers for NumPy arrays."""

from fastloss._gradients import value_and_grad
from fastloss._softmax import (
    log_softmax,
    logsumexp,
    softmax,
    softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits,
)

__version__ = "0.1.0"

__all__ = [
    "log_softmax",
    "logsumexp",
    "softmax",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "value_and_grad",
]
