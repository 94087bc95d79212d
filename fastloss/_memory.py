"""Memory for tables, scratch and large results: where it begins, and whether it is new, decides how fast it is."""

from __future__ import annotations

import mmap
from contextlib import suppress
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 64  # bytes
HUGE = 1 << 21
RECYCLED = range(1 << 22, 1 << 25)  # bytes that glibc, once they were freed, keeps for the next call
SMALL = 1 << 18  # bytes not worth a page of their own
LAZY = getattr(mmap, "MADV_FREE", None)  # tells the system that it may take memory back when it runs short
KEPT = 3 << 25 if LAZY is None else 1 << 30  # bytes that are kept for the next calls, at most


def aligned(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that begin with a cache line or, where NumPy asks the system for huge pages, with one of those.

    On small pages random accesses to a table of a few megabytes take twice the time.
    """
    space = size * dtype.itemsize
    unit = HUGE if space >= 2 * HUGE else LINE
    room = np.zeros(-(-space // unit) * unit + unit, np.uint8)
    first = -room.__array_interface__["data"][0] % unit
    return room[first : first + space].view(dtype)


def _map(wanted: int, space: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, space)
    except OSError:
        _kept.clear()  # it may be what is lacking
    try:
        return mmap.mmap(-1, space)
    except OSError as error:
        raise MemoryError(f"no room for {wanted} bytes: {error}") from None


class _Room:
    """Where the scratch of a call lies, or a result: kept for the next calls once the last array of it is gone."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // HUGE) * HUGE
        self._memory = _map(size, self.size + HUGE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel may have none
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(self._memory, np.uint8)
        first = -whole.__array_interface__["data"][0] % HUGE
        self._bytes = whole[first : first + self.size]

    def lend(self) -> NDArray[np.uint8]:
        return np.asarray(_Loan(self, self._bytes.__array_interface__))

    def take_back(self) -> None:
        if self.size > KEPT:
            return
        if LAZY is not None:
            with suppress(OSError):
                self._memory.madvise(LAZY)
        _kept.append(self)
        with suppress(IndexError):  # another thread may have taken them
            while sum(room.size for room in _kept) > KEPT:
                _kept.pop(0)


class _Loan:
    """What NumPy holds on to as long as there is an array of it."""

    def __init__(self, room: _Room, interface: dict[str, Any]) -> None:
        self._room = room
        self.__array_interface__ = interface

    def __del__(self) -> None:
        self._room.take_back()


_kept: list[_Room] = []


def _large(size: int) -> NDArray[np.uint8]:
    """Bytes that the system need not clear again for every call: that takes longer than most losses."""
    for room in list(_kept):
        if size <= room.size <= 2 * size:
            with suppress(ValueError):  # another thread may have taken it
                _kept.remove(room)
                return room.lend()
    return _Room(size).lend()


def empty_like(a: NDArray[Any]) -> NDArray[Any]:
    """`numpy.empty_like`, of no subclass, for a result; a large one lies where an earlier one lay."""
    if not RECYCLED.stop <= a.nbytes <= KEPT or not a.flags.c_contiguous:
        return np.empty_like(a, subok=False)
    return _large(a.nbytes)[: a.nbytes].view(a.dtype).reshape(a.shape)


def pieces(dtype: np.dtype[Any], *counts: int) -> list[NDArray[Any]]:
    """Scratch: so many numbers each, not zeroed, from the start of a cache line.

    Parts of one array, for only large ones have huge pages: on small ones what is to stay in a cache collides.
    """
    line = LINE // dtype.itemsize
    starts = [0, *accumulate(-(-n // line) * line + line for n in counts)]
    size = starts[-1] + line
    space = size * dtype.itemsize
    memory = np.empty(size, dtype) if space < SMALL or space in RECYCLED else _large(space).view(dtype)
    first = -memory.__array_interface__["data"][0] % LINE // dtype.itemsize
    return [memory[first + start : first + start + n] for start, n in zip(starts, counts, strict=False)]
