"""How the cost grows with the work: time per element, from a thousand elements to a hundred million.

    python -m asv_bench.scaling [--seconds S] [--threads 1 2] [--most N] [--plot FILE] [--json FILE]

Losses, and gradients into a buffer, of float32.  The sizes include both sides of the grain, where threads come in; then
follow shapes that might fall off a cliff, each interleaved with a plain one of about the same size.  A thread count is
a process of its own, pinned to as many cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastloss as fl
from asv_bench import machine, render

SIZES = [10**3, 10**4, 32_000, 33_000, 65_000, 66_000, 10**5, 10**6, 10**7, 10**8]  # the grain is 32768 a thread
CLASSES = 1000
KINDS = {
    "sparse softmax": fl.sparse_softmax_cross_entropy_with_logits,
    "sigmoid": fl.sigmoid_cross_entropy_with_logits,
    "squared error": fl.mean_squared_error,
}
FIGURES = ("loss", "gradient")


def numbers(shape: tuple[int, ...], spare: int = 0, shift: int = 0) -> Any:
    """float32 numbers with `spare` unused ones after each row, beginning `shift` bytes after a cache line."""
    wide = (*shape[:-1], shape[-1] + spare)
    block = np.random.default_rng(0).standard_normal(min(math.prod(wide), 1 << 20), np.float32)
    memory = np.empty(4 * math.prod(wide) + 128, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + shift
    x = memory[start : start + 4 * math.prod(wide)].view(np.float32).reshape(wide)
    x[...] = np.resize(block, math.prod(wide)).reshape(wide)
    return x[..., : shape[-1]]


def calls(kind: str, x: Any) -> dict[str, Callable[[], Any]]:
    """Loss, and gradient into a buffer that has been touched."""
    function = KINDS[kind]
    options = {function.wrt[0]: x, "labels": numbers(x.shape)}  # type: ignore[attr-defined]
    if kind == "sparse softmax":
        options["labels"] = np.arange(len(x)) % x.shape[1]
    else:
        options["reduction"] = "mean"
    both, buffer = fl.value_and_grad(function), np.zeros(x.shape, np.float32)
    return {"loss": lambda: function(**options), "gradient": lambda: both(**options, grad_out=buffer)}


def shape_of(kind: str, size: int) -> tuple[int, ...]:
    return (max(1, round(size / CLASSES)), CLASSES) if kind == "sparse softmax" else (size,)


def cliffs() -> Iterator[tuple[str, str, Any, str, Any]]:
    """Kind, name and logits of an awkward shape, then of a plain one."""
    of = "sparse softmax"
    for odd, even in ((17, 16), (1001, 1000), (50257, 50256)):
        n = 4_000_000 // even
        yield of, f"{n} x {odd}", numbers((n, odd)), f"{n} x {even}", numbers((n, even))
    plain = "4000 x 1000", numbers((4000, 1000))
    yield of, "4000 x 1000, rows 1001 apart", numbers((4000, 1000), spare=1), *plain
    yield of, "4000 x 1000, off by a byte", numbers((4000, 1000), shift=1), *plain
    for n in (1, 3):
        yield of, f"{n} x 1000000", numbers((n, 1_000_000)), "8 x 1000000", numbers((8, 1_000_000))
    for kind in ("sigmoid", "squared error"):
        flat = "1000000", numbers((1_000_000,))
        yield kind, "1000003", numbers((1_000_003,)), *flat
        yield kind, "1000000, off by a byte", numbers((1_000_000,), shift=1), *flat
        yield kind, "1000 x 1000, rows 1001 apart", numbers((1000, 1000), spare=1), *flat


def nanoseconds(times: list[float], size: int) -> float:
    return statistics.median(times) * 1e9 / size


def measure(seconds: float, most: int) -> dict[str, Any]:
    """All sizes and shapes, with the threads of this process."""
    sizes, shapes, skipped = [], [], []
    for kind in KINDS:
        for size in SIZES:
            if size > most:
                continue
            if 4 * 4 * size > machine.free_bytes() / 2:  # logits, labels, gradient, and one to make them of
                skipped.append(size)
                continue
            x = numbers(shape_of(kind, size))
            times = machine.interleave(calls(kind, x), seconds)
            sizes.append({"kind": kind, "elements": x.size} | {w: nanoseconds(times[w], x.size) for w in FIGURES})
            print(sizes[-1], file=sys.stderr, flush=True)
    for kind, name, x, plain_name, plain in cliffs():
        one, other = calls(kind, x), calls(kind, plain)
        row: dict[str, Any] = {"kind": kind, "shape": name, "plain": plain_name}
        for what in FIGURES:
            times = machine.interleave({"it": one[what], "plain": other[what]}, seconds)
            row[what] = nanoseconds(times["it"], x.size)
            row[f"{what}_ratio"] = row[what] / nanoseconds(times["plain"], plain.size)
        shapes.append(row)
        print(row, file=sys.stderr, flush=True)
    return {"sizes": sizes, "shapes": shapes, "skipped": sorted(set(skipped))}


def markdown(run: dict[str, Any]) -> str:
    threads = [result["threads"] for result in run["results"]]
    heads = [f"{what}, {render.plural(n)}" for what in FIGURES for n in threads]
    lines = [f"{run['processor']}; {run['versions']}; {run['date']}.", "", "Nanoseconds per element, medians:", ""]
    lines += [f"| loss | elements | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for rows in zip(*(result["sizes"] for result in run["results"]), strict=True):
        cells = [f"{row[what]:.3g}" for what in FIGURES for row in rows]
        lines.append(f"| {rows[0]['kind']} | {rows[0]['elements']} | {' | '.join(cells)} |")
    lines += ["", "Shapes, as times per element over those of a plain shape, interleaved with it:", ""]
    lines += [f"| loss | shape | over | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for rows in zip(*(result["shapes"] for result in run["results"]), strict=True):
        cells = [f"{row[f'{what}_ratio']:.2f}" for what in FIGURES for row in rows]
        lines.append(f"| {rows[0]['kind']} | {rows[0]['shape']} | {rows[0]['plain']} | {' | '.join(cells)} |")
    if skipped := sorted({size for result in run["results"] for size in result["skipped"]}):
        lines += ["", f"Left out for want of memory: {', '.join(map(str, skipped))} elements."]
    return "\n".join(lines) + "\n"


def plot(run: dict[str, Any], file: str) -> None:
    """A line for each loss and gradient; dashed with more threads."""
    figure, axes = render.canvas(width=8, height=5)
    for result, style in zip(run["results"], ("-", "--", ":", "-.") * 9, strict=False):
        for k, kind in enumerate(KINDS):
            rows = [row for row in result["sizes"] if row["kind"] == kind]
            for what, marker in zip(FIGURES, (".", "x"), strict=True):
                label = f"{kind}, {what}, {render.plural(result['threads'])}"
                x, y = [row["elements"] for row in rows], [row[what] for row in rows]
                axes.plot(x, y, style, marker=marker, markersize=5, linewidth=1, color=f"C{k}", label=label)
    axes.set(xscale="log", yscale="log", xlabel="elements", ylabel="nanoseconds per element")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{run['processor']}, {run['date']}", fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, ncols=2)
    render.save(figure, file)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each size and shape")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--most", type=float, default=1e8, help="elements")
    parser.add_argument("--plot", metavar="FILE", help="draw the times here, as SVG")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.seconds, int(options.most))))
        return 0
    if options.plot:
        render.need_matplotlib()
    arguments = ["asv_bench.scaling", "--worker", "--seconds", str(options.seconds), "--most", str(options.most)]
    results = [{"threads": n} | machine.worker(arguments, n) for n in options.threads]
    run = machine.facts() | {"results": results}
    if options.json:
        Path(options.json).write_text(json.dumps(run, indent=1))
    print(markdown(run))
    if options.plot:
        plot(run, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
