"""Losses of logits that are matrix products: made slab by slab, read, and turned into gradients while they are near."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastloss._core import memory as _memory
from fastloss._core.reductions import Reduction
from fastloss._native import sampled as _kernels

Array = NDArray[Any]
KEPT = 1 << 22  # gradients to logits held at a time, of whole rows, for that to the candidates


class Hits(NamedTuple):
    """Candidates to be masked in a row: its labels or, where `diagonal`, others of its own candidate's id."""

    ids: Array | None = None  # of the candidates
    labels: Array | None = None  # [B, T]
    heads: Array | None = None  # where the labels' ids stand: see the kernel's index
    follows: Array | None = None


class Logits(NamedTuple):
    """What makes the logits of a batch: x times candidates, corrected."""

    x: Array  # [B, D], C-contiguous, in the dtype of the losses
    k: int
    candidates: Callable[[slice], Array]  # some of [K, D], likewise
    shift: Array  # see shifts(K), added to each row
    true: Array  # float64 [B, T]; where diagonal, filled by the kernel
    hits: Hits
    slope: float = 1.0  # multiplies the products
    diagonal: bool = False  # the label of row i is candidate i, other candidates of its id are masked


class Slopes(NamedTuple):
    """Gradients, as far as wanted."""

    true: Array  # float64 [B, T], to the true logits
    x: Array | None  # [B, D]
    candidates: Array | None  # [K, D]
    sums: Array | None  # float64 [K], zeroed, to shift


def shifts(k: int, dtype: np.dtype[Any]) -> Array:
    """Zeros to be added to a row of k logits, as long as the kernels keep it."""
    return np.zeros(_kernels.padded(k), dtype)


@np.errstate(all="ignore")  # an infinite input is no error, its row says so
def losses(nce: bool, logits: Logits, rows: Reduction, slopes: Slopes | None, threads: int) -> None:
    """Losses into rows.loss, gradients into slopes: of noise-contrastive estimation, or of the softmax."""
    x, k = logits.x, logits.k
    n, d = x.shape
    to_true, to_x, to_candidates, to_shift = slopes or (None, None, None, None)
    scale = None if rows.scale is None else rows.scale.reshape(-1)
    loss = _memory.empty(n)
    if nce:
        _kernels.nce_targets(logits.true, loss, to_true, scale, rows.factor)
    width = _kernels.padded(k)
    block, slabs, *parts = _kernels.sizes(
        x.dtype.itemsize, n, k, d, to_x=to_x is not None, to_candidates=to_candidates is not None, most=KEPT
    )
    by_rows, by_columns, kept, inputs = _memory.pieces(x.dtype, *parts)
    some = _kernels.GATHERED
    for first in range(0, k, some):
        candidates = logits.candidates(slice(first, min(first + some, k)))
        _kernels.pack_candidates(candidates, first, k, by_rows, by_columns)
    hits = logits.hits
    counting = x if to_candidates is None else without_zeros(x, rows)
    for start in range(0, n, block):
        at = slice(start, min(start + block, n))
        sums = None if to_shift is None else np.zeros((1 + slabs, width))  # what there is, and each slab's
        columns = None if sums is None else sums[1:]
        _kernels.losses(
            x[at],
            logits.true[at],
            loss[at],
            threads,
            nce=nce,
            k=k,
            stride=width,
            rows=by_rows,
            columns=by_columns,
            slope=logits.slope,
            shift=logits.shift,
            labels=None if hits.labels is None else hits.labels[at],
            ids=hits.ids,
            heads=hits.heads,
            follows=hits.follows,
            diagonal=start if logits.diagonal else -1,
            scale=None if scale is None else scale[at],
            factor=rows.factor * logits.slope,
            true_grad=None if to_true is None else to_true[at],
            x_grad=None if to_x is None else to_x[at],
            slopes=kept,
            sums=columns,
        )
        if to_shift is not None and sums is not None:
            sums[0, :k] = to_shift
            to_shift[...] = sums.sum(axis=0)[:k]  # slab by slab, whatever a block is
        if to_candidates is not None:
            _kernels.table_gradient(kept, counting[at], inputs, to_candidates, start > 0, threads)
    rows.loss[...] = loss


def without_zeros(x: Array, rows: Reduction) -> Array:
    """A row that does not count must not reach a sum over rows, whatever it holds."""
    return clear_zeros(x.copy(), rows) if _zeros(rows).size else x


def clear_zeros(grad: Array, rows: Reduction) -> Array:
    """Nor has it a gradient, whatever the candidates hold."""
    grad[_zeros(rows)] = 0
    return grad


def _zeros(rows: Reduction) -> Array:
    """Rows whose gradients are multiplied by 0."""
    if rows.factor == 0 or rows.scale is None:
        return np.arange(len(rows.loss) if rows.factor == 0 else 0)
    return np.flatnonzero(rows.scale == 0)


@np.errstate(over="ignore")
def contiguous(a: Array, dtype: np.dtype[Any]) -> Array:
    """As the kernels take it: a copy unless it lies so already."""
    return np.require(a, dtype, ["C", "A"])
