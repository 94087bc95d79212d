"""What the samplers share: seeds, checks of their arguments, distinct draws."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import memory as _memory
from fastloss._core.values import array, scalar, shown
from fastloss._core.values import whole as as_integer
from fastloss._native import samplers

__all__ = ["as_integer"]  # the name that it has among the samplers

Ids: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Seed: TypeAlias = Any  # whatever numpy.random.default_rng takes

_INT64 = np.dtype(np.int64)
_PIECE = 1 << 20  # elements that are copied between two looks at pending signals
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


def resolve_seed(seed: Seed) -> tuple[int, int]:
    """Key and stream of Philox.  For an integer they are those of a TensorFlow op with this seed and no global one."""
    if seed is None:
        bits = os.urandom(16)
        return int.from_bytes(bits[:8], "little"), int.from_bytes(bits[8:], "little")
    if isinstance(seed, (int, np.integer)):
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {shown(seed)}")
        return 87654321, int(seed) % 2147483647
    rule = f"seed must be something that numpy.random.default_rng takes, got {shown(seed)}"
    try:
        words = np.random.default_rng(_plain(seed)).integers(2**64, size=2, dtype=np.uint64)
    except ValueError as error:
        raise ValueError(rule) from error
    except Exception as error:  # of whatever kind: some objects' methods raise anything
        raise TypeError(rule) from error
    return int(words[0]), int(words[1])


def as_finite(name: str, value: Any) -> float:
    """`value` as a number that a float32 holds."""
    return scalar(name, value, -3e38, 3e38)


def _plain(seed: Any, depth: int = 0) -> Any:
    """A seed that NumPy can take apart: np.matrix, whose rows are matrices, and lists in themselves crash it."""
    if isinstance(seed, np.ma.MaskedArray) or depth > 8:
        raise TypeError
    if isinstance(seed, np.ndarray):
        return np.asarray(seed) if seed.dtype != object else _plain(seed.tolist(), depth + 1)
    return [_plain(item, depth + 1) for item in seed] if isinstance(seed, (list, tuple)) else seed


def as_bool(name: str, value: Any) -> bool:
    if value is True or value is False:
        return value
    if not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be a bool, got {shown(value)}")
    return bool(value)


def copied(given: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """A copy in C order, made in pieces, for an interrupt is heard between two of them."""
    if given.size <= _PIECE:
        return np.array(given, dtype, order="C")
    out = _memory.empty(given.shape, dtype)
    into = out.reshape(-1)
    source = given.reshape(-1) if given.ndim == 1 or given.flags.c_contiguous else given.flat
    for first in range(0, into.size, _PIECE):
        into[first : first + _PIECE] = source[first : first + _PIECE]
    return out


def as_int64(name: str, ids: ArrayLike) -> Ids:
    """`ids` as a C-contiguous int64 array; unsigned numbers that wrap become negative, hence lie outside any range."""
    if type(ids) is np.ndarray and ids.dtype is _INT64 and ids.flags.carray:  # a tenth of the time of the checks below
        return ids
    given = array(name, ids)
    empty_list = given.size == 0 and given.dtype.kind == "f" and not isinstance(ids, np.ndarray)  # has no dtype
    if given.dtype.kind not in "iu" and not empty_list:
        raise TypeError(f"{name} must be integers, got dtype {given.dtype}")
    if given.dtype == _INT64 and given.flags.c_contiguous and given.flags.aligned:
        return given.view(_INT64)
    return copied(given, np.int64)


def as_weights(name: str, value: ArrayLike) -> NDArray[Any]:
    """A vector of real numbers, of any dtype and layout."""
    given = array(name, value)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, got dtype {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"{name} must be a vector, got shape {given.shape}")
    return given


def outside(name: str, ids: ArrayLike, as_read: Ids, range_max: int, bad: int) -> ValueError:
    """The error for the id at flat position `bad`."""
    place = "" if as_read.ndim == 0 else f" at row {bad // (as_read.size // len(as_read))}"
    got = int(as_read.reshape(-1)[bad])
    got += 2**64 if got < 0 and np.asarray(ids).dtype.kind == "u" else 0  # it had wrapped
    return ValueError(f"{name} must lie in [0, {range_max}), got {got}{place}")


def as_ids(name: str, ids: ArrayLike, range_max: int, own: bool = True) -> Ids:
    """`ids` as a C-contiguous int64 array, each in [0, range_max).

    A copy if `own`: ids that say where in a table to read or write must not change after they were checked.
    """
    as_read = copied(as_int64(name, ids), np.int64) if own else as_int64(name, ids)
    bad = samplers.outside(as_read, range_max)
    if bad >= 0:
        raise outside(name, ids, as_read, range_max, bad)
    return as_read


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
