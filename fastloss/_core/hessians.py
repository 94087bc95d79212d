"""Second derivatives, for boosting."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from fastloss._core import inputs as check
from fastloss._core.gradients import Wants, call


def value_grad_hess(loss: Callable[..., Any], hessian: str = "diagonal") -> Callable[..., Any]:
    """Turn a loss into a function that returns its value, its gradient and the diagonal of its Hessian.

    Parameters
    ----------
    loss : function
        An element-wise loss of this package, or one of its softmax cross entropies.
    hessian : {"diagonal", "upper", "residual"}, default "diagonal"
        "diagonal" is the second derivative itself.  Only for the softmax cross entropies, whose Hessian is not
        diagonal: "upper" is twice that, which bounds the whole Hessian, :math:`2 p (1 - p)`; "residual" is the
        gradient's magnitude, :math:`|p - y|`.

    Returns
    -------
    function
        Takes the arguments of `loss`, with ``reduction="none"`` by default whatever the loss's own is (boosters want
        one derivative a row, not its share of a mean), and, by keyword,

        cotangent : array_like, optional
            Shaped as the value; multiplies the derivatives row by row.  Ones by default.
        grad_out, hess_out : ndarray, optional
            Where to write the derivatives; `grad_out` may be the main input itself.

        and returns ``(value, gradient, hessian)``, both derivatives with respect to the main input (``logits``,
        ``predictions``), in its dtype, shape and memory layout.

    Raises
    ------
    TypeError
        If `loss` is no loss of this package.
    ValueError
        If it does not offer this Hessian.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> f = fl.value_grad_hess(fl.sigmoid_cross_entropy_with_logits)
    >>> f(labels=[1, 0], logits=np.array([0.0, -40.0]))[2]
    array([2.50000000e-01, 4.24835426e-18])
    """
    names = check.differentiated(loss)
    kind = check.choice("hessian", hessian, loss.hessians)  # type: ignore[attr-defined]

    @functools.wraps(loss)
    def value_gradient_hessian(
        *args: Any, cotangent: ArrayLike | None = None, grad_out: Any = None, hess_out: Any = None, **kwargs: Any
    ) -> Any:
        wants = Wants(names[:1], cotangent, {names[0]: grad_out, "hessian": hess_out}, False, kind)
        value = call(loss, args, {"reduction": "none", **kwargs}, wants)
        return value, wants.grads[names[0]], wants.hessian

    signature = inspect.signature(loss)
    shown = [p.replace(default="none") if p.name == "reduction" else p for p in signature.parameters.values()]
    value_gradient_hessian.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return value_gradient_hessian
