"""Losses of predicted numbers, their mean by default."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core.gradients import Wants
from fastloss._native import elementwise as _kernels
from fastloss.losses.drivers.elementwise import elementwise_loss, evaluate

Array = NDArray[Any]


@elementwise_loss("predictions", "labels")
def mean_squared_error(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Squared error.

    :math:`(x - y)^2` for a prediction :math:`x` of a label :math:`y`.

    Parameters
    ----------
    labels : array_like
        What was to be predicted: real numbers of any dtype; broadcasts to `predictions`.
    predictions : array_like
        float16, bfloat16, float32 or float64, any shape and memory layout.
    sample_weight : array_like, optional
        Multiplies the losses; broadcasts to their shape.  An element of weight 0 is exactly 0.
    reduction : {"mean", "sum", "none"}
        The mean divides by the sum of the weights; it is 0 if that is.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.

    Returns
    -------
    scalar or ndarray
        The mean or sum of the losses, or one an element in the shape of `predictions`; the dtype of `predictions`,
        float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `predictions` and `labels`.  After ``tf.compat.v1.losses.mean_squared_error``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.mean_squared_error(labels=[1, 2], predictions=[1.0, 4.0])
    np.float64(2.0)
    """
    return evaluate(
        _wants, _kernels.SQUARED_ERROR, (), "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def mean_absolute_error(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Absolute error.

    :math:`|x - y|` for a prediction :math:`x` of a label :math:`y`.

    Parameters
    ----------
    labels, predictions
        As in :func:`mean_squared_error`.
    sample_weight, reduction, out, n_threads
        As in :func:`mean_squared_error`.

    Returns
    -------
    scalar or ndarray
        As in :func:`mean_squared_error`.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `predictions` and `labels`.  The gradient is 0 where prediction and label are equal.  After
    ``tf.compat.v1.losses.absolute_difference``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.mean_absolute_error(labels=[1, 2], predictions=[1.0, 4.0])
    np.float64(1.0)
    """
    return evaluate(
        _wants, _kernels.ABSOLUTE_ERROR, (), "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def huber_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    delta: float = 1.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Huber loss: square near the label, straight far from it.

    With :math:`d = |x - y|`: :math:`d^2/2` up to :math:`\\delta`, then :math:`\\delta (d - \\delta/2)`.

    Parameters
    ----------
    labels, predictions
        As in :func:`mean_squared_error`.
    delta : float, default 1
        Where the square ends, more than 0.
    sample_weight, reduction, out, n_threads
        As in :func:`mean_squared_error`.

    Returns
    -------
    scalar or ndarray
        As in :func:`mean_squared_error`.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit or a parameter is out of range; nothing has been written then.

    Notes
    -----
    Differentiable in `predictions` and `labels`.  After ``tf.compat.v1.losses.huber_loss``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.huber_loss(labels=[1, 2], predictions=[1.5, 4.0])
    np.float64(0.8125)
    """
    p = (check.positive("delta", delta),)
    return evaluate(
        _wants, _kernels.HUBER, p, "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def log_cosh_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Logarithm of the hyperbolic cosine of the error.

    :math:`\\log \\cosh (x - y)`, which does not overflow and is right near 0.

    Parameters
    ----------
    labels, predictions
        As in :func:`mean_squared_error`.
    sample_weight, reduction, out, n_threads
        As in :func:`mean_squared_error`.

    Returns
    -------
    scalar or ndarray
        As in :func:`mean_squared_error`.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `predictions` and `labels`.  As Keras's ``log_cosh``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.log_cosh_loss(labels=[0, 0], predictions=[1e-8, 1000.0], reduction="none")
    array([5.00000000e-17, 9.99306853e+02])
    """
    return evaluate(
        _wants, _kernels.LOG_COSH, (), "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def quantile_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    quantile: float = 0.5,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Quantile (pinball) loss.

    :math:`\\tau (y - x)` where the prediction is too small, :math:`(1 - \\tau)(x - y)` where it is too large.

    Parameters
    ----------
    labels, predictions
        As in :func:`mean_squared_error`.
    quantile : float, default 0.5
        The quantile that minimises the loss, in [0, 1].
    sample_weight, reduction, out, n_threads
        As in :func:`mean_squared_error`.

    Returns
    -------
    scalar or ndarray
        As in :func:`mean_squared_error`.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit or a parameter is out of range; nothing has been written then.

    Notes
    -----
    Differentiable in `predictions` and `labels`.  The gradient is 0 where prediction and label are equal.  Source:
    Koenker and Bassett, Regression quantiles (1978).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.quantile_loss(labels=[1, 2], predictions=[2.0, 0.0], quantile=0.9, reduction="none")
    array([0.1, 1.8])
    """
    p = (check.scalar("quantile", quantile, 0, 1),)
    return evaluate(
        _wants, _kernels.QUANTILE, p, "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def hinge_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Hinge loss.

    :math:`\\max(0, 1 - (2y - 1) x)` for a score :math:`x` and a label :math:`y` of 0 or 1.

    Parameters
    ----------
    labels : array_like
        0 or 1, real numbers of any dtype, bool too; broadcasts to `predictions`.
    predictions : array_like
        Scores.  Any shape and memory layout; dtypes as in :func:`mean_squared_error`.
    sample_weight, reduction, out, n_threads
        As in :func:`mean_squared_error`.

    Returns
    -------
    scalar or ndarray
        As in :func:`mean_squared_error`.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `predictions` and `labels`.  The gradient is 0 at the kink.  After
    ``tf.compat.v1.losses.hinge_loss``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.hinge_loss(labels=[0, 1], predictions=[0.5, 3.0], reduction="none")
    array([1.5, 0. ])
    """
    return evaluate(
        _wants, _kernels.HINGE, (), "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def squared_hinge_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Square of the hinge loss.

    :math:`\\max(0, 1 - (2y - 1) x)^2` for a score :math:`x` and a label :math:`y` of 0 or 1.

    Parameters
    ----------
    labels : array_like
        0 or 1, real numbers of any dtype, bool too; broadcasts to `predictions`.
    predictions : array_like
        Scores.  Any shape and memory layout; dtypes as in :func:`mean_squared_error`.
    sample_weight, reduction, out, n_threads
        As in :func:`mean_squared_error`.

    Returns
    -------
    scalar or ndarray
        As in :func:`mean_squared_error`.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `predictions` and `labels`.  As Keras's ``squared_hinge``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.squared_hinge_loss(labels=[0, 1], predictions=[0.5, 3.0], reduction="none")
    array([2.25, 0.  ])
    """
    return evaluate(
        _wants, _kernels.SQUARED_HINGE, (), "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip
