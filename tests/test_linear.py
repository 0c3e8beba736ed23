"""The dense layer: against plain loops, exactly, and its bits."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def products(a, b):
    """a (M, K) @ b (K, N) by correctly rounded sums."""
    sums = [math.fsum(x * y for x, y in zip(row, column)) for row in a.tolist() for column in b.T.tolist()]
    return np.array(sums).reshape(len(a), b.shape[1])


@every_dtype
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        ((4, 5), 3),
        ((5,), 3),
        ((2, 3, 5), 1),
        ((0, 5), 3),
        ((4, 0), 3),
        # many features: whole vectors of them and others, in one step and in several
        ((70, 130), 17),
        ((3, 2101), 13),
        ((9, 1024), 7),
        ((2, 2048), 5),
        # few: less than a tile of samples, and more than a task has; a last vector and a last tile that are not full
        ((3, 60), 37),
        ((1, 128), 64),
        ((200, 24), 41),
        ((389, 7), 16),
    ],
)
def test_linear(device, shape, outputs, dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 10, s).astype(dtype) for s in (shape, (outputs, shape[-1]), (outputs,))]
    tensors = [fc.Tensor(to_device(a, device), requires_grad=True) for a in arrays]
    y = fc.linear(*tensors)
    gy = rng.integers(-9, 10, y.shape).astype(dtype)
    y.backward(to_device(gy, device))
    x, w, b = (a.astype(float) for a in arrays)
    samples = math.prod(shape[:-1])
    rows, cotangents = x.reshape(samples, shape[-1]), gy.astype(float).reshape(samples, outputs)
    expected = products(rows, w.T) + b
    np.testing.assert_array_equal(y.numpy(), expected.reshape(*shape[:-1], outputs))
    gradients = [products(cotangents, w).reshape(shape), products(cotangents.T, rows), cotangents.sum(axis=0)]
    for tensor, gradient in zip(tensors, gradients):
        assert tensor.grad.dtype == dtype
        np.testing.assert_array_equal(to_device(tensor.grad, "cpu"), gradient.reshape(tensor.shape))
    np.testing.assert_array_equal(to_device(fc.linear(*[t.data for t in tensors[:2]]), "cpu"), y.numpy() - b)


@every_dtype
@pytest.mark.parametrize("features", [60, 300, 2101])
def test_linear_has_the_same_bits_for_any_threads_and_batch(device, features, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    shapes = (64, features), (50, features), (50,)
    x, w, b = (
        to_device(np.random.default_rng(seed).standard_normal(s).astype(dtype), device) for seed, s in enumerate(shapes)
    )
    fc.set_num_threads(1)
    alone = to_device(fc.linear(x[:1], w, b), "cpu")[0].tobytes()
    for count, batch in product((1, 2, 3, 8), (2, 7, 64)):
        fc.set_num_threads(count)
        assert to_device(fc.linear(x[:batch], w, b), "cpu")[0].tobytes() == alone
