"""Connectionist temporal classification: its loss, decoders, and the edit distance that judges them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _inputs, _threads
from fastloss._gradients import Wants, differentiable
from fastloss._native import ctc as _kernels
from fastloss._reductions import Reduction

Array = NDArray[Any]


def _batch_first(a: Array, time_major: bool) -> Array:
    return a.swapaxes(0, 1) if time_major else a


def _logits(logits: ArrayLike) -> tuple[Array, np.dtype[Any]]:
    """The logits, checked, and the dtype of their losses."""
    x = _inputs.array("logits", logits)
    dtype = _inputs.loss_dtype("logits", x.dtype)
    if x.ndim != 3:
        raise ValueError(f"logits must have three axes, of time, batch and class, got shape {x.shape}")
    return x, dtype


def _labellings(
    name: str, labels: ArrayLike, length: ArrayLike | None, size: int, n_classes: int, blank: int
) -> tuple[Array, Array, Array]:
    """Labels, each row's first of them counted over the flattened array, and each row's number of them."""
    y = _inputs.integers(name, labels)
    if y.ndim == 2:
        if y.shape[0] != size:
            raise ValueError(f"{name} must have shape ({size}, any), one row for each of the batch, got {y.shape}")
        n = _inputs.lengths(f"{name[:-1]}_length", y.shape[1] if length is None else length, size, y.shape[1], name)
        start = np.arange(size, dtype=np.int64) * y.shape[1]
    elif y.ndim == 1:
        n = _inputs.lengths(f"{name[:-1]}_length", _inputs.array("label_length", length), size, y.size, name)  # type: ignore[arg-type]
        ends = np.cumsum(n)
        if size and ends[-1] != y.size:
            raise ValueError(f"label_length must sum to {y.size}, the number of concatenated labels, got {ends[-1]}")
        start = ends - n
    else:
        raise ValueError(f"{name} must have shape [batch, length] or be concatenated, got shape {y.shape}")
    row, place = _kernels.bad_label(y, start, n, n_classes, blank)
    if row >= 0:
        value = y[row, place] if y.ndim == 2 else y[start[row] + place]
        rule = f"not hold blank_index {blank}" if value == blank else f"lie in [0, {n_classes})"
        raise ValueError(f"{name} must {rule}, got {value} at row {row}, label {place}")
    return y, start, n


def _gradient(wants: Wants, logits: Array, apart: dict[str, Array | None]) -> Array:
    """Where the kernel writes the logits' gradient; it may be the logits themselves."""
    buffer = wants.buffers.get("logits")
    _inputs.output("grad_out", buffer, logits.shape, logits.dtype, {"logits": logits, **apart}, logits)
    wants.grads["logits"] = np.empty_like(logits, subok=False) if buffer is None else buffer
    grad: Array = wants.grads["logits"]
    return grad


@differentiable("logits")
def ctc_loss(
    wants: Wants | None,
    /,
    *,
    labels: ArrayLike,
    logits: ArrayLike,
    label_length: ArrayLike | None,
    logit_length: ArrayLike | None,
    logits_time_major: bool = True,
    blank_index: int = 0,
    preprocess_collapse_repeated: bool = False,
    ctc_merge_repeated: bool = True,
    ignore_longer_outputs_than_inputs: bool = False,
    zero_infinity: bool = False,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    unique: Any = None,
    name: str | None = None,
) -> Any:
    """Connectionist temporal classification: minus the log-probability of a labelling, over all its alignments.

    With :math:`p_{tk}` the softmax of the logits of frame :math:`t`, the loss of labels :math:`y` is, in nats,

    .. math:: -\\log \\sum_{\\pi: B(\\pi) = y} \\prod_t p_{t \\pi_t},

    where :math:`B` merges repeated classes of an alignment :math:`\\pi` and then drops the blanks.

    Parameters
    ----------
    labels : array_like of int, shape [B, U] or [sum of label_length]
        The labels of every row, padded with anything, or of all rows one after the other; in ``[0, C)`` and not the
        blank.
    logits : array_like, shape [T, B, C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    label_length : array_like of int, shape [B] or []
        Labels of each row; None if all have U.
    logit_length : array_like of int, shape [B] or []
        Frames of each row; None if all have T.  What lies beyond is not read and its gradient is 0.
    logits_time_major : bool, default True
        Whether the logits are [T, B, C]; otherwise [B, T, C].
    blank_index : int, default 0
        The class that is no label; a negative one counts from the end.
    preprocess_collapse_repeated : bool, default False
        Merge adjacent equal labels first.
    ctc_merge_repeated : bool, default True
        If not, repeated classes of an alignment are not merged: every frame that is not blank is a label.
    ignore_longer_outputs_than_inputs : bool, default False
        Rows with more labels than frames have loss and gradient 0.
    zero_infinity : bool, default False
        Rows without any alignment have loss and gradient 0.
    sample_weight : array_like, optional
        Multiplies the losses; broadcasts to [B].  A row of weight 0 is exactly 0.
    reduction : {"none", "sum", "mean"}
        The mean is over rows: the sum of the weighted losses over the sum of the weights.  It does not divide by the
        lengths, and rows that an option made 0 count.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.
    unique, name
        Accepted, ignored.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [B], or their sum or mean; the dtype of `logits`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit, a length does not fit its array, or a label is out of range or the blank; nothing has
        been written then.

    Notes
    -----
    The gradient with respect to the logits is :math:`p_{tk} - \\gamma_{tk}`, with :math:`\\gamma` the probability of
    class :math:`k` in frame :math:`t` given the labelling; it sums to 0 in every frame.  Value and gradient keep their
    digits however confident the logits are: nearly certain rows are computed from the probability of all *other*
    labellings.

    A row without any alignment (too few frames for its labels and the blanks between repeated ones, or a ``-inf`` logit
    in the way) has the loss ``inf``; being a constant, it has no slope, and its gradient is NaN unless `zero_infinity`.
    A ``-inf`` logit otherwise just forbids a class.  A frame with a ``+inf``, a NaN, or nothing but ``-inf`` makes its
    row NaN.  Without labels the loss is that of all frames being blank; without frames and labels it is 0.

    The lattice is that of Graves et al., *Connectionist temporal classification* (ICML 2006); the arguments are those
    of ``tf.nn.ctc_loss``, old and new.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.log(np.array([[[0.5, 0.25, 0.25]], [[0.5, 0.25, 0.25]]]))
    >>> loss = fl.ctc_loss(labels=[[1]], logits=logits, label_length=[1], logit_length=[2])
    >>> print(np.exp(-loss))  # of blank-1, 1-blank and 1-1
    [0.3125]
    """
    given, dtype = _logits(logits)
    x = _batch_first(given, logits_time_major)
    size, n_frames, n_classes = x.shape
    blank = _inputs.axis_index(blank_index, n_classes, "blank_index")
    y, start, n_labels = _labellings("labels", labels, label_length, size, n_classes, blank)
    length = n_frames if logit_length is None else logit_length
    frames = _inputs.lengths("logit_length", length, size, n_frames, "frames")
    threads = _threads.resolve(n_threads, x.size + 4 * y.size * n_frames)
    rows = Reduction(reduction, sample_weight, out, (size,), dtype, {"logits": x, "labels": y}, None, wants, threads)
    grad = None if wants is None else _gradient(wants, given, {"labels": y, "out": rows.loss})
    order = np.argsort(-frames * (n_classes + 4 * n_labels), kind="stable")
    _kernels.ctc(
        _inputs.raw(x), y, start, n_labels, frames, order, blank, preprocess_collapse_repeated, ctc_merge_repeated,
        ignore_longer_outputs_than_inputs, zero_infinity, rows.loss,
        None if grad is None else _inputs.raw(_batch_first(grad, logits_time_major)), rows.scale, rows.factor, threads,
    )  # fmt: skip
    return rows.value()
