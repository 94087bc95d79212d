"""Softmax cross entropies, the focal and poly-1 losses of a softmax, softmax, log_softmax, logsumexp."""

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
FOCAL, POLY1 = "softmax_focal_loss", "poly1_cross_entropy"
HESSIANS = ("diagonal", "upper", "residual")

OPTIONS = {
    "z_loss": (0, 1e-4, 0.01, 0.3),
    "softcap": (None, 0.5, 2, 30.0, float("inf")),
    "temperature": (0.5, 1, 1.3, 2.0, 7),
}


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
    function = draw.pick((SPARSE, SPARSE, SPARSE, DENSE, DENSE, DENSE, FOCAL, POLY1))
    law = function in (FOCAL, POLY1)
    dense = function == DENSE or (law and draw.chance(0.3))
    x, axis = _logits(draw)
    n = x.shape[axis]
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    names = [f"n{k}" for k in range(len(shape))]
    names.insert(axis, "classes")
    arguments: dict[str, Any] = {"logits": x}
    axes = {"logits": tuple(names)}
    layouts: dict[str, str] = {}
    ignore = None
    if not dense:
        y, ignore = draw.labels(shape, n, 0.3)
        if n == 0 and y.size and ignore is None:
            y = y[:0]
        axes["labels"] = tuple(k for k in names if k != "classes")
    else:
        full = draw.broadcast_shape(x.shape) if not law and draw.chance(0.3) else x.shape
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
    if law and "dim" in arguments:
        arguments["axis"] = arguments.pop("dim")
    if ignore is not None:
        arguments["ignore_index"] = ignore
    if function == FOCAL and draw.chance(0.8):
        arguments["gamma"] = draw.pick((0.0, 0.5, 1.0, 1.5, 2.0, 3, 5.0))
    if function == POLY1 and draw.chance(0.8):
        arguments["epsilon"] = draw.pick((-1.0, -0.5, 0.0, 0.3, 1, 2.0, 5.0))
    if not law:
        for name, values in OPTIONS.items():
            if draw.chance(0.08):
                arguments[name] = draw.pick(values)
    if draw.chance(0.25):
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
        if dense and y.dtype.kind in "fV" and draw.chance(0.4):
            wrt = draw.pick((("labels",), ("logits", "labels"), ("labels", "logits")))
        elif draw.chance(0.15):
            hessian = "diagonal" if law else draw.pick(HESSIANS)
            if not arguments.keys().isdisjoint(("z_loss", "softcap")) and hessian == "upper":
                hessian = "residual"
    arguments["logits"] = draw.repeat(x, layouts, "logits")
    call = Call("softmax", function, arguments, wrt, hessian, layouts=layouts, axes=axes, limits={"labels": "classes"})
    return finish(draw, call, shape, "logits", tuple(k for k in names if k != "classes"))


def _but_own(v: Any) -> Any:
    """For each class the sum over all others."""
    none = np.zeros((*v.shape[:-1], 1), v.dtype)
    before = np.concatenate([none, np.cumsum(v[..., :-1], -1)], -1)
    after = np.concatenate([none, np.cumsum(v[..., :0:-1], -1)], -1)[..., ::-1]
    return before + after


class _Rows:
    """Losses of the rows and their gradients in long double, classes last, before weights and reduction."""

    def __init__(self, call: Call) -> None:
        a = call.arguments
        self.axis = a.get("axis", a.get("dim", -1))
        full = a["logits"].shape
        last = lambda v: np.moveaxis(np.broadcast_to(v, full), self.axis, -1)  # noqa: E731
        keep = last(a.get("where", True))
        x = self._capped(call, np.moveaxis(wide(a["logits"]), self.axis, -1), keep)
        n = x.shape[-1]
        y = np.asarray(a["labels"])
        self.counts = np.ones(x.shape[:-1], bool)
        if y.ndim == len(full) or call.function == DENSE:
            z = last(wide(y))
        else:
            if "ignore_index" in a:
                self.counts = y != a["ignore_index"]
            z = reference.one_hot(np.where(self.counts, y, 0), n)
        w = wide(a.get("class_weight", np.ones(n)))
        self.row_weight = (w * z).sum(-1) if "class_weight" in a else np.ones(x.shape[:-1])
        self.row_weight = np.where(self.counts, self.row_weight, 0)
        self.row_size = np.where(self.counts, np.abs(w * z).sum(-1), 0)  # labels of both signs cancel in it
        self.less, self.p, self.others = reference.logsumexp_less(x) if n else (x, x, x)
        self.sick = np.isnan(self.less).any(-1)
        with np.errstate(all="ignore"):
            self._law(call)
            self._losses(wide(call.get("label_smoothing")), z, w, keep)
            if a.get("z_loss") and n:  # a row without classes is 0
                self._z_loss(wide(a["z_loss"]), x, w, "class_weight" in a)
            self._slopes_of_caps()
        self.on = self.counts & ~self.nothing  # else it is 0, whatever the row holds
        alone = ~keep.any(-1)  # every label is masked out
        self.free = self.on & alone  # gradients over no class are not said
        self.loss = np.where(alone, self.alone, np.where(self.sick, np.nan, self.loss))
        self.loss, self.grad = np.where(self.on, self.loss, 0), np.where(self.on[..., None], self.grad, 0)

    def _capped(self, call: Call, x: Any, keep: Any) -> Any:
        """The logits that count, with first and second derivative by those given; masked ones are not capped."""
        a = call.arguments
        cap, heat = a.get("softcap"), wide(a.get("temperature", 1))
        self.tilt, self.curve, self.steep = 1 / heat + 0 * keep, wide(0 * keep), wide(0 * keep)
        with np.errstate(all="ignore"):
            if cap is not None and cap < np.inf:
                u = x / wide(cap)
                self.tilt = np.where(keep, 1 / np.cosh(u) ** 2 / heat, self.tilt)
                self.curve = np.where(keep, -2 * np.tanh(u) / wide(cap) * self.tilt, 0)
                self.steep = np.where(keep, np.minimum(np.abs(u), 1000), 0)
                x = wide(cap) * np.tanh(u)
            x = np.where(keep, x / heat, -np.inf)
            x = np.where(np.abs(x) > np.finfo(np.float64).max, np.sign(x) * np.inf, x)
        # capped logits are rounded, to float64
        self.capped = (cap is not None and cap < np.inf) or heat != 1
        most = np.where(np.isfinite(x), np.abs(x), 0).max(-1, initial=0)
        unit = 1.0 if a["logits"].dtype == np.float64 else 1e-8
        self.growth = 1 + 8 * unit * most if self.capped else np.ones(x.shape[:-1], np.longdouble)
        self.steep = self.steep * unit
        return x

    def _law(self, call: Call) -> None:
        """Value of every class as the label, its derivatives by s = -log p, and the sizes of their terms."""
        s, p, q = self.less, self.p, self.others
        one, zero = 1 + 0 * q, 0 * q
        self.value, self.first, self.second = s, one, zero
        self.value_size, self.first_size, self.second_size = s, one, zero
        if call.function == POLY1:
            e = wide(call.get("epsilon"))
            self.value, self.first, self.second = s + e * q, 1 + e * p, -e * p
            self.value_size, self.first_size, self.second_size = s + np.abs(e) * q, 1 + np.abs(e) * p, np.abs(e) * p
        elif call.function == FOCAL and (g := wide(call.get("gamma"))) != 0:
            ps = np.where(p == 0, 0, p * s)
            some = np.where(q > 0, q, 1)
            power = lambda k: np.where(q > 0, some**k, np.where(q == 0, 0, q))  # noqa: E731
            self.value = np.where(q == 0, 0, power(g) * s)
            self.first = power(g) + g * power(g - 1) * ps
            self.second = g * power(g - 2) * (2 * p * q + ps * (g * p - 1))
            self.value_size, self.first_size = self.value, self.first
            self.second_size = g * power(g - 2) * (2 * p * q + ps * (g * p + 1))
            self.growth = self.growth * np.maximum(1, g)

    def _losses(self, smoothing: Any, z: Any, w: Any, keep: Any) -> None:
        share = smoothing * keep / np.maximum(1, keep.sum(-1, keepdims=True))
        t = w * ((1 - smoothing) * z + share)
        size = np.abs(w) * ((1 - smoothing) * np.abs(z) + share)  # of its terms, which a negative label lets cancel
        p, q, on = self.p, self.others, t != 0
        self.loss = np.where(on, t * self.value, 0).sum(-1)
        self.size = np.where(size != 0, size * self.value_size, 0).sum(-1)
        self.alone = np.where(on, t * np.inf, 0).sum(-1)
        first, first_size = np.where(on, t * self.first, 0), np.where(size != 0, size * self.first_size, 0)
        second, second_size = np.where(on, t * self.second, 0), np.where(size != 0, size * self.second_size, 0)
        self.grad = p * _but_own(first) - first * q
        self.grad_size = p * _but_own(first_size) + first_size * q
        times = lambda a, b: np.where(a == 0, 0, a * b)  # noqa: E731  # of p^2 and a power of q that may be infinite
        self.curvature = times(p * p, _but_own(second)) + times(q * q, second) + p * q * first.sum(-1, keepdims=True)
        self.curvature_size = times(p * p, _but_own(second_size)) + times(q * q, second_size)
        self.curvature_size = self.curvature_size + p * q * first_size.sum(-1, keepdims=True)
        self.nothing, self.most = (t == 0).all(-1), size.max(-1, initial=0)
        self.factor = np.zeros(1)  # what may multiply a probability after it was rounded
        self.to_labels, self.to_labels_size = (1 - smoothing) * w * self.value, (1 - smoothing) * w * self.value_size
        self.denominator_slope = w + 0 * z

    def _z_loss(self, z: Any, x: Any, w: Any, weighted: bool) -> None:
        m = x.max(-1, initial=-np.inf)
        ratio = np.log(np.exp(x - m[..., None]).sum(-1))
        lse, size, weight = m + ratio, np.abs(m) + np.abs(ratio), z * self.row_weight
        self.loss, self.size = self.loss + weight * lse**2, self.size + np.abs(weight) * size**2
        self.alone = self.alone + np.where(weight != 0, weight * np.inf, 0)
        self.nothing = self.nothing & (weight == 0)
        lse, size, weight = lse[..., None], size[..., None], weight[..., None]
        p, q = self.p, self.others
        self.factor = 2 * np.abs(weight) * size
        self.grad, self.grad_size = self.grad + 2 * weight * lse * p, self.grad_size + self.factor * p
        self.curvature = self.curvature + 2 * weight * (p * p + lse * p * q)
        self.curvature_size = self.curvature_size + 2 * np.abs(weight) * (p * p + size * p * q)
        if weighted:
            self.to_labels = self.to_labels + z * w * lse**2
            self.to_labels_size = self.to_labels_size + z * w * size**2

    def _slopes_of_caps(self) -> None:
        """The derivatives by the logits as given."""
        if self.capped:
            self.curvature = self.curvature * self.tilt**2 + self.grad * self.curve
            self.curvature_size = self.curvature_size * self.tilt**2 + self.grad_size * np.abs(self.curve)
            self.grad, self.grad_size = self.grad * self.tilt, self.grad_size * self.tilt


def expect(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    rows = _Rows(call)
    logits = a["logits"].dtype
    dtype = loss_dtype(logits)
    plain = not any(k in a for k in ("class_weight", "where")) and not a.get("label_smoothing")
    plain = plain and call.function in (SPARSE, DENSE) and not a.get("z_loss")
    ulp = (2 if plain else 4) * (1 if dtype == np.float32 else 2) * rows.growth
    weighs = "class_weight" in a or "ignore_index" in a
    tail = Tail(call, rows.counts.shape, *((rows.row_weight, rows.row_size) if weighs else ()))
    value = tail.value(rows.loss, ulp * unit(rows.size, dtype), dtype)
    found = {"value": value}
    if not call.wrt:
        return found
    scale, free = tail.scale[..., None], rows.free[..., None]
    back = lambda e: Expect(*(np.moveaxis(np.broadcast_to(v, rows.grad.shape), -1, rows.axis)  # noqa: E731
                              for v in (e.want, e.bound, e.free)))  # fmt: skip
    ulp = (6 if call.function in (FOCAL, POLY1) else 4) * (rows.growth[..., None] + 4 * rows.steep)
    step = wide(np.finfo(np.float64 if dtype == np.float64 else np.float32).smallest_subnormal)
    error = ulp * unit(rows.grad_size, dtype) + rows.factor * step
    found["grad logits"] = back(tail.grad(rows.grad, error, logits, dtype, scale, free))
    if call.hessian is not None:
        want, size = np.where(rows.on[..., None], rows.curvature, 0), rows.curvature_size
        if call.hessian == "residual":
            want, size = rows.grad, rows.grad_size
        elif call.hessian == "upper":
            want, size = 2 * want, 2 * size
        # probabilities rounded to denormal numbers, which the focal loss multiplies by logarithms and gamma
        times = 64 + rows.growth * np.where(np.isfinite(rows.less), rows.less, 0).max(-1, initial=0) * rows.most
        least = (times[..., None] + 2 * rows.factor) * step
        hess = tail.grad(want, 2 * ulp * unit(size, dtype) + least, logits, dtype, scale, free)  # of factors
        hess.want = np.abs(hess.want) if call.hessian == "residual" else hess.want
        found["hess"] = back(hess)
    if "labels" in call.wrt:
        slope, labels = rows.to_labels, a["labels"].dtype
        size, of_mean = np.abs(rows.to_labels_size), 0
        if tail.reduction == "mean" and "class_weight" in a:
            slope = slope - np.asarray(value.want) * rows.denominator_slope
            size = size + np.abs(np.asarray(value.want) * rows.denominator_slope)
            of_mean = np.asarray(value.bound) * np.abs(rows.denominator_slope)
        # the logarithm of 0, a class of weight 0 where something is NaN, a NaN row without targets
        unsaid = ~np.isfinite(rows.less) & ~rows.sick[..., None] | (rows.denominator_slope == 0) & np.isnan(slope)
        unsaid = free | unsaid | (rows.sick & rows.nothing)[..., None]
        error = 8 * rows.growth[..., None] * unit(size, dtype) + of_mean
        to_labels = tail.grad(slope, error, labels, dtype, scale, unsaid)
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
