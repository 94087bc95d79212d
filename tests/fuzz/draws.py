"""Random shapes, values and options of one case, all from its seed and number; what was drawn is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .layouts import LAYOUTS

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
INTEGERS = [np.dtype(c) for c in "bBhHiIqQ"]
WIDTHS = 300
EDGES = (1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 131, 132, 133, 255,
         256, 257, 511, 512, 513)  # fmt: skip
KINDS = (
    "normal",
    "bits",
    "spread",
    "spread",
    "confident",
    "equal",
    "huge",
    "tiny",
    "denormal",
    "zero",
    "masked",
    "sick",
)


class Draw:
    """The random choices of one case; `turn` counts the cases of its kind, for what is met in order."""

    def __init__(self, seed: int, number: int, turn: int = 0) -> None:
        self.rng = np.random.default_rng([seed, number])
        self.turn = turn
        self.met: Counter[str] = Counter()

    def note(self, what: str) -> None:
        self.met[what] += 1

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def whole(self, low: int, high: int) -> int:
        """In [low, high]."""
        return int(self.rng.integers(low, high + 1))

    # ------------------------------------------------------------------ shapes

    def width_and_dtype(self, widest: int = 5000) -> tuple[int, np.dtype[Any]]:
        """Every other case takes the next of all widths in both wide dtypes."""
        if self.turn % 2 == 0:
            k = self.turn // 2 % (2 * WIDTHS)
            width, dtype = 1 + k // 2, FLOATS[2 + k % 2]
        else:
            dtype = self.pick(FLOATS)
            width = self.width(widest)
        self.note(f"dtype {dtype.name}")
        return width, dtype

    def width(self, widest: int = 5000) -> int:
        way = self.rng.random()
        if way < 0.3:
            return self.whole(1, 20)
        if way < 0.6:
            return self.whole(1, WIDTHS)
        if way < 0.9:
            return min(widest, self.pick(EDGES))
        if way < 0.95:
            return self.whole(0, 1)
        return self.whole(1, widest)

    def rows(self, width: int, most: int = 20_000) -> int:
        """How many rows of this width: around the sizes of lanes, tiles and slabs."""
        if self.chance(0.02):
            most *= 10  # enough for several threads
            n = most // max(1, width)
        else:
            n = self.whole(0, 9) if self.chance(0.5) else self.pick(EDGES)
        return min(n, max(2, most // max(1, width)))

    def shape(self, size: int, most_axes: int = 4) -> tuple[int, ...]:
        """A shape of about so many elements, with 0 to most_axes axes; some of length 0 and 1."""
        axes = self.whole(0, most_axes) if self.chance(0.4) else 1
        if axes == 0:
            return ()
        shape = [1] * axes
        shape[self.whole(0, axes - 1)] = size
        for k in range(axes - 1):
            n = self.pick((1, 1, 2, 3))
            if shape[k] == 1:
                shape[k] = n
            else:
                shape[k] = max(1, shape[k] // n)
        if self.chance(0.01):
            shape[self.whole(0, axes - 1)] = 0
        self.note(f"axes {axes}")
        return tuple(shape)

    # ------------------------------------------------------------------ values

    def floats(self, shape: tuple[int, ...], dtype: np.dtype[Any], kind: str | None = None) -> Any:
        """Numbers of one of KINDS, the last axis a row's."""
        if kind is None:
            kind = self.pick(KINDS[:-1]) if self.chance(0.5) else self.pick(KINDS[:2])
        self.note(f"values {kind}")
        info = ml_dtypes.finfo(dtype)
        top = float(np.log10(float(info.max)))
        x = self.rng.standard_normal(shape)
        if kind == "normal":
            x *= 3
        elif kind == "spread":  # sums of exp overflow, unless their unit is well chosen
            x *= 10 ** self.rng.uniform(1.5, 3)
        elif kind == "bits":
            x = np.round(4 * x) / 4
        elif kind == "confident" and x.size:
            one = self.rng.integers(0, x.shape[-1] if x.ndim else 1, x.shape[:-1])
            lead = 10.0 ** self.rng.uniform(1, min(4, top - 0.5), x.shape[:-1])
            rows = np.zeros(x.shape)
            if x.ndim:
                np.put_along_axis(rows, one[..., None], lead[..., None], -1)
            x = x + rows
        elif kind == "equal":
            x = np.broadcast_to(x[..., :1], x.shape) if x.ndim else x
        elif kind == "huge":
            x = x * 10.0 ** self.rng.uniform(1, top - 1)
        elif kind == "tiny":
            x = x * 10.0 ** -self.rng.uniform(3, top)
        elif kind == "denormal":
            x = np.round(3 * x) * float(info.smallest_subnormal)
        elif kind == "zero":
            x = np.where(self.rng.random(shape) < 0.5, 0.0, -0.0)
        x = np.clip(x, -float(info.max), float(info.max))
        with np.errstate(all="ignore"):
            x = np.asarray(x).astype(dtype)
        if kind == "masked":
            x = np.where(self.rng.random(shape) < self.pick((0.05, 0.5)), np.asarray(-np.inf, dtype), x)
        elif kind == "sick" and x.size:
            sick = self.rng.random(shape) < 1.5 / x.size
            x = np.where(sick, np.asarray(self.pick((np.nan, np.inf)), dtype), x)
        return np.ascontiguousarray(x).reshape(shape)

    def weights(self, shape: tuple[int, ...], signed: bool = False) -> Any:
        """Some of them 0, of any dtype that fits."""
        how = self.pick(("random", "zeros", "whole", "bool", "half"))
        w = self.rng.uniform(0.25, 4, shape)
        if how == "zeros" or how == "half":
            w = w * (self.rng.random(shape) < 0.7)
        if signed and self.chance(0.5):
            w = w * self.rng.choice([-1.0, 1.0], shape)
        if how == "whole":
            return np.round(w).astype(self.pick([np.dtype(np.int8), np.dtype(np.int64), np.dtype(np.float32)]))
        if how == "bool":
            return np.asarray(w > 2)
        return np.asarray(w).astype(self.pick([np.float64, np.float32] if how != "half" else FLOATS[:2]))

    def broadcast_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One that broadcasts to this: axes of length 1, or left out in front."""
        if self.chance(0.5):
            return shape
        some = tuple(1 if self.chance(0.3) else n for n in shape)
        return some[self.whole(0, len(some)) :] if self.chance(0.4) else some

    def labels(self, shape: tuple[int, ...], n: int, ignored: float = 0.0) -> tuple[Any, int | None]:
        """Integers in [0, n) of any dtype that holds them, and an ignore_index that some of them are."""
        ignore = None
        dtypes = [d for d in INTEGERS if n - 1 <= np.iinfo(d).max]
        dtype = self.pick(dtypes)
        y = self.rng.integers(0, max(n, 1), shape)
        if self.chance(ignored) or n == 0:
            info = np.iinfo(dtype)
            choices = (0, n - 1, info.max, -1, -100, info.min)
            ignore = int(self.pick([v for v in choices if info.min <= v <= min(info.max, 2**63 - 1)]))
            chosen = self.rng.random(shape) < (self.pick((0.1, 0.5, 1.0)) if n else 1.0)
            y = np.where(chosen, np.asarray(ignore).astype(np.int64), y)
            self.note("ignore_index unsigned" if dtype.kind == "u" else "ignore_index signed")
        self.note(f"labels {dtype.name}")
        return np.asarray(y).astype(dtype), ignore

    def layouts(self, arguments: dict[str, Any]) -> dict[str, str]:
        """A layout for some of the arrays."""
        found = {}
        for name, value in arguments.items():
            if isinstance(value, np.ndarray) and value.ndim and self.chance(0.3):
                found[name] = self.pick((*LAYOUTS, "read-only"))
                self.note(f"layout {found[name]}")
        return found

    def repeat(self, a: Any, layouts: dict[str, str], name: str) -> Any:
        """Now and then equal along one axis, to be laid out with stride 0."""
        if a.ndim and a.size and self.chance(0.05):
            k = self.whole(0, a.ndim - 1)
            layouts[name] = f"broadcast {k}"
            self.note("layout broadcast")
            return np.ascontiguousarray(np.broadcast_to(a.take([0], k), a.shape))
        return a
