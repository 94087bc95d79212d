"""Losses of logits that are matrix products: made tile by tile, read, and turned into gradients while they are near."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastloss import _inputs, _threads
from fastloss._gradients import Wants
from fastloss._native import sampled as _kernels
from fastloss._reductions import Reduction

Array = NDArray[Any]
LOGITS = 1 << 22  # softmax: logits held at a time, of whole rows
TILE = 1 << 20  # NCE: logits held at a time; less is faster on one thread, more on several


class Logits(NamedTuple):
    """What makes the logits of a batch: x times candidates, corrected."""

    x: Array  # [B, D], C-contiguous, in the dtype of the losses
    k: int
    candidates: Callable[[slice], Array]  # some of [K, D], likewise
    shift: Array  # [padded(K)], added to each row
    true: Array  # float64 [B, T]; where diagonal, filled by the kernel
    hits: tuple[Array | None, Array | None, Array | None, Array | None]  # labels to be masked among ids; heads, follows
    slope: float = 1.0  # multiplies the products
    diagonal: bool = False  # the label of row i is candidate i, other candidates of its id are masked


class Slopes(NamedTuple):
    """Gradients, as far as wanted."""

    true: Array  # float64 [B, T], to the true logits
    x: Array | None  # [B, D]
    candidates: Array | None  # [K, D]
    sums: Array | None  # float64 [K], zeroed, to shift


def padded(k: int) -> int:
    """Columns in whole lanes; rows that are pages apart would share their place in the cache."""
    width = int(-(-k // _kernels.LANES) * _kernels.LANES)
    return width if width % 1024 else width + _kernels.LANES


@np.errstate(all="ignore")  # an infinite input is no error, its row says so
def softmax(logits: Logits, rows: Reduction, slopes: Slopes | None, threads: int) -> None:
    """Losses into rows.loss, gradients into slopes; the logits of a block of rows are held at a time."""
    n, k = len(logits.x), logits.k
    candidates = logits.candidates(slice(0, k))
    width = padded(k)
    block = max(1, LOGITS // max(width, 1) // _kernels.CHUNK) * _kernels.CHUNK
    z = np.empty((min(block, n), width), logits.x.dtype)
    loss = np.empty(n, logits.x.dtype)
    scale = None if rows.scale is None else rows.scale.reshape(-1)
    for start in range(0, n, block):
        at = slice(start, min(start + block, n))
        part = z[: at.stop - start]
        np.matmul(logits.x[at], candidates.T, out=part[:, :k])
        sums = _sums(slopes, part)
        labels, *found = logits.hits
        arguments = (
            part, k, logits.slope, logits.shift, logits.true[at], None if labels is None else labels[at], *found,
            start if logits.diagonal else -1, loss[at], None if slopes is None else slopes.true[at],
            None if scale is None else scale[at], rows.factor * logits.slope, sums,
        )  # fmt: skip
        _spread(_kernels.softmax, arguments, part, threads)
        if slopes is not None:
            _collect(logits.x, candidates, slopes, part[:, :k], sums, at, slice(0, k))
    rows.loss[...] = loss


@np.errstate(all="ignore")
def nce(logits: Logits, rows: Reduction, slopes: Slopes | None, threads: int) -> None:
    """The same for noise-contrastive estimation, whose rows need not be whole."""
    n, k = len(logits.x), logits.k
    scale = None if rows.scale is None else rows.scale.reshape(-1)
    loss = np.empty(n)
    _kernels.nce_targets(logits.true, loss, None if slopes is None else slopes.true, scale, rows.factor)
    labels, *found = logits.hits
    width = min(_kernels.COLUMNS, padded(k))
    block = max(1, TILE // width // _kernels.CHUNK) * _kernels.CHUNK
    memory = np.empty(min(n, block) * width, logits.x.dtype)
    for first in range(0, k, _kernels.COLUMNS):
        columns = slice(first, min(first + _kernels.COLUMNS, k))
        candidates = logits.candidates(columns)
        for start in range(0, n, block):
            at = slice(start, min(start + block, n))
            shape = at.stop - start, padded(len(candidates))
            part = memory[: shape[0] * shape[1]].reshape(shape)
            products = part[:, : len(candidates)]
            np.matmul(logits.x[at], candidates.T, out=products)
            sums = _sums(slopes, part)
            arguments = (
                part, first, len(candidates), logits.shift, None if labels is None else labels[at], *found,
                loss[at], slopes is not None, None if scale is None else scale[at], rows.factor, sums,
            )  # fmt: skip
            _spread(_kernels.nce, arguments, part, threads)
            if slopes is not None:
                _collect(logits.x, candidates, slopes, products, sums, at, columns)
    rows.loss[...] = loss


def _spread(kernel: Any, arguments: tuple[Any, ...], z: Array, threads: int) -> None:
    _threads.spread(lambda first, last: kernel(*arguments, first, last), len(z), _kernels.CHUNK, threads, z.size)


def _sums(slopes: Slopes | None, z: Array) -> Array | None:
    """Room for the column sums of each chunk of rows."""
    if slopes is None or slopes.sums is None:
        return None
    return np.zeros((-(-len(z) // _kernels.CHUNK), z.shape[1]))


def _collect(
    x: Array, candidates: Array, slopes: Slopes, g: Array, sums: Array | None, rows: slice, columns: slice
) -> None:
    """What the gradients to the logits of these rows and columns, and of these candidates, add to the others."""
    if slopes.sums is not None and sums is not None:
        slopes.sums[columns] += sums.sum(axis=0)[: g.shape[1]]
    if slopes.candidates is not None:
        _add(g.T, x[rows], slopes.candidates[columns], rows.start > 0)
    if slopes.x is not None:
        _add(g, candidates, slopes.x[rows], columns.start > 0)


def _add(a: Array, b: Array, out: Array, more: bool) -> None:
    """out = a b, or += where there is more already."""
    if more:
        out += a @ b
    else:
        np.matmul(a, b, out=out)


def without_zeros(x: Array, scale: Array | None) -> Array:
    """A row that does not count must not reach a sum over rows, whatever it holds."""
    nothing = None if scale is None else np.flatnonzero(scale == 0)
    if nothing is None or not nothing.size:
        return x
    x = x.copy()
    x[nothing] = 0
    return x


def contiguous(a: Array, dtype: np.dtype[Any]) -> Array:
    """For BLAS: a copy unless it lies so already."""
    return np.require(a, dtype, ["C", "A"])


def buffer_of(wants: Wants, name: str, a: Array, apart: dict[str, Array | None]) -> Array:
    """Where the gradient to a dense argument goes."""
    apart = apart | {f"the buffer for {other}": b for other, b in wants.grads.items() if isinstance(b, np.ndarray)}
    buffer = _inputs.output("grad_out", wants.buffers.get(name), a.shape, a.dtype, apart, a)
    grad: Array = np.empty_like(a, subok=False) if buffer is None else buffer
    wants.grads[name] = grad
    return grad
