"""Tables of classes, whole or in shards: only the rows that are asked for are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core.sparse_rows import SparseRows
from fastloss._native import tables as _kernels

Array = NDArray[Any]


class Table:
    """A table of classes: one array, or shards, which are never joined."""

    def __init__(self, name: str, value: Any, ndim: int, strategy: str) -> None:
        self.arrays = check.table_shards(name, value, ndim)
        self.n = check.shard_sizes(name, self.arrays, strategy)
        self.row = self.arrays[0].shape[1:]
        self.dtype = self.arrays[0].dtype
        self._listed = type(value) if isinstance(value, (list, tuple)) else None
        self._strategy = strategy

    def locate(self, ids: Array) -> list[tuple[int, Array, Array | None]]:
        """For each shard its number, its rows that are asked for, and their places among the ids (None: all ids)."""
        parts = len(self.arrays)
        if parts == 1:
            return [(0, ids, None)]
        if self._strategy == "mod":
            rows, shard = np.divmod(ids, parts)
        else:
            size, longer = divmod(self.n, parts)
            in_longer = ids < longer * (size + 1)
            shard = np.where(in_longer, ids // (size + 1), (ids - longer) // max(size, 1))
            rows = ids - shard * size - np.minimum(shard, longer)
        places = [np.flatnonzero(shard == k) for k in range(parts)]
        return [(k, rows[at], at) for k, at in enumerate(places) if at.size]

    def gather(self, ids: Array, dtype: np.dtype[Any]) -> Array:
        """The rows of these ids, in this dtype."""
        out = _memory.empty((len(ids), *(self.row or (1,))), dtype)
        for k, rows, places in self.locate(ids):
            _kernels.gather(check.raw(self.arrays[k]), 1 if self.row else -1, rows, places, out)
        return out

    def gradient(self, ids: Array, values: Array) -> Any:
        """SparseRows for the table or, in the container it came in, for each shard, with that shard's row numbers."""
        with np.errstate(over="ignore"):
            values = values.astype(self.dtype, copy=False)
        if self._listed is None:
            return SparseRows._checked(ids, values, self.arrays[0].shape)
        parts = [SparseRows._checked(ids[:0], values[:0], a.shape) for a in self.arrays]
        for k, rows, at in self.locate(ids):
            parts[k] = SparseRows._checked(rows, values if at is None else values[at], self.arrays[k].shape)
        return self._listed(parts)
