"""The files that a run leaves: the model, its vectors and neighbours, the measured figures and their curve."""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastloss._cli import files
from fastloss._cli.corpus import Corpus

NEIGHBOURS = 10
COMMON = 50  # neighbours are sought among tokens seen this often: rarer ones have hardly moved
FEWEST = 1000  # but among this many at least

MODEL, METRICS, SETTINGS = 1 << 36, 1 << 26, 1 << 22  # bytes that are read, at most

Arrays = Mapping[str, NDArray[np.generic]]
T = TypeVar("T")


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


def _write(path: Path, lines: Iterable[str]) -> None:
    with files.replacing(path) as file:
        file.writelines(f"{line}\n".encode() for line in lines)


def write_model(folder: Path, settings: Mapping[str, Any], arrays: Arrays) -> None:
    """Write ``model.npz``: the settings of the run as JSON, and its arrays."""
    with files.replacing(folder / "model.npz") as file:
        np.savez(file, settings=np.array(json.dumps(settings)), **arrays)  # type: ignore[arg-type]


def _archived(folder: Path, read: Callable[[zipfile.ZipFile], T]) -> T:
    """What `read` makes of ``model.npz``, whose bytes may be anyone's."""
    path = folder / "model.npz"
    try:
        with files.opened(path, MODEL) as file, zipfile.ZipFile(files.Pieces(file)) as archive:
            return read(archive)
    except OSError as error:
        raise files.Unusable(f"{path}: {files.reason(error)}") from None
    except Exception as error:  # what a damaged archive raises is anyone's guess
        raise files.Unusable(f"{path}: not the model of a run ({files.reason(error)})") from None


def _array(archive: zipfile.ZipFile, name: str, fits: Callable[[tuple[int, ...], np.dtype[Any]], bool]) -> Any:
    """An array of the archive, after a look at its header, before room is made for it."""
    with archive.open(f"{name}.npy") as member:
        if np.lib.format.read_magic(member) != (1, 0):  # others have room for headers of gigabytes
            raise ValueError(f"{name} is of another format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if not fits(shape, dtype):
            raise ValueError(f"{name} has shape {str(shape)[:40]} and dtype {str(dtype)[:40]}")
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _is_like(a: NDArray[np.generic], shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return shape == a.shape and dtype == a.dtype


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run, from ``model.npz``."""

    def small(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        return shape == () and dtype.kind == "U" and dtype.itemsize <= SETTINGS

    def read(archive: zipfile.ZipFile) -> dict[str, Any]:
        settings = json.loads(str(_array(archive, "settings", small)))
        if not isinstance(settings, dict):
            raise ValueError("no settings")
        return settings

    return _archived(folder, read)


def read_arrays(folder: Path, like: Arrays) -> Arrays:
    """The arrays of ``model.npz``, each of the shape and dtype that it has in `like`, and finite."""

    def read(archive: zipfile.ZipFile) -> Arrays:
        found = {}
        for name, a in like.items():
            found[name] = _array(archive, name, functools.partial(_is_like, a))
            if not np.isfinite(found[name]).all():
                raise ValueError(f"{name} is not finite")
        return found

    return _archived(folder, read)


def write_metrics(folder: Path, records: Sequence[Record]) -> None:
    """Write ``metrics.jsonl``, one object per report."""
    _write(folder / "metrics.jsonl", map(json.dumps, records))


def read_metrics(folder: Path) -> list[Record]:
    """Read ``metrics.jsonl``."""
    path = folder / "metrics.jsonl"
    try:
        with files.opened(path, METRICS) as file:
            records: list[Record] = [json.loads(line) for line in file.read(METRICS).decode().splitlines()]
        for record in records:
            for name in Record.__required_keys__:
                value = record[name]  # type: ignore[literal-required]
                if type(value) not in (int, float) or not 0 <= value < 2**63:
                    raise ValueError(f"{name} must be a number from 0 on, got {str(value)[:40]}")
            if record["heldout_perplexity"] == 0:
                raise ValueError("heldout_perplexity must not be 0")
        return records
    except OSError as error:
        raise files.Unusable(f"{path}: {files.reason(error)}") from None
    except Exception as error:  # what JSON of any nesting and kind raises is anyone's guess
        raise files.Unusable(f"{path}: not the reports of a run ({files.reason(error)})") from None


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
        with files.replacing(folder / "compare.svg") as file:
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
        with files.replacing(folder / "loss.svg") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
    return True
