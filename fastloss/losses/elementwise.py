"""What the element-wise losses share: operands of one shape in, one kernel call, value and gradients out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import threads as _threads
from fastloss._core.gradients import Loss, Wants, differentiable, sum_back
from fastloss._core.reductions import KINDS, ElementReduction, narrow, number
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
    reduction: str,
    out: Array | None,
    n_threads: int | None,
    pos_weight: Array | None,
) -> Any:
    """evaluate without options: what a call on a few elements costs is Python, so this is all of it."""
    threads = _threads.resolve(n_threads, x.size)
    loss = None if reduction != "none" else _memory.empty_like(x) if out is None else out
    q = None if pos_weight is None else check.raw(check.broadcast("pos_weight", pos_weight.copy(), x.shape))
    grad = None if wants is None else wants.plain_buffer(x)
    factor = 1.0 / x.size if reduction == "mean" and x.size else 1.0
    if grad is None and q is None:  # keywords would be a fiftieth of a small call
        total = _kernels.run(what, parameters, x, labels, loss, factor, threads)
    else:
        total = _kernels.run(what, parameters, x, labels, loss, factor, threads, pos_weight=q, grad=grad)
    if loss is not None:
        return loss if loss.ndim or out is not None else loss[()]
    if reduction == "mean":
        total = total / x.size if x.size else 0.0
    return number(total, x.dtype, None)


def evaluate(
    wants: Wants | None,
    what: int,
    parameters: tuple[float, ...],
    main: str,
    x: ArrayLike,
    labels: ArrayLike,
    sample_weight: ArrayLike | None,
    reduction: str,
    out: Array | None,
    n_threads: int | None,
    pos_weight: ArrayLike | None = None,
) -> Any:
    """The loss `what` of the main input (of that name) and its labels; gradients go where `wants` says."""
    q = None if pos_weight is None else check.numbers("pos_weight", pos_weight)
    known = type(reduction) is str and reduction in KINDS
    plain = known and sample_weight is None and _is_plain(x, labels) and (q is None or q.ndim == 0)
    if plain and out is not None:
        simple = wants is None and reduction == "none" and out is not x
        plain = simple and check.fits(out, x, labels)  # type: ignore[arg-type]
    if plain and (wants is None or wants.is_plain(x, labels)):  # type: ignore[arg-type]
        return _plain(wants, what, parameters, x, labels, reduction, out, n_threads, q)
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
    rows = ElementReduction(reduction, sample_weight, out, shape, dtype, given, wants, threads)
    loss = rows.buffer(a)
    grads: dict[str, Array] = {}
    hessian = None
    if wants is not None:
        grads = _gradient_buffers(wants, given, shape, main, rows)
        hessian = wants.hessian_buffer(a, {**given, **rows.apart})
    total = _kernels.run(
        what, parameters, full[main], full["labels"], loss, rows.factor, threads,
        pos_weight=full.get("pos_weight"), weight=rows.weight, cotangent=rows.cotangent,
        grad=check.raw(grads.get(main)), label_grad=check.raw(grads.get("labels")),
        pos_weight_grad=check.raw(grads.get("pos_weight")), hessian=check.raw(hessian),
    )  # fmt: skip
    if wants is not None:
        for name, grad in grads.items():
            if wants.grads[name] is not grad:
                narrow(wants.grads[name], sum_back(grad, given[name].shape))
    return rows.value(loss, total)


def _gradient_buffers(
    wants: Wants, given: dict[str, Array], shape: tuple[int, ...], main: str, rows: ElementReduction
) -> dict[str, Array]:
    """Where the kernel writes; wants.grads has what the caller gets, which is smaller where an input was broadcast."""
    full: dict[str, Array] = {}
    for name in wants.wrt:
        a = given[name]
        check.differentiable(name, a)
        apart = {**given, **rows.apart}
        apart |= {f"the buffer for {other}": buffer for other, buffer in wants.grads.items()}
        alias = a if name == main and a.shape == shape else None
        buffer = check.output("grad_out", wants.buffers.get(name), a.shape, a.dtype, apart, alias)
        wants.grads[name] = _memory.empty_like(a) if buffer is None else buffer
        full[name] = wants.grads[name] if a.shape == shape else _memory.empty(shape)
    return full


def unary(what: int, x: ArrayLike, out: Array | None, n_threads: int | None) -> Any:
    """A function of one array, in its dtype and layout; in place where `out` is `x`."""
    a = check.array("x", x)
    check.loss_dtype("x", a.dtype)
    threads = _threads.resolve(n_threads, a.size)
    check.output("out", out, a.shape, a.dtype, {"x": a}, a)
    result = _memory.empty_like(a) if out is None else out
    _kernels.run(what, (), check.raw(a), None, check.raw(result), 1.0, threads)
    return result if result.ndim or out is not None else result[()]
