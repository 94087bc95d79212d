"""The linear rows of the race."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastloss as fl
from asv_bench.race import Case, Peers

Contenders = dict[str, Callable[[], Any]]


def torch_peers(torch: Any, x: Any, w: Any, y: Any, grad: bool) -> Contenders:
    tx, tw, ty = torch.from_numpy(x).clone(), torch.from_numpy(w).clone(), torch.from_numpy(y)

    def loss(a: Any, b: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(a @ b.T, labels)

    def runner(function: Any) -> Callable[[], Any]:
        def plain() -> Any:
            with torch.no_grad():
                return function(tx, tw, ty)

        def step() -> Any:
            a, b = tx.requires_grad_(), tw.requires_grad_()
            a.grad = b.grad = None
            function(a, b, ty).backward()
            return a.grad, b.grad

        return step if grad else plain

    peers = {"torch": runner(loss), "torch.compile": runner(torch.compile(loss, dynamic=False))}
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        peers["torch.linear_cross_entropy"] = runner(torch.nn.functional.linear_cross_entropy)
    return peers


def jax_peers(jax: Any, x: Any, w: Any, y: Any, grad: bool) -> Contenders:
    jx, jw, jy = map(jax.numpy.asarray, (x, w, y.astype(np.int32)))

    def loss(a: Any, b: Any, labels: Any) -> Any:
        log_p = jax.nn.log_softmax(a @ b.T)
        return -jax.numpy.take_along_axis(log_p, labels[:, None], 1).mean()

    f = jax.jit(jax.value_and_grad(loss, (0, 1)) if grad else loss)
    return {"jax": lambda: jax.block_until_ready(f(jx, jw, jy))}


def tf_peers(tf: Any, x: Any, w: Any, y: Any, grad: bool) -> Contenders:
    tx, tw, ty = tf.constant(x), tf.constant(w), tf.constant(y)

    def loss() -> Any:
        logits = tf.matmul(tx, tw, transpose_b=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=ty, logits=logits))

    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch([tx, tw])
            value = loss()
        return value, tape.gradient(value, [tx, tw])

    return {"tf": tf.function(both if grad else loss)}


def contenders(n: int, d: int, c: int, grad: bool) -> Callable[[Peers], Contenders]:
    def prepare(peers: Peers) -> Contenders:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, d), np.float32)
        w = rng.standard_normal((c, d), np.float32) * np.float32(d**-0.5)
        y = rng.integers(0, c, n)
        kwargs = {"inputs": x, "weights": w, "labels": y, "reduction": "mean"}
        buffers = (np.zeros_like(x), np.zeros_like(w)) if grad else None
        both = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))
        run: Contenders = {
            "fastloss": (lambda: both(**kwargs, grad_out=buffers))
            if grad
            else (lambda: fl.linear_cross_entropy(**kwargs))
        }
        if torch := peers.get("torch"):
            run |= torch_peers(torch, x, w, y, grad)
        if jax := peers.get("jax"):
            run |= jax_peers(jax, x, w, y, grad)
        if c < 100_000 and (tf := peers.get("tensorflow")):  # the larger one runs out of memory beside the others
            run |= tf_peers(tf, x, w, y, grad)
        return run

    return prepare


def case(n: int, d: int, c: int, grad: bool) -> Case:
    name = f"linear float32 N={n} D={d} C={c} {'loss+grads, grad_out=' if grad else 'loss'}"
    large = c > 100_000
    flops = 2 * n * d * c * (3 if grad else 1)
    return Case(name, contenders(n, d, c, grad), 1.0, 1.15, flops=flops, headline=large, rounds=3 if large else 7)


CASES = [
    case(1024, 512, 32000, False),
    case(1024, 512, 32000, True),
    case(2048, 1024, 128256, True),
]
