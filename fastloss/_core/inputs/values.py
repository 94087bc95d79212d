"""Numbers and options: what they may be, and how a message shows what was given instead."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np

LONGEST = 60  # characters of a value in a message


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16" and dtype.itemsize == 2


class _Short(reprlib.Repr):
    """A few items and characters of any object; for an array its dtype and shape, unless it is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlong, self.maxstring, self.maxother = 2, 40, 50, LONGEST
        self.maxlist = self.maxtuple = 4
        self.maxdict = self.maxset = self.maxfrozenset = 2

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, np.ndarray):
            return f"{type(x).__name__} of shape {x.shape} and dtype {x.dtype}"
        if isinstance(x, np.bool_ | np.number):
            return str(x)
        return super().repr1(x, level)


_SHORT = _Short()


def shown(value: Any) -> str:
    """The value as messages show it: one line of about 60 characters; its type if it cannot be shown."""
    try:
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # a __repr__ may raise anything
        return f"a {type(value).__name__}"
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= LONGEST + 20 else text[:LONGEST] + "..."


def figure(value: float) -> str:
    """A float in a message, with the digits that tell it from its neighbours."""
    return repr(float(value)).removesuffix(".0")


def instead(name: str, dtype: np.dtype[Any]) -> str:
    """What to write where arrays of this dtype are not taken."""
    if not dtype.isnative:
        return f" (write {name}.astype({name}.dtype.newbyteorder('=')))"
    if dtype == np.dtype("V2"):
        return f" (if it is a saved bfloat16, write {name}.view(ml_dtypes.bfloat16))"
    if dtype.kind in "OSU" or (dtype.kind == "f" and dtype.itemsize > 8):
        return f" (write {name}.astype(float))"
    return ""


def whole(name: str, value: Any, least: int, most: int = 2**63 - 1) -> int:
    """An integer in [least, most]; True and False are not accepted."""
    k = index(name, value)
    if not least <= k <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], got {shown(k)}")
    return k


def index(name: str, value: Any) -> int:
    """Any integer; True and False are not accepted."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool | np.bool_ | np.ma.MaskedArray):
            raise TypeError
        return operator.index(value)
    except Exception:  # __index__ may raise anything
        raise TypeError(f"{name} must be an integer, got {shown(value)}") from None


def scalar(name: str, value: Any, least: float, most: float) -> float:
    """A real number in [least, most]; text is not accepted."""
    try:
        v = value if type(value) is float else _real(value)
    except OverflowError:
        raise ValueError(f"{name} must lie in [{least:g}, {most:g}], got {shown(value)}") from None
    except Exception:  # __float__ may raise anything
        raise TypeError(f"{name} must be a number, got {shown(value)}") from None
    if not least <= v <= most:
        raise ValueError(f"{name} must lie in [{least:g}, {most:g}], got {figure(v)}")
    return v


def _real(value: Any) -> float:
    if isinstance(value, str | bytes | bytearray | np.ma.MaskedArray):
        raise TypeError
    if isinstance(value, np.ndarray | np.generic):
        if value.ndim or not (value.dtype.kind in "biuf" or is_bfloat16(value.dtype)):
            raise TypeError
        return float(value)
    if getattr(value, "ndim", 0):  # an array of another library, perhaps of one number
        raise TypeError
    return float(value)


def positive(name: str, value: Any) -> float:
    """A number above 0."""
    v = scalar(name, value, 0, float("inf"))
    if v == 0:
        raise ValueError(f"{name} must be more than 0, got {figure(v)}")
    return v


def memory_limit(value: Any) -> int | None:
    """Bytes that a call may take; more than any machine has are as good as infinitely many."""
    return None if value is None else int(min(positive("max_memory", value), 2.0**62))


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the names."""
    names = list(choices)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {shown(value)}")
    return names[names.index(value)]


KINDS = ("none", "sum", "mean")


def kind(reduction: Any) -> str:
    """How losses are reduced."""
    if type(reduction) is str and reduction in KINDS:
        return reduction
    return choice("reduction", reduction, KINDS)


def flag(name: str, value: Any) -> bool:
    """True or False, which 1 and 0 may stand for."""
    if value is True or value is False:
        return value
    return bool(value) if isinstance(value, int | np.integer) and value in (0, 1) else boolean(name, value)


def boolean(name: str, value: Any) -> bool:
    """True or False, and no number instead."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {shown(value)}")
