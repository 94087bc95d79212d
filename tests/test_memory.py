"""Scratch and large results: where they begin, that no two share memory, and that what was dropped is used again."""

import subprocess
import sys

import numpy as np
import pytest

import fastloss as fl
from fastloss import _memory


def address(a):
    return a.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(_memory, "_kept", [])


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


def test_large_scratch_is_kept_and_never_shared():
    n = _memory.RECYCLED.stop
    first, second = (_memory.pieces(np.dtype(np.uint8), n)[0] for _ in range(2))
    assert not np.shares_memory(first, second)
    rest = first[1:]
    del first
    assert not _memory._kept  # a part of it is still there
    del rest, second
    assert len(_memory._kept) == 2
    again, more = (_memory.pieces(np.dtype(np.uint8), n)[0] for _ in range(2))
    assert not _memory._kept
    assert not np.shares_memory(again, more)


def test_what_is_kept_is_of_the_size_asked_for_and_has_a_limit(monkeypatch):
    n = _memory.RECYCLED.stop
    monkeypatch.setattr(_memory, "KEPT", 4 * n)
    del _memory.pieces(np.dtype(np.uint8), 2 * n)[:]
    (kept,) = _memory._kept
    other = _memory.pieces(np.dtype(np.uint8), n - _memory.HUGE)[0]  # a small part of it would be wasteful
    assert _memory._kept == [kept]
    del other
    del _memory.pieces(np.dtype(np.uint8), 3 * n)[:]  # all are too much: the oldest goes
    assert kept not in _memory._kept
    assert sum(room.size for room in _memory._kept) <= 4 * n
    before = list(_memory._kept)
    del _memory.pieces(np.dtype(np.uint8), 4 * n + 1)[:]
    assert _memory._kept == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_large_gradient_lies_where_a_dropped_one_lay(dtype):
    size = _memory.RECYCLED.stop // np.dtype(dtype).itemsize + 5
    both = fl.value_and_grad(fl.mean_squared_error)
    arguments = {"labels": np.zeros(size, dtype), "predictions": np.ones(size, dtype)}
    grads = [both(**arguments)[1] for _ in range(2)]
    assert not np.shares_memory(*grads)
    want = 2 / size
    for grad in grads:
        assert grad.dtype == dtype
        assert grad.flags.carray
        np.testing.assert_allclose(grad, want, rtol=0.01, atol=6e-8)
    places = {address(grad) for grad in grads}
    part = grads.pop()[-3:]
    del grads[:], grad
    again = both(**arguments)[1]
    assert address(again) in places
    assert not np.shares_memory(again, part)
    np.testing.assert_allclose(again, want, rtol=0.01, atol=6e-8)


def test_results_in_columns_are_not_recycled():
    x = np.ones((3000, 3000), np.float32, order="F")
    assert _memory.empty_like(x).flags.f_contiguous
    assert _memory.empty_like(x[::2]).shape == (1500, 3000)
    assert not _memory._kept


def test_no_room_is_a_memory_error(monkeypatch):
    def none(*_):
        raise OSError(12, "Cannot allocate memory")

    x = np.ones(_memory.RECYCLED.stop // 4, np.float32)
    monkeypatch.setattr(_memory.mmap, "mmap", none)
    _memory._kept.append(_memory._Room.__new__(_memory._Room))
    _memory._kept[0].size = 0
    with pytest.raises(MemoryError, match=f"no room for {x.nbytes} bytes"):
        _memory.empty_like(x)
    assert not _memory._kept  # was given up for it
    monkeypatch.setattr(_memory, "KEPT", x.nbytes - 1)
    assert _memory.empty_like(x).flags.owndata  # what will not be kept is no different from NumPy's


KEEPER = """
import builtins, numpy as np, fastloss as fl
x = np.ones(9_000_000, np.float32)
builtins.kept = fl.value_and_grad(fl.mean_squared_error)(labels=x, predictions=x)[1]
"""


def test_a_result_may_outlive_the_module():
    done = subprocess.run([sys.executable, "-c", KEEPER], capture_output=True, text=True, check=True)
    assert done.stderr == ""
