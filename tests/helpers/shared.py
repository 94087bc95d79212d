"""What several test files need: bits compared, programs run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def same_bits(a: Any, b: Any) -> bool:
    """Of two arrays, or of two tuples or lists of arrays: dtype, shape, and every bit."""
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    a, b = np.asarray(a), np.asarray(b)
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def python(
    *arguments: str,
    base: Mapping[str, str] = os.environ,
    before: Callable[[], Any] | None = None,
    timeout: float = 300,
    **environment: str,
) -> str:
    """What a new process prints that runs a program (`arguments`: its text, or ``"FILE", ...``); it must end well."""
    command = [sys.executable, *([] if arguments[0].endswith(".py") else ["-c"]), *arguments]
    done = subprocess.run(
        command, env={**base, **environment}, capture_output=True, text=True, timeout=timeout, preexec_fn=before
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.strip()
