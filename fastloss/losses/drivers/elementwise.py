"""What the element-wise losses share: operands of one shape in, one kernel call, value and gradients out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Loss, Wants, differentiable
from fastloss._core.reductions import ElementReduction
from fastloss._native import elementwise as _kernels

Array = NDArray[Any]

_PLAIN = (np.dtype(np.float32), np.dtype(np.float64))


def elementwise_loss(*names: str) -> Callable[[Loss], Loss]:
    """differentiable, for a loss whose Hessian is diagonal."""
    return differentiable(*names, hessians=("diagonal",))


def _is_plain(x: ArrayLike, labels: ArrayLike) -> bool:
    """Whether the kernel can take them as they are."""
    return (
        type(x) is np.ndarray
        and type(labels) is np.ndarray
        and x.shape == labels.shape
        and x.dtype in _PLAIN
        and labels.dtype in _PLAIN
    )


def _plain(
    wants: Wants | None,
    what: int,
    parameters: tuple[float, ...],
    x: Any,
    labels: Any,
    *,
    reduction: str,
    out: Array | None,
    n_threads: int | None,
    pos_weight: Array | None,
) -> Any:
    """evaluate without options: what a call on a few elements costs is Python, so this is all of it."""
    threads = _threads.resolve(n_threads, x.size)
    loss = None if reduction != "none" else _memory.empty_like(x) if out is None else out
    q = None if pos_weight is None else check.raw(check.broadcast("pos_weight", pos_weight.copy(), x.shape))
    grad = None if wants is None else outputs.plain_gradient(wants, x)
    factor = 1.0 / x.size if reduction == "mean" and x.size else 1.0
    if grad is None and q is None:  # keywords would be a fiftieth of a small call
        total = _kernels.run(what, parameters, x, labels, loss, factor, threads)
    else:
        total = _kernels.run(what, parameters, x, labels, loss, factor, threads, pos_weight=q, grad=grad)
    if loss is not None:
        return loss if loss.ndim or out is not None else loss[()]
    if reduction == "mean":
        total = total / x.size if x.size else 0.0
    return outputs.number(total, x.dtype, None)


def evaluate(
    wants: Wants | None,
    what: int,
    parameters: tuple[float, ...],
    main: str,
    x: ArrayLike,
    labels: ArrayLike,
    *,
    sample_weight: ArrayLike | None,
    reduction: str,
    out: Array | None,
    n_threads: int | None,
    pos_weight: ArrayLike | None = None,
) -> Any:
    """The loss `what` of the main input (of that name) and its labels; gradients go where `wants` says."""
    q = None if pos_weight is None else check.numbers("pos_weight", pos_weight)
    if type(reduction) is not str or reduction not in check.KINDS:
        check.kind(reduction)
    plain = sample_weight is None and _is_plain(x, labels) and (q is None or q.ndim == 0)
    if plain and out is not None:
        simple = wants is None and reduction == "none" and out is not x
        plain = simple and outputs.fits(out, x, labels)  # type: ignore[arg-type]
    if plain and (wants is None or outputs.is_plain(wants, x, labels)):  # type: ignore[arg-type]
        return _plain(
            wants, what, parameters, x, labels, reduction=reduction, out=out, n_threads=n_threads, pos_weight=q
        )
    a = check.array(main, x)
    dtype = check.loss_dtype(main, a.dtype)
    given = {main: a, "labels": check.numbers("labels", labels)}
    shape = a.shape
    if q is not None:
        given["pos_weight"] = q
        shape = check.joint_shape(main, a, "pos_weight", q)
    full = {name: check.raw(check.broadcast(name, v, shape)) for name, v in given.items()}
    if wants is not None and wants.hessian_kind is not None:
        check.same_shape(main, a, shape, "that of the result, to have a Hessian")
    threads = _threads.resolve(n_threads, math.prod(shape))
    rows = ElementReduction(reduction, sample_weight, out, shape, dtype, given, wants=wants, n_threads=threads)
    loss = rows.buffer(a)
    grads: dict[str, Array] = {}
    hessian = None
    if wants is not None:
        grads = outputs.full_gradients(wants, given, main, shape, rows.apart)
        hessian = outputs.hessian(wants, a, {**given, **rows.apart})
    total = _kernels.run(
        what, parameters, full[main], full["labels"], loss, rows.factor, threads,
        pos_weight=full.get("pos_weight"), weight=rows.weight, cotangent=rows.cotangent,
        grad=check.raw(grads.get(main)), label_grad=check.raw(grads.get("labels")),
        pos_weight_grad=check.raw(grads.get("pos_weight")), hessian=check.raw(hessian),
    )  # fmt: skip
    if wants is not None:
        outputs.hand_over(wants, grads)
    return rows.value(loss, total)


def unary(what: int, x: ArrayLike, out: Array | None, n_threads: int | None) -> Any:
    """A function of one array, in its dtype and layout; in place where `out` is `x`."""
    a = check.array("x", x)
    check.loss_dtype("x", a.dtype)
    threads = _threads.resolve(n_threads, a.size)
    result = outputs.value_like(out, a, {"x": a})
    _kernels.run(what, (), check.raw(a), None, check.raw(result), 1.0, threads)
    return outputs.returned(result, out)
