"""What the samplers share: seeds, checks of their arguments, distinct draws."""

from __future__ import annotations

import operator
import os
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _memory
from fastloss._native import samplers

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Law: TypeAlias = tuple[int, int, NDArray[Any] | None, Floats | None, float]  # kind, range, table, weights, their total
Seed: TypeAlias = Any  # whatever numpy.random.default_rng takes

_INT64 = np.dtype(np.int64)
NO_IDS: Ids = np.empty(0, np.int64)
NO_IDS.flags.writeable = False


def resolve_seed(seed: Seed) -> tuple[int, int]:
    """Key and stream of Philox.  For an integer they are those of a TensorFlow op with this seed and no global one."""
    if seed is None:
        bits = os.urandom(16)
        return int.from_bytes(bits[:8], "little"), int.from_bytes(bits[8:], "little")
    if isinstance(seed, (int, np.integer)):
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        return 87654321, int(seed) % 2147483647
    try:
        words = np.random.default_rng(seed).integers(2**64, size=2, dtype=np.uint64)
    except TypeError as error:
        raise TypeError(f"seed must be something that numpy.random.default_rng takes, got {seed!r}") from error
    except ValueError as error:
        raise ValueError(f"seed must be something that numpy.random.default_rng takes, got {seed!r}") from error
    return int(words[0]), int(words[1])


def as_integer(name: str, value: Any, low: int, high: int = 2**63 - 1) -> int:
    """`value` as an int in [low, high]."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], got {number}")
    return number


def as_finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {value!r}") from None
    if not -np.inf < number < np.inf:
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def as_bool(name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    if not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return bool(value)


def as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be a rectangular array, got rows of different lengths") from None


def as_int64(name: str, ids: ArrayLike) -> Ids:
    """`ids` as a C-contiguous int64 array; unsigned numbers that wrap become negative, hence lie outside any range."""
    if type(ids) is np.ndarray and ids.dtype is _INT64 and ids.flags.carray:  # a tenth of the time of the checks below
        return ids
    given = as_array(name, ids)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"{name} must be integers, got dtype {given.dtype}")
    array = given.astype(np.int64, order="C", copy=False)
    return array if array.flags.aligned else array.copy()


def outside(name: str, ids: ArrayLike, range_max: int, bad: int) -> ValueError:
    """The error for the id at flat position `bad`."""
    given = np.asarray(ids)
    place = "" if given.ndim == 0 else f" at row {bad // (given.size // len(given))}"
    return ValueError(f"{name} must lie in [0, {range_max}), got {given.reshape(-1)[bad]}{place}")


def as_ids(name: str, ids: ArrayLike, range_max: int, own: bool = True) -> Ids:
    """`ids` as a C-contiguous int64 array, each in [0, range_max).

    A copy if `own`: ids that say where in a table to read or write must not change after they were checked.
    """
    array = as_int64(name, ids).copy() if own else as_int64(name, ids)
    bad = samplers.outside(array, range_max)
    if bad >= 0:
        raise outside(name, ids, range_max, bad)
    return array


def try_limit(range_max: int, num_sampled: int) -> int:
    """Draws after which skipping repeats gives way to the race.

    TensorFlow reserves words for 1024 draws per id; the other bound keeps the work in proportion to the range.
    """
    by_size, by_range = 1024 * num_sampled, 65536 + 64 * range_max
    return by_size if by_size < by_range else by_range


def finish(law: Law, key: int, stream: int, block: int, out: Ids, filled: int) -> float:
    """Fills the rest of out by the race; returns the number of draws that it would have taken."""
    seen = _memory.zeros(law[1] // 64 + 1, np.uint64, "a mark for each of range_max ids")
    keys = _memory.empty(out.size - filled)
    return float(samplers.race(law, samplers.derive(key, stream, block), stream, out, filled, NO_IDS, seen, keys))
