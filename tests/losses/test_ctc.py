"""CTC loss: against enumeration and a long double lattice, every edge, and the same bits everywhere."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sequence import ctc, ctc_brute
from shared import same_bits

import fastloss as fl

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "ctc.json.gz").read_bytes()))["cases"]
value_and_grad = fl.value_and_grad(fl.ctc_loss)


def one(labels, logits, **options):
    """Loss and gradient of one entry [time, class]."""
    y = np.array(labels, np.int64).reshape(1, -1)
    value, grad = value_and_grad(labels=y, logits=logits[:, None], label_length=None, logit_length=None, **options)
    return value[0], grad[:, 0]


def batch(seed=0, size=7, frames=12, classes=6, most=4, dtype=np.float64, spread=2.0):
    rng = np.random.default_rng(seed)
    return {
        "labels": rng.integers(1, classes, (size, most)),
        "logits": (spread * rng.standard_normal((frames, size, classes))).astype(dtype),
        "label_length": rng.integers(0, most + 1, size),
        "logit_length": rng.integers(2 * most, frames + 1, size),
    }


def entries(kwargs):
    for b in range(len(kwargs["label_length"])):
        yield kwargs["labels"][b, : kwargs["label_length"][b]], kwargs["logits"][: kwargs["logit_length"][b], b]


# ------------------------------------------------------------------ right


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden(case):
    x = np.array(case["logits"], np.float64)
    value, grad = one(case["labels"], x, blank_index=case["blank_index"])
    if float(case["loss"]) == np.inf:
        assert value == np.inf
        assert np.isnan(grad).all()
        return
    np.testing.assert_allclose(value, case["loss"], rtol=1e-12)
    np.testing.assert_allclose(grad, np.array(case["grad"]), rtol=1e-12)
    assert np.abs(grad.sum(-1)).max() < 1e-15


@given(
    st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.booleans(), st.booleans(),
    st.sampled_from([0.1, 1.0, 10.0, 100.0]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_enumeration(seed, frames, classes, n, merge, collapse_first, spread):
    rng = np.random.default_rng(seed)
    blank = int(rng.integers(classes))
    others = [k for k in range(classes) if k != blank]
    labels = rng.choice(others, n).tolist() if others else []
    x = spread * rng.standard_normal((frames, classes))
    want, want_grad, unit = ctc_brute(labels, x, blank, merge, collapse_first, digits=900)
    index = blank - classes if rng.random() < 0.5 else blank
    value, grad = one(
        labels, x, blank_index=index, ctc_merge_repeated=merge, preprocess_collapse_repeated=collapse_first
    )
    np.testing.assert_allclose(value, want, rtol=1e-13, atol=0)
    if want == np.inf:
        assert np.isnan(grad).all()
        return
    # plain numbers lose masses below 2^-1000 where the labelling's own is above 2^-700: 2^-300 of a probability
    assert (np.abs(grad - want_grad) <= 1e-13 * unit + 2.0**-300).all()
    assert np.abs(grad.sum(-1)).max() < 2e-15


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e4])
def test_long_sequences(spread):
    rng = np.random.default_rng(5)
    x = spread * rng.standard_normal((2000, 30))
    labels = rng.integers(1, 30, 200)
    value, grad = one(labels, x)
    want, want_grad = ctc(labels, x)
    assert abs(value / want - 1) < 1e-12
    assert np.abs(grad - want_grad).max() < 1e-12
    assert np.abs(grad.sum(-1)).max() < 1e-14


def test_gradient_agrees_with_differences():
    kwargs = batch(3, size=3)
    weight, cotangent = np.array([0.5, 0.0, 2.0]), np.array([1.0, 3.0, -2.0])
    _, grad = value_and_grad(**kwargs, sample_weight=weight, cotangent=cotangent)
    want = reference.central_difference(
        lambda x: (fl.ctc_loss(**{**kwargs, "logits": x}, sample_weight=weight) * cotangent).sum(), kwargs["logits"]
    )
    np.testing.assert_allclose(grad, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("gap", [20, 60, 300, 1000])
@pytest.mark.parametrize("backward", [False, True])
def test_a_path_that_lags_far_behind_is_not_lost(gap, backward):
    # up to the middle everything speaks for another alignment; then only the unlikely one is left
    x = np.random.default_rng(1).standard_normal((40, 3))
    x[:20, 1] += gap
    x[20:, 0] += gap
    x = x[::-1] if backward else x
    for labels in ([2] * 10, [2, 1] * 8):
        value, grad = one(labels, x)
        want, want_grad = ctc(labels, x)
        assert abs(value / want - 1) < 1e-13
        np.testing.assert_allclose(grad, want_grad, atol=1e-12)


def test_a_mass_that_vanished_and_comes_back():
    # first all labels but the last cost e^-60 each; then all but the last e^-80: the path that paid early is the better
    # one, but beside those that did not it was e^-1200
    rng = np.random.default_rng(2)
    x = rng.standard_normal((70, 22))
    x[:40, 0] += 60
    x[40:, 21] += 80
    value, grad = one(np.arange(1, 22), x)
    want, want_grad = ctc(np.arange(1, 22), x)
    assert abs(value / want - 1) < 1e-13
    np.testing.assert_allclose(grad, want_grad, atol=1e-12)


def test_states_out_of_reach_hide_none_within():
    # the frames that end best, seen from behind, begin where no path can have come so early
    rng = np.random.default_rng(3)
    x = rng.standard_normal((80, 31))
    x[:20, 30] += 60
    value, grad = one(np.arange(1, 31), x)
    want, want_grad = ctc(np.arange(1, 31), x)
    assert abs(value / want - 1) < 1e-13
    np.testing.assert_allclose(grad, want_grad, atol=1e-12)


@given(st.integers(0, 2**32), st.sampled_from([3.0, 30.0, 100.0, 1000.0]), st.integers(1, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_spread_against_the_lattice_in_long_double(seed, spread, frames, merge):
    rng = np.random.default_rng(seed)
    x = spread * rng.standard_normal((frames, 4)) * (rng.random((frames, 1)) > 0.3)
    labels = rng.integers(1, 4, int(rng.integers(0, frames // 2 + 1)))
    value, grad = one(labels, x, ctc_merge_repeated=merge)
    want, want_grad = ctc(labels, x, merge=merge)
    np.testing.assert_allclose(value, float(want), rtol=1e-13, atol=1e-18)
    np.testing.assert_allclose(grad, want_grad.astype(float), atol=1e-12)


GAPS = [1e3, 1e6, 1e9, 1e15, 3e15, 1e18, 1e30, 1e38]


@pytest.mark.parametrize(("gap", "dtype"), [*((g, d) for g in GAPS for d in ("f4", "f8")), (1e300, "f8")])
def test_any_gap(gap, dtype):
    x = np.zeros((4, 3), dtype)
    x[:, 2] = -gap
    value, grad = one([2], x)  # one frame has to take the unlikely class; the others are blank
    want = -float(x[0, 2]) + np.log(2) * 4 - np.log(4)
    assert abs(value - want) <= 2 * np.finfo(dtype).eps * want
    assert np.abs(grad.sum(1)).max() < np.finfo(dtype).eps
    if gap <= 1e15:  # beyond, an exponent has no room for the paths' small differences
        np.testing.assert_allclose(grad, np.tile([-0.25, 0.5, -0.25], (4, 1)), rtol=1e-6 if dtype == "f4" else 1e-12)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes(dtype):
    kwargs = batch(11, dtype=dtype)
    value, grad = value_and_grad(**kwargs)
    assert value.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert grad.dtype == dtype
    for b, (labels, x) in enumerate(entries(kwargs)):
        want, want_grad = ctc(labels, x)
        assert reference.ulps(value[b], want) <= (8 if dtype == np.float64 else 1)
        got = reference.wide(grad[: len(x), b])
        eps = np.finfo(np.float32).eps if dtype == np.float32 else float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(got, want_grad, rtol=eps, atol=1e-7 if dtype == np.float16 else 1e-15)
        assert not np.asarray(grad[len(x) :, b], np.float32).any()


# ------------------------------------------------------------------ every edge


def test_no_alignment():
    x = np.random.default_rng(0).standard_normal((2, 3))
    for labels, frames in [([2, 2], 2), ([1, 2, 1], 2), ([1], 0), ([1, 1, 1, 1], 2)]:
        value, grad = one(labels, x[:frames])
        assert value == np.inf
        assert np.isnan(grad).all()
        value, grad = one(labels, x[:frames], zero_infinity=True)
        assert value == 0
        assert not grad.any()


def test_no_alignment_through_forbidden_classes():
    x = np.zeros((3, 3))
    x[:, 2] = -np.inf
    assert one([2], x)[0] == np.inf
    assert one([2], x, zero_infinity=True)[0] == 0
    value, grad = one([1], x)
    want, want_grad, _ = ctc_brute([1], x)
    np.testing.assert_allclose(value, want, rtol=1e-14)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-14)
    assert (grad[:, 2] == 0).all()


def test_no_frames():
    x = np.zeros((4, 2, 3))
    value, grad = value_and_grad(labels=[[1], [1]], logits=x, label_length=[0, 1], logit_length=[0, 0])
    assert value.tolist() == [0, np.inf]
    assert not grad.any()  # no frame counts
    value, grad = value_and_grad(labels=[[1], [1]], logits=x[:0], label_length=[0, 1], logit_length=[0, 0])
    assert value.tolist() == [0, np.inf]
    assert grad.shape == (0, 2, 3)


def test_no_labels():
    x = np.random.default_rng(1).standard_normal((5, 1, 3))
    want = -np.log(np.exp(x[:, 0, 0]) / np.exp(x[:, 0]).sum(-1)).sum()
    for labels in (np.zeros((1, 0), int), np.array([[7, -3]]), [[]]):
        value, grad = value_and_grad(labels=labels, logits=x, label_length=[0], logit_length=[5])
        np.testing.assert_allclose(value, [want], rtol=1e-14)
        np.testing.assert_allclose(grad[:, 0], np.exp(x[:, 0]) / np.exp(x[:, 0]).sum(-1, keepdims=True) - [1, 0, 0])


def test_no_entries():
    empty = {"labels": np.zeros((0, 2), int), "logits": np.zeros((4, 0, 3)), "label_length": [], "logit_length": []}
    value, grad = value_and_grad(**empty)
    assert value.shape == (0,)
    assert grad.shape == (4, 0, 3)
    assert fl.ctc_loss(**empty, reduction="mean") == 0
    assert fl.ctc_loss(**empty, reduction="sum") == 0


def test_one_class():
    value, grad = one([], np.full((3, 1), 5.0))
    assert value == 0
    assert not grad.any()


def test_what_lies_beyond_the_lengths_is_not_looked_at():
    kwargs = batch(1)
    want, want_grad = value_and_grad(**kwargs)
    for b in range(len(want)):
        kwargs["labels"][b, kwargs["label_length"][b] :] = [99, -1, 0, 3][b % 4]
        kwargs["logits"][kwargs["logit_length"][b] :, b] = [np.nan, np.inf, -np.inf][b % 3]
    value, grad = value_and_grad(**kwargs)
    assert same_bits(value, want)
    assert same_bits(grad, want_grad)
    for b, n in enumerate(kwargs["logit_length"]):
        assert not grad[n:, b].any()


def test_minus_infinity_in_a_class_of_no_use():
    kwargs = batch(2)
    kwargs["logits"][:, :, 5] = -np.inf
    kwargs["labels"] = np.minimum(kwargs["labels"], 4)
    value, grad = value_and_grad(**kwargs)
    for b, (labels, x) in enumerate(entries(kwargs)):
        np.testing.assert_allclose(value[b], float(ctc(labels, x)[0]), rtol=1e-13)
    assert np.isfinite(grad).all()
    assert not grad[:, :, 5].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, "all"])
def test_a_bad_frame_makes_its_entry_nan(poison):
    kwargs = batch(4)
    want, want_grad = value_and_grad(**kwargs)
    kwargs["logits"][2, 3] = -np.inf if poison == "all" else kwargs["logits"][2, 3]
    kwargs["logits"][2, 3, 1] = -np.inf if poison == "all" else poison
    value, grad = value_and_grad(**kwargs)
    n = kwargs["logit_length"][3]
    assert np.isnan(value[3])
    assert np.isnan(grad[:n, 3]).all()
    assert not grad[n:, 3].any()
    others = np.arange(len(value)) != 3
    assert same_bits(value[others], want[others])
    assert same_bits(grad[:, others], want_grad[:, others])
    value, grad = value_and_grad(**kwargs, sample_weight=others)
    assert value[3] == 0
    assert not grad[:, 3].any()


def test_huge_logits():
    kwargs = batch(5, spread=1.0)
    kwargs["logits"] = (kwargs["logits"] * 200).astype(np.float32)
    value, grad = value_and_grad(**kwargs)
    for b, (labels, x) in enumerate(entries(kwargs)):
        want, want_grad = ctc(labels, x)
        assert reference.ulps(value[b], want) <= 1
        np.testing.assert_allclose(grad[: len(x), b], want_grad, rtol=1e-6, atol=1e-9)


def test_longer_outputs_than_inputs():
    x = np.zeros((2, 3, 3))
    kwargs = {"labels": [[1, 2, 1], [2, 2, 0], [1, 0, 0]], "logits": x, "label_length": [3, 2, 1], "logit_length": 2}
    value, grad = value_and_grad(**kwargs, ignore_longer_outputs_than_inputs=True)
    assert value[0] == 0
    assert not grad[:, 0].any()
    assert value[1] == np.inf  # long enough, but for the repeat
    assert 0 < value[2] < np.inf


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("collapse_first", [True, False])
def test_modes(merge, collapse_first):
    x = np.random.RandomState(0).randn(5, 2, 4)
    options = {"ctc_merge_repeated": merge, "preprocess_collapse_repeated": collapse_first}
    value, grad = value_and_grad(labels=[[1, 2], [2, 2]], logits=x, label_length=[2, 2], logit_length=[5, 5], **options)
    for b, labels in enumerate([[1, 2], [2, 2]]):
        want, want_grad, _ = ctc_brute(labels, x[:, b], 0, merge, collapse_first)
        np.testing.assert_allclose(value[b], want, rtol=1e-13)
        np.testing.assert_allclose(grad[:, b], want_grad, rtol=1e-12)


def test_numbers_of_tensorflow():
    x = np.random.RandomState(0).randn(5, 2, 4).astype(np.float32).astype(np.float64)
    kwargs = {"labels": [[1, 2], [2, 2]], "logits": x, "label_length": [2, 2], "logit_length": [5, 5]}
    np.testing.assert_allclose(fl.ctc_loss(**kwargs), [3.803866939918, 4.092223988772], rtol=1e-12)
    kwargs |= {"labels": [[0, 1], [1, 1]], "blank_index": 3}
    value = fl.ctc_loss(**kwargs, ctc_merge_repeated=False)
    np.testing.assert_allclose(value, [5.480843027982, 6.708613815156], rtol=1e-12)
    value = fl.ctc_loss(**kwargs, preprocess_collapse_repeated=True)
    np.testing.assert_allclose(value[1], 5.613632163902, rtol=1e-12)


def test_blank_anywhere():
    x = np.random.RandomState(0).randn(5, 2, 4).astype(np.float32).astype(np.float64)
    kwargs = {"labels": [[0, 1], [1, 1]], "logits": x, "label_length": [2, 2], "logit_length": [5, 5]}
    for blank in (3, -1):
        value = fl.ctc_loss(**kwargs, blank_index=blank)
        np.testing.assert_allclose(value, [4.108072227288, 6.135050347605], rtol=1e-12)


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_integer_dtypes(dtype):
    kwargs = batch(6)
    want = fl.ctc_loss(**kwargs)
    for name in ("labels", "label_length", "logit_length"):
        assert same_bits(fl.ctc_loss(**{**kwargs, name: kwargs[name].astype(dtype)}), want)


def test_labels_concatenated():
    kwargs = batch(7)
    want = fl.ctc_loss(**kwargs)
    flat = np.concatenate([y for y, _ in entries(kwargs)])
    assert same_bits(fl.ctc_loss(**{**kwargs, "labels": flat}), want)
    assert same_bits(fl.ctc_loss(**{**kwargs, "labels": np.repeat(flat, 2)[::2]}), want)


def test_batch_major_and_lengths_left_out():
    kwargs = batch(8)
    want, want_grad = value_and_grad(**kwargs)
    x = np.ascontiguousarray(kwargs["logits"].swapaxes(0, 1))
    value, grad = value_and_grad(**{**kwargs, "logits": x}, logits_time_major=False)
    assert same_bits(value, want)
    assert same_bits(grad.swapaxes(0, 1), want_grad)
    full = {**kwargs, "label_length": np.full(7, 4), "logit_length": np.full(7, 12)}
    assert same_bits(fl.ctc_loss(**full), fl.ctc_loss(**{**full, "label_length": None, "logit_length": 12}))


def test_reductions():
    kwargs = batch(9)
    rows = fl.ctc_loss(**kwargs)
    weight = np.arange(7.0)
    np.testing.assert_allclose(fl.ctc_loss(**kwargs, reduction="sum"), rows.sum(), rtol=1e-14)
    np.testing.assert_allclose(fl.ctc_loss(**kwargs, reduction="mean"), rows.mean(), rtol=1e-14)
    value, grad = value_and_grad(**kwargs, reduction="mean", sample_weight=weight)
    np.testing.assert_allclose(value, (rows * weight).sum() / weight.sum(), rtol=1e-14)
    each = value_and_grad(**kwargs)[1]
    np.testing.assert_allclose(grad, each * (weight / weight.sum())[:, None], rtol=1e-14, atol=1e-17)


def test_zeroed_entries_count_in_the_mean():
    x = np.random.default_rng(0).standard_normal((2, 2, 3))
    kwargs = {"labels": [[2, 2], [1, 2]], "logits": x, "label_length": [2, 2], "logit_length": [2, 2]}
    rows = fl.ctc_loss(**kwargs, zero_infinity=True)
    assert rows[0] == 0
    assert fl.ctc_loss(**kwargs, zero_infinity=True, reduction="mean") == rows[1] / 2


BAD = [
    ({"labels": [[1, 9], [1, 2]]}, ValueError, r"labels must lie in \[0, 4\), got 9 at row 0, label 1"),
    ({"labels": [[1, 2], [-1, 2]]}, ValueError, r"labels must lie in \[0, 4\), got -1 at row 1, label 0"),
    ({"labels": [[1, 2], [1, 0]]}, ValueError, "labels must not hold blank_index 0, got 0 at row 1, label 1"),
    ({"labels": [1, 2, 0]}, ValueError, "label_length must sum to 3, the number of concatenated labels, got 4"),
    ({"labels": [1, 2, 1, 7]}, ValueError, r"labels must lie in \[0, 4\), got 7 at row 1, label 1"),
    ({"labels": [[1, 2]]}, ValueError, r"labels must have shape \(2, any\), one row for each of the batch"),
    ({"labels": np.zeros((2, 2, 2), int)}, ValueError, "labels must have shape"),
    ({"labels": [[1.0, 2.0]] * 2}, TypeError, "labels must be integers, got float64"),
    ({"labels": [1, 2, 1, 2], "label_length": None}, TypeError, "label_length must be given"),
    ({"label_length": [2, 3]}, ValueError, r"label_length must lie in \[0, 2\], the number of labels, got 3 at row 1"),
    (
        {"label_length": [-1, 2]},
        ValueError,
        r"label_length must lie in \[0, 2\], the number of labels, got -1 at row 0",
    ),
    ({"label_length": [2]}, ValueError, r"label_length must have shape \(2,\), one length a row, got \(1,\)"),
    ({"label_length": [2.0, 2.0]}, TypeError, "label_length must be integers"),
    ({"logit_length": [6, 5]}, ValueError, r"logit_length must lie in \[0, 5\], the number of frames, got 6 at row 0"),
    (
        {"logit_length": [5, -2]},
        ValueError,
        r"logit_length must lie in \[0, 5\], the number of frames, got -2 at row 1",
    ),
    ({"logit_length": np.array([2**63, 1], np.uint64)}, ValueError, "logit_length must lie in"),
    ({"blank_index": 4}, ValueError, r"blank_index must lie in \[-4, 4\), got 4"),
    ({"blank_index": -5}, ValueError, r"blank_index must lie in \[-4, 4\), got -5"),
    ({"blank_index": 0.0}, TypeError, "blank_index must be an integer"),
    ({"logits": np.zeros((5, 8))}, ValueError, "logits must have three axes"),
    ({"logits": np.zeros((5, 2, 4), int)}, TypeError, "logits must be float16"),
    ({"logits": np.zeros((5, 2, 0))}, ValueError, "blank_index must lie in"),
    ({"reduction": "average"}, ValueError, "reduction must be one of"),
    ({"n_threads": 0}, ValueError, "n_threads must be at least 1"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_bad_arguments_are_named_and_nothing_written(change, error, words):
    kwargs = {"labels": [[1, 2], [1, 2]], "logits": np.zeros((5, 2, 4)), "label_length": [2, 2], "logit_length": [5, 5]}
    out, grad = np.full(2, 7.0), np.full((5, 2, 4), 7.0)
    with pytest.raises(error, match=words):
        value_and_grad(**{**kwargs, **change}, out=out, grad_out=grad)
    assert (out == 7).all()
    assert (grad == 7).all()


# ------------------------------------------------------------------ the same bits


def test_bits_do_not_depend_on_threads_or_order():
    kwargs = batch(12, size=61, frames=90, classes=40, most=20, dtype=np.float32)
    value, grad = value_and_grad(**kwargs, n_threads=1)
    for n_threads in (2, 3, 7):
        got, got_grad = value_and_grad(**kwargs, n_threads=n_threads)
        assert same_bits(got, value)
        assert same_bits(got_grad, grad)
        assert same_bits(fl.ctc_loss(**kwargs, n_threads=n_threads), value)
    for b in (0, 17, 60):
        alone = {k: v[:, b : b + 1] if k == "logits" else v[b : b + 1] for k, v in kwargs.items()}
        got, got_grad = value_and_grad(**alone)
        assert same_bits(got, value[b : b + 1])
        assert same_bits(got_grad, grad[:, b : b + 1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bits_do_not_depend_on_the_layout(dtype):
    kwargs = batch(13, dtype=dtype)
    x = kwargs["logits"]
    value, grad = value_and_grad(**kwargs)
    for axes in [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1)]:
        y = np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))
        for view in (y, np.repeat(y, 2, -1)[..., ::2], np.ascontiguousarray(y[::-1])[::-1]):
            got, got_grad = value_and_grad(**{**kwargs, "logits": view})
            assert same_bits(got, value)
            assert same_bits(got_grad, grad)
    still = np.broadcast_to(x[:1], x.shape)
    got, got_grad = value_and_grad(**{**kwargs, "logits": still})
    want, want_grad = value_and_grad(**{**kwargs, "logits": still.copy()})
    assert same_bits(got, want)
    assert same_bits(got_grad, want_grad)


@pytest.mark.parametrize("cotangent", [None, [0.0, 1.0], [0.0, 0.0]])
@pytest.mark.parametrize("labels", [[1, 2], [2, 2]])
def test_gradient_in_place(labels, cotangent):
    x = np.random.default_rng(3).standard_normal((6, 2, 4)).astype(np.float32)
    kwargs = {"labels": [labels, labels], "label_length": 2, "logit_length": [6, 2], "cotangent": cotangent}
    want, want_grad = value_and_grad(**kwargs, logits=x)
    value, grad = value_and_grad(**kwargs, logits=x, grad_out=x)
    assert grad is x
    assert same_bits(value, want)
    assert same_bits(grad, want_grad)


def test_agrees_with_torch():
    torch = pytest.importorskip("torch")
    kwargs = batch(14, size=20, frames=50, classes=20, most=10)
    x = torch.tensor(kwargs["logits"], requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        torch.log_softmax(x, -1), torch.tensor(kwargs["labels"]), torch.tensor(kwargs["logit_length"]),
        torch.tensor(kwargs["label_length"]), reduction="none",
    )  # fmt: skip
    theirs.sum().backward()
    value, grad = value_and_grad(**kwargs)
    np.testing.assert_allclose(value, theirs.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(grad, x.grad.numpy(), atol=1e-12)


def test_agrees_with_optax():
    optax = pytest.importorskip("optax")
    kwargs = batch(15, size=5, frames=20, classes=8, most=5, dtype=np.float32)
    x = kwargs["logits"].swapaxes(0, 1)
    padding = np.arange(20)[None] >= kwargs["logit_length"][:, None]
    label_padding = np.arange(5)[None] >= kwargs["label_length"][:, None]
    theirs = optax.ctc_loss(x, padding.astype(np.float32), kwargs["labels"], label_padding.astype(np.float32))
    np.testing.assert_allclose(fl.ctc_loss(**kwargs), theirs, rtol=1e-5)
