"""What must hold of every call."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from shared import same_bits

from . import kinds
from .calls import Call, Problem


def _differences(check: str, got: dict[str, Any], want: dict[str, Any]) -> list[Problem]:
    problems = []
    if got.keys() != want.keys():
        return [Problem(check, "results", f"{sorted(got)} instead of {sorted(want)}")]
    for name, a in got.items():
        b = want[name]
        if same_bits(a, b):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            problems.append(Problem(check, name, f"{a.dtype} {a.shape} instead of {b.dtype} {b.shape}"))
            continue
        raw = [np.ascontiguousarray(v).reshape(-1, 1).view(np.uint8) for v in (a, b)]
        off = (raw[0] != raw[1]).any(-1)
        if a.dtype.kind in "fV":
            off &= ~((a != a) & (b != b)).reshape(-1)  # a NaN's sign says nothing
        if not off.any():
            continue
        k = int(np.argmax(off))
        at = tuple(map(int, np.unravel_index(k, a.shape)))
        detail = f"{int(off.sum())} of {a.size} differ, first at {at}: {a[at]!r} instead of {b[at]!r}"
        problems.append(Problem(check, name, detail))
    return problems


def _words(error: Exception) -> str:
    """What the message begins with, without numbers, so that equal faults look equal."""
    return " ".join(re.sub(r"\d+", "N", str(error)).split()[:4])


def _attempt(check: str, call: Call, like: dict[str, Any] | None = None) -> tuple[dict[str, Any] | None, list[Problem]]:
    try:
        return kinds.KINDS[call.kind].run(call, like)
    except Exception as error:  # whatever a valid call raises is a finding
        name = type(error).__name__
        return None, [Problem(check, f"{name}: {_words(error)}", f"raised {name}: {error}"[:400])]


def check(call: Call) -> list[Problem]:
    """What is wrong with this call."""
    kind = kinds.KINDS[call.kind]
    plain, problems = _attempt("plain call", call.plain())
    if plain is None:
        return problems
    first, more = _attempt("call", call, plain)
    problems += more
    if first is not None:
        problems += _differences("bits of the plain call", first, plain)
        again, more = _attempt("second call", call, plain)
        if again is not None:
            problems += _differences("bits of a second call", again, first)
    for n_threads in (2, 3):
        other, more = _attempt(f"{n_threads} threads", replace(call.plain(), n_threads=n_threads), plain)
        problems += more if other is None else _differences("bits of more threads", other, plain)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name, expect in kind.expect(call, plain).items():
            if name not in plain:
                continue
            off = expect.off(plain[name])
            if off is not None:
                place, got, want = off
                problems.append(Problem("oracle", name, f"at {place}: got {got!r}, want {want!r}"))
    return problems
