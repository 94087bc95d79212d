"""Losses over a sample of the classes: sampled softmax, noise-contrastive estimation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Wants, differentiable
from fastloss._core.reductions import Reduction
from fastloss._core.tables import Table
from fastloss._native import sampled as _kernels
from fastloss._native import tables as _table_kernels
from fastloss.losses.drivers.sampled_logits import (
    Hits,
    Logits,
    Slopes,
    clear_zeros,
    contiguous,
    losses,
    shifts,
    without_zeros,
)
from fastloss.samplers.samplers import Candidates, LogUniformSampler, _Sampler
from fastloss.samplers.unigrams import FixedUnigramSampler

Array = NDArray[Any]
STRATEGIES = ("mod", "div")


def _draw(
    labels: Array,
    num_sampled: int,
    num_classes: int,
    sampled_values: Any,
    sampler: _Sampler | None,
    seed: Any,
) -> Candidates:
    """The candidates and their expected counts: given, or drawn."""
    if sampled_values is not None:
        ids, true, expected = sampled_values
        return Candidates(ids, true, expected)
    if sampler is None:
        sampler = LogUniformSampler(num_classes, seed=seed)
    elif isinstance(sampler, FixedUnigramSampler):  # the only law that may give a label no weight: look before drawing
        bad = _kernels.bad_count(sampler.probability(labels).reshape(-1))
        if bad >= 0:
            raise check.bad_count("true_expected_count", np.zeros(labels.shape), bad)
    return sampler.candidates(labels, num_sampled, True)


def _check_counts(candidates: Candidates) -> None:
    for name, counts in zip(candidates._fields[1:], candidates[1:], strict=True):
        bad = _kernels.bad_count(counts.reshape(-1))
        if bad >= 0:
            raise check.bad_count(name, counts, bad)


def _sampled(
    wants: Wants | None,
    is_nce: bool,
    weights: Any,
    biases: Any,
    labels: ArrayLike,
    inputs: ArrayLike,
    *,
    num_sampled: int,
    num_classes: int,
    num_true: int,
    sampled_values: Any,
    remove_accidental_hits: bool,
    partition_strategy: str,
    seed: Any,
    subtract_log_q: bool,
    sampler: Any,
    sample_weight: ArrayLike | None,
    reduction: str,
    out: Array | None,
    n_threads: int | None,
) -> Any:
    """What sampled softmax and NCE share."""
    x = check.array("inputs", inputs)
    dtype = check.loss_dtype("inputs", x.dtype)
    check.choice("partition_strategy", partition_strategy, STRATEGIES)
    w = Table("weights", weights, 2, partition_strategy)
    b = Table("biases", biases, 1, partition_strategy)
    check.rows_of("inputs", x, w.row, "weights")
    check.one_a_row("biases", b.n, "weights", w.n)
    remove_accidental_hits = check.flag("remove_accidental_hits", remove_accidental_hits)
    subtract_log_q = check.flag("subtract_log_q", subtract_log_q)
    num_true = check.whole("num_true", num_true, 1)
    num_sampled = check.whole("num_sampled", num_sampled, 1)
    if sampled_values is None:  # else TensorFlow does not look at it
        num_classes = check.whole("num_classes", num_classes, 1, w.n)
    given_labels = check.same_shape("labels", check.integers("labels", labels), (len(x), num_true), "[batch, num_true]")
    y = check.ids("labels", given_labels, w.n if sampled_values is not None else num_classes)
    given = None if sampled_values is None else check.sampled_values(sampled_values, num_sampled, y.shape, w.n)
    check.sampler(sampler, sampled_values, seed, num_classes, _Sampler)
    threads = _threads.resolve(n_threads, len(x) * num_sampled)

    apart: dict[str, Array | None] = {"inputs": x, "labels": given_labels}
    apart |= {f"a shard of {name}": a for name, t in (("weights", w), ("biases", b)) for a in t.arrays}
    rows = Reduction(reduction, sample_weight, out, (len(x),), dtype, apart, wants=wants, n_threads=threads)
    d_inputs = None
    if wants is not None:
        check.no_buffers(wants.buffers, ("weights", "biases"))
        d_inputs = outputs.gradient(wants, "inputs", x, apart | {"out": rows.loss}, in_place=True)
    if given is not None and subtract_log_q:
        _check_counts(Candidates(*given))
    drawn = _draw(y, num_sampled, num_classes, given, sampler, seed)
    if given is None and subtract_log_q:
        _check_counts(drawn)

    dense = contiguous(x, dtype)
    logits = _logits(dense, w, b, y, drawn, subtract_log_q, remove_accidental_hits)
    values = slopes = None
    if wants is not None:
        if "weights" in wants.wrt:
            values = _memory.empty((y.size + num_sampled, x.shape[1]), dtype)
        slopes = Slopes(
            _memory.empty(y.shape),
            None if d_inputs is None else outputs.product(d_inputs, dense),
            None if values is None else values[y.size :],
            np.zeros(num_sampled) if "biases" in wants.wrt else None,
        )
    losses(is_nce, logits, rows, slopes, threads)
    value = rows.value()
    if wants is not None and slopes is not None:
        ids = drawn.sampled_candidates
        _finish(wants, w, b, labels=y, ids=ids, logits=logits, slopes=slopes, values=values, rows=rows)
        if d_inputs is not None and d_inputs is not slopes.x:
            outputs.narrow(d_inputs, slopes.x)
    return value


def _logits(
    x: Array, w: Table, b: Table, labels: Array, drawn: Candidates, subtract_log_q: bool, remove_hits: bool
) -> Logits:
    """Candidates corrected, true products made row by row of the table."""
    ids, k, flat = drawn.sampled_candidates, len(drawn.sampled_candidates), labels.reshape(-1)
    true = b.gather(flat, np.dtype(np.float64)).reshape(-1)
    offsets = b.gather(ids, np.dtype(np.float64)).reshape(-1)
    if subtract_log_q:
        _kernels.subtract_log(true, drawn.true_expected_count.reshape(-1))
        _kernels.subtract_log(offsets, drawn.sampled_expected_count)
    shift = shifts(k, x.dtype)
    with np.errstate(over="ignore"):
        shift[:k] = offsets
    for shard, rows, places in w.locate(flat):
        _table_kernels.dots(check.raw(w.arrays[shard]), rows, places, labels.shape[1], x, true)
    hits = Hits()
    if remove_hits:
        heads, follows = np.zeros(1 << max(3, (2 * k).bit_length()), np.int64), _memory.empty(k, np.int64)
        _kernels.index(ids, heads, follows)
        hits = Hits(ids, labels, heads, follows)
    return Logits(x, k, lambda some: w.gather(ids[some], x.dtype), shift, true.reshape(labels.shape), hits)


def _in_order(w: Table, labels: Array) -> Iterator[tuple[int, Array, Array | None]]:
    """As Table.locate, but one label of a row at a time: its sums have their order, not that of the shards."""
    if len(w.arrays) == 1:
        yield from w.locate(labels.reshape(-1))
        return
    size, num_true = labels.shape
    for t in range(num_true):
        of_rows = np.arange(size, dtype=np.int64) * num_true + t
        for shard, rows, places in w.locate(labels[:, t]):
            yield shard, rows, of_rows[places]


def _finish(
    wants: Wants,
    w: Table,
    b: Table,
    *,
    labels: Array,
    ids: Array,
    logits: Logits,
    slopes: Slopes,
    values: Array | None,
    rows: Reduction,
) -> None:
    """The true classes' shares of the gradients; `values` for the table end with those to the candidates."""
    flat, true, num_true = labels.reshape(-1), slopes.true.reshape(-1), labels.shape[1]
    touched = np.concatenate([flat, ids])
    if values is not None:
        if not flat.size:  # no product has been written there
            values[...] = 0
        _table_kernels.outer(true, num_true, without_zeros(logits.x, rows), values[: true.size])
        wants.grads["weights"] = w.gradient(touched, values)
    if slopes.sums is not None:
        wants.grads["biases"] = b.gradient(touched, np.concatenate([true, slopes.sums]))
    if slopes.x is not None:
        for shard, at, places in _in_order(w, labels):
            _table_kernels.add_true(check.raw(w.arrays[shard]), at, places, num_true, true, slopes.x)
        clear_zeros(slopes.x, rows)


@differentiable("inputs", "weights", "biases")
def sampled_softmax_loss(
    weights: Any,
    biases: Any,
    labels: ArrayLike,
    inputs: ArrayLike,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: Any = None,
    remove_accidental_hits: bool = True,
    partition_strategy: str = "mod",
    seed: Any = None,
    *,
    subtract_log_q: bool = True,
    sampler: Any = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    name: str | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy over the true classes and a sample of the others.

    With :math:`x` a row of inputs, :math:`Q(k)` the expected count of class :math:`k` in the sample :math:`S`, and
    :math:`z_k = w_k \\cdot x + b_k - \\log Q(k)`, the loss of a row with true classes :math:`y_1 .. y_T` is, in nats,

    .. math:: \\log\\Bigl(\\sum_t e^{z_{y_t}} + \\sum_{k \\in S} e^{z_k}\\Bigr) - \\frac1T \\sum_t z_{y_t}.

    Its gradient tends to that of the full softmax as the sample grows.  For training: evaluate with the full softmax.

    Parameters
    ----------
    weights : array_like, shape [num_classes, D], or list or tuple of shards
        Class embeddings: float16, bfloat16, float32 or float64, any strides; memory maps are read in place.  Only rows
        of true and sampled classes are read.
    biases : array_like, shape [num_classes], or list or tuple of shards
        Class biases, sharded or not, independently of the weights.
    labels : array_like of int, shape [batch, num_true]
        The true classes, in [0, num_classes).
    inputs : array_like, shape [batch, D]
        The hidden vectors.
    num_sampled : int
        How many classes to draw for the whole batch.
    num_classes : int
        The sampler's range: at most the rows of `weights`.  Not used with `sampled_values`.
    num_true : int, default 1
        True classes per row; each has the target 1/num_true.
    sampled_values : tuple, optional
        ``(sampled_candidates, true_expected_count, sampled_expected_count)``, shapes [num_sampled],
        [batch, num_true], [num_sampled], as every candidate sampler returns; by default drawn, without repeats.
    remove_accidental_hits : bool, default True
        Whether sampled classes that are among a row's true ones are left out of that row.
    partition_strategy : {"mod", "div"}
        Where the row of a class is when there are P shards: row ``id // P`` of shard ``id % P``, or consecutive ids in
        each shard.  The first ``n % P`` shards hold one row more than the others.
    seed : optional
        Of the default log-uniform sampler: whatever `numpy.random.default_rng` takes, of at most 65536 numbers; for
        an integer the sample is TensorFlow's.
    subtract_log_q : bool, default True
        Whether to subtract the logarithms of the expected counts.
    sampler : a sampler, optional
        Used instead of the default one; it continues its stream, and learns if it is a learned one.
    sample_weight : array_like, optional
        Multiplies the losses; broadcasts to [batch].  A row of weight 0 is exactly 0.
    reduction : {"none", "sum", "mean"}
        The mean divides by the sum of the sample weights.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.
    name : ignored

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [batch], or their sum or mean; the dtype of `inputs`, float32 for half types.  Tables are
        taken to that dtype row by row.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes, shards or ids do not fit, or an expected count is not positive; nothing has been written or drawn
        then.

    Notes
    -----
    Differentiable in `inputs`, `weights` and `biases`.  The gradients of tables are `SparseRows`, one for each shard,
    with its own row numbers: first the true classes, row by row, then the sampled ones, not summed.
    After ``tf.nn.sampled_softmax_loss`` (Jean et al. 2015, "On Using Very Large Target Vocabulary for Neural Machine
    Translation").

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> weights, biases, inputs = np.eye(4), np.zeros(4), np.array([[0.0, 3.0, 0.0, 0.0]])
    >>> everything = fl.all_candidate_sampler([[1]], 1, 4, True)
    >>> fl.sampled_softmax_loss(weights, biases, [[1]], inputs, 4, 4, sampled_values=everything)
    array([0.13920631])
    """
    return _sampled(
        _wants, False, weights, biases, labels, inputs, num_sampled=num_sampled, num_classes=num_classes,
        num_true=num_true, sampled_values=sampled_values, remove_accidental_hits=remove_accidental_hits,
        partition_strategy=partition_strategy, seed=seed, subtract_log_q=subtract_log_q, sampler=sampler,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip


@differentiable("inputs", "weights", "biases")
def nce_loss(
    weights: Any,
    biases: Any,
    labels: ArrayLike,
    inputs: ArrayLike,
    num_sampled: int,
    num_classes: int,
    num_true: int = 1,
    sampled_values: Any = None,
    remove_accidental_hits: bool = False,
    partition_strategy: str = "mod",
    seed: Any = None,
    *,
    subtract_log_q: bool = True,
    sampler: Any = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    name: str | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Noise-contrastive estimation: tell the true classes from sampled ones.

    With logits :math:`z` as for `sampled_softmax_loss` the loss of a row is, in nats, the sum

    .. math:: \\sum_t \\Bigl(\\log(1 + e^{z_{y_t}}) - \\frac1T z_{y_t}\\Bigr) + \\sum_{k \\in S} \\log(1 + e^{z_k}),

    computed as sums of terms that are never negative.  ``subtract_log_q=False`` makes it negative sampling.

    Parameters
    ----------
    weights, biases, labels, inputs, num_sampled, num_classes, num_true, sampled_values
        As for `sampled_softmax_loss`.
    remove_accidental_hits : bool, default False
        Whether sampled classes that are among a row's true ones are left out of that row.
    partition_strategy, seed, subtract_log_q, sampler, sample_weight, reduction, out, n_threads, name
        As for `sampled_softmax_loss`.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [batch], or their sum or mean; the dtype of `inputs`, float32 for half types.

    Raises
    ------
    TypeError, ValueError
        As `sampled_softmax_loss`.

    Notes
    -----
    Differentiable in `inputs`, `weights` and `biases`, as `sampled_softmax_loss`.
    After ``tf.nn.nce_loss`` (Gutmann and Hyvarinen 2010, "Noise-contrastive estimation").

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> sample = np.array([3]), np.ones((1, 1)), np.ones(1)
    >>> fl.nce_loss(np.zeros((4, 2)), np.zeros(4), [[0]], np.zeros((1, 2)), 1, 4, sampled_values=sample)
    array([1.38629436])
    """
    return _sampled(
        _wants, True, weights, biases, labels, inputs, num_sampled=num_sampled, num_classes=num_classes,
        num_true=num_true, sampled_values=sampled_values, remove_accidental_hits=remove_accidental_hits,
        partition_strategy=partition_strategy, seed=seed, subtract_log_q=subtract_log_q, sampler=sampler,
        sample_weight=sample_weight, reduction=reduction, out=out, n_threads=n_threads,
    )  # fmt: skip
