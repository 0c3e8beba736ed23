"""Activations to the last few bits, dropout: against arithmetic of many digits, PyTorch and differences."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np
import pytest
from bad_calls import bad_calls, refused
from differences import check_gradients, spread_out

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads

DTYPES = ["float32", "float64"]
DIGITS = 340
"""So that 1 + e⁻⁷⁰⁰ is not 1."""


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def pi():
    """Machin's formula."""

    def arctan_of_inverse(n):
        power = total = Decimal(1) / n
        k = 1
        while abs(power) > Decimal(10) ** -DIGITS:
            power /= -n * n
            k += 2
            total += power / k
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))


with localcontext() as _context:
    _context.prec = DIGITS
    PI = pi()


def normal_density(x):
    return (-x * x / 2).exp() / (2 * PI).sqrt()


def normal_cdf(x):
    """1/2 + φ(x)·Σ x^(2k+1)/(2k+1)!!; for negative x as many digits cancel as the result has leading zeros."""
    term = total = x
    k = 1
    while abs(term) > Decimal(10) ** -DIGITS:
        k += 2
        term *= x * x / k
        total += term
    return Decimal("0.5") + normal_density(x) * total


def gelu_tanh_inner(x):
    return (8 / PI).sqrt() * (x + Decimal("0.044715") * x**3)


class Activation(NamedTuple):
    """An operation, its exact value, the exact terms of its slope, and how many units in the last place it may err."""

    operation: object
    value: object
    slope: object
    units: float
    torch: str
    arguments: tuple = ()


SELU = (Decimal("1.0507009873554804934193349852946"), Decimal("1.6732632423543772848170429916717"))

ACTIVATIONS = {
    "relu": Activation(fc.relu, lambda x: max(x, Decimal(0)), lambda x: [int(x > 0)], 0, "relu"),
    "leaky_relu": Activation(
        lambda t: fc.leaky_relu(t, 0.25),
        lambda x: x if x > 0 else x / 4,
        lambda x: [1 if x > 0 else Decimal("0.25")],
        0,
        "leaky_relu",
        (0.25,),
    ),
    "elu": Activation(
        lambda t: fc.elu(t, 1.5),
        lambda x: x if x > 0 else Decimal("1.5") * (x.exp() - 1),
        lambda x: [1 if x > 0 else Decimal("1.5") * x.exp()],
        2.5,
        "elu",
        (1.5,),
    ),
    "selu": Activation(
        fc.selu,
        lambda x: SELU[0] * (x if x > 0 else SELU[1] * (x.exp() - 1)),
        lambda x: [SELU[0] if x > 0 else SELU[0] * SELU[1] * x.exp()],
        4,
        "selu",
    ),
    "gelu": Activation(
        fc.gelu, lambda x: x * normal_cdf(x), lambda x: [normal_cdf(x), x * normal_density(x)], 5, "gelu"
    ),
    "silu": Activation(
        fc.silu, lambda x: x * sigmoid(x), lambda x: [sigmoid(x), x * sigmoid(x) * sigmoid(-x)], 3, "silu"
    ),
    "sigmoid": Activation(fc.sigmoid, sigmoid, lambda x: [sigmoid(x), -(sigmoid(x) ** 2)], 2, "sigmoid"),
    "tanh": Activation(
        fc.tanh,
        lambda x: 2 * sigmoid(2 * x) - 1,
        lambda x: [1, -((2 * sigmoid(2 * x) - 1) ** 2)],
        3,
        "tanh",
    ),
    "softplus": Activation(
        fc.softplus,
        lambda x: x if x > 20 else (1 + x.exp()).ln(),
        lambda x: [1 if x > 20 else sigmoid(x)],
        3,
        "softplus",
    ),
}

every_activation = pytest.mark.parametrize("name", ACTIVATIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def points(dtype):
    """Dense around 0, tiny, and out to where exponentials begin to underflow."""
    rng = np.random.default_rng(0)
    far = 85.0 if dtype == "float32" else 700.0
    tiny = 10.0 ** rng.uniform(-30, 0, 20)
    return np.concatenate(
        [rng.uniform(-2, 2, 60), rng.uniform(-12, 12, 60), rng.uniform(-far, far, 30), tiny, -tiny, [0.0]]
    ).astype(dtype)


def units_off(actual, exact, dtype):
    """|actual − exact| in units in the last place of the exact value (subnormal numbers: of the smallest)."""
    return float(abs(Decimal(float(actual)) - exact) / Decimal(float(np.spacing(np.abs(dtype(float(exact)))))))


@every_dtype
@every_activation
def test_values_to_the_last_bits(device, name, dtype):
    activation, x = ACTIVATIONS[name], points(dtype)
    x = x[np.abs(x) < (12 if dtype == "float32" else 35)] if name == "gelu" else x
    y = to_device(activation.operation(to_device(x, device)), "cpu")
    assert y.dtype == dtype
    with localcontext() as context:
        context.prec = DIGITS
        worst = max(units_off(b, +activation.value(Decimal(float(a))), np.dtype(dtype).type) for a, b in zip(x, y))
    assert worst <= max(activation.units, 0.5)


@every_dtype
@every_activation
def test_slopes_to_the_last_bits(device, name, dtype):
    """Up to 8 units in the last place of the larger term where the slope is a difference."""
    activation, x = ACTIVATIONS[name], points(dtype)
    x = x[(np.abs(x) < (12 if dtype == "float32" else 35)) & (x != 0)]
    tensor = fc.Tensor(to_device(x, device), requires_grad=True)
    activation.operation(tensor).backward(to_device(np.ones_like(x), device))
    smallest = Decimal(float(np.finfo(dtype).tiny))
    with localcontext() as context:
        context.prec = DIGITS
        for a, slope in zip(x, to_device(tensor.grad, "cpu")):
            terms = [Decimal(term) for term in activation.slope(Decimal(float(a)))]
            allowed = 8 * Decimal(float(np.finfo(dtype).eps)) * max(sum(map(abs, terms)), smallest)
            assert abs(Decimal(float(slope)) - sum(terms)) <= allowed, (a, slope)


@every_dtype
def test_gelu_with_tanh(device, dtype):
    """The exponent u = 2·√(2/π)·(x + 0.044715 x³) carries rounding errors that count |u| times."""
    x = points(dtype)
    x = x[np.abs(x) < (7 if dtype == "float32" else 15)]
    tensor = fc.Tensor(to_device(x, device), requires_grad=True)
    y = fc.gelu(tensor, "tanh")
    y.backward(to_device(np.ones_like(x), device))
    eps = Decimal(float(np.finfo(dtype).eps))
    with localcontext() as context:
        context.prec = DIGITS
        for a, b, slope in zip(x, y.numpy(), to_device(tensor.grad, "cpu")):
            exact = Decimal(float(a))
            u = gelu_tanh_inner(exact)
            s, inner = sigmoid(u), (8 / PI).sqrt() * (1 + 3 * Decimal("0.044715") * exact**2)
            tiny = Decimal(float(np.finfo(dtype).tiny))
            assert abs(Decimal(float(b)) - exact * s) <= (3 + abs(u)) * eps * abs(exact * s) + tiny
            terms = [s, exact * inner * s * sigmoid(-u)]
            assert abs(Decimal(float(slope)) - sum(terms)) <= (5 + abs(u)) * eps * sum(map(abs, terms)) + tiny


INF, NAN, HUGE = np.inf, np.nan, 1e30
# at −inf, −1e30, −0.0, 0.0, 1e30, inf, NaN
SPECIAL = {
    "relu": [0, 0, 0, 0, HUGE, INF, NAN],
    "leaky_relu": [-INF, -HUGE / 4, 0, 0, HUGE, INF, NAN],
    "elu": [-1.5, -1.5, 0, 0, HUGE, INF, NAN],
    "selu": [-1.7580993408473766, -1.7580993408473766, 0, 0, 1.0507009873554805 * HUGE, INF, NAN],
    "gelu": [NAN, 0, 0, 0, HUGE, INF, NAN],  # −inf · 0
    "silu": [NAN, 0, 0, 0, HUGE, INF, NAN],
    "sigmoid": [0, 0, 0.5, 0.5, 1, 1, NAN],
    "tanh": [-1, -1, 0, 0, 1, 1, NAN],
    "softplus": [0, 0, 0.6931471805599453, 0.6931471805599453, HUGE, INF, NAN],
}


@every_dtype
@every_activation
def test_special_values(device, name, dtype):
    x = np.array([-INF, -HUGE, -0.0, 0.0, HUGE, INF, NAN], dtype)
    y = to_device(ACTIVATIONS[name].operation(to_device(x, device)), "cpu")
    np.testing.assert_allclose(y, np.array(SPECIAL[name], dtype), rtol=4 * np.finfo(dtype).eps)
    if name == "tanh":
        assert np.signbit(y[2]) and not np.signbit(y[3])


@every_dtype
@every_activation
def test_activation_against_torch(name, dtype):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    activation = ACTIVATIONS[name]
    x = np.random.default_rng(0).standard_normal((3, 50)).astype(dtype) * 4
    gy = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
    ours, theirs = fc.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y = activation.operation(ours)
    expected = getattr(torch.nn.functional, activation.torch)(theirs, *activation.arguments)
    y.backward(gy)
    expected.backward(torch.tensor(gy))
    tolerance = 64 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "function",
    [*(activation.operation for activation in ACTIVATIONS.values()), lambda t: fc.gelu(t, "tanh")],
    ids=[*ACTIVATIONS, "gelu tanh"],
)
def test_activation_gradients_against_differences(function):
    check_gradients(function, spread_out(np.random.default_rng(0), (5, 6)))


def test_softplus_with_beta():
    x = spread_out(np.random.default_rng(0), (4, 5)) * 6
    expected = np.where(2.5 * x > 20, x, np.log1p(np.exp(2.5 * x)) / 2.5)
    np.testing.assert_allclose(fc.softplus(x, 2.5), expected, rtol=1e-13)
    np.testing.assert_array_equal(fc.softplus(x, 2.0, threshold=3.0)[2 * x > 3], x[2 * x > 3])
    check_gradients(lambda t: fc.softplus(t, 2.5), x)


@every_dtype
def test_activations_have_the_same_bits_for_any_threads_and_place(device, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    x = np.random.default_rng(0).standard_normal(1003).astype(dtype) * 5
    gy = np.random.default_rng(1).standard_normal(1003).astype(dtype)

    def both(activation, part):
        tensor = fc.Tensor(to_device(x[part], device), requires_grad=True)
        y = activation.operation(tensor)
        y.backward(to_device(gy[part], device))
        return y.numpy(), to_device(tensor.grad, "cpu")

    for activation in ACTIVATIONS.values():
        fc.set_num_threads(1)
        expected = both(activation, slice(None))
        for count in (2, 3, 8):
            fc.set_num_threads(count)
            assert [a.tobytes() for a in both(activation, slice(None))] == [a.tobytes() for a in expected]
        for start, stop in ((0, 1), (5, 12), (999, 1003), (16, 33)):
            assert [a.tobytes() for a in both(activation, slice(start, stop))] == [
                a[start:stop].tobytes() for a in expected
            ]


@every_activation
def test_forms_of_the_input(device, name):
    operation = ACTIVATIONS[name].operation
    x = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
    expected = to_device(operation(to_device(x, device)), "cpu")
    for form in (x.astype(">f4"), np.asfortranarray(x)):
        np.testing.assert_array_equal(to_device(operation(to_device(form, device)), "cpu"), expected)
    for form in (to_device(x, device)[::-1], to_device(x.T, device).T[::-1]):
        np.testing.assert_array_equal(to_device(operation(form)[::-1], "cpu"), expected)
    assert operation(to_device(x[:0], device)).shape == (0, 6)
    assert operation(to_device(x[0, 0].reshape(()), device)).shape == ()
    assert isinstance(operation(x), np.ndarray) and isinstance(operation(fc.Tensor(x)), fc.Tensor)


# Dropout


@every_dtype
def test_dropout(device, dtype):
    x = fc.Tensor(to_device(np.ones((200, 500), dtype), device), requires_grad=True)
    fc.manual_seed(3)
    y = fc.dropout(x, 0.25)
    y.backward(to_device(np.full(x.shape, 2, dtype), device))
    values = y.numpy()
    assert values.dtype == dtype
    assert set(np.unique(values)) == {0, np.dtype(dtype).type(1 / 0.75)}
    assert abs((values == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / values.size)
    np.testing.assert_array_equal(to_device(x.grad, "cpu"), 2 * values)
    fc.manual_seed(3)
    np.testing.assert_array_equal(fc.dropout(x, 0.25).numpy(), values)


def test_dropout_that_drops_nothing_or_everything():
    x = np.random.default_rng(0).standard_normal((3, 4))
    tensor = fc.Tensor(x, requires_grad=True)
    np.testing.assert_array_equal(fc.dropout(x, 0.5, training=False), x)
    np.testing.assert_array_equal(fc.dropout(x, 0.0), x)
    np.testing.assert_array_equal(fc.dropout(x, 1.0), np.zeros_like(x))
    fc.dropout(tensor, 0.5, training=False).backward(x)
    np.testing.assert_array_equal(tensor.grad, x)


X = np.zeros((2, 3), "float32")
BAD_CALLS = [
    (
        lambda: fc.relu(np.arange(3)),
        TypeError,
        'relu: integer input (int64) is not supported; convert first, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.tanh(np.array([True])),
        TypeError,
        'tanh: boolean input (bool) is not supported; convert first, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.sigmoid(1.0),
        TypeError,
        "sigmoid: input must be an array, a Tensor or an object with __array__ or __dlpack__, got float; "
        'convert first, e.g. numpy.asarray(input, dtype="float32")',
    ),
    (
        lambda: fc.silu(X.astype("float16")),
        TypeError,
        'silu: float16 input runs on the GPU only; convert first, e.g. input.astype("float32")',
    ),
    (lambda: fc.gelu(X, "sigmoid"), ValueError, 'gelu: approximate must be "none" or "tanh", got \'sigmoid\''),
    (lambda: fc.softplus(X, 0.0), ValueError, "softplus: beta must be positive, got 0.0"),
    (
        lambda: fc.softmax(X, 2),
        ValueError,
        "softmax: dim must lie between -2 and 1 for input shape (2, 3), got 2",
    ),
    (lambda: fc.softmax(X, None), TypeError, "softmax: dim must be an int, got None"),
    (lambda: fc.softmax(X, 1.0), TypeError, "softmax: dim must be an int, got 1.0"),
    (
        lambda: fc.log_softmax(X, -3),
        ValueError,
        "log_softmax: dim must lie between -2 and 1 for input shape (2, 3), got -3",
    ),
    (
        lambda: fc.softmax(X[0, 0], 1),
        ValueError,
        "softmax: dim must lie between -1 and 0 for input shape (), got 1",
    ),
    (lambda: fc.dropout(X, 1.5), ValueError, "dropout: p must be a probability, 0 to 1, got 1.5"),
    (
        lambda: fc.conv2d(X[None, None], X[None, None], activation="softmax"),
        ValueError,
        'conv2d: activation must be None or one of "relu", "selu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", '
        "got 'softmax'; apply any other to the result, e.g. leaky_relu(conv2d(...), 0.1)",
    ),
]


@bad_calls(BAD_CALLS)
def test_bad_calls(call, kind, text):
    refused(call, kind, text)
