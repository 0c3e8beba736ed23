"""Arrays of any strides and dtypes joined on the CPU, by one thread and by several: the values that NumPy gives."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc
from fastconv.autograd import concatenate
from fastconv.backends import threads

JOINED = {
    "whole": lambda x: x,
    "crops": lambda x: x[..., 1:-1],
    "backwards": lambda x: x[:, ::-1],
    "repeated": lambda x: np.broadcast_to(x[:1, :1], x.shape),
    "turned": lambda x: np.ascontiguousarray(x.T).T,
    "swapped": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "cast": lambda x: x.astype(np.float16),
    "empty": lambda x: x[:, :0],
}


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("kind", JOINED)
def test_threads_join_arrays_of_any_strides(kind, axis, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    arrays = [np.random.default_rng(n).standard_normal((3, 5, 7, 40), np.float32) for n in range(3)]
    arrays[1] = JOINED[kind](arrays[1])
    if kind == "crops":
        arrays = [array[..., :38] for array in arrays]
    if kind == "empty":
        arrays = [array[:, :0] if axis != 1 else array for array in arrays]
    for number in (1, 2, 3):
        fc.set_num_threads(number)
        np.testing.assert_array_equal(concatenate(arrays, axis), np.concatenate(arrays, axis), strict=True)
