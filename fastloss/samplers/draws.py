"""What the samplers share: their types, distinct draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastloss._core import memory as _memory
from fastloss._native import samplers

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Seed: TypeAlias = Any  # whatever numpy.random.default_rng takes

NO_IDS: Ids = np.empty(0, np.int64)
NO_IDS.flags.writeable = False


class Law(NamedTuple):
    """A probability for each id in [0, range_max), as kernels take it."""

    kind: int  # of samplers.LAWS
    range_max: int
    table: NDArray[Any] | None = None
    weights: Floats | None = None
    total: float = 0.0  # of the weights


class Stream(NamedTuple):
    """What a call that draws by a law needs of a sampler or an alias table."""

    law: Law
    drawable: int  # ids of positive probability
    key: int  # of random bits that are this call's own


class Source(ABC):
    """What ids can be drawn from: the candidate samplers and alias tables."""

    _drawable: int  # ids of positive probability

    @abstractmethod
    def _opened(self, num_sampled: int, seed: Seed) -> AbstractContextManager[Stream]:
        """For `opened`."""


def opened(source: Source, num_sampled: int, seed: Seed) -> AbstractContextManager[Stream]:
    """Law and random bits for one call; a sampler is locked meanwhile, and then goes on in its stream."""
    return source._opened(num_sampled, seed)


def try_limit(range_max: int, num_sampled: int) -> int:
    """Draws after which skipping repeats gives way to the race.

    TensorFlow reserves words for 1024 draws per id; the other bound keeps the work in proportion to the range.
    """
    by_size, by_range = 1024 * num_sampled, 65536 + 64 * range_max
    return by_size if by_size < by_range else by_range


def finish(law: Law, key: int, stream: int, block: int, out: Ids, filled: int) -> float:
    """Fills the rest of out by the race; returns the number of draws that it would have taken."""
    seen = _memory.zeros(law.range_max // 64 + 1, np.uint64, "a mark for each of range_max ids")
    scratch = _memory.empty(out.size - filled)
    own = samplers.derive(key, stream, block)
    return float(samplers.race(law, own, stream, out, filled, excluded=NO_IDS, seen=seen, scratch=scratch))
