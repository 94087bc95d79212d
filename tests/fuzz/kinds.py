"""All kinds of calls: how they are drawn, run, and what they must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import alignments, calls, elements, products, samplers, samples, sequences, softmaxes
from .bounds import Expect
from .draws import Draw


@dataclass(frozen=True)
class Kind:
    make: Callable[[Draw], calls.Call]
    expect: Callable[[calls.Call, dict[str, Any]], dict[str, Expect]]
    run: Callable[..., Any] = calls.run
    often: int = 1  # in a round of all kinds


KINDS = {
    "softmax": Kind(softmaxes.make, softmaxes.expect, often=4),
    "normal": Kind(softmaxes.make_normal, softmaxes.expect_normal, often=2),
    "elements": Kind(elements.make, elements.expect, often=4),
    "linear": Kind(products.make_linear, products.expect_linear, often=3),
    "partials": Kind(products.make_partials, products.expect_partials, products.run_partials),
    "sampled": Kind(samples.make, samples.expect, often=3),
    "in_batch": Kind(samples.make_in_batch, samples.expect_in_batch, often=2),
    "sequence": Kind(sequences.make, sequences.expect, often=2),
    "by_example": Kind(sequences.make_lists, sequences.expect_lists),
    "packed": Kind(sequences.make_packed, sequences.expect_packed),
    "ctc_loss": Kind(alignments.make_ctc, alignments.expect_ctc, often=2),
    "ctc_greedy_decode": Kind(alignments.make_greedy, alignments.expect_greedy),
    "ctc_beam_search_decode": Kind(alignments.make_beam, alignments.expect_beam),
    "edit_distance": Kind(alignments.make_distance, alignments.expect_distance),
    "sampler": Kind(samplers.make, samplers.expect, samplers.run, often=2),
    "candidate_function": Kind(samplers.make_function, samplers.expect_function),
    "alias": Kind(samplers.make_alias, samplers.expect_alias, samplers.run_alias),
    "sample_negatives": Kind(samplers.make_negatives, samplers.expect_negatives),
    "hits": Kind(samplers.make_hits, samplers.expect_hits),
    "sparse_rows": Kind(samplers.make_rows, samplers.expect_rows, samplers.run_rows),
    "unary": Kind(elements.make_unary, elements.expect_unary),
}
ROUND = [name for name, kind in KINDS.items() for _ in range(kind.often)]


def make(seed: int, number: int, only: str | None = None) -> tuple[calls.Call, Draw]:
    """The call of this number, and what was drawn for it."""
    kinds = ROUND if only is None else [name for name in ROUND if name == only]
    turn, place = divmod(number, len(kinds))
    draw = Draw(seed, number, turn * kinds.count(kinds[place]) + kinds[:place].count(kinds[place]))
    return KINDS[kinds[place]].make(draw), draw
