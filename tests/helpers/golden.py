"""The recorded reference values, read from tests/golden."""

import functools
import gzip
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "golden"


@functools.cache
def cases(name: str) -> list[dict[str, Any]]:
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as f:
        found: list[dict[str, Any]] = json.load(f)["cases"]
    return found
