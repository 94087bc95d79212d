"""Linear cross entropy: as the composed form, in bounded memory, whatever way it is cut."""

from __future__ import annotations

import itertools
import sys

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import python

import fastloss as fl

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NAMES = ("inputs", "weights", "biases")
BOTH = fl.value_and_grad(fl.linear_cross_entropy, NAMES)
TINY = 1  # byte of scratch: the smallest blocks, logits computed twice
SHAPES = [(1, 1, 1), (1, 1, 2), (3, 5, 1), (2, 0, 3), (33, 17, 101), (130, 145, 13), (257, 40, 1500), (5, 700, 97)]
OPTIONS = [
    {},
    {"temperature": 0.7, "z_loss": 0.01},
    {"softcap": 2.5},
    {"label_smoothing": 0.1},
    {"class_weight": True, "ignore_index": 0},
    {
        "class_weight": True,
        "ignore_index": 0,
        "label_smoothing": 0.3,
        "softcap": 4.0,
        "temperature": 2.0,
        "z_loss": 0.1,
    },
]


def data(n, d, c, dtype=np.float64, seed=0):
    rng = np.random.default_rng([n, d, c, seed])
    return {
        "inputs": rng.standard_normal((n, d)).astype(dtype),
        "weights": (rng.standard_normal((c, d)) / max(d, 1) ** 0.5).astype(dtype),
        "biases": rng.standard_normal(c).astype(dtype),
        "labels": rng.integers(0, c, n),
    }


def filled(options, c):
    return {k: np.linspace(0.25, 2, c) if k == "class_weight" else v for k, v in options.items()}


def composed(inputs, weights, labels, biases=None, ignore_index=None, tail="drop", softcap=None, temperature=1.0,
             z_loss=0.0, class_weight=None, label_smoothing=0.0, cotangent=1.0):  # fmt: skip
    """Losses and the gradients of their weighted sum, with all logits, in long double."""
    x, w = reference.wide(inputs), reference.wide(weights)
    n, c = len(x), len(w)
    raw = x @ w.T + (0 if biases is None else reference.wide(biases))
    capped = raw if softcap is None else softcap * np.tanh(raw / softcap)
    z = capped / temperature
    top = z.max(-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(-1, keepdims=True))
    log_p = z - lse
    p = np.exp(log_p)
    used = np.ones(n, bool)
    target = np.zeros((n, c), np.longdouble)
    bucket = np.zeros((n, c), np.longdouble)  # the gradient and the loss of all others as one class
    extra = np.zeros(n, np.longdouble)
    if isinstance(labels, tuple):
        ids, probs = labels[0], reference.wide(labels[1])
        if tail == "renormalize":
            probs = probs / probs.sum(-1, keepdims=True)
        np.put_along_axis(target, ids, probs, -1)
        if tail == "other":
            left = 1 - probs.sum(-1)
            unmarked = np.ones((n, c))
            np.put_along_axis(unmarked, ids, 0, -1)
            share = (p * unmarked).sum(-1)
            extra = -left * np.log(share)
            bucket = left[:, None] * (p - p * unmarked / share[:, None])
    else:
        used = labels != ignore_index
        target[np.arange(n), np.where(used, labels, 0)] = 1
    class_weight = np.ones(c) if class_weight is None else class_weight
    row_weight = (
        (target * class_weight).sum(-1) if not isinstance(labels, tuple) or (class_weight != 1).any() else np.ones(n)
    )
    target = ((1 - label_smoothing) * target + label_smoothing / c) * class_weight
    loss = -(target * log_p).sum(-1) + extra + z_loss * row_weight * lse[:, 0] ** 2
    dz = p * target.sum(-1, keepdims=True) - target + bucket + 2 * z_loss * row_weight[:, None] * lse * p
    dz = dz / temperature * (1 if softcap is None else 1 - (capped / softcap) ** 2)
    dz = np.where(used, 1, 0)[:, None] * np.broadcast_to(cotangent, n)[:, None] * dz
    return np.where(used, loss, 0), dz @ w, dz.T @ x, dz.sum(0)


def close(got, want, tolerance):
    for g, w in zip(got, want, strict=True):
        scale = max(1.0, float(np.abs(w).max(initial=0)))
        assert float(np.abs(reference.wide(g) - w).max(initial=0)) <= tolerance * scale


def bits(arrays):
    return [np.ascontiguousarray(a).tobytes() for a in arrays]


def flat(result):
    return [result[0], *result[1]]


# ------------------------------------------------------------------ right


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("max_memory", [None, TINY])
def test_equals_the_composed_form(shape, options, max_memory):
    kwargs = data(*shape) | filled(options, shape[2])
    cotangent = np.linspace(-1, 2, shape[0])
    for n_threads in (1, 3):
        got = flat(BOTH(**kwargs, cotangent=cotangent, max_memory=max_memory, n_threads=n_threads))
        close(got, composed(**kwargs, cotangent=cotangent), 1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_float32_is_within_rounding(options):
    kwargs = data(150, 300, 2000, np.float32) | filled(options, 2000)
    got = flat(BOTH(**kwargs))
    assert all(g.dtype == np.float32 for g in got)
    close(got, composed(**kwargs), 3e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_gradients_agree_with_differences(options):
    kwargs = data(4, 3, 6) | filled(options, 6)
    kwargs["reduction"] = "mean"
    kwargs["sample_weight"] = np.array([1, 0.5, 2, 1])
    _, grads = BOTH(**kwargs, cotangent=-1.5)
    for name, grad in zip(NAMES, grads, strict=True):
        want = reference.central_difference(
            lambda v, name=name: -1.5 * fl.linear_cross_entropy(**{**kwargs, name: v}), kwargs[name]
        )
        np.testing.assert_allclose(grad, want, rtol=1e-7, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 70),
    d=st.integers(0, 40),
    c=st.integers(1, 300),
    wrt=st.sets(st.sampled_from(NAMES), min_size=1),
    options=st.sampled_from(OPTIONS),
    max_memory=st.sampled_from([None, TINY, 1 << 16, 1 << 20]),
)
def test_any_shape_and_any_gradients(n, d, c, wrt, options, max_memory):
    kwargs = data(n, d, c) | filled(options, c)
    wrt = tuple(sorted(wrt))
    value, grads = fl.value_and_grad(fl.linear_cross_entropy, wrt)(**kwargs, max_memory=max_memory)
    if n == 0:
        assert value.shape == (0,)
        assert not any(g.any() for g in grads)
        return
    loss, *all_grads = composed(**kwargs)
    want = dict(zip(NAMES, all_grads, strict=True))
    close([value, *grads], [loss, *(want[name] for name in wrt)], 1e-12)
    assert bits([fl.linear_cross_entropy(**kwargs)]) == bits([value])


def test_equals_the_loss_of_stored_logits():
    kwargs = data(40, 20, 300, np.float32)
    kwargs["inputs"] = np.round(8 * kwargs["inputs"]) / 8  # products and sums that no order of adding rounds
    kwargs["weights"] = np.round(64 * kwargs["weights"]) / 64
    kwargs["biases"] = np.round(8 * kwargs["biases"]) / 8
    logits = kwargs["inputs"] @ kwargs["weights"].T + kwargs["biases"]
    got = fl.linear_cross_entropy(**kwargs, label_smoothing=0.1)
    want = fl.sparse_softmax_cross_entropy_with_logits(labels=kwargs["labels"], logits=logits, label_smoothing=0.1)
    assert reference.ulps(got, want).max() <= 2


def test_axes_before_the_last():
    kwargs = data(60, 8, 50)
    want = flat(BOTH(**kwargs))
    shaped = {**kwargs, "inputs": kwargs["inputs"].reshape(3, 4, 5, 8), "labels": kwargs["labels"].reshape(3, 4, 5)}
    got = flat(BOTH(**shaped))
    assert got[0].shape == (3, 4, 5)
    assert got[1].shape == (3, 4, 5, 8)
    assert bits(got) == bits(want)
    one = fl.linear_cross_entropy(**{**kwargs, "inputs": kwargs["inputs"][7], "labels": kwargs["labels"][7]})
    assert one == want[0][7]


@pytest.mark.parametrize("gap", [20.0, 60.0, 300.0])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_confident_rows_keep_their_tails(gap, size):
    table = np.zeros((2000, 2))
    table[:, 1] = size
    table[77, 0] = gap
    loss, grad = fl.value_and_grad(fl.linear_cross_entropy)(inputs=np.ones((1, 2)), weights=table, labels=[77])
    np.testing.assert_allclose(loss, np.log1p(1999 * np.exp(-gap)), rtol=1e-13)
    np.testing.assert_allclose(grad[0, 0], -gap * 1999 / (np.exp(gap) + 1999), rtol=1e-12)


def test_tops_that_grow_from_block_to_block():
    rng = np.random.default_rng(1)
    c = 3000
    weights = np.stack([np.linspace(-500, 500, c), rng.standard_normal(c)], 1)
    kwargs = {"weights": weights, "biases": None, "labels": rng.integers(0, c, 6)}
    kwargs["inputs"] = np.array([[1.0, 1], [-1, 1], [9, 1], [-9, 1], [0, 1], [0.01, -2]])
    got = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))(**kwargs)
    close(flat(got), composed(**kwargs)[:3], 1e-12)


def test_infinities_and_nan():
    kwargs = data(6, 4, 200, np.float32)
    kwargs["labels"] = np.array([1, 2, 3, 4, 5, 6])
    dead = kwargs["biases"].copy()
    dead[[2, 50, 51]] = -np.inf  # classes taken out; row 1's label among them
    live = np.isfinite(dead)
    loss, grads = BOTH(**{**kwargs, "biases": dead})
    assert loss[1] == np.inf
    assert all(np.isfinite(g).all() for g in grads)
    rows = np.array([0, 2, 3, 4, 5])
    renamed = np.cumsum(live)[kwargs["labels"][rows]] - 1
    want = fl.linear_cross_entropy(
        inputs=kwargs["inputs"][rows], weights=kwargs["weights"][live], biases=kwargs["biases"][live], labels=renamed
    )
    np.testing.assert_allclose(loss[rows], want, rtol=1e-6)
    poisoned = kwargs["inputs"].copy()
    poisoned[3] = np.nan
    hidden = {**kwargs, "inputs": poisoned, "sample_weight": np.array([1, 1, 1, 0, 1, 1.0])}
    clean = {**kwargs, "sample_weight": hidden["sample_weight"]}
    loss = fl.linear_cross_entropy(**{**kwargs, "inputs": poisoned})
    assert np.isnan(loss[3])
    assert not np.isnan(np.delete(loss, 3)).any()
    assert bits(flat(BOTH(**hidden))) == bits(flat(BOTH(**clean)))
    nothing = fl.linear_cross_entropy(**{**kwargs, "biases": np.full(200, -np.inf, np.float32)})
    assert np.isnan(nothing).all()


# ------------------------------------------------------------------ the k best


@pytest.mark.parametrize("tail", ["drop", "renormalize", "other"])
@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "temperature": 0.5, "z_loss": 0.02}], ids=["plain", "all"])
def test_k_best(tail, k, options):
    kwargs = data(37, 9, 400)
    rng = np.random.default_rng(k)
    ids = np.stack([rng.choice(400, k, replace=False) for _ in range(37)])
    kwargs["labels"] = (ids, rng.dirichlet(np.ones(k + 1), 37)[:, :k])
    for max_memory in (None, TINY):
        got = flat(BOTH(**kwargs, **options, tail=tail, max_memory=max_memory))
        close(got, composed(**kwargs, **options, tail=tail), 1e-12)


def test_k_best_with_weights_and_smoothing():
    kwargs = data(12, 5, 90) | {"class_weight": np.linspace(0.5, 2, 90), "label_smoothing": 0.2}
    ids = np.argsort(np.random.default_rng(0).random((12, 90)), -1)[:, :4]
    kwargs["labels"] = (ids, np.full((12, 4), 0.2))
    close(flat(BOTH(**kwargs)), composed(**kwargs), 1e-12)


def test_one_best_is_a_label():
    kwargs = data(30, 8, 60, np.float32)
    pair = (kwargs["labels"][:, None], np.ones((30, 1)))
    assert bits(flat(BOTH(**{**kwargs, "labels": pair}))) == bits(flat(BOTH(**kwargs)))


# ------------------------------------------------------------------ statistics


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_statistics(size):
    kwargs = data(70, 12, 2500)
    kwargs["inputs"] *= size
    logits = kwargs["inputs"] @ kwargs["weights"].T + kwargs["biases"]
    log_p = np.asarray(logits - reference.wide(fl.logsumexp(logits, -1, keepdims=True)), np.float64)
    (loss, stats), _ = BOTH(**kwargs, return_stats=True)
    assert bits([loss]) == bits([fl.linear_cross_entropy(**kwargs)])
    np.testing.assert_allclose(stats.lse, fl.logsumexp(logits), rtol=1e-13)
    np.testing.assert_allclose(stats.log_prob, log_p[np.arange(70), kwargs["labels"]], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(stats.entropy, -(np.exp(log_p) * log_p).sum(-1), rtol=1e-11, atol=1e-13)
    assert (stats.argmax == logits.argmax(-1)).all()
    assert (stats.correct == (stats.argmax == kwargs["labels"])).all()


def test_statistics_of_the_k_best():
    kwargs = data(20, 6, 50)
    ids = np.argsort(np.random.default_rng(0).random((20, 50)), -1)[:, :3]
    _, stats = fl.linear_cross_entropy(
        **{**kwargs, "labels": (ids, np.tile([0.2, 0.5, 0.1], (20, 1)))}, return_stats=True
    )
    for j in range(3):
        want = -fl.linear_cross_entropy(**{**kwargs, "labels": ids[:, j]})
        np.testing.assert_allclose(stats.log_prob[:, j], want, rtol=1e-12)
    assert (stats.correct == (stats.argmax == ids[:, 1])).all()


# ------------------------------------------------------------------ partial sums


@pytest.mark.parametrize("size", [1.0, 40.0, 3000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_partials_in_any_grouping(size, dtype):
    kwargs = data(25, 6, 800, dtype)
    kwargs["inputs"] *= dtype(size)
    cuts = [0, 1, 90, 97, 400, 400, 790, 800]
    parts = [
        fl.linear_partials(
            inputs=kwargs["inputs"], labels=kwargs["labels"], weights=kwargs["weights"][a:b],
            biases=kwargs["biases"][a:b], first_class=a,
        )
        for a, b in itertools.pairwise(cuts)
    ]  # fmt: skip
    whole = fl.linear_cross_entropy(**kwargs)
    straight = fl.loss_from_partials(fl.merge_partials(*parts))
    assert reference.ulps(straight.astype(dtype), whole).max() <= 4
    rng = np.random.default_rng(0)
    for _ in range(20):
        left = [parts[i] for i in rng.permutation(len(parts))]
        while len(left) > 1:
            k = int(rng.integers(2, len(left) + 1))
            left = [*left[k:], fl.merge_partials(*left[:k])]
        assert reference.ulps(fl.loss_from_partials(left[0]), straight).max() <= 1
    assert (fl.loss_from_partials(parts[0])[kwargs["labels"] > 0] == np.inf).all()


def test_partials_of_logits_that_lie_far_apart():
    """Powers of two that differ by more than an int holds, and one that is NaN."""
    rows = np.array([[1e300, 3e299, -1e300, 0], [1e10, 0, -1e10, 5e9], [0, 1, 2, np.nan], [np.nan, 1e300, 0, 0]])
    kwargs = {"inputs": rows, "labels": np.array([0, 0, 0, 1])}
    parts = [fl.linear_partials(weights=np.eye(4)[k : k + 1], first_class=k, **kwargs) for k in range(4)]
    for order in itertools.permutations(parts):
        got = fl.loss_from_partials(fl.merge_partials(*order))
        np.testing.assert_array_equal(got, [0, 0, np.nan, np.nan])


@pytest.mark.parametrize("offset", [0.0, -3000.0, 30_000.0])
def test_partials_of_a_label_far_ahead(offset):
    ahead = np.array([0.5, 100, 300, 354, 356, 360, 500, 620, 630, 700, 740, 800, 5000])
    rows = offset + np.stack([ahead, 0 * ahead - 1, 0 * ahead], 1)
    kwargs = {"inputs": rows, "labels": np.zeros(len(rows), int)}
    parts = [fl.linear_partials(weights=np.eye(3)[k : k + 1], first_class=k, **kwargs) for k in range(3)]
    want = fl.linear_cross_entropy(weights=np.eye(3), **kwargs)
    for order in itertools.permutations(parts):
        got = fl.loss_from_partials(fl.merge_partials(*order))
        np.testing.assert_allclose(got, want, rtol=1e-15, atol=5e-324)


# ------------------------------------------------------------------ the same bits


def test_bits_do_not_depend_on_threads_or_memory():
    kwargs = data(300, 70, 1100, np.float32) | {"label_smoothing": 0.1, "softcap": 5.0}
    want = bits(flat(BOTH(**kwargs, n_threads=1)))
    for n_threads in (1, 2, 3, 7):
        for max_memory in (None, TINY, 2 << 20):
            assert bits(flat(BOTH(**kwargs, n_threads=n_threads, max_memory=max_memory))) == want


def test_bits_of_a_row_depend_on_the_row_alone():
    kwargs = data(200, 33, 500, np.float32)
    f = fl.value_and_grad(fl.linear_cross_entropy)
    loss, grad = f(**kwargs)
    for rows in (slice(0, 1), slice(5, 70), slice(150, 200), slice(None, None, -1)):
        some = {**kwargs, "inputs": kwargs["inputs"][rows], "labels": kwargs["labels"][rows]}
        assert bits(f(**some)) == bits([loss[rows], grad[rows]])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64], ids=str)
def test_bits_do_not_depend_on_the_layout(dtype):
    kwargs = data(20, 13, 90, dtype)
    f = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))
    want = bits(flat(f(**kwargs)))
    for name in ("inputs", "weights"):
        a = kwargs[name]
        spaced = np.zeros(tuple(2 * n for n in a.shape), a.dtype)[::2, ::2]
        spaced[...] = a
        memory = np.zeros(a.nbytes + 1, np.uint8)[1:]
        memory[...] = np.frombuffer(a.tobytes(), np.uint8)
        frozen = a.copy()
        frozen.flags.writeable = False
        for b in (np.asfortranarray(a), spaced, memory.view(a.dtype).reshape(a.shape), frozen, a[::-1].copy()[::-1]):
            assert bits(flat(f(**{**kwargs, name: b}))) == want


def test_shards_are_the_table(tmp_path):
    kwargs = data(50, 20, 700, np.float32)
    want = flat(BOTH(**kwargs))
    w = kwargs["weights"]
    mapped = np.memmap(tmp_path / "shard", np.float32, "w+", shape=(300, 20))
    mapped[...] = w[100:400]
    pieces = [w[:1], w[1:100], mapped, w[400:400], np.asfortranarray(w[400:])]
    value, (dx, dws, db) = BOTH(**{**kwargs, "weights": pieces})
    assert isinstance(dws, list)
    assert [g.shape for g in dws] == [a.shape for a in pieces]
    close([value, dx, np.concatenate(dws), db], [reference.wide(a) for a in want], 2e-6)
    buffers = (np.full_like(dx, 7), [np.full_like(g, 7) for g in dws], np.full_like(db, 7))
    got = BOTH(**{**kwargs, "weights": pieces}, grad_out=buffers)
    assert got[1][1][2] is buffers[1][2]
    assert bits([got[0], got[1][0], *got[1][1], got[1][2]]) == bits([value, dx, *dws, db])


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
@pytest.mark.parametrize("max_memory", [None, TINY])
def test_half_types_lose_nothing_but_their_own_rounding(dtype, max_memory):
    kwargs = data(300, 20, 200, dtype)
    wide = {k: v.astype(np.float32) if v.dtype == dtype else v for k, v in kwargs.items()}
    got, want = BOTH(**kwargs, max_memory=max_memory), BOTH(**wide)
    assert bits([got[0]]) == bits([want[0]])
    assert bits(got[1]) == bits([g.astype(dtype) for g in want[1]])


def test_a_half_table_under_float_inputs():
    kwargs = data(40, 20, 200, np.float32)
    half = kwargs["weights"].astype(np.float16)
    got = BOTH(**{**kwargs, "weights": half})
    want = BOTH(**{**kwargs, "weights": half.astype(np.float32)})
    assert bits([got[0], got[1][0], got[1][2]]) == bits([want[0], want[1][0], want[1][2]])
    assert got[1][1].dtype == np.float16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [64, 65, 320])  # whole lanes: the table's gradient may be summed in the buffer itself
@pytest.mark.parametrize("first", [0, 1, 4, 15])  # elements from an even place
def test_table_gradient_however_the_buffer_lies(dtype, d, first):
    n, c = 300, 250
    kwargs = data(n, d, c, dtype)
    want = BOTH(**kwargs)[1][1]
    x, b = np.empty_like(kwargs["inputs"]), np.empty_like(kwargs["biases"])
    for at in (np.s_[:c, :d], np.s_[::2, :d], np.s_[c - 1 :: -1, :d], np.s_[:c, ::2]):
        memory = np.full(4 * c * d + 16, 7, dtype)
        target = memory[first : first + 4 * c * d].reshape(2 * c, 2 * d)[at]
        for limit in (None, 1 << 18):  # several blocks of rows, added up
            BOTH(**kwargs, grad_out=(x, target, b), max_memory=limit)
            assert bits([target]) == bits([want])
        target[...] = 7
        assert (memory == 7).all()  # and nothing beside it is written


def test_shards_whose_gradients_lie_differently():
    kwargs = data(300, 320, 250, np.float32)
    w = kwargs["weights"]
    kwargs["weights"] = [w[:100], w[100:160].astype(np.float16), w[160:]]
    want = BOTH(**kwargs)[1][1]
    memory = np.full(250 * 320 + 16, 7, np.float32)
    dx, db = np.empty_like(kwargs["inputs"]), np.empty_like(kwargs["biases"])
    for first in (0, 3):
        one = memory[first : first + 100 * 320].reshape(100, 320)
        two = np.empty((60, 320), np.float16)
        three = memory[100 * 320 + 16 :].reshape(150, 320)[60:]
        BOTH(**kwargs, grad_out=(dx, [one, two, three], db))
        assert bits([one, two, three]) == bits(want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_columns_write_nothing(dtype):
    memory = np.full(48 * 64 + 16, 7, dtype)
    kwargs = {"inputs": np.zeros((300, 0), dtype), "weights": np.zeros((48, 0), dtype), "labels": np.zeros(300, int)}
    for first in range(16):
        target = memory[first : first + 48 * 64].reshape(48, 64)[:, :0]
        f = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))
        close([f(**kwargs, grad_out=(np.zeros((300, 0), dtype), target))[0]], [np.full(300, np.log(48))], 1e-6)
    assert (memory == 7).all()


# ------------------------------------------------------------------ memory

PEAK = """
import numpy as np, fastloss as fl, sys
def peak(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":")) * 1024
n, d, c, limit = 2048, 32, 60000, 12 << 20
rng = np.random.default_rng(0)
x, w, y = rng.standard_normal((n, d), np.float32), rng.standard_normal((c, d), np.float32), rng.integers(0, c, n)
f = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))
f(inputs=x[:64], weights=w[:999], labels=y[:64] % 999, n_threads=2)
buffers = np.ones_like(x), np.ones_like(w)
before = peak("VmHWM"), peak("VmPeak")
f(inputs=x, weights=w, labels=y, grad_out=buffers, max_memory=limit, n_threads=2)
print(peak("VmHWM") - before[0], peak("VmPeak") - before[1], limit, n * c * 4)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_scratch_stays_within_max_memory():
    resident, addressed, limit, logits = map(int, python(PEAK).split())
    assert resident <= 1.1 * limit + (1 << 20)
    assert addressed <= 2 * limit
    assert 20 * addressed < logits


# ------------------------------------------------------------------ buffers and errors


def test_buffers_are_written():
    kwargs = data(40, 7, 80, np.float32)
    want = BOTH(**kwargs, reduction="mean")
    buffers = tuple(np.full_like(g, 7) for g in want[1])
    out = np.empty((), np.float32)
    got = BOTH(**kwargs, reduction="mean", grad_out=buffers, out=out)
    assert got[0] is out
    assert all(g is b for g, b in zip(got[1], buffers, strict=True))
    assert bits(flat(got)) == bits(flat(want))
    x = kwargs["inputs"].copy()
    value, grad = fl.value_and_grad(fl.linear_cross_entropy)(**{**kwargs, "inputs": x}, reduction="mean", grad_out=x)
    assert grad is x
    assert bits([value, grad]) == bits([want[0], want[1][0]])


def test_nothing_to_do():
    for n, c in ((0, 5), (0, 0)):
        value, (dx, dw, db) = BOTH(**data(n, 3, max(c, 1)) | {"weights": np.ones((c, 3)), "biases": np.ones(c)})
        assert value.shape == (n,)
        assert dx.shape == (n, 3)
        assert not dw.any()
        assert not db.any()
    ignored = data(5, 3, 4) | {"labels": np.full(5, -1), "ignore_index": -1, "reduction": "mean"}
    value, grads = BOTH(**ignored)
    assert value == 0
    assert not any(g.any() for g in grads)


GOOD = data(3, 4, 5, np.float32)


def best(ids, probs):
    return {"labels": (np.asarray(ids), np.asarray(probs, float))}


ONE = np.zeros((3, 1), int)
ERRORS = [
    ({"labels": [0, 5, 1]}, ValueError, r"labels must lie in \[0, 5\), got 5 at row 1"),
    ({"labels": [0, -2, 1], "ignore_index": -1}, ValueError, r"labels must lie in .* or be ignore_index -1, got -2"),
    ({"labels": [0, 1]}, ValueError, r"labels must have shape \(3,\)"),
    ({"labels": [0.0, 1, 2]}, TypeError, "labels must be integers, got float64"),
    ({"weights": np.ones((5, 3))}, ValueError, r"weights must have shape \[classes, 4\], .* got \(5, 3\)"),
    ({"weights": np.ones(4)}, ValueError, r"weights must have shape"),
    ({"weights": [np.ones((2, 4)), np.ones((3, 3))]}, ValueError, r"weights\[1\] must have shape"),
    ({"weights": [np.ones((2, 4)), np.ones((3, 4), int)]}, TypeError, r"weights\[1\] must be float16.* got int64"),
    ({"weights": np.ones((5, 4), complex)}, TypeError, "weights must be float16"),
    ({"inputs": np.ones((3, 4), int)}, TypeError, "inputs must be float16"),
    ({"inputs": np.float32(1)}, ValueError, "inputs must have an axis of features"),
    ({"biases": np.ones(4)}, ValueError, r"biases must have shape \(5,\), got \(4,\)"),
    ({"class_weight": np.ones(4)}, ValueError, "class_weight must have shape"),
    ({"tail": "keep"}, ValueError, "tail must be one of"),
    ({"tail": "other"}, ValueError, "tail must be 'drop' unless labels are a pair"),
    ({"softcap": 0}, ValueError, "softcap must be more than 0, got 0"),
    ({"temperature": -1}, ValueError, "temperature must lie in"),
    ({"temperature": np.nan}, ValueError, "temperature must lie in"),
    ({"z_loss": -1}, ValueError, "z_loss must lie in"),
    ({"label_smoothing": 2}, ValueError, "label_smoothing must lie in"),
    ({"max_memory": 0}, ValueError, "max_memory must be more than 0"),
    ({"max_memory": "1 GB"}, TypeError, "max_memory must be a number"),
    ({"reduction": "max"}, ValueError, "reduction must be one of"),
    ({"out": np.ones(4, np.float32)}, ValueError, "out must have shape"),
    ({"n_threads": 0}, ValueError, "n_threads must be at least 1"),
    (best(np.zeros((3, 2), int), np.ones((3, 2))), ValueError, r"labels\[0\] must not repeat a class .* got \[0, 0\]"),
    (best(ONE + 9, np.ones((3, 1))), ValueError, r"labels\[0\] must lie in \[0, 5\), got 9 at index \(0, 0\)"),
    (best(ONE, -np.ones((3, 1))), ValueError, r"labels\[1\] must be finite and not negative, got -1.0"),
    (best(ONE, np.ones((3, 2))), ValueError, r"labels\[1\] must have shape \(3, 1\)"),
    (best(np.zeros((3, 0), int), np.ones((3, 0))), ValueError, "at least one class a row"),
    (best(ONE, ONE) | {"ignore_index": 0}, ValueError, "ignore_index must be None"),
    (
        best(ONE, ONE) | {"tail": "other", "label_smoothing": 0.1},
        ValueError,
        "tail must not be 'other' where",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), ERRORS, ids=lambda v: v if isinstance(v, str) else "")
def test_errors_are_named_before_anything_is_written(change, error, words):
    buffers = tuple(np.full_like(GOOD[name], 7) for name in NAMES)
    with pytest.raises(error, match=words):
        BOTH(**{**GOOD, **change}, grad_out=buffers)
    assert all((b == 7).all() for b in buffers)


def test_bad_buffers_are_refused():
    f = fl.value_and_grad(fl.linear_cross_entropy, ("weights",))
    w = GOOD["weights"].copy()
    for buffer, words in [
        (np.ones((5, 3), np.float32), "grad_out must have shape"),
        (w, "grad_out must not overlap weights"),
        (w[:2], "grad_out must have shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            f(**{**GOOD, "weights": w}, grad_out=(buffer,))
    with pytest.raises(ValueError, match="must be a list of 2 arrays"):
        f(**{**GOOD, "weights": [w[:2], w[2:]]}, grad_out=(np.ones_like(w),))
    same = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match="must not overlap"):
        f(**{**GOOD, "weights": [w[:2], w[2:4]], "labels": [0, 1, 2], "biases": None}, grad_out=([same, same],))
    with pytest.raises(ValueError, match="biases must be given"):
        fl.value_and_grad(fl.linear_cross_entropy, "biases")(**{**GOOD, "biases": None})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"labels": [0, -1, 1]}, ValueError, r"labels must not be negative, got -1 at row 1"),
        ({"first_class": -1}, ValueError, "first_class must lie in"),
        ({"first_class": 0.5}, TypeError, "first_class must be an integer"),
    ],
)
def test_errors_of_partials(arguments, error, words):
    with pytest.raises(error, match=words):
        fl.linear_partials(**{k: v for k, v in GOOD.items()} | arguments)


def test_errors_of_merging():
    a = fl.linear_partials(**GOOD)
    with pytest.raises(ValueError, match="must be one array or more"):
        fl.merge_partials()
    with pytest.raises(ValueError, match=r"partials\[1\] must have shape \(3, 4\)"):
        fl.merge_partials(a, a[:2])
    with pytest.raises(ValueError, match=r"partials must have shape \[..., 4\], got \(3, 3\)"):
        fl.loss_from_partials(a[:, :3])
    with pytest.raises(TypeError, match="partials must be float64, got float32"):
        fl.loss_from_partials(a.astype(np.float32))


@pytest.mark.parametrize("logit", [-5000.0, -496.0, 0.0, 3.0, 5000.0])
def test_partials_of_a_vocabulary_of_one(logit):
    part = fl.linear_partials(inputs=np.ones((1, 1)), weights=np.array([[logit]]), labels=[0])
    assert fl.loss_from_partials(part) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_nan_where_only_the_others_count(dtype):
    x, w = np.full((1, 1), np.nan, dtype), np.zeros((9, 1), dtype)
    loss = fl.linear_cross_entropy(inputs=x, weights=w, labels=(np.array([[2, 5]]), np.zeros((1, 2))), tail="other")
    assert np.isnan(loss).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smoothing_where_the_label_is_masked_and_weighs_nothing(dtype):
    biases = np.array([0, -np.inf, 2], dtype)
    loss = fl.linear_cross_entropy(
        inputs=np.zeros((1, 1), dtype), weights=np.zeros((3, 1), dtype), biases=biases, labels=[1],
        class_weight=[1, 0, 1], label_smoothing=0.5,
    )  # fmt: skip
    lse = np.log(1 + np.exp(2.0))
    np.testing.assert_allclose(loss, 0.5 / 3 * (lse + lse - 2), rtol=2e-7 if dtype == np.float32 else 1e-15)


@pytest.mark.parametrize("class_weight", [None, [0, 1, 1], [2, 1, 0], [0, 1, 0]])
@pytest.mark.parametrize(
    "logits", [[1e6, 1e6 + 1, 1e6 - 2], [-900, 0, 1], [0, 25, -700], [3e5, -1, 2], [-9e4, -9e4, -8e4], [0, 30, -2]]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_smoothing_keeps_its_digits_at_every_margin(dtype, logits, class_weight):
    x, labels = np.array([logits] * 3, dtype), np.arange(3)
    tables = [np.eye(3, dtype=dtype)[k : k + 1] for k in range(3)]  # the largest comes first, second and last
    for order in itertools.permutations(range(3)):
        w = None if class_weight is None else np.array(class_weight)[list(order)]
        logits, options = x[:, order], {"class_weight": w, "label_smoothing": 0.25}
        got = fl.linear_cross_entropy(inputs=logits, weights=tables, labels=labels, **options)
        want, _, _ = reference.cross_entropy(labels, logits, **options)
        assert reference.ulps(got, want).max() <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gap", [30, 660, 700, 8000])
def test_other_classes_far_below_keep_their_digits(dtype, gap):
    rng = np.random.default_rng(gap)
    top = (rng.uniform(-1e6, 1e6, 50)).astype(dtype)
    x = np.stack([top, top - dtype(gap), top - dtype(gap + 1.25)], 1)
    labels = (np.zeros((50, 1), int), np.full((50, 1), 0.25))
    got = fl.linear_cross_entropy(inputs=x, weights=np.eye(3, dtype=dtype), labels=labels, tail="other")
    a, b, c = reference.wide(x).T
    rest = (b - a) + np.log1p(np.exp(c - b))  # less the best logit
    want = 0.25 * np.log1p(np.exp(rest)) + 0.75 * (np.log1p(np.exp(rest)) - rest)
    assert reference.ulps(got, want).max() <= 4


def test_entropy_of_logits_far_from_0():
    x = np.array([[1e6 + 0.3, 1e6, 1e6 - 1], [1e302, 0, -1e302], [-1e302, 1e302, 1e302]])
    for labels in ([0, 0, 0], [2, 2, 2]):
        _, stats = fl.linear_cross_entropy(inputs=x, weights=np.eye(3), labels=labels, return_stats=True)
        less, p, _ = reference.logsumexp_less(x)
        want = np.where(p > 0, p * less, 0).sum(-1)
        np.testing.assert_allclose(stats.entropy, want.astype(float), rtol=1e-15)


def test_smoothing_over_many_classes_does_not_drift():
    rng = np.random.default_rng(3)
    w = rng.integers(-2, 3, (20_001, 1)).astype(float)
    x = np.ones((3, 1))
    value = fl.linear_cross_entropy(inputs=x, weights=w, labels=[0, 56, 20_000], label_smoothing=1.0)
    z = reference.wide(w[:, 0])
    want = np.log(np.exp(z).sum()) - z.sum() / len(z)
    np.testing.assert_allclose(reference.wide(value), want, rtol=4 * 2.0**-53)
