"""Candidate samplers: objects that draw class ids, call after call, and know how often each id was to be expected."""

from __future__ import annotations

from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastloss import _memory
from fastloss._draws import (
    Floats,
    Ids,
    Law,
    Seed,
    as_bool,
    as_ids,
    as_int64,
    as_integer,
    finish,
    outside,
    resolve_seed,
    try_limit,
)
from fastloss._native import samplers

LAWS, _MEASURES, _INT64 = samplers.LAWS, samplers.MEASURES, np.dtype(np.int64)
_ALL = 2**64 - 1
_NONE: Any = object()  # instead of true classes: no counts are wanted; as a size: none yet
_sample, _empty, _new = samplers.sample, _memory.small, tuple.__new__  # looked up once: a small call takes 4 us


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
        _memory.room("num_sampled", size, 16 * size)
        if distinct:
            _memory.room("num_sampled", size, 16 * size + 8 * samplers.set_size(self._law[1], size))
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
        return self._measure(
            as_ids("ids", ids, self.range_max, self._law[2] is not None), _MEASURES["probability"], 0.0
        )

    def _measure(self, ids: Ids, what: int, x: float, times: Floats | None = None) -> Floats:
        out = _memory.empty(ids.shape)
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
        array = as_ids("ids", ids, self.range_max, self._law[2] is not None)
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
            times = _memory.empty(2**15 + 2)
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
            bad, filled, tries, learned = _sample(law, key, stream, block, out, distinct, limit, true, of_true, counts)
            if bad >= 0:
                raise outside("true_classes", true_classes, self.range_max, bad)
            if filled < size:
                tries, counts = tries + finish(law, key, stream, block, out, filled), None
            self._block = block + blocks & _ALL
            self._last = size, distinct, tries
            if true is not None:
                if counts is None or not learned:
                    true = as_ids("true_classes", true, law[1])  # others may have changed it since
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
        super().__init__((LAWS["uniform"], n, None, None, 0.0), n, seed, expected_count)

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
        super().__init__((LAWS["log_uniform"], n, None, None, 0.0), n, seed, expected_count)


def _as_tries(tries: float | None, num_sampled: int) -> float:
    """The number of draws that a unique sample took."""
    if tries is None:
        raise ValueError("tries must be given along with num_sampled for a unique sample, got None")
    if not tries >= num_sampled:
        raise ValueError(f"tries must be at least num_sampled = {num_sampled}, got {tries}")
    return float(tries)
