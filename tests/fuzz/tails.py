"""What losses share: weights, reductions, cotangents, buffers, and how far rounding may carry each result."""

from __future__ import annotations

from typing import Any

import numpy as np
from reference import wide

from .bounds import Expect, eps, unit
from .calls import Call
from .draws import Draw
from .layouts import LAYOUTS

INFINITE = ("softmax", "elements", "ctc_loss")  # whose oracles know infinite cotangents
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def loss_dtype(dtype: Any) -> Any:
    return FLOAT64 if np.dtype(dtype) == FLOAT64 else FLOAT32


def finish(draw: Draw, call: Call, shape: tuple[int, ...], main: str, rows: tuple[str, ...], **other: Any) -> Call:
    """The call with what every loss takes; `rows` names the axes of its losses."""
    arguments, n = call.arguments, len(shape)
    if draw.chance(0.3):
        w = np.asarray(draw.weights(draw.broadcast_shape(shape)))
        arguments["sample_weight"] = w
        call.axes["sample_weight"] = rows[n - w.ndim :]
    if draw.chance(0.5):
        arguments["reduction"] = draw.pick(("none", "sum", "mean"))
    if call.wrt and draw.chance(0.4):
        if call.get("reduction") == "none":
            call.cotangent = np.asarray(draw.weights(draw.broadcast_shape(shape), signed=call.hessian is None))
            call.axes["cotangent"] = rows[n - call.cotangent.ndim :]
            if call.cotangent.size and call.wrt == (main,) and call.kind in INFINITE and draw.chance(0.1):
                call.cotangent = call.cotangent.astype(np.float64)
                call.cotangent.reshape(-1)[draw.whole(0, call.cotangent.size - 1)] = draw.pick((np.inf, -np.inf))
                draw.note("cotangent infinite")
        else:
            call.cotangent = np.asarray(draw.rng.uniform(0.5, 2) * (1 if call.hessian else draw.pick((1, -1))))
    return touch(draw, call, main, **other)


def touch(draw: Draw, call: Call, main: str, in_place: bool = True) -> Call:
    """The call with layouts, buffers and a number of threads."""
    kept = dict(call.layouts)
    call.layouts = {**draw.layouts(call.arguments), **kept}
    layouts = ("c", "c", *LAYOUTS)
    layout = call.layouts.get(main, "c")
    in_place = in_place and layout != "read-only" and not layout.startswith("broadcast")
    if draw.chance(0.2):
        call.buffers["out"] = draw.pick(layouts)
        if in_place and main == "x":
            call.buffers["out"] = draw.pick(("in place", call.buffers["out"]))
    if call.wrt and draw.chance(0.3):
        call.buffers["grad_out"] = draw.pick(layouts)
        if in_place and call.wrt == (main,):
            call.buffers["grad_out"] = draw.pick(("in place", call.buffers["grad_out"]))
    if call.hessian and draw.chance(0.3):
        call.buffers["hess_out"] = draw.pick(layouts)
    call.n_threads = draw.pick((None, 1, 2, 3, 4))
    note(draw, call)
    return call


def note(draw: Draw, call: Call) -> None:
    """Counts the function, its options, and how it is called."""
    draw.note(f"function {call.function}")
    for name, value in call.arguments.items():
        if not isinstance(value, np.ndarray) or name in ("sample_weight", "class_weight", "where"):
            draw.note(f"option {name}={value}" if isinstance(value, (bool, str)) else f"option {name}")
    for name, layout in call.buffers.items():
        draw.note(f"buffer {name} {layout}")
    for name, how in call.splits.items():
        draw.note(f"split {name} {how[0]}")
    if call.hessian is not None:
        draw.note(f"hessian {call.hessian}")
    elif call.wrt:
        draw.note(f"wrt {' '.join(call.wrt)}")
    if call.cotangent is not None:
        draw.note("cotangent")
    draw.note(f"threads {call.n_threads}")


class Tail:
    """Weights and reduction of one call whose losses have this shape; row_weight as the mean takes it.

    row_size is the sum of the magnitudes of what a row's weight is the sum of: by default its own.
    """

    def __init__(self, call: Call, shape: tuple[int, ...], row_weight: Any = 1.0, row_size: Any = None) -> None:
        self.reduction = call.get("reduction")
        given = call.arguments.get("sample_weight")
        self.weighted = given is not None
        self.weight = np.broadcast_to(wide(1.0 if given is None else given), shape)
        self.shape = shape
        total = np.broadcast_to(wide(row_weight), shape) * self.weight
        total = np.where(self.weight != 0, total, 0)
        sizes = np.broadcast_to(np.abs(row_weight if row_size is None else row_size), shape) * np.abs(self.weight)
        self.total, size = total.sum(), np.where(self.weight != 0, sizes, 0).sum()
        # relative error of what divides a mean, which weights of both signs let cancel
        self.noise = 16 * eps(np.float64) * (size / np.abs(self.total) if self.total != 0 else 0)
        self.noise = self.noise if self.reduction == "mean" else 0
        cotangent = np.longdouble(1) if call.cotangent is None else wide(call.cotangent)
        if self.reduction == "none":
            self.scale = np.where(self.weight != 0, np.broadcast_to(cotangent, shape) * self.weight, 0)
        elif self.reduction == "sum":
            self.scale = cotangent * self.weight
        else:
            self.scale = cotangent * self.weight / self.total if self.total != 0 else np.zeros(shape, np.longdouble)

    def value(self, loss: Any, error: Any, dtype: Any, free: Any = False) -> Expect:
        """The result, for losses that are off by at most `error`, absolutely; free where they may be anything."""
        loss, error = np.broadcast_to(loss, self.shape), np.broadcast_to(error, self.shape)
        w = self.weight
        with np.errstate(all="ignore"):
            terms = np.where(w != 0, loss * w, 0)
            errors = np.where(w != 0, error * np.abs(w), 0)
            errors = np.where(np.isfinite(terms) & ~np.isnan(errors), errors, 0)  # NaN: of a row that does not count
            if self.reduction == "none":
                return Expect(terms, errors + (unit(terms, dtype) if self.weighted else 0), free & (w != 0))
            total = terms.sum()
            size = np.where(np.isfinite(terms), np.abs(terms), 0).sum() + errors.sum()
            chain = min(loss.size, 16384) / 32  # half a unit for each of the terms that a lane adds up
            error = errors.sum() + (8 + chain + np.log2(1 + loss.size)) * eps(np.float64) * size
            if self.reduction == "mean":
                total, error = (total / self.total, error / np.abs(self.total)) if self.total != 0 else (0 * w.sum(), 0)
                error = error + self.noise * np.abs(total)
            return Expect(total, error + unit(total, dtype), np.any(free & (w != 0)))

    def grad(self, grad: Any, error: Any, dtype: Any, inner: Any, scale: Any, free: Any = False) -> Expect:
        return scaled(grad, error, dtype, inner, scale, free, self.noise)


def scaled(grad: Any, error: Any, dtype: Any, inner: Any, scale: Any, free: Any = False, noise: Any = 0) -> Expect:
    """Gradients of this dtype, computed in another and off by `error` there, times `scale`, which broadcasts."""
    with np.errstate(all="ignore"):
        far = np.isinf(scale)  # then what is not 0 is infinite
        lost = far & (np.abs(grad) <= 4 * unit(0, dtype) + 4 * unit(0, inner))
        want = np.where(scale != 0, np.where(far & (grad == 0), 0, grad * scale), 0)
        size = np.where(far, 0, np.abs(scale)) * error + 2 * unit(want, inner) + noise * np.abs(want)
        if np.dtype(dtype).itemsize < inner.itemsize:  # rounded once more
            size = size + 0.502 * unit(np.abs(want) + size, dtype)
        return Expect(want, np.where(scale != 0, size, 0), (free | lost) & (scale != 0))


def sum_back(expect: Expect, shape: tuple[int, ...], dtype: Any) -> Expect:
    """The same for an argument that was broadcast."""
    want = np.asarray(expect.want)
    if want.shape == tuple(shape):
        return expect
    lead = want.ndim - len(shape)
    axes = tuple(k for k in range(want.ndim) if k < lead or (shape[k - lead] == 1 and want.shape[k] != 1))
    bound, free = (np.broadcast_to(a, want.shape) for a in (expect.bound, expect.free))
    total = want.sum(axes).reshape(shape)
    with np.errstate(all="ignore"):
        size = np.abs(want).sum(axes).reshape(shape)
        error = bound.sum(axes).reshape(shape) + eps(np.float64) * (8 + 2 * np.log2(1 + want.size)) * size
    return Expect(total, error + unit(total, dtype), free.any(axes).reshape(shape))
