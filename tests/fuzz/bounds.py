"""How far a result may lie from its oracle: in units in the last place, of the result or of the terms it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from reference import sum_of_others, wide


def unit(a: Any, dtype: Any) -> Any:
    """One unit in the last place of numbers of this magnitude, in this dtype."""
    info = ml_dtypes.finfo(dtype)
    digits, low = int(info.nmant), np.longdouble(float(info.smallest_subnormal))
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(np.abs(wide(a)))
        step = np.ldexp(np.longdouble(1), np.clip(exponent - 1 - digits, -16000, 16000).astype(np.int32))
    return np.maximum(np.where(np.isfinite(step), step, 0), low)


def eps(dtype: Any) -> Any:
    """Half a unit in the last place of 1: the error of one rounding."""
    return np.longdouble(float(ml_dtypes.finfo(dtype).eps)) / 2


def moved(p: Any, error: Any) -> Any:
    """The most that a probability, or the slope of a softplus, may become where its logarithm is off by so much."""
    return np.minimum(1, p * np.exp(np.minimum(error, 11000)))


def wander(p: Any, error: Any) -> Any:
    """How far it may be from there, up or down."""
    return np.maximum(moved(p, error) - p, -p * np.expm1(-error))


def softmax_errors(p: Any, others: Any, error: Any) -> tuple[Any, Any, Any]:
    """How far log-sum-exp less each logit, probabilities and log-sum-exp may be off for these errors of logits.

    To first order errors weigh by probabilities; those move by up to e^2 for errors of 1.
    """
    most = error.max(-1, keepdims=True, initial=0)
    growth = np.exp(np.minimum(2 * most, 11000))
    less = np.minimum(growth * (others * error + sum_of_others(p * error)), error + most)
    mean = np.minimum(growth * (p * error).sum(-1, keepdims=True), most)
    return less, wander(p, less), mean


@dataclass
class Expect:
    """What a result must be.

    want    the truth, in long double
    bound   how far the result may lie from it, where both are finite
    free    where the documentation promises nothing
    """

    want: Any
    bound: Any
    free: Any = False

    def off(self, got: Any) -> tuple[Any, Any, Any] | None:
        """The worst place, what is there and what should be; None if all is well."""
        want = np.asarray(wide(self.want))
        if np.shape(got) != want.shape:
            return "shape", np.shape(got), want.shape
        if want.size == 0:
            return None
        have, dtype = wide(got), np.asarray(got).dtype
        if dtype.kind not in "fV":
            bad = np.argwhere((have != want) & ~np.broadcast_to(self.free, want.shape))
            return (tuple(bad[0].tolist()), got[tuple(bad[0])], want[tuple(bad[0])]) if len(bad) else None
        top = np.longdouble(float(ml_dtypes.finfo(dtype).max)) * (1 - 4 * eps(dtype))
        with np.errstate(all="ignore"):
            bound = np.broadcast_to(wide(self.bound), want.shape)
            near = np.abs(have - want) <= bound
            same = (have == want) | (np.isnan(have) & np.isnan(want))
            # a term or the result does not fit in the dtype
            large = (np.abs(want) + bound >= top) & ~np.isnan(want)
            over = large & ~np.isfinite(have) & (np.isnan(have) | (np.sign(have) == np.sign(want)) | (bound >= top))
            good = near | same | over | np.broadcast_to(self.free, want.shape)
        if good.all():
            return None
        with np.errstate(all="ignore"):
            ratio = np.where(good, 0, np.nan_to_num(np.abs(have - want) / bound, nan=np.inf))
        place = np.unravel_index(int(np.argmax(ratio + (~good))), want.shape)
        return tuple(map(int, place)), np.asarray(got)[place], want[place]
