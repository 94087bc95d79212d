"""Element-wise losses: sigmoid cross entropies, regression, deviances; and sigmoid, log_sigmoid, softplus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from reference import softplus, times, wide

from .bounds import Expect, eps, unit
from .calls import Call
from .draws import FLOATS, Draw
from .tails import Tail, finish, loss_dtype, sum_back, touch


@dataclass
class Terms:
    """A loss and its derivatives, each as the terms that it is the sum of."""

    loss: tuple[Any, ...]
    x: tuple[Any, ...]
    y: tuple[Any, ...]
    xx: tuple[Any, ...]
    q: tuple[Any, ...] = ()
    growth: float = 1  # of relative errors, by powers
    bend: Any = 1  # the same for the second derivative
    kink: Any = False  # where rounding decides on which side of it an element is


def _p(x: Any) -> Any:
    return np.exp(-softplus(-x))


def _sigmoid(y: Any, x: Any, q: Any = 1) -> Terms:
    plus, minus, p, r = softplus(x), softplus(-x), _p(x), _p(-x)
    z = np.asarray(q * y)
    return Terms(
        (times(z, minus), times(1 - y, plus)), (times(1 - y, p), -times(z, r)), (times(q, minus), -plus),
        (p * r * (1 - y), p * r * z), (times(y, minus),),
    )  # fmt: skip


def _focal(y: Any, x: Any, gamma: Any = 2.0, alpha: Any = None) -> Terms:
    g = wide(gamma)
    a, b = (wide(1.0), wide(1.0)) if alpha is None else (wide(alpha), wide(1 - alpha))

    def one(v: Any) -> tuple[Any, Any, Any]:
        """Loss of a label of 1, and two derivatives to the logit."""
        s, p, r = softplus(-v), _p(v), _p(-v)
        power = np.exp(-g * softplus(v))
        first = -power * (r + g * p * s)
        # d/dv of r^g (r + g p s), with r' = -p r, p' = p r, s' = -r
        second = (g * p * r, g * p * g * p * s, p * r, -g * p * r * s, g * p * r)
        return power * s, first, [power * v for v in second]

    (l1, d1, h1), (l0, d0, h0) = one(x), one(-x)
    positive, negative = a * y, b * (1 - y)
    return Terms(
        (times(positive, l1), times(negative, l0)), (times(positive, d1), -times(negative, d0)), (a * l1, -b * l0),
        (*(times(positive, h) for h in h1), *(times(negative, h) for h in h0)), growth=float(max(1, g)) * 1.5,
    )  # fmt: skip


def _squared(y: Any, x: Any) -> Terms:
    d = x - y
    return Terms((d * d,), (2 * d,), (-2 * d,), (0 * d + 2,))


def _absolute(y: Any, x: Any) -> Terms:
    s = np.sign(x - y)
    return Terms((np.abs(x - y),), (s,), (-s,), (0 * s,))


def _huber(y: Any, x: Any, delta: Any = 1.0) -> Terms:
    d, delta = x - y, wide(delta)
    far = np.abs(d) > delta
    slope = np.clip(d, -delta, delta)
    near_kink = np.abs(np.abs(d) - delta) <= 4 * eps(np.float32) * delta
    loss = np.where(far, delta * (np.abs(d) - delta / 2), d * d / 2)
    return Terms((loss,), (slope,), (-slope,), (np.where(np.abs(d) <= delta, 1, 0) + 0 * d,), kink=near_kink)


def _log_cosh(y: Any, x: Any) -> Terms:
    d = np.abs(x - y)
    small = np.minimum(d, 4)
    loss = np.where(
        d < 4, np.log1p(2 * np.sinh(small / 2) ** 2), d - np.log(np.longdouble(2)) + np.log1p(np.exp(-2 * d))
    )
    t = np.sign(x - y) * -np.expm1(-2 * d) / (1 + np.exp(-2 * d))
    # the difference is rounded before its square is taken
    return Terms((loss,), (t,), (-t,), (4 * np.exp(-2 * d) / (1 + np.exp(-2 * d)) ** 2,), growth=1.25, bend=1 + d)


def _quantile(y: Any, x: Any, quantile: Any = 0.5) -> Terms:
    d, q = x - y, wide(quantile)
    slope = np.where(d > 0, 1 - q, np.where(d < 0, -q, 0)) + 0 * d
    return Terms((np.where(d > 0, (1 - q) * d, -q * d),), (slope,), (-slope,), (0 * d,))


def _poisson(y: Any, x: Any, compute_full_loss: bool = False) -> Terms:
    e = np.exp(x)
    terms = [e, -times(y, x)]
    to_y = [-x]
    if compute_full_loss:
        more = np.maximum(y, 1)
        two_pi = 2 * np.longdouble("3.14159265358979323846")
        at = y > 1
        terms += [np.where(at, v, 0) for v in (more * np.log(more), -more, np.log(two_pi * more) / 2)]
        to_y += [np.where(at, np.log(more), 0), np.where(at, 1 / (2 * more), 0)]
    return Terms(tuple(terms), (e, -y), tuple(to_y), (e,))


def _gamma(y: Any, x: Any) -> Terms:
    e = np.exp(-x)
    return Terms((x, times(y, e)), (1 + 0 * x, -times(y, e)), (e,), (times(y, e),))


def _tweedie(y: Any, x: Any, power: Any = 1.5) -> Terms:
    p = wide(power)
    if p == 1:
        return _poisson(y, x)
    if p == 2:
        return _gamma(y, x)
    a, b = np.exp((2 - p) * x), np.exp((1 - p) * x)
    loss = (a / (2 - p), -times(y, b) / (1 - p))
    if p == 0:  # with its constant
        loss = (a / 2, -times(y, b), y * y / 2)
    to_y = (-b / (1 - p),) if p != 0 else (-b, y)
    return Terms(loss, (a, -times(y, b)), to_y, ((2 - p) * a, -(1 - p) * times(y, b)))


def _hinge(y: Any, x: Any) -> Terms:
    s = 2 * y - 1
    m = 1 - s * x
    on = m > 0
    kink = np.abs(m) <= 4 * eps(np.float32) * (1 + np.abs(s * x))
    return Terms((np.maximum(m, 0),), (np.where(on, -s, 0),), (np.where(on, -2 * x, 0),), (0 * m,), kink=kink)


def _squared_hinge(y: Any, x: Any) -> Terms:
    s = 2 * y - 1
    m = np.maximum(1 - s * x, 0)
    return Terms((m * m,), (-2 * s * m,), (-4 * x * m,), (np.where(m > 0, 2 * s * s, 0),))


def _divergence(y: Any, x: Any) -> Terms:
    safe = np.where(y > 0, y, 1)
    log_y = np.where(y > 0, np.log(safe), np.where(y == 0, -np.inf, np.nan))
    value = (np.where(y == 0, 0, times(y, log_y)), -times(y, x))
    return Terms(value, (-y,), (log_y, 1 + 0 * y, -x), (0 * y,))


@dataclass(frozen=True)
class Law:
    """An element-wise loss: its terms, its main argument, what labels it takes and its options."""

    terms: Callable[..., Terms]
    main: str
    labels: str
    options: dict[str, tuple[Any, ...]]


LAWS = {
    "sigmoid_cross_entropy_with_logits": Law(_sigmoid, "logits", "soft", {}),
    "weighted_cross_entropy_with_logits": Law(_sigmoid, "logits", "soft", {}),
    "sigmoid_focal_loss": Law(
        _focal, "logits", "soft", {"gamma": (0.0, 0.5, 1, 1.5, 2.0, 3.0, 5.0), "alpha": (0.0, 0.25, 0.5, 1.0)}
    ),
    "mean_squared_error": Law(_squared, "predictions", "real", {}),
    "mean_absolute_error": Law(_absolute, "predictions", "real", {}),
    "huber_loss": Law(_huber, "predictions", "real", {"delta": (0.5, 1.0, 1.75, 100.0)}),
    "log_cosh_loss": Law(_log_cosh, "predictions", "real", {}),
    "quantile_loss": Law(_quantile, "predictions", "real", {"quantile": (0.0, 0.25, 0.5, 0.75, 1.0)}),
    "poisson_loss": Law(_poisson, "predictions", "counts", {"compute_full_loss": (False, True)}),
    "gamma_loss": Law(_gamma, "predictions", "positive", {}),
    "tweedie_loss": Law(
        _tweedie, "predictions", "counts", {"power": (-1.25, 0.0, 0, 1.0, 1.125, 1.5, 1.875, 2.0, 3.0, 3.25)}
    ),
    "hinge_loss": Law(_hinge, "predictions", "binary", {}),
    "squared_hinge_loss": Law(_squared_hinge, "predictions", "binary", {}),
    "kl_divergence": Law(_divergence, "predictions", "soft", {}),
}
NAMES = list(LAWS)


def _labels(draw: Draw, how: str, shape: tuple[int, ...], dtype: Any) -> Any:
    if how == "real":
        y = draw.floats(shape, draw.pick([dtype, *FLOATS]))
        return y if draw.chance(0.9) else np.round(np.clip(np.nan_to_num(wide(y)), -100, 100)).astype(np.int16)
    if how == "binary" or (how == "soft" and draw.chance(0.4)):
        y = draw.rng.random(shape) < 0.5
        return y.astype(draw.pick([dtype, np.dtype(np.bool_), np.dtype(np.uint8), np.dtype(np.int64)]))
    if how == "soft":
        y = draw.rng.random(shape)
        return y.astype(draw.pick([dtype, dtype, np.float32, np.float64]))
    y = draw.rng.poisson(3, shape) * draw.pick((1.0, 0.75))
    if how == "positive":
        y = y + 0.25
    if draw.chance(0.3) and how == "counts":
        return y.astype(draw.pick([np.dtype(c) for c in "bBhHiIqQ"]))
    return y.astype(draw.pick([dtype, dtype, np.float32, np.float64]))


def make(draw: Draw) -> Call:
    function = draw.pick(NAMES)
    law = LAWS[function]
    width, dtype = draw.width_and_dtype(20_000)
    rows = draw.rows(width, 8000) if draw.chance(0.5) else 1
    shape = draw.shape(rows * width) if draw.chance(0.3) else (rows, width)
    names = tuple(f"n{k}" for k in range(len(shape)))
    kind = None
    if law.labels in ("counts", "positive"):
        kind = draw.pick(("normal", "bits", "equal", "tiny", "zero", "denormal"))  # their exp overflows
    layouts: dict[str, str] = {}
    x = draw.repeat(draw.floats(shape, dtype, kind), layouts, law.main)
    if function == "kl_divergence":
        x = np.asarray(-np.abs(x))
    smaller = draw.broadcast_shape(shape) if draw.chance(0.3) else shape
    y = np.asarray(_labels(draw, law.labels, smaller, dtype))
    arguments: dict[str, Any] = {law.main: x, "labels": y}
    axes = {law.main: names, "labels": names[len(shape) - y.ndim :]}
    if function == "weighted_cross_entropy_with_logits":
        q = np.asarray(draw.rng.uniform(0, 4, draw.broadcast_shape(shape))).astype(draw.pick(FLOATS))
        arguments["pos_weight"] = q
        axes["pos_weight"] = names[len(shape) - q.ndim :]
        if draw.chance(0.2):
            arguments["targets"] = arguments.pop("labels")
            axes["targets"] = axes.pop("labels")
    for name, choices in law.options.items():
        if draw.chance(0.7):
            arguments[name] = draw.pick(choices)
    call = Call("elements", function, arguments, axes=axes, layouts=layouts)
    if draw.chance(0.8):
        others = [k for k in ("labels", "pos_weight") if k in arguments and arguments[k].dtype.kind in "fV"]
        call.wrt = (law.main,)
        if others and draw.chance(0.4):
            call.wrt = tuple(draw.rng.permutation([law.main, *others])[: draw.whole(1, 1 + len(others))].tolist())
        elif draw.chance(0.25):
            call.hessian = "diagonal"
    return finish(draw, call, shape, law.main, names)


def expect(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    law, a = LAWS[call.function], call.arguments
    x, labels = a[law.main], a["targets"] if "targets" in a else a["labels"]
    given = {law.main: x, "labels": labels, "pos_weight": a.get("pos_weight")}
    options = {k: v for k, v in a.items() if k in law.options}
    dtype = loss_dtype(x.dtype)
    # labels are taken to the dtype of the losses
    narrow = lambda v: np.broadcast_to(wide(wide(v).astype(dtype)), x.shape)  # noqa: E731
    if "pos_weight" in a:
        options["q"] = narrow(a["pos_weight"])
    terms = law.terms(narrow(labels), wide(x), **options)
    top = np.longdouble(float(np.finfo(dtype).max)) / 16

    def total(parts: tuple[Any, ...], ulp: float) -> tuple[Any, Any, Any]:
        """The sum, how far it may be off, and where an infinite term leaves it open."""
        parts = [np.broadcast_to(v, x.shape) for v in parts]
        size = np.max([np.abs(v) for v in parts], 0)
        free = (size > top) & ~np.isnan(sum(parts)) | sum(~np.isfinite(v) for v in parts).astype(bool) & ~np.isnan(
            wide(x)
        )
        return sum(parts), ulp * terms.growth * unit(np.maximum(size, np.abs(sum(parts))), dtype), free

    tail = Tail(call, x.shape)
    ulp = 2 if dtype == np.float32 else 4
    loss, error, free = total(terms.loss, ulp)
    found = {"value": tail.value(loss, error, dtype, free)}
    parts = {law.main: terms.x, "labels": terms.y, "pos_weight": terms.q}
    for name in call.wrt:
        slope, error, free = total(parts[name], 4)
        own = given[name]
        e = tail.grad(slope, error, own.dtype, dtype, tail.scale, free | terms.kink)
        found[f"grad {name}"] = sum_back(e, own.shape, own.dtype)
    if call.hessian is not None:
        bend, error, free = total(terms.xx, 8)
        error = error * terms.bend
        if "gamma" in law.options:  # probabilities rounded to denormal numbers are multiplied by logarithms
            error = error + 4 * (1 + np.where(np.isfinite(wide(x)), np.abs(wide(x)), 0)) * unit(0, dtype)
        found["hess"] = tail.grad(bend, error, x.dtype, dtype, tail.scale, free | terms.kink)
    return found


# ------------------------------------------------------------------ sigmoid, log_sigmoid, softplus


def make_unary(draw: Draw) -> Call:
    width, dtype = draw.width_and_dtype(20_000)
    shape = draw.shape(width * draw.pick((1, 1, 3, 17)))
    layouts: dict[str, str] = {}
    x = draw.repeat(draw.floats(shape, dtype), layouts, "x")
    call = Call("unary", draw.pick(("sigmoid", "log_sigmoid", "softplus")), {"x": x}, layouts=layouts)
    call.axes["x"] = tuple(f"n{k}" for k in range(x.ndim))
    return touch(draw, call, "x")


def expect_unary(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    x = call.arguments["x"]
    want = {"sigmoid": _p, "log_sigmoid": lambda v: -softplus(-v), "softplus": softplus}[call.function](wide(x))
    dtype = loss_dtype(x.dtype)
    bound = (2 if dtype == np.float32 else 4) * unit(want, dtype)
    return {"value": Expect(want, bound + (0.502 * unit(want, x.dtype) if x.dtype.itemsize == 2 else 0))}
