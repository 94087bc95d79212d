"""Connectionist temporal classification: its loss, its decoders, and the edit distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference_sequence
from reference import logsumexp_less, wide
from reference_sequence import collapse

from .bounds import Expect, eps, unit
from .calls import Call
from .draws import EDGES, INTEGERS, Draw
from .tails import Tail, finish, loss_dtype, note

KINDS = ("normal", "normal", "bits", "confident", "equal", "tiny", "zero", "masked", "sick")


def _frames(draw: Draw, function: str, most_frames: int, most_classes: int) -> tuple[Call, int, int, int]:
    width, dtype = draw.width_and_dtype(most_classes)
    c = max(1, min(width, most_classes))
    n, t = draw.whole(0, 6), draw.whole(0, most_frames)
    x = draw.floats((n, t, c), dtype, draw.pick(KINDS))
    arguments: dict[str, Any] = {"logits": x}
    axes = {"logits": ("n", "t", "c")}
    if draw.chance(0.6):
        arguments["logits"], axes["logits"] = np.ascontiguousarray(x.swapaxes(0, 1)), ("t", "n", "c")
        if draw.chance(0.3):
            arguments["logits_time_major"] = True
    else:
        arguments["logits_time_major"] = False
    if draw.chance(0.5):
        arguments["blank_index"] = draw.whole(-c, c - 1)
    if draw.chance(0.7):
        dtype = draw.pick([d for d in INTEGERS if t <= np.iinfo(d).max])
        arguments["logit_length"] = draw.rng.integers(0, t + 1, n).astype(dtype)
        axes["logit_length"] = ("n",)
    return Call(function, function, arguments, axes=axes), n, t, c


def _of(call: Call) -> tuple[Any, Any, int]:
    """Logits [batch, time, class], frames of each row, the blank."""
    a = call.arguments
    x = a["logits"] if a.get("logits_time_major") is False else a["logits"].swapaxes(0, 1)
    frames = a.get("logit_length")
    frames = np.full(len(x), x.shape[1]) if frames is None else frames.astype(np.int64)
    return x, frames, a.get("blank_index", 0) % x.shape[2]


def make_ctc(draw: Draw) -> Call:
    call, n, _, c = _frames(draw, "ctc_loss", draw.pick((4, 12, 30)), 300)
    a = call.arguments
    blank = a.get("blank_index", 0) % c
    most = draw.whole(0, draw.pick((2, 4, 12))) if c > 1 else 0
    few = draw.pick((c - 1, min(2, c - 1)))  # so that labels repeat
    y = draw.rng.integers(0, max(1, few), (n, most))
    y = y + (y >= blank)
    lengths = draw.rng.integers(0, most + 1, n)
    dtype = draw.pick([d for d in INTEGERS if c <= np.iinfo(d).max])
    if draw.chance(0.3):
        y = np.concatenate([row[:m] for row, m in zip(y, lengths, strict=True)] or [y.reshape(-1)])
        a["labels"], a["label_length"] = y.astype(dtype), lengths
        draw.note("labels concatenated")
    elif draw.chance(0.3):
        a["labels"], a["label_length"] = y.astype(dtype), None
        call.axes["labels"] = ("n", "u")
    else:
        past = np.arange(most) >= lengths[:, None]
        info = np.iinfo(dtype)
        y = y.astype(dtype)
        y[past] = draw.pick((info.max, info.min, blank))
        a["labels"], a["label_length"] = y, lengths.astype(draw.pick([d for d in INTEGERS if most <= np.iinfo(d).max]))
        call.axes |= {"labels": ("n", "u"), "label_length": ("n",)}
    a.setdefault("logit_length", None)
    for name in ("preprocess_collapse_repeated", "ignore_longer_outputs_than_inputs", "zero_infinity"):
        if draw.chance(0.2):
            a[name] = True
    if draw.chance(0.2):
        a["ctc_merge_repeated"] = draw.chance(0.2)
    if draw.chance(0.85):
        call.wrt = ("logits",)
    return finish(draw, call, (n,), "logits", ("n",))


def _rows(call: Call, n: int) -> list[Any]:
    a = call.arguments
    y, lengths = a["labels"].astype(np.int64), a["label_length"]
    if y.ndim == 1:
        ends = np.cumsum(lengths)
        return [y[e - m : e] for e, m in zip(ends, lengths, strict=True)]
    lengths = np.full(n, y.shape[1]) if lengths is None else lengths.astype(np.int64)
    return [row[:m] for row, m in zip(y, lengths, strict=True)]


def expect_ctc(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    x, frames, blank = _of(call)
    n = len(x)
    dtype = loss_dtype(x.dtype)
    loss, error = np.zeros((2, n), np.longdouble)
    grad, grad_error = np.zeros((2, *x.shape), np.longdouble)
    merge, first = a.get("ctc_merge_repeated", True), a.get("preprocess_collapse_repeated", False)
    for b, y in enumerate(_rows(call, n)):
        rows = wide(x[b, : frames[b]])
        if a.get("ignore_longer_outputs_than_inputs") and len(y) > len(rows):
            continue
        loss[b], slope = reference_sequence.ctc(y, rows, blank, merge, first)
        if loss[b] == np.inf and a.get("zero_infinity"):
            loss[b] = 0
            continue
        with np.errstate(all="ignore"):
            p = logsumexp_less(rows)[1] if len(rows) else np.zeros(rows.shape, np.longdouble)
        grad[b, : frames[b]] = slope
        # the long double lattice itself loses what is below its digits of 1
        error[b] = (1 if dtype == np.float32 else 8 + len(rows)) * unit(loss[b], dtype) + (4 + len(rows)) * 2.0**-62
        # logits are rounded when their maximum is taken off
        finite = np.where(np.isfinite(rows), rows, rows.max(initial=-np.inf))
        spread = np.ptp(finite, 1).max() if rows.size else 0
        relative = 1e-13 + 8 * eps(np.float64) * spread
        grad_error[b, : frames[b]] = relative * np.maximum(p, np.abs(p - slope)) + (4 + len(rows)) * 2.0**-62
    if dtype == np.float32:
        grad_error = grad_error + unit(grad, dtype)
    tail = Tail(call, (n,))
    found = {"value": tail.value(loss, error, dtype)}
    if call.wrt:
        e = tail.grad(grad, grad_error, x.dtype, dtype, tail.scale[:, None, None])
        if a.get("logits_time_major") is not False:
            e = Expect(*(np.broadcast_to(v, grad.shape).swapaxes(0, 1) for v in (e.want, e.bound, e.free)))
        found["grad logits"] = e
    return found


# ------------------------------------------------------------------ decoders


def make_greedy(draw: Draw) -> Call:
    call, *_ = _frames(draw, "ctc_greedy_decode", 30, 300)
    if draw.chance(0.3):
        call.arguments["merge_repeated"] = draw.chance(0.2)
    return _decoding(draw, call)


def make_beam(draw: Draw) -> Call:
    call, *_ = _frames(draw, "ctc_beam_search_decode", 5, 3)
    if draw.chance(0.3):
        call.arguments["merge_repeated"] = draw.chance(0.2)
    if draw.chance(0.8):
        call.arguments["beam_width"] = draw.pick((1, 2, 5, 1000, 1000))
    if draw.chance(0.7):
        call.arguments["top_paths"] = draw.whole(1, min(call.arguments.get("beam_width", 100), 6))
    return _decoding(draw, call)


def _decoding(draw: Draw, call: Call) -> Call:
    call.layouts = draw.layouts(call.arguments)
    call.n_threads = draw.pick((None, 1, 2, 3))
    note(draw, call)
    return call


def expect_greedy(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    x, frames, blank = _of(call)
    n = len(x)
    paths, score, error = [], np.zeros(n, np.longdouble), np.zeros(n, np.longdouble)
    dtype = loss_dtype(x.dtype)
    for b in range(n):
        rows = wide(x[b, : frames[b]])
        less = logsumexp_less(rows)[0] if len(rows) else rows
        if np.isnan(less).any():
            score[b] = np.nan
            paths.append(())
            continue
        best = rows.argmax(1) if len(rows) else []
        terms = np.array([less[t, k] for t, k in enumerate(best)], np.longdouble)
        score[b], error[b] = -terms.sum(), (8 + len(rows)) * eps(np.float64) * terms.sum() + unit(terms.sum(), dtype)
        paths.append(collapse(list(best), blank, call.arguments.get("merge_repeated", True)))
    labels = np.full((n, max(map(len, paths), default=0)), -1)
    for b, path in enumerate(paths):
        labels[b, : len(path)] = path
    return {
        "value[labels]": Expect(labels, 0),
        "value[label_length]": Expect(np.array([len(p) for p in paths], int), 0),
        "value[log_probability]": Expect(score, error),
    }


def labellings(x: Any, blank: int, merge: bool) -> dict[tuple[int, ...], Any]:
    """The probability of every labelling, prefix by prefix: of those ending in a blank, and the others."""
    found: dict[tuple[int, ...], list[Any]] = {(): [np.longdouble(1), np.longdouble(0)]}
    for p in logsumexp_less(x)[1] if len(x) else []:
        later: dict[tuple[int, ...], list[Any]] = {}
        for path, (blanks, others) in found.items():
            for k, share in enumerate(p):
                if k == blank:
                    later.setdefault(path, [0, 0])[0] += (blanks + others) * share
                elif merge and path and path[-1] == k:
                    later.setdefault(path, [0, 0])[1] += others * share
                    later.setdefault((*path, k), [0, 0])[1] += blanks * share
                else:
                    later.setdefault((*path, k), [0, 0])[1] += (blanks + others) * share
        found = later
    return {path: a + b for path, (a, b) in found.items() if a + b > 0}


def expect_beam(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    x, frames, blank = _of(call)
    a = call.arguments
    n, paths = len(x), a.get("top_paths", 1)
    dtype = loss_dtype(x.dtype)
    labels, length = got["value[labels]"], got["value[label_length]"]
    want, error = np.full((2, n, paths), -np.inf, np.longdouble)
    good = np.ones((n, paths), bool)
    for b in range(n):
        rows = wide(x[b, : frames[b]])
        if len(rows) and np.isnan(logsumexp_less(rows)[0]).any():
            want[b] = np.nan
            want[b, 1:] = -np.inf
            good[b] = length[b] == 0
            continue
        found = labellings(rows, blank, a.get("merge_repeated", True))
        ours = [tuple(labels[b, k, : length[b, k]].tolist()) for k in range(paths)]
        some = [k for k in range(paths) if got["value[log_probability]"][b, k] > -np.inf]
        good[b] = (
            len({ours[k] for k in some}) == len(some)
            and (labels[b][np.arange(labels.shape[2]) >= length[b][:, None]] == -1).all()
        )
        best = sorted((np.log(v) for v in found.values()), reverse=True)
        for k in range(paths):
            exact = a.get("beam_width", 100) >= len(found)
            exact = exact and not (k < len(best) and best[k] < best[0] - 600)  # these may be lost
            if exact:  # which of equal ones comes first is not said
                want[b, k] = best[k] if k < len(best) else -np.inf
            if ours[k] in found and k in some:
                own = np.log(found[ours[k]])
                if not exact:
                    want[b, k] = own
                good[b, k] &= np.abs(own - want[b, k]) <= 1e-9 * (1 + np.abs(own))
            elif k in some:
                good[b, k] = False
            elif not exact:
                want[b, k] = -np.inf
    error = (16 + x.shape[1]) * (eps(np.float64) + 2.0**-62) * (1 + np.abs(want)) + 2 * unit(want, dtype)
    low = want < (want.max(1, keepdims=True, initial=-np.inf) - 600)
    return {
        "value[label_length]": Expect(np.where(good, length, -99), 0),
        "value[log_probability]": Expect(want, np.where(np.isfinite(want), error, 0), low),
    }


# ------------------------------------------------------------------ edit distance


def make_distance(draw: Draw) -> Call:
    n, letters = draw.whole(0, 7), draw.pick((1, 2, 4, 100))
    longest = draw.pick((3, 9, 30, 131))
    arguments: dict[str, Any] = {}
    axes: dict[str, tuple[str, ...]] = {}
    for name in ("hypothesis", "truth"):
        most = min(longest, draw.pick(EDGES)) if draw.chance(0.5) else draw.whole(0, longest)
        dtype = draw.pick(INTEGERS)
        low = 0 if dtype.kind == "u" else -letters // 2
        y = draw.rng.integers(low, low + letters, (n, most)).astype(dtype)
        lengths = draw.rng.integers(0, most + 1, n)
        if draw.chance(0.3):
            y = np.concatenate([row[:m] for row, m in zip(y, lengths, strict=True)] or [y.reshape(-1)])
            arguments |= {name: y, f"{name}_length": lengths}
        else:
            arguments[name], axes[name] = y, ("n", name)
            if draw.chance(0.6):
                arguments[f"{name}_length"] = lengths.astype(
                    draw.pick([d for d in INTEGERS if most <= np.iinfo(d).max])
                )
                axes[f"{name}_length"] = ("n",)
    if draw.chance(0.5):
        arguments["normalize"] = draw.chance(0.3)
    return _decoding(draw, Call("edit_distance", "edit_distance", arguments, axes=axes))


def distance(a: Any, b: Any) -> int:
    """Levenshtein's, row by row of the table."""
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, letter in enumerate(a):
        put = np.minimum(row[1:] + 1, row[:-1] + (b != letter))
        row = np.minimum.accumulate(np.concatenate([[i + 1], put]) - steps) + steps
    return int(row[-1])


def expect_distance(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    parts = []
    for name in ("hypothesis", "truth"):
        y, lengths = a[name], a.get(f"{name}_length")
        if y.ndim == 1:
            ends = np.cumsum(lengths)
            parts.append([y[e - m : e] for e, m in zip(ends, lengths, strict=True)])
        else:
            lengths = np.full(len(y), y.shape[1]) if lengths is None else lengths.astype(np.int64)
            parts.append([row[:m] for row, m in zip(y, lengths, strict=True)])
    # letters of both dtypes as what they mean
    pairs = [([int(v) for v in p], np.array([int(v) for v in q], object)) for p, q in zip(*parts, strict=True)]
    want = np.array([distance(p, q) for p, q in pairs], np.longdouble)
    if a.get("normalize", True):
        m = np.array([len(q) for _, q in pairs], np.longdouble)
        with np.errstate(all="ignore"):
            want = np.where(m > 0, want / np.where(m > 0, m, 1), np.where(want > 0, np.inf, 0))
    return {"value": Expect(want, unit(want, np.float64))}
