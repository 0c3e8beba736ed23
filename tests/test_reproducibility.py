"""The same input gives the same bits: call after call, for any number of threads, whatever the batch. No tolerance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from expected import DTYPES
from problems import LARGE, PROBLEMS, parse

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads
from fastconv.backends.cpu import host, shift_gemm, winograd_boxes
from fastconv.backends.cpu.plan import forward_plan
from fastconv.geometry import ConvGeometry

THREADS = (1, 2, 3, 8)
BATCHES = (2, 7, 64)

# Operation, input shape, arguments.
POOLS = [
    ("max_pool1d", (4, 16, 3001), {"kernel_size": 4, "stride": 3, "padding": 1}),
    ("max_pool2d", (8, 32, 56, 57), {"kernel_size": 2}),
    ("max_pool2d", (4, 32, 57, 55), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("max_pool2d", (4, 8, 40, 40), {"kernel_size": (3, 5), "stride": 1, "dilation": (2, 1), "padding": 1}),
    ("max_pool3d", (2, 8, 12, 14, 15), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("adaptive_max_pool2d", (8, 32, 31, 30), {"output_size": (7, 4)}),
    ("avg_pool1d", (4, 16, 3001), {"kernel_size": 5, "stride": 2, "padding": 2}),
    ("avg_pool2d", (8, 32, 56, 57), {"kernel_size": 2}),
    ("avg_pool2d", (4, 32, 57, 55), {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    ("avg_pool2d", (4, 8, 60, 60), {"kernel_size": 31, "stride": 1}),
    ("avg_pool3d", (2, 8, 12, 14, 15), {"kernel_size": (2, 3, 3), "stride": 1}),
    ("sum_pool2d", (4, 16, 50, 51), {"kernel_size": 3, "stride": 2}),
    ("adaptive_avg_pool2d", (8, 32, 31, 30), {"output_size": (7, 4)}),
    ("adaptive_avg_pool2d", (64, 48, 17, 19), {"output_size": 1}),
    ("interpolate", (4, 16, 301), {"scale_factor": 2, "mode": "linear"}),
    ("interpolate", (4, 16, 20, 21), {"scale_factor": 2, "mode": "nearest"}),
    ("interpolate", (4, 3, 90, 110), {"size": (61, 130), "mode": "bilinear"}),
    ("interpolate", (4, 3, 9, 10, 11), {"scale_factor": 1.7, "mode": "trilinear"}),
]
pools = pytest.mark.parametrize("name, shape, arguments", POOLS, ids=lambda value: str(value))
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def bits(array):
    """What is compared: the very bytes, so that −0 is not 0 and NaN is NaN."""
    return to_device(array, "cpu").tobytes()


def convolution(problem, x, w, b, gy):
    """The bits of everything that one problem computes."""
    window = problem.window
    name = f"conv{problem.rank}d"
    transposed = getattr(fc, f"conv_transpose{problem.rank}d")
    return {
        "forward": bits(fc.conv(x, w, b, **window)),
        "input gradient": bits(getattr(fc.grad, f"{name}_input")(x.shape, w, gy, **window)),
        "weight gradient": bits(getattr(fc.grad, f"{name}_weight")(x, w.shape, gy, **window)),
        "transposed": bits(transposed(gy, w, output_padding=problem.unused, **window)),
    }


def pooling(name, arguments, x, gy):
    """The bits of a pooling and its gradient."""
    tensor = fc.Tensor(x, requires_grad=True)
    y = getattr(fc, name)(tensor, **arguments)
    y.backward(gy)
    return {"forward": bits(y.data), "gradient": bits(tensor.grad)}


def pool_arrays(name, shape, arguments, dtype, device):
    """Input with many equal values, so that the winner of a window matters, and a cotangent."""
    rng = np.random.default_rng(8)
    x = np.round(rng.standard_normal(shape), 1).astype(dtype)
    y = getattr(fc, name)(to_device(x, device), **arguments)
    return to_device(x, device), to_device(rng.standard_normal(y.shape).astype(dtype), device)


@pytest.fixture
def no_work_is_too_small(monkeypatch):
    """Even what takes a microsecond is cut into pieces and handed to threads."""
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    monkeypatch.setattr(winograd_boxes, "SHARED_NS", 0)


@dtypes
@pytest.mark.parametrize("problem", PROBLEMS + LARGE, ids=str)
def test_convolution_for_any_number_of_threads(problem, dtype, precision, device, no_work_is_too_small):
    arrays = problem.normal(dtype)
    operands = [to_device(a, device) for a in (arrays.x, arrays.w, arrays.b, arrays.gy)]
    found = []
    for number in (*THREADS, THREADS[0]):
        fc.set_num_threads(number)
        found.append(convolution(problem, *operands))
    for other in found[1:]:
        assert other == found[0]


# Few panels of columns: of small images, of parts that read no padding, of groups, of sums in several steps.
FEW_PANELS = [
    "n1 c40 k72 hw7 f3 p1",
    "n2 c24 k96 hw9x11 f3 s2 p1 g2",
    "n1 c48 k40 hw33 f3 d12 p12",
    "n1 c560 k40 hw7 f1",
    "n3 c20 k33 l50 f5 p2",
]


def by_columns(problem, itemsize, monkeypatch):
    window = problem.kernel, problem.stride, problem.dilation, problem.padding
    geometry = ConvGeometry(problem.in_channels, problem.out_channels, problem.groups, problem.spatial, *window)
    c = forward_plan.__wrapped__(geometry, itemsize)
    monkeypatch.setattr(shift_gemm.row_lanes, "row_lanes", lambda c: None)
    monkeypatch.setattr(shift_gemm, "takes_columns", lambda c: True)
    return shift_gemm.ShiftGemm(c, (c.channels * c.kernel_size, c.kernel_size))


@dtypes
@pytest.mark.parametrize("line", FEW_PANELS)
def test_panels_that_threads_gather_together(line, dtype, monkeypatch, no_work_is_too_small):
    problem = parse(line)
    arrays = problem.normal(dtype)
    product = by_columns(problem, arrays.x.itemsize, monkeypatch)
    monkeypatch.setattr(shift_gemm, "_TASK_NS", 1)
    monkeypatch.setattr(shift_gemm, "_MIN_TASKS", 1000)  # short vectors have many panels
    monkeypatch.setattr(shift_gemm, "_FEW_PANELS", 100)
    monkeypatch.setattr(shift_gemm, "_SHARING", 0)
    product.images, product.cost = 1 << 30, 1e6  # so that they may take as much memory as they like, and pay
    found = set()
    for number in (*THREADS, THREADS[0]):
        fc.set_num_threads(number)
        slices = product._division(problem.batch, product._pieces(problem.batch, number), number)[2]
        assert (slices > 0) == (number > 1)  # one thread alone gathers what it needs
        y = np.full(problem.y_shape, np.nan, dtype)
        product.run(arrays.x, arrays.w, arrays.b, y, False)
        found.add(bits(y))
    assert len(found) == 1
    assert np.isfinite(y).all()


def test_another_thread_sets_the_number_of_threads_during_a_call(monkeypatch, no_work_is_too_small):
    """Who cuts the panels has to agree with who counts them."""
    problem = parse("n2 c40 k72 hw28 f1")
    arrays = problem.normal("float32")
    product = by_columns(problem, 4, monkeypatch)
    found = set()
    for numbers in ([1], [2, 5, 3], [5, 1, 2]):
        told = itertools.cycle(numbers)
        monkeypatch.setattr(shift_gemm, "get_num_threads", lambda told=told: next(told))
        y = np.full(problem.y_shape, np.nan, "float32")
        product.run(arrays.x, arrays.w, arrays.b, y, False)
        found.add(bits(y))
    assert len(found) == 1
    assert np.isfinite(y).all()


@dtypes
@pools
def test_pooling_for_any_number_of_threads(name, shape, arguments, dtype, device, no_work_is_too_small):
    operands = pool_arrays(name, shape, arguments, dtype, device)
    found = []
    for number in (*THREADS, THREADS[0]):
        fc.set_num_threads(number)
        found.append(pooling(name, arguments, *operands))
    for other in found[1:]:
        assert other == found[0]


@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_convolution_from_call_to_call(problem, precision, device):
    """With the threads of this machine, whichever of them takes a piece."""
    arrays = problem.normal("float32")
    operands = [to_device(a, device) for a in (arrays.x, arrays.w, arrays.b, arrays.gy)]
    first = convolution(problem, *operands)
    for _ in range(4):
        assert convolution(problem, *operands) == first


@dtypes
@pytest.mark.parametrize("problem", [p for p in PROBLEMS + LARGE if p.batch], ids=str)
def test_sample_alone_and_in_a_batch(problem, dtype, precision, device):
    """Forward, input gradient and transposed convolution of one sample, first or last in batches of 2, 7 and 64."""
    arrays = problem.normal(dtype)
    w, b = (to_device(a, device) for a in (arrays.w, arrays.b))
    largest = 64 if arrays.x.size // problem.batch < 10_000 else 7
    rng = np.random.default_rng(9)
    crowd_x, crowd_gy = (rng.standard_normal((largest, *a.shape[1:])).astype(dtype) for a in (arrays.x, arrays.gy))

    def computed(x, gy):
        x, gy = (to_device(a, device) for a in (x, gy))
        y = fc.conv(x, w, b, **problem.window)
        gx = getattr(fc.grad, f"conv{problem.rank}d_input")(x.shape, w, gy, **problem.window)
        z = getattr(fc, f"conv_transpose{problem.rank}d")(gy, w, output_padding=problem.unused, **problem.window)
        return y, gx, z

    alone = [bits(a) for a in computed(arrays.x[:1], arrays.gy[:1])]
    for batch in BATCHES:
        if batch <= largest:
            for place in (0, batch - 1):
                x, gy = crowd_x[:batch].copy(), crowd_gy[:batch].copy()
                x[place], gy[place] = arrays.x[0], arrays.gy[0]
                assert [bits(a[place]) for a in computed(x, gy)] == alone, (batch, place)


@dtypes
@pools
def test_pooled_sample_alone_and_in_a_batch(name, shape, arguments, dtype, device):
    x, gy = pool_arrays(name, (7, *shape[1:]), arguments, dtype, device)
    alone = pooling(name, arguments, x[:1], gy[:1])
    for batch in (2, 7):
        tensor = fc.Tensor(x[:batch], requires_grad=True)
        y = getattr(fc, name)(tensor, **arguments)
        y.backward(gy[:batch])
        assert {"forward": bits(y.data[:1]), "gradient": bits(tensor.grad[:1])} == alone


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch][::5], ids=str)
def test_place_in_memory_does_not_matter(problem, precision):
    """Operands that begin 4, 8, ... 60 bytes behind a multiple of 64."""
    arrays = problem.normal("float32")
    operands = arrays.x, arrays.w, arrays.b, arrays.gy
    expected = convolution(problem, *operands)
    for shift in (1, 2, 3, 5, 8, 15):
        assert convolution(problem, *(shifted(a, shift) for a in operands)) == expected


@dtypes
@pytest.mark.parametrize(
    "samples, channels, rows, groups, size",
    [(2, 64, 20, 1, 3136), (3, 16, 7, 1, 784), (2, 48, 24, 2, 576), (1, 5, 13, 1, 528), (2, 9, 8, 1, 1000)],
)
def test_tiles_in_place_begin_where_vectors_do(samples, channels, rows, groups, size, dtype):
    """Boxes of a source in place follow its address, and differ by that alone."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((samples, channels, size)).astype(dtype)
    w, b = (rng.standard_normal(s).astype(dtype) for s in ((rows, channels // groups, 1), rows))
    assert fc.explain(x, w, groups=groups).forward == "shift-gemm in place"

    def pointwise(x, w, b):
        by_group = x.reshape(samples, groups, -1, size), w.reshape(groups, -1, w.shape[1])
        return np.einsum("ngcl,gkc->ngkl", *by_group).reshape(samples, rows, size) + b[:, None]

    doubles = [a.astype("float64") for a in (x, w, b)]
    bound = channels * np.finfo(dtype).eps * pointwise(*map(abs, doubles))  # of sums in any order, Higham (2002), 3.1
    first = fc.conv1d(shifted(x, 0), w, b, groups=groups, activation="relu")
    assert np.all(abs(first - np.maximum(pointwise(*doubles), 0)) <= bound)
    for elements in range(1, 64 // x.itemsize):
        assert bits(fc.conv1d(shifted(x, elements), w, b, groups=groups, activation="relu")) == bits(first)


def shifted(array, elements):
    """A copy whose address is that many elements behind a multiple of 64."""
    memory = np.empty(array.size + 32, array.dtype)
    begin = (-memory.ctypes.data % 64) // array.itemsize + elements
    copy = memory[begin : begin + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def test_every_algorithm_is_among_the_geometries():
    """And none has silently died: a line of the table for each name that `explain` knows."""
    found = {name: set() for name in ("forward", "input_grad", "weight_grad")}
    for problem in PROBLEMS + LARGE:
        for dtype in DTYPES:
            explanation = fc.explain(
                np.empty(problem.x_shape, dtype), np.empty(problem.w_shape, dtype), **problem.window
            )
            for direction, names in found.items():
                names.update(getattr(explanation, direction).split(" + "))
    correlation = ["shift-gemm boxes", "shift-gemm columns", "shift-gemm in place", "shift-gemm lanes"]
    correlation += ["constant", "fft", "depthwise lanes", "depthwise rows"]
    correlation += ["winograd boxes", "winograd tiles of 3×3", "winograd tiles of 4×4"]
    correlation += ["depthwise strips"] * (host.LANES >= 8)
    by_some_prices = {"winograd tiles of 2×2"}
    assert sorted(found["forward"] - by_some_prices) == sorted(correlation)
    assert sorted(found["input_grad"] - by_some_prices) == sorted(
        [*correlation, "patches", "patches spread", "shift-gemm phases"]
    )
    sums = ["constant", "depthwise lanes", "inner-product boxes", "inner-product columns", "outer-product", "patches"]
    sums.append("winograd")
    assert sorted(found["weight_grad"]) == sums
