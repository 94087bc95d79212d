"""Memory for tables and scratch: where it begins decides how fast it is."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE = 64  # bytes


def aligned(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros that begin with a cache line or, where NumPy asks the system for huge pages, with one of those.

    On small pages random accesses to a table of a few megabytes take twice the time.
    """
    space = size * dtype.itemsize
    unit = 2**21 if space >= 2**22 else LINE
    room = np.zeros(-(-space // unit) * unit + unit, np.uint8)
    first = -room.__array_interface__["data"][0] % unit
    return room[first : first + space].view(dtype)


def pieces(dtype: np.dtype[Any], *counts: int) -> list[NDArray[Any]]:
    """So many numbers each, not zeroed, from the start of a cache line.

    Parts of one array, for only large ones have huge pages: on small ones what is to stay in a cache collides.  And the
    C library keeps one large piece for the next call, while it returns several to the system.
    """
    line = LINE // dtype.itemsize
    starts = [0, *accumulate(-(-n // line) * line + line for n in counts)]
    memory = np.empty(starts[-1] + line, dtype)
    first = -memory.__array_interface__["data"][0] % LINE // dtype.itemsize
    return [memory[first + start : first + start + n] for start, n in zip(starts, counts, strict=False)]
