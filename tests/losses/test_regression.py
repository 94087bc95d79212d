"""Losses of predicted numbers: extremes against mpmath, kinks, infinities, sums."""

from __future__ import annotations

import warnings

import mpmath
import numpy as np
import pytest
import reference

import fastloss as fl

mpmath.mp.dps = 60
M = mpmath.mpf
INF = np.inf
FLOATS = [np.float32, np.float64]
NEAR = np.array([0, 1e-30, 1e-12, 1e-8, 1e-3, 0.3, 0.9999, 1, 1.5, 2, 3])
FAR = np.array([7, 20, 80])


def both_signs(*parts):
    a = np.concatenate(parts)
    return np.concatenate([-a[::-1], a])


def stirling(y):
    return y * mpmath.log(y) - y + mpmath.log(2 * mpmath.pi * y) / 2 if y > 1 else M(0)


def kl_terms(x, y):
    return [y * mpmath.log(y), -x * y] if y else [M(0)]


# name, options, value as a list of terms, gradient likewise, predictions, labels
CASES = [
    (
        "mean_squared_error",
        {},
        lambda x, y: [(x - y) ** 2],
        lambda x, y: [2 * (x - y)],
        both_signs(NEAR, FAR),
        [0, -2.5],
    ),
    ("mean_absolute_error", {}, lambda x, y: [abs(x - y)], lambda x, y: [mpmath.sign(x - y)], both_signs(NEAR), [0, 1]),
    (
        "huber_loss",
        {"delta": 1.5},
        lambda x, y: [(x - y) ** 2 / 2 if abs(x - y) <= 1.5 else M(1.5) * (abs(x - y) - M(0.75))],
        lambda x, y: [max(M(-1.5), min(M(1.5), x - y))],
        both_signs(NEAR, FAR),
        [0, 1],
    ),
    (
        "log_cosh_loss",
        {},
        lambda x, y: [mpmath.log1p(2 * mpmath.sinh((x - y) / 2) ** 2)],
        lambda x, y: [mpmath.tanh(x - y)],
        both_signs(NEAR, FAR, [1e4]),
        [0],
    ),
    (
        "quantile_loss",
        {"quantile": 0.75},
        lambda x, y: [M(0.25) * (x - y) if x > y else M(0.75) * (y - x)],
        lambda x, y: [M(0.25) if x > y else M(-0.75) if x < y else M(0)],
        both_signs(NEAR, FAR),
        [0, 1],
    ),
    (
        "poisson_loss",
        {},
        lambda x, y: [mpmath.exp(x), -x * y],
        lambda x, y: [mpmath.exp(x), -y],
        both_signs(NEAR, FAR),
        [0, 0.5, 3, 200],
    ),
    (
        "poisson_loss",
        {"compute_full_loss": True},
        lambda x, y: [mpmath.exp(x), -x * y, stirling(y)],
        lambda x, y: [mpmath.exp(x), -y],
        both_signs(NEAR, FAR),
        [0, 0.5, 1, 3, 200],
    ),
    (
        "gamma_loss",
        {},
        lambda x, y: [x, y * mpmath.exp(-x)],
        lambda x, y: [M(1), -y * mpmath.exp(-x)],
        both_signs(NEAR, FAR),
        [1e-3, 1, 50],
    ),
    *(
        (
            "tweedie_loss",
            {"power": p},
            lambda x, y, p=p: [mpmath.exp((2 - M(p)) * x) / (2 - M(p)), -y * mpmath.exp((1 - M(p)) * x) / (1 - M(p))],
            lambda x, y, p=p: [mpmath.exp((2 - M(p)) * x), -y * mpmath.exp((1 - M(p)) * x)],
            both_signs(NEAR, [7, 20]),
            [0, 0.5, 3],
        )
        for p in (-1.3, 1.1, 1.5, 1.9, 3, 3.3)
    ),
    (
        "hinge_loss",
        {},
        lambda x, y: [max(M(0), 1 - (2 * y - 1) * x)],
        lambda x, y: [-(2 * y - 1) if (2 * y - 1) * x < 1 else M(0)],
        both_signs(NEAR, FAR),
        [0, 1],
    ),
    (
        "squared_hinge_loss",
        {},
        lambda x, y: [max(M(0), 1 - (2 * y - 1) * x) ** 2],
        lambda x, y: [-2 * (2 * y - 1) * max(M(0), 1 - (2 * y - 1) * x)],
        both_signs(NEAR, FAR),
        [0, 1],
    ),
    ("kl_divergence", {}, kl_terms, lambda x, y: [-y], -np.concatenate([NEAR, FAR]), [0, 1e-40, 1e-3, 0.5, 1]),
]


def units(got, terms):
    """Error in units in the last place of the largest term, or of the result where that is larger."""
    want = sum(terms, M(0))
    size = max([abs(t) for t in terms] + [abs(want)])
    if size > float(np.finfo(got.dtype).max):
        assert not np.isfinite(got)
        return 0.0
    unit = max(float(np.spacing(got.dtype.type(size))), float(np.finfo(got.dtype).smallest_subnormal))
    return abs(float((M(float(got)) - want) / M(unit)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0] + "".join(f"-{v}" for v in c[1].values()))
def test_against_mpmath(case, dtype):
    name, options, value_terms, grad_terms, xs, ys = case
    x, y = (a.ravel() for a in np.meshgrid(xs.astype(dtype), np.array(ys, dtype)))
    f = fl.value_and_grad(getattr(fl, name))
    with np.errstate(over="ignore"):
        value, grad = f(labels=y, predictions=x, reduction="none", **options)
    for v, g, a, b in zip(value, grad, x, y, strict=True):
        a, b = M(float(a)), M(float(b))
        assert units(v, value_terms(a, b)) <= (2 if dtype == np.float32 else 4), (a, b)
        assert units(g, grad_terms(a, b)) <= 4, (a, b)


def test_the_terms_of_power_0_1_and_2():
    x, y = np.linspace(-2, 2, 9), np.linspace(0.1, 3, 9)
    f = fl.tweedie_loss
    np.testing.assert_array_equal(f(labels=y, predictions=x, power=1), fl.poisson_loss(labels=y, predictions=x))
    np.testing.assert_array_equal(f(labels=y, predictions=x, power=2), fl.gamma_loss(labels=y, predictions=x))
    want = fl.mean_squared_error(labels=y, predictions=np.exp(x)) / 2
    np.testing.assert_allclose(f(labels=y, predictions=x, power=0), want, rtol=1e-14)


def test_kinks_have_gradient_zero():
    for f in (fl.mean_absolute_error, fl.quantile_loss, fl.huber_loss, fl.log_cosh_loss):
        assert fl.value_and_grad(f)(labels=[2.0], predictions=np.array([2.0]))[1] == 0
    assert fl.value_and_grad(fl.hinge_loss)(labels=[1], predictions=np.array([1.0]))[1] == 0


def test_infinite_arguments():
    for name, x, y, want in [
        ("mean_squared_error", INF, 0, INF),
        ("mean_squared_error", INF, INF, np.nan),
        ("log_cosh_loss", -INF, 0, INF),
        ("huber_loss", -INF, 0, INF),
        ("quantile_loss", INF, 0, INF),
        ("poisson_loss", -INF, 0, 0),
        ("poisson_loss", -INF, 2, INF),
        ("poisson_loss", INF, 2, INF),
        ("poisson_loss", 800, 2, INF),
        ("gamma_loss", INF, 1, INF),
        ("gamma_loss", -INF, 1, INF),
        ("tweedie_loss", INF, 1, INF),
        ("tweedie_loss", -INF, 1, INF),
        ("tweedie_loss", -INF, 0, 0),
        ("hinge_loss", INF, 1, 0),
        ("hinge_loss", INF, 0, INF),
        ("squared_hinge_loss", -INF, 1, INF),
        ("kl_divergence", -INF, 0, 0),
        ("kl_divergence", -INF, 0.5, INF),
        ("kl_divergence", -1.0, -0.5, np.nan),
    ]:
        for dtype in FLOATS:
            got = getattr(fl, name)(labels=[y], predictions=np.array([x], dtype), reduction="sum")
            np.testing.assert_array_equal(got, dtype(want), err_msg=f"{name} {x} {y}")
    for power in (3.0, -1.0):
        assert fl.tweedie_loss(labels=[1.0], predictions=np.array([-800.0 if power > 0 else 800.0]), power=power) == INF


def test_denormal_probabilities():
    y = np.array([5e-324, 1e-310, 1e-300])
    want = [float(M(v) * mpmath.log(M(v))) for v in y.tolist()]
    assert reference.ulps(fl.kl_divergence(labels=y, predictions=np.zeros(3), reduction="none"), want).max() <= 4


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_long_mean_is_right(n_threads):
    n = 2_000_003
    x = np.random.default_rng(0).normal(1e3, 1, n).astype(np.float32)
    want = ((x.astype(np.longdouble) - 1) ** 2).mean()
    got = fl.mean_squared_error(labels=1, predictions=x, n_threads=n_threads)
    assert got.dtype == np.float32
    assert got == np.float32(want)
    same = np.full(n, 0.1, np.float32)
    want = np.float32(np.longdouble(same[0]) ** 2)
    assert fl.mean_squared_error(labels=0, predictions=same, n_threads=n_threads) == want


@pytest.mark.parametrize("scale", [1e-21, 1e-3, 1, 1e15])
def test_sums_of_squares_at_any_scale(scale):
    rng = np.random.default_rng(8)
    x, y = (rng.normal(0, scale, 5_000).astype(np.float32) for _ in range(2))
    want = np.square(reference.wide(x) - reference.wide(y)).mean()
    assert reference.ulps(fl.mean_squared_error(labels=y, predictions=x), want, np.float32) <= 2


def test_bits_of_a_sum_do_not_depend_on_the_layout():
    x = np.random.default_rng(0).normal(size=(300, 217)).astype(np.float32)
    want = fl.mean_squared_error(labels=0.5, predictions=x)
    for a in (np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1].copy()[::-1], x.reshape(300, 7, 31)):
        assert fl.mean_squared_error(labels=0.5, predictions=a) == want


def test_weights_are_read_as_they_are():
    x = np.random.default_rng(0).normal(size=(40, 50))
    e = x**2
    full = np.arange(2000, dtype=np.int16).reshape(40, 50)
    for w in (np.arange(50), np.arange(40)[:, None] / 7, np.float16(3), full):
        full = np.broadcast_to(w, x.shape).astype(float)
        got = fl.mean_squared_error(labels=0, predictions=x, sample_weight=w)
        np.testing.assert_allclose(got, (e * full).sum() / full.sum(), rtol=1e-14)
        value, grad = fl.value_and_grad(fl.mean_squared_error)(labels=0, predictions=x, sample_weight=w, cotangent=2.0)
        assert value == got
        np.testing.assert_allclose(grad, 4 * x * full / full.sum(), rtol=1e-14, atol=1e-300)


def test_large_outputs_are_written_past_the_caches_and_right():
    x = np.random.default_rng(0).random(9_000_001, np.float32)
    value, grad = fl.value_and_grad(fl.mean_squared_error)(labels=1, predictions=x[1:], reduction="none")
    np.testing.assert_array_equal(value, ((x[1:].astype(float) - 1) ** 2).astype(np.float32))
    np.testing.assert_array_equal(grad, (2 * (x[1:].astype(float) - 1)).astype(np.float32))


def test_bad_parameters():
    for name, option, words in [
        ("huber_loss", {"delta": 0}, "delta must be more than 0, got 0"),
        ("huber_loss", {"delta": np.nan}, "delta must lie in"),
        ("quantile_loss", {"quantile": 1.5}, r"quantile must lie in \[0, 1\], got 1.5"),
        ("tweedie_loss", {"power": np.nan}, "power must lie in"),
    ]:
        with pytest.raises(ValueError, match=words):
            getattr(fl, name)(labels=[1.0], predictions=[1.0], **option)
    with pytest.raises(ValueError, match=r"labels must broadcast to shape \(3, 1\), got \(3,\)"):
        fl.mean_squared_error(labels=np.zeros(3), predictions=np.zeros((3, 1)))


# ------------------------------------------------------------------ peers


def test_agrees_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, y, p = rng.normal(size=200), rng.normal(size=200), rng.random(200)
    t = torch.nn.functional
    for name, labels, peer in [
        ("mean_squared_error", y, t.mse_loss),
        ("mean_absolute_error", y, t.l1_loss),
        ("huber_loss", y, t.huber_loss),
        ("poisson_loss", p, t.poisson_nll_loss),
        ("kl_divergence", p, t.kl_div),
    ]:
        a = torch.tensor(x, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kl_div's advice about its mean
            want = peer(a, torch.tensor(labels))
        want.backward()
        value, grad = fl.value_and_grad(getattr(fl, name))(labels=labels, predictions=x)
        np.testing.assert_allclose(value, want.item(), rtol=1e-12)
        np.testing.assert_allclose(grad, a.grad.numpy(), rtol=1e-12, atol=1e-15)
    a = torch.tensor(x, requires_grad=True)
    want = t.binary_cross_entropy_with_logits(a, torch.tensor(p), pos_weight=torch.tensor(3.0))
    want.backward()
    f = fl.value_and_grad(fl.weighted_cross_entropy_with_logits)
    value, grad = f(labels=p, logits=x, pos_weight=3.0, reduction="mean")
    np.testing.assert_allclose(value, want.item(), rtol=1e-12)
    np.testing.assert_allclose(grad, a.grad.numpy(), rtol=1e-12, atol=1e-15)


def test_the_mean_of_a_hundred_million_values():
    # multiples of 2^-24 below 1: any float64 sum of them is exact
    x = np.random.default_rng(0).random(100_000_000, dtype=np.float32)
    want = np.float32(x.sum(dtype=np.float64) / x.size)
    got = [fl.mean_absolute_error(labels=np.float32(0), predictions=x, n_threads=n) for n in (1, 2, 3)]
    assert got[0] == got[1] == got[2]
    assert abs(got[0] - want) <= np.spacing(want)
