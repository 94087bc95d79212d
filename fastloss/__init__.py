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
from fastloss._ctc import ctc_beam_search_decode, ctc_greedy_decode, ctc_loss, edit_distance
from fastloss._gradients import value_and_grad
from fastloss._linear import LinearStats, linear_cross_entropy, linear_partials, loss_from_partials, merge_partials
from fastloss._samplers import FixedUnigramSampler, LearnedUnigramSampler, LogUniformSampler, UniformSampler
from fastloss._sequence import packed_sequence_loss, sequence_loss, sequence_loss_by_example
from fastloss._softmax import (
    log_softmax,
    logsumexp,
    softmax,
    softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits,
)

__version__ = "0.1.0"

__all__ = [
    "AliasTable",
    "FixedUnigramSampler",
    "LearnedUnigramSampler",
    "LinearStats",
    "LogUniformSampler",
    "UniformSampler",
    "all_candidate_sampler",
    "compute_accidental_hits",
    "ctc_beam_search_decode",
    "ctc_greedy_decode",
    "ctc_loss",
    "edit_distance",
    "fixed_unigram_candidate_sampler",
    "learned_unigram_candidate_sampler",
    "linear_cross_entropy",
    "linear_partials",
    "log_softmax",
    "log_uniform_candidate_sampler",
    "logsumexp",
    "loss_from_partials",
    "merge_partials",
    "packed_sequence_loss",
    "sample_negatives",
    "sequence_loss",
    "sequence_loss_by_example",
    "softmax",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "uniform_candidate_sampler",
    "value_and_grad",
]
