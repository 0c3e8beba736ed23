"""Batch normalisation and sums over batch and space: against plain sums, PyTorch, differences, and themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tolerance
from bad_calls import bad_calls, refused
from differences import check_gradients

import fastconv as fc
from fastconv import backends
from fastconv.autograd import to_device
from fastconv.backends import threads
from fastconv.backends.cpu import normalisation

DTYPES = ["float32", "float64"]
SHAPES = [
    (4, 3),
    (2, 1),
    (5, 3, 7),
    (1, 2, 5),
    (3, 4, 5, 6),
    (2, 3, 100, 101),  # planes of more than one run
    (2, 5, 2, 3, 4),
    (1, 9, 65, 64),  # long planes, and channels enough to share them among threads
]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def drawn(seed, shape, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def per_channel(x):
    """The values of each channel as a list of exact floats."""
    return [np.moveaxis(x, 1, 0)[channel].astype(float).ravel().tolist() for channel in range(x.shape[1])]


def reference(x, weight, bias, eps=1e-5, mean=None, variance=None):
    """Normalised x, mean and biased variance in float64, by correctly rounded sums unless the statistics are given."""
    channels = per_channel(x)
    if mean is None:
        mean = [math.fsum(values) / len(values) for values in channels]
        variance = [math.fsum((value - m) ** 2 for value in values) / len(values) for values, m in zip(channels, mean)]
    mean, variance = np.array(mean, float), np.array(variance, float)
    y = np.empty(x.shape)
    for channel in range(x.shape[1]):
        normalised = (x[:, channel].astype(float) - mean[channel]) / math.sqrt(variance[channel] + eps)
        y[:, channel] = normalised * weight[channel] + bias[channel]
    return y, mean, variance


@every_dtype
@every_shape
def test_channel_sums_exactly(device, shape, dtype):
    x = np.random.default_rng(0).integers(-100, 101, shape).astype(dtype)
    sums = backends.get(device).channel_sum(to_device(x, device))
    assert sums.dtype == dtype
    assert to_device(sums, "cpu").tolist() == [sum(values) for values in per_channel(x)]


@every_dtype
@every_shape
def test_training(device, shape, dtype):
    channels = shape[1]
    x = (drawn(0, shape) * 3 + 5).astype(dtype)
    weight, bias = drawn(1, channels, dtype), drawn(2, channels, dtype)
    running_mean, running_var = drawn(3, channels, dtype), np.abs(drawn(4, channels, dtype))
    expected, mean, variance = reference(x, weight, bias)
    arrays = [to_device(a.copy(), device) for a in (x, running_mean, running_var, weight, bias)]
    y = fc.batch_norm(*arrays, training=True, momentum=0.3)
    eps = np.finfo(dtype).eps
    size = np.abs(weight).max() * (np.abs(x).max() + 1) / np.sqrt(variance.min())
    assert y.dtype == dtype
    np.testing.assert_allclose(to_device(y, "cpu"), expected, rtol=0, atol=8 * eps * size)
    count = x.size // channels
    unbiased = variance * count / (count - 1)
    for array, old, new in ((arrays[1], running_mean, mean), (arrays[2], running_var, unbiased)):
        largest = max(np.abs(old).max(), np.abs(x).max() ** 2)
        allowed = (4 * eps + tolerance.relative(count, "float64")) * largest
        np.testing.assert_allclose(to_device(array, "cpu"), 0.7 * old + 0.3 * new, rtol=0, atol=allowed)
    np.testing.assert_array_equal(to_device(arrays[0], "cpu"), x)


@every_dtype
@every_shape
def test_evaluation(device, shape, dtype):
    channels = shape[1]
    x, weight, bias = drawn(0, shape, dtype), drawn(1, channels, dtype), drawn(2, channels, dtype)
    mean, variance = drawn(3, channels, dtype), np.abs(drawn(4, channels, dtype)) + 0.1
    arrays = [to_device(a.copy(), device) for a in (x, mean, variance, weight, bias)]
    y = fc.batch_norm(*arrays, eps=1e-3)
    expected = reference(x, weight, bias, 1e-3, mean, variance)[0]
    size = np.abs(weight).max() * (np.abs(x).max() + np.abs(mean).max()) / np.sqrt(variance.min())
    np.testing.assert_allclose(to_device(y, "cpu"), expected, rtol=0, atol=4 * np.finfo(dtype).eps * size)
    np.testing.assert_array_equal(to_device(arrays[1], "cpu"), mean)
    np.testing.assert_array_equal(to_device(arrays[2], "cpu"), variance)


@every_dtype
def test_variance_far_from_zero(device, dtype):
    """Squares about the mean, not E[x²] − E[x]²: that would leave nothing of a variance of 1 at 10⁵ (float32)."""
    offset = 1e5 if dtype == "float32" else 1e12
    x = (np.random.default_rng(0).integers(-4, 5, (6, 2, 50, 60)) + offset).astype(dtype)
    mean, variance = backends.get(device).batch_norm_statistics(to_device(x, device))
    _, expected_mean, expected_variance = reference(x, [1, 1], [0, 0])
    assert mean.dtype == variance.dtype == np.float64
    np.testing.assert_allclose(to_device(mean, "cpu"), expected_mean, rtol=1e-14)
    np.testing.assert_allclose(to_device(variance, "cpu"), expected_variance, rtol=1e-6)


@every_shape
def test_gradients_against_finite_differences(shape):
    shape = tuple(min(size, 4) for size in shape)
    x, weight, bias = drawn(0, shape), drawn(1, shape[1]), drawn(2, shape[1])
    mean, variance = drawn(3, shape[1]), np.abs(drawn(4, shape[1])) + 0.5
    check_gradients(lambda *t: fc.batch_norm(t[0], None, None, *t[1:], training=True, eps=1e-2), x, weight, bias)
    check_gradients(lambda t: fc.batch_norm(t, None, None, training=True, eps=1e-2), x)
    check_gradients(lambda *t: fc.batch_norm(t[0], mean, variance, *t[1:]), x, weight, bias)
    check_gradients(lambda t: fc.batch_norm(t, mean, variance), x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@every_shape
def test_against_torch(shape, affine, training):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    channels = shape[1]
    x, gy = drawn(0, shape), drawn(1, shape)
    parameters = [drawn(2, channels), drawn(3, channels)] if affine else [None, None]
    statistics = [drawn(4, channels), np.abs(drawn(5, channels)) + 0.5]
    ours = [fc.Tensor(a, requires_grad=True) for a in (x, *parameters) if a is not None]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, *parameters) if a is not None]
    running, their_running = [a.copy() for a in statistics], [torch.tensor(a) for a in statistics]
    y = fc.batch_norm(ours[0], *running, *ours[1:], training=training)
    expected = torch.nn.functional.batch_norm(theirs[0], *their_running, *theirs[1:], training=training)
    y.backward(gy)
    expected.backward(torch.tensor(gy))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    for mine, other in zip(running, their_running):
        np.testing.assert_allclose(mine, other.numpy(), rtol=1e-12)
    for mine, other in zip(ours, theirs):
        scale = np.abs(other.grad.numpy()).max()
        np.testing.assert_allclose(mine.grad, other.grad.numpy(), rtol=1e-9, atol=1e-11 * max(scale, 1))


@every_dtype
@every_shape
def test_same_bits_for_any_threads(device, shape, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    x, gy, weight = drawn(0, shape, dtype), drawn(1, shape, dtype), drawn(2, shape[1], dtype)

    def everything():
        x_tensor, w_tensor = (fc.Tensor(to_device(a, device), requires_grad=True) for a in (x, weight))
        y = fc.batch_norm(x_tensor, None, None, w_tensor, training=True)
        y.backward(to_device(gy, device))
        return [to_device(a, "cpu").tobytes() for a in (y.data, x_tensor.grad, w_tensor.grad)]

    fc.set_num_threads(1)
    expected = everything()
    for count in (2, 3, 8):
        fc.set_num_threads(count)
        assert everything() == expected


@every_dtype
def test_gradients_channel_by_channel_have_the_same_bits(dtype, monkeypatch):
    gy, x = (drawn(seed, (3, 9, 130, 70), dtype) for seed in range(2))  # planes of two runs
    statistics = [drawn(seed, 9) for seed in (2, 3, 4)]

    def gradients(least_channels):
        monkeypatch.setattr(normalisation, "_MANY_CHANNELS", least_channels)
        return [array.tobytes() for array in normalisation.batch_norm_backward(gy, x, *statistics, of_batch=True)]

    assert gradients(9) == gradients(10)


@every_dtype
def test_evaluation_has_the_same_bits_for_any_batch(device, dtype):
    x, mean, variance = drawn(0, (64, 3, 5, 7), dtype), drawn(1, 3, dtype), np.abs(drawn(2, 3, dtype))
    mean, variance = to_device(mean, device), to_device(variance, device)
    alone = to_device(fc.batch_norm(to_device(x[:1], device), mean, variance), "cpu")[0]
    for batch in (2, 7, 64):
        y = to_device(fc.batch_norm(to_device(x[:batch], device), mean, variance), "cpu")
        assert y[0].tobytes() == alone.tobytes()


@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(device, training):
    x, weight = (fc.Tensor(to_device(a, device), requires_grad=True) for a in (np.zeros((0, 3, 4)), np.ones(3)))
    running = [to_device(drawn(seed, 3) ** 2, device) for seed in (0, 1)]
    kept = [a.copy() for a in running]
    y = fc.batch_norm(x, *running, weight, training=training)
    y.backward(to_device(np.zeros(y.shape), device))
    assert y.shape == x.grad.shape == (0, 3, 4)
    assert to_device(weight.grad, "cpu").tolist() == [0, 0, 0]
    for now, before in zip(running, kept):
        np.testing.assert_array_equal(to_device(now, "cpu"), to_device(before, "cpu"))


def test_running_statistics_in_a_tensor_are_updated():
    x, mean, variance = drawn(0, (4, 3, 5)), fc.Tensor(np.zeros(3)), fc.Tensor(np.ones(3))
    fc.batch_norm(x, mean, variance, training=True, momentum=1.0)
    np.testing.assert_allclose(mean.numpy(), x.mean(axis=(0, 2)))
    np.testing.assert_allclose(variance.numpy(), x.var(axis=(0, 2), ddof=1))


def test_nan_stays_in_its_channel():
    x = drawn(0, (4, 3, 5))
    x[1, 2, 3] = np.nan
    y = fc.batch_norm(x, None, None, training=True)
    assert np.isnan(y[:, 2]).all() and np.isfinite(y[:, :2]).all()


X = np.ones((2, 3, 4), "float32")
C = np.ones(3, "float32")
BAD_CALLS = [
    (
        lambda: fc.batch_norm(X[0, 0], C, C),
        ValueError,
        "batch_norm: input must be (N, C, *spatial) with sizes of at least 1, or 0 for the batch, got input shape (4,)",
    ),
    (
        lambda: fc.batch_norm(X[:, :0], C[:0], C[:0]),
        ValueError,
        "batch_norm: input must be (N, C, *spatial) with sizes of at least 1, or 0 for the batch, "
        "got input shape (2, 0, 4)",
    ),
    (
        lambda: fc.batch_norm(X, C[:2], C),
        ValueError,
        "batch_norm: running_mean must have shape (3,), one number per channel of the input (input shape (2, 3, 4)), "
        "but has shape (2,)",
    ),
    (
        lambda: fc.batch_norm(X, C, C, np.ones((3, 1), "float32")),
        ValueError,
        "batch_norm: weight must have shape (3,), one number per channel of the input (input shape (2, 3, 4)), "
        "but has shape (3, 1)",
    ),
    (
        lambda: fc.batch_norm(X, None, None),
        ValueError,
        "batch_norm: evaluation needs running_mean and running_var; training=True normalises by the batch",
    ),
    (
        lambda: fc.batch_norm(X[:1, :, :1], C, C, training=True),
        ValueError,
        "batch_norm: training needs more than one value per channel, got input shape (1, 3, 1); "
        "use a larger batch, or training=False",
    ),
    (
        lambda: fc.batch_norm(X.astype("int64"), C, C),
        TypeError,
        'batch_norm: integer input (int64) is not supported; convert first, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.batch_norm(X, C, C, C.astype(float)),
        TypeError,
        'batch_norm: weight is float64 but input is float32; convert one, e.g. weight.astype("float32")',
    ),
]


@bad_calls(BAD_CALLS)
def test_bad_calls(call, kind, text):
    refused(call, kind, text)
    assert C.tolist() == [1, 1, 1]  # a failed call leaves nothing changed
