"""TensorFlow's ids, call after call, and its expected counts."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import fastloss as fl

GOLDEN = Path(__file__).parents[1] / "golden" / "candidate_samplers.json.gz"
CASES = json.loads(gzip.decompress(GOLDEN.read_bytes()))["cases"]
SAMPLERS = {
    "uniform": fl.UniformSampler,
    "log_uniform": fl.LogUniformSampler,
    "learned_unigram": fl.LearnedUnigramSampler,
}
FUNCTIONS = {name: getattr(fl, f"{name}_candidate_sampler") for name in (*SAMPLERS, "fixed_unigram")}


def unigram_arguments(case):
    return {k: case[k] for k in ("unigrams", "distortion", "num_reserved_ids") if k in case}


def make(case):
    if case["sampler"] == "fixed_unigram":
        return fl.FixedUnigramSampler(**unigram_arguments(case), seed=case["seed"])
    return SAMPLERS[case["sampler"]](case["range_max"], seed=case["seed"])


def check(result, call):
    assert result.sampled_candidates.tolist() == call["sampled_candidates"]
    assert result.sampled_candidates.dtype == np.int64
    for name in ("true_expected_count", "sampled_expected_count"):
        got = getattr(result, name)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, call[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['sampler']}-{c['range_max']}-{'unique' if c['unique'] else 'all'}-{c['seed']}"
)
def test_tensorflow_calls(case):
    sampler = make(case)
    for call in case["calls"]:
        check(sampler.candidates(call["true_classes"], case["num_sampled"], case["unique"]), call)
    first = case["calls"][0]
    arguments = first["true_classes"], case["num_true"], case["num_sampled"], case["unique"], case["range_max"]
    check(FUNCTIONS[case["sampler"]](*arguments, seed=case["seed"], **unigram_arguments(case)), first)


def test_golden_covers_every_law_both_ways():
    assert len(CASES) == 90
    assert {(c["sampler"], c["unique"]) for c in CASES} == {(s, u) for s in FUNCTIONS for u in (False, True)}


def test_wide_ranges():
    assert fl.LogUniformSampler(2**40, seed=1).sample(3).tolist() == [96646399659, 73424, 173115944]
    sampler = fl.UniformSampler(50, seed=7)
    assert [sampler.sample(3).tolist() for _ in range(2)] == [[39, 49, 38], [12, 6, 29]]
    small = fl.UniformSampler(5, seed=1)
    assert small.candidates([[1]], 5).sampled_candidates.tolist() == [1, 0, 4, 2, 3]
    np.testing.assert_allclose(small.expected_count([1]), 0.892625809, rtol=1e-6)
