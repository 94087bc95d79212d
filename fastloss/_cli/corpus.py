"""From paths to token ids: finding and reading files, cutting them into tokens, the vocabulary, the held-out part."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sysconfig
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastloss._cli import files

UNKNOWN = "<unk>"
END = "<eof>"
HELDOUT_FILES = 30
HELDOUT_TARGETS = 16384
LARGEST = 1 << 30  # bytes of a file
LONGEST = 64  # longer tokens are data, not words, and would widen the array of tokens
FEWEST = 40  # tokens; below this there is nothing to learn, or nothing to hold out

# Scripts without spaces between words; each of their characters is a token, together with the marks on it.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3040-\u30ff"
    "\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f"
    "\U00020000-\U0003ffff"
)
_MARKS = "".join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c)[0] == "M")
_TOKEN = re.compile(rf"[^\W\d{_UNSPACED}][^\W{_UNSPACED}]*|\d(?:[^\W{_UNSPACED}]|\.)*|[{_UNSPACED}][{_MARKS}]*|[^\w\s]")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_NOT_SOURCE = {"__pycache__", "site-packages", "dist-packages", "test", "tests"}

Warn = Callable[[str], None]
Ids = NDArray[np.int32]


class NothingUsable(Exception):
    """No text is left to learn from."""


@dataclass(frozen=True)
class Corpus:
    """Token ids of the training and the held-out text.

    Attributes
    ----------
    tokens : list of str
        The vocabulary, by falling frequency in the training text.
    counts : int64 array, shape (V,)
        How often each occurs in the training text.
    train, heldout : int32 arrays
        Ids in the order of the text; every file ends with `END`.
    files, heldout_files : int
        How many files were read; how many of them are held out (0: the last tenth of the text).
    """

    tokens: list[str]
    counts: NDArray[np.int64]
    train: Ids
    heldout: Ids
    files: int
    heldout_files: int

    @property
    def end(self) -> int:
        """Id of the token that ends a file."""
        return self.tokens.index(END)

    @property
    def log_unigram(self) -> NDArray[np.float64]:
        """Log of the tokens' shares in the training text, each counted once more so that none is 0; shape (V,)."""
        smoothed = self.counts + 1.0
        logs: NDArray[np.float64] = np.log(smoothed / smoothed.sum())
        return logs

    @property
    def targets(self) -> NDArray[np.int64]:
        """Places in `heldout` of the tokens to be predicted: all, or `HELDOUT_TARGETS` evenly spaced ones."""
        n = len(self.heldout)
        return np.arange(n) if n <= HELDOUT_TARGETS else np.arange(HELDOUT_TARGETS) * n // HELDOUT_TARGETS

    @property
    def unigram_perplexity(self) -> float:
        """Perplexity of the held-out targets when only the tokens' shares are known."""
        return float(np.exp(-self.log_unigram[self.heldout[self.targets]].mean()))

    def digest(self) -> str:
        """Fingerprint of everything that training sees."""
        h = hashlib.sha256("\n".join(self.tokens).encode())
        for array in (self.train, self.heldout):
            h.update(array.astype("<i4").tobytes())
        return h.hexdigest()

    def identifiers(self, n: int) -> list[int]:
        """Ids of the `n` most frequent tokens that are names or words."""
        found = (i for i, token in enumerate(self.tokens) if _IDENTIFIER.fullmatch(token))
        return list(itertools.islice(found, n))


def _walk(top: Path, warn: Warn) -> Iterator[Path]:
    """Files below `top` in sorted order, hidden ones and caches left out."""

    def report(error: OSError) -> None:
        warn(f"{error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(top, onerror=report):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            # What is not there (a dead link) will be named when it is read; pipes and sockets are passed over.
            if not name.startswith(".") and (os.path.isfile(path) or not os.path.exists(path)):
                yield path


def _standard_library() -> list[Path]:
    """The source of Python's standard library, without its tests and without installed packages."""
    top = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(f for f in folders if f not in _NOT_SOURCE)
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    return [path for path in found if path.is_file() and path.stat().st_size > 0]


def _expand(paths: Sequence[str], warn: Warn) -> list[Path]:
    """Every file that `paths` name, once each."""
    if not paths:
        return _standard_library()
    found: dict[Path, Path] = {}
    for name in paths:
        path = Path(name)
        if os.path.isdir(path):
            below = list(_walk(path, warn))
            if not below:
                warn(f"{path}: no files in this directory")
        else:
            below = [path]
        for file in below:
            found.setdefault(Path(os.path.realpath(file)), file)
    return list(found.values())


def _read(path: Path) -> str:
    """The text of a file; ValueError or OSError where there is none."""
    data = files.read(path, LARGEST)
    if b"\0" in data:
        raise ValueError("binary, not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise ValueError("empty")
    return text


def load(paths: Sequence[str], min_count: int, warn: Warn) -> Corpus:
    """Read, tokenise and split text.

    Parameters
    ----------
    paths : sequence of str
        Files and directories; none stands for the source of Python's standard library.
    min_count : int
        Tokens seen less often in the training text become `UNKNOWN`.
    warn : callable
        Called with a message for every file that cannot be used.

    Raises
    ------
    NothingUsable
        If hardly any text is left.
    """
    # Ids in order of appearance come first, so that no token is ever kept more than once.
    known: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    end = known[END]
    texts: list[Ids] = []
    for path in _expand(paths, warn):
        try:
            text = _read(path)
        except (OSError, ValueError) as error:
            warn(f"{path}: {files.reason(error)}")
            continue
        ids = list(map(known.__getitem__, _TOKEN.findall(text)))
        texts.append(np.array([*ids, end], np.int32))

    total = sum(map(len, texts))
    if total < FEWEST:
        raise NothingUsable(f"{total} tokens in {len(texts)} usable files; at least {FEWEST} are needed")
    train, heldout, heldout_files = _split(texts)
    tokens, counts, new_id = _vocabulary(list(known), np.bincount(train, minlength=len(known)), min_count)
    return Corpus(tokens, counts, new_id[train], new_id[heldout], len(texts), heldout_files)


def _split(texts: list[Ids]) -> tuple[Ids, Ids, int]:
    """Training text, held-out text, number of files held out: one in ten, at most 30, evenly spread over the list."""
    n = min(HELDOUT_FILES, len(texts) // 10)
    if n == 0:
        text = np.concatenate(texts)
        cut = len(text) - len(text) // 10
        return text[:cut], text[cut:], 0
    chosen = {(2 * k + 1) * len(texts) // (2 * n) for k in range(n)}
    train = [ids for k, ids in enumerate(texts) if k not in chosen]
    heldout = [ids for k, ids in enumerate(texts) if k in chosen]
    return np.concatenate(train), np.concatenate(heldout), n


def _vocabulary(
    tokens: list[str], counts: NDArray[np.int64], min_count: int
) -> tuple[list[str], NDArray[np.int64], Ids]:
    """Tokens kept, by falling frequency; their counts; the new id of every old one."""
    kept = (counts >= min_count) & np.array([len(token) <= LONGEST for token in tokens])
    kept[0] = True  # END
    old = np.flatnonzero(kept)
    totals = np.append(counts[old], counts[~kept].sum())
    order = np.argsort(-totals, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    new_id = np.full(len(tokens), rank[-1], np.int32)
    new_id[old] = rank[:-1]
    names = [*(tokens[i] for i in old), UNKNOWN]
    return [names[i] for i in order], totals[order], new_id
