"""Sampled softmax, noise-contrastive estimation, sparse rows."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from table import BFLOAT16, DTYPES

import fastloss as fl

WRT = ("inputs", "weights", "biases")
CASES = [pytest.param(c, id=f"{c['loss']}-{k}") for k, c in enumerate(golden.cases("sampled_losses"))]
BOTH = pytest.mark.parametrize("loss", [fl.sampled_softmax_loss, fl.nce_loss])


def shards_of(table, parts, strategy):
    if strategy == "mod":
        return [table[k::parts] for k in range(parts)]
    sizes = [len(table) // parts + (k < len(table) % parts) for k in range(parts)]
    return np.split(table, np.cumsum(sizes)[:-1])


def ids_of(n, parts, strategy):
    return shards_of(np.arange(n), parts, strategy)


def dense(gradient, n, parts, strategy):
    """The gradient of shards, put together."""
    if isinstance(gradient, fl.SparseRows):
        return gradient.to_dense()
    whole = np.zeros((n, *gradient[0].shape[1:]), gradient[0].dtype)
    for ids, part in zip(ids_of(n, parts, strategy), gradient, strict=True):
        whole[ids] = part.to_dense()
    return whole


def run(loss, *args, wrt=WRT, **kwargs):
    value, gradients = fl.value_and_grad(loss, wrt)(*args, **kwargs)
    return value, *gradients


def problem(b=7, k=5, t=2, n=40, d=6, dtype=np.float64, seed=0):
    """Arguments by name, with given candidates, some of them hits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n, (b, t))
    sampled = rng.integers(0, n, k)
    sampled[: min(k, b) // 2] = labels[: min(k, b) // 2, 0]
    return {
        "weights": rng.standard_normal((n, d)).astype(dtype),
        "biases": rng.standard_normal(n).astype(dtype),
        "labels": labels,
        "inputs": rng.standard_normal((b, d)).astype(dtype),
        "num_sampled": k,
        "num_classes": n,
        "num_true": t,
        "sampled_values": (sampled, rng.uniform(0.1, 2, (b, t)), rng.uniform(0.1, 2, k)),
    }


def oracle(nce, weights, biases, labels, inputs, sampled_values, remove, log_q=True, **unused):
    """In long double, straight from the definition."""
    w, c, x = (np.asarray(a).astype(float).astype(np.longdouble) for a in (weights, biases, inputs))
    s, te, se = sampled_values
    zt = (w[labels] * x[:, None]).sum(2) + c[labels] - (np.log(te) if log_q else 0)
    zs = x @ w[s].T + c[s] - (np.log(se) if log_q else 0)
    if remove:
        zs = np.where((labels[:, :, None] == s).any(1), -np.inf, zs)
    z = np.concatenate([zt, zs], 1)
    if nce:
        return np.logaddexp(0, z).sum(1) - zt.mean(1)
    return np.logaddexp.reduce(z, 1) - zt.mean(1)


# ------------------------------------------------------------------ right


@pytest.mark.parametrize(("parts", "strategy"), [(1, "mod"), (3, "mod"), (3, "div"), (5, "div")])
@pytest.mark.parametrize("case", CASES)
def test_golden(case, parts, strategy):
    w, b, x = (np.array(case[name]) for name in ("weights", "biases", "inputs"))
    n = len(w)
    split = (lambda a: a) if parts == 1 else (lambda a: shards_of(a, parts, strategy))
    value, *gradients = run(
        getattr(fl, case["loss"]), split(w), split(b), case["labels"], x, case["num_sampled"], n, case["num_true"],
        (case["sampled"], case["true_expected_count"], case["sampled_expected_count"]),
        case["remove_accidental_hits"], strategy, cotangent=case["cotangent"],
    )  # fmt: skip
    np.testing.assert_allclose(value, case["value"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradients[0], case["d_inputs"], rtol=1e-12, atol=1e-12)
    for gradient, name in zip(gradients[1:], ("d_weights", "d_biases"), strict=True):
        np.testing.assert_allclose(dense(gradient, n, parts, strategy), case[name], rtol=1e-12, atol=1e-12)


# recorded from TensorFlow 2.21: tf.nn.sampled_softmax_loss with the arguments of the test
TENSORFLOW = {
    (1, 1): [2.314204692840576, 7.412975311279297, 0.4597172439098358],
    (1, 2): [1.8925721645355225, 7.413578510284424, 3.275643825531006],
    (7, 1): [3.8382785320281982, 6.244399547576904, 1.3716349601745605],
    (7, 2): [3.2784764766693115, 6.246339321136475, 4.075861930847168],
    (12345, 1): [2.7368733882904053, 9.13056468963623, 1.943437933921814],
    (12345, 2): [2.4554615020751953, 9.130672454833984, 4.7598772048950195],
}


@pytest.mark.parametrize(("seed", "num_true"), TENSORFLOW)
def test_seeded_loss_is_that_of_tensorflow(seed, num_true):
    n = np.arange
    w, b = np.sin(n(300)).reshape(50, 6).astype(np.float32), np.cos(n(50)).astype(np.float32)
    x = np.sin(n(18) * 0.7).reshape(3, 6).astype(np.float32)
    labels = [[3], [0], [41]] if num_true == 1 else [[3, 1], [0, 0], [41, 5]]
    value = fl.sampled_softmax_loss(w, b, labels, x, 8, 50, num_true, seed=seed)
    np.testing.assert_allclose(value, TENSORFLOW[seed, num_true], rtol=1e-6)
    sampler = fl.LogUniformSampler(50, seed=seed)
    again = fl.sampled_softmax_loss(w, b, labels, x, 8, 50, num_true, sampler=sampler)
    assert again.tobytes() == value.tobytes()
    later = fl.sampled_softmax_loss(w, b, labels, x, 8, 50, num_true, sampler=sampler)
    assert later.tobytes() != value.tobytes()


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("log_q", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 2), (70, 33, 1), (130, 600, 3)], ids=str)
def test_agrees_with_the_oracle(loss, dtype, remove, log_q, shape):
    kwargs = problem(*shape, dtype=dtype)
    value = loss(**kwargs, remove_accidental_hits=remove, subtract_log_q=log_q)
    want = oracle(loss is fl.nce_loss, **kwargs, remove=remove, log_q=log_q)
    assert value.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.isfinite(value).all()
    np.testing.assert_allclose(value, want.astype(float), rtol=1e-13 if dtype == np.float64 else 2e-6)


@BOTH
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients_agree_with_differences(loss, reduction):
    kwargs = problem() | {"sample_weight": np.linspace(0, 2, 7), "reduction": reduction}
    cotangent = np.linspace(-1, 2, 7) if reduction == "none" else -1.5
    _, *gradients = run(loss, **kwargs, cotangent=cotangent)
    for name, gradient in zip(WRT, gradients, strict=True):
        got = gradient if name == "inputs" else gradient.to_dense()
        for place in np.ndindex(got.shape):
            values = []
            for step in (-2, -1, 1, 2):
                moved = kwargs[name].copy()
                moved[place] += step * 1e-3
                values.append((loss(**(kwargs | {name: moved})) * cotangent).sum())
            want = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-3
            assert got[place] == pytest.approx(want, rel=1e-8, abs=1e-9)


@BOTH
def test_confident_rows_keep_their_loss(loss):
    for dtype, gaps in ((np.float32, (20.0, 40.0)), (np.float64, (20.0, 60.0, 300.0))):
        for gap in gaps:
            w, x = np.eye(3, dtype=dtype), np.array([[gap, 0, -gap]], dtype)
            sample = np.array([2]), np.ones((1, 1)), np.ones(1)
            value = loss(w, np.zeros(3, dtype), [[0]], x, 1, 3, sampled_values=sample)
            want = np.exp(-2 * gap) if loss is fl.sampled_softmax_loss else 2 * np.log1p(np.exp(-gap))
            np.testing.assert_allclose(value, want, rtol=1e-6 if dtype == np.float32 else 1e-14)


def test_all_classes_sampled_give_the_full_softmax():
    rng = np.random.default_rng(0)
    n, d, b = 30, 5, 40
    w, c, x = rng.standard_normal((n, d)), rng.standard_normal(n), rng.standard_normal((b, d))
    y = rng.integers(0, n, b)
    everything = fl.all_candidate_sampler(y[:, None], 1, n, True)
    value, dx, dw, dc = run(fl.sampled_softmax_loss, w, c, y[:, None], x, n, n, sampled_values=everything)
    want, g = fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(labels=y, logits=x @ w.T + c)
    np.testing.assert_allclose(value, want, rtol=1e-13)
    for got, expected in ((dx, g @ w), (dw.to_dense(), g.T @ x), (dc.to_dense(), g.sum(0))):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_the_bias_of_the_estimate_falls_with_the_sample():
    rng = np.random.default_rng(0)
    n, d = 200, 4
    w, c, x = rng.standard_normal((n, d)), np.zeros(n), rng.standard_normal((1, d))
    y = np.array([[3]])
    want = fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(labels=y[:, 0], logits=x @ w.T)[1] @ w
    bias, gradient = [], fl.value_and_grad(fl.sampled_softmax_loss)
    for k in (5, 20, 80):
        sampler = fl.UniformSampler(n, seed=1)
        drawn = [gradient(w, c, y, x, k, n, sampler=sampler)[1] for _ in range(2000)]
        bias.append(np.linalg.norm(np.mean(drawn, 0) - want))
    assert bias[1] < 0.6 * bias[0]
    assert bias[2] < 0.6 * bias[1]


# ------------------------------------------------------------------ tables


@BOTH
@pytest.mark.parametrize("strategy", ["mod", "div"])
def test_shards_however_they_lie(loss, strategy, tmp_path):
    kwargs = problem(dtype=np.float32)
    want = run(loss, **kwargs)
    n = kwargs["num_classes"]
    for parts in (2, 7, 40):
        split = shards_of(kwargs["weights"], parts, strategy)
        mapped = []
        for k, shard in enumerate(split):
            np.save(tmp_path / f"{parts}-{k}.npy", np.asfortranarray(shard) if k % 2 else shard)
            mapped.append(np.load(tmp_path / f"{parts}-{k}.npy", mmap_mode="r"))
        value, dx, dw, db = run(loss, **(kwargs | {"weights": tuple(mapped)}), partition_strategy=strategy)
        assert isinstance(dw, tuple)
        assert all(part.shape == shard.shape for part, shard in zip(dw, split, strict=True))
        assert value.tobytes() == want[0].tobytes()
        assert dx.tobytes() == want[1].tobytes()  # of two true classes a row: added in their order
        np.testing.assert_array_equal(dense(dw, n, parts, strategy), want[2].to_dense())
        np.testing.assert_array_equal(db.to_dense(), want[3].to_dense())


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_do_not_depend_on_the_layout(loss, dtype):
    kwargs = problem(dtype=dtype)
    want = run(loss, **kwargs)
    for name in WRT:
        a = kwargs[name]
        spaced = np.zeros(tuple(3 * n for n in a.shape), a.dtype)[(slice(None, None, 3),) * a.ndim]
        spaced[...] = a
        memory = np.zeros(a.nbytes + 1, np.uint8)[1:]
        memory[...] = np.frombuffer(a.tobytes(), np.uint8)
        for other in (np.asfortranarray(a), spaced, memory.view(a.dtype).reshape(a.shape), a[::-1].copy()[::-1]):
            got = run(loss, **(kwargs | {name: other}))
            assert got[0].tobytes() == want[0].tobytes()
            assert np.ascontiguousarray(got[1]).tobytes() == want[1].tobytes()
            assert all(g.values.tobytes() == w.values.tobytes() for g, w in zip(got[2:], want[2:], strict=True))


@BOTH
def test_only_touched_rows_are_read(loss):
    kwargs = problem()
    touched = np.unique(np.concatenate([kwargs["labels"].ravel(), kwargs["sampled_values"][0]]))
    w = np.full_like(kwargs["weights"], np.nan)
    w[touched] = kwargs["weights"][touched]
    for got, want in zip(run(loss, **(kwargs | {"weights": w}))[:2], run(loss, **kwargs)[:2], strict=True):
        assert got.tobytes() == want.tobytes()


@BOTH
def test_bits_do_not_depend_on_threads(loss):
    kwargs = problem(300, 200, 2, 1000, 48, np.float32)
    want = run(loss, **kwargs, n_threads=1)
    for n_threads in (2, 3, 5):
        got = run(loss, **kwargs, n_threads=n_threads)
        assert got[0].tobytes() == want[0].tobytes()
        assert got[1].tobytes() == want[1].tobytes()
        assert all(g.values.tobytes() == w.values.tobytes() for g, w in zip(got[2:], want[2:], strict=True))


@BOTH
def test_blocks_of_rows_add_up(loss, monkeypatch):
    kwargs = problem(300, 50, 2, 1000, 16) | {"remove_accidental_hits": True}
    want = run(loss, **kwargs)
    monkeypatch.setattr("fastloss.losses.drivers.sampled_logits.KEPT", 64 * 64)
    value, inputs, weights, biases = run(loss, **kwargs)
    assert value.tobytes() == want[0].tobytes()
    assert inputs.tobytes() == want[1].tobytes()
    assert weights.values.tobytes() == want[2].values.tobytes()
    np.testing.assert_allclose(biases.values, want[3].values, rtol=1e-12, atol=1e-13)


# ------------------------------------------------------------------ rows that do not count, odd values, buffers


@BOTH
def test_weight_zero_hides_a_row(loss):
    kwargs = problem()
    bad = kwargs | {"inputs": kwargs["inputs"].copy()}
    bad["inputs"][3] = np.nan
    weight = np.ones(7)
    weight[3] = 0
    for reduction in ("none", "sum", "mean"):
        more = {"sample_weight": weight, "reduction": reduction}
        got, want = run(loss, **bad, **more), run(loss, **kwargs, **more)
        for g, w in zip(got[:2], want[:2], strict=True):
            assert g.tobytes() == w.tobytes()
        for g, w in zip(got[2:], want[2:], strict=True):
            np.testing.assert_array_equal(g.to_dense(), w.to_dense())
        assert not got[1][3].any()


@BOTH
def test_infinite_and_missing_numbers_stay_in_their_row(loss):
    kwargs = problem()
    clean = run(loss, **kwargs)
    for bad in (np.nan, np.inf):
        x = kwargs["inputs"].copy()
        x[2] = bad
        value, dx, *_ = run(loss, **(kwargs | {"inputs": x}))  # without a warning
        keep = np.arange(7) != 2
        np.testing.assert_array_equal(value[keep], clean[0][keep])
        np.testing.assert_array_equal(dx[keep], clean[1][keep])
        assert not np.isfinite(value[2])


@BOTH
def test_huge_logits(loss):
    for dtype, big in ((np.float32, 1e30), (np.float64, 1e300), (np.float32, 1e4), (np.float64, 1e4)):
        w, x = np.eye(4, 40, dtype=dtype) * dtype(big), np.zeros((3, 40), dtype)
        x[0, 0], x[1, 1], x[2, 2] = 1, 1, -1
        sample = np.array([1, 2, 3]), np.ones((3, 1)), np.ones(3)
        value = loss(w, np.zeros(4, dtype), [[0], [0], [0]], x, 3, 4, sampled_values=sample)
        half = 3 * np.log(2)
        rest = [half, big + half, half] if loss is fl.nce_loss else [0, big, np.log(3)]
        np.testing.assert_allclose(value[:2], rest[:2], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(value[2], rest[2], rtol=1e-6)


def test_tiles_of_candidates_add_up():
    kwargs = problem(90, 1100, 2, 5000, 16)
    for more in ({}, {"remove_accidental_hits": True}, {"sample_weight": np.arange(90) % 3}):
        kwargs |= more
        weight = np.asarray(kwargs.get("sample_weight", np.ones(90)))
        value, dx, dw, db = run(fl.nce_loss, **kwargs)
        want = oracle(True, **kwargs, remove="remove_accidental_hits" in kwargs) * weight
        np.testing.assert_allclose(value, want.astype(float), rtol=1e-13)
        parts = []
        sampled, te, se = kwargs["sampled_values"]
        for at in np.split(np.arange(1100), [512, 1024]):  # the true classes' share once, then candidates only
            values = sampled[at], te, se[at]
            parts.append(run(fl.nce_loss, **(kwargs | {"num_sampled": len(at), "sampled_values": values})))
        none = np.array([0]), te, np.full(1, 1e300)
        only_true = run(fl.nce_loss, **(kwargs | {"num_sampled": 1, "sampled_values": none}))
        np.testing.assert_allclose(dx, sum(p[1] for p in parts) - 2 * only_true[1], rtol=1e-12, atol=1e-12)
        for got, k in ((dw, 2), (db, 3)):
            want = sum(p[k].to_dense() for p in parts) - 2 * only_true[k].to_dense()
            np.testing.assert_allclose(got.to_dense(), want, rtol=1e-12, atol=1e-12)


@BOTH
def test_empty_batch(loss):
    kwargs = problem(0)
    value, dx, dw, db = run(loss, **kwargs)
    assert value.shape == (0,)
    assert dx.shape == (0, 6)
    assert not dw.values.any()
    assert not db.to_dense().any()
    assert loss(**kwargs, reduction="mean") == 0


@BOTH
def test_buffers(loss):
    kwargs = problem(dtype=np.float32)
    want = run(loss, **kwargs)
    out, dx = np.full(7, 9, np.float32), np.full((7, 6), 9, np.float32, order="F")
    got = run(loss, **kwargs, out=out, grad_out=(dx, None, None))
    assert got[0] is out
    assert got[1] is dx
    np.testing.assert_array_equal(out, want[0])
    np.testing.assert_array_equal(dx, want[1])
    x = kwargs["inputs"].copy()
    value, dx = fl.value_and_grad(loss)(**(kwargs | {"inputs": x}), grad_out=x)
    assert dx is x
    np.testing.assert_array_equal(dx, want[1])
    np.testing.assert_array_equal(value, want[0])


# ------------------------------------------------------------------ errors


def error(message, kind=ValueError, loss=fl.nce_loss, **change):
    with pytest.raises(kind) as raised:
        loss(**(problem() | change))
    assert message in str(raised.value), str(raised.value)


def test_errors_name_the_place():
    kwargs = problem()
    s, te, se = kwargs["sampled_values"]
    y, w, b = kwargs["labels"], kwargs["weights"], kwargs["biases"]
    error("labels must have shape (7, 2)", labels=y[:, 0])
    error("labels must have shape (7, 2)", labels=y[:5])
    error("labels must have shape (7, 1)", num_true=1)
    error("labels must be integers", TypeError, labels=y.astype(float))
    bad = y.copy()
    for v in (-1, 40):
        bad[4, 1] = v
        error(f"labels must lie in [0, 40), got {v} at index (4, 1)", labels=bad)
    error("labels must lie in [0, 3)", sampled_values=None, num_classes=3, num_sampled=2)
    for v in (-1, 40):
        error(f"got {v} at row 2", sampled_values=(np.array([1, 2, v, 3, 4]), te, se))
    error("(true_expected_count) must have shape (7, 2)", sampled_values=(s, te[:, 0], se))
    error("(true_expected_count) must have shape (7, 2)", sampled_values=(s, te.T, se))
    error("(sampled_expected_count) must have shape (5,)", sampled_values=(s, te, se[:4]))
    error("(sampled_candidates) must have shape (5,)", sampled_values=(s[:4], te, se[:4]))
    error("sampled_values must be", sampled_values=(s, te))
    for v in (0, -1, np.nan, np.inf):
        te2, se2 = te.copy(), se.copy()
        te2[3, 1] = se2[2] = v
        error("at index (3, 1)", sampled_values=(s, te2, se))
        error("sampled_expected_count must be positive and finite, got", sampled_values=(s, te, se2))
        assert np.isfinite(fl.nce_loss(**(kwargs | {"sampled_values": (s, te2, se2)}), subtract_log_q=False)).all()
    error("inputs must have shape [batch, 6]", inputs=np.zeros((7, 5)))
    error("inputs must be float16", TypeError, inputs=np.zeros((7, 6), int))
    error("weights must be float16", TypeError, weights=w.astype(int))
    error("weights must have 2 axes", weights=w[0])
    error("biases must have 40 entries", biases=b[:39])
    error("biases must be given", TypeError, biases=None)
    error("num_sampled must lie in [1", num_sampled=0)
    error("num_classes must lie in [1, 40], got 41", num_classes=41, sampled_values=None)
    error("num_sampled must be at most 3", num_classes=3, num_sampled=4, labels=y % 3, sampled_values=None)
    error("partition_strategy must be one of", partition_strategy="row")
    error("sampler must be a sampler object", TypeError, sampler=3)
    error("sampler must be None where", sampler=fl.UniformSampler(40))
    error("range num_classes = 40, got 41", sampler=fl.UniformSampler(41), sampled_values=None)
    error("seed must be None for a sampler", sampler=fl.UniformSampler(40), sampled_values=None, seed=3)
    with pytest.raises(TypeError, match="grad_out must be None for weights"):
        fl.value_and_grad(fl.nce_loss, "weights")(**kwargs, grad_out=w)


def test_inconsistent_shards():
    w = problem()["weights"]
    for strategy in ("mod", "div"):
        split = shards_of(w, 3, strategy)
        error("weights[0] must have 14 rows", weights=[w[:13], w[13:27], w[27:]], partition_strategy=strategy)
        error("weights[1] must have rows of shape and dtype", weights=[split[0], split[1][:, :5], split[2]])
        error("weights[2] must have rows of shape and dtype", weights=[*split[:2], split[2].astype(np.float32)])
        error("biases must have 40", biases=shards_of(np.zeros(41), 3, strategy), partition_strategy=strategy)
    error("weights must have at least one shard", weights=[])


def test_nothing_is_drawn_or_written_before_an_error():
    kwargs = problem() | {"sampled_values": None}
    sampler, out = fl.LearnedUnigramSampler(40, seed=0), np.full(7, 9.0)
    before = sampler.state
    bad = kwargs["labels"].copy()
    bad[6, 0] = 40
    error("labels must lie", sampler=sampler, sampled_values=None, labels=bad, out=out)
    error("sample_weight must broadcast", sampler=sampler, sampled_values=None, sample_weight=np.ones(6), out=out)
    assert str(sampler.state) == str(before)
    fixed = fl.FixedUnigramSampler(np.ones(38), num_reserved_ids=2, seed=0)
    before = fixed.state
    error(
        "true_expected_count must be positive and finite, got 0.0 at index (0, 0)", sampler=fixed, sampled_values=None,
        labels=np.ones((7, 2), int), out=out,
    )  # fmt: skip
    assert fixed.state == before
    assert (out == 9).all()
    fl.nce_loss(**kwargs, sampler=sampler)
    assert sampler.counts.sum() == 40 + 14


# ------------------------------------------------------------------ sparse rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row", [(), (5,), (300,), (2, 3)], ids=str)
def test_sparse_rows(dtype, row):
    rng = np.random.default_rng(0)
    n = 500
    indices = rng.integers(0, 50, n)
    values = rng.standard_normal((n, *row)).astype(dtype)
    rows = fl.SparseRows(indices, values, (60, *row))
    want = np.zeros((60, *row))
    np.add.at(want, indices, values.astype(float))
    tolerance = {2: 2.0**-8 if dtype == BFLOAT16 else 2.0**-10, 4: 1e-7, 8: 1e-15}[dtype.itemsize]
    got = rows.to_dense()
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(float), want, rtol=tolerance, atol=1e-14)
    once = rows.coalesce()
    np.testing.assert_array_equal(once.indices, np.unique(indices))
    assert once.to_dense().tobytes() == got.tobytes()
    table = rng.standard_normal((60, *row)).astype(np.float32)
    sums = table.astype(float) - 0.5 * want
    for n_threads in (1, 2, 3):
        added = rows.add_to(table.copy(), -0.5, n_threads=n_threads)
        np.testing.assert_allclose(added, sums, rtol=2e-7, atol=1e-6)
        np.testing.assert_array_equal(added, rows.add_to(table.copy(), -0.5, n_threads=1))


def test_sparse_rows_in_parallel():
    rng = np.random.default_rng(0)
    rows = fl.SparseRows(rng.integers(0, 4000, 9000), rng.standard_normal((9000, 128)).astype(np.float32), (5000, 128))
    want = rows.add_to(np.zeros((5000, 128), np.float32), n_threads=1)
    for n_threads in (2, 3, 5):
        assert rows.add_to(np.zeros((5000, 128), np.float32), n_threads=n_threads).tobytes() == want.tobytes()
        assert rows.coalesce(n_threads=n_threads).to_dense().tobytes() == want.tobytes()


def test_sparse_rows_with_huge_indices():
    rows = fl.SparseRows(np.array([2**62, 5, 2**62, 0]), np.arange(4.0), (2**62 + 1,)).coalesce()
    assert rows.indices.tolist() == [0, 5, 2**62]
    assert rows.values.tolist() == [3, 1, 2]


def test_sparse_rows_errors():
    values = np.ones((2, 3))
    for args, kind, message in [
        (([0, 4], values, (4, 3)), ValueError, "indices must lie in [0, 4), got 4 at row 1"),
        (([-1, 0], values, (4, 3)), ValueError, "got -1 at row 0"),
        (([0.0, 1.0], values, (4, 3)), TypeError, "indices must be integers"),
        (([0, 1], values, (4, 2)), ValueError, "values must have shape (2, 2)"),
        (([0, 1], values.astype(int), (4, 3)), TypeError, "values must be float16"),
    ]:
        with pytest.raises(kind) as raised:
            fl.SparseRows(np.array(args[0]), *args[1:])
        assert message in str(raised.value)
    rows = fl.SparseRows(np.array([0, 1]), values, (4, 3))
    frozen = np.zeros((4, 3))
    frozen.flags.writeable = False
    for target, kind in [(np.zeros((4, 2)), ValueError), (np.zeros((4, 3), int), TypeError), (frozen, ValueError)]:
        with pytest.raises(kind):
            rows.add_to(target)
    with pytest.raises(TypeError):
        rows.add_to([0])
    empty = fl.SparseRows(np.empty(0, np.int64), np.empty((0, 3)), (4, 3))
    assert not empty.coalesce().to_dense().any()


# ------------------------------------------------------------------ softmax over the batch


def pairs(n=30, d=5, dtype=np.float64):
    rng = np.random.default_rng(0)
    return {
        "queries": rng.standard_normal((n, d)).astype(dtype),
        "keys": rng.standard_normal((n, d)).astype(dtype),
        "item_ids": rng.integers(0, 1 + n // 2, n),
        "log_q": rng.standard_normal(n),
        "temperature": 0.5,
    }


def full(queries, keys, item_ids, log_q, temperature):
    """By way of all logits."""
    z = queries.astype(float) @ keys.astype(float).T / temperature - log_q
    mask = (item_ids[:, None] != item_ids) | np.eye(len(z), dtype=bool)
    return fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(
        labels=np.arange(len(z)), logits=z, where=mask
    )


@pytest.mark.parametrize("n", [1, 2, 31, 64, 200])
@pytest.mark.parametrize("block", [64, 1 << 22])
def test_in_batch_softmax(n, block, monkeypatch):
    monkeypatch.setattr("fastloss.losses.drivers.sampled_logits.KEPT", block)
    kwargs = pairs(n)
    if n == 1:
        kwargs["item_ids"] = np.zeros(1, int)
    value, (dq, dk) = fl.value_and_grad(fl.in_batch_softmax_loss, ("queries", "keys"))(**kwargs)
    want, g = full(**kwargs)
    np.testing.assert_allclose(value, want, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dq, g @ kwargs["keys"] * 2, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(dk, g.T @ kwargs["queries"] * 2, rtol=1e-11, atol=1e-13)


def test_in_batch_an_infinite_query_stays_in_its_row():
    kwargs = pairs()
    clean = fl.in_batch_softmax_loss(**kwargs)
    kwargs["queries"][3, 0] = np.inf
    value, dq = fl.value_and_grad(fl.in_batch_softmax_loss)(**kwargs)  # without a warning
    keep = np.arange(30) != 3
    np.testing.assert_array_equal(value[keep], clean[keep])
    assert np.isnan(value[3])
    assert np.isfinite(dq[keep]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_batch_softmax_of_every_dtype(dtype):
    kwargs = pairs(70, 9, dtype)
    value, (dq, dk) = fl.value_and_grad(fl.in_batch_softmax_loss, ("queries", "keys"))(**kwargs)
    assert dq.dtype == dk.dtype == dtype
    assert value.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(value, full(**kwargs)[0], rtol=1e-5, atol=1e-5)
    assert fl.in_batch_softmax_loss(**(kwargs | {"item_ids": np.zeros(70, int)})).max() == 0


def test_in_batch_softmax_options():
    kwargs = pairs(150, 9)
    weight = np.arange(150) % 3
    f = fl.value_and_grad(fl.in_batch_softmax_loss, ("queries", "keys"))
    want = f(**kwargs, sample_weight=weight, reduction="mean", n_threads=1)
    rows, (dq, dk) = f(**kwargs, cotangent=weight / weight.sum())
    np.testing.assert_allclose(want[0], (rows * weight).sum() / weight.sum(), rtol=1e-14)
    np.testing.assert_allclose(want[1][0], dq, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(want[1][1], dk, rtol=1e-12, atol=1e-16)
    assert not dq[weight == 0].any()
    for n_threads in (2, 3):
        got = f(**kwargs, sample_weight=weight, reduction="mean", n_threads=n_threads)
        assert got[0] == want[0]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got[1], want[1], strict=True))
    buffers = kwargs["queries"].copy(), np.empty((9, 150)).T
    _, grads = f(**(kwargs | {"queries": buffers[0]}), sample_weight=weight, reduction="mean", grad_out=buffers)
    assert all(a is b and (a == w).all() for a, b, w in zip(grads, buffers, want[1], strict=True))
    x = np.zeros((0, 3))
    assert fl.in_batch_softmax_loss(x, x).shape == (0,)
    same = fl.value_and_grad(fl.in_batch_softmax_loss, ("queries", "keys"))(buffers[1], buffers[1])
    assert np.isfinite(same[0]).all()


def test_in_batch_softmax_errors():
    for message, kind, change in [
        ("keys must have shape (30, 5)", ValueError, {"keys": np.zeros((30, 4))}),
        ("queries must have shape [batch, D]", ValueError, {"queries": np.zeros(30)}),
        ("queries must be float16", TypeError, {"queries": np.zeros((30, 5), int)}),
        ("item_ids must have shape (30,)", ValueError, {"item_ids": np.zeros(29, int)}),
        ("item_ids must be integers", TypeError, {"item_ids": np.zeros(30)}),
        ("log_q must have shape (30,)", ValueError, {"log_q": np.zeros(31)}),
        ("log_q must be finite, got -inf at row 4", ValueError, {"log_q": np.where(np.arange(30) == 4, -np.inf, 0)}),
        ("temperature must lie in", ValueError, {"temperature": 0}),
        ("temperature must lie in", ValueError, {"temperature": np.nan}),
    ]:
        with pytest.raises(kind) as raised:
            fl.in_batch_softmax_loss(**(pairs() | change))
        assert message in str(raised.value)
