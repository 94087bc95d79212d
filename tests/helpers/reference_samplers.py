"""Slow twins of the samplers: Philox in NumPy, TensorFlow's draws one by one, chi-square."""

import math

import numpy as np

LOW = np.uint64(0xFFFFFFFF)


def philox(key, stream, block, blocks):
    """Words of successive blocks of Philox-4x32-10, uint32 [blocks, 4]."""
    number = [(block + i) % 2**64 for i in range(blocks)] if block + blocks > 2**63 else block + np.arange(blocks)
    number = np.array(number, np.uint64)
    c = [
        number & LOW,
        number >> np.uint64(32),
        np.full_like(number, stream % 2**32),
        np.full_like(number, stream >> 32),
    ]
    k = [key % 2**32, key >> 32]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            p1 & LOW,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            p0 & LOW,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return np.stack(c, axis=1).astype(np.uint32)


class Words:
    """The words of one call, one after the other, as Python integers."""

    def __init__(self, seed, call, num_sampled):
        self.block, self.seed, self.store = 512 * num_sampled * call, seed, []

    def word(self):
        if not self.store:
            self.store = philox(87654321, self.seed % (2**31 - 1), self.block, 4096).ravel()[::-1].tolist()
            self.block += 4096
        return self.store.pop()

    def integer(self, n, bits):
        while True:
            x = self.word()
            if bits == 64:
                x |= self.word() << 32
            if n & (n - 1) == 0:
                return x & (n - 1)
            if x >= (2**bits - 1) % n + 1:
                return x % n


def uniform(n):
    return lambda words: words.integer(n, 64)


def log_uniform(n):
    log_range = math.log1p(n)

    def draw(words):
        high, low = words.word() & 0xFFFFF, words.word()
        return (int(math.exp((high << 32 | low) / 2**52 * log_range)) - 1) % n

    return draw


def learned_unigram(counts):
    sums = np.cumsum(counts)

    def draw(words):
        total = int(sums[-1])
        return int(np.searchsorted(sums, words.integer(total, 32 if total < 2**32 else 64), side="right"))

    return draw


def fixed_unigram(weights):
    weights = np.asarray(weights, np.float32)
    n = len(weights)
    total = float(np.add.accumulate(weights.astype(float))[-1])
    share = [float(p) / total for p in weights * np.float32(n)]
    other = list(range(n))
    light = [i for i in range(n) if share[i] < 1]
    heavy = [i for i in range(n) if share[i] >= 1]
    while light and heavy:
        a, b = light.pop(), heavy.pop()
        other[a] = b
        share[b] -= 1 - share[a]
        (light if share[b] < 1 else heavy).append(b)
    for i in light + heavy:
        share[i] = 1.0
    share = np.array(share, np.float32)

    def draw(words):
        r = (words.word() & 0x7FFFFF) / 2**23
        i = words.integer(n, 32)
        return i if r < share[i] else other[i]

    return draw


def sample(draw, seed, call, num_sampled, unique):
    """Ids and number of draws of one call of TensorFlow's kernel."""
    words, ids, tries = Words(seed, call, num_sampled), [], 0
    while len(ids) < num_sampled:
        v = draw(words)
        tries += 1
        if not unique or v not in ids:
            ids.append(v)
    return ids, tries


def chi_square_z(observed, expected):
    """Chi-square statistic as a standard normal deviate (Wilson and Hilferty); cells of expectation 0 must be empty."""
    observed, expected = np.ravel(observed), np.ravel(expected)
    assert not observed[expected == 0].any()
    keep = expected > 0
    observed, expected = observed[keep], expected[keep] * (observed.sum() / expected.sum())
    assert expected.min() > 5
    k = len(expected) - 1
    x = float(((observed - expected) ** 2 / expected).sum())
    return ((x / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))


def inclusion(p, size, nodes=300):
    """Probability that each id is among the first `size` different ones: an integral over the time of its arrival."""
    n = len(p)
    grid = np.linspace(-np.log(p.max()) - 20, 6 - np.log(p.min()), 2000)
    mean = np.array([-np.expm1(-p * np.exp(s)).sum() for s in grid])
    low = np.interp(min(0.5, 0.02 * size), mean, grid) - 14
    high = np.interp(size + 9 * size**0.5, mean, grid) + 1.5 if size + 9 * size**0.5 < n else grid[-1]
    log_time, step = np.linspace(low, high, nodes, retstep=True)
    there = -np.expm1(-np.exp(log_time)[:, None] * p)  # at each time, each id
    number = np.zeros((nodes, n + 1))  # law of how many there are
    number[:, 0] = 1
    for f in there.T[..., None]:
        number[:, 1:] = number[:, 1:] * (1 - f) + number[:, :-1] * f
        number[:, :1] *= 1 - f
    # without one id: the recursion from the side on which it does not blow up
    early, few, many = there <= 0.5, np.zeros_like(there), np.zeros_like(there)
    fewer, enough = np.zeros_like(there), np.zeros_like(there)
    for m in range(size):
        few = (number[:, m : m + 1] - there * few) / np.where(early, 1 - there, 1)
        fewer += few
        few *= early
    for m in range(n, size, -1):
        many = (number[:, m : m + 1] - (1 - there) * many) / np.where(early, 1, there)
        enough += many
        many *= ~early
    density = p * np.exp(log_time[:, None] - p * np.exp(log_time)[:, None])
    return (density * np.where(early, fewer, 1 - enough)).sum(0) * step
