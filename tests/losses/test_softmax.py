"""The softmax stem: exactness at every margin, special values, options, errors."""

from __future__ import annotations

import golden
import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fastloss as fl

SPARSE = fl.sparse_softmax_cross_entropy_with_logits
DENSE = fl.softmax_cross_entropy_with_logits
LOSS_ULP = {"float32": 2, "float64": 4}
GRAD_ULP = 4
WIDTHS = [2, 3, 10, 13, 17, 33, 64, 65, 100, 1000, 2049, 5001]


def check_exact(x, y, loss, grad, want, want_grad):
    """Section 5 of the design: each number apart, the label's entry and the others."""
    name = x.dtype.name
    assert reference.ulps(loss, want).max() <= LOSS_ULP[name]
    assert reference.ulps(grad, want_grad).max() <= GRAD_ULP


def both(x, y, dense):
    labels = reference.one_hot(y, x.shape[1]).astype(x.dtype) if dense else y
    return fl.value_and_grad(DENSE if dense else SPARSE)(labels=labels, logits=x)


# ------------------------------------------------------------------ exact


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("padding", [0, 70])
def test_golden(dense, padding):
    """As recorded, and with masked classes after, which takes narrow rows to the row-by-row kernel."""
    for case in golden.cases("exact_softmax"):
        x = np.array([[float(v) for v in case["logits"]] + [-np.inf] * padding], case["dtype"])
        y = np.array([case["label"]])
        grad = np.array([[float(v) for v in case["grad"]] + [0.0] * padding])
        loss, got = both(x, y, dense)
        check_exact(x, y, loss, got, [float(case["loss"])], grad)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", WIDTHS)
def test_random_rows_at_every_margin(c, dtype, dense):
    rng = np.random.default_rng(c)
    n = max(8, min(64, 20000 // c))
    rows = np.arange(n)
    for kind in ("spread 1", "spread 20", "ahead", "behind", "background", "offset 300", "offset 5000"):
        x = rng.standard_normal((n, c)) * (20 if kind == "spread 20" else 1)
        y = rng.integers(0, c, n)
        if kind == "background":
            x[:] = 0.1
        if kind.startswith("offset"):
            x += float(kind.split()[1])
        if not kind.startswith("spread"):
            x[rows, y] = -np.inf
            x[rows, y] = x.max(1) + rng.uniform(*((-100, 0) if kind == "behind" else (0, 100)), n)
        x = x.astype(dtype)
        loss, grad = both(x, y, dense)
        if c <= 100:
            want, want_grad, _ = reference.cross_entropy(y, x)
        else:
            want, want_grad = wide_rows(x, y)
        check_exact(x, y, loss, grad, want, want_grad)


def wide_rows(x, y):
    """The oracle for wide rows: only the label is left out of the sum."""
    x, rows = x.astype(np.longdouble), np.arange(len(y))
    m = x.max(1, keepdims=True)
    e = np.exp(x - m)
    label = e[rows, y].copy()
    e[rows, y] = 0
    others = e.sum(1)
    grad = e / (others + label)[:, None]
    grad[rows, y] = -others / (others + label)
    with np.errstate(divide="ignore"):
        far = np.log(others) + m[:, 0] - x[rows, y]
        return np.where(label > 0, np.log1p(others / np.where(label > 0, label, 1)), far), grad


@pytest.mark.parametrize("c", [2, 10, 100, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_confident_row_is_never_zero(dtype, c):
    edge = 86 if dtype == np.float32 else 700  # beyond, the loss itself underflows
    for gap in range(1, edge):
        x = np.zeros((1, c), dtype)
        x[0, 1] = gap
        for dense in (False, True):
            loss, grad = both(x, np.array([1]), dense)
            want = np.log1p((c - 1) * np.exp(-np.longdouble(gap)))
            assert loss[0] > 0
            assert reference.ulps(loss, [want]).max() <= LOSS_ULP[np.dtype(dtype).name]
            assert grad[0, 1] < 0


def test_the_promise_of_the_readme():
    assert SPARSE(labels=[0], logits=np.float32([[20, 0]]))[0] == np.float32(2.0611537e-09)


def test_soft_labels_against_the_oracle():
    rng = np.random.default_rng(5)
    for c in (3, 10, 32, 33, 100, 3000):
        for dtype in (np.float32, np.float64):
            x = (5 * rng.standard_normal((20, c))).astype(dtype)
            z = rng.random((20, c)).astype(dtype)  # rows do not sum to 1
            z[rng.random(z.shape) < 0.3] = 0
            loss, (grad, labels_grad) = fl.value_and_grad(DENSE, ("logits", "labels"))(labels=z, logits=x)
            want, want_grad, _ = reference.cross_entropy(z, x) if c <= 100 else plain_dense(z, x)
            assert reference.ulps(loss, want).max() <= LOSS_ULP[x.dtype.name]
            # an entry is a difference: right to the larger of its two terms
            eps = np.finfo(dtype).eps
            scale = np.maximum(z, reference.wide(fl.softmax(x)) * reference.wide(z).sum(1, keepdims=True))
            assert (np.abs(grad - want_grad) <= 4 * eps * scale + np.finfo(dtype).smallest_subnormal).all()
            assert reference.ulps(labels_grad, -reference.log_softmax(x)).max() <= 4


def plain_dense(z, x):
    log_p = reference.log_softmax(x)
    z = z.astype(np.longdouble)
    return -(z * log_p).sum(1), np.exp(log_p) * z.sum(1, keepdims=True) - z, None


# ------------------------------------------------------------------ special values


@pytest.mark.parametrize("padding", [0, 70])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_and_nan_logits(dtype, padding):
    inf, nan = np.inf, np.nan
    rows = [
        ([-inf, 0, 0], 1, np.log(2), [0, -0.5, 0.5]),
        ([-inf, 0, 0], 0, inf, [-1, 0.5, 0.5]),
        ([inf, 0, 0], 0, nan, [nan] * 3),
        ([inf, 0, 0], 1, nan, [nan] * 3),
        ([-inf, -inf, -inf], 0, nan, [nan] * 3),
        ([nan, 0, 0], 1, nan, [nan] * 3),
        ([0, 0, nan], 1, nan, [nan] * 3),
        ([3e38, -3e38, 0], 0, 0, [0, 0, 0]),
        ([-inf, -inf, 5], 2, 0, [0, 0, 0]),
    ]
    for logits, label, loss, grad in rows:
        x = np.array([logits + [-inf] * padding], dtype)
        for dense in (False, True):
            got, got_grad = both(x, np.array([label]), dense)
            np.testing.assert_allclose(got, [loss], rtol=1e-6)
            np.testing.assert_allclose(got_grad[0, :3], grad, rtol=1e-6, atol=1e-7)
            if padding:
                np.testing.assert_array_equal(got_grad[0, 3:], nan if np.isnan(loss) else 0)


@pytest.mark.parametrize("c", [5, 100])
def test_zero_targets_and_masked_classes(c):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, c))
    keep = rng.random((4, c)) < 0.7
    keep[:, :2] = True
    keep[:, 2] = False
    z = rng.random((4, c)) * keep
    masked = np.where(keep, x, -np.inf)
    for options in ({}, {"label_smoothing": 0.1}, {"class_weight": np.arange(c) + 1.0}):
        want, want_grad, _ = reference.cross_entropy(z, x, where=keep, **options)
        for kwargs in ({"logits": x, "where": keep}, {"logits": masked, "where": keep}):
            value, (grad, labels_grad) = fl.value_and_grad(DENSE, ("logits", "labels"))(labels=z, **kwargs, **options)
            np.testing.assert_allclose(value, want.astype(float), rtol=1e-13)
            np.testing.assert_allclose(grad, want_grad.astype(float), rtol=1e-10, atol=1e-15)
            assert (labels_grad[~keep] == 0).all()
    np.testing.assert_array_equal(DENSE(labels=z, logits=masked), DENSE(labels=z, logits=x, where=keep))
    assert DENSE(labels=np.ones(c), logits=masked[0])[()] == np.inf


def test_cross_entropy_of_subnormal_gradients():
    """A tiny cotangent, or a tiny probability, loses nothing to the unit that the kernel works in."""
    rng = np.random.default_rng(1)
    for dtype, tiny in ((np.float32, 1e-30), (np.float64, 1e-290)):
        for c in (10, 300):
            x = rng.standard_normal((3, c)).astype(dtype)
            y = np.zeros(3, int)
            _, grad = fl.value_and_grad(SPARSE)(labels=y, logits=x, cotangent=np.full(3, tiny))
            _, want, _ = reference.cross_entropy(y, x)
            assert reference.ulps(grad, want * np.longdouble(tiny)).max() <= GRAD_ULP
            x[:, 1] = -95 if dtype == np.float32 else -720
            x[:, 0] = 5
            _, grad = fl.value_and_grad(SPARSE)(labels=y, logits=x)
            _, want, _ = reference.cross_entropy(y, x)
            assert 0 < grad[0, 1] < np.finfo(dtype).tiny
            assert reference.ulps(grad, want).max() <= GRAD_ULP


# ------------------------------------------------------------------ shapes and options


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (1, 1, 1), (2, 0, 3)])
def test_any_axis(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    for axis in range(-x.ndim, x.ndim):
        c = shape[axis]
        if c == 0:
            continue
        moved = np.moveaxis(x, axis, -1)
        y = np.asarray(rng.integers(0, c, moved.shape[:-1]))
        z = rng.random(shape)
        value, grad = fl.value_and_grad(SPARSE)(labels=y, logits=x, axis=axis)
        want, want_grad = fl.value_and_grad(SPARSE)(labels=y, logits=np.ascontiguousarray(moved))
        np.testing.assert_array_equal(value, want)
        np.testing.assert_array_equal(np.moveaxis(grad, axis, -1), want_grad)
        np.testing.assert_array_equal(SPARSE(labels=y, logits=x, dim=axis, name="loss"), want)
        value, grad = fl.value_and_grad(DENSE)(labels=z, logits=x, axis=axis)
        want, want_grad = fl.value_and_grad(DENSE)(labels=np.moveaxis(z, axis, -1), logits=moved)
        np.testing.assert_array_equal(value, want)
        np.testing.assert_array_equal(np.moveaxis(grad, axis, -1), want_grad)


def test_labels_broadcast_and_their_gradient_is_summed_back():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4))
    f = fl.value_and_grad(DENSE, ("logits", "labels"))
    for shape in [(4,), (1, 4), (3, 1), (2, 1, 4), (1, 1, 1), ()]:
        z = np.asarray(rng.random(shape))
        value, (grad, labels_grad) = f(labels=z, logits=x)
        full, (want_grad, want_labels_grad) = f(labels=np.broadcast_to(z, x.shape).copy(), logits=x)
        np.testing.assert_array_equal(value, full)
        np.testing.assert_array_equal(grad, want_grad)
        assert labels_grad.shape == shape
        lead = x.ndim - len(shape)
        axes = tuple(k for k in range(3) if k < lead or shape[k - lead] == 1)
        np.testing.assert_allclose(labels_grad, want_labels_grad.sum(axes).reshape(shape), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("c", [7, 100])
def test_any_integer_labels(dtype, c):
    x = np.random.default_rng(0).standard_normal((9, c)).astype(np.float32)
    y = np.arange(9) % c
    want = SPARSE(labels=y, logits=x)
    for labels in (y.astype(dtype), np.repeat(y.astype(dtype), 3)[::3], y.astype(dtype)[::-1].copy()[::-1]):
        np.testing.assert_array_equal(SPARSE(labels=labels, logits=x), want)
    bad = y.astype(dtype)
    bad[5] = 120
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, {c}\), got 120 at row 5"):
        SPARSE(labels=bad, logits=x)


@pytest.mark.parametrize("c", [6, 80])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_one_hot_and_index_labels_give_the_same_number(c, smoothing, reduction):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((30, c))
    y = rng.integers(0, c, 30)
    options = {"class_weight": rng.random(c), "label_smoothing": smoothing, "reduction": reduction}
    a, grad_a = fl.value_and_grad(SPARSE)(labels=y, logits=x, **options)
    b, grad_b = fl.value_and_grad(DENSE)(labels=np.eye(c)[y], logits=x, **options)
    np.testing.assert_allclose(a, b, rtol=1e-14)
    np.testing.assert_allclose(grad_a, grad_b, rtol=1e-11, atol=1e-17)


def test_ignored_rows():
    rng = np.random.default_rng(3)
    for c in (6, 80):
        x = rng.standard_normal((30, c))
        y = rng.integers(0, c, 30)
        y[::3] = -100
        x[::3] = np.nan
        for reduction in ("none", "sum", "mean"):
            kept = y >= 0
            value, grad = fl.value_and_grad(SPARSE)(labels=y, logits=x, ignore_index=-100, reduction=reduction)
            want, want_grad = fl.value_and_grad(SPARSE)(labels=y[kept], logits=x[kept], reduction=reduction)
            np.testing.assert_allclose(value[kept] if reduction == "none" else value, want, rtol=1e-15)
            np.testing.assert_allclose(grad[kept], want_grad, rtol=1e-14)
            assert (grad[~kept] == 0).all()
        all_ignored = SPARSE(labels=np.full(30, 255, np.uint8), logits=x, ignore_index=255, reduction="mean")
        assert all_ignored == 0
        # a class may be the ignored one
        y = np.arange(30) % c
        value = SPARSE(labels=y, logits=np.nan_to_num(x), ignore_index=2)
        assert (value[y == 2] == 0).all()
        assert (value[y != 2] > 0).all()


def test_a_mean_is_the_tokens_mean():
    x = np.log(np.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
    y = np.array([0, 0, -1])
    got = SPARSE(labels=y, logits=x, ignore_index=-1, reduction="mean", sample_weight=[1, 3, 5])
    np.testing.assert_allclose(got, (np.log(2) + 3 * np.log(4)) / 4, rtol=1e-15)


def test_gradient_to_labels_goes_through_the_denominator():
    rng = np.random.default_rng(4)
    for c in (5, 50):
        x, z, w = rng.standard_normal((6, c)), rng.random((6, c)), rng.random(c)
        options = {"class_weight": w, "reduction": "mean", "label_smoothing": 0.1, "sample_weight": rng.random(6)}
        _, grad = fl.value_and_grad(DENSE, "labels")(labels=z, logits=x, **options)
        want = reference.central_difference(lambda v, x=x, o=options: DENSE(labels=v, logits=x, **o), z)
        np.testing.assert_allclose(grad, want, rtol=1e-8, atol=1e-11)


@settings(deadline=None, max_examples=150)
@example(("float64", 4), 83, 66, 16.48329899751383, 66, False)  # led by one term: 4.4 without the rests of roots
@given(
    st.sampled_from([("float16", 2), ("bfloat16", 2), ("float32", 2), ("float64", 4)]),
    st.integers(1, 140),
    st.integers(1, 70),
    st.floats(0.01, 50),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_any_shape_any_scale(dtype_ulp, c, n, scale, seed, dense):
    name, ulp = dtype_ulp
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    rng = np.random.default_rng(seed)
    x = (scale * rng.standard_normal((n, c))).astype(dtype)
    y = rng.integers(0, c, n)
    labels = reference.one_hot(y, c).astype(dtype) if dense else y
    loss, grad = fl.value_and_grad(DENSE if dense else SPARSE)(labels=labels, logits=x)
    want, want_grad, _ = reference.cross_entropy(y, x)
    assert reference.ulps(loss, want).max() <= ulp
    if dtype.itemsize >= 4:
        assert reference.ulps(grad, want_grad).max() <= GRAD_ULP
    else:
        unit = 2.0**-8 if name == "bfloat16" else 2.0**-11  # one rounding, and nearly nothing before it
        smallest = 1e-38 if name == "bfloat16" else 2.0**-25
        np.testing.assert_allclose(reference.wide(grad), want_grad, rtol=1.01 * unit, atol=1.01 * smallest)


def test_huge_counts_of_rows_by_broadcasting():
    """More than 2^31 logits, in a megabyte: indices are 64 bits wide."""
    x = np.random.default_rng(0).standard_normal((1, 6000)).astype(np.float32)
    n = 2**31 // 6000 + 10
    big = np.broadcast_to(x, (n, 6000))
    labels = np.broadcast_to(np.array([17], np.int16), (n,))
    assert big.size > 2**31
    loss = SPARSE(labels=labels, logits=big)
    assert (loss == SPARSE(labels=[17], logits=x)).all()


# ------------------------------------------------------------------ errors


def test_errors_name_argument_rule_value_and_place():
    x = np.zeros((4, 10), np.float32)
    y = np.zeros(4, int)
    for kwargs, error, words in [
        ({"labels": np.array([0, 1, 2, 12])}, ValueError, r"labels must lie in \[0, 10\), got 12 at row 3"),
        ({"labels": np.array([0, -1, 2, 3])}, ValueError, r"labels must lie in \[0, 10\), got -1 at row 1"),
        ({"labels": [0, 1, 2, 11], "ignore_index": -1}, ValueError, r"or be ignore_index -1, got 11 at row 3"),
        (
            {"labels": np.zeros(3, int)},
            ValueError,
            r"labels must have shape \(4,\), that of logits without axis, got \(3,\)",
        ),
        ({"labels": np.zeros(4)}, TypeError, "labels must be integers, got float64"),
        ({"labels": np.zeros(4, bool)}, TypeError, "labels must be integers, got bool"),
        ({"labels": None}, TypeError, "labels must be given"),
        ({"logits": None}, TypeError, "logits must be given"),
        ({"logits": 1.0}, ValueError, "logits must have an axis of classes, got a single number"),
        ({"logits": [[1], [1, 2]]}, TypeError, "logits must be an array"),
        ({"axis": 2}, ValueError, r"axis must lie in \[-2, 2\), got 2"),
        ({"axis": -3}, ValueError, r"axis must lie in \[-2, 2\), got -3"),
        ({"axis": 0.5}, TypeError, "axis must be an integer, got 0.5"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index must be an integer, got 1.5"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must lie in \[0, 1\], got 1.5"),
        ({"label_smoothing": np.nan}, ValueError, r"label_smoothing must lie in \[0, 1\], got nan"),
        ({"label_smoothing": "x"}, TypeError, "label_smoothing must be a number, got 'x'"),
        ({"class_weight": np.ones(9)}, ValueError, r"class_weight must have shape \(10,\), got \(9,\)"),
        ({"where": np.ones((4, 10))}, TypeError, "where must be bool, got float64"),
        ({"where": np.ones((4, 9), bool)}, ValueError, r"where must broadcast to shape \(4, 10\), got \(4, 9\)"),
        ({"sample_weight": np.ones(3)}, ValueError, r"sample_weight must broadcast to shape \(4,\), got \(3,\)"),
        ({"n_threads": 1.5}, TypeError, "n_threads must be an integer, got 1.5"),
    ]:
        out = np.full(4, 7, np.float32)
        with pytest.raises(error, match=words):
            SPARSE(**{"labels": y, "logits": x, "out": out, **kwargs})
        assert (out == 7).all()
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 5 at index \(1, 0\)"):
        SPARSE(labels=[[0, 1], [5, 0]], logits=np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"labels must broadcast to shape \(4, 10\), got \(3, 10\)"):
        DENSE(labels=np.zeros((3, 10)), logits=x)
    with pytest.raises(TypeError, match="labels must hold real numbers in native byte order, got complex128"):
        DENSE(labels=np.zeros((4, 10), complex), logits=x)
    words = "labels must be float16, bfloat16, float32 or float64 to have a gradient, got int64"
    with pytest.raises(TypeError, match=words):
        fl.value_and_grad(DENSE, "labels")(labels=np.zeros((4, 10), int), logits=x)


def test_a_bad_label_leaves_every_buffer_alone():
    for c in (10, 100):
        x = np.zeros((4, c), np.float32)
        out, grad = np.full(4, 7, np.float32), np.full((4, c), 7, np.float32)
        for reduction in ("none", "mean"):
            with pytest.raises(ValueError, match="labels must lie"):
                fl.value_and_grad(SPARSE)(
                    labels=[0, 0, 0, c], logits=x, reduction=reduction, grad_out=grad, class_weight=np.ones(c),
                    out=out if reduction == "none" else None,
                )  # fmt: skip
        assert (out == 7).all()
        assert (grad == 7).all()
    with pytest.raises(ValueError, match=r"grad_out must have shape \(4, 100\)"):
        fl.value_and_grad(SPARSE)(labels=[0] * 4, logits=x, grad_out=np.zeros((4, 99), np.float32))
    with pytest.raises(TypeError, match="grad_out must be float32, got float64"):
        fl.value_and_grad(SPARSE)(labels=[0] * 4, logits=x, grad_out=np.zeros((4, 100)))
    with pytest.raises(ValueError, match="grad_out must be a tuple or list of 2 arrays"):
        fl.value_and_grad(DENSE, ("logits", "labels"))(labels=x, logits=x, grad_out=x)
    with pytest.raises(TypeError, match="loss must be a loss of fastloss"):
        fl.value_and_grad(np.sum)
    for wrong in ({"logits"}, 0, ["logits", 1], b"logits", np.array(["logits"])):
        with pytest.raises(TypeError, match="wrt must be a name, or a tuple or list of names, got"):
            fl.value_and_grad(DENSE, wrong)


def test_a_list_of_names_is_a_tuple_of_them():
    kwargs = {"labels": np.full((3, 4), 0.25), "logits": np.arange(12.0).reshape(3, 4)}
    value, want = fl.value_and_grad(DENSE, ("labels", "logits"))(**kwargs)
    buffers = [np.empty((3, 4)), np.empty((3, 4))]
    for more in ({}, {"grad_out": buffers}):
        got = fl.value_and_grad(DENSE, ["labels", "logits"])(**kwargs, **more)
        assert np.array_equal(got[0], value)
        assert isinstance(got[1], tuple)
        assert np.array_equal(got[1], want)
    assert np.array_equal(buffers, want)
    (one,) = fl.value_and_grad(DENSE, ["logits"])(**kwargs)[1]
    assert np.array_equal(one, want[1])


@pytest.mark.parametrize("f", [fl.softmax_cross_entropy_with_logits, fl.sigmoid_cross_entropy_with_logits])
def test_a_gradient_over_the_labels_is_refused(f):
    memory = np.zeros(41, np.float32)
    labels = memory[1:].reshape(4, 10)
    for grad_out in (labels, memory[:40].reshape(4, 10)):
        with pytest.raises(ValueError, match="grad_out must not overlap labels"):
            fl.value_and_grad(f)(labels=labels, logits=np.ones((4, 10), np.float32), grad_out=grad_out)
    assert not memory.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [97, 1000, 1023, 2050])
def test_a_gradient_written_late_has_the_same_bits(c, dtype):
    """Wide rows wait for the next one where targets and gradient are contiguous; a row alone waits for nothing."""
    rng = np.random.default_rng(c)
    x, labels = rng.normal(0, 3, (19, c)).astype(dtype), rng.dirichlet(np.ones(c), 19).astype(dtype)
    weight = rng.random(19) * (rng.random(19) < 0.8)
    dense = fl.value_and_grad(DENSE)
    want = dense(labels=labels, logits=x, sample_weight=weight, reduction="none")[1]
    rows = [slice(i, i + 1) for i in range(19)]
    alone = [
        dense(labels=labels[r], logits=x[r], sample_weight=weight[r], reduction="none")[1]  # nothing comes after it
        for r in rows
    ]
    np.testing.assert_array_equal(np.concatenate(alone), want)
    for strided in (np.repeat(labels, 2, 1)[:, ::2], np.asfortranarray(labels)):
        got = dense(labels=strided, logits=x, sample_weight=weight, reduction="none")[1]
        np.testing.assert_array_equal(got, want)
    for out in (np.zeros((19, 2 * c), dtype)[:, ::2], np.zeros(19 * c + 1, dtype)[1:].reshape(19, c), x):
        dense(labels=labels, logits=x, sample_weight=weight, reduction="none", grad_out=out)
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "c"), [(40, 1000), (40, 1023), (40, 16384), (40, 16391), (15, 20485), (300, 16447)])
def test_a_sparse_gradient_written_late_has_the_same_bits(n, c, dtype):
    """The same where long rows write their terms over those of the row before, whatever becomes of either."""
    rng = np.random.default_rng(c)
    x, y = rng.normal(0, 3, (n, c)).astype(dtype), rng.integers(0, c, n)
    weight = rng.random(n) * (rng.random(n) < 0.8)
    x[2, c - 7] = x[5, c // 2] = 200  # far above what the row begins with: it is done again
    x[3, 0] = x[9, c - 1] = np.inf
    weight[2:5], y[3] = 1, c // 2
    x[7, -3:] = np.nan
    x[11] = -np.inf
    x[12, y[12]] = -np.inf
    y[13] = -1
    sparse = fl.value_and_grad(SPARSE)
    options = {"reduction": "none", "ignore_index": -1}
    want = sparse(labels=y, logits=x, sample_weight=weight, **options)[1]
    alone = [
        sparse(labels=y[i : i + 1], logits=x[i : i + 1], sample_weight=weight[i : i + 1], **options)[1]
        for i in range(n)  # nothing comes after it
    ]
    np.testing.assert_array_equal(np.concatenate(alone), want)
    assert np.isfinite(want).all(axis=1).sum() >= n - 4
    for out in (np.zeros((n, 2 * c), dtype)[:, ::2], np.zeros(n * c + 1, dtype)[1:].reshape(n, c), x):
        sparse(labels=y, logits=x, sample_weight=weight, grad_out=out, **options)
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("c", [65, 96, 97, 1000, 2049, 4100, 16391])
def test_half_rows_have_the_bits_of_converted_ones(c, dtype):
    """Wide rows are read as they lie, converted lane by lane; where that cannot be, all at once."""
    rng = np.random.default_rng(c)
    n = 33
    x, y = rng.normal(0, 3, (n, c)).astype(dtype), rng.integers(0, c, n)
    y[:4] = 0, c - 1, 31, c // 32 * 32 - (c % 32 == 0)
    x[5, c - 7] = x[6, c // 2] = 200  # far above what the row begins with: it is done again
    x[7, c // 3] = np.inf
    x[8, -3:] = np.nan
    x[9] = -np.inf
    x[10, y[10]] = -np.inf
    x[11] = 30000  # needs a shift
    x[12, :40] = -np.inf
    want, want_grad = fl.value_and_grad(SPARSE)(labels=y, logits=x.astype(np.float32))
    shifted = np.zeros(n * c * 2 + 1, np.uint8)[1:].view(dtype).reshape(n, c)
    shifted[:] = x
    for rows in (x, shifted, np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]):
        np.testing.assert_array_equal(SPARSE(labels=y, logits=rows), want)
        loss, grad = fl.value_and_grad(SPARSE)(labels=y, logits=rows)
        np.testing.assert_array_equal(loss, want)
        np.testing.assert_array_equal(grad.astype(np.float32), want_grad.astype(dtype).astype(np.float32))


def test_no_classes():
    empty = np.zeros((3, 0), np.float32)
    assert (DENSE(labels=empty, logits=empty) == 0).all()
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 0\), got 0 at row 0"):
        SPARSE(labels=np.zeros(3, int), logits=empty)
    assert SPARSE(labels=np.zeros(0, int), logits=np.zeros((0, 0))).shape == (0,)


@pytest.mark.parametrize(("dtype", "seeds"), [(np.float32, 16), (np.float64, 2)])
def test_rows_led_by_one_class(dtype, seeds):
    """What remains beside the label is often one term and little more: its exp and the sum's roundings add up."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x = (rng.choice([5, 20], (2000, 1)) * rng.standard_normal((2000, 1000))).astype(dtype)
        y = x.argmax(1)
        rest = reference.wide(x) if dtype == np.float64 else x.astype(np.float64)
        rest -= rest[np.arange(2000), y][:, None]
        rest[np.arange(2000), y] = -np.inf
        want = np.log1p(np.exp(rest, out=rest).sum(1))
        assert reference.ulps(SPARSE(labels=y, logits=x), want).max() <= LOSS_ULP[np.dtype(dtype).name]


# ------------------------------------------------------------------ softmax, log-softmax, log-sum-exp


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", WIDTHS)
def test_normalizations_against_the_oracle(c, dtype):
    rng = np.random.default_rng(c)
    for scale, offset in ((1, 0), (30, 0), (5, 300), (5, -5000)):
        x = (scale * rng.standard_normal((12, c)) + offset).astype(dtype)
        want = reference.log_softmax(x)
        assert reference.ulps(fl.log_softmax(x), want).max() <= 3
        assert reference.ulps(fl.softmax(x), np.exp(want)).max() <= 4
        m = x.max(1).astype(np.longdouble)
        lse = m - want[np.arange(12), x.argmax(1)]
        # log-sum-exp is a sum: right to the larger of its two terms
        assert (np.abs(fl.logsumexp(x) - lse) <= 2 * np.finfo(dtype).eps * np.maximum(np.abs(m), lse - m)).all()


def test_log_softmax_keeps_the_tails():
    got = fl.log_softmax(np.float32([[40, 0, -3]]))
    assert reference.ulps(got, [[-np.log1p(np.exp(-40.0) + np.exp(-43.0)), -40, -43]]).max() <= 2


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_axes_where_out_and_layouts(name):
    rng = np.random.default_rng(0)
    f = getattr(fl, name)
    x = rng.standard_normal((3, 4, 5, 70))
    keep = rng.random((5, 70)) < 0.8
    for axis in (-1, 0, 2, (0, 2), (-1, 1), (3, 2), None):
        axes = tuple(range(4)) if axis is None else tuple(a % 4 for a in np.atleast_1d(axis))
        for where in (None, keep):
            masked = np.where(True if where is None else where, x, -np.inf)
            with np.errstate(divide="ignore", invalid="ignore"):
                lse = np.log(np.exp(masked).sum(axes, keepdims=True))
                want = {"softmax": np.exp(masked - lse), "log_softmax": masked - lse, "logsumexp": lse}[name]
            # where no class is left, all have probability 0
            want = np.where(np.isneginf(lse), 0 if name == "softmax" else -np.inf, want)
            if name == "logsumexp":
                kept = f(x, axis, where=where, keepdims=True)
                np.testing.assert_allclose(kept, want, rtol=1e-13)
                want = want.squeeze(axes)
            got = f(x, axis, where=where)
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)
            for y in (np.asfortranarray(x), np.repeat(x, 2, axis=-1)[..., ::2], x[::-1].copy()[::-1]):
                again = f(y, axis, where=where)
                np.testing.assert_array_equal(again, got)
                assert name == "logsumexp" or again.strides == np.empty_like(y).strides
            out = np.full_like(got, 7)
            assert f(x, axis, where=where, out=out) is out
            np.testing.assert_array_equal(out, got)
            if name != "logsumexp":
                z = x.copy()
                assert f(z, axis, where=where, out=z) is z
                np.testing.assert_array_equal(z, got)


@pytest.mark.parametrize("c", [3, 70])
def test_normalizations_of_infinite_rows(c):
    inf, nan = np.inf, np.nan
    fill = [-inf] * (c - 3)
    rows = [[-inf] * 3, [inf, 0, 0], [nan, 0, 0], [-inf, 0, -inf], [inf, nan, 0]]
    x = np.array([row + fill for row in rows])
    np.testing.assert_array_equal(fl.logsumexp(x), [-inf, inf, nan, 0, nan])
    assert np.isnan(fl.softmax(x)[[0, 1, 2, 4]]).all()
    np.testing.assert_array_equal(fl.softmax(x)[3], [0, 1] + [0] * (c - 2))
    np.testing.assert_array_equal(fl.log_softmax(x)[3], [-inf, 0] + [-inf] * (c - 2))
    assert fl.logsumexp(np.zeros((2, 0)))[1] == -inf
    assert fl.softmax(np.zeros((2, 0))).shape == (2, 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_normalizations(dtype):
    x = np.zeros((1, 70000), dtype)
    assert fl.logsumexp(x).dtype == np.float32
    np.testing.assert_allclose(fl.logsumexp(x), np.log(70000), rtol=1e-7)
    np.testing.assert_allclose(fl.log_softmax(x).astype(np.float32), -np.log(70000), rtol=2.0**-8)
    assert fl.softmax(x).dtype == dtype


def test_normalization_errors():
    x = np.zeros((3, 4), np.float32)
    for f in (fl.softmax, fl.log_softmax, fl.logsumexp):
        with pytest.raises(TypeError, match="x must be float16, bfloat16, float32 or float64, got int64"):
            f(np.zeros((2, 2), int))
        with pytest.raises(ValueError, match="axis must not repeat"):
            f(x, (0, 0))
        with pytest.raises(ValueError, match=r"axis must lie in \[-2, 2\), got 2"):
            f(x, (0, 2))
        with pytest.raises(ValueError, match="out must have shape"):
            f(x, out=np.zeros((9, 9), np.float32))
        with pytest.raises(TypeError, match="out must be float32"):
            f(x, out=np.zeros(x.shape if f is not fl.logsumexp else (3,)))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_normalizations_do_not_depend_on_threads(name):
    f = getattr(fl, name)
    for shape in ((30_000, 10), (300, 1000), (1, 300_001), (3, 100_003)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        want = f(x, n_threads=1)
        for n_threads in (2, 3, 4):
            np.testing.assert_array_equal(f(x, n_threads=n_threads), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [31, 32, 33, 48, 64, 96, 128, 256, 300])
def test_a_row_of_nan_writes_nothing_beside_itself(c, dtype):
    """A maximum that is NaN stands nowhere."""
    x = np.zeros((5, c), dtype)
    x[[1, 4]] = np.nan
    room = np.full((6, c), 7, dtype)
    labels = np.full((5, c), 1 / c, dtype)
    for options in ({}, {"label_smoothing": 0.1}):
        loss, grad = fl.value_and_grad(DENSE)(labels=labels, logits=x, grad_out=room[:5], **options)
        np.testing.assert_array_equal(np.isnan(loss), [False, True, False, False, True])
        assert np.isnan(grad[[1, 4]]).all()
        assert not np.isnan(grad[[0, 2, 3]]).any()
        assert (room[5] == 7).all()
    fl.softmax(x, out=room[:5])
    assert (room[5] == 7).all()


@pytest.mark.parametrize("far", [-300, -420, -550, -690])
@pytest.mark.parametrize("classes", [33, 65, 100, 1000])
def test_logits_that_lie_far_apart(classes, far):
    """The label far below the first logits, and those far below later ones: no quotient of sums overflows."""
    z = np.full((1, classes), -1000.0)
    z[0, [0, 1, 32]] = far, 0, 200
    for y in ([0], [1], [32]):
        want = 200 - z[0, y[0]] + (np.exp(-200.0) if y != [32] else 0)
        want = np.exp(-200.0) if y == [32] else want
        sparse = fl.sparse_softmax_cross_entropy_with_logits(labels=y, logits=z)
        np.testing.assert_allclose(sparse, want, rtol=1e-15)
        np.testing.assert_allclose(fl.softmax_focal_loss(labels=y, logits=z, gamma=0), want, rtol=1e-15)
    in_batch = fl.in_batch_softmax_loss(np.ones((classes, 1)), z.T)
    np.testing.assert_allclose(in_batch, np.where(z[0] == 200, np.exp(-200.0), 200 - z[0]), rtol=1e-15)


def test_partials_and_tails_far_apart():
    table, row = np.array([[2000.0], [0.0], [1.0]]), np.ones((1, 1))
    f = fl.value_and_grad(fl.linear_cross_entropy, "biases")
    loss, slopes = f(
        inputs=row, weights=table, biases=np.zeros(3), labels=(np.array([[0]]), np.array([[0.5]])), tail="other"
    )
    lse = np.log1p(np.e)
    np.testing.assert_allclose(loss, 0.5 * (2000 - lse), rtol=1e-15)
    np.testing.assert_allclose(slopes, [0.5, -0.5 / (1 + np.e), -0.5 * np.e / (1 + np.e)], rtol=1e-14)


@pytest.mark.parametrize("c", [3, 31, 40, 3000])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_targets_that_sum_to_0_have_the_gradient_of_every_class(dtype, axis, c):
    rng = np.random.default_rng(c)
    x = rng.standard_normal((5, c)).astype(dtype)
    t = np.zeros((5, c), dtype)
    t[:, 0], t[:, 1] = 1, -3
    t[np.arange(5), 2 + x[:, 2:].argmax(1)] = 2
    t[0, :] = np.where(x[0] == x[0].max(), 0, t[0])  # and a row whose targets do not
    f = fl.value_and_grad(fl.softmax_cross_entropy_with_logits, "logits")
    _, grad = f(logits=np.moveaxis(x, 1, axis).copy(), labels=np.moveaxis(t, 1, axis).copy(), axis=axis)
    _, want, _ = reference.cross_entropy(t, x)
    assert reference.ulps(np.moveaxis(grad, axis, 1), want).max() <= 4
    x[1, 1] = np.nan
    _, grad = f(logits=np.moveaxis(x, 1, axis).copy(), labels=np.moveaxis(t, 1, axis).copy(), axis=axis)
    assert np.isnan(np.moveaxis(grad, axis, 1)).all(1).tolist() == [False, True, False, False, False]
