"""Candidate samplers against their twins, alias tables, negatives, accidental hits, sparse rows."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import reference_samplers as twins
from reference import wide
from shared import same_bits

import fastloss as fl

from .bounds import Expect, unit
from .calls import Call, Made, Problem, named
from .draws import FLOATS, INTEGERS, Draw
from .layouts import lay_out
from .tails import note

CLASSES = ("UniformSampler", "LogUniformSampler", "LearnedUnigramSampler", "FixedUnigramSampler")
FUNCTIONS = {
    "uniform_candidate_sampler": "UniformSampler",
    "log_uniform_candidate_sampler": "LogUniformSampler",
    "learned_unigram_candidate_sampler": "LearnedUnigramSampler",
    "fixed_unigram_candidate_sampler": "FixedUnigramSampler",
}


def _ids(draw: Draw, shape: tuple[int, ...], n: int) -> Any:
    y = draw.rng.integers(0, n, shape)
    return y.astype(draw.pick([d for d in INTEGERS if n - 1 <= np.iinfo(d).max]))


def _range(draw: Draw) -> int:
    if draw.turn % 2 == 0:
        return 1 + draw.turn // 2 % 300
    return draw.pick((draw.whole(1, 20), draw.whole(1, 3000), 2**16, 2**31, 2**40))


def _counts(draw: Draw, n: int) -> Any:
    w = draw.rng.uniform(0.1, 9, n) * (draw.rng.random(n) < draw.pick((1.0, 0.7)))
    if not w.any():
        w[0] = 1
    w = np.round(w) + (w > 0) if draw.chance(0.3) else w
    return w.astype(draw.pick((np.float64, np.float32, np.float64)))


def _sampler(draw: Draw, seeded: bool = True) -> tuple[Made, int, int]:
    """A sampler, its range, and how many of its ids can be drawn."""
    name = draw.pick(CLASSES)
    n = _range(draw)
    kwargs: dict[str, Any] = {"seed": draw.whole(0, 2**31)}
    if name in CLASSES[2:]:
        n = min(n, 3000)
    if name == "LogUniformSampler":
        n = min(n, 2**40)
    if name != "FixedUnigramSampler":
        return Made(name, (n,), kwargs), n, n
    counts = _counts(draw, n)
    if draw.chance(0.4):
        kwargs["distortion"] = draw.pick((0.75, 0.0, 1.0, 2))
    if draw.chance(0.3):
        kwargs["num_reserved_ids"] = draw.whole(0, 5)
    weights = _weights(counts, **{k: v for k, v in kwargs.items() if k != "seed"})
    return Made(name, (counts,), kwargs), len(weights), int((weights > 0).sum())


def _weights(counts: Any, distortion: float = 1.0, num_reserved_ids: int = 0) -> Any:
    """Of a fixed unigram sampler's ids, as its kernel makes them."""
    w = counts.astype(np.float32)
    with np.errstate(all="ignore"):
        w = np.where(w > 0, w ** np.float32(distortion), 1.0 if distortion == 0 else 0.0) if distortion != 1 else w
    return np.concatenate([np.zeros(num_reserved_ids), w])


# ------------------------------------------------------------------ objects, call after call


def make(draw: Draw) -> Call:
    made, n, drawable = _sampler(draw)
    inclusion = n <= 3000 and draw.chance(0.2)
    if inclusion:
        made.kwargs["expected_count"] = "inclusion"
    k = min(draw.whole(1, 30), max(1, drawable // 2) if draw.chance(0.8) else drawable)
    steps: list[tuple[Any, ...]] = []
    for _ in range(draw.whole(1, 5)):
        what = draw.pick(
            ("candidates", "candidates", "sample", "probability", "expected_count", "state", "pickle", "update")
        )
        if what == "candidates":
            shape = (draw.whole(0, 5), draw.whole(1, 3)) if draw.chance(0.8) else (draw.whole(0, 9),)
            steps.append((what, _ids(draw, shape, n), k, draw.chance(0.7)))
        elif what == "sample":
            steps.append((what, k, draw.chance(0.7)))
        elif what == "expected_count":
            unique = draw.chance(0.7)
            steps.append(
                (what, _ids(draw, (7,), n), k, unique, None if inclusion or not unique else k + draw.whole(0, 50))
            )
        elif what == "probability" or (what == "update" and made.name == "LearnedUnigramSampler"):
            steps.append((what, _ids(draw, (draw.whole(0, 9),), n)))
        elif what != "update":
            steps.append((what,))
    call = Call("sampler", made.name, {"sampler": made, "steps": steps})
    call.traits["layout"] = draw.pick(("c", "fortran", "strided", "reversed", "unaligned", "read-only"))
    draw.note(f"function {made.name}")
    for step in steps:
        draw.note(f"sampler {step[0]}")
    draw.note("sampler inclusion" if inclusion else "sampler tries")
    return call


def run(call: Call, like: Any = None) -> tuple[dict[str, Any], list[Problem]]:
    """Every step of one object, in order."""
    sampler = call.arguments["sampler"].make()
    results: dict[str, Any] = {}
    layout = call.traits["layout"] if like is not None else "c"
    for i, (what, *rest) in enumerate(call.arguments["steps"]):
        rest = [lay_out(a, layout) if isinstance(a, np.ndarray) else a for a in rest]
        if what == "state":
            other = call.arguments["sampler"].make()
            other.state = sampler.state
            sampler = other
        elif what == "pickle":
            sampler = pickle.loads(pickle.dumps(sampler))
        elif what == "update":
            sampler.update(*rest)
            results[f"{i} counts"] = sampler.counts
        else:
            results.update(named(f"{i} {what}", getattr(sampler, what)(*rest)))
            if what in ("candidates", "sample"):
                results[f"{i} tries"] = np.asarray(sampler.state["last"][2])
    return {k: np.array(v) for k, v in results.items()}, []


def _law(made: Made) -> tuple[Any, Any]:
    """A twin's way to draw, and probabilities as a function of ids; the counts of a learned one beside it."""
    first = made.args[0]
    if made.name == "UniformSampler":
        return twins.uniform(first), lambda v: np.full(np.shape(v), 1 / wide(first))
    if made.name == "LogUniformSampler":
        whole = np.log1p(wide(first))
        return twins.log_uniform(first), lambda v: np.log1p(1 / (wide(v) + 1)) / whole
    if made.name == "LearnedUnigramSampler":
        return None, None
    weights = _weights(first, **{k: v for k, v in made.kwargs.items() if k in ("distortion", "num_reserved_ids")})
    p = wide(weights) / wide(weights).sum()
    return twins.fixed_unigram(weights), lambda v: p[np.asarray(v).astype(np.int64)]


def _expected(p: Any, k: int, unique: bool, tries: float) -> Any:
    return k * p if not unique or tries == k else -np.expm1(wide(tries) * np.log1p(-np.minimum(p, 1)))


def expect(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    made = call.arguments["sampler"]
    pow_is_not_exact = made.kwargs.get("distortion", 1.0) not in (0.0, 1.0)
    draw, probability = _law(made)
    learned = made.name == "LearnedUnigramSampler"
    counts = np.ones(made.args[0], np.int64) if learned else None
    inclusion = made.kwargs.get("expected_count") == "inclusion"
    found: dict[str, Expect] = {}
    calls = 0

    def near(name: str, want: Any, free: Any = False) -> None:
        slack = 2.0**-20 * np.abs(want) if pow_is_not_exact else 0
        found[name] = Expect(want, 8 * unit(want, np.float64) + slack, free)

    for i, (what, *rest) in enumerate(call.arguments["steps"]):
        if learned:
            draw = twins.learned_unigram(counts)
            p = wide(counts) / wide(counts).sum()
            probability = lambda v, p=p: p[np.asarray(v).astype(np.int64)]  # noqa: E731
        if what == "probability":
            near(f"{i} probability", probability(rest[0]))
        elif what == "update":
            np.add.at(counts, rest[0].astype(np.int64), 1)
            found[f"{i} counts"] = Expect(counts.copy(), 0)
        elif what == "expected_count":
            ids, k, unique, tries = rest
            if not (inclusion and unique):
                near(f"{i} expected_count", _expected(probability(ids), k, unique, k if tries is None else tries))
        elif what in ("candidates", "sample"):
            true, k, unique = rest if what == "candidates" else (None, *rest)
            name = f"{i} candidates[sampled_candidates]" if what == "candidates" else f"{i} sample"
            tries = float(got[f"{i} tries"])
            ids = got[name]
            valid = (
                ids.shape == (k,) and ids.dtype == np.int64 and (ids >= 0).all() and not (probability(ids) == 0).any()
            )
            if unique:
                valid = valid and len(set(ids.tolist())) == k
            # past 1024 draws an id, or where a weight is rounded otherwise, the twin goes another way
            if tries < 200 * k and not pow_is_not_exact:
                want, draws = twins.sample(draw, made.kwargs["seed"], calls, k, unique)
                found[name] = Expect(np.array(want), 0)
                found[f"{i} tries"] = Expect(wide(draws), 0)
            elif not valid:
                found[name] = Expect(np.full(k, -99), 0)
            calls += 1
            if what == "candidates":
                for part, of in (("true_expected_count", true), ("sampled_expected_count", ids)):
                    if not (inclusion and unique):
                        near(f"{i} candidates[{part}]", _expected(probability(of), k, unique, tries))
                    else:
                        have = got[f"{i} candidates[{part}]"]
                        found[f"{i} candidates[{part}]"] = Expect(np.clip(wide(have), 0, 1), 0)
                if learned:
                    np.add.at(counts, true.astype(np.int64).reshape(-1), 1)
    return found


# ------------------------------------------------------------------ TensorFlow's functions


def make_function(draw: Draw) -> Call:
    function = draw.pick((*FUNCTIONS, "all_candidate_sampler"))
    t = draw.pick((1, 1, 2, 3))
    if function == "all_candidate_sampler":
        k = draw.whole(1, 400)
        true = _ids(draw, (draw.whole(0, 9), t), k)
        arguments: dict[str, Any] = {"true_classes": true, "num_true": t, "num_sampled": k, "unique": draw.chance(0.5)}
    else:
        n = min(_range(draw), 3000 if "unigram" in function else 2**40)
        counts = _counts(draw, n) if "fixed" in function else None
        drawable = n if counts is None else int((counts > 0).sum())
        arguments = {"true_classes": _ids(draw, (draw.whole(0, 9), t), n), "num_true": t,
                     "num_sampled": draw.whole(1, min(40, drawable)), "unique": draw.chance(0.7), "range_max": n,
                     "seed": draw.whole(0, 2**31)}  # fmt: skip
        if counts is not None:
            arguments["unigrams"] = counts
    call = Call("candidate_function", function, arguments, axes={"true_classes": ("n", "t")}, limits={})
    call.layouts = draw.layouts(arguments)
    note(draw, call)
    return call


def expect_function(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    """The first call of the object."""
    a = call.arguments
    if call.function == "all_candidate_sampler":
        k = a["num_sampled"]
        want = {
            "sampled_candidates": np.arange(k),
            "true_expected_count": np.ones(a["true_classes"].shape),
            "sampled_expected_count": np.ones(k),
        }
    else:
        first = a["unigrams"] if "unigrams" in a else a["range_max"]
        sampler = getattr(fl, FUNCTIONS[call.function])(first, seed=a["seed"])
        want = sampler.candidates(a["true_classes"].astype(np.int64), a["num_sampled"], a["unique"])._asdict()
    return {f"value[{k}]": Expect(v, 0) for k, v in want.items()}


# ------------------------------------------------------------------ alias tables


def make_alias(draw: Draw) -> Call:
    n = draw.width(5000) or 1
    weights = _counts(draw, n) * 10.0 ** draw.pick((0, 0, 30, -30))
    if draw.chance(0.3):
        weights = np.round(np.clip(weights, 0, 100) + 1).astype(draw.pick((np.int64, np.uint8, np.bool_, np.float16)))
    size = draw.pick((0, 5, 100, (3, 4), (2, 0), 100_000 if draw.chance(0.1) else 200))
    arguments = {"weights": weights, "size": size, "k": draw.whole(0, min(50, int((weights > 0).sum()))),
                 "seed": draw.whole(0, 2**31), "ids": _ids(draw, (draw.whole(0, 20),), n)}  # fmt: skip
    call = Call("alias", "AliasTable", arguments)
    draw.note("function AliasTable")
    return call


def run_alias(call: Call, like: Any = None) -> tuple[dict[str, Any], list[Problem]]:
    a = call.arguments
    table = fl.AliasTable(a["weights"])
    again = pickle.loads(pickle.dumps(table))
    results = {
        "sample": table.sample(a["size"], a["seed"], n_threads=call.n_threads),
        "pickled": again.sample(a["size"], a["seed"]),
        "sample_unique": table.sample_unique(a["k"], a["seed"]),
        "probability": table.probability(a["ids"]),
    }
    problems = []
    if not same_bits(results["sample"], results["pickled"]):
        problems.append(Problem("pickle", "sample", "a pickled table draws others"))
    return {k: np.array(v) for k, v in results.items()}, problems


def expect_alias(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    w = wide(a["weights"])
    p = w / w.sum()
    want = p[a["ids"].astype(np.int64)]
    found = {"probability": Expect(want, 4 * unit(want, np.float64))}
    shape = a["size"] if isinstance(a["size"], tuple) else (a["size"],)
    for name, of in (("sample", shape), ("sample_unique", (a["k"],))):
        ids = got[name]
        good = ids.shape == of and (ids >= 0).all() and (ids < len(w)).all() and (p[ids] > 0).all()
        if name == "sample_unique":
            good = good and len(set(ids.tolist())) == a["k"]
        elif ids.size >= 100_000 and (p > 0).sum() > 1 and (p[p > 0] * ids.size).min() > 6:
            good = good and abs(twins.chi_square_z(np.bincount(ids.reshape(-1), minlength=len(w)), p * ids.size)) < 8
        found[name] = Expect(ids if good else np.full(ids.shape, -99), 0)
    return found


# ------------------------------------------------------------------ negatives and hits


def make_negatives(draw: Draw) -> Call:
    made, n, drawable = _sampler(draw)
    if draw.chance(0.3):
        n = min(draw.width(3000) or 1, 3000)
        made = Made("AliasTable", (_counts(draw, n),))
        drawable = int((made.args[0] > 0).sum())
    rows, t = draw.whole(0, 9), draw.whole(0, max(0, min(5, drawable - 1)))
    most = max(1, min(20, drawable - t))
    if drawable - t < 1:
        t = 0
    arguments: dict[str, Any] = {"sampler": made, "num_sampled": draw.whole(1, most)}
    if draw.chance(0.4):
        starts = np.sort(np.concatenate([[0], draw.rng.integers(0, rows * t + 1, max(0, rows - 1)), [rows * t]]))
        starts = starts[: rows + 1] if rows else np.array([0])
        longest = int(np.diff(starts).max(initial=0))
        arguments["num_sampled"] = min(arguments["num_sampled"], max(1, drawable - longest))
        if longest >= drawable:
            starts = np.zeros_like(starts)
        arguments["positives"] = (starts, _ids(draw, (int(starts[-1]),), n))
    else:
        arguments["positives"] = _ids(draw, (rows, t), n)
    if draw.chance(0.5):
        arguments["unique"] = draw.chance(0.5)
    if made.name == "AliasTable":
        arguments["seed"] = draw.whole(0, 2**31)
    call = Call("sample_negatives", "sample_negatives", arguments)
    call.n_threads = draw.pick((None, 1, 2, 3))
    note(draw, call)
    return call


def expect_negatives(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    ids = got["value"]
    given = a["positives"]
    if isinstance(given, tuple):
        rows = [given[1][i:j].astype(np.int64) for i, j in zip(given[0][:-1], given[0][1:], strict=True)]
    else:
        rows = list(given.astype(np.int64))
    sampler = a["sampler"].make()
    n = len(sampler) if a["sampler"].name == "AliasTable" else sampler.range_max
    good = ids.shape == (len(rows), a["num_sampled"]) and (ids >= 0).all() and (ids < n).all()
    good = good and not (sampler.probability(ids) == 0).any()
    for row, avoid in zip(ids, rows, strict=True) if good else ():
        good = good and not set(row.tolist()) & set(avoid.tolist())
        if a.get("unique", True):
            good = good and len(set(row.tolist())) == len(row)
    return {"value": Expect(ids if good else np.full(ids.shape, -99), 0)}


def make_hits(draw: Draw) -> Call:
    t, n = draw.pick((1, 2, 5)), draw.pick((2, 10, 1000, 2**40))
    true, sampled = (_ids(draw, shape, n) for shape in ((draw.whole(0, 30), t), (draw.whole(0, 50),)))
    arguments = {"true_classes": true, "sampled_candidates": sampled, "num_true": t}
    call = Call(
        "hits", "compute_accidental_hits", arguments, axes={"true_classes": ("n", "t"), "sampled_candidates": ("k",)}
    )
    call.layouts = draw.layouts(arguments)
    note(draw, call)
    return call


def expect_hits(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    true, sampled = a["true_classes"].astype(object), a["sampled_candidates"].astype(object)
    found = [(i, k) for i, row in enumerate(true) for y in row for k, s in enumerate(sampled) if y == s]
    rows, places = np.array(found, np.int64).reshape(-1, 2).T
    low = wide(np.finfo(np.float32).min)
    return {"value[indices]": Expect(rows, 0), "value[ids]": Expect(places, 0),
            "value[weights]": Expect(np.full(len(rows), low), 0)}  # fmt: skip


# ------------------------------------------------------------------ sparse rows


def make_rows(draw: Draw) -> Call:
    width, dtype = draw.width_and_dtype(600)
    n, k = draw.whole(1, 60), draw.whole(0, 80)
    tail: tuple[int, ...] = draw.pick(((width,), (), (2, 3), (width,)))
    values = draw.floats((k, *tail), dtype, draw.pick(("normal", "bits", "tiny", "zero", "denormal")))
    arguments = {"indices": _ids(draw, (k,), n), "values": values, "shape": (n, *tail),
                 "array": draw.floats((n, *tail), draw.pick(FLOATS), "normal"),
                 "scale": draw.pick((1.0, -0.5, 0.1))}  # fmt: skip
    call = Call("sparse_rows", "SparseRows", arguments)
    call.traits["layout"] = draw.pick(("c", "strided", "unaligned", "padded", "fortran", "reversed"))
    call.n_threads = draw.pick((None, 1, 2, 3))
    draw.note("function SparseRows")
    return call


def run_rows(call: Call, like: Any = None) -> tuple[dict[str, Any], list[Problem]]:
    a = call.arguments
    layout = call.traits["layout"] if like is not None and len(a["shape"]) < 3 else "c"
    given = {name: lay_out(a[name], layout) for name in ("indices", "values", "array")}
    rows = fl.SparseRows(given["indices"], given["values"], a["shape"])
    single = rows.coalesce(n_threads=call.n_threads)
    results = {
        "indices": single.indices,
        "values": single.values,
        "dense": rows.to_dense(),
        "added": rows.add_to(given["array"], a["scale"], n_threads=call.n_threads),
    }
    return {k: np.array(v) for k, v in results.items()}, []


def expect_rows(call: Call, got: dict[str, Any]) -> dict[str, Expect]:
    a = call.arguments
    indices = a["indices"].astype(np.int64)
    dense, size = np.zeros((2, *a["shape"]), np.longdouble)
    np.add.at(dense, indices, wide(a["values"]))
    np.add.at(size, indices, np.abs(wide(a["values"])))
    once = np.unique(indices)
    slack = 2.0**-50 * size
    dtype = a["values"].dtype
    half = lambda v, t: 0.5001 * unit(v, t)  # noqa: E731
    touched = np.isin(np.arange(len(dense)), once).reshape(-1, *[1] * (dense.ndim - 1))
    want = wide(a["array"]) + np.where(touched, a["scale"] * dense, 0)
    own = a["array"].dtype
    return {
        "indices": Expect(once, 0),
        "values": Expect(dense[once], slack[once] + half(dense[once], dtype)),
        "dense": Expect(dense, np.where(touched, slack + half(dense, dtype), 0)),
        "added": Expect(want, np.where(touched, slack + 2.0**-50 * np.abs(want) + half(want, own), 0)),
    }
