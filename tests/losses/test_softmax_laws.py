"""Losses of softmax rows by other laws, and the options of the cross entropies: against 60 digits at every margin."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import reference
from table import LOSSES
from test_boosting import differences

import fastloss as fl

mpmath.mp.dps = 60
FLOATS = [np.float32, np.float64]
SPARSE, DENSE = fl.sparse_softmax_cross_entropy_with_logits, fl.softmax_cross_entropy_with_logits
FOCAL, POLY1 = fl.softmax_focal_loss, fl.poly1_cross_entropy
MARGINS = [-700, -80, -20, -1, 0, 1e-3, 1, 5, 20, 40, 80, 300]


def law_of(f, gamma=2.0, epsilon=1.0):
    """Value and derivative by s of s, p and q = 1 - p."""
    if f is FOCAL:
        g = mpmath.mpf(gamma)
        return lambda s, p, q: (q**g * s, (q**g + g * q ** (g - 1) * p * s) if q else mpmath.mpf(g == 0))
    e = mpmath.mpf(epsilon if f is POLY1 else 0)
    return lambda s, p, q: (s + e * q, 1 + e * p)


def exact(f, row, targets, z_loss=0.0, softcap=None, temperature=1.0, **parameters):
    """Loss and gradient of one row of floats."""
    given, heat = [mpmath.mpf(float(v)) for v in row], mpmath.mpf(temperature)
    x, tilt = given, [1 / heat] * len(given)
    if softcap is not None:
        c = mpmath.mpf(softcap)
        x, tilt = [c * mpmath.tanh(v / c) for v in x], [mpmath.sech(v / c) ** 2 / heat for v in x]
    x = [v / heat for v in x]
    m = max(x)
    e = [mpmath.exp(v - m) for v in x]
    total = mpmath.fsum(e)
    p = [v / total for v in e]
    q = [mpmath.fsum(e[:k] + e[k + 1 :]) / total for k in range(len(e))]
    s = [m - v + mpmath.log(total) if 2 * w > 1 else -mpmath.log1p(-w) for v, w in zip(x, q, strict=True)]
    lse, z = m + mpmath.log(total), mpmath.mpf(z_loss)
    law = law_of(f, **parameters)
    worth = [law(*each) for each in zip(s, p, q, strict=True)]
    t = [mpmath.mpf(float(v)) for v in targets]
    loss = mpmath.fsum(v * w[0] for v, w in zip(t, worth, strict=True)) + z * lse**2
    grad = []
    for j in range(len(x)):
        terms = [t[k] * worth[k][1] * (p[j] if k != j else -q[j]) for k in range(len(x)) if t[k]]
        grad.append(tilt[j] * (mpmath.fsum(terms) + 2 * z * lse * p[j]))
    return loss, grad


def as_long(values):
    return np.array([np.longdouble(mpmath.nstr(v, 30)) for v in values])


CASES = [
    (SPARSE, {"z_loss": 1e-4}),
    (SPARSE, {"z_loss": 0.5}),
    (SPARSE, {"temperature": 2.0}),
    (SPARSE, {"temperature": 0.5, "z_loss": 0.01}),
    (SPARSE, {"softcap": 30.0}),
    (SPARSE, {"softcap": 2.0, "temperature": 4.0, "z_loss": 0.1}),
    (POLY1, {}),
    (POLY1, {"epsilon": 3.5}),
    (FOCAL, {"gamma": 0.0}),
    (FOCAL, {"gamma": 0.5}),
    (FOCAL, {"gamma": 2.0}),
]


@pytest.mark.parametrize("targets", [False, True], ids=["index", "targets"])
@pytest.mark.parametrize("c", [2, 5, 70])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("f", "options"), CASES, ids=str)
def test_every_margin(f, options, dtype, c, targets):
    """Rows led by their label, by another class, and by both; the targets are the same label as a row of 0 and 1."""
    rng = np.random.default_rng(c)
    x = rng.normal(0, 1, (len(MARGINS), c)).astype(dtype)
    x[:, 1 % c] = 0
    x[:, 0] = MARGINS
    labels = np.zeros(len(x), int)
    one = np.eye(c, dtype=dtype)[labels]
    g = DENSE if f is SPARSE and targets else f
    value, grad = fl.value_and_grad(g)(labels=one if targets else labels, logits=x, **options)
    results = [exact(f, row, t, **options) for row, t in zip(x, one, strict=True)]
    factor = max(1, options.get("gamma", 1))
    # in float64 the rounding of capped or divided logits is in the result: half a unit of them, relative
    moved = [abs(float(v)) for v in np.ravel(x)] if options.get("temperature", 1) != 1 or "softcap" in options else [0]
    most = min(max(moved), options.get("softcap", np.inf)) / options.get("temperature", 1)
    slack = 2 * most if dtype == np.float64 else 0
    limit = (2 if dtype == np.float32 else 4) * factor + slack
    assert reference.ulps(value, as_long([r[0] for r in results])).max() <= limit
    want = np.stack([as_long(r[1]) for r in results])
    scale = np.abs(want).max(1, keepdims=True)
    big = np.abs(want) > np.finfo(dtype).tiny * 16
    off = reference.ulps(grad, want)
    assert off[big].max() <= 6 * factor + slack
    assert (np.abs(grad - want) <= 1e-5 * scale + np.finfo(dtype).smallest_subnormal * 2).all()


@pytest.mark.parametrize("f", [FOCAL, POLY1])
def test_soft_targets_at_every_margin(f):
    rng = np.random.default_rng(3)
    x = rng.normal(0, 3, (len(MARGINS), 7))
    x[:, 2] = MARGINS
    t = rng.dirichlet(np.ones(7), len(x))
    t[:, 4] = 0
    value, grad = fl.value_and_grad(f)(labels=t, logits=x)
    results = [exact(f, *each) for each in zip(x, t, strict=True)]
    assert reference.ulps(value, as_long([r[0] for r in results])).max() <= 8
    np.testing.assert_allclose(grad, np.stack([as_long(r[1]) for r in results]).astype(float), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1}, {"z_loss": 0.1, "softcap": 5.0, "temperature": 0.5}], ids=str)
@pytest.mark.parametrize("padding", [0, 70])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("f", [SPARSE, DENSE, FOCAL, POLY1])
def test_infinite_and_nan_logits(f, dtype, padding, options):
    """As of the cross entropy; a soft cap makes finite logits of infinite ones."""
    if options and f in (FOCAL, POLY1):
        options = {"label_smoothing": 0.0}
    inf, nan, c = np.inf, np.nan, 3 + padding
    x = np.full((5, c), -2.0, dtype)
    x[:, :3] = [[1, -inf, 0], [-inf, 1, 2], [0, inf, 1], [0, nan, 1], [-inf, -inf, -inf]]
    x[4] = -inf
    labels = np.zeros(5, int)
    labels = np.eye(c)[labels] if f is DENSE else labels
    value, grad = fl.value_and_grad(f)(labels=labels, logits=x, **options)
    if "softcap" in options:
        assert np.isfinite(value[[0, 1, 2, 4]]).all()
        assert np.isnan(value[3])
        assert grad[0, 1] == grad[1, 0] == 0
        return
    assert np.isfinite(value[0])
    assert np.isfinite(grad[:2]).all()
    assert grad[0, 1] == 0
    assert value[1] == inf
    assert np.isnan(value[2:]).all()
    assert np.isnan(grad[2:]).any(1).all()


@pytest.mark.parametrize("c", [5, 100])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_z_loss_that_cancels_the_cross_entropys_slope(dtype, c):
    """Where 2 z lse = -1 the classes have no gradient, but the label has."""
    x = np.full((3, c), -1 - np.log(c), dtype)
    x[1] += dtype(1e-3)
    x[2, 0] = -30
    labels = np.zeros(3, int)
    value, grad = fl.value_and_grad(SPARSE)(labels=labels, logits=x, z_loss=0.5)
    loss, want, _ = reference.cross_entropy(labels, x, z_loss=0.5)
    assert reference.ulps(value, loss).max() <= 4
    np.testing.assert_allclose(grad, want.astype(float), rtol=1e-5, atol=4 * np.finfo(dtype).eps / c)
    np.testing.assert_allclose(grad[:, 0], want[:, 0].astype(float), rtol=4 * np.finfo(dtype).eps)


def test_softcap_and_temperature_mean_what_they_mean_of_a_linear_layer():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((6, 4)), 4 * rng.standard_normal((90, 4))
    y, weights = rng.integers(0, 90, 6), rng.uniform(0.5, 2, 90)
    options = {"softcap": 3.0, "temperature": 0.5, "z_loss": 0.02, "class_weight": weights, "label_smoothing": 0.1}
    want = fl.linear_cross_entropy(inputs=x, weights=w, labels=y, **options)
    np.testing.assert_allclose(SPARSE(labels=y, logits=x @ w.T, **options), want, rtol=1e-13)
    np.testing.assert_allclose(DENSE(labels=np.eye(90)[y], logits=x @ w.T, **options), want, rtol=1e-13)


@pytest.mark.parametrize("c", [10, 100])
def test_a_row_in_float64_is_the_row_in_float32(c):
    """The loop that knows all options gives what the quick ones do, to rounding."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(0, 4, (40, c)).astype(np.float32), rng.integers(0, c, 40)
    for f, options in [(SPARSE, {"z_loss": 0.1}), (FOCAL, {"gamma": 1.5}), (POLY1, {"epsilon": 2.0})]:
        quick = fl.value_and_grad(f)(labels=y, logits=x, **options)
        dense = fl.value_and_grad(DENSE if f is SPARSE else f)(labels=np.eye(c)[y], logits=x, **options)
        for a, b in zip(quick, dense, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-30)


CURVED = ["sparse-z-10", "sparse-z-100", "sparse-capped-10", "dense-capped-100", "sparse-hot-10", "dense-z-10"]
CURVED += [
    "softmax-focal",
    "softmax-focal-options",
    "softmax-focal-soft",
    "softmax-focal-smooth",
    "poly1-100",
    "poly1-soft",
]


@pytest.mark.parametrize("loss", [pytest.param(loss, id=str(loss)) for loss in LOSSES if loss.name in CURVED])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_hessians_agree_with_differences(loss, reduction):
    kwargs = {**loss.make(np.random.default_rng(7), 4, np.dtype(np.float64)), "reduction": reduction}
    more = {"sample_weight": np.linspace(0.5, 2, 4)}
    more["cotangent"] = np.linspace(-1, 1, 4) if reduction == "none" else np.float64(-3)
    got = fl.value_grad_hess(loss.function)(**kwargs, **more)[2]
    for entry in np.ndindex(4, min(12, got.shape[1])):
        np.testing.assert_allclose(got[entry], differences(loss, kwargs, entry, **more), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_hessian_in_the_tails(gamma):
    """Of two classes it is phi'' q^2 + phi' p q of both, phi = q^g s."""
    margins = np.array([-600, -40, -3, 0, 3, 40, 600.0])
    x = np.stack([margins, np.zeros_like(margins)], 1)
    got = fl.value_grad_hess(FOCAL)(labels=np.zeros(7, int), logits=x, gamma=gamma)[2]
    g = mpmath.mpf(gamma)
    want = []
    for m in margins:
        p, q = 1 / (1 + mpmath.exp(-mpmath.mpf(m))), 1 / (1 + mpmath.exp(mpmath.mpf(m)))
        s = mpmath.log1p(mpmath.exp(-mpmath.mpf(m)))
        want.append(g * q**g * p * (2 * q + s * (g * p - 1)) + (q ** (g + 1) + g * q**g * p * s) * p)
    want = as_long(want)
    for k in (0, 1):
        np.testing.assert_allclose(got[:, k], want.astype(float), rtol=2e-13, atol=1e-300)


def test_residual_is_the_gradients_magnitude():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 9)), rng.integers(0, 9, 5)
    _, grad, hess = fl.value_grad_hess(SPARSE, "residual")(labels=y, logits=x, softcap=2.0, z_loss=0.1)
    np.testing.assert_array_equal(hess, np.abs(grad))
    _, _, upper = fl.value_grad_hess(SPARSE, "upper")(labels=y, logits=x, temperature=2.0)
    _, _, diagonal = fl.value_grad_hess(SPARSE)(labels=y, logits=x, temperature=2.0)
    np.testing.assert_array_equal(upper, 2 * diagonal)


def test_one_focal_target_a_row_is_its_label():
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, 5, (30, 8)), rng.integers(0, 8, 30)
    for f in (FOCAL, POLY1):
        index, soft = (fl.value_and_grad(f)(labels=labels, logits=x) for labels in (y, np.eye(8, dtype=int)[y]))
        for a, b in zip(index, soft, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize(("f", "options", "error", "words"), [
    (SPARSE, {"z_loss": -1}, ValueError, r"z_loss must lie in \[0, inf\], got -1"),
    (SPARSE, {"softcap": 0}, ValueError, "softcap must be more than 0, got 0"),
    (SPARSE, {"temperature": 0.0}, ValueError, "temperature must be more than 0, got 0"),
    (SPARSE, {"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
    (POLY1, {"epsilon": -2}, ValueError, r"epsilon must lie in \[-1, inf\], got -2"),
    (FOCAL, {"gamma": -1}, ValueError, r"gamma must lie in \[0, inf\], got -1"),
    (FOCAL, {"labels": np.eye(3)[:2], "ignore_index": 0}, ValueError, "ignore_index must be None where labels are tar"),
    (POLY1, {"labels": [0, 3]}, ValueError, r"labels must lie in \[0, 3\), got 3 at row 1"),
    (FOCAL, {"labels": [0.0, 1.0]}, TypeError, "labels must be integers, got float64"),
    (FOCAL, {"labels": np.ones((4, 3))}, ValueError, r"labels must broadcast to shape \(2, 3\), got \(4, 3\)"),
])  # fmt: skip
def test_errors_name_argument_rule_and_value(f, options, error, words):
    out = np.full(2, 7, np.float64)
    with pytest.raises(error, match=words):
        f(**({"labels": [0, 1], "logits": np.zeros((2, 3)), "out": out} | options))
    assert (out == 7).all()


def test_what_has_no_derivative_is_refused():
    x = np.zeros((2, 3))
    with pytest.raises(TypeError, match="labels must be float16, bfloat16, float32 or float64 to have a gradient"):
        fl.value_and_grad(FOCAL, "labels")(labels=[0, 1], logits=x)
    for options in ({"z_loss": 0.1}, {"softcap": 2.0}):
        with pytest.raises(ValueError, match="hessian must be 'diagonal' or 'residual' where z_loss or soft"):
            fl.value_grad_hess(SPARSE, "upper")(labels=[0, 1], logits=x, **options)
    with pytest.raises(ValueError, match="hessian must be one of 'diagonal', got 'upper'"):
        fl.value_grad_hess(FOCAL, "upper")
