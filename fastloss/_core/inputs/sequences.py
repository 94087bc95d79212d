"""Sequences: how long they are, where they begin, and the labels in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import memory as _memory
from fastloss._core.inputs.arrays import array, integers, loss_dtype, numbers, packed, same_shape, sequence, with_axes
from fastloss._core.inputs.values import flag, shown

Array = NDArray[Any]


def lengths(name: str, value: ArrayLike, size: int, most: int, unit: str) -> Array:
    """One length in [0, most] for each of `size` rows, as contiguous int64: a copy; a single one serves all."""
    given = integers(name, value)
    if given.shape not in ((), (size,)):
        raise ValueError(f"{name} must have shape ({size},), one length a row, got {given.shape}")
    _memory.room(name, f"shape {given.shape}", given.nbytes)
    a = given.copy()
    if a.size and not (a.min() >= 0 and a.max() <= most):
        row = int(np.argmax((a < 0) | (a > most)))
        raise ValueError(f"{name} must lie in [0, {most}], the number of {unit}, got {a.reshape(-1)[row]} at row {row}")
    return packed(a, np.int64) if a.ndim else np.full(size, a, np.int64)


def offsets(name: str, value: ArrayLike, most: int) -> Array:
    """Where each of some sequences starts in `most` tokens, and where the last one ends, as int64: a copy."""
    given = integers(name, value)
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"{name} must have shape [number of sequences + 1], got {given.shape}")
    _memory.room(name, f"shape {given.shape}", given.nbytes)
    a = given.copy()
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


def concatenated(name: str, value: ArrayLike, length: ArrayLike | None, size: int | None = None) -> tuple[Array, ...]:
    """Sequences as rows or concatenated; each one's first element, over the flattened array, and its length."""
    a = integers(name, value)
    of = "label_length" if name == "labels" else f"{name}_length"
    if a.ndim == 2:
        n_rows = a.shape[0] if size is None else size
        if a.shape[0] != n_rows:
            raise ValueError(f"{name} must have shape ({size}, any), one row for each of the batch, got {a.shape}")
        n = lengths(of, a.shape[1] if length is None else length, n_rows, a.shape[1], name)
        return a, np.arange(n_rows, dtype=np.int64) * a.shape[1], n
    if a.ndim != 1:
        raise ValueError(f"{name} must have shape [batch, length] or be concatenated, got shape {a.shape}")
    given = integers(of, array(of, length))  # type: ignore[arg-type]
    n = lengths(of, given, given.size if size is None else size, a.size, name)
    ends = np.cumsum(n)
    if n.size and ends[-1] != a.size:
        raise ValueError(f"{of} must sum to {a.size}, the number of concatenated {name}, got {ends[-1]}")
    return a, ends - n, n


def as_many(name: str, n: int, other: str, of_other: int) -> None:
    """As many sequences as the other argument has."""
    if n != of_other:
        raise ValueError(f"{name} must have as many sequences as {other}, {of_other}, got {n}")


def bad_symbol(labels: Array, start: Array, row: int, k: int, n_classes: int, blank: int) -> ValueError:
    """The error for label k of this row of sequences that `concatenated` has looked at."""
    value = labels.reshape(-1)[start[row] + k] if labels.ndim == 1 else labels[row, k]
    rule = f"not hold blank_index {blank}" if value == blank else f"lie in [0, {n_classes})"
    return ValueError(f"labels must {rule}, got {value} at row {row}, label {k}")


def over_time(logits: Any, targets: Any, weights: Any) -> tuple[list[Array], list[Any], list[Any]]:
    """Lists of as many arrays, one for each time; the logits are all alike, the others not looked at yet."""
    xs = sequence("logits", logits, "arrays, one for each time")
    ys = sequence("targets", targets, "arrays, one for each time")
    ws = sequence("weights", weights, "arrays, one for each time")
    if not len(xs) == len(ys) == len(ws) != 0:
        raise ValueError(
            "logits, targets and weights must be lists of the same length, not empty, got "
            f"{len(xs)}, {len(ys)} and {len(ws)}"
        )
    xs = [array(f"logits[{t}]", x) for t, x in enumerate(xs)]
    loss_dtype("logits[0]", xs[0].dtype)
    with_axes("logits[0]", xs[0], "batch", "class")
    for t, x in enumerate(xs):
        same_shape(f"logits[{t}]", x, xs[0].shape, "that of logits[0]")
        if x.dtype != xs[0].dtype:
            raise TypeError(f"logits[{t}] must be {xs[0].dtype}, as logits[0], got {x.dtype}")
    return xs, ys, ws


def per_position(weights: ArrayLike | None, shape: tuple[int, ...], of: str) -> Array | None:
    """Weights, checked, as they came."""
    return None if weights is None else same_shape("weights", numbers("weights", weights), shape, of)


def weights_or_lengths(weights: Array | None, given: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Lengths, if there are any, of sequences in positions [batch, time]; else there must be weights."""
    if given is None:
        if weights is None:
            raise TypeError("weights must be given, or lengths")
        return None
    return lengths("lengths", given, shape[0], shape[1], "timesteps")


def across(average_time: bool, average_batch: bool, sum_time: bool, sum_batch: bool) -> tuple[bool, bool, bool, bool]:
    """Over what sequence_loss averages, and over what it sums: not both."""
    average_time = flag("average_across_timesteps", average_time)
    average_batch = flag("average_across_batch", average_batch)
    sum_time = flag("sum_over_timesteps", sum_time)
    sum_batch = flag("sum_over_batch", sum_batch)
    if (average_time or average_batch) and (sum_time or sum_batch):
        raise ValueError(
            "average_across_timesteps and average_across_batch must not go with sum_over_timesteps and sum_over_batch, "
            f"got {average_time}, {average_batch}, {sum_time}, {sum_batch}"
        )
    return average_time, average_batch, sum_time, sum_batch


def loss_function(name: str, value: Any, differentiated: bool) -> None:
    """A function that gives losses, and their gradients where they are asked for."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function, got {shown(value)}")
    if value is not None and differentiated and not hasattr(value, "wrt"):
        raise TypeError(f"{name} must be a loss of fastloss to have a gradient, got {shown(value)}")
