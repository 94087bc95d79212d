"""What the samplers share: seeds, checks of their arguments, distinct draws."""

from __future__ import annotations

import operator
import os
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._native import samplers

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Law: TypeAlias = tuple[int, int, Ids | None, Floats | None, float]  # kind, range, table, weights, their total
Seed: TypeAlias = Any  # whatever numpy.random.default_rng takes

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


def as_bool(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return bool(value)


def as_ids(name: str, ids: ArrayLike, range_max: int) -> Ids:
    """`ids` as a C-contiguous int64 array, each in [0, range_max)."""
    given = np.asarray(ids)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"{name} must be integers, got dtype {given.dtype}")
    # an unsigned number that wraps becomes negative, hence lies outside
    array = given.astype(np.int64, order="C", copy=False)
    bad = samplers.outside(array.reshape(-1), range_max)
    if bad >= 0:
        place = "" if array.ndim == 0 else f" at row {bad // (array.size // len(array))}"
        raise ValueError(f"{name} must lie in [0, {range_max}), got {given.reshape(-1)[bad]}{place}")
    return array


def try_limit(range_max: int, num_sampled: int) -> int:
    """Draws after which skipping repeats gives way to the race.

    TensorFlow reserves words for 1024 draws per id; 64 per class keeps the work in proportion to the range.
    """
    return min(1024 * num_sampled, 64 * range_max)


def distinct(law: Law, key: int, stream: int, block: int, num_sampled: int) -> tuple[Ids, float]:
    """Distinct ids in the order of their first draw, and the number of draws that it took or would have taken."""
    range_max = law[1]
    out = np.empty(num_sampled, np.int64)
    seen = np.zeros(samplers.set_size(range_max, num_sampled), np.uint64)
    limit = try_limit(range_max, num_sampled)
    filled, tries = samplers.sample(*law, key, stream, block, out, seen, limit)
    if filled < num_sampled:
        seen = np.zeros(range_max // 64 + 1, np.uint64)
        keys = np.empty(num_sampled - filled)
        tries += samplers.race(*law, samplers.derive(key, stream, block), stream, out, filled, NO_IDS, seen, keys)
    return out, tries
