"""The sampler objects: streams, state, arguments, expected counts."""

import copy
import pickle
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import mpmath
import numpy as np
import pytest
import reference_samplers as slow
from hypothesis import given, settings
from hypothesis import strategies as st

import fastloss as fl
from fastloss._native import samplers as kernels

WEIGHTS = np.array([0.0, 3, 5, 0.25, 8, 1, 1, 900])
COUNTS = (WEIGHTS + 1).astype(int)


def learned(seed, counts=COUNTS):
    sampler = fl.LearnedUnigramSampler(len(counts), seed=seed)
    sampler.update(np.repeat(np.arange(len(counts)), counts - 1))
    return sampler


MAKERS = {
    "uniform": lambda seed: fl.UniformSampler(1000, seed=seed),
    "log_uniform": lambda seed: fl.LogUniformSampler(1000, seed=seed),
    "learned_unigram": learned,
    "fixed_unigram": lambda seed: fl.FixedUnigramSampler(WEIGHTS, distortion=0.5, num_reserved_ids=2, seed=seed),
}
each_sampler = pytest.mark.parametrize("name", MAKERS)


# --- the stream ------------------------------------------------------------------------------------------------------


def test_philox_known_answers():
    # Random123's kat_vectors for philox4x32-10
    assert slow.philox(0, 0, 0, 1)[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**64 - 1
    assert slow.philox(ones, ones, ones, 1)[0].tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("blocks", [1, 15, 16, 17, 33, 700])
@pytest.mark.parametrize("first", [0, 2**32 - 3, 2**63 - 5])
def test_kernel_reads_philox(blocks, first):
    out = np.empty(2 * blocks, np.int64)  # in a range of 2^62 a draw is the low bits of a pair of words
    key, stream = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    law = (kernels.LAWS["uniform"], 2**62, None, None, 0.0)
    kernels.sample([law, key, stream, first, None], out, False, out.size, None, None, None)
    words = slow.philox(key, stream, first, blocks).reshape(-1, 2).astype(np.uint64)
    assert out.tolist() == ((words[:, 1] << np.uint64(32) | words[:, 0]) & np.uint64(2**62 - 1)).tolist()


LAWS = {
    "uniform 1": (lambda: fl.UniformSampler(1, seed=3), slow.uniform(1)),
    "uniform 64": (lambda: fl.UniformSampler(64, seed=3), slow.uniform(64)),
    "uniform 37": (lambda: fl.UniformSampler(37, seed=3), slow.uniform(37)),
    "uniform 3*2^61": (lambda: fl.UniformSampler(3 * 2**61, seed=3), slow.uniform(3 * 2**61)),  # rejects a quarter
    "uniform 2^63-1": (lambda: fl.UniformSampler(2**63 - 1, seed=3), slow.uniform(2**63 - 1)),
    "log 1": (lambda: fl.LogUniformSampler(1, seed=3), slow.log_uniform(1)),
    "log 100": (lambda: fl.LogUniformSampler(100, seed=3), slow.log_uniform(100)),
    "log 2^45": (lambda: fl.LogUniformSampler(2**45, seed=3), slow.log_uniform(2**45)),  # many draws near an integer
    "log 2^50-1": (lambda: fl.LogUniformSampler(2**50 - 1, seed=3), slow.log_uniform(2**50 - 1)),
    "log 2^50": (lambda: fl.LogUniformSampler(2**50, seed=3), slow.log_uniform(2**50)),
    "log 2^63-1": (lambda: fl.LogUniformSampler(2**63 - 1, seed=3), slow.log_uniform(2**63 - 1)),
    "learned": (lambda: learned(3), slow.learned_unigram(COUNTS)),
    "fixed": (lambda: fl.FixedUnigramSampler(COUNTS, seed=3), slow.fixed_unigram(COUNTS)),
    "fixed 5000": (
        lambda: fl.FixedUnigramSampler(1e6 / np.arange(1, 5001), seed=3),
        slow.fixed_unigram(1e6 / np.arange(1, 5001)),
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_ids_are_those_of_one_by_one_draws(law):
    make, draw = LAWS[law]
    sampler = make()
    for call, size in enumerate([3000, 3000]):
        assert sampler.sample(size, unique=False).tolist() == slow.sample(draw, 3, call, size, False)[0]
    sampler = make()
    size = min(sampler._drawable, 300)
    for call in range(2):
        ids, tries = slow.sample(draw, 3, call, size, True)
        assert sampler.sample(size).tolist() == ids
        assert sampler.state["last"] == (size, True, tries)


def seen(n):
    sampler = fl.LearnedUnigramSampler(n, seed=4)
    sampler.update(np.arange(n).repeat(np.arange(n) % 7))
    return sampler, slow.learned_unigram(sampler.counts)


def zipf(n):
    weights = 1e6 / np.arange(1, n + 1)
    return fl.FixedUnigramSampler(weights, seed=4), slow.fixed_unigram(weights)


MANY = {
    "uniform": lambda n: (fl.UniformSampler(n, seed=4), slow.uniform(n)),
    "log_uniform": lambda n: (fl.LogUniformSampler(n, seed=4), slow.log_uniform(n)),
    "learned": seen,
    "fixed": zipf,
}


@pytest.mark.parametrize("law", MANY)
@pytest.mark.parametrize(
    ("n", "sizes"),
    # a byte for each id, a bit for each, a table; few of many, and so many that hardly any draw is new
    [(4000, [3600, 1100, 20]), (20_000, [9000, 30]), (70_000, [40, 200])],
)
def test_many_distinct_ids_and_their_counts(law, n, sizes):
    true = np.arange(0, n, n // 50).reshape(-1, 1)
    for size in sizes:
        sampler, draw = MANY[law](n)
        probability = sampler.probability(np.arange(n))
        ids, of_true, counts = sampler.candidates(true, size)
        expected, tries = slow.sample(draw, 4, 0, size, True)
        assert ids.tolist() == expected
        assert sampler.state["last"] == (size, True, tries)
        inside = -np.expm1(tries * np.log1p(-probability)) if tries > size else size * probability
        np.testing.assert_allclose(counts, inside[ids], rtol=1e-13)
        np.testing.assert_allclose(of_true, inside[true], rtol=1e-13)
    sampler, draw = MANY[law](n)
    probability = sampler.probability(np.arange(n))
    ids, _, counts = sampler.candidates(true, 5000, unique=False)
    assert ids.tolist() == slow.sample(draw, 4, 0, 5000, False)[0]
    np.testing.assert_array_equal(counts, 5000 * probability[ids])


@pytest.mark.parametrize("n", [20, 20_000])
@pytest.mark.parametrize("how", ["update", "candidates"])
def test_learned_counts_outgrow_32_bits(n, how):
    sampler = fl.LearnedUnigramSampler(n, seed=9)
    counts = np.ones(n, np.int64)
    counts[5] += 2**31 - 1 - 2**28 - 60
    sampler.state = {**sampler.state, "counts": counts}
    for itemsize in (4, 8, 8):
        ids = np.arange(40) % n
        if how == "update":
            sampler.update(ids)
        else:
            sampler.candidates(ids, 3)
        counts += np.bincount(ids, minlength=n)
        assert sampler._tree.itemsize == itemsize
        assert (sampler.counts == counts).all()
    drawn = fl.LearnedUnigramSampler(n, seed=9)
    drawn.state = {**drawn.state, "counts": counts}
    assert drawn.sample(500, unique=False).tolist() == slow.sample(slow.learned_unigram(counts), 9, 0, 500, False)[0]


def test_learned_counts_beyond_32_bits():
    sampler = fl.LearnedUnigramSampler(40, seed=9)
    counts = np.ones(40, np.int64)
    counts[[3, 30]] = [2**40, 2**41]
    sampler.state = {**sampler.state, "counts": counts}
    assert (
        sampler.sample(2000, unique=False).tolist() == slow.sample(slow.learned_unigram(counts), 9, 0, 2000, False)[0]
    )
    assert sampler.probability([3])[0] == 2**40 / counts.sum()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 255, 256, 257, 5000])
def test_learned_tree_of_any_size(n):
    rng = np.random.default_rng(n)
    sampler = fl.LearnedUnigramSampler(n, seed=1)
    counts = np.ones(n, np.int64)
    for _ in range(3):
        ids = rng.integers(0, n, 50)
        sampler.update(ids)
        counts += np.bincount(ids, minlength=n)
        assert (sampler.counts == counts).all()
    twin = fl.LearnedUnigramSampler(n, seed=1)
    twin.state = sampler.state
    assert (twin._tree == sampler._tree).all()
    assert sampler.sample(500, unique=False).tolist() == slow.sample(slow.learned_unigram(counts), 1, 0, 500, False)[0]
    np.testing.assert_array_equal(sampler.probability(np.arange(n)), counts / counts.sum())


def test_learned_learns_after_the_draw():
    sampler = fl.LearnedUnigramSampler(4, seed=0)
    given_counts = [sampler.candidates([[0], [0]], 4, False).true_expected_count[0, 0] for _ in range(3)]
    np.testing.assert_allclose(given_counts, [4 * 1 / 4, 4 * 3 / 6, 4 * 5 / 8])
    before = sampler.counts
    with pytest.raises(ValueError, match=r"index \(1, 0\)"):
        sampler.candidates([[0], [4]], 4, False)
    with pytest.raises(ValueError, match="at most 4"):
        sampler.candidates([[0], [1]], 5, True)
    assert (sampler.counts == before).all()


def test_learned_takes_no_time_or_memory_before_it_is_used():
    assert fl.LearnedUnigramSampler(2**31 - 1, seed=1).sample(4).max() < 2**31 - 1


def test_a_word_below_the_limit_is_drawn_again_in_the_middle_of_a_tile():
    n, size = 2**32 * 100 // 100_099, 10_000  # of which the 32-bit law rejects a thousandth of the words
    table = np.zeros(2 * n, np.int64)
    table[::2] = 2**23  # above every share: a draw is its bucket
    out = np.empty(size, np.int64)
    law = (kernels.LAWS["fixed_unigram"], n, table, None, 1.0)
    kernels.sample([law, 87654321, 5, 0, None], out, False, size, None, None, None)
    assert 3 < (slow.philox(87654321, 5, 0, size // 2)[:, 1::2] < 2**32 % n).sum() < 30
    assert out.tolist() == slow.sample(lambda words: (words.word(), words.integer(n, 32))[1], 5, 0, size, False)[0]


# --- seeds and state -------------------------------------------------------------------------------------------------


@each_sampler
def test_seeds(name):
    make = MAKERS[name]
    size = 5
    for seed in (0, 7, np.int32(7), 2**200, np.random.SeedSequence(5), [1, 2, 3]):
        assert (make(seed).sample(size) == make(seed).sample(size)).all()
    assert (make(7).sample(size) == make(np.int64(7)).sample(size)).all()
    assert (make(7).sample(size) == make(7 + 2**31 - 1).sample(size)).all()  # as TensorFlow folds them
    for kind in (np.random.PCG64, np.random.MT19937, np.random.SFC64, np.random.Philox):
        assert (make(kind(3)).sample(size) == make(np.random.Generator(kind(3))).sample(size)).all()
    rng = np.random.default_rng(3)
    assert make(rng).state["key"] != make(rng).state["key"]  # a generator moves on
    assert make(None).state["key"] != make(None).state["key"]
    for bad, error in ((-1, ValueError), ("x", TypeError), (1.5, TypeError), ([-1], ValueError)):
        with pytest.raises(error, match=r"^seed must"):
            make(bad)


@each_sampler
def test_state_pickle_copy(name):
    sampler = MAKERS[name](11)
    sampler.sample(4)
    state = sampler.state
    twins = [pickle.loads(pickle.dumps(sampler)), copy.copy(sampler), copy.deepcopy(sampler)]
    ids = [sampler.sample(n, u) for n, u in ((4, True), (2, False), (4, True))]
    counts = sampler.expected_count(ids[-1])
    fresh = MAKERS[name](None)
    fresh.state = state
    again = MAKERS[name](12)
    again.state = pickle.loads(pickle.dumps(state))
    for twin in (*twins, fresh, again):
        assert type(twin) is type(sampler)
        assert repr(twin) == repr(sampler)
        assert [x.tolist() for x in ids] == [
            twin.sample(len(x), u).tolist() for x, u in zip(ids, (1 > 0, 1 < 0, 1 > 0), strict=True)
        ]
        assert (twin.expected_count(ids[-1]) == counts).all()
        assert twin.state.keys() == state.keys()
    sampler.state = state
    assert sampler.sample(4).tolist() == ids[0].tolist()


def test_copies_learn_apart():
    sampler = learned(1)
    twin = copy.copy(sampler)
    twin.update([0, 0])
    assert sampler.counts[0] == COUNTS[0]
    assert twin.counts[0] == COUNTS[0] + 2


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "Other"},
        {"block": -1},
        {"key": 2**64},
        {"stream": 1.0},
        {"extra": 1},
        {"last": (0, True, 1)},
        {"last": (3, True, 2)},
        {"counts": [1] * 7},
        {"counts": [0] * 8},
        {"counts": [1.0] * 8},
        {"counts": [2**62] * 8},
    ],
    ids=str,
)
def test_state_is_checked(change):
    sampler = learned(1)
    before = sampler.state
    with pytest.raises((ValueError, TypeError)):
        sampler.state = {**before, **change}
    after = sampler.state
    assert before.pop("counts").tolist() == after.pop("counts").tolist()
    assert before == after


def test_repr():
    assert repr(fl.UniformSampler(10)) == "UniformSampler(range_max=10)"
    assert repr(fl.LogUniformSampler(10, expected_count="inclusion")) == (
        "LogUniformSampler(range_max=10, expected_count='inclusion')"
    )
    assert repr(fl.FixedUnigramSampler([1, 2], distortion=0.5, num_reserved_ids=3)) == (
        "FixedUnigramSampler(range_max=5, distortion=0.5, num_reserved_ids=3)"
    )
    assert repr(fl.LearnedUnigramSampler(4)) == "LearnedUnigramSampler(range_max=4)"


@each_sampler
def test_threads_share_a_sampler(name):
    sampler = MAKERS[name](2)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: tuple(sampler.sample(5).tolist()), range(200)))
    alone = MAKERS[name](2)
    assert sorted(got) == sorted(tuple(alone.sample(5).tolist()) for _ in range(200))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("unique", [True, False])
def test_interrupt(unique):
    class Interrupted(Exception):
        pass

    def handler(*_):
        raise Interrupted

    sampler = fl.LogUniformSampler(2 * 10**7, seed=1) if unique else fl.LogUniformSampler(10**9, seed=1)
    state = sampler.state
    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Interrupted):
            sampler.sample(2 * 10**7 if unique else 10**8, unique)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert sampler.state == state


# --- arguments -------------------------------------------------------------------------------------------------------

S = fl.UniformSampler(10, seed=1)
F = fl.FixedUnigramSampler


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fl.UniformSampler(0), ValueError, "range_max must lie in [1, 9223372036854775807], got 0"),
        (lambda: fl.UniformSampler(2**63), ValueError, "range_max must lie in"),
        (lambda: fl.UniformSampler(2.0), TypeError, "range_max must be an integer, got 2.0"),
        (lambda: fl.LogUniformSampler(-1), ValueError, "range_max must lie in"),
        (lambda: fl.LearnedUnigramSampler(2**40 + 1), ValueError, "range_max must lie in"),
        (lambda: fl.UniformSampler(3, expected_count="x"), ValueError, "must be one of 'tries', 'inclusion', got 'x'"),
        (lambda: S.sample(0), ValueError, "num_sampled must lie in"),
        (lambda: fl.UniformSampler(5).sample(0, False), ValueError, "num_sampled must lie in"),
        (lambda: fl.UniformSampler(5).candidates([0], None, False), TypeError, "num_sampled must be an integer"),
        (lambda: fl.UniformSampler(5).candidates(None, 2), TypeError, "true_classes must be given"),
        (lambda: S.sample(-3, False), ValueError, "num_sampled must lie in"),
        (lambda: S.sample(2.0), TypeError, "num_sampled must be an integer"),
        (lambda: S.sample(2, 1), TypeError, "unique must be a bool, got 1"),
        (lambda: S.sample(11), ValueError, "num_sampled must be at most 10"),
        (lambda: S.candidates([[1, 10]], 2), ValueError, "true_classes must lie in [0, 10), got 10 at index (0, 1)"),
        (lambda: S.candidates([[1], [2], [-7]], 2), ValueError, "lie in [0, 10), got -7 at index (2, 0)"),
        (lambda: S.candidates([1.0], 2), TypeError, "true_classes must be integers, got dtype float64"),
        (lambda: S.candidates([True], 2), TypeError, "true_classes must be integers, got dtype bool"),
        (lambda: S.candidates(["a"], 2), TypeError, "true_classes must be integers"),
        (lambda: S.candidates([None], 2), TypeError, "true_classes must be an array of numbers"),
        (lambda: S.probability(10), ValueError, "ids must lie in [0, 10), got 10"),
        (lambda: S.probability(np.uint64(2**63 + 1)), ValueError, "ids must lie in [0, 10), got 9223372036854775809"),
        (lambda: fl.UniformSampler(3).expected_count([0]), ValueError, "num_sampled must be given before the first"),
        (lambda: S.expected_count([0], 3), ValueError, "tries must be given along with num_sampled"),
        (lambda: S.expected_count([0], 3, tries=2), ValueError, "tries must lie in [3, inf], got 2"),
        (lambda: S.expected_count([0], 3, tries=float("nan")), ValueError, "tries must lie in [3, inf], got nan"),
        (lambda: S.expected_count([0], 11), ValueError, "num_sampled must be at most 10"),
        (lambda: F(), ValueError, "unigrams or vocab_file must be given, and not both"),
        (lambda: F([1.0], vocab_file="x"), ValueError, "unigrams or vocab_file must be given, and not both"),
        (lambda: F([[1.0]]), ValueError, "unigrams must be a vector, got shape (1, 1)"),
        (lambda: F(["a"]), TypeError, "unigrams must be real numbers"),
        (lambda: F([1, 2, -1, 3]), ValueError, "unigrams must be finite and not negative, got -1.0 at row 2"),
        (lambda: F([1, np.nan]), ValueError, "unigrams must be finite and not negative, got nan at row 1"),
        (lambda: F([np.inf]), ValueError, "unigrams must be finite and not negative, got inf at row 0"),
        (lambda: F([0.0, 0.0]), ValueError, "must have a sum in (0,"),
        (lambda: F([0.0, 1.0], distortion=-1), ValueError, "must be finite in float32, got inf for id 0"),
        (lambda: F([1e300]), ValueError, "must be finite in float32, got inf for id 0"),
        (lambda: F([3e38, 3e38]), ValueError, "must have a sum in (0,"),
        (lambda: F([1.0], distortion=float("nan")), ValueError, "distortion must lie in [-3e+38, 3e+38], got nan"),
        (lambda: F([1.0], distortion="a"), TypeError, "distortion must be a number, got 'a'"),
        (lambda: F([1.0], num_reserved_ids=-1), ValueError, "num_reserved_ids must lie in"),
        (lambda: F([1.0], num_reserved_ids=2**31), ValueError, "num_reserved_ids must lie in"),
        (lambda: F([1.0], num_shards=0), ValueError, "num_shards must lie in"),
        (lambda: F([1.0], num_shards=2, shard=2), ValueError, "shard must lie in [0, 1], got 2"),
        (lambda: F([1.0], num_shards=2, shard=-1), ValueError, "shard must lie in [0, 1], got -1"),
        (lambda: F([1.0], num_shards=9, shard=8), ValueError, "unigrams must give the shard between 1 and"),
        (lambda: F([1, 0, 2, 0]).sample(3), ValueError, "num_sampled must be at most 2"),
        (lambda: learned(0).update([8]), ValueError, "ids must lie in [0, 8), got 8 at row 0"),
        (lambda: learned(0).update([0.5]), TypeError, "ids must be integers"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_refused_calls_leave_the_stream_alone():
    sampler, twin = (fl.UniformSampler(10, seed=1) for _ in range(2))
    for bad in (lambda: sampler.sample(11), lambda: sampler.candidates([[10]], 3)):
        with pytest.raises(ValueError, match="must"):
            bad()
    assert sampler.sample(5).tolist() == twin.sample(5).tolist()


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u4", ">i4", "i8", "u8"])
def test_any_integers_in_any_layout(dtype):
    sampler = fl.LogUniformSampler(100)
    ids = np.arange(24, dtype=dtype).reshape(4, 6)
    expected = sampler.probability(np.arange(24)).reshape(4, 6)
    frozen = ids.copy()
    frozen.flags.writeable = False
    assert (sampler.probability(frozen) == expected).all()
    assert (sampler.probability(np.asfortranarray(ids)) == expected).all()
    assert (sampler.probability(ids[::-1, ::2]) == expected[::-1, ::2]).all()
    assert (sampler.probability(np.broadcast_to(ids[0], (3, 6))) == expected[0]).all()
    skewed = np.frombuffer(b"x" + ids.tobytes(), dtype, offset=1).reshape(4, 6)
    assert (sampler.probability(skewed) == expected).all()
    assert sampler.candidates(skewed, 3).true_expected_count.shape == (4, 6)
    assert sampler.probability([]).shape == (0,)
    assert sampler.candidates(np.empty((0, 3), dtype), 2).true_expected_count.shape == (0, 3)


anything = st.one_of(  # no number between, for which there may be memory, all of it
    st.integers(-3, 40),
    st.sampled_from([2**40, 2**45, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30]),
    st.floats(),
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=4),
)
ids_like = st.one_of(anything, st.lists(st.lists(st.integers(-2, 30), min_size=2, max_size=2), max_size=4))
mostly = lambda good: st.one_of(good, good, good, anything)  # noqa: E731


@settings(max_examples=400, deadline=1000)
@given(
    which=st.sampled_from(["uniform", "log_uniform", "learned_unigram", "fixed_unigram"]),
    true=ids_like,
    num_true=mostly(st.just(2)),
    num_sampled=mostly(st.integers(1, 300)),
    unique=mostly(st.booleans()),
    range_max=mostly(st.integers(1, 300)),
    seed=mostly(st.none()),
    fixed=st.fixed_dictionaries(
        {},
        optional={
            "unigrams": st.one_of(anything, st.lists(st.floats(0, 1e30), max_size=300)),
            "distortion": mostly(st.floats(-2, 2)),
            "num_reserved_ids": mostly(st.integers(0, 5)),
            "num_shards": mostly(st.integers(1, 4)),
            "shard": mostly(st.integers(0, 4)),
        },
    ),
)
def test_arguments_never_crash_or_hang(which, true, num_true, num_sampled, unique, range_max, seed, fixed):
    function = getattr(fl, f"{which}_candidate_sampler")
    try:
        result = function(
            true, num_true, num_sampled, unique, range_max, seed=seed, **(fixed if which == "fixed_unigram" else {})
        )
    except (TypeError, ValueError, MemoryError) as error:
        assert str(error)  # noqa: PT017
        return
    ids = result.sampled_candidates
    assert len(ids) == num_sampled
    assert ids.min() >= 0
    assert ids.max() < range_max
    assert not unique or len(set(ids.tolist())) == num_sampled
    assert (result.sampled_expected_count > 0).all()


# --- fixed unigram: files, shards, reserved ids ----------------------------------------------------------------------


def test_vocab_file(tmp_path):
    path = tmp_path / "vocab"
    path.write_bytes(b"the,a,3\r\n\r\n  \nof, 1e2 \n0x1p2\nx,0\nand,.5")
    sampler = F(vocab_file=path, num_reserved_ids=1, seed=4)
    twin = F([3, 100, 4, 0, 0.5], num_reserved_ids=1, seed=4)
    assert sampler.range_max == 6
    assert (sampler.probability(np.arange(6)) == twin.probability(np.arange(6))).all()
    assert sampler.sample(4).tolist() == twin.sample(4).tolist()
    assert F(vocab_file=str(path)).range_max == 5


@pytest.mark.parametrize("line", ["word", "a,", "a,1,", "a,1 2", "count", "1_000", "a,0xzz"])
def test_bad_vocab_file(tmp_path, line):
    path = tmp_path / "vocab"
    path.write_text(f"a,1\n\n{line}\n")
    with pytest.raises(ValueError, match=r"vocab_file must end each line with a number, got .* at line 3"):
        F(vocab_file=path)


def test_unusable_vocab_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        F(vocab_file=tmp_path / "none")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ValueError, match="vocab_file must hold at least one entry"):
        F(vocab_file=tmp_path / "empty")
    (tmp_path / "nan").write_text("a,nan\n")
    with pytest.raises(ValueError, match=r"vocab_file must hold counts that are finite .*, got 'nan' at line 1"):
        F(vocab_file=tmp_path / "nan")


@pytest.mark.parametrize("reserved", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_share_out_every_id_once(reserved, shards):
    counts = np.arange(1.0, 12)
    whole = np.concatenate([np.zeros(reserved), counts])
    owned = []
    for shard in range(shards):
        sampler = F(counts, num_reserved_ids=reserved, num_shards=shards, shard=shard, seed=1)
        ids = sampler.global_ids(np.arange(sampler.range_max))
        owned += ids.tolist()
        np.testing.assert_allclose(sampler.probability(np.arange(len(ids))), whole[ids] / whole[ids].sum(), rtol=1e-15)
        assert (whole[sampler.global_ids(sampler.sample(100, unique=False))] > 0).all()
    assert sorted(owned) == list(range(len(whole)))


def test_shards_are_tensorflows_without_reserved_ids():
    first, second = (F([1, 2, 3, 4, 5, 6], num_shards=2, shard=s) for s in range(2))
    np.testing.assert_allclose(first.probability([0, 1, 2]), np.array([1, 3, 5]) / 9)
    np.testing.assert_allclose(second.probability([0, 1, 2]), np.array([2, 4, 6]) / 12)


def test_distortion():
    np.testing.assert_allclose(F([1, 16, 0], distortion=0.5).probability([0, 1, 2]), [0.2, 0.8, 0])
    np.testing.assert_allclose(F([1, 16, 0], distortion=0, num_reserved_ids=1).probability(range(4)), [0, *[1 / 3] * 3])
    np.testing.assert_allclose(F([1, 4], distortion=-1).probability([0, 1]), [0.8, 0.2])


# --- expected counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 10**6, 2**40, 2**63 - 1])
def test_log_uniform_probability_is_exact(n):
    ids = np.unique(np.minimum(np.geomspace(1, n, 200).astype(np.uint64), n) - np.uint64(1)).astype(np.int64)
    ids = ids[ids < n]
    with mpmath.workdps(50):
        exact = [mpmath.log1p(mpmath.mpf(1) / (int(v) + 1)) / mpmath.log1p(n) for v in ids]
        np.testing.assert_allclose(fl.LogUniformSampler(n).probability(ids), [float(p) for p in exact], rtol=1e-15)
    if n <= 10**6:
        assert abs(fl.LogUniformSampler(n).probability(np.arange(n)).sum() - 1) < 1e-12


@pytest.mark.parametrize("name", [*MAKERS, "one", "two"])
@pytest.mark.parametrize("tries", [7, 8, 30, 1e6, 1e17])
def test_expected_counts_are_exact(name, tries):
    makers = {**MAKERS, "one": lambda _: fl.LogUniformSampler(1), "two": lambda _: fl.LogUniformSampler(2)}
    sampler = makers[name](1)
    ids = np.arange(min(sampler.range_max, 50))
    size = min(7, sampler._drawable)
    p = sampler.probability(ids)
    with mpmath.workdps(50):
        if tries == size:
            exact = [float(mpmath.mpf(float(q)) * size) for q in p]
        else:
            exact = [float(1 - (1 - mpmath.mpf(float(q))) ** tries) for q in p]
    np.testing.assert_allclose(sampler.expected_count(ids, size, tries=tries), exact, rtol=1e-14, atol=0)
    np.testing.assert_array_equal(sampler.expected_count(ids, size, unique=False), p * size)


@each_sampler
def test_expected_counts_of_the_last_sample(name):
    sampler = MAKERS[name](6)
    ids = np.arange(8)
    for unique in (True, False):
        result = sampler.candidates(ids[None], 5, unique)
        size, was_unique, tries = sampler.state["last"]
        if name != "learned_unigram":  # which has learned since
            np.testing.assert_array_equal(result.true_expected_count[0], sampler.expected_count(ids))
            again = sampler.expected_count(ids, size, was_unique, tries)
            np.testing.assert_array_equal(again, sampler.expected_count(ids))
            np.testing.assert_array_equal(
                result.sampled_expected_count, sampler.expected_count(result.sampled_candidates)
            )


def inclusive(name):
    sampler = MAKERS[name](5)
    sampler._inclusion = True
    return sampler


@each_sampler
def test_inclusion_probabilities_sum_to_the_sample(name):
    sampler = inclusive(name)
    ids = np.arange(sampler.range_max)
    for size in {1, 2, 3, sampler._drawable // 2, sampler._drawable - 1, sampler._drawable}:
        p = sampler.expected_count(ids, size)
        assert 0 <= p.min() <= p.max() <= 1
        assert abs(np.sum(p.astype(np.longdouble)) - size) < 1e-12 * size
        assert ((p == 0) == (sampler.probability(ids) == 0)).all()
    np.testing.assert_array_equal(sampler.expected_count(ids, sampler._drawable), sampler.probability(ids) > 0)


def test_inclusion_of_the_uniform_law_is_exact():
    sampler = fl.UniformSampler(1000, expected_count="inclusion", seed=1)
    result = sampler.candidates([[3]], 70)
    assert (result.sampled_expected_count == 0.07).all()
    assert result.true_expected_count == 0.07


def test_inclusion_of_a_skewed_law():
    weights = np.concatenate([[1e12], np.full(99, 1.0), [1e-9]])
    sampler = F(weights, expected_count="inclusion")
    for size in (1, 2, 50, 99, 100):
        p = sampler.expected_count(np.arange(101), size)
        assert abs(np.sum(p.astype(np.longdouble)) - size) < 1e-12 * size
        assert p.max() <= 1


@pytest.mark.parametrize("law", ["log_uniform", "gamma", "steep", "two_kinds"])
@pytest.mark.parametrize("n", [10, 60, 150])
def test_inclusion_probabilities_are_those_of_the_integral(law, n):
    weights = {
        "gamma": np.random.default_rng(n).gamma(0.5, size=n) + 0.01,
        "steep": 0.8 ** (np.arange(n) % 50),
        "two_kinds": np.where(np.arange(n) < n // 5, 1, 0.02),
    }
    sampler = fl.LogUniformSampler(n) if law == "log_uniform" else F(weights[law])
    sampler._inclusion = True
    p = sampler.probability(np.arange(n))
    for size in {1, 3, n // 5, n // 2, n - 2, n - 1} if n < 100 else {n // 5}:
        exact = slow.inclusion(p, size)
        assert abs(exact.sum() - size) < 1e-5
        assert abs(sampler.expected_count(np.arange(n), size) - exact).max() < 3e-4


def test_inclusion_in_candidates_and_functions_defaults():
    sampler = fl.LogUniformSampler(500, expected_count="inclusion", seed=3)
    result = sampler.candidates([[0], [499]], 100)
    p = sampler.expected_count(np.arange(500), 100)
    np.testing.assert_array_equal(result.sampled_expected_count, p[result.sampled_candidates])
    np.testing.assert_array_equal(result.true_expected_count, p[[0, 499]][:, None])
    drawn = sampler.candidates([[0]], 100, unique=False)
    np.testing.assert_array_equal(drawn.true_expected_count, 100 * sampler.probability([[0]]))


def test_inclusion_follows_what_was_learned():
    sampler = fl.LearnedUnigramSampler(30, expected_count="inclusion", seed=1)
    before = sampler.expected_count([0], 10)[0]
    sampler.update([0] * 100)
    assert sampler.expected_count([0], 10)[0] > 2 * before
    assert abs(sampler.expected_count(np.arange(30), 10).sum() - 10) < 1e-11
