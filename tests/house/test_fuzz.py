"""The fuzzer: a short campaign, and that it sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from fuzz import checks, draws, kinds, layouts, runner, shrinking
from shared import same_bits

import fastloss as fl

ROOT = Path(__file__).resolve().parents[2]
SPARSE = "sparse_softmax_cross_entropy_with_logits"


def test_a_campaign_finds_nothing():
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--seed",
        "20261130",
        "--minutes",
        "5",
        "--cases",
        "600",
        "--shrink",
        "2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "600 cases" in done.stdout


def checked(kind, cases, **change):
    """What is found in the first cases of a kind, the calls changed."""
    found = set()
    for number in range(cases):
        call, _ = kinds.make(7, number, kind)
        found |= {(p.check, p.result.split("[")[0]) for p in checks.check(replace(call, **change))}
    return found


# ------------------------------------------------------------------ no oracle says yes to everything


def nudged(a):
    """Off by 64 units in the last place (half types: 8), towards 0; integers by one."""
    if a.dtype.kind in "fV":
        ulps = 8 if a.dtype.itemsize == 2 else 64
        with np.errstate(all="ignore"):
            return (a.astype(np.longdouble) * (1 - ulps * np.longdouble(float(ml_dtypes.finfo(a.dtype).eps)))).astype(
                a.dtype
            )
    return ~a if a.dtype == bool else a + 1


def compared(kind, number):
    """Results of one case that have an oracle, and whether it sees that they are off."""
    call, _ = kinds.make(3, number, kind)
    try:
        got, _ = kinds.KINDS[kind].run(call.plain())
    except RuntimeWarning:  # a sum that overflows
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = kinds.KINDS[kind].expect(call, got)
        return {
            plain_name(name): e.off(nudged(got[name])) is not None
            for name, e in expected.items()
            if name in got and got[name].size
        }


@pytest.mark.parametrize("kind", sorted(kinds.KINDS))
def test_every_oracle_sees_a_small_error(kind):
    """All calls of a case agree, and all are off by a little: nothing but the oracle can tell."""
    names, seen = set(), set()
    for number in range(400):
        found = compared(kind, number)
        names |= set(found)
        seen |= {name for name, off in found.items() if off}
        if number >= 40 and seen == names:
            break
    assert names
    assert seen == names


def plain_name(name):
    """Without the number of a step."""
    return name.split(" ", 1)[-1] if name[0].isdigit() else name


# ------------------------------------------------------------------ faults put in


def patched(monkeypatch, name, wrap):
    real = getattr(fl, name)
    wrapped = wrap(real)
    wrapped.__signature__ = __import__("inspect").signature(real)
    monkeypatch.setattr(fl, name, wrapped)


def test_a_gradient_off_by_a_few_units_is_seen(monkeypatch):
    real = fl.value_and_grad

    def value_and_grad(loss, wrt=None):
        def call(**kwargs):
            value, grads = real(loss, wrt)(**kwargs)
            if isinstance(grads, np.ndarray) and grads.dtype == np.float64:
                grads *= 1 + 2.0**-48
            return value, grads

        return call

    monkeypatch.setattr(fl, "value_and_grad", value_and_grad)
    assert ("oracle", "grad logits") in checked("softmax", 60)
    assert ("oracle", "grad predictions") in checked("elements", 60)


def test_labels_of_one_dtype_read_wrongly_are_seen(monkeypatch):
    def wrap(real):
        def loss(**kwargs):
            y = np.asarray(kwargs["labels"])
            if y.dtype == np.uint16 and y.size:
                kwargs["labels"] = np.roll(y, 1)
            return real(**kwargs)

        return loss

    patched(monkeypatch, SPARSE, wrap)
    assert ("bits of the plain call", "value") in checked("softmax", 200, wrt=(), hessian=None, buffers={})


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        ("bits of more threads", lambda n, calls: n == 3),
        ("bits of a second call", lambda n, calls: calls % 5 == 3),
    ],
)
def test_results_that_change_are_seen(check, fault, monkeypatch):
    count = [0]

    def wrap(real):
        def sigmoid(x, **kwargs):
            value = np.array(real(x, **kwargs))
            count[0] += 1
            if value.size and fault(kwargs.get("n_threads"), count[0]):
                value.reshape(-1)[:1] = np.nextafter(value.reshape(-1)[0], value.dtype.type(0))
            return value

        return sigmoid

    patched(monkeypatch, "sigmoid", wrap)
    assert (check, "value") in checked("unary", 60, buffers={}, n_threads=1)


def test_inputs_that_are_written_are_seen(monkeypatch):
    def wrap(real):
        def softmax(x, **kwargs):
            value = np.array(real(x, **kwargs))
            if x.flags.writeable and x.size:
                x[...] = 0
            return value

        return softmax

    patched(monkeypatch, "softmax", wrap)
    assert ("inputs unchanged", "x") in checked("normal", 60, buffers={})


@pytest.mark.parametrize(
    "layout", ["c", "unaligned", "strided", "reversed", "padded", "fortran", "mirrored", "swapped"]
)
@pytest.mark.parametrize("dtype", draws.FLOATS, ids=str)
def test_bytes_around_buffers_are_guarded(layout, dtype):
    for shape in ((), (3,), (2, 5), (2, 3, 4), (0, 3)):
        view, memory = layouts.blank(shape, dtype, layout)
        view[...] = 1
        assert layouts.is_guarded(view, memory)
        view[...] = 1
        first = view.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
        for place in (first - 1, first + dtype.itemsize) if view.size == 1 else (0, len(memory) - 1):
            view, memory = layouts.blank(shape, dtype, layout)
            memory[place] ^= 1
            assert not layouts.is_guarded(view, memory)


@pytest.mark.parametrize("layout", [*layouts.LAYOUTS, "read-only", "c"])
def test_layouts_hold_the_same_numbers(layout):
    for shape in ((), (5,), (3, 4), (2, 3, 5), (0, 2)):
        a = np.random.default_rng(0).standard_normal(shape)
        assert same_bits(layouts.lay_out(a, layout), a)


def test_errors_are_findings(monkeypatch):
    def wrap(real):
        def distance(*args, **kwargs):
            raise ValueError("truth must be 3, got 7")

        return distance

    patched(monkeypatch, "edit_distance", wrap)
    assert checked("edit_distance", 1) == {("plain call", "ValueError: truth must be N,")}


CRASH = """
import os, sys
sys.path.insert(0, {root!r})
import fastloss as fl
from tests.fuzz.__main__ import main
real = fl.edit_distance
def edit_distance(hypothesis, truth, normalize=True, *, hypothesis_length=None, truth_length=None, n_threads=None):
    if len(hypothesis) == 5:
        os.kill(os.getpid(), 11)
    return real(hypothesis, truth, normalize, hypothesis_length=hypothesis_length, truth_length=truth_length)
fl.edit_distance = edit_distance
main()
"""


def test_a_crash_is_a_finding_and_not_the_end(capsys):
    run = runner.Run(5, 1.0, "edit_distance", shrinking=2.0, last=60)
    run.program = (sys.executable, "-c", CRASH.format(root=str(ROOT)))
    run.go()
    assert [(f["function"], f["check"], f["result"]) for f in run.findings] == [("edit_distance", "crash", "SIGSEGV")]
    assert run.cases >= 61
    assert "edit_distance" in run.findings[0]["source"]
    assert "again: MALLOC_PERTURB_" in capsys.readouterr().out


# ------------------------------------------------------------------ cases and shrinking


def test_a_case_is_made_from_its_seed_and_number():
    for number in range(len(kinds.ROUND)):
        assert str(kinds.make(3, number)[0]) == str(kinds.make(3, number)[0])
    assert str(kinds.make(3, 0)[0]) != str(kinds.make(4, 0)[0])


def test_every_width_is_met_in_both_dtypes():
    met = {(w, d.name) for turn in range(1200) for w, d in [draws.Draw(0, turn, turn).width_and_dtype()]}
    assert {(w, d) for w in range(1, 301) for d in ("float32", "float64")} <= met


def test_every_public_function_is_met():
    met = {"value_and_grad", "value_grad_hess", "LinearStats"}
    for number in range(40 * len(kinds.ROUND)):
        _, draw = kinds.make(1, number)
        met |= {name.split()[1] for name in draw.met if name.startswith("function ")}
    assert met == set(fl.__all__)


def test_failures_shrink_and_can_be_pasted(capsys):
    def fails(call):
        x = call.arguments["logits"]
        return x.dtype == np.float32 and x.size >= 3

    number = next(n for n in range(500) if fails(kinds.make(2, n, "softmax")[0]))
    call, _ = kinds.make(2, number, "softmax")
    small = shrinking.shrink(call, fails, 20)
    assert small.arguments["logits"].size <= 4
    assert not small.layouts
    assert not small.buffers
    assert small.cotangent is None
    exec(shrinking.source(small), {})
    assert capsys.readouterr().out
