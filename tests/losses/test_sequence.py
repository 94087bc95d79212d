"""Sequence losses: the table of denominators, positions that do not count, lists over time, packed tokens."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import same_bits

import fastloss as fl

# average over time, over batch, sum over time, over batch: the axes summed over, and the denominator
TABLE = {
    (True, True, False, False): ((0, 1), "weights"),
    (True, False, False, False): ((1,), "weights"),
    (False, True, False, False): ((0,), "weights"),
    (False, False, True, True): ((0, 1), "count"),
    (False, False, True, False): ((1,), "count"),
    (False, False, False, True): ((0,), "count"),
    (False, False, False, False): ((), "one"),
}
FLAGS = list(TABLE)


def oracle(logits, targets, weights, flags):
    """Value, gradient to the logits for cotangents of one, and losses, in long double."""
    axes, what = TABLE[flags]
    w = reference.wide(weights)
    loss, slope, _ = reference.cross_entropy(targets, logits)
    weighted = np.where(w != 0, w * np.where(w != 0, loss, 0), 0)
    den = {"weights": w, "count": w != 0, "one": np.ones(w.shape)}[what]
    den = den.sum(axes, keepdims=True) if axes else den
    with np.errstate(all="ignore"):
        value = np.where(den != 0, (weighted.sum(axes, keepdims=True) if axes else weighted) / den, 0)
        scale = np.where((den != 0) & (w != 0), w / den, 0)
        dw = (loss - value if what == "weights" else loss) / den
    dw = np.where((den != 0) & (w != 0), dw, 0)
    return value.squeeze(axes) if axes else value, scale[..., None] * slope, dw


def case(seed=0, shape=(4, 6, 5), soft=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal(shape)).astype(dtype)
    targets = (
        rng.dirichlet(np.ones(shape[2]), shape[:2]).astype(dtype) if soft else rng.integers(0, shape[2], shape[:2])
    )
    weights = rng.uniform(0.2, 2, shape[:2]) * (rng.random(shape[:2]) > 0.3)
    return logits, targets, weights


def both(*args, **kwargs):
    return fl.value_and_grad(fl.sequence_loss, ("logits", "weights"))(*args, **kwargs)


# ------------------------------------------------------------------ the table


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("classes", [5, 70])
def test_table_of_denominators(flags, soft, classes):
    logits, targets, weights = case(1, (4, 6, classes), soft)
    want, want_grad, want_dw = oracle(logits, targets, weights, flags)
    value, (grad, dw) = both(logits, targets, weights, *flags)
    assert value.shape == want.shape
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, want.astype(float), rtol=1e-14)
    np.testing.assert_allclose(grad, want_grad.astype(float), rtol=1e-13, atol=1e-17)
    np.testing.assert_allclose(dw, want_dw.astype(float), rtol=1e-12, atol=1e-15)
    assert same_bits(fl.sequence_loss(logits, targets, weights, *flags), value)


@pytest.mark.parametrize("flags", [f for f in itertools.product([False, True], repeat=4) if f not in TABLE])
def test_mixed_flags_are_refused(flags):
    with pytest.raises(ValueError, match="must not go with"):
        fl.sequence_loss(*case(), *flags)


@pytest.mark.parametrize("flags", FLAGS)
def test_gradients_agree_with_differences(flags):
    logits, targets, weights = case(2, (3, 4, 3))
    shape = fl.sequence_loss(logits, targets, weights, *flags).shape
    cotangent = np.random.default_rng(0).standard_normal(shape)
    _, (grad, dw) = both(logits, targets, weights, *flags, cotangent=cotangent)
    want = reference.central_difference(
        lambda x: (fl.sequence_loss(x, targets, weights, *flags) * cotangent).sum(), logits
    )
    np.testing.assert_allclose(grad, want, rtol=1e-8, atol=1e-10)
    live = np.where(weights == 0, 0.5, weights)
    _, (_, dw) = both(logits, targets, live, *flags, cotangent=cotangent)
    want = reference.central_difference(
        lambda w: (fl.sequence_loss(logits, targets, w, *flags) * cotangent).sum(), live
    )
    np.testing.assert_allclose(dw, want, rtol=1e-8, atol=1e-10)


@given(st.integers(0, 2**32), st.sampled_from(FLAGS), st.booleans(), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_any_shape_and_weights(seed, flags, soft, size, steps):
    logits, targets, weights = case(seed, (size, steps, 3), soft)
    weights *= np.sign(np.random.default_rng(seed).standard_normal(weights.shape))
    want, want_grad, _ = oracle(logits, targets, weights, flags)
    value, grad = fl.value_and_grad(fl.sequence_loss)(logits, targets, weights, *flags)
    scale = np.abs(want_grad).max() + 1
    np.testing.assert_allclose(value, want.astype(float), rtol=1e-11, atol=1e-12 * float(scale))
    np.testing.assert_allclose(grad, want_grad.astype(float), rtol=1e-11, atol=1e-13 * float(scale))


def test_the_default_is_the_weighted_mean():
    logits, targets, weights = case(3)
    ce = fl.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)
    np.testing.assert_allclose(fl.sequence_loss(logits, targets, weights), np.average(ce, weights=weights), rtol=1e-14)


# ------------------------------------------------------------------ positions that do not count


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("classes", [5, 40, 70])
def test_weight_zero_is_not_looked_at(flags, soft, classes):
    logits, targets, weights = case(4, (4, 6, classes), soft, np.float32)
    want = both(logits, targets, weights, *flags)
    hidden = weights == 0
    assert hidden.any()
    for poison in (np.nan, np.inf, -np.inf):
        logits[hidden] = poison
        targets[hidden] = poison if soft else 99 if poison > 0 else -(2**63)
        value, (grad, dw) = both(logits, targets, weights, *flags)
        assert same_bits(value, want[0])
        assert same_bits(grad, want[1][0])
        assert same_bits(dw, want[1][1])
        assert not grad[hidden].any()
        assert not dw[hidden].any()


@pytest.mark.parametrize("flags", FLAGS)
def test_nothing_counts(flags):
    logits, targets, weights = case(5)
    value, (grad, dw) = both(logits * np.nan, targets - 99, weights * 0, *flags)
    assert not value.any()
    assert not grad.any()
    assert not dw.any()


def test_weights_that_cancel_give_zero():
    logits, targets, _ = case(6, (1, 2, 3))
    value, (grad, dw) = both(logits, targets, np.array([[1.0, -1.0]]))
    assert value == 0
    assert not grad.any()
    assert not dw.any()


@pytest.mark.parametrize("flags", FLAGS)
def test_lengths(flags):
    logits, targets, weights = case(7)
    n = np.array([6, 0, 3, 1])
    mask = (np.arange(6) < n[:, None]).astype(float)
    targets[mask == 0] = -1
    logits[mask == 0] = np.nan
    f = fl.value_and_grad(fl.sequence_loss)
    for given_weights, same in [(None, mask), (weights, np.where(mask, weights, 0))]:
        value, grad = f(logits, targets, given_weights, *flags, lengths=n.astype(np.int8))
        want, want_grad = f(logits, targets, same, *flags)
        assert same_bits(value, want)
        assert same_bits(grad, want_grad)
    assert same_bits(
        fl.sequence_loss(logits[:1], targets[:1], lengths=6), fl.sequence_loss(logits[:1], targets[:1], mask[:1])
    )


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("soft", [False, True])
def test_dtypes(dtype, soft):
    logits, targets, weights = case(8, soft=soft, dtype=dtype)
    want, want_grad, _ = oracle(logits, targets, weights, FLAGS[0])
    value, (grad, dw) = both(logits, targets, weights.astype(dtype))
    value, grad = fl.value_and_grad(fl.sequence_loss)(logits, targets, weights)
    assert value.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert grad.dtype == dw.dtype == dtype
    assert reference.ulps(value, want) <= 4
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(
        reference.wide(grad),
        want_grad,
        rtol=2 * eps,
        atol=1e-7 if dtype == np.float16 else eps * np.abs(want_grad).max(),
    )


def test_integer_weights_and_targets_of_any_dtype():
    logits, targets, _ = case(9)
    weights = np.random.default_rng(0).integers(0, 3, (4, 6))
    want = fl.sequence_loss(logits, targets, weights.astype(float))
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        assert same_bits(fl.sequence_loss(logits, targets.astype(dtype), weights.astype(dtype)), want)
    assert same_bits(
        fl.sequence_loss(logits, targets, weights > 0), fl.sequence_loss(logits, targets, (weights > 0) * 1.0)
    )


@pytest.mark.parametrize("flags", FLAGS)
def test_bits_do_not_depend_on_threads_or_layout(flags):
    logits, targets, weights = case(10, (40, 50, 70), dtype=np.float32)
    want = both(logits, targets, weights, *flags, n_threads=1)
    spaced = np.repeat(logits, 2, axis=1)[:, ::2]
    for x in (logits, np.asfortranarray(logits), spaced):
        for n_threads in (1, 2, 5):
            value, (grad, dw) = both(x, np.asfortranarray(targets), weights[::-1][::-1], *flags, n_threads=n_threads)
            assert same_bits(value, want[0])
            assert same_bits(grad, want[1][0])
            assert same_bits(dw, want[1][1])


def test_buffers_and_in_place():
    logits, targets, weights = case(11)
    value, (grad, dw) = both(logits, targets, weights, True, False)
    out, w_grad = np.empty(4), np.empty_like(weights)
    f = fl.value_and_grad(fl.sequence_loss, ("logits", "weights"))
    got = f(logits, targets, weights, True, False, out=out, grad_out=(logits, w_grad))
    assert got[0] is out
    assert got[1][0] is logits
    assert same_bits(out, value)
    assert same_bits(logits, grad)
    assert same_bits(w_grad, dw)


def test_another_loss():
    logits, targets, weights = case(12)
    for function, plain in [(fl.sparse_softmax_cross_entropy_with_logits, True), (slow_loss, False)]:
        targets[weights == 0] = -5
        value = fl.sequence_loss(logits, targets, weights, softmax_loss_function=function)
        np.testing.assert_allclose(value, fl.sequence_loss(logits, targets, weights), rtol=1e-14)
        if plain:
            f = fl.value_and_grad(fl.sequence_loss)
            got = f(logits, targets, weights, softmax_loss_function=function)[1]
            np.testing.assert_allclose(got, f(logits, targets, weights)[1], rtol=1e-14, atol=1e-18)
        else:
            with pytest.raises(TypeError, match="softmax_loss_function must be a loss of fastloss"):
                fl.value_and_grad(fl.sequence_loss)(logits, targets, weights, softmax_loss_function=function)


def slow_loss(labels, logits):
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


BAD = [
    ({"targets": np.full((2, 3), 4)}, ValueError, r"targets must lie in \[0, 4\), got 4 at index \(0, 0\)"),
    ({"targets": [[0, 0, 0], [0, -1, 0]]}, ValueError, r"targets must lie in \[0, 4\), got -1 at index \(1, 1\)"),
    ({"targets": np.zeros((2, 3))}, TypeError, "targets must be integers, got float64"),
    ({"targets": np.zeros((2, 4), int)}, ValueError, r"targets must have shape \(2, 3\)"),
    ({"targets": np.zeros((2, 3, 5))}, ValueError, r"targets must have shape \(2, 3, 4\)"),
    ({"weights": None}, TypeError, "weights must be given, or lengths"),
    ({"weights": np.ones((2, 1))}, ValueError, r"weights must have shape \(2, 3\)"),
    ({"weights": np.ones((2, 3), complex)}, TypeError, "weights must hold real numbers"),
    ({"weights": np.ones((2, 3), int)}, TypeError, "weights must be float16, bfloat16, float32 or float64 to have a"),
    ({"weights": None, "lengths": 3}, TypeError, "weights must be given to have a gradient"),
    ({"lengths": [1, 4]}, ValueError, r"lengths must lie in \[0, 3\], the number of timesteps, got 4 at row 1"),
    ({"lengths": [-1, 3]}, ValueError, r"lengths must lie in \[0, 3\], the number of timesteps, got -1 at row 0"),
    ({"cotangent": np.ones(2)}, ValueError, r"cotangent must have shape \(\)"),
    ({"logits": np.zeros((6, 4))}, ValueError, "logits must have three axes"),
    ({"logits": np.zeros((2, 3, 4), int)}, TypeError, "logits must be float16"),
    ({"out": np.zeros(2)}, ValueError, r"out must have shape \(\)"),
    ({"n_threads": 0}, ValueError, "n_threads must be at least 1"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_arguments_are_named_and_nothing_written(change, error, words):
    kwargs = {"logits": np.zeros((2, 3, 4)), "targets": np.zeros((2, 3), int), "weights": np.ones((2, 3))} | change
    buffers = (np.full((2, 3, 4), 7.0), np.full((2, 3), 7.0))
    with pytest.raises(error, match=words):
        both(**kwargs, grad_out=buffers)
    assert all((b == 7).all() for b in buffers)


def test_empty():
    for shape in [(0, 3, 4), (2, 0, 4), (0, 0, 4)]:
        for flags in FLAGS:
            value, (grad, dw) = both(np.zeros(shape), np.zeros(shape[:2], int), np.ones(shape[:2]), *flags)
            assert not np.any(value)
            assert grad.shape == shape
            assert dw.shape == shape[:2]
    assert fl.sequence_loss(np.zeros((2, 3, 0)), np.zeros((2, 3), int), np.zeros((2, 3))) == 0


# ------------------------------------------------------------------ lists over time


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_by_example(average, soft):
    logits, targets, weights = case(13, soft=soft)
    weights[1] = 0
    logits[weights == 0] = np.nan
    lists = [list(np.moveaxis(a, 1, 0)) for a in (logits, targets, weights)]
    value, grad = fl.value_and_grad(fl.sequence_loss_by_example)(*lists, average, cotangent=np.arange(4.0))
    if average:
        want, want_grad = fl.value_and_grad(fl.sequence_loss)(
            logits, targets, weights, average_across_batch=False, cotangent=np.arange(4.0)
        )
    else:
        ce, want_grad = fl.value_and_grad(fl.sequence_loss)(
            logits, targets, weights, False, False, cotangent=np.repeat(np.arange(4.0)[:, None], 6, 1)
        )
        want = ce.sum(1)
    np.testing.assert_allclose(value, want, rtol=1e-14)
    assert value[1] == 0
    assert isinstance(grad, list)
    np.testing.assert_allclose(np.stack(grad, 1), want_grad, rtol=1e-14, atol=1e-18)
    assert same_bits(fl.sequence_loss_by_example(*lists, average), value)
    buffers = [np.empty_like(x) for x in lists[0]]
    got = fl.value_and_grad(fl.sequence_loss_by_example)(*lists, average, cotangent=np.arange(4.0), grad_out=buffers)[1]
    assert all(g is b for g, b in zip(got, buffers, strict=True))
    assert all(same_bits(g, b) for g, b in zip(got, grad, strict=True))


def test_by_example_refuses():
    x, y, w = [np.zeros((2, 3))] * 2, [np.zeros(2, int)] * 2, [np.ones(2)] * 2
    bad = np.array([0, 3])
    for args, error, words in [
        ((x, y, w[:1]), ValueError, "lists of the same length, not empty, got 2, 2 and 1"),
        (([], [], []), ValueError, "lists of the same length, not empty"),
        (([x[0], np.zeros((2, 4))], y, w), ValueError, r"logits\[1\] must have shape \(2, 3\)"),
        (
            ([x[0], x[0].astype(np.float32)], y, w),
            TypeError,
            r"logits\[1\] must be float64, as logits\[0\], got float32",
        ),
        ((x, [y[0], bad], w), ValueError, r"targets\[1\] must lie in \[0, 3\), got 3 at row 1"),
        ((x, y, [w[0], np.ones(3)]), ValueError, r"weights\[1\] must have shape \(2,\)"),
        (([np.zeros(3)] * 2, y, w), ValueError, r"logits\[0\] must have two axes"),
    ]:
        buffers = [np.full((2, 3), 7.0), np.full((2, 3), 7.0)]
        with pytest.raises(error, match=words):
            fl.value_and_grad(fl.sequence_loss_by_example)(*args, grad_out=buffers)
        assert all((b == 7).all() for b in buffers)


# ------------------------------------------------------------------ packed tokens


def packed_case(seed=14, classes=6, soft=False, dtype=np.float64):
    rng = np.random.default_rng(seed)
    offsets = np.array([2, 5, 5, 12, 13])
    logits = (2 * rng.standard_normal((16, classes))).astype(dtype)
    targets = rng.dirichlet(np.ones(classes), 16) if soft else rng.integers(0, classes, 16)
    return logits, targets, offsets, rng.uniform(0.2, 2, 16) * (rng.random(16) > 0.2)


@pytest.mark.parametrize("reduction", ["sum", "mean", "perplexity"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_packed(reduction, weighted, soft):
    logits, targets, offsets, weights = packed_case(soft=soft)
    logits[[0, 1, 13, 14, 15]] = np.nan  # outside all sequences
    if not soft:
        targets[[0, 1, 13, 14, 15]] = -1
    if weighted:
        logits[weights == 0] = np.inf
    w = weights if weighted else None
    cotangent = np.array([1.0, 2.0, -0.5, 3.0])
    f = fl.value_and_grad(fl.packed_sequence_loss)
    value, grad = f(logits, targets, offsets, w, reduction=reduction, cotangent=cotangent)
    assert same_bits(fl.packed_sequence_loss(logits, targets, offsets, w, reduction=reduction), value)
    want_grad = np.zeros(logits.shape)
    for b, (start, stop) in enumerate(itertools.pairwise(offsets)):
        part = slice(start, stop)
        rows, weight = logits[None, part], (weights if weighted else np.ones(16))[None, part]
        ce, slopes = fl.value_and_grad(fl.sequence_loss)(rows, targets[None, part], weight, False, False)
        total = weight.sum() if reduction != "sum" else 1
        want = ce.sum() / total if total else 0.0
        scale = cotangent[b] / total if total else 0.0
        if reduction == "perplexity":
            want = np.exp(want)
            scale *= want
        np.testing.assert_allclose(value[b], want, rtol=1e-14)
        want_grad[part] = slopes[0] * scale
    np.testing.assert_allclose(grad, want_grad, rtol=1e-13, atol=1e-18)
    if reduction == "perplexity":
        assert value[1] == 1


def test_packed_reads_any_dtype_and_layout():
    logits, targets, offsets, _ = packed_case(classes=70, dtype=np.float32)
    f = fl.value_and_grad(fl.packed_sequence_loss)
    value, grad = f(logits, targets, offsets)
    for x in (np.asfortranarray(logits), np.repeat(logits, 2, 0)[::2]):
        for n_threads in (1, 3):
            got = f(x, targets.astype(np.uint8), offsets.astype(np.int32), n_threads=n_threads)
            assert same_bits(got[0], value)
            assert same_bits(got[1], grad)


def test_packed_refuses():
    logits, targets, offsets, _ = packed_case()
    for change, error, words in [
        ({"offsets": [0, 5, 17]}, ValueError, r"offsets must lie in \[0, 16\], the number of tokens, got 17 at row 2"),
        ({"offsets": [-1, 5]}, ValueError, r"offsets must lie in \[0, 16\], the number of tokens, got -1 at row 0"),
        ({"offsets": [0, 5, 4, 9]}, ValueError, "offsets must not fall, got 4 after 5 at row 2"),
        ({"offsets": []}, ValueError, "offsets must have shape"),
        ({"offsets": [0.0, 5.0]}, TypeError, "offsets must be integers"),
        ({"targets": np.full(16, 6)}, ValueError, r"targets must lie in \[0, 6\), got 6 at row 2"),
        ({"weights": np.ones(3)}, ValueError, r"weights must have shape \(16,\)"),
        ({"reduction": "none"}, ValueError, "reduction must be one of 'sum', 'mean', 'perplexity'"),
        ({"logits": np.zeros((2, 3, 4))}, ValueError, "logits must have two axes"),
    ]:
        kwargs = {"logits": logits, "targets": targets, "offsets": offsets} | change
        with pytest.raises(error, match=words):
            fl.packed_sequence_loss(**kwargs)
    assert fl.packed_sequence_loss(logits, targets, [3]).shape == (0,)


@pytest.mark.parametrize("over", ["time", "batch"])
def test_sums_of_many_equal_terms_do_not_drift(over):
    n, c = 5000, 7
    logits, targets, weights = np.zeros((n, c)), np.zeros(n, int), np.full(n, 0.1)
    perplexity = fl.packed_sequence_loss(logits, targets, [0, n], weights=weights, reduction="perplexity")
    np.testing.assert_allclose(perplexity, c, rtol=1e-15)
    shape = (1, n) if over == "time" else (n, 1)
    options = {"average_across_timesteps": over == "time", "average_across_batch": over == "batch"}
    x, y, w = logits.reshape(*shape, c), targets.reshape(shape), weights.reshape(shape)
    np.testing.assert_allclose(fl.sequence_loss(x, y, w, **options), np.log(c), rtol=5e-16)


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_the_gradient_of_a_large_perplexity_is_rounded_once(half):
    x = np.random.default_rng(0).normal(0, 60, (10, 8)).astype(half)
    f = fl.value_and_grad(fl.packed_sequence_loss)
    given = {"targets": np.arange(10) % 8, "offsets": [0, 6, 10], "reduction": "perplexity"}
    value, grad = f(logits=x, **given)
    value32, grad32 = f(logits=x.astype(np.float32), **given)
    assert value.max() > 1e20
    np.testing.assert_array_equal(value, value32)
    with np.errstate(over="ignore"):
        assert same_bits(grad, grad32.astype(half))
