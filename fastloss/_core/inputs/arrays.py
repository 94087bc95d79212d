"""Arrays: what they may hold, which shapes they may have, which axes there are."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import memory as _memory
from fastloss._core.inputs.values import index, instead, is_bfloat16, shown

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
_PLAIN = (np.ndarray, np.memmap)


def loss_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of losses for an argument of this dtype; TypeError if there is none."""
    try:
        return _FLOATS[dtype]
    except KeyError:
        if is_bfloat16(dtype):  # ml_dtypes' own; known without importing it
            _FLOATS[dtype] = np.dtype(np.float32)
            return _FLOATS[dtype]
        how = instead(name, dtype)
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {dtype}{how}") from None


@overload
def raw(a: Array) -> Array: ...
@overload
def raw(a: None) -> None: ...
def raw(a: Array | None) -> Array | None:
    """As the kernels take it: bfloat16, which the buffer protocol does not know, as two bytes."""
    return a.view(_VOID) if a is not None and a.dtype.kind == "V" else a


def array(name: str, value: ArrayLike) -> Array:
    """The argument as a plain array, without a copy of one."""
    if type(value) is np.ndarray:
        return value
    if value is None:
        raise TypeError(f"{name} must be given")
    _not_masked(name, value, 0)
    try:
        a = np.asarray(value)
    except MemoryError:
        raise MemoryError(f"no room for {name} as an array") from None
    except Exception as error:  # __array__ may raise anything: a tensor that requires grad a RuntimeError
        raise TypeError(f"{name} must be an array, got {shown(value)}{_tensor(name, value)}: {_line(error)}") from None
    if a.ndim:
        _not_masked(name, value, a.ndim)
    if a.dtype.kind == "O" and not hasattr(value, "dtype"):  # a set, a generator, a dict, any other object
        raise TypeError(f"{name} must be an array of numbers, got {shown(value)}")
    return a


def _tensor(name: str, value: Any) -> str:
    """What to write instead of a tensor that does not convert to an array."""
    if not hasattr(type(value), "detach"):
        return ""
    if "bfloat16" in str(getattr(value, "dtype", "")):
        return f" (write {name}.detach().cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16))"
    return f" (write {name}.detach().cpu().numpy())"


def _not_masked(name: str, value: Any, depth: int) -> None:
    """Raise TypeError for masked arrays and lists of them: their masks would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one (use sample_weight or where)")
    if depth and isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
        for item in value:
            _not_masked(name, item, depth - 1)


def _line(error: Exception) -> str:
    """What an error says, in at most a line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return text[:100] or type(error).__name__


def numbers(name: str, value: ArrayLike) -> Array:
    """An array of real numbers: bool, integer or float."""
    a = array(name, value)
    if not (a.dtype.kind in "fiub" and a.dtype.isnative and a.dtype.itemsize <= 8) and not is_bfloat16(a.dtype):
        raise TypeError(f"{name} must hold real numbers in native byte order, got {a.dtype}{instead(name, a.dtype)}")
    return a


def integers(name: str, value: ArrayLike) -> Array:
    """An array of integers."""
    if type(value) is np.ndarray and value.dtype is _INT64:
        return value
    a = array(name, value)
    if a.dtype.kind not in "iu" or not a.dtype.isnative:
        if a.size == 0 and isinstance(value, list | tuple) and a.dtype == _FLOAT64:
            return a.astype(np.int64)  # an empty list has no dtype of its own
        raise TypeError(f"{name} must be integers, got {a.dtype}{instead(name, a.dtype)}")
    return a


def axis_index(axis: int, ndim: int, name: str = "axis") -> int:
    """The axis counted from the front."""
    k = index(name, axis)
    if not -ndim <= k < ndim:
        raise ValueError(f"{name} must lie in [{-ndim}, {ndim}), got {shown(k)}")
    return k + ndim if k < 0 else k


def class_axis(name: str, a: Array, axis: int) -> int:
    """The axis of an array of logits that holds the classes, counted from the front."""
    if a.ndim == 0:
        raise ValueError(f"{name} must have an axis of classes, got a single number")
    return a.ndim - 1 if type(axis) is int and axis == -1 else axis_index(axis, a.ndim)  # most calls: at once


def axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """One axis, a tuple of them, or all (None), counted from the front."""
    if axis is None:
        return tuple(range(ndim))
    found = tuple(axis_index(k, ndim) for k in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(found)) < len(found):
        raise ValueError(f"axis must not repeat one, got {shown(axis)}")
    return found


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
    if a.ndim == 0 and a.dtype.kind in "fiub":  # gives what broadcast_to would, in a fifth of its time
        return np.ndarray(shape, a.dtype, a, strides=(0,) * len(shape))
    try:
        return np.broadcast_to(a, shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to shape {shape}, got {a.shape}") from None
    except RuntimeError:
        raise _too_many_axes(name, a.ndim, len(shape)) from None


def one_of(name: str, value: ArrayLike | None, alias: str, other: ArrayLike | None) -> ArrayLike:
    """The value of an argument, given by its name or by its alias."""
    if value is None and other is None:
        raise TypeError(f"{name} must be given")
    if value is not None and other is not None:
        raise TypeError(f"{alias} is another name of {name}: only one of them can be given")
    return other if value is None else value  # type: ignore[return-value]


def joint_shape(name: str, a: Array, other: str, b: Array) -> tuple[int, ...]:
    """The shape that both broadcast to."""
    if a.shape == b.shape or b.ndim == 0:
        return a.shape
    try:
        return np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"{name} and {other} must broadcast together, got {a.shape} and {b.shape}") from None
    except RuntimeError:
        raise _too_many_axes(f"{name} and {other}", a.ndim, b.ndim) from None


def _too_many_axes(name: str, *axes: int) -> ValueError:
    """NumPy 2 has arrays of 64 axes, and broadcasts those of 32."""
    return ValueError(f"{name} must broadcast to at most 32 axes, got {max(axes)}")


def differentiable(name: str, a: Array) -> None:
    """Raise TypeError unless the array holds floats, which alone have a gradient."""
    if a.dtype.kind in "iub":
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64 to have a gradient, got {a.dtype}")


def mask(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """A bool array that broadcasts to the shape."""
    if value is None:
        return None
    a = array(name, value)
    if a.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, got {a.dtype} (write {name}.astype(bool))")
    return broadcast(name, a, shape)


def packed(value: Array, dtype: Any = None) -> Array:
    """The array, C-contiguous and aligned as typed kernel arguments must be; a copy only if it is not."""
    a = np.ascontiguousarray(value, dtype)
    return a if a.flags.aligned else a.copy()


def weights(name: str, value: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Real numbers that broadcast to the shape, as contiguous float64: a copy, of one number a row."""
    if value is None:
        return None
    return packed(broadcast(name, numbers(name, value), shape), np.float64).reshape(shape)


def vector(name: str, value: ArrayLike | None, size: int) -> Array | None:
    """`size` real numbers as contiguous float64: a copy."""
    if value is None:
        return None
    if isinstance(value, dict | str):
        of_dict = f"[{name}.get(c, 1) for c in range({size})]"
        how = of_dict if isinstance(value, dict) else "labels.size / (C * numpy.bincount(labels, minlength=C))"
        raise TypeError(f"{name} must be a vector of {size} numbers, got {shown(value)} (write {how})")
    a = numbers(name, value)
    if a.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {a.shape}")
    return packed(a, np.float64)


def cotangent(value: ArrayLike) -> float:
    """The cotangent of a value that is one number."""
    return float(same_shape("cotangent", numbers("cotangent", value), (), "that of the value"))


def sequence(name: str, value: Any, of: str) -> list[Any]:
    """A list or tuple, or the rows of an array."""
    if isinstance(value, list | tuple) or (type(value) is np.ndarray and value.ndim):
        _memory.room(name, f"{len(value)} {of}", 128 * len(value))
        return list(value)
    raise TypeError(f"{name} must be a list of {of}, got {shown(value)}")


def place(a: Array, flat: int) -> tuple[tuple[int, ...], str]:
    """An index of the array, and how a message says it, from a place counted over the flattened array."""
    at = tuple(map(int, np.unravel_index(flat, a.shape)))
    return at, f" at index {at}" if len(at) > 1 else f" at row {flat}" if at else ""


def an_array(name: str, value: Any) -> Array:
    """An array, not what could be made one: it is written to."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be an array, got {shown(value)}")
    return value


def with_axes(name: str, a: Array, *axes: str) -> Array:
    """An array of so many axes, which have names."""
    if a.ndim != len(axes):
        number = {2: "two", 3: "three"}[len(axes)]
        of = f"{', '.join(axes[:-1])} and {axes[-1]}"
        raise ValueError(f"{name} must have {number} axes, of {of}, got shape {a.shape}")
    return a


def matrix(name: str, a: Array, rows: str, columns: str) -> Array:
    if a.ndim != 2:
        raise ValueError(f"{name} must have shape [{rows}, {columns}], got {a.shape}")
    return a


def given(name: str, value: Any, why: str = "", error: type[Exception] = TypeError) -> Any:
    """An argument that cannot be left out."""
    if value is None:
        raise error(f"{name} must be given{why}")
    return value
