"""``python -m fastloss train``: token embeddings and a next-token model from text or source files."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from fastloss._cli import corpus as text
from fastloss._cli import files, report
from fastloss._cli.model import BATCH, NUM_SAMPLED, OUTPUTS, SAMPLERS, Model
from fastloss._cli.progress import Plain, display
from fastloss._core import threads as _threads

DEFAULTS = {  # what --resume takes from the earlier run
    "loss": "sampled_softmax",
    "sampler": "log_uniform",
    "num_sampled": NUM_SAMPLED,
    "min_count": 5,
    "seed": 0,
}
DEFAULT_SECONDS = 60.0
MOST = 2**63 - 1  # of any whole number
REPORT_STEPS = 100  # with --steps: the same reports however the run is broken up
REPORT_SHARE = 1 / 12  # with --seconds: of the time given
REPORT_SECONDS = 30.0  # and at least this often


class _Parser(argparse.ArgumentParser):
    """One whose errors leave the terminal alone."""

    def error(self, message: str) -> NoReturn:
        super().error(files.printable(message))


def _whole(least: int) -> Callable[[str], int]:
    """An argparse type: whole numbers from `least` on."""

    def whole_number(given: str) -> int:
        if int(given) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {given}")
        if int(given) > MOST:
            raise argparse.ArgumentTypeError(f"must be at most {MOST}, got {given[:40]}")
        return int(given)

    return whole_number


def _duration(given: str) -> float:
    """An argparse type: a positive, finite number of seconds."""
    if not 0 < float(given) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {given}")
    return float(given)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m fastloss",
        description="Losses for NumPy arrays, at work.",
    )
    train = parser.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser(
        "train",
        help="learn token embeddings and a next-token model from text or source files",
        description="Learn token embeddings and a next-token model from text or source files. Up to 30 files are held "
        "out; the perplexity on them is exact (full softmax), over all their tokens or, where there are more, over "
        f"{text.HELDOUT_TARGETS:,} evenly spaced ones. The same seed and number of steps give the same files at any "
        "number of threads. Ctrl-C stops and still writes everything.",
    )
    add = train.add_argument
    add("paths", nargs="*", metavar="PATH", help="files or directories (default: Python's standard library)")
    add("--out", type=Path, default=Path("fastloss-train"), metavar="DIR", help="where to write (default: %(default)s)")
    add("--seconds", type=_duration, help=f"stop after this time (default: {DEFAULT_SECONDS:.0f}, if no --steps)")
    add("--steps", type=_whole(1), help=f"stop after this many steps of {BATCH} tokens, counted over all resumed runs")
    add("--loss", choices=sorted(OUTPUTS), help=f"what is minimised (default: {DEFAULTS['loss']})")
    add("--sampler", choices=sorted(SAMPLERS), help=f"what draws the candidates (default: {DEFAULTS['sampler']})")
    add("--num-sampled", type=_whole(1), help=f"candidates per step (default: {DEFAULTS['num_sampled']})")
    add("--compare", action="store_true", help="train with every loss in turn, for the same time; one plot, one table")
    add("--min-count", type=_whole(1), help=f"rarer tokens become one, unknown (default: {DEFAULTS['min_count']})")
    add("--seed", type=_whole(0), help=f"of start values, order and candidates (default: {DEFAULTS['seed']})")
    add("--threads", type=_whole(1), help="default: all that this process may use")
    add("--resume", action="store_true", help="go on with the run in DIR, with its settings")
    return parser


def _warn(message: str) -> None:
    print(f"fastloss train: {files.printable(message)}", file=sys.stderr, flush=True)


class _Interrupt:
    """Ctrl-C asks to stop; a second one stops at once."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> _Interrupt:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Run:
    """Steps and reports until time, steps or patience are over."""

    def __init__(
        self,
        model: Model,
        records: list[report.Record],
        seconds: float,
        args: argparse.Namespace,
        unigram: float,
        save: Callable[[], None],
    ) -> None:
        self.records = records
        self._model = model
        self._unigram = unigram
        self._save = save
        self._steps: int | None = args.steps
        self._seconds: float = args.seconds or (math.inf if args.steps else DEFAULT_SECONDS)
        self._pause = min(self._seconds * REPORT_SHARE, REPORT_SECONDS)
        self._before = seconds
        self._first_step = model.steps
        self._measuring = 0.0  # seconds spent on held-out perplexity, and the longest
        self._longest = 0.0

    def __call__(self, shown: Plain, interrupt: _Interrupt) -> None:
        model = self._model
        self._start = time.monotonic()
        due = self._pause
        while not (interrupt.wanted or self._over()):
            model.step()
            now = self._elapsed()
            if model.steps % REPORT_STEPS == 0 if self._steps else now >= due:
                self._report(scheduled=True)
                # Measuring takes a tenth of the time at most.
                due = now + max(self._pause, 10 * self._longest)
                shown.show(self._line(), self._share(), True)
            else:
                shown.show(self._line(), self._share(), False)
        if model.steps and not (self.records and self.records[-1]["step"] == model.steps):
            self._report(scheduled=False)
            shown.show(self._line(), self._share(), True)

    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _over(self) -> bool:
        steps_done = self._steps is not None and self._model.steps >= self._steps
        return steps_done or self._elapsed() + self._longest >= self._seconds

    def _share(self) -> float:
        by_time = self._elapsed() / self._seconds
        return max(by_time, self._model.steps / self._steps) if self._steps else by_time

    def _report(self, scheduled: bool) -> None:
        began = self._elapsed()
        perplexity = self._model.perplexity()
        taken = self._elapsed() - began
        self._measuring += taken
        self._longest = max(self._longest, taken)
        record = report.Record(
            step=self._model.steps,
            seconds=round(self._before + self._elapsed(), 3),
            tokens=self._model.steps * self._model.tokens_per_step,
            loss=self._model.mean_loss,
            heldout_perplexity=perplexity,
        )
        if not self.records:
            record["unigram_perplexity"] = self._unigram
        self.records.append(record)
        # A longer run would not have stopped for the last report: the model forgets it.
        if scheduled:
            self._model.reported()
            self._save()

    def _line(self) -> str:
        model, elapsed = self._model, self._elapsed()
        steps = model.steps - self._first_step
        speed = steps * model.tokens_per_step / max(elapsed - self._measuring, 1e-9)
        left = self._seconds - elapsed
        if self._steps:
            left = min(left, (self._steps - model.steps) * elapsed / max(steps, 1))
        minutes, seconds = divmod(max(round(left), 0), 60)
        line = f"step {model.steps:,}  {speed:,.0f} tokens/s  "
        if model.loss_tokens or not self.records:
            line += f"loss {model.mean_loss:.3f}  "
        else:
            line += f"loss {self.records[-1]['loss']:.3f}  "
        if self.records:
            line += f"held-out perplexity {self.records[-1]['heldout_perplexity']:.1f}  "
        return line + f"{minutes}:{seconds:02} left"


def _settings(args: argparse.Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    """Settings of the run: those of the run resumed, else those given, else the defaults."""
    settings = {"paths": args.paths, **saved}
    for name, default in DEFAULTS.items():
        given = getattr(args, name)
        settings.setdefault(name, default if given is None else given)
        if given not in (None, settings[name]):
            option = "--" + name.replace("_", "-")
            raise files.Unusable(f"{option} {given} was given, but the run in {args.out} has {settings[name]}")
    return settings


def _checked(saved: dict[str, Any], out: Path) -> dict[str, Any]:
    """Settings of an earlier run, whose file may be anyone's."""
    paths = saved.get("paths")
    rules = {
        "paths": isinstance(paths, list) and all(isinstance(p, str) and "\0" not in p for p in paths),
        "text": isinstance(saved.get("text"), str),
        "loss": saved.get("loss") in list(OUTPUTS),
        "sampler": saved.get("sampler") in list(SAMPLERS),
    }
    for name, least in (("num_sampled", 1), ("min_count", 1), ("seed", 0)):
        rules[name] = type(saved.get(name)) is int and least <= saved[name] <= MOST
    for name, right in rules.items():
        if not right:
            raise files.Unusable(f"{out / 'model.npz'}: not the model of a run (its {name} cannot be used)")
    return {name: value for name, value in saved.items() if name in rules}


def _compare(args: argparse.Namespace) -> int:
    """Every loss for the same time, each in a folder of its own; then what they reached."""
    if args.resume or args.loss or args.steps:
        raise files.Unusable("--compare trains with every loss, for --seconds: leave out --loss, --steps and --resume")
    out: Path = args.out
    with files.folder_for_results(out):
        return _compare_into(out, args, text.load(args.paths, _settings(args, {})["min_count"], _warn))


def _compare_into(out: Path, args: argparse.Namespace, corpus: text.Corpus) -> int:
    runs: dict[str, list[report.Record]] = {}
    for loss in OUTPUTS:
        print(f"\n{loss}", flush=True)
        one = argparse.Namespace(**(vars(args) | {"loss": loss, "out": out / loss}))
        if _train(one, corpus):
            return 130
        runs[loss] = report.read_metrics(one.out)
    table = report.write_comparison(out, runs, args.seconds or DEFAULT_SECONDS)
    drawn = report.draw_comparison(out, runs, corpus.unigram_perplexity)
    print(f"\n{table}\n{files.printable(out)}: wrote {'compare.txt, compare.svg' if drawn else 'compare.txt'}")
    return 0


def _train(args: argparse.Namespace, corpus: text.Corpus | None = None) -> int:
    """One run; 0, or 1 if it was stopped."""
    out: Path = args.out
    settings = _settings(args, _checked(report.read_settings(out), out) if args.resume else {})
    with files.folder_for_results(out):
        return _train_into(out, args, settings, corpus)


def _train_into(out: Path, args: argparse.Namespace, settings: dict[str, Any], corpus: text.Corpus | None) -> int:
    if corpus is None:
        corpus = text.load(args.paths or settings["paths"], settings["min_count"], _warn)
    digest = corpus.digest()
    if settings.setdefault("text", digest) != digest:
        raise files.Unusable(f"the text is not the one that the run in {out} learned from")
    model = Model(
        corpus, OUTPUTS[settings["loss"]], settings["seed"], _threads.resolve(args.threads), settings["sampler"],
        settings["num_sampled"],
    )  # fmt: skip
    records: list[report.Record] = []
    seconds = 0.0
    if args.resume:
        try:
            model.restore(report.read_arrays(out, model.state()))
        except (TypeError, ValueError) as error:
            reason = files.reason(error)
            raise files.Unusable(f"{out / 'model.npz'}: not the model of this run ({reason})") from None
        records = report.read_metrics(out)
        if len(records) < model.reports:
            raise files.Unusable(f"{out / 'metrics.jsonl'}: {len(records)} reports, the model had {model.reports}")
        seconds = records[-1]["seconds"] if records else 0.0
        del records[model.reports :]
    unigram = corpus.unigram_perplexity
    unknown = corpus.counts[corpus.tokens.index(text.UNKNOWN)] / corpus.counts.sum()
    print(
        f"{corpus.files:,} files, {len(corpus.train):,} training tokens, vocabulary {len(corpus.tokens):,} "
        f"({unknown:.1%} unknown)\n"
        f"held out: {f'{corpus.heldout_files} files' if corpus.heldout_files else 'the last tenth'}, "
        f"{len(corpus.heldout):,} tokens; perplexity is exact, over {len(corpus.targets):,} of them; "
        f"unigram baseline {unigram:.1f}",
        flush=True,
    )

    def save() -> None:
        # Metrics first: if all ends in between, a line too many is dropped on --resume.
        report.write_metrics(out, run.records)
        report.write_model(out, settings, {"tokens": tokens, "counts": corpus.counts, **model.state()})

    tokens = np.array(corpus.tokens)
    run = _Run(model, records, seconds, args, unigram, save)
    with _Interrupt() as interrupt:
        with display() as shown:
            run(shown, interrupt)
        save()
        vectors = model.context.embeddings.value
        report.write_vectors(out, corpus.tokens, vectors)
        report.write_neighbours(out, corpus, vectors)
        drawn = report.write_curve(out, run.records, unigram)
    if interrupt.wanted:
        print("stopped by Ctrl-C; go on with --resume")
    names = ["vectors.txt", "model.npz", "metrics.jsonl", "neighbours.txt", *(["loss.svg"] if drawn else [])]
    print(f"{files.printable(out)}: wrote {', '.join(names)}")
    if not drawn:
        print("no loss.svg: matplotlib is not installed (pip install 'fastloss[cli]')")
    return int(interrupt.wanted)


def _leave_quietly() -> None:
    """Where standard output is full, or nobody reads it any more, Python would complain once more when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 2 for bad arguments and where nothing is usable, 130 for Ctrl-C
    before anything was learned."""
    args = _parser().parse_args(argv)
    try:
        if args.compare:
            return _compare(args)
        _train(args)
        return 0
    except (text.NothingUsable, files.Unusable) as error:
        _warn(str(error))
        return 2
    except (OSError, MemoryError) as error:
        name = getattr(error, "filename", None)
        _warn(files.reason(error) if name is None else f"{name}: {files.reason(error)}")
        _leave_quietly()
        return 1
    except KeyboardInterrupt:
        _warn("interrupted")
        return 130
