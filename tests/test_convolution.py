"""Convolution, its gradients and its transpose against the oracle: the whole table, both dtypes, every device.

Under precision("highest"), where small integers give exact results; test_precision.py has the faster algorithms.
"""

from __future__ import annotations

import numpy as np
import pytest
import reference
from expected import DTYPES, bias_of_transposed, exact, rounded
from problems import LARGE, PROBLEMS, parse
from tolerance import assert_close

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.ops import pointwise

pytestmark = pytest.mark.usefixtures("highest_precision")
table = pytest.mark.parametrize("problem", PROBLEMS + LARGE, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)

MODES = ("reflect", "replicate", "circular")
MODE_LINES = [
    parse(line)
    for line in (
        "n2 c3 l9 k4 f3 p1",
        "n1 c2 l6 k3 f5 p5:2 s2",
        "n1 c4 l40 k4 f7 p3 g4",
        "n2 c3 hw7x9 k4 f3 p1",
        "n1 c2 hw6x5 k3 f3x4 p2x3 s2x1 d2x1",
        "n1 c4 hw5 k6 f3 p0:2x3:1 g2",
        "n1 c6 hw20x33 k6 f7 p3 g6",
        "n1 c2 dhw4x5x6 k3 f3 p1x2x3",
        "n1 c2 dhw3x4x4 k3 f2 p1:2x0:1x2:0 s1x2x1",
        "n0 c2 hw5 k3 f3 p1",
    )
]


def conv(problem):
    return getattr(fc, f"conv{problem.rank}d")


def conv_transpose(problem):
    return getattr(fc, f"conv_transpose{problem.rank}d")


def gradient(problem, of):
    return getattr(fc.grad, f"conv{problem.rank}d_{of}")


def on(device, arrays):
    return (to_device(a, device) for a in (arrays.x, arrays.w, arrays.b, arrays.gy))


def host(array, dtype):
    """A result as a NumPy array, after checks of what every result must be."""
    array = to_device(array, "cpu")
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    return array


@dtypes
@table
def test_forward(problem, dtype, device):
    call, window = conv(problem), problem.window
    x, w, b, _ = on(device, problem.integers(dtype))
    y = exact(problem).forward
    assert np.array_equal(host(call(x, w, b, **window), dtype), y)
    assert np.array_equal(host(call(x, w, b, activation="relu", **window), dtype), np.maximum(y, 0))
    without = y - problem.integers().b.reshape(-1, *[1] * problem.rank)
    assert np.array_equal(host(call(x, w, **window), dtype), without)

    x, w, b, _ = on(device, problem.normal(dtype))
    y, magnitude = (results.forward for results in rounded(problem, dtype))
    actual = host(call(x, w, b, **window), dtype)
    assert_close(actual, y, problem.forward_terms, magnitude)
    assert np.array_equal(host(call(x, w, b, activation="relu", **window), dtype), np.maximum(actual, 0))


@dtypes
@table
def test_input_gradient(problem, dtype, device):
    call = gradient(problem, "input")
    _, w, _, gy = on(device, problem.integers(dtype))
    actual = call(problem.x_shape, w, gy, **problem.window)
    assert np.array_equal(host(actual, dtype), exact(problem).input_grad)

    _, w, _, gy = on(device, problem.normal(dtype))
    gx, magnitude = (results.input_grad for results in rounded(problem, dtype))
    actual = call(problem.x_shape, w, gy, **problem.window)
    assert_close(host(actual, dtype), gx, problem.input_grad_terms, magnitude)


@dtypes
@table
def test_weight_gradient(problem, dtype, device):
    call = gradient(problem, "weight")
    x, _, _, gy = on(device, problem.integers(dtype))
    actual = call(x, problem.w_shape, gy, **problem.window)
    assert np.array_equal(host(actual, dtype), exact(problem).weight_grad)

    x, _, _, gy = on(device, problem.normal(dtype))
    gw, magnitude = (results.weight_grad for results in rounded(problem, dtype))
    actual = call(x, problem.w_shape, gy, **problem.window)
    assert_close(host(actual, dtype), gw, problem.weight_grad_terms, magnitude)


@dtypes
@table
def test_transposed(problem, dtype, device):
    call, arguments = conv_transpose(problem), {**problem.window, "output_padding": problem.unused}
    arrays = problem.integers(dtype)
    b = to_device(bias_of_transposed(problem, arrays), device)
    _, w, _, gy = on(device, arrays)
    assert np.array_equal(host(call(gy, w, b, **arguments), dtype), exact(problem).transposed)

    arrays = problem.normal(dtype)
    b = to_device(bias_of_transposed(problem, arrays), device)
    _, w, _, gy = on(device, arrays)
    y, magnitude = (results.transposed for results in rounded(problem, dtype))
    assert_close(host(call(gy, w, b, **arguments), dtype), y, problem.input_grad_terms, magnitude)


@dtypes
@table
def test_backward_of_tensors(problem, dtype, device):
    """The tape gives the oracle's gradients, through the fused ReLU too, where the cotangent of negatives is 0."""
    arrays = problem.integers(dtype)
    x, w, b = (fc.Tensor(to_device(a, device), requires_grad=True) for a in (arrays.x, arrays.w, arrays.b))
    y = conv(problem)(x, w, b, activation="relu", **problem.window)
    y.backward(to_device(arrays.gy, device))
    gy = np.where(exact(problem).forward > 0, arrays.gy, 0)
    assert np.array_equal(host(x.grad, dtype), reference.conv_input_grad(x.shape, arrays.w, gy, **problem.window))
    assert np.array_equal(host(w.grad, dtype), reference.conv_weight_grad(arrays.x, w.shape, gy, **problem.window))
    assert np.array_equal(host(b.grad, dtype), gy.sum(axis=(0, *range(2, gy.ndim))))


@dtypes
@table
def test_backward_of_transposed_tensors(problem, dtype, device):
    arrays = problem.integers(dtype)
    b = bias_of_transposed(problem, arrays)
    tensors = [fc.Tensor(to_device(a, device), requires_grad=True) for a in (arrays.gy, arrays.w, b)]
    y = conv_transpose(problem)(*tensors, output_padding=problem.unused, **problem.window)
    y.backward(to_device(arrays.x, device))
    expected = (
        exact(problem).forward - problem.integers().b.reshape(-1, *[1] * problem.rank),
        exact(problem).weight_grad,
        arrays.x.sum(axis=(0, *range(2, arrays.x.ndim))),
    )
    for tensor, gradient_ in zip(tensors, expected):
        assert np.array_equal(host(tensor.grad, dtype), gradient_)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("problem", MODE_LINES, ids=str)
def test_padding_modes(problem, mode, device):
    arrays = problem.integers("float32")
    if mode == "reflect" and any(max(sides) >= size for sides, size in zip(problem.padding, problem.spatial)):
        pytest.skip("refused: see test_errors_convolution.py")
    window = {**problem.window, "padding": ((0, 0),) * problem.rank}
    padded = reference.pad(arrays.x, problem.padding, mode)
    x, w, b = (fc.Tensor(to_device(a, device), requires_grad=True) for a in (arrays.x, arrays.w, arrays.b))
    y = conv(problem)(x, w, b, padding_mode=mode, **problem.window)
    assert np.array_equal(host(y.data, "float32"), reference.conv(padded, arrays.w, arrays.b, **window))
    y.backward(to_device(arrays.gy, device))
    gx = reference.conv_input_grad(padded.shape, arrays.w, arrays.gy, **window)
    assert np.array_equal(host(x.grad, "float32"), reference.pad_grad(gx, problem.padding, mode))
    assert np.array_equal(host(w.grad, "float32"), reference.conv_weight_grad(padded, w.shape, arrays.gy, **window))
    assert np.array_equal(host(b.grad, "float32"), arrays.gy.sum(axis=(0, *range(2, arrays.gy.ndim))))


# Input and weight shapes, stride, padding, output_padding, dilation. output_padding may reach the stride where it stays
# below the dilation.
WIDE_OUTPUT_PADDING = [
    ((2, 3, 6), (3, 4, 3), (2,), ((1, 1),), (3,), (4,)),
    ((1, 2, 5), (2, 2, 4), (1,), ((0, 2),), (2,), (3,)),
    ((1, 2, 4, 5), (2, 3, 3, 2), (2, 1), ((1, 1), (0, 0)), (2, 1), (3, 2)),
    ((1, 2, 3, 2, 4), (2, 2, 2, 3, 1), (1, 2, 3), ((0, 0), (2, 2), (0, 0)), (1, 3, 2), (2, 4, 1)),
]


@pytest.mark.parametrize("case", WIDE_OUTPUT_PADDING, ids=str)
def test_transposed_with_output_padding_beyond_the_stride(case, device):
    x_shape, w_shape, stride, padding, output_padding, dilation = case
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": 1}
    rng = np.random.default_rng(1)
    x, w = (rng.integers(-3, 4, shape).astype("float32") for shape in (x_shape, w_shape))
    tensors = [fc.Tensor(to_device(a, device), requires_grad=True) for a in (x, w)]
    y = getattr(fc, f"conv_transpose{len(stride)}d")(*tensors, output_padding=output_padding, **window)
    assert np.array_equal(
        host(y.data, "float32"), reference.conv_transpose(x, w, output_padding=output_padding, **window)
    )
    gy = rng.integers(-3, 4, y.shape).astype("float32")
    y.backward(to_device(gy, device))
    inside = tuple(slice(size) for size in x_shape)
    gx = reference.conv(gy, w, **window)[inside]
    whole = np.zeros((*x_shape[:2], *(reference.conv(gy, w, **window).shape[2:])))
    whole[inside] = x
    assert np.array_equal(host(tensors[0].grad, "float32"), gx)
    assert np.array_equal(host(tensors[1].grad, "float32"), reference.conv_weight_grad(gy, w_shape, whole, **window))


@pytest.mark.parametrize("activation", pointwise.ACTIVATIONS)
@pytest.mark.parametrize("problem", [parse("n2 c3 hw9x8 k5 f3 p1"), parse("n1 c4 l30 k4 f5 g4")], ids=str)
@dtypes
def test_activation_is_the_operation_applied_afterwards(problem, activation, dtype, device):
    arrays = problem.normal(dtype)
    results = []
    for fused in (True, False):
        x, w, b = (fc.Tensor(to_device(a, device), requires_grad=True) for a in (arrays.x, arrays.w, arrays.b))
        if fused:
            y = conv(problem)(x, w, b, activation=activation, **problem.window)
            on_arrays = conv(problem)(x.data, w.data, b.data, activation=activation, **problem.window)
            assert np.array_equal(host(on_arrays, dtype), host(y.data, dtype))
        else:
            y = pointwise.apply(activation, conv(problem)(x, w, b, **problem.window))
        y.backward(to_device(arrays.gy, device))
        results.append([host(a, dtype) for a in (y.data, x.grad, w.grad, b.grad)])
    for fused, separate in zip(*results):
        assert np.array_equal(fused, separate)


def test_every_spelling_of_the_window_is_the_same_convolution(device):
    problem = parse("n1 c2 hw8x9 k3 f3x4 p1:1x2:2 s1 d1")
    arrays = problem.integers("float32")
    x, w, b, _ = on(device, arrays)
    y = host(fc.conv2d(x, w, b, 1, ((1, 1), (2, 2))), "float32")
    assert np.array_equal(y, reference.conv(arrays.x, arrays.w, arrays.b, **problem.window))
    for same in (
        fc.conv2d(x, w, b, padding=(1, 2)),
        fc.conv2d(x, w, b, (1, 1), [1, 2], (1, 1), 1),
        fc.conv2d(x, w, b, stride=np.int64(1), padding=[(1, 1), (2, 2)], dilation=[1, 1]),
        fc.conv(x, w, b, padding=(1, 2)),
        fc.conv2d(x[0], w, b, padding=(1, 2))[None],
    ):
        assert np.array_equal(host(same, "float32"), y)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_and_valid(kernel, dilation, device):
    """ "same" keeps the size; of an odd total the larger half is behind, as in PyTorch."""
    rng = np.random.default_rng(2)
    x, w = rng.integers(-3, 4, (2, 3, 14)), rng.integers(-3, 4, (4, 3, kernel))
    total = dilation * (kernel - 1)
    window = {"stride": (1,), "dilation": (dilation,), "groups": 1}
    for name, sides in (("same", (total // 2, total - total // 2)), ("valid", (0, 0))):
        arrays = (to_device(a.astype("float64"), device) for a in (x, w))
        y = host(fc.conv1d(*arrays, padding=name, dilation=dilation), "float64")
        assert np.array_equal(y, reference.conv(x, w, padding=(sides,), **window))
        assert name == "valid" or y.shape[-1] == 14


def test_rank_of_conv_comes_from_the_weight(device):
    for line in ("n2 c3 l9 k4 f3", "n2 c3 hw9x7 k4 f2 p1", "n1 c2 dhw4x5x6 k3 f3 s2"):
        problem = parse(line)
        x, w, b, _ = on(device, problem.integers("float32"))
        y = host(fc.conv(x, w, b, **problem.window), "float32")
        assert np.array_equal(y, exact(problem).forward)
        assert np.array_equal(host(fc.conv(x[0], w, b, **problem.window), "float32"), y[0])


def test_convolve_flips_the_kernel_and_commutes(device):
    signal, kernel = np.array([4.0, 3, 2, -5, 3, 5, 2, 5, 5, 6]), np.array([1.0, 2, -3, 4])
    a, b = (to_device(v[None, None], device) for v in (signal, kernel))
    expected = np.convolve(signal, kernel)
    assert np.array_equal(host(fc.convolve(a, b, padding=3), "float64")[0, 0], expected)
    assert np.array_equal(host(fc.convolve(b, a, padding=9), "float64")[0, 0], expected)

    problem = parse("n2 c4 hw8x7 k6 f3x2 s2x1 p1 d1x2 g2")
    arrays = problem.integers("float32")
    x, w, bias = (fc.Tensor(to_device(v, device), requires_grad=True) for v in (arrays.x, arrays.w, arrays.b))
    y = fc.convolve(x, w, bias, **problem.window)
    flipped = np.flip(arrays.w, (2, 3))
    assert np.array_equal(host(y.data, "float32"), reference.conv(arrays.x, flipped, arrays.b, **problem.window))
    y.backward(to_device(arrays.gy, device))
    assert np.array_equal(
        host(x.grad, "float32"), reference.conv_input_grad(x.shape, flipped, arrays.gy, **problem.window)
    )
    gw = reference.conv_weight_grad(arrays.x, w.shape, arrays.gy, **problem.window)
    assert np.array_equal(host(w.grad, "float32"), np.flip(gw, (2, 3)))


# Worked examples of textbooks: image, kernel, padding, result.
BINARY = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]
NUMBERS = [[-5, 3, 2, -5, 3], [4, 3, 2, 1, -3], [1, 0, 3, 3, 5], [-2, 0, 1, 4, 4], [5, 6, 7, 9, -1]]
SIGNAL = [4, 3, 2, -5, 3, 5, 2, 5, 5, 6]
EXAMPLES = [
    (BINARY, [[0, 1, 0], [1, 2, 1], [0, 1, 0]], 0, [[4, 6, 4], [2, 5, 6], [2, 5, 4]]),
    (NUMBERS, [[0, -1, 0], [-1, 5, -1], [0, -1, 0]], 0, [[6, 1, 8], [-7, 9, 2], [-5, -9, 3]]),
    ([[10, 10, 10, 0, 0, 0]] * 6, [[1, 0, -1]] * 3, 0, [[0, 30, 30, 0]] * 4),
    (SIGNAL, [1, 1, 1], 1, [7, 9, 0, 0, 3, 10, 12, 12, 16, 11]),  # three times the box mean
]


@dtypes
@pytest.mark.parametrize("image, kernel, padding, result", EXAMPLES)
def test_worked_examples(image, kernel, padding, result, dtype, device):
    x, w = (to_device(np.array(a, dtype)[None, None], device) for a in (image, kernel))
    assert np.array_equal(host(fc.conv(x, w, padding=padding), dtype)[0, 0], result)


def test_shift_and_convolve_commute_away_from_the_border(device):
    arrays = parse("n1 c3 hw20x30 k4 f5").normal("float32")
    x, w = (to_device(a, device) for a in (arrays.x, arrays.w))
    y = host(fc.conv2d(x, w), "float32")
    shifted = host(fc.conv2d(to_device(np.roll(arrays.x, (3, 7), (2, 3)), device), w), "float32")
    assert np.array_equal(shifted[:, :, 3:, 7:], y[:, :, :-3, :-7])


def test_explain_names_algorithm_work_and_shape(device):
    problem = parse("n2 c32 hw41x37 k16 f3x5 s2 p1")
    x, w, _, _ = on(device, problem.normal("float32"))
    explanation = fc.explain(x, w, **problem.window)
    assert explanation.output_shape == problem.y_shape
    assert explanation.multiply_adds == 2 * 16 * 21 * 18 * 32 * 15
    assert all(isinstance(name, str) and name for name in explanation[:3])
