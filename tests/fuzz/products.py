"""Losses of logits that are matrix products: linear, sampled, noise-contrastive, in-batch."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import reference
from reference import wide

import fastloss as fl

from . import calls
from .bounds import Expect, eps, moved, softmax_errors, unit, wander
from .calls import Call, Problem
from .draws import EDGES, FLOATS, INTEGERS, Draw
from .tails import Tail, finish, loss_dtype, note

KINDS = ("normal", "bits", "bits", "bits", "equal", "tiny", "zero", "denormal", "confident", "spread")


def terms_of(n: int) -> Any:
    """Roundings that a sum of n products may carry, in units of the sum of their magnitudes."""
    return np.longdouble(min(n + 2, 8 + 4 * n**0.5))


def product(a: Any, b: Any, error_a: Any, error_b: Any, dtype: Any) -> tuple[Any, Any]:
    """a times b transposed, and how far it may be off for these errors of a and b."""
    size = np.abs(a) @ np.abs(b).T
    error = terms_of(a.shape[1]) * (eps(dtype) * size + unit(0, dtype))
    if np.any(error_a):
        error = error + np.broadcast_to(error_a, a.shape) @ (np.abs(b) + error_b).T
    if np.any(error_b):
        error = error + np.abs(a) @ np.broadcast_to(error_b, b.shape).T
    return a @ b.T, error


def is_exact(*arrays: Any) -> bool:
    """Whether all are multiples of 1/4 so small that products of rows are exact."""
    return all(np.array_equal(np.round(4 * v), 4 * v) and np.abs(v).max(initial=0) < 16 for v in arrays)


def few(draw: Draw, most: int) -> int:
    return draw.pick([n for n in EDGES if n <= most]) if draw.chance(0.6) else draw.whole(1, most)


def sizes(draw: Draw) -> tuple[int, int, int, Any]:
    """Rows, classes, features, and the dtype; no more products than an oracle can take."""
    d, dtype = draw.width_and_dtype(1500)
    most = 3_000_000 if draw.chance(0.03) else 150_000
    room = max(1, most // max(1, d))
    n = min(0 if draw.chance(0.01) else few(draw, 513), max(1, int(room**0.5) * draw.pick((1, 1, 3, 10))))
    c = min(few(draw, 513), max(1, room // max(1, n)))
    return n, c, d, dtype


def sick(draw: Draw, x: Any) -> Any:
    """Now and then with a NaN."""
    if x.size and draw.chance(0.03):
        x.reshape(-1)[draw.whole(0, x.size - 1)] = np.nan
    return x


# ------------------------------------------------------------------ linear cross entropy


def _layer(draw: Draw, function: str) -> tuple[Call, tuple[int, ...], int]:
    n, c, d, dtype = sizes(draw)
    shape = draw.shape(n, 3) if draw.chance(0.3) else (n,)
    kind = draw.pick(KINDS)
    layouts: dict[str, str] = {}
    x = sick(draw, draw.floats((*shape, d), dtype, kind))
    w = draw.floats((c, d), dtype if draw.chance(0.8) else draw.pick(FLOATS), kind if draw.chance(0.7) else None)
    w = np.nan_to_num(w, nan=0.0, posinf=1.0, neginf=-1.0).astype(w.dtype) if kind != "confident" else w
    if w.dtype.itemsize > 2 and kind != "bits":
        w = (w / max(1, d) ** 0.5).astype(w.dtype)
    w = np.where(np.isfinite(wide(w)), w, np.zeros((), w.dtype))
    rows = tuple(f"n{k}" for k in range(len(shape)))
    arguments: dict[str, Any] = {"inputs": draw.repeat(x, layouts, "inputs"), "weights": w}
    axes = {"inputs": (*rows, "d"), "weights": ("classes", "d")}
    if draw.chance(0.5):
        b = draw.floats((c,), dtype, "bits" if kind == "bits" else "normal")
        if draw.chance(0.1):
            b = np.where(draw.rng.random(c) < 0.2, np.asarray(-np.inf, b.dtype), b)
        arguments["biases"] = b
        axes["biases"] = ("classes",)
    if draw.chance(0.15):
        arguments["softcap"] = draw.pick((2.5, 30.0, 0.5))
    if draw.chance(0.2):
        arguments["temperature"] = draw.pick((0.5, 2.0, 0.7))
    if draw.chance(0.2):
        arguments["max_memory"] = draw.pick((1, 10_000, 1_000_000))
    call = Call("linear", function, arguments, layouts=layouts, axes=axes)
    if draw.chance(0.3):
        cuts = sorted(draw.whole(0, c) for _ in range(draw.whole(0, 3)))
        call.splits["weights"] = ("cut", cuts)
    return call, shape, c


def make_linear(draw: Draw) -> Call:
    call, shape, c = _layer(draw, "linear_cross_entropy")
    arguments, rows = call.arguments, call.axes["inputs"][:-1]
    if draw.chance(0.25):  # the best of a teacher
        k = draw.whole(1, min(c, 6))
        ids = np.argsort(draw.rng.random((*shape, c)), -1)[..., :k]
        p = draw.rng.dirichlet(np.ones(k + 1), shape)[..., :k] * draw.pick((1.0, 1.0, 0.0))
        integers = [t for t in INTEGERS if c - 1 <= np.iinfo(t).max]
        arguments["labels"] = (ids.astype(draw.pick(integers)), p.astype(draw.pick((np.float32, np.float64))))
        arguments["tail"] = draw.pick(("drop", "renormalize", "other"))
        draw.note("labels pair")
    else:
        arguments["labels"], ignore = draw.labels(shape, c, 0.3)
        if ignore is not None:
            arguments["ignore_index"] = ignore
        call.axes["labels"], call.limits["labels"] = rows, "classes"
    if draw.chance(0.15):
        arguments["z_loss"] = draw.pick((0.01, 0.5))
    if arguments.get("tail") != "other":
        if draw.chance(0.2):
            arguments["class_weight"] = np.asarray(draw.weights((c,)))
            call.axes["class_weight"] = ("classes",)
        if draw.chance(0.2):
            arguments["label_smoothing"] = draw.pick((0.1, 0.9, 1.0))
    if draw.chance(0.2):
        arguments["return_stats"] = True
    if draw.chance(0.8):
        names = [k for k in ("inputs", "weights", "biases") if k in arguments]
        call.wrt = tuple(draw.rng.permutation(names)[: draw.whole(1, len(names))].tolist())
    call = finish(draw, call, shape, "inputs", rows)
    if "grad_out" in call.buffers and "weights" in call.splits:
        del call.buffers["grad_out"]
    return call


class _Layer:
    """Logits of a linear layer, [n, C], how far they may be off, and what a softmax makes of them."""

    def __init__(self, call: Call) -> None:
        a = call.arguments
        shape = a["inputs"].shape
        self.x, self.w = wide(a["inputs"]).reshape(math.prod(shape[:-1]), shape[-1]), wide(a["weights"])
        self.dtype = max(loss_dtype(a["inputs"].dtype), loss_dtype(a["weights"].dtype), key=lambda t: t.itemsize)
        b = wide(a.get("biases", np.zeros(len(self.w))))
        # rows of which a logit, or a sum on the way to it, may not fit in the dtype
        size = np.abs(self.x) @ np.abs(self.w).T + np.where(np.isfinite(b), np.abs(b), 0)
        self.large = (size >= 0.999 * np.finfo(self.dtype).max).any(-1)
        e = eps(self.dtype)
        raw, error = product(self.x, self.w, 0, 0, self.dtype)
        if is_exact(self.x, self.w):
            error = error * 0
        raw = raw + b
        if not is_exact(self.x, self.w, np.where(np.isfinite(b), b, 0)):
            error = error + e * np.where(np.isfinite(raw), np.abs(raw), 0)
        self.error_raw = error
        self.slope = np.ones(raw.shape, np.longdouble)
        self.slope_error = 0 * self.slope
        cap, heat = a.get("softcap"), wide(a.get("temperature", 1.0))
        z = raw
        if cap is not None:
            t = np.tanh(raw / cap)
            z = cap * t
            self.slope = 1 - t * t
            self.slope_error = 2 * np.abs(t) * (self.slope * error / cap + 4 * e) + 4 * e * self.slope
            # the cap may be rounded away near it
            error = error * np.minimum(1, self.slope + 2 * error / cap) + 4 * e * np.abs(z)
        self.z, self.error = z / heat, error / heat
        if heat != 1:
            self.error = self.error + 2 * e * np.where(np.isfinite(self.z), np.abs(self.z), 0)
        self.slope, self.slope_error = self.slope / heat, self.slope_error / heat + e * self.slope / heat
        self.less, self.p, self.others = reference.logsumexp_less(self.z) if self.z.shape[1] else (self.z,) * 3
        self.error = np.where(np.isfinite(self.z), self.error, 0)
        self.less_error, self.p_error, self.mean_error = softmax_errors(self.p, self.others, self.error)
        top = self.z.max(-1, keepdims=True, initial=-np.inf)
        self.lse = (
            np.where(self.p.sum(-1, keepdims=True) > 0, 0, 0)
            + top
            + np.log(np.exp(self.z - top).sum(-1, keepdims=True))
        )


def expect_linear(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    f = _Layer(call)
    shape, n, c = a["inputs"].shape[:-1], len(f.x), len(f.w)
    dtype, e = f.dtype, eps(f.dtype)
    counts, bucket, bucket_error = np.ones(n, bool), 0, 0
    extra, extra_error = np.zeros((2, n), np.longdouble)
    alone, left = np.zeros(n, bool), np.zeros(n, np.longdouble)  # whether none is left for the tail; its share
    w = wide(a.get("class_weight", np.ones(c)))
    if isinstance(a["labels"], tuple):
        ids, probs = (v.reshape(n, a["labels"][0].shape[-1]) for v in a["labels"])
        probs = wide(probs)
        if a.get("tail") == "renormalize":
            total = probs.sum(-1, keepdims=True)
            probs = np.where(total != 0, probs / np.where(total != 0, total, 1), 0)
        z = np.zeros((n, c), np.longdouble)
        np.put_along_axis(z, ids.astype(np.int64), probs, -1)
        if a.get("tail") == "other":
            left = np.maximum(0, 1 - probs.sum(-1))
            rest = np.ones((n, c))
            np.put_along_axis(rest, ids.astype(np.int64), 0, -1)
            share, marked = (f.p * rest).sum(-1), (f.p * (1 - rest)).sum(-1)
            among = np.where(rest != 0, f.z, -np.inf)
            top = among.max(-1, keepdims=True, initial=-np.inf)
            alone = top[:, 0] == -np.inf
            far = f.lse[:, 0] - top[:, 0] - np.log(np.exp(among - top).sum(-1))
            alone = alone | (left != 0) & (far > 690)  # said to be infinite where so little is left
            extra = np.where(left != 0, left * np.where(share > 1e-300, np.log1p(marked / share), far), 0)
            worst = f.error.max(-1, initial=0)
            most = moved(marked, 2 * worst)
            extra_error = np.where(left != 0, left * 2 * most * worst + 8 * e * np.abs(extra) + 2 * e * most, 0)
            # left (p_k - q_k), q the share among the rest
            both = reference.logsumexp_less(among)[1]
            bucket = left[:, None] * (f.p - both)
            bucket_error = wander(f.p, 4 * worst[:, None] + 16 * e) + wander(both, 4 * worst[:, None] + 16 * e)
            bucket_error = left[:, None] * bucket_error
    else:
        y = a["labels"].reshape(-1)
        counts = y != a["ignore_index"] if "ignore_index" in a else counts
        z = reference.one_hot(np.where(counts, y, 0), c)
    weighted = "class_weight" in a
    row_weight = np.where(counts, (w * z).sum(-1) if weighted else 1, 0)
    s = wide(a.get("label_smoothing", 0.0))
    t = w * ((1 - s) * z + s / max(c, 1))
    loss = np.where(t != 0, t * f.less, 0).sum(-1) + extra
    ulp = (4 if len(a) <= 4 else 8) * (1 if dtype == np.float32 else 2)
    error = np.where(t != 0, t * f.less_error, 0).sum(-1) + ulp * unit(loss, dtype) + extra_error
    zeta = wide(a.get("z_loss", 0.0))
    if zeta:
        lse = f.lse[:, 0]
        add = zeta * row_weight * lse**2
        loss = loss + add
        error = (
            error + zeta * row_weight * 2 * np.abs(lse) * (f.mean_error[:, 0] + 4 * e * (1 + np.abs(lse))) + 8 * e * add
        )
    ill = np.isnan(f.less).any(-1)
    known = counts
    counts = counts & ((t != 0).any(-1) | (left != 0) | (zeta * row_weight != 0))  # else it is 0, whatever it holds
    loss = np.where(counts, np.where(ill, np.nan, loss), 0)
    free = (f.lse[:, 0] == np.inf) | alone | f.large
    tail = Tail(call, shape, row_weight.reshape(shape) if weighted or "ignore_index" in a else 1.0)
    found = {"value": tail.value(loss.reshape(shape), error.reshape(shape), dtype, free.reshape(shape))}
    if a.get("return_stats"):
        found["value[0]"] = found.pop("value")
        found |= _stats(call, f, known, got)
    if not call.wrt:
        return found
    scale = np.where(counts, tail.scale.reshape(-1), 0)[:, None]
    total = t.sum(-1, keepdims=True)
    up, down = f.p * (total - t), t * f.others
    g = up - down + bucket
    p_error = f.p_error
    g_error = total * p_error + 8 * e * (up + down + np.abs(bucket)) + bucket_error + 4 * e * total * f.p
    if zeta:
        push = 2 * zeta * row_weight[:, None] * f.lse * f.p
        g = g + push
        g_error = g_error + 2 * zeta * row_weight[:, None] * (np.abs(f.lse) * p_error + f.p * f.mean_error
                                                             + 8 * e * f.p * (1 + np.abs(f.lse)))  # fmt: skip
    g, g_error = g * f.slope, g_error * f.slope + np.abs(g) * f.slope_error
    g = np.where(scale != 0, scale * g, 0)
    g_error = np.where(scale != 0, np.abs(scale) * g_error, 0) + (2 * e + tail.noise) * np.abs(g) + unit(0, dtype)
    g_error = np.where(scale != 0, g_error, 0)
    x = np.where(scale != 0, f.x, 0)
    open_rows = free & (scale[:, 0] != 0)
    for name, (want, error), open_ in (
        ("inputs", product(g, f.w.T, g_error, 0, dtype), open_rows[:, None]),
        ("weights", product(g.T, x.T, g_error.T, 0, dtype), open_rows.any()),
        ("biases", (g.sum(0), g_error.sum(0) + terms_of(n) * e * np.abs(g).sum(0)), open_rows.any()),
    ):
        if name in call.wrt:
            own = a[name]
            error = error + unit(want, own.dtype)
            found[f"grad {name}"] = Expect(want.reshape(own.shape), error.reshape(own.shape),
                                           np.broadcast_to(open_, want.shape).reshape(own.shape))  # fmt: skip
    return found


def _stats(call: Call, f: _Layer, counts: Any, got: dict[str, Any]) -> dict[str, Expect]:
    shape, e = call.arguments["inputs"].shape[:-1], eps(f.dtype)
    free = (np.isnan(f.less).any(-1) | (f.less == np.inf).all(-1) | f.large).reshape(shape)
    lse = f.lse[:, 0]
    some = np.where(f.p > 0, f.less, 0)
    entropy = (f.p * some).sum(-1)
    # sums of terms as large as the logits that count
    size = (f.p * np.where(f.p > 0, np.abs(f.z), 0)).sum(-1) + np.abs(lse) + 1
    error = ((f.p + f.p_error) * (f.less_error + (1 + some) * (f.error + f.mean_error))).sum(-1) + 8 * e * size
    given = call.arguments["labels"]
    pair = isinstance(given, tuple)
    ids = (given[0] if pair else given).astype(np.int64).reshape(len(lse), given[0].shape[-1] if pair else 1) * counts[
        :, None
    ]
    log_prob = np.where(counts[:, None], -np.take_along_axis(f.less, ids, 1), 0)
    log_error = np.take_along_axis(f.less_error, ids, 1) + 8 * unit(np.abs(log_prob) + np.abs(f.lse), f.dtype)
    finite = np.where(np.isfinite(f.z), np.abs(f.z), 0).max(-1, initial=0)
    best = np.where(np.isnan(f.z), -np.inf, f.z).argmax(-1)
    have = np.clip(got["value[1][argmax]"].reshape(-1), 0, f.z.shape[1] - 1)
    rows = np.arange(len(lse))
    near = f.z[rows, have] + f.error[rows, have] + f.error[rows, best] >= f.z[rows, best]
    found = {
        "lse": Expect(lse, f.mean_error[:, 0] + 8 * unit(np.abs(lse) + finite, f.dtype), free.reshape(-1)),
        "entropy": Expect(entropy, error, free.reshape(-1)),
        "argmax": Expect(np.where(near & (f.error[rows, best] > 0) | free.reshape(-1), have, best), 0),
    }
    found = {name: Expect(*(np.reshape(v, shape) for v in (x.want, x.bound + 0 * lse, x.free | (lse != lse))))
             for name, x in found.items()}  # fmt: skip
    own = got["value[1][log_prob]"].shape
    found["log_prob"] = Expect(log_prob.reshape(own), log_error.reshape(own),
                               np.broadcast_to(free.reshape(-1, 1), log_prob.shape).reshape(own))  # fmt: skip
    first = np.take_along_axis(ids, given[1].reshape(ids.shape).argmax(-1)[:, None], 1)[:, 0] if pair else ids[:, 0]
    right = (first == got["value[1][argmax]"].reshape(-1)) & counts
    found["correct"] = Expect(right.reshape(shape), 0, free)
    return {f"value[1][{name}]": x for name, x in found.items()}


# ------------------------------------------------------------------ partial sums


def make_partials(draw: Draw) -> Call:
    call, shape, c = _layer(draw, "linear_partials")
    call.kind = "partials"
    call.arguments["labels"], _ = draw.labels(shape, c)
    call.axes["labels"], call.limits["labels"] = call.axes["inputs"][:-1], "classes"
    call.splits.pop("weights", None)
    call.traits["cuts"] = sorted(draw.whole(0, c) for _ in range(draw.whole(0, 4)))
    call.traits["order"] = draw.whole(0, 1000)
    call.layouts |= draw.layouts(call.arguments)
    call.n_threads = draw.pick((None, 1, 2, 3))
    note(draw, call)
    draw.note("function merge_partials")
    draw.note("function loss_from_partials")
    return call


def run_partials(call: Call, like: Any = None) -> tuple[dict[str, Any], list[Problem]]:
    """Partial sums of some parts of the classes, merged in some order."""
    c = len(call.arguments["weights"])
    ends = [0, *(min(k, c) for k in call.traits["cuts"]), c]
    parts, problems = [], []
    for a, b in itertools.pairwise(ends):
        arguments = {**call.arguments, "weights": call.arguments["weights"][a:b], "first_class": a}
        if "biases" in arguments:
            arguments["biases"] = arguments["biases"][a:b]
        results, more = calls.run(replace(call, arguments=arguments))
        parts.append(results["value"])
        problems += more
    rng = np.random.default_rng(call.traits["order"])
    parts = [parts[k] for k in rng.permutation(len(parts))]
    while len(parts) > 1:
        k = int(rng.integers(2, len(parts) + 1))
        parts = [*parts[k:], fl.merge_partials(*parts[:k])]
    return {"value": np.asarray(fl.loss_from_partials(parts[0]))}, problems


def expect_partials(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    f = _Layer(call)
    y = call.arguments["labels"].reshape(-1, 1).astype(np.int64)
    shape = call.arguments["labels"].shape
    loss, error = (np.take_along_axis(v, y, 1)[:, 0] for v in (f.less, f.less_error))
    ill = np.isnan(f.less).any(-1)
    bound = error + 4 * unit(loss, f.dtype)
    return {
        "value": Expect(
            np.where(ill, np.nan, loss).reshape(shape),
            bound.reshape(shape),
            ((f.z == -np.inf).all(-1) | f.large).reshape(shape),
        )
    }
