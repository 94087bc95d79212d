"""The alias table: its exact law, its draws, its arguments."""

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_samplers import philox

import fastloss as fl
from fastloss._native import samplers as kernels


def buckets(table):
    """Threshold, a 64-bit integer, and other id of each bucket."""
    n, words = len(table), table._law.table
    entries = words[:n].view(np.uint64)
    low = words[n:].view(np.uint32)[:n]
    thresholds = [int(e & np.uint64(0xFFFFFFFF)) << 32 | int(x) for e, x in zip(entries, low, strict=True)]
    return thresholds, (entries >> np.uint64(32)).astype(int).tolist()


def law(table):
    """The probabilities that the table really has."""
    n = len(table)
    p = [Fraction(0)] * n
    for i, (threshold, other) in enumerate(zip(*buckets(table), strict=True)):
        share = Fraction(threshold, 2**64)
        p[i] += share / n
        p[other] += (1 - share) / n
    return p


CASES = {
    "one": [3.0],
    "equal": [1.0] * 7,
    "two": [1.0, 1e-9],
    "rare": [1.0] * 500 + [1e-9] * 500,
    "heavy": [1e9] + [1.0] * 3000,
    "zeros": [0.0, 0.0, 1.0, 0.0, 2.0, 0.0],
    "tiny": [5e-250, 1e-250, 3e-251],
    "huge": [1e307, 1e306, 5.0],
    "zipf": (1 / np.arange(1, 4001)).tolist(),
    "ascending": np.arange(3000.0).tolist(),
    "random": np.random.default_rng(0).gamma(0.1, size=5000).tolist(),
    "third": [1 / 3] * 3 + [1e-17],
}


def check_law(weights):
    table = fl.AliasTable(weights)
    exact = [Fraction(w) for w in weights]
    total = sum(exact)
    p = law(table)
    assert sum(p) == 1
    for got, w in zip(p, exact, strict=True):
        assert abs(got - w / total) <= Fraction(1, 2**53)
        assert (got > 0) == (w > 0) or w / total < Fraction(1, 2**60)
    return table


@pytest.mark.parametrize("case", CASES)
def test_law_is_exact(case):
    table = check_law(CASES[case])
    weights = np.array(CASES[case])
    np.testing.assert_allclose(table.probability(np.arange(len(weights))), weights / np.sum(weights), rtol=1e-14)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=60).filter(any))
def test_law_of_any_weights(weights):
    check_law(weights)


def test_a_class_of_one_in_a_billion_has_its_share():
    p = law(fl.AliasTable([1.0, 1e-9]))
    assert abs(p[1] * (10**9 + 1) - 1) < 1e-9  # a 32-bit threshold would be 10 % off


@pytest.mark.parametrize("case", ["one", "equal", "two", "zeros", "zipf", "random"])
def test_draws_follow_the_table(case):
    table = fl.AliasTable(CASES[case])
    words = philox(87654321, 12, 0, 500).reshape(-1, 2).astype(np.uint64)
    thresholds, others = buckets(table)
    expected = []
    for low, high in words.tolist():
        bucket, share = divmod((high << 32 | low) * len(table), 2**64)
        expected.append(bucket if share < thresholds[bucket] else others[bucket])
    assert table.sample(1000, 12).tolist() == expected


def test_the_last_bits_of_a_threshold_count():
    low, high = philox(87654321, 12, 0, 1).reshape(-1, 2).astype(np.uint64)[0].tolist()
    bucket, share = divmod((high << 32 | low) * 2, 2**64)
    for threshold, expected in ((share, 1 - bucket), (share + 1, bucket)):
        words = np.array([threshold >> 32 | (1 - i) << 32 for i in range(2)] + [(threshold & 0xFFFFFFFF) * (1 + 2**32)],
                         np.uint64)  # fmt: skip
        out = np.empty(1, np.int64)
        kernels.spread((kernels.LAWS["alias"], 2, words.view(np.int64), None, 1.0), 87654321, 12, out, 1)
        assert out[0] == expected


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 40_000, 300_001])
def test_threads_change_nothing(size):
    table = fl.AliasTable(CASES["zipf"])
    alone = table.sample(size, 5, n_threads=1)
    for n_threads in (2, 3, 7, None):
        assert (table.sample(size, 5, n_threads=n_threads) == alone).all()
    longer = table.sample(size + 1000, 5)
    assert (longer[:size] == alone).all()


def test_threads_may_share_a_table():
    table = fl.AliasTable(CASES["random"])
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda seed: table.sample(5000, seed, n_threads=1), range(16)))
    assert all((ids == table.sample(5000, seed)).all() for seed, ids in enumerate(got))


def test_shapes_seeds_and_copies():
    table = fl.AliasTable(CASES["random"])
    flat = table.sample(24, 3)
    assert flat.dtype == np.int64
    assert (table.sample((2, 3, 4), 3) == flat.reshape(2, 3, 4)).all()
    assert table.sample((), 3) == flat[0]
    assert table.sample((4, 0), 3).shape == (4, 0)
    assert (table.sample(9, np.random.default_rng(1)) == table.sample(9, np.random.default_rng(1))).all()
    assert (table.sample(50) != table.sample(50)).any()
    for twin in (pickle.loads(pickle.dumps(table)), copy.copy(table), copy.deepcopy(table)):
        assert (twin.sample(24, 3) == flat).all()
        assert repr(twin) == repr(table) == "AliasTable(<5000 weights, 5000 of them positive>)"
    assert len(table) == 5000


def test_weights_are_copied():
    weights = np.array([1.0, 3.0])
    table = fl.AliasTable(weights)
    weights[:] = 0
    assert table.probability([0, 1]).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i1", "u8", "?"])
def test_any_real_dtype_and_layout(dtype):
    weights = np.array([0, 1, 1, 0, 1, 1], dtype)
    weights.flags.writeable = False
    assert fl.AliasTable(weights[::2]).probability([0, 1, 2]).tolist() == [0, 0.5, 0.5]


def test_unique():
    table = fl.AliasTable(CASES["zeros"])
    assert sorted(table.sample_unique(2, 1).tolist()) == [2, 4]
    assert table.sample_unique(0).shape == (0,)
    big = fl.AliasTable(CASES["zipf"])
    ids = big.sample_unique(3000, 7)
    assert len(set(ids.tolist())) == 3000
    assert (ids == big.sample_unique(3000, 7)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.AliasTable([]), ValueError, "weights must be a vector of 1 to 2**32 - 1 numbers, got shape (0,)"),
        (lambda: fl.AliasTable([[1.0]]), ValueError, "weights must be a vector"),
        (lambda: fl.AliasTable(1.0), ValueError, "weights must be a vector"),
        (lambda: fl.AliasTable(["a"]), TypeError, "weights must be real numbers"),
        (lambda: fl.AliasTable([1j]), TypeError, "weights must be real numbers"),
        (lambda: fl.AliasTable([None]), TypeError, "weights must be an array of numbers, got [None]"),
        (lambda: fl.AliasTable([1, -1.0]), ValueError, "weights must be finite and not negative, got -1.0 at row 1"),
        (lambda: fl.AliasTable([np.nan]), ValueError, "weights must be finite and not negative, got nan at row 0"),
        (lambda: fl.AliasTable([1, 2, np.inf]), ValueError, "got inf at row 2"),
        (lambda: fl.AliasTable([0.0, 0.0]), ValueError, "weights must have a sum in"),
        (lambda: fl.AliasTable([1e308, 1e308]), ValueError, "weights must have a sum in"),
        (lambda: fl.AliasTable([1e-300]), ValueError, "weights must have a sum in"),
        (lambda: fl.AliasTable([1.0]).sample(-1), ValueError, "size must lie in"),
        (lambda: fl.AliasTable([1.0]).sample((2, -1)), ValueError, "size must lie in"),
        (lambda: fl.AliasTable([1.0]).sample(1.5), TypeError, "size must be an integer"),
        (lambda: fl.AliasTable([1.0]).sample(1, "a"), TypeError, "seed must"),
        (lambda: fl.AliasTable([1.0]).sample(1, -1), ValueError, "seed must"),
        (lambda: fl.AliasTable([1.0]).sample(1, n_threads=0), ValueError, "n_threads"),
        (lambda: fl.AliasTable([1.0, 0]).sample_unique(2), ValueError, "k must be at most 1"),
        (lambda: fl.AliasTable([1.0]).sample_unique(-1), ValueError, "k must lie in"),
        (lambda: fl.AliasTable([1.0]).probability([1]), ValueError, "ids must lie in [0, 1), got 1 at row 0"),
        (lambda: fl.AliasTable([1.0]).probability([0.0]), TypeError, "ids must be integers"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
