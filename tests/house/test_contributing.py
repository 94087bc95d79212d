"""The worked examples of docs/adding-a-loss.md: applied to a copy of the tree, built, and held to what all losses are.

Skipped where nothing can be built.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

import fastloss

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "adding-a-loss.md"
BLOCK = re.compile(r"^```(?:cython|python)\n# (?P<file>\S+): (?P<where>.+)\n(?P<lines>(?:.*\n)*?)```$", re.MULTILINE)
WHERE = re.compile(r'(?:at the end|(?P<how>after|before|instead of) "(?P<anchor>.+)")')
PLACES, LINES = 12, 60  # that a loss may take
MODULES = ("elementwise", "softmax")  # the kernels that the examples change


class Place(NamedTuple):
    file: str
    where: str
    lines: str

    def apply(self, text: str) -> str:
        """The file's text with the lines in their place."""
        found = WHERE.fullmatch(self.where)
        assert found, f"{self.file}: {self.where}"
        if found["how"] is None:
            return f"{text.rstrip()}\n\n\n{self.lines}"
        lines = text.splitlines(keepends=True)
        at = [k for k, line in enumerate(lines) if line.strip().startswith(found["anchor"])]
        assert len(at) == 1, f"{self.file} has {len(at)} lines that begin with {found['anchor']}"
        start = at[0] + (found["how"] == "after")
        lines[start : at[0] + (found["how"] != "before")] = [self.lines]
        return "".join(lines)


def example(title: str) -> list[Place]:
    section = DOCUMENT.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [Place(**block.groupdict()) for block in BLOCK.finditer(section)]


EXAMPLES = {"cauchy": example("An element-wise loss"), "generalised": example("A softmax law")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_takes_few_places_and_lines(name):
    places = EXAMPLES[name]
    lines = [line for place in places for line in place.lines.splitlines() if line.strip()]
    assert 8 <= len(places) <= PLACES
    assert 40 <= len(lines) <= LINES


def test_every_block_is_a_place():
    assert DOCUMENT.read_text().count("```") == 2 * sum(map(len, EXAMPLES.values()))


def why_not_built() -> str | None:
    missing = [name for name in ("Cython", "setuptools") if importlib.util.find_spec(name) is None]
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cl").split()[0]
    if missing or shutil.which(compiler) is None:
        return f"needs {' and '.join(missing) or 'a C compiler'}"
    if not (ROOT / "setup.py").exists() or Path(fastloss.__file__).parents[1] != ROOT:
        return "fastloss is not run from its source tree"
    return "a sanitizer is loaded" if "san" in os.environ.get("LD_PRELOAD", "") else None


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with both examples, of which only the kernels that they change are built."""
    if reason := why_not_built():
        pytest.skip(reason)
    tree = tmp_path_factory.mktemp("tree")
    for name in ("fastloss", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, tree / name)
    for file, *place in [place for places in EXAMPLES.values() for place in places]:
        path = tree / file
        path.write_text(Place(file, *place).apply(path.read_text()))
    isa = fastloss._native.isa
    for kernel in (tree / "fastloss/kernels").glob("*/*.pyx"):
        if kernel.stem not in MODULES:
            kernel.unlink()  # its built module is there
    for name in MODULES:
        for built in (tree / "fastloss/_native" / isa).glob(f"{name}.*"):
            built.unlink()
    command = [sys.executable, "setup.py", "-q", "build_ext", "-i"]
    environment = os.environ | {"FASTLOSS_BUILD_ISAS": isa, "FASTLOSS_BUILD_FLAGS": "-O1"}  # a third of the time
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return tree


def run(tree: Path, *arguments: str) -> str:
    """What a Python program prints that runs in the copy."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_the_properties_of_all_losses(tree, name):
    out = run(tree, "-m", "pytest", "-q", "tests/losses/test_all_losses.py", "-k", name)
    assert int(re.findall(r"(\d+) passed", out)[0]) >= 40, out


CODE = """
import mpmath
import numpy as np
import fastloss as fl

mpmath.mp.dps = 40
x, y, s = np.array([0.5, -3.0, 1e-9, 700.0]), np.array([0.25, 4.0, 0.0, -700.0]), 1.75
d = [(mpmath.mpf(float(a)) - mpmath.mpf(float(b))) / s for a, b in zip(x, y)]
f = lambda v: mpmath.log1p(v * v)
value, grad, hess = fl.value_grad_hess(fl.cauchy_loss)(labels=y, predictions=x, scale=s)
np.testing.assert_allclose(value, [float(f(v)) for v in d], rtol=1e-15)
np.testing.assert_allclose(grad, [float(2 * v / (1 + v * v) / s) for v in d], rtol=1e-15)
np.testing.assert_allclose(hess, [float(2 * (1 - v * v) / (1 + v * v) ** 2 / s**2) for v in d], rtol=1e-14)

for c in (3, 100):  # a tile, and row by row
    for margin in (-40.0, 0.0, 2.0, 30.0):
        z = np.linspace(-1, 1, c)
        z[1] += margin
        e = [mpmath.exp(mpmath.mpf(float(v))) for v in z]
        p = [v / mpmath.fsum(e) for v in e]
        t = mpmath.mpf(0.7)
        value, grad = fl.value_and_grad(fl.generalised_cross_entropy)(labels=[1], logits=z[None])
        np.testing.assert_allclose(value, [float((1 - p[1] ** t) / t)], rtol=1e-15)
        want = [float(p[1] ** t * (p[k] - (k == 1))) for k in range(c)]
        others = mpmath.fsum(e[:1] + e[2:]) / mpmath.fsum(e)
        want[1] = float(-(p[1] ** t) * others)
        np.testing.assert_allclose(grad[0], want, rtol=2e-15)
for f, given, message in [
    (fl.cauchy_loss, {"predictions": [1.0], "scale": 0}, "scale must be more than 0, got 0"),
    (fl.generalised_cross_entropy, {"logits": [[1.0]], "t": 0}, "t must be more than 0, got 0"),
]:
    try:
        f(labels=[0], **given)
    except ValueError as error:
        assert str(error) == message, error
    else:
        raise AssertionError(message)
print(fl.__file__)
"""


def test_values_gradients_and_errors_of_the_examples(tree):
    assert run(tree, "-c", CODE).strip() == str(tree / "fastloss" / "__init__.py")


def test_the_examples_have_names_and_docstrings_as_others(tree):
    tests = ["test_public_names", "test_type_checkers_see_the_same_names", "test_losses_have_clean_signatures"]
    tests += [f"test_examples_in_docstrings[{name}]" for name in ("cauchy_loss", "generalised_cross_entropy")]
    out = run(tree, "-m", "pytest", "-q", *(f"tests/house/test_import.py::{test}" for test in tests))
    assert "5 passed" in out
