"""Softmax and log-softmax, their gradients and bits: against plain float64, PyTorch and differences."""

from __future__ import annotations

import numpy as np
import pytest
from differences import check_gradients

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads

NAN, INF, HUGE = np.nan, np.inf, 1e30

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def softmax_reference(x, axis):
    """Plain float64, column by column."""
    y = np.empty(x.shape)
    for place in np.ndindex(*np.delete(x.shape, axis)):
        column = np.moveaxis(x, axis, -1)[place].astype(float)
        exponentials = [np.exp(value - max(column)) for value in column]
        np.moveaxis(y, axis, -1)[place] = np.array(exponentials) / sum(exponentials)
    return y


SHAPES = [
    ((3, 10), 1),
    ((3, 10), 0),
    ((2, 5, 40), 1),
    ((2, 3, 4, 70), 1),
    ((2, 3, 300), 1),
    ((7,), 0),
    ((4, 1), -1),
    ((130, 17), 1),  # two blocks of short rows, and a rest
    ((2, 300), 1),  # longer rows
]


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_softmax(device, shape, axis, dtype):
    x = (np.random.default_rng(0).standard_normal(shape) * 8).astype(dtype)
    expected = softmax_reference(x, axis)
    y = to_device(fc.softmax(to_device(x, device), axis), "cpu")
    log_y = to_device(fc.log_softmax(to_device(x, device), axis), "cpu")
    eps = np.finfo(dtype).eps
    assert y.dtype == log_y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=40 * eps)
    np.testing.assert_allclose(log_y, np.log(expected), rtol=4 * eps, atol=40 * eps)


@pytest.mark.parametrize(("shape", "axis"), [case for case in SHAPES if np.prod(case[0]) < 500])
def test_softmax_gradients_against_differences(shape, axis):
    x = np.random.default_rng(0).standard_normal(shape)
    check_gradients(lambda t: fc.softmax(t, axis), x)
    check_gradients(lambda t: fc.log_softmax(t, axis), x)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_softmax_against_torch(shape, axis):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    x, gy = (np.random.default_rng(seed).standard_normal(shape) for seed in (0, 1))
    for name in ("softmax", "log_softmax"):
        ours, theirs = fc.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, expected = getattr(fc, name)(ours, axis), getattr(torch, name)(theirs, axis)
        y.backward(gy)
        expected.backward(torch.tensor(gy))
        np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=1e-13)
        np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-12, atol=1e-14)


def test_softmax_of_extreme_rows(device):
    x = np.array([[NAN, 1, 2], [INF, 1, 2], [-INF] * 3, [HUGE, 0, -HUGE], [-INF, 0, 0], [1e3, 1e3, -1e3]])
    y = to_device(fc.softmax(to_device(x, device), 1), "cpu")
    assert np.isnan(y[:3]).all()
    assert y[3:].tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]]
    assert fc.softmax(x[:0], 1).shape == (0, 3)
    assert fc.log_softmax(x.T[:, :0], 0).shape == (3, 0)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(("operation", "expected"), [(fc.softmax, 1), (fc.log_softmax, 0)])
def test_softmax_of_a_number(device, operation, expected, axis):
    x = fc.Tensor(to_device(np.array(3.0), device), requires_grad=True)
    y = operation(x, axis)
    y.backward()
    assert y.shape == x.grad.shape == ()
    assert (y.item(), x.grad.item()) == (expected, 0)


@every_dtype
@pytest.mark.parametrize(("shape", "axis"), [((64, 10), 1), ((64, 3, 301), 1), ((64, 7, 5), 2)])
def test_softmax_has_the_same_bits_for_any_threads_and_batch(device, shape, axis, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    x, gy = (np.random.default_rng(seed).standard_normal(shape).astype(dtype) for seed in (0, 1))

    def everything(batch):
        results = []
        for operation in (fc.softmax, fc.log_softmax):
            tensor = fc.Tensor(to_device(x[:batch], device), requires_grad=True)
            y = operation(tensor, axis)
            y.backward(to_device(gy[:batch], device))
            results += [y.numpy(), to_device(tensor.grad, "cpu")]
        return results

    fc.set_num_threads(1)
    expected = everything(64)
    for count in (2, 3, 8):
        fc.set_num_threads(count)
        assert [a.tobytes() for a in everything(64)] == [a.tobytes() for a in expected]
    for batch in (1, 2, 7):
        assert [a[0].tobytes() for a in everything(batch)] == [a[0].tobytes() for a in expected]
