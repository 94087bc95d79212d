"""Second derivatives of the softmax cross entropies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastloss import _inputs
from fastloss._gradients import Wants
from fastloss._native import curvature as _kernels
from fastloss._native import softmax as _softmax
from fastloss._reductions import Reduction

Array = NDArray[Any]
HESSIANS = ("diagonal", "upper", "residual")


def fill_hessian(
    wants: Wants,
    logits: Array,
    labels: Array | None,
    index: bool,
    axis: int,
    rows: Reduction,
    class_weight: Array | None,
    smoothing: float,
    mask: Array | None,
    ignore: int | None,
    n_threads: int,
) -> None:
    """Fills wants.hessian, by its kind; the gradient is there already."""
    out = wants.hessian
    if wants.hessian_kind == "residual":
        np.absolute(wants.grads["logits"], out=out)
        return
    n_classes = logits.shape[axis]
    scale = None if rows.scale is None else rows.scale.reshape(-1)
    if class_weight is not None or ignore is not None or not index:
        kept = np.ones(n_classes) if class_weight is None else class_weight
        total = np.empty(rows.loss.size)  # of the row's targets, which the Hessian is times
        _softmax.class_weights(labels, axis, index, kept, ignore, n_classes, total)
        if smoothing and class_weight is not None:
            total = (1 - smoothing) * total + smoothing * (total != 0) * _mean_weight(kept, mask, axis)
        scale = total if scale is None else scale * total
    factor = rows.factor * (2 if wants.hessian_kind == "upper" else 1)
    _kernels.softmax_hessian(_inputs.raw(logits), axis, _inputs.raw(out), scale, factor, mask, n_threads)


def _mean_weight(class_weight: Array, mask: Array | None, axis: int) -> Any:
    """Of the classes that are kept, row by row."""
    if mask is None:
        return class_weight.mean()
    kept = np.moveaxis(mask, axis, -1)
    return ((kept * class_weight).sum(-1) / np.maximum(kept.sum(-1), 1)).reshape(-1)
