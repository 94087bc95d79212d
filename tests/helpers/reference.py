"""Oracles: slow, plain twins of the public functions, in 80-bit arithmetic where the platform has it."""

from __future__ import annotations

import numpy as np

EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}


def wide(a):
    """As long double; bfloat16 goes by way of float32."""
    a = np.asarray(a)
    return (a.astype(np.float32) if a.dtype.kind == "V" else a).astype(np.longdouble)


def ulps(got, want, dtype=None):
    """|got - want| in units in the last place of `want` rounded to dtype; 0 where both are the same inf or NaN."""
    dtype = np.asarray(got).dtype if dtype is None else np.dtype(dtype)
    got, want = wide(got), wide(want)
    with np.errstate(all="ignore"):
        unit = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
        unit = np.maximum(unit, np.longdouble(np.finfo(dtype).smallest_subnormal))
        distance = np.abs(got - want) / unit
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(same, 0, np.where(np.isfinite(distance), distance, np.inf)).astype(float)


def sum_of_others(e):
    """For every class the sum of all others, before and behind it, added up, not subtracted."""
    others = np.zeros_like(e)
    others[..., 1:] = np.cumsum(e, -1)[..., :-1]
    others[..., :-1] += np.cumsum(e[..., ::-1], -1)[..., -2::-1]
    return others


def logsumexp_less(x, axis=-1):
    """(log-sum-exp minus x, for every class), and the softmax: without cancellation, class by class."""
    x = np.moveaxis(wide(x), axis, -1)
    with np.errstate(all="ignore"):
        m = x.max(-1, keepdims=True)
        e = np.exp(x - m)
        total = e.sum(-1, keepdims=True)
        others = sum_of_others(e)
        less = np.where(e > 1e-300 * total, np.log1p(others / e), np.log(total) + (m - x))
    return np.moveaxis(less, -1, axis), np.moveaxis(e / total, -1, axis), np.moveaxis(others / total, -1, axis)


def softmax(x, axis=-1):
    return logsumexp_less(x, axis)[1]


def log_softmax(x, axis=-1):
    return -logsumexp_less(x, axis)[0]


def one_hot(labels, n_classes, axis=-1):
    labels = np.asarray(labels)
    z = (labels[..., None] == np.arange(n_classes)).astype(np.longdouble)
    return np.moveaxis(z, -1, axis)


def _targets(labels, x, axis, class_weight, label_smoothing, where):
    """Logits without masked classes, targets and class weights of the rows."""
    n_classes = x.shape[axis]
    z = one_hot(labels, n_classes, axis) if np.asarray(labels).ndim < x.ndim else np.broadcast_to(wide(labels), x.shape)
    keep = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    if class_weight is None:
        w, row_weight = np.ones(x.shape, np.longdouble), np.ones(z.sum(axis).shape, np.longdouble)
    else:
        w = np.moveaxis(np.broadcast_to(wide(class_weight), np.moveaxis(x, axis, -1).shape), -1, axis)
        row_weight = (w * z).sum(axis)
    kept = keep.sum(axis, keepdims=True)
    q = z if label_smoothing == 0 else (1 - label_smoothing) * z + label_smoothing * keep / kept
    return np.where(keep, x, -np.inf), w * q, row_weight


def cross_entropy(
    labels, logits, axis=-1, class_weight=None, label_smoothing=0.0, where=None, ignore_index=None, z_loss=0.0,
    softcap=None, temperature=1.0,
):  # fmt: skip
    """Losses, gradient to the logits and class weights of the rows; labels are indices or targets."""
    x, tilt = wide(logits), 1 / wide(temperature)
    if softcap is not None:
        u = x / wide(softcap)
        keep = True if where is None else where  # a class taken out is not capped
        x, tilt = wide(softcap) * np.tanh(u), np.where(keep, tilt / np.cosh(u) ** 2, tilt)
    x = x / wide(temperature)
    index = np.asarray(labels).ndim < x.ndim
    x, t, row_weight = _targets(labels, x, axis, class_weight, label_smoothing, where)
    less, p, others = logsumexp_less(x, axis)
    with np.errstate(all="ignore"):
        loss = np.where(t != 0, t * less, 0).sum(axis)
        loss = np.where(np.isnan(less).any(axis), np.nan, loss)
        # p_k sum(t) - t_k, in two terms that cancel only where the truth does
        grad = p * (t.sum(axis, keepdims=True) - t) - t * others
        if z_loss != 0:
            m = x.max(axis, keepdims=True)
            lse = m + np.log(np.exp(x - m).sum(axis, keepdims=True))
            weight = wide(z_loss) * np.expand_dims(row_weight, axis)
            loss = loss + (weight * lse**2).sum(axis)
            grad = grad + 2 * weight * lse * p
        grad = grad * tilt
    if ignore_index is not None and index:
        ignored = np.asarray(labels) == ignore_index
        loss, row_weight = np.where(ignored, 0, loss), np.where(ignored, 0, row_weight)
        grad = np.where(np.expand_dims(ignored, axis), 0, grad)
    return loss, grad, row_weight


def reduce(loss, row_weight, sample_weight=None, reduction="none"):
    weight = np.ones(loss.shape, np.longdouble) if sample_weight is None else wide(sample_weight)
    weight = np.broadcast_to(weight, loss.shape)
    with np.errstate(invalid="ignore"):
        weighted = np.where(weight != 0, loss * weight, 0)
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    total = (row_weight * weight).sum()
    return weighted.sum() / total if total != 0 else np.longdouble(0)


def central_difference(f, x, step=1e-3):
    """Fourth-order central differences of a scalar function of a float64 array, entry by entry."""
    grad = np.empty(x.shape)
    for place in np.ndindex(x.shape):
        values = []
        for k in (-2, -1, 1, 2):
            y = x.copy()
            y[place] += k * step
            values.append(float(f(y)))
        grad[place] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    return grad


# ------------------------------------------------------------------ element-wise losses


def softplus(x):
    x = wide(x)
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def times(a, b):
    """a b, 0 where a is 0 whatever b is."""
    with np.errstate(invalid="ignore"):
        return np.where(a == 0, 0, a * b)


def sigmoid_cross_entropy(labels, logits, pos_weight=1):
    z, x, q = wide(labels), wide(logits), wide(pos_weight)
    return times(q * z, softplus(-x)) + times(1 - z, softplus(x))


def sigmoid_focal(labels, logits, gamma=2.0, alpha=None):
    z, x, g = wide(labels), wide(logits), wide(gamma)
    positive, negative = (1, 1) if alpha is None else (wide(alpha), wide(1 - alpha))
    return times(positive * z, np.exp(-g * softplus(x)) * softplus(-x)) + times(
        negative * (1 - z), np.exp(-g * softplus(-x)) * softplus(x)
    )


def squared_error(labels, predictions):
    return (wide(predictions) - wide(labels)) ** 2


def absolute_error(labels, predictions):
    return np.abs(wide(predictions) - wide(labels))


def huber(labels, predictions, delta=1.0):
    d, delta = absolute_error(labels, predictions), wide(delta)
    return np.where(d <= delta, d * d / 2, delta * (d - delta / 2))


def log_cosh(labels, predictions):
    d = absolute_error(labels, predictions)
    near = np.log1p(2 * np.sinh(np.minimum(d, 4) / 2) ** 2)
    return np.where(d < 4, near, d - np.log(np.longdouble(2)) + np.log1p(np.exp(-2 * d)))


def quantile(labels, predictions, quantile=0.5):
    d, q = wide(predictions) - wide(labels), wide(quantile)
    return np.where(d > 0, (1 - q) * d, -q * d)


def poisson(labels, predictions, compute_full_loss=False):
    y, x = wide(labels), wide(predictions)
    loss = np.exp(x) - x * y
    if not compute_full_loss:
        return loss
    more = np.maximum(y, 1)
    two_pi = 2 * np.longdouble("3.14159265358979323846")
    return loss + np.where(y > 1, more * np.log(more) - more + np.log(two_pi * more) / 2, 0)


def gamma(labels, predictions):
    y, x = wide(labels), wide(predictions)
    return x + y * np.exp(-x)


def tweedie(labels, predictions, power=1.5):
    y, x, p = wide(labels), wide(predictions), wide(power)
    if power == 0:
        return (np.exp(x) - y) ** 2 / 2
    if power == 1:
        return poisson(labels, predictions)
    if power == 2:
        return gamma(labels, predictions)
    return np.exp((2 - p) * x) / (2 - p) - y * np.exp((1 - p) * x) / (1 - p)


def hinge(labels, predictions):
    return np.maximum(0, 1 - (2 * wide(labels) - 1) * wide(predictions))


def squared_hinge(labels, predictions):
    return hinge(labels, predictions) ** 2


def divergence(labels, predictions):
    y, x = wide(labels), wide(predictions)
    with np.errstate(divide="ignore"):
        return times(y, np.log(y) - x)


def softmax_law(value, labels, logits, class_weight=None, label_smoothing=0.0, where=None, ignore_index=None):
    """Losses and class weights of the rows, classes last; value(s, q) of s = -log p and q = 1 - p."""
    x, t, row_weight = _targets(labels, wide(logits), -1, class_weight, label_smoothing, where)
    less, _, others = logsumexp_less(x)
    loss = times(t, value(less, others)).sum(-1)
    ignored = np.asarray(labels == ignore_index if np.ndim(labels) < x.ndim else False)
    return np.where(ignored, 0, loss), np.where(ignored, 0, row_weight)


def softmax_focal(labels, logits, gamma=2.0, **options):
    return softmax_law(lambda s, q: q ** wide(gamma) * s, labels, logits, **options)


def poly1(labels, logits, epsilon=1.0, **options):
    return softmax_law(lambda s, q: s + wide(epsilon) * q, labels, logits, **options)
