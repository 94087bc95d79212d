"""Scratch: where it begins, and that no two calls share it."""

import numpy as np
import pytest

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


def test_large_scratch_is_kept_once_and_never_shared():
    n = _memory.RECYCLED.stop
    first, second = (_memory.pieces(np.dtype(np.uint8), n)[0] for _ in range(2))
    assert not np.shares_memory(first, second)
    rest = first[1:]
    del first
    assert not _memory._kept  # a part of it is still there
    del rest, second
    assert len(_memory._kept) == 1
    again = _memory.pieces(np.dtype(np.uint8), n)[0]
    assert not _memory._kept
    larger = _memory.pieces(np.dtype(np.uint8), 2 * n)[0]
    assert not np.shares_memory(again, larger)


def test_too_large_scratch_is_not_kept():
    del _memory.pieces(np.dtype(np.uint8), _memory.KEPT + 1)[:]
    assert not _memory._kept
