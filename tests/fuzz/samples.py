"""Losses over a sample of the classes: sampled softmax, noise-contrastive estimation, softmax over the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference
from reference import softplus, wide

import fastloss as fl

from .bounds import Expect, eps, moved, softmax_errors, unit
from .calls import Call, Made
from .draws import FLOATS, INTEGERS, Draw
from .products import KINDS, few, is_exact, product, sick, sizes, terms_of
from .tails import Tail, finish, loss_dtype

SAMPLERS = ("UniformSampler", "LogUniformSampler", "LearnedUnigramSampler", "FixedUnigramSampler")


def _rows(draw: Draw, shape: tuple[int, ...], dtype: Any, kind: str) -> Any:
    x = draw.floats(shape, dtype, kind)
    return x if kind in ("bits", "zero") or dtype.itemsize == 2 else (x / max(1, shape[-1]) ** 0.5).astype(dtype)


def _values(draw: Draw, c: int, k: int, y: Any) -> tuple[Any, ...]:
    """Candidates with counts, given: some of them hits, some drawn twice."""
    ids = draw.rng.integers(0, c, k)
    some = min(k, y.size) // 2
    ids[:some] = y.reshape(-1)[:some]
    ids = ids.astype(draw.pick([t for t in INTEGERS if c - 1 <= np.iinfo(t).max]))
    return (
        ids,
        draw.rng.uniform(0.1, 2, y.shape),
        draw.rng.uniform(0.1, 2, k).astype(draw.pick((np.float32, np.float64))),
    )


def make(draw: Draw) -> Call:
    n, c, d, dtype = sizes(draw)
    k, t = draw.whole(1, max(1, min(c, few(draw, 257)))), draw.pick((1, 1, 1, 2, 3))
    kind = draw.pick(KINDS)
    layouts: dict[str, str] = {}
    x = draw.repeat(sick(draw, _rows(draw, (n, d), dtype, kind)), layouts, "inputs")
    w = _rows(draw, (c, d), dtype if draw.chance(0.8) else draw.pick(FLOATS), kind)
    b = draw.floats((c,), dtype if draw.chance(0.8) else draw.pick(FLOATS), "bits" if kind == "bits" else "normal")
    y, _ = draw.labels((n, t), c)
    arguments: dict[str, Any] = {
        "weights": w,
        "biases": b,
        "labels": y,
        "inputs": x,
        "num_sampled": k,
        "num_classes": c,
    }
    if t > 1 or draw.chance(0.2):
        arguments["num_true"] = t
    way = draw.rng.random()
    if way < 0.6:
        arguments["sampled_values"] = _values(draw, c, k, y)
    elif way < 0.8:
        arguments["seed"] = draw.whole(0, 2**31)
    else:
        name = draw.pick(SAMPLERS)
        first = c if name != "FixedUnigramSampler" else draw.rng.uniform(0.5, 9, c)
        arguments["sampler"] = Made(name, (first,), {"seed": draw.whole(0, 99)})
        draw.note(f"sampler {name} in a loss")
    if draw.chance(0.4):
        arguments["remove_accidental_hits"] = draw.chance(0.5)
    if draw.chance(0.5):
        arguments["subtract_log_q"] = draw.chance(0.3)
    function = draw.pick(("sampled_softmax_loss", "nce_loss"))
    axes = {"weights": ("classes", "d"), "biases": ("classes",), "labels": ("n", "t"), "inputs": ("n", "d")}
    call = Call("sampled", function, arguments, axes=axes, layouts=layouts, limits={"labels": "classes"})
    call.sizes = {"num_classes": "classes", "num_true": "t"}
    if draw.chance(0.4):
        strategy = draw.pick(("mod", "div"))
        if strategy == "div" or draw.chance(0.3):
            arguments["partition_strategy"] = strategy
        for name in ("weights", "biases"):
            if draw.chance(0.7):
                call.splits[name] = (strategy, draw.whole(1, min(5, c)))
    if draw.chance(0.85):
        names = ("inputs", "weights", "biases")
        call.wrt = tuple(draw.rng.permutation(names)[: draw.whole(1, 3)].tolist()) if draw.chance(0.6) else ("inputs",)
    call = finish(draw, call, (n,), "inputs", ("n",))
    if call.wrt != ("inputs",):
        call.buffers.pop("grad_out", None)
    return call


def drawn(call: Call) -> tuple[Any, ...]:
    """The candidates and expected counts that the call will use."""
    a = call.arguments
    if "sampled_values" in a:
        return a["sampled_values"]
    sampler = a["sampler"].make() if "sampler" in a else fl.LogUniformSampler(a["num_classes"], seed=a["seed"])
    return tuple(sampler.candidates(a["labels"].astype(np.int64), a["num_sampled"], True))


class _Sampled:
    """Logits of true and sampled classes, and how far they may be off."""

    def __init__(self, call: Call) -> None:
        a = call.arguments
        self.ids, true, expected = drawn(call)
        self.ids = self.ids.astype(np.int64)
        self.y = a["labels"].astype(np.int64)
        self.dtype = loss_dtype(a["inputs"].dtype)
        e = eps(self.dtype)
        x = wide(a["inputs"])
        # tables are taken to the dtype of the losses
        w, b = (wide(wide(a[name]).astype(self.dtype)) for name in ("weights", "biases"))
        self.x, self.w = x, w
        shift, offsets = wide(a["biases"])[self.y], wide(a["biases"])[self.ids]
        if call.get("subtract_log_q"):
            shift, offsets = shift - np.log(wide(true)), offsets - np.log(wide(expected))
        size = np.abs(x)[:, None] * np.abs(w[self.y])
        self.true = (x[:, None] * w[self.y]).sum(-1) + shift
        self.others, error = product(x, w[self.ids], 0, 0, self.dtype)
        self.others = self.others + offsets
        exact = is_exact(x, w)
        terms = terms_of(x.shape[1]) * (0 if exact else 1)
        self.true_error = terms * (e * size.sum(-1) + unit(0, self.dtype)) + 2 * e * np.abs(self.true)
        self.others_error = error * (0 if exact else 1) + 2 * e * (np.abs(self.others) + np.abs(offsets))
        if exact and not call.get("subtract_log_q") and is_exact(b, wide(a["biases"])):
            self.true_error, self.others_error = 0 * self.true_error, 0 * self.others_error
        self.away = np.zeros(self.others.shape, bool)
        if call.get("remove_accidental_hits"):
            self.away = (self.y[:, :, None] == self.ids).any(1)


def _softmax(f: _Sampled) -> tuple[Any, ...]:
    """Losses, gradients to true and sampled logits, and their errors."""
    t = f.y.shape[1]
    z = np.concatenate([f.true, np.where(f.away, -np.inf, f.others)], 1)
    error = np.concatenate([f.true_error, np.where(f.away, 0, f.others_error)], 1)
    less, p, rest = reference.logsumexp_less(z)
    less_error, p_error, _ = softmax_errors(p, rest, error)
    loss, loss_error = less[:, :t].mean(1), less_error[:, :t].mean(1)
    target = np.concatenate([np.full((1, t), 1 / wide(t)), np.zeros((1, f.others.shape[1]))], 1)
    up, down = p * (1 - target), target * rest
    return loss, loss_error, up - down, p_error + 6 * eps(f.dtype) * (up + down)


def _logistic(f: _Sampled) -> tuple[Any, ...]:
    t = wide(f.y.shape[1])
    q = 1 / t
    s = lambda v: np.exp(-softplus(-v))  # noqa: E731
    parts = q * softplus(-f.true), (1 - q) * softplus(f.true), np.where(f.away, 0, softplus(f.others))
    loss = parts[0].sum(1) + parts[1].sum(1) + parts[2].sum(1)
    up, down, side = (1 - q) * s(f.true), q * s(-f.true), np.where(f.away, 0, s(f.others))
    # where errors are large slopes are those at the far end
    most = (1 - q) * moved(s(f.true), f.true_error) + q * moved(s(-f.true), f.true_error)
    error = (most * f.true_error).sum(1)
    error = error + np.where(f.away, 0, moved(side, f.others_error) * f.others_error).sum(1)
    # what was removed is 0 in a NaN row too
    bend = [moved(s(v), d) * moved(s(-v), d) * d for v, d in ((f.true, f.true_error), (f.others, f.others_error))]
    # the exponential of a sampled logit may underflow in the dtype of the logits
    error = error + wide(np.finfo(f.dtype).tiny) * f.others.shape[1]
    grad_error = np.concatenate([bend[0] * 2 + 6 * eps(f.dtype) * (up + down),
                                 np.where(f.away, 0, bend[1]) * 2 + 6 * eps(f.dtype) * side], 1)  # fmt: skip
    return loss, error, np.concatenate([up - down, side], 1), grad_error


def expect(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    f = _Sampled(call)
    n, t = f.y.shape
    dtype, e = f.dtype, eps(f.dtype)
    loss, error, g, g_error = (_softmax if call.function == "sampled_softmax_loss" else _logistic)(f)
    tail = Tail(call, (n,))
    error = error + (4 if dtype == np.float32 else 8) * unit(loss, dtype)
    found = {"value": tail.value(loss, error, dtype)}
    scale = tail.scale[:, None]
    g = np.where(scale != 0, g * scale, 0)
    g_error = np.where(scale != 0, g_error * np.abs(scale) + (2 * e + tail.noise) * np.abs(g) + unit(0, dtype), 0)
    x = np.where(scale != 0, f.x, 0)
    to_true, true_error = g[:, :t], g_error[:, :t]
    others, others_error = g[:, t:], g_error[:, t:]
    order = np.argsort(np.concatenate([f.y.reshape(-1), f.ids]), kind="stable")
    for name in call.wrt:
        own = a[name]
        if name == "inputs":
            want, error = product(others, f.w[f.ids].T, others_error, 0, dtype)
            rows = f.w[f.y]
            want = want + (to_true[:, :, None] * rows).sum(1)
            error = error + ((true_error + 4 * e * np.abs(to_true))[:, :, None] * np.abs(rows)).sum(1)
            found["grad inputs"] = Expect(
                want, np.where(scale != 0, error + unit(want, dtype), 0) + unit(want, own.dtype)
            )
            continue
        if name == "weights":
            of_others, error = product(others.T, x.T, others_error.T, 0, dtype)
            of_true = (to_true[:, :, None] * x[:, None]).reshape(n * t, x.shape[1])
            first = (true_error[:, :, None] * np.abs(x)[:, None]).reshape(of_true.shape) + 2 * e * np.abs(of_true)
        else:
            of_others, error = others.sum(0), others_error.sum(0) + terms_of(n) * e * np.abs(others).sum(0)
            of_true, first = to_true.reshape(-1), true_error.reshape(-1)
        want, error = np.concatenate([of_true, of_others])[order], np.concatenate([first, error])[order]
        found[f"grad {name}[values]"] = Expect(want, error + unit(want, dtype) + unit(want, own.dtype))
        found[f"grad {name}[indices]"] = Expect(np.concatenate([f.y.reshape(-1), f.ids])[order], 0)
    return found


# ------------------------------------------------------------------ in the batch


def make_in_batch(draw: Draw) -> Call:
    d, dtype = draw.width_and_dtype(1500)
    n = min(few(draw, 513), max(1, int((400_000 / max(1, d)) ** 0.5)))
    kind = draw.pick(KINDS)
    layouts: dict[str, str] = {}
    q = draw.repeat(sick(draw, _rows(draw, (n, d), dtype, kind)), layouts, "queries")
    k = _rows(draw, (n, d), dtype if draw.chance(0.8) else draw.pick(FLOATS), kind)
    arguments: dict[str, Any] = {"queries": q, "keys": k}
    axes = {"queries": ("n", "d"), "keys": ("n", "d")}
    if draw.chance(0.4):
        arguments["item_ids"], _ = draw.labels((n,), draw.pick((1, 3, max(1, n // 2), 100)))
        axes["item_ids"] = ("n",)
    if draw.chance(0.3):
        arguments["log_q"] = -np.abs(draw.floats((n,), np.dtype(np.float64), "normal"))
        axes["log_q"] = ("n",)
    if draw.chance(0.4):
        arguments["temperature"] = draw.pick((0.5, 0.07, 2.0, 1))
    call = Call("in_batch", "in_batch_softmax_loss", arguments, axes=axes, layouts=layouts)
    if draw.chance(0.85):
        call.wrt = draw.pick((("queries",), ("keys",), ("queries", "keys"), ("keys", "queries")))
    return finish(draw, call, (n,), "queries", ("n",))


def expect_in_batch(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    dtype = loss_dtype(a["queries"].dtype)
    e = eps(dtype)
    q, k = wide(a["queries"]), wide(wide(a["keys"]).astype(dtype))
    n = len(q)
    slope = 1 / wide(a.get("temperature", 1.0))
    raw, error = product(q, k, 0, 0, dtype)
    shift = wide(a.get("log_q", np.zeros(n)))
    z = raw * slope - shift
    if is_exact(q, k):
        error = error * 0
    error = error * slope
    if "log_q" in a or slope != 1 or not is_exact(q, k):
        error = error + 2 * e * (np.abs(raw * slope) + np.abs(shift))
    ids = a.get("item_ids", np.arange(n)).astype(np.int64)
    away = (ids[:, None] == ids) & ~np.eye(n, dtype=bool)
    less, p, rest = reference.logsumexp_less(np.where(away, -np.inf, z))
    error = np.where(away, 0, error)
    less_error, p_error, _ = softmax_errors(p, rest, error)
    loss, loss_error = np.diagonal(less), np.diagonal(less_error)
    tail = Tail(call, (n,))
    found = {"value": tail.value(loss, loss_error + (4 if dtype == np.float32 else 8) * unit(loss, dtype), dtype)}
    own = np.eye(n, dtype=bool)
    g = np.where(own, -rest, p)
    g_error = p_error + 6 * e * np.abs(g)
    scale = tail.scale[:, None]
    g = np.where(scale != 0, g * scale * slope, 0)
    g_error = np.where(
        scale != 0, g_error * np.abs(scale) * slope + (4 * e + tail.noise) * np.abs(g) + unit(0, dtype), 0
    )
    x = np.where(scale != 0, q, 0)
    for name, (want, error) in (("queries", product(g, k.T, g_error, 0, dtype)),
                                ("keys", product(g.T, x.T, g_error.T, 0, dtype))):  # fmt: skip
        if name in call.wrt:
            error = error + unit(want, dtype) + unit(want, a[name].dtype)
            # a row without weight has no gradient, whatever the keys hold
            want = np.where(scale != 0, want, 0) if name == "queries" else want
            found[f"grad {name}"] = Expect(want, error)
    return found
