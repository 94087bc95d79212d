"""The one place that checks arguments and raises.

Every message names the argument, the rule, the value and, in an array, the place.
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import values as _values
from fastloss._core.values import index, instead, is_bfloat16

array, choice, flag, positive = _values.array, _values.choice, _values.flag, _values.positive
scalar, shown, whole = _values.scalar, _values.shown, _values.whole

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
    return axis_index(axis, a.ndim)


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


def lengths(name: str, value: ArrayLike, size: int, most: int, unit: str) -> Array:
    """One length in [0, most] for each of `size` rows, as contiguous int64: a copy; a single one serves all."""
    a = integers(name, value).copy()
    if a.shape not in ((), (size,)):
        raise ValueError(f"{name} must have shape ({size},), one length a row, got {a.shape}")
    if a.size and not (a.min() >= 0 and a.max() <= most):
        row = int(np.argmax((a < 0) | (a > most)))
        raise ValueError(f"{name} must lie in [0, {most}], the number of {unit}, got {a.reshape(-1)[row]} at row {row}")
    return packed(a, np.int64) if a.ndim else np.full(size, a, np.int64)


def offsets(name: str, value: ArrayLike, most: int) -> Array:
    """Where each of some sequences starts in `most` tokens, and where the last one ends, as int64: a copy."""
    a = integers(name, value).copy()
    if a.ndim != 1 or a.size == 0:
        raise ValueError(f"{name} must have shape [number of sequences + 1], got {a.shape}")
    bad = (a < 0) | (a > most)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{name} must lie in [0, {most}], the number of tokens, got {a[row]} at row {row}")
    ends = packed(a, np.int64)
    falls = ends[1:] < ends[:-1]
    if falls.any():
        row = int(np.argmax(falls)) + 1
        raise ValueError(f"{name} must not fall, got {ends[row]} after {ends[row - 1]} at row {row}")
    return ends


def ignored(value: int | None) -> int | None:
    """ignore_index as the kernels take it; None if no int64 label can equal the number."""
    if value is None:
        return None
    k = index("ignore_index", value)
    return k if -(2**63) <= k < 2**63 else None


def cotangent(value: ArrayLike) -> float:
    """The cotangent of a value that is one number."""
    return float(same_shape("cotangent", numbers("cotangent", value), (), "that of the value"))


def sequence(name: str, value: Any, of: str) -> list[Any]:
    """A list or tuple, or the rows of an array."""
    if isinstance(value, list | tuple) or (type(value) is np.ndarray and value.ndim):
        return list(value)
    raise TypeError(f"{name} must be a list of {of}, got {shown(value)}")


def one_buffer_each(name: str, value: Any, n: int, like: str) -> list[Any]:
    """Buffers for n arrays."""
    if isinstance(value, list | tuple) and len(value) == n:
        return list(value)
    raise ValueError(f"{name} must be a list of {n} arrays, as {like}, got {shown(value)}")


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
        return bool(np.shares_memory(a, b, max_work=100_000))  # type: ignore[arg-type]
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
    """Check a buffer for results: its shape and dtype, that it is writable, and shares no memory with named arrays.

    It may be `alias` itself (in place), but must not overlap it in any other way.
    """
    if value is None:
        return None
    if type(value) not in _PLAIN:  # a subclass neither: its mask, unit or second axis would be ignored
        plain = "a plain" if isinstance(value, np.ndarray) else "an"
        raise TypeError(f"{name} must be {plain} array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if not value.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    for other, a in apart.items():
        if a is None or (a is value and a is alias):
            continue
        if _overlap(value, a) and not (a is alias and _same_memory(value, a)):
            raise ValueError(f"{name} must not overlap {other}")
    if value.size > 1 and any(s == 0 and n > 1 for s, n in zip(value.strides, value.shape, strict=True)):
        raise ValueError(f"{name} must not be a broadcast array")
    return value


def fits(value: Any, like: Array, apart: Array) -> bool:
    """Whether `output` is sure to accept it: a quick check for small calls.  `value` may be `like` itself."""
    return (
        type(value) is np.ndarray
        and value.dtype is like.dtype
        and value.shape == like.shape
        and value.flags.c_contiguous
        and value.flags.writeable
        and (value is like or not np.may_share_memory(value, like))
        and not np.may_share_memory(value, apart)
    )


# ------------------------------------------------------------------ linear layers

TAILS = ("drop", "renormalize", "other")


def features(name: str, value: ArrayLike) -> Array:
    """An array of floats whose last axis holds features."""
    a = array(name, value)
    if a.ndim == 0:
        raise ValueError(f"{name} must have an axis of features, got a number")
    loss_dtype(name, a.dtype)
    return a


def shards(name: str, value: Any, d: int) -> tuple[bool, list[Array]]:
    """Whether a table comes as several arrays, and its arrays, each [classes, d]."""
    many = (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(a, np.ndarray) and a.ndim == 2 for a in value)
    )
    arrays = [array(f"{name}[{i}]", a) for i, a in enumerate(value)] if many else [array(name, value)]
    for i, a in enumerate(arrays):
        at = f"{name}[{i}]" if many else name
        loss_dtype(at, a.dtype)
        if a.ndim != 2 or a.shape[1] != d:
            raise ValueError(f"{at} must have shape [classes, {d}], {d} features as inputs, got {a.shape}")
    return many, arrays


class ClassLabels(NamedTuple):
    """Classes of each row: its label, or the k best of a teacher with their probabilities."""

    given: Array  # as passed in
    ids: NDArray[np.int64]  # [n, k], -1 where ignored
    probs: Array | None  # [n, k], float64
    tail: str
    some_ignored: bool


def class_labels(
    name: str, value: Any, shape: tuple[int, ...], n_classes: int, ignore: int | None, tail: str
) -> ClassLabels:
    """Class indices of this shape, or a pair (ids, probs) of shape (*shape, k)."""
    choice("tail", tail, TAILS)
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[0]) == len(shape) + 1:
        return _best_labels(name, value, shape, n_classes, ignore, tail)
    if tail != "drop":
        raise ValueError(f"tail must be 'drop' unless {name} are a pair (ids, probs), got {tail!r}")
    given = same_shape(name, integers(name, value), shape, "that of inputs without its last axis")
    y = given.copy()  # nobody changes it after it was checked
    skipped = np.zeros(shape, bool) if ignore is None else y == ignore
    bad = ((y < 0) | (y >= n_classes)) & ~skipped
    if bad.any():
        raise bad_label(name, y, int(np.argmax(bad)), n_classes, ignore)
    ids = y.astype(np.int64).reshape(-1, 1)  # first, because no unsigned dtype holds -1
    ids[skipped.reshape(-1)] = -1
    return ClassLabels(given, ids, None, tail, bool(skipped.any()))


def _best_labels(
    name: str, value: tuple[Any, Any], shape: tuple[int, ...], n_classes: int, ignore: int | None, tail: str
) -> ClassLabels:
    if ignore is not None:
        raise ValueError(
            f"ignore_index must be None where {name} are a pair (ids, probs), got {ignore} (use sample_weight)"
        )
    given, probs = integers(f"{name}[0]", value[0]), numbers(f"{name}[1]", value[1])
    k = given.shape[-1]
    same_shape(f"{name}[0]", given, (*shape, k), "that of inputs with k for its last axis")
    same_shape(f"{name}[1]", probs, given.shape, f"that of {name}[0]")
    if k == 0:
        raise ValueError(f"{name}[0] must have at least one class a row, got shape {given.shape}")
    own = given.copy()  # nobody changes it after it was checked
    bad = (own < 0) | (own >= n_classes)
    if bad.any():
        raise bad_label(f"{name}[0]", given, int(np.argmax(bad)), n_classes)
    ids = packed(own, np.int64).reshape(-1, k)
    p = packed(probs, np.float64).reshape(-1, k)
    wrong = ~((p >= 0) & (p < np.inf))
    if wrong.any():
        place = np.unravel_index(int(np.argmax(wrong)), given.shape)
        raise ValueError(
            f"{name}[1] must be finite and not negative, got {probs[place]} at index {tuple(map(int, place))}"
        )
    ordered = np.sort(ids, -1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
    if twice.any():
        raise ValueError(
            f"{name}[0] must not repeat a class in a row, got {ids[twice][0].tolist()} at row {int(np.argmax(twice))}"
        )
    return ClassLabels(given, ids, p, tail, False)


def not_negative(name: str, a: Array) -> None:
    bad = a < 0
    if bad.any():
        place = np.unravel_index(int(np.argmax(bad)), a.shape)
        raise ValueError(f"{name} must not be negative, got {a[place]} at index {tuple(map(int, place))}")


def partials(name: str, value: ArrayLike) -> Array:
    """Rows of four numbers, as contiguous float64."""
    a = array(name, value)
    if a.dtype != _FLOAT64:
        raise TypeError(f"{name} must be float64, got {a.dtype}{instead(name, a.dtype)}")
    if a.ndim == 0 or a.shape[-1] != 4:
        raise ValueError(f"{name} must have shape [..., 4], got {a.shape}")
    return packed(a)


# ------------------------------------------------------------------ sampled losses


def ids(name: str, value: ArrayLike, n: int) -> NDArray[np.int64]:
    """Integers in [0, n) as a contiguous int64 array: a copy, which nobody can change after the check."""
    a = integers(name, value)
    b = np.array(a, np.int64, order="C", subok=False)
    if b.size and b.view(np.uint64).max() >= n:  # or negative
        raise bad_label(name, a, int((b.view(np.uint64) >= n).argmax()), n)
    return b


def counts(name: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Expected counts: real numbers of this shape, as contiguous float64."""
    a = packed(same_shape(name, numbers(name, value), shape, "one for each id"), np.float64)
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


def table_shards(name: str, value: Any, ndim: int) -> list[Array]:
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
    """The number of rows of all shards; ValueError if a shard does not have the size that the strategy gives it."""
    n, parts = sum(map(len, arrays)), len(arrays)
    wanted = n // parts
    for k, a in enumerate(arrays):
        size = wanted + (k < n % parts)
        if len(a) != size:
            raise ValueError(f"{name}[{k}] must have {size} rows, its share of {n} by {strategy!r}, got {len(a)}")
    return n


def sampler(value: Any, sampled_values: Any, seed: Any, num_classes: int, kind: type[Any]) -> None:
    """Check a sampler object, if one is given: its range, and that no other source of randomness is given."""
    if value is None:
        return
    if not isinstance(value, kind):
        raise TypeError(f"sampler must be a sampler object, got {shown(value)}")
    if sampled_values is not None:
        raise ValueError("sampler must be None where sampled_values are given")
    if seed is not None:
        raise ValueError(f"seed must be None for a sampler, which has its own stream, got {shown(seed)}")
    if value.range_max != num_classes:
        raise ValueError(f"sampler must have the range num_classes = {num_classes}, got {value.range_max}")


def no_buffers(buffers: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raise TypeError if there is a buffer for a gradient that is SparseRows."""
    for name in names:
        if buffers.get(name) is not None:
            raise TypeError(f"grad_out must be None for {name}: its gradient is SparseRows")
