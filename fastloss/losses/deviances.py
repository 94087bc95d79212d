"""Deviances: losses of predicted logarithms, of a rate, a mean or a probability; their mean by default."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core.gradients import Wants
from fastloss._native import elementwise as _kernels
from fastloss.losses.drivers.elementwise import elementwise_loss, evaluate

Array = NDArray[Any]
_INF = float("inf")


@elementwise_loss("predictions", "labels")
def poisson_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    compute_full_loss: bool = False,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Poisson loss of the logarithm of a rate.

    :math:`e^x - x y` for a predicted logarithm :math:`x` of the rate of a count :math:`y`.

    Parameters
    ----------
    labels : array_like
        Counts, not negative: real numbers of any dtype; broadcasts to `predictions`.
    predictions : array_like
        Logarithms of rates.  Any shape and memory layout; dtypes as in :func:`mean_squared_error`.
    compute_full_loss : bool, default False
        Add Stirling's approximation of :math:`\\log y!`, :math:`y \\log y - y + \\log(2 \\pi y)/2`, where the label is
        more than 1.
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
    Differentiable in `predictions` and `labels`.  After ``tf.nn.log_poisson_loss``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.poisson_loss(labels=[3], predictions=[1.0])
    np.float64(-0.2817181715409549)
    """
    p = (float(check.flag("compute_full_loss", compute_full_loss)),)
    return evaluate(
        _wants, _kernels.POISSON, p, "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def gamma_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Half the Gamma deviance of the logarithm of a mean, without its constant.

    :math:`x + y e^{-x}` for a predicted logarithm :math:`x` of the mean of a label :math:`y`.

    Parameters
    ----------
    labels : array_like
        Positive numbers of any real dtype; broadcasts to `predictions`.
    predictions : array_like
        Logarithms of means.  Any shape and memory layout; dtypes as in :func:`mean_squared_error`.
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
    Differentiable in `predictions` and `labels`.  Half the deviance is this minus :math:`1 + \\log y`.  As
    scikit-learn's ``HalfGammaLoss``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.gamma_loss(labels=[2.0], predictions=[0.0])
    np.float64(2.0)
    """
    return evaluate(
        _wants, _kernels.GAMMA, (), "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def tweedie_loss(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    power: float = 1.5,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Half the Tweedie deviance of the logarithm of a mean, without its constant.

    :math:`e^{(2-p) x}/(2-p) - y e^{(1-p) x}/(1-p)` for a predicted logarithm :math:`x` of the mean of a label
    :math:`y`.

    Parameters
    ----------
    labels : array_like
        Numbers, not negative, of any real dtype; broadcasts to `predictions`.
    predictions : array_like
        Logarithms of means.  Any shape and memory layout; dtypes as in :func:`mean_squared_error`.
    power : float, default 1.5
        The variance is the mean to this power.  0 is half the squared error, 1 Poisson, 2 Gamma.
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
    Differentiable in `predictions` and `labels`.  For power 0 the constant is there: :math:`(e^x - y)^2/2`.  As
    scikit-learn's ``HalfTweedieLoss``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.tweedie_loss(labels=[0.0, 2.0], predictions=[0.0, 0.0], reduction="none")
    array([2., 6.])
    """
    q = check.scalar("power", power, -_INF, _INF)
    what = {1.0: _kernels.POISSON, 2.0: _kernels.GAMMA}.get(q, _kernels.TWEEDIE)
    p = (0.0 if q == 1 else q,)
    return evaluate(
        _wants, what, p, "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@elementwise_loss("predictions", "labels")
def kl_divergence(
    *,
    labels: ArrayLike,
    predictions: ArrayLike,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Kullback-Leibler divergence, element by element.

    :math:`y (\\log y - x)` for a predicted log-probability :math:`x` and a probability :math:`y`; 0 where :math:`y`
    is 0, whatever :math:`x` is.

    Parameters
    ----------
    labels : array_like
        Probabilities: real numbers of any dtype; broadcasts to `predictions`.
    predictions : array_like
        Log-probabilities, as of :func:`log_softmax`.  Any shape and memory layout; dtypes as in
        :func:`mean_squared_error`.
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
    Differentiable in `predictions` and `labels`.  The divergence of two distributions is the sum of its elements.  As
    PyTorch's ``kl_div``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.kl_divergence(labels=[0.5, 0.5, 0.0], predictions=np.log([0.25, 0.75, 1.0]), reduction="sum")
    np.float64(0.14384103622589045)
    """
    return evaluate(
        _wants, _kernels.DIVERGENCE, (), "predictions", predictions, labels,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip
