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
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Loss, Wants
from fastloss._core.reductions import Reduction, reduced
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
            reduction: str = "none",
            n_threads: int | None = None,
            _wants: Wants | None = None,
            **options: Any,
        ) -> Any:
            if not options:
                value = _plain(index, labels, logits, axis, reduction, n_threads, _wants)
                if value is not None:
                    return value
            return loss(
                labels=labels, logits=logits, axis=axis, reduction=reduction, n_threads=n_threads, _wants=_wants,
                **options,
            )  # fmt: skip

        return call  # type: ignore[return-value]

    return decorate


def _plain(
    index: bool, labels: Any, logits: Any, axis: int, reduction: str, n_threads: int | None, wants: Wants | None
) -> Any:
    """row_loss without options: what a call on a few rows costs is Python, so this is all of it.  None: it cannot."""
    if type(logits) is not np.ndarray or logits.dtype.kind != "f" or labels is None:
        return None
    dtype = check.loss_dtype("logits", logits.dtype)
    axis = check.class_axis("logits", logits, axis)
    shape = check.without(logits.shape, axis)
    y = check.integers("labels", labels) if index else check.numbers("labels", labels)
    if y.shape != (shape if index else logits.shape) or (not index and (y.dtype.kind == "V" or not y.size)):
        return None
    if wants is not None and not outputs.is_plain(wants, logits, y):
        return None
    threads = _threads.resolve(n_threads, logits.size)
    kind = check.kind(reduction)
    loss = (_memory.small if logits.size < _threads.GRAIN else _memory.empty)(shape, dtype)
    grad = None if wants is None else outputs.plain_gradient(wants, logits)
    if grad is None or kind != "mean":
        bad = _kernels.plain(logits, y, axis, index, loss, grad, threads)
    else:
        bad = _kernels.losses(logits, y, axis, index, loss, threads, grad=grad, factor=1 / max(loss.size, 1))
    if bad >= 0:
        raise check.bad_label("labels", y, bad, logits.shape[axis])
    if kind != "none":
        return reduced(kind, loss, threads)
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
    if type(reduction) is not str or reduction not in check.KINDS:
        reduction = check.kind(reduction)
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
    rows = Reduction(
        reduction, sample_weight, out, shape, dtype, apart, row_weight=row_weight, wants=wants, n_threads=threads
    )
    grads: dict[str, Array] = {}
    if wants is not None:
        check.no_upper(wants.hessian_kind, "z_loss" in options, "softcap" in options)
        others: dict[str, Array | None] = {**apart, "out": rows.loss}
        grads = outputs.full_gradients(wants, {"logits": logits, "labels": labels}, "logits", logits.shape, others)
        hess = outputs.hessian(wants, logits, others)
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

    def run(grads: dict[str, Array], mean: float = 0.0) -> None:
        if "logits" in grads:
            options["grad"] = check.raw(grads["logits"])
        if "labels" in grads:
            options.update(labels_grad=check.raw(grads["labels"]), mean=mean)
        bad = _kernels.losses(x, y, axis, index, rows.loss, threads, **options)
        if bad >= 0:
            raise check.bad_label("labels", labels, bad, n_classes, ignore)
        if n_classes == 0:
            rows.loss[...] = 0

    if "labels" in grads and row_weight is not None:
        run({})  # labels move the mean's denominator too: its value comes first
        value = rows.value()
        run(grads, float(value))
    else:
        run(grads)
        value = rows.value()
    if wants is not None:
        outputs.hand_over(wants, grads)
    return value
