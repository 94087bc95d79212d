"""How many threads a call takes, and that no start method of processes hangs it."""

import multiprocessing
import os

import numpy as np
import pytest
from shared import python

import fastloss as fl
from fastloss import _parallel
from fastloss._core import threads as _threads

CLEAN = {k: v for k, v in os.environ.items() if k == "OMP_TOOL_LIBRARIES" or not k.startswith("OMP_")}
PRINT = "from fastloss._core import threads as _threads; print(_threads.resolve({}))"


def resolve_in_child(argument="", **environment):
    return int(python(PRINT.format(argument), base=CLEAN, **environment))


@pytest.mark.skipif(_parallel.openmp_max_threads() == 0, reason="built without OpenMP")
def test_policy():
    assert resolve_in_child() == min(_threads._CPUS, _threads._cpus())
    assert resolve_in_child(OMP_NUM_THREADS="3") == 3
    assert resolve_in_child("5", OMP_NUM_THREADS="3") == 5
    assert resolve_in_child("None, 100", OMP_NUM_THREADS="3") == 1  # below the grain


def test_bad_thread_counts():
    for value, error, words in [
        (0, ValueError, "at least 1, got 0"),
        (-2, ValueError, "got -2"),
        ("2", TypeError, "integer"),
    ]:
        with pytest.raises(error, match=words):
            _threads.resolve(value)


def heavy(n_threads):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((512, 1000)), rng.integers(0, 1000, 512)
    return fl.sparse_softmax_cross_entropy_with_logits(labels=y, logits=x, n_threads=n_threads).tobytes()


def child(queue):
    queue.put((_threads.resolve(), heavy(2)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*_at_fork:pytest.PytestUnraisableExceptionWarning")  # JAX's, once imported
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_worker_after_a_parallel_parent(method, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which a worker would obey
    want = heavy(2)  # starts the team that a forked child would wait for
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    n_threads, got = queue.get(timeout=60)
    process.join(10)
    assert process.exitcode == 0
    assert (n_threads, got) == (1, want)


def test_many_python_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    want = heavy(1)
    with ThreadPoolExecutor(4) as pool:
        assert all(got == want for got in pool.map(heavy, [1, 2, 1, 3, 2, 1, 1, 2]))


@pytest.mark.parametrize("shape", [(9000, 1001), (70, 130_003)])
def test_stores_past_the_caches_change_no_bit(shape):
    """Large results of many threads bypass the caches; those of one thread may not, depending on the processor."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, shape).astype(np.float32)
    z = rng.random(shape, dtype=np.float32)
    y = rng.integers(0, shape[1], shape[0])
    calls = [
        lambda n: fl.softmax(x, n_threads=n),
        lambda n: fl.log_softmax(x, n_threads=n),
        lambda n: fl.sigmoid(x, n_threads=n),
        lambda n: fl.sigmoid_cross_entropy_with_logits(labels=z, logits=x, n_threads=n),
        lambda n: fl.value_and_grad(fl.sparse_softmax_cross_entropy_with_logits)(labels=y, logits=x, n_threads=n)[1],
        lambda n: fl.value_and_grad(fl.softmax_cross_entropy_with_logits)(labels=z, logits=x, n_threads=n)[1],
        lambda n: fl.value_and_grad(fl.mean_squared_error)(labels=z, predictions=x, n_threads=n)[1],
    ]
    for call in calls:
        many = call(5)
        assert many.nbytes > 32 << 20
        np.testing.assert_array_equal(many, call(1))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("row", [0, 99_999, 150_000, 199_999])
def test_a_bad_label_is_found_by_whichever_thread(row, dtype):
    labels = np.zeros(200_000, dtype)
    labels[row] = 3
    labels[-1] = -1
    x = np.zeros((labels.size, 3), np.float32)
    out = np.full(labels.size, 7, np.float32)
    for n_threads in (1, 2, 3):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 3\), got {labels[row]} at row {row}"):
            fl.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=x, out=out, n_threads=n_threads)
    assert (out == 7).all()
