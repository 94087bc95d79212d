"""Labels: classes of rows, of the k best, of sequences; what is ignored; the errors for one that no class has."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core.inputs.arrays import array, integers, numbers, packed, place, same_shape, without
from fastloss._core.inputs.values import choice, index

Array = NDArray[Any]

TAILS = ("drop", "renormalize", "other")


def bad_label(name: str, a: Array, row: int, n_classes: int, ignore: int | None = None) -> ValueError:
    """The error for the label in this row, rows counted over the flattened array."""
    at, where = place(a, row)
    rule = f"lie in [0, {n_classes})" + ("" if ignore is None else f" or be ignore_index {ignore}")
    return ValueError(f"{name} must {rule}, got {a[at]}{where}")


def ignored(value: int | None) -> int | None:
    """ignore_index as the kernels take it; None if no int64 label can equal the number."""
    if value is None:
        return None
    k = index("ignore_index", value)
    return k if -(2**63) <= k < 2**63 else None


def class_indices(labels: ArrayLike, logits: Array, axis: int) -> Array:
    """A class for each row of logits."""
    y = integers("labels", labels)
    return same_shape("labels", y, without(logits.shape, axis), "that of logits without axis")


def indices_or_targets(labels: ArrayLike, logits: Array, axis: int, ignore_index: int | None) -> tuple[Array, bool]:
    """Labels, and whether they are classes; with as many axes as the logits they are targets for every class."""
    y = array("labels", labels)
    if y.ndim != logits.ndim:
        return class_indices(labels, logits, axis), True
    if ignore_index is not None:
        got = ignored(ignore_index)
        raise ValueError(f"ignore_index must be None where labels are targets, got {got} (use sample_weight)")
    return numbers("labels", y), False


def targets(name: str, value: ArrayLike, logits: Array) -> Array:
    """Class indices, or a number for every class, of positions whose classes are the logits' last axis."""
    y = array(name, value)
    if y.ndim == logits.ndim:
        return same_shape(name, numbers(name, y), logits.shape, "that of logits")
    rule = "that of logits, with or without classes"
    if y.size == 0 and isinstance(value, list | tuple):  # an empty list has no dtype of its own
        y = y.astype(np.int64)
    return same_shape(name, integers(name, y), logits.shape[:-1], rule)


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
    if isinstance(value, tuple) and len(value) == 2:
        best = array(f"{name}[0]", value[0]), value[1]
        if best[0].ndim == len(shape) + 1:
            return _best_labels(name, best, shape, n_classes, ignore, tail)
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
        at, where = place(probs, int(np.argmax(wrong)))
        raise ValueError(f"{name}[1] must be finite and not negative, got {probs[at]}{where}")
    ordered = np.sort(ids, -1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
    if twice.any():
        raise ValueError(
            f"{name}[0] must not repeat a class in a row, got {ids[twice][0].tolist()} at row {int(np.argmax(twice))}"
        )
    return ClassLabels(given, ids, p, tail, False)


def tail_alone(tail: str, smoothing: float, class_weight: Array | None) -> None:
    """All other classes together are no class that could be weighed or smoothed towards."""
    if tail == "other" and (smoothing != 0 or class_weight is not None):
        raise ValueError("tail must not be 'other' where label_smoothing or class_weight is given")


def not_negative(name: str, a: Array) -> None:
    bad = a < 0
    if bad.any():
        at, where = place(a, int(np.argmax(bad)))
        raise ValueError(f"{name} must not be negative, got {a[at]}{where}")
