"""Pooling: every kind of window against enumeration, PyTorch, finite differences, and itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import reference_pool as reference
from bad_calls import bad_calls, refused
from differences import check_gradients, spread_out

import fastconv as fc
from fastconv import backends
from fastconv.autograd import to_device
from fastconv.backends import threads
from fastconv.backends.cpu import pool_lanes, pool_windows, pooling

DTYPES = ["float32", "float64"]


class Pooling(NamedTuple):
    """spatial, kernel, stride, padding, dilation, ceil_mode; padding as pairs where it is one-sided."""

    spatial: tuple
    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    ceil_mode: bool = False

    @property
    def axes(self):
        pairs = [pad if isinstance(pad, tuple) else (pad, pad) for pad in self.padding]
        return [
            reference.axis_windows(size, k, s, *pad, d, self.ceil_mode)
            for size, k, s, pad, d in zip(self.spatial, self.kernel, self.stride, pairs, self.dilation)
        ]

    @property
    def rank(self):
        return len(self.spatial)

    def operation(self, name):
        return getattr(fc, f"{name}_pool{self.rank}d")


CASES = [
    Pooling((7,), (2,), (2,), (0,), (1,)),
    Pooling((7,), (2,), (2,), (0,), (1,), True),
    Pooling((9,), (3,), (1,), (1,), (1,)),
    Pooling((9,), (3,), (2,), (1,), (3,)),
    Pooling((100,), (40,), (1,), (20,), (1,)),
    Pooling((100,), (40,), (3,), (7,), (1,), True),
    Pooling((60,), (3,), (5,), (1,), (1,)),
    Pooling((99,), (4,), (9,), (2,), (1,)),
    Pooling((2500,), (3,), (1,), (1,), (1,)),
    Pooling((2500,), (2,), (2,), (0,), (1,)),
    Pooling((1,), (1,), (1,), (0,), (1,)),
    Pooling((2,), (3,), (4,), (1,), (1,), True),
    Pooling((6,), (3,), (1,), (2,), (1,)),
    Pooling((30,), (2,), (1,), ((3, 2),), (4,)),
    Pooling((8, 8), (2, 2), (2, 2), (0, 0), (1, 1)),
    Pooling((6, 19), (3, 3), (1, 2), (2, 2), (1, 1)),
    Pooling((9, 20), (2, 3), (1, 1), (3, (0, 4)), (3, 2)),
    Pooling((8, 41), (3, 3), (2, 2), (1, 1), (1, 1)),
    Pooling((7, 20), (3, 3), (1, 1), (1, 1), (1, 1)),
    Pooling((7, 20), (3, 3), (2, 2), (0, 0), (1, 1), True),
    Pooling((9, 37), (3, 2), (2, 1), (1, 0), (2, 3)),
    Pooling((9, 37), (2, 5), (3, 4), (1, 2), (1, 1), True),
    Pooling((6, 30), (2, 3), (1, 2), ((0, 1), (1, 0)), (1, 1)),
    Pooling((5, 33), (1, 2), (1, 2), (0, 0), (1, 1)),
    Pooling((33, 5), (2, 1), (2, 1), (0, 0), (1, 1)),
    Pooling((7, 7), (7, 7), (7, 7), (0, 0), (1, 1)),
    Pooling((1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    Pooling((3, 3), (2, 2), (4, 4), (1, 1), (1, 1), True),
    Pooling((4, 6, 20), (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1)),
    Pooling((5, 4, 19), (3, 2, 3), (2, 1, 2), (1, 1, 1), (1, 2, 1), True),
    Pooling((4, 5, 6), (2, 5, 6), (2, 5, 6), (0, 0, 0), (1, 1, 1)),
    Pooling((4, 5, 12), (4, 5, 2), (4, 5, 2), (0, 0, 0), (1, 1, 1)),
    Pooling((3, 4, 5), (3, 4, 5), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
]

ADAPTIVE = [
    ((7,), (3,)),
    ((5,), (8,)),
    ((1000,), (300,)),
    ((6, 8), (3, 4)),
    ((7, 10), (3, 4)),
    ((7, 10), (1, 1)),
    ((7, 31), (7, 12)),
    ((4, 5, 6), (2, 3, 5)),
    ((4, 5, 6), (1, 1, 1)),
]


@pytest.fixture(params=["usual", "lanes", "windows", "small blocks", "rows"])
def path(request, monkeypatch):
    """Each family of CPU kernels on the same planes."""
    tables = pool_lanes.max_table, pool_lanes.sum_table, pool_lanes.spread_table
    cached = (*tables, pool_windows.window_plan, pooling._bands)
    if request.param == "small blocks":
        monkeypatch.setattr(pool_windows, "_OUTPUTS", 12)
        monkeypatch.setattr(pool_windows, "_COLUMNS", 9)
        monkeypatch.setattr(pooling, "_BAND", 20)
    elif request.param == "rows":
        monkeypatch.setattr(pooling, "window_plan", lambda geometry, itemsize: None)
    if request.param == "lanes":
        monkeypatch.setattr(pooling, "fills_lanes", lambda x: True)
    elif request.param != "usual":
        monkeypatch.setattr(pool_lanes, "_MAX_TAPS", 0)
    for function in cached:
        function.cache_clear()
    yield request.param
    for function in cached:
        function.cache_clear()


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)).replace(" ", ""))
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def integers(seed, shape, dtype):
    return np.random.default_rng(seed).integers(-20, 21, shape).astype(dtype)


def on(device, *arrays):
    return tuple(to_device(array, device) for array in arrays)


def run(device, function, x, gy_seed=1):
    """Result and gradient of `function` on a device, and the integer cotangent that went in."""
    tensor = fc.Tensor(*on(device, x), requires_grad=True)
    y = function(tensor)
    gy = integers(gy_seed, y.shape, x.dtype)
    y.backward(*on(device, gy))
    return y.numpy(), to_device(tensor.grad, "cpu"), gy


@every_dtype
@every_case
def test_max_pool_exactly(path, device, case, dtype):
    x = integers(0, (2, 3, *case.spatial), dtype)
    arguments = (case.kernel, case.stride, case.padding, case.dilation, case.ceil_mode)
    values, indices = reference.max_pool(x, case.axes)
    y, gx, gy = run(device, lambda t: case.operation("max")(t, *arguments), x)
    assert y.dtype == gx.dtype == dtype
    np.testing.assert_array_equal(y, values)
    np.testing.assert_array_equal(gx, reference.max_pool_grad(gy, indices, case.spatial))
    alone = case.operation("max")(*on(device, x), *arguments)
    pair = case.operation("max")(*on(device, x), *arguments, return_indices=True)
    np.testing.assert_array_equal(to_device(alone, "cpu"), values)
    np.testing.assert_array_equal(to_device(pair[0], "cpu"), values)
    np.testing.assert_array_equal(to_device(pair[1], "cpu"), indices)
    assert pair[1].dtype == np.int64


@pytest.mark.parametrize("divisor", [None, 1, 7])
@pytest.mark.parametrize("count_include_pad", [True, False])
@every_dtype
@every_case
def test_avg_pool(path, device, case, dtype, count_include_pad, divisor):
    x = integers(0, (2, 3, *case.spatial), dtype)
    rest = case.ceil_mode, count_include_pad, divisor, case.dilation
    operation = case.operation("avg")
    y, gx, gy = run(device, lambda t: operation(t, case.kernel, case.stride, case.padding, *rest), x)
    expected = reference.avg_pool(x.astype(float), case.axes, *rest[1:3])
    expected_gx = reference.avg_pool_grad(gy.astype(float), case.axes, case.spatial, *rest[1:3])
    if divisor == 1:  # sums of integers have no rounding
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(gx, expected_gx)
    assert y.dtype == gx.dtype == dtype
    np.testing.assert_array_max_ulp(y, expected.astype(dtype), 1)
    overlap = np.prod([-(-k // s) + 1 for k, s in zip(case.kernel, case.stride)])
    np.testing.assert_allclose(gx, expected_gx, rtol=0, atol=20 * overlap**2 * np.finfo(dtype).eps)


@every_dtype
@every_case
def test_sum_pool_exactly(device, case, dtype):
    x = integers(0, (2, 3, *case.spatial), dtype)
    arguments = (case.kernel, case.stride, case.padding, case.ceil_mode, case.dilation)
    y, gx, gy = run(device, lambda t: case.operation("sum")(t, *arguments), x)
    np.testing.assert_array_equal(y, reference.avg_pool(x.astype(float), case.axes, divisor=1))
    np.testing.assert_array_equal(gx, reference.avg_pool_grad(gy.astype(float), case.axes, case.spatial, divisor=1))


@every_dtype
@pytest.mark.parametrize(("spatial", "sizes"), ADAPTIVE)
def test_adaptive_pools(path, device, spatial, sizes, dtype):
    x = integers(0, (2, 3, *spatial), dtype)
    axes = [reference.adaptive_windows(size, out) for size, out in zip(spatial, sizes)]
    rank = len(spatial)
    maximum, average = getattr(fc, f"adaptive_max_pool{rank}d"), getattr(fc, f"adaptive_avg_pool{rank}d")
    y, gx, gy = run(device, lambda t: maximum(t, sizes), x)
    values, indices = reference.max_pool(x, axes)
    np.testing.assert_array_equal(y, values)
    np.testing.assert_array_equal(gx, reference.max_pool_grad(gy, indices, spatial))
    found = maximum(*on(device, x), sizes, return_indices=True)[1]
    np.testing.assert_array_equal(to_device(found, "cpu"), indices)
    y, gx, gy = run(device, lambda t: average(t, sizes), x)
    np.testing.assert_array_max_ulp(y, reference.avg_pool(x.astype(float), axes).astype(dtype), 1)
    expected = reference.avg_pool_grad(gy.astype(float), axes, spatial)
    np.testing.assert_allclose(gx, expected, rtol=0, atol=500 * np.finfo(dtype).eps)


def test_adaptive_sizes_given_in_every_form():
    x = np.arange(24.0).reshape(1, 1, 4, 6)
    assert fc.adaptive_avg_pool2d(x, 2).shape == fc.adaptive_avg_pool2d(x, (2, 2)).shape == (1, 1, 2, 2)
    assert fc.adaptive_avg_pool2d(x, (2,)).shape == (1, 1, 2, 2)
    assert fc.adaptive_max_pool2d(x, (None, 3)).shape == (1, 1, 4, 3)
    assert fc.adaptive_avg_pool2d(x, None).tolist() == fc.adaptive_avg_pool2d(x, (None,)).tolist() == x.tolist()


def test_numbers_of_the_lectures():
    x = np.array([[3.0, 1, 3, 5], [6, 0, 7, 9], [3, 2, 1, 4], [0, 2, 4, 3]])[None, None]
    assert fc.max_pool2d(x, 2, 2).tolist() == [[[[6, 9], [3, 4]]]]
    assert fc.avg_pool2d(x, 2, 2).tolist() == [[[[2.5, 6], [1.75, 3]]]]
    assert fc.sum_pool2d(x, 2, 2).tolist() == [[[[10, 24], [7, 12]]]]


def known_to_torch(case):
    """PyTorch takes no one-sided padding, and no more than half the kernel."""
    return all(isinstance(pad, int) and pad <= k // 2 for pad, k in zip(case.padding, case.kernel))


@pytest.mark.parametrize("case", list(filter(known_to_torch, CASES)), ids=str)
def test_against_torch(case):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    x = np.random.default_rng(0).standard_normal((2, 3, *case.spatial)).astype("float32")
    name, rest = f"max_pool{case.rank}d", (case.stride, case.padding, case.dilation, case.ceil_mode)
    values, indices = getattr(torch.nn.functional, name)(torch.tensor(x), case.kernel, *rest, return_indices=True)
    ours = case.operation("max")(x, case.kernel, *rest, return_indices=True)
    np.testing.assert_array_equal(ours[0], values.numpy())
    np.testing.assert_array_equal(ours[1], indices.numpy())
    if max(case.dilation) > 1:
        return  # PyTorch's averages know no dilation
    average = getattr(torch.nn.functional, f"avg_pool{case.rank}d")
    for count_include_pad in (True, False):
        rest = (case.stride, case.padding, case.ceil_mode, count_include_pad)
        theirs = average(torch.tensor(x, dtype=torch.float64), case.kernel, *rest).numpy()
        np.testing.assert_allclose(case.operation("avg")(x, case.kernel, *rest), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if np.prod(case.spatial) < 100], ids=str)
def test_gradients_against_finite_differences(case):
    x = spread_out(np.random.default_rng(0), (2, 1, *case.spatial))
    rest = (case.stride, case.padding)
    check_gradients(lambda t: case.operation("max")(t, case.kernel, *rest, case.dilation, case.ceil_mode), x)
    check_gradients(
        lambda t: case.operation("avg")(t, case.kernel, *rest, case.ceil_mode, False, None, case.dilation), x
    )
    sizes = tuple(min(3, size) for size in case.spatial)
    check_gradients(lambda t: getattr(fc, f"adaptive_avg_pool{case.rank}d")(t, sizes), x)


@every_dtype
@every_case
def test_same_bits_for_any_threads_and_batch(path, device, case, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)  # small work is shared out, too
    x = np.random.default_rng(0).standard_normal((64, 3, *case.spatial)).astype(dtype)

    def everything(batch):
        results = []
        for name, rest in (("max", {}), ("avg", {"count_include_pad": False})):
            tensor = fc.Tensor(*on(device, batch), requires_grad=True)
            windows = (case.kernel, case.stride, case.padding)
            y = case.operation(name)(tensor, *windows, ceil_mode=case.ceil_mode, dilation=case.dilation, **rest)
            gy = np.random.default_rng(1).standard_normal((64, *y.shape[1:])).astype(dtype)[: len(batch)]
            y.backward(*on(device, gy))
            results += [y.numpy(), to_device(tensor.grad, "cpu")]
        return results

    fc.set_num_threads(1)
    expected = everything(x[:7])
    for count in (2, 3, 8):
        fc.set_num_threads(count)
        for result, wanted in zip(everything(x[:7]), expected, strict=True):
            assert result.tobytes() == wanted.tobytes()
    alone = [result[0].tobytes() for result in everything(x[:1])]
    for batch in (2, 7, 64):
        assert [result[0].tobytes() for result in everything(x[:batch])] == alone


@every_dtype
@pytest.mark.parametrize("width", [3, 40])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_nan_wins_and_infinity_counts(path, device, dtype, width, stride):
    x = np.random.default_rng(0).standard_normal((1, 4, 5, width)).astype(dtype)
    x[0, 0, 1, 1] = x[0, 1, 2, 2] = x[0, 1, 2, 1] = np.nan
    x[0, 2] = -np.inf
    x[0, 3, 2, 1] = np.inf
    case = Pooling((5, width), (3, 3), (stride, stride), (1, 1), (1, 1))
    values, indices = reference.max_pool(x, case.axes)
    ours = fc.max_pool2d(*on(device, x), 3, stride, 1, return_indices=True)
    np.testing.assert_array_equal(to_device(ours[0], "cpu"), values)
    np.testing.assert_array_equal(to_device(ours[1], "cpu"), indices)
    np.testing.assert_array_equal(to_device(fc.max_pool2d(*on(device, x), 3, stride, 1), "cpu"), values)
    average = to_device(fc.avg_pool2d(*on(device, x), 3, stride, 1), "cpu")
    expected = reference.avg_pool(x.astype(float), case.axes)
    np.testing.assert_array_equal(np.isnan(average), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(average), np.isinf(expected))


@pytest.mark.parametrize(
    "name", ["max_pool2d", "avg_pool2d", "sum_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"]
)
def test_forms_of_the_input(device, name):
    operation, size = getattr(fc, name), 2
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 6)).astype("float32")
    expected = to_device(operation(*on(device, x), size), "cpu")
    kept = x.copy()
    read_only = x.copy()
    read_only.flags.writeable = False
    forms = [x[::-1][::-1], np.repeat(x, 2, axis=3)[..., ::2], np.asfortranarray(x), x.astype(">f4"), read_only]
    for form in forms if device == "cpu" else []:
        np.testing.assert_array_equal(operation(form, size), expected)
    unbatched = operation(fc.Tensor(*on(device, x[1]), requires_grad=True), size)
    np.testing.assert_array_equal(unbatched.numpy(), expected[1])
    np.testing.assert_array_equal(x, kept)
    assert isinstance(operation(x, size), np.ndarray)
    empty = fc.Tensor(*on(device, x[:0]), requires_grad=True)
    y = operation(empty, size)
    assert y.shape == (0, *expected.shape[1:])
    y.backward(*on(device, np.zeros(y.shape, "float32")))
    assert empty.grad.shape == (0, 3, 8, 6)


def test_gradient_of_an_input_without_batch():
    check_gradients(lambda t: fc.max_pool1d(t, 2), spread_out(np.random.default_rng(0), (3, 9)))
    check_gradients(lambda t: fc.avg_pool3d(t, 2), spread_out(np.random.default_rng(0), (1, 4, 3, 3)))


def test_indices_of_a_tensor_have_no_gradient():
    values, indices = fc.max_pool1d(fc.Tensor(np.ones((1, 1, 4)), requires_grad=True), 2, return_indices=True)
    assert values.requires_grad and not indices.requires_grad
    assert indices.numpy().tolist() == [[[0, 2]]]


X = np.zeros((2, 3, 8, 8), "float32")
BAD_CALLS = [
    (
        lambda: fc.max_pool2d(X.astype("int16"), 2),
        TypeError,
        'max_pool2d: integer input (int16) is not supported; convert first, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.avg_pool2d([[1.0]], 2),
        TypeError,
        "avg_pool2d: input must be an array, a Tensor or an object with __array__ or __dlpack__, got list; "
        'convert first, e.g. numpy.asarray(input, dtype="float32")',
    ),
    (
        lambda: fc.max_pool2d(X[0, 0], 2),
        ValueError,
        "max_pool2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input shape (8, 8)); "
        "a single-channel input becomes x[None, None]",
    ),
    (
        lambda: fc.max_pool1d(X, 2),
        ValueError,
        "max_pool1d: input must have 3 axes (N, C, L), or 2 without the batch, but has 4 (input shape (2, 3, 8, 8))",
    ),
    (
        lambda: fc.max_pool2d(X, 9),
        ValueError,
        "max_pool2d: kernel of extent 9 (kernel 9, dilation 1) does not fit into padded height 8 (height 8, "
        "padding 0+0)",
    ),
    (
        lambda: fc.sum_pool2d(X, 3, padding=3),
        ValueError,
        "sum_pool2d: padding must leave each window an element of the height 8: a window of kernel 3 with padding 3+3 "
        "reads nothing but padding",
    ),
    (lambda: fc.avg_pool2d(X, 2, stride=0), ValueError, "avg_pool2d: stride must be at least 1, got 0"),
    (
        lambda: fc.avg_pool2d(X, 2, divisor_override=0),
        ValueError,
        "avg_pool2d: divisor_override must be at least 1, got 0",
    ),
    (
        lambda: fc.adaptive_avg_pool2d(X, 0),
        ValueError,
        "adaptive_avg_pool2d: output_size must be at least 1, got 0",
    ),
    (
        lambda: fc.adaptive_max_pool2d(X[:, :0], 1),
        ValueError,
        "adaptive_max_pool2d: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, "
        "but has shape (2, 0, 8, 8)",
    ),
]


@bad_calls(BAD_CALLS)
def test_bad_calls(call, kind, text):
    refused(call, kind, text)


@pytest.mark.parametrize(
    ("spatial", "kernel", "windows"),
    [((28, 28), 2, True), ((112, 112), 3, True), ((1000,), 4, True), ((14, 14), 2, True), ((7, 7), 7, False)],
)
def test_rows_of_half_a_vector_go_by_windows(spatial, kernel, windows):
    geometry = fc.geometry.PoolGeometry.of(f"avg_pool{len(spatial)}d", (1, 1, *spatial), kernel)
    regular = pool_windows.window_plan(geometry, 8)
    assert (regular is not None) == windows


@pytest.mark.parametrize(
    ("spatial", "kernel", "small"),
    [
        ((6, 6), 2, True),
        ((12, 12), 3, True),
        ((7, 7), 5, True),
        ((4, 5, 6), 2, True),
        ((112, 112), 3, False),  # too many positions
        ((2, 500), 2, False),  # rows of many vectors
        ((7, 7), 7, False),  # a window worth vectors of its own
    ],
)
@pytest.mark.parametrize("itemsize", [4, 8])
def test_small_planes_go_into_the_lanes(spatial, kernel, small, itemsize):
    geometry = fc.geometry.PoolGeometry.of(f"avg_pool{len(spatial)}d", (1, 1, *spatial), kernel)
    for table in (pool_lanes.max_table, pool_lanes.sum_table, pool_lanes.spread_table):
        assert (table(geometry, itemsize) is not None) == small


def test_the_backend_skips_indices_nobody_asked_for(device):
    geometry = fc.geometry.PoolGeometry.of("max_pool2d", X.shape, 2)
    backend = backends.get(device)
    assert backend.max_pool_forward(*on(device, X), geometry, with_indices=False)[1] is None
