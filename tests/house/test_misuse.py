"""The fuzzer's hostile calls: a short campaign, and that it sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from fuzz import misuse

import fastloss as fl

ROOT = Path(__file__).resolve().parents[2]


def test_a_campaign_finds_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--hostile", "--calls", "3000", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "3000 cases" in done.stdout


def other(x: Any, out: Any) -> None:
    raise KeyError("x")


def unnamed(x: Any, out: Any) -> None:
    raise ValueError("that is wrong")


def wordy(x: Any, out: Any) -> None:
    raise ValueError("x\nis wrong")


def late(x: Any, out: Any) -> None:
    out[0] = 1
    raise ValueError("x is wrong")


def careless(x: Any, out: Any) -> None:
    x[0] = 1


def slow(x: Any, out: Any) -> None:
    end = time.process_time() + 1.5
    while time.process_time() < end:
        pass


def warns(x: Any, out: Any) -> None:
    warnings.warn("x is odd", RuntimeWarning, stacklevel=1)


def right(x: Any, out: Any) -> None:
    out[0] = 1


def draws(x: Any, out: Any, sampler: Any) -> None:
    sampler.sample(2)
    raise ValueError("x is wrong")


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (other, "KeyError"),
        (unnamed, "ValueError that names no argument"),
        (wordy, "a message that is too long, or of several lines"),
        (late, "written before the error: out"),
        (careless, "an argument was changed"),
        (slow, "slow"),
        (warns, "RuntimeWarning"),
        (draws, "drawn before the error"),
        (right, ""),
    ],
)
def test_what_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch, function: Any, found: str) -> None:
    more = {"sampler": fl.UniformSampler(9, seed=1)} if function is draws else {}
    monkeypatch.setitem(hostile.CALLS, "planted", lambda: (function, {"x": np.zeros(3), "out": np.zeros(3), **more}))
    assert misuse.judge(misuse.Case("planted", (), ()))[1] == found


def test_an_error_must_name_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def misleading(x: Any, out: Any) -> None:
        raise ValueError("out is wrong")

    monkeypatch.setitem(hostile.CALLS, "planted", lambda: (misleading, {"x": np.zeros(3), "out": np.zeros(3)}))
    case = misuse.Case("planted", (("x", misuse.Value("value", ("raises",))),), ())
    assert misuse.judge(case)[1] == "ValueError that names no argument"


def test_cases_are_made_from_seed_and_number_and_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        assert misuse.make(3, number) == misuse.make(3, number)
    assert str(misuse.make(3, 0)) != str(misuse.make(4, 0))
    monkeypatch.setitem(hostile.CALLS, "planted", lambda: (other, {"x": np.zeros(3), "out": np.zeros(3)}))
    case = misuse.Case(
        "planted", (("x", misuse.Value("value", ("zero",))), ("out", misuse.Value("value", ("set",)))), ()
    )
    assert misuse.shrink(case, "KeyError").replaced == ()


def test_every_call_and_value_is_met() -> None:
    cases = [misuse.make(1, number) for number in range(12_000)]
    assert {case.name for case in cases} == set(hostile.CALLS)
    words = {v.words[0] for case in cases for _, v in case.replaced if v.kind == "value"}
    assert words == set(hostile.VALUES)
