"""Second derivatives: against differences of the gradients, in the tails, in every layout, and against scikit-learn."""

from __future__ import annotations

import inspect

import mpmath
import numpy as np
import pytest
import reference
from table import LOSSES

import fastloss as fl

ELEMENTWISE = [pytest.param(loss, id=str(loss)) for loss in LOSSES if loss.elementwise]
SOFTMAX = [pytest.param(loss, id=str(loss)) for loss in LOSSES if "upper" in loss.function.hessians]
mpmath.mp.dps = 60


def arguments(loss, n, dtype=np.float64):
    return loss.make(np.random.default_rng(7), n, np.dtype(dtype))


def hessian(loss, kwargs, kind="diagonal", **more):
    return fl.value_grad_hess(loss.function, kind)(**kwargs, **more)


def differences(loss, kwargs, entry, step=1e-3, **more):
    """Of the gradient's entry, with respect to the same entry of the main input."""
    total = 0.0
    for k, w in [(-2, 1), (-1, -8), (1, 8), (2, -1)]:
        x = kwargs[loss.main].copy()
        x[entry] += k * step
        total += w * fl.value_and_grad(loss.function)(**{**kwargs, loss.main: x}, **more)[1][entry]
    return total / (12 * step)


@pytest.mark.parametrize("loss", ELEMENTWISE + SOFTMAX)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_agrees_with_differences(loss, reduction):
    kwargs = {**arguments(loss, 4), "reduction": reduction}
    rows = loss.function(**{**kwargs, "reduction": "none"}).shape
    more = {"sample_weight": np.linspace(0.5, 2, int(np.prod(rows))).reshape(rows)}
    more["cotangent"] = np.linspace(-1, 1, int(np.prod(rows))).reshape(rows) if reduction == "none" else np.float64(-3)
    got = hessian(loss, kwargs, **more)[2]
    for entry in np.ndindex(kwargs[loss.main].shape):
        if entry[-1] < 12:
            np.testing.assert_allclose(got[entry], differences(loss, kwargs, entry, **more), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", ELEMENTWISE + SOFTMAX)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_and_the_rest_of_the_call(loss, dtype):
    kwargs = arguments(loss, 33, dtype)
    value, grad, hess = hessian(loss, kwargs)
    want = fl.value_and_grad(loss.function)(**kwargs)
    if loss.elementwise:
        np.testing.assert_array_equal(value, want[0])
        np.testing.assert_array_equal(grad, want[1])
    else:  # beside a Hessian the softmax leaves out its largest term, not its label's: both are right to a few units
        np.testing.assert_array_max_ulp(value, want[0], 3)
        np.testing.assert_allclose(grad, want[1], rtol=8 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).tiny)
    x = np.asfortranarray(kwargs[loss.main])
    for n_threads in (1, 2):
        got = hessian(loss, {**kwargs, loss.main: x}, n_threads=n_threads)
        assert got[2].flags.f_contiguous
        assert got[2].dtype == dtype
        for a, b in zip(got, (value, grad, hess), strict=True):
            np.testing.assert_array_equal(a, b)
    buffers = {"grad_out": np.full_like(grad, 7), "hess_out": np.full_like(hess, 7)}
    got = hessian(loss, kwargs, **buffers)
    assert got[1] is buffers["grad_out"]
    assert got[2] is buffers["hess_out"]
    np.testing.assert_array_equal(got[2], hess)
    own = np.array(kwargs[loss.main])
    got = hessian(loss, {**kwargs, loss.main: own}, grad_out=own)
    assert got[1] is own
    for a, b in zip(got, (value, grad, hess), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_kinds(dtype):
    x = np.random.default_rng(0).normal(0, 5, (50, 7)).astype(dtype)
    y = np.random.default_rng(1).integers(0, 7, 50)
    f = fl.sparse_softmax_cross_entropy_with_logits
    p = np.exp(reference.wide(x))
    p /= p.sum(1, keepdims=True)
    rest = (p.sum(1, keepdims=True) - p) / p.sum(1, keepdims=True)
    got = {kind: fl.value_grad_hess(f, kind)(labels=y, logits=x) for kind in ("diagonal", "upper", "residual")}
    np.testing.assert_allclose(got["diagonal"][2], p * rest, rtol=5e-6 if dtype == np.float32 else 1e-13)
    np.testing.assert_array_equal(got["upper"][2], 2 * got["diagonal"][2])
    np.testing.assert_array_equal(got["residual"][2], np.abs(got["residual"][1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_in_the_tails(dtype):
    margins = np.array([0, 1, 20, 40, 80, 100, 700]).astype(dtype)
    x = np.stack([margins, np.zeros_like(margins)], 1)
    got = fl.value_grad_hess(fl.sparse_softmax_cross_entropy_with_logits)(labels=np.zeros(7, int), logits=x)[2]
    m = [mpmath.mpf(float(v)) for v in margins]
    want = np.array([np.longdouble(mpmath.nstr(mpmath.exp(-v) / (1 + mpmath.exp(-v)) ** 2, 25)) for v in m])
    for k in (0, 1):
        assert reference.ulps(got[:, k], want).max() <= 4
    sigmoid = fl.value_grad_hess(fl.sigmoid_cross_entropy_with_logits)(labels=1, logits=margins)[2]
    assert reference.ulps(sigmoid, want).max() <= 4


def test_ignored_and_weightless_rows_are_zero():
    x = np.random.default_rng(0).normal(size=(6, 5))
    x[2] = np.nan
    f = fl.value_grad_hess(fl.sparse_softmax_cross_entropy_with_logits)
    for more in ({"ignore_index": 4}, {"sample_weight": [1, 1, 0, 1, 1, 1]}):
        hess = f(labels=[0, 1, 4, 0, 1, 2], logits=x, **more)[2]
        assert not hess[2].any()
        assert (hess[[0, 1, 3, 4, 5]] > 0).all()


@pytest.mark.parametrize("loss", ELEMENTWISE + SOFTMAX)
def test_one_derivative_a_row_by_default(loss):
    kwargs = arguments(loss, 5)
    f = getattr(loss.function, "__wrapped__", loss.function)  # with the default of its own
    assert inspect.signature(fl.value_grad_hess(f)).parameters["reduction"].default == "none"
    got = fl.value_grad_hess(f)(**kwargs)
    for a, b in zip(got, fl.value_grad_hess(f)(**kwargs, reduction="none"), strict=True):
        assert a.tobytes() == b.tobytes()
    assert got[0].shape == f(**kwargs, reduction="none").shape


def test_what_is_refused():
    with pytest.raises(ValueError, match="hessian must be one of 'diagonal', got 'upper'"):
        fl.value_grad_hess(fl.mean_squared_error, "upper")
    with pytest.raises(ValueError, match="hessian must be one of 'diagonal', 'upper', 'residual', got 'full'"):
        fl.value_grad_hess(fl.sparse_softmax_cross_entropy_with_logits, "full")
    with pytest.raises(TypeError, match="loss must be a loss of fastloss"):
        fl.value_grad_hess(max)
    x = np.zeros((2, 3))
    f = fl.value_grad_hess(fl.sparse_softmax_cross_entropy_with_logits)
    with pytest.raises(ValueError, match="grad_out must not overlap logits"):
        f(labels=[0, 1], logits=x, grad_out=x[::-1])
    buffer = np.ones((2, 3))
    with pytest.raises(ValueError, match="hess_out must not overlap logits"):
        f(labels=[0, 1], logits=x, grad_out=buffer, hess_out=buffer)
    assert (buffer == 1).all()
    with pytest.raises(ValueError, match="logits must have shape"):
        fl.value_grad_hess(fl.weighted_cross_entropy_with_logits)(labels=1, logits=x, pos_weight=np.ones((4, 2, 3)))


def test_agrees_with_scikit_learn():
    peers = pytest.importorskip("sklearn._loss.loss")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=100), rng.gamma(2, size=100)
    for loss, peer, factor, more, labels in [
        (fl.sigmoid_cross_entropy_with_logits, peers.HalfBinomialLoss(), 1, {}, y / y.max()),
        (fl.mean_squared_error, peers.HalfSquaredError(), 2, {}, y),
        (fl.poisson_loss, peers.HalfPoissonLoss(), 1, {}, y),
        (fl.gamma_loss, peers.HalfGammaLoss(), 1, {}, y),
        (fl.tweedie_loss, peers.HalfTweedieLoss(power=1.5), 1, {"power": 1.5}, y),
        (fl.tweedie_loss, peers.HalfTweedieLoss(power=3), 1, {"power": 3}, y),
        (fl.tweedie_loss, peers.HalfTweedieLoss(power=0), 1, {"power": 0}, y),
    ]:
        value, grad, hess = fl.value_grad_hess(loss)(labels=labels, **{loss.wrt[0]: x}, reduction="none", **more)
        np.testing.assert_allclose(value, factor * peer.loss(labels, x), rtol=1e-12, atol=1e-14)
        want = peer.gradient_hessian(labels, x)
        np.testing.assert_allclose(grad, factor * want[0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(hess, factor * want[1], rtol=1e-12, atol=1e-14)
    got = fl.value_and_grad(fl.quantile_loss)(labels=y, predictions=x, quantile=0.3, reduction="none")
    peer = peers.PinballLoss(quantile=0.3)
    np.testing.assert_allclose(got[0], peer.loss(y, x), rtol=1e-12)
    np.testing.assert_allclose(got[1], peer.gradient(y, x), rtol=1e-12)
    many, k = rng.normal(size=(80, 5)), rng.integers(0, 5, 80)
    _, grad, hess = fl.value_grad_hess(fl.sparse_softmax_cross_entropy_with_logits)(labels=k, logits=many)
    want = peers.HalfMultinomialLoss(n_classes=5).gradient_hessian(k.astype(float), many)
    np.testing.assert_allclose(grad, want[0], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(hess, want[1], rtol=1e-10, atol=1e-14)
