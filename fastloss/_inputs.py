"""The one place that checks arguments and raises.

Every message names the argument, the rule, the value and, in an array, the place.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

# dtypes of logits, predictions, inputs -> dtype of their losses
_FLOATS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float32): np.dtype(np.float32),
    np.dtype(np.float64): np.dtype(np.float64),
    np.dtype(np.float16): np.dtype(np.float32),
}
_FLOAT64 = np.dtype(np.float64)
_INT64 = np.dtype(np.int64)  # there is one object of each native dtype
_VOID = np.dtype("V2")


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def loss_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the losses of an argument of this dtype; TypeError if it has none."""
    try:
        return _FLOATS[dtype]
    except KeyError:
        if is_bfloat16(dtype):  # ml_dtypes' own; known without importing it
            _FLOATS[dtype] = np.dtype(np.float32)
            return _FLOATS[dtype]
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {dtype}") from None


def array(name: str, value: ArrayLike) -> Array:
    """The argument as an array, without a copy of one."""
    if type(value) is np.ndarray:
        return value
    if value is None:
        raise TypeError(f"{name} must be given")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one (use sample_weight or where)")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} must be an array: {error}") from None


def raw(a: Array | None) -> Array | None:
    """As the kernels take it: bfloat16, which the buffer protocol does not know, as two bytes."""
    return a.view(_VOID) if a is not None and a.dtype.kind == "V" else a


def numbers(name: str, value: ArrayLike) -> Array:
    """An array of real numbers: bool, integer or float."""
    a = array(name, value)
    if not (a.dtype.kind in "fiub" and a.dtype.isnative and a.dtype.itemsize <= 8) and not is_bfloat16(a.dtype):
        raise TypeError(f"{name} must hold real numbers in native byte order, got {a.dtype}")
    return a


def integers(name: str, value: ArrayLike) -> Array:
    """An array of integers."""
    if type(value) is np.ndarray and value.dtype is _INT64:
        return value
    a = array(name, value)
    if a.dtype.kind not in "iu" or not a.dtype.isnative:
        if a.size == 0 and not isinstance(value, np.ndarray):
            return a.astype(np.int64)  # an empty list has no dtype of its own
        raise TypeError(f"{name} must be integers, got {a.dtype}")
    return a


def axis_index(axis: int, ndim: int, name: str = "axis") -> int:
    """The axis counted from the front."""
    try:
        k = operator.index(axis)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {axis!r}") from None
    if not -ndim <= k < ndim:
        raise ValueError(f"{name} must lie in [{-ndim}, {ndim}), got {k}")
    return k + ndim if k < 0 else k


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def same_shape(name: str, a: Array, shape: tuple[int, ...], of: str) -> Array:
    if a.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, {of}, got {a.shape}")
    return a


def broadcast(name: str, a: Array, shape: tuple[int, ...]) -> Array:
    """A view of the array in this shape."""
    if a.shape == shape:
        return a
    try:
        return np.broadcast_to(a, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to shape {shape}, got {a.shape}") from None


def mask(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """A bool array that broadcasts to the shape."""
    if value is None:
        return None
    a = array(name, value)
    if a.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, got {a.dtype}")
    return broadcast(name, a, shape)


def weights(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Real numbers that broadcast to the shape, as contiguous float64: a copy, of one number a row."""
    if value is None:
        return None
    return np.ascontiguousarray(broadcast(name, numbers(name, value), shape), np.float64).reshape(shape)


def vector(name: str, value: ArrayLike | None, size: int) -> Array | None:
    """`size` real numbers as contiguous float64: a copy."""
    if value is None:
        return None
    a = numbers(name, value)
    if a.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {a.shape}")
    return np.ascontiguousarray(a, np.float64)


def scalar(name: str, value: Any, least: float, most: float) -> float:
    """A number in [least, most]."""
    try:
        v = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not least <= v <= most:
        raise ValueError(f"{name} must lie in [{least:g}, {most:g}], got {v:g}")
    return v


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def ignored(value: int | None) -> int | None:
    """ignore_index as the kernels take it; a number that no int64 label can equal is none."""
    if value is None:
        return None
    try:
        k = operator.index(value)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer, got {value!r}") from None
    return k if -(2**63) <= k < 2**63 else None


def bad_label(name: str, a: Array, row: int, n_classes: int, ignore: int | None = None) -> ValueError:
    """The error for the label in this row, rows counted over the flattened array."""
    place = np.unravel_index(row, a.shape)
    where = f"row {row}" if a.ndim <= 1 else f"index {tuple(map(int, place))}"
    rule = f"lie in [0, {n_classes})" + ("" if ignore is None else f" or be ignore_index {ignore}")
    return ValueError(f"{name} must {rule}, got {a[place]} at {where}")


def _same_memory(a: Array, b: Array) -> bool:
    return (
        a.shape == b.shape
        and a.strides == b.strides
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _overlap(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=100_000))
    except np.exceptions.TooHardError:
        return True


def output(
    name: str,
    value: Array | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    apart: dict[str, Array | None],
    alias: Array | None = None,
) -> Array | None:
    """A buffer for results: right shape and dtype, writable, apart from the named arrays.

    It may be `alias` itself (in place), but not overlap it otherwise.
    """
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if not value.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    for other, a in apart.items():
        if a is not None and _overlap(value, a) and not (a is alias and _same_memory(value, a)):
            raise ValueError(f"{name} must not overlap {other}")
    if value.size > 1 and any(s == 0 and n > 1 for s, n in zip(value.strides, value.shape, strict=True)):
        raise ValueError(f"{name} must not be a broadcast array")
    return value


def whole(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """An integer in [least, most]."""
    try:
        k = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not least <= k <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], got {k}")
    return k


def ids(name: str, value: ArrayLike, n: int) -> NDArray[np.int64]:
    """Integers in [0, n) as a contiguous int64 array."""
    a = integers(name, value)
    outside = (a < 0) | (a >= n)
    if outside.any():
        raise bad_label(name, a, int(outside.argmax()), n)
    return np.ascontiguousarray(a, np.int64)


def counts(name: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Expected counts: real numbers of this shape, as contiguous float64."""
    a = np.ascontiguousarray(same_shape(name, numbers(name, value), shape, "one for each id"), np.float64)
    return a.reshape(shape)


def finite(name: str, value: ArrayLike, size: int) -> NDArray[np.float64]:
    """`size` finite numbers as contiguous float64."""
    a = vector(name, value, size)
    assert a is not None
    bad = np.flatnonzero(~np.isfinite(a))
    if bad.size:
        raise ValueError(f"{name} must be finite, got {a[bad[0]]} at row {bad[0]}")
    return a


def bad_count(name: str, a: Array, place: int) -> ValueError:
    """The error for the expected count at this flat place."""
    at = tuple(map(int, np.unravel_index(place, a.shape)))
    where = f"row {at[0]}" if len(at) == 1 else f"index {at}"
    return ValueError(f"{name} must be positive and finite, got {a[at]} at {where}")


def shards(name: str, value: Any, ndim: int) -> list[Array]:
    """A table, or a list or tuple of its shards, as arrays of floats."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given:
        raise ValueError(f"{name} must have at least one shard, got none")
    arrays = []
    for k, shard in enumerate(given):
        of = name if len(given) == 1 else f"{name}[{k}]"
        a = array(of, shard)
        loss_dtype(of, a.dtype)
        if a.ndim != ndim:
            raise ValueError(f"{of} must have {ndim} {'axis' if ndim == 1 else 'axes'}, got shape {a.shape}")
        arrays.append(a)
        kind, first = (a.shape[1:], a.dtype), (arrays[0].shape[1:], arrays[0].dtype)
        if kind != first:
            raise ValueError(f"{of} must have rows of shape and dtype {first}, as {name}[0], got {kind}")
    return arrays


def shard_sizes(name: str, arrays: list[Array], strategy: str) -> int:
    """The rows of all shards together; ValueError if a shard has not the size that the strategy gives it."""
    n, parts = sum(map(len, arrays)), len(arrays)
    wanted = n // parts
    for k, a in enumerate(arrays):
        size = wanted + (k < n % parts)
        if len(a) != size:
            raise ValueError(f"{name}[{k}] must have {size} rows, its share of {n} by {strategy!r}, got {len(a)}")
    return n


def sampler(value: Any, sampled_values: Any, seed: Any, num_classes: int, kind: type) -> None:
    """A sampler object to draw from, if any, with the range and the only source of randomness."""
    if value is None:
        return
    if not isinstance(value, kind):
        raise TypeError(f"sampler must be a sampler object, got {type(value).__name__}")
    if sampled_values is not None:
        raise ValueError("sampler must be None where sampled_values are given")
    if seed is not None:
        raise ValueError(f"seed must be None for a sampler, which has its own stream, got {seed!r}")
    if value.range_max != num_classes:
        raise ValueError(f"sampler must have the range num_classes = {num_classes}, got {value.range_max}")


def no_buffers(buffers: dict[str, Any], names: tuple[str, ...]) -> None:
    """Gradients that are SparseRows take no buffer."""
    for name in names:
        if buffers.get(name) is not None:
            raise TypeError(f"grad_out must be None for {name}: its gradient is SparseRows")
