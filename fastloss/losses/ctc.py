"""Connectionist temporal classification: its loss, decoders, and the edit distance that judges them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Wants, differentiable
from fastloss._core.reductions import Reduction
from fastloss._native import ctc as _kernels
from fastloss._native import decode as _kernel_decode

Array = NDArray[Any]


def _batch_first(a: Array, time_major: bool) -> Array:
    return a.swapaxes(0, 1) if time_major else a


def _logits(logits: ArrayLike) -> tuple[Array, np.dtype[Any]]:
    """The logits, checked, and the dtype of their losses."""
    x = check.array("logits", logits)
    dtype = check.loss_dtype("logits", x.dtype)
    return check.with_axes("logits", x, "time", "batch", "class"), dtype


@differentiable("logits")
def ctc_loss(
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
    _wants: Wants | None = None,
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
        The class that stands for no label; a negative index counts from the end.
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
    logits_time_major = check.flag("logits_time_major", logits_time_major)
    collapse = check.flag("preprocess_collapse_repeated", preprocess_collapse_repeated)
    merge = check.flag("ctc_merge_repeated", ctc_merge_repeated)
    skip = check.flag("ignore_longer_outputs_than_inputs", ignore_longer_outputs_than_inputs)
    zero_infinity = check.flag("zero_infinity", zero_infinity)
    x = _batch_first(given, logits_time_major)
    size, n_frames, n_classes = x.shape
    blank = check.axis_index(blank_index, n_classes, "blank_index")
    y, start, n_labels = check.concatenated("labels", labels, label_length, size)
    row, place = _kernels.bad_label(y, start, n_labels, n_classes, blank)
    if row >= 0:
        raise check.bad_symbol(y, start, row, place, n_classes=n_classes, blank=blank)
    length = n_frames if logit_length is None else logit_length
    frames = check.lengths("logit_length", length, size, n_frames, "frames")
    threads = _threads.resolve(n_threads, x.size + 4 * y.size * n_frames)
    apart: dict[str, Array | None] = {"logits": x, "labels": y}
    rows = Reduction(reduction, sample_weight, out, (size,), dtype, apart, wants=_wants, n_threads=threads)
    grad = None
    if _wants is not None:
        grad = outputs.gradient(_wants, "logits", given, {"labels": y, "out": rows.loss}, in_place=True)
    order = np.argsort(-frames * (n_classes + 4 * n_labels), kind="stable")
    _kernels.ctc(
        check.raw(x), y, rows.loss, None if grad is None else check.raw(_batch_first(grad, logits_time_major)),
        offset=start, label_length=n_labels, logit_length=frames, order=order, blank=blank, collapse=collapse,
        merge=merge, skip_long=skip, zero_infinity=zero_infinity, scale=rows.scale, factor=rows.factor,
        n_threads=threads,
    )  # fmt: skip
    return rows.value()


class Decoded(NamedTuple):
    """What a decoder found, the best path first.

    Parameters
    ----------
    labels : int64 array, shape [B, U] or [B, top_paths, U]
        U is the length of the longest path; -1 past a path's end.
    label_length : int64 array, shape [B] or [B, top_paths]
        Labels of each path; 0 if there are fewer paths.
    log_probability : array, shape [B] or [B, top_paths]
        In nats; ``-inf`` if there are fewer paths.  The dtype of the logits, float32 for half types.
    """

    labels: Array
    label_length: Array
    log_probability: Array


def _decode(
    logits: ArrayLike,
    logit_length: ArrayLike | None,
    time_major: bool,
    blank_index: int,
    merge: bool,
    *,
    width: int,
    paths: int,
    n_threads: int | None,
) -> tuple[Array, Array, Array, Array, Array, int, int]:
    """What the decoders share: paths, how long they are (-1: none), scores; and the arguments, checked."""
    given, _ = _logits(logits)
    x = _batch_first(given, check.flag("logits_time_major", time_major))
    merge = check.flag("merge_repeated", merge)
    size, n_frames, n_classes = x.shape
    blank = check.axis_index(blank_index, n_classes, "blank_index")
    length = n_frames if logit_length is None else logit_length
    frames = check.lengths("logit_length", length, size, n_frames, "frames")
    threads = _threads.resolve(n_threads, x.size * (1 + width))
    _memory.room("top_paths", paths, 8 * size * paths * int(frames.max(initial=0)))
    labels = np.full((size, paths, int(frames.max(initial=0))), -1, np.int64)
    n_labels, score = np.zeros((size, paths), np.int64), np.zeros(size)
    _kernel_decode.decode(
        check.raw(x), frames, blank=blank, merge=merge, width=width, labels=labels, n_labels=n_labels, score=score,
        most=_memory.most(lazy=True), n_threads=threads,
    )  # fmt: skip
    return labels[:, :, : int(n_labels.max(initial=0))], n_labels, score, x, frames, blank, threads


@np.errstate(over="ignore")
def _narrowed(score: Array, dtype: np.dtype[Any]) -> Array:
    return score.astype(dtype)


def ctc_greedy_decode(
    logits: ArrayLike,
    logit_length: ArrayLike | None = None,
    *,
    logits_time_major: bool = True,
    blank_index: int = 0,
    merge_repeated: bool = True,
    n_threads: int | None = None,
) -> Decoded:
    """Labels of the likeliest alignment: the likeliest class of every frame, repeats merged, blanks dropped.

    Parameters
    ----------
    logits : array_like, shape [T, B, C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    logit_length : array_like of int, shape [B] or [], optional
        Frames of each row; all have T by default.
    logits_time_major : bool, default True
        Whether the logits are [T, B, C]; otherwise [B, T, C].
    blank_index : int, default 0
        The class that stands for no label; a negative index counts from the end.
    merge_repeated : bool, default True
        Whether equal classes that follow each other are one label.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.

    Returns
    -------
    Decoded
        ``labels`` [B, U], ``label_length`` [B] and ``log_probability`` [B], that of the one alignment.

    Raises
    ------
    TypeError, ValueError
        As :func:`ctc_loss`.

    Notes
    -----
    Of equal classes the first is taken.  A frame with a ``+inf``, a NaN, or nothing but ``-inf`` makes its row empty,
    with probability NaN.  After ``tf.nn.ctc_greedy_decoder``.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.log(np.array([[0.1, 0.9, 0.0], [0.1, 0.8, 0.1], [0.6, 0.4, 0.0], [0.2, 0.0, 0.8]]) + 1e-9)
    >>> found = fl.ctc_greedy_decode(logits[:, None])
    >>> found.labels, found.label_length
    (array([[1, 2]]), array([2]))
    """
    labels, n, score, x, *_ = _decode(
        logits, logit_length, logits_time_major, blank_index, merge_repeated, width=0, paths=1, n_threads=n_threads
    )
    return Decoded(labels[:, 0], n[:, 0], _narrowed(score, check.loss_dtype("logits", x.dtype)))


def ctc_beam_search_decode(
    logits: ArrayLike,
    logit_length: ArrayLike | None = None,
    beam_width: int = 100,
    top_paths: int = 1,
    *,
    logits_time_major: bool = True,
    blank_index: int = 0,
    merge_repeated: bool = True,
    n_threads: int | None = None,
) -> Decoded:
    """The likeliest labellings, each with the probability of all its alignments.

    At every frame the `beam_width` labellings that are likeliest so far, over the alignments kept, go on.  At the end
    the probability of each is computed over *all* its alignments, as in :func:`ctc_loss`, and they are sorted by it.

    Parameters
    ----------
    logits : array_like, shape [T, B, C]
        Unnormalised log-probabilities: float16, bfloat16, float32 or float64, any memory layout.
    logit_length : array_like of int, shape [B] or [], optional
        Frames of each row; all have T by default.
    beam_width : int, default 100
        Labellings kept.  If no more than that exist the result is exact, except for labellings that are 300 orders of
        magnitude less likely than the best.
    top_paths : int, default 1
        Labellings returned for each row, at most `beam_width`.
    logits_time_major : bool, default True
        Whether the logits are [T, B, C]; otherwise [B, T, C].
    blank_index : int, default 0
        The class that stands for no label; a negative index counts from the end.
    merge_repeated : bool, default True
        As ``ctc_merge_repeated`` of the loss.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.

    Returns
    -------
    Decoded
        ``labels`` [B, top_paths, U], ``label_length`` [B, top_paths] and ``log_probability`` [B, top_paths].

    Raises
    ------
    TypeError, ValueError
        As :func:`ctc_loss`; and if `beam_width` or `top_paths` do not fit.

    Notes
    -----
    A frame with a ``+inf``, a NaN, or nothing but ``-inf`` makes its row empty, with probability NaN.  After
    ``tf.nn.ctc_beam_search_decoder``, whose probabilities are those of the alignments kept.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.log(np.array([[[0.6, 0.4]], [[0.6, 0.4]]]))  # blank-blank is the best alignment: 0.36
    >>> found = fl.ctc_beam_search_decode(logits, top_paths=2)
    >>> found.labels.tolist(), np.exp(found.log_probability).round(2).tolist()
    ([[[1], [-1]]], [[0.64, 0.36]])
    """
    width = check.whole("beam_width", beam_width, 1, 2**31)
    paths = check.whole("top_paths", top_paths, 1, width)
    labels, n, _, x, frames, blank, threads = _decode(
        logits, logit_length, logits_time_major, blank_index, merge_repeated, width=width, paths=paths,
        n_threads=n_threads,
    )  # fmt: skip
    size = n.shape[0]
    loss, start = _memory.empty((paths, size), check.loss_dtype("logits", x.dtype)), np.arange(size) * labels.shape[2]
    order = np.argsort(-frames, kind="stable")
    for k in range(paths):
        path = np.ascontiguousarray(labels[:, k])
        _kernels.ctc(
            check.raw(x), path, loss[k], offset=start, label_length=np.maximum(n[:, k], 0), logit_length=frames,
            order=order, blank=blank, merge=merge_repeated, n_threads=threads,
        )  # fmt: skip
    found = np.where(n.T < 0, -np.inf, -loss).T.astype(loss.dtype)
    best = np.argsort(np.where(np.isnan(found), -np.inf, -found), axis=1, kind="stable")
    labels = np.take_along_axis(labels, best[:, :, None], 1)
    return Decoded(labels, np.maximum(np.take_along_axis(n, best, 1), 0), np.take_along_axis(found, best, 1))


def edit_distance(
    hypothesis: ArrayLike,
    truth: ArrayLike,
    normalize: bool = True,
    *,
    hypothesis_length: ArrayLike | None = None,
    truth_length: ArrayLike | None = None,
    n_threads: int | None = None,
) -> Array:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that make one sequence of the other.

    Parameters
    ----------
    hypothesis, truth : array_like of int, shape [B, any] or concatenated
        A sequence in every row, padded with anything; or all sequences one after the other, [sum of lengths].
    normalize : bool, default True
        Whether to divide by the length of the truth; if that is 0, the result is 0 for an empty hypothesis and ``inf``
        for any other.
    hypothesis_length, truth_length : array_like of int, shape [B] or [], optional
        How long the sequences are; by default as long as the rows.
    n_threads : int, optional
        Threads of this call.

    Returns
    -------
    ndarray of float64, shape [B]
        The distances.  The error rate of a corpus is their sum without `normalize`, over the sum of `truth_length`.

    Raises
    ------
    TypeError
        If a dtype is not an integer one, or lengths of concatenated sequences are missing.
    ValueError
        If shapes or lengths do not fit.

    Notes
    -----
    After ``tf.edit_distance``.

    Examples
    --------
    >>> import fastloss as fl
    >>> fl.edit_distance([[1, 2, 3], [1, 2, 3]], [[1, 3], [4, 5]], normalize=False)
    array([1., 3.])
    """
    a, a_start, a_length = check.concatenated("hypothesis", hypothesis, hypothesis_length)
    b, b_start, b_length = check.concatenated("truth", truth, truth_length)
    check.as_many("truth", len(b_length), "hypothesis", len(a_length))
    normalize = check.flag("normalize", normalize)
    if a.dtype == b.dtype == np.uint64:  # the kernel's integers are signed; which are equal stays the same
        a, b = a.view(np.int64), b.view(np.int64)
    out = _memory.empty(len(a_length))
    work = int((a_length.astype(float) * b_length).sum())
    _kernel_decode.edit_distances(
        a, b, out, a_start=a_start, a_length=a_length, b_start=b_start, b_length=b_length, normalize=normalize,
        n_threads=_threads.resolve(n_threads, work),
    )  # fmt: skip
    return out
