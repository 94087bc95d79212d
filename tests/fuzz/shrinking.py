"""A smaller call that fails alike, and a call as Python to paste."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

import fastloss as fl

from .calls import Call, Made
from .layouts import leaves


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != name}


def _optional(call: Call) -> list[str]:
    known = inspect.signature(getattr(fl, call.function)).parameters
    return [k for k in call.arguments if k in known and known[k].default is not inspect.Parameter.empty]


def cut(call: Call, axis: str, keep: Any) -> Call:
    """The call with these places of a named axis alone."""
    size = len(keep)
    arguments = dict(call.arguments)
    changed = call

    def shorter(name: str, value: Any) -> Any:
        def of(a: Any) -> Any:
            for k, named in enumerate(call.axes[name]):
                if named == axis and k < a.ndim and a.shape[k] > 1:
                    a = np.ascontiguousarray(a.take([i for i in keep if i < a.shape[k]], k))
            return a

        return leaves(value, of)

    for name in call.axes:
        if name in arguments:
            arguments[name] = shorter(name, arguments[name])
    if call.cotangent is not None and "cotangent" in call.axes:
        changed = replace(changed, cotangent=shorter("cotangent", call.cotangent))
    for name, below in call.limits.items():
        if below == axis and name in arguments and size:
            ignore = arguments.get("ignore_index")
            wrapped = lambda a, ignore=ignore: np.where(a == ignore, a, a % size).astype(a.dtype)  # noqa: E731
            arguments[name] = leaves(arguments[name], wrapped)
    for name, of in call.sizes.items():
        if of == axis and name in arguments:
            arguments[name] = size
    return replace(changed, arguments=arguments)


def _length(call: Call, axis: str) -> int:
    found = [1]
    for name, names in call.axes.items():
        value = call.arguments.get(name, call.cotangent if name == "cotangent" else None)
        while isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, np.ndarray):
            found += [n for n, k in zip(value.shape, names, strict=False) if k == axis]
    return max(found)


def smaller(call: Call) -> Iterator[Call]:
    """Simpler calls, the boldest first."""
    for name in ("layouts", "splits", "buffers"):
        values = getattr(call, name)
        if values:
            yield replace(call, **{name: {}})
            if len(values) > 1:
                yield from (replace(call, **{name: _without(values, k)}) for k in values)
    if call.cotangent is not None:
        yield replace(call, cotangent=None)
    if call.n_threads is not None:
        yield replace(call, n_threads=None)
    for name in _optional(call):
        yield replace(call, arguments=_without(call.arguments, name))
    if len(call.wrt) > 1:
        yield from (replace(call, wrt=(name,)) for name in call.wrt)
    elif call.wrt and call.hessian is None:
        yield replace(call, wrt=())
    for axis in dict.fromkeys(k for names in call.axes.values() for k in names):
        n = _length(call, axis)
        if n > 1:
            yield cut(call, axis, list(range(n // 2)))
            yield cut(call, axis, list(range(n // 2, n)))
            yield cut(call, axis, list(range(n - 1)))
            yield cut(call, axis, list(range(1, n)))
    for name, value in call.arguments.items():
        if not isinstance(value, np.ndarray) or not value.size:
            continue
        if value.dtype.kind in "iu" and value.dtype != np.int64:
            yield _with(call, name, value.astype(np.int64))
        elif value.dtype.kind in "fV":
            plain = value.astype(np.float64)
            with np.errstate(all="ignore"):
                simple = [np.zeros(value.shape), np.ones(value.shape), np.round(plain), np.round(4 * plain) / 4]
                simple = [a.astype(value.dtype) for a in simple]
            same = [k for k, a in enumerate(simple) if a.tobytes() == value.tobytes()]
            yield from (_with(call, name, a) for a in simple[: min(same, default=len(simple))])


def _with(call: Call, name: str, value: Any) -> Call:
    return replace(call, arguments={**call.arguments, name: value})


def shrink(call: Call, fails: Callable[[Call], bool], seconds: float = 10.0) -> Call:
    """The smallest call found in this time for which `fails` still holds."""
    end = time.monotonic() + seconds
    going = True
    while going and time.monotonic() < end:
        going = False
        for simpler in smaller(call):
            if time.monotonic() > end:
                break
            try:
                same = fails(simpler)
            except Exception:
                same = False
            if same:
                call, going = simpler, True
                break
    return call


# ------------------------------------------------------------------ as Python


def literal(value: Any) -> str:
    """A value as Python that makes it again."""
    if isinstance(value, np.ndarray):
        if value.size > 4000:
            return f"<{value.dtype} {value.shape}: too large to show, see the command>"
        numbers = value.astype(np.float64).tolist() if value.dtype.kind in "fV" else value.tolist()
        dtype = "ml_dtypes.bfloat16" if value.dtype.name == "bfloat16" else repr(value.dtype.name)
        shape = f".reshape({value.shape})" if value.size == 0 else ""
        return f"np.array({numbers}, {dtype}){shape}"
    if isinstance(value, Made):
        more = [literal(v) for v in value.args] + [f"{k}={literal(v)}" for k, v in value.kwargs.items()]
        return f"fl.{value.name}({', '.join(more)})"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(literal, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
    return f"fl.{value.__name__}" if callable(value) else repr(value)


def source(call: Call) -> str:
    """The call as Python; the kinds that are no single call say what they do with it."""
    lines = ["import ml_dtypes", "import numpy as np", "from numpy import inf, nan", "", "import fastloss as fl"]
    if call.layouts or call.splits:
        lines.insert(4, "from tests.fuzz.calls import split")
        lines.insert(5, "from tests.fuzz.layouts import lay_out")
    arguments = []
    for name, value in call.arguments.items():
        text = literal(value)
        layout = call.layouts.get(name)
        if name in call.splits:
            text = f"split({text}, {call.splits[name]!r})"
            if layout:
                text = f"[lay_out(a, {layout!r}) for a in {text}]"
        elif layout:
            text = f"lay_out({text}, {layout!r})"
        arguments.append(f"{name}={text}")
    if call.n_threads is not None:
        arguments.append(f"n_threads={call.n_threads}")
    if call.cotangent is not None:
        arguments.append(f"cotangent={literal(call.cotangent)}")
    function = f"fl.{call.function}"
    if call.hessian is not None:
        function = f"fl.value_grad_hess({function}, {call.hessian!r})"
    elif call.wrt:
        function = f"fl.value_and_grad({function}, {call.wrt[0] if len(call.wrt) == 1 else call.wrt!r})"
        if len(call.wrt) == 1:
            function = f"fl.value_and_grad(fl.{call.function}, {call.wrt[0]!r})"
    lines += ["", f"print({function}(", *(f"    {a}," for a in arguments), "))"]
    if call.buffers:
        lines.append(f"# with buffers {call.buffers}")
    if call.traits:
        lines.append(f"# and {call.traits}")
    return "\n".join(lines)
