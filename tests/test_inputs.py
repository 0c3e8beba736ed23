"""What may be handed in, any layout, byte order and kind of array, and stays as it is; where NaN and infinity go."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from expected import DTYPES, exact
from problems import parse

import fastconv as fc
from fastconv.autograd import to_device

pytestmark = pytest.mark.usefixtures("highest_precision")

PROBLEM = parse("n2 c6 hw9x11 k8 f3x2 s2x1 p1 g2")
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def transposed(a):
    """Its axes lie in memory in reverse order, as in a Fortran array."""
    return np.asfortranarray(a)


def channels_last(a):
    """Its second axis is the last in memory."""
    second = min(1, a.ndim - 1)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, second, -1)), -1, second)


def reversed_everywhere(a):
    """All strides are negative."""
    return np.ascontiguousarray(np.flip(a))[(slice(None, None, -1),) * a.ndim]


def every_second(a):
    """A view with gaps, which hold NaN."""
    wide = np.full([2 * size for size in a.shape], np.nan, a.dtype)
    view = wide[(slice(1, None, 2),) * a.ndim]
    view[...] = a
    return view


def byte_swapped(a):
    return a.astype(a.dtype.newbyteorder("S"))


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def unaligned(a):
    """Begins one byte behind where its dtype would want it."""
    memory = np.empty(a.nbytes + 1, np.uint8)
    view = memory[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned
    return view


def masked_nowhere(a):
    return np.ma.masked_array(a)


class WithArray:
    """An array-like as xarray's or PyTables' objects are: nothing but `__array__`."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


class WithDlpack:
    """An array-like of another library: nothing but `__dlpack__`."""

    def __init__(self, a):
        self.a = a

    def __dlpack__(self, **arguments):
        return self.a.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


class Subclass(np.ndarray):
    """A subclass, as np.memmap is one."""


def subclass(a):
    return a.view(Subclass)


KINDS = [
    transposed,
    channels_last,
    reversed_everywhere,
    every_second,
    byte_swapped,
    read_only,
    unaligned,
    subclass,
    masked_nowhere,
    WithArray,
    WithDlpack,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def underlying(a):
    return getattr(a, "a", a)


@dtypes
@kinds
def test_convolution_of_any_kind_of_array(kind, dtype):
    arrays = PROBLEM.integers(dtype)
    given = [kind(a) for a in (arrays.x, arrays.w, arrays.b, arrays.gy)]
    before = [underlying(a).tobytes() for a in given]
    x, w, b, gy = given
    window = PROBLEM.window
    expected = exact(PROBLEM)
    y = fc.conv2d(x, w, b, **window)
    results = {
        "forward": y,
        "relu": fc.conv2d(x, w, b, activation="relu", **window),
        "input gradient": fc.grad.conv2d_input(PROBLEM.x_shape, w, gy, **window),
        "weight gradient": fc.grad.conv2d_weight(x, PROBLEM.w_shape, gy, **window),
        "transposed": fc.conv_transpose2d(gy, w, output_padding=PROBLEM.unused, **window),
    }
    wanted = (
        expected.forward,
        np.maximum(expected.forward, 0),
        expected.input_grad,
        expected.weight_grad,
        expected.input_grad,
    )
    for (name, result), value in zip(results.items(), wanted):
        assert np.array_equal(result, value), name
        assert type(result) is np.ndarray and result.dtype == dtype and result.dtype.isnative
        assert result.flags.c_contiguous and result.flags.writeable
    assert [underlying(a).tobytes() for a in given] == before


@kinds
def test_pooling_of_any_kind_of_array(kind):
    x = PROBLEM.integers("float32").x
    given = kind(x)
    for call in (fc.max_pool2d, fc.avg_pool2d):
        assert np.array_equal(call(given, 3, 2, 1), call(x, 3, 2, 1))
    assert np.array_equal(underlying(given), x)


@dtypes
def test_zero_strides(dtype):
    """Broadcast views: one number read many times, as gradients of a sum are."""
    one = np.ones((), dtype)
    x, w, gy = (np.broadcast_to(one, shape) for shape in (PROBLEM.x_shape, PROBLEM.w_shape, PROBLEM.y_shape))
    window = PROBLEM.window
    assert np.array_equal(fc.conv2d(x, w, **window), reference.conv(x, w, **window))
    gx = reference.conv_input_grad(x.shape, w, gy, **window)
    assert np.array_equal(fc.grad.conv2d_input(x.shape, w, gy, **window), gx)
    gw = reference.conv_weight_grad(x, w.shape, gy, **window)
    assert np.array_equal(fc.grad.conv2d_weight(x, w.shape, gy, **window), gw)


@dtypes
@pytest.mark.parametrize("kind", [k for k in KINDS if not isinstance(k, type)], ids=lambda kind: kind.__name__)
def test_tensors_of_any_kind_of_array(kind, dtype):
    """And a cotangent of any layout."""
    arrays = PROBLEM.integers(dtype)
    x, w = (fc.Tensor(kind(a), requires_grad=True) for a in (arrays.x, arrays.w))
    fc.conv2d(x, w, **PROBLEM.window).backward(kind(arrays.gy))
    assert np.array_equal(x.grad, exact(PROBLEM).input_grad)
    assert np.array_equal(w.grad, exact(PROBLEM).weight_grad)


@dtypes
def test_arrays_of_pytorch(dtype):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    arrays = PROBLEM.integers(dtype)
    x, w, b = (torch.from_numpy(a) for a in (arrays.x, arrays.w, arrays.b))
    y = fc.conv2d(x.to(memory_format=torch.channels_last), w, b, **PROBLEM.window)
    assert type(y) is np.ndarray
    assert np.array_equal(y, exact(PROBLEM).forward)


def test_memory_maps(tmp_path):
    arrays = PROBLEM.integers("float32")
    np.save(tmp_path / "x.npy", arrays.x)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = fc.conv2d(x, arrays.w, arrays.b, **PROBLEM.window)
    assert type(y) is np.ndarray
    assert np.array_equal(y, exact(PROBLEM).forward)


@pytest.mark.parametrize("line", ["n1 c4 l12 k6 f3 s2 p1", "n1 c4 hw7x8 k6 f3 s2x1 p1", "n1 c4 dhw4x5x6 k6 f3x2x3 p1"])
def test_without_the_batch_axis(line, device):
    problem = parse(line)
    arrays = problem.integers("float32")
    x, w, b, gy = (to_device(a, device) for a in (arrays.x[0], arrays.w, arrays.b, arrays.gy[0]))
    name, window, expected = f"conv{problem.rank}d", problem.window, exact(problem)
    tensor = fc.Tensor(x, requires_grad=True)
    y = getattr(fc, name)(tensor, w, b, **window)
    y.backward(gy)
    assert np.array_equal(to_device(y.data, "cpu"), expected.forward[0])
    assert np.array_equal(to_device(tensor.grad, "cpu"), expected.input_grad[0])
    z = getattr(fc, f"conv_transpose{problem.rank}d")(gy, w, output_padding=problem.unused, **window)
    assert np.array_equal(to_device(z, "cpu"), expected.input_grad[0])


def test_a_result_is_new_memory(device):
    """Even where the convolution is the identity, or has nothing to do."""
    x = to_device(np.ones((2, 1, 4, 4), "float32"), device)
    w = to_device(np.ones((1, 1, 1, 1), "float32"), device)
    y = fc.conv2d(x, w)
    y[...] = 5
    assert np.array_equal(to_device(x, "cpu"), np.ones((2, 1, 4, 4)))
    assert fc.conv2d(x[:0], w).shape == (0, 1, 4, 4)


# NaN and infinity: one in the input or the cotangent reaches what has it in a window, and nothing else.

SPREADING = [
    parse(line)
    for line in (
        "n2 c3 l40 k5 f3 p1",
        "n1 c2 l50 k4 f5 s3 p2",
        "n2 c3 hw9x11 k9 f3 p1",
        "n2 c17 hw13x9 k20 f3 p1",
        "n1 c16 hw30x28 k32 f3",
        "n2 c4 hw10x9 k6 f3x2 s2x3 p1",
        "n1 c3 hw9x9 k2 f3 d2 p2",
        "n2 c4 hw7x6 k8 f1",
        "n2 c40 hw6x6 k64 f3 p1",
        "n3 c32 hw5x7 k16 f3x2 s1x2 p1 g2",
        "n1 c6 hw8x9 k6 f3 p1 g6",
        "n1 c4 hw8x9 k6 f3 p2 g2",
        "n1 c2 dhw5x6x7 k3 f3 p1",
        "n1 c3 hw6x50 k4 f3 p1",
    )
]


def check_reach(actual, clean, expected):
    """`actual` is not finite where `expected` is, with the same values, and elsewhere what `clean` is."""
    actual, clean = (to_device(a, "cpu") for a in (actual, clean))
    reached = ~np.isfinite(expected)
    assert np.array_equal(actual[reached], expected[reached].astype(actual.dtype), equal_nan=True)
    assert np.isfinite(actual[~reached]).all()
    # To the accuracy of precision("default"): what lies beside may be computed another way.
    assert np.linalg.norm((actual - clean)[~reached]) <= 1e-5 * np.linalg.norm(clean)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("problem", SPREADING, ids=str)
@dtypes
def test_where_one_value_that_is_not_finite_goes(problem, dtype, value, precision, device):
    """Padding is zeros: what is not finite times one of them is NaN, as in PyTorch."""
    arrays, rng = problem.normal(dtype), np.random.default_rng(10)
    padded = reference.pad(arrays.x, problem.padding, "zeros")
    unpadded = {**problem.window, "padding": ((0, 0),) * problem.rank}
    name, window = f"conv{problem.rank}d", problem.window
    input_grad, weight_grad = (getattr(fc.grad, f"{name}_{of}") for of in ("input", "weight"))
    x, w, gy = (to_device(a, device) for a in (arrays.x, arrays.w, arrays.gy))
    y, gx, gw = fc.conv(x, w, **window), input_grad(x.shape, w, gy, **window), weight_grad(x, w.shape, gy, **window)
    for _ in range(4):
        bad_x, bad_gy = arrays.x.copy(), arrays.gy.copy()
        bad_x[tuple(rng.integers(0, bad_x.shape))] = value
        bad_gy[tuple(rng.integers(0, bad_gy.shape))] = value
        on_device = [to_device(a, device) for a in (bad_x, bad_gy)]
        check_reach(fc.conv(on_device[0], w, **window), y, reference.conv(bad_x, arrays.w, **window))
        expected = reference.conv_input_grad(bad_x.shape, arrays.w, bad_gy, **window)
        check_reach(input_grad(x.shape, w, on_device[1], **window), gx, expected)
        expected = reference.conv_weight_grad(bad_x, arrays.w.shape, arrays.gy, **window)
        check_reach(weight_grad(on_device[0], w.shape, gy, **window), gw, expected)
        expected = reference.conv_weight_grad(padded, arrays.w.shape, bad_gy, **unpadded)
        check_reach(weight_grad(x, w.shape, on_device[1], **window), gw, expected)


@pytest.mark.parametrize(
    "line", ["n2 c4 hw9x8 k6 f3 p1", "n2 c16 hw12x11 k16 f3 p1", "n2 c3 l20 k5 f4 s2 p2", "n1 c4 dhw4x5x6 k6 f3 g2"]
)
def test_a_weight_that_is_nan_reaches_its_filter_only(line, precision, device):
    problem = parse(line)
    arrays = problem.normal("float32")
    w = arrays.w.copy()
    w[1, 0, ..., 0] = np.nan
    x, good, bad = (to_device(a, device) for a in (arrays.x, arrays.w, w))
    y, reached = (fc.conv(x, weight, **problem.window) for weight in (good, bad))
    padded = reference.pad(arrays.x, problem.padding, "zeros")
    check_reach(reached, y, reference.conv(padded, w, **{**problem.window, "padding": ((0, 0),) * problem.rank}))


def test_nan_passes_through_relu(device):
    x, w = (to_device(np.array(a, "float32")[None, None], device) for a in ([1.0, np.nan, -1.0, 2.0], [1.0]))
    y = to_device(fc.conv1d(x, w, activation="relu"), "cpu")
    assert np.array_equal(y[0, 0], [1, np.nan, 0, 2], equal_nan=True)


def test_overflow_is_infinity_and_infinities_that_cancel_are_nan(device):
    large, row = np.finfo("float32").max, np.array([[[1, 1, 1, -1]]], "float32")
    x, w = (to_device(np.asarray(a, "float32"), device) for a in (large * row, [[[1, 1]]]))
    assert to_device(fc.conv1d(x, w), "cpu").tolist() == [[[np.inf, np.inf, 0.0]]]
    y = to_device(fc.conv1d(x * to_device(np.float32([np.inf]), device), w), "cpu")
    assert np.array_equal(y[0, 0], [np.inf, np.inf, np.nan], equal_nan=True)
