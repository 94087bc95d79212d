"""What the losses of softmax rows share: arguments checked, one kernel call, value and gradients out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import threads as _threads
from fastloss._core.gradients import Loss, Wants, sum_back
from fastloss._core.reductions import KINDS, Reduction, narrow
from fastloss._native import softmax as _kernels

Array = NDArray[Any]
HESSIANS = ("diagonal", "upper", "residual")  # in the order of the kernel's numbers


class Law(NamedTuple):
    """What a row with one label is worth: one of the kernel's numbers, and its parameters."""

    number: int
    parameters: tuple[float, ...] = ()


CROSS_ENTROPY = Law(_kernels.CROSS_ENTROPY)


def quick_if_plain(index: bool) -> Callable[[Loss], Loss]:
    """For a cross entropy: a call without any other keyword than these takes the short way, if `_plain` can."""

    def decorate(loss: Loss) -> Loss:
        @functools.wraps(loss)
        def call(
            *,
            labels: Any = None,
            logits: Any = None,
            axis: int = -1,
            n_threads: int | None = None,
            _wants: Wants | None = None,
            **options: Any,
        ) -> Any:
            if not options:
                value = _plain(index, labels, logits, axis, n_threads, _wants)
                if value is not None:
                    return value
            return loss(labels=labels, logits=logits, axis=axis, n_threads=n_threads, _wants=_wants, **options)

        return call  # type: ignore[return-value]

    return decorate


def _plain(index: bool, labels: Any, logits: Any, axis: int, n_threads: int | None, wants: Wants | None) -> Any:
    """row_loss without options: what a call on a few rows costs is Python, so this is all of it.  None: it cannot."""
    if type(logits) is not np.ndarray or logits.dtype.kind != "f" or labels is None:
        return None
    dtype = check.loss_dtype("logits", logits.dtype)
    axis = check.class_axis("logits", logits, axis)
    shape = check.without(logits.shape, axis)
    y = check.integers("labels", labels) if index else check.numbers("labels", labels)
    if y.shape != (shape if index else logits.shape) or (not index and (y.dtype.kind == "V" or not y.size)):
        return None
    if wants is not None and not wants.is_plain(logits, y):
        return None
    threads = _threads.resolve(n_threads, logits.size)
    loss = (_memory.small if logits.size < _threads.GRAIN else _memory.empty)(shape, dtype)
    grad = None if wants is None else wants.plain_buffer(logits)
    bad = _kernels.plain(logits, y, axis, index, loss, grad, threads)
    if bad >= 0:
        raise check.bad_label("labels", y, bad, logits.shape[axis])
    return loss if shape else loss[()]


def row_loss(
    wants: Wants | None,
    law: Law,
    logits: Array,
    labels: Array,
    index: bool,
    axis: int,
    *,
    ignore_index: int | None,
    sample_weight: ArrayLike | None,
    class_weight: ArrayLike | None,
    label_smoothing: float,
    where: ArrayLike | None,
    reduction: str,
    out: Array | None,
    n_threads: int | None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Any:
    """The loss by a law; `labels` are class indices of the right shape, or targets; `axis` counts from the front."""
    dtype = check.loss_dtype("logits", logits.dtype)
    shape, n_classes = check.without(logits.shape, axis), logits.shape[axis]
    threads = _threads.resolve(n_threads, logits.size)
    mask = None if where is None else check.mask("where", where, logits.shape)
    weights = None if class_weight is None else check.vector("class_weight", class_weight, n_classes)
    options: dict[str, Any] = {}  # for the kernel: what is not as it is by default
    smoothing = check.scalar("label_smoothing", label_smoothing, 0, 1)
    z = check.scalar("z_loss", z_loss, 0, math.inf)
    heat = check.positive("temperature", temperature)
    if smoothing != 0:
        options["smoothing"] = smoothing
    if z != 0:
        options["z_loss"] = z
    if softcap is not None and (cap := check.positive("softcap", softcap)) < math.inf:
        options["softcap"] = cap
    if heat != 1:
        options["temperature"] = heat
    if type(reduction) is not str or reduction not in KINDS:
        reduction = check.choice("reduction", reduction, KINDS)
    ignore = check.ignored(ignore_index)
    full = labels if index else check.broadcast("labels", labels, logits.shape)
    x, y = check.raw(logits), check.raw(full)

    row_weight = None
    if reduction == "mean" and (weights is not None or ignore is not None):
        row_weight = _memory.empty(shape)
        bad = _kernels.class_weights(y, axis, index, weights, ignore, n_classes, row_weight.reshape(-1))
        if bad >= 0:
            raise check.bad_label("labels", labels, bad, n_classes, ignore)
    apart = {"logits": logits, "labels": labels, "where": mask}
    rows = Reduction(reduction, sample_weight, out, shape, dtype, apart, row_weight, wants, threads)
    grad = labels_grad = hess = None
    if wants is not None:
        if wants.hessian_kind == "upper" and not options.keys().isdisjoint(("z_loss", "softcap")):
            raise ValueError("hessian must be 'diagonal' or 'residual' where z_loss or softcap is given, got 'upper'")
        grad, labels_grad = _gradient_buffers(wants, logits, labels, full, rows.loss)
        hess = wants.hessian_buffer(logits, {**apart, "out": rows.loss})
        if hess is not None:
            options |= {"hess": check.raw(hess), "hessian": HESSIANS.index(str(wants.hessian_kind))}
        if rows.scale is not None:
            options["scale"] = rows.scale.reshape(-1)
        options["factor"] = rows.factor
    if law.number != CROSS_ENTROPY.number:
        options |= {"law": law.number, "parameters": law.parameters}
    if weights is not None:
        options["class_weight"] = weights
    if mask is not None:
        options["where"] = mask
    if ignore is not None:
        options["ignore"] = ignore

    def run(grad: Array | None, labels_grad: Array | None, mean: float = 0.0) -> None:
        if grad is not None:
            options["grad"] = check.raw(grad)
        if labels_grad is not None:
            options.update(labels_grad=check.raw(labels_grad), mean=mean)
        bad = _kernels.losses(x, y, axis, index, rows.loss, threads, **options)
        if bad >= 0:
            raise check.bad_label("labels", labels, bad, n_classes, ignore)

    if n_classes == 0:
        rows.loss[...] = 0
    if labels_grad is not None and row_weight is not None:
        run(None, None)  # labels move the mean's denominator too: its value comes first
        value = rows.value()
        run(grad, labels_grad, float(value))
    else:
        run(grad, labels_grad)
        value = rows.value()
    if labels_grad is not None and wants is not None and wants.grads["labels"] is not labels_grad:
        narrow(wants.grads["labels"], sum_back(labels_grad, labels.shape))
    return value


def _gradient_buffers(
    wants: Wants, logits: Array, labels: Array, full: Array, loss: Array
) -> tuple[Array | None, Array | None]:
    """Where the kernel writes; wants.grads has what the caller gets, labels in their own shape and dtype."""
    grad = labels_grad = None
    for name in wants.wrt:
        a = logits if name == "logits" else labels
        check.differentiable(name, a)
        apart: dict[str, Array | None] = {"logits": logits, "labels": labels, "out": loss}
        apart |= {f"the buffer for {other}": buffer for other, buffer in wants.grads.items()}
        alias = logits if name == "logits" else None
        buffer = check.output("grad_out", wants.buffers.get(name), a.shape, a.dtype, apart, alias)
        if buffer is None:
            buffer = _memory.empty_like(a)
        wants.grads[name] = buffer
        if name == "logits":
            grad = buffer
        else:
            labels_grad = buffer if full.shape == a.shape else _memory.empty(full.shape)
    return grad, labels_grad
