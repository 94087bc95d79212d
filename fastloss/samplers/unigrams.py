"""The candidate samplers of laws that lie in memory: counts that are learned, and counts that are given."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._native import alias, samplers, unigram
from fastloss.samplers.draws import NO_IDS, Floats, Ids, Law, Seed
from fastloss.samplers.samplers import EXPECTED_COUNTS, LAWS, _Sampler

_FEW = 1 << 14  # ids that are learned without a look at pending signals


class LearnedUnigramSampler(_Sampler):
    """Draws ids in [0, range_max) in proportion to counts that begin at one and grow with the ids that were seen.

    A draw and an update take time in proportion to log(range_max).

    Parameters
    ----------
    range_max : int
        At least 1, at most 2**40.  Memory: 4.3 bytes per id, or 9.2 where there are more than 2**28 ids or 1.8e9 counts
        were added; the system provides only what is used.
    seed, expected_count : optional
        As for `UniformSampler`; with "inclusion" range_max may be at most 2**31.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or range.

    Notes
    -----
    Counts are 64-bit numbers; TensorFlow stops learning when their sum reaches 2**31 - 1.
    An interrupted call learns all its ids or none.  Only of more than 16384 ids, if they take less than half the memory
    of the counts, it may learn the first ones and not the rest.
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
        inclusion = check.choice("expected_count", expected_count, EXPECTED_COUNTS) == "inclusion"
        n = check.whole("range_max", range_max, 1, 2**31 if inclusion else 2**40)
        tree = _tree_for(n, 0)
        super().__init__(Law(LAWS["learned_unigram"], n, tree), n, seed, expected_count)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            tree = _memory.copied("state", self._tree, self._tree.dtype)
            state = {**self.__dict__, "_now": [_with(self._law, tree), *self._now[1:]]}
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
        array = check.ids("ids", ids, self.range_max)
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
        return self._counted(check.state_counts(state["counts"], self.range_max))


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
        reserved = check.whole("num_reserved_ids", num_reserved_ids, 0, 2**31 - 1)
        self._num_shards = check.whole("num_shards", num_shards, 1)
        self._shard = check.whole("shard", shard, 0, self._num_shards - 1)
        self._reserved, self._distortion = reserved, check.scalar("distortion", distortion, -3e38, 3e38)
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
        return check.ids("ids", ids, self.range_max, own=False) * self._num_shards + self._shard


def read_counts(unigrams: ArrayLike, vocab_file: str | os.PathLike[str], most: int = 2**31 - 1) -> Floats:
    """The counts of all entries, from either source; a file may have so many."""
    given = check.weight_vector("unigrams", unigrams)
    path = check.file_name(vocab_file)
    check.either(bool(given.size), path)
    if path:
        return check.file_counts(path, most)
    fits = given.dtype == np.float64 and given.flags.c_contiguous and given.flags.aligned
    counts = given if fits else _memory.copied("unigrams", given, np.float64)
    bad = alias.total_and_support(counts)[3]
    if bad >= 0:
        raise check.bad_weight("unigrams", counts, bad)
    return counts


def _fixed_law(counts: Floats, reserved: int, distortion: float) -> tuple[Law, int]:
    """Law and number of drawable ids of one shard: reserved ids, then counts."""
    n = reserved + counts.size
    check.fixed_ids(n)
    _memory.room("num_reserved_ids", reserved, 40 * n)
    weights = _memory.empty(n)
    alias.float_weights(counts, distortion, reserved, weights)
    total, _, drawable, bad = alias.total_and_support(weights)
    check.distorted(weights, total, bad)
    table = _memory.aligned(2 * n, np.dtype(np.int64))
    alias.build_float(weights, _memory.empty(n), _memory.empty(n, np.int64), table)
    return Law(LAWS["fixed_unigram"], n, table, None, total), drawable
