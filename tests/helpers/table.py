"""The table of all losses: what test_all_losses.py runs its properties over.

A new loss is one entry: how to make arguments for n rows, and its oracle.
"""

from __future__ import annotations

import functools
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
    apart: bool = True  # a row's bits do not depend on which others there are

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


def _dense(c: int, **options: Any) -> Callable[..., dict[str, Any]]:
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
            Loss(f"sparse-z-{c}", sparse, _sparse(c, z_loss=0.05, class_weight=_weights(c)), _cross_entropy),
            # in float64 the capped logits' own rounding is what is left
            Loss(
                f"sparse-capped-{c}",
                sparse,
                _sparse(c, softcap=4.0, temperature=0.75, z_loss=0.02, ignore_index=c - 1),
                _cross_entropy,
                ulp=4,
            ),
            Loss(f"sparse-hot-{c}", sparse, _sparse(c, temperature=4.0, label_smoothing=0.1), _cross_entropy, **plain),
            Loss(f"dense-z-{c}", dense, _dense(c, z_loss=0.05), _cross_entropy, wrt=("logits", "labels")),
            Loss(
                f"dense-capped-{c}",
                dense,
                _dense(c, softcap=4.0, temperature=0.75, z_loss=0.02, class_weight=_weights(c), label_smoothing=0.2),
                _cross_entropy,
                wrt=("logits", "labels"),
                ulp=4,
            ),
        ]
    return losses


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loss whose default is the mean, with one loss an element by default: what the properties expect."""

    @functools.wraps(function)
    def loss(*args: Any, reduction: str = "none", **kwargs: Any) -> Any:
        return function(*args, reduction=reduction, **kwargs)

    return loss


def _elements(main: str, labels: str = "real", **options: Any) -> Callable[..., dict[str, Any]]:
    """Predictions [n, 4], and labels of a kind that goes with them."""

    def make(rng: np.random.Generator, n: int, dtype: np.dtype) -> dict[str, Any]:
        x = (3 * rng.standard_normal((n, 4))).astype(dtype)
        wide = x.astype(np.float64)
        y = {
            "real": lambda: 3 * rng.standard_normal((n, 4)),
            "soft": lambda: rng.random((n, 4)),
            "binary": lambda: (rng.random((n, 4)) < 0.4).astype(float),
            "counts": lambda: rng.choice([0.75, 1.25, 1.5, 2.0], (n, 4)),
            # so that no term cancels another
            "large": lambda: np.minimum(np.exp(np.abs(wide) + 1 + rng.random((n, 4))), 3e4),
        }[labels]()
        more = {k: v(rng, n, dtype) if callable(v) else v for k, v in options.items()}
        return {"labels": y.astype(dtype), main: x, **more}

    return make


def _elementwise_losses() -> list[Loss]:
    def oracle(f: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
        return lambda **arguments: ((loss := f(**arguments)), np.ones(loss.shape))

    def row_weights(rng: np.random.Generator, n: int, dtype: np.dtype) -> Any:
        return rng.uniform(0.25, 4, (n, 1)).astype(dtype)

    both = {"elementwise": True}
    weighted = {"pos_weight": row_weights}
    losses = []
    for name, f, twin, labels, options in [
        ("sigmoid", fl.sigmoid_cross_entropy_with_logits, reference.sigmoid_cross_entropy, "soft", {}),
        ("sigmoid-hard", fl.sigmoid_cross_entropy_with_logits, reference.sigmoid_cross_entropy, "binary", {}),
        ("weighted", fl.weighted_cross_entropy_with_logits, reference.sigmoid_cross_entropy, "soft", weighted),
        ("focal", fl.sigmoid_focal_loss, reference.sigmoid_focal, "binary", {}),
        ("focal-alpha", fl.sigmoid_focal_loss, reference.sigmoid_focal, "soft", {"alpha": 0.25, "gamma": 0.5}),
    ]:
        wrt = ("logits", "labels", "pos_weight") if options.get("pos_weight") else ("logits", "labels")
        losses.append(Loss(name, f, _elements("logits", labels, **options), oracle(twin), wrt=wrt, **both))
    for name, f, twin, labels, options in [
        ("squared", fl.mean_squared_error, reference.squared_error, "real", {}),
        ("absolute", fl.mean_absolute_error, reference.absolute_error, "real", {}),
        ("huber", fl.huber_loss, reference.huber, "real", {"delta": 1.75}),
        ("log-cosh", fl.log_cosh_loss, reference.log_cosh, "real", {}),
        ("quantile", fl.quantile_loss, reference.quantile, "real", {"quantile": 0.8}),
        ("poisson", fl.poisson_loss, reference.poisson, "counts", {}),
        ("poisson-full", fl.poisson_loss, reference.poisson, "counts", {"compute_full_loss": True}),
        ("gamma", fl.gamma_loss, reference.gamma, "counts", {}),
        ("tweedie", fl.tweedie_loss, reference.tweedie, "counts", {"power": 1.5}),
        ("hinge", fl.hinge_loss, reference.hinge, "binary", {}),
        ("squared-hinge", fl.squared_hinge_loss, reference.squared_hinge, "binary", {}),
        ("divergence", fl.kl_divergence, reference.divergence, "large", {}),
    ]:
        losses.append(
            Loss(
                name,
                _each(f),
                _elements("predictions", labels, **options),
                oracle(twin),
                main="predictions",
                wrt=("predictions", "labels"),
                ulp=8 if name == "divergence" else 2,  # log y - x cancels
                **both,
            )
        )
    return losses


def _softmax_laws() -> list[Loss]:
    focal, poly1, soft = fl.softmax_focal_loss, fl.poly1_cross_entropy, {"wrt": ("logits", "labels")}
    options = {"gamma": 1.5, "class_weight": _weights(10)}
    smooth = {"label_smoothing": 0.1, "where": np.arange(100) % 7 != 3, "class_weight": _weights(100)}
    plain = {"shift_invariant": True}
    return [
        Loss("softmax-focal", focal, _sparse(10), reference.softmax_focal, **plain),
        Loss("softmax-focal-100", focal, _sparse(100, gamma=0.5), reference.softmax_focal, **plain),
        Loss("softmax-focal-options", focal, _sparse(10, ignore_index=9, **options), reference.softmax_focal, ulp=4),
        Loss("softmax-focal-soft", focal, _dense(10, **options), reference.softmax_focal, ulp=4, **soft),
        Loss("softmax-focal-smooth", focal, _sparse(100, gamma=0.5, **smooth), reference.softmax_focal, **plain),
        Loss("poly1", poly1, _sparse(10), reference.poly1, **plain),
        Loss("poly1-100", poly1, _sparse(100, epsilon=2.5, ignore_index=9), reference.poly1, **plain),
        Loss("poly1-soft", poly1, _dense(100, class_weight=_weights(100)), reference.poly1, **soft),
        Loss("poly1-smooth", poly1, _sparse(10, epsilon=-0.5, label_smoothing=0.1), reference.poly1, **plain),
    ]


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


def _sample(c: int, k: int, **options: Any) -> Callable[..., dict[str, Any]]:
    """k candidates of c classes, the same at every call."""

    def make(rng: np.random.Generator, n: int, dtype: np.dtype) -> dict[str, Any]:
        layer = _layer(c)(rng, n, dtype)
        layer["labels"] = layer["labels"][:, None]
        return layer | {"num_sampled": k, "num_classes": c, "seed": 5, **options}

    return make


def _sampled(softmax: bool) -> Callable[..., tuple[Any, Any]]:
    def oracle(
        labels: Any, inputs: Any, weights: Any, biases: Any, num_sampled: int, num_classes: int, seed: int,
        subtract_log_q: bool = True,
    ) -> tuple[Any, Any]:  # fmt: skip
        drawn = fl.LogUniformSampler(num_classes, seed=seed).candidates(labels, num_sampled, True)
        ids = drawn.sampled_candidates
        z = reference.wide(inputs) @ reference.wide(weights).T + reference.wide(biases)
        true, others = np.take_along_axis(z, labels, 1), z[:, ids]
        if subtract_log_q:
            true = true - np.log(reference.wide(drawn.true_expected_count))
            others = others - np.log(reference.wide(drawn.sampled_expected_count))
        if softmax:
            others = np.where(labels == ids, -np.inf, others) - true
            loss = np.log1p(np.exp(others).sum(1))
        else:
            loss = np.log1p(np.exp(-true)).sum(1) + np.log1p(np.exp(others)).sum(1)
        return loss, np.ones(len(loss), np.longdouble)

    return oracle


def _pairs(rng: np.random.Generator, n: int, dtype: np.dtype) -> dict[str, Any]:
    draw = lambda: (np.round(4 * rng.standard_normal((n, 64))) / 16).astype(dtype)  # noqa: E731
    return {"queries": draw(), "keys": draw(), "item_ids": np.arange(n) // 2, "temperature": 0.5}


def _in_batch(queries: Any, keys: Any, item_ids: Any, temperature: float) -> tuple[Any, Any]:
    z = reference.wide(queries) @ reference.wide(keys).T / temperature
    own = np.diagonal(z)[:, None]
    others = np.where(item_ids[:, None] == item_ids, -np.inf, z - own)
    return np.log1p(np.exp(others).sum(1)), np.ones(len(z), np.longdouble)


def _sampled_losses() -> list[Loss]:
    linear = {"main": "inputs", "wrt": ("inputs",)}
    pairs = {"main": "queries", "wrt": ("queries", "keys"), "apart": False}
    plain = {"subtract_log_q": False}
    return [
        # the logarithms of expected counts are rounded into the logits
        Loss("sampled-softmax", fl.sampled_softmax_loss, _sample(151, 40), _sampled(True), ulp=6, **linear),
        Loss("sampled-softmax-raw", fl.sampled_softmax_loss, _sample(151, 40, **plain), _sampled(True), **linear),
        Loss("nce", fl.nce_loss, _sample(151, 40), _sampled(False), **linear),
        Loss("nce-raw", fl.nce_loss, _sample(151, 40, **plain), _sampled(False), **linear),
        Loss("in-batch", fl.in_batch_softmax_loss, _pairs, _in_batch, **pairs),
    ]


LOSSES = (
    _softmax_losses()
    + _sequence_losses()
    + _linear_losses()
    + _sampled_losses()
    + _softmax_laws()
    + _elementwise_losses()
)
