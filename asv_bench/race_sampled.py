"""The sampled rows of the race: sampled softmax and noise-contrastive estimation against TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastloss as fl
from asv_bench.race import Case, Peers

Contenders = dict[str, Callable[[], Any]]

CLASSES, DIMENSIONS, BATCH, SEED = 200_000, 128, 1024, 5
WRT = ("weights", "biases", "inputs")


def data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "weights": rng.standard_normal((CLASSES, DIMENSIONS), np.float32) * np.float32(DIMENSIONS**-0.5),
        "biases": rng.standard_normal(CLASSES, np.float32) * np.float32(0.1),
        # few classes make up most of a text
        "labels": np.minimum(rng.zipf(1.1, (BATCH, 1)) - 1, CLASSES - 1),
        "inputs": rng.standard_normal((BATCH, DIMENSIONS), np.float32),
    }


def tf_peers(tf: Any, name: str, arrays: dict[str, Any], num_sampled: int, grad: bool) -> Contenders:
    loss = getattr(tf.nn, name)
    table = {k: tf.Variable(arrays[k]) for k in ("weights", "biases")}
    given = {k: tf.constant(arrays[k]) for k in ("labels", "inputs")}
    sizes = {"num_sampled": num_sampled, "num_classes": CLASSES}

    def sample() -> Any:  # what the losses do by default; TensorFlow's NCE takes no seed itself
        return tf.random.log_uniform_candidate_sampler(given["labels"], 1, num_sampled, True, CLASSES, seed=SEED)

    def run(sampled_values: Any) -> Any:
        if not grad:
            return loss(**table, **given, **sizes, sampled_values=sampled_values)
        with tf.GradientTape() as tape:
            tape.watch(given["inputs"])
            value = loss(**table, **given, **sizes, sampled_values=sampled_values)
        return value, tape.gradient(value, [*table.values(), given["inputs"]])

    peers = {"tf": tf.function(lambda: run(sample()))}
    if name == "nce_loss":  # XLA knows neither the sampler nor accidental hits, which sampled softmax removes
        sampler, compiled = tf.function(sample), tf.function(run, jit_compile=True)
        peers["tf.jit"] = lambda: compiled(sampler())
    return peers


def contenders(name: str, num_sampled: int, grad: bool) -> Callable[[Peers], Contenders]:
    def prepare(peers: Peers) -> Contenders:
        arrays = data()
        f = fl.value_and_grad(getattr(fl, name), WRT) if grad else getattr(fl, name)
        sampler = fl.LogUniformSampler(CLASSES, seed=SEED)  # goes on from call to call, as TensorFlow's does
        arguments = arrays | {"num_sampled": num_sampled, "num_classes": CLASSES}
        run: Contenders = {"fastloss": lambda: f(**arguments, sampler=sampler)}
        if tf := peers.get("tensorflow"):
            run |= tf_peers(tf, name, arrays, num_sampled, grad)
            ours = f(**arguments, seed=SEED)
            for peer, call in run.items():  # a race between different things would be none
                same(ours, call(), peer)
        return run

    return prepare


def same(ours: Any, theirs: Any, peer: str) -> None:
    """The same losses, and gradients where there are any."""
    if not isinstance(ours, tuple):
        np.testing.assert_allclose(np.asarray(theirs), ours, rtol=1e-5, err_msg=peer)
        return
    np.testing.assert_allclose(np.asarray(theirs[0]), ours[0], rtol=1e-5, err_msg=peer)
    for a, b in zip(ours[1], theirs[1], strict=True):
        shape = a.shape
        a, b = dense(a, shape), dense(b, shape)
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5 * np.abs(a).max(), err_msg=peer)


def dense(gradient: Any, shape: tuple[int, ...]) -> Any:
    """An array of SparseRows, IndexedSlices or a dense gradient."""
    if hasattr(gradient, "indices"):
        return fl.SparseRows(np.asarray(gradient.indices), np.asarray(gradient.values), shape).to_dense()
    return np.asarray(gradient)


CASES = [
    Case(
        f"{name} float32 {num_sampled} of {CLASSES}x{DIMENSIONS}, batch {BATCH}, {'loss+grads' if grad else 'loss'}",
        contenders(name, num_sampled, grad),
        *((1.5, 1.8) if grad else (2, 2.8)),
        flops=2 * BATCH * DIMENSIONS * num_sampled * (3 if grad else 1),
        headline=grad and num_sampled == 8192,
    )
    for name in ("sampled_softmax_loss", "nce_loss")
    for num_sampled in (64, 8192)
    for grad in (False, True)
]
