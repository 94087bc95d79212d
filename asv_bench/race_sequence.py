"""The sequence rows of the race: CTC against torch and optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastloss as fl
from asv_bench.race import Case, Peers

Contenders = dict[str, Callable[[], Any]]


def data(frames: int, size: int, classes: int, labels: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "labels": rng.integers(1, classes, (size, labels)),
        "logits": rng.standard_normal((frames, size, classes), dtype=np.float32),
        "label_length": np.full(size, labels),
        "logit_length": np.full(size, frames),
    }


def torch_peer(torch: Any, kwargs: dict[str, Any], grad: bool) -> Callable[[], Any]:
    x, y, n, m = (torch.from_numpy(kwargs[k]) for k in ("logits", "labels", "logit_length", "label_length"))
    leaf = x.clone().requires_grad_()

    def loss(a: Any) -> Any:
        return torch.nn.functional.ctc_loss(torch.log_softmax(a, -1), y, n, m, reduction="none")

    def with_grad() -> Any:
        leaf.grad = None
        loss(leaf).sum().backward()
        return leaf.grad

    def plain() -> Any:
        with torch.no_grad():
            return loss(x)

    return with_grad if grad else plain


def optax_peer(jax: Any, optax: Any, kwargs: dict[str, Any], grad: bool) -> Callable[[], Any]:
    x, y = jax.numpy.asarray(kwargs["logits"].swapaxes(0, 1)), jax.numpy.asarray(kwargs["labels"])
    empty = (jax.numpy.zeros(x.shape[:2]), jax.numpy.zeros(y.shape))

    def total(a: Any) -> Any:
        return optax.ctc_loss(a, empty[0], y, empty[1]).sum()

    f = jax.jit(jax.value_and_grad(total) if grad else total)
    return lambda: jax.block_until_ready(f(x))


def ctc(frames: int, size: int, classes: int, labels: int, grad: bool) -> Callable[[Peers], Contenders]:
    def prepare(peers: Peers) -> Contenders:
        kwargs = data(frames, size, classes, labels)
        f = fl.value_and_grad(fl.ctc_loss) if grad else fl.ctc_loss
        contenders: Contenders = {"fastloss": lambda: f(**kwargs, n_threads=peers.threads)}
        if torch := peers.get("torch"):
            contenders["torch"] = torch_peer(torch, kwargs, grad)
        jax, optax = peers.get("jax"), peers.get("optax")
        if jax and optax:
            contenders["optax"] = optax_peer(jax, optax, kwargs, grad)
        return contenders

    return prepare


CASES = [
    Case("CTC loss T=200 B=32 C=100 U=30", ctc(200, 32, 100, 30, False), 4, 8, against="torch"),
    Case(
        "CTC loss and gradient T=200 B=32 C=100 U=30",
        ctc(200, 32, 100, 30, True),
        8,
        15,
        headline=True,
        against="torch",
    ),
]
