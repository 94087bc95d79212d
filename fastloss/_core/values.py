"""Single arguments: what arrays, numbers and options may be, and how a message shows what was given instead."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

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


def array(name: str, value: ArrayLike) -> Array:
    """The argument as a plain array, without a copy of one."""
    if type(value) is np.ndarray:
        return value
    if value is None:
        raise TypeError(f"{name} must be given")
    _not_masked(name, value, 0)
    try:
        a = np.asarray(value)
    except MemoryError:
        raise MemoryError(f"no room for {name} as an array") from None
    except Exception as error:  # __array__ may raise anything: a tensor that requires grad a RuntimeError
        raise TypeError(f"{name} must be an array, got {shown(value)}{_tensor(name, value)}: {_line(error)}") from None
    if a.ndim:
        _not_masked(name, value, a.ndim)
    if a.dtype.kind == "O" and not hasattr(value, "dtype"):  # a set, a generator, a dict, any other object
        raise TypeError(f"{name} must be an array of numbers, got {shown(value)}")
    return a


def _not_masked(name: str, value: Any, depth: int) -> None:
    """Raise TypeError for masked arrays and lists of them: their masks would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one (use sample_weight or where)")
    if depth and isinstance(value, list | tuple) and value and not isinstance(value[0], int | float):
        for item in value:
            _not_masked(name, item, depth - 1)


def _tensor(name: str, value: Any) -> str:
    """What to write instead of a tensor that does not convert to an array."""
    if not hasattr(type(value), "detach"):
        return ""
    if "bfloat16" in str(getattr(value, "dtype", "")):
        return f" (write {name}.detach().cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16))"
    return f" (write {name}.detach().cpu().numpy())"


def _line(error: Exception) -> str:
    """The text of an error, at most one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return text[:100] or type(error).__name__


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


def choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of the names."""
    names = list(choices)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {shown(value)}")
    return names[names.index(value)]


def flag(name: str, value: Any) -> bool:
    """True or False, which 1 and 0 may stand for."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_ | int | np.integer) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} must be a bool, got {shown(value)}")
