"""Focal loss of a softmax."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastloss import _inputs, _memory, _threads
from fastloss._gradients import Wants, differentiable
from fastloss._native import focal as _kernels
from fastloss._native import softmax as _softmax
from fastloss._reductions import Reduction

Array = NDArray[Any]


@differentiable("logits")
def softmax_focal_loss(
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    gamma: float = 2.0,
    axis: int = -1,
    ignore_index: int | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy in which rows that are known already count less.

    For a row whose label has the probability :math:`p` the loss is, in nats,

    .. math:: -(1 - p)^\\gamma \\log p,

    with :math:`1 - p` and :math:`\\log p` each exact in the tails.

    Parameters
    ----------
    labels : array_like of int, shape [...]
        Class indices in ``[0, C)``: the shape of `logits` without `axis`, any integer dtype.
    logits : array_like, shape [..., C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    gamma : float, default 2
        Focus, at least 0; 0 is the plain cross entropy.
    axis, ignore_index, sample_weight, class_weight, where, reduction, out, n_threads
        As in :func:`sparse_softmax_cross_entropy_with_logits`; `class_weight` is the paper's alpha.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [...], or their sum or mean; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit, a label is out of range or `gamma` is negative; nothing has been written then.

    Notes
    -----
    Differentiable in `logits`, with finite gradients for every `gamma`.  Source: Lin et al., Focal loss for dense
    object detection (2017).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.softmax_focal_loss(labels=[0, 1], logits=np.array([[0.0, 0.0], [1.0, -40.0]]))
    array([ 0.1732868, 41.       ])
    """
    x, y = _inputs.array("logits", logits), _inputs.integers("labels", labels)
    k = _inputs.class_axis("logits", x, axis)
    shape, n_classes = _inputs.without(x.shape, k), x.shape[k]
    _inputs.same_shape("labels", y, shape, "that of logits without axis")
    dtype = _inputs.loss_dtype("logits", x.dtype)
    g = _inputs.scalar("gamma", gamma, 0, float("inf"))
    mask, weights = _inputs.mask("where", where, x.shape), _inputs.vector("class_weight", class_weight, n_classes)
    ignore, threads = _inputs.ignored(ignore_index), _threads.resolve(n_threads, x.size)
    row_weight = _memory.empty(shape)
    bad = _softmax.class_weights(y, k, True, weights, ignore, n_classes, row_weight.reshape(-1))
    if bad >= 0:
        raise _inputs.bad_label("labels", y, bad, n_classes, ignore)
    apart = {"logits": x, "labels": y, "where": mask}
    rows = Reduction(reduction, sample_weight, out, shape, dtype, apart, row_weight, _wants, threads)
    grad = None if _wants is None else _wants.main_buffer("logits", x, {"labels": y, "out": rows.loss})
    scale = None if rows.scale is None else rows.scale.reshape(-1)
    _kernels.softmax_focal(
        _inputs.raw(x), y, k, rows.loss, _inputs.raw(grad), g, weights, scale, rows.factor, mask, ignore, threads
    )
    return rows.value()
