"""The table of all losses: what test_all_losses.py runs its properties over.

A new loss is one entry: how to make arguments for n rows, and its oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import reference
import reference_sequence

import fastloss as fl

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]


@dataclass(frozen=True)
class Loss:
    """One row of the table.

    make(rng, n, dtype) gives the keyword arguments for n rows: arrays have n rows along their first axis, anything
    else is an option.  oracle(**arguments) gives the n losses and their class weights in long double.
    """

    name: str
    function: Callable[..., Any]
    make: Callable[[np.random.Generator, int, np.dtype], dict[str, Any]]
    oracle: Callable[..., tuple[Any, Any]]
    main: str = "logits"  # the input whose dtype the result has
    wrt: tuple[str, ...] = ("logits",)  # the inputs that have gradients
    ulp: float = 2.0  # of the loss in float32; twice that in float64
    shift_invariant: bool = False  # adding a number to a row of the main input changes nothing
    elementwise: bool = False  # one loss per element, not per row

    def __str__(self) -> str:
        return self.name


def _cross_entropy(**arguments: Any) -> tuple[Any, Any]:
    loss, _, weight = reference.cross_entropy(**arguments)
    return loss, weight


def _logits(rng: np.random.Generator, n: int, dtype: np.dtype, c: int) -> Any:
    return (3 * rng.standard_normal((n, c))).astype(dtype)


def _sparse(c: int, **options: Any) -> Callable[..., dict[str, Any]]:
    def make(rng: np.random.Generator, n: int, dtype: np.dtype) -> dict[str, Any]:
        return {"labels": rng.integers(0, c, n), "logits": _logits(rng, n, dtype, c), **options}

    return make


def _dense(c: int, weight: bool = False, **options: Any) -> Callable[..., dict[str, Any]]:
    def make(rng: np.random.Generator, n: int, dtype: np.dtype) -> dict[str, Any]:
        labels = rng.dirichlet(np.ones(c), n).astype(dtype)
        labels[:, 0] = 0
        return {"labels": labels, "logits": _logits(rng, n, dtype, c), **options}

    return make


def _weights(c: int) -> Any:
    return np.linspace(0.25, 2, c)


def _softmax_losses() -> list[Loss]:
    losses = []
    for c in (10, 100):  # a tile, and row by row
        sparse, dense = fl.sparse_softmax_cross_entropy_with_logits, fl.softmax_cross_entropy_with_logits
        plain = {"shift_invariant": True}
        losses += [
            Loss(f"sparse-{c}", sparse, _sparse(c), _cross_entropy, **plain),
            Loss(f"sparse-weighted-{c}", sparse, _sparse(c, class_weight=_weights(c)), _cross_entropy, **plain),
            Loss(f"sparse-smooth-{c}", sparse, _sparse(c, label_smoothing=0.1), _cross_entropy, **plain),
            Loss(
                f"sparse-all-options-{c}",
                sparse,
                _sparse(
                    c, class_weight=_weights(c), label_smoothing=0.2, where=np.arange(c) % 7 != 3, ignore_index=c - 1
                ),
                _cross_entropy,
                ulp=4,
                **plain,
            ),
            Loss(f"dense-{c}", dense, _dense(c), _cross_entropy, wrt=("logits", "labels"), **plain),
            Loss(
                f"dense-all-options-{c}",
                dense,
                _dense(c, class_weight=_weights(c), label_smoothing=0.2),
                _cross_entropy,
                wrt=("logits", "labels"),
                ulp=4,
                **plain,
            ),
        ]
    return losses


def _ctc(rng: np.random.Generator, n: int, dtype: np.dtype) -> dict[str, Any]:
    return {
        "labels": rng.integers(1, 5, (n, 3)),
        "logits": _logits(rng, n * 7, dtype, 5).reshape(n, 7, 5),
        "label_length": rng.integers(0, 4, n),
        "logit_length": np.full(n, 7),
        "logits_time_major": False,
    }


def _ctc_oracle(labels: Any, logits: Any, label_length: Any, logit_length: Any, **options: Any) -> tuple[Any, Any]:
    rows = zip(labels, logits, label_length, logit_length, strict=True)
    loss = [reference_sequence.ctc(y[:u], x[:t])[0] for y, x, u, t in rows]
    return np.array(loss, np.longdouble), np.ones(len(loss), np.longdouble)


def _sequence_losses() -> list[Loss]:
    return [Loss("ctc", fl.ctc_loss, _ctc, _ctc_oracle, shift_invariant=True)]


def _linear(labels: Any, inputs: Any, weights: Any, biases: Any, **options: Any) -> tuple[Any, Any]:
    logits = reference.wide(inputs) @ reference.wide(weights).T + reference.wide(biases)
    return _cross_entropy(labels=labels, logits=logits, **options)


def _layer(c: int, **options: Any) -> Callable[..., dict[str, Any]]:
    def make(rng: np.random.Generator, n: int, dtype: np.dtype) -> dict[str, Any]:
        # few bits, so that the logits are exact and errors are the loss's own
        draw = lambda *shape: (np.round(4 * rng.standard_normal(shape)) / 4).astype(dtype)  # noqa: E731
        return {
            "labels": rng.integers(0, c, n),
            "inputs": draw(n, 7),
            "weights": draw(7, c).T,
            "biases": draw(c),
            **options,
        }

    return make


def _linear_losses() -> list[Loss]:
    f, main = fl.linear_cross_entropy, {"main": "inputs", "wrt": ("inputs",)}
    weighted = {"class_weight": _weights(53), "label_smoothing": 0.2, "ignore_index": 52}
    return [
        Loss("linear", f, _layer(151), _linear, **main),
        Loss("linear-all-options", f, _layer(53, **weighted), _linear, ulp=4, **main),
    ]


LOSSES = _softmax_losses() + _sequence_losses() + _linear_losses()
