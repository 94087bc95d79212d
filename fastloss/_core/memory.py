"""The one place that takes memory for tables, scratch and results: where it begins, what is said if there is none.

Nothing is kept between calls; every array is NumPy's own: private to the process, given back when dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

LINE = 64  # bytes
HUGE = 1 << 21
NO_LIMIT = 1 << 62
LARGE = 1 << 26  # bytes that are worth a look at what the machine has
PIECE = 1 << 20  # elements that are copied between two looks at pending signals
POISON = os.environ.get("FASTLOSS_POISON") == "1"  # what is read before it is written shows: NaN, or -1

_CGROUPS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}


def _physical() -> int:
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()) else -1
    return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else NO_LIMIT


def _cgroups() -> Iterator[int]:
    """What the memory cgroups of this process, and those above them, allow."""
    with suppress(OSError):
        with open("/proc/self/cgroup") as f:
            groups = [line.rstrip("\n").split(":", 2) for line in f]
        for _, controllers, path in groups:
            root, file = _CGROUPS.get("memory" if "memory" in controllers.split(",") else controllers, ("", ""))
            for part in [PurePosixPath(path), *PurePosixPath(path).parents] if root else []:
                with suppress(OSError, ValueError), open(f"{root}{part}/{file}") as f:  # "max" is no number
                    yield int(f.read())


def _address_space() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return NO_LIMIT
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return NO_LIMIT if limit == resource.RLIM_INFINITY else limit


def most(*, lazy: bool = False) -> int:
    """Bytes that this process may have at all; `lazy`: of memory most of which is never touched."""
    return min(_physical(), _address_space(), *(() if lazy else _cgroups()))


def room(name: str, value: Any, space: int, *, lazy: bool = False) -> None:
    """MemoryError if what this argument asks for is more than the machine has; nothing has been taken then."""
    if space > LARGE and space > (limit := most(lazy=lazy)):
        raise MemoryError(f"{name} must leave results that fit in memory, of {limit} bytes; got {value}: {space} bytes")


def _checked(name: str, array: Array, *, lazy: bool = False) -> Array:
    if array.nbytes > LARGE and array.nbytes > (limit := most(lazy=lazy)):
        raise MemoryError(f"{name} of shape {array.shape} takes {array.nbytes} bytes; there are {limit}")
    return array


def _none(name: str, shape: Any, dtype: DTypeLike) -> MemoryError:
    """The error where NumPy has no room, or could not count the bytes."""
    space = np.dtype(dtype).itemsize
    for n in shape if isinstance(shape, (tuple, list)) else (shape,):
        space *= int(n)
    return MemoryError(f"{name} of shape {shape} takes {space} bytes, for which there is no room")


def poisoned(array: Array) -> Array:
    """The array, every byte 0xFF where FASTLOSS_POISON asks for it."""
    if POISON and array.size:
        array[...] = np.frombuffer(b"\xff" * array.itemsize, array.dtype)
    return array


def empty(shape: Any, dtype: DTypeLike = np.float64, name: str = "an array") -> Array:
    """`numpy.empty`, for results and scratch."""
    try:
        array = np.empty(shape, dtype)
    except (MemoryError, ValueError):
        raise _none(name, shape, dtype) from None
    return poisoned(_checked(name, array)) if POISON or array.nbytes > LARGE else array


small = empty if POISON else np.empty  # for a size that `room` has looked at: half of the time


def empty_like(a: Array, dtype: DTypeLike | None = None, name: str = "a result") -> Array:
    """`numpy.empty_like`, of no subclass."""
    try:
        array = np.empty_like(a, dtype, subok=False)
    except (MemoryError, ValueError):
        raise _none(name, a.shape, dtype or a.dtype) from None
    return poisoned(_checked(name, array)) if POISON or array.nbytes > LARGE else array


def zeros(shape: Any, dtype: DTypeLike = np.float64, name: str = "an array") -> Array:
    """`numpy.zeros`, for results and sums: what is not written takes nothing."""
    try:
        array = np.zeros(shape, dtype)
    except (MemoryError, ValueError):
        raise _none(name, shape, dtype) from None
    return _checked(name, array, lazy=True)


def aligned(size: int, dtype: np.dtype[Any], name: str = "a table") -> Array:
    """Zeros that begin with a cache line or, where NumPy asks the system for huge pages, with one of those.

    On small pages random accesses to a table of a few megabytes take twice the time.
    """
    space = size * dtype.itemsize
    unit = HUGE if space >= 2 * HUGE else LINE
    try:
        memory = np.zeros(-(-space // unit) * unit + unit, np.uint8)
    except (MemoryError, ValueError):
        raise _none(name, size, dtype) from None
    first = -memory.__array_interface__["data"][0] % unit
    return memory[first : first + space].view(dtype)


def copied(given: Array, dtype: Any) -> Array:
    """A copy in C order, made in pieces, for an interrupt is heard between two of them."""
    if given.size <= PIECE:
        return np.array(given, dtype, order="C")
    out = empty(given.shape, dtype)
    into = out.reshape(-1)
    source = given.reshape(-1) if given.ndim == 1 or given.flags.c_contiguous else given.flat
    for first in range(0, into.size, PIECE):
        into[first : first + PIECE] = source[first : first + PIECE]
    return out


def pieces(dtype: np.dtype[Any], *counts: int) -> list[Array]:
    """Scratch: so many numbers each, not zeroed, from the start of a cache line.

    Parts of one array, for only large ones have huge pages: on small ones what is to stay in a cache collides.
    """
    line = LINE // dtype.itemsize
    starts = [0, *accumulate(-(-n // line) * line + line for n in counts)]
    memory = empty(starts[-1] + line, dtype, "scratch")
    first = -memory.__array_interface__["data"][0] % LINE // dtype.itemsize
    return [memory[first + start : first + start + n] for start, n in zip(starts, counts, strict=False)]
