"""What value_and_grad and value_grad_hess take: a loss, names of its arguments, buffers for their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastloss._core.inputs.values import shown


def differentiated(loss: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a loss that have a gradient, its main input first."""
    names: tuple[str, ...] | None = getattr(loss, "wrt", None)
    if names is None:
        raise TypeError(f"loss must be a loss of fastloss, got {shown(loss)}")
    return names


def wrt(value: Any, names: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The names to differentiate by, of these, the first by default; whether it is a single one."""
    single = value is None or isinstance(value, str)
    if not single and not (isinstance(value, (tuple, list)) and all(isinstance(name, str) for name in value)):
        raise TypeError(f"wrt must be a name, or a tuple or list of names, got {shown(value)}")
    asked: tuple[str, ...] = names[:1] if value is None else (value,) if isinstance(value, str) else tuple(value)
    for name in asked:
        if name not in names:
            raise ValueError(f"wrt must be among {names}, got {shown(name)}")
    if len(set(asked)) < len(asked):
        raise ValueError(f"wrt must not repeat a name, got {asked}")
    return asked, single


def grad_outs(value: Any, names: tuple[str, ...], single: bool) -> dict[str, Any]:
    """The buffers for gradients, by name."""
    if value is None:
        return {}
    if single:
        return {names[0]: value}
    if not isinstance(value, (tuple, list)) or len(value) != len(names):
        raise ValueError(f"grad_out must be a tuple or list of {len(names)} arrays, as wrt, got {shown(value)}")
    return dict(zip(names, value, strict=True))


def one_buffer_each(name: str, value: Any, n: int, like: str) -> list[Any]:
    """Buffers for n arrays."""
    if isinstance(value, list | tuple) and len(value) == n:
        return list(value)
    raise ValueError(f"{name} must be a list of {n} arrays, as {like}, got {shown(value)}")


def no_buffers(buffers: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raise TypeError if there is a buffer for a gradient that is SparseRows."""
    for name in names:
        if buffers.get(name) is not None:
            raise TypeError(f"grad_out must be None for {name}: its gradient is SparseRows")


def no_upper(kind: str | None, z_loss: bool, softcap: bool) -> None:
    """No bound of the Hessian is known for these."""
    if kind == "upper" and (z_loss or softcap):
        raise ValueError("hessian must be 'diagonal' or 'residual' where z_loss or softcap is given, got 'upper'")
