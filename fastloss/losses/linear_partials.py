"""Cross entropy of a linear layer whose classes are spread over processes: partial sums, merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import threads as _threads
from fastloss._native import linear as _kernels
from fastloss.losses.linear import Array, _Blocks, _Call, _Table


def linear_partials(
    *,
    inputs: ArrayLike,
    weights: ArrayLike | Sequence[Array],
    labels: ArrayLike,
    biases: ArrayLike | None = None,
    first_class: int = 0,
    softcap: float | None = None,
    temperature: float = 1.0,
    max_memory: int | None = None,
    n_threads: int | None = None,
) -> Array:
    """What a part of the vocabulary adds to a linear cross entropy: for tables spread over processes.

    Parameters
    ----------
    inputs, weights, biases, softcap, temperature, max_memory, n_threads
        As in :func:`linear_cross_entropy`; rows of `weights` are the classes from `first_class` on.
    labels : array_like of int, shape [...]
        Class indices over the whole vocabulary; here or elsewhere.
    first_class : int, default 0
        The class of the first row of `weights`.

    Returns
    -------
    ndarray of float64, shape [..., 4]
        Exponent, sum, what the sum has rounded off, logit of the label: the sum of exp over these classes without the
        label is ``(sum + rest) * 2**exponent``, and the logit is ``-inf`` where the label is elsewhere.  For
        :func:`merge_partials` and :func:`loss_from_partials`.

    Raises
    ------
    TypeError, ValueError
        As :func:`linear_cross_entropy`; if a label or `first_class` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> table = np.float32([[20, 0], [0, 1], [0, 2]])
    >>> row = {"inputs": np.float32([[1, 0]]), "labels": [0]}
    >>> parts = [fl.linear_partials(weights=table[k : k + 1], first_class=k, **row) for k in range(3)]
    >>> fl.loss_from_partials(fl.merge_partials(*parts))
    array([4.12230724e-09])
    """
    x = check.features("inputs", inputs)
    table = _Table(weights, biases, x)
    shape = x.shape[:-1]
    first = check.whole("first_class", first_class, 0, 2**62 - 1)
    y = check.same_shape("labels", check.integers("labels", labels), shape, "that of inputs without its last axis")
    y = y.copy()  # nobody changes it after it was checked
    check.not_negative("labels", y)
    here = (y >= first) & (y < first + table.n_classes)
    ids = y.astype(np.int64).reshape(-1, 1) - first
    ids[~here.reshape(-1)] = -1
    cap = 0.0 if softcap is None else check.positive("softcap", softcap)
    temperature = check.positive("temperature", temperature)
    memory = check.memory_limit(max_memory)
    threads = _threads.resolve(n_threads, len(ids) * table.n_classes)
    call = _Call(x, table, ids, cap, temperature, threads)
    blocks = _Blocks(table, call.n, call.d, memory)
    result = _memory.empty((call.n, 4))
    for start in range(0, call.n, max(1, blocks.rows)):
        at = slice(start, min(start + blocks.rows, call.n))
        call.sums(blocks, at, None, False).partials(result[at])
    return result.reshape(*shape, 4)


def merge_partials(*partials: ArrayLike) -> Array:
    """The partial sums of several parts of a vocabulary as those of all of them.

    Parameters
    ----------
    *partials : array_like of float64, shape [..., 4]
        From :func:`linear_partials` or this function, each class in one of them.

    Returns
    -------
    ndarray of float64, shape [..., 4]
        In whatever order and grouping parts are merged, the loss is the same to 1 unit in the last place.

    Raises
    ------
    TypeError, ValueError
        If there is none, or one of another dtype or shape.

    Examples
    --------
    See :func:`linear_partials`.
    """
    arrays = check.all_partials(partials)
    result = arrays[0].copy()
    for a in arrays[1:]:
        _kernels.merge(result.reshape(-1, 4), a.reshape(-1, 4), result.reshape(-1, 4))
    return result


def loss_from_partials(partials: ArrayLike) -> Array:
    """The cross entropies of rows whose partial sums have been merged over all classes.

    Parameters
    ----------
    partials : array_like of float64, shape [..., 4]
        From :func:`merge_partials`, or from :func:`linear_partials` of the whole vocabulary.

    Returns
    -------
    ndarray of float64, shape [...]
        In nats; ``inf`` where no part had the label.

    Raises
    ------
    TypeError, ValueError
        If `partials` are of another dtype or shape.

    Examples
    --------
    See :func:`linear_partials`.
    """
    a = check.partials("partials", partials)
    result = _memory.empty(a.shape[:-1])
    _kernels.partial_losses(a.reshape(-1, 4), result.reshape(-1))
    return result
