"""The samplers' laws: chi-square on many draws, the joint law of unique draws, inclusion probabilities.

Seeds are fixed.  Each comparison is also made with a law that is a little wrong, to show that it would be noticed.
"""

import itertools

import numpy as np
import pytest
from reference_samplers import chi_square_z

import fastloss as fl
from fastloss.samplers import alias as _alias
from fastloss.samplers import samplers as _samplers

SOME = np.array([1.0, 2, 5, 10])
MANY = np.concatenate([[0.0], np.random.default_rng(0).gamma(0.5, size=998) + 0.01, [50.0]])


def learned(seed, weights):
    sampler = fl.LearnedUnigramSampler(len(weights), seed=seed)
    sampler.state = {**sampler.state, "counts": np.ceil(weights * 100).astype(int) + 1}
    return sampler


class Table:
    """An alias table as a sampler, which counts the seeds itself."""

    def __init__(self, seed, weights):
        self.table, self.seed, self.range_max = fl.AliasTable(weights), seed, len(weights)

    def sample(self, num_sampled, unique=True):
        self.seed += 1
        if unique:
            return self.table.sample_unique(num_sampled, self.seed)
        return self.table.sample(num_sampled, self.seed)

    def probability(self, ids):
        return self.table.probability(ids)


MAKERS = {
    "uniform": lambda seed, weights: fl.UniformSampler(len(weights), seed=seed),
    "log_uniform": lambda seed, weights: fl.LogUniformSampler(len(weights), seed=seed),
    "learned_unigram": learned,
    "fixed_unigram": lambda seed, weights: fl.FixedUnigramSampler(weights, seed=seed),
    "alias": Table,
}
each_law = pytest.mark.parametrize("name", MAKERS)


@each_law
def test_ten_million_draws(name):
    sampler = MAKERS[name](20, MANY)
    p = sampler.probability(np.arange(1000))
    assert abs(p.sum() - 1) < 1e-12
    observed = np.bincount(sampler.sample(10**7, unique=False), minlength=1000)
    assert abs(chi_square_z(observed, p)) < 4
    assert chi_square_z(observed, p * np.where(np.arange(1000) % 2, 1.03, 1)) > 10


@each_law
def test_independence_of_successive_draws(name):
    sampler = MAKERS[name](21, SOME)
    p = sampler.probability(np.arange(4))
    ids = sampler.sample(10**6, unique=False)
    for lag in (1, 2, 3, 128, 256):
        pairs = np.bincount(ids[:-lag] * 4 + ids[lag:], minlength=16)
        assert abs(chi_square_z(pairs, np.outer(p, p))) < 4


def successive(p, size):
    """Probability of each ordered draw of different ids, and the mean number of draws that it takes."""
    law, tries = {}, 0.0
    for ids in itertools.permutations(range(len(p)), size):
        q, left, mean = 1.0, 1.0, 0.0
        for v in ids:
            q *= p[v] / left
            mean += 1 / left
            left -= p[v]
        law[ids] = q
        tries += q * mean
    return law, tries


def switch_after(limit, monkeypatch):
    for module in (_alias, _samplers):
        monkeypatch.setattr(module, "try_limit", lambda *_: limit)


@pytest.mark.parametrize("limit", [None, 0, 2])  # draws before the switch: none, some, or as many as there are
@pytest.mark.parametrize("size", [2, 3])
@each_law
def test_joint_law_of_unique_draws(name, size, limit, monkeypatch):
    if limit is not None:
        switch_after(limit, monkeypatch)
    batches = 20000
    sampler = MAKERS[name](22, SOME)
    law, mean = successive(sampler.probability(np.arange(4)), size)
    places = {ids: i for i, ids in enumerate(law)}
    observed, tries = np.zeros(len(law)), []
    for _ in range(batches):
        observed[places[tuple(sampler.sample(size).tolist())]] += 1
        tries.append(sampler.state["last"][2] if name != "alias" else mean)
    assert abs(chi_square_z(observed, list(law.values()))) < 4
    assert abs(np.mean(tries) - mean) < 4 * np.std(tries) / batches**0.5 + 1e-9
    if name != "uniform":  # an order that does not matter would be noticed
        unordered = [np.mean([law[o] for o in itertools.permutations(ids)]) for ids in law]
        assert chi_square_z(observed, unordered) > 10


@each_law
def test_all_ids_on_both_sides_of_the_switch(name, monkeypatch):
    for limit in (None, 0, 500, 3000):
        if limit is not None:
            switch_after(limit, monkeypatch)
        sampler = MAKERS[name](23, MANY[1:])
        assert sorted(sampler.sample(999).tolist()) == list(range(999))
        if name != "alias":
            assert sampler.state["last"][2] >= 999


def test_unique_draws_end_where_tensorflow_hangs():
    sampler = fl.FixedUnigramSampler([1e20, 1, 1, 0, 1, 1e-20], seed=1)
    for _ in range(20):
        ids = sampler.sample(5).tolist()
        assert ids[0] == 0
        assert sorted(ids) == [0, 1, 2, 4, 5]
        assert ids[4] == 5
        assert sampler.state["last"][2] > 1e19  # draws that it would have taken
    assert sampler.expected_count([0])[0] == 1
    assert 0 < sampler.expected_count([5])[0] <= 1
    assert sorted(fl.AliasTable([1e300, 1e-300, 0, 1]).sample_unique(3, 0).tolist()) == [0, 1, 3]
    skewed = learned(1, np.array([1e15, 0, 0, 0, 0]))
    assert sorted(skewed.sample(5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("size", "n"), [(5, 10), (40, 200), (100, 2000)])
@pytest.mark.parametrize("name", ["uniform", "log_uniform", "learned_unigram", "fixed_unigram"])
def test_inclusion_probabilities(name, size, n):
    batches = 100_000
    sampler = MAKERS[name](25, np.random.default_rng(0).gamma(2, size=n) + 0.01)
    sampler._inclusion = True
    observed = np.zeros(n)
    for _ in range(batches // 1000):
        observed += np.bincount(np.concatenate([sampler.sample(size) for _ in range(1000)]), minlength=n)
    p = sampler.expected_count(np.arange(n), size)
    sigma = np.sqrt(p * (1 - p) / batches)
    deviation = (observed / batches - p) / sigma
    normal = p * (1 - p) * batches > 400  # counts that are far from Poisson's skew
    assert abs(deviation[normal][:: max(1, n // 200)]).max() < 4
    assert abs(np.mean(deviation**2) - 1) < 4 * np.sqrt(2 / n)
    if name != "uniform":
        naive = -np.expm1(size * np.log1p(-sampler.probability(np.arange(n))))
        assert np.mean(((observed / batches - naive) / sigma) ** 2) > 1.5
