"""add_relu: the bits of an addition and a ReLU, its gradient, and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from differences import check_gradients, spread_out

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads

SHAPES = [(), (0, 3), (1,), (7,), (2, 3, 5, 7), (3, 1, 70001)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_as_two_operations_for_any_threads(device, shape, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    a, b = (np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype) for seed in (0, 1))
    before = fc.get_num_threads()
    try:
        for count in (1, 3):
            fc.set_num_threads(count)
            y = to_device(fc.add_relu(to_device(a, device), to_device(b, device)), "cpu")
            assert y.dtype == dtype and np.array_equal(y, np.maximum(a + b, 0))
    finally:
        fc.set_num_threads(before)


def test_nan_and_infinity():
    a, b = np.array([np.nan, 1, np.inf, np.inf, -np.inf]), np.array([1, np.nan, -np.inf, 1, 1])
    np.testing.assert_array_equal(fc.add_relu(a, b), [np.nan, np.nan, np.nan, np.inf, 0])


def test_gradients():
    rng = np.random.default_rng(0)
    a, total = rng.standard_normal((2, 3, 4)), spread_out(rng, (2, 3, 4))
    check_gradients(fc.add_relu, a, total - a)


def test_only_what_is_asked_for_gets_a_gradient():
    x = fc.Tensor(np.array([1.0, -3.0, 2.0]), requires_grad=True)
    y = fc.add_relu(np.ones(3), x)
    y.backward(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(x.grad, [1, 0, 3])
    fc.add_relu(x, x).sum().backward()  # both operands are one leaf
    np.testing.assert_array_equal(x.grad, [3, 0, 5])


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: fc.add_relu(np.ones((2, 3)), np.ones(3)),
            ValueError,
            "add_relu: input and other must have one shape, got (2, 3) and (3,); relu(input + other) broadcasts",
        ),
        (
            lambda: fc.add_relu(np.ones(3), np.ones(3, "float32")),
            TypeError,
            'add_relu: other is float32 but input is float64; convert one, e.g. input.astype("float32")',
        ),
    ],
)
def test_bad_calls(call, kind, text):
    with pytest.raises(kind, match=f"^{re.escape(text)}$"):
        call()
