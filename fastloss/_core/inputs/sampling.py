"""Samplers and sampled losses: ids, seeds, weights, samples and their expected counts, positives, states."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import memory as _memory
from fastloss._core.inputs.arrays import array, integers, numbers, packed, place, same_shape, vector
from fastloss._core.inputs.labels import bad_label
from fastloss._core.inputs.values import boolean, choice, scalar, shown, whole
from fastloss._native import samplers as _kernels

Array = NDArray[Any]
Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_INT64 = np.dtype(np.int64)
_WORD = 2**64 - 1
_WORDS = 1 << 16  # numbers of a seed


# ------------------------------------------------------------------ ids


def int64(name: str, value: ArrayLike, *, own: bool = False) -> Ids:
    """Integers as a C-contiguous int64 array, a copy if `own`.

    Unsigned ones that wrap become negative, hence lie outside any range.
    """
    if type(value) is np.ndarray and value.dtype is _INT64 and value.flags.carray:  # a tenth of what the rest takes
        return _memory.copied(name, value, np.int64) if own else value
    given = array(name, value)
    if given.dtype.kind not in "iu" and not (given.size == 0 and isinstance(value, list | tuple)):
        raise TypeError(f"{name} must be integers, got dtype {given.dtype}")
    if not own and given.dtype == _INT64 and given.flags.c_contiguous and given.flags.aligned:
        return given.view(_INT64)
    return _memory.copied(name, given, np.int64)


def ids(name: str, value: ArrayLike, n: int, *, own: bool = True) -> Ids:
    """Integers in [0, n) as a C-contiguous int64 array.

    A copy if `own`: ids that say where in a table to read or write must not change after they were checked.
    """
    as_read = int64(name, value, own=own)
    bad = _kernels.outside(as_read, n)
    if bad >= 0:
        raise bad_id(name, value, as_read, n, bad)
    return as_read


def bad_id(name: str, value: ArrayLike, as_read: Ids, n: int, bad: int) -> ValueError:
    """The error for the id at this flat place of what was read, which may have wrapped."""
    given = array(name, value)
    return bad_label(name, given if given.dtype.kind == "u" else as_read, bad, n)


def any_ids(name: str, a: Array) -> Ids:
    """Any integers that int64 holds."""
    found = int64(name, a)
    if a.dtype.kind == "u" and found.min(initial=0) < 0:
        raise ValueError(f"{name} must lie below 2**63, got {a.max()}")
    return found


def per_row(name: str, value: ArrayLike, num_true: int) -> Array:
    """An array of shape [batch, num_true]."""
    num_true = whole("num_true", num_true, 1)
    matrix = array(name, value)
    if matrix.ndim != 2 or matrix.shape[1] != num_true:
        raise ValueError(f"{name} must have the shape [batch, num_true={num_true}], got shape {matrix.shape}")
    return matrix


def id_vector(name: str, value: ArrayLike) -> Ids:
    """A vector of any integers that int64 holds."""
    found = any_ids(name, array(name, value))
    if found.ndim != 1:
        raise ValueError(f"{name} must be a vector, got shape {found.shape}")
    return found


def ragged(positives: Any, range_max: int) -> tuple[Ids, Ids]:
    """Ids of each row, as a matrix or as (indptr, indices), as the latter."""
    if not isinstance(positives, tuple):
        matrix = array("positives", positives)
        if matrix.ndim != 2:
            raise ValueError(f"positives must have the shape [batch, T], got shape {matrix.shape}")
        found = ids("positives", matrix, range_max)
        return np.arange(len(found) + 1, dtype=np.int64) * found.shape[1], found.reshape(-1)
    if len(positives) != 2:
        raise ValueError(f"positives must be an array or a tuple (indptr, indices), got {len(positives)} items")
    found = ids("positives[1]", positives[1], range_max)
    starts = ids("positives[0]", positives[0], found.size + 1)
    if found.ndim != 1 or starts.ndim != 1 or starts.size == 0:
        raise ValueError(
            f"positives must be two vectors (indptr, indices), got shapes {starts.shape} and {found.shape}"
        )
    falls = np.flatnonzero(starts[1:] < starts[:-1])
    if falls.size:
        row = falls[0]
        raise ValueError(f"positives[0] must not decrease, got {starts[row + 1]} after {starts[row]} at row {row}")
    return starts, found


def bad_positives(wanted: int, left: int, row: int) -> ValueError:
    """The error for a row whose positives leave too few ids."""
    return ValueError(f"positives must leave at least {wanted} ids that can be drawn, left {left} at row {row}")


# ------------------------------------------------------------------ seeds and laws


def seed(value: Any) -> tuple[int, int]:
    """Key and stream of Philox.  For an integer they are those of a TensorFlow op with this seed and no global one."""
    if value is None:
        bits = os.urandom(16)
        return int.from_bytes(bits[:8], "little"), int.from_bytes(bits[8:], "little")
    if isinstance(value, (int, np.integer)):
        if value < 0:
            raise ValueError(f"seed must not be negative, got {shown(value)}")
        return 87654321, int(value) % 2147483647
    rule = (
        f"seed must be something that numpy.random.default_rng takes, of at most {_WORDS} numbers, got {shown(value)}"
    )
    try:
        words = np.random.default_rng(_plain_seed(value)).integers(2**64, size=2, dtype=np.uint64)
    except ValueError as error:
        raise ValueError(rule) from error
    except Exception as error:  # of whatever kind: some objects' methods raise anything
        raise TypeError(rule) from error
    return int(words[0]), int(words[1])


def _plain_seed(value: Any, depth: int = 0) -> Any:
    """A seed that NumPy can take apart: np.matrix, whose rows are matrices, and lists in themselves crash it."""
    if isinstance(value, np.ma.MaskedArray) or depth > 8:
        raise TypeError
    shape = value.shape if isinstance(value, np.ndarray) else (len(value),) if isinstance(value, (list, tuple)) else ()
    if shape and max(*shape, math.prod(shape)) > _WORDS:  # NumPy goes through them one by one, a microsecond each
        raise ValueError
    if isinstance(value, np.ndarray):
        return np.asarray(value) if value.dtype != object else _plain_seed(value.tolist(), depth + 1)
    return [_plain_seed(item, depth + 1) for item in value] if isinstance(value, (list, tuple)) else value


def weight_vector(name: str, value: ArrayLike) -> Array:
    """A vector of real numbers, of any dtype and layout."""
    given = array(name, value)
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, got dtype {given.dtype}")
    if given.ndim != 1:
        raise ValueError(f"{name} must be a vector, got shape {given.shape}")
    return given


def alias_weights(name: str, value: ArrayLike) -> Array:
    """The weights of an alias table, as many as it can hold."""
    given = weight_vector(name, value)
    if not 1 <= given.size < 2**32:
        raise ValueError(f"{name} must be a vector of 1 to 2**32 - 1 numbers, got shape {given.shape}")
    return given


def bad_weight(name: str, a: Array, row: int) -> ValueError:
    """The error for a weight that is negative or not finite."""
    return ValueError(f"{name} must be finite and not negative, got {a[row]} at row {row}")


def weight_sum(name: str, total: float) -> None:
    """A sum by which weights can be divided."""
    if not 1e-280 < total < np.inf:
        raise ValueError(f"{name} must have a sum in [1e-280, 1.8e308], got {total}")


def fixed_ids(n: int) -> None:
    """As many ids as a table of TensorFlow's can hold."""
    if not 1 <= n < 2**31:
        raise ValueError(f"unigrams must give the shard between 1 and 2**31 - 1 ids, got {n}")


def distorted(weights: Floats, total: float, bad: int) -> None:
    """Weights to a power, `bad` the first that is not finite, that can be used in float32."""
    if bad >= 0:
        raise ValueError(f"unigrams**distortion must be finite in float32, got {weights[bad]} for id {bad}")
    if not 0 < total * weights.size < 3e38:
        raise ValueError(f"unigrams**distortion must have a sum in (0, 3e38/{weights.size}), got {total}")


def range_of_shard(range_max: int, n: int) -> None:
    """range_max, which must be the number of ids that the other arguments give."""
    if n != range_max:
        raise ValueError(f"range_max must be {n}, the number of ids in the shard, got {range_max}")


# ------------------------------------------------------------------ samples


def sample_size(num_sampled: int, unique: bool, drawable: int) -> tuple[int, bool]:
    """How many ids to draw, and whether different ones, of which there must be as many."""
    size, distinct = whole("num_sampled", num_sampled, 1), boolean("unique", unique)
    if distinct and size > drawable:
        raise ValueError(
            f"num_sampled must be at most {drawable}, the number of ids that can be drawn, "
            f"when they are to be unique, got {size}"
        )
    return size, distinct


def unique_size(name: str, value: int, drawable: int) -> int:
    """How many different ids to draw from a table of weights."""
    k = whole(name, value, 0)
    if k > drawable:
        raise ValueError(f"{name} must be at most {drawable}, the number of positive weights, got {k}")
    return k


def last_sample(last: Any) -> Any:
    """What is known of the last sample, where there was one."""
    if last is None:
        raise ValueError("num_sampled must be given before the first sample, got None")
    return last


def tries(value: float | None, num_sampled: int) -> float:
    """The number of draws that a sample of different ids took."""
    if value is None:
        raise ValueError("tries must be given along with num_sampled for a unique sample, got None")
    return scalar("tries", value, num_sampled, np.inf)


def drawn_from(value: Any, seed: Any, kind: type[Any], others: type[Any]) -> None:
    """A sampler, which is its own source of randomness, or a table, which needs a seed."""
    if not isinstance(value, (kind, others)):
        raise TypeError(f"sampler must be a sampler or an AliasTable, got {shown(value)}")
    if seed is not None and isinstance(value, kind):
        raise ValueError("seed must be None for a sampler, which has its own stream")


def sampler(value: Any, sampled_values: Any, seed: Any, num_classes: int, kind: type[Any]) -> None:
    """Check a sampler object, if one is given: its range, and that no other source of randomness is given."""
    if value is None:
        return
    if not isinstance(value, kind):
        raise TypeError(f"sampler must be a sampler object, got {shown(value)}")
    if sampled_values is not None:
        raise ValueError("sampler must be None where sampled_values are given")
    if seed is not None:
        raise ValueError(f"seed must be None for a sampler, which has its own stream, got {shown(seed)}")
    if value.range_max != num_classes:
        raise ValueError(f"sampler must have the range num_classes = {num_classes}, got {value.range_max}")


SAMPLED_VALUES = ("sampled_candidates", "true_expected_count", "sampled_expected_count")


def sampled_values(value: Any, num_sampled: int, shape: tuple[int, ...], n: int) -> tuple[Ids, Floats, Floats]:
    """Candidates in [0, n) and expected counts, of labels of this shape and of candidates."""
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise ValueError(f"sampled_values must be ({', '.join(SAMPLED_VALUES)}), got {shown(value)}")
    names = [f"sampled_values[{k}] ({name})" for k, name in enumerate(SAMPLED_VALUES)]
    candidates = same_shape(names[0], integers(names[0], value[0]), (num_sampled,), "[num_sampled]")
    true = counts(names[1], value[1], shape)
    expected = counts(names[2], value[2], (num_sampled,))
    return ids(names[0], candidates, n), true, expected


def counts(name: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Expected counts: real numbers of this shape, as contiguous float64."""
    a = packed(same_shape(name, numbers(name, value), shape, "one for each id"), np.float64)
    return a.reshape(shape)


def finite(name: str, value: ArrayLike, size: int) -> NDArray[np.float64]:
    """`size` finite numbers as contiguous float64."""
    a = vector(name, value, size)
    assert a is not None
    bad = np.flatnonzero(~np.isfinite(a))
    if bad.size:
        raise ValueError(f"{name} must be finite, got {a[bad[0]]} at row {bad[0]}")
    return a


def bad_count(name: str, a: Array, bad: int) -> ValueError:
    """The error for the expected count at this flat place."""
    at, where = place(a, bad)
    return ValueError(f"{name} must be positive and finite, got {a[at]}{where}")


# ------------------------------------------------------------------ states


def state(value: Any, keys: Iterable[str], kind: str) -> tuple[list[int], tuple[int, bool, float] | None]:
    """Of a sampler's state: key, stream and block, and the last sample."""
    if not isinstance(value, dict):
        raise TypeError(f"state must be a dict, got {shown(value)}")
    if set(value) != set(keys):
        raise ValueError(f"state must have the keys {', '.join(keys)}, got {shown(list(value))}")
    choice("state['sampler']", value["sampler"], [kind])
    words = [whole(f"state[{name!r}]", value[name], 0, _WORD) for name in ("key", "stream", "block")]
    last = value["last"]
    if last is None:
        return words, None
    if not isinstance(last, (tuple, list)) or len(last) != 3:
        raise TypeError(f"state['last'] must be None or (num_sampled, unique, tries), got {shown(last)}")
    size = whole("num_sampled in state['last']", last[0], 1)
    distinct = boolean("unique in state['last']", last[1])
    return words, (size, distinct, scalar("tries in state['last']", last[2], size, np.inf))


def state_counts(value: ArrayLike, range_max: int) -> Ids:
    """The counts in the state of a sampler that learns: a copy."""
    found = int64("state['counts']", value, own=True)  # nobody changes it after it was checked
    if found.shape != (range_max,):
        raise ValueError(f"state['counts'] must have the shape ({range_max},), got shape {found.shape}")
    if found.min() < 1:
        row = int(np.argmax(found < 1))
        raise ValueError(f"state['counts'] must lie in [1, 2**62], got {found[row]} at row {row}")
    if float(found.sum(dtype=float)) > 2.0**62:
        raise ValueError(f"state['counts'] must have a sum of at most 2**62, got {found.sum(dtype=float):g}")
    return found
