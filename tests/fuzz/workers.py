"""The process that runs cases, one after the other: it may crash, and the runner goes on with the next."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import pickle
import struct
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from . import kinds
from .calls import Call, Problem
from .checks import check
from .shrinking import shrink, source


def problems_of(call: Call) -> list[Problem]:
    """What is wrong with this call; an error of the fuzzer itself is a problem too."""
    try:
        return check(call)
    except Exception as error:
        lines = traceback.format_exc().strip().splitlines()
        return [Problem("the fuzzer itself", f"{type(error).__name__}", " | ".join(lines[-4:]))]


def report(seed: int, number: int, call: Call, problem: Problem, seconds: float) -> dict[str, Any]:
    """A failure, with a call as small as can be found."""
    found = {"number": number, "function": call.function, "check": problem.check, "result": problem.result,
             "detail": problem.detail, "kind": call.kind}  # fmt: skip
    if problem.check == "the fuzzer itself" or seconds <= 0:
        return found
    last = [problem]

    def fails(simpler: Call) -> bool:
        same = [p for p in problems_of(simpler) if p.kind == problem.kind]
        last[:] = same or last
        return bool(same)

    small = shrink(call, fails, seconds)
    return found | {"source": source(small), "small": last[0].detail}


def work(seed: int, start: int, seconds: float, only: str | None, status: Path, most: int, known: list[Any],
         shrinking: float, last: int) -> None:  # fmt: skip
    """Runs cases until the time is up or `most` failures were found; prints what it finds as lines of JSON."""
    faulthandler.enable()
    met: Counter[str] = Counter()
    seen = {tuple(k) for k in known}
    end, number = time.monotonic() + seconds, start
    with status.open("r+b", buffering=0) as file:
        while time.monotonic() < end and len(seen) < most and number <= last:
            file.seek(0)
            file.write(struct.pack("<q", number))
            call, draw = kinds.make(seed, number, only)
            met += draw.met
            for problem in problems_of(call):
                key = (call.function, *problem.kind)
                if key not in seen:
                    seen.add(key)
                    print(json.dumps(report(seed, number, call, problem, shrinking)), flush=True)
            number += 1
            if number % 200 == 0:
                print(json.dumps({"met": met, "next": number}), flush=True)
                met = Counter()
        print(json.dumps({"met": met, "next": number, "done": True}), flush=True)


def attempt(path: str) -> None:
    """Runs one stored call, to see whether the process lives."""
    with contextlib.suppress(Exception):
        check(pickle.loads(Path(path).read_bytes()))
    sys.exit(0)
