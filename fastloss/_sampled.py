"""Losses over a sample of the classes: sampled softmax, noise-contrastive estimation, softmax over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss import _inputs, _threads
from fastloss._gradients import Wants, differentiable
from fastloss._native import sampled as _kernels
from fastloss._reductions import Reduction
from fastloss._samplers import Candidates, FixedUnigramSampler, LogUniformSampler, _Sampler
from fastloss._sparse_rows import SparseRows

Array = NDArray[Any]
LOGITS = 1 << 22  # logits held at a time: their block stays in cache or near it
STRATEGIES = ("mod", "div")


class _Table:
    """Rows of one array, or of shards that are never joined."""

    def __init__(self, name: str, value: Any, ndim: int, strategy: str) -> None:
        self.arrays = _inputs.table_shards(name, value, ndim)
        self.n = _inputs.shard_sizes(name, self.arrays, strategy)
        self.row = self.arrays[0].shape[1:]
        self.dtype = self.arrays[0].dtype
        self._listed = type(value) if isinstance(value, (list, tuple)) else None
        self._strategy = strategy

    def locate(self, ids: Array) -> list[tuple[int, Array, Array | None]]:
        """For each shard: its number, rows in it, and their places among the ids (None: all)."""
        parts = len(self.arrays)
        if parts == 1:
            return [(0, ids, None)]
        if self._strategy == "mod":
            rows, shard = np.divmod(ids, parts)
        else:
            size, longer = divmod(self.n, parts)
            in_longer = ids < longer * (size + 1)
            shard = np.where(in_longer, ids // (size + 1), (ids - longer) // max(size, 1))
            rows = ids - shard * size - np.minimum(shard, longer)
        places = [np.flatnonzero(shard == k) for k in range(parts)]
        return [(k, rows[at], at) for k, at in enumerate(places) if at.size]

    def gather(self, ids: Array, dtype: np.dtype[Any]) -> Array:
        """The rows of these ids, in this dtype."""
        out = np.empty((len(ids), *(self.row or (1,))), dtype)
        for k, rows, places in self.locate(ids):
            _kernels.gather(_inputs.raw(self.arrays[k]), 1 if self.row else -1, rows, places, out)
        return out

    def gradient(self, ids: Array, values: Array) -> Any:
        """SparseRows for the table, or one for each shard, with its own row numbers, in the container it came in."""
        values = values.astype(self.dtype, copy=False)
        if self._listed is None:
            return SparseRows(ids, values, self.arrays[0].shape)
        parts = [SparseRows(ids[:0], values[:0], a.shape) for a in self.arrays]
        for k, rows, at in self.locate(ids):
            parts[k] = SparseRows(rows, values if at is None else values[at], self.arrays[k].shape)
        return self._listed(parts)


@dataclass
class _Logits:
    """What makes the logits of a batch: x times candidates, corrected."""

    x: Array  # [B, D], C-contiguous, in the dtype of the losses
    candidates: Array  # [K, D], likewise
    shift: Array  # [K, padded to whole lanes], added to each row
    true: Array  # float64 [B, T]; where diagonal, filled by the kernel
    slope: float = 1.0  # multiplies the products
    labels: Array | None = None  # [B, T], to be masked among ids
    ids: Array | None = None  # [K]
    heads: Array | None = None
    follows: Array | None = None
    diagonal: bool = False  # the label of row i is candidate i, other candidates of its id are masked


@dataclass
class _Slopes:
    """Gradients, as far as wanted."""

    true: Array  # float64 [B, T], to the true logits
    x: Array | None  # [B, D]
    candidates: Array | None  # [K, D]
    sums: Array | None  # float64 [K], to shift


def _padded(k: int) -> int:
    return int(-(-k // _kernels.LANES) * _kernels.LANES)


def _run(nce: bool, logits: _Logits, rows: Reduction, slopes: _Slopes | None, threads: int) -> None:
    """Losses into rows.loss, gradients into slopes; the logits of a block of rows are held at a time."""
    n, k = len(logits.x), len(logits.candidates)
    width = _padded(k)
    block = max(1, LOGITS // max(width, 1) // _kernels.CHUNK) * _kernels.CHUNK
    z = np.empty((min(block, n), width), logits.x.dtype)
    loss = np.empty(n, logits.x.dtype)
    scale = None if rows.scale is None else rows.scale.reshape(-1)
    for start in range(0, n, block):
        at = slice(start, min(start + block, n))
        x, part = logits.x[at], z[: at.stop - start]
        products = part[:, :k]
        np.matmul(x, logits.candidates.T, out=products)
        sums = None
        if slopes is not None and slopes.sums is not None:
            sums = np.zeros((-(-len(x) // _kernels.CHUNK), width))
        arguments = (
            nce, part, k, logits.slope, logits.shift, logits.true[at],
            None if logits.labels is None else logits.labels[at], logits.ids, logits.heads, logits.follows,
            start if logits.diagonal else -1, loss[at], None if slopes is None else slopes.true[at],
            None if scale is None else scale[at], rows.factor * logits.slope, sums,
        )  # fmt: skip

        def work(first: int, last: int, arguments: tuple[Any, ...] = arguments) -> None:
            _kernels.losses(*arguments, first, last)

        _threads.spread(work, len(x), _kernels.CHUNK, threads)
        if slopes is None:
            continue
        if sums is not None:
            slopes.sums += sums.sum(axis=0)[:k]
        if slopes.candidates is not None:
            if start == 0:
                np.matmul(products.T, x, out=slopes.candidates)
            else:
                slopes.candidates += products.T @ x
        if slopes.x is not None:
            np.matmul(products, logits.candidates, out=slopes.x[at])
    rows.loss[...] = loss


def _without_zeros(x: Array, scale: Array | None) -> Array:
    """A row that does not count must not reach a sum over rows, whatever it holds."""
    nothing = None if scale is None else np.flatnonzero(scale == 0)
    if nothing is None or not nothing.size:
        return x
    x = x.copy()
    x[nothing] = 0
    return x


def _contiguous(a: Array, dtype: np.dtype[Any]) -> Array:
    """For BLAS: a copy unless it lies so already."""
    return np.require(a, dtype, ["C", "A"])


def _buffer(wants: Wants, name: str, a: Array, apart: dict[str, Array | None]) -> Array:
    """Where the gradient to a dense argument goes."""
    apart = apart | {f"the buffer for {other}": b for other, b in wants.grads.items() if isinstance(b, np.ndarray)}
    buffer = _inputs.output("grad_out", wants.buffers.get(name), a.shape, a.dtype, apart, a)
    grad: Array = np.empty_like(a, subok=False) if buffer is None else buffer
    wants.grads[name] = grad
    return grad


def _target(buffer: Array, x: Array) -> Array:
    """The buffer itself where a product can be written to it, else an array of its own."""
    fits = buffer.dtype == x.dtype and buffer.flags.c_contiguous and buffer.flags.aligned
    return buffer if fits and not np.may_share_memory(buffer, x) else np.empty_like(x)


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
            raise _inputs.bad_count("true_expected_count", np.zeros(labels.shape), bad)
    return sampler.candidates(labels, num_sampled, True)


def _given(sampled_values: Any, num_sampled: int, shape: tuple[int, ...], n: int) -> Any:
    """sampled_values, checked."""
    if sampled_values is None:
        return None
    if not isinstance(sampled_values, (tuple, list)) or len(sampled_values) != 3:
        raise ValueError(
            "sampled_values must be (sampled_candidates, true_expected_count, sampled_expected_count), "
            f"got {type(sampled_values).__name__}"
        )
    of = ("sampled_candidates", "true_expected_count", "sampled_expected_count")
    names = [f"sampled_values[{k}] ({name})" for k, name in enumerate(of)]
    ids = _inputs.integers(names[0], sampled_values[0])
    _inputs.same_shape(names[0], ids, (num_sampled,), "[num_sampled]")
    true = _inputs.counts(names[1], sampled_values[1], shape)
    expected = _inputs.counts(names[2], sampled_values[2], (num_sampled,))
    return _inputs.ids(names[0], ids, n), true, expected


def _check_counts(candidates: Candidates) -> None:
    for name, counts in zip(candidates._fields[1:], candidates[1:], strict=True):
        bad = _kernels.bad_count(counts.reshape(-1))
        if bad >= 0:
            raise _inputs.bad_count(name, counts, bad)


def _sampled(
    wants: Wants | None,
    nce: bool,
    weights: Any,
    biases: Any,
    labels: ArrayLike,
    inputs: ArrayLike,
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
    x = _inputs.array("inputs", inputs)
    dtype = _inputs.loss_dtype("inputs", x.dtype)
    _inputs.choice("partition_strategy", partition_strategy, STRATEGIES)
    w = _Table("weights", weights, 2, partition_strategy)
    b = _Table("biases", biases, 1, partition_strategy)
    if x.ndim != 2 or x.shape[1:] != w.row:
        raise ValueError(f"inputs must have shape [batch, {w.row[0]}], as rows of weights, got {x.shape}")
    if b.n != w.n:
        raise ValueError(f"biases must have {w.n} entries, one for each row of weights, got {b.n}")
    num_true = _inputs.whole("num_true", num_true, 1)
    num_sampled = _inputs.whole("num_sampled", num_sampled, 1)
    if sampled_values is None:  # else TensorFlow does not look at it
        num_classes = _inputs.whole("num_classes", num_classes, 1, w.n)
    y = _inputs.integers("labels", labels)
    _inputs.same_shape("labels", y, (len(x), num_true), "[batch, num_true]")
    y = _inputs.ids("labels", y, w.n if sampled_values is not None else num_classes)
    given = _given(sampled_values, num_sampled, y.shape, w.n)
    _inputs.sampler(sampler, sampled_values, seed, num_classes, _Sampler)
    threads = _threads.resolve(n_threads, len(x) * num_sampled)

    apart: dict[str, Array | None] = {"inputs": x, "labels": y}
    apart |= {f"a shard of {name}": a for name, t in (("weights", w), ("biases", b)) for a in t.arrays}
    rows = Reduction(reduction, sample_weight, out, (len(x),), dtype, apart, None, wants, threads)
    d_inputs = None
    if wants is not None:
        _inputs.no_buffers(wants.buffers, ("weights", "biases"))
        if "inputs" in wants.wrt:
            d_inputs = _buffer(wants, "inputs", x, apart | {"out": rows.loss})
    if given is not None and subtract_log_q:
        _check_counts(Candidates(*given))
    drawn = _draw(y, num_sampled, num_classes, given, sampler, seed)
    if given is None and subtract_log_q:
        _check_counts(drawn)

    dense = _without_zeros(_contiguous(x, dtype), rows.scale)
    logits = _logits(dense, w, b, y, drawn, subtract_log_q, remove_accidental_hits)
    slopes = None
    if wants is not None:
        slopes = _wanted(wants.wrt, logits, d_inputs)
    _run(nce, logits, rows, slopes, threads)
    value = rows.value()
    if wants is not None and slopes is not None:
        _finish(wants, w, b, y, drawn.sampled_candidates, logits, slopes, rows.scale)
        if d_inputs is not None and d_inputs is not slopes.x:
            d_inputs[...] = slopes.x
    return value


def _logits(
    x: Array, w: _Table, b: _Table, labels: Array, drawn: Candidates, subtract_log_q: bool, remove_hits: bool
) -> _Logits:
    """Candidates gathered, true products made row by row of the table."""
    ids, k, flat = drawn.sampled_candidates, len(drawn.sampled_candidates), labels.reshape(-1)
    true = b.gather(flat, np.dtype(np.float64)).reshape(-1)
    offsets = np.zeros(_padded(k))
    offsets[:k] = b.gather(ids, np.dtype(np.float64)).reshape(-1)
    if subtract_log_q:
        _kernels.subtract_log(true, drawn.true_expected_count.reshape(-1))
        _kernels.subtract_log(offsets[:k], drawn.sampled_expected_count)
    for shard, rows, places in w.locate(flat):
        _kernels.dots(_inputs.raw(w.arrays[shard]), rows, places, labels.shape[1], x, true)
    logits = _Logits(x, w.gather(ids, x.dtype), offsets.astype(x.dtype), true.reshape(labels.shape))
    if remove_hits:
        logits.labels, logits.ids = labels, ids
        logits.heads = np.zeros(1 << max(3, (2 * k).bit_length()), np.int64)
        logits.follows = np.empty(k, np.int64)
        _kernels.index(ids, logits.heads, logits.follows)
    return logits


def _wanted(wrt: tuple[str, ...], logits: _Logits, d_inputs: Array | None) -> _Slopes:
    """Room for the gradients; that to the candidates is the end of the values for the table."""
    x, k = logits.x, len(logits.candidates)
    return _Slopes(
        np.empty(logits.true.shape),
        None if d_inputs is None else _target(d_inputs, x),
        np.zeros((logits.true.size + k, x.shape[1]), x.dtype)[logits.true.size :] if "weights" in wrt else None,
        np.zeros(k) if "biases" in wrt else None,
    )


def _finish(
    wants: Wants, w: _Table, b: _Table, labels: Array, ids: Array, logits: _Logits, slopes: _Slopes, scale: Array | None
) -> None:
    """The true classes' shares of the gradients."""
    flat, true, num_true = labels.reshape(-1), slopes.true.reshape(-1), labels.shape[1]
    touched = np.concatenate([flat, ids])
    if slopes.candidates is not None:
        values = slopes.candidates.base
        assert values is not None  # the candidates' gradients are its end
        _kernels.outer(true, num_true, logits.x, values[: true.size])
        wants.grads["weights"] = w.gradient(touched, values)
    if slopes.sums is not None:
        wants.grads["biases"] = b.gradient(touched, np.concatenate([true, slopes.sums]))
    if slopes.x is not None:
        for shard, rows, places in w.locate(flat):
            _kernels.add_true(_inputs.raw(w.arrays[shard]), rows, places, num_true, true, slopes.x)
        if scale is not None:
            slopes.x[scale.reshape(-1) == 0] = 0


@differentiable("inputs", "weights", "biases")
def sampled_softmax_loss(
    wants: Wants | None,
    /,
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
        Class biases; sharded or not, whatever the weights are.
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
        Of the default log-uniform sampler: whatever `numpy.random.default_rng` takes; for an integer the sample is
        TensorFlow's.
    subtract_log_q : bool, default True
        Whether to subtract the logarithms of the expected counts.
    sampler : a sampler, optional
        Takes the place of the default; goes on in its stream, and learns if it is a learned one.
    sample_weight : array_like, optional
        Multiplies the losses; broadcasts to [batch].  A row of weight 0 is exactly 0.
    reduction : {"none", "sum", "mean"}
        The mean divides by the sum of the sample weights.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call, beside those of NumPy's matrix product; the result's bits do not depend on it.
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
        wants, False, weights, biases, labels, inputs, num_sampled, num_classes, num_true, sampled_values,
        remove_accidental_hits, partition_strategy, seed, subtract_log_q, sampler, sample_weight, reduction, out,
        n_threads,
    )  # fmt: skip


@differentiable("inputs", "weights", "biases")
def nce_loss(
    wants: Wants | None,
    /,
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
        wants, True, weights, biases, labels, inputs, num_sampled, num_classes, num_true, sampled_values,
        remove_accidental_hits, partition_strategy, seed, subtract_log_q, sampler, sample_weight, reduction, out,
        n_threads,
    )  # fmt: skip


@differentiable("queries", "keys")
def in_batch_softmax_loss(
    wants: Wants | None,
    /,
    queries: ArrayLike,
    keys: ArrayLike,
    item_ids: ArrayLike | None = None,
    log_q: ArrayLike | None = None,
    temperature: float = 1.0,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: str = "none",
    out: Array | None = None,
    n_threads: int | None = None,
    name: str | None = None,
) -> Any:
    """Softmax over the keys of the batch: query i belongs to key i, the other keys are its negatives.

    With :math:`z_{ij} = q_i \\cdot k_j / \\tau - \\log Q_j` the loss of row i is, in nats,

    .. math:: \\log\\Bigl(e^{z_{ii}} + \\sum_{j: item_j \\ne item_i} e^{z_{ij}}\\Bigr) - z_{ii}.

    Parameters
    ----------
    queries : array_like, shape [batch, D]
        float16, bfloat16, float32 or float64.
    keys : array_like, shape [batch, D]
        Likewise.
    item_ids : array_like of int, shape [batch], optional
        What the keys stand for: another key of the same item as row i's is no negative of row i.  By default all keys
        are different items.
    log_q : array_like, shape [batch], optional
        Logarithms of the keys' probabilities of being in a batch, in nats: popular items are negatives more often, and
        subtracting this makes up for it.
    temperature : float, default 1
        Divides the products; positive.
    sample_weight : array_like, optional
        Multiplies the losses; broadcasts to [batch].  A row of weight 0 has loss 0, but its key is still a negative.
    reduction, out, n_threads, name
        As for `sampled_softmax_loss`.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [batch], or their sum or mean; the dtype of `queries`, float32 for half types.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit, the temperature is not positive, or a log_q is not finite; nothing has been written then.

    Notes
    -----
    Differentiable in `queries` and `keys`.  The logits of a block of rows are held at a time, never all of them.
    After Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations".

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> x = 3 * np.eye(3)
    >>> fl.in_batch_softmax_loss(x, x)
    array([0.00024679, 0.00024679, 0.00024679])
    >>> fl.in_batch_softmax_loss(x, x, item_ids=[7, 7, 8])
    array([0.0001234 , 0.0001234 , 0.00024679])
    """
    q, k = _inputs.array("queries", queries), _inputs.array("keys", keys)
    dtype = _inputs.loss_dtype("queries", q.dtype)
    _inputs.loss_dtype("keys", k.dtype)
    if q.ndim != 2:
        raise ValueError(f"queries must have shape [batch, D], got {q.shape}")
    _inputs.same_shape("keys", k, q.shape, "that of queries")
    n = len(q)
    items = None if item_ids is None else np.ascontiguousarray(_inputs.integers("item_ids", item_ids), np.int64)
    if items is not None:
        _inputs.same_shape("item_ids", items, (n,), "[batch]")
    shift = np.zeros(_padded(n), dtype)
    if log_q is not None:
        shift[:n] = -_inputs.finite("log_q", log_q, n)
    slope = 1 / _inputs.scalar("temperature", temperature, np.finfo(dtype).tiny, np.finfo(dtype).max)
    threads = _threads.resolve(n_threads, n * n)
    apart: dict[str, Array | None] = {"queries": q, "keys": k, "item_ids": items}
    rows = Reduction(reduction, sample_weight, out, (n,), dtype, apart, None, wants, threads)
    buffers: dict[str, Array] = {}
    if wants is not None:
        for wrt, a in (("queries", q), ("keys", k)):
            if wrt in wants.wrt:
                buffers[wrt] = _buffer(wants, wrt, a, apart | {"out": rows.loss})

    x, candidates = _without_zeros(_contiguous(q, dtype), rows.scale), _contiguous(k, dtype)
    logits = _Logits(x, candidates, shift, np.zeros((n, 1)), slope, ids=items, diagonal=True)
    slopes = None
    if wants is not None:
        slopes = _Slopes(
            np.empty((n, 1)),
            np.empty_like(x) if "queries" in buffers else None,
            np.zeros_like(x) if "keys" in buffers else None,
            None,
        )
    _run(False, logits, rows, slopes, threads)
    value = rows.value()
    if slopes is not None:
        if slopes.x is not None:
            if rows.scale is not None:
                slopes.x[rows.scale.reshape(-1) == 0] = 0
            buffers["queries"][...] = slopes.x
        if slopes.candidates is not None:
            buffers["keys"][...] = slopes.candidates
    return value
