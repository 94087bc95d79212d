"""Values that no argument expects, and a valid call of every public function to put them in."""

from __future__ import annotations

import array
import decimal
import fractions
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.ma import mrecords

import fastloss as fl

Arguments = dict[str, Any]


class Raises:
    """Whatever it is asked for, it raises."""

    def _refuse(self, *args: object, **kwargs: object) -> Any:
        raise RuntimeError("no\nthanks")

    __array__ = __index__ = __float__ = __int__ = __len__ = __iter__ = __bool__ = __repr__ = __eq__ = _refuse
    __hash__ = None  # type: ignore[assignment]


class Lies:
    """Another shape at every call."""

    def __init__(self, first: Any = (4, 3)) -> None:
        self._shapes = [first, (1, 2), (9,), (7, 0), ()]
        self._calls = 0

    def _shape(self) -> tuple[int, ...]:
        self._calls += 1
        return self._shapes[min(self._calls, len(self._shapes)) - 1]

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.ones(self._shape(), dtype or np.int64)

    def __len__(self) -> int:
        return len(self._shape())

    def __index__(self) -> int:
        return len(self._shape())


class Tensor:
    """As PyTorch's, one that requires grad."""

    dtype = "torch.float32"

    def detach(self) -> Any:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


class Unit(np.ndarray):
    """An array whose shape is not what it says."""

    @property
    def shape(self) -> Any:  # type: ignore[override]
        return (4, 3)


def _matrix() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.matrix([[1.0, 2.0, 3.0]] * 4)


def _read_only() -> Any:
    a = np.ones((4, 3))
    a.flags.writeable = False
    return a


def _nested() -> Any:
    a: list[Any] = []
    a.append(a)
    return a


# What is right for no argument that is looked at: where it is refused, the message names the argument.
NEVER: dict[str, Callable[[], Any]] = {
    "empty text": lambda: "",
    "number as text": lambda: "1.5",
    "bytes": lambda: b"x",
    "long text": lambda: "balanced" * 1000,
    "device": lambda: "/dev/zero",
    "folder": lambda: ".",
    "dict": lambda: {},
    "dict of weights": lambda: {0: 1.0, 1: 2.0},
    "set": set,
    "generator": lambda: (i for i in range(3)),
    "object": object,
    "type": lambda: int,
    "complex": lambda: 1 + 2j,
    "complex number": lambda: np.complex64(1),
    "complex array": lambda: np.ones((4, 3), complex),
    "ragged": lambda: [[1, 2], [3]],
    "endless list": _nested,
    "list of text": lambda: ["1", "2"],
    "list of None": lambda: [None, None],
    "list of masked": lambda: [np.ma.ones(3), np.ma.ones(3)],
    "masked": lambda: np.ma.masked,
    "masked array": lambda: np.ma.array(np.ones((4, 3)), mask=True),
    "masked vector": lambda: np.ma.array(np.ones(4, np.int64), mask=[0, 1, 0, 1]),
    "masked number": lambda: np.ma.array(2),
    "masked records": lambda: np.ma.array(np.ones(3)).view(mrecords.MaskedRecords),
    "objects": lambda: np.array([1, 2.5, None], object),
    "no objects": lambda: np.array([], object),
    "strings": lambda: np.array(["1", "2"]),
    "no strings": lambda: np.array([], "U1"),
    "no bytes": lambda: np.empty((0, 3), "S4"),
    "dates": lambda: np.array(["2020-01-01"], "M8[D]"),
    "durations": lambda: np.array([1, 2], "m8[s]"),
    "date": lambda: np.datetime64("2020-01-01"),
    "structured": lambda: np.zeros(3, [("a", "f4"), ("b", "i4")]),
    "void": lambda: np.zeros((4, 3), "V3"),
    "saved bfloat16": lambda: np.zeros((4, 3), "V2"),
    "float128": lambda: np.ones((4, 3), np.longdouble),
    "big-endian": lambda: np.ones((4, 3), ">f4"),
    "float8": lambda: np.ones((4, 3), ml_dtypes.float8_e4m3fn),
    "raises": Raises,
    "list of raises": lambda: [Raises()],
    "tensor": Tensor,
    "method": lambda: "".join,
}
# Right for one argument or another, and for others not: an error may name one that it does not go with.
SOMETIMES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "bytearray": lambda: bytearray(b"1"),
    "big-endian integers": lambda: np.ones(4, ">i8"),
    "lambda": lambda: lambda *args, **kwargs: None,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "minus one": lambda: -1,
    "zero": lambda: 0,
    "fraction": lambda: 2.5,
    "tiny": lambda: 5e-324,
    "huge": lambda: 1e308,
    "2**62": lambda: 2**62,
    "2**63": lambda: 2**63,
    "-2**63": lambda: -(2**63),
    "2**200": lambda: 2**200,
    "10**5000": lambda: 10**5000,
    "True": lambda: True,
    "numpy's True": lambda: np.True_,
    "float32": lambda: np.float32(0.5),
    "number in an array": lambda: np.array(2),
    "vector of one": lambda: np.array([1.5]),
    "empty list": list,
    "empty tuple": tuple,
    "empty lists": lambda: [[]],
    "nothing": lambda: np.empty(0),
    "no rows": lambda: np.empty((0, 3)),
    "no columns": lambda: np.empty((4, 0), np.float32),
    "many axes": lambda: np.ones((1,) * 32),
    "the most axes": lambda: np.ones((1,) * (64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32)),
    "rows of nothing": lambda: np.empty((2**40, 0), np.float32),
    "columns of nothing": lambda: np.empty((0, 2**40), np.float32),
    "endless rows": lambda: np.broadcast_to(np.float32(1), (2**40, 3)),
    "endless vector": lambda: np.broadcast_to(np.int64(1), 2**40),
    "decimal": lambda: decimal.Decimal("0.5"),
    "fraction of integers": lambda: fractions.Fraction(1, 2),
    "memoryview": lambda: memoryview(np.ones((4, 3), np.float32)),
    "buffer": lambda: array.array("q", [1, 2, 1, 2]),
    "read-only": _read_only,
    "matrix": _matrix,
    "records": lambda: np.rec.array(np.ones((4, 3))),
    "subclass": lambda: np.ones((2, 2)).view(Unit),
    "lies": Lies,
    "lies later": lambda: Lies((4,)),
    "list of lies": lambda: [Lies((3,)), Lies((3,))],
    "bfloat16": lambda: np.ones((4, 3), ml_dtypes.bfloat16),
    "NaNs": lambda: np.full((4, 3), np.nan),
    "huge numbers": lambda: np.full((4, 3), 1e308),
    "huge vector": lambda: np.full(4, 1e308),
    "negative": lambda: np.full(4, -(2**63)),
    "unsigned": lambda: np.full(4, 2**64 - 1, np.uint64),
    "broadcast": lambda: np.broadcast_to(np.float32(1), (4, 3)),
    "negative stride": lambda: np.ones((4, 3))[::-1, ::-1],
}
VALUES = NEVER | SOMETIMES


def _tail(**more: Any) -> Arguments:
    return {
        "sample_weight": np.array([1.0, 0.5, 2.0, 0.0]),
        "reduction": "none",
        "out": np.full(4, 7, np.float32),
        "n_threads": 1,
        "name": None,
    } | more


def _logits(n: int = 4, c: int = 3) -> Any:
    return np.linspace(-2, 2, n * c, dtype=np.float32).reshape(n, c)


def _without(arguments: Arguments, *names: str) -> Arguments:
    return {name: value for name, value in arguments.items() if name not in names}


def _sparse() -> Arguments:
    return _tail(
        labels=np.array([0, 1, 2, 1]), logits=_logits(), axis=-1, dim=None, ignore_index=1, class_weight=np.ones(3),
        label_smoothing=0.1, where=np.array([True, True, True]),
    )  # fmt: skip


def _elements(main: str, **more: Any) -> Arguments:
    tail = _tail(sample_weight=np.ones((4, 1)), out=np.full((4, 3), 7, np.float32))
    return tail | {"labels": np.full((4, 3), 0.5, np.float32), main: _logits()} | more


def _layer(**more: Any) -> Arguments:
    return {"inputs": _logits(4, 3), "weights": _logits(5, 3), "biases": np.zeros(5, np.float32)} | more


def _sampled() -> Arguments:
    return _tail() | _layer(
        labels=np.array([[0], [1], [2], [4]]), num_sampled=2, num_classes=5, num_true=1, sampled_values=None,
        remove_accidental_hits=True, partition_strategy="div", seed=3, subtract_log_q=True, sampler=None,
    )  # fmt: skip


def _given() -> Arguments:
    values = (np.array([1, 3]), np.ones((4, 1)), np.ones(2))
    return _sampled() | {"sampled_values": values, "seed": None}


def _own_sampler() -> Arguments:
    shards = {"weights": [_logits(3, 3), _logits(2, 3)], "biases": [np.zeros(3, np.float32), np.zeros(2, np.float32)]}
    return _sampled() | shards | {"sampler": fl.UniformSampler(5, seed=1), "seed": None}


def _candidates(**more: Any) -> Arguments:
    usual = {"num_true": 1, "num_sampled": 2, "unique": True, "range_max": 5, "seed": 1, "name": None}
    return {"true_classes": np.array([[0], [1]])} | usual | more


def _sequence() -> Arguments:
    return {
        "logits": _logits(8, 3).reshape(4, 2, 3), "targets": np.ones((4, 2), np.int64), "weights": np.ones((4, 2)),
        "average_across_timesteps": True, "average_across_batch": False, "sum_over_timesteps": False,
        "sum_over_batch": False, "softmax_loss_function": None, "name": None, "lengths": np.array([1, 2, 0, 2]),
        "out": np.full(4, 7, np.float32), "n_threads": 1,
    }  # fmt: skip


def _by_example() -> Arguments:
    return {
        "logits": [_logits(), _logits()], "targets": [np.ones(4, np.int64)] * 2, "weights": [np.ones(4)] * 2,
        "average_across_timesteps": True, "softmax_loss_function": None, "name": None,
        "out": np.full(4, 7, np.float32), "n_threads": 1,
    }  # fmt: skip


def _ctc() -> Arguments:
    return _tail(
        labels=np.ones((4, 2), np.int64), logits=_logits(20, 3).reshape(5, 4, 3), label_length=np.array([1, 2, 0, 1]),
        logit_length=np.array([5, 5, 4, 5]), logits_time_major=True, blank_index=0, preprocess_collapse_repeated=False,
        ctc_merge_repeated=True, ignore_longer_outputs_than_inputs=True, zero_infinity=True, unique=None,
    )  # fmt: skip


def _decode(**more: Any) -> Arguments:
    return {
        "logits": _logits(20, 3).reshape(5, 4, 3), "logit_length": np.array([5, 5, 4, 5]), "logits_time_major": True,
        "blank_index": 0, "merge_repeated": True, "n_threads": 1,
    } | more  # fmt: skip


def _linear() -> Arguments:
    return _tail() | _layer(
        labels=np.array([0, 1, 2, 4]), ignore_index=2, tail="drop", softcap=3.0, temperature=2.0, z_loss=0.1,
        class_weight=np.ones(5), label_smoothing=0.1, return_stats=False, max_memory=10**6,
    )  # fmt: skip


def _pair() -> Arguments:
    labels = (np.array([[0, 1]] * 4), np.full((4, 2), 0.5))
    shards = {"weights": [_logits(3, 3), _logits(2, 3)]}
    return _linear() | shards | {"labels": labels, "ignore_index": None, "return_stats": True}


def _x(**more: Any) -> Arguments:
    return {"x": _logits(), "out": np.full((4, 3), 7, np.float32), "n_threads": 1} | more


def _normal(**more: Any) -> Arguments:
    return _x(axis=1, where=np.array([True, False, True])) | more


def _draws(
    make: Callable[[], Any], method: str, **arguments: Any
) -> Callable[[], tuple[Callable[..., Any], Arguments]]:
    return lambda: (getattr(make(), method), {k: np.copy(v) if k == "array" else v for k, v in arguments.items()})


def _state(**state: Any) -> None:
    fl.UniformSampler(5, seed=1).state = state["state"]


def _plus_grads(
    f: Callable[..., Any], arguments: Callable[[], Arguments], wrt: Any = None
) -> Callable[[], tuple[Callable[..., Any], Arguments]]:
    """The same call with its gradient, into a buffer."""

    def make() -> tuple[Callable[..., Any], Arguments]:
        given = arguments()
        of = given[f.wrt[0] if wrt is None else wrt[0]]  # type: ignore[attr-defined]
        buffer = [np.full_like(a, 7) for a in of] if isinstance(of, list) else np.full_like(of, 7)
        value = given["out"].shape if "out" in given else ()
        grads = {"grad_out": buffer if wrt is None else (buffer,), "cotangent": np.ones(value)}
        return fl.value_and_grad(f, wrt), given | grads

    return make


def _plus_hessian(f: Callable[..., Any], arguments: Callable[[], Arguments]) -> Any:
    def make() -> tuple[Callable[..., Any], Arguments]:
        given = arguments()
        main = given[f.wrt[0]]  # type: ignore[attr-defined]
        buffers = {"grad_out": np.full_like(main, 7), "hess_out": np.full_like(main, 7)}
        return fl.value_grad_hess(f), given | buffers | {"cotangent": np.ones(given["out"].shape)}

    return make


def _merge(a: Any, b: Any) -> Any:
    return fl.merge_partials(a, b)


def _losses() -> dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]]:
    regressions = {
        "mean_squared_error": {}, "mean_absolute_error": {}, "huber_loss": {"delta": 1.5}, "log_cosh_loss": {},
        "quantile_loss": {"quantile": 0.4}, "hinge_loss": {}, "squared_hinge_loss": {}, "gamma_loss": {},
        "poisson_loss": {"compute_full_loss": True}, "tweedie_loss": {"power": 1.5}, "kl_divergence": {},
    }  # fmt: skip
    found: dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]] = {
        "sparse": (fl.sparse_softmax_cross_entropy_with_logits, _sparse),
        "sparse mean": (
            fl.sparse_softmax_cross_entropy_with_logits,
            lambda: _sparse() | {"reduction": "mean", "out": np.full((), 7, np.float32)},
        ),
        "sparse plain": (
            fl.sparse_softmax_cross_entropy_with_logits,
            lambda: {"labels": np.array([0, 1, 2, 1]), "logits": _logits(), "reduction": "none", "n_threads": None,
                     "label_smoothing": 0.0},
        ),
        "dense": (
            fl.softmax_cross_entropy_with_logits,
            lambda: _without(_sparse(), "ignore_index") | {"labels": np.full((4, 3), 1 / 3)},
        ),
        "focal": (
            fl.softmax_focal_loss,
            lambda: _without(_sparse(), "dim", "name") | {"gamma": 2.0},
        ),
        "poly1": (
            fl.poly1_cross_entropy,
            lambda: _without(_sparse(), "dim", "name") | {"epsilon": 1.0},
        ),
        "poly1 dense": (
            fl.poly1_cross_entropy,
            lambda: _without(_sparse(), "dim", "name", "ignore_index")
            | {"labels": np.full((4, 3), 1 / 3), "epsilon": 1.0},
        ),
        "sparse capped": (
            fl.sparse_softmax_cross_entropy_with_logits,
            lambda: _sparse() | {"z_loss": 0.1, "softcap": 30.0, "temperature": 2.0},
        ),
        "dense capped": (
            fl.softmax_cross_entropy_with_logits,
            lambda: _without(_sparse(), "ignore_index")
            | {"labels": np.full((4, 3), 1 / 3), "z_loss": 0.1, "softcap": 30.0, "temperature": 2.0},
        ),
        "sigmoid": (fl.sigmoid_cross_entropy_with_logits, lambda: _elements("logits")),
        "weighted": (
            fl.weighted_cross_entropy_with_logits,
            lambda: _elements("logits", pos_weight=np.ones((4, 1), np.float32), targets=None),
        ),
        "weighted number": (
            fl.weighted_cross_entropy_with_logits,
            lambda: {"labels": np.ones((4, 3)), "logits": _logits(), "pos_weight": 2.0, "reduction": "mean"},
        ),
        "sigmoid focal": (
            fl.sigmoid_focal_loss, lambda: _without(_elements("logits", alpha=0.25, gamma=2.0), "name")
        ),
        "ctc": (fl.ctc_loss, _ctc),
        "ctc joined": (fl.ctc_loss, lambda: _ctc() | {"labels": np.ones(4, np.int64)}),
        "linear": (fl.linear_cross_entropy, _linear),
        "linear pair": (fl.linear_cross_entropy, _pair),
        "sampled": (fl.sampled_softmax_loss, _sampled),
        "sampled given": (fl.sampled_softmax_loss, _given),
        "nce": (fl.nce_loss, _sampled),
        "nce sampler": (fl.nce_loss, _own_sampler),
        "in batch": (
            fl.in_batch_softmax_loss,
            lambda: _tail(queries=_logits(), keys=_logits(), item_ids=np.arange(4), log_q=np.zeros(4), temperature=0.5),
        ),
        "sequence": (fl.sequence_loss, _sequence),
        "sequence by": (
            fl.sequence_loss,
            lambda: _sequence() | {"softmax_loss_function": fl.sparse_softmax_cross_entropy_with_logits},
        ),
        "by example": (fl.sequence_loss_by_example, _by_example),
        "packed": (
            fl.packed_sequence_loss,
            lambda: {"logits": _logits(), "targets": np.ones(4, np.int64), "offsets": np.array([0, 3, 4]),
                     "weights": np.ones(4), "reduction": "mean", "out": np.full(2, 7, np.float32), "n_threads": 1},
        ),
    }  # fmt: skip
    for name, more in regressions.items():
        f = getattr(fl, name)
        found[name] = (f, lambda more=more: _without(_elements("predictions", **more), "name"))  # type: ignore[misc]
    return found


def _methods() -> dict[str, Callable[[], tuple[Callable[..., Any], Arguments]]]:
    rows = lambda: fl.SparseRows(np.array([0, 2, 0]), _logits(3, 3), (4, 3))  # noqa: E731
    sampler = lambda: fl.UniformSampler(9, seed=1)  # noqa: E731
    learned = lambda: fl.LearnedUnigramSampler(9, seed=1)  # noqa: E731
    fixed = lambda: fl.FixedUnigramSampler([1.0, 2.0, 3.0], seed=1)  # noqa: E731
    table = lambda: fl.AliasTable([1.0, 2.0, 3.0])  # noqa: E731
    return {
        "SparseRows.coalesce": _draws(rows, "coalesce", n_threads=1),
        "SparseRows.add_to": _draws(rows, "add_to", array=np.ones((4, 3), np.float32), scale=2.0, n_threads=1),
        "AliasTable.sample": _draws(table, "sample", size=3, seed=1, n_threads=1),
        "AliasTable.sample_unique": _draws(table, "sample_unique", k=2, seed=1),
        "AliasTable.probability": _draws(table, "probability", ids=[0, 1]),
        "sampler.sample": _draws(sampler, "sample", num_sampled=2, unique=True),
        "sampler.candidates": _draws(sampler, "candidates", true_classes=[[0]], num_sampled=2, unique=True),
        "sampler.probability": _draws(sampler, "probability", ids=[0, 1]),
        "sampler.state": lambda: (_state, {"state": sampler().state}),
        "LearnedUnigramSampler.update": _draws(learned, "update", ids=[0, 1]),
        "FixedUnigramSampler.global_ids": _draws(fixed, "global_ids", ids=[0, 1]),
        "UniformSampler": lambda: (fl.UniformSampler, {"range_max": 5, "seed": 1, "expected_count": "tries"}),
        "LogUniformSampler": lambda: (fl.LogUniformSampler, {"range_max": 5, "seed": 1, "expected_count": "tries"}),
        "LearnedUnigramSampler": lambda: (
            fl.LearnedUnigramSampler, {"range_max": 5, "seed": 1, "expected_count": "tries"},
        ),
        "FixedUnigramSampler": lambda: (
            fl.FixedUnigramSampler,
            {"unigrams": [1.0, 2.0], "vocab_file": "", "distortion": 1.0, "num_reserved_ids": 1, "num_shards": 1,
             "shard": 0, "seed": 1, "expected_count": "tries"},
        ),
    }  # fmt: skip


def calls() -> dict[str, Callable[[], tuple[Callable[..., Any], Arguments]]]:
    """Makers of a function and arguments that it takes, by name."""
    found: dict[str, Callable[[], tuple[Callable[..., Any], Arguments]]] = {}
    for name, (f, arguments) in _losses().items():
        found[name] = lambda f=f, arguments=arguments: (f, arguments())  # type: ignore[misc]
        found[f"{name}, gradient"] = _plus_grads(f, arguments)
        if f.hessians and name != "sparse plain" and name != "weighted number":  # type: ignore[attr-defined]
            found[f"{name}, Hessian"] = _plus_hessian(f, arguments)
    for name in ("sampled", "linear"):
        f, arguments = _losses()[name]
        found[f"{name}, gradient in a tuple"] = _plus_grads(f, arguments, ("inputs",))
    f, arguments = _losses()["linear pair"]
    found["linear, gradient to shards"] = _plus_grads(f, arguments, ("weights",))
    functions: dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]] = {
        "value_and_grad": (fl.value_and_grad, lambda: {"loss": fl.ctc_loss, "wrt": ("logits",)}),
        "value_grad_hess": (fl.value_grad_hess, lambda: {"loss": fl.huber_loss, "hessian": "diagonal"}),
        "softmax": (fl.softmax, _normal),
        "log_softmax": (fl.log_softmax, _normal),
        "logsumexp": (fl.logsumexp, lambda: _normal(keepdims=False, out=np.full(4, 7, np.float32))),
        "sigmoid function": (fl.sigmoid, _x),
        "log_sigmoid": (fl.log_sigmoid, _x),
        "softplus": (fl.softplus, _x),
        "greedy": (fl.ctc_greedy_decode, _decode),
        "beam": (fl.ctc_beam_search_decode, lambda: _decode(beam_width=3, top_paths=2)),
        "edit_distance": (
            fl.edit_distance,
            lambda: {"hypothesis": np.ones((4, 2), np.int64), "truth": np.ones((4, 3), np.int64), "normalize": True,
                     "hypothesis_length": np.ones(4, np.int64), "truth_length": np.ones(4, np.int64), "n_threads": 1},
        ),
        "edit_distance, joined": (
            fl.edit_distance,
            lambda: {"hypothesis": np.ones(4, np.int64), "truth": np.ones(4, np.int64),
                     "hypothesis_length": np.ones(4, np.int64), "truth_length": np.ones(4, np.int64)},
        ),
        "linear_partials": (
            fl.linear_partials,
            lambda: _layer(labels=np.array([0, 1, 9, 3]), first_class=0, softcap=3.0, temperature=1.0, max_memory=10**6,
                           n_threads=1),
        ),
        "merge_partials": (_merge, lambda: {"a": np.ones((2, 4)), "b": np.ones((2, 4))}),
        "loss_from_partials": (fl.loss_from_partials, lambda: {"partials": np.ones((2, 4))}),
        "uniform": (fl.uniform_candidate_sampler, _candidates),
        "log_uniform": (fl.log_uniform_candidate_sampler, _candidates),
        "learned": (fl.learned_unigram_candidate_sampler, _candidates),
        "fixed": (
            fl.fixed_unigram_candidate_sampler,
            lambda: _candidates(vocab_file="", distortion=1.0, num_reserved_ids=0, num_shards=1, shard=0,
                                unigrams=[1.0] * 5),
        ),
        "all": (fl.all_candidate_sampler, lambda: _without(_candidates(), "range_max")),
        "hits": (
            fl.compute_accidental_hits,
            lambda: {"true_classes": [[0], [1]], "sampled_candidates": [1, 2], "num_true": 1, "seed": 1, "name": None},
        ),
        "negatives": (
            fl.sample_negatives,
            lambda: {"sampler": fl.AliasTable([1.0] * 5), "positives": [[0], [1]], "num_sampled": 2, "unique": True,
                     "seed": 1, "n_threads": 1},
        ),
        "negatives, ragged": (
            fl.sample_negatives,
            lambda: {"sampler": fl.UniformSampler(5), "positives": ([0, 1], [2]), "num_sampled": 2},
        ),
        "SparseRows": (fl.SparseRows, lambda: {"indices": [0, 1], "values": np.ones((2, 3)), "shape": (4, 3)}),
        "AliasTable": (fl.AliasTable, lambda: {"weights": [1.0, 2.0]}),
    }  # fmt: skip
    for name, (f, arguments) in functions.items():
        found[name] = lambda f=f, arguments=arguments: (f, arguments())  # type: ignore[misc]
    return found | _methods()


CALLS = calls()
NAMES = {"a": "partials", "b": "partials"}  # how messages call an argument that has no name
