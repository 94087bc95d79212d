"""What the samplers share: their types, distinct draws."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastloss._core import memory as _memory
from fastloss._native import samplers

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Law: TypeAlias = tuple[int, int, NDArray[Any] | None, Floats | None, float]  # kind, range, table, weights, their total
Seed: TypeAlias = Any  # whatever numpy.random.default_rng takes

NO_IDS: Ids = np.empty(0, np.int64)
NO_IDS.flags.writeable = False


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
