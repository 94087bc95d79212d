"""Oracles of the sequence losses: slow, plain twins of the public functions."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
from reference import wide


def collapse(path, blank, merge=True):
    """The labelling of an alignment."""
    kept = [k for i, k in enumerate(path) if not (merge and i and path[i - 1] == k)]
    return tuple(k for k in kept if k != blank)


def every_labelling(logits, blank, merge=True, digits=60):
    """Probability of every labelling, and its share of every class in every frame, over all alignments, in mpmath."""
    with mpmath.workdps(digits):
        x = [[mpmath.mpf(v) if v > -np.inf else -mpmath.inf for v in row] for row in np.asarray(logits, float).tolist()]
        p = [[mpmath.exp(v) / mpmath.fsum(map(mpmath.exp, row)) for v in row] for row in x]
        found = {}
        for path in itertools.product(range(np.shape(logits)[1]), repeat=len(p)):
            mass = mpmath.fprod(p[t][k] for t, k in enumerate(path))
            total, shares = found.setdefault(collapse(path, blank, merge), [mpmath.mpf(0), {}])
            found[collapse(path, blank, merge)][0] = total + mass
            for t, k in enumerate(path):
                shares[t, k] = shares.get((t, k), mpmath.mpf(0)) + mass
    return p, found


def ctc_brute(labels, logits, blank=0, merge=True, collapse_first=False, digits=60):
    """Loss and gradient of one entry, by enumeration, and what the gradient's entries are differences of."""
    y = [k for i, k in enumerate(labels) if not (collapse_first and i and labels[i - 1] == k)]
    p, found = every_labelling(logits, blank, merge, digits)
    with mpmath.workdps(digits):
        total, shares = found.get(tuple(y), (mpmath.mpf(0), {}))
        if total == 0:
            return np.inf, np.full(np.shape(logits), np.nan), None
        grad, unit = np.zeros((2, *np.shape(logits)))
        for t, k in np.ndindex(grad.shape):
            a, both = p[t][k], shares.get((t, k), mpmath.mpf(0))
            b = both / total
            grad[t, k] = a - b
            unit[t, k] = min(max(a, b), max(1 - a, 1 - b))
            if total > 0.38:  # what ctc.pyx takes as confident:
                # P(class, another labelling) and P(class | the labelling) P(another labelling)
                unit[t, k] = max(a - both, b * (1 - total))
        return float(-mpmath.log(total)), grad, unit


class Wide:
    """Non-negative numbers m 2^e, m long double and e int64: nothing over- or underflows."""

    def __init__(self, m, e):
        m, shift = np.frexp(m)
        self.m, self.e = m, np.where(m == 0, -(2**60), e + shift.astype(np.int64))

    @classmethod
    def exp(cls, d):
        with np.errstate(all="ignore"):
            e = np.where(d > -np.inf, np.floor(d / np.log(np.longdouble(2))), 0)
            m = np.where(d > -np.inf, np.exp(d - e * np.log(np.longdouble(2))), 0)
        return cls(m, e.astype(np.int64))

    def __getitem__(self, k):
        return Wide(self.m[k], self.e[k])

    def __mul__(self, other):
        return Wide(self.m * other.m, np.maximum(self.e + other.e, -(2**60)))

    def where(self, mask):
        return Wide(np.where(mask, self.m, 0), self.e)

    def shifted(self, k):
        m, e = np.zeros_like(self.m), np.zeros_like(self.e)
        a, b = (slice(k, None), slice(None, -k)) if k > 0 else (slice(None, k), slice(-k, None))
        m[a], e[a] = self.m[b], self.e[b]
        return Wide(m, e)

    def __add__(self, other):
        top = np.maximum(self.e, other.e)
        return Wide(_ldexp(self.m, self.e - top) + _ldexp(other.m, other.e - top), top)

    def total(self):
        top = self.e.max()
        return Wide(_ldexp(self.m, self.e - top).sum(), top)

    def log(self):
        with np.errstate(all="ignore"):
            return np.log(self.m) + np.where(self.m > 0, self.e, 0) * np.log(np.longdouble(2))

    def over(self, unit):
        """As plain numbers, divided by another one."""
        return _ldexp(self.m / unit.m, self.e - unit.e)


def _ldexp(m, e):
    return np.ldexp(m, np.clip(e, -20000, 16000).astype(np.int32))


def ctc(labels, logits, blank=0, merge=True, collapse_first=False):
    """Loss and gradient of one entry: the lattice in long double with exponents of its own."""
    y = [int(k) for i, k in enumerate(labels) if not (collapse_first and i and labels[i - 1] == k)]
    x = wide(logits)
    with np.errstate(all="ignore"):
        x = x - x.max(1, keepdims=True)
        total = np.exp(x).sum(1, keepdims=True)
        q = Wide.exp(x - np.log(total))
        grad = np.exp(x) / total
    if np.isnan(grad).any():
        return np.nan, np.full(x.shape, np.nan)
    state = np.array([blank, *itertools.chain(*([k, blank] for k in y))])
    n_frames, n = x.shape[0], len(state)
    stay = np.ones(n, bool) if merge else np.arange(n) % 2 == 0
    skip = np.zeros(n, bool)
    for s in range(3, n, 2):
        skip[s] = not merge or state[s] != state[s - 2]
    ahead = np.append(skip[2:], [False, False])[:n]

    first, last = np.arange(n) == 0, np.arange(n) >= n - 2
    alpha = [Wide(first.astype(np.longdouble), np.zeros(n, np.int64))]
    for t in range(n_frames):
        a = alpha[t]
        alpha.append((a.where(stay) + a.shifted(1) + a.shifted(2).where(skip)) * q[t, state])
    end = alpha[-1].where(last).total()
    if end.m == 0:
        return np.inf, np.full(x.shape, np.nan)
    beta = Wide(last.astype(np.longdouble), np.zeros(n, np.int64))
    for t in range(n_frames - 1, -1, -1):
        np.subtract.at(grad[t], state, (alpha[t + 1] * beta).over(end))
        g = beta * q[t, state]
        beta = g.where(stay) + g.shifted(-1) + g.shifted(-2).where(ahead)
    return -end.log(), grad
