"""The next-token model: what is learned, one step of learning, the exact held-out perplexity.

The same bytes at any number of threads: work is cut into blocks of fixed size, each block is one thread's,
and what blocks yield is added in their order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

import fastloss as fl
from fastloss._cli.corpus import Corpus, Ids

DIMENSIONS = 64
CONTEXT = 8  # tokens before the one to be predicted
WINDOW = 16  # neighbouring targets that share their contexts' embeddings
BATCH = 512  # targets per step
RATE = 0.3
INITIAL = 0.01  # of Adagrad's sums: the first steps are short
SCALE = 0.1  # standard deviation of the embeddings at the start
CLASSES = 1024  # rows of the output table per block
MOST_STEPS = 2**53
NUM_SAMPLED = 512  # candidates per step

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[np.generic]]
T = TypeVar("T")


class Pool:
    """Threads that take blocks of work; results come in the order of the blocks."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None

    def each(self, work: Callable[[slice], T], size: int, block: int) -> list[T]:
        """``work`` of every slice of `block` out of `size`."""
        slices = [slice(i, min(i + block, size)) for i in range(0, size, block)]
        return list(self._executor.map(work, slices) if self._executor else map(work, slices))


class Adagrad:
    """A parameter with the sum of its squared gradients, which scales its steps."""

    def __init__(self, value: Floats, squares: Floats | None = None) -> None:
        self.value = value
        self.squares = np.full_like(value, INITIAL) if squares is None else squares

    def update(self, where: slice | Ids, gradient: Floats) -> None:
        """Take a step at rows `where`, each named once."""
        squares = self.squares[where] + gradient * gradient
        self.squares[where] = squares
        self.value[where] -= RATE * gradient / np.sqrt(squares)


class Context:
    """Embeddings of the previous tokens, weighted by position and averaged."""

    def __init__(self, embeddings: Adagrad, positions: Adagrad) -> None:
        self.embeddings = embeddings
        self.positions = positions

    def forward(self, ids: Ids) -> tuple[Floats, Floats]:
        """Hidden vectors of the targets in windows of ids.

        Parameters
        ----------
        ids : int32 array, shape (S, CONTEXT + L)
            S windows of L targets behind their first context.

        Returns
        -------
        hidden : float32 array, shape (S * L, DIMENSIONS + 1)
            The last column is 1, for the bias.
        embedded : float32 array, shape (S, CONTEXT + L - 1, DIMENSIONS)
            What `backward` needs.
        """
        embedded: Floats = self.embeddings.value[ids[:, :-1]]
        windows, length = len(ids), ids.shape[1] - CONTEXT
        hidden = np.ones((windows, length, DIMENSIONS + 1), np.float32)
        mean = np.zeros((windows, length, DIMENSIONS), np.float32)
        for k, weight in enumerate(self.positions.value):
            mean += embedded[:, k : k + length] * weight
        np.multiply(mean, 1 / CONTEXT, out=hidden[:, :, :DIMENSIONS], dtype=np.float32)
        return hidden.reshape(-1, DIMENSIONS + 1), embedded

    def backward(self, ids: Ids, embedded: Floats, d_hidden: Floats) -> None:
        """Learn from the gradient with respect to the hidden vectors, shape (S * L, DIMENSIONS)."""
        windows, length = len(ids), ids.shape[1] - CONTEXT
        d_mean = (d_hidden * np.float32(1 / CONTEXT)).reshape(windows, length, DIMENSIONS)
        d_embedded = np.zeros_like(embedded)
        d_positions = np.empty_like(self.positions.value)
        for k, weight in enumerate(self.positions.value):
            part = slice(k, k + length)
            d_positions[k] = (embedded[:, part] * d_mean).sum((0, 1))
            d_embedded[:, part] += d_mean * weight
        # A token may stand in many places: sort them together, then sum each run.
        flat = ids[:, :-1].ravel()
        order = np.argsort(flat, kind="stable")
        rows, starts = np.unique(flat[order], return_index=True)
        gradient = np.add.reduceat(d_embedded.reshape(-1, DIMENSIONS)[order], starts, axis=0)
        self.embeddings.update(rows, gradient)
        self.positions.update(slice(None), d_positions)


SAMPLERS: dict[str, Callable[[NDArray[np.int64], int], Any]] = {
    "learned": lambda counts, seed: fl.LearnedUnigramSampler(len(counts), seed=seed),
    "log_uniform": lambda counts, seed: fl.LogUniformSampler(len(counts), seed=seed),
    "uniform": lambda counts, seed: fl.UniformSampler(len(counts), seed=seed),
    "unigram": lambda counts, seed: fl.FixedUnigramSampler(counts + 1, seed=seed),
}


class Draws:
    """The candidates of every step: a sampler, at its place in its stream, and how many to draw."""

    def __init__(self, sampler: Any, num_sampled: int) -> None:
        self.sampler = sampler
        self.num_sampled = max(1, min(num_sampled, sampler.range_max // 2))

    def state(self) -> Arrays:
        """All that `restore` needs, as arrays by name."""
        state = self.sampler.state
        words: Arrays = {"sampler": np.array([state[name] for name in ("key", "stream", "block")], np.uint64)}
        return words | ({"sampler_counts": state["counts"]} if "counts" in state else {})

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up where `state` was taken."""
        words = dict(zip(("key", "stream", "block"), map(int, state["sampler"]), strict=True))
        counts = {"counts": state["sampler_counts"]} if "counts" in self.sampler.state else {}
        self.sampler.state = self.sampler.state | words | counts


class Output(Protocol):
    """What learns the output table: a loss of hidden vectors, table and targets."""

    def step(self, hidden: Floats, targets: Ids) -> tuple[float, Floats]:
        """Learn the table; return the sum of the losses and the gradient with respect to `hidden`, bias column off."""
        ...


class FullSoftmax:
    """Softmax cross entropy over the whole vocabulary; its logits are never stored."""

    def __init__(self, table: Adagrad, pool: Pool, draws: Draws | None = None) -> None:
        self._table = table
        self._pool = pool
        self._d_table = np.empty_like(table.value)
        self._value_and_grad = fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))

    def losses(self, hidden: Floats, targets: Ids) -> Floats:
        """Loss of every target."""
        loss: Floats = fl.linear_cross_entropy(
            inputs=hidden, weights=self._table.value, labels=targets, n_threads=self._pool.threads
        )
        return loss

    def step(self, hidden: Floats, targets: Ids) -> tuple[float, Floats]:
        """Learn the table; see `Output`."""
        d_hidden = np.empty_like(hidden)
        total, _ = self._value_and_grad(
            inputs=hidden, weights=self._table.value, labels=targets, reduction="sum",
            grad_out=(d_hidden, self._d_table), n_threads=self._pool.threads,
        )  # fmt: skip
        self._pool.each(lambda rows: self._table.update(rows, self._d_table[rows]), len(self._d_table), CLASSES)
        return float(total), d_hidden[:, :DIMENSIONS]


class Sampled:
    """A loss over the targets and candidates drawn anew in every step; only their rows of the table are touched."""

    def __init__(self, loss: Callable[..., Any], table: Adagrad, pool: Pool, draws: Draws) -> None:
        self._value_and_grad = fl.value_and_grad(loss, ("inputs", "weights"))
        self._table = table
        self._threads = pool.threads
        self._draws = draws
        self._no_biases = np.zeros(len(table.value), np.float32)  # hidden's last column makes the table's last the bias

    def step(self, hidden: Floats, targets: Ids) -> tuple[float, Floats]:
        """Learn the table; see `Output`."""
        value, (d_hidden, gradient) = self._value_and_grad(
            self._table.value, self._no_biases, targets[:, None], hidden, self._draws.num_sampled, len(self._no_biases),
            sampler=self._draws.sampler, remove_accidental_hits=True, reduction="sum", n_threads=self._threads,
        )  # fmt: skip
        once = gradient.coalesce(n_threads=self._threads)
        self._table.update(once.indices, once.values)
        return float(value), d_hidden[:, :DIMENSIONS]


OUTPUTS: dict[str, Callable[[Adagrad, Pool, Draws], Output]] = {
    "full": FullSoftmax,
    "nce": functools.partial(Sampled, fl.nce_loss),
    "sampled_softmax": functools.partial(Sampled, fl.sampled_softmax_loss),
}


class Model:
    """The model, the text it learns from, and how far it has come.

    Parameters
    ----------
    corpus : Corpus
    output : callable
        Makes the `Output` of a table and threads: one of `OUTPUTS`.
    seed : int
        Of the initial embeddings, the order of the text and the candidates.
    threads : int
        Changes speed only.
    sampler, num_sampled : optional
        One of `SAMPLERS` and how many candidates it draws for a step, where the output draws any.
    """

    def __init__(
        self,
        corpus: Corpus,
        output: Callable[[Adagrad, Pool, Draws], Output],
        seed: int,
        threads: int,
        sampler: str = "log_uniform",
        num_sampled: int = NUM_SAMPLED,
    ) -> None:
        self._seed = seed
        self._pool = Pool(threads)
        v = len(corpus.tokens)
        start = np.random.default_rng(seed).standard_normal((v, DIMENSIONS), np.float32)
        table = np.zeros((v, DIMENSIONS + 1), np.float32)
        table[:, -1] = corpus.log_unigram  # learning starts from the baseline
        self.context = Context(Adagrad(start * np.float32(SCALE)), Adagrad(np.ones((CONTEXT, DIMENSIONS), np.float32)))
        self.table = Adagrad(table)
        self._draws = Draws(SAMPLERS[sampler](corpus.counts, seed), num_sampled)
        self._output = output(self.table, self._pool, self._draws)
        self._exact = self._output if isinstance(self._output, FullSoftmax) else FullSoftmax(self.table, self._pool)

        before = np.full(CONTEXT, corpus.end, np.int32)
        self._text = np.concatenate([before, corpus.train])
        self._heldout = np.concatenate([before, corpus.heldout])
        self._targets = corpus.targets
        self._length = min(WINDOW, len(corpus.train))
        # One window may be lost to where an epoch begins.
        self._available = max(1, len(corpus.train) // self._length - 1)
        self._windows = min(BATCH // WINDOW, self._available)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)
        self.steps = 0
        self.reports = 0
        self.loss_sum = 0.0
        self.loss_tokens = 0

    @property
    def tokens_per_step(self) -> int:
        """Targets in a step."""
        return self._windows * self._length

    def _batch(self) -> Ids:
        """Windows of this step: every epoch cuts the text at other places and shuffles the pieces."""
        epoch, place = divmod(self.steps, self._available // self._windows)
        if epoch != self._epoch:
            self._epoch = epoch
            rng = np.random.default_rng([self._seed, epoch])
            last = len(self._text) - CONTEXT - self._length
            first = int(rng.integers(min(self._length, last + 1)))
            self._order = rng.permutation(np.arange(first, last + 1, self._length))
        starts = self._order[place * self._windows : (place + 1) * self._windows]
        ids: Ids = self._text[starts[:, None] + np.arange(CONTEXT + self._length)]
        return ids

    def step(self) -> None:
        """Learn from the next batch."""
        ids = self._batch()
        hidden, embedded = self.context.forward(ids)
        targets = ids[:, CONTEXT:].ravel()
        loss, d_hidden = self._output.step(hidden, targets)
        self.context.backward(ids, embedded, d_hidden)
        self.steps += 1
        self.loss_sum += loss
        self.loss_tokens += len(targets)

    def perplexity(self) -> float:
        """Perplexity of the held-out targets under the full softmax."""
        parts = []
        for i in range(0, len(self._targets), BATCH):
            starts = self._targets[i : i + BATCH]
            ids = self._heldout[starts[:, None] + np.arange(CONTEXT + 1)]
            hidden, _ = self.context.forward(ids)
            parts.append(self._exact.losses(hidden, ids[:, CONTEXT]))
        return float(np.exp(np.concatenate(parts).mean(dtype=np.float64)))

    @property
    def mean_loss(self) -> float:
        """Mean training loss since the last report, in nats."""
        return self.loss_sum / self.loss_tokens

    def reported(self) -> None:
        """Begin a new mean of the training loss."""
        self.reports += 1
        self.loss_sum, self.loss_tokens = 0.0, 0

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that `restore` needs, as arrays by name."""
        return {
            "embeddings": self.context.embeddings.value,
            "positions": self.context.positions.value,
            "weights": self.table.value[:, :-1],
            "biases": self.table.value[:, -1],
            "adagrad_embeddings": self.context.embeddings.squares,
            "adagrad_positions": self.context.positions.squares,
            "adagrad_weights": self.table.squares[:, :-1],
            "adagrad_biases": self.table.squares[:, -1],
            "steps": np.array(self.steps),
            "reports": np.array(self.reports),
            "loss_sum": np.array(self.loss_sum),
            "loss_tokens": np.array(self.loss_tokens),
            **self._draws.state(),
        }

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take up where `state` was taken."""
        for name, given in state.items():
            array: NDArray[Any] = given
            least = np.float32(INITIAL) if name.startswith("adagrad") else 0
            signed = name in ("embeddings", "positions", "weights", "biases")
            if not (signed or np.all(array >= least)) or (name == "steps" and int(array) > MOST_STEPS):
                raise ValueError(f"{name} is out of range")
        for name, array in self.state().items():
            array[...] = state[name]
        self.steps, self.reports = int(state["steps"]), int(state["reports"])
        self.loss_sum, self.loss_tokens = float(state["loss_sum"]), int(state["loss_tokens"])
        self._draws.restore(state)
