"""Losses of sequences: over positions [batch, time], lists over time, and packed tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Wants, differentiable, value_and_grad
from fastloss._native import sequence as _kernels
from fastloss._native import softmax as _softmax

Array = NDArray[Any]
LARGE = 1e20  # a perplexity that is multiplied into gradients last: float32 ends at 3e38


def _marked(targets: Array, weights: Array, logits: Array, name: str = "targets") -> Array:
    """The targets as the softmax kernels take them: class indices checked, and marked where the weight is 0."""
    if targets.ndim == logits.ndim:
        return check.raw(targets)
    marked = _memory.empty(targets.shape, np.int64)
    bad = _kernels.mark(targets, weights.reshape(-1), logits.shape[-1], marked.reshape(-1))
    if bad >= 0:
        raise check.bad_label(name, targets, bad, logits.shape[-1])
    return marked


def _cross_entropies(
    logits: Array, marked: Array, loss: Array, grad: Array | None, scale: Array | None, n_threads: int | None
) -> None:
    """loss = cross entropies of the positions, 0 where marked; grad = scale times their gradients."""
    index = marked.ndim < logits.ndim
    _softmax.losses(
        check.raw(logits), marked, logits.ndim - 1, index, loss, _threads.resolve(n_threads, logits.size),
        grad=check.raw(grad), scale=None if scale is None else scale.reshape(-1),
        ignore=_kernels.IGNORED if index else None,
    )  # fmt: skip


def _losses_by(
    function: Callable[..., Any], logits: Array, targets: Array, loss: Array, grad: Array | None, scale: Array | None,
    counts: Array,
) -> None:  # fmt: skip
    """The same with another loss, called on the rows that count."""
    arguments = {"labels": targets[counts], "logits": logits[counts]}
    if grad is None:
        rows = function(**arguments)
    else:
        assert scale is not None
        rows, slopes = value_and_grad(function)(**arguments, cotangent=scale[counts])
    rows = check.numbers("the result of softmax_loss_function", rows)
    rule = "one loss for each label"
    with np.errstate(over="ignore", invalid="ignore"):
        loss[counts] = check.same_shape("the result of softmax_loss_function", rows, loss[counts].shape, rule)
    if grad is None:
        return
    grad[...] = 0
    grad[counts] = slopes


def _kind(average_time: bool, average_batch: bool, sum_time: bool, sum_batch: bool) -> tuple[int, bool, bool]:
    """The denominator, and whether time and batch are summed over."""
    average_time, average_batch, sum_time, sum_batch = check.across(average_time, average_batch, sum_time, sum_batch)
    kind = (
        _kernels.AVERAGE
        if average_time or average_batch
        else _kernels.COUNT
        if sum_time or sum_batch
        else _kernels.NONE
    )
    return kind, average_time or sum_time, average_batch or sum_batch


@np.errstate(over="ignore")
def _multiply(grad: Array, by: float) -> None:
    """grad *= by, which may be infinite, and beyond the range of grad; 0 stays 0."""
    some = grad != 0
    grad[some] = (grad[some].astype(np.float64) * by).astype(grad.dtype)


def _cotangent(a: ArrayLike, shape: tuple[int, ...]) -> Array:
    given = check.same_shape("cotangent", check.numbers("cotangent", a), shape, "that of the value")
    return given.astype(np.float64).reshape(-1)


class _Positions:
    """The sums of one call: positions [batch, time] to results, and back to what multiplies their gradients."""

    def __init__(
        self,
        weights: Array | None,
        lengths: ArrayLike | None,
        shape: tuple[int, int],
        kind: int,
        time: bool,
        batch: bool,
    ) -> None:
        size, n_frames = shape
        n = check.weights_or_lengths(weights, lengths, shape)
        self.weights = _memory.empty(shape)
        _kernels.positions(check.raw(weights), n, self.weights)
        self._kind = kind
        self._strides = (int(not batch) * (1 if time else n_frames), int(not time))
        self.shape = () if time and batch else (size,) if time else (n_frames,) if batch else shape
        self._denominator = _memory.empty(int(np.prod(self.shape)))
        self._value = np.zeros_like(self._denominator)
        _kernels.denominators(self.weights, kind, *self._strides, self._denominator)
        self._cotangent: Array | None = None

    def scale(self, cotangent: ArrayLike | None) -> Array:
        """What multiplies the positions' gradients."""
        if cotangent is not None:
            self._cotangent = _cotangent(cotangent, self.shape)
        out = _memory.empty_like(self.weights)
        _kernels.scales(self.weights, self._denominator, self._cotangent, *self._strides, out)
        return out

    def value(self, losses: Array, result: Array, out: Array | None) -> Any:
        """The result, written where it goes; `losses` may be of any memory layout."""
        self._losses = check.packed(losses, np.float64)
        _kernels.combine(self.weights, self._losses, self._denominator, *self._strides, self._value)
        outputs.narrow(result, self._value.reshape(self.shape))
        return outputs.returned(result, out)

    def weight_slopes(self, out: Array) -> None:
        sb, st = self._strides
        _kernels.weight_slopes(
            self.weights, self._losses, check.raw(out), denominator=self._denominator, value=self._value,
            cotangent=self._cotangent, kind=self._kind, sb=sb, st=st,
        )  # fmt: skip


@differentiable("logits", "weights")
def sequence_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
    average_across_timesteps: bool = True,
    average_across_batch: bool = True,
    sum_over_timesteps: bool = False,
    sum_over_batch: bool = False,
    softmax_loss_function: Callable[..., Any] | None = None,
    name: str | None = None,
    *,
    lengths: ArrayLike | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Weighted softmax cross entropy of batches of sequences.

    With :math:`c_{bt}` the cross entropy of a position in nats and :math:`w_{bt}` its weight, the result is

    .. math:: \\frac{\\sum w_{bt} c_{bt}}{D}

    with sums over the axes that are averaged or summed over, and the denominator

    - :math:`D = \\sum w_{bt}`, over the same axes, where either is averaged over,
    - the number of weights that are not 0, where either is summed over,
    - 1 where neither is, and the result has the shape [B, T].

    Where :math:`D = 0` the result is 0.

    Parameters
    ----------
    logits : array_like, shape [B, T, C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    targets : array_like, shape [B, T] or [B, T, C]
        Class indices in ``[0, C)``, any integer dtype; or a real number for every class.
    weights : array_like, shape [B, T], optional
        Real numbers.  Positions of weight 0 are not read: their targets and logits may hold anything.
    average_across_timesteps, average_across_batch : bool, default True
        Axes to average over.
    sum_over_timesteps, sum_over_batch : bool, default False
        Axes to sum over, dividing by the number of positions that count.
    softmax_loss_function : function, optional
        Called with `labels` and `logits` of the positions that count, [n] or [n, C] and [n, C], instead of the cross
        entropy; returns [n] losses.  A loss of this package, if gradients are asked for.
    name
        Ignored.
    lengths : array_like of int, shape [B] or [], optional
        Timesteps of each row; positions beyond weigh 0, the others 1 unless `weights` are given too.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.

    Returns
    -------
    ndarray or scalar
        Shape [] if both axes are averaged or summed over, [B] for time alone, [T] for batch alone, [B, T] for neither;
        the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above, or neither weights nor lengths are given.
    ValueError
        If shapes do not fit, a target that counts is out of range, a length does not fit, or averages and sums are
        mixed; nothing has been written then.

    Notes
    -----
    Differentiable in `logits` and `weights`.  The denominator of an average depends on the weights, and so does their
    gradient, :math:`(c - L)/D`; at positions of weight 0, which are not read, it is 0.

    After ``tfa.seq2seq.sequence_loss`` and ``tf.contrib.seq2seq.sequence_loss``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.log([[[0.5, 0.5], [0.75, 0.25], [np.nan, np.nan]]])
    >>> loss = fl.sequence_loss(logits, targets=[[0, 1, -1]], lengths=[2])
    >>> print(f"{np.exp(loss):.4f}")  # perplexity: the geometric mean of 2 and 4
    2.8284
    """
    x = check.array("logits", logits)
    dtype = check.loss_dtype("logits", x.dtype)
    check.with_axes("logits", x, "batch", "time", "class")
    y = check.targets("targets", targets, x)
    w = check.per_position(weights, x.shape[:2], "that of positions")
    check.loss_function("softmax_loss_function", softmax_loss_function, _wants is not None)
    kind = _kind(average_across_timesteps, average_across_batch, sum_over_timesteps, sum_over_batch)
    positions = _Positions(w, lengths, x.shape[:2], *kind)
    apart = {"logits": x, "targets": y, "weights": w}
    result = outputs.value(out, positions.shape, dtype, apart)
    grad = slopes = scale = None
    if _wants is not None:
        if "weights" in _wants.wrt:
            check.given("weights", w, " to have a gradient")
        others = {**apart, "out": result}
        grad = outputs.gradient(_wants, "logits", x, others, in_place=True)
        slopes = None if w is None else outputs.gradient(_wants, "weights", w, others)
        scale = positions.scale(_wants.cotangent)
    losses = np.zeros(x.shape[:2], dtype)
    if softmax_loss_function is None:
        _cross_entropies(x, _marked(y, positions.weights, x), losses, grad, scale, n_threads)
    else:
        _losses_by(softmax_loss_function, x, y, losses, grad, scale, positions.weights != 0)
    value = positions.value(losses, result, out)
    if slopes is not None:
        positions.weight_slopes(slopes)
    return value


@differentiable("logits")
def sequence_loss_by_example(
    logits: Sequence[ArrayLike],
    targets: Sequence[ArrayLike],
    weights: Sequence[ArrayLike],
    average_across_timesteps: bool = True,
    softmax_loss_function: Callable[..., Any] | None = None,
    name: str | None = None,
    *,
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Weighted softmax cross entropy of sequences given as lists over time: one value for each row of the batch.

    .. math:: \\frac{\\sum_t w_{tb} c_{tb}}{\\sum_t w_{tb}},

    or without the denominator; 0 where that is 0.

    Parameters
    ----------
    logits : list of array_like, each of shape [B, C]
        Unnormalised log-probabilities, one array for each timestep; all of one dtype.
    targets : list of array_like, each of shape [B]
        Class indices in ``[0, C)``; or [B, C], a real number for every class.
    weights : list of array_like, each of shape [B]
        Real numbers.  Positions of weight 0 are not looked at.
    average_across_timesteps : bool, default True
        Whether to divide by each row's sum of weights.
    softmax_loss_function, name, out, n_threads
        As in :func:`sequence_loss`.

    Returns
    -------
    ndarray, shape [B]
        In nats; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError, ValueError
        As :func:`sequence_loss`; and if the lists are empty or of different lengths.

    Notes
    -----
    The gradient, to `logits`, is a list over time too, and so is ``grad_out``.  After
    ``tf.contrib.legacy_seq2seq.sequence_loss_by_example``, which adds 1e-12 to the denominator.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> steps = [np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])]
    >>> fl.sequence_loss_by_example(steps, targets=[[0], [1]], weights=[[1.0], [1.0]])
    array([1.03972077])
    """
    average_across_timesteps = check.flag("average_across_timesteps", average_across_timesteps)
    check.loss_function("softmax_loss_function", softmax_loss_function, _wants is not None)
    xs, targets, weights = check.over_time(logits, targets, weights)
    shape, dtype = xs[0].shape, check.loss_dtype("logits[0]", xs[0].dtype)
    ys = [check.targets(f"targets[{t}]", y, x) for t, (x, y) in enumerate(zip(xs, targets, strict=True))]
    w = _memory.empty((shape[0], len(xs)))
    for t, a in enumerate(weights):
        w[:, t] = check.same_shape(f"weights[{t}]", check.numbers(f"weights[{t}]", a), shape[:1], "one weight a row")
    positions = _Positions(
        w, None, w.shape, _kernels.AVERAGE if average_across_timesteps else _kernels.NONE, True, False
    )
    columns = np.ascontiguousarray(positions.weights.T)
    marked = [_marked(y, columns[t], xs[t], f"targets[{t}]") for t, y in enumerate(ys)]
    result = outputs.value(out, shape[:1], dtype, {f"logits[{t}]": x for t, x in enumerate(xs)})
    grads: Sequence[Array | None] = [None] * len(xs)
    scale = None
    if _wants is not None:
        grads = outputs.gradients(_wants, "logits", xs, {"out": result}, in_place=True) or grads
        scale = np.ascontiguousarray(positions.scale(_wants.cotangent).T)
    losses = np.zeros(w.T.shape, dtype)
    for t, x in enumerate(xs):
        of_t = None if scale is None else scale[t]
        if softmax_loss_function is None:
            _cross_entropies(x, marked[t], losses[t], grads[t], of_t, n_threads)
        else:
            _losses_by(softmax_loss_function, x, ys[t], losses[t], grads[t], of_t, columns[t] != 0)
    return positions.value(losses.T, result, out)


@differentiable("logits")
def packed_sequence_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    offsets: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    reduction: str = "mean",
    out: Array | None = None,
    n_threads: int | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy of sequences of any lengths, packed one after the other: one value for each sequence.

    Parameters
    ----------
    logits : array_like, shape [N, C]
        Unnormalised log-probabilities of all tokens: float16, bfloat16, float32 or float64, any memory layout.
    targets : array_like, shape [N] or [N, C]
        Class indices in ``[0, C)``; or a real number for every class.
    offsets : array_like of int, shape [B + 1]
        Sequence b is the tokens from ``offsets[b]`` up to, not including, ``offsets[b + 1]``.  Tokens before the first
        and from the last offset on are not looked at.
    weights : array_like, shape [N], optional
        Real numbers, ones by default.  Tokens of weight 0 are not looked at.
    reduction : {"mean", "sum", "perplexity"}
        Over each sequence's tokens: the sum of weight times loss; divided by the sum of the weights; or e to that
        power.  The mean of no token is 0, its perplexity 1.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.

    Returns
    -------
    ndarray, shape [B]
        In nats, perplexities apart; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit, offsets fall or leave the tokens, or a target that counts is out of range; nothing has
        been written then.

    Notes
    -----
    Differentiable in `logits`.  Where a perplexity overflows, so do the entries of its gradient that are not 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.log([[0.5, 0.5], [0.75, 0.25], [0.1, 0.9]])
    >>> fl.packed_sequence_loss(logits, targets=[0, 1, 0], offsets=[0, 2, 3], reduction="perplexity")
    array([ 2.82842712, 10.        ])
    """
    x = check.array("logits", logits)
    dtype = check.loss_dtype("logits", x.dtype)
    check.with_axes("logits", x, "token", "class")
    y = check.targets("targets", targets, x)
    ends = check.offsets("offsets", offsets, x.shape[0])
    kind = {"sum": _kernels.SUM, "mean": _kernels.MEAN, "perplexity": _kernels.PERPLEXITY}
    how = kind[check.choice("reduction", reduction, kind)]
    w = np.zeros(x.shape[0])
    given = check.per_position(weights, x.shape[:1], "one weight a token")
    w[ends[0] : ends[-1]] = 1 if given is None else given[ends[0] : ends[-1]]
    marked = _marked(y, w, x)
    shape = (len(ends) - 1,)
    apart = {"logits": x, "targets": y, "weights": given}
    result = outputs.value(out, shape, dtype, apart)
    grad = None
    if _wants is not None:
        grad = outputs.gradient(_wants, "logits", x, {**apart, "out": result}, in_place=True)
    losses, value, denominator = np.zeros(x.shape[:1], dtype), _memory.empty(shape), _memory.empty(shape)
    scale = None
    large = np.zeros(shape, bool)
    if _wants is not None:
        scale = _memory.empty(x.shape[0])
        cotangent = None if _wants.cotangent is None else _cotangent(_wants.cotangent, shape)
        if how == _kernels.PERPLEXITY:  # its gradient has its value as a factor, which comes first
            _cross_entropies(x, marked, losses, None, None, n_threads)
        _kernels.packed(w, losses, ends, how, value, denominator)
        large = (value > LARGE) & (how == _kernels.PERPLEXITY)
        _kernels.packed_scales(w, denominator, np.where(large, 1, value), cotangent, ends, how, scale)
    # half types are rounded once, after the factor
    into = _memory.empty(grad.shape, dtype) if grad is not None and grad.dtype != dtype and large.any() else grad
    _cross_entropies(x, marked, losses, into, scale, n_threads)
    _kernels.packed(w, losses, ends, how, value, denominator)
    if grad is not None and into is not None:
        for b in np.flatnonzero(large):
            _multiply(into[ends[b] : ends[b + 1]], value[b])
        if into is not grad:
            outputs.narrow(grad, into)
    outputs.narrow(result, value)
    return result
