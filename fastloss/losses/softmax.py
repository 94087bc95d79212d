"""Softmax cross entropies, and softmax, log-softmax and log-sum-exp themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Wants, differentiable
from fastloss._native import softmax as _kernels
from fastloss.losses.drivers.row_losses import CROSS_ENTROPY, HESSIANS, quick_if_plain, row_loss

Array = NDArray[Any]


def _class_axis(logits: Array, axis: int, dim: int | None) -> int:
    """The axis of classes, counted from the front; an error says by which name it was given."""
    if logits.ndim and dim is not None:
        return check.axis_index(dim, logits.ndim, "dim")
    return check.class_axis("logits", logits, axis)


@quick_if_plain(index=True)
@differentiable("logits", hessians=HESSIANS)
def sparse_softmax_cross_entropy_with_logits(
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    axis: int = -1,
    ignore_index: int | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    dim: int | None = None,
    name: str | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy between logits and class indices.

    For a row of logits :math:`x` with label :math:`y` the loss is, in nats,

    .. math:: \\log \\sum_j e^{x_j} - x_y = \\operatorname{log1p} \\frac{\\sum_{j \\ne y} e^{x_j}}{e^{x_y}},

    computed in the second form: right to 2 units in the last place (4 in float64) at every margin, where the first
    returns 0 for a confident row.

    Parameters
    ----------
    labels : array_like of int, shape [...]
        Class indices in ``[0, C)``: the shape of `logits` without `axis`, any integer dtype.
    logits : array_like, shape [..., C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    axis : int, default -1
        The axis of `logits` that holds the classes.
    ignore_index : int, optional
        Rows with this label have loss and gradient 0 and do not count in the mean.
    sample_weight : array_like, optional
        Multiplies the losses; broadcasts to their shape.  A row of weight 0 is exactly 0.
    class_weight : array_like, shape [C], optional
        Multiplies each class's term; the weights are weights in the mean.
    label_smoothing : float, default 0
        In [0, 1]: mixes the labels with the uniform distribution over the classes that `where` keeps.
    where : array_like of bool, optional
        Classes that take part; broadcasts to `logits`.  The others count as logits of ``-inf``.  If none takes part, a
        label that counts has the loss ``inf``.
    z_loss : float, default 0
        Adds ``z_loss * lse**2`` to the loss, lse the log-sum-exp; the row's class weight multiplies it too.
    softcap : float, optional
        Logits become ``softcap * tanh(logits / softcap)``, also a logit of ``-inf``; `where` excludes classes.
    temperature : float, default 1
        Logits, capped or not, are divided by it.
    reduction : {"none", "sum", "mean"}
        The mean divides by the sum of the weights of the rows that count; it is 0 if none does.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.
    dim, name
        TensorFlow 1's alias of `axis`; ignored.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [...], or their sum or mean; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit or a label is out of range; nothing has been written then.

    Notes
    -----
    A ``-inf`` logit at the label gives ``inf`` and a finite gradient; ``+inf``, NaN or a row of ``-inf`` give NaN in
    that row, unless nothing in it counts: then its loss and gradient are 0.  After
    ``tf.nn.sparse_softmax_cross_entropy_with_logits``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.sparse_softmax_cross_entropy_with_logits(labels=[0, 1], logits=np.float32([[20, 0], [3, 3]]))
    array([2.0611537e-09, 6.9314718e-01], dtype=float32)
    """
    x = check.array("logits", logits)
    k = _class_axis(x, axis, dim)
    y = check.class_indices(labels, x, k)
    return row_loss(
        _wants, CROSS_ENTROPY, x, y, True, k, ignore_index=ignore_index, sample_weight=sample_weight,
        class_weight=class_weight, label_smoothing=label_smoothing, where=where, reduction=reduction, out=out,
        n_threads=n_threads, z_loss=z_loss, softcap=softcap, temperature=temperature,
    )  # fmt: skip


@quick_if_plain(index=False)
@differentiable("logits", "labels", hessians=HESSIANS)
def softmax_cross_entropy_with_logits(
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    dim: int | None = None,
    name: str | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy between logits and a target for every class.

    For a row of logits :math:`x` with targets :math:`z` the loss is, in nats,

    .. math:: \\sum_k z_k \\Bigl(\\log \\sum_j e^{x_j} - x_k\\Bigr),

    computed as two sums without cancellation, around the row's maximum.  Terms whose target is exactly 0 contribute
    exactly 0, also on a logit of ``-inf``; a row of zero targets is 0, whatever its logits are.  The targets need not
    sum to 1; the gradient is the true one also then.

    Parameters
    ----------
    labels : array_like
        Targets: real numbers of any dtype; broadcasts to `logits`.
    logits : array_like, shape [..., C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    axis : int, default -1
        The axis of `logits` that holds the classes.
    sample_weight, class_weight, label_smoothing, where, z_loss, softcap, temperature, reduction, out, n_threads
        As in :func:`sparse_softmax_cross_entropy_with_logits`.  A row's class weight is the sum over the classes of
        class weight times target.
    dim, name
        TensorFlow 1's alias of `axis`; ignored.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [...], or their sum or mean; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit; nothing has been written then.

    Notes
    -----
    Differentiable in `logits` and `labels`.  After ``tf.nn.softmax_cross_entropy_with_logits``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.softmax_cross_entropy_with_logits(labels=[[0.5, 0.5, 0]], logits=np.array([[1.0, 2.0, -np.inf]]))
    array([0.81326169])
    """
    x = check.array("logits", logits)
    k = _class_axis(x, axis, dim)
    return row_loss(
        _wants, CROSS_ENTROPY, x, check.numbers("labels", labels), False, k, ignore_index=None,
        sample_weight=sample_weight, class_weight=class_weight, label_smoothing=label_smoothing, where=where,
        reduction=reduction, out=out, n_threads=n_threads, z_loss=z_loss, softcap=softcap, temperature=temperature,
    )  # fmt: skip


def _rows(logits: Array, axis: int | tuple[int, ...] | None) -> tuple[Array, int]:
    """The array and its one axis of classes; several are merged (a copy where they do not lie together)."""
    if axis is not None and not isinstance(axis, tuple):
        return logits, check.axis_index(axis, logits.ndim)
    axes = check.axes(axis, logits.ndim)
    rest = [a for a in range(logits.ndim) if a not in axes]
    moved = logits.transpose(*rest, *axes)
    return moved.reshape(*moved.shape[: len(rest)], math.prod(moved.shape[len(rest) :])), len(rest)


def _normalize(
    what: str,
    x: ArrayLike,
    axis: int | tuple[int, ...] | None,
    where: ArrayLike | None,
    out: Array | None,
    n_threads: int | None,
) -> Array:
    """softmax and log_softmax."""
    a = check.array("x", x)
    check.loss_dtype("x", a.dtype)
    threads = _threads.resolve(n_threads, a.size)
    mask = None if where is None else check.mask("where", where, a.shape)
    result = outputs.value_like(out, a, {"x": a, "where": mask})
    rows, k = _rows(a, axis)
    target = _rows(result, axis)[0]
    kept = None if mask is None else _rows(mask, axis)[0]
    _kernels.normalize(what, check.raw(rows), k, check.raw(target), kept, threads)
    if not np.may_share_memory(target, result):  # several axes that do not lie together
        moved = result.transpose(*_moved_axes(a.ndim, axis))
        moved[...] = target.reshape(moved.shape)
    return result


def _moved_axes(ndim: int, axis: int | tuple[int, ...] | None) -> list[int]:
    axes = check.axes(axis, ndim)
    return [*(a for a in range(ndim) if a not in axes), *axes]


def softmax(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    where: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Softmax, :math:`e^{x_k} / \\sum_j e^{x_j}`.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, any memory layout.
    axis : int, tuple of int or None, default -1
        The axis or axes that sum to 1; None for all.
    where : array_like of bool, optional
        Elements that take part; broadcasts to `x`.  The others are 0, also where none takes part.
    out : ndarray, optional
        Where to write the result; may be `x` itself.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.

    Returns
    -------
    ndarray
        Shape, dtype and memory layout of `x`.

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or axis does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.softmax(np.array([0.0, np.log(3.0)]))
    array([0.25, 0.75])
    """
    return _normalize("softmax", x, axis, where, out, n_threads)


def log_softmax(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    where: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Logarithm of softmax, :math:`x_k - \\log \\sum_j e^{x_j}`, exact in the tails.

    Parameters
    ----------
    x, axis, out, n_threads
        As in :func:`softmax`.
    where : array_like of bool, optional
        Elements that take part; broadcasts to `x`.  The others are ``-inf``, also where none takes part.

    Returns
    -------
    ndarray
        Shape, dtype and memory layout of `x`, in nats.

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or axis does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.log_softmax(np.float32([20, 0]))
    array([-2.0611537e-09, -2.0000000e+01], dtype=float32)
    """
    return _normalize("log_softmax", x, axis, where, out, n_threads)


def logsumexp(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Any:
    """Logarithm of the sum of exponentials, :math:`\\log \\sum_j e^{x_j}`.

    Parameters
    ----------
    x, n_threads
        As in :func:`softmax`.
    axis : int, tuple of int or None, default -1
        The axis or axes to sum over; None for all.
    keepdims : bool, default False
        Whether to leave these axes in the result, with length 1.
    where : array_like of bool, optional
        Elements that take part; broadcasts to `x`.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.

    Returns
    -------
    ndarray or scalar
        In nats; the dtype of `x`, float32 for half types.  ``-inf`` over nothing.

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or axis does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.logsumexp(np.array([[1000.0, 1000.0], [0.0, -np.inf]]))
    array([1000.69314718,    0.        ])
    """
    a = check.array("x", x)
    dtype = check.loss_dtype("x", a.dtype)
    threads = _threads.resolve(n_threads, a.size)
    mask = None if where is None else check.mask("where", where, a.shape)
    rows, k = _rows(a, axis)
    kept = None if mask is None else _rows(mask, axis)[0]
    shape = check.without(rows.shape, k)
    if check.flag("keepdims", keepdims):
        summed = check.axes(axis, a.ndim)
        shape = tuple(1 if d in summed else n for d, n in enumerate(a.shape))
    result = outputs.value(out, shape, dtype, {"x": a, "where": mask})
    if rows.shape[k] == 0:
        result[...] = -np.inf
    _kernels.normalize("logsumexp", check.raw(rows), k, result, kept, threads)
    return outputs.returned(result, out)
