"""Tables of classes, whole or in shards, and what goes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core.inputs.arrays import array, loss_dtype, packed, same_shape
from fastloss._core.inputs.values import instead

Array = NDArray[Any]


def features(name: str, value: ArrayLike) -> Array:
    """An array of floats whose last axis holds features."""
    a = array(name, value)
    if a.ndim == 0:
        raise ValueError(f"{name} must have an axis of features, got a number")
    loss_dtype(name, a.dtype)
    return a


def _floats(name: str, given: list[Any], several: bool) -> list[tuple[str, Array]]:
    """A table, or its shards, as arrays of floats, and what to call them."""
    arrays = [(f"{name}[{k}]" if several else name, shard) for k, shard in enumerate(given)]
    arrays = [(of, array(of, shard)) for of, shard in arrays]
    for of, a in arrays:
        loss_dtype(of, a.dtype)
    return arrays


def shards(name: str, value: Any, d: int) -> tuple[bool, list[Array]]:
    """Whether a table comes as a list of matrices, and its arrays, each [classes, d]."""
    many = (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(a, np.ndarray) and a.ndim == 2 for a in value)
    )
    arrays = _floats(name, list(value) if many else [value], many)
    for of, a in arrays:
        if a.ndim != 2 or a.shape[1] != d:
            raise ValueError(f"{of} must have shape [classes, {d}], {d} features as inputs, got {a.shape}")
    return many, [a for _, a in arrays]


def table_shards(name: str, value: Any, ndim: int) -> list[Array]:
    """A table, or a list or tuple of its shards, whose rows are all alike."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    if not given:
        raise ValueError(f"{name} must have at least one shard, got none")
    arrays = _floats(name, given, len(given) > 1)
    first = (arrays[0][1].shape[1:], arrays[0][1].dtype)
    for of, a in arrays:
        if a.ndim != ndim:
            raise ValueError(f"{of} must have {ndim} {'axis' if ndim == 1 else 'axes'}, got shape {a.shape}")
        if (a.shape[1:], a.dtype) != first:
            kind = (a.shape[1:], a.dtype)
            raise ValueError(f"{of} must have rows of shape and dtype {first}, as {name}[0], got {kind}")
    return [a for _, a in arrays]


def shard_sizes(name: str, arrays: list[Array], strategy: str) -> int:
    """The number of rows of all shards; ValueError if a shard does not have the size that the strategy gives it."""
    n, parts = sum(map(len, arrays)), len(arrays)
    wanted = n // parts
    for k, a in enumerate(arrays):
        size = wanted + (k < n % parts)
        if len(a) != size:
            raise ValueError(f"{name}[{k}] must have {size} rows, its share of {n} by {strategy!r}, got {len(a)}")
    return n


def rows_of(name: str, a: Array, row: tuple[int, ...], table: str) -> Array:
    """A matrix whose rows are as long as the table's."""
    if a.ndim != 2 or a.shape[1:] != row:
        raise ValueError(f"{name} must have shape [batch, {row[0]}], as rows of {table}, got {a.shape}")
    return a


def one_a_row(name: str, n: int, table: str, rows: int) -> None:
    """As many entries as the table has rows."""
    if n != rows:
        raise ValueError(f"{name} must have {rows} entries, one for each row of {table}, got {n}")


def partials(name: str, value: ArrayLike) -> Array:
    """Rows of four numbers, as contiguous float64."""
    a = array(name, value)
    if a.dtype != np.float64:
        raise TypeError(f"{name} must be float64, got {a.dtype}{instead(name, a.dtype)}")
    if a.ndim == 0 or a.shape[-1] != 4:
        raise ValueError(f"{name} must have shape [..., 4], got {a.shape}")
    return packed(a)


def all_partials(given: tuple[ArrayLike, ...]) -> list[Array]:
    """One or more arrays of partial sums, all of one shape."""
    if not given:
        raise ValueError("partials must be one array or more, got none")
    arrays = [partials(f"partials[{i}]", a) for i, a in enumerate(given)]
    for i, a in enumerate(arrays):
        same_shape(f"partials[{i}]", a, arrays[0].shape, "that of partials[0]")
    return arrays
