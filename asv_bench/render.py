"""What a race found, as Markdown, as a plot, and in the README."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

UNKNOWN = {"stem": "", "headline": False, "share": None}  # what files of older races lack
UNITS = {"read_GB_s": "GB/s read", "copy_GB_s": "GB/s copied", "exp_G_s": "G/s exp", "fma_GFLOP_s": "GFLOP/s"}


def short(row: dict[str, Any]) -> bool:
    """Whether a row stays under what it must reach."""
    return row["ratio"] is not None and row["ratio"] < row["must"]


def line(row: dict[str, Any]) -> str:
    """One row of the whole table."""
    peer = f"{row['peer_ms']:.3f} | {row['best_peer']} | {row['ratio']:.2f}" if row["best_peer"] else "- | - | -"
    of_limit = f"{row['share'][1]:.0%} of {row['share'][0]}" if row["share"] else "-"
    return (
        f"| {row['case']} | {row['threads']} | {row['fastloss_ms']:.3f} | {peer} | {row['must']:g} | {row['aim']:g} |"
        f" {of_limit} | {'**short**' if short(row) else row.get('note', '')} |"
    )


def plural(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def together(values: Iterable[Any]) -> str:
    """Each value once, in order."""
    return "; ".join(dict.fromkeys(values))


class Table:
    """The rows of one race, or of several whose stems were run apart; a case run again replaces the earlier row."""

    def __init__(self, runs: list[dict[str, Any]], stems: list[str]) -> None:
        self.results = [result for run in runs for result in run["results"]]
        self.machine = together(run["processor"] for run in runs)
        self.versions = together(run["versions"] for run in runs)
        self.date = together(run.get("date", "no date") for run in runs)
        rows = [UNKNOWN | row for result in self.results for row in result["rows"]]
        order = {stem: k for k, stem in enumerate(stems)}
        latest = {(row["threads"], row["case"]): row for row in rows}
        self.rows = sorted(latest.values(), key=lambda row: (row["threads"], order.get(row["stem"], -1)))
        self.threads = sorted({row["threads"] for row in self.rows})

    def _limits(self) -> Iterator[str]:
        """What the machine could do, for each thread count; from least to most where it was measured several times."""
        for n in self.threads:
            found = [
                r["limits"] for r in self.results if n in (r.get("threads"), *(row["threads"] for row in r["rows"]))
            ]
            texts = []
            for key, unit in UNITS.items():
                if values := [limits[key] for limits in found if key in limits]:
                    least, most = f"{min(values):.1f}", f"{max(values):.1f}"
                    texts.append(f"{least if least == most else f'{least}-{most}'} {unit}")
            yield f"{plural(n)}: {', '.join(texts)}"

    def markdown(self) -> str:
        """The whole table, with machine, versions and date."""
        lines = [
            f"{self.machine}; {self.versions}; {self.date}.",
            "",
            "Medians of interleaved rounds, ms. Limits of the machine in the same run, NumPy's and the library's exp:",
            "",
            *(f"- {text}" for text in self._limits()),
            "",
            "| case | threads | fastloss | best peer | peer | ratio | must | aim | share of the limit | |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *map(line, self.rows),
        ]
        if missing := sorted({name for result in self.results for name in result["missing"]}):
            lines += ["", f"Not installed: {', '.join(missing)}."]
        return "\n".join(lines) + "\n"

    def readme(self, picture: Path | None) -> str:
        """The short table: a row for each headline, a ratio for each thread count."""
        cases: dict[str, dict[int, dict[str, Any]]] = {}
        for row in self.rows:
            if row["headline"] and row["best_peer"]:
                cases.setdefault(row["case"], {})[row["threads"]] = row
        first, *more = self.threads
        heads = ["case", "fastloss", "best peer", "ratio", *(f"ratio, {plural(n)}" for n in more)]
        lines = [
            textwrap.fill(
                f"Medians of interleaved rounds in one process, {plural(first)}, ms; the best peer is the fastest of "
                "torch, torch.compile, TensorFlow, JAX, optax, SciPy and NumPy, where they have the case. "
                f"{self.machine}; {self.versions}; {self.date}.",
                width=120,
                break_on_hyphens=False,
            ),
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
        ]
        for case, by_threads in cases.items():
            row = by_threads.get(first)
            cells = ["-"] * 3
            if row:
                cells = [
                    f"{row['fastloss_ms']:.3g}",
                    f"{row['peer_ms']:.3g} ({row['best_peer']})",
                    f"{row['ratio']:.2f}",
                ]
            cells += [f"{by_threads[n]['ratio']:.2f}" if n in by_threads else "-" for n in more]
            lines.append(f"| {' | '.join([case, *cells])} |")
        if picture:
            lines += ["", f"![Best peer's time over fastloss's, case by case]({picture.as_posix()})"]
        return "\n".join(lines)

    def plot(self, file: str) -> None:
        """The ratio of every case as a bar, log axis; a tick where it must be."""
        from matplotlib.ticker import LogLocator

        figure, axes = canvas(width=9, height=1.2 + 0.19 * len({row["case"] for row in self.rows}))
        rows = [row for row in self.rows if row["ratio"] is not None]
        cases = list(dict.fromkeys((row["stem"], row["case"]) for row in rows))
        place = {case: k for k, case in enumerate(sorted(cases, key=lambda case: case[0]))}
        height = 0.8 / max(1, len(self.threads))
        for k, n in enumerate(self.threads):
            ours = [row for row in rows if row["threads"] == n]
            y = [place[row["stem"], row["case"]] + (k - (len(self.threads) - 1) / 2) * height for row in ours]
            lengths = [row["ratio"] - 1 for row in ours]
            axes.barh(y, lengths, height, left=1, color=f"C{k}", label=plural(n))
        musts = {place[row["stem"], row["case"]]: row["must"] for row in rows}
        axes.plot(list(musts.values()), list(musts), "|", color="black", markersize=7, label="must")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", xlabel="best peer's time / fastloss's", ylim=(len(place) - 0.5, -0.5))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(range(len(place)), [case for _, case in place], fontsize=7)
        axes.set_title(f"{self.machine}, {self.date}", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=8)
        save(figure, file)


def replace_block(file: Path, name: str, text: str) -> None:
    """Put text between the marks <!-- name --> and <!-- /name --> of a file."""
    before, mark, rest = file.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (mark and end):
        raise SystemExit(f"{file.name} has no block between <!-- {name} --> and <!-- /{name} -->")
    file.write_text(f"{before}{mark}{text}\n{end}{after}")


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'fastloss[race]'") from None


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Any, file: str) -> None:
    """As SVG, without date or random ids: the same figures draw the same bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "fastloss", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
