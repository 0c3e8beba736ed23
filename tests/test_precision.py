"""precision("highest" | "default" | "fast"): what it lets an algorithm round; the algorithms of the CPU keep to it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from problems import parse

import fastconv as fc
from fastconv.backends import threads
from fastconv.backends.cpu import (
    convolution,
    weight_grad_estimates,
    weight_grad_winograd,
    winograd,
    winograd_boxes,
    winograd_tiles,
)

# Winograd on whole and ragged tiles, small images over several samples, groups, volumes, odd numbers of channels.
WINOGRAD_LINES = (
    "n2 c24 hw56 k24 f3 p1",
    "n1 c44 hw31x37 k41 f3",
    "n3 c64 hw14 k66 f3 p1",
    "n8 c56 hw7 k72 f3 p1",
    "n2 c64 hw33x101 k64 f3 p2 g2",
    "n1 c24 dhw5x32x40 k24 f3 p1",
    "n1 c64 hw7x1200 k64 f3 p1",
    "n1 c256 hw12x20 k27 f3 p1:0x0:1",
    "n2 c1024 hw8 k25 f3 p1",
    "n1 c48 hw40x44 k48 f3 p2 d2",
    "n2 c24 hw60 k24 f3 p3x1 d3x1",
    "n1 c48 dhw4x33x64 k48 f2x3x3 p1 d2x1x2",
    "n2 c24 hw50x43 k24 f5 p2",
    "n1 c48 hw27 k96 f5 p2 g2",
    "n5 c64 hw9x7 k60 f5 p2",
    "n1 c512 hw12 k512 f5 p0:4x4:0",
    "n1 c24 dhw4x20x32 k24 f3x5x5 p1x2x2",
    "n2 c40 l1501 k41 f3 p1",
    "n2 c32 l602 k28 f5 p2",
    "n2 c64 l599 k64 f7 p0:6",
    "n1 c1024 l300 k1024 f7 p3",
    "n1 c64 hw17x40 k96 f1x7 p0x3",
    "n2 c32 hw41x17 k32 f7x1 p3x0 g1",
    "n1 c24 dhw3x9x64 k24 f3x1x5 p1x0x2",
    "n1 c8 dhw9x20x24 k8 f5 p2",
    "n2 c16 hw64 k16 f5 p2",
    "n1 c32 hw62x64 k32 f3 p1",
    "n4 c64 hw9 k70 f3 p1",
    "n2 c160 hw33 k160 f3 p12 d12",
    "n1 c128 hw29x31 k128 f3 p5x6 d5x6 g2",
    "n3 c128 hw30 k128 f3 p4 d4",
    "n3 c48 hw17x7 k40 f3 p2x1 d2x1",
    "n2 c48 hw25x10 k40 f3 p3 d3",
    "n2 c40 hw24x8 k40 f3 p4 d4",
    "n1 c48 hw40x44 k48 f3 p17 d17",
    "n2 c48 hw30x41 k40 f2",
    "n2 c40 hw33x29 k40 f4 p2:1",
    "n2 c48 l700 k48 f2",
    "n2 c48 l701 k48 f4 p1",
    "n2 c64 dhw2x14x14 k64 f1x3x3 s2x1x1 p0x1x1",
    "n1 c64 dhw3x14x12 k64 f1x3x3 s3x1x1 p0x1x1",
    "n2 c64 dhw1x14x12 k64 f3 p1",
)

# At steps: phases with as many taps and short ones, on one axis or both, tiles of each size, three to a thousand
# channels, groups, volumes with and without a step in depth.
STRIDED_LINES = (
    "n2 c24 hw56 k24 f3 p1 s2",
    "n1 c44 hw61x75 k41 f3 s2",
    "n4 c64 hw14 k66 f3 p1 s2",
    "n8 c56 hw7 k72 f3 p1 s2",
    "n2 c64 hw33x101 k64 f3 p2 g2 s2",
    "n1 c1024 hw13 k24 f3 p1 s2",
    "n1 c9 hw30 k12 f3 p1 s2",
    "n1 c24 hw64x60 k40 f4 p1 s2",
    "n1 c24 hw50x43 k25 f5 p2 s2",
    "n3 c48 hw11x9 k40 f5 p2:1 s2",
    "n2 c3 hw112x90 k33 f7 p3 s2",
    "n2 c256 hw28 k24 f7 p3 s2",
    "n2 c3 hw115 k40 f11 p2 s4",
    "n2 c24 hw60x50 k32 f6 p1 s3",
    "n3 c32 hw20x25 k32 f7 p3 s3",
    "n1 c32 hw60x50 k32 f5x3 p2x1 s2x1",
    "n1 c32 hw50x60 k32 f3x5 p1x2 s1x2",
    "n2 c32 l900 k40 f3 p1 s2",
    "n2 c16 l1502 k41 f7 p3 s4",
    "n1 c24 dhw9x40x41 k24 f3 p1 s2",
    "n1 c24 dhw5x40x41 k24 f3 p1 s1x2x2",
    "n2 c24 dhw3x20x24 k24 f3 p2:3x0x2:1 s2",
    "n1 c24 dhw1x26x23 k24 f3x4x4 p3:2x0:2x1:3 s2",
)

# Of weight gradients: one unit of tiles, several and several slices of them; channels and rows that fill no last vector
# and block, groups, one axis, planes of volumes, uneven padding.
WEIGHT_GRAD_LINES = (
    "n2 c40 hw63x61 k44 f3 p1",
    "n2 c512 hw7 k260 f3 p1",
    "n9 c40 hw60 k36 f3",
    "n70 c64 hw20 k72 f3 p1",
    "n2 c96 hw27 k60 f5 p2 g2",
    "n1 c40 hw101x30 k24 f5 p0:4x2",
    "n8 c33 l1500 k40 f7 p3",
    "n2 c32 l602 k28 f5 p0:4",
    "n3 c48 l301 k40 f3 p1",
    "n1 c64 dhw5x12x40 k64 f1x3x3 p0x1x1",
    "n2 c96 hw41x17 k96 f7x1 p3x0",
    "n1 c64 hw17x40 k96 f1x7 p0x3",
    "n2 c32 hw64 k12 f5 p2",
    "n2 c48 hw40x41 k40 f2",
    "n3 c40 hw30 k40 f4 p1",
)

# Tiles on one, two and three axes, whole and ragged; kernels as long as the input, longer, even; uneven padding;
# groups, depthwise, one channel, rows that are no multiple of a tile.
FFT_LINES = (
    "n2 c32 l1500 k32 f101 p50",
    "n3 c8 l9000 k9 f64 p31:32",
    "n1 c1 l30000 k1 f501 p250",
    "n2 c8 l2000 k8 f2401 p1200",
    "n1 c4 l40000 k5 f4000 p3000:300",
    "n1 c8 l20000 k8 f1001 p500 g8",
    "n1 c32 l3000 k34 f128 p5 g2",
    "n1 c1 hw400x420 k1 f41 p20",
    "n2 c16 hw120x134 k17 f9x11 p4x5",
    "n2 c32 hw90 k32 f9 p4",
    "n1 c16 hw5x2000 k16 f1x64 p0x32",
    "n1 c8 hw1500x230 k9 f150x1 p40x0",
    "n1 c2 dhw44x45x50 k3 f15 p7",
)
fast = pytest.mark.parametrize(
    "algorithm, problem",
    [
        pytest.param(name, parse(line), id=f"{name} {line}")
        for name, lines in (("winograd", WINOGRAD_LINES + STRIDED_LINES), ("fft", FFT_LINES))
        for line in lines
    ],
)


@pytest.fixture(autouse=True)
def tiles_pay(monkeypatch):
    """Whatever the prices of this processor are: what rounds is under test, not when it is chosen."""
    choices = (convolution._forward, convolution._input_grad, convolution._weight_grad)
    for module in (winograd, weight_grad_estimates):
        monkeypatch.setattr(module, "WINOGRAD_GAIN", 0)
    monkeypatch.setattr(winograd, "_WORTH_NS", 0)
    for choice in choices:
        choice.cache_clear()
    yield
    for choice in choices:
        choice.cache_clear()


def conv(problem, x, w, b=None, **keywords):
    return fc.conv(x, w, b, **problem.window, **keywords)


def input_grad(problem, w, gy):
    return getattr(fc.grad, f"conv{problem.rank}d_input")(problem.x_shape, w, gy, **problem.window)


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@fast
def test_fast_algorithms_stay_within_the_default_precision(algorithm, problem):
    arrays = problem.normal("float32")
    x, w, b, gy = arrays.x, arrays.w, arrays.b, arrays.gy
    explained = fc.explain(x, w, **problem.window)
    assert explained.forward.startswith(algorithm)
    assert explained.input_grad.startswith(algorithm)
    wide = [a.astype("float64") for a in (x, w, b, gy)]
    y, gx = conv(problem, *wide[:3]), input_grad(problem, wide[1], wide[3])
    allowed = {"winograd": 1e-5, "fft": 5e-7}[algorithm]
    error = relative_error(conv(problem, x, w, b), y)
    assert error < allowed
    assert relative_error(input_grad(problem, w, gy), gx) < allowed
    with fc.precision("highest"):
        assert not fc.explain(x, w, **problem.window).forward.startswith(algorithm)
        direct = relative_error(conv(problem, x, w, b), y)
    shorter = algorithm == "fft" or explained.forward == "winograd tiles of 2×2"
    assert direct < error or shorter  # a long chain of direct sums may round more than such transforms


@fast
def test_fast_algorithms_fuse_bias_and_relu(algorithm, problem):
    arrays = problem.normal("float32")
    x, w, b = arrays.x, arrays.w, arrays.b
    y = conv(problem, x, w, b)
    assert np.array_equal(conv(problem, x, w, b, activation="relu"), np.maximum(y, 0))


@fast
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_windows_and_its_sample(algorithm, problem, value):
    """A tile mixes all its inputs; a NaN, an infinity or an overflow must not show where direct sums have none."""
    arrays = problem.normal("float32")
    x, w = arrays.x.copy(), arrays.w
    x[(-1, 0, *[size // 2 for size in problem.spatial])] = value
    y = conv(problem, x, w)
    with fc.precision("highest"):
        direct = conv(problem, x, w)
    assert np.array_equal(np.isfinite(y), np.isfinite(direct))
    clean = conv(problem, arrays.x, w)
    assert np.array_equal(y[:-1], clean[:-1])


@fast
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_in_a_gradient_stays_where_its_taps_reach(algorithm, problem, value):
    arrays = problem.normal("float32")
    w, gy = arrays.w, arrays.gy.copy()
    gy[(-1, 0, *[size // 2 for size in gy.shape[2:]])] = value
    gx = input_grad(problem, w, gy)
    with fc.precision("highest"):
        direct = input_grad(problem, w, gy)
    assert np.array_equal(np.isfinite(gx), np.isfinite(direct))
    assert np.array_equal(gx[:-1], input_grad(problem, w, arrays.gy)[:-1])


weight_grads = pytest.mark.parametrize("problem", [pytest.param(parse(line), id=line) for line in WEIGHT_GRAD_LINES])


def weight_grad(problem, x, gy):
    return getattr(fc.grad, f"conv{problem.rank}d_weight")(x, problem.w_shape, gy, **problem.window)


@weight_grads
def test_weight_gradients_stay_within_the_default_precision(problem):
    arrays = problem.normal("float32")
    x, w, gy = arrays.x, arrays.w, arrays.gy
    assert fc.explain(x, w, **problem.window).weight_grad == "winograd"
    exact = weight_grad(problem, x.astype("float64"), gy.astype("float64"))
    actual = weight_grad(problem, x, gy)
    assert relative_error(actual, exact) < 1e-5
    with fc.precision("highest"):
        assert fc.explain(x, w, **problem.window).weight_grad != "winograd"
        assert not np.array_equal(weight_grad(problem, x, gy), actual)


@pytest.mark.parametrize(
    "line", ["n2 c64 hw1x600 k64 f3 p1", "n2 c64 hw40x1 k64 f3 p1", "n1 c48 dhw1x9x64 k40 f3x1x5 p1x0x2"]
)
def test_weight_gradients_with_taps_that_meet_only_padding(line):
    """Tiles would leave out what such taps get: zeros."""
    problem = parse(line)
    arrays = problem.normal("float32")
    x, gy = arrays.x, arrays.gy
    assert fc.explain(x, arrays.w, **problem.window).weight_grad != "winograd"
    assert (
        relative_error(weight_grad(problem, x, gy), weight_grad(problem, *(a.astype("float64") for a in (x, gy))))
        < 1e-6
    )


@weight_grads
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("into", ["x", "gy"])
def test_what_is_not_finite_stays_in_its_taps(problem, value, into):
    """In a corner not every tap meets it; a tile would spread it over all of them."""
    arrays = problem.normal("float32")
    x, gy = arrays.x.copy(), arrays.gy.copy()
    {"x": x, "gy": gy}[into][(-1, 0, *[0] * problem.rank)] = value
    with fc.precision("highest"):
        direct = weight_grad(problem, x, gy)
    assert np.array_equal(np.isfinite(weight_grad(problem, x, gy)), np.isfinite(direct))


def poison(monkeypatch, module):
    """Fill the scratch of a module with NaN before it is used."""
    for name in ("scratch_rows", "call_scratch"):
        provide = getattr(module, name)

        def poisoned(*sizes_and_dtype, provide=provide):
            memory = provide(*sizes_and_dtype)
            memory[:] = np.nan
            return memory

        monkeypatch.setattr(module, name, poisoned)


@pytest.mark.parametrize("number", (1, 3))
@pytest.mark.parametrize("line", WINOGRAD_LINES + STRIDED_LINES)
def test_tiles_depend_on_nothing_that_scratch_held(monkeypatch, line, number):
    """All lanes are searched for NaN, those behind a box too: one from there would bring the direct sums, unseen."""
    problem = parse(line)
    arrays = problem.normal("float32")
    x, w, gy = arrays.x, arrays.w, arrays.gy
    fc.set_num_threads(1)
    expected = conv(problem, x, w), input_grad(problem, w, gy)
    poison(monkeypatch, winograd_boxes)
    poison(monkeypatch, winograd_tiles)
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    monkeypatch.setattr(winograd_boxes, "SHARED_NS", 0)  # more than one thread: each transforms some channels of a box
    fc.set_num_threads(number)
    assert np.array_equal(conv(problem, x, w), expected[0])
    assert np.array_equal(input_grad(problem, w, gy), expected[1])


@weight_grads
def test_weight_gradients_depend_on_nothing_that_scratch_held(monkeypatch, problem):
    arrays = problem.normal("float32")
    expected = weight_grad(problem, arrays.x, arrays.gy)
    poison(monkeypatch, weight_grad_winograd)
    assert np.array_equal(weight_grad(problem, arrays.x, arrays.gy), expected)


def test_weight_gradient_of_an_empty_batch():
    x, gy = np.zeros((0, 32, 20, 20), "float32"), np.zeros((0, 32, 20, 20), "float32")
    assert np.array_equal(fc.grad.conv2d_weight(x, (32, 32, 3, 3), gy, padding=1), np.zeros((32, 32, 3, 3)))


def test_highest_and_float64_never_take_a_fast_algorithm():
    x, w = np.zeros((1, 64, 28, 28), "float32"), np.zeros((64, 64, 3, 3), "float32")
    assert fc.explain(x, w, padding=1).forward.startswith("winograd")
    assert fc.explain(x.astype("float64"), w.astype("float64"), padding=1).forward.startswith("shift-gemm")
    with fc.precision("highest"):
        assert fc.explain(x, w, padding=1).forward.startswith("shift-gemm")
    x, w = np.zeros((1, 8, 9000), "float32"), np.zeros((8, 8, 301), "float32")
    assert fc.explain(x, w).forward == "fft"
    assert fc.explain(x.astype("float64"), w.astype("float64")).forward.startswith("shift-gemm")
    with fc.precision("highest"):
        assert fc.explain(x, w).forward.startswith("shift-gemm")


def test_precision_is_a_function_and_a_context_manager_of_its_thread():
    assert fc.get_precision() == "default"
    with fc.precision("highest"):
        assert fc.get_precision() == "highest"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(fc.get_precision()))
        thread.start()
        thread.join()
        assert seen == ["default"]
    assert fc.get_precision() == "default"
    fc.precision("fast")
    try:
        assert fc.get_precision() == "fast"
    finally:
        fc.precision("default")


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"precision must be .*, got 'medium'"):
        fc.precision("medium")
