"""What importing the package does, and does not do."""

import ast
import doctest
import importlib
import inspect
import pathlib

import pytest
from shared import python

import fastloss as fl


def test_subnormals_survive_the_import():
    assert (
        python("from fastloss import *; print(5e-324 / 2 == 0, 5e-324 * 1.0 != 0, 1e-308 / 2 > 0)") == "True True True"
    )


def test_only_numpy_is_imported():
    """No module of another package beside NumPy's: the import is light because of what it leaves out."""
    code = (
        "import sys, numpy; before = set(sys.modules); from fastloss import *;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before if not m.startswith(('_cython', 'cython_'))};"
        "print(sorted(new - {'numpy'} - set(sys.stdlib_module_names)))"
    )
    assert python(code) == "['fastloss']"
    code = "from fastloss import *; import sys; print('argparse' in sys.modules or 'fastloss._cli' in sys.modules)"
    assert python(code) == "False"


def test_public_names():
    assert fl.__all__ == sorted(fl.__all__)
    assert set(fl.__all__) <= set(dir(fl))
    with pytest.raises(AttributeError, match="'fastloss' has no attribute 'nothing'"):
        fl.nothing  # noqa: B018
    for name in fl.__all__:
        thing = getattr(fl, name)
        assert thing.__doc__, name
        assert "Examples" in thing.__doc__, name


def test_modules_are_imported_when_they_are_used():
    code = "import fastloss, sys; print(*sorted(m for m in sys.modules if m.startswith('fastloss.')))"
    assert python(code) == "fastloss._host fastloss._native"
    assert python("from fastloss import nce_loss, softmax; print(nce_loss.__module__)") == "fastloss.losses.sampled"


def test_type_checkers_see_the_same_names():
    stub = ast.parse(pathlib.Path(fl.__file__).with_suffix(".pyi").read_text())
    imported = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    listed = next(ast.literal_eval(n.value) for n in stub.body if isinstance(n, ast.Assign))
    assert sorted(imported) == listed == fl.__all__


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
    readme = pathlib.Path(__file__).parents[2] / "README.md"
    failed, tried = doctest.testfile(str(readme), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 5
    assert failed == 0
