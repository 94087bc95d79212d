"""The candidate samplers of laws that lie in memory: counts that are learned, and counts that are given."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _memory
from fastloss._draws import Floats, Ids, Law, Seed, as_array, as_finite, as_ids, as_integer
from fastloss._native import alias, unigram
from fastloss._samplers import LAWS, _Sampler


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
        super().__init__((LAWS["learned_unigram"], n, tree, None, 0.0), n, seed, expected_count)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = self.__dict__.copy()
            state["_law"] = (*self._law[:2], self._tree.copy(), *self._law[3:])
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        tree = _memory.aligned(self._tree.size, self._tree.dtype)
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
        counts = _memory.empty(self.range_max, np.int64, "counts")
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
        counts = np.array(state["counts"])  # a copy, which nobody changes after it was checked
        if counts.dtype.kind not in "iu":
            raise TypeError(f"state['counts'] must be integers, got dtype {counts.dtype}")
        if counts.shape != (self.range_max,) or counts.min() < 1 or float(counts.sum(dtype=float)) > 2.0**62:
            raise ValueError(f"state['counts'] must be {self.range_max} positive numbers, got {counts!r}")
        self._times = None
        self._count(counts.astype(np.int64, order="C", copy=False))


def _tree_for(n: int, added: int) -> NDArray[Any]:
    """A tree of counts that are all one, over n ids, with room for so many that are added."""
    wide = unigram.is_wide(n, added)
    size, dtype = unigram.tree_size(n, wide), np.dtype(np.int64 if wide else np.int32)
    _memory.room("range_max", n, size * dtype.itemsize, lazy=True)
    return _memory.aligned(size, dtype)


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
        return as_ids("ids", ids, self.range_max, own=False) * self._num_shards + self._shard


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
    _memory.room("num_reserved_ids", reserved, 40 * n)
    weights = _memory.empty(n)
    alias.float_weights(counts, distortion, reserved, weights)
    total, _, drawable, bad = alias.total_and_support(weights)
    if bad >= 0:
        raise ValueError(f"unigrams**distortion must be finite in float32, got {weights[bad]} for id {bad}")
    if not 0 < total * n < 3e38:
        raise ValueError(f"unigrams**distortion must have a sum in (0, 3e38/{n}), got {total}")
    table = _memory.aligned(2 * n, np.dtype(np.int64))
    alias.build_float(weights, _memory.empty(n), _memory.empty(n, np.int64), table)
    return (LAWS["fixed_unigram"], n, table, None, total), drawable
