"""Gradients of tables: the rows that were touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._native import tables as _kernels

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of an array that is zero elsewhere; rows of equal index are summed.

    Parameters
    ----------
    indices : ndarray of int64, shape [n]
        In ``[0, shape[0])``; they may repeat.  Copied, and read-only from then on.
    values : ndarray, shape [n, *shape[1:]]
        float16, bfloat16, float32 or float64.  Not copied: the rows share them with whoever holds the array.
    shape : tuple of int
        Of the whole array.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit, or an index is out of range.

    Notes
    -----
    TensorFlow's counterpart is ``tf.IndexedSlices``.

    Examples
    --------
    >>> import numpy as np
    >>> rows = SparseRows(np.array([2, 0, 2]), np.array([[1.0], [2.0], [3.0]]), (4, 1))
    >>> rows.to_dense().ravel()
    array([2., 0., 4., 0.])
    >>> rows.coalesce().indices
    array([0, 2])
    """

    indices: NDArray[np.int64]
    values: Array
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        indices = check.integers("indices", self.indices)
        values = check.array("values", self.values)
        shape = tuple(check.whole("shape", n, 0) for n in check.sequence("shape", self.shape, "integers"))
        check.loss_dtype("values", values.dtype)
        if indices.ndim != 1 or not shape:
            raise ValueError(
                f"indices must be a vector, and shape have an axis, got shapes {indices.shape} and {shape}"
            )
        check.same_shape("values", values, indices.shape + shape[1:], "that of indices and of a row")
        indices = check.ids("indices", indices, shape[0])
        indices.flags.writeable = False
        for name, value in (("indices", indices), ("values", values), ("shape", shape)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return SparseRows, (self.indices, self.values, self.shape)

    @classmethod
    def _checked(cls, indices: NDArray[np.int64], values: Array, shape: tuple[int, ...]) -> SparseRows:
        """SparseRows without the checks; the indices must belong to the caller, and become read-only."""
        indices.flags.writeable = False
        rows = object.__new__(cls)
        rows.__dict__.update(indices=indices, values=values, shape=shape)
        return rows

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.values.dtype

    def __repr__(self) -> str:
        return f"SparseRows({len(self.indices)} of {self.shape[0]} rows, shape={self.shape}, dtype={self.dtype})"

    def _runs(self) -> tuple[Array, Array, Array]:
        """Each index once, in rising order; the places of all values, and where those of each index begin."""
        n = len(self.indices)
        bits = n.bit_length()
        if self.shape[0] < 1 << (62 - bits):  # index and place in one number: the fastest way to sort
            keys = self.indices << bits | np.arange(n)
            keys.sort()
            order, indices = keys & ((1 << bits) - 1), keys >> bits
        else:
            own = self.indices.copy()
            order = np.argsort(own, kind="stable")
            indices = own[order]
        if n and not 0 <= indices[0] <= indices[-1] < self.shape[0]:  # only if somebody made them writable
            raise ValueError(f"indices must lie in [0, {self.shape[0]}), got {indices[0]} to {indices[-1]}")
        first = np.flatnonzero(np.concatenate([np.ones(min(n, 1), bool), indices[1:] != indices[:-1]]))
        return indices[first], order, np.append(first, n)

    def _sum(
        self, runs: tuple[Array, Array, Array], target: Array, scale: float, add: bool, n_threads: int | None
    ) -> None:
        """Sum rows of equal index, into one row for each index or, with `add`, onto the rows of an array."""
        rows, order, starts = runs
        width = math.prod(self.shape[1:])
        table = check.raw(target).reshape(len(target), width)
        values = check.raw(self.values).reshape(len(self.indices), width)
        if values.size:
            threads = _threads.resolve(n_threads, values.size)
            _kernels.sum_runs(values, order, starts, table, threads, rows=rows if add else None, scale=scale, add=add)

    def coalesce(self, *, n_threads: int | None = None) -> SparseRows:
        """The same with each index once, in rising order; values are summed in float64, in order, and rounded once.

        Parameters
        ----------
        n_threads : int, optional
            Threads of this call; the result's bits do not depend on it.

        Returns
        -------
        SparseRows
        """
        runs = self._runs()
        values = _memory.empty((len(runs[0]), *self.values.shape[1:]), self.dtype)
        self._sum(runs, values, 1.0, False, n_threads)
        return SparseRows._checked(runs[0], values, self.shape)

    def to_dense(self) -> Array:
        """The whole array.

        Returns
        -------
        ndarray, of the values' dtype
        """
        _memory.room("shape", self.shape, math.prod(self.shape) * self.dtype.itemsize, lazy=True)
        return self.add_to(_memory.zeros(self.shape, self.dtype))

    def add_to(self, array: Array, scale: float = 1.0, *, n_threads: int | None = None) -> Array:
        """Add the rows, times `scale`, to an array in place; only the rows of `indices` are read or written.

        Parameters
        ----------
        array : ndarray, of this shape
            float16, bfloat16, float32 or float64, writable, any strides from row to row.
        scale : float, default 1
            For example minus the learning rate.
        n_threads : int, optional
            Threads of this call; the result's bits do not depend on it.

        Returns
        -------
        ndarray
            `array`.

        Raises
        ------
        TypeError, ValueError
            If dtype or shape do not fit; nothing has been written then.

        Examples
        --------
        >>> import numpy as np
        >>> table = np.ones((3, 2))
        >>> SparseRows(np.array([1, 1]), np.full((2, 2), 0.25), (3, 2)).add_to(table, -2.0)
        array([[1., 1.],
               [0., 0.],
               [1., 1.]])
        """
        scale = check.scalar("scale", scale, -np.inf, np.inf)
        check.an_array("array", array)
        check.loss_dtype("array", array.dtype)
        outputs.checked("array", array, self.shape, array.dtype, {"values": self.values, "indices": self.indices})
        if array.ndim > 2 and not array.flags.c_contiguous:
            raise ValueError(f"array must be C-contiguous beyond two axes, got strides {array.strides}")
        self._sum(self._runs(), array, scale, True, n_threads)
        return array
