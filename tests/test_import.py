"""What importing the package does, and does not do."""

import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import fastloss as fl


def in_child(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_subnormals_survive_the_import():
    assert in_child("import fastloss; print(5e-324 / 2 == 0, 5e-324 * 1.0 != 0, 1e-308 / 2 > 0)") == "True True True"


def test_only_numpy_is_imported():
    """No module of another package beside NumPy's: the import is light because of what it leaves out."""
    code = (
        "import sys, numpy; before = set(sys.modules); import fastloss;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before if not m.startswith(('_cython', 'cython_'))};"
        "print(sorted(new - {'numpy'} - set(sys.stdlib_module_names)))"
    )
    assert in_child(code) == "['fastloss']"
    code = "import fastloss, sys; print('argparse' in sys.modules or 'fastloss._cli' in sys.modules)"
    assert in_child(code) == "False"


def test_public_names():
    assert fl.__all__ == sorted(fl.__all__)
    for name in fl.__all__:
        thing = getattr(fl, name)
        assert thing.__doc__, name
        assert "Examples" in thing.__doc__, name


@pytest.mark.parametrize("name", fl.__all__)
def test_examples_in_docstrings(name):
    thing = getattr(fl, name)
    module = importlib.import_module(thing.__module__)
    for test in doctest.DocTestFinder(recurse=inspect.isclass(thing)).find(inspect.unwrap(thing), name, module):
        failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
        assert failed == 0


def test_losses_have_clean_signatures():
    for name in fl.__all__:
        thing = getattr(fl, name)
        if hasattr(thing, "implementation"):
            assert "wants" not in inspect.signature(thing).parameters


def test_examples_in_the_readme():
    readme = pathlib.Path(__file__).parents[1] / "README.md"
    failed, tried = doctest.testfile(str(readme), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 5
    assert failed == 0
