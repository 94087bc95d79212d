"""The same numbers, laid out in memory in every way that must be read or written in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

GUARD = 0xA5
LAYOUTS = ("fortran", "strided", "reversed", "mirrored", "padded", "unaligned", "swapped")


def _memory(n_bytes: int) -> Any:
    return np.full(n_bytes, GUARD, np.uint8)


def _strides(shape: tuple[int, ...], itemsize: int) -> list[int]:
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(1, n)
    return strides[::-1]


def blank(shape: tuple[int, ...], dtype: Any, layout: str) -> tuple[Any, Any]:
    """An array of this shape, laid out so, and all the bytes around it, which are guards."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    strides = _strides(shape, size)
    first, backward = 64, ()
    if layout == "fortran":
        strides = _strides(shape[::-1], size)[::-1]
    elif layout == "strided":
        strides = [s * 3 ** (len(shape) - k) for k, s in enumerate(strides)]
    elif layout == "reversed":
        backward = tuple(range(len(shape)))
    elif layout == "mirrored":
        backward = tuple(range(len(shape)))[-1:]
    elif layout == "padded" and shape:
        strides = _strides((*shape[:-1], shape[-1] + 3), size)
    elif layout == "unaligned":
        first += 1
    elif layout == "swapped" and len(shape) > 1:
        strides = _strides((shape[1], shape[0], *shape[2:]), size)
        strides[:2] = strides[1], strides[0]
    span = sum((max(1, n) - 1) * s for n, s in zip(shape, strides, strict=True)) + size
    for k in backward:
        first += (max(1, shape[k]) - 1) * strides[k]
        strides[k] = -strides[k]
    memory = _memory(span + 192)
    lead = -memory.__array_interface__["data"][0] % 64
    whole = memory[lead:]
    view = np.ndarray(shape, np.uint8 if dtype.kind == "V" else dtype, whole, first, strides)
    if dtype.kind == "V":  # bfloat16: NumPy makes no array of it over a buffer
        view = np.ndarray(shape, np.uint16, whole, first, strides).view(dtype)
    return view, memory


def lay_out(a: Any, layout: str) -> Any:
    """The array in this layout: one of LAYOUTS, "c", "read-only" or "broadcast K", equal along axis K."""
    if layout == "c":
        return a.copy()
    if layout == "read-only":
        a = a.copy()
        a.flags.writeable = False
        return a
    if layout.startswith("broadcast"):
        k = int(layout.split()[1])
        return a.copy() if k >= a.ndim or a.shape[k] == 0 else np.broadcast_to(a.take([0], k), a.shape)
    view, _ = blank(a.shape, a.dtype, layout)
    view[...] = a
    return view


def is_guarded(view: Any, memory: Any) -> bool:
    """Whether the bytes around the array are still guards; overwrites the array."""
    raw = view.view(np.uint16) if view.dtype.kind == "V" else view
    raw[...] = np.full((), np.frombuffer(bytes([GUARD]) * raw.itemsize, raw.dtype)[0])
    return bool((memory == GUARD).all())


def leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with every array in it changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(leaves(v, change) for v in value)
    return value
