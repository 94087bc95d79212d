"""Candidate samplers: objects that draw class ids, call after call, and know how often each id was to be expected."""

from __future__ import annotations

import os
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._draws import (
    Floats,
    Ids,
    Law,
    Seed,
    aligned,
    as_array,
    as_bool,
    as_finite,
    as_ids,
    as_int64,
    as_integer,
    finish,
    outside,
    resolve_seed,
    try_limit,
)
from fastloss._native import alias, samplers, unigram

_LAWS, _MEASURES, _INT64 = samplers.LAWS, samplers.MEASURES, np.dtype(np.int64)
_ALL = 2**64 - 1
_NONE: Any = object()  # instead of true classes: no counts are wanted; as a size: none yet
_sample, _empty, _new = samplers.sample, np.empty, tuple.__new__  # looked up once: a small call takes 4 us


def _blocks(num_sampled: int) -> int:
    """TensorFlow sets 2048 words of the stream aside for each id."""
    return 512 * num_sampled


class Candidates(NamedTuple):
    """What a candidate sampler returns, in TensorFlow's order."""

    sampled_candidates: Ids
    true_expected_count: Floats
    sampled_expected_count: Floats


class _Sampler:
    """A law on [0, range_max) and a place in a stream of random bits."""

    _law: Law
    _drawable: int  # ids of positive probability

    def __init__(self, law: Law, drawable: int, seed: Seed, expected_count: str) -> None:
        if expected_count not in ("tries", "inclusion"):
            raise ValueError(f"expected_count must be 'tries' or 'inclusion', got {expected_count!r}")
        self._law = law
        self._drawable = drawable
        self._inclusion = expected_count == "inclusion"
        self._key, self._stream = resolve_seed(seed)
        self._block = 0
        self._last: tuple[int, bool, float] | None = None
        self._times: tuple[int, float, Floats] | None = None
        self._size: tuple[int, bool, int, int] = _NONE, False, 0, 0  # what the last call asked for: see _checked
        self._lock = Lock()

    @property
    def range_max(self) -> int:
        """Ids lie in [0, range_max)."""
        return self._law[1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(range_max={self.range_max}{self._details()})"

    def _details(self) -> str:
        return ", expected_count='inclusion'" if self._inclusion else ""

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = self.__dict__.copy()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    @property
    def state(self) -> dict[str, Any]:
        """All that changes from call to call, as a dict; set it to go back to that point."""
        with self._lock:
            return self._state()

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        expected = self.state.keys()
        if not isinstance(state, dict) or state.keys() != expected or state["sampler"] != type(self).__name__:
            raise ValueError(
                f"state must be a {type(self).__name__}'s, with the keys {sorted(expected)}, got {state!r}"
            )
        words = [as_integer(f"state[{name!r}]", state[name], 0, 2**64 - 1) for name in ("key", "stream", "block")]
        last = state["last"]
        if last is not None:
            num_sampled, unique, tries = last
            last = (as_integer("num_sampled", num_sampled, 1), as_bool("unique", unique), _as_tries(tries, num_sampled))
        with self._lock:
            self._restore(state)
            self._key, self._stream, self._block = words
            self._last = last

    def _state(self) -> dict[str, Any]:
        return {
            "sampler": type(self).__name__,
            "key": self._key,
            "stream": self._stream,
            "block": self._block,
            "last": self._last,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Takes from a state what only this sampler has; raises before it changes anything."""

    def sample(self, num_sampled: int, unique: bool = True) -> Ids:
        """Draw ids; the next call goes on in the stream.

        Parameters
        ----------
        num_sampled : int
            How many.
        unique : bool
            Whether to draw until there are num_sampled different ids, in the order of their first draw.  It always
            ends: where skipping repeats takes too long (more than 1024 draws per id wanted, or 65536 and 64 per class),
            an exponential race over the ids that are left goes on with the same law.

        Returns
        -------
        ndarray of int64, shape [num_sampled]

        Raises
        ------
        TypeError
            If num_sampled is not an integer, or unique not a bool.
        ValueError
            If num_sampled is not positive, or fewer different ids than that can be drawn.
        """
        return self.candidates(_NONE, num_sampled, unique)[0]

    def _checked(self, num_sampled: int, unique: bool) -> tuple[int, bool, int, int]:
        """A request for a sample, how many draws it may take, and how much of the stream is set aside for it."""
        size, distinct = as_integer("num_sampled", num_sampled, 1), as_bool("unique", unique)
        if distinct and size > self._drawable:
            raise ValueError(
                f"num_sampled must be at most {self._drawable}, the number of ids that can be drawn, "
                f"when they are to be unique, got {size}"
            )
        return size, distinct, try_limit(self._law[1], size) if distinct else size, _blocks(size)

    def _reserve(self, num_sampled: int) -> tuple[int, int, int]:
        """The place in the stream for one call."""
        block = self._block
        self._block = block + _blocks(num_sampled) & _ALL
        return self._key, self._stream, block

    def probability(self, ids: ArrayLike) -> Floats:
        """Probability of each id in one draw, float64, in the shape of ids.

        Raises
        ------
        TypeError, ValueError
            If ids are not integers in [0, range_max).
        """
        return self._measure(as_ids("ids", ids, self.range_max), _MEASURES["probability"], 0.0)

    def _measure(self, ids: Ids, what: int, x: float, times: Floats | None = None) -> Floats:
        out = np.empty(ids.shape)
        samplers.measure(self._law, ids, out, what, x, times)
        return out

    def expected_count(
        self,
        ids: ArrayLike,
        num_sampled: int | None = None,
        unique: bool = True,
        tries: float | None = None,
    ) -> Floats:
        """How often each id is to be expected in a sample, by default in that of the last call.

        With ``P`` an id's probability, K = num_sampled and n = tries: ``K P`` if not unique; if unique, ``K P`` where
        n = K and else ``1 - (1 - P)**n``, TensorFlow's formula, which takes the number of draws for given; or, for a
        sampler made with ``expected_count="inclusion"``, the probability that a unique sample holds the id:
        ``integral of P exp(-P t) S(t) dt``, S(t) the probability that fewer than K other ids have come by t when each
        comes at the rate of its P.  They are at most 1 and sum to K; against the integral done exactly they are off by
        at most 0.0003, and 0.0001 for log-uniform ids.  For the uniform law they are exact, ``K/range_max``.  The
        first call for a size takes 50 ms for a range of a million.

        Parameters
        ----------
        ids : array_like of int
        num_sampled, unique, tries : optional
            Of another sample than the last: its size, whether it is unique, and how many draws it took (needed only
            for unique samples and TensorFlow's formula).

        Returns
        -------
        ndarray of float64, in the shape of ids

        Raises
        ------
        TypeError, ValueError
            If ids are not integers in [0, range_max); if there was no sample, or its description makes no sense.
        """
        array = as_ids("ids", ids, self.range_max)
        if num_sampled is None:
            return self._expected(array)
        num_sampled = as_integer("num_sampled", num_sampled, 1)
        if not as_bool("unique", unique):
            return self._expected(array, (num_sampled, False, num_sampled))
        if num_sampled > self._drawable:
            raise ValueError(f"num_sampled must be at most {self._drawable} when unique, got {num_sampled}")
        return self._expected(array, (num_sampled, True, 0 if self._inclusion else _as_tries(tries, num_sampled)))

    def _expected(self, ids: Ids, sample: tuple[int, bool, float] | None = None) -> Floats:
        """Expected counts in a sample, by default the last one: how many ids, whether unique, in how many draws."""
        sample = sample or self._last
        if sample is None:
            raise ValueError("num_sampled must be given before the first sample, got None")
        num_sampled, unique, tries = sample
        if unique and self._inclusion:
            return self._measure(ids, *self._included(num_sampled))
        if tries == num_sampled:
            return self._measure(ids, _MEASURES["count"], num_sampled)
        return self._measure(ids, _MEASURES["tries"], tries)

    def _included(self, num_sampled: int) -> tuple[int, float, Floats | None]:
        """What `_measure` needs to give the inclusion probabilities."""
        if num_sampled == self._drawable:
            return _MEASURES["inclusion"], 1.0, None
        known = self._times
        if known is None or known[0] != num_sampled:
            times = np.empty(2**15 + 2)
            x, used = samplers.inclusion_times(self._law, num_sampled, *np.polynomial.legendre.leggauss(32), times)
            known = self._times = num_sampled, x, times[:used].copy()
        return _MEASURES["inclusion"], *known[1:]

    def candidates(self, true_classes: ArrayLike, num_sampled: int, unique: bool = True) -> Candidates:
        """One call of TensorFlow's candidate sampler: a sample with the expected counts of true and sampled ids.

        Parameters
        ----------
        true_classes : array_like of int, any shape
            Their expected counts are given too; they do not change the draw, and may be drawn.  A learned sampler then
            adds one to the count of each.
        num_sampled, unique
            As in `sample`.

        Returns
        -------
        Candidates
            ``(sampled_candidates, true_expected_count, sampled_expected_count)``: int64 [num_sampled], float64 in the
            shape of true_classes, float64 [num_sampled].

        Raises
        ------
        TypeError, ValueError
            If true_classes are not integers in [0, range_max), and as `sample`; nothing is drawn or learned then.
        """
        # small calls count: this is one function, and does nothing that it need not
        true: Any = true_classes
        if not (type(true) is np.ndarray and true.dtype is _INT64 and true.flags.carray):  # as_int64's own shortcut
            true = None if true is _NONE else as_int64("true_classes", true)
        lock = self._lock
        lock.acquire()  # a third of what `with` costs
        try:
            size, distinct, limit, blocks = self._size
            if num_sampled is not size or unique is not distinct:  # the same objects as last time need no check
                size, distinct, limit, blocks = self._size = self._checked(num_sampled, unique)
            out = _empty(size, _INT64)
            of_true = counts = None
            if true is not None and not (distinct and self._inclusion):
                of_true, counts = _empty(true.shape), _empty(size)
            law, key, stream, block = self._law, self._key, self._stream, self._block
            bad, filled, tries, learned = _sample(
                law, key, stream, block, out, distinct, limit, true, of_true, counts
            )
            if bad >= 0:
                raise outside("true_classes", true_classes, self.range_max, bad)
            if filled < size:
                tries, counts = tries + finish(law, key, stream, block, out, filled), None
            self._block = block + blocks & _ALL
            self._last = size, distinct, tries
            if true is not None:
                if counts is None:
                    of_true, counts = self._expected(true), self._expected(out)
                if not learned:
                    self._learn(true)
        finally:
            lock.release()
        return _new(Candidates, (out, of_true, counts))  # a quarter of what NamedTuple's own constructor costs

    def _learn(self, ids: Ids) -> None:
        """What a sampler does with the true classes that it has seen; the caller holds the lock."""


class UniformSampler(_Sampler):
    """Draws each id in [0, range_max) with the same probability.

    Parameters
    ----------
    range_max : int
        At least 1.
    seed : optional
        Whatever `numpy.random.default_rng` takes; for an integer the ids are TensorFlow's, call after call.
    expected_count : {"tries", "inclusion"}
        Which expected counts of unique samples to give; see `expected_count`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or range.

    Notes
    -----
    Samplers pickle, copy, and give and take their `state`; threads may share one.
    Source: TensorFlow, ``tf.random.uniform_candidate_sampler``.

    Examples
    --------
    >>> sampler = UniformSampler(50, seed=7)
    >>> sampler.sample(3), sampler.sample(3)
    (array([39, 49, 38]), array([12,  6, 29]))
    >>> sampler.expected_count([0])
    array([0.06])
    """

    def __init__(self, range_max: int, *, seed: Seed = None, expected_count: str = "tries") -> None:
        n = as_integer("range_max", range_max, 1)
        super().__init__((_LAWS["uniform"], n, None, None, 0.0), n, seed, expected_count)

    def _included(self, num_sampled: int) -> tuple[int, float, Floats | None]:
        return _MEASURES["count"], num_sampled, None


class LogUniformSampler(_Sampler):
    """Draws id v in [0, range_max) with probability ``log((v + 2)/(v + 1))/log(range_max + 1)``, nearly Zipf's law.

    It fits ids sorted by falling frequency.

    Parameters
    ----------
    range_max : int
        At least 1.  Beyond 2**52 not every id can be drawn.
    seed, expected_count : optional
        As for `UniformSampler`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or range.

    Notes
    -----
    Source: TensorFlow, ``tf.random.log_uniform_candidate_sampler``.

    Examples
    --------
    >>> sampler = LogUniformSampler(2**40, seed=1)
    >>> sampler.sample(3)
    array([96646399659,       73424,   173115944])
    """

    def __init__(self, range_max: int, *, seed: Seed = None, expected_count: str = "tries") -> None:
        n = as_integer("range_max", range_max, 1)
        super().__init__((_LAWS["log_uniform"], n, None, None, 0.0), n, seed, expected_count)


class LearnedUnigramSampler(_Sampler):
    """Draws ids in [0, range_max) in proportion to counts that begin at one and grow with the ids that were seen.

    A draw and an update take time in proportion to log(range_max).

    Parameters
    ----------
    range_max : int
        At least 1, at most 2**40.  Memory: 4.3 bytes per id, or 9.2 where there are more than 2**28 ids or 1.8e9 counts
        were added; the system gives only what is used.
    seed, expected_count : optional
        As for `UniformSampler`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or range.

    Notes
    -----
    Counts are 64-bit numbers; TensorFlow stops to learn when their sum reaches 2**31 - 1.
    Source: TensorFlow, ``tf.random.learned_unigram_candidate_sampler``.

    Examples
    --------
    >>> sampler = LearnedUnigramSampler(4, seed=0)
    >>> sampler.update([2, 2, 0])
    >>> sampler.counts
    array([2, 1, 3, 1])
    >>> sampler.probability([2]) * 7
    array([3.])
    """

    _added = 0  # ids that had been when inclusion times were last computed

    def __init__(self, range_max: int, *, seed: Seed = None, expected_count: str = "tries") -> None:
        n = as_integer("range_max", range_max, 1, 2**40)
        tree = _tree_for(n, 0)
        super().__init__((_LAWS["learned_unigram"], n, tree, None, 0.0), n, seed, expected_count)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = self.__dict__.copy()
            state["_law"] = (*self._law[:2], self._tree.copy(), *self._law[3:])
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        tree = aligned(self._tree.size, self._tree.dtype)
        tree[:] = self._tree
        self._law = (*self._law[:2], tree, *self._law[3:])

    @property
    def _tree(self) -> NDArray[Any]:
        tree = self._law[2]
        assert tree is not None
        return tree

    @property
    def counts(self) -> Ids:
        """A copy of the counts, int64 [range_max]."""
        with self._lock:
            return self._counts()

    def _counts(self) -> Ids:
        counts = np.empty(self.range_max, np.int64)
        unigram.tree_counts(self._tree, counts)
        return counts

    def update(self, ids: ArrayLike) -> None:
        """Add one to the count of each id, as often as it occurs.

        Raises
        ------
        TypeError, ValueError
            If ids are not integers in [0, range_max); no count is changed then.
        """
        array = as_ids("ids", ids, self.range_max)
        with self._lock:
            self._learn(array)

    def _learn(self, ids: Ids) -> None:
        if not unigram.tree_add(self._tree, self.range_max, ids):
            self._count(self._counts(), ids.size)
            unigram.tree_add(self._tree, self.range_max, ids)

    def _count(self, counts: Ids, more: int = 0) -> None:
        """Makes these the counts, in a tree with room for so many more."""
        tree = _tree_for(counts.size, int(counts.sum()) - counts.size + more)
        unigram.tree_build(tree, counts)
        self._law = (*self._law[:2], tree, *self._law[3:])

    def _included(self, num_sampled: int) -> tuple[int, float, Floats | None]:
        added = int(self._tree[-1])
        if added != self._added:
            self._times, self._added = None, added
        return super()._included(num_sampled)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "counts": self._counts()}

    def _restore(self, state: dict[str, Any]) -> None:
        counts = np.asarray(state["counts"])
        if counts.dtype.kind not in "iu":
            raise TypeError(f"state['counts'] must be integers, got dtype {counts.dtype}")
        if counts.shape != (self.range_max,) or counts.min() < 1 or float(counts.sum(dtype=float)) > 2.0**62:
            raise ValueError(f"state['counts'] must be {self.range_max} positive numbers, got {counts!r}")
        self._times = None
        self._count(counts.astype(np.int64, order="C"))


def _tree_for(n: int, added: int) -> NDArray[Any]:
    """A tree of counts that are all one, over n ids, with room for so many that are added."""
    wide = unigram.is_wide(n, added)
    return aligned(unigram.tree_size(n, wide), np.dtype(np.int64 if wide else np.int32))


class FixedUnigramSampler(_Sampler):
    """Draws ids in proportion to given counts, raised to a power.

    Id v has the weight ``float32(count)**distortion``; reserved ids come first and have weight 0, so are never drawn.

    Parameters
    ----------
    unigrams : array_like of float, shape [m], optional
        Counts, finite and not negative.  Either this or vocab_file must be given.
    vocab_file : path, optional
        Text file with one entry per line, its count the last of its fields, which commas separate.  Blank lines do not
        count.
    distortion : float
        The power: 1 leaves the counts, 0 makes all listed ids equal, word2vec takes 0.75.
    num_reserved_ids : int
        How many ids, from 0 on, come before the entries.
    num_shards, shard : int
        Keep only the ids v with ``v % num_shards == shard``.  The sampler's own ids are then places within the shard:
        id j stands for ``j*num_shards + shard``, which `global_ids` computes.  With reserved ids TensorFlow starts to
        count the entries at the wrong number, so that some belong to two shards and others to none; here every id,
        reserved or not, belongs to exactly one.
    seed, expected_count : optional
        As for `UniformSampler`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or range, if a count is negative or not finite, if a line of the file does not
        end in a number, or if no id has weight.
    OSError
        If the file cannot be read.

    Notes
    -----
    So that ids are TensorFlow's, draws use its alias table, which is in float32: probabilities are right to about
    2**-23/range_max, and for very many ids to the rounding of a float32 sum.  `AliasTable` is exact.
    Source: TensorFlow, ``tf.random.fixed_unigram_candidate_sampler``.

    Examples
    --------
    >>> sampler = FixedUnigramSampler([1, 2, 5], num_reserved_ids=1, seed=0)
    >>> sampler.range_max, sampler.probability([0, 1, 2, 3])
    (4, array([0.   , 0.125, 0.25 , 0.625]))
    """

    def __init__(
        self,
        unigrams: ArrayLike = (),
        *,
        vocab_file: str | os.PathLike[str] = "",
        distortion: float = 1.0,
        num_reserved_ids: int = 0,
        num_shards: int = 1,
        shard: int = 0,
        seed: Seed = None,
        expected_count: str = "tries",
    ) -> None:
        counts = _counts(unigrams, vocab_file)
        reserved = as_integer("num_reserved_ids", num_reserved_ids, 0, 2**31 - 1)
        self._num_shards = as_integer("num_shards", num_shards, 1)
        self._shard = as_integer("shard", shard, 0, self._num_shards - 1)
        self._reserved, self._distortion = reserved, as_finite("distortion", distortion)
        mine = np.ascontiguousarray(counts[(self._shard - reserved) % self._num_shards :: self._num_shards])
        kept = len(range(self._shard, reserved, self._num_shards))
        law, drawable = _fixed_law(mine, kept, self._distortion)
        super().__init__(law, drawable, seed, expected_count)

    def _details(self) -> str:
        given = {
            "distortion": (self._distortion, 1.0),
            "num_reserved_ids": (self._reserved, 0),
            "num_shards": (self._num_shards, 1),
            "shard": (self._shard, 0),
        }
        return "".join(f", {k}={v}" for k, (v, usual) in given.items() if v != usual) + super()._details()

    def global_ids(self, ids: ArrayLike) -> Ids:
        """The ids in the whole vocabulary of ids in this shard: ``ids*num_shards + shard``.

        Raises
        ------
        TypeError, ValueError
            If ids are not integers in [0, range_max).
        """
        return as_ids("ids", ids, self.range_max) * self._num_shards + self._shard


def _counts(unigrams: ArrayLike, vocab_file: str | os.PathLike[str]) -> Floats:
    """The counts of all entries, from either source."""
    given = as_array("unigrams", unigrams)
    if bool(given.size) == bool(vocab_file):
        raise ValueError("unigrams or vocab_file must be given, and not both")
    if vocab_file:
        counts = _read_counts(vocab_file)
    else:
        if given.dtype.kind not in "biuf":
            raise TypeError(f"unigrams must be real numbers, got dtype {given.dtype}")
        if given.ndim != 1:
            raise ValueError(f"unigrams must be a vector, got shape {given.shape}")
        counts = np.ascontiguousarray(given, np.float64)
    bad = alias.total_and_support(counts)[3]
    if bad >= 0:
        raise ValueError(f"unigrams must be finite and not negative, got {counts[bad]} at row {bad}")
    return counts


def _read_counts(vocab_file: str | os.PathLike[str]) -> Floats:
    """The last field of each line that is not blank."""
    counts = []
    with open(vocab_file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            field = line.rsplit(",", 1)[-1].strip()
            if not line.strip():
                continue
            try:
                if "_" in field:
                    raise ValueError
                counts.append(float.fromhex(field) if "x" in field.lower() else float(field))
            except (ValueError, OverflowError):
                raise ValueError(
                    f"vocab_file must end each line with a number, got {field!r} at line {number}"
                ) from None
    if not counts:
        raise ValueError(f"vocab_file must hold at least one entry, got none in {os.fspath(vocab_file)!r}")
    return np.array(counts)


def _fixed_law(counts: Floats, reserved: int, distortion: float) -> tuple[Law, int]:
    """Law and number of drawable ids of one shard: reserved ids, then counts."""
    n = reserved + counts.size
    if not 1 <= n < 2**31:
        raise ValueError(f"unigrams must give the shard between 1 and 2**31 - 1 ids, got {n}")
    weights = np.empty(n)
    alias.float_weights(counts, distortion, reserved, weights)
    total, _, drawable, bad = alias.total_and_support(weights)
    if bad >= 0:
        raise ValueError(f"unigrams**distortion must be finite in float32, got {weights[bad]} for id {bad}")
    if not 0 < total * n < 3e38:
        raise ValueError(f"unigrams**distortion must have a sum in (0, 3e38/{n}), got {total}")
    table = aligned(2 * n, _INT64)
    alias.build_float(weights, np.empty(n), np.empty(n, np.int64), table)
    return (_LAWS["fixed_unigram"], n, table, None, total), drawable


def _as_tries(tries: float | None, num_sampled: int) -> float:
    """The number of draws that a unique sample took."""
    if tries is None:
        raise ValueError("tries must be given along with num_sampled for a unique sample, got None")
    if not tries >= num_sampled:
        raise ValueError(f"tries must be at least num_sampled = {num_sampled}, got {tries}")
    return float(tries)
