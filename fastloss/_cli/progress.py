"""One line of progress: live on a terminal where rich is installed, otherwise a plain line per report."""

from __future__ import annotations

import sys
from typing import Any


class Plain:
    """A printed line per report."""

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, line: str, share: float, report: bool) -> None:
        """Show `line`.

        Parameters
        ----------
        line : str
        share : float
            Of the run that is done, 0 to 1.
        report : bool
            Whether the held-out perplexity is new.
        """
        if report:
            print(line, flush=True)


class Live(Plain):
    """A bar and a line that change in place."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=1.0)

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, line: str, share: float, report: bool) -> None:
        """Show `line`; see `Plain`."""
        self._progress.update(self._task, completed=min(share, 1.0), description=line)


def display() -> Plain:
    """The best display for standard output."""
    if sys.stdout.isatty():
        try:
            from rich.progress import BarColumn, Progress, TextColumn
        except ImportError:
            pass
        else:
            return Live(Progress(BarColumn(20), TextColumn("{task.description}", markup=False)))
    return Plain()
