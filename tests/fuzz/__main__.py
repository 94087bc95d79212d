"""``python -m tests.fuzz --minutes 3 [--seed S] [--only KIND] [--isa avx2]``: exit status 1 if anything failed."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

from . import kinds, misuse, runner, workers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Random valid calls of every function.")
    parser.add_argument("--minutes", type=float, help="1; none for a number of hostile calls")
    parser.add_argument("--seed", type=int, help="the clock's by default; printed")
    parser.add_argument("--only", choices=sorted(kinds.KINDS), help="one kind of call")
    parser.add_argument("--isa", help="avx512, avx2 or baseline")
    parser.add_argument("--failures", type=int, default=40, help="distinct failures after which to stop")
    parser.add_argument("--shrink", type=float, default=10.0, help="seconds for each failure")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--cases", "--calls", type=int, help="how many, at most")
    parser.add_argument("--hostile", action="store_true", help="calls that must be refused, instead of valid ones")
    parser.add_argument("--case", type=int, help="run one case again, in this process")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--attempt", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        settings = json.loads(given.worker)
        work = misuse.work if given.hostile else workers.work
        work(**{**settings, "status": Path(settings["status"])})
        return 0
    if given.attempt:
        workers.attempt(given.attempt)
    seed = time.time_ns() % 2**32 if given.seed is None else given.seed
    if given.case is not None:
        return (_hostile if given.hostile else _case)(seed, given.case, given.only, given.shrink)
    last = 2**62 if given.cases is None else given.start + given.cases - 1
    minutes = given.minutes or (math.inf if given.hostile and given.cases else 1.0)
    kind = misuse.Run if given.hostile else runner.Run
    run = kind(seed, minutes, given.only, given.isa, given.failures, given.shrink, last)
    isa = given.isa or os.environ.get("FASTLOSS_ISA") or "the default"
    print(f"seed {seed}, MALLOC_PERTURB_={run.poison}, {isa} instruction set", flush=True)
    start = time.monotonic()
    run.go(given.start)
    print(runner.summary(run, time.monotonic() - start))
    return 1 if run.findings else 0


def _case(seed: int, number: int, only: str | None, seconds: float) -> int:
    call, _ = kinds.make(seed, number, only)
    print(call, flush=True)
    found = [workers.report(seed, number, call, p, seconds) for p in workers.problems_of(call)]
    for finding in found:
        runner.show(finding, "this command")
    return 1 if found else 0


def _hostile(seed: int, number: int, only: str | None, seconds: float) -> int:
    case = misuse.make(seed, number)
    print(case, flush=True)
    ended, finding = misuse.report(number, case)
    print(ended)
    if finding is not None:
        runner.show(finding, "this command")
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())
