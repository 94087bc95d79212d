"""Exact, fast, reproducible loss functions and candidate samplers for NumPy arrays."""

__version__ = "0.1.0"

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
from fastloss._samplers import FixedUnigramSampler, LearnedUnigramSampler, LogUniformSampler, UniformSampler

__all__ = [
    "AliasTable",
    "FixedUnigramSampler",
    "LearnedUnigramSampler",
    "LogUniformSampler",
    "UniformSampler",
    "all_candidate_sampler",
    "compute_accidental_hits",
    "fixed_unigram_candidate_sampler",
    "learned_unigram_candidate_sampler",
    "log_uniform_candidate_sampler",
    "sample_negatives",
    "uniform_candidate_sampler",
]
