"""Ties that need no oracle: the dot test for both adjoints, and finite differences with random cotangents.

⟨conv(x, w), gy⟩ = ⟨x, Aᵀgy⟩ = ⟨w, Bᵀgy⟩ holds for the linear maps A in x and B in w up to rounding. The finite
differences move all operands at once along a random direction v: (f(z + hv) − f(z − hv)) / 2h is ⟨∇f, v⟩ up to h²,
where f(z) = ⟨op(z), gy⟩ with a random cotangent gy.
"""

from __future__ import annotations

import numpy as np
import pytest
from expected import DTYPES, rounded
from problems import PROBLEMS, parse
from tolerance import relative

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.ops import pointwise

table = pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch], ids=str)

STEP = 1e-5
ACCURACY = 1e-6  # what is promised


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("highest_precision")
@table
def test_dot(problem, dtype, device):
    arrays = problem.normal(dtype)
    x, w, gy = (to_device(a, device) for a in (arrays.x, arrays.w, arrays.gy))
    name, window = f"conv{problem.rank}d", problem.window
    y = getattr(fc, name)(x, w, **window)
    gx = getattr(fc.grad, f"{name}_input")(x.shape, w, gy, **window)
    gw = getattr(fc.grad, f"{name}_weight")(x, w.shape, gy, **window)
    transposed = getattr(fc, f"conv_transpose{problem.rank}d")(gy, w, output_padding=problem.unused, **window)

    def dot(a, b):
        return np.vdot(to_device(a, "cpu").astype("float64"), to_device(b, "cpu").astype("float64"))

    terms = max(problem.forward_terms, problem.input_grad_terms, problem.weight_grad_terms)
    _, magnitude = rounded(problem, dtype)
    allowed = 2 * relative(terms, dtype) * np.vdot(magnitude.forward, np.abs(arrays.gy))
    assert abs(dot(y, gy) - dot(x, gx)) <= allowed
    assert abs(dot(y, gy) - dot(w, gw)) <= allowed
    assert np.array_equal(to_device(transposed, "cpu"), to_device(gx, "cpu"))


def check_differences(function, arrays, device):
    """Compare the directional derivative of ⟨function(*arrays), random cotangent⟩ with central differences."""
    rng = np.random.default_rng(4)
    directions = [np.std(a) * rng.choice([-1, 1], a.shape) * rng.uniform(0.5, 1, a.shape) for a in arrays]
    tensors = [fc.Tensor(to_device(a, device), requires_grad=True) for a in arrays]
    y = function(*tensors)
    gy = rng.standard_normal(y.shape)
    y.backward(to_device(gy, device))

    def moved(step):
        return to_device(function(*(to_device(a + step * v, device) for a, v in zip(arrays, directions))), "cpu")

    slope = np.vdot((moved(STEP) - moved(-STEP)) / (2 * STEP), gy)
    parts = [np.vdot(to_device(t.grad, "cpu"), v) for t, v in zip(tensors, directions)]
    # The parts may cancel in their sum; what is compared is of their size.
    assert abs(sum(parts) - slope) <= ACCURACY * max(map(abs, (*parts, slope)))


SMALL = [p for p in PROBLEMS if p.batch and np.prod(p.y_shape) < 3000]


@pytest.mark.parametrize("activation", [None, "tanh"])
@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_convolution_against_differences(problem, activation, device):
    arrays = problem.normal()
    w = arrays.w / np.sqrt(problem.forward_terms)  # so that the activation is not saturated
    check_differences(
        lambda x, w, b: fc.conv(x, w, b, activation=activation, **problem.window), (arrays.x, w, arrays.b), device
    )


@pytest.mark.parametrize("problem", SMALL[::3], ids=str)
def test_transposed_convolution_against_differences(problem, device):
    arrays = problem.normal()
    call = getattr(fc, f"conv_transpose{problem.rank}d")
    check_differences(
        lambda x, w, b: call(x, w, b, output_padding=problem.unused, **problem.window),
        (arrays.gy, arrays.w, np.resize(arrays.b, problem.in_channels)),
        device,
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("line", ["n2 c3 l9 k4 f3 p2:1", "n1 c4 hw6x7 k6 f3 s2 p2x1 g2", "n1 c2 dhw3x4x5 k3 f2 p1x0x2"])
def test_padding_modes_against_differences(line, mode, device):
    problem = parse(line)
    arrays = problem.normal()
    check_differences(
        lambda x, w, b: fc.conv(x, w, b, padding_mode=mode, **problem.window), (arrays.x, arrays.w, arrays.b), device
    )


@pytest.mark.parametrize("activation", [name for name in pointwise.ACTIVATIONS if name != "relu"])
def test_activations_against_differences(activation, device):
    arrays = parse("n2 c3 hw7x6 k5 f3 p1").normal()
    check_differences(
        lambda x, w, b: fc.conv2d(x, w, b, padding=1, activation=activation), (arrays.x, arrays.w, arrays.b), device
    )


def test_relu_against_differences(device):
    """Away from its kink: the bias keeps every output at least 0.5 from 0."""
    arrays = parse("n2 c3 hw7x6 k5 f3 p1").integers()
    check_differences(
        lambda x, w, b: fc.conv2d(x, w, b, padding=1, activation="relu"), (arrays.x, arrays.w, arrays.b + 0.5), device
    )


@pytest.mark.parametrize("line", ["n2 c3 l8 k4 f3 p1", "n1 c2 hw5x6 k3 f2 s2", "n1 c1 dhw3x4x3 k2 f2 p1"])
def test_convolve_against_differences(line, device):
    problem = parse(line)
    arrays = problem.normal()
    check_differences(lambda x, w, b: fc.convolve(x, w, b, **problem.window), (arrays.x, arrays.w, arrays.b), device)


def shared_weight(x, w):
    return fc.conv2d(fc.conv2d(x, w, padding=1), w, stride=2)


def input_in_two_places(x, w):
    return fc.conv2d(x, w, padding=1)[:, :, ::2, ::2] + fc.conv2d(x, w, stride=2, padding=1)


def input_as_its_own_kernel(x):
    return fc.conv1d(x, x, padding=3)


def there_and_back(x, w):
    y = fc.conv2d(x, w, stride=2, padding=1)
    return fc.conv_transpose2d(y, w, stride=2, padding=1) * x[:, :, :7, :5]


@pytest.mark.parametrize(
    "function, shapes",
    [
        (shared_weight, [(2, 3, 7, 6), (3, 3, 3, 3)]),
        (input_in_two_places, [(2, 3, 7, 5), (4, 3, 3, 3)]),
        (input_as_its_own_kernel, [(3, 3, 7)]),
        (there_and_back, [(1, 3, 7, 5), (4, 3, 3, 3)]),
    ],
)
def test_double_use_against_differences(function, shapes, device):
    rng = np.random.default_rng(5)
    check_differences(function, [rng.standard_normal(shape) for shape in shapes], device)


@pytest.mark.usefixtures("highest_precision")
def test_gradients_of_two_uses_add_up(device):
    arrays = parse("n2 c3 hw7x6 k5 f3 p1").integers("float32")
    x, w, gy = (to_device(a, device) for a in (arrays.x, arrays.w, arrays.gy))
    once, twice = (tuple(fc.Tensor(a, requires_grad=True) for a in (x, w)) for _ in range(2))
    fc.conv2d(*once, padding=1).backward(gy)
    (fc.conv2d(*twice, padding=1) + fc.conv2d(*twice, padding=1)).backward(gy)
    for a, b in zip(once, twice):
        assert np.array_equal(to_device(b.grad, "cpu"), 2 * to_device(a.grad, "cpu"))
    fc.conv2d(*once, padding=1).backward(gy)
    for a, b in zip(once, twice):
        assert np.array_equal(to_device(b.grad, "cpu"), to_device(a.grad, "cpu"))


def test_gradients_are_for_those_who_ask(device):
    arrays = parse("n2 c3 hw7x6 k5 f3 p1").normal()
    x, w, b, gy = (to_device(a, device) for a in (arrays.x, arrays.w, arrays.b, arrays.gy))
    for chosen in range(3):
        operands = [fc.Tensor(a, requires_grad=number == chosen) for number, a in enumerate((x, w, b))]
        fc.conv2d(*operands, padding=1).backward(gy)
        assert [t.grad is not None for t in operands] == [number == chosen for number in range(3)]
    mixed = fc.Tensor(w, requires_grad=True)
    fc.conv2d(x, mixed, b, padding=1).backward(gy)
    assert mixed.grad.shape == w.shape
    assert not isinstance(fc.conv2d(x, w, b, padding=1), fc.Tensor)
    with fc.no_grad():
        assert not fc.conv2d(x, mixed, b, padding=1).requires_grad
