"""One call of a public function as data: how to make it, what it returned, and what it touched."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from shared import same_bits

import fastloss as fl

from .layouts import blank, is_guarded, lay_out, leaves


@dataclass(frozen=True)
class Problem:
    """A check that failed, at which result, and how."""

    check: str
    result: str
    detail: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.check, self.result.split("[")[0]


@dataclass(frozen=True)
class Made:
    """An object of this package, made anew for every call."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        return getattr(fl, self.name)(*self.args, **self.kwargs)


@dataclass
class Call:
    """A call, its arrays C-contiguous: how they are laid out and split is told beside them.

    splits    arguments given as a list: "mod" or "div" shards, "cut" at rows, "list" along the first axis; and parts
    buffers   layouts of `out`, `grad_out`, `hess_out`; "in place" for the main input itself
    axes      names of the axes of arguments, for a smaller call
    limits    arguments below the length of a named axis
    sizes     arguments that are the length of a named axis
    traits    what the oracle must know beside the arguments
    """

    kind: str
    function: str
    arguments: dict[str, Any]
    wrt: tuple[str, ...] = ()
    hessian: str | None = None
    cotangent: Any = None
    n_threads: int | None = None
    layouts: dict[str, str] = field(default_factory=dict)
    splits: dict[str, tuple[str, Any]] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    traits: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """An argument, or its default."""
        if name in self.arguments:
            return self.arguments[name]
        if name == "reduction" and self.hessian is not None:
            return "none"
        return inspect.signature(getattr(fl, self.function)).parameters[name].default

    def plain(self) -> Call:
        """The same with int64 integers, C order, whole tables of sampled classes, no buffers and one thread."""
        arguments = {}
        for name, value in self.arguments.items():
            arguments[name] = leaves(value, lambda a: a.astype(np.int64) if a.dtype.kind in "iu" else a.copy())
        splits = {k: v for k, v in self.splits.items() if v[0] in ("list", "cut")}  # these decide where blocks end
        return replace(self, arguments=arguments, layouts={}, splits=splits, buffers={}, n_threads=1)


def split(value: Any, how: tuple[str, Any]) -> Any:
    """The parts of an array."""
    kind, parts = how
    if kind == "list":
        return list(value)
    if kind == "mod":
        return [value[k::parts] for k in range(parts)]
    if kind == "div":
        sizes = [len(value) // parts + (k < len(value) % parts) for k in range(parts)]
        return np.split(value, np.cumsum(sizes)[:-1])
    return np.split(value, [min(p, len(value)) for p in parts])


def split_ids(n: int, how: tuple[str, Any]) -> list[Any]:
    return split(np.arange(n), how)


def _joined(call: Call, name: str, gradient: Any) -> dict[str, Any]:
    """The gradient to one argument as named arrays, the same however the argument was split."""
    how = call.splits.get(name)
    if isinstance(gradient, np.ndarray):
        return {f"grad {name}": gradient}
    if how is not None and how[0] in ("list", "cut"):
        join = np.stack if how[0] == "list" else np.concatenate
        return {f"grad {name}": join(gradient)}
    parts = gradient if isinstance(gradient, (list, tuple)) else [gradient]
    ids = [np.arange(len(call.arguments[name]))] if how is None else split_ids(len(call.arguments[name]), how)
    indices = np.concatenate([of[p.indices] for of, p in zip(ids, parts, strict=True)])
    values = np.concatenate([p.values for p in parts])
    order = np.argsort(indices, kind="stable")
    return {f"grad {name}[indices]": indices[order], f"grad {name}[values]": values[order]}


def named(prefix: str, value: Any) -> dict[str, Any]:
    """A result as named arrays."""
    if isinstance(value, fl.SparseRows):
        return {f"{prefix}[indices]": value.indices, f"{prefix}[values]": value.values}
    if hasattr(value, "_fields"):
        return {k: v for f in value._fields for k, v in named(f"{prefix}[{f}]", getattr(value, f)).items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in named(f"{prefix}[{i}]", part).items()}
    return {prefix: np.asarray(value)}


class _Buffers:
    """Buffers for results, with guards around them."""

    def __init__(self, call: Call, given: dict[str, Any], like: dict[str, Any]) -> None:
        self.out: Any = None
        self.hess_out: Any = None
        self.grads: list[Any] = []
        self._guarded: list[tuple[str, Any, Any]] = []
        main = call.wrt[0] if call.wrt else ""
        self.in_place = [main] if call.buffers.get("grad_out") == "in place" else []
        if call.buffers.get("out") == "in place":
            self.out = given["x"]
            self.in_place.append("x")
        elif "out" in call.buffers:
            value = like["value"] if "value" in like else like["value[0]"]
            self.out = self._blank("out", value.shape, value.dtype, call.buffers["out"])
        if "hess_out" in call.buffers:
            self.hess_out = self._blank("hess_out", like["hess"].shape, like["hess"].dtype, call.buffers["hess_out"])
        if "grad_out" in call.buffers:
            for name in call.wrt:
                a = given[name]
                if name == main and self.in_place:
                    self.grads.append(a)
                elif isinstance(a, np.ndarray) and f"grad {name}" in like:
                    self.grads.append(self._blank(f"grad_out {name}", a.shape, a.dtype, call.buffers["grad_out"]))
                else:
                    self.grads.append(None)

    def _blank(self, name: str, shape: tuple[int, ...], dtype: Any, layout: str) -> Any:
        view, memory = blank(shape, dtype, layout)
        view[...] = np.nan
        self._guarded.append((name, view, memory))
        return view

    def problems(self) -> list[Problem]:
        return [
            Problem("guards", n, "bytes around it were written") for n, v, m in self._guarded if not is_guarded(v, m)
        ]


def run(call: Call, like: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[Problem]]:
    """Results by name, and what the call touched that it must not; `like` are results, for the sizes of buffers."""
    function = getattr(fl, call.function)
    given = {}
    for name, value in call.arguments.items():
        layout = call.layouts.get(name, "c")
        if isinstance(value, Made):
            given[name] = value.make()
        elif name in call.splits:
            given[name] = leaves(split(value, call.splits[name]), lambda a, layout=layout: lay_out(a, layout))
        else:
            given[name] = leaves(value, lambda a, layout=layout: lay_out(a, layout))
    before = {name: leaves(value, np.copy) for name, value in given.items()}
    buffers = _Buffers(call, given, like or {})
    more: dict[str, Any] = {}
    if "n_threads" in inspect.signature(function).parameters and call.n_threads is not None:
        more["n_threads"] = call.n_threads
    if buffers.out is not None:
        more["out"] = buffers.out
    if call.wrt:
        if call.cotangent is not None:
            more["cotangent"] = call.cotangent
        if buffers.hess_out is not None:
            more["hess_out"] = buffers.hess_out
        if buffers.grads:
            more["grad_out"] = buffers.grads[0] if len(call.wrt) == 1 else tuple(buffers.grads)
    results: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if call.hessian is not None:
            value, grad, hess = fl.value_grad_hess(function, call.hessian)(**given, **more)
            results = {**named("value", value), f"grad {call.wrt[0]}": grad, "hess": hess}
        elif call.wrt:
            wrt = call.wrt[0] if len(call.wrt) == 1 else call.wrt
            value, grads = fl.value_and_grad(function, wrt)(**given, **more)
            results = named("value", value)
            for name, grad in zip(call.wrt, [grads] if len(call.wrt) == 1 else grads, strict=True):
                results.update(_joined(call, name, grad))
        else:
            results = named("value", function(**given, **more))
    results = {name: np.array(value) for name, value in results.items()}
    problems = buffers.problems()
    for name, value in before.items():
        if name in buffers.in_place:
            continue
        for i, (a, b) in enumerate(zip(_flat(given[name]), _flat(value), strict=True)):
            if not same_bits(a, b):
                problems.append(Problem("inputs unchanged", name, f"array {i} of it was written"))
    return results, problems


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [a for part in value for a in _flat(part)]
    return [value] if isinstance(value, np.ndarray) else []
