"""Weighted sampling in constant time per draw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import threads as _threads
from fastloss._native import alias, samplers
from fastloss.samplers.draws import Floats, Ids, Law, Seed, Source, Stream, finish, try_limit


class AliasTable(Source):
    """Draws from ``[0, n)`` in proportion to given weights; build it once, draw from it many times.

    Building takes one sweep over the weights; a draw takes one 64-bit random number and one memory access, whatever
    the weights.  Class ``i`` comes with probability ``weights[i]/sum(weights)``, exact to 2**-53; a class of weight 0
    never comes.  The table is never changed after it is built, so threads may share it.

    Parameters
    ----------
    weights : array_like of float, shape [n]
        Finite, not negative, not all zero; ``1 <= n < 2**32``.  Kept as a float64 copy.

    Raises
    ------
    TypeError
        If weights are not real numbers.
    ValueError
        If weights are not a vector, if one is negative or not finite, or if their sum is zero or overflows.

    Notes
    -----
    Memory: 20 bytes per class, 2 GB for 1e8 classes; building needs no more.
    Source: Walker, "An efficient method for generating discrete random variables with general distributions", 1977;
    the sweep is that of Hübschle-Schneider and Sanders, "Parallel weighted random sampling", 2019.

    Examples
    --------
    >>> table = AliasTable([1, 0, 3])
    >>> table.probability([0, 1, 2])
    array([0.25, 0.  , 0.75])
    >>> ids = table.sample((1000, 10), seed=0)
    >>> ids.shape, sorted(set(ids.ravel().tolist()))
    ((1000, 10), [0, 2])
    """

    def __init__(self, weights: ArrayLike) -> None:
        given = check.alias_weights("weights", weights)
        own = _memory.copied("weights", given, np.float64)
        total, low, self._drawable, bad = alias.total_and_support(own)
        if bad >= 0:
            raise check.bad_weight("weights", own, bad)
        check.weight_sum("weights", total)
        table = _memory.aligned(own.size + (own.size + 1) // 2, np.dtype(np.int64))
        alias.build(own, total, low, table)
        self._law = Law(samplers.LAWS["alias"], own.size, table, own, total)

    @contextmanager
    def _opened(self, num_sampled: int, seed: Seed) -> Iterator[Stream]:
        yield Stream(self._law, self._drawable, samplers.derive(*check.seed(seed), 0))

    def __len__(self) -> int:
        return int(self._law.range_max)

    def __repr__(self) -> str:
        return f"AliasTable(<{len(self)} weights, {self._drawable} of them positive>)"

    def __reduce__(self) -> tuple[Any, ...]:
        return AliasTable, (self._law.weights,)  # building again is quicker than reading a table

    def sample(self, size: int | tuple[int, ...], seed: Seed = None, *, n_threads: int | None = None) -> Ids:
        """Independent draws.

        Parameters
        ----------
        size : int or tuple of ints
            Shape of the result.
        seed : optional
            Whatever `numpy.random.default_rng` takes, of at most 65536 numbers.
        n_threads : int, optional
            The most threads to use; the result does not depend on it.

        Returns
        -------
        ndarray of int64, of the given shape

        Raises
        ------
        TypeError, ValueError
            If size is not a shape, or seed not a seed.
        """
        shape = size if isinstance(size, (tuple, list)) else (size,)
        shape = tuple(check.whole("size", s, 0) for s in shape)
        _memory.room("size", size, 8 * math.prod(shape))
        out = _memory.empty(shape, np.int64)
        key, stream = check.seed(seed)
        few = n_threads is None and out.size < 65536  # one thread then; do not even ask how many there are
        samplers.spread(self._law, key, stream, out, 1 if few else _threads.resolve(n_threads))
        return out

    def sample_unique(self, k: int, seed: Seed = None) -> Ids:
        """Distinct draws: drawing until there are k different classes, in the order of their first appearance.

        That is successive sampling, the law of ``Generator.choice(n, k, replace=False, p=p)``.  It always ends: where
        skipping repeats takes too long, an exponential race over the classes that are left goes on with the same law.

        Parameters
        ----------
        k : int
            How many, at most the number of classes with positive weight.
        seed : optional
            Whatever `numpy.random.default_rng` takes, of at most 65536 numbers.

        Returns
        -------
        ndarray of int64, shape [k]

        Raises
        ------
        ValueError
            If fewer than k classes have positive weight.
        """
        k = check.unique_size("k", k, self._drawable)
        _memory.room("k", k, 8 * k)
        key, stream = check.seed(seed)
        out = _memory.empty(k, np.int64)
        limit = try_limit(len(self), k)
        filled = samplers.sample([self._law, key, stream, 0, None], out, True, limit, None, None, None)[1]
        if filled < k:
            finish(self._law, key, stream, 0, out, filled)
        return out

    def probability(self, ids: ArrayLike) -> Floats:
        """``weights[ids]/sum(weights)``, float64, in the shape of ids.

        Raises
        ------
        TypeError, ValueError
            If ids are not integers in [0, n).
        """
        array = check.ids("ids", ids, len(self))
        out = _memory.empty(array.shape)
        samplers.measure(self._law, array, out, samplers.MEASURES["probability"], 0.0, None)
        return out
