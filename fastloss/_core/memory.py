"""The one place that allocates tables, scratch and results: how they are aligned, and the error if memory is short.

Nothing is kept between calls.  Every array is NumPy's own: private to the process, and freed with its last reference.
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
    """The limits of this process's memory cgroups and of those above them."""
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
    """Bytes that this process may have at all; `lazy`: for arrays of which most is never touched."""
    return min(_physical(), _address_space(), *(() if lazy else _cgroups()))


def room(name: str, value: Any, space: int, *, lazy: bool = False) -> None:
    """Raise MemoryError, before anything is allocated, if this argument asks for more than the machine has."""
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
    """The array, with every byte 0xFF if FASTLOSS_POISON=1."""
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


small = empty if POISON else np.empty  # for sizes that need no check: half the time


def empty_like(a: Array, dtype: DTypeLike | None = None, name: str = "a result") -> Array:
    """`numpy.empty_like`, but never a subclass."""
    try:
        array = np.empty_like(a, dtype, subok=False)
    except (MemoryError, ValueError):
        raise _none(name, a.shape, dtype or a.dtype) from None
    return poisoned(_checked(name, array)) if POISON or array.nbytes > LARGE else array


def zeros(shape: Any, dtype: DTypeLike = np.float64, name: str = "an array") -> Array:
    """`numpy.zeros`, for results and sums: pages that are never written take no memory."""
    try:
        array = np.zeros(shape, dtype)
    except (MemoryError, ValueError):
        raise _none(name, shape, dtype) from None
    return _checked(name, array, lazy=True)


def aligned(size: int, dtype: np.dtype[Any], name: str = "a table") -> Array:
    """Zeros that begin at a cache line or, where NumPy asks the system for huge pages, at a huge page.

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


def copied(name: str, given: Array, dtype: Any) -> Array:
    """A copy in C order, made in pieces, so that an interrupt can come between two of them."""
    if given.size <= PIECE:
        return np.array(given, dtype, order="C")
    out = empty(given.shape, dtype, name)
    into = out.reshape(-1)
    source = given.reshape(-1) if given.ndim == 1 or given.flags.c_contiguous else given.flat
    for first in range(0, into.size, PIECE):
        into[first : first + PIECE] = source[first : first + PIECE]
    return out


def pieces(dtype: np.dtype[Any], *counts: int) -> list[Array]:
    """Scratch arrays of these sizes, not zeroed, each from the start of a cache line.

    They are parts of one array, because only large arrays get huge pages; on small pages their lines collide in caches.
    """
    line = LINE // dtype.itemsize
    starts = [0, *accumulate(-(-n // line) * line + line for n in counts)]
    memory = empty(starts[-1] + line, dtype, "scratch")
    first = -memory.__array_interface__["data"][0] % LINE // dtype.itemsize
    return [memory[first + start : first + start + n] for start, n in zip(starts, counts, strict=False)]
