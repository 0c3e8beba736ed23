"""Nothing is read from the page behind an array: inputs that end where memory does, or a little before."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest
from problems import parse

import fastconv as fc

LINES = (
    "n1 c5 hw14 k8 f1",
    "n1 c5 hw14 k9 f1",
    "n1 c5 hw7 k13 f1",
    "n2 c3 hw13 k16 f1",
    "n1 c4 l37 k8 f1",
    "n1 c17 hw14 k8 f3 p1",
    "n1 c17 hw15 k8 f3 p2 d2",
    "n1 c3 hw15 k8 f3 s2 p1",
    "n1 c6 hw14 k6 f3 p1 g6",
)


@pytest.fixture
def before_the_end():
    """Copies of arrays, some elements before a page that nobody may touch."""
    kept = []

    def copy(array, elements):
        pages = -(-array.nbytes // mmap.PAGESIZE) + 1
        memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
        kept.append(memory)
        whole = np.frombuffer(memory, np.uint8)
        end = pages * mmap.PAGESIZE
        forbidden = ctypes.c_void_p(whole.ctypes.data + end)
        assert ctypes.CDLL(None).mprotect(forbidden, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        begin = end - array.nbytes - elements * array.itemsize
        found = whole[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        found[...] = array
        return found

    return copy


@pytest.mark.skipif(os.name != "posix", reason="memory is protected by a call of POSIX")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("line", LINES)
def test_inputs_at_the_end_of_memory(line, dtype, before_the_end):
    problem = parse(line)
    arrays, function = problem.normal(dtype), getattr(fc, f"conv{problem.rank}d")
    expected = function(arrays.x, arrays.w, **problem.window)
    for elements in (0, 1, 5, 12, 15, 16, 63):
        x, w = before_the_end(arrays.x, elements), before_the_end(arrays.w, elements)
        assert np.array_equal(function(x, w, **problem.window), expected)
