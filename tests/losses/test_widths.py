"""Matrix products of every width against composed ones in more digits, in memory that holds nothing but NaN before."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import fastloss as fl
from fastloss._core import memory as _memory

WIDTHS = range(1, 301)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Scratch and results hold NaN until they are written."""

    def poison(a):
        a.fill(np.nan if a.dtype.kind == "f" else 0xA5 if a.dtype == np.uint8 else 0)
        return a

    for module, name in [(np, "empty"), (np, "empty_like"), (_memory, "empty_like")]:
        made = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, made=made, **more: poison(made(*args, **more)))
    pieces = _memory.pieces
    monkeypatch.setattr(_memory, "pieces", lambda *args: [poison(a) for a in pieces(*args)])


def wide(a):
    return np.asarray(a, np.float64)


def draw(rng, dtype, *shape):
    """Few bits, so that products are exact, and float64 is enough for them."""
    return (np.round(4 * rng.standard_normal(shape)) / 16).astype(dtype)


def softmax(true, others):
    z = np.concatenate([true, others], 1).astype(np.longdouble)
    top = z.max(1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(1, keepdims=True))
    p = np.exp(z - lse)
    count = true.shape[1]
    return lse[:, 0] - true.mean(1), wide(p[:, :count] - 1 / np.longdouble(count)), wide(p[:, count:])


def noise_contrastive(true, others):
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    softplus = lambda z: np.logaddexp(0, z).sum(1)  # noqa: E731
    true, others = true.astype(np.longdouble), others.astype(np.longdouble)
    slopes = sigmoid(true) - 1 / np.longdouble(true.shape[1])
    return softplus(true) - true.mean(1) + softplus(others), wide(slopes), wide(sigmoid(others))


def near(name, got, want, size, dtype):
    """Within some units of the sum of magnitudes, `size`."""
    limit = 64 * np.finfo(dtype).eps * (size + np.abs(want).max(initial=0) / 64)
    assert np.all(np.abs(got - want) <= limit), (name, got.shape, dtype, np.abs(got - want).max())


def check(name, call, dtype, want):
    """The value and gradients, each (exact, sum of magnitudes); equal calls give equal bits."""
    value, grads = call()
    again, more = call()
    for part, a, b, (exact, size) in zip("vxwb", [value, *grads], [again, *more], want, strict=False):
        near(f"{name} {part}", a, exact, size, dtype)
        assert a.tobytes() == b.tobytes(), (name, part)


def sampled_case(rng, dtype, n, k, d, num_true):
    classes = k + 5
    x, w, b = draw(rng, dtype, n, d), draw(rng, dtype, classes, d), draw(rng, dtype, classes)
    labels = rng.integers(0, classes, (n, num_true))
    ids = rng.choice(classes, k, replace=False)
    sample = ids, np.ones(labels.shape), np.ones(k)
    return x, w, b, labels, ids, sample


def sampled_results(loss, *args):
    value, (dx, dw, db) = fl.value_and_grad(loss, ("inputs", "weights", "biases"))(*args)
    return value, (dx, dw.to_dense(), db.to_dense())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", [fl.sampled_softmax_loss, fl.nce_loss])
def test_sampled(loss, dtype):
    rng = np.random.default_rng(5)
    law = softmax if loss is fl.sampled_softmax_loss else noise_contrastive
    for d in WIDTHS:
        n, k, num_true = 1 + 5 * d % 60, 1 + 37 * d % 150, 1 + d % 2
        x, w, b, labels, ids, sample = sampled_case(rng, dtype, n, k, d, num_true)
        hits = loss is fl.sampled_softmax_loss
        z = wide(x) @ wide(w).T + wide(b)
        others = np.where(hits & (labels[:, :, None] == ids).any(1), -np.inf, z[:, ids])
        value, to_true, to_others = law(np.take_along_axis(z, labels, 1), others)
        slopes = np.zeros_like(z)
        sizes = np.zeros_like(z)
        for i in range(n):
            np.add.at(slopes[i], labels[i], to_true[i])
            np.add.at(sizes[i], labels[i], np.abs(to_true[i]))
        slopes[:, ids] += to_others
        sizes[:, ids] += to_others
        want = [
            (value, np.abs(value)),
            (slopes @ wide(w), sizes @ np.abs(wide(w))),
            (slopes.T @ wide(x), sizes.T @ np.abs(wide(x))),
            (slopes.sum(0), sizes.sum(0)),
        ]
        call = functools.partial(sampled_results, loss, w, b, labels, x, k, len(w), num_true, sample)
        check(f"{loss.__name__} {d}", call, dtype, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_batch(dtype):
    rng = np.random.default_rng(6)
    for d in WIDTHS:
        n = 1 + 37 * d % 70
        q, k = draw(rng, dtype, n, d), draw(rng, dtype, n, d)
        z = wide(q) @ wide(k).T
        value, own, slopes = softmax(np.diagonal(z)[:, None], np.where(np.eye(n, dtype=bool), -np.inf, z))
        slopes = slopes + np.diag(own[:, 0])
        want = [
            (value, np.abs(value)),
            (slopes @ wide(k), np.abs(slopes) @ np.abs(wide(k))),
            (slopes.T @ wide(q), np.abs(slopes).T @ np.abs(wide(q))),
        ]
        call = lambda q=q, k=k: fl.value_and_grad(fl.in_batch_softmax_loss, ("queries", "keys"))(q, k)  # noqa: E731
        check(f"in batch {d}", call, dtype, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear(dtype):
    rng = np.random.default_rng(7)
    for d in WIDTHS:
        n, c = 1 + 5 * d % 70, 2 + 37 * d % 150
        x, w, b = draw(rng, dtype, n, d), draw(rng, dtype, c, d), draw(rng, dtype, c)
        labels = rng.integers(0, c, n)
        z = wide(x) @ wide(w).T + wide(b)
        marked = np.arange(c) == labels[:, None]
        value, own, slopes = softmax(z[marked][:, None], np.where(marked, -np.inf, z))
        slopes = np.where(marked, own, slopes)
        want = [
            (value, np.abs(value)),
            (slopes @ wide(w), np.abs(slopes) @ np.abs(wide(w))),
            (slopes.T @ wide(x), np.abs(slopes).T @ np.abs(wide(x))),
            (slopes.sum(0), np.abs(slopes).sum(0)),
        ]
        for memory in (None, 1 << 16) if d % 10 == 0 else (None,):
            call = lambda x=x, w=w, b=b, y=labels, m=memory: fl.value_and_grad(  # noqa: E731
                fl.linear_cross_entropy, ("inputs", "weights", "biases")
            )(inputs=x, weights=w, biases=b, labels=y, max_memory=m)
            check(f"linear {d}", call, dtype, want)
