"""The one place that decides every buffer: where values, gradients and second derivatives go.

A value goes to `out`, a gradient to `grad_out`, a Hessian to `hess_out`, or to new memory of the same shape and dtype.
No buffer may overlap what is still read or also written; only the gradient of a loss's main input may be that input
itself.  A new gradient has its argument's memory layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core.gradients import Wants

Array = NDArray[Any]

_PLAIN = (np.ndarray, np.memmap)
FITS = 3e38  # is finite in every dtype of a loss


def _same_memory(a: Array, b: Array) -> bool:
    return (
        a.shape == b.shape
        and a.strides == b.strides
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _overlap(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=100_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def checked(
    name: str,
    value: Array | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    apart: dict[str, Array | None],
    alias: Array | None = None,
) -> Array | None:
    """Check a buffer for results: its shape and dtype, that it is writable, and shares no memory with named arrays.

    It may be `alias` itself (in place), but must not overlap it in any other way.
    """
    if value is None:
        return None
    if type(value) not in _PLAIN:  # a subclass neither: its mask, unit or second axis would be ignored
        plain = "a plain" if isinstance(value, np.ndarray) else "an"
        raise TypeError(f"{name} must be {plain} array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if not value.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    for other, a in apart.items():
        if a is None or (a is value and a is alias):
            continue
        if _overlap(value, a) and not (a is alias and _same_memory(value, a)):
            raise ValueError(f"{name} must not overlap {other}")
    if value.size > 1 and any(s == 0 and n > 1 for s, n in zip(value.strides, value.shape, strict=True)):
        raise ValueError(f"{name} must not be a broadcast array")
    return value


def fits(value: Any, like: Array, apart: Array) -> bool:
    """Whether `checked` surely has no objection: a quick look, for small calls.  `value` may be `like` itself."""
    return (
        type(value) is np.ndarray
        and value.dtype is like.dtype
        and value.shape == like.shape
        and value.flags.c_contiguous
        and value.flags.writeable
        and (value is like or not np.may_share_memory(value, like))
        and not np.may_share_memory(value, apart)
    )


# ------------------------------------------------------------------ values


def value(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any], apart: dict[str, Array | None]) -> Array:
    """Where a result goes."""
    given = checked("out", out, shape, dtype, apart)
    return _memory.empty(shape, dtype) if given is None else given


def value_like(out: Array | None, a: Array, apart: dict[str, Array | None]) -> Array:
    """Where a result goes that has the layout of `a`, and may be written over it."""
    given = checked("out", out, a.shape, a.dtype, apart, a)
    return _memory.empty_like(a) if given is None else given


def returned(result: Array, out: Array | None) -> Any:
    """The result as the caller gets it: a number where it is one, but an array that was handed over."""
    return result if result.ndim or out is not None else result[()]


def narrow(out: Array, values: Any) -> None:
    """Write into an array of perhaps fewer bits; numbers too large for it become infinite, without a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = values


def number(value: float, dtype: np.dtype[Any], out: Array | None) -> Any:
    """A reduced loss, written to `out` if there is one."""
    if out is None and -FITS < value < FITS:  # nothing to silence: np.errstate takes longer than a small loss
        return dtype.type(value)
    result = _memory.empty((), dtype) if out is None else out
    narrow(result, value)
    return returned(result, out)


# ------------------------------------------------------------------ gradients


def is_plain(wants: Wants, like: Array, apart: Array) -> bool:
    """Whether only the gradient to `like` is asked for, and nothing is left to be checked about its buffer."""
    if not wants.plain:
        return False
    given = wants.buffers.get(wants.wrt[0])
    return given is None or fits(given, like, apart)


def plain_gradient(wants: Wants, like: Array) -> Array:
    """Where that gradient goes, once is_plain."""
    name = wants.wrt[0]
    given = wants.buffers.get(name)
    grad: Array = _memory.empty_like(like) if given is None else given
    wants.grads[name] = grad
    return grad


def _others(wants: Wants) -> dict[str, Array | None]:
    """The gradients that are already decided."""
    others: dict[str, Array | None] = {}
    for name, grad in wants.grads.items():
        several = {f"{name}[{k}]": g for k, g in enumerate(grad)} if isinstance(grad, list) else {name: grad}
        others |= {f"the buffer for {of}": g for of, g in several.items() if isinstance(g, np.ndarray)}
    return others


def gradient(
    wants: Wants, name: str, a: Array, apart: dict[str, Array | None], *, in_place: bool = False
) -> Array | None:
    """Where the gradient to this argument goes, None if it is not wanted; `in_place`: it may be the argument itself."""
    if name not in wants.wrt:
        return None
    check.differentiable(name, a)
    others = {name: a, **apart, **_others(wants)}
    given = checked("grad_out", wants.buffers.get(name), a.shape, a.dtype, others, a if in_place else None)
    grad = wants.grads[name] = _memory.empty_like(a) if given is None else given
    return grad


def gradients(
    wants: Wants, name: str, arrays: list[Array], apart: dict[str, Array | None], *, in_place: bool = False
) -> list[Array] | None:
    """The same for an argument that is a list of arrays."""
    if name not in wants.wrt:
        return None
    given = wants.buffers.get(name)
    given = [None] * len(arrays) if given is None else check.one_buffer_each("grad_out", given, len(arrays), name)
    others = {f"{name}[{k}]": a for k, a in enumerate(arrays)} | apart | _others(wants)
    grads: list[Array] = []
    for k, (a, buffer) in enumerate(zip(arrays, given, strict=True)):
        buffer = checked(f"grad_out[{k}]", buffer, a.shape, a.dtype, others, a if in_place else None)
        grads.append(_memory.empty_like(a) if buffer is None else buffer)
        others[f"grad_out[{k}]"] = grads[k]
    wants.grads[name] = grads
    return grads


def full_gradients(
    wants: Wants, arguments: dict[str, Array], main: str, shape: tuple[int, ...], apart: dict[str, Array | None]
) -> dict[str, Array]:
    """Where the kernel writes gradients to arguments that broadcast to this shape; `handed_over` sums them back."""
    full: dict[str, Array] = {}
    for name in wants.wrt:
        a = arguments[name]
        others = {**arguments, **apart}
        grad = gradient(wants, name, a, others, in_place=name == main and a.shape == shape)
        assert grad is not None
        full[name] = grad if a.shape == shape else _memory.empty(shape)
    return full


def hand_over(wants: Wants, full: dict[str, Array]) -> None:
    """What the kernel wrote into `full_gradients`, to where the caller gets it."""
    for name, grad in full.items():
        given = wants.grads[name]
        if given is not grad:
            narrow(given, _sum_back(grad, given.shape))


def _sum_back(grad: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an argument that was broadcast: summed over the axes it was repeated along."""
    lead = grad.ndim - len(shape)
    axes = tuple(k for k in range(grad.ndim) if k < lead or (shape[k - lead] == 1 and grad.shape[k] != 1))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(grad.sum(axis=axes, dtype=np.float64)).reshape(shape)


def hessian(wants: Wants, like: Array, apart: dict[str, Array | None]) -> Array | None:
    """Where the second derivatives go, laid out as the main input; None: not asked for."""
    if wants.hessian_kind is None:
        return None
    given = checked("hess_out", wants.buffers.get("hessian"), like.shape, like.dtype, {**apart, **wants.grads})
    wants.hessian = _memory.empty_like(like) if given is None else given
    return wants.hessian


def product(buffer: Array, a: Array) -> Array:
    """The buffer itself where a kernel can write a gradient like `a` to it and still read that, else other memory."""
    fits = buffer.dtype == a.dtype and buffer.flags.c_contiguous and buffer.flags.aligned
    return buffer if fits and not np.may_share_memory(buffer, a) else _memory.empty_like(a)
