"""CTC decoders and the edit distance: against enumeration and plain twins."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import softmax
from reference_sequence import collapse, every_labelling
from shared import same_bits

import fastloss as fl


def paths(found, b):
    """(labelling, log-probability) of entry b."""
    return [
        (tuple(row[:n].tolist()), p)
        for row, n, p in zip(found.labels[b], found.label_length[b], found.log_probability[b], strict=True)
    ]


# ------------------------------------------------------------------ greedy


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 5), st.booleans(), st.sampled_from([0.5, 5.0, 500.0]))
@settings(max_examples=60, deadline=None)
def test_greedy(seed, frames, classes, merge, spread):
    rng = np.random.default_rng(seed)
    x = spread * rng.standard_normal((frames, 3, classes))
    length = rng.integers(0, frames + 1, 3)
    blank = int(rng.integers(-classes, classes))
    found = fl.ctc_greedy_decode(x, length, blank_index=blank, merge_repeated=merge)
    for b, n in enumerate(length):
        best = x[:n, b].argmax(-1).tolist()
        want = collapse(best, blank % classes, merge)
        assert tuple(found.labels[b, : found.label_length[b]].tolist()) == want
        assert (found.labels[b, len(want) :] == -1).all()
        score = np.log(softmax(x[:n, b])[np.arange(n), best]).sum() if n else 0
        np.testing.assert_allclose(found.log_probability[b], float(score), rtol=1e-13, atol=1e-16 * n)


def test_greedy_takes_the_first_of_equal_classes():
    found = fl.ctc_greedy_decode(np.zeros((3, 1, 4)), blank_index=3)
    assert found.labels.tolist() == [[0]]
    np.testing.assert_allclose(found.log_probability, [3 * np.log(0.25)], rtol=1e-15)


# ------------------------------------------------------------------ beams


@given(
    st.integers(0, 2**32), st.integers(0, 5), st.integers(1, 4), st.booleans(), st.sampled_from([0.0, 1.0, 5.0])
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_wide_beams_are_exact(seed, frames, classes, merge, spread):
    rng = np.random.default_rng(seed)
    x = spread * rng.standard_normal((frames, 1, classes))
    blank = int(rng.integers(classes))
    _, labellings = every_labelling(x[:, 0], blank, merge)
    found = fl.ctc_beam_search_decode(
        x, beam_width=2000, top_paths=len(labellings) + 1, blank_index=blank, merge_repeated=merge
    )
    got = paths(found, 0)
    assert got[-1] == ((), -np.inf)  # there are no more
    assert {y for y, _ in got[:-1]} == set(labellings)
    for y, p in got[:-1]:
        np.testing.assert_allclose(p, float(fl_log(labellings[y][0])), rtol=1e-12, atol=1e-300)
    assert (np.diff(found.log_probability[0]) <= 0).all()


def fl_log(p):
    import mpmath

    return mpmath.log(p)


def prefix_search(p, blank, width):
    """The textbook search, over dictionaries."""
    beams = {(): (1.0, 0.0)}
    for row in p:
        new = {}

        def add(y, blank_mass, other, new=new):
            a, b = new.get(y, (0.0, 0.0))
            new[y] = (a + blank_mass, b + other)

        for y, (a, b) in beams.items():
            add(y, (a + b) * row[blank], b * row[y[-1]] if y else 0.0)
            for k in range(len(row)):
                if k != blank:
                    add((*y, k), 0.0, (a if y and y[-1] == k else a + b) * row[k])
        best = sorted(new.items(), key=lambda item: -sum(item[1]))[:width]
        top = sum(best[0][1])
        beams = {y: (a / top, b / top) for y, (a, b) in best}
    return beams


@pytest.mark.parametrize("width", [1, 2, 5, 17])
@pytest.mark.parametrize("seed", range(6))
def test_narrow_beams_are_those_of_the_textbook(width, seed):
    x = 2 * np.random.default_rng(seed).standard_normal((25, 1, 6))
    found = fl.ctc_beam_search_decode(x, beam_width=width, top_paths=width, blank_index=2)
    want = prefix_search(softmax(x[:, 0]).astype(float), 2, width)
    got = paths(found, 0)
    assert {y for y, _ in got} == set(want)
    for y, p in got:
        loss = fl.ctc_loss(labels=[y], logits=x, label_length=[len(y)], logit_length=[25], blank_index=2)
        assert p == -loss[0]


def test_a_labelling_that_left_the_beams_comes_back_as_itself():
    # nothing may be found twice, however narrow the beams
    for seed in range(200):
        x = 1.5 * np.random.default_rng(seed).standard_normal((12, 1, 3))
        found = fl.ctc_beam_search_decode(x, beam_width=4, top_paths=4)
        labellings = [y for y, p in paths(found, 0) if p > -np.inf]
        assert len(set(labellings)) == len(labellings)


def test_batches_threads_and_layouts():
    rng = np.random.default_rng(3)
    x = 2 * rng.standard_normal((30, 17, 9)).astype(np.float32)
    length = rng.integers(0, 31, 17)
    decoders = [
        lambda x, n, **k: fl.ctc_greedy_decode(x, n, **k),
        lambda x, n, **k: fl.ctc_beam_search_decode(x, n, 8, 3, **k),
    ]
    for decode in decoders:
        want = decode(x, length, n_threads=1)
        assert want.log_probability.dtype == np.float32
        assert want.labels.dtype == want.label_length.dtype == np.int64
        for n_threads in (2, 5):
            assert same_bits(decode(x, length.astype(np.int16), n_threads=n_threads), want)
        assert same_bits(decode(np.asfortranarray(x), length), want)
        assert same_bits(decode(x.swapaxes(0, 1), length, logits_time_major=False), want)
        alone = decode(x[:, 4:5], length[4:5])
        n = alone.labels.shape[-1]
        np.testing.assert_array_equal(alone.labels[0], want.labels[4, ..., :n])
        np.testing.assert_array_equal(alone.log_probability[0], want.log_probability[4])
        poisoned = x.copy()
        poisoned[length[5] :, 5] = np.nan
        assert same_bits(decode(poisoned, length), want)
        for dtype in (np.float16, ml_dtypes.bfloat16):
            half = x.astype(dtype)
            assert same_bits(decode(half, length), decode(half.astype(np.float32), length))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_bad_frames(poison):
    x = np.random.default_rng(0).standard_normal((6, 3, 4))
    x[2, 1] = poison
    for found in (fl.ctc_greedy_decode(x), fl.ctc_beam_search_decode(x, beam_width=5, top_paths=2)):
        first = found.log_probability.reshape(3, -1)[:, 0]
        assert np.isnan(first[1])
        assert np.isfinite(first[[0, 2]]).all()
        assert not found.label_length[1].any()
        assert (found.labels[1] == -1).all()


def test_forbidden_classes_are_not_found():
    x = np.random.default_rng(0).standard_normal((6, 2, 4))
    x[:, :, 2] = -np.inf
    found = fl.ctc_beam_search_decode(x, beam_width=500, top_paths=500)
    assert not (found.labels == 2).any()
    assert np.isfinite(found.log_probability[found.label_length > 0]).all()


def test_empty():
    for shape in [(0, 2, 3), (4, 0, 3)]:
        for found in (fl.ctc_greedy_decode(np.zeros(shape)), fl.ctc_beam_search_decode(np.zeros(shape))):
            assert found.labels.shape[0] == shape[1]
            assert not found.log_probability.any()
            assert not found.label_length.any()


def test_decoders_refuse():
    x = np.zeros((5, 2, 4))
    for kwargs, error, words in [
        ({"beam_width": 0}, ValueError, r"beam_width must lie in \[1, "),
        ({"beam_width": 2.5}, TypeError, "beam_width must be an integer"),
        ({"top_paths": 0}, ValueError, r"top_paths must lie in \[1, 100\], got 0"),
        ({"top_paths": 101}, ValueError, r"top_paths must lie in \[1, 100\], got 101"),
        ({"blank_index": 4}, ValueError, r"blank_index must lie in \[-4, 4\), got 4"),
        ({"logit_length": [5, 6]}, ValueError, "logit_length must lie in .* got 6 at row 1"),
        ({"n_threads": 0}, ValueError, "n_threads must be at least 1"),
    ]:
        with pytest.raises(error, match=words):
            fl.ctc_beam_search_decode(x, **kwargs)
    for bad, error in [(np.zeros((5, 4)), ValueError), (x.astype(int), TypeError)]:
        with pytest.raises(error, match="logits must"):
            fl.ctc_greedy_decode(bad)


# ------------------------------------------------------------------ edit distance


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        new = [i + 1]
        for j, y in enumerate(b):
            new.append(min(row[j] + (x != y), row[j + 1] + 1, new[j] + 1))
        row = new
    return row[-1]


@given(st.lists(st.tuples(*[st.lists(st.integers(-3, 3), max_size=8)] * 2), max_size=6))
@settings(max_examples=100, deadline=None)
def test_edit_distance(pairs):
    a, b = [np.array([x for p in pairs for x in p[k]], np.int64) for k in (0, 1)]
    n, m = [np.array([len(p[k]) for p in pairs], np.int64) for k in (0, 1)]
    want = np.array([levenshtein(*p) for p in pairs], float)
    got = fl.edit_distance(a, b, normalize=False, hypothesis_length=n, truth_length=m)
    np.testing.assert_array_equal(got, want)
    rows_a, rows_b = np.full((len(pairs), 9), 77, np.int8), np.full((len(pairs), 11), 77, np.int16)
    for k, (x, y) in enumerate(pairs):
        rows_a[k, : len(x)], rows_b[k, : len(y)] = x, y
    got = fl.edit_distance(np.asfortranarray(rows_a), rows_b[:, ::1], hypothesis_length=n, truth_length=m)
    for k, (x, y) in enumerate(pairs):
        assert got[k] == (want[k] / len(y) if y else (np.inf if x else 0))


def test_edit_distance_of_many_threads():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (50, 60)), rng.integers(0, 4, (50, 70))
    n = rng.integers(0, 61, 50)
    want = [levenshtein(x[:k], y) for x, y, k in zip(a, b, n, strict=True)]
    for n_threads in (1, 2, 7):
        got = fl.edit_distance(a, b, False, hypothesis_length=n, n_threads=n_threads)
        np.testing.assert_array_equal(got, want)


def test_edit_distance_refuses():
    for args, kwargs, error, words in [
        (([[1, 2]], [[1], [2]]), {}, ValueError, "truth must have as many sequences as hypothesis, 1, got 2"),
        (([[1.0]], [[1]]), {}, TypeError, "hypothesis must be integers"),
        (([[1, 2]], [[1]]), {"truth_length": [2]}, ValueError, r"truth_length must lie in \[0, 1\]"),
        (([1, 2], [[1]]), {}, TypeError, "hypothesis_length must be given"),
        (([1, 2], [[1]]), {"hypothesis_length": [1]}, ValueError, "hypothesis_length must sum to 2"),
        (([[[1]]], [[1]]), {}, ValueError, "hypothesis must have shape"),
    ]:
        with pytest.raises(error, match=words):
            fl.edit_distance(*args, **kwargs)
