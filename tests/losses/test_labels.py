"""Integer labels of every dtype mean the same, with and without an index to be ignored, at the ends of their ranges."""

from __future__ import annotations

import numpy as np
import pytest

import fastloss as fl

SIGNED = [np.int8, np.int16, np.int32, np.int64]
UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]
DTYPE = pytest.mark.parametrize("dtype", SIGNED + UNSIGNED, ids=lambda d: d.__name__)
N, C, D = 33, 100, 7
RNG = np.random.default_rng(3)
Y = RNG.integers(0, C, N)
X, W, B, Z = (RNG.standard_normal(shape) for shape in [(N, D), (C, D), C, (N, C)])
TABLES = {"weights": W, "biases": B, "inputs": X, "num_sampled": 9, "num_classes": C, "seed": 1}
LOSSES = {
    "sparse": (fl.sparse_softmax_cross_entropy_with_logits, {"logits": Z}),
    "sparse in a tile": (fl.sparse_softmax_cross_entropy_with_logits, {"logits": Z[:, :50]}),
    "weighted": (fl.sparse_softmax_cross_entropy_with_logits, {"logits": Z, "class_weight": np.linspace(0, 2, C)}),
    "focal": (fl.softmax_focal_loss, {"logits": Z}),
    "poly1": (fl.poly1_cross_entropy, {"logits": Z}),
    "capped": (fl.sparse_softmax_cross_entropy_with_logits, {"logits": Z, "softcap": 2.0}),
    "linear": (fl.linear_cross_entropy, {"inputs": X, "weights": W, "biases": B}),
    "linear weighted": (
        fl.linear_cross_entropy,
        {"inputs": X, "weights": W, "class_weight": np.linspace(0, 2, C), "label_smoothing": 0.1},
    ),
}


def bits(result):
    value, grads = result
    grads = grads if isinstance(grads, tuple) else (grads,)
    return [np.asarray(a).tobytes() for a in (value, *grads)]


def run(loss, kwargs, **more):
    wrt = ("inputs", "weights") if "inputs" in kwargs else "logits"
    return bits(fl.value_and_grad(loss, wrt)(**kwargs, **more))


@DTYPE
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_labels_of_any_dtype(name, dtype, reduction):
    loss, kwargs = LOSSES[name]
    labels = Y % 50
    want = run(loss, kwargs, labels=labels, reduction=reduction)
    assert run(loss, kwargs, labels=labels.astype(dtype), reduction=reduction) == want
    skipped = np.arange(N) % 4 == 1
    want = run(loss, kwargs, labels=np.where(skipped, -100, labels), ignore_index=-100, reduction=reduction)
    info = np.iinfo(dtype)
    for ignore in {info.min, info.max, 101, 3 if (labels[~skipped] != 3).all() else 102}:
        if C <= ignore <= 2**63 - 1 or ignore < 0:
            given = labels.astype(dtype)
            given[skipped] = ignore
            assert run(loss, kwargs, labels=given, ignore_index=int(ignore), reduction=reduction) == want
    for ignore in (-1, -100, 255, 2**31):  # none of the labels
        got = run(loss, kwargs, labels=labels.astype(dtype), ignore_index=ignore, reduction=reduction)
        assert got == run(loss, kwargs, labels=labels, ignore_index=ignore, reduction=reduction)


@DTYPE
@pytest.mark.parametrize("name", LOSSES)
def test_labels_that_are_no_class(name, dtype):
    loss, kwargs = LOSSES[name]
    for ignore in (None, -1, 200):
        for bad in {np.iinfo(dtype).max, C, np.iinfo(dtype).min} - {0, ignore}:
            y = (Y % 50).astype(dtype)
            y[5] = bad
            with pytest.raises(ValueError, match=f"labels must lie in .*got {bad} at row 5"):
                loss(labels=y, ignore_index=ignore, **kwargs)


@DTYPE
def test_ids_of_any_dtype(dtype):
    y = Y[:, None]
    some = fl.LogUniformSampler(C, seed=0).candidates(y, 9, True)
    for loss in (fl.sampled_softmax_loss, fl.nce_loss):
        want = loss(labels=y, **TABLES)
        assert np.array_equal(loss(labels=y.astype(dtype), **TABLES), want)
        given = (some[0].astype(dtype), *some[1:])
        more = TABLES | {"seed": None, "remove_accidental_hits": True}
        want = loss(labels=y, sampled_values=some, **more)
        assert np.array_equal(loss(labels=y.astype(dtype), sampled_values=given, **more), want)
    far = np.iinfo(dtype).max - (Y % 20).astype(dtype)  # only which are equal counts
    want = fl.in_batch_softmax_loss(X, X, Y % 20)
    assert np.array_equal(fl.in_batch_softmax_loss(X, X, far), want)


@DTYPE
def test_parts_of_a_vocabulary(dtype):
    for first in (0, 60, 200):  # beyond what 8 bits hold, and no label there
        want = fl.linear_partials(inputs=X, weights=W[:40], labels=Y, first_class=first)
        got = fl.linear_partials(inputs=X, weights=W[:40], labels=Y.astype(dtype), first_class=first)
        assert got.tobytes() == want.tobytes()
    best = np.argsort(-Z)[:, :3]
    p = np.full((N, 3), 0.25)
    for tail in ("drop", "renormalize", "other"):
        want = fl.linear_cross_entropy(inputs=X, weights=W, labels=(best, p), tail=tail)
        got = fl.linear_cross_entropy(inputs=X, weights=W, labels=(best.astype(dtype), p), tail=tail)
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_edit_distance_of_large_numbers(dtype):
    top = np.array([np.iinfo(dtype).max], dtype)
    rows = top - np.arange(6, dtype=dtype).reshape(2, 3)
    assert fl.edit_distance(rows, rows, normalize=False).tolist() == [0, 0]
    assert fl.edit_distance(rows, rows[::-1].copy(), normalize=False).tolist() == [3, 3]
