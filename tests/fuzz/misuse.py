"""Random hostile calls, several arguments wrong at once: a result, or an error that names one of them.

``python -m tests.fuzz --hostile --calls 100000``.  The calls and the values are those of tests/helpers/hostile.py;
beside them values of other calls, arrays of any shape and dtype, the same array twice, and lists of all these.
"""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import json
import mmap
import pickle
import random
import re
import resource
import signal
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hostile
import ml_dtypes
import numpy as np

import fastloss as fl
from fastloss.samplers.samplers import _Sampler

from . import runner

SECONDS = 1.0  # of processor time, that a call may take
TAKEN = 64 << 20  # bytes that a call may take
LARGE = 1 << 31  # elements of an argument that may take longer
LOOK = 100  # calls between two looks at memory
GROWTH = 8 << 20  # bytes that all calls together may leave, after the first of them
WARM = 20_000  # calls
LONGEST = 400  # characters of a message
BUFFERS = ("out", "grad_out", "hess_out", "array")  # may change where there is a result


def _optional(name: str) -> list[str]:
    """What a call may leave out; those that it may not, Python itself looks at."""
    function, arguments = hostile.CALLS[name]()
    known = inspect.signature(function).parameters
    return sorted(k for k in arguments if k not in known or known[k].default is not known[k].empty)


KINDS = sorted(hostile.VALUES)
CALLS = sorted(hostile.CALLS)
ARGUMENTS = {name: sorted(hostile.CALLS[name]()[1]) for name in CALLS}
OPTIONAL = {name: _optional(name) for name in CALLS}
DTYPES = ("f4", "f8", "f2", "bfloat16", "i8", "i4", "u1", "u8", "?", "i2")
FILLS = (0, 1, 2, -1, 4, 0.5, float("nan"), float("inf"), 1e30)


@dataclass(frozen=True)
class Value:
    """In place of an argument: its words, from which it is made."""

    kind: str  # "value", "of another call", "array", "same as", "name", "list", "tuple"
    words: tuple[Any, ...]

    def make(self, given: dict[str, Any]) -> Any:
        if self.kind == "value":
            return hostile.VALUES[self.words[0]]()
        if self.kind == "of another call":
            return hostile.CALLS[self.words[0]]()[1][self.words[1]]
        if self.kind == "array":
            return _array(*self.words)
        if self.kind == "same as":
            return given.get(self.words[0])
        if self.kind == "name":
            return self.words[0]
        made = [v.make(given) for v in self.words]
        return made if self.kind == "list" else tuple(made)

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(map(str, self.words))})"


@dataclass(frozen=True)
class Case:
    """A call of the table with some arguments replaced and others left out."""

    name: str
    replaced: tuple[tuple[str, Value], ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        changes = [f"{k}: {v}" for k, v in self.replaced] + [f"no {k}" for k in self.dropped]
        return f"{self.name}; " + "; ".join(changes)


def _array(dtype: str, shape: tuple[int, ...], fill: float, step: int) -> Any:
    """An array of this shape; with steps, every other or backwards."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if kind.kind in "iub":
        fill = int(fill) if -1 < fill < 1e9 or (fill == -1 and kind.kind == "i") else 1
    with np.errstate(over="ignore"):
        a = np.full((2 * shape[0], *shape[1:]) if shape else (), fill, kind)
    return a[::step][: shape[0]] if shape else a


def _value(rng: random.Random, name: str, depth: int = 0) -> Value:
    u = rng.random()
    if u < 0.55:
        return Value("value", (rng.choice(KINDS),))
    if u < 0.7:
        other = rng.choice(CALLS)
        return Value("of another call", (other, rng.choice(ARGUMENTS[other])))
    if u < 0.85:
        shape = tuple(rng.choice((0, 1, 2, 3, 4, 5, 9)) for _ in range(rng.randrange(4)))
        return Value("array", (rng.choice(DTYPES), shape, rng.choice(FILLS), rng.choice((1, 2, -1))))
    if u < 0.9 or depth > 1:
        return Value("same as", (rng.choice(ARGUMENTS[name]),))
    n = rng.choice((0, 1, 2, 2, 3, 4))
    return Value(rng.choice(("list", "tuple")), tuple(_value(rng, name, depth + 1) for _ in range(n)))


def make(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed} {number}")
    name = rng.choice(CALLS)
    arguments = ARGUMENTS[name] + _extra(name)
    chosen = rng.sample(arguments, min(len(arguments), rng.choice((1, 1, 1, 2, 2, 3))))
    left = [k for k in OPTIONAL[name] if k not in chosen]
    dropped = tuple(k for k in left if rng.random() < 0.3) if rng.random() < 0.5 else ()
    return Case(name, tuple((k, _wrt(rng, name) if k == "wrt" else _value(rng, name)) for k in chosen), dropped)


def _extra(name: str) -> list[str]:
    """What a gradient's or Hessian's own function is made with."""
    return ["wrt"] if name.endswith(", gradient") else ["hessian"] if name.endswith(", Hessian") else []


def _wrt(rng: random.Random, name: str) -> Value:
    if rng.random() < 0.4:
        return _value(rng, name)
    names = tuple(Value("name", (k,)) for k in rng.sample(ARGUMENTS[name], rng.choice((1, 1, 2))))
    return Value(rng.choice(("list", "tuple", "tuple", "tuple")), names)


def _call(case: Case) -> tuple[Callable[..., Any], dict[str, Any]]:
    function, arguments = hostile.CALLS[case.name]()
    given = {k: v for k, v in arguments.items() if k not in case.dropped}
    given |= {k: v.make(given) for k, v in case.replaced}
    for own in _extra(case.name):
        if own in given:
            return _derived(function, own), given
    return function, given


def _derived(function: Any, own: str) -> Callable[..., Any]:
    """The same gradient or Hessian, with `wrt` or `hessian` as an argument beside the others."""
    derive: Any = fl.value_and_grad if own == "wrt" else fl.value_grad_hess
    return lambda **given: derive(function.__wrapped__, given.pop(own))(**given)


# ------------------------------------------------------------------ what must hold


def _arrays(value: Any, depth: int = 0) -> list[Any]:
    """Every array in an argument."""
    if isinstance(value, np.ndarray):
        plain = type(value) in (np.ndarray, np.matrix) and value.dtype != object and value.size < 1000
        return [value] if plain else []
    if isinstance(value, list | tuple) and depth < 3:
        return [a for item in value for a in _arrays(item, depth + 1)]
    return []


def _state(value: Any) -> Any:
    """What a sampler will draw next."""
    return pickle.dumps(value.state) if isinstance(value, _Sampler) else None


class Held:
    """What everything held before the call."""

    def __init__(self, function: Callable[..., Any], given: dict[str, Any]) -> None:
        self.arrays = [(name, a, a.tobytes()) for name, value in given.items() for a in _arrays(value)]
        owners = [getattr(function, "__self__", None), given.get("sampler")]
        self.samplers = [(owner, state) for owner in owners if (state := _state(owner)) is not None]

    def changed(self, allowed: tuple[str, ...]) -> list[str]:
        free = [a for name, a, _ in self.arrays if name in allowed]
        return [
            name
            for name, a, held in self.arrays
            if name not in allowed and a.tobytes() != held and not any(np.may_share_memory(a, b) for b in free)
        ]

    def drawn(self) -> bool:
        return any(_state(owner) != state for owner, state in self.samplers)


def _names(case: Case, given: dict[str, Any]) -> list[str]:
    """What an error may name: what was replaced, if only that differs and is right for no argument; else anything."""
    wrong = [k for k, v in case.replaced if v.kind == "value" and v.words[0] in hostile.NEVER]
    strict = bool(wrong) and len(wrong) == len(case.replaced) and not case.dropped
    names = wrong if strict else [*given, *case.dropped]
    if callable(given.get("softmax_loss_function")):  # its own arguments
        names += ["labels", "logits"]
    return [hostile.NAMES.get(name, name) for name in names]


def _error(case: Case, given: dict[str, Any], error: BaseException) -> str | None:
    """What is wrong about an error."""
    text = str(error)
    if isinstance(error, OSError) and isinstance(given.get("vocab_file"), str):
        return None  # as open() would say
    if isinstance(error, MemoryError) and re.search(r" takes \d+ bytes", text):
        return None  # of a result that has no name
    if type(error) not in (TypeError, ValueError, MemoryError):
        return type(error).__name__
    if len(text) > LONGEST or not text.isprintable():
        return "a message that is too long, or of several lines"
    if not any(re.search(rf"\b{name}\b", text) for name in _names(case, given)):
        return f"{type(error).__name__} that names no argument"
    return None


def _own(case: Case) -> bool:
    """Whether a function of the caller was passed in, whose errors are its own."""
    return any(k == "softmax_loss_function" for k, _ in case.replaced)


def peak() -> int:
    """The most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Bytes that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _processor_time(case: Case) -> float:
    """Seconds that a call takes of the processor, however busy that is; not asked before there is need: 0.5 ms."""
    function, given = _call(case)
    start = time.process_time()
    with contextlib.suppress(Exception):
        function(**given)
    return time.process_time() - start


class _Late(BaseException):
    pass


def _late(*_: Any) -> None:
    raise _Late


@contextlib.contextmanager
def _interrupted(given: dict[str, Any]) -> Iterator[None]:
    """A call with an array without end may be right, and then take hours: it must hear a signal."""
    if all(a.size < LARGE for value in given.values() for a in (value if isinstance(value, list | tuple) else [value])
           if isinstance(a, np.ndarray)):  # fmt: skip
        yield
        return
    before = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(case: Case) -> tuple[str, str, str]:
    """How the call ended; and what is wrong about that, with details, or nothing."""
    function, given = _call(case)
    held = Held(function, given)
    start, error = time.perf_counter(), None
    try:
        with _interrupted(given):
            function(**given)
    except _Late:
        return "interrupted", "", ""
    except Exception as raised:
        error = raised
    end, detail = ("a result", "") if error is None else (type(error).__name__, repr(error)[:600])
    if time.perf_counter() - start > SECONDS and (took := _processor_time(case)) > SECONDS:
        return end, "slow", f"{took:.1f} s; {detail}"
    if error is None:
        written = held.changed(BUFFERS)
        return end, "an argument was changed" if written else "", f"{written}"
    wrong = None if _own(case) else _error(case, given, error)
    if wrong is None and not _own(case):
        written = held.changed(())
        wrong = f"written before the error: {', '.join(written)}" if written else None
        wrong = "drawn before the error" if wrong is None and held.drawn() else wrong
    return end, wrong or "", detail


def shrink(case: Case, wrong: str) -> Case:
    """As few changes as still go wrong alike."""
    for change in (*case.dropped, *case.replaced):
        simpler = replace(
            case,
            dropped=tuple(c for c in case.dropped if c is not change),
            replaced=tuple(c for c in case.replaced if c is not change),
        )
        with contextlib.suppress(Exception):
            if judge(simpler)[1] == wrong:
                case = simpler
    return case


# ------------------------------------------------------------------ running


def report(number: int, case: Case) -> tuple[str, dict[str, Any] | None]:
    """How a call ended, and a finding."""
    try:
        end, wrong, detail = judge(case)
    except Exception as error:
        end, wrong, detail = "no call", "the fuzzer itself", repr(error)[:600]
    if not wrong:
        return end, None
    small = case if wrong in ("slow", "the fuzzer itself") else shrink(case, wrong)
    arguments = ", ".join(sorted(k for k, _ in small.replaced))
    return end, {"number": number, "function": small.name, "check": arguments, "result": wrong, "detail": detail,
                 "kind": small.name, "source": str(small), "small": ""}  # fmt: skip


def _of_all(number: int, result: str, detail: str) -> str:
    """A finding about memory, which no single call explains, as a line of JSON."""
    return json.dumps({"number": number, "function": "all calls", "check": "memory", "kind": "all calls",
                       "result": result, "detail": detail})  # fmt: skip


def work(seed: int, start: int, seconds: float, status: Path, most: int, known: list[Any], last: int,
         **_: Any) -> None:  # fmt: skip
    """Runs cases as `workers.work` does; says also what the process holds."""
    faulthandler.enable()
    warnings.simplefilter("error")
    met: Counter[str] = Counter()
    seen = {tuple(k) for k in known}
    end, number, first = time.monotonic() + seconds, start, 0
    highest = peak()
    with status.open("r+b") as file, mmap.mmap(file.fileno(), 8) as now:  # calls are shorter than a write to a file
        while time.monotonic() < end and len(seen) < most and number <= last:
            now[:] = struct.pack("<q", number)
            case = make(seed, number)
            ended, finding = report(number, case)
            met[f"ended {ended}"] += 1
            if finding is not None:
                key = (finding["function"], finding["check"], finding["result"])
                if key not in seen:
                    seen.add(key)
                    print(json.dumps(finding), flush=True)
            number += 1
            if number % LOOK == 0:
                before, highest = highest, peak()
                if highest - before > TAKEN:
                    taken = (highest - before) >> 20
                    print(_of_all(number, "taken", f"{taken} MB by one of the last {LOOK}"), flush=True)
            if number % 1000 == 0:
                print(json.dumps({"met": met, "next": number}), flush=True)
                met = Counter()
            if number == start + WARM:
                first = resident()
        grown = resident() - first if first else 0
        if grown > GROWTH:
            print(_of_all(number, "growth", f"{first >> 10} KB, then {grown >> 10} KB more"), flush=True)
        met["memory, KB at last"] += resident() >> 10
        met["memory, KB more than after 20000"] += max(grown, 0) >> 10
        print(json.dumps({"met": met, "next": number, "done": True}), flush=True)


class Run(runner.Run):
    """One campaign."""

    program = (sys.executable, "-m", "tests.fuzz", "--hostile")

    def command(self, number: int) -> str:
        return super().command(number) + " --hostile"

    def _crashed(self, number: int, folder: str) -> None:
        kind = self.ending.split(":")[0]
        case = make(self.seed, number)
        arguments = ", ".join(sorted(k for k, _ in case.replaced))
        if [case.name, arguments, kind] not in self.known():
            self.note({"number": number, "function": case.name, "check": arguments, "result": kind, "kind": case.name,
                       "detail": self.ending, "source": str(case), "small": ""})  # fmt: skip
