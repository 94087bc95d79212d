"""Losses of sequences: over positions, lists over time, packed tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference
from reference import wide

import fastloss as fl

from .bounds import Expect, eps, unit
from .calls import Call
from .draws import INTEGERS, Draw
from .tails import loss_dtype, scaled, touch

# average over time, over batch, sum over time, over batch
FLAGS = [(1, 1, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 1), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
NAMES = ("average_across_timesteps", "average_across_batch", "sum_over_timesteps", "sum_over_batch")


def _positions(draw: Draw, shape: tuple[int, ...], width: int, dtype: Any) -> tuple[Any, Any, Any]:
    """Logits, targets and weights; what weighs 0 holds anything."""
    x = draw.floats((*shape, width), dtype)
    w = np.asarray(draw.weights(shape))
    off = wide(w) == 0
    if draw.chance(0.3):
        y = draw.rng.dirichlet(np.ones(width), shape).reshape(*shape, width).astype(dtype)
        draw.note("labels soft")
        if off.any() and draw.chance(0.5):
            y[off] = np.nan
    else:
        y, _ = draw.labels(shape, width)
        if off.any() and draw.chance(0.5):
            info = np.iinfo(y.dtype)
            y[off] = draw.pick((info.max, info.min))
    if off.any() and draw.chance(0.5):
        x[off] = draw.pick((np.nan, np.inf))
    return x, y, w


def _finish(draw: Draw, call: Call, shape: tuple[int, ...], rows: tuple[str, ...], main: str = "logits") -> Call:
    if call.wrt and draw.chance(0.4):
        call.cotangent = np.asarray(draw.weights(shape, signed=True))
        call.axes["cotangent"] = rows
    return touch(draw, call, main)


def make(draw: Draw) -> Call:
    width, dtype = draw.width_and_dtype(600)
    rows = draw.rows(width, 5000)
    n = draw.whole(0, 9) if draw.chance(0.9) else draw.pick((16, 33))
    t = max(0 if draw.chance(0.03) else 1, rows // max(1, n))
    width = max(width, 1)
    x, y, w = _positions(draw, (n, t), width, dtype)
    arguments: dict[str, Any] = {"logits": x, "targets": y}
    axes = {"logits": ("n", "t", "c"), "targets": ("n", "t", "c"), "weights": ("n", "t"), "lengths": ("n",)}
    weighted = draw.chance(0.7)
    if weighted:
        arguments["weights"] = w
    else:
        arguments["logits"], arguments["targets"] = np.where(np.isnan(x) | (x == np.inf), np.zeros((), x.dtype), x), y
        if y.dtype.kind in "iu":
            arguments["targets"] = (y % width).astype(y.dtype) if width <= np.iinfo(y.dtype).max else np.abs(y // 2)
        else:
            arguments["targets"] = np.nan_to_num(wide(y).astype(float)).astype(y.dtype)
    if not weighted or draw.chance(0.2):
        lengths = draw.rng.integers(0, t + 1, n).astype(draw.pick([d for d in INTEGERS if t <= np.iinfo(d).max]))
        arguments["lengths"] = lengths if draw.chance(0.8) or not n else lengths[0]
        if arguments["lengths"].ndim == 0:
            arguments["lengths"] = int(arguments["lengths"])
    flags = draw.pick(FLAGS)
    if flags != FLAGS[0] or draw.chance(0.3):
        arguments |= {name: bool(v) for name, v in zip(NAMES, flags, strict=True)}
    call = Call("sequence", "sequence_loss", arguments, axes=axes, limits={"targets": "c"})
    if draw.chance(0.1):
        soft = arguments["targets"].ndim == 3
        call.arguments["softmax_loss_function"] = (
            fl.softmax_cross_entropy_with_logits if soft else fl.sparse_softmax_cross_entropy_with_logits
        )
    if draw.chance(0.8):
        both = weighted and arguments["weights"].dtype.kind in "fV"
        call.wrt = draw.pick((("logits",), ("logits", "weights"), ("weights",))) if both else ("logits",)
    time, batch = flags[0] or flags[2], flags[1] or flags[3]
    shape = () if time and batch else (n,) if time else (t,) if batch else (n, t)
    names = () if time and batch else ("n",) if time else ("t",) if batch else ("n", "t")
    return _finish(draw, call, shape, names)


class _Losses:
    """Cross entropies of positions and their slopes; those of weight 0 are 0."""

    def __init__(self, x: Any, y: Any, w: Any) -> None:
        self.dtype = loss_dtype(x.dtype)
        on = w != 0
        x = np.where(on[..., None], wide(x), 0)
        if y.ndim == x.ndim:
            z = np.where(on[..., None], wide(y), 0)
        else:
            z = reference.one_hot(np.where(on, y.astype(np.int64), 0), x.shape[-1])
        less, p, others = reference.logsumexp_less(x)
        sick = np.isnan(less).any(-1)
        terms = np.where(z != 0, z * less, 0)
        ulp = 2 if self.dtype == np.float32 else 4
        on = on & (z != 0).any(-1)  # what has no target is 0, whatever the logits are
        self.loss = np.where(on, np.where(sick, np.nan, terms.sum(-1)), 0)
        self.error = ulp * unit(np.abs(terms).sum(-1), self.dtype)
        total = z.sum(-1, keepdims=True)
        up, down = p * (total - z), z * others
        self.slope = np.where(on[..., None], up - down, 0)
        self.slope_error = 4 * unit(np.abs(up) + np.abs(down), self.dtype) + 4 * unit(0, self.dtype)


def _combined(f: _Losses, w: Any, kind: str, axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Value and its error, the denominator, kept as one number for each position."""
    keep = {"axis": axes, "keepdims": True}
    add = lambda v: v.sum(**keep) if axes else v  # noqa: E731
    weighted = np.where(w != 0, w * f.loss, 0)
    d = {"weights": add(w), "count": add((w != 0) * np.longdouble(1)), "one": np.ones_like(add(w))}[kind]
    finite = np.where(np.isfinite(weighted), np.abs(weighted), 0)
    value = np.where(d != 0, add(weighted) / d, 0)
    error = add(np.abs(w) * np.where(np.isfinite(f.loss), f.error, 0)) + 8 * eps(np.float64) * (
        add(finite) + np.abs(value) * add(np.abs(w)) * (kind == "weights")
    )
    return value, np.where(d != 0, error / np.abs(d), 0), d


def _results(
    call: Call, f: _Losses, w: Any, kind: str, axes: tuple[int, ...], shape: tuple[int, ...]
) -> dict[str, Expect]:
    value, error, d = _combined(f, w, kind, axes, shape)
    found = {"value": Expect(value.reshape(shape), (error + unit(value, f.dtype)).reshape(shape))}
    cotangent = np.ones(shape) if call.cotangent is None else wide(call.cotangent)
    cotangent = np.broadcast_to(cotangent.reshape(value.shape), w.shape)
    scale = np.where((d != 0) & (w != 0), cotangent * w / d, 0)
    a = call.arguments
    if "logits" in call.wrt:
        own = a["logits"].dtype
        found["grad logits"] = scaled(f.slope, f.slope_error, own, f.dtype, scale[..., None], False,
                                      8 * eps(np.float64))  # fmt: skip
    if "weights" in call.wrt:
        mean = value if kind == "weights" else 0
        slope = (f.loss - mean) / d
        of_mean = error if kind == "weights" else 0
        size = (f.error + of_mean + 8 * eps(np.float64) * (np.abs(f.loss) + np.abs(mean))) / np.abs(d)
        on = np.where((d != 0) & (w != 0), cotangent, 0)
        found["grad weights"] = scaled(slope, size, a["weights"].dtype, np.dtype(np.float64), on, ~np.isfinite(f.loss))
    return found


def expect(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    n, t = a["logits"].shape[:2]
    w = wide(a.get("weights", np.ones((n, t))))
    if "lengths" in a:
        w = np.where(np.arange(t) < np.reshape(a["lengths"], (-1, 1)).astype(np.int64), w, 0)
    flags = [a.get(name, k < 2) for k, name in enumerate(NAMES)]
    axes = tuple(k for k, on in ((1, flags[0] or flags[2]), (0, flags[1] or flags[3])) if on)
    kind = "weights" if flags[0] or flags[1] else "count" if flags[2] or flags[3] else "one"
    shape = tuple(m for k, m in enumerate((n, t)) if k not in axes)
    return _results(call, _Losses(a["logits"], a["targets"], w), w, kind, tuple(sorted(axes)), shape)


def make_lists(draw: Draw) -> Call:
    width, dtype = draw.width_and_dtype(600)
    width = max(width, 1)
    n, t = draw.rows(width, 2000), draw.whole(1, 7)
    x, y, w = _positions(draw, (t, n), width, dtype)
    arguments = {"logits": x, "targets": y, "weights": w}
    axes = {"logits": ("t", "n", "c"), "targets": ("t", "n", "c"), "weights": ("t", "n")}
    if draw.chance(0.5):
        arguments["average_across_timesteps"] = draw.chance(0.4)
    call = Call("by_example", "sequence_loss_by_example", arguments, axes=axes, limits={"targets": "c"})
    call.splits = {name: ("list", None) for name in ("logits", "targets", "weights")}
    if draw.chance(0.8):
        call.wrt = ("logits",)
    call = _finish(draw, call, (n,), ("n",))
    call.buffers.pop("grad_out", None)
    return call


def expect_lists(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    w = wide(a["weights"])
    kind = "weights" if a.get("average_across_timesteps", True) else "one"
    return _results(call, _Losses(a["logits"], a["targets"], w), w, kind, (0,), w.shape[1:])


def make_packed(draw: Draw) -> Call:
    width, dtype = draw.width_and_dtype(600)
    width = max(width, 1)
    n = draw.rows(width, 5000)
    x, y, w = _positions(draw, (n,), width, dtype)
    ends = np.sort(draw.rng.integers(0, n + 1, draw.whole(1, 8)))
    ends = ends.astype(draw.pick([d for d in INTEGERS if n <= np.iinfo(d).max]))
    arguments: dict[str, Any] = {"logits": x, "targets": y, "offsets": ends}
    arguments["weights"] = w  # its zeros hide what is there
    if draw.chance(0.6):
        arguments["reduction"] = draw.pick(("mean", "sum", "perplexity"))
    axes = {"logits": ("n", "c"), "targets": ("n", "c"), "weights": ("n",)}
    call = Call("packed", "packed_sequence_loss", arguments, axes=axes, limits={"targets": "c"})
    if draw.chance(0.8):
        call.wrt = ("logits",)
    return _finish(draw, call, (len(ends) - 1,), ("b",))


def expect_packed(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    ends = a["offsets"].astype(np.int64)
    w = np.zeros(len(a["logits"]), np.longdouble)
    w[ends[0] : ends[-1]] = wide(a["weights"])[ends[0] : ends[-1]]
    f = _Losses(a["logits"], a["targets"], w)
    how = a.get("reduction", "mean")
    n = len(ends) - 1
    value, error, free, factor = np.zeros((4, n), np.longdouble)
    scale = np.zeros(len(w), np.longdouble)
    cotangent = np.ones(n) if call.cotangent is None else wide(call.cotangent)
    top = np.log(wide(np.finfo(f.dtype).max)) - 1
    for b in range(n):
        rows = slice(ends[b], ends[b + 1])
        part = _Losses.__new__(_Losses)
        part.loss, part.error = f.loss[rows], f.error[rows]
        v, e, d = _combined(part, w[rows], "one" if how == "sum" else "weights", (0,), ())
        value[b], error[b], factor[b] = v[0], e[0], 1
        if how == "perplexity":
            free[b] = abs(value[b] - top) < 2  # it may overflow or not
            value[b] = factor[b] = np.exp(value[b])
            error[b] = value[b] * (error[b] + 4 * eps(np.float64))
        slope = cotangent[b] * w[rows] / np.where(d != 0, d, 1)
        scale[rows] = np.where((d != 0) & (slope != 0), slope * factor[b], 0)
    found = {"value": Expect(value, error + unit(value, f.dtype), free != 0)}
    if call.wrt:
        noise = np.zeros(len(w), np.longdouble)
        open_ = np.zeros(len(w), bool)
        for b in range(n):
            rows = slice(ends[b], ends[b + 1])
            noise[rows] = 8 * eps(np.float64) + (error[b] / value[b] if how == "perplexity" else 0)
            open_[rows] = free[b]
            if how == "perplexity" and value[b] > np.exp(top):  # as if it were infinite
                scale[rows] = np.where(scale[rows] != 0, np.sign(scale[rows]) * np.inf, 0)
                noise[rows] = 8 * eps(np.float64)
        noise = noise[:, None]
        own = a["logits"].dtype
        found["grad logits"] = scaled(f.slope, f.slope_error, own, f.dtype, scale[:, None], open_[:, None], noise)
    return found
