"""The candidate samplers of laws that lie in memory: counts that are learned, and counts that are given."""

from __future__ import annotations

import os
import stat
from array import array as growing
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import memory as _memory
from fastloss._core.values import choice, shown
from fastloss._native import alias, samplers, unigram
from fastloss.samplers.draws import (
    NO_IDS,
    Floats,
    Ids,
    Law,
    Seed,
    as_finite,
    as_ids,
    as_int64,
    as_integer,
    as_weights,
    copied,
)
from fastloss.samplers.samplers import EXPECTED_COUNTS, LAWS, _Sampler

_FEW = 1 << 14  # ids that are learned without a look at pending signals
_ROWS = 2**31 - 1  # entries that a file may have
_LINE = 1 << 16  # characters of a line of it


class LearnedUnigramSampler(_Sampler):
    """Draws ids in [0, range_max) in proportion to counts that begin at one and grow with the ids that were seen.

    A draw and an update take time in proportion to log(range_max).

    Parameters
    ----------
    range_max : int
        At least 1, at most 2**40.  Memory: 4.3 bytes per id, or 9.2 where there are more than 2**28 ids or 1.8e9 counts
        were added; the system gives only what is used.
    seed, expected_count : optional
        As for `UniformSampler`; with "inclusion" range_max may be at most 2**31.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or range.

    Notes
    -----
    Counts are 64-bit numbers; TensorFlow stops to learn when their sum reaches 2**31 - 1.
    An interrupted call learns all its ids or none, except where there are more than 16384, and they take less than half
    the memory that the counts do: then those before some place.
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
    _keys = (*_Sampler._keys, "counts")

    def __init__(self, range_max: int, *, seed: Seed = None, expected_count: str = "tries") -> None:
        inclusion = choice("expected_count", expected_count, EXPECTED_COUNTS) == "inclusion"
        n = as_integer("range_max", range_max, 1, 2**31 if inclusion else 2**40)
        tree = _tree_for(n, 0)
        super().__init__(Law(LAWS["learned_unigram"], n, tree), n, seed, expected_count)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = {**self.__dict__, "_now": [_with(self._law, copied(self._tree, self._tree.dtype)), *self._now[1:]]}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._now[0] = _copy(self._law)

    @property
    def _tree(self) -> NDArray[Any]:
        return _tree(self._law)

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
            law, _, _, block, last = now = self._now
            if not samplers.advance(now, law, array, block, last):
                self._advance(block, last, array)

    def probability(self, ids: ArrayLike) -> Floats:
        with self._lock:
            return super().probability(ids)

    def expected_count(
        self, ids: ArrayLike, num_sampled: int | None = None, unique: bool = True, tries: float | None = None
    ) -> Floats:
        with self._lock:
            return super().expected_count(ids, num_sampled, unique, tries)

    def _advance(self, block: int, last: tuple[int, bool, float] | None, true: Ids | None) -> None:
        now, n, tree = self._now, self.range_max, self._tree
        ids = NO_IDS if true is None else true.reshape(-1)
        before = law = self._law
        if tree.itemsize == 4 and unigram.is_wide(n, int(tree[-1]) + ids.size):
            law = self._counted(self._counts(), ids.size)
        elif ids.size > _FEW and tree.nbytes <= 2 * ids.nbytes:
            law = _copy(law)  # an interrupt, or a fork, finds what was
        first, rest = 0, max(ids.size - _FEW, 0)
        while first < rest:
            some = ids[first : min(first + _FEW, rest)]
            if law is before:
                samplers.advance(now, law, some, now[3], now[4])
            else:
                unigram.tree_add(_tree(law), n, some)
            first += some.size
        samplers.advance(now, law, ids[rest:], block, last)

    def _counted(self, counts: Ids, more: int = 0) -> Law:
        """The law of these counts, in a tree with room for so many more."""
        tree = _tree_for(counts.size, int(counts.sum()) - counts.size + more)
        unigram.tree_build(tree, counts)
        return _with(self._law, tree)

    def _included(self, num_sampled: int) -> tuple[int, float, Floats | None]:
        added = int(self._tree[-1])
        if added != self._added:
            self._times, self._added = None, added
        return super()._included(num_sampled)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "counts": self._counts()}

    def _restored(self, state: dict[str, Any]) -> Law:
        counts = as_int64("state['counts']", state["counts"]).copy()  # nobody changes it after it was checked
        if counts.shape != (self.range_max,):
            raise ValueError(f"state['counts'] must have the shape ({self.range_max},), got shape {counts.shape}")
        if counts.min() < 1:
            row = int(np.argmax(counts < 1))
            raise ValueError(f"state['counts'] must lie in [1, 2**62], got {counts[row]} at row {row}")
        if float(counts.sum(dtype=float)) > 2.0**62:
            raise ValueError(f"state['counts'] must have a sum of at most 2**62, got {counts.sum(dtype=float):g}")
        return self._counted(counts)


def _tree(law: Law) -> NDArray[Any]:
    tree = law.table
    assert tree is not None
    return tree


def _with(law: Law, tree: NDArray[Any]) -> Law:
    return law._replace(table=tree)


def _copy(law: Law) -> Law:
    """The law with a tree of its own."""
    old = _tree(law)
    tree = _memory.aligned(old.size, old.dtype)
    for first in range(0, tree.size, 1 << 20):  # an interrupt is heard between two pieces
        tree[first : first + (1 << 20)] = old[first : first + (1 << 20)]
    return _with(law, tree)


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
    vocab_file : str or os.PathLike, optional
        Text file with one entry per line, its count the last of its fields, which commas separate.  Blank lines do not
        count.  It must be a regular file, of less than 2**31 lines of at most 65536 characters.
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
        end in such a count, or if no id has weight.
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
        counts = read_counts(unigrams, vocab_file)
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


def read_counts(unigrams: ArrayLike, vocab_file: str | os.PathLike[str], most: int = _ROWS) -> Floats:
    """The counts of all entries, from either source; a file may have so many."""
    given = as_weights("unigrams", unigrams)
    path = _path(vocab_file)
    if bool(given.size) == bool(path):
        raise ValueError("unigrams or vocab_file must be given, and not both")
    if path:
        return _read_counts(path, min(most, _ROWS))
    fits = given.dtype == np.float64 and given.flags.c_contiguous and given.flags.aligned
    counts = given if fits else copied(given, np.float64)
    bad = alias.total_and_support(counts)[3]
    if bad >= 0:
        raise ValueError(f"unigrams must be finite and not negative, got {counts[bad]} at row {bad}")
    return counts


def _path(vocab_file: Any) -> str:
    """A path as text."""
    if not isinstance(vocab_file, (str, os.PathLike)):
        raise TypeError(f"vocab_file must be a path, a str or os.PathLike, got {shown(vocab_file)}")
    try:
        path = os.fspath(vocab_file)
        if not isinstance(path, str):
            raise TypeError
    except Exception:  # __fspath__ may raise anything
        raise TypeError(f"vocab_file must be a path that is a str, got {shown(vocab_file)}") from None
    try:
        encoded = os.fsencode(path)
    except UnicodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ValueError(f"vocab_file must be a name that a file can have, got {shown(path)}")
    return path


def _open(path: str) -> TextIO:
    """A regular file.  Others are not even opened, for that may do something, or wait."""
    file = -1
    kind = os.stat(path)
    if stat.S_ISREG(kind.st_mode):
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        kind = os.fstat(file)
    if not stat.S_ISREG(kind.st_mode):
        if file >= 0:
            os.close(file)
        raise ValueError(f"vocab_file must be a regular file, got {_kind(kind.st_mode)}, {shown(path)}")
    return open(file, encoding="utf-8", errors="replace")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _read_counts(path: str, most: int) -> Floats:
    """The last field of each line that is not blank."""
    counts = growing("d")
    number = 0
    with _open(path) as file:
        while line := file.readline(_LINE + 1):
            number += 1
            if len(line) > _LINE or number > _ROWS:
                limit = f"lines of at most {_LINE} characters" if number <= _ROWS else f"at most {_ROWS} lines"
                raise ValueError(f"vocab_file must have {limit}, got {shown(line)} at line {number}")
            if not line.strip():
                continue
            field = line.rsplit(",", 1)[-1].strip()
            try:
                if "_" in field:
                    raise ValueError
                count = float.fromhex(field) if "x" in field.lower() else float(field)
            except (ValueError, OverflowError):
                rule = "vocab_file must end each line with a number"
                raise ValueError(f"{rule}, got {shown(field)} at line {number}") from None
            if not 0 <= count < np.inf:
                rule = "vocab_file must hold counts that are finite and not negative"
                raise ValueError(f"{rule}, got {shown(field)} at line {number}")
            if len(counts) == most:
                rule = f"vocab_file must hold at most {most} entries, as many as there are ids"
                raise ValueError(f"{rule}, got one more at line {number}")
            counts.append(count)
    if not counts:
        raise ValueError(f"vocab_file must hold at least one entry, got none in {shown(path)}")
    return np.frombuffer(counts)


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
    return Law(LAWS["fixed_unigram"], n, table, None, total), drawable
