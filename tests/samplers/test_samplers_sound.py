"""Samplers under interrupts, forks and hostile arguments: nothing locked, half done, endless or unnamed."""

import hashlib
import os
import random
import signal
import struct
import threading
import time
import warnings
from contextlib import contextmanager

import mpmath
import numpy as np
import pytest

import fastloss as fl
from fastloss._native import samplers as kernels
from fastloss.samplers import samplers as _samplers

needs_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Interrupted(BaseException):  # as KeyboardInterrupt, which pytest would take for the user's
    pass


@contextmanager
def interrupted_after(seconds):
    """Raises after so many seconds of this process's own time, so that other processes do not count."""

    def handler(*_):
        raise Interrupted

    old = signal.signal(signal.SIGPROF, handler)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


# --- interrupts ------------------------------------------------------------------------------------------------------


@needs_signals
@pytest.mark.parametrize("inclusion", ["tries", "inclusion"])
def test_thousands_of_interrupts_leave_no_half_call(inclusion):
    inside = False

    def handler(*_):
        if inside:
            raise Interrupted

    n, size = 50, 3
    sampler = fl.LearnedUnigramSampler(n, seed=1, expected_count=inclusion)
    true = np.array([[1], [7]])
    moments = random.Random(5)
    hits = 0
    old = signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + 60
    try:
        while hits < (4000 if inclusion == "tries" else 300) and time.monotonic() < end:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 3e-5 if inclusion == "tries" else 3e-3))
            try:
                inside = True
                for _ in range(30):
                    sampler.candidates(true, size, False)
                    sampler.candidates(true, size)
                    sampler.update([3, 4])
                inside = False
            except Interrupted:
                inside = False
                hits += 1
                assert sampler._lock.acquire(timeout=1), "locked for ever"
                sampler._lock.release()
                state = sampler.state
                calls = state["block"] // (512 * size)
                counts = state["counts"]
                assert counts[1] == counts[7] == 1 + calls  # learned in the same step as the stream went on
                assert counts[3] == counts[4]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert hits > 100


def one_row_of_hits():
    true, sampled = np.full((1, 4000), 7), np.full(100_000, 7)
    return lambda: fl.compute_accidental_hits(true, sampled, 4000)


def skewed_negatives():
    sampler = fl.FixedUnigramSampler(np.r_[1e12, np.ones(10**6)], seed=1)
    return lambda: fl.sample_negatives(sampler, [[5]], 10**5, n_threads=1)


def race(monkeypatch):
    monkeypatch.setattr(_samplers, "try_limit", lambda *_: 0)
    sampler = fl.LogUniformSampler(4 * 10**6, seed=1)
    return lambda: sampler.sample(4 * 10**6)


def many_updates():
    sampler = fl.LearnedUnigramSampler(3 * 10**6, seed=1)
    ids = np.random.default_rng(0).integers(0, 3 * 10**6, 3 * 10**7)
    return lambda: sampler.update(ids)


def many_trues():
    sampler = fl.LearnedUnigramSampler(10**6, seed=1)
    ids = np.random.default_rng(0).integers(0, 10**6, 2 * 10**7)
    return lambda: sampler.candidates(ids, 10)


def many_counts():
    sampler = fl.LogUniformSampler(10**9, seed=1)
    return lambda: sampler.candidates([0], 10**8, False)


def many_ids():
    sampler = fl.LogUniformSampler(10**9, seed=1)
    ids = np.arange(10**8, dtype=np.int32)
    return lambda: sampler.probability(ids)


def alias_draws():
    table = fl.AliasTable(np.random.default_rng(0).random(2 * 10**7))
    return lambda: table.sample(10**8, 1, n_threads=1)


def alias_build():
    weights = np.random.default_rng(0).random(5 * 10**7)
    return lambda: fl.AliasTable(weights)


def float_build():
    weights = np.random.default_rng(0).random(2 * 10**7)
    return lambda: fl.FixedUnigramSampler(weights, distortion=0.75)


def inclusion():
    sampler = fl.LogUniformSampler(10**9, expected_count="inclusion")
    return lambda: [sampler.expected_count([0], k) for k in range(2, 1000)]


LONG = {
    "hits": (one_row_of_hits, 0.1),
    "negatives": (skewed_negatives, 0.1),
    "race": (race, 0.1),
    "race, in order": (race, 0.8),
    "update": (many_updates, 0.2),
    "candidates": (many_trues, 0.2),
    "counts": (many_counts, 0.2),
    "counts, later": (many_counts, 1.0),
    "probability": (many_ids, 0.1),
    "draws": (alias_draws, 0.1),
    "build": (alias_build, 0.05),
    "build, later": (alias_build, 0.3),
    "float build": (float_build, 0.1),
    "inclusion": (inclusion, 0.1),
}


@needs_signals
@pytest.mark.parametrize("name", LONG)
def test_long_calls_hear_interrupts(name, monkeypatch):
    make, after = LONG[name]
    call = make(monkeypatch) if make is race else make()
    sampler = next((c.cell_contents for c in call.__closure__ or () if hasattr(c.cell_contents, "state")), None)
    before = sampler.state if sampler is not None else {}
    start = time.process_time()
    with interrupted_after(after), pytest.raises(Interrupted):
        call()
    assert time.process_time() - start < after + 0.6  # 0.2 but for poisoned memory and slow machines
    for key, value in before.items():
        assert np.array_equal(value, sampler.state[key])


@needs_signals
def test_an_update_of_a_much_larger_range_stops_at_some_place():
    n = 10**7
    sampler = fl.LearnedUnigramSampler(n, seed=1)
    ids = np.arange(2 * 10**6)
    with interrupted_after(0.01), pytest.raises(Interrupted):
        [sampler.update(ids) for _ in range(1000)]
    counts = sampler.counts
    steps = np.flatnonzero(np.diff(counts))  # those before the place have one more
    assert len(steps) in (0, 1, 2)
    assert counts.max() - counts[: ids.size].min() <= 1
    assert counts.sum() - n == sampler._tree[-1]


# --- forks -----------------------------------------------------------------------------------------------------------


@needs_fork
@pytest.mark.filterwarnings("ignore:This process")
@pytest.mark.parametrize("true", [1, 1000, 50_000])
def test_a_child_can_draw_while_the_parent_does(true):
    n, size = 3000, 2000
    sampler = fl.LearnedUnigramSampler(n, seed=1)
    ids = np.arange(true) % n
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            sampler.candidates(ids, size)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(40):
            time.sleep(random.random() * 1e-3)
            child = os.fork()
            if child == 0:
                signal.alarm(10)  # the system kills a child that waits for ever
                sampler.sample(3)
                state = sampler.state
                calls = (state["block"] - 512 * 3) // (512 * size)
                whole = state["counts"].sum() - n == calls * true and (sampler._tree[-1] == calls * true)
                os._exit(0 if whole else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
    assert sampler.sample(3).size == 3


@needs_fork
@pytest.mark.filterwarnings("ignore:This process")
def test_a_fork_inside_a_call_leaves_both_samplers_usable():
    sampler = fl.UniformSampler(100, seed=1)
    with sampler._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
    if child == 0:
        os._exit(0 if sampler.sample(3).size == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert sampler.sample(3).size == 3


def test_samplers_that_are_gone_are_forgotten():
    before = len(_samplers._alive)
    for _ in range(1000):
        fl.UniformSampler(3)
    assert len(_samplers._alive) <= before + 1


# --- inclusion probabilities -----------------------------------------------------------------------------------------


def test_the_gauss_rule_is_our_own(monkeypatch):
    monkeypatch.setattr(np.polynomial.legendre, "leggauss", None)
    fl.LogUniformSampler(50, expected_count="inclusion").expected_count([0], 10)
    nodes, weights = kernels.gauss()
    bits = struct.pack("<32d", *nodes, *weights)
    assert hashlib.sha256(bits).hexdigest() == "8f75327ff738455172624daf4b62fec92056847dc4aea75d02b761badc8e163c"
    with mpmath.workdps(40):
        for k, (x, w) in enumerate(zip(nodes, weights, strict=True)):
            guess = mpmath.cos(mpmath.pi * (4 * (16 - k) - 1) / 130)
            exact = mpmath.findroot(lambda t: mpmath.legendre(32, t), guess)
            assert x == float(exact)
            assert w == float(2 * (1 - exact**2) / (32 * mpmath.legendre(31, exact)) ** 2)


@pytest.mark.parametrize("wanted", [1, 10, 1000, 100_000, 1_500_000])
def test_groups_of_ids_are_as_good_as_single_ones(wanted):
    n = 3 * 10**6
    law = (kernels.LAWS["log_uniform"], n, None, None, 0.0)
    ids = np.unique(np.geomspace(1, n, 2000).astype(int) - 1)
    found = []
    for single in (n, 2**16, 2**12):
        times, out = np.empty(2**15 + 2), np.empty(ids.size)
        x, used = kernels.inclusion_times(law, wanted, times, single)
        kernels.measure(law, ids, out, kernels.MEASURES["inclusion"], x, times[:used].copy())
        found.append(out)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-7)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6)


@needs_signals
@pytest.mark.parametrize("n", [2**24 + 1, 2**40, 2**63 - 1])
def test_inclusion_in_any_range_takes_a_bounded_time(n):
    sampler = fl.LogUniformSampler(n, expected_count="inclusion")
    ids = np.arange(10**6)
    with interrupted_after(15):
        one, two = (sampler.expected_count(ids, k) for k in (1, 2))
        many = [sampler.expected_count(ids, k) for k in (50, 4000, 10**6)]
    p = sampler.probability(ids)
    np.testing.assert_allclose(one, p, atol=1e-4)
    second = p / (1 - p)  # of the second draw after the first was u, summed over u: beyond a million they add nothing
    exact = p * (1 + (1 + (p * second).sum()) - second)
    np.testing.assert_allclose(two, exact, atol=1e-4)
    for pi in many:
        assert 0 <= pi.min() <= pi.max() <= 1
        assert (np.diff(pi) <= 1e-9).all()


@needs_signals
@pytest.mark.parametrize("wanted", [100, 10**5])
def test_inclusion_of_a_huge_range_sums_to_the_sample(wanted):
    n = 2**50
    sampler = fl.LogUniformSampler(n, expected_count="inclusion")
    first = np.arange(2**16)
    edges = np.unique(np.geomspace(2**16, n, 60_000).astype(np.int64))
    middles = (edges[1:] + edges[:-1]) // 2
    with interrupted_after(15):
        total = sampler.expected_count(first, wanted).sum()
        total += (sampler.expected_count(middles, wanted) * np.diff(edges)).sum()
    assert abs(total / wanted - 1) < 1e-6


def test_learned_ranges_that_would_take_too_long_are_refused():
    with pytest.raises(ValueError, match=r"range_max must lie in \[1, 2147483648\], got 2147483649"):
        fl.LearnedUnigramSampler(2**31 + 1, expected_count="inclusion")


# --- vocabulary files ------------------------------------------------------------------------------------------------

F = fl.FixedUnigramSampler


@needs_signals
@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (0, TypeError, "vocab_file must be a path, a str or os.PathLike, got 0"),
        (1, TypeError, "vocab_file must be a path"),
        (True, TypeError, "vocab_file must be a path, a str or os.PathLike, got True"),
        (None, TypeError, "vocab_file must be a path"),
        (b"x", TypeError, "vocab_file must be a path"),
        ("a\0b", ValueError, r"vocab_file must be a name that a file can have, got 'a\\x00b'"),
        ("/dev/zero", ValueError, "vocab_file must be a regular file, got a device, '/dev/zero'"),
        (".", ValueError, "vocab_file must be a regular file, got a directory"),
    ],
)
def test_only_regular_files_are_read(what, error, message):
    with interrupted_after(2), pytest.raises(error, match=message):
        F(vocab_file=what)


@needs_signals
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe\n\x1b[31m")

    def handler(*_):
        raise Interrupted

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 3)
    try:
        with pytest.raises(ValueError, match="vocab_file must be a regular file, got a FIFO") as caught:
            F(vocab_file=tmp_path / "pipe\n\x1b[31m")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n" + "9" * 10**7, r"vocab_file must have lines of at most 65536 characters, got '99.*99' at line 2$"),
        ("a,1\nb," + "x" * 1000, r"vocab_file must end each line with a number, got 'xx.{,70}xx' at line 2$"),
        ("a,\x1b[31m\a", r"got '\\x1b\[31m\\x07' at line 1$"),
        ("1\n2\n-3", r"vocab_file must hold counts that are finite and not negative, got '-3' at line 3$"),
        ("1\n1e999", r"vocab_file must hold counts that are finite and not negative, got '1e999' at line 2$"),
    ],
)
def test_bad_lines_are_named_and_short(tmp_path, content, message):
    (tmp_path / "vocab").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        F(vocab_file=tmp_path / "vocab")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_file_may_not_hold_more_entries_than_there_are_ids(tmp_path):
    (tmp_path / "vocab").write_text("1\n2\n\n3\n")
    with pytest.raises(ValueError, match=r"vocab_file must hold at most 2 entries.* at line 4$"):
        fl.fixed_unigram_candidate_sampler([[0]], 1, 1, False, 2, vocab_file=tmp_path / "vocab")
    got = fl.fixed_unigram_candidate_sampler([[0]], 1, 4, False, 3, vocab_file=tmp_path / "vocab")
    assert got.true_expected_count == 4 / 6


# --- arguments -------------------------------------------------------------------------------------------------------

U = fl.UniformSampler(10, seed=1)
L = fl.LearnedUnigramSampler(10, seed=1)
T = fl.AliasTable([1, 2, 3])
MASKED = np.ma.array([1, 2, 3], mask=[0, 1, 0])
HITS = fl.compute_accidental_hits
LOG = fl.log_uniform_candidate_sampler


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *(
            (call, TypeError, "must be a plain array, got a masked one")
            for call in (
                lambda: F(MASKED),
                lambda: fl.AliasTable(MASKED),
                lambda: U.probability(MASKED),
                lambda: U.probability([MASKED]),
                lambda: U.expected_count(MASKED, 3, False),
                lambda: U.candidates(MASKED, 3),
                lambda: L.update(MASKED),
                lambda: F([1, 1, 1, 1]).global_ids(MASKED),
                lambda: fl.sample_negatives(U, MASKED[:, None], 2),
                lambda: fl.sample_negatives(U, ([0, 3], MASKED), 2),
                lambda: fl.sample_negatives(U, (MASKED, [1, 2, 3]), 2),
                lambda: HITS(MASKED[:, None], [1], 1),
                lambda: HITS([[1]], MASKED, 1),
                lambda: LOG(MASKED[:, None], 1, 2, True, 9),
            )
        ),
        *(
            (lambda call=call, empty=empty: call(empty), TypeError, "must be integers, got dtype")
            for call in (U.probability, L.update, lambda e: U.candidates(e, 2), lambda e: HITS([[1]], e, 1))
            for empty in (np.empty(0, "U3"), np.empty(0, object), np.empty(0, complex), np.empty(0, "M8[s]"))
        ),
        (lambda: F(np.empty(0, "U3"), vocab_file="x"), TypeError, "unigrams must be real numbers"),
        (lambda: fl.AliasTable(["1.5"]), TypeError, "weights must be real numbers"),
        (lambda: F([1.0], distortion="1.5"), TypeError, "distortion must be a number, got '1.5'"),
        (lambda: F([1.0], distortion=1e300), ValueError, "distortion must lie in"),
        (lambda: U.expected_count([0], 3, tries="7"), TypeError, "tries must be a number, got '7'"),
        (lambda: U.expected_count([0], 3, tries=[7]), TypeError, "tries must be a number, got"),
        (lambda: U.sample(True), TypeError, "num_sampled must be an integer, got True"),
        (lambda: U.sample(np.True_), TypeError, "num_sampled must be an integer, got True"),
        (lambda: fl.UniformSampler(True), TypeError, "range_max must be an integer, got True"),
        (lambda: fl.LogUniformSampler(2.5), TypeError, "range_max must be an integer, got 2.5"),
        (lambda: fl.LogUniformSampler(2 + 0j), TypeError, "range_max must be an integer"),
        (lambda: F([1.0], num_reserved_ids=True), TypeError, "num_reserved_ids must be an integer, got True"),
        (lambda: F([1.0], num_shards=True), TypeError, "num_shards must be an integer, got True"),
        (lambda: F([1.0], shard=False), TypeError, "shard must be an integer, got False"),
        (lambda: T.sample(True), TypeError, "size must be an integer, got True"),
        (lambda: T.sample((2, True)), TypeError, "size must be an integer, got True"),
        (lambda: T.sample_unique(True), TypeError, "k must be an integer, got True"),
        (lambda: LOG([[0]], True, 2, True, 9), TypeError, "num_true must be an integer, got True"),
        (lambda: HITS([[0]], [1], True), TypeError, "num_true must be an integer, got True"),
        (lambda: fl.sample_negatives(U, [[0]], True), TypeError, "num_sampled must be an integer, got True"),
        (lambda: fl.UniformSampler(9, expected_count=[1]), ValueError, "expected_count must be one of"),
        (lambda: fl.UniformSampler(9, seed=Unshowable()), TypeError, "seed must be something that"),
        (lambda: fl.UniformSampler(9, seed=MASKED), TypeError, "seed must be something that"),
        (lambda: T.sample(3, seed="x" * 10**6), TypeError, "seed must be something that"),
        (lambda: U.sample("x" * 10**6), TypeError, "num_sampled must be an integer, got 'xx"),
        (lambda: U.sample(Unshowable()), TypeError, "num_sampled must be an integer, got"),
        (lambda: U.sample(10**5000), ValueError, "num_sampled must lie in"),
        (lambda: U.sample(3, "x" * 10**6), TypeError, "unique must be a bool, got 'xx"),
        (lambda: setattr(U, "state", 3), TypeError, "state must be a dict, got 3"),
        (lambda: setattr(U, "state", {**U.state, "last": 3}), TypeError, r"state['last'] must be None or"),
        (lambda: setattr(U, "state", {**U.state, "last": (3, True, "x")}), TypeError, "tries in state['last'] must be"),
        (lambda: setattr(U, "state", {**U.state, "last": (True, True, 3)}), TypeError, "num_sampled in state['last']"),
        (lambda: setattr(U, "state", {**U.state, "key": "1"}), TypeError, "state['key'] must be an integer, got '1'"),
        (lambda: setattr(U, "state", {**U.state, "sampler": 3}), ValueError, "state['sampler'] must be one of"),
        (lambda: setattr(L, "state", {**L.state, "counts": MASKED}), TypeError, "state['counts'] must be a plain"),
        (lambda: setattr(L, "state", {**L.state, "counts": [1] * 9 + [0]}), ValueError, "got 0 at row 9"),
    ],
)
def test_hostile_arguments(call, error, message):
    states = U.state, L.state.pop("block")
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250
    assert states == (U.state, L.state.pop("block"))


def test_unaligned_arrays():
    weights = np.arange(1.0, 50)
    odd = np.frombuffer(b"x" + weights.tobytes(), offset=1)
    assert not odd.flags.aligned
    assert (fl.AliasTable(odd).sample(50, 1) == fl.AliasTable(weights).sample(50, 1)).all()
    assert (F(odd, seed=1).sample(9) == F(weights, seed=1).sample(9)).all()
    ids = np.frombuffer(b"x" + np.arange(8).tobytes(), np.int64, offset=1)
    assert (U.probability(ids) == 0.1).all()
    assert fl.sample_negatives(U, (ids[:2], ids[1:2]), 2).shape == (1, 2)
    L.update(ids)


def test_sets_of_any_size():
    assert kernels.set_size(2**63 - 1, 2**63 - 1) == 2**57  # a bit for each id
    assert kernels.set_size(2**63 - 1, 2**61) == 2**57
    assert kernels.set_size(2**63 - 1, 1) == 8


@pytest.mark.parametrize("n", [1, 64, 511, 3000, 4096, 10**5, 10**6, 2**24 + 1, 2**40])
def test_a_set_of_more_ids_takes_no_fewer_words(n):
    """Scratch for the largest set of several serves them all."""
    sizes = [kernels.set_size(n, k) for k in (*range(1, 3000), *(2**b + d for b in range(12, 40) for d in (-1, 0, 1)))]
    assert sizes[:2999] == sorted(sizes[:2999])
    assert sizes[2999:] == sorted(sizes[2999:])


def test_no_warnings_are_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        U.candidates([[1]], 3)
        T.sample_unique(3, 1)
        fl.sample_negatives(U, [[1]], 2)


def test_many_learned_ids_are_those_of_a_few_at_a_time(monkeypatch):
    ids = np.random.default_rng(1).integers(0, 5000, 100_000)
    at_once, apart, wide = (fl.LearnedUnigramSampler(n, seed=1) for n in (5000, 5000, 10**6))
    at_once.update(ids)
    wide.candidates(ids, 3)
    for part in np.array_split(ids, 100):
        apart.update(part)
    assert (at_once._tree == apart._tree).all()
    assert (at_once.counts == np.bincount(ids, minlength=5000) + 1).all()
    assert (wide.counts[:5000] == at_once.counts).all()
    assert wide.state["block"] == 512 * 3
