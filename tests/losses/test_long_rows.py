"""Few long rows: several threads work on each, and nobody can tell from the results how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastloss as fl

SPARSE = fl.sparse_softmax_cross_entropy_with_logits
DENSE = fl.softmax_cross_entropy_with_logits
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
Call = Callable[[int], Any]


def the_same_for_any_number_of_threads(calls: dict[str, Call]) -> None:
    for name, call in calls.items():
        want = call(1)
        for n_threads in (2, 3, 7):
            for one, other in zip(want, call(n_threads), strict=True):
                assert np.array_equal(bits(one), bits(other)), (name, n_threads)


def bits(a: Any) -> np.ndarray:
    a = np.ascontiguousarray(a)
    return np.where(np.isnan(a), 0, a).astype(a.dtype).view(f"u{a.itemsize}")  # a NaN's sign and payload mean nothing


def awkward_rows(n: int, c: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and targets; every row is a case of its own, as far as there are rows."""
    rng = np.random.default_rng(c)
    x, y = rng.normal(0, 3, (n, c)), rng.integers(0, c, n)
    t = rng.random((n, c))
    t *= rng.random((n, c)) < 0.5
    t /= t.sum(axis=1, keepdims=True)
    x[0, ::3] = -np.inf
    for i, change in enumerate(
        [
            lambda row: row.__setitem__(slice(0, 50), -80),  # its maximum stands far above what comes first
            lambda row: row.__setitem__(c // 2, np.nan),
            lambda row: row.__setitem__(slice(None), -np.inf),
            lambda row: row.__setitem__(slice(0, c - 9), -np.inf),
            lambda row: row.__setitem__(c - 1, np.inf),
            lambda row: np.add(row, 500, out=row),  # needs a shift
        ],
        1,
    ):
        if i < n:
            change(x[i])
    return x.astype(dtype), y, t.astype(dtype)


def layouts(x: np.ndarray) -> Iterator[np.ndarray]:
    yield x
    yield np.asfortranarray(x)
    yield np.repeat(x, 2, axis=1)[:, ::2]
    shifted = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[...] = x
    yield shifted


def in_place(loss: Any, labels: Any, x: np.ndarray, n_threads: int) -> tuple[Any, ...]:
    grad = x.copy(order="K")
    value, _ = fl.value_and_grad(loss)(labels=labels, logits=grad, grad_out=grad, n_threads=n_threads)
    return value, grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "c"), [(1, 100_003), (7, 65_537)])
def test_bits(n, c, dtype):
    x, y, t = awkward_rows(n, c, dtype)
    calls: dict[str, Call] = {}
    for k, rows in enumerate(layouts(x)):
        targets = t if k != 2 else np.repeat(t, 2, axis=1)[:, ::2]
        calls |= {
            f"sparse {k}": lambda j, x=rows: fl.value_and_grad(SPARSE)(labels=y, logits=x, n_threads=j),
            f"dense {k}": lambda j, x=rows, t=targets: fl.value_and_grad(DENSE)(labels=t, logits=x, n_threads=j),
            f"dense loss {k}": lambda j, x=rows: [DENSE(labels=t, logits=x, n_threads=j)],
            f"softmax {k}": lambda j, x=rows: [fl.softmax(x, n_threads=j)],
            f"log_softmax {k}": lambda j, x=rows: [fl.log_softmax(x, n_threads=j)],
            f"logsumexp {k}": lambda j, x=rows: [fl.logsumexp(x, n_threads=j)],
            f"sparse in place {k}": lambda j, x=rows: in_place(SPARSE, y, x, j),
            f"dense in place {k}": lambda j, x=rows: in_place(DENSE, t, x, j),
        }
    the_same_for_any_number_of_threads(calls)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_with_options(dtype):
    n, c = 5, 70_001
    x, y, t = awkward_rows(n, c, dtype)
    where = np.arange(c) % 7 != 0
    weight, classes = np.array([1, 0, -2, 0.5, 1e-30]), np.linspace(0.5, 2, c)
    both = fl.value_and_grad(DENSE, wrt=("logits", "labels"))
    options: list[dict[str, Any]] = [
        {"ignore_index": int(y[1])},
        {"sample_weight": weight},
        {"where": where},
        {"class_weight": classes, "label_smoothing": 0.1, "where": where},
        {"z_loss": 1e-3},
    ]
    calls: dict[str, Call] = {}
    for k, more in enumerate(options):
        calls[f"sparse {k}"] = lambda j, m=more: fl.value_and_grad(SPARSE)(labels=y, logits=x, n_threads=j, **m)
        if "ignore_index" not in more:

            def dense(j: int, m: dict[str, Any] = more) -> list[Any]:
                value, grads = both(labels=t, logits=x, n_threads=j, **m)
                return [value, *grads]

            calls[f"dense {k}"] = dense
    for law in (fl.softmax_focal_loss, fl.poly1_cross_entropy):
        calls[law.__name__] = lambda j, law=law: fl.value_and_grad(law)(labels=y, logits=x, n_threads=j)
    for hessian in ("diagonal", "upper", "residual"):
        calls[hessian] = lambda j, h=hessian: fl.value_grad_hess(SPARSE, hessian=h)(labels=y, logits=x, n_threads=j)
    calls["masked softmax"] = lambda j: [fl.softmax(x, where=where, n_threads=j)]
    calls["masked log_softmax"] = lambda j: [fl.log_softmax(x, where=where, n_threads=j)]
    the_same_for_any_number_of_threads(calls)


@pytest.mark.parametrize("c", [1_000_000, 3_000_017])
def test_bits_of_millions(c):
    x, y, t = awkward_rows(1, c, np.float32)
    the_same_for_any_number_of_threads(
        {
            "sparse": lambda j: fl.value_and_grad(SPARSE)(labels=y, logits=x, n_threads=j),
            "dense": lambda j: fl.value_and_grad(DENSE)(labels=t, logits=x, n_threads=j),
            "softmax": lambda j: [fl.softmax(x, n_threads=j)],
            "log_softmax": lambda j: [fl.log_softmax(x, n_threads=j)],
            "logsumexp": lambda j: [fl.logsumexp(x, n_threads=j)],
        }
    )


def test_a_bad_label_is_found_before_anything_is_written():
    x = np.ones((1, 100_000), np.float32)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 100000\), got 100000 at row 0"):
        fl.value_and_grad(SPARSE)(labels=[100_000], logits=x, grad_out=x, n_threads=2)
    assert (x == 1).all()
