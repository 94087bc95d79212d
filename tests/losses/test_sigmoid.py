"""Losses of independent logits: golden values, extremes, infinities, and the functions themselves."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import reference
from golden import cases

import fastloss as fl

mpmath.mp.dps = 60
FLOATS = [np.float32, np.float64]
LIMIT = {np.float32: 2, np.float64: 4}
INF = np.inf
EDGES = np.array([0, 1e-30, 1e-8, 0.3, 1, 5, 17, 40, 87, 100, 103, 300, 700, 745, 1e4])
MARGINS = np.concatenate([-EDGES[::-1], EDGES])


def golden(dtype):
    found = [c for c in cases("exact_sigmoid") if c["dtype"] == np.dtype(dtype).name]
    x, z, q = (np.array([float(c[k]) for c in found], dtype) for k in ("logit", "label", "pos_weight"))
    loss, grad = (np.array([float(c[k]) for c in found]) for k in ("loss", "d_logit"))
    return x, z, q, loss, grad


def larger_term(x, z, q):
    """Of the gradient: what its error is measured in."""
    p = 1 / (1 + np.exp(-reference.wide(x)))
    not_p = 1 / (1 + np.exp(reference.wide(x)))
    return np.maximum(abs((1 - reference.wide(z)) * p), abs(reference.wide(q) * reference.wide(z) * not_p))


def in_units_of(got, want, term):
    dtype = got.dtype
    unit = np.maximum(np.spacing(term.astype(dtype)).astype(np.longdouble), np.finfo(dtype).smallest_subnormal)
    return (np.abs(reference.wide(got) - want) / unit).max()


@pytest.mark.parametrize("dtype", FLOATS)
def test_golden(dtype):
    x, z, q, loss, grad = golden(dtype)
    assert len(x) > 2000
    value, got = fl.value_and_grad(fl.weighted_cross_entropy_with_logits)(labels=z, logits=x, pos_weight=q)
    assert reference.ulps(value, loss).max() <= LIMIT[dtype]
    assert in_units_of(got, grad, larger_term(x, z, q)) <= 4
    one = q == 1
    value, got = fl.value_and_grad(fl.sigmoid_cross_entropy_with_logits)(labels=z[one], logits=x[one])
    assert reference.ulps(value, loss[one]).max() <= LIMIT[dtype]
    assert in_units_of(got, grad[one], larger_term(x, z, q)[one]) <= 4


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_logits_and_soft_labels(dtype):
    rng = np.random.default_rng(5)
    n = 200_000
    x = np.concatenate([rng.normal(0, 4, n), rng.uniform(-110, 110, n), np.exp(rng.uniform(-60, 7, n))]).astype(dtype)
    small = np.exp(-rng.uniform(0, 20, 2 * n))
    z = np.concatenate([rng.random(n), small[:n], 1 - small[n:]]).astype(dtype)
    q = np.exp(rng.uniform(-3, 3, 3 * n)).astype(dtype)
    want = reference.sigmoid_cross_entropy(z, x, q)
    value, grad = fl.value_and_grad(fl.weighted_cross_entropy_with_logits)(labels=z, logits=x, pos_weight=q)
    assert reference.ulps(value, want).max() <= LIMIT[dtype]
    p, not_p = 1 / (1 + np.exp(-reference.wide(x))), 1 / (1 + np.exp(reference.wide(x)))
    want = (1 - reference.wide(z)) * p - reference.wide(q) * reference.wide(z) * not_p
    assert in_units_of(grad, want, larger_term(x, z, q)) <= 4
    value = fl.sigmoid_cross_entropy_with_logits(labels=z, logits=x)
    assert reference.ulps(value, reference.sigmoid_cross_entropy(z, x)).max() <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weighted", [False, True])
def test_infinite_logits(dtype, weighted):
    x = np.array([INF, INF, INF, -INF, -INF, -INF], dtype)
    z = np.array([0, 0.5, 1, 0, 0.5, 1], dtype)
    q = 2 if weighted else 1
    f, more = fl.sigmoid_cross_entropy_with_logits, {}
    if weighted:
        f, more = fl.weighted_cross_entropy_with_logits, {"pos_weight": 2}
    value, (grad, labels_grad) = fl.value_and_grad(f, ("logits", "labels"))(labels=z, logits=x, **more)
    np.testing.assert_array_equal(value, [INF, INF, 0, 0, INF, INF])
    np.testing.assert_array_equal(grad, [1, 0.5, 0, 0, -0.5 * q, -q])
    np.testing.assert_array_equal(labels_grad, [-INF, -INF, -INF, INF, INF, INF])


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_coefficients_hide_infinite_terms(dtype):
    f = fl.value_and_grad(fl.weighted_cross_entropy_with_logits, ("logits", "labels", "pos_weight"))
    value, (grad, _, weight_grad) = f(
        labels=np.array([1, 0], dtype), logits=np.array([-INF, -INF], dtype), pos_weight=np.array([0, 5], dtype)
    )
    assert value.tolist() == [0, 0]
    assert grad.tolist() == [0, 0]
    assert weight_grad.tolist() == [INF, 0]


def test_gradient_at_zero_is_the_true_one():
    for z, q, want in [(0, 1, 0.5), (1, 1, -0.5), (1, 3, -1.5), (0.5, 3, -0.5)]:
        f = fl.value_and_grad(fl.weighted_cross_entropy_with_logits)
        assert f(labels=z, logits=np.float32(0), pos_weight=q)[1] == want


def test_labels_of_every_dtype():
    x = np.linspace(-3, 3, 7).astype(np.float32)
    z = np.array([0, 1, 1, 0, 1, 0, 1])
    want = fl.sigmoid_cross_entropy_with_logits(labels=z.astype(np.float32), logits=x)
    for dtype in "?bBhHiIlLefd":
        assert (fl.sigmoid_cross_entropy_with_logits(labels=z.astype(dtype), logits=x) == want).all()
    with pytest.raises(TypeError, match="labels must hold real numbers"):
        fl.sigmoid_cross_entropy_with_logits(labels=z.astype(complex), logits=x)
    with pytest.raises(TypeError, match="labels must be float16, bfloat16, float32 or float64 to have a gradient"):
        fl.value_and_grad(fl.sigmoid_cross_entropy_with_logits, "labels")(labels=z, logits=x)


def test_broadcasting():
    rng = np.random.default_rng(0)
    x, z, q = rng.normal(size=(3, 4)), rng.random(4), rng.random((3, 1))
    f = fl.value_and_grad(fl.weighted_cross_entropy_with_logits, ("logits", "labels", "pos_weight"))
    full = f(labels=np.tile(z, (3, 1)), logits=x, pos_weight=np.tile(q, 4))
    value, grads = f(labels=z, logits=x, pos_weight=q)
    np.testing.assert_array_equal(value, full[0])
    np.testing.assert_array_equal(grads[0], full[1][0])
    np.testing.assert_allclose(grads[1], full[1][1].sum(0), rtol=1e-15)
    np.testing.assert_allclose(grads[2], full[1][2].sum(1, keepdims=True), rtol=1e-15)
    small = rng.normal(size=4)  # pos_weight is the larger one
    value, grads = f(labels=z, logits=small, pos_weight=np.tile(q, 4), reduction="sum")
    full = f(labels=np.tile(z, (3, 1)), logits=np.tile(small, (3, 1)), pos_weight=np.tile(q, 4), reduction="sum")
    assert value == full[0]
    np.testing.assert_allclose(grads[0], full[1][0].sum(0), rtol=1e-15)
    for bad in ({"labels": np.zeros((4, 3))}, {"labels": np.zeros((2, 3, 4))}):
        with pytest.raises(ValueError, match="labels must broadcast to shape"):
            fl.sigmoid_cross_entropy_with_logits(**bad, logits=x)
    with pytest.raises(ValueError, match="logits and pos_weight must broadcast together"):
        fl.weighted_cross_entropy_with_logits(labels=z, logits=x, pos_weight=np.ones(3))


def test_old_names():
    x, z = np.array([0.5, -2]), np.array([1, 0])
    f = fl.weighted_cross_entropy_with_logits
    np.testing.assert_array_equal(f(targets=z, logits=x, pos_weight=2, name="n"), f(labels=z, logits=x, pos_weight=2))
    with pytest.raises(TypeError, match="labels must be given"):
        f(logits=x, pos_weight=2)
    with pytest.raises(TypeError, match="targets is another name of labels"):
        f(labels=z, targets=z, logits=x, pos_weight=2)


# ------------------------------------------------------------------ focal loss


def as_long(values):
    """mpmath's numbers as long doubles, 0 where they are too small for that."""
    return np.array([np.longdouble(mpmath.nstr(v, 25)) if abs(v) > mpmath.mpf("1e-4000") else 0 for v in values])


def focal(x, z, gamma, derivative=0):
    """Of one logit, by mpmath."""
    if z == 0:
        return (-1) ** derivative * focal(-x, 1, gamma, derivative)
    x, g = mpmath.mpf(float(x)), mpmath.mpf(gamma)
    q, p = 1 / (1 + mpmath.exp(x)), 1 / (1 + mpmath.exp(-x))
    s = mpmath.log1p(mpmath.exp(-x))
    if derivative == 0:
        return q**g * s
    return -(q**g) * (g * p * s + q)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 3.7])
def test_focal_at_every_margin(dtype, gamma):
    x = MARGINS.astype(dtype)
    for z in (0, 1):
        value, grad = fl.value_and_grad(fl.sigmoid_focal_loss)(labels=z, logits=x, gamma=gamma)
        for derivative, got in enumerate([value, grad]):
            want = [focal(v, z, gamma, derivative) for v in x]
            want = as_long(want)
            limit = (4 + 2 * derivative) * (1 if dtype == np.float32 else max(1, gamma))
            assert reference.ulps(got, want).max() <= limit


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 50.0])
def test_focal_gradients_are_finite(gamma):
    for dtype in FLOATS:
        x = np.concatenate([MARGINS, [INF, -INF]]).astype(dtype)
        for z in (0.0, 0.5, 1.0):
            grad = fl.value_and_grad(fl.sigmoid_focal_loss)(labels=z, logits=x, gamma=gamma)[1]
            assert np.isfinite(grad).all()


def test_focal_options():
    x = np.linspace(-4, 4, 9)
    plain = fl.sigmoid_cross_entropy_with_logits(labels=1, logits=x)
    np.testing.assert_allclose(fl.sigmoid_focal_loss(labels=1, logits=x, gamma=0), plain, rtol=1e-15)
    np.testing.assert_allclose(fl.sigmoid_focal_loss(labels=1, logits=x, gamma=0, alpha=0.25), plain / 4, rtol=1e-15)
    for option, words in [({"gamma": -1}, r"gamma must lie in \[0, inf"), ({"alpha": 2}, r"alpha must lie in \[0, 1")]:
        with pytest.raises(ValueError, match=words):
            fl.sigmoid_focal_loss(labels=1, logits=x, **option)


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_focal_in_the_tails(gamma, dtype):
    margins = np.array([-700, -80, -20, 0, 1, 20, 40, 80]).astype(dtype)
    x = np.stack([margins, np.zeros_like(margins)], 1)
    value, grad = fl.value_and_grad(fl.softmax_focal_loss)(labels=np.zeros(8, int), logits=x, gamma=gamma)
    want = as_long([focal(m, 1, gamma) for m in margins])
    assert reference.ulps(value, want).max() <= LIMIT[dtype] * max(1, gamma)
    want = as_long([focal(m, 1, gamma, 1) for m in margins])
    assert reference.ulps(grad[:, 0], want).max() <= 6 * max(1, gamma)
    np.testing.assert_array_equal(grad[:, 1], -grad[:, 0])


@pytest.mark.parametrize("q", [1e-3, 0.7, 1, 3, 1e4, 0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_whole_labels_cost_no_accuracy_and_change_no_bit(dtype, q):
    """Spans with labels 0 and 1 only have a loop of their own."""
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(0, 4, 30_000), rng.choice([-1, 1], 30_000) * 2.0 ** rng.uniform(-40, 6, 30_000)])
    x = x.astype(dtype)
    z = (rng.random(x.size) < 0.5).astype(dtype)
    loss = fl.weighted_cross_entropy_with_logits(labels=z, logits=x, pos_weight=dtype(q))
    wide = reference.wide(x)
    want = np.where(z != 0, reference.wide(dtype(q)) * reference.softplus(-wide), reference.softplus(wide))
    assert reference.ulps(loss, want).max() <= LIMIT[dtype]
    mixed, far = z.copy(), x.copy()
    mixed[::100] = 0.3
    far[::100] = -1e4
    keep = np.arange(x.size) % 100 != 0
    for labels, logits in [(mixed, x), (z, far)]:
        again = fl.weighted_cross_entropy_with_logits(labels=labels, logits=logits, pos_weight=dtype(q))
        np.testing.assert_array_equal(again[keep], loss[keep])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("far", [3, 63, 65, 100, 600, 1e4, np.inf])
def test_one_pos_weight_for_all_has_the_bits_of_many(dtype, far):
    """Spans of whole labels and one pos_weight take another way, unless a logit is too far out."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000).astype(dtype) * 20
    x[[5, 700, 1500, 2999]] = [far, -far, far, -far]  # spans of either kind
    x[2000] = -0.0
    z = (rng.random(3000) < 0.3).astype(dtype)
    z[1100] = -0.0
    for q in (0, 0.3, 2, 1e20):
        f = fl.value_and_grad(fl.weighted_cross_entropy_with_logits)
        value, grad = f(labels=z, logits=x, pos_weight=dtype(q))
        many, many_grad = f(labels=z, logits=x, pos_weight=np.full(3000, q, dtype))
        np.testing.assert_array_equal(value.view(np.uint8), many.view(np.uint8))
        np.testing.assert_array_equal(grad.view(np.uint8), many_grad.view(np.uint8))
        in_place = x.copy()  # must not be written before the way is chosen
        f(labels=z, logits=in_place, pos_weight=dtype(q), grad_out=in_place)
        np.testing.assert_array_equal(in_place.view(np.uint8), grad.view(np.uint8))


# ------------------------------------------------------------------ the functions


@pytest.mark.parametrize("dtype", FLOATS)
def test_functions_are_exact(dtype):
    rng = np.random.default_rng(2)
    x = np.concatenate([MARGINS, rng.normal(0, 5, 50_000), rng.uniform(-110, 110, 50_000)]).astype(dtype)
    wide = reference.wide(x)
    for f, want in [
        (fl.softplus, reference.softplus(wide)),
        (fl.log_sigmoid, -reference.softplus(-wide)),
        (fl.sigmoid, 1 / (1 + np.exp(-wide))),
    ]:
        assert reference.ulps(f(x), want).max() <= LIMIT[dtype]


def test_functions_at_infinity():
    x = np.array([-INF, -0.0, INF, np.nan])
    np.testing.assert_array_equal(fl.sigmoid(x), [0, 0.5, 1, np.nan])
    np.testing.assert_array_equal(fl.softplus(x)[[0, 2, 3]], [0, INF, np.nan])
    np.testing.assert_array_equal(fl.log_sigmoid(x)[[0, 2, 3]], [-INF, 0, np.nan])


@pytest.mark.parametrize("f", [fl.sigmoid, fl.log_sigmoid, fl.softplus])
def test_functions_write_where_they_are_told(f):
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    want = f(x)
    for a in (x.copy(), np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]):
        assert f(a, out=a) is a
        np.testing.assert_array_equal(a, want)
    out = np.empty_like(x)
    assert f(x, out=out) is out
    assert f(np.asfortranarray(x)).flags.f_contiguous
    assert f(np.float64(1)).shape == ()
    assert f(x.astype(np.float16)).dtype == np.float16
    with pytest.raises(ValueError, match="out must not overlap x"):
        f(x[1:], out=x[:-1])
    with pytest.raises(TypeError, match="x must be float16"):
        f([1, 2])


# ------------------------------------------------------------------ reductions


def test_a_long_mean_is_right_and_does_not_depend_on_threads():
    x = np.random.default_rng(0).normal(0, 3, 3_000_001).astype(np.float32)
    x[:1000] = 1e4
    z = (x > 0).astype(np.int8)
    want = reference.sigmoid_cross_entropy(z, x).mean()
    got = [fl.sigmoid_cross_entropy_with_logits(labels=z, logits=x, reduction="mean", n_threads=t) for t in (1, 2, 3)]
    assert len(set(got)) == 1
    assert reference.ulps(got[0], want) <= 1


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("logits", ["zero", "one number", "spread", "tiny tails"])
def test_sums_by_products_lose_nothing(dtype, logits):
    """A sum takes one logarithm for many elements.  Of constant logits every rounding is the same: in float64 they add
    up, though less than those of a plain sum, to 75 ulp."""
    most = {np.float32: 2, np.float64: 16}[dtype]
    rng = np.random.default_rng(11)
    n = 33_000 + 64 + 32 + 7
    x = {
        "zero": np.zeros(n),
        "one number": np.full(n, 0.7310586),
        "spread": rng.normal(0, 5, n),
        "tiny tails": -rng.uniform(20, 60, n),
    }[logits].astype(dtype)
    for z in (np.zeros(n, dtype), np.ones(n, dtype), (rng.random(n) < 0.2).astype(dtype), rng.random(n).astype(dtype)):
        want = reference.sigmoid_cross_entropy(z, x).sum()
        got = fl.sigmoid_cross_entropy_with_logits(labels=z, logits=x, reduction="sum")
        assert reference.ulps(got, want) <= most
        for q in (0, 1e-12, 0.3, 2.5, 1e25):
            want = reference.sigmoid_cross_entropy(z, x, dtype(q)).sum()
            got = fl.weighted_cross_entropy_with_logits(labels=z, logits=x, pos_weight=dtype(q), reduction="sum")
            assert reference.ulps(got, want) <= most, (q, z[:5])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_keep_infinities_and_nan(dtype, weighted):
    z = np.tile(np.array([0, 1], dtype), 500)
    for at, number, want in [(300, -INF, 0), (301, INF, 0), (300, INF, INF), (301, -INF, INF), (300, np.nan, np.nan)]:
        x = np.where(z == 1, 200, -200).astype(dtype)
        x[at] = number
        if weighted:
            got = fl.weighted_cross_entropy_with_logits(labels=z, logits=x, pos_weight=3, reduction="sum")
        else:
            got = fl.sigmoid_cross_entropy_with_logits(labels=z, logits=x, reduction="sum")
        np.testing.assert_allclose(got, want, atol=1e-80)
    with np.errstate(invalid="ignore"):
        z[7] = np.nan
        assert np.isnan(fl.sigmoid_cross_entropy_with_logits(labels=z, logits=np.ones_like(z), reduction="mean"))


def test_more_elements_than_an_int32_counts():
    x = np.broadcast_to(np.float32(0.5), (3, 2**30))
    got = fl.mean_squared_error(labels=np.broadcast_to(np.int8(1), x.shape), predictions=x)
    assert got == 0.25
