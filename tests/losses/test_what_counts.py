"""One rule: a term whose coefficient is exactly 0 adds exactly 0, to the value and to every gradient."""

from __future__ import annotations

import numpy as np
import pytest
from mpmath import mp
from table import DTYPES, LOSSES

import fastloss as fl

SPARSE, DENSE = fl.sparse_softmax_cross_entropy_with_logits, fl.softmax_cross_entropy_with_logits
CLASSES = pytest.mark.parametrize("c", [2, 3, 31, 32, 33, 64, 65, 100, 1000])  # tiles, and row by row
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
BAD = [np.nan, np.inf, -np.inf]
ALL = pytest.mark.parametrize("loss", [pytest.param(loss, id=str(loss)) for loss in LOSSES])


def wide(a):
    return np.asarray(a).astype(np.float64)


def is_zero(*arrays):
    return all(not np.asarray(a).astype(np.float32).any() for a in arrays)


def infinities(a):
    """The signs of a, infinite, and its zeros."""
    return np.where(a > 0, np.inf, np.where(a < 0, -np.inf, wide(a)))


def rows(c, dtype, value):
    """Logits of 70 rows; in row 33 the first class, or all of them, hold the value."""
    x = np.random.default_rng(c).standard_normal((70, c)).astype(dtype)
    x[33, : c if value == -np.inf else 1] = value
    return x


def alone(call):
    """Row 33 of the results, which must not depend on the others."""
    return [a[33] for a in call]


@CLASSES
@DTYPE
@pytest.mark.parametrize("value", BAD, ids=str)
def test_softmax_rows_of_which_nothing_counts(c, dtype, value):
    x = rows(c, dtype, value)
    hot = np.zeros((70, c), dtype)
    hot[:, 1] = 1
    none = hot.copy()
    none[33] = 0
    weight = np.ones(c)
    weight[1] = 0
    y = np.ones(70, int)
    for loss, kwargs in [
        (DENSE, {"labels": none}),
        (DENSE, {"labels": -none.astype(np.float32)}),
        (DENSE, {"labels": (none != 0).astype(np.uint8)}),
        (DENSE, {"labels": none, "class_weight": np.ones(c)}),
        (DENSE, {"labels": hot, "class_weight": weight}),
        (SPARSE, {"labels": y, "class_weight": weight}),
        (SPARSE, {"labels": y, "class_weight": np.zeros(c), "label_smoothing": 0.1}),
        (SPARSE, {"labels": y, "ignore_index": 1}),
        (SPARSE, {"labels": y, "ignore_index": 1, "label_smoothing": 0.1}),
        (SPARSE, {"labels": y, "sample_weight": np.arange(70) != 33}),
        (fl.softmax_focal_loss, {"labels": y, "class_weight": weight}),
        (fl.softmax_focal_loss, {"labels": y, "ignore_index": 1}),
        (fl.softmax_focal_loss, {"labels": none}),
        (fl.softmax_focal_loss, {"labels": y, "class_weight": np.zeros(c), "label_smoothing": 0.1}),
        (fl.poly1_cross_entropy, {"labels": y, "class_weight": weight}),
        (fl.poly1_cross_entropy, {"labels": y, "ignore_index": 1}),
        (fl.poly1_cross_entropy, {"labels": none}),
        (SPARSE, {"labels": y, "class_weight": weight, "z_loss": 0.1}),
        (SPARSE, {"labels": y, "class_weight": weight, "softcap": 2.0, "z_loss": 0.1}),
        (SPARSE, {"labels": y, "ignore_index": 1, "temperature": 2.0}),
        (DENSE, {"labels": none, "class_weight": np.ones(c), "z_loss": 0.1}),
        (DENSE, {"labels": none, "temperature": 0.5}),
    ]:
        assert is_zero(*alone(fl.value_and_grad(loss)(logits=x, **kwargs))), kwargs
        own = x.copy()
        assert is_zero(*alone(fl.value_and_grad(loss)(logits=own, grad_out=own, **kwargs)))
        assert is_zero(*alone(fl.value_and_grad(loss)(logits=np.asfortranarray(x), **kwargs)))
        for kind in ("diagonal", "upper", "residual"):
            if kind == "diagonal" or (loss in (SPARSE, DENSE) and "z_loss" not in kwargs):
                assert is_zero(*alone(fl.value_grad_hess(loss, kind)(logits=x, **kwargs)))
        counts = {**kwargs, "sample_weight": None, "class_weight": None, "ignore_index": None}
        counts = {k: v for k, v in counts.items() if k in kwargs and k != "softcap"}  # which makes inf finite
        counts |= {"labels": hot} if np.ndim(kwargs["labels"]) == 2 else {}
        assert np.isnan(loss(logits=x, **counts)[33])


@CLASSES
@DTYPE
def test_no_class_left(c, dtype):
    x = rows(c, dtype, np.nan)
    x[33, 0] = 7
    keep = np.ones((70, c), bool)
    keep[33] = False
    for name, value in [("softmax", 0), ("log_softmax", -np.inf), ("logsumexp", -np.inf)]:
        f = getattr(fl, name)
        assert (wide(f(x, where=keep)[33]) == value).all()
        if name != "logsumexp":
            own = x.copy()
            assert (wide(f(own, where=keep, out=own)[33]) == value).all()
        others = np.arange(70) != 33
        np.testing.assert_array_equal(wide(f(x, where=keep))[others], wide(f(x))[others])
        x[33] = np.nan  # hidden as well
        assert (wide(f(x, where=keep)[33]) == value).all()
        partly = keep.copy()
        partly[33, 0] = True  # but not this one
        assert np.isnan(wide(f(x, where=partly)[33, ...])).any()
        x[33] = 7
    hot = np.zeros((70, c), dtype)
    hot[:, 1] = 1
    none = hot.copy()
    none[33] = 0
    assert is_zero(*alone(fl.value_and_grad(DENSE)(labels=none, logits=x, where=keep)))
    assert is_zero(*alone(fl.value_and_grad(SPARSE)(labels=[1] * 70, logits=x, where=keep, ignore_index=1)))
    focal, poly1 = fl.softmax_focal_loss, fl.poly1_cross_entropy
    plain = [(loss, labels, {}) for loss in (SPARSE, focal, poly1) for labels in ([1] * 70,)]
    plain += [(loss, hot, {}) for loss in (DENSE, focal, poly1)]
    more = [{"z_loss": 0.1}, {"softcap": 3.0}, {"softcap": 3.0, "temperature": 0.5, "z_loss": 0.1}]
    plain += [(loss, labels, some) for some in more for loss, labels in ((SPARSE, [1] * 70), (DENSE, hot))]
    for loss, labels, options in plain:
        # as for any label that is masked out: p = 0
        weight = np.full(70, 0.5)
        f = fl.value_and_grad(loss)
        value, grad = alone(f(labels=labels, logits=x, where=keep, sample_weight=weight, **options))
        assert value == np.inf
        np.testing.assert_array_equal(wide(grad), -0.5 / options.get("temperature", 1) * wide(hot[33]))


@ALL
@DTYPE
def test_weights_of_zero_hide_anything(loss, dtype):
    """By sample weight and by cotangent, in every input of the row, for every gradient."""
    kwargs = loss.make(np.random.default_rng(1), 9, dtype)
    shape = loss.function(**kwargs).shape
    f = fl.value_and_grad(loss.function, loss.wrt)
    weight = np.ones(shape)
    weight[4] = 0
    for value in BAD:
        bad = {**kwargs, loss.main: kwargs[loss.main].copy()}
        bad[loss.main][4] = value
        got, grads = f(**bad, sample_weight=weight)
        assert is_zero(got[4])
        for cotangent in (weight, None):
            more = {"cotangent": cotangent} if cotangent is not None else {"sample_weight": weight}
            more = {**more, "reduction": "none"}
            _, grads = f(**bad, **more)
            assert is_zero(grads[0][4])
        for reduction in ("sum", "mean"):
            _, grads = f(**bad, reduction=reduction, cotangent=0.0)
            assert is_zero(*grads)


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_cotangents(loss, dtype):
    kwargs = loss.make(np.random.default_rng(2), 6, np.dtype(dtype))
    f = fl.value_and_grad(loss.function, loss.wrt)
    value, plain = f(**kwargs)
    if loss.apart:
        c = np.linspace(1, 2, value.size).reshape(value.shape)
        want = f(**kwargs, cotangent=c)[1]
        c[2], c[4] = np.inf, -np.inf
        got = f(**kwargs, cotangent=c)[1]
        for g, w, p in zip(got, want, plain, strict=True):
            infinite = infinities(p)
            np.testing.assert_array_equal(g[2], infinite[2])
            np.testing.assert_array_equal(g[4], -infinite[4])
            np.testing.assert_array_equal(g[[0, 1, 3, 5]], w[[0, 1, 3, 5]])
        if len(loss.wrt) == 1:
            own = kwargs[loss.main].copy()
            again = f(**{**kwargs, loss.main: own}, cotangent=c, grad_out=(own,))[1]
            np.testing.assert_array_equal(again[0], got[0])
    for reduction in ("sum", "mean"):
        _, base = f(**kwargs, reduction=reduction)
        _, got = f(**kwargs, reduction=reduction, cotangent=-np.inf)
        for g, p in zip(got, base, strict=True):
            np.testing.assert_array_equal(g, -infinities(p))


@ALL
def test_the_value_does_not_depend_on_the_cotangent(loss):
    kwargs = loss.make(np.random.default_rng(2), 6, np.dtype(np.float32))
    want = loss.function(**kwargs)
    for c in (np.zeros(want.shape), np.full(want.shape, np.nan), np.full(want.shape, np.inf), -want):
        value, _ = fl.value_and_grad(loss.function, loss.wrt)(**kwargs, cotangent=c)
        assert value.tobytes() == want.tobytes()


def test_infinite_cotangents_reach_tables_and_draw_once():
    rng = np.random.default_rng(0)
    w, b, x, y = rng.standard_normal((20, 3)), np.zeros(20), rng.standard_normal((4, 3)), [[1], [2], [3], [3]]
    c = np.array([1, np.inf, 2, 0])
    samplers = [fl.LearnedUnigramSampler(20, seed=3) for _ in range(2)]
    f = fl.value_and_grad(fl.sampled_softmax_loss, ("inputs", "weights"))
    value, (dx, dw) = f(w, b, y, x, 5, 20, cotangent=c, sampler=samplers[0])
    assert np.array_equal(value, fl.sampled_softmax_loss(w, b, y, x, 5, 20, sampler=samplers[1]))
    a, b_ = (s.state for s in samplers)
    assert all(np.array_equal(a[k], b_[k]) for k in a)
    assert np.isinf(dx[1]).all()
    assert np.isfinite(dx[[0, 2, 3]]).all()
    assert not np.isnan(dw.values).any()
    assert np.isinf(dw.values[1]).all()
    assert np.isfinite(dw.values[[0, 2, 3]]).all()
    _, (dw, db) = fl.value_and_grad(fl.linear_cross_entropy, ["weights", "biases"])(
        inputs=x, weights=[w[:7], w[7:]], biases=b, labels=[1, 2, 3, 3], cotangent=c
    )
    assert np.isinf([*dw[0].flat, *dw[1].flat, *db]).all()


def test_tables_that_hold_no_numbers():
    """A row that does not count has no gradient, whatever the classes hold."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        w, x = rng.standard_normal((40, 37)).astype(dtype), rng.standard_normal((150, 37)).astype(dtype)
        w[:] = np.nan
        y = np.arange(150) % 40
        y[77] = -1
        f = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))
        value, (dx, _) = f(inputs=x, weights=w, labels=y, ignore_index=-1)
        assert is_zero(value[77], dx[77])
        assert np.isnan(dx[:77]).all()
        y[77] = 3
        weight = np.arange(150) != 77
        value, (dx, _) = f(inputs=x, weights=w, labels=y, sample_weight=weight)
        assert is_zero(value[77], dx[77])
        class_weight = np.arange(40) != 3
        value, (dx, _) = f(inputs=x, weights=w, labels=y, class_weight=class_weight)
        assert is_zero(value[77], dx[77])
        x[:] = np.nan
        pair = np.array([[1, 2]] * 150), np.zeros((150, 2))
        value, grads = f(inputs=x, weights=w, labels=pair)
        assert is_zero(value, *grads)


def test_targets_that_cancel_count():
    """Class weights may be negative: a sum of 0 is not nothing."""
    x, w = np.float64([[0.5, -1.0]]), np.float64([[1, 2], [3, 4], [5, 7]])
    pair = np.array([[0, 1]]), np.array([[0.5, 0.5]])
    got = fl.linear_cross_entropy(inputs=x, weights=w, labels=pair, class_weight=[1.0, -1.0, 1.0])
    z = (x @ w.T)[0]
    np.testing.assert_allclose(got, [(z[1] - z[0]) / 2], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_elements_without_a_coefficient(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 1], dtype)
    for n in (1, 40):  # strips, and what is left of one
        many = np.tile(x, n)
        zeros, ones = np.zeros_like(many), np.ones_like(many)
        for loss, kwargs in [
            (fl.kl_divergence, {"predictions": many, "labels": zeros, "reduction": "none"}),
            (fl.weighted_cross_entropy_with_logits, {"logits": many, "labels": ones, "pos_weight": 0}),
            (fl.weighted_cross_entropy_with_logits, {"logits": many, "labels": ones, "pos_weight": zeros}),
            (fl.sigmoid_focal_loss, {"logits": many, "labels": ones, "alpha": 0.0}),
            (fl.sigmoid_focal_loss, {"logits": many, "labels": zeros, "alpha": 1.0}),
        ]:
            assert is_zero(loss(**kwargs)), loss
            assert is_zero(*fl.value_and_grad(loss)(**kwargs)), loss
            assert is_zero(*fl.value_grad_hess(loss)(**kwargs)), loss
            for reduction in ("sum", "mean"):
                assert is_zero(*fl.value_and_grad(loss)(**{**kwargs, "reduction": reduction})), loss
    assert np.isnan(fl.kl_divergence(labels=[1.0], predictions=[np.nan]))


def masked_ctc(y, x):
    """Loss and gradient by all alignments, in 400 digits."""
    n_frames, n_classes = x.shape
    mp.dps = 400
    exact = [[mp.mpf(float(v)) for v in row] for row in x]
    lse = [mp.log(mp.fsum(map(mp.exp, row))) for row in exact]
    paths = {}
    for path in np.ndindex((n_classes,) * n_frames):
        merged = [k for t, k in enumerate(path) if t == 0 or path[t - 1] != k]
        if [k for k in merged if k] == list(y):
            paths[path] = mp.fsum(exact[t][k] - lse[t] for t, k in enumerate(path))
    top = max(paths.values())
    shares = {path: mp.exp(v - top) for path, v in paths.items()}
    total = mp.fsum(shares.values())
    grad = np.array([[float(mp.exp(v - lse[t])) for v in row] for t, row in enumerate(exact)])
    for path, share in shares.items():
        grad[np.arange(n_frames), path] -= float(share / total)
    return float(-top - mp.log(total)), grad


@pytest.mark.parametrize("mask", [-1e9, -1e15, -1e16, -1e18, -1e30, -1e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ctc_of_masked_labels(mask, dtype):
    rng = np.random.default_rng(4)
    for y in ([1], [1, 2], [2, 1, 2], [1, 1]):
        x = rng.standard_normal((5, 3)).astype(dtype)
        x[:, 1] = mask
        x[2, 0] += 40
        want, slopes = masked_ctc(y, x)
        value, grad = fl.value_and_grad(fl.ctc_loss)(
            labels=[y], logits=x[:, None], label_length=None, logit_length=None
        )
        np.testing.assert_allclose(value, [want], rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(grad[:, 0], slopes, atol=8 * np.finfo(dtype).eps)
        assert np.abs(grad.sum(-1)).max() <= 8 * np.finfo(dtype).eps


@pytest.mark.parametrize("mask", [-1e16, -1e18, -1e30])
def test_ctc_of_long_masked_entries(mask):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((120, 8, 40))
    x[:, :, 7] = mask
    y = rng.integers(8, 40, (8, 30))
    y[:, ::5] = 7
    value, grad = fl.value_and_grad(fl.ctc_loss)(labels=y, logits=x, label_length=None, logit_length=None)
    np.testing.assert_allclose(value, -6 * mask, rtol=1e-12)
    assert np.abs(grad.sum(-1)).max() < 1e-12
    np.testing.assert_allclose(grad[:, :, 7].sum(0), -6, rtol=1e-12)  # as often as it is needed, no oftener


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perplexity_that_overflows(dtype):
    x = np.zeros((12, 5), dtype)
    x[:, 1] = -10000 if dtype != np.float16 else -60000
    x[:, 4] = -np.inf
    x[6:, 1] = -95 if dtype != np.float64 else -700  # the value fits, or just not
    value, grad = fl.value_and_grad(fl.packed_sequence_loss)(x, np.ones(12, int), [0, 6, 12], reduction="perplexity")
    assert value[0] == np.inf
    grad = wide(grad)
    assert not np.isnan(grad).any()
    assert (grad[:6, :4] == [np.inf, -np.inf, np.inf, np.inf]).all()
    assert is_zero(grad[:, 4])
    if dtype == np.float64:
        np.testing.assert_allclose(grad[6:, 1], -value[1] / 6, rtol=1e-12)


def test_a_token_of_weight_0_beside_a_perplexity_of_nan():
    x = np.zeros((3, 2), np.float32)
    x[0] = np.nan
    f = fl.value_and_grad(fl.packed_sequence_loss)
    value, grad = f(x, [0, 1, 1], [0, 3], [1.0, 0.0, 1.0], reduction="perplexity")
    assert np.isnan(value).all()
    assert is_zero(grad[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 40, 100])
@pytest.mark.parametrize("poison", [-np.inf, np.nan])
def test_masked_classes_of_rows_that_are_nan(dtype, classes, poison):
    x = np.full((3, classes), poison).astype(dtype)
    x[1] = 0
    kept = np.zeros((3, classes), bool)
    kept[:, 1] = True
    for f, masked in ((fl.softmax, 0.0), (fl.log_softmax, -np.inf)):
        found = wide(f(x, where=kept))
        assert np.isnan(found[[0, 2], 1]).all()
        assert (found[~kept] == masked).all()


def test_no_share_of_a_class_of_minus_infinity():
    f = fl.value_and_grad(fl.linear_cross_entropy, "biases")
    biases = np.float32([-np.inf, 0, 1])
    value, grad = f(
        inputs=np.zeros((1, 1), np.float32), weights=np.zeros((3, 1), np.float32), biases=biases,
        labels=(np.array([[0]]), np.array([[0.0]])), tail="other",
    )  # fmt: skip
    assert value == 0
    assert is_zero(grad[0])
    np.testing.assert_allclose(grad, 0, atol=1e-7)
