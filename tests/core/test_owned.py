"""Arrays that say where in memory to read or write are the package's own once they were checked.

Between a check and its use other Python code may run: another thread, or that of an argument that is converted.
"""

import copy
import pickle

import numpy as np
import pytest
from shared import python

import fastloss as fl
from fastloss.samplers import samplers as _samplers


class Meddler:
    """An argument whose conversion runs code in the middle of a call."""

    def __init__(self, value, action):
        self.value, self.action = np.asarray(value), action

    def __array__(self, dtype=None, copy=None):
        self.action()
        return self.value.astype(dtype or self.value.dtype)


class Lock:
    """A sampler's lock, waiting for which lets others run."""

    def __init__(self, action):
        self.action = action

    def __enter__(self):
        self.action()

    acquire = __enter__

    def __exit__(self, *_):
        pass

    def release(self):
        pass


# ------------------------------------------------------------------ SparseRows


def guarded(n, width=2):
    """An array of zeros with more zeros behind it, which nobody may touch."""
    whole = np.zeros((n + 8, width))
    return whole[:n], whole[n:]


def test_sparse_rows_own_their_indices():
    indices = np.array([2, 0, 2])
    rows = fl.SparseRows(indices, np.ones((3, 2)), (4, 2))
    indices[:] = 6  # past the end of the target, before that of the array it lies in
    target, behind = guarded(4)
    rows.add_to(target)
    assert not behind.any()
    np.testing.assert_array_equal(target[:, 0], [1, 0, 2, 0])
    assert not rows.indices.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        rows.indices[0] = 6
    assert not rows.coalesce().indices.flags.writeable
    for other in (pickle.loads(pickle.dumps(rows)), copy.deepcopy(rows)):
        assert not other.indices.flags.writeable
        np.testing.assert_array_equal(other.to_dense(), rows.to_dense())


@pytest.mark.parametrize("n", [4, 2**61])
def test_indices_made_writable_again_are_looked_at_again(n):
    rows = fl.SparseRows(np.array([2, 0, 2]), np.ones((3, 2)), (n, 2))
    rows.indices.flags.writeable = True
    rows.indices[1] = -3
    with pytest.raises(ValueError, match=r"indices must lie in \[0, \d+\), got -3 to 2"):
        rows.coalesce() if n > 4 else rows.add_to(guarded(8)[0][4:])


def test_values_of_sparse_rows_are_shared():
    values = np.ones((1, 2))
    rows = fl.SparseRows(np.array([1]), values, (4, 2))
    values[:] = 3
    assert rows.to_dense()[1, 0] == 3


@pytest.mark.parametrize("shards", [1, 2])
def test_gradients_of_tables_own_their_indices(shards):
    labels, ids = np.array([[0], [5]]), np.array([1, 4])
    drawn = ids, np.ones((2, 1)), np.ones(2)
    weights = np.ones((6, 3)) if shards == 1 else [np.ones((3, 3)), np.ones((3, 3))]
    biases = np.zeros(6) if shards == 1 else [np.zeros(3), np.zeros(3)]
    both = fl.value_and_grad(fl.nce_loss, ("weights", "biases"))
    for grads in both(weights, biases, labels, np.ones((2, 3)), 2, 6, sampled_values=drawn)[1]:
        for rows in grads if shards == 2 else [grads]:
            assert not rows.indices.flags.writeable
            assert not np.shares_memory(rows.indices, labels)
            assert not np.shares_memory(rows.indices, ids)


# ------------------------------------------------------------------ labels and candidates of the sampled losses


def sampled(change):
    """The loss and gradients with labels or candidates that change once they were checked."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((30, 4))
    table[20:] = 1e6  # behind the table
    arguments = {
        "weights": table[:20], "biases": np.zeros(20), "labels": np.array([[3], [7]]), "inputs": np.ones((2, 4)),
        "num_sampled": 2, "num_classes": 20, "sampled_values": (np.array([1, 2]), np.ones((2, 1)), np.ones(2)),
    }  # fmt: skip

    def action():
        if change:
            arguments["labels"][:] = 25
            arguments["sampled_values"][0][:] = 26

    both = fl.value_and_grad(fl.sampled_softmax_loss, ("inputs", "weights"))
    loss, (dx, dw) = both(**arguments, sample_weight=Meddler(np.ones(2), action))
    return loss, dx, dw.to_dense()


def test_labels_and_candidates_of_a_sampled_loss_may_change_during_the_call():
    for got, want in zip(sampled(True), sampled(False), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("labels", [[3, 7], ([[3, 4], [7, 8]], [[0.5, 0.25], [1.0, 0.0]])], ids=["classes", "best"])
def test_labels_of_a_linear_loss_may_change_during_the_call(labels):
    def run(change):
        own = tuple(map(np.array, labels)) if isinstance(labels, tuple) else np.array(labels)

        def action():
            if change:
                (own[0] if isinstance(own, tuple) else own)[:] = 30

        table = np.arange(60.0).reshape(30, 2) / 60
        return fl.value_and_grad(fl.linear_cross_entropy, ("inputs", "weights"))(
            inputs=np.ones((2, 2)), weights=table[:20], labels=own, sample_weight=Meddler(np.ones(2), action)
        )

    (loss, grads), (want, want_grads) = run(True), run(False)
    np.testing.assert_array_equal(loss, want)
    for got, of in zip(grads, want_grads, strict=True):
        np.testing.assert_array_equal(got, of)


# ------------------------------------------------------------------ lengths and offsets


@pytest.mark.parametrize("name", ["label_length", "logit_length"])
def test_lengths_of_a_ctc_loss_may_change_during_the_call(name):
    def run(change):
        lengths = {"label_length": np.array([1, 2]), "logit_length": np.array([3, 4])}
        logits = np.arange(4 * 2 * 3, dtype=float).reshape(4, 2, 3) / 9

        def action():
            if change:
                lengths[name][:] = 5  # one past the end

        weight = Meddler(np.ones(2), action)
        return fl.value_and_grad(fl.ctc_loss)(labels=[[1, 2], [2, 1]], logits=logits, **lengths, sample_weight=weight)

    for got, want in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(got, want)


def test_offsets_of_packed_sequences_may_change_during_the_call():
    def run(change):
        offsets, logits = np.array([0, 2, 5]), np.arange(10.0).reshape(5, 2)

        def action():
            if change:
                offsets[:] = [0, 2, 2**40]  # far past the end

        return fl.packed_sequence_loss(logits, [0] * 5, offsets, weights=Meddler(np.ones(5), action))

    np.testing.assert_array_equal(run(True), run(False))


# ------------------------------------------------------------------ samplers

SAMPLERS = {
    "learned": lambda **options: fl.LearnedUnigramSampler(20, seed=1, **options),
    "fixed": lambda **options: fl.FixedUnigramSampler(np.arange(1.0, 21), seed=1, **options),
}


def test_ids_that_are_learned_may_change_during_the_call():
    sampler, ids = SAMPLERS["learned"](), np.array([3, 3, 4])
    sampler._lock = Lock(lambda: ids.fill(40))
    sampler.update(ids)
    assert sampler.counts[3] == 3
    assert sampler.counts.sum() == 23


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("expected_count", ["tries", "inclusion"])
def test_ids_that_are_measured_may_change_during_the_call(monkeypatch, name, expected_count):
    """Another thread may change them as soon as a kernel has looked at them."""
    sampler, ids, seen = SAMPLERS[name](expected_count=expected_count), np.array([3, 3, 4]), []
    kernels = _samplers.samplers

    class Kernels:
        def __getattr__(self, name):
            return getattr(kernels, name)

        def measure(self, law, of, *rest):
            seen.append(np.shares_memory(of, ids))
            return kernels.measure(law, of, *rest)

    monkeypatch.setattr(_samplers, "samplers", Kernels())
    sampler.candidates(ids, 5)
    sampler.probability(ids)
    sampler.expected_count(ids, 5, True, 7.0)
    assert len(seen) >= 2
    assert not any(seen)


def test_a_learned_sampler_survives_true_classes_that_another_thread_changes():
    """Half of the time they lie outside of its range: such a call is refused, or has not seen it."""
    python(RACE, timeout=120)


RACE = """
import threading, time
import numpy as np, fastloss as fl
ids, stop = np.zeros(200_000, np.int64), False

def meddle():
    while not stop:
        ids[:] = 1 << 40
        ids[:] = 3

thread = threading.Thread(target=meddle)
thread.start()
sampler, known, end = fl.LearnedUnigramSampler(20, seed=1), 0, time.monotonic() + 3
while time.monotonic() < end:
    try:
        sampler.candidates(ids, 5)
        known += ids.size
    except ValueError:
        pass
    assert sampler.counts.sum() == 20 + known
stop = True
thread.join()
"""


@pytest.mark.parametrize("ragged", [False, True])
def test_positives_may_change_during_the_call(ragged):
    def run(change):
        ids = np.array([3, 4, 5, 6])
        starts = np.array([0, 2, 4])
        sampler = fl.UniformSampler(20, seed=1)

        def action():
            if change:
                ids[:] = 2**40
                starts[1:] = 2**20

        sampler._lock = Lock(action)
        return fl.sample_negatives(sampler, (starts, ids) if ragged else ids.reshape(2, 2), 5)

    np.testing.assert_array_equal(run(True), run(False))


def test_a_sampler_keeps_nothing_of_its_counts():
    counts = np.arange(1.0, 21)
    sampler, table, other = fl.FixedUnigramSampler(counts, seed=1), fl.AliasTable(counts), fl.LearnedUnigramSampler(20)
    state = {**other.state, "counts": np.arange(1, 21)}
    other.state = state
    before = sampler.probability([3]), table.probability([3]), other.probability([3])
    counts[:] = 1e300
    state["counts"][:] = -(2**62)
    assert before == (sampler.probability([3]), table.probability([3]), other.probability([3]))
