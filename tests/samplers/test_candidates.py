"""TensorFlow's functions, accidental hits, and negatives for each row."""

import doctest
import inspect
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_samplers import chi_square_z

import fastloss as fl
from fastloss.samplers import alias as _alias
from fastloss.samplers import candidates as _candidates
from fastloss.samplers import samplers as _samplers
from fastloss.samplers import unigrams as _unigrams

LEARNED = fl.LearnedUnigramSampler(50, seed=3)
LEARNED.update(np.repeat(np.arange(50), np.arange(50)))
LAWS = {
    "uniform": lambda: fl.UniformSampler(50, seed=3),
    "log_uniform": lambda: fl.LogUniformSampler(50, seed=3),
    "learned_unigram": lambda: LEARNED,
    "fixed_unigram": lambda: fl.FixedUnigramSampler(np.arange(50.0), seed=3),
    "alias": lambda: fl.AliasTable(np.arange(50.0)),
}
each_law = pytest.mark.parametrize("name", LAWS)


# --- TensorFlow's signatures and checks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *(
            (f"{law}_candidate_sampler", "true_classes num_true num_sampled unique range_max seed name")
            for law in ("uniform", "log_uniform", "learned_unigram")
        ),
        (
            "fixed_unigram_candidate_sampler",
            "true_classes num_true num_sampled unique range_max vocab_file distortion num_reserved_ids num_shards "
            "shard unigrams seed name",
        ),
        ("all_candidate_sampler", "true_classes num_true num_sampled unique seed name"),
        ("compute_accidental_hits", "true_classes sampled_candidates num_true seed name"),
    ],
)
def test_signatures_are_tensorflows(name, parameters):
    assert " ".join(inspect.signature(getattr(fl, name)).parameters) == parameters


@pytest.mark.parametrize("module", [_alias, _candidates, _samplers, _unigrams], ids=lambda m: m.__name__)
def test_examples(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0 < tried


U, A = fl.uniform_candidate_sampler, fl.all_candidate_sampler
X = fl.fixed_unigram_candidate_sampler


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: U([[1]], 0, 1, True, 9), ValueError, "num_true must lie in"),
        (
            lambda: U([[1]], 2, 1, True, 9),
            ValueError,
            "true_classes must have the shape [batch, num_true=2], got shape",
        ),
        (lambda: U([1], 1, 1, True, 9), ValueError, "true_classes must have the shape [batch, num_true=1], got shape"),
        (lambda: U([[1]], 1, 0, True, 9), ValueError, "num_sampled must lie in"),
        (lambda: U([[1]], 1, 10, True, 9), ValueError, "num_sampled must be at most 9"),
        (lambda: U([[1]], 1, 1, True, 0), ValueError, "range_max must lie in"),
        (lambda: U([[9]], 1, 1, True, 9), ValueError, "true_classes must lie in [0, 9), got 9 at index (0, 0)"),
        (lambda: U([[1]], 1, 1, 1, 9), TypeError, "unique must be a bool"),
        (lambda: U([[1.5]], 1, 1, True, 9), TypeError, "true_classes must be integers"),
        (lambda: U([[1], [2, 3]], 1, 1, True, 9), TypeError, "true_classes must be an array, got [[1], [2, 3]]"),
        (lambda: U([[1]], 1, 1, True, 9, seed="a"), TypeError, "seed must"),
        (lambda: X([[1]], 1, 1, True, 3, unigrams=[1, 2]), ValueError, "range_max must be 2, the number of ids"),
        (lambda: X([[1]], 1, 1, True, 3), ValueError, "unigrams or vocab_file must be given"),
        (lambda: X([[0]], 1, 3, True, 3, unigrams=[1, 0, 2]), ValueError, "num_sampled must be at most 2"),
        (lambda: A([[3]], 1, 3, True), ValueError, "true_classes must lie in [0, 3), got 3 at index (0, 0)"),
        (lambda: A([[0]], 1, 0, True), ValueError, "num_sampled must lie in"),
        (lambda: A([[0]], 1, 2, None), TypeError, "unique must be a bool"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_all_candidates():
    ids, true, sampled = fl.all_candidate_sampler([[1, 0], [2, 2]], 2, 3, False, seed=4, name="x")
    assert ids.tolist() == [0, 1, 2]
    assert true.tolist() == [[1, 1], [1, 1]]
    assert sampled.tolist() == [1, 1, 1]


def test_functions_without_a_seed_differ():
    first, second = (U([[1]], 1, 20, False, 10**6).sampled_candidates for _ in range(2))
    assert (first != second).any()


# --- accidental hits -------------------------------------------------------------------------------------------------


def slow_hits(true, sampled):
    return [(i, k) for i, row in enumerate(true) for t in row for k, s in enumerate(sampled) if s == t]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hits_are_all_equal_pairs(data):
    ids = st.integers(-3, data.draw(st.sampled_from([0, 5, 40])))
    num_true = data.draw(st.integers(1, 4))
    true = data.draw(st.lists(st.lists(ids, min_size=num_true, max_size=num_true), max_size=8))
    sampled = data.draw(st.lists(ids, max_size=30))
    hits = fl.compute_accidental_hits(np.array(true, int).reshape(-1, num_true), np.array(sampled, int), num_true)
    assert list(zip(hits.indices.tolist(), hits.ids.tolist(), strict=True)) == slow_hits(true, sampled)
    assert (hits.weights == np.finfo(np.float32).min).all()
    assert [a.dtype for a in hits] == [np.int64, np.int64, np.float32]
    assert hits.weights.shape == hits.ids.shape


def test_hits_with_wide_ids_and_many_duplicates():
    true = np.array([[2**63 - 1, -(2**63)], [0, 0]])
    sampled = np.repeat([0, 2**63 - 1, 5], 1000)
    hits = fl.compute_accidental_hits(true, sampled, 2)
    assert hits.indices.tolist() == [0] * 1000 + [1] * 2000
    assert hits.ids.tolist() == [*range(1000, 2000), *range(1000), *range(1000)]


@pytest.mark.parametrize("stride", [1 << 20, 1 << 40, 3])
def test_hits_with_regular_ids(stride):
    sampled = np.arange(20000) * stride
    hits = fl.compute_accidental_hits(sampled[::-1, None], sampled, 1)
    assert (hits.ids == np.arange(20000)[::-1]).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.compute_accidental_hits([1], [1], 1), ValueError, "true_classes must have the shape"),
        (lambda: fl.compute_accidental_hits([[1]], [1], 2), ValueError, "true_classes must have the shape"),
        (lambda: fl.compute_accidental_hits([[1]], [[1]], 1), ValueError, "sampled_candidates must be a vector"),
        (lambda: fl.compute_accidental_hits([[1]], [1.0], 1), TypeError, "sampled_candidates must be integers"),
        (lambda: fl.compute_accidental_hits([[1.0]], [1], 1), TypeError, "true_classes must be integers"),
        (
            lambda: fl.compute_accidental_hits([[1]], np.array([2**63], np.uint64), 1),
            ValueError,
            "sampled_candidates must lie below 2**63, got 9223372036854775808",
        ),
    ],
)
def test_bad_hits(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


# --- negatives of each row -------------------------------------------------------------------------------------------

POSITIVES = np.random.default_rng(0).integers(0, 50, (300, 4))


@pytest.mark.parametrize("limit", [None, 0, 1, 9])
@pytest.mark.parametrize("unique", [True, False])
@each_law
def test_negatives_avoid_positives(name, unique, limit, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(_candidates, "try_limit", lambda *_: limit)
    ids = fl.sample_negatives(LAWS[name](), POSITIVES, 30, unique=unique)
    assert ids.shape == (300, 30)
    assert ids.dtype == np.int64
    for row, positives in zip(ids, POSITIVES, strict=True):
        assert not set(row.tolist()) & set(positives.tolist())
        assert not unique or len(set(row.tolist())) == 30
    if name not in ("uniform", "log_uniform", "learned_unigram"):
        assert (ids > 0).all()


@pytest.mark.parametrize("limit", [None, 0, 1])
@each_law
def test_law_of_negatives(name, limit, monkeypatch):
    if limit is not None:
        monkeypatch.setattr(_candidates, "try_limit", lambda *_: limit)
    sampler = LAWS[name]()
    p = sampler.probability(np.arange(50))
    seed = {"seed": 3} if name == "alias" else {}
    left = p.copy()
    left[[7, 2, 49]] = 0
    left /= left.sum()
    rows = 3000 if limit == 0 else 20000
    ids = fl.sample_negatives(sampler, np.tile([7, 2, 49], (rows, 1)), 2, unique=False, **seed)
    cells = np.bincount(ids[:, 0] * 50 + ids[:, 1], minlength=2500).reshape(50, 50)
    for axis in (0, 1):
        assert abs(chi_square_z(cells.sum(axis)[left > 0.003], left[left > 0.003])) < 4
    first = fl.sample_negatives(sampler, np.tile([7, 2, 49], (rows, 1)), 2, **seed)
    assert abs(chi_square_z(np.bincount(first[:, 0], minlength=50)[left > 0.003], left[left > 0.003])) < 4
    second = ((left[:, None] / (1 - left[:, None])) * left).sum(0) - left**2 / (1 - left)  # of the second id
    keep = left > 0.003
    assert abs(chi_square_z(np.bincount(first[:, 1], minlength=50)[keep], second[keep])) < 4


@each_law
def test_negatives_do_not_depend_on_threads(name):
    seed = {"seed": 8} if name == "alias" else {}
    many = np.random.default_rng(1).integers(0, 50, (5000, 3))
    results = []
    for n_threads in (1, 2, 5, None):
        sampler = LAWS[name]()
        state = getattr(sampler, "state", None)
        results.append(fl.sample_negatives(sampler, many, 20, n_threads=n_threads, **seed))
        if state is not None:
            sampler.state = state
    assert all((r == results[0]).all() for r in results)
    assert (fl.sample_negatives(LAWS[name](), many[:7], 20, **seed) == results[0][:7]).all()


def test_negatives_go_on_in_the_stream():
    sampler, twin = (fl.UniformSampler(1000, seed=1) for _ in range(2))
    first, second = (fl.sample_negatives(sampler, [[1]], 10) for _ in range(2))
    assert (first != second).any()
    fl.sample_negatives(twin, [[2], [3]], 10)
    assert (fl.sample_negatives(twin, [[1]], 10) == second).all()


def test_ragged_positives():
    sampler = fl.UniformSampler(6, seed=1)
    indptr, indices = [0, 0, 5, 6], [0, 1, 2, 3, 4, 5]
    ids = fl.sample_negatives(sampler, (np.array(indptr, np.uint8), indices), 1)
    assert ids[1, 0] == 5
    assert ids[2, 0] != 5
    assert fl.sample_negatives(sampler, ([3, 6], indices), 3).shape == (1, 3)
    assert fl.sample_negatives(sampler, ([0], []), 3).shape == (0, 3)
    assert fl.sample_negatives(sampler, np.empty((4, 0), int), 6).shape == (4, 6)


def test_negatives_end_where_rejection_would_not():
    table = fl.AliasTable([1e18, 1.0, 2.0, 0.0])
    assert np.sort(fl.sample_negatives(table, [[0], [0]], 2, seed=1)).tolist() == [[1, 2], [1, 2]]
    ids = fl.sample_negatives(table, [[0, 0]] * 300, 10, unique=False, seed=1)
    assert set(ids.ravel().tolist()) == {1, 2}
    assert abs((ids == 2).mean() - 2 / 3) < 0.04


N = fl.sample_negatives
S5 = fl.UniformSampler(5, seed=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: N(5, [[1]], 1), TypeError, "sampler must be a sampler or an AliasTable, got 5"),
        (lambda: N(S5, [[1]], 1, seed=3), ValueError, "seed must be None for a sampler"),
        (lambda: N(S5, [[1], [5]], 1), ValueError, "positives must lie in [0, 5), got 5 at index (1, 0)"),
        (lambda: N(S5, [[1.0]], 1), TypeError, "positives must be integers"),
        (lambda: N(S5, [1], 1), ValueError, "positives must have the shape [batch, T], got shape (1,)"),
        (
            lambda: N(S5, [[0, 1, 1], [0, 1, 2]], 3),
            ValueError,
            "positives must leave at least 3 ids that can be drawn, left 2 at row 1",
        ),
        (lambda: N(S5, [[0, 1, 2, 3, 4]], 3, unique=False), ValueError, "left 0 at row 0"),
        (lambda: N(fl.AliasTable([0, 1, 0, 1]), [[0], [1]], 2), ValueError, "left 1 at row 1"),
        (lambda: N(S5, [[1]], 0), ValueError, "num_sampled must lie in"),
        (lambda: N(S5, [[1]], 1, unique=None), TypeError, "unique must be a bool"),
        (lambda: N(S5, [[1]], 1, n_threads=0), ValueError, "n_threads"),
        (lambda: N(S5, ([0, 1],), 1), ValueError, "positives must be an array or a tuple (indptr, indices)"),
        (lambda: N(S5, ([0, 2, 1], [1, 2]), 1), ValueError, "positives[0] must not decrease, got 1 after 2 at row 1"),
        (lambda: N(S5, ([0, 3], [1, 2]), 1), ValueError, "positives[0] must lie in [0, 3), got 3 at row 1"),
        (lambda: N(S5, ([-1, 2], [1, 2]), 1), ValueError, "positives[0] must lie in [0, 3), got -1 at row 0"),
        (lambda: N(S5, ([0, 2], [1, 7]), 1), ValueError, "positives[1] must lie in [0, 5), got 7 at row 1"),
        (lambda: N(S5, ([], [1]), 1), ValueError, "positives must be two vectors (indptr, indices)"),
        (lambda: N(S5, ([[0, 1]], [1]), 1), ValueError, "positives must be two vectors (indptr, indices)"),
    ],
)
def test_bad_negatives(call, error, message):
    before = S5.state
    with pytest.raises(error, match=re.escape(message)):
        call()
    assert S5.state == before
