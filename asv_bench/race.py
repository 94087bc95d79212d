"""The race: fastloss against every installed peer, interleaved in one process.

    python -m asv_bench.race [--stem softmax] [--threads 1 2] [--seconds 2] [--only NAME]
                             [--json FILE] [--markdown FILE] [--plot FILE] [--readme] [--from FILE...]

For every case of the targets' table each contender has a turn per round, in a new order each round; what counts is the
ratio of the medians, best peer over fastloss.  Cases short of their target, or hardly above it, are raced again after
all the others: other users of a machine disturb it for seconds, so more rounds at once would settle nothing.  All
rounds count.  A thread count is a process of its own, pinned to as many cores, for most frameworks take what they see
when they start.  The machine's own limits are measured in the same run, and each case shows how much of the limit that
binds it it reaches.  A peer that is not installed is named and left out.

Stems may be run apart: ``--from`` draws and tabulates what earlier runs wrote with ``--json``, and runs nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asv_bench import machine, render

NEAR = 1.1  # times a target: a ratio below it is measured again, up to LATER times, for MORE times as long
LATER = 2
MORE = 3
STEMS = ["elementwise", "linear", "sampled", "samplers", "sequence", "softmax"]
README = Path(__file__).parents[1] / "README.md"


@dataclass
class Case:
    """One row of the table: prepare() gives the contenders, fastloss first; each is called without arguments.

    `read` and `written` are bytes, `exps` exponentials in float32, `flops` those of matrix products: what is known of
    them is set against the machine's limits.
    """

    name: str
    prepare: Callable[[Peers], dict[str, Callable[[], Any]]]
    must: float
    aim: float
    read: int = 0
    written: int = 0
    note: str = ""
    exps: int = 0
    flops: int = 0
    headline: bool = False  # is in the README
    against: str = ""  # the peer that the target names, where it is not the fastest one
    rounds: int = 7  # at least; fewer where a call takes many seconds


@dataclass
class Peers:
    """The peers that are installed, imported when first asked for."""

    threads: int
    missing: set[str] = field(default_factory=set)

    def get(self, name: str) -> Any:
        try:
            module = importlib.import_module(name)
        except ImportError:
            self.missing.add(name)
            return None
        if name == "torch":
            if module.get_num_threads() != self.threads:
                module.set_num_threads(self.threads)
            module.compiler.reset()  # else, after eight programs of a function, torch.compile runs it uncompiled
        return module


def share(case: Case, seconds: float, limits: dict[str, float]) -> tuple[str, float] | None:
    """Which limit binds a case most, and how much of it is reached; data that fit a cache are not held to memory's."""
    shares = {
        "exp": case.exps / seconds / 1e9 / limits["exp_G_s"],
        "fma": case.flops / seconds / 1e9 / limits["fma_GFLOP_s"],
    }
    moved = case.read + case.written
    if moved > machine.cache_bytes():
        kind = "copy" if case.written else "read"
        shares[kind] = moved / seconds / 1e9 / limits[f"{kind}_GB_s"]
    name = max(shares, key=shares.__getitem__)
    return (name, shares[name]) if shares[name] else None


class Score:
    """Seconds per call of every contender of a case, in all rounds; ours come first."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.times: dict[str, list[float]] = {}

    def turn(self, peers: Peers, seconds: float) -> None:
        """Rounds with every contender: who is left out leaves the caches to the others."""
        contenders = self.case.prepare(peers)
        for name, more in machine.interleave(contenders, seconds, self.case.rounds, peers.threads).items():
            self.times.setdefault(name, []).extend(more)

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(t) for name, t in self.times.items()}

    @property
    def ours(self) -> str:
        return next(iter(self.times))

    @property
    def best(self) -> str | None:
        """The peer that counts: the one that the target names, else the fastest."""
        medians = self.medians
        others = [name for name in medians if name != self.ours]
        if self.case.against in others:
            return self.case.against
        return min(others, key=medians.__getitem__) if others else None

    @property
    def ratio(self) -> float | None:
        return self.medians[self.best] / self.medians[self.ours] if self.best else None

    def unsettled(self, seconds: float) -> bool:
        """Whether another turn could change what is said of the case; long calls have little noise."""
        limit = self.case.must * (NEAR if sum(self.medians.values()) < seconds else 1)
        return self.ratio is not None and self.ratio < limit

    def row(self, stem: str, threads: int, limits: dict[str, float]) -> dict[str, Any]:
        case, medians, best = self.case, self.medians, self.best
        moved = case.read + case.written
        return {
            "case": case.name,
            "stem": stem,
            "headline": case.headline,
            "note": case.note,
            "threads": threads,
            "fastloss_ms": medians[self.ours] * 1e3,
            "best_peer": best,
            "peer_ms": medians[best] * 1e3 if best else None,
            "ratio": self.ratio,
            "must": case.must,
            "aim": case.aim,
            "GB_s": moved / medians[self.ours] / 1e9 if moved else None,
            "share": share(case, medians[self.ours], limits),
            "rounds": len(self.times[self.ours]),
            "all_ms": {name: m * 1e3 for name, m in medians.items()},
            "min_ms": {name: min(t) * 1e3 for name, t in self.times.items()},
        }


def measure(stems: list[str], threads: int, seconds: float, only: str) -> dict[str, Any]:
    """All cases, in this process."""
    peers = Peers(threads)
    limits = machine.limits(threads)
    scores = [
        (stem, Score(case))
        for stem in stems
        for case in importlib.import_module(f"asv_bench.race_{stem}").CASES
        if only in case.name
    ]
    for later in range(1 + LATER):
        for stem, score in scores:
            if not later or score.unsettled(seconds):
                score.turn(peers, MORE * seconds if later else seconds)
                print(render.line(score.row(stem, threads, limits)), file=sys.stderr, flush=True)
    rows = [score.row(stem, threads, limits) for stem, score in scores]
    return {"threads": threads, "limits": limits, "missing": sorted(peers.missing), "rows": rows}


def race(options: argparse.Namespace) -> dict[str, Any]:
    """A process for each thread count."""
    arguments = ["asv_bench.race", "--seconds", str(options.seconds), "--only", options.only, "--stem", *options.stem]
    return machine.facts() | {"results": [machine.worker([*arguments, "--worker", str(n)], n) for n in options.threads]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.race", description=__doc__.split("\n")[0])
    parser.add_argument("--stem", nargs="+", default=STEMS, choices=STEMS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each case and thread count")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    parser.add_argument("--markdown", metavar="FILE", help="write the whole table here")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios here, as SVG")
    parser.add_argument("--readme", action="store_true", help="rewrite the speed table of README.md")
    parser.add_argument("--from", nargs="+", metavar="FILE", dest="files", help="run nothing: take these --json files")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.stem, options.worker, options.seconds, options.only)))
        return 0
    if options.plot:  # what can fail fails before anything is run
        render.need_matplotlib()
    picture = Path(options.plot).resolve() if options.plot and options.readme else None
    if picture and not picture.is_relative_to(README.parent):
        parser.error("--plot must lie in the repository to be shown by --readme")
    runs = [json.loads(Path(file).read_text()) for file in options.files] if options.files else [race(options)]
    if options.json and not options.files:
        Path(options.json).write_text(json.dumps(runs[0], indent=1))
    table = render.Table(runs, STEMS)
    print(table.markdown())
    if options.markdown:
        Path(options.markdown).write_text(table.markdown())
    if options.plot:
        table.plot(options.plot)
    if options.readme:
        render.replace_block(README, "speed", table.readme(picture and picture.relative_to(README.parent)))
    return int(any(render.short(row) for row in table.rows))


if __name__ == "__main__":
    raise SystemExit(main())
