"""Exact, fast, reproducible loss functions and candidate samplers for NumPy arrays."""

from fastloss._alias import AliasTable
from fastloss._candidates import (
    all_candidate_sampler,
    compute_accidental_hits,
    fixed_unigram_candidate_sampler,
    learned_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    sample_negatives,
    uniform_candidate_sampler,
)
from fastloss._gradients import value_and_grad
from fastloss._sampled import in_batch_softmax_loss, nce_loss, sampled_softmax_loss
from fastloss._samplers import FixedUnigramSampler, LearnedUnigramSampler, LogUniformSampler, UniformSampler
from fastloss._softmax import (
    log_softmax,
    logsumexp,
    softmax,
    softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits,
)
from fastloss._sparse_rows import SparseRows

__version__ = "0.1.0"

__all__ = [
    "AliasTable",
    "FixedUnigramSampler",
    "LearnedUnigramSampler",
    "LogUniformSampler",
    "SparseRows",
    "UniformSampler",
    "all_candidate_sampler",
    "compute_accidental_hits",
    "fixed_unigram_candidate_sampler",
    "in_batch_softmax_loss",
    "learned_unigram_candidate_sampler",
    "log_softmax",
    "log_uniform_candidate_sampler",
    "logsumexp",
    "nce_loss",
    "sample_negatives",
    "sampled_softmax_loss",
    "softmax",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "uniform_candidate_sampler",
    "value_and_grad",
]
