"""Whatever is given: a result, or an error that names the argument, before anything is written."""

from __future__ import annotations

import ast
import inspect
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile
import ml_dtypes
import numpy as np
import pytest

import fastloss as fl

PUBLIC = {name: getattr(fl, name) for name in fl.__all__}


def arrays(arguments: dict[str, Any]) -> list[tuple[Any, bytes]]:
    """Every array among the arguments, with what it holds."""
    found = []
    for value in arguments.values():
        for a in value if isinstance(value, list | tuple) else [value]:
            if type(a) is np.ndarray and a.dtype != object:
                found.append((a, a.tobytes()))
    return found


def test_every_argument_of_every_function_has_its_turn() -> None:
    seen: dict[Any, set[str]] = {}
    for make in hostile.CALLS.values():
        function, arguments = make()
        seen.setdefault(getattr(function, "__wrapped__", function), set()).update(arguments)
    for name, function in PUBLIC.items():
        if name in ("LinearStats", "merge_partials"):  # a result; arguments without names
            continue
        assert seen[function] >= set(inspect.signature(function).parameters) - {"self"}, name


@pytest.mark.parametrize("call", hostile.CALLS)
def test_valid_calls_are_valid(call: str) -> None:
    function, arguments = hostile.CALLS[call]()
    function(**arguments)


def fault(call: str, argument: str, kind: str) -> str | None:
    """What is wrong about a call with a hostile value in place of an argument."""
    function, arguments = hostile.CALLS[call]()
    given = arguments | {argument: hostile.VALUES[kind]()}
    before = arrays(arguments)
    try:
        function(**given)
        return None
    except (TypeError, ValueError, MemoryError) as error:
        raised = error
    except Exception as error:
        return repr(error)
    message = str(raised)
    names = [argument] if kind in hostile.NEVER else list(given)
    if not any(re.search(rf"\b{hostile.NAMES.get(name, name)}\b", message) for name in names) or len(message) > 400:
        return repr(raised)
    written = any(a.tobytes() != held for a, held in before)
    return f"written before {raised!r}" if written else None


@pytest.mark.parametrize("call", hostile.CALLS)
def test_hostile_values_are_named(call: str) -> None:
    faults = {
        f"{argument}, {kind}": found
        for argument in hostile.CALLS[call]()[1]
        for kind in hostile.VALUES
        # functions: what they raise is their own
        if not (argument == "softmax_loss_function" and kind in ("type", "method"))
        if (found := fault(call, argument, kind)) is not None
    }
    assert not faults


SPARSE = fl.sparse_softmax_cross_entropy_with_logits
X, Y = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": X.astype(">f4")}, "got >f4 (write logits.astype(logits.dtype.newbyteorder('=')))"),
        ({"labels": Y.astype(">i8")}, "got >i8 (write labels.astype(labels.dtype.newbyteorder('=')))"),
        ({"logits": np.zeros((4, 3), "V2")}, "write logits.view(ml_dtypes.bfloat16)"),
        ({"logits": X.astype(object)}, "got object (write logits.astype(float))"),
        ({"logits": X.astype(np.longdouble)}, "(write logits.astype(float))"),
        ({"logits": 1.0}, "logits must have an axis of classes, got a single number"),
        ({"logits": hostile.Tensor()}, "(write logits.detach().cpu().numpy())"),
        ({"class_weight": {0: 1.0}}, "got {0: 1.0} (write [class_weight.get(c, 1) for c in range(3)])"),
        (
            {"class_weight": "balanced"},
            "got 'balanced' (write labels.size / (C * numpy.bincount(labels, minlength=C)))",
        ),
        ({"where": np.ones(3)}, "where must be bool, got float64 (write where.astype(bool))"),
        ({"label_smoothing": "0.5"}, "label_smoothing must be a number, got '0.5'"),
        ({"label_smoothing": 1.0000001}, "label_smoothing must lie in [0, 1], got 1.0000001"),
        ({"ignore_index": True}, "ignore_index must be an integer, got True"),
        ({"axis": True}, "axis must be an integer, got True"),
        ({"dim": 3}, "dim must lie in [-2, 2), got 3"),
        ({"n_threads": "2"}, "n_threads must be an integer, got '2'"),
        (
            {"reduction": X},
            "reduction must be one of 'none', 'sum', 'mean', got ndarray of shape (4, 3) and dtype float32",
        ),
        ({"reduction": "x" * 1000}, "got 'xxxx"),
        ({"out": np.ma.zeros(4, np.float32)}, "out must be a plain array, got MaskedArray"),
        ({"logits": [np.ma.zeros(3)] * 4}, "logits must be a plain array, got a masked one"),
        ({"sample_weight": np.ma.ones(4)}, "sample_weight must be a plain array, got a masked one"),
    ],
    ids=str,
)
def test_messages_say_what_to_write_instead(change: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        SPARSE(**{"labels": Y, "logits": X} | change)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 250


def test_cotangents_are_named() -> None:
    for reduction, cotangent, words in [
        ("mean", np.ones(4), "cotangent must have shape ()"),
        ("none", np.ones(3), "cotangent must broadcast to shape (4,)"),
        ("sum", "1.5", "cotangent must hold real numbers"),
        ("mean", np.ma.ones(()), "cotangent must be a plain array"),
    ]:
        with pytest.raises((TypeError, ValueError)) as raised:
            fl.value_and_grad(SPARSE)(labels=Y, logits=X, reduction=reduction, cotangent=cotangent)
        assert words in str(raised.value)


def test_an_infinite_cotangent_beside_what_cannot_be_copied() -> None:
    """Such a call runs twice, with copies of what has a state."""
    grads = fl.value_and_grad(SPARSE)
    for labels in ((i for i in range(4)), hostile.Raises()):
        with pytest.raises(TypeError, match="labels must be an array"):
            grads(labels=labels, logits=X, cotangent=np.inf)


def test_labels_in_pairs_are_named() -> None:
    for best in (hostile.Raises(), (i for i in range(4)), np.ma.ones(3)):
        with pytest.raises(TypeError, match=r"labels\[0\] must be"):
            fl.linear_cross_entropy(labels=(best, np.ones(3)), inputs=X, weights=np.zeros((5, 3), np.float32))


@pytest.mark.parametrize("loss", [SPARSE, fl.softmax_focal_loss, fl.poly1_cross_entropy])
def test_rows_without_classes_are_checked_before_anything_is_written(loss: Any) -> None:
    for make in (loss, fl.value_and_grad(loss), fl.value_grad_hess(loss)):
        out = np.full(4, 7, np.float32)
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 0\)"):
            make(labels=Y, logits=X[:, :0], reduction="none", out=out)
        assert (out == 7).all()
    loss(labels=Y, logits=X[:, :0], reduction="none", ignore_index=0, out=out)
    assert (out == 0).all()


def test_seeds_have_a_bounded_length() -> None:
    fl.UniformSampler(5, seed=np.ones(1 << 16, np.uint8))
    for seed in (np.ones((1 << 16) + 1, np.uint8), [0] * ((1 << 16) + 1), np.broadcast_to(0, 2**40)):
        with pytest.raises(ValueError, match=r"seed must be something .* of at most 65536 numbers"):
            fl.UniformSampler(5, seed=seed)


def test_arrays_of_other_libraries() -> None:
    class Column:
        """As those of pandas, polars and pyarrow."""

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return Y

    assert (SPARSE(labels=Column(), logits=X) == SPARSE(labels=Y, logits=X)).all()


F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
LOSS = {F32: F32, F64: F64, np.dtype(np.float16): F32, np.dtype(ml_dtypes.bfloat16): F32}


DERIVED = [name for name in hostile.CALLS if re.search("gradient|Hessian", name) and "sparse mean" not in name]


def extreme(call: str, argument: str, reduction: str, value: float, dtype: np.dtype[Any]) -> Any:
    """A call in this dtype with one argument all of this value."""
    function, given = hostile.CALLS[call]()
    if "reduction" in given:
        packed = "offsets" in given
        given |= {"reduction": "perplexity" if packed and reduction == "none" else reduction}
        if reduction != "none" and not packed:
            given |= {"out": np.zeros(()), "cotangent": 2.0}
    given = {k: _cast(a, LOSS[dtype] if k == "out" else dtype) for k, a in given.items()}
    if argument not in ("out", "grad_out", "hess_out"):
        given[argument] = _filled(given[argument], value)
    return function, given


@pytest.mark.parametrize("call", DERIVED)
@pytest.mark.parametrize("value", [1e308, -1e38, np.inf, np.nan, 6e4], ids=str)
def test_extreme_numbers_do_not_warn(call: str, value: float) -> None:
    """A warning is an error under ``-W error``, and would come when half of the results are written."""
    for dtype in LOSS:
        for reduction in ("none", "mean"):
            for argument in hostile.CALLS[call]()[1]:
                function, given = extreme(call, argument, reduction, value, dtype)
                with suppress(TypeError, ValueError):
                    function(**given)


def _cast(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_cast(a, dtype) for a in value)
    return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value


@np.errstate(over="ignore")
def _filled(value: Any, number: float) -> Any:
    if isinstance(value, list):
        return [_filled(a, number) for a in value]
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "iub" else np.full_like(value, number)
    return number if isinstance(value, float) else value


def test_a_bfloat16_number_as_pos_weight() -> None:
    given = {"labels": np.ones((2, 3)), "logits": np.ones((2, 3))}
    weighted = fl.weighted_cross_entropy_with_logits
    assert (weighted(**given, pos_weight=ml_dtypes.bfloat16(2)) == weighted(**given, pos_weight=2)).all()


PACKAGE = Path(fl.__file__).parent
RAISES = {  # of no argument's fault: an attribute, and an instruction set, that there is not
    "__init__.py": ["AttributeError"],
    "_native/__init__.py": ["ImportError"],
}


def raises(source: str) -> list[str]:
    """What a module raises, but for the errors that the checks make, where only a kernel can find the fault."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise):
            what = "again" if node.exc is None else ast.unparse(getattr(node.exc, "func", node.exc))
            if not what.startswith("check.bad_"):
                found.append(what)
    return found


def test_only_the_checks_raise() -> None:
    """An argument is checked, and its error worded, in _core; the command line has errors of its own."""
    assert raises("raise check.bad_label(1)\nraise ValueError(2)\nraise E from e\nraise") == [
        "ValueError",
        "E",
        "again",
    ]
    files = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in ("_core", "_cli")]
    assert len(files) > 10
    found = {p.relative_to(PACKAGE).as_posix(): raises(p.read_text()) for p in files}
    assert {name: what for name, what in found.items() if what} == RAISES


def test_buffers_are_decided_in_one_place() -> None:
    """Who else looks at what was handed over for a gradient, or at `out`, has rules of its own."""
    words = re.compile(r"\.buffers\b|shares_memory|flags\.writeable")
    for folder in ("losses", "samplers"):
        for path in (PACKAGE / folder).rglob("*.py"):
            allowed = {"no_buffers(wants.buffers", "NO_IDS.flags.writeable"}
            lines = [line for line in path.read_text().splitlines() if not any(a in line for a in allowed)]
            assert not [line for line in lines if words.search(line)], path
