"""Softmax over the batch, for two towers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core import threads as _threads
from fastloss._core.gradients import Wants, differentiable
from fastloss._core.reductions import Reduction
from fastloss.losses.drivers.sampled_logits import Hits, Logits, Slopes, clear_zeros, contiguous, losses, shifts

Array = NDArray[Any]


@differentiable("queries", "keys")
def in_batch_softmax_loss(
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
    _wants: Wants | None = None,
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
        The items that the keys stand for: a key of the same item as key i is not a negative of row i.  By default all
        keys are different items.
    log_q : array_like, shape [batch], optional
        Logarithms of the keys' probabilities of being in a batch, in nats.  Popular items are negatives more often;
        subtracting these corrects for it.
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
    Differentiable in `queries` and `keys`.  Only the logits of one block of rows are held at a time.
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
    q, k = check.array("queries", queries), check.array("keys", keys)
    dtype = check.loss_dtype("queries", q.dtype)
    check.loss_dtype("keys", k.dtype)
    check.matrix("queries", q, "batch", "D")
    check.same_shape("keys", k, q.shape, "that of queries")
    n = len(q)
    items = None
    if item_ids is not None:
        items = check.same_shape("item_ids", check.integers("item_ids", item_ids), (n,), "[batch]")
        items = check.packed(items, np.int64)
    shift = shifts(n, dtype)
    if log_q is not None:
        with np.errstate(over="ignore"):
            shift[:n] = -check.finite("log_q", log_q, n)
    slope = 1 / check.scalar("temperature", temperature, float(np.finfo(dtype).tiny), float(np.finfo(dtype).max))
    threads = _threads.resolve(n_threads, n * n)
    apart: dict[str, Array | None] = {"queries": q, "keys": k, "item_ids": items}
    rows = Reduction(reduction, sample_weight, out, (n,), dtype, apart, wants=_wants, n_threads=threads)
    d_queries = d_keys = None
    if _wants is not None:
        others = apart | {"out": rows.loss}
        d_queries = outputs.gradient(_wants, "queries", q, others, in_place=True)
        d_keys = outputs.gradient(_wants, "keys", k, others, in_place=True)

    x, candidates = contiguous(q, dtype), contiguous(k, dtype)
    logits = Logits(x, n, candidates.__getitem__, shift, np.zeros((n, 1)), Hits(items), slope, diagonal=True)
    slopes = None
    if _wants is not None:
        slopes = Slopes(
            _memory.empty((n, 1)),
            _memory.empty_like(x) if d_queries is not None else None,
            np.zeros_like(x) if d_keys is not None else None,
            None,
        )
    losses(False, logits, rows, slopes, threads)
    value = rows.value()
    if slopes is not None:
        if d_queries is not None and slopes.x is not None:
            outputs.narrow(d_queries, clear_zeros(slopes.x, rows))
        if d_keys is not None:
            outputs.narrow(d_keys, slopes.candidates)
    return value
