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


def one_of(name: str, value: ArrayLike | None, alias: str, other: ArrayLike | None) -> ArrayLike:
    """The one that is given of an argument and its alias."""
    if value is None and other is None:
        raise TypeError(f"{name} must be given")
    if value is not None and other is not None:
        raise TypeError(f"{alias} is another name of {name}: only one of them can be given")
    return other if value is None else value  # type: ignore[return-value]


def joint_shape(name: str, a: Array, other: str, b: Array) -> tuple[int, ...]:
    """The shape that both broadcast to."""
    try:
        return np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"{name} and {other} must broadcast together, got {a.shape} and {b.shape}") from None


def differentiable(name: str, a: Array) -> None:
    """Only real numbers have a gradient."""
    if a.dtype.kind in "iub":
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64 to have a gradient, got {a.dtype}")


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


def positive(name: str, value: Any) -> float:
    """A number above 0."""
    v = scalar(name, value, 0, float("inf"))
    if v == 0:
        raise ValueError(f"{name} must be more than 0, got {v:g}")
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
