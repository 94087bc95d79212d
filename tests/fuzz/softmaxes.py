"""Softmax cross entropies, the focal loss of a softmax, softmax, log_softmax, logsumexp."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference
from reference import wide

from .bounds import Expect, eps, unit
from .calls import Call
from .draws import Draw
from .tails import Tail, finish, loss_dtype, sum_back, touch

SPARSE, DENSE = "sparse_softmax_cross_entropy_with_logits", "softmax_cross_entropy_with_logits"
HESSIANS = ("diagonal", "upper", "residual")


def _logits(draw: Draw) -> tuple[Any, int]:
    """Logits with their classes at a random axis."""
    width, dtype = draw.width_and_dtype()
    rows = draw.rows(width)
    shape = draw.shape(rows) if rows else (0,)
    x = draw.floats((*shape, width), dtype)
    axis = draw.whole(0, x.ndim - 1) if draw.chance(0.3) else x.ndim - 1
    return np.ascontiguousarray(np.moveaxis(x, -1, axis)), axis


def _axis(draw: Draw, arguments: dict[str, Any], axis: int, ndim: int) -> None:
    """Given as `axis` or `dim`, from the front or the end, or left out."""
    if axis == ndim - 1 and draw.chance(0.7):
        return
    name = "dim" if "dim" in arguments or draw.chance(0.1) else "axis"
    arguments[name] = axis if draw.chance(0.5) else axis - ndim


def make(draw: Draw) -> Call:
    function = draw.pick((SPARSE, SPARSE, DENSE, DENSE, "softmax_focal_loss"))
    x, axis = _logits(draw)
    n = x.shape[axis]
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    names = [f"n{k}" for k in range(len(shape))]
    names.insert(axis, "classes")
    arguments: dict[str, Any] = {"logits": x}
    axes = {"logits": tuple(names)}
    layouts: dict[str, str] = {}
    ignore = None
    if function != DENSE:
        y, ignore = draw.labels(shape, n, 0.3)
        if n == 0 and y.size and ignore is None:
            y = y[:0]
        axes["labels"] = tuple(k for k in names if k != "classes")
    else:
        full = draw.broadcast_shape(x.shape) if draw.chance(0.3) else x.shape
        y = draw.rng.dirichlet(np.ones(max(n, 1)), shape)[..., :n]
        how = draw.pick(("soft", "soft", "hard", "zeros", "any"))
        if how == "hard" and n:
            y = (np.arange(n) == draw.rng.integers(0, n, shape)[..., None]).astype(float)
        elif how == "zeros":
            y = y * (draw.rng.random(y.shape) < 0.5)
        elif how == "any":
            y = draw.rng.standard_normal(y.shape)
        y = np.moveaxis(y, -1, axis)
        lead = y.ndim - len(full)
        y = (
            np.zeros(full)
            if 0 in y.shape
            else y[tuple([0] * lead + [slice(0, 1) if m == 1 else slice(None) for m in full])]
        )
        y = np.ascontiguousarray(y).astype(draw.pick([x.dtype, x.dtype, np.dtype(np.float64), np.dtype(np.float32)]))
        if how == "hard" and draw.chance(0.3):
            y = y.astype(draw.pick([np.bool_, np.uint8, np.int64, np.int8]))
        axes["labels"] = tuple(names[lead:])
        draw.note(f"labels {how}")
    arguments["labels"] = y
    _axis(draw, arguments, axis, x.ndim)
    if function == "softmax_focal_loss" and "dim" in arguments:
        arguments["axis"] = arguments.pop("dim")
    if ignore is not None:
        arguments["ignore_index"] = ignore
    if function == "softmax_focal_loss":
        if draw.chance(0.8):
            arguments["gamma"] = draw.pick((0.0, 0.5, 1.0, 1.5, 2.0, 3, 5.0))
    elif draw.chance(0.25):
        arguments["label_smoothing"] = draw.pick((0.0, 0.1, 0.25, 0.9, 1.0, float(draw.rng.random())))
    if draw.chance(0.2):
        arguments["class_weight"] = np.asarray(draw.weights((n,)))
        axes["class_weight"] = ("classes",)
    if draw.chance(0.2):
        keep = draw.rng.random(draw.broadcast_shape(x.shape)) < 0.8
        arguments["where"] = keep
        axes["where"] = tuple(names[x.ndim - keep.ndim :])
    wrt: tuple[str, ...] = ()
    hessian = None
    if draw.chance(0.8):
        wrt = ("logits",)
        if function == DENSE and y.dtype.kind in "fV" and draw.chance(0.4):
            wrt = draw.pick((("labels",), ("logits", "labels"), ("labels", "logits")))
        elif function != "softmax_focal_loss" and draw.chance(0.15):
            hessian = draw.pick(HESSIANS)
    arguments["logits"] = draw.repeat(x, layouts, "logits")
    call = Call("softmax", function, arguments, wrt, hessian, layouts=layouts, axes=axes, limits={"labels": "classes"})
    return finish(draw, call, shape, "logits", tuple(k for k in names if k != "classes"))


class _Rows:
    """Losses of the rows and their gradients in long double, classes last, before weights and reduction."""

    def __init__(self, call: Call) -> None:
        a = call.arguments
        self.axis = a.get("axis", a.get("dim", -1))
        full = a["logits"].shape
        last = lambda v: np.moveaxis(np.broadcast_to(v, full), self.axis, -1)  # noqa: E731
        keep = last(a.get("where", True))
        x = np.where(keep, np.moveaxis(wide(a["logits"]), self.axis, -1), -np.inf)
        n = x.shape[-1]
        y = np.asarray(a["labels"])
        self.counts = np.ones(x.shape[:-1], bool)
        if call.function == DENSE:
            z = last(wide(y))
        else:
            if "ignore_index" in a:
                self.counts = y != a["ignore_index"]
            z = reference.one_hot(np.where(self.counts, y, 0), n)
        w = wide(a.get("class_weight", np.ones(n)))
        self.row_weight = (w * z).sum(-1) if "class_weight" in a else np.ones(x.shape[:-1])
        self.row_weight = np.where(self.counts, self.row_weight, 0)
        self.less, self.p, self.others = reference.logsumexp_less(x) if n else (x, x, x)
        self.sick = np.isnan(self.less).any(-1)
        if call.function == "softmax_focal_loss":
            self._focal(wide(call.get("gamma")), z)
        else:
            self._cross_entropy(wide(call.get("label_smoothing")), z, w, keep)
        self.on = self.counts & ~self.nothing  # else it is 0, whatever the row holds
        alone = ~keep.any(-1)  # every label is masked out
        self.free = self.on & alone  # gradients over no class are not said
        self.loss = np.where(alone, self.alone, np.where(self.sick, np.nan, self.loss))
        self.loss, self.grad = np.where(self.on, self.loss, 0), np.where(self.on[..., None], self.grad, 0)

    def _cross_entropy(self, smoothing: Any, z: Any, w: Any, keep: Any) -> None:
        share = smoothing * keep / np.maximum(1, keep.sum(-1, keepdims=True))
        t = w * ((1 - smoothing) * z + share)
        size = np.abs(w) * ((1 - smoothing) * np.abs(z) + share)  # of its terms, which a negative label lets cancel
        self.loss = np.where(t != 0, t * self.less, 0).sum(-1)
        self.alone = np.where(t != 0, t * np.inf, 0).sum(-1)
        self.size = np.where(size != 0, size * self.less, 0).sum(-1)
        total = t.sum(-1, keepdims=True)
        up, down = self.p * (total - t), t * self.others
        self.grad = up - down
        self.grad_size = self.p * (size.sum(-1, keepdims=True) - size) + size * self.others
        self.growth, self.nothing = 1, (t == 0).all(-1)
        self.curvature = total * self.p * self.others
        self.curvature_size = size.sum(-1, keepdims=True) * self.p * self.others
        self.to_labels = (1 - smoothing) * w * self.less
        self.denominator_slope = w + 0 * z

    def _focal(self, g: Any, z: Any) -> None:
        at = z != 0
        s, p, q = (np.where(at, v, 0).sum(-1) for v in (self.less, self.p, self.others))
        with np.errstate(all="ignore"):
            push = np.where(q > 0, q**g + g * p * q ** (g - 1) * s, 0)
            push = np.where((g == 0) | (s == np.inf), 1, push)  # p log p is 0
            self.loss = np.where((g > 0) & (q == 0) | (self.row_weight == 0), 0, self.row_weight * q**g * s)
        self.grad = np.where(at, -self.others, self.p) * (push * self.row_weight)[..., None]
        self.alone = np.inf
        self.size, self.grad_size = np.abs(self.loss), np.abs(self.grad)
        self.growth, self.nothing = np.maximum(1, g), self.row_weight == 0


def expect(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    rows = _Rows(call)
    logits = a["logits"].dtype
    dtype = loss_dtype(logits)
    plain = not any(k in a for k in ("class_weight", "where")) and not a.get("label_smoothing")
    ulp = (2 if plain else 4) * (1 if dtype == np.float32 else 2) * rows.growth
    tail = Tail(call, rows.counts.shape, rows.row_weight if "class_weight" in a or "ignore_index" in a else 1.0)
    value = tail.value(rows.loss, ulp * unit(rows.size, dtype), dtype)
    found = {"value": value}
    if not call.wrt:
        return found
    scale, free = tail.scale[..., None], rows.free[..., None]
    back = lambda e: Expect(*(np.moveaxis(np.broadcast_to(v, rows.grad.shape), -1, rows.axis)  # noqa: E731
                              for v in (e.want, e.bound, e.free)))  # fmt: skip
    ulp = 6 * rows.growth if call.function == "softmax_focal_loss" else 4
    found["grad logits"] = back(tail.grad(rows.grad, ulp * unit(rows.grad_size, dtype), logits, dtype, scale, free))
    if call.hessian is not None:
        want, size = np.where(rows.on[..., None], rows.curvature, 0), rows.curvature_size
        if call.hessian == "residual":
            want, size = rows.grad, rows.grad_size
        elif call.hessian == "upper":
            want, size = 2 * want, 2 * size
        hess = tail.grad(want, 8 * unit(size, dtype), logits, dtype, scale, free)
        hess.want = np.abs(hess.want) if call.hessian == "residual" else hess.want
        found["hess"] = back(hess)
    if "labels" in call.wrt:
        slope, labels = rows.to_labels, a["labels"].dtype
        size, of_mean = np.abs(slope), 0
        if tail.reduction == "mean" and "class_weight" in a:
            slope = slope - np.asarray(value.want) * rows.denominator_slope
            size = size + np.abs(np.asarray(value.want) * rows.denominator_slope)
            of_mean = np.asarray(value.bound) * np.abs(rows.denominator_slope)
        # the logarithm of 0, a class of weight 0 where something is NaN, a NaN row without targets
        unsaid = ~np.isfinite(rows.less) & ~rows.sick[..., None] | (rows.denominator_slope == 0) & np.isnan(slope)
        unsaid = free | unsaid | (rows.sick & rows.nothing)[..., None]
        to_labels = tail.grad(slope, 8 * unit(size, dtype) + of_mean, labels, dtype, scale, unsaid)
        found["grad labels"] = sum_back(back(to_labels), a["labels"].shape, labels)
    return found


# ------------------------------------------------------------------ softmax, log_softmax, logsumexp


def make_normal(draw: Draw) -> Call:
    function = draw.pick(("softmax", "log_softmax", "logsumexp"))
    x, axis = _logits(draw)
    layouts: dict[str, str] = {}
    arguments: dict[str, Any] = {"x": draw.repeat(x, layouts, "x")}
    names = tuple(f"n{k}" for k in range(x.ndim))
    axes = {"x": names}
    way = draw.rng.random()
    if way < 0.15:
        arguments["axis"] = None
    elif way < 0.3 and x.ndim > 1:
        some = draw.rng.permutation(x.ndim)[: draw.whole(1, x.ndim)]
        arguments["axis"] = tuple(int(k) - (x.ndim if draw.chance(0.3) else 0) for k in some)
    elif axis != x.ndim - 1 or draw.chance(0.3):
        arguments["axis"] = axis
    if draw.chance(0.25):
        keep = draw.rng.random(draw.broadcast_shape(x.shape)) < draw.pick((0.5, 0.9))
        arguments["where"] = keep
        axes["where"] = names[x.ndim - keep.ndim :]
    if function == "logsumexp" and draw.chance(0.4):
        arguments["keepdims"] = draw.chance(0.7)
    call = Call("normal", function, arguments, layouts=layouts, axes=axes)
    return touch(draw, call, "x", in_place=function != "logsumexp")


def expect_normal(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    x = wide(call.arguments["x"])
    dtype = call.arguments["x"].dtype
    inner = loss_dtype(dtype)
    axis = call.arguments.get("axis", -1)
    axes = tuple(range(x.ndim)) if axis is None else tuple(k % x.ndim for k in np.atleast_1d(axis).tolist())
    keep = np.broadcast_to(call.arguments.get("where", True), x.shape)
    x = np.where(keep, x, -np.inf)
    if x.size == 0:
        shape = got["value"].shape
        return {"value": Expect(np.full(shape, -np.inf) if call.function == "logsumexp" else np.zeros(shape), 0)}
    rest = [k for k in range(x.ndim) if k not in axes]
    flat = x.transpose(*rest, *axes).reshape(*(x.shape[k] for k in rest), -1)
    less, p, _ = reference.logsumexp_less(flat)
    if call.function == "logsumexp":
        top = flat.max(-1)
        finite = np.isfinite(top)
        base = np.where(finite, top, 0)
        with np.errstate(all="ignore"):
            total = np.exp(flat - base[..., None]).sum(-1)
            want = np.where(finite, base + np.log(total), top)
        # x + log(sum) cancels where the result is near 0
        bound = 2 * unit(want, inner) + 2 * eps(inner) * (np.abs(base) + np.abs(np.log(total)))
        shape = got["value"].shape
        return {"value": Expect(want.reshape(shape), bound.reshape(shape))}
    ulp = 4 if inner == np.float32 else 8
    want = p if call.function == "softmax" else -less
    masked = ~keep.transpose(*rest, *axes).reshape(flat.shape)
    want = np.where(masked, 0 if call.function == "softmax" else -np.inf, want)
    bound = ulp * unit(want, inner)
    if dtype.itemsize == 2:
        bound = bound + 0.502 * unit(want, dtype)
    back = np.argsort([*rest, *axes])
    moved = tuple(x.shape[k] for k in (*rest, *axes))
    put = lambda v: np.broadcast_to(v, flat.shape).reshape(moved).transpose(back)  # noqa: E731
    return {"value": Expect(put(want), put(bound))}
