"""The softmax rows of the race."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastloss as fl
from asv_bench.race import Case, Peers

Contenders = dict[str, Callable[[], Any]]

HEADLINES = {
    "sparse float32 65536x10 loss",
    "sparse float32 8192x1000 loss",
    "sparse float32 1024x32000 loss",
    "sparse float32 8192x1000 loss+grad, grad_out=",
    "sparse float32 1024x32000 loss+grad, grad_out=",
    "sparse bfloat16 1024x32000 loss",
}
SPARSE = fl.sparse_softmax_cross_entropy_with_logits
DENSE = fl.softmax_cross_entropy_with_logits


def data(n: int, c: int, dtype: Any, dense: bool) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, c), dtype=np.float32)
    x *= 3
    if not dense:
        return x.astype(dtype, copy=False), rng.integers(0, c, n)
    z = rng.random((n, c), dtype=np.float32)
    z /= z.sum(1, keepdims=True)
    return x.astype(dtype, copy=False), z.astype(dtype, copy=False)


def torch_peers(torch: Any, x: Any, y: Any, dense: bool, grad: bool, half: str | None, compiled: bool) -> Contenders:
    f = torch.nn.functional.cross_entropy
    tx = torch.from_numpy(x)
    ty = torch.from_numpy(y)
    if half:
        tx = tx.to(getattr(torch, half))
        ty = ty.to(tx.dtype) if dense else ty

    def loss(a: Any, b: Any) -> Any:
        return f(a, b, reduction="none")

    def explicit(a: Any, b: Any) -> Any:
        """Loss and gradient written out: what a compiler fuses best."""
        log_p = torch.log_softmax(a, 1)
        p = log_p.exp()
        if dense:
            return -(b * log_p).sum(1), p * b.sum(1, keepdim=True) - b
        one = torch.nn.functional.one_hot(b, a.shape[1]) if a.shape[1] <= 64 else None
        value = -log_p.gather(1, b[:, None])[:, 0]
        return value, p - one if one is not None else p.scatter_add(1, b[:, None], torch.full_like(p[:, :1], -1))

    def with_grad(function: Any) -> Callable[[], Any]:
        leaf = tx.clone().requires_grad_()

        def run() -> Any:
            leaf.grad = None
            function(leaf, ty).sum().backward()
            return leaf.grad

        return run

    def plain(function: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return function(tx, ty)

        return run

    peers = {"torch": with_grad(loss) if grad else plain(loss)}
    if compiled:
        fast = torch.compile(loss, dynamic=False)
        peers["torch.compile"] = with_grad(fast) if grad else plain(fast)
        if grad:
            peers["torch.compile explicit"] = plain(torch.compile(explicit, dynamic=False))
    return peers


def jax_peers(jax: Any, x: Any, y: Any, dense: bool, grad: bool) -> Contenders:
    jax.config.update("jax_enable_x64", True)
    jnp = jax.numpy
    jx, jy = jnp.asarray(x), jnp.asarray(y)

    def loss(a: Any, b: Any) -> Any:
        log_p = jax.nn.log_softmax(a)
        return -(b * log_p).sum(1) if dense else -jnp.take_along_axis(log_p, b[:, None], 1)[:, 0]

    f = jax.jit(jax.value_and_grad(lambda a, b: loss(a, b).sum()) if grad else loss)
    return {"jax": lambda: jax.block_until_ready(f(jx, jy))}


def tf_peers(tf: Any, x: Any, y: Any, dense: bool, grad: bool) -> Contenders:
    tx, ty = tf.constant(x), tf.constant(y)
    f = tf.nn.softmax_cross_entropy_with_logits if dense else tf.nn.sparse_softmax_cross_entropy_with_logits

    def loss() -> Any:
        return f(labels=ty, logits=tx)

    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(tx)
            value = f(labels=ty, logits=tx)
        return value, tape.gradient(value, tx)

    run = both if grad else loss
    return {"tf": tf.function(run), "tf.jit": tf.function(run, jit_compile=True)}


def contenders(
    n: int, c: int, dtype: Any = np.float32, dense: bool = False, grad: str = "", half: str | None = None
) -> Callable[[Peers], Contenders]:
    def prepare(peers: Peers) -> Contenders:
        x, y = data(n, c, dtype, dense)
        function = DENSE if dense else SPARSE
        ours, labels = x, y
        if half:
            ours = x.astype(np.float16)
            if half == "bfloat16":
                import ml_dtypes

                ours = x.astype(ml_dtypes.bfloat16)
        both = fl.value_and_grad(function)
        buffer = np.zeros_like(ours) if grad == "out" else None
        run: Contenders = {}
        if grad == "out":
            run["fastloss"] = lambda: both(labels=labels, logits=ours, grad_out=buffer)
        elif grad:
            run["fastloss"] = lambda: both(labels=labels, logits=ours)
        else:
            run["fastloss"] = lambda: function(labels=labels, logits=ours)
        if torch := peers.get("torch"):
            run |= torch_peers(torch, x, y, dense, bool(grad), half, True)
        if not half and (jax := peers.get("jax")):
            run |= jax_peers(jax, x, y, dense, bool(grad))
        if not half and (tf := peers.get("tensorflow")):
            run |= tf_peers(tf, x, y, dense, bool(grad))
        return run

    return prepare


def case(kind: str, n: int, c: int, must: float, aim: float, **options: Any) -> Case:
    size = np.dtype(options.get("dtype", np.float32)).itemsize if not options.get("half") else 2
    grad = options.get("grad", "")
    what = {"": "loss", "out": "loss+grad, grad_out=", "fresh": "loss+grad, fresh"}[grad]
    name = options.get("half") or np.dtype(options.get("dtype", np.float32)).name
    read = n * c * size * (2 if options.get("dense") else 1)
    written = n * c * size * bool(grad)
    exps = n * c * (size <= 4)  # those in float64 have another limit
    name = f"{kind} {name} {n}x{c} {what}"
    return Case(name, contenders(n, c, **options), must, aim, read, written, exps=exps, headline=name in HEADLINES)


def small_call(function: Callable[..., Any], grad: bool) -> Callable[[Peers], Contenders]:
    def prepare(peers: Peers) -> Contenders:
        x, y = data(1, 10, np.float32, False)
        f = fl.value_and_grad(function) if grad else function
        run: Contenders = {"fastloss": lambda: f(labels=y, logits=x)}
        if torch := peers.get("torch"):
            run |= torch_peers(torch, x, y, False, grad, None, False)
        if jax := peers.get("jax"):
            run |= jax_peers(jax, x, y, False, grad)
        return run

    return prepare


def function_case(name: str, n: int, c: int, must: float) -> Case:
    """softmax, log_softmax and logsumexp against SciPy, torch and JAX."""

    def prepare(peers: Peers) -> Contenders:
        x, _ = data(n, c, np.float32, False)
        ours = getattr(fl, name)
        out = np.zeros_like(x) if name != "logsumexp" else None
        run: Contenders = {"fastloss": lambda: ours(x, out=out)}
        if scipy := peers.get("scipy.special"):
            theirs = getattr(scipy, name)
            run["scipy"] = lambda: theirs(x, axis=1)
        if torch := peers.get("torch"):
            tx = torch.from_numpy(x)
            buffer = torch.zeros_like(tx) if name != "logsumexp" else torch.zeros(n)
            run["torch"] = lambda: getattr(torch, name)(tx, 1, out=buffer)
        if jax := peers.get("jax"):
            jx = jax.numpy.asarray(x)
            f = jax.jit(getattr(jax.nn, name))
            if name == "logsumexp":
                f = jax.jit(lambda a: jax.nn.logsumexp(a, axis=1))
            run["jax"] = lambda: jax.block_until_ready(f(jx))
        return run

    written = n * c * 4 * (name != "logsumexp")
    return Case(f"{name} float32 {n}x{c}", prepare, must, must, n * c * 4, written, exps=n * c)


FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
F64 = {"dtype": np.float64}
CASES = [
    case("sparse", 65536, 10, 2, 4),
    *(case("sparse", n, c, 2.2, 2.8) for n, c in [(8192, 1000), (1024, 32000), (256, 128256), (64, 1000000)]),
    *(case("sparse", n, c, 2.5, 4, grad="out") for n, c in [(65536, 10), (8192, 1000)]),
    *(case("sparse", n, c, 5, 8, grad="out") for n, c in [(1024, 32000), (256, 128256), (64, 1000000)]),
    *(case("sparse", n, c, 2.5, 3.5, grad="fresh") for n, c in [(1024, 32000), (256, 128256), (64, 1000000)]),
    case("dense", 65536, 10, 1.2, 3, dense=True),
    case("dense", 65536, 10, 1.2, 3, dense=True, grad="out"),
    *(case("dense", n, c, 1.8, 3, dense=True) for n, c in [(8192, 1000), (1024, 32000)]),
    *(case("dense", n, c, 1.5, 3, dense=True, grad="out") for n, c in [(8192, 1000), (1024, 32000)]),
    *(case(k, 65536, 10, 1.2, 3, dense=k == "dense", grad=g, **F64) for k in ("sparse", "dense") for g in ("", "out")),
    *(case("sparse", n, c, 1.5, 2.5, grad=g, **F64) for n, c in [(8192, 1000), (1024, 32000)] for g in ("", "out")),
    *(case("dense", 8192, 1000, 1.5, 2.5, dense=True, grad=g, **F64) for g in ("", "out")),
    *(
        case("sparse", n, c, 2, 4, grad=g, half=h)
        for h in ("bfloat16", "float16")
        for n, c in [(8192, 1000), (1024, 32000)]
        for g in ("", "out")
    ),
    Case("sparse float32 1x10 loss, whole call", small_call(SPARSE, False), 1, 1, note="5 us must, 2 us aim"),
    Case("sparse float32 1x10 loss+grad, whole call", small_call(SPARSE, True), 1, 1, note="5 us must, 2 us aim"),
    *(function_case(name, n, c, 1) for name in FUNCTIONS for n, c in [(65536, 10), (1024, 32000)]),
]
