"""Losses of a softmax by other laws than the cross entropy's."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core.gradients import Wants, differentiable
from fastloss._native import softmax as _kernels
from fastloss.losses.drivers.row_losses import Law, row_loss

Array = NDArray[Any]
HESSIANS = ("diagonal",)


def _loss(
    wants: Wants | None, law: Law, labels: ArrayLike, logits: ArrayLike, axis: int, ignore_index: int | None,
    **options: Any,
) -> Any:  # fmt: skip
    """The loss by a law; labels with as many axes as the logits are targets for every class."""
    x = check.array("logits", logits)
    check.loss_dtype("logits", x.dtype)  # first, for the number of its axes says what labels are
    k = check.class_axis("logits", x, axis)
    y, index = check.indices_or_targets(labels, x, k, ignore_index)
    return row_loss(wants, law, x, y, index, k, ignore_index=ignore_index, **options)


@differentiable("logits", "labels", hessians=HESSIANS)
def softmax_focal_loss(
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    gamma: float = 2.0,
    axis: int = -1,
    ignore_index: int | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy in which rows that are known already count less.

    For a row whose label has the probability :math:`p` the loss is, in nats,

    .. math:: -(1 - p)^\\gamma \\log p,

    with :math:`1 - p` and :math:`\\log p` each exact in the tails; with a target :math:`z_k` for every class it is
    :math:`-\\sum_k z_k (1 - p_k)^\\gamma \\log p_k`.

    Parameters
    ----------
    labels : array_like of int, shape [...], or of real numbers with as many axes as `logits`
        Class indices in ``[0, C)``: the shape of `logits` without `axis`, any integer dtype.  Or a target for every
        class, which broadcasts to `logits`.
    logits : array_like, shape [..., C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    gamma : float, default 2
        Focus, at least 0; 0 is the plain cross entropy.
    axis, ignore_index, sample_weight, class_weight, label_smoothing, where, reduction, out, n_threads
        As in :func:`sparse_softmax_cross_entropy_with_logits`; `class_weight` is the paper's alpha, and `ignore_index`
        goes with class indices only.

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
    Differentiable in `logits`, with finite gradients for every `gamma`, and in targets; ``value_grad_hess`` gives the
    diagonal of its Hessian.  Source: Lin et al., Focal loss for dense object detection (2017).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.softmax_focal_loss(labels=[0, 1], logits=np.array([[0.0, 0.0], [1.0, -40.0]]))
    array([ 0.1732868, 41.       ])
    """
    law = Law(_kernels.FOCAL, (check.scalar("gamma", gamma, 0, math.inf),))
    return _loss(
        _wants, law, labels, logits, axis, ignore_index, sample_weight=sample_weight, class_weight=class_weight,
        label_smoothing=label_smoothing, where=where, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@differentiable("logits", "labels", hessians=HESSIANS)
def poly1_cross_entropy(
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    epsilon: float = 1.0,
    axis: int = -1,
    ignore_index: int | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy with another weight of the first term of its expansion in 1 - p.

    For a row whose label has the probability :math:`p` the loss is, in nats,

    .. math:: -\\log p + \\epsilon (1 - p),

    with :math:`1 - p` and :math:`\\log p` each exact in the tails; with a target :math:`z_k` for every class it is
    :math:`\\sum_k z_k (-\\log p_k + \\epsilon (1 - p_k))`.

    Parameters
    ----------
    labels : array_like of int, shape [...], or of real numbers with as many axes as `logits`
        Class indices in ``[0, C)``: the shape of `logits` without `axis`, any integer dtype.  Or a target for every
        class, which broadcasts to `logits`.
    logits : array_like, shape [..., C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    epsilon : float, default 1
        At least -1; 0 is the plain cross entropy.  Below 0 the two terms cancel in confident rows.
    axis, ignore_index, sample_weight, class_weight, label_smoothing, where, reduction, out, n_threads
        As in :func:`sparse_softmax_cross_entropy_with_logits`; `ignore_index` goes with class indices only.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [...], or their sum or mean; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit, a label is out of range or `epsilon` is below -1; nothing has been written then.

    Notes
    -----
    Differentiable in `logits` and in targets; ``value_grad_hess`` gives the diagonal of its Hessian.  Source: Leng et
    al., PolyLoss: a polynomial expansion perspective of classification loss functions (2022).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.poly1_cross_entropy(labels=[0, 1], logits=np.array([[0.0, 0.0], [1.0, -40.0]]))
    array([ 1.19314718, 42.        ])
    """
    law = Law(_kernels.POLY1, (check.scalar("epsilon", epsilon, -1, math.inf),))
    return _loss(
        _wants, law, labels, logits, axis, ignore_index, sample_weight=sample_weight, class_weight=class_weight,
        label_smoothing=label_smoothing, where=where, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip
