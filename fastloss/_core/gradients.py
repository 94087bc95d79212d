"""value_and_grad, and how a loss offers its gradients."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastloss._core import inputs as check
from fastloss._core import memory as _memory

Array = NDArray[Any]
Loss = TypeVar("Loss", bound=Callable[..., Any])


class Wants:
    """What a call must give besides its value; the loss leaves the gradients in `grads`, by name."""

    __slots__ = ("buffers", "cotangent", "grads", "hessian", "hessian_kind", "plain", "wrt")

    def __init__(
        self,
        wrt: tuple[str, ...],
        cotangent: ArrayLike | None,
        buffers: dict[str, Any],
        plain: bool,
        hessian_kind: str | None = None,
    ) -> None:
        self.plain = plain  # only the main input's gradient is asked for, times 1
        self.wrt = wrt
        self.cotangent = cotangent
        self.buffers = buffers
        self.grads: dict[str, Any] = {}
        self.hessian_kind = hessian_kind
        self.hessian: Array | None = None


def differentiable(*names: str, hessians: tuple[str, ...] = ()) -> Callable[[Loss], Loss]:
    """Mark a loss that takes `_wants`, which its callers do not use and its shown signature leaves out.

    `names` are the arguments that have a gradient, the main input first; `hessians` the kinds for value_grad_hess.
    """

    def decorate(loss: Loss) -> Loss:
        signature = inspect.signature(loss)
        shown = [parameter for name, parameter in signature.parameters.items() if name != "_wants"]
        loss.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        loss.wrt = names  # type: ignore[attr-defined]
        loss.hessians = hessians  # type: ignore[attr-defined]
        return loss

    return decorate


def value_and_grad(loss: Callable[..., Any], wrt: str | Sequence[str] | None = None) -> Callable[..., Any]:
    """Turn a loss into a function that returns its value and its gradient, in one pass.

    Parameters
    ----------
    loss : function
        A loss of this package.
    wrt : str, or tuple or list of str, optional
        The argument or arguments to differentiate with respect to; the loss's main input (``logits``,
        ``predictions``, ``inputs``) by default.

    Returns
    -------
    function
        Takes the arguments of `loss` and, by keyword,

        cotangent : array_like, optional
            Shaped as the value; multiplies the gradients row by row, ones by default.  An infinite one makes those
            entries infinite that are not 0.
        grad_out : array, or tuple or list of arrays, optional
            Where to write the gradients.  May be the logits themselves: then they are overwritten in place.

        and returns ``(value, gradient)``, with a tuple of gradients, in order, where `wrt` is a tuple or a list.  A
        gradient has the dtype, shape and memory layout of its argument, and is the derivative of the (reduced) value.
        New memory of over 32 MB takes longer than most losses, so hand over `grad_out` where that counts.

    Raises
    ------
    TypeError
        If `loss` is no loss of this package, or `wrt` neither a name nor several.
    ValueError
        If it has no gradient with respect to a name in `wrt`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> f = fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)
    >>> value, grad = f(labels=[0], logits=np.float32([[20, 0]]))
    >>> value
    array([2.0611537e-09], dtype=float32)
    >>> grad
    array([[-2.0611537e-09,  2.0611537e-09]], dtype=float32)
    """
    names = check.differentiated(loss)
    asked, single = check.wrt(wrt, names)
    main = asked == names[:1]

    @functools.wraps(loss)
    def value_and_gradient(*args: Any, cotangent: ArrayLike | None = None, grad_out: Any = None, **kwargs: Any) -> Any:
        buffers = check.grad_outs(grad_out, asked, single)
        wants = Wants(asked, cotangent, buffers, main and cotangent is None)
        value = call(loss, args, kwargs, wants)
        if single:
            return value, wants.grads[asked[0]]
        return value, tuple(wants.grads[name] for name in asked)

    return value_and_gradient


def call(loss: Callable[..., Any], args: Any, kwargs: Any, wants: Wants) -> Any:
    """Call the loss, which leaves its gradients in `wants`; infinite cotangents make gradients infinite that are not 0.

    Gradients are linear in the cotangent, so those of its infinite entries are computed by a second call, with 1 or -1
    in their place.  In one sum, infinities of both signs would give NaN.
    """
    c, infinite = _infinite(wants.cotangent)
    if c is None or infinite is None:
        return loss(*args, _wants=wants, **kwargs)
    # both calls must draw the same random numbers
    some = [_copied(a) for a in args]
    more = {k: _copied(a) for k, a in kwargs.items() if k != "out"}
    apart = Wants(wants.wrt, np.where(infinite, np.sign(c), 0), {}, False, wants.hessian_kind)
    loss(*some, _wants=apart, **more)
    wants.cotangent = np.where(infinite, 0, c)
    value = loss(*args, _wants=wants, **kwargs)
    _add_infinities([*wants.grads.values(), wants.hessian], [*apart.grads.values(), apart.hessian])
    return value


def _infinite(cotangent: ArrayLike | None) -> tuple[Array | None, Array | None]:
    """The cotangent, and a mask of its infinite entries; None if there are none."""
    if cotangent is None:
        return None, None
    c = check.numbers("cotangent", cotangent)
    if c.dtype.kind in "iub":
        return c, None
    each = c[tuple(slice(None if step else 1) for step in c.strides)]  # of a broadcast array every number once
    with np.errstate(all="ignore"):
        if np.isfinite(each.sum()):  # quick: a sum is as fast as reading
            return c, None
    _memory.room("cotangent", f"shape {c.shape}", c.nbytes)
    infinite = np.isinf(c)
    return c, infinite if infinite.any() else None


def _copied(a: Any) -> Any:
    """A copy of what may have a state, as samplers and seeds; the loss refuses what cannot be copied."""
    if isinstance(a, (np.ndarray, list, tuple, str, int, float, type(None))):
        return a
    try:
        return copy.deepcopy(a)
    except Exception:  # a generator, an open file: of whatever kind
        return a


def _add_infinities(to: Any, of: Any) -> None:
    """Add infinity times the other gradients, where infinity times 0 counts as 0."""
    for a, b in zip(to, of, strict=True):
        if isinstance(a, (list, tuple)):
            _add_infinities(a, b)
        elif a is not None:
            a, b = getattr(a, "values", a), getattr(b, "values", b)  # of SparseRows
            with np.errstate(all="ignore"):
                np.add(a, b * b.dtype.type(np.inf), out=a, where=b != 0)
