"""The files that a run leaves: the model, its vectors and neighbours, the measured figures and their curve."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastloss._cli.corpus import Corpus

NEIGHBOURS = 10
COMMON = 50  # neighbours are sought among tokens seen this often: rarer ones have hardly moved
FEWEST = 1000  # but among this many at least

Arrays = Mapping[str, NDArray[np.generic]]


class _First(TypedDict, total=False):
    """What only the first line of metrics.jsonl has."""

    unigram_perplexity: float


class Record(_First):
    """One line of metrics.jsonl."""

    step: int
    seconds: float
    tokens: int
    loss: float
    heldout_perplexity: float


class Unreadable(Exception):
    """A file of an earlier run is missing or damaged."""


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is whole: a run broken off leaves the old one or the new one."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        yield file
    os.replace(new, path)


def _write(path: Path, lines: Iterable[str]) -> None:
    with _replacing(path) as file:
        file.writelines(f"{line}\n".encode() for line in lines)


def write_model(folder: Path, settings: Mapping[str, Any], arrays: Arrays) -> None:
    """Write ``model.npz``: the settings of the run as JSON, and its arrays."""
    with _replacing(folder / "model.npz") as file:
        np.savez(file, settings=np.array(json.dumps(settings)), **arrays)  # type: ignore[arg-type]


def read_model(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Read ``model.npz``: the settings of the run, and its arrays."""
    path = folder / "model.npz"
    try:
        # Opened here: np.load leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        return json.loads(str(arrays["settings"])), arrays
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # what a damaged archive raises is anyone's guess
        raise Unreadable(f"{path}: not the model of a run ({error})") from None


def write_metrics(folder: Path, records: Sequence[Record]) -> None:
    """Write ``metrics.jsonl``, one object per report."""
    _write(folder / "metrics.jsonl", map(json.dumps, records))


def read_metrics(folder: Path) -> list[Record]:
    """Read ``metrics.jsonl``."""
    path = folder / "metrics.jsonl"
    try:
        records: list[Record] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(Record.__required_keys__ <= record.keys() for record in records):
            raise ValueError("not the reports of a run")
        return records
    except (OSError, ValueError, AttributeError) as error:
        raise Unreadable(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def write_vectors(folder: Path, tokens: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Write ``vectors.txt`` in word2vec's text format."""
    lines = [f"{len(vectors)} {vectors.shape[1]}"]
    for token, vector in zip(tokens, vectors.tolist(), strict=True):
        lines.append(" ".join([token, *map("%.6g".__mod__, vector)]))
    _write(folder / "vectors.txt", lines)


def write_neighbours(folder: Path, corpus: Corpus, vectors: NDArray[np.float32]) -> None:
    """Write ``neighbours.txt``: the tokens nearest by cosine to the 50 most frequent identifiers."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    among = max(int((corpus.counts >= COMMON).sum()), min(len(vectors), FEWEST))
    lines = []
    for i in corpus.identifiers(50):
        cosine = unit[:among] @ unit[i]
        nearest = [k for k in np.argsort(-cosine, kind="stable")[: NEIGHBOURS + 1] if k != i][:NEIGHBOURS]
        lines.append(f"{corpus.tokens[i]}: " + ", ".join(f"{corpus.tokens[k]} {cosine[k]:.2f}" for k in nearest))
    _write(folder / "neighbours.txt", lines)


def write_comparison(folder: Path, runs: Mapping[str, Sequence[Record]], seconds: float) -> str:
    """Write ``compare.txt``: held-out perplexity of every run at equal times, and when it reached that of the first."""
    goal = min(record["heldout_perplexity"] for record in next(iter(runs.values())))
    lines = [f"{'held-out perplexity after':26}" + "".join(f"{name:>18}" for name in runs)]
    for share in (1 / 4, 1 / 2, 3 / 4, 1):
        time = seconds * share
        line = f"{f'{time:g} s':26}"
        for records in runs.values():
            # the last report may come a little late: what was learned in time counts
            known = [r["heldout_perplexity"] for r in records if r["seconds"] <= time * 1.02 or share == 1]
            line += f"{f'{known[-1]:.1f}' if known else '-':>18}"
        lines.append(line)
    line = f"{f'seconds to reach {goal:.1f}':26}"
    for records in runs.values():
        reached = [r["seconds"] for r in records if r["heldout_perplexity"] <= goal]
        line += f"{f'{reached[0]:.1f}' if reached else '-':>18}"
    lines += [line, f"{'tokens':26}" + "".join(f"{records[-1]['tokens']:>18,}" for records in runs.values())]
    _write(folder / "compare.txt", lines)
    return "\n".join(lines)


def draw_comparison(folder: Path, runs: Mapping[str, Sequence[Record]], unigram_perplexity: float) -> bool:
    """Write ``compare.svg``, perplexity over time; False where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    with matplotlib.rc_context({"svg.hashsalt": "fastloss", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="seconds", ylabel="held-out perplexity, exact", yscale="log")
        for name, records in runs.items():
            axes.plot([r["seconds"] for r in records], [r["heldout_perplexity"] for r in records], ".-", label=name)
        axes.axhline(unigram_perplexity, color="gray", linestyle="--", label="unigram baseline")
        axes.legend()
        axes.grid(alpha=0.3, which="both")
        with _replacing(folder / "compare.svg") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
    return True


def write_curve(folder: Path, records: Sequence[Record], unigram_perplexity: float) -> bool:
    """Write ``loss.svg``; False where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError:
        return False
    # No date and no random ids: the same run draws the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "fastloss", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="training tokens", ylabel="loss (nats per token)", title="Next-token model")
        axes.xaxis.set_major_formatter(EngFormatter())
        tokens = [record["tokens"] for record in records]
        axes.plot(tokens, [np.log(record["heldout_perplexity"]) for record in records], "o-", label="held-out, exact")
        axes.plot(tokens, [record["loss"] for record in records], ".:", label="training")
        axes.axhline(np.log(unigram_perplexity), color="gray", linestyle="--", label="unigram baseline, held-out")
        axes.legend()
        axes.grid(alpha=0.3)
        with _replacing(folder / "loss.svg") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
    return True
