"""Files of counts, whose every line is checked."""

from __future__ import annotations

import os
import stat
from array import array as growing
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from fastloss._core.inputs.values import shown

ROWS = 2**31 - 1  # entries that a file may have
LINE = 1 << 16  # characters of a line of it


def either(given: bool, path: str) -> None:
    """Counts come as an array or in a file."""
    if given == bool(path):
        raise ValueError("unigrams or vocab_file must be given, and not both")


def file_name(vocab_file: Any) -> str:
    """A path as text."""
    if not isinstance(vocab_file, (str, os.PathLike)):
        raise TypeError(f"vocab_file must be a path, a str or os.PathLike, got {shown(vocab_file)}")
    try:
        path = os.fspath(vocab_file)
        if not isinstance(path, str):
            raise TypeError
    except Exception:  # __fspath__ may raise anything
        raise TypeError(f"vocab_file must be a path that is a str, got {shown(vocab_file)}") from None
    try:
        encoded = os.fsencode(path)
    except UnicodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise ValueError(f"vocab_file must be a name that a file can have, got {shown(path)}")
    return path


def _open(path: str) -> TextIO:
    """Open a regular file.  Others are not even opened, because that may do something, or wait."""
    file = -1
    kind = os.stat(path)
    if stat.S_ISREG(kind.st_mode):
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        kind = os.fstat(file)
    if not stat.S_ISREG(kind.st_mode):
        if file >= 0:
            os.close(file)
        raise ValueError(f"vocab_file must be a regular file, got {_kind(kind.st_mode)}, {shown(path)}")
    return open(file, encoding="utf-8", errors="replace")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def file_counts(path: str, most: int = ROWS) -> NDArray[np.float64]:
    """The last field of each line that is not blank."""
    counts = growing("d")
    most, number = min(most, ROWS), 0
    with _open(path) as file:
        while line := file.readline(LINE + 1):
            number += 1
            if len(line) > LINE or number > ROWS:
                limit = f"lines of at most {LINE} characters" if number <= ROWS else f"at most {ROWS} lines"
                raise ValueError(f"vocab_file must have {limit}, got {shown(line)} at line {number}")
            if not line.strip():
                continue
            field = line.rsplit(",", 1)[-1].strip()
            try:
                if "_" in field:
                    raise ValueError
                count = float.fromhex(field) if "x" in field.lower() else float(field)
            except (ValueError, OverflowError):
                rule = "vocab_file must end each line with a number"
                raise ValueError(f"{rule}, got {shown(field)} at line {number}") from None
            if not 0 <= count < np.inf:
                rule = "vocab_file must hold counts that are finite and not negative"
                raise ValueError(f"{rule}, got {shown(field)} at line {number}")
            if len(counts) == most:
                rule = f"vocab_file must hold at most {most} entries, as many as there are ids"
                raise ValueError(f"{rule}, got one more at line {number}")
            counts.append(count)
    if not counts:
        raise ValueError(f"vocab_file must hold at least one entry, got none in {shown(path)}")
    return np.frombuffer(counts)
