"""exp, log and log1p of the kernels, and the half types, each over all the arguments that it can meet."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import reference

from fastloss import _native
from fastloss._native import probe

CHUNK = 1 << 18  # stays in the second-level cache
TERMS = 0.9 if _native.isa == "baseline" else 0.66  # without fma they are made one by one


def floats(first, last):
    """Every float32 from first to last, which have one sign, chunk by chunk."""
    a, b = sorted(int(np.float32(v).view(np.uint32)) for v in (first, last))
    return [(k, min(k + CHUNK, b + 1)) for k in range(a, b + 1, CHUNK)]


def exp_of(x, kind):
    """exp(x) 2^BIAS: of one, of one and finer, or of many at once, as terms of a sum or not."""
    many = np.zeros(-(-x.size // 64) * 64, x.dtype)
    many[: x.size] = x
    out = np.empty_like(many)
    if kind in ("many", "terms"):
        probe.exp_many(many, out, False, kind == "terms")
    else:
        probe.exp(many, out, kind == "fine")
    return out[: x.size]


def worst_exp(bounds, kind):
    x = np.arange(*bounds, dtype=np.uint32).view(np.float32)
    out = exp_of(x, kind)
    out *= np.float32(2.0**-49)
    if abs(x).max() < 2.0**-26:  # so near 1 that only 1 is right to the last place
        return 0.0 if (out == 1).all() else np.inf
    want = np.exp(x.astype(np.float64))
    distance = np.abs(out - want)
    distance /= np.spacing(want.astype(np.float32))
    return distance.max()


@pytest.mark.parametrize(("kind", "most"), [("one", 1), ("fine", 0.8), ("many", 0.9), ("terms", TERMS)])
def test_every_float32_exp(kind, most):
    least = 0.0 if kind == "one" else 2.0**-26
    # beyond: -122 gives 0, and a row whose top exceeds its reference by 2^29 is done again
    chunks = floats(-87.3, -least) + floats(least, 20.2)
    with ThreadPoolExecutor(2) as pool:
        worst = max(pool.map(lambda c: worst_exp(c, kind), chunks))
    assert worst <= most
    assert len(chunks) * CHUNK > (5e8 if least else 2.2e9)


@pytest.mark.parametrize("kind", ["one", "many", "terms"])
def test_exp_below_the_normal_range(kind):
    """Results under 2^-126 that the bias keeps exact: every argument from -121 to -87.3."""
    for a, b in floats(-121, -87.3):
        x = np.arange(a, b, dtype=np.uint32).view(np.float32)
        out = exp_of(x, kind)
        want = np.exp(x.astype(np.float64)) * 2.0**49
        most = 1.1 if kind == "one" and want.min() < 2.0**-125 else 1  # the lowest binade: a factor is subnormal there
        assert (np.abs(out - want) / np.spacing(want.astype(np.float32))).max() <= most


@pytest.mark.parametrize("kind", ["one", "many", "terms"])
def test_exp_at_the_ends(kind):
    for dtype in (np.float32, np.float64):
        x = np.array([-np.inf, -1e30, 0, -0.0, np.nan, -np.nan], dtype)
        one = 2.0 ** probe.BIAS[np.dtype(dtype).name]
        np.testing.assert_array_equal(exp_of(x, kind), [0, 0, one, one, np.nan, np.nan])


@pytest.mark.parametrize("summed", [False, True])
def test_exp_of_many_minus(summed):
    """To the bit that of the opposite."""
    rng = np.random.default_rng(7)
    for dtype, far in ((np.float32, 120), (np.float64, 790)):
        x = np.concatenate([rng.uniform(0, far, 64_000), 10.0 ** rng.uniform(-12, 0, 63_936), [0.0] * 63, [np.nan]])
        x = x.astype(dtype)
        out, want = np.empty_like(x), np.empty_like(x)
        probe.exp_many(x, out, True, summed)
        probe.exp_many(-x, want, False, summed)
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(("kind", "most"), [("fine", 0.75), ("one", 0.95), ("many", 0.75)])
def test_exp_float64(kind, most):
    rng = np.random.default_rng(0)
    x = np.concatenate([-rng.uniform(0, 780, 300_000), rng.uniform(-1, 1, 300_000), rng.uniform(0, 277, 100_000),
                        -(10.0 ** rng.uniform(-12, 0, 50_000)), 10.0 ** rng.uniform(-12, 0, 50_000)])  # fmt: skip
    out = exp_of(x, kind)
    assert reference.ulps(out, np.exp(x.astype(np.longdouble)) * np.longdouble(2) ** 120).max() <= most


def test_exp_short():
    rng = np.random.default_rng(6)
    x = np.concatenate([-rng.uniform(0, 780, 300_000), rng.uniform(-1, 1, 300_000), [0.0, -np.inf, np.nan]])
    out = np.empty_like(x)
    probe.exp_short(x, out)
    np.testing.assert_array_equal(out[-3:], [2.0**120, 0, np.nan])
    want = np.exp(x[:-3].astype(np.longdouble)) * np.longdouble(2) ** 120
    assert (np.abs(out[:-3] - want) / want).max() <= 2.0**-33


def test_log1p():
    rng = np.random.default_rng(1)
    x = np.concatenate([10.0 ** rng.uniform(-300, 300, 200_000), 10.0 ** rng.uniform(-3, 3, 200_000),
                        rng.uniform(0.4, 0.5, 200_000), [0.0, 2.0**-1074]])  # fmt: skip
    out = np.empty_like(x)
    want = np.log1p(x.astype(np.longdouble))
    probe.log1p(x, out, False)
    assert reference.ulps(out, want).max() <= 1
    probe.log1p(x, out, True)
    normal = want > 1e-37
    assert reference.ulps(out[normal], want[normal], np.float32).max() <= 0.02


def test_log():
    rng = np.random.default_rng(2)
    ends = [1.0, np.finfo(float).tiny, np.finfo(float).max]
    x = np.concatenate([10.0 ** rng.uniform(-307, 308, 200_000), rng.uniform(0.5, 2, 200_000),
                        1 + 2.0 ** -rng.uniform(1, 52, 20_000), ends])  # fmt: skip
    out = np.empty_like(x)
    probe.log(x, out)
    assert reference.ulps(out, np.log(x.astype(np.longdouble))).max() <= 1


@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_half(bfloat16):
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    probe.widen(bits, out, bfloat16)
    want = bits.view(ml_dtypes.bfloat16 if bfloat16 else np.float16).astype(np.float32)
    np.testing.assert_array_equal(out, want)
    assert (np.signbit(out) == np.signbit(want)).all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_rounding_to_half(bfloat16):
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 2_000_000, dtype=np.uint32)
    halves = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16 if bfloat16 else np.float16).astype(np.float32)
    edges = halves[np.isfinite(halves)]
    ties = (edges[:-1] / 2 + edges[1:] / 2).astype(np.float32)
    near = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))])
    x = np.concatenate([bits.view(np.float32), halves, near, np.float32([65504, 65519.996, 65520, 1e30])])
    out = np.empty(x.shape, np.uint16)
    probe.narrow(x, out, bfloat16)
    got = out.view(ml_dtypes.bfloat16 if bfloat16 else np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(got.dtype)
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))
    assert (np.signbit(got) == np.signbit(want)).all()
