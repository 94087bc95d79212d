"""Candidate samplers: objects that draw class ids, call after call, and know how often each id was to be expected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
from numpy.typing import ArrayLike

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._native import samplers
from fastloss.samplers.draws import Floats, Ids, Law, Seed, Source, Stream, finish, try_limit

LAWS, _MEASURES, _INT64 = samplers.LAWS, samplers.MEASURES, np.dtype(np.int64)
_ALL = 2**64 - 1
_NONE: Any = object()  # instead of true classes: no counts are wanted; as a size: none yet
_sample, _empty, _new = samplers.sample, _memory.small, tuple.__new__  # looked up once: a small call takes 4 us


_alive: set[ref[_Sampler]] = set()
EXPECTED_COUNTS = ("tries", "inclusion")
_SINGLE = 2**24  # ids below it are summed one by one for inclusion probabilities


def _after_fork() -> None:
    """A thread that drew in the parent, and holds a lock, is not there in the child."""
    for alive in list(_alive):
        sampler = alive()
        if sampler is not None:
            sampler._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _after(block: int, num_sampled: int) -> int:
    """Where the next call begins in the stream: TensorFlow sets 2048 words aside for each id."""
    return block + 512 * num_sampled & _ALL


class Candidates(NamedTuple):
    """What a candidate sampler returns, in TensorFlow's order."""

    sampled_candidates: Ids
    true_expected_count: Floats
    sampled_expected_count: Floats


class _Sampler(Source):
    """A law on [0, range_max) and a place in a stream of random bits."""

    _keys: tuple[str, ...] = ("block", "key", "last", "sampler", "stream")  # of its state

    def __init__(self, law: Law, drawable: int, seed: Seed, expected_count: str) -> None:
        self._inclusion = check.choice("expected_count", expected_count, EXPECTED_COUNTS) == "inclusion"
        self._drawable = drawable
        # All that a call changes: law, key, stream and block (the place in the random bits), and the last sample (how
        # many ids, whether unique, in how many draws).  It is changed in one go, when all else is done, so that no
        # interrupt leaves half a call behind, and no fork that another thread makes takes one along.
        self._now: list[Any] = [law, *check.seed(seed), 0, None]
        self._times: tuple[int, float, Floats] | None = None
        self._size: tuple[int, bool, int] = _NONE, False, 0  # what the last call asked for: see _checked
        self._unlocked()

    @contextmanager
    def _opened(self, num_sampled: int, seed: Seed) -> Iterator[Stream]:
        with self._lock:  # `seed` is None: a sampler has its own stream
            law, key, stream, block, _ = self._now
            yield Stream(law, self._drawable, samplers.derive(key, stream, block))
            self._now[3] = _after(block, num_sampled)

    def _unlocked(self) -> None:
        self._lock = Lock()
        _alive.add(ref(self, _alive.discard))

    @property
    def _law(self) -> Law:
        law: Law = self._now[0]
        return law

    @property
    def range_max(self) -> int:
        """Ids lie in [0, range_max)."""
        return int(self._law.range_max)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(range_max={self.range_max}{self._details()})"

    def _details(self) -> str:
        return ", expected_count='inclusion'" if self._inclusion else ""

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = {**self.__dict__, "_now": self._now.copy()}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unlocked()

    @property
    def state(self) -> dict[str, Any]:
        """All that changes from call to call, as a dict; set it to go back to that point."""
        with self._lock:
            return self._state()

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        words, last = check.state(state, self._keys, type(self).__name__)
        with self._lock:
            law = self._restored(state)
            self._times = None
            self._now[:] = law, *words, last

    def _state(self) -> dict[str, Any]:
        _, key, stream, block, last = self._now
        return {"sampler": type(self).__name__, "key": key, "stream": stream, "block": block, "last": last}

    def _restored(self, state: dict[str, Any]) -> Law:
        """The law that a state stands for."""
        return self._law

    def sample(self, num_sampled: int, unique: bool = True) -> Ids:
        """Draw ids; the next call continues the stream.

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

    def _checked(self, num_sampled: int, unique: bool) -> tuple[int, bool, int]:
        """A request for a sample, and how many draws it may take."""
        size, distinct = check.sample_size(num_sampled, unique, self._drawable)
        _memory.room("num_sampled", size, 16 * size)
        if distinct:
            _memory.room("num_sampled", size, 16 * size + 8 * samplers.set_size(self.range_max, size))
        return size, distinct, try_limit(self.range_max, size) if distinct else size

    def probability(self, ids: ArrayLike) -> Floats:
        """Probability of each id in one draw, float64, in the shape of ids.

        Raises
        ------
        TypeError, ValueError
            If ids are not integers in [0, range_max).
        """
        law = self._law
        own = law.table is not None
        return self._measure(check.ids("ids", ids, law.range_max, own=own), _MEASURES["probability"], 0.0)

    def _measure(self, ids: Ids, what: int, x: float, times: Floats | None = None) -> Floats:
        out = _memory.empty(ids.shape)
        samplers.measure(self._now[0], ids, out, what, x, times)
        return out

    def expected_count(
        self,
        ids: ArrayLike,
        num_sampled: int | None = None,
        unique: bool = True,
        tries: float | None = None,
    ) -> Floats:
        """The expected number of times each id is in a sample, by default in the last one drawn.

        With ``P`` an id's probability, K = num_sampled and n = tries: ``K P`` if not unique; if unique, ``K P`` where
        n = K, otherwise ``1 - (1 - P)**n``, TensorFlow's formula, which takes the number of draws as given; or, for a
        sampler made with ``expected_count="inclusion"``, the probability that a unique sample holds the id:
        ``integral of P exp(-P t) S(t) dt``, S(t) the probability that fewer than K other ids have come by t when each
        comes at the rate of its P.  They are at most 1 and sum to K; they differ from the exact integral by at most
        0.0003, for log-uniform ids by 0.0001.  For the uniform law they are exact, ``K/range_max``.  The
        first call for a size takes 50 ms for a range of a million; of log-uniform ids, those from 2**24 on are taken in
        groups, so that it takes at most a second or two for any range.

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
        array = check.ids("ids", ids, self.range_max, own=self._law.table is not None)
        if num_sampled is None:
            return self._expected(array, *check.last_sample(self._now[4]))
        num_sampled, unique = check.sample_size(num_sampled, unique, self._drawable)
        drawn = check.tries(tries, num_sampled) if unique and not self._inclusion else num_sampled
        return self._expected(array, num_sampled, unique, drawn)

    def _expected(self, ids: Ids, num_sampled: int, unique: bool, tries: float) -> Floats:
        """Expected counts in a sample: of how many ids, whether unique, in how many draws."""
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
            single = _SINGLE if self._law.kind == LAWS["log_uniform"] else self.range_max
            times = _memory.empty(2**15 + 2)
            x, used = samplers.inclusion_times(self._law, num_sampled, times, single)
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
        if not (type(true) is np.ndarray and true.dtype is _INT64 and true.flags.carray):  # int64's own shortcut
            true = None if true is _NONE else check.int64("true_classes", true)
        with self._lock:
            size, distinct, limit = self._size
            if num_sampled is not size or unique is not distinct:  # the same objects as last time need no check
                size, distinct, limit = self._size = self._checked(num_sampled, unique)
            out = _empty(size, _INT64)
            of_true = counts = None
            if true is not None and not (distinct and self._inclusion):
                of_true, counts = _empty(true.shape), _empty(size)
            bad, filled, tries, done = _sample(self._now, out, distinct, limit, true, of_true, counts)
            if not done:
                if bad >= 0:
                    raise check.bad_id("true_classes", true_classes, true, self.range_max, bad)
                law, key, stream, block, _ = self._now
                if filled < size:
                    tries, counts = tries + finish(law, key, stream, block, out, filled), None
                if true is not None:
                    true = check.ids("true_classes", true, law.range_max)  # others may have changed it since
                    if counts is None:
                        of_true = self._expected(true, size, distinct, tries)
                        counts = self._expected(out, size, distinct, tries)
                self._advance(_after(block, size), (size, distinct, tries), true)
        return _new(Candidates, (out, of_true, counts))  # a quarter of what NamedTuple's own constructor costs

    def _advance(self, block: int, last: tuple[int, bool, float] | None, true: Ids | None) -> None:
        """Goes on to the next call, and learns these ids if it learns; the caller holds the lock."""
        self._now[3:] = block, last


class UniformSampler(_Sampler):
    """Draws each id in [0, range_max) with the same probability.

    Parameters
    ----------
    range_max : int
        At least 1.
    seed : optional
        Whatever `numpy.random.default_rng` takes, of at most 65536 numbers; for an integer the ids are TensorFlow's,
        call after call.
    expected_count : {"tries", "inclusion"}
        Which expected counts of unique samples to give; see `expected_count`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or range.

    Notes
    -----
    Samplers pickle, copy, and give and take their `state`; threads may share one.  A call that is interrupted leaves a
    sampler as it was before or as it is after the call, and a forked child can go on with its copy at once, whatever
    the parent's threads were doing.
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
        n = check.whole("range_max", range_max, 1)
        super().__init__(Law(LAWS["uniform"], n), n, seed, expected_count)

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
        n = check.whole("range_max", range_max, 1)
        super().__init__(Law(LAWS["log_uniform"], n), n, seed, expected_count)
