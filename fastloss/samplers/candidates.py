"""TensorFlow's candidate sampling functions, and negatives for each row of a batch."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory
from fastloss._core import threads as _threads
from fastloss._native import candidates, samplers
from fastloss.samplers.alias import AliasTable
from fastloss.samplers.draws import Ids, Seed, Stream, opened, try_limit
from fastloss.samplers.samplers import Candidates, LogUniformSampler, UniformSampler, _Sampler
from fastloss.samplers.unigrams import FixedUnigramSampler, LearnedUnigramSampler, read_counts


class AccidentalHits(NamedTuple):
    """What `compute_accidental_hits` returns."""

    indices: Ids
    ids: Ids
    weights: NDArray[np.float32]


def uniform_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: Seed = None,
    name: str | None = None,
) -> Candidates:
    """Draw class ids uniformly, once for the whole batch.

    Parameters
    ----------
    true_classes : array_like of int, shape [batch, num_true]
        Ids of the true classes; they do not change the draw, and may be drawn.
    num_true : int
        How many per row.
    num_sampled : int
        How many ids to draw.
    unique : bool
        Whether to draw until there are num_sampled different ids.
    range_max : int
        Ids lie in [0, range_max).
    seed : optional
        Whatever `numpy.random.default_rng` takes, of at most 65536 numbers; for an integer the ids are those of
        TensorFlow's first call.
    name : ignored

    Returns
    -------
    Candidates
        ``(sampled_candidates, true_expected_count, sampled_expected_count)``: int64 [num_sampled], float64
        [batch, num_true], float64 [num_sampled].  The counts are ``num_sampled/range_max``, or, where repeats were
        skipped, ``1 - (1 - 1/range_max)**n`` with n the number of draws made.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type, shape or range, or num_sampled unique ids cannot be had.

    See Also
    --------
    UniformSampler : keeps its place in the stream, so that each call draws anew.

    Notes
    -----
    Source: TensorFlow, ``tf.random.uniform_candidate_sampler``.

    Examples
    --------
    >>> ids, true, sampled = uniform_candidate_sampler([[1]], 1, 3, True, 50, seed=7)
    >>> ids, true
    (array([39, 49, 38]), array([[0.06]]))
    """
    true = check.per_row("true_classes", true_classes, num_true)
    return UniformSampler(range_max, seed=seed).candidates(true, num_sampled, unique)


def log_uniform_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: Seed = None,
    name: str | None = None,
) -> Candidates:
    """Draw class ids by the log-uniform law, ``P(v) = log((v + 2)/(v + 1))/log(range_max + 1)``.

    It fits ids sorted by falling frequency.  Parameters, result and errors are those of `uniform_candidate_sampler`;
    the counts are ``num_sampled*P(v)``, or ``1 - (1 - P(v))**n``.

    See Also
    --------
    LogUniformSampler : keeps its place in the stream, so that each call draws anew.

    Notes
    -----
    Source: TensorFlow, ``tf.random.log_uniform_candidate_sampler``.

    Examples
    --------
    >>> log_uniform_candidate_sampler([[0]], 1, 3, True, 2**40, seed=1).sampled_candidates
    array([96646399659,       73424,   173115944])
    """
    true = check.per_row("true_classes", true_classes, num_true)
    return LogUniformSampler(range_max, seed=seed).candidates(true, num_sampled, unique)


def learned_unigram_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    seed: Seed = None,
    name: str | None = None,
) -> Candidates:
    """The first call of a sampler that learns the classes' frequencies: all ids are still equally likely.

    Parameters, result and errors are those of `uniform_candidate_sampler`.  A function has no memory: to learn, keep a
    `LearnedUnigramSampler` and call its `candidates`.

    See Also
    --------
    LearnedUnigramSampler : learns from call to call.

    Notes
    -----
    Source: TensorFlow, ``tf.random.learned_unigram_candidate_sampler``.

    Examples
    --------
    >>> learned_unigram_candidate_sampler([[0], [0]], 1, 4, False, 4, seed=0).true_expected_count
    array([[1.],
           [1.]])
    """
    true = check.per_row("true_classes", true_classes, num_true)
    return LearnedUnigramSampler(range_max, seed=seed).candidates(true, num_sampled, unique)


def fixed_unigram_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    range_max: int,
    vocab_file: str | os.PathLike[str] = "",
    distortion: float = 1.0,
    num_reserved_ids: int = 0,
    num_shards: int = 1,
    shard: int = 0,
    unigrams: ArrayLike = (),
    seed: Seed = None,
    name: str | None = None,
) -> Candidates:
    """Draw class ids in proportion to given counts.

    The arguments from vocab_file to unigrams are described under `FixedUnigramSampler`, the others, result and errors
    under `uniform_candidate_sampler`; range_max must be the number of ids that they give.  The table is built at each
    call: to draw often, keep a `FixedUnigramSampler`.

    See Also
    --------
    FixedUnigramSampler : builds its table once, and keeps its place in the stream.

    Notes
    -----
    Source: TensorFlow, ``tf.random.fixed_unigram_candidate_sampler``.

    Examples
    --------
    >>> fixed_unigram_candidate_sampler([[2]], 1, 4, False, 3, unigrams=[1, 2, 5], seed=0).true_expected_count
    array([[2.5]])
    """
    true = check.per_row("true_classes", true_classes, num_true)
    range_max = check.whole("range_max", range_max, 1)
    entries = range_max * check.whole("num_shards", num_shards, 1)  # the file may have
    unigrams, vocab_file = read_counts(unigrams, vocab_file, entries), ""
    sampler = FixedUnigramSampler(
        unigrams,
        vocab_file=vocab_file,
        distortion=distortion,
        num_reserved_ids=num_reserved_ids,
        num_shards=num_shards,
        shard=shard,
        seed=seed,
    )
    check.range_of_shard(range_max, sampler.range_max)
    return sampler.candidates(true, num_sampled, unique)


def all_candidate_sampler(
    true_classes: ArrayLike,
    num_true: int,
    num_sampled: int,
    unique: bool,
    seed: Seed = None,
    name: str | None = None,
) -> Candidates:
    """All ids in [0, num_sampled), in order, each with the expected count 1.

    Parameters, result and errors are those of `uniform_candidate_sampler`; unique and seed have no effect.

    Notes
    -----
    Source: TensorFlow, ``tf.random.all_candidate_sampler``.

    Examples
    --------
    >>> all_candidate_sampler([[1]], 1, 3, True)
    Candidates(sampled_candidates=array([0, 1, 2]), true_expected_count=array([[1.]]), \
sampled_expected_count=array([1., 1., 1.]))
    """
    num_sampled = check.whole("num_sampled", num_sampled, 1)
    check.boolean("unique", unique)
    true = check.ids("true_classes", check.per_row("true_classes", true_classes, num_true), num_sampled, own=False)
    _memory.room("num_sampled", num_sampled, 16 * num_sampled)
    return Candidates(np.arange(num_sampled, dtype=np.int64), np.ones(true.shape), np.ones(num_sampled))


def compute_accidental_hits(
    true_classes: ArrayLike,
    sampled_candidates: ArrayLike,
    num_true: int,
    seed: Seed = None,
    name: str | None = None,
) -> AccidentalHits:
    """Find the sampled classes that happen to be true classes.

    Parameters
    ----------
    true_classes : array_like of int, shape [batch, num_true]
    sampled_candidates : array_like of int, shape [num_sampled]
    num_true : int
        How many true classes per row.
    seed, name : ignored

    Returns
    -------
    AccidentalHits
        ``(indices, ids, weights)``: for each hit its row in true_classes, int64 [hits], its place in
        sampled_candidates, int64 [hits], and the lowest float32, [hits], to be added to the logit to mask it.
        Rows ascend; within a row hits follow its columns, then the places.  Every copy of a sampled class is a hit
        (TensorFlow reports only the last one, so that repeated samples stay unmasked).

    Raises
    ------
    TypeError, ValueError
        If an argument is not of its type or shape.

    Notes
    -----
    Source: TensorFlow, ``tf.nn.compute_accidental_hits``.

    Examples
    --------
    >>> hits = compute_accidental_hits([[0, 1], [2, 3]], [3, 9, 1, 3], 2)
    >>> hits.indices, hits.ids
    (array([0, 1, 1]), array([2, 0, 3]))
    """
    true = check.any_ids("true_classes", check.per_row("true_classes", true_classes, num_true))
    sampled = check.id_vector("sampled_candidates", sampled_candidates)
    follows = _memory.empty(sampled.size, np.int64)
    room = true.size
    while True:
        rows, places = _memory.empty(room, np.int64, "indices"), _memory.empty(room, np.int64, "ids")
        heads = np.zeros(1 << max(3, int(2 * sampled.size).bit_length()), np.int64)
        found = candidates.hits(true, sampled, heads, follows, rows, places)
        if found <= room:
            break
        room = found
    weights = np.full(found, np.finfo(np.float32).min, np.float32)
    return AccidentalHits(rows[:found].copy(), places[:found].copy(), weights)


def sample_negatives(
    sampler: UniformSampler | LogUniformSampler | LearnedUnigramSampler | FixedUnigramSampler | AliasTable,
    positives: ArrayLike | tuple[ArrayLike, ArrayLike],
    num_sampled: int,
    *,
    unique: bool = True,
    seed: Seed = None,
    n_threads: int | None = None,
) -> Ids:
    """Draw ids for each row of a batch that are none of that row's positives.

    Each row has the sampler's law restricted to the ids that are left to it.  Rows are independent.

    Parameters
    ----------
    sampler : a sampler or an `AliasTable`
        The law.  A sampler also gives the random bits, and goes on in its stream.
    positives : array_like of int, shape [batch, T], or a tuple (indptr, indices)
        The ids to avoid; as a tuple those of row i are ``indices[indptr[i]:indptr[i + 1]]``.  They may repeat.
    num_sampled : int
        How many for each row.
    unique : bool
        Whether the ids of one row are to be different.
    seed : optional
        For an `AliasTable`: whatever `numpy.random.default_rng` takes, of at most 65536 numbers.
    n_threads : int, optional
        The most threads to use; the result does not depend on it.

    Returns
    -------
    ndarray of int64, shape [batch, num_sampled]

    Raises
    ------
    TypeError
        If sampler is none, or positives are not integers.
    ValueError
        If positives are out of range or of the wrong shape, or leave a row with too few ids.

    Examples
    --------
    >>> sampler = UniformSampler(5, seed=0)
    >>> np.sort(sample_negatives(sampler, [[0, 1], [3, 3]], 3))[0]
    array([2, 3, 4])
    >>> sample_negatives(sampler, [[0, 1], [3, 4]], 4)
    Traceback (most recent call last):
    ValueError: positives must leave at least 4 ids that can be drawn, left 3 at row 0
    """
    check.drawn_from(sampler, seed, _Sampler, AliasTable)
    num_sampled = check.whole("num_sampled", num_sampled, 1)
    unique = check.boolean("unique", unique)
    range_max = len(sampler) if isinstance(sampler, AliasTable) else sampler.range_max
    starts, ids = check.ragged(positives, range_max)
    longest = int((starts[1:] - starts[:-1]).max(initial=0))
    threads = _threads.resolve(n_threads)
    _memory.room("num_sampled", num_sampled, 8 * num_sampled * starts.size)
    size = samplers.set_size(range_max, min(longest + num_sampled, 2**62))
    _memory.room("num_sampled", num_sampled, 8 * (num_sampled * starts.size + threads * size))
    with opened(sampler, num_sampled, seed) as stream:
        seen = _memory.empty((threads, size), np.uint64)
        wanted = num_sampled if unique else 1
        row, left = candidates.too_few(stream.law, starts, ids, stream.drawable, wanted, seen[0])
        if row >= 0:
            raise check.bad_positives(wanted, left, row)
        return _negatives(stream, starts, ids, num_sampled, unique, seen)


def _negatives(stream: Stream, starts: Ids, ids: Ids, num_sampled: int, unique: bool, seen: NDArray[np.uint64]) -> Ids:
    law, _, key = stream
    range_max, rows = law.range_max, starts.size - 1
    out, filled = _memory.empty((rows, num_sampled), np.int64), np.zeros(rows, np.int64)
    limit = try_limit(range_max, num_sampled)
    candidates.negatives(law, key, starts, ids, out, filled=filled, seen=seen, unique=unique, limit=limit)
    for row in np.flatnonzero(filled < num_sampled):  # rows that hardly any weight is left to
        bits = _memory.zeros(range_max // 64 + 1, np.uint64, "a mark for each of range_max ids")
        complete = samplers.race if unique else samplers.redraw
        scratch = _memory.empty(num_sampled if unique else range_max)
        avoid, own = ids[starts[row] : starts[row + 1]], samplers.derive(key, row, 0)
        complete(law, own, row, out[row], filled[row], excluded=avoid, seen=bits, scratch=scratch)
    return out
