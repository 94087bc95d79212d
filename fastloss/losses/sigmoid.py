"""Losses of independent logits: sigmoid cross entropies, focal loss, and sigmoid, its logarithm and softplus."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core.gradients import Wants
from fastloss._native import elementwise as _kernels
from fastloss.losses.drivers.elementwise import elementwise_loss, evaluate, unary

Array = NDArray[Any]


@elementwise_loss("logits", "labels")
def sigmoid_cross_entropy_with_logits(
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    name: str | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Cross entropy between labels and the sigmoid of logits, each element a decision of its own.

    For a logit :math:`x` with label :math:`z` the loss is, in nats,

    .. math:: z \\log(1 + e^{-x}) + (1 - z) \\log(1 + e^x),

    right to 2 units in the last place (4 in float64) at every logit.  A term whose coefficient is 0 is 0.

    Parameters
    ----------
    labels : array_like
        Probabilities, in [0, 1]: real numbers of any dtype, bool and integers too; broadcasts to `logits`.
    logits : array_like
        Log-odds: float16, bfloat16, float32 or float64, any shape and memory layout.
    sample_weight : array_like, optional
        Multiplies the losses; broadcasts to their shape.  An element of weight 0 is exactly 0.
    reduction : {"none", "sum", "mean"}
        The mean divides by the sum of the weights; it is 0 if that is.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.
    name
        Ignored, as are all of TensorFlow's names.

    Returns
    -------
    ndarray or scalar
        One loss an element, in the shape of `logits`, or their sum or mean; the dtype of `logits`, float32 for half
        types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `logits` and `labels`.  Labels outside [0, 1] are taken by the formula.  After
    ``tf.nn.sigmoid_cross_entropy_with_logits``, which wants labels of the logits' shape and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.sigmoid_cross_entropy_with_logits(labels=[0, 1, 0.5], logits=np.float32([-30, 0, np.inf]))
    array([9.357623e-14, 6.931472e-01,          inf], dtype=float32)
    """
    return evaluate(
        _wants, _kernels.SIGMOID_CROSS_ENTROPY, (), "logits", logits, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("logits", "labels", "pos_weight")
def weighted_cross_entropy_with_logits(
    *,
    labels: ArrayLike | None = None,
    logits: ArrayLike,
    pos_weight: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    targets: ArrayLike | None = None,
    name: str | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Sigmoid cross entropy with a weight for the positive label.

    For a logit :math:`x` with label :math:`z` and positive weight :math:`q` the loss is, in nats,

    .. math:: q z \\log(1 + e^{-x}) + (1 - z) \\log(1 + e^x),

    right to 2 units in the last place (4 in float64) at every logit.  A term whose coefficient is 0 is 0.

    Parameters
    ----------
    labels : array_like
        As in :func:`sigmoid_cross_entropy_with_logits`; broadcasts to the result.
    logits : array_like
        Log-odds: float16, bfloat16, float32 or float64, any shape and memory layout.
    pos_weight : array_like
        Real numbers; `logits` and `pos_weight` broadcast to each other, and the result has that shape.
    sample_weight, reduction, out, n_threads, name
        As in :func:`sigmoid_cross_entropy_with_logits`.  The mean does not divide by `pos_weight`.
    targets
        TensorFlow 1's old name of `labels`.

    Returns
    -------
    ndarray or scalar
        One loss an element, or their sum or mean; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above, or neither or both of `labels` and `targets` are given.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `logits`, `labels` and `pos_weight`; gradients are summed over the axes an argument was repeated
    along.  After ``tf.nn.weighted_cross_entropy_with_logits``, whose gradient at logit 0 is wrong and whose loss is 0
    for confident negatives.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.weighted_cross_entropy_with_logits(labels=[1, 0], logits=np.array([0.0, -40.0]), pos_weight=3)
    array([2.07944154e+00, 4.24835426e-18])
    """
    y = check.one_of("labels", labels, "targets", targets)
    check.given("pos_weight", pos_weight)
    return evaluate(
        _wants, _kernels.WEIGHTED_CROSS_ENTROPY, (), "logits", logits, y,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads, pos_weight=pos_weight,
    )  # fmt: skip


@elementwise_loss("logits", "labels")
def sigmoid_focal_loss(
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    alpha: float | None = None,
    gamma: float = 2.0,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Sigmoid cross entropy in which what is known already counts less.

    For a logit :math:`x` with label :math:`z` and :math:`p = 1/(1 + e^{-x})` the loss is, in nats,

    .. math:: \\alpha z (1 - p)^\\gamma \\log(1 + e^{-x}) + (1 - \\alpha) (1 - z) p^\\gamma \\log(1 + e^x),

    with both factors of :math:`\\alpha` left out where it is None.

    Parameters
    ----------
    labels, logits
        As in :func:`sigmoid_cross_entropy_with_logits`.
    alpha : float, optional
        Weight of the positive label, in [0, 1].
    gamma : float, default 2
        Focus, at least 0; 0 is the plain cross entropy.
    sample_weight, reduction, out, n_threads
        As in :func:`sigmoid_cross_entropy_with_logits`.

    Returns
    -------
    ndarray or scalar
        One loss an element, in the shape of `logits`, or their sum or mean; the dtype of `logits`, float32 for half
        types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit or a parameter is out of range; nothing has been written then.

    Notes
    -----
    Differentiable in `logits` and `labels`, with finite gradients for every `gamma` at every finite logit.  For labels
    strictly between 0 and 1 this is the mean of the two losses; some libraries take the factor of a mean probability.
    Source: Lin et al., Focal loss for dense object detection (2017).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.sigmoid_focal_loss(labels=[1, 0], logits=np.array([0.0, -40.0]))
    array([1.73286795e-01, 7.66764807e-53])
    """
    a = None if alpha is None else check.scalar("alpha", alpha, 0, 1)
    g = check.scalar("gamma", gamma, 0, float("inf"))
    weights = (1.0, 1.0) if a is None else (a, 1 - a)
    return evaluate(
        _wants, _kernels.SIGMOID_FOCAL, (g, *weights), "logits", logits, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


def sigmoid(x: ArrayLike, *, out: Array | None = None, n_threads: int | None = None) -> Any:
    """Sigmoid, :math:`1/(1 + e^{-x})`.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, any shape and memory layout.
    out : ndarray, optional
        Where to write the result; may be `x` itself.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.

    Returns
    -------
    ndarray or scalar
        Shape, dtype and memory layout of `x`.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.sigmoid(np.float32([-100, 0, 100]))
    array([3.8e-44, 5.0e-01, 1.0e+00], dtype=float32)
    """
    return unary(_kernels.SIGMOID, x, out, n_threads)


def log_sigmoid(x: ArrayLike, *, out: Array | None = None, n_threads: int | None = None) -> Any:
    """Logarithm of the sigmoid, :math:`-\\log(1 + e^{-x})`, exact in both tails.

    Parameters
    ----------
    x, out, n_threads
        As in :func:`sigmoid`.

    Returns
    -------
    ndarray or scalar
        Shape, dtype and memory layout of `x`, in nats.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.log_sigmoid(np.float32([-1000, 30]))
    array([-1.000000e+03, -9.357623e-14], dtype=float32)
    """
    return unary(_kernels.LOG_SIGMOID, x, out, n_threads)


def softplus(x: ArrayLike, *, out: Array | None = None, n_threads: int | None = None) -> Any:
    """Softplus, :math:`\\log(1 + e^x)`, exact in both tails.

    Parameters
    ----------
    x, out, n_threads
        As in :func:`sigmoid`.

    Returns
    -------
    ndarray or scalar
        Shape, dtype and memory layout of `x`.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.softplus(np.float32([-30, 1000]))
    array([9.357623e-14, 1.000000e+03], dtype=float32)
    """
    return unary(_kernels.SOFTPLUS, x, out, n_threads)
