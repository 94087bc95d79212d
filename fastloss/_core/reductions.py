"""The one place that knows sample_weight, reduction and denominators.

One rule: the mean is the sum of weighted losses over the sum of the weights of the rows that count.  A row's weight is
its sample weight times its class weight; ignored rows weigh 0; if nothing counts the mean is 0.  A weight of exactly 0
makes a row's loss and gradient exactly 0, whatever the row holds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import outputs
from fastloss._core.gradients import Wants
from fastloss._native import reductions

Array = NDArray[Any]


def reduced(kind: str, losses: Array, n_threads: int) -> Any:
    """The sum or the mean of losses without weights."""
    total = reductions.weighted_sum(losses, None, n_threads)
    if kind == "mean":
        total = total / losses.size if losses.size else 0.0
    return outputs.number(total, losses.dtype, None)


class Reduction:
    """How the losses of one call become its value, and the factor of each row's gradient.

    Parameters
    ----------
    shape, dtype
        Of the losses, one for each row.
    row_weight : float64 array of that shape, optional
        The rows' class weights (already in their losses), 0 where ignored; ones by default.  Only the mean looks at it.
    apart : dict
        Inputs that `out` must not overlap, by name.
    """

    __slots__ = ("_direct", "_factor", "_kind", "_out", "_row_weight", "_threads", "_weight", "loss", "scale", "total")

    def __init__(
        self,
        reduction: str,
        sample_weight: ArrayLike | None,
        out: Array | None,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        apart: dict[str, Array | None],
        *,
        row_weight: Array | None = None,
        wants: Wants | None = None,
        n_threads: int = 1,
    ) -> None:
        self._kind = reduction = check.kind(reduction)
        self._threads = n_threads
        self._row_weight = row_weight
        self._weight = None if sample_weight is None else check.weights("sample_weight", sample_weight, shape)
        if out is not None:
            outputs.checked("out", out, shape if reduction == "none" else (), dtype, apart)
        self._out = out
        # the kernel writes to the result itself, unless it must be changed afterwards
        self._direct = reduction == "none" and self._weight is None
        self.loss: Array = out if out is not None and self._direct else _memory.empty(shape, dtype)
        self.total = self._denominator() if reduction == "mean" else 1.0
        self.scale: Array | None = None
        self._factor = 1.0
        if wants is not None:
            self._set_scale(wants, shape)

    @property
    def factor(self) -> float:
        """The factor of all rows' gradients; `scale`, if there is one, has a factor for each row."""
        return self._factor

    def _denominator(self) -> float:
        if self._weight is None and self._row_weight is None:
            return float(self.loss.size)
        if self._row_weight is None:
            return float(reductions.weighted_sum(self._weight, None, self._threads))
        return float(reductions.weighted_sum(self._row_weight, self._weight, self._threads))

    def _set_scale(self, wants: Wants, shape: tuple[int, ...]) -> None:
        cotangent = wants.cotangent
        self.scale = self._weight
        self._factor = 1.0
        if self._kind == "none":
            rows = None if cotangent is None else check.weights("cotangent", cotangent, shape)
            if rows is not None:
                with np.errstate(all="ignore"):
                    self.scale = rows if self._weight is None else rows * self._weight
        elif cotangent is not None:
            self._factor = check.cotangent(cotangent)
        if self._kind == "mean":
            self._factor = self._factor / self.total if self.total != 0 else 0.0

    def value(self) -> Any:
        """The result, once the kernel has filled `loss`."""
        if self._kind == "none":
            if not self._direct:
                out = self.loss if self._out is None else self._out
                reductions.multiply(self.loss, self._weight, out, self._threads)
                self.loss = out
            return self.loss if self.loss.ndim or self._out is not None else self.loss[()]
        total = reductions.weighted_sum(self.loss, self._weight, self._threads)
        if self._kind == "mean":
            total = total / self.total if self.total != 0 else 0.0
        return outputs.number(total, self.loss.dtype, self._out)


class ElementReduction:
    """The same for element-wise losses, whose kernel weighs and adds up itself: no array of losses where none is asked.

    Parameters
    ----------
    shape, dtype
        Of the losses.
    apart : dict
        Inputs that results must not overlap, by name.
    """

    __slots__ = ("_dtype", "_kind", "_out", "_shape", "_total", "apart", "cotangent", "factor", "weight")

    def __init__(
        self,
        reduction: str,
        sample_weight: ArrayLike | None,
        out: Array | None,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        apart: dict[str, Array],
        *,
        wants: Wants | None,
        n_threads: int,
    ) -> None:
        self._kind = reduction = check.kind(reduction)
        self._shape = shape
        self._dtype = dtype
        self._total = 1.0
        self.apart: dict[str, Array | None] = {}
        self.weight: Array | None = None
        self.cotangent: Array | None = None
        self.factor = 1.0
        if sample_weight is not None:
            self.weight = self._operand("sample_weight", sample_weight)
        if reduction == "mean":
            self._total = float(math.prod(shape)) if sample_weight is None else self._weights_sum(n_threads)
        if wants is not None:
            self._set_factor(wants.cotangent)
        if out is not None:
            outputs.checked("out", out, shape if reduction == "none" else (), dtype, {**apart, **self.apart})
            self.apart["out"] = out
        self._out = out

    def _operand(self, name: str, value: ArrayLike) -> Array | None:
        """Real numbers that broadcast to the losses: a view."""
        a = self.apart[name] = check.numbers(name, value)
        return check.raw(check.broadcast(name, a, self._shape))

    def _weights_sum(self, n_threads: int) -> float:
        """The sum of the weights as given, each times how often it is used."""
        weight = self.apart["sample_weight"]
        if weight is None or weight.size == 0:
            return 0.0
        total = float(reductions.weighted_sum(check.raw(weight), None, n_threads))
        return total * (math.prod(self._shape) / weight.size)

    def _set_factor(self, cotangent: ArrayLike | None) -> None:
        if cotangent is not None and self._kind == "none":
            self.cotangent = self._operand("cotangent", cotangent)
        elif cotangent is not None:
            self.factor = check.cotangent(cotangent)
        if self._kind == "mean":
            self.factor = self.factor / self._total if self._total != 0 else 0.0

    def buffer(self, like: Array) -> Array | None:
        """The array that the kernel writes the losses to; None if only their sum is asked for."""
        if self._kind != "none":
            return None
        if self._out is not None:
            return self._out
        if like.shape != self._shape:
            return _memory.empty(self._shape, self._dtype)
        if like.dtype != self._dtype:
            return _memory.empty_like(like, self._dtype)
        return _memory.empty_like(like)

    def value(self, loss: Array | None, total: float) -> Any:
        """The result, once the kernel has run."""
        if loss is not None:
            return outputs.returned(loss, self._out)
        if self._kind == "mean":
            total = total / self._total if self._total != 0 else 0.0
        return outputs.number(total, self._dtype, self._out)
