"""Properties that every loss must have, run over the table in helpers/table.py."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import reference
from shared import same_bits
from table import BFLOAT16, DTYPES, LOSSES

import fastloss as fl

# whom a property is asked of, by the name of the test's argument
ASKED = {
    "loss": LOSSES,
    "shift_invariant": [loss for loss in LOSSES if loss.shift_invariant],
    "separable": [loss for loss in LOSSES if loss.apart],  # of the others, rows are each other's candidates
}


def pytest_generate_tests(metafunc):
    for name, losses in ASKED.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, losses, ids=str)


def rng_of(loss):
    return np.random.default_rng(int.from_bytes(loss.name.encode()[-8:], "little"))


def arguments(loss, n, dtype=np.float32):
    return loss.make(rng_of(loss), n, np.dtype(dtype))


def take(kwargs, n, rows):
    """These rows of every array that has n."""
    return {k: v[rows] if isinstance(v, np.ndarray) and v.shape[:1] == (n,) else v for k, v in kwargs.items()}


def with_main(loss, kwargs, array):
    return {**kwargs, loss.main: array}


def run(loss, kwargs, **more):
    """Value and gradients by every name that has one."""
    value, grads = fl.value_and_grad(loss.function, loss.wrt)(**kwargs, **more)
    return value, *grads


def check_bits(got, want):
    assert all(same_bits(g, w) for g, w in zip(got, want, strict=True))


def sizes(loss):
    return 61 if not loss.elementwise else 1013


# ------------------------------------------------------------------ right


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_oracle(loss, dtype):
    kwargs = arguments(loss, sizes(loss), dtype)
    value = loss.function(**kwargs)
    want, _ = loss.oracle(**kwargs)
    assert value.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert reference.ulps(value, want).max() <= loss.ulp * (2 if dtype == np.float64 else 1)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_agree_with_differences(loss, reduction, weighted):
    n = 5
    kwargs = arguments(loss, n, np.float64)
    kwargs["reduction"] = reduction
    shape = loss.function(**{**kwargs, "reduction": "none"}).shape
    if weighted:
        kwargs["sample_weight"] = np.linspace(0, 2, int(np.prod(shape))).reshape(shape)
    cotangent = np.linspace(-1, 2, int(np.prod(shape))).reshape(shape) if reduction == "none" else np.float64(-1.5)
    _, *grads = run(loss, kwargs, cotangent=cotangent)
    for name, grad in zip(loss.wrt, grads, strict=True):
        want = reference.central_difference(
            lambda v, name=name: (loss.function(**{**kwargs, name: v}) * cotangent).sum(), kwargs[name].astype(float)
        )
        scale = np.abs(want[np.isfinite(want)]).max()
        np.testing.assert_allclose(grad, want, rtol=1e-7, atol=1e-8 * scale + 1e-10)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions_follow_the_one_rule(loss, reduction):
    kwargs = arguments(loss, 61, np.float32)
    rows = loss.function(**kwargs)
    _, row_weight = loss.oracle(**kwargs)
    some = np.random.default_rng(2).random(rows.shape) > 0.3
    for weight in (None, np.random.default_rng(1).uniform(0, 2, rows.shape) * some):
        want = reference.reduce(reference.wide(rows), row_weight, weight, reduction)
        got = loss.function(**kwargs, sample_weight=weight, reduction=reduction)
        assert reference.ulps(got, want).max() <= 1
        assert np.asarray(got).dtype == rows.dtype


def test_weight_zero_hides_a_row(loss):
    kwargs = arguments(loss, 8, np.float32)
    bad = with_main(loss, kwargs, kwargs[loss.main].copy())
    bad[loss.main][3] = np.nan
    rows = loss.function(**kwargs)
    weight = np.ones(rows.shape)
    weight[3] = 0
    for reduction in ("none", "sum", "mean"):
        got = run(loss, bad, sample_weight=weight, reduction=reduction)
        check_bits(got, run(loss, kwargs, sample_weight=weight, reduction=reduction))
        assert not np.asarray(got[1][3]).any()


def test_nothing_that_counts_has_mean_zero(loss):
    kwargs = arguments(loss, 4, np.float32)
    value, grad, *_ = run(loss, kwargs, sample_weight=0.0, reduction="mean")
    assert value == 0
    assert not grad.any()


def test_value_is_the_loss(loss):
    for n in (1, 5, 200):
        kwargs = arguments(loss, n)
        assert same_bits(run(loss, kwargs)[0], loss.function(**kwargs))


def test_each_gradient_alone_is_the_same(loss):
    kwargs = arguments(loss, 9)
    together = run(loss, kwargs)[1:]
    for name, grad in zip(loss.wrt, together, strict=True):
        assert same_bits(fl.value_and_grad(loss.function, name)(**kwargs)[1], grad)
        assert grad.dtype == kwargs[name].dtype
        assert grad.shape == kwargs[name].shape


def test_shift_invariance(shift_invariant):
    loss = shift_invariant
    kwargs = arguments(loss, 20, np.float64)
    x = np.round(kwargs[loss.main] * 64) / 64  # so that the shift itself is exact
    for shift in (1024.0, -4096.0, 2.0**30):
        a = loss.function(**with_main(loss, kwargs, x))
        b = loss.function(**with_main(loss, kwargs, x + shift))
        assert reference.ulps(a, b).max() <= 4 * loss.ulp


# ------------------------------------------------------------------ the same bits


def test_bits_do_not_depend_on_threads(loss):
    n = 100_000 // (arguments(loss, 2)[loss.main].size // 2) + 7
    kwargs = arguments(loss, n)
    weight = np.random.default_rng(1).random(loss.function(**kwargs).shape)
    for reduction in ("none", "mean"):
        more = {"sample_weight": weight, "reduction": reduction}
        want = run(loss, kwargs, **more, n_threads=1)
        for n_threads in (2, 3, 5):
            check_bits(run(loss, kwargs, **more, n_threads=n_threads), want)


def test_bits_do_not_depend_on_the_split(separable):
    loss = separable
    n = 131
    kwargs = arguments(loss, n)
    want = run(loss, kwargs)
    for cuts in ([0, 1, 2, 70, n], [0, 15, 16, 17, 100, n], [0, 64, 128, n]):
        parts = [run(loss, take(kwargs, n, slice(a, b))) for a, b in itertools.pairwise(cuts)]
        check_bits([np.concatenate(p) for p in zip(*parts, strict=True)], want)


def test_rows_permute(separable):
    loss = separable
    n = 77
    kwargs = arguments(loss, n)
    order = np.random.default_rng(3).permutation(n)
    got = run(loss, take(kwargs, n, order))
    check_bits(got, [a[order] for a in run(loss, kwargs)])


def layouts(x):
    """The same numbers, laid out in every way that must be read in place."""
    yield "fortran", np.asfortranarray(x)
    spaced = np.zeros(tuple(3 * n for n in x.shape), x.dtype)[(slice(None, None, 3),) * x.ndim]
    spaced[...] = x
    yield "spaced", spaced
    yield "backward", np.ascontiguousarray(x[::-1])[::-1]
    yield "mirrored", np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    padded = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)[..., 1:-2]
    padded[...] = x
    yield "padded", padded
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:]
    memory[...] = np.frombuffer(x.tobytes(), np.uint8)
    yield "unaligned", memory.view(x.dtype).reshape(x.shape)
    frozen = x.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_the_layout(loss, dtype):
    n = 37
    kwargs = arguments(loss, n, dtype)
    want = run(loss, kwargs)
    for _, x in layouts(kwargs[loss.main]):
        got = run(loss, with_main(loss, kwargs, x))
        check_bits(got, want)
    for key, a in kwargs.items():
        if isinstance(a, np.ndarray) and a.ndim:
            for _, b in layouts(a):
                check_bits(run(loss, {**kwargs, key: b}), want)


def test_gradient_keeps_the_layout(loss):
    kwargs = arguments(loss, 12)
    for x in (kwargs[loss.main], np.asfortranarray(kwargs[loss.main])):
        grad = fl.value_and_grad(loss.function)(**with_main(loss, kwargs, x))[1]
        assert grad.strides == x.strides


def test_a_broadcast_row_is_read_in_place(loss):
    n = 40
    kwargs = take(arguments(loss, n), n, np.zeros(n, int))
    want = run(loss, kwargs)
    x = np.broadcast_to(kwargs[loss.main][:1], kwargs[loss.main].shape)
    check_bits(run(loss, with_main(loss, kwargs, x)), want)


# ------------------------------------------------------------------ buffers


def test_inputs_are_left_alone(loss):
    kwargs = arguments(loss, 20)
    before = {k: v.copy() for k, v in kwargs.items() if isinstance(v, np.ndarray)}
    run(loss, kwargs)
    assert all(same_bits(kwargs[k], v) for k, v in before.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_and_grad_out_are_written(loss, dtype):
    kwargs = arguments(loss, 20, dtype)
    for reduction in ("none", "mean"):
        want = run(loss, kwargs, reduction=reduction)
        out = np.full_like(np.asarray(want[0]), 7)
        buffers = tuple(np.full_like(g, 7) for g in want[1:])
        for _ in range(2):  # reused: nothing of the last call is left
            got = run(loss, kwargs, reduction=reduction, out=out, grad_out=buffers)
            assert got[0] is out
            assert all(g is b for g, b in zip(got[1:], buffers, strict=True))
            check_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_in_place(loss, dtype):
    kwargs = arguments(loss, 150, dtype)
    f = fl.value_and_grad(loss.function)
    for x in (kwargs[loss.main].copy(), np.asfortranarray(kwargs[loss.main])):
        want = f(**kwargs)
        value, grad = f(**with_main(loss, kwargs, x), grad_out=x)
        assert grad is x
        check_bits([value, grad], want)


def test_overlapping_buffers_are_refused(loss):
    kwargs = arguments(loss, 20)
    x = kwargs[loss.main]
    memory = np.zeros((21, *x.shape[1:]), x.dtype)
    memory[:20] = x
    before = memory.copy()
    with pytest.raises(ValueError, match="must not overlap"):
        fl.value_and_grad(loss.function)(**with_main(loss, kwargs, memory[:20]), grad_out=memory[1:])
    assert same_bits(memory, before)


def test_bad_buffers_are_refused_and_not_written(loss):
    kwargs = arguments(loss, 6)
    rows = loss.function(**kwargs)
    frozen = np.full_like(rows, 7)
    frozen.flags.writeable = False
    for out, error, words in [
        (np.full((*rows.shape, 2), 7, rows.dtype), ValueError, "out must have shape"),
        (np.full(rows.shape, 7, np.float64), TypeError, "out must be float32, got float64"),
        (frozen, ValueError, "out must be writable"),
        ([0.0] * 6, TypeError, "out must be an array, got list"),
    ]:
        with pytest.raises(error, match=words):
            loss.function(**kwargs, out=out)
        assert (np.asarray(out) == (0 if isinstance(out, list) else 7)).all()


# ------------------------------------------------------------------ edges


def test_no_rows(loss):
    kwargs = arguments(loss, 0)
    value, *grads = run(loss, kwargs)
    assert value.size == 0
    assert all(g.size == 0 for g in grads)
    assert loss.function(**kwargs, reduction="mean") == 0
    assert loss.function(**kwargs, reduction="sum") == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_bad_row_harms_no_other(loss, poison):
    n = 70
    kwargs = arguments(loss, n)
    bad = with_main(loss, kwargs, kwargs[loss.main].copy())
    bad[loss.main][33] = poison
    others = np.arange(n) != 33
    results = list(zip(run(loss, bad), run(loss, kwargs), strict=True))
    for got, want in results if loss.apart else results[:2]:  # in the batch, keys meet every query
        if loss.apart:
            assert same_bits(got[others], want[others])
        else:
            np.testing.assert_allclose(got[others], want[others], rtol=1e-4, atol=1e-6)


def test_nan_stays_nan(loss):
    kwargs = arguments(loss, 5)
    bad = with_main(loss, kwargs, kwargs[loss.main].copy())
    bad[loss.main][2] = np.nan
    value, grad, *_ = run(loss, bad)
    ignored = loss.function(**kwargs)[2] == 0
    assert np.isnan(value[2]).all() or ignored.all()
    assert np.isnan(grad[2].astype(np.float32)).all() or ignored.all()


def test_bad_options_are_named(loss):
    kwargs = arguments(loss, 4)
    for option, value, error, words in [
        ("reduction", "average", ValueError, "reduction must be one of 'none', 'sum', 'mean', got 'average'"),
        ("n_threads", 0, ValueError, "n_threads must be at least 1, got 0"),
        ("sample_weight", np.ones((9, 9, 9)), ValueError, "sample_weight must broadcast to shape"),
        ("sample_weight", np.ones(1, complex), TypeError, "sample_weight must hold real numbers"),
        ("nonsense", 1, TypeError, "nonsense"),
    ]:
        with pytest.raises(error, match=words):
            loss.function(**kwargs, **{option: value})
    for dtype in (np.int32, np.complex64, object, ">f4"):
        with pytest.raises(TypeError, match=f"{loss.main} must be float16, bfloat16, float32 or float64, got"):
            loss.function(**with_main(loss, kwargs, kwargs[loss.main].astype(dtype)))
    with pytest.raises(TypeError, match="masked"):
        loss.function(**with_main(loss, kwargs, np.ma.masked_array(kwargs[loss.main])))
    with pytest.raises(ValueError, match="wrt must be among"):
        fl.value_and_grad(loss.function, "nonsense")


def other_value(name, kwargs, given):
    """For this keyword, a value that matters; of what has none, the same again."""
    c = next((a.shape[-1] for a in (kwargs.get("logits"), kwargs.get("biases")) if a is not None), 2)
    labels = np.asarray(kwargs.get("labels", 0))
    special = {
        "alpha": 0.3,
        "axis": 0,
        "biases": lambda: 2 * given,
        "class_weight": lambda: np.linspace(2, 3, c),
        "dim": 0,
        "ignore_index": lambda: int(labels[labels != given].flat[0]) if labels.dtype.kind in "iu" else 0,
        "item_ids": lambda: np.zeros(len(kwargs["queries"]), int),
        "log_q": lambda: np.linspace(0, 1, len(kwargs["queries"])),
        "max_memory": 0,
        "n_threads": 0,
        "num_true": 2,
        "partition_strategy": "nonsense",
        "reduction": "sum",
        "sample_weight": 0.5,
        "sampled_values": lambda: fl.UniformSampler(151, seed=1).candidates(labels, 40, True),
        "sampler": "nonsense",
        "seed": 6,
        "softcap": 2.5,
        "tail": "other",
        "targets": lambda: labels,
        "where": lambda: np.arange(c) % 2 == 0,
    }
    if name in special:
        return special[name]() if callable(special[name]) else special[name]
    if isinstance(given, bool):
        return not given
    return given + 0.25 if isinstance(given, float) else given + 1 if isinstance(given, int) else given


# ignored by contract; or, in rows that are as they should be, without effect
SILENT = {"name", "unique", "out", "labels", "zero_infinity", "ignore_longer_outputs_than_inputs"}


def test_every_keyword_reaches_the_result(loss):
    """Above all on the short way of small calls: each changes the result, or raises."""
    kwargs = arguments(loss, 20)
    plain = run(loss, kwargs)
    for name, parameter in inspect.signature(loss.function).parameters.items():
        if name in SILENT or parameter.default is parameter.empty:
            continue
        changed = kwargs | {name: other_value(name, kwargs, kwargs.get(name, parameter.default))}
        for call in (lambda k: (loss.function(**k),), lambda k: run(loss, k)):
            try:
                results = call(changed)
            except (TypeError, ValueError):
                continue
            pairs = zip(results, plain, strict=False)
            assert any(not isinstance(a, np.ndarray) or not same_bits(a, b) for a, b in pairs), name


def test_half_types_lose_nothing_but_their_own_rounding(loss):
    for dtype in (np.dtype(np.float16), BFLOAT16):
        kwargs = arguments(loss, 30, dtype)
        half = [k for k, v in kwargs.items() if isinstance(v, np.ndarray) and v.dtype == dtype]
        wide = kwargs | {k: kwargs[k].astype(np.float32) for k in half}
        value, *grads = run(loss, kwargs)
        want, *wide_grads = run(loss, wide)
        assert same_bits(value, want)
        for g, w in zip(grads, wide_grads, strict=True):
            assert same_bits(g, w.astype(dtype))
