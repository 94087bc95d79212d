# What type checkers see; at run time __init__.py finds the same names when they are first asked for.
from fastloss._core.gradients import value_and_grad
from fastloss._core.hessians import value_grad_hess
from fastloss._core.sparse_rows import SparseRows
from fastloss.losses.ctc import ctc_beam_search_decode, ctc_greedy_decode, ctc_loss, edit_distance
from fastloss.losses.deviances import gamma_loss, kl_divergence, poisson_loss, tweedie_loss
from fastloss.losses.in_batch import in_batch_softmax_loss
from fastloss.losses.linear import LinearStats, linear_cross_entropy
from fastloss.losses.linear_partials import linear_partials, loss_from_partials, merge_partials
from fastloss.losses.regression import (
    hinge_loss,
    huber_loss,
    log_cosh_loss,
    mean_absolute_error,
    mean_squared_error,
    quantile_loss,
    squared_hinge_loss,
)
from fastloss.losses.sampled import nce_loss, sampled_softmax_loss
from fastloss.losses.sequence import packed_sequence_loss, sequence_loss, sequence_loss_by_example
from fastloss.losses.sigmoid import (
    log_sigmoid,
    sigmoid,
    sigmoid_cross_entropy_with_logits,
    sigmoid_focal_loss,
    softplus,
    weighted_cross_entropy_with_logits,
)
from fastloss.losses.softmax import (
    log_softmax,
    logsumexp,
    softmax,
    softmax_cross_entropy_with_logits,
    sparse_softmax_cross_entropy_with_logits,
)
from fastloss.losses.softmax_laws import poly1_cross_entropy, softmax_focal_loss
from fastloss.samplers.alias import AliasTable
from fastloss.samplers.candidates import (
    all_candidate_sampler,
    compute_accidental_hits,
    fixed_unigram_candidate_sampler,
    learned_unigram_candidate_sampler,
    log_uniform_candidate_sampler,
    sample_negatives,
    uniform_candidate_sampler,
)
from fastloss.samplers.samplers import LogUniformSampler, UniformSampler
from fastloss.samplers.unigrams import FixedUnigramSampler, LearnedUnigramSampler

__version__: str

__all__ = [
    "AliasTable",
    "FixedUnigramSampler",
    "LearnedUnigramSampler",
    "LinearStats",
    "LogUniformSampler",
    "SparseRows",
    "UniformSampler",
    "all_candidate_sampler",
    "compute_accidental_hits",
    "ctc_beam_search_decode",
    "ctc_greedy_decode",
    "ctc_loss",
    "edit_distance",
    "fixed_unigram_candidate_sampler",
    "gamma_loss",
    "hinge_loss",
    "huber_loss",
    "in_batch_softmax_loss",
    "kl_divergence",
    "learned_unigram_candidate_sampler",
    "linear_cross_entropy",
    "linear_partials",
    "log_cosh_loss",
    "log_sigmoid",
    "log_softmax",
    "log_uniform_candidate_sampler",
    "logsumexp",
    "loss_from_partials",
    "mean_absolute_error",
    "mean_squared_error",
    "merge_partials",
    "nce_loss",
    "packed_sequence_loss",
    "poisson_loss",
    "poly1_cross_entropy",
    "quantile_loss",
    "sample_negatives",
    "sampled_softmax_loss",
    "sequence_loss",
    "sequence_loss_by_example",
    "sigmoid",
    "sigmoid_cross_entropy_with_logits",
    "sigmoid_focal_loss",
    "softmax",
    "softmax_cross_entropy_with_logits",
    "softmax_focal_loss",
    "softplus",
    "sparse_softmax_cross_entropy_with_logits",
    "squared_hinge_loss",
    "tweedie_loss",
    "uniform_candidate_sampler",
    "value_and_grad",
    "value_grad_hess",
    "weighted_cross_entropy_with_logits",
]
