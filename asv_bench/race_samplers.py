"""The sampler rows of the race: TensorFlow's candidate samplers, NumPy's choice, SciPy's alias urn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np

import fastloss as fl
from asv_bench.race import Case, Peers

Contenders = dict[str, Callable[[], Any]]

SAMPLERS: dict[str, Any] = {
    "uniform": fl.UniformSampler,
    "log_uniform": fl.LogUniformSampler,
    "learned_unigram": fl.LearnedUnigramSampler,
}


@cache
def zipf(n: int) -> Any:
    return np.float32(1e6) / np.arange(1, n + 1, dtype=np.float32)


@cache
def vocab_file(n: int) -> str:
    """TensorFlow takes counts as a list of attributes, which is slow to pass, or from a file."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".vocab", delete=False) as file:
        file.writelines(f"{w!r}\n" for w in zipf(n).tolist())
    return file.name


def candidates(law: str, range_max: int, num_sampled: int, unique: bool) -> Callable[[Peers], Contenders]:
    """One call, with its expected counts; both keep their tables and streams from call to call."""

    def prepare(peers: Peers) -> Contenders:
        # a learned law must not depend on how often each side is called: its true classes go round the whole range
        true = np.random.default_rng(0).permutation(range_max)[: range_max // 64 * 64].reshape(-1, 64, 1)
        true = true if law == "learned_unigram" else true[:1]
        arrays = cycle(true)
        arguments: dict[str, Any] = {}
        if law == "fixed_unigram":
            sampler = fl.FixedUnigramSampler(zipf(range_max), seed=5)
            arguments["vocab_file"] = vocab_file(range_max)
        else:
            sampler = SAMPLERS[law](range_max, seed=5)
        contenders = {"fastloss": lambda: sampler.candidates(next(arrays), num_sampled, unique)}
        if tf := peers.get("tensorflow"):
            op = getattr(tf.random, f"{law}_candidate_sampler")
            call = tf.function(lambda t: op(t, 1, num_sampled, unique, range_max, seed=5, **arguments))
            tensors = cycle([tf.constant(t) for t in true])
            contenders["tensorflow"] = lambda: call(next(tensors))
            for _ in range(2):  # a race between different things would be none
                assert (contenders["fastloss"]()[0] == contenders["tensorflow"]()[0].numpy()).all()
        return contenders

    return prepare


def distinct(range_max: int) -> Callable[[Peers], Contenders]:
    def prepare(_: Peers) -> Contenders:
        sampler, rng = fl.UniformSampler(range_max, seed=5), np.random.default_rng(5)
        return {
            "fastloss": lambda: sampler.sample(8192),
            "numpy": lambda: rng.choice(range_max, 8192, replace=False),
            "numpy, unshuffled": lambda: rng.choice(range_max, 8192, replace=False, shuffle=False),
        }

    return prepare


def alias(classes: int, size: int) -> Callable[[Peers], Contenders]:
    def prepare(peers: Peers) -> Contenders:
        weights = np.random.default_rng(0).gamma(0.5, size=classes) + 1e-6
        table = fl.AliasTable(weights)
        contenders = {"fastloss": lambda: table.sample(size, 5)}
        if peers.get("scipy"):
            from scipy.stats.sampling import DiscreteAliasUrn

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                urn = DiscreteAliasUrn(weights, random_state=5)
            contenders["scipy"] = lambda: urn.rvs(size)
        return contenders

    return prepare


def law_cases() -> list[Case]:
    cases = []
    for law, must, aim in (
        ("uniform", 10, 15),
        ("log_uniform", 10, 15),
        ("fixed_unigram", 10, 15),
        ("learned_unigram", 2, 4),
    ):
        for range_max in (10_000, 1_000_000):
            for unique in (False, True):
                kind = f"{'unique ' if unique else ''}of {range_max}"
                cases.append(Case(f"{law}, 64 ids {kind}", candidates(law, range_max, 64, unique), 50, 100))
                cases.append(Case(f"{law}, 8192 ids {kind}", candidates(law, range_max, 8192, unique), must, aim))
    return cases


HEADLINES = {
    "log_uniform, 8192 ids of 1000000",
    "uniform unique ids, 8192 of 1000000",
    "alias table, 1000000 draws of 1000000",
}
CASES = [
    *law_cases(),
    Case("uniform unique ids, 8192 of 10000", distinct(10_000), 1.2, 2),
    Case("uniform unique ids, 8192 of 1000000", distinct(1_000_000), 2, 3),
    *(
        Case(f"alias table, {size} draws of {classes}", alias(classes, size), 4, 8)
        for size in (8192, 1_000_000)
        for classes in (10_000, 100_000, 1_000_000, 10_000_000)
    ),
]
for case in CASES:
    case.headline = case.name in HEADLINES
