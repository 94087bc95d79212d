"""Samplers: time per call, from tiny samples to tables that do not fit any cache."""

import numpy as np

import fastloss as fl


def make(law, range_max):
    if law == "fixed_unigram":
        return fl.FixedUnigramSampler(1e6 / np.arange(1, range_max + 1), seed=0)
    classes = {
        "uniform": fl.UniformSampler,
        "log_uniform": fl.LogUniformSampler,
        "learned_unigram": fl.LearnedUnigramSampler,
    }
    return classes[law](range_max, seed=0)


class Candidates:
    params = (
        ["uniform", "log_uniform", "learned_unigram", "fixed_unigram"],
        [10_000, 1_000_000],
        [64, 8192],
        [False, True],
    )
    param_names = ("law", "range_max", "num_sampled", "unique")

    def setup(self, law, range_max, num_sampled, unique):
        self.sampler = make(law, range_max)
        self.true = np.random.default_rng(0).integers(0, range_max, (64, 1))

    def time_candidates(self, law, range_max, num_sampled, unique):
        self.sampler.candidates(self.true, num_sampled, unique)


class Alias:
    params = ([10_000, 1_000_000, 10_000_000], [64, 8192, 1_000_000])
    param_names = ("classes", "size")

    def setup(self, classes, size):
        self.weights = np.random.default_rng(0).gamma(0.5, size=classes) + 1e-6
        self.table = fl.AliasTable(self.weights)

    def time_sample(self, classes, size):
        self.table.sample(size, 0)

    def time_build(self, classes, size):
        if size == 64:  # it does not depend on the size
            fl.AliasTable(self.weights)


class Rest:
    def setup(self):
        rng = np.random.default_rng(0)
        self.uniform = fl.UniformSampler(1_000_000, seed=0)
        self.learned = make("learned_unigram", 1_000_000)
        self.positives = rng.integers(0, 1_000_000, (4096, 20))
        self.ids = rng.integers(0, 1_000_000, 8192)
        self.inclusion = fl.LogUniformSampler(100_000, seed=0)

    def time_negatives(self):
        fl.sample_negatives(self.uniform, self.positives, 20)

    def time_update(self):
        self.learned.update(self.ids)

    def time_accidental_hits(self):
        fl.compute_accidental_hits(self.ids.reshape(-1, 1), self.ids, 1)

    def time_race_for_all_ids(self):
        self.inclusion.sample(100_000)
