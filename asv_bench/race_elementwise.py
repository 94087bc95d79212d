"""The sigmoid, weighted and mean squared error rows of the race."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastloss as fl
from asv_bench.race import Case, Peers

Contenders = dict[str, Callable[[], Any]]

HEADLINES = {"sigmoid float32 1e+08 mean and gradient", "mse float32 1e+06 mean"}
LOSSES = {
    "sigmoid": fl.sigmoid_cross_entropy_with_logits,
    "weighted": fl.weighted_cross_entropy_with_logits,
    "mse": fl.mean_squared_error,
}


def data(n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(n, dtype=np.float32)
    x *= 3
    return x, (rng.random(n, dtype=np.float32) < 0.4).astype(np.float32)


def ours(kind: str, x: Any, z: Any, reduction: str, grad: bool) -> Callable[[], Any]:
    function = LOSSES[kind]
    options = {"labels": z, function.wrt[0]: x, "reduction": reduction}  # type: ignore[attr-defined]
    if kind == "weighted":
        options["pos_weight"] = 3.0
    if grad:
        both, buffer = fl.value_and_grad(function), np.zeros_like(x)
        return lambda: both(**options, grad_out=buffer)
    if reduction == "none":
        options["out"] = np.zeros_like(x)
    return lambda: function(**options)


def torch_peers(torch: Any, kind: str, x: Any, z: Any, reduction: str, grad: bool) -> Contenders:
    f = torch.nn.functional
    tx, tz, q = torch.from_numpy(x), torch.from_numpy(z), torch.tensor(3.0)
    leaf = tx.clone().requires_grad_()

    def loss(a: Any, b: Any) -> Any:
        if kind == "mse":
            return f.mse_loss(a, b, reduction=reduction)
        weight = q if kind == "weighted" else None
        return f.binary_cross_entropy_with_logits(a, b, reduction=reduction, pos_weight=weight)

    def caller(function: Any) -> Callable[[], Any]:
        if grad:
            return lambda: torch.autograd.grad(function(leaf, tz), leaf)

        def run() -> Any:
            with torch.no_grad():
                return function(tx, tz)

        return run

    return {"torch": caller(loss), "torch.compile": caller(torch.compile(loss, dynamic=False))}


def jax_peers(jax: Any, kind: str, x: Any, z: Any, reduction: str, grad: bool) -> Contenders:
    jx, jz = jax.numpy.asarray(x), jax.numpy.asarray(z)

    def loss(a: Any, b: Any) -> Any:
        if kind == "mse":
            value = (a - b) ** 2
        else:
            q = 3.0 if kind == "weighted" else 1.0
            value = q * b * jax.nn.softplus(-a) + (1 - b) * jax.nn.softplus(a)
        return value.mean() if reduction == "mean" else value

    run = jax.jit(jax.value_and_grad(loss) if grad else loss)
    return {"jax": lambda: jax.block_until_ready(run(jx, jz))}


def tf_peers(tf: Any, kind: str, x: Any, z: Any, reduction: str, grad: bool) -> Contenders:
    tx, tz = tf.constant(x), tf.constant(z)

    def loss(a: Any, b: Any) -> Any:
        if kind == "mse":
            value = tf.math.squared_difference(a, b)
        elif kind == "weighted":
            value = tf.nn.weighted_cross_entropy_with_logits(labels=b, logits=a, pos_weight=3.0)
        else:
            value = tf.nn.sigmoid_cross_entropy_with_logits(labels=b, logits=a)
        return tf.reduce_mean(value) if reduction == "mean" else value

    def both(a: Any, b: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(a)
            value = loss(a, b)
        return value, tape.gradient(value, a)

    plain, compiled = (tf.function(both if grad else loss, jit_compile=jit) for jit in (False, True))
    return {"tf": lambda: plain(tx, tz), "tf.jit": lambda: compiled(tx, tz)}


def case(kind: str, n: int, must: float, aim: float, reduction: str = "mean", grad: bool = False) -> Case:
    def prepare(peers: Peers) -> Contenders:
        x, z = data(n)
        run = {"fastloss": ours(kind, x, z, reduction, grad)}
        if torch := peers.get("torch"):
            run |= torch_peers(torch, kind, x, z, reduction, grad)
        if jax := peers.get("jax"):
            run |= jax_peers(jax, kind, x, z, reduction, grad)
        if tf := peers.get("tensorflow"):
            run |= tf_peers(tf, kind, x, z, reduction, grad)
        return run

    what = f"{reduction}{' and gradient' if grad else ''}"
    name, written = f"{kind} float32 {n:.0e} {what}", 4 * n * (grad + (reduction == "none"))
    return Case(name, prepare, must, aim, 8 * n, written, exps=n * (kind != "mse"), headline=name in HEADLINES)


SIZES = [1_000_000, 100_000_000]
CASES = [
    *(
        case(kind, n, 3, 4, **options)
        for kind in ("sigmoid", "weighted")
        for n in SIZES
        for options in ({"reduction": "none"}, {"reduction": "mean"}, {"reduction": "mean", "grad": True})
    ),
    *(case("mse", n, must, must) for n, must in [(10_000, 4), (1_000_000, 1.7), (100_000_000, 1)]),
]
