"""Memory: tables, scratch and results are NumPy's own and private; what nobody wrote can be made to show."""

import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest
from shared import python

import fastloss as fl
from fastloss._core import memory as _memory

LARGE = (1 << 25) + 4096  # bytes; of the size of arrays that programs keep for themselves
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def address(a):
    return a.__array_interface__["data"][0]


# ------------------------------------------------------------------ where it lies


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 1000, 70_000, 1 << 20, 9 << 20])
def test_pieces_lie_on_lines_and_apart(dtype, n):
    parts = _memory.pieces(np.dtype(dtype), n, 0, 3, n + 1)
    assert [len(a) for a in parts] == [n, 0, 3, n + 1]
    assert all(address(a) % _memory.LINE == 0 for a in parts if a.size)
    for k, a in enumerate(parts):
        a[:] = k
    for k, a in enumerate(parts):
        assert (a == k).all()


@pytest.mark.parametrize("n", [0, 1, 1000, 1 << 22])
def test_aligned_tables_are_zero_and_begin_with_a_line_or_a_huge_page(n):
    table = _memory.aligned(n, np.dtype(np.int64))
    assert table.shape == (n,)
    assert not table.any()
    assert address(table) % (_memory.HUGE if table.nbytes >= 2 * _memory.HUGE else _memory.LINE) == 0 or n == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_large_result_is_numpys_own(dtype):
    x = np.ones(LARGE // np.dtype(dtype).itemsize, dtype)
    results = [fl.softmax(x), *fl.value_and_grad(fl.mean_squared_error)(labels=x, predictions=x, reduction="none")]
    for result in results:
        assert result.flags.owndata
        assert result.flags.carray
        assert result.base is None
    for k in range(len(results)):
        results[k].resize(7, refcheck=False)
        assert results[k].shape == (7,)


def test_results_in_columns_stay_so():
    x = np.ones((3000, 3000), np.float32, order="F")
    assert _memory.empty_like(x).flags.f_contiguous
    assert _memory.empty_like(x[::2]).shape == (1500, 3000)


KEEPER = """
import builtins, numpy as np, fastloss as fl
x = np.ones(9_000_000, np.float32)
builtins.kept = fl.value_and_grad(fl.mean_squared_error)(labels=x, predictions=x)[1]
"""


def test_a_result_may_outlive_the_module():
    assert python(KEEPER) == ""


# ------------------------------------------------------------------ forked children


@needs_fork
def test_what_a_forked_child_writes_is_its_own():
    x = np.zeros(LARGE // 4, np.float32)
    value, grad = fl.value_and_grad(fl.mean_squared_error)(labels=x, predictions=x + 1, reduction="none")
    want = value.copy(), grad.copy()
    child = os.fork()
    if child == 0:
        value[:] = grad[:] = -7
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(value, want[0])
    np.testing.assert_array_equal(grad, want[1])


def _layer(seed):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.standard_normal((400, 24), np.float32),
        "weights": rng.standard_normal((32_000, 24), np.float32),
        "labels": rng.integers(0, 32_000, 400),
    }


def _linear_sum(seed):
    loss, grad = fl.value_and_grad(fl.linear_cross_entropy)(**_layer(seed), n_threads=1)
    return float(loss.sum(dtype=float)), float(np.abs(grad).sum(dtype=float))


@needs_fork
def test_a_pool_of_forked_workers_computes_what_one_process_does():
    tasks = [k % 3 for k in range(12)]
    want = {seed: _linear_sum(seed) for seed in set(tasks)}  # whatever is kept of it, children inherit
    with multiprocessing.get_context("fork").Pool(2) as pool:
        got = pool.map(_linear_sum, tasks, chunksize=1)
    assert got == [want[seed] for seed in tasks]


# ------------------------------------------------------------------ what nobody wrote

POISONED = """
import numpy as np, ml_dtypes
from fastloss._core import memory as _memory
for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
    for a in (*_memory.pieces(np.dtype(dtype), 5, 70_000), _memory.empty((3, 4), dtype), _memory.small(9, dtype),
              _memory.empty_like(np.zeros((3, 4, 5), dtype).transpose(1, 2, 0))):
        assert np.isnan(a.astype(float)).all(), (dtype, a)
assert (_memory.empty(9, np.int64) == -1).all()
assert not _memory.zeros(9).any()
"""


def test_poison_fills_what_is_not_written_yet():
    python(POISONED, FASTLOSS_POISON="1")
    assert not _memory.POISON or os.environ.get("FASTLOSS_POISON") == "1"


def test_all_memory_is_taken_in_one_place():
    package = Path(_memory.__file__).parent
    for file in package.glob("_*.py"):
        if file.name != "_memory.py":
            found = re.findall(r"^.*\bnp\.empty(?:_like)?\((?!0, ).*$", file.read_text(), re.MULTILINE)
            assert not found, (file.name, found)
