"""Files that nobody vouches for: opened only where they are files, written so that the former ones stay whole."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 20  # bytes that an archive may ask for at a time


class Unusable(Exception):
    """Arguments, or files of an earlier run, that cannot be used."""


def printable(text: object) -> str:
    """On one line, with what moves cursors or colours terminals escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def reason(error: Exception) -> str:
    """What an error says, in at most a line."""
    return (getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__)[:200]


@contextlib.contextmanager
def opened(path: Path, most: int) -> Iterator[BinaryIO]:
    """A regular file of at most so many bytes, to be read; ValueError for a device, a pipe, a directory."""

    def without_waiting(name: str, flags: int) -> int:  # for a pipe's other end
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"{status.st_size:,} bytes, more than {most:,}")
        yield file


def read(path: Path, most: int) -> bytes:
    """All of a file, which may grow meanwhile."""
    with opened(path, most) as file:
        if os.fstat(file.fileno()).st_size == 0:  # or of those that the system makes up
            raise ValueError("empty")
        return file.read(most)


class Pieces:
    """A file of which nobody reads much at a time: what an archive says about its sizes is not believed."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        data = self._read(min(size, PIECE) if size >= 0 else PIECE)
        if size > PIECE or (size < 0 and len(data) == PIECE):
            raise ValueError("its directory is too large")
        return data


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is whole: a run broken off leaves the old one or the new one."""
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)  # a broken-off run's, or a pipe's, on which we would wait
        with new.open("xb") as file:
            yield file
        os.replace(new, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, reason(error), str(path)) from None
        raise


@contextlib.contextmanager
def folder_for_results(out: Path) -> Iterator[None]:
    """Made, and tried, before hours of work are to be written there; what was made goes again where nothing was."""
    made = [p for p in (out, *out.parents) if not os.path.exists(p)]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
            trial = out / ".fastloss.new"
            with replacing(trial) as file:
                file.write(b"\n")
            trial.unlink()
        except (OSError, ValueError) as error:
            raise Unusable(f"--out {out}: {reason(error)}") from None
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
