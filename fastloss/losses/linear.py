"""Cross entropy of a linear layer over a large vocabulary: its logits are never stored."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Wants, differentiable
from fastloss._core.reductions import Reduction
from fastloss._native import linear as _kernels

Array = NDArray[Any]

BLOCK_BYTES = 3 << 18  # of the table, packed at a time
DEFAULT_MEMORY = 64 << 20


class LinearStats(NamedTuple):
    """Statistics of each row that `linear_cross_entropy` returns with ``return_stats=True``.

    Attributes
    ----------
    lse : ndarray, shape [...]
        Log-sum-exp of the row's logits.
    log_prob : ndarray, shape [...] or [..., k]
        Log-probability of the label, or of each of the k best; 0 in ignored rows.
    entropy : ndarray, shape [...]
        Of the predicted distribution, in nats.
    argmax : ndarray of int64, shape [...]
        The class of the largest logit, the first of several.
    correct : ndarray of bool, shape [...]
        Whether that class is the label, or the best of the k best.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> table = np.array([[0.0, 1.0], [2.0, 0.0]])
    >>> _, stats = fl.linear_cross_entropy(inputs=np.eye(2), weights=table, labels=[1, 1], return_stats=True)
    >>> stats.correct
    array([ True, False])
    """

    lse: Array
    log_prob: Array
    entropy: Array
    argmax: Array
    correct: Array


class _Table:
    """The rows of the table, in one array or several."""

    def __init__(self, weights: Any, biases: ArrayLike | None, inputs: Array) -> None:
        self.many, self.shards = check.shards("weights", weights, inputs.shape[-1])
        self.names = [f"weights[{i}]" for i in range(len(self.shards))] if self.many else ["weights"]
        self.first = np.cumsum([0] + [len(a) for a in self.shards]).tolist()
        self.n_classes = int(self.first[-1])
        self.biases = None if biases is None else check.numbers("biases", biases)
        self._bias = check.vector("biases", self.biases, self.n_classes)
        dtypes = [check.loss_dtype(name, a.dtype) for name, a in zip(self.names, self.shards, strict=True)]
        self.dtype = max([check.loss_dtype("inputs", inputs.dtype), *dtypes], key=lambda dtype: dtype.itemsize)

    def parts(self) -> Iterator[tuple[int, slice, Array, Array | None]]:
        """Number, classes, rows and biases of the shards that have rows, as the kernels take them."""
        for i, a in enumerate(self.shards):
            if len(a):
                classes = slice(self.first[i], self.first[i + 1])
                yield i, classes, check.raw(a), None if self._bias is None else self._bias[classes]


class _Blocks:
    """Sizes of blocks, and scratch for one of them."""

    def __init__(
        self, table: _Table, n: int, d: int, max_memory: int | None, *, dx: bool = False,
        dw: list[Array] | None = None, db: bool = False,
    ) -> None:  # fmt: skip
        size = table.dtype.itemsize
        self.wide = size == 8
        lanes, panel = _kernels.lanes(self.wide), _kernels.PANEL
        whole = dw is not None and any(a.dtype.itemsize < size for a in dw)
        block = min(960, max(panel, BLOCK_BYTES // (size * max(1, d)) // panel * panel))
        self.block = min(block, -(-max(1, table.n_classes) // _kernels.TILE) * _kernels.TILE)
        sizes = functools.partial(_kernels.sizes, self.wide, d, self.block, dx=dx, dw=dw is not None)
        fixed = size * sum(sizes(0, 0))
        row = size * sum(sizes(1, 0)) - fixed
        all_rows = -(-n // lanes) * lanes
        least = min(all_rows, _kernels.ROW_STEP)
        self.pitch = table.n_classes + _kernels.TILE
        if max_memory is None:  # a third of what others need, and few enough passes over the table and its gradient
            usual = (4 if n >= 2048 else 3) * least
            max_memory = max(DEFAULT_MEMORY, fixed + usual * (row + size * self.pitch))
        self.rows = self._fit(max_memory - fixed, row + size * self.pitch, all_rows)
        self.kept = (dx or dw is not None or db) and self.rows >= least and not (whole and self.rows < all_rows)
        if not self.kept:
            self.pitch = self.block
            room = self._fit(max_memory - fixed, row + size * self.pitch, all_rows)
            self.rows = all_rows if whole else max(least, room)
        self.rotation = self._rotation(dw[0], table.dtype) if dw and d % lanes == 0 else 0
        scratch = _memory.pieces(table.dtype, *sizes(self.rows, self.pitch))
        self.z, self.wp, self.xp, inputs_sums, inputs_rows, table_sums = [a.view(np.uint8) for a in scratch]
        self.dx = inputs_sums if dx else None
        self.xr = None if dw is None else inputs_rows
        self.dw = None if dw is None else table_sums

    @staticmethod
    def _fit(memory: int, row: int, rows: int) -> int:
        """Rows that fit, as many in each block but the last, a multiple of ROW_STEP."""
        step = _kernels.ROW_STEP
        most = max(0, memory) // row // step * step
        if most < rows:
            return int(-(-rows // -(-rows // most) // step) * step) if most else 0
        return rows

    @staticmethod
    def _rotation(dw: Array, dtype: np.dtype[Any]) -> int:
        """By how many columns the rows of a gradient stored like the sums start after a cache line."""
        like = dw.dtype == dtype and dw.strides[1] == dtype.itemsize and dw.strides[0] % 64 == 0
        return int(dw.__array_interface__["data"][0] % 64 // dtype.itemsize) if like else 0


class _Targets:
    """What every class of every row is worth: labels each, all classes by smoothing, the others together."""

    @np.errstate(all="ignore")  # infinite weights are no error, their rows say so
    def __init__(self, labels: check.ClassLabels, n_classes: int, class_weight: Array | None, smoothing: float) -> None:
        self.other = self.row_weight = self.smooth = None
        marked = (labels.ids >= 0).astype(np.float64) if labels.probs is None else labels.probs
        if labels.tail == "renormalize":
            total = marked.sum(-1, keepdims=True)
            marked = np.divide(marked, total, out=np.zeros_like(marked), where=total != 0)
        elif labels.tail == "other":
            self.other = np.maximum(0.0, 1.0 - marked.sum(-1))
        if class_weight is not None:
            marked = marked * class_weight[np.maximum(labels.ids, 0)]
            self.row_weight = marked.sum(-1)
        elif labels.some_ignored:
            self.row_weight = marked[:, 0].copy()
        if smoothing != 0:
            marked = marked * (1 - smoothing)
            share = np.ones(n_classes) if class_weight is None else class_weight
            self.smooth = share * (smoothing / n_classes)
        self.smooth_sum = 0.0 if self.smooth is None else math.fsum(self.smooth)
        self.marked = np.ascontiguousarray(marked)


class _Wanted:
    """Where gradients go."""

    def __init__(self, wants: Wants, inputs: Array, table: _Table, apart: dict[str, Array | None]) -> None:
        self.inputs: Array | None = None
        self.biases: Array | None = None
        self.weights: list[Array] | None = None
        for name in wants.wrt:
            if name == "inputs":
                self.inputs = outputs.gradient(wants, name, inputs, apart, in_place=True)
            elif name == "biases":
                biases = check.given(name, table.biases, " to have a gradient", ValueError)
                self.biases = outputs.gradient(wants, name, biases, apart)
            elif table.many:
                self.weights = outputs.gradients(wants, name, table.shards, apart)
            elif (only := outputs.gradient(wants, name, table.shards[0], apart)) is not None:
                self.weights = [only]


class _Call:
    """One pass over rows x classes, block by block."""

    def __init__(
        self, inputs: Array, table: _Table, labels: NDArray[np.int64], softcap: float, temperature: float, threads: int
    ) -> None:
        self.inputs, self.table, self.labels = inputs, table, labels
        self.softcap, self.temperature, self.threads = softcap, temperature, threads
        self.n = len(labels)
        self.d = inputs.shape[-1]

    def sums(self, blocks: _Blocks, rows: slice, smooth: Array | None, stats: bool, exact_others: bool = False) -> Any:
        """The rows' sums over all classes; `exact_others`: labels do not lower the others' sum to nothing."""
        labels = self.labels[rows]
        block = _kernels.RowBlock(
            blocks.wide,
            rows.start,
            self.d,
            self.threads,
            labels=labels,
            label_logits=_memory.empty(labels.shape),
            sums=_memory.empty(_kernels.sums_shape(blocks.wide, len(labels))),
            block=blocks.block,
            pitch=blocks.pitch,
            rotation=blocks.rotation,
            kept=blocks.kept,
            softcap=self.softcap,
            temperature=self.temperature,
            smooth=smooth,
            stats=stats,
            exact_others=exact_others,
            xp=blocks.xp,
            xr=blocks.xr,
            z=blocks.z,
            dx=blocks.dx,
            wp=blocks.wp,
            dw=blocks.dw,
        )
        block.pack(check.raw(self.inputs), self.inputs.ndim - 1)
        for _, classes, weights, bias in self.table.parts():
            block.forward(weights, bias, classes.start)
        return block

    def losses(self, rows: Reduction, targets: _Targets, z_loss: float, wanted: _Wanted | None,
               stats: LinearStats | None, memory: int | None) -> None:  # fmt: skip
        """Fills `rows.loss`, gradients and statistics."""
        dx, dw, db = (None, None, None) if wanted is None else (wanted.inputs, wanted.weights, wanted.biases)
        blocks = _Blocks(self.table, self.n, self.d, memory, dx=dx is not None, dw=dw, db=db is not None)
        loss = _memory.empty(self.n)
        bias_sums = None if db is None else np.zeros(self.table.n_classes)
        for a in [] if dw is None or self.n else dw:
            a[...] = 0
        for start in range(0, self.n, max(1, blocks.rows)):
            at = slice(start, min(start + blocks.rows, self.n))
            block = self.sums(blocks, at, targets.smooth, stats is not None, targets.other is not None)
            block.finish(
                targets.marked[at],
                loss[at],
                other=_part(targets.other, at),
                smooth_sum=targets.smooth_sum,
                z_loss=z_loss,
                weight=_part(targets.row_weight, at),
                scale=_part(None if rows.scale is None else rows.scale.reshape(-1), at),
                factor=rows.factor,
                label_slopes=None if wanted is None else _memory.empty(targets.marked[at].shape),
                lse=None if stats is None else stats.lse[at],
                log_prob=None if stats is None else stats.log_prob[at],
                entropy=None if stats is None else stats.entropy[at],
                argmax=None if stats is None else stats.argmax[at],
            )
            if wanted is None:
                continue
            if blocks.dx is not None:
                blocks.dx.fill(0)
            for i, classes, weights, bias in self.table.parts():
                block.backward(
                    weights,
                    bias,
                    classes.start,
                    weights_grad=None if dw is None else check.raw(dw[i]),
                    bias_grad=None if bias_sums is None else bias_sums[classes],
                    first_rows=start == 0,
                )
            if dx is not None:
                block.unpack(check.raw(dx), dx.ndim - 1)
        outputs.narrow(rows.loss, loss.reshape(rows.loss.shape))
        if db is not None:
            outputs.narrow(db, bias_sums)


def _part(a: Array | None, rows: slice) -> Array | None:
    return None if a is None else a[rows]


@differentiable("inputs", "weights", "biases")
def linear_cross_entropy(
    *,
    inputs: ArrayLike,
    weights: ArrayLike | Sequence[Array],
    labels: ArrayLike | tuple[ArrayLike, ArrayLike],
    biases: ArrayLike | None = None,
    ignore_index: int | None = None,
    tail: str = "drop",
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "none",
    return_stats: bool = False,
    max_memory: int | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
    name: str | None = None,
    _wants: Wants | None = None,
) -> Any:
    """Softmax cross entropy of a linear layer's logits, which are never stored.

    Equals ``sparse_softmax_cross_entropy_with_logits(labels=labels, logits=inputs @ weights.T + biases)``; for a row
    of logits :math:`x = W h + b` with label :math:`y` that is, in nats,

    .. math:: \\log \\sum_j e^{x_j} - x_y = \\operatorname{log1p} \\frac{\\sum_{j \\ne y} e^{x_j}}{e^{x_y}},

    computed in the second form, block by block of rows and classes.

    Parameters
    ----------
    inputs : array_like, shape [..., D]
        Features of the rows: float16, bfloat16, float32 or float64, any memory layout.
    weights : array_like, shape [C, D], or list of arrays, shapes [C_i, D]
        The table, a row for each class, in the same dtypes; or several arrays that hold its rows, for example memory
        maps, which are read in place.  Half types are widened block by block.
    labels : array_like of int, shape [...], or pair of array_like, both of shape [..., k]
        Class indices in ``[0, C)``; or, for distillation, a tuple of the k best classes of each row and their
        probabilities.
    biases : array_like, shape [C], optional
        Added to the logits; ``-inf`` excludes a class.
    ignore_index : int, optional
        Rows with this label have loss and gradient 0 and do not count in the mean.
    tail : {"drop", "renormalize", "other"}
        What to do with the probability that the k best leave: drop it; divide the k best by their sum; or give it to
        all other classes together, as one more class (then without `label_smoothing` and `class_weight`).
    softcap : float, optional
        Logits become ``softcap * tanh(logits / softcap)``.
    temperature : float, default 1
        Logits, capped or not, are divided by it.
    z_loss : float, default 0
        Adds ``z_loss * lse**2`` to the loss, lse the log-sum-exp; the row's class weight multiplies it too.
    sample_weight : array_like of real, optional
        Multiplies the losses; broadcasts to their shape.  A row of weight 0 is exactly 0.
    class_weight : array_like, shape [C], optional
        Multiplies each class's term; the weights are weights in the mean.
    label_smoothing : float, default 0
        In [0, 1]: mixes the labels with the uniform distribution.
    reduction : {"none", "sum", "mean"}
        The mean divides by the sum of the weights of the rows that count; it is 0 if none does.
    return_stats : bool, default False
        Whether to also return `LinearStats` of the rows, from the same pass.
    max_memory : int, optional
        Bytes of scratch; see Notes.
    out : ndarray, optional
        Where to write the result, of its shape and dtype.
    n_threads : int, optional
        Threads of this call; the result's bits do not depend on it.
    name
        Ignored.

    Returns
    -------
    ndarray or scalar
        One loss a row, shape [...], or their sum or mean; float64 if `inputs` or `weights` are, else float32.
    LinearStats
        With ``return_stats=True`` the second of a pair; ``value_and_grad`` then gives ``((loss, stats), gradient)``.

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If shapes do not fit, a label or option is out of range; nothing has been written then.

    Notes
    -----
    Differentiable in `inputs`, `weights` (a list of gradients for a list) and `biases`; only what is asked for is
    computed.  The products are the package's own, in the dtype of the result.  Bits do not depend on threads, and those
    of the loss and of the gradient to `inputs` not on the other rows; where a list of tables is cut can change the last
    bits.

    With s bytes a number, B = min(C, max(96, min(960, 0.75 MiB / (s D)))) classes a block, in whole 96s unless that
    is C, and R rows a block, the scratch is ``s R (C + 3 D) + 2 s B D`` bytes (D rounded up to a multiple of 132 in
    places) where gradients are wanted, and ``s (R (B + D) + B D)`` for the loss alone, and some numbers for each
    row and class.  R is as large as `max_memory` allows, a multiple of 128; where it does not allow 128, logits are
    computed a second time for the gradients, and the first C is B.  The default is 64 MiB, or what 384 rows need,
    512 where there are 2048 or more; it is freed after the call.  A gradient to a table of half type that would take
    more than one block of rows is computed in one block of all rows, whatever that needs, because its sums are kept in
    float32.

    After ``tf.nn.sparse_softmax_cross_entropy_with_logits``; `z_loss` is that of PaLM (arXiv:2204.02311).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> table = np.float32([[20, 0], [0, 1], [0, 2]])
    >>> fl.linear_cross_entropy(inputs=np.float32([[1, 0], [0, 1]]), weights=table, labels=[0, 2])
    array([4.1223074e-09, 4.0760595e-01], dtype=float32)
    """
    x = check.features("inputs", inputs)
    table = _Table(weights, biases, x)
    shape, n_classes = x.shape[:-1], table.n_classes
    n = math.prod(shape)
    threads = _threads.resolve(n_threads, n * n_classes)
    y = check.class_labels("labels", labels, shape, n_classes, check.ignored(ignore_index), tail)
    smoothing = check.scalar("label_smoothing", label_smoothing, 0, 1)
    class_weights = check.vector("class_weight", class_weight, n_classes)
    check.tail_alone(y.tail, smoothing, class_weights)
    cap = 0.0 if softcap is None else check.positive("softcap", softcap)
    temperature = check.positive("temperature", temperature)
    z_loss = check.scalar("z_loss", z_loss, 0, math.inf)
    memory = check.memory_limit(max_memory)
    wants_stats = check.flag("return_stats", return_stats)
    targets = _Targets(y, n_classes, class_weights, smoothing)
    apart = {
        "inputs": x,
        "labels": y.given,
        "biases": table.biases,
        **dict(zip(table.names, table.shards, strict=True)),
    }
    row_weight = None if targets.row_weight is None else targets.row_weight.reshape(shape)
    rows = Reduction(
        reduction, sample_weight, out, shape, table.dtype, apart, row_weight=row_weight, wants=_wants, n_threads=threads
    )
    wanted = None if _wants is None else _Wanted(_wants, x, table, {**apart, "out": rows.loss})
    stats = None
    if wants_stats:
        log_prob = _memory.empty(y.ids.shape)
        stats = LinearStats(_memory.empty(n), log_prob, _memory.empty(n), _memory.empty(n, np.int64), _memory.empty(0))
    _Call(x, table, y.ids, cap, temperature, threads).losses(rows, targets, z_loss, wanted, stats, memory)
    value = rows.value()
    return value if stats is None else (value, _shaped(stats, y, shape, table.dtype))


@np.errstate(over="ignore")
def _shaped(stats: LinearStats, labels: check.ClassLabels, shape: tuple[int, ...], dtype: np.dtype[Any]) -> LinearStats:
    """The statistics as the caller gets them."""
    ids = labels.ids
    best = ids[:, 0] if labels.probs is None else np.take_along_axis(ids, labels.probs.argmax(-1)[:, None], -1)[:, 0]
    log_prob = stats.log_prob.reshape(shape if labels.probs is None else (*shape, ids.shape[1]))
    return LinearStats(
        stats.lse.reshape(shape).astype(dtype), log_prob.astype(dtype), stats.entropy.reshape(shape).astype(dtype),
        stats.argmax.reshape(shape), (stats.argmax == best).reshape(shape),
    )  # fmt: skip
