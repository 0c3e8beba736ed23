"""The depthwise kernels against the general ones they stand in for: the same bits, whatever the geometry."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import pytest
from problems import parse

import fastconv as fc
from fastconv.backends.cpu import (
    convolution,
    depthwise,
    depthwise_estimates,
    depthwise_lanes,
    depthwise_strips,
    depthwise_weight_grad,
    host,
)

ROWS = """
n2 c3 k3 hw7x9 f3 g3
n2 c3 k3 hw7x9 f3 p1 g3
n2 c3 k3 hw14 f5 p2 g3
n1 c2 k6 hw33x70 f7x3 p3x1 g2
n1 c3 k3 hw56x57 f7 p3 g3
n1 c3 k3 hw20x131 f2x4 p0:1x2 g3
n2 c2 k8 hw16x34 f3 p1 g2
n2 c3 k3 hw13x40 f3 s2 p1 g3
n2 c3 k6 hw13x40 f3x5 s2x1 p1x2 g3
n1 c2 k2 hw21x50 f5 s3 p2 g2
n1 c2 k2 hw9x99 f3 s1x4 p1 g2
n1 c2 k2 hw12x70 f1x5 p0x2 g2
n2 c2 k2 hw11x80 f3 s2 p1 g2
n2 c2 k2 hw20x33 f3 d2 p2 g2
n1 c2 k2 hw30x17 f3x2 s2 d3x2 p3 g2
n1 c2 k4 hw19x18 f4 s3x2 d2x3 p4 g2
n1 c2 k2 hw2x40 f3 p2 g2
n1 c2 k2 hw40x3 f11x3 p5x1 g2
n1 c1 k2 hw300x150 f3 p1
n1 c2 k2 hw70x1100 f5 p2 g2
n2 c3 k3 dhw5x6x7 f3 p1 g3
n1 c2 k6 dhw9x8x40 f2x3x5 p1 g2
n1 c2 k2 dhw6x20x33 f1x3x3 p0x1x1 g2
n1 c2 k2 dhw8x9x20 f3 s2 p1 g2
n1 c2 k4 dhw9x11x18 f3 s1x2x2 d2 p2 g2
n1 c1 k1 dhw20x40x60 f3 p1
n0 c3 k3 hw8 f3 p1 g3
"""
LANES = """
n2 c16 k16 hw7x9 f3 g16
n2 c16 k16 hw7 f3 p1 g16
n2 c16 k16 hw7 f7 p3 g16
n2 c16 k16 hw14 f5 p2 g16
n1 c16 k48 hw33x70 f7x3 p3x1 g16
n1 c14 k14 hw56x57 f7 p3 g14
n1 c15 k15 hw20x131 f2x4 p0:1x2 g15
n2 c16 k16 hw16x34 f3 p1 g16
n2 c16 k16 hw13x40 f3 s2 p1 g16
n2 c16 k32 hw13x40 f3x5 s2x1 p1x2 g16
n1 c16 k16 hw21x50 f5 s3 p2 g16
n1 c16 k16 hw9x99 f3 s1x4 p1 g16
n1 c16 k16 hw12x70 f1x5 p0x2 g16
n2 c16 k16 hw11x80 f3 s2 p1 g16
n2 c16 k16 hw20x33 f3 d2 p2 g16
n1 c16 k16 hw30x17 f3x2 s2 d3x2 p3 g16
n1 c16 k32 hw19x18 f4 s3x2 d2x3 p4 g16
n1 c16 k16 hw2x40 f3 p2 g16
n1 c16 k16 hw3x3 f3 p1 g16
n1 c16 k16 hw40x3 f11x3 p5x1 g16
n1 c16 k16 hw300x150 f3 p1 g16
n1 c16 k16 hw70x1100 f5 p2 g16
n2 c16 k16 dhw5x6x7 f3 p1 g16
n1 c16 k48 dhw9x8x40 f2x3x5 p1 g16
n1 c16 k16 dhw6x20x33 f1x3x3 p0x1x1 g16
n1 c16 k16 dhw8x9x20 f3 s2 p1 g16
n1 c16 k32 dhw9x11x18 f3 s1x2x2 d2 p2 g16
n1 c16 k16 dhw20x40x60 f3 p1 g16
n2 c16 k16 l3001 f31 p15 g16
n2 c16 k32 l700 f7 s2 p3 g16
n1 c16 k16 l5000 f3 d200 p200 g16
n1 c16 k16 hw9 f1 g16
n1 c16 k16 hw8 f3 s2 p0 g16
n1 c16 k16 hw6 f2 p9 g16
n0 c16 k16 hw8 f3 p1 g16
n2 c16 k16 hw3x21 f3 s4x3 p3 d1x2 g16
n3 c16 k16 hw5x4 f3x2 s4x3 p4x3 g16
"""
STRIPS = """
n2 c3 k3 hw7x9 f3 g3
n2 c5 k5 hw7 f3 p1 g5
n3 c40 k40 hw7 f7 p3 g40
n2 c3 k3 hw14 f5 p2 g3
n2 c3 k9 hw14x31 f3 p1 g3
n1 c3 k3 hw56x57 f7 p3 g3
n2 c17 k17 hw16 f3 p1 g17
n2 c3 k3 hw13x40 f3 s2 p1 g3
n2 c16 k32 hw14x13 f5 s2 p2 g16
n1 c3 k3 hw30x31 f7 s2 p3 g3
n1 c3 k3 hw28x29 f3 s2 p0:1x1 g3
n2 c2 k2 hw20x33 f3 d2 p2 g2
n2 c2 k2 hw20x5 f3 d2 p2 g2
n1 c2 k2 hw17x30 f5 d3x1 p6x2 g2
n1 c2 k2 hw9x40 f3 d5x7 p5x7 g2
n1 c2 k2 hw3 f3 p1 g2
n2 c2 k2 hw9x2 f3 p1 g2
n2 c2 k2 hw4x3 f5 p2 g2
n2 c2 k4 hw5 f3 p4 g2
n2 c2 k2 hw5x4 f3 s2 p1 g2
n1 c1 k1 hw300x150 f3 p1
n1 c2 k2 hw70x1100 f5 p2 g2
n1 c1 k2 hw150x700 f3 s2 p1
n2 c3 k3 dhw5x6x7 f3 p1 g3
n2 c3 k3 dhw6x5x3 f3 s2 p1 g3
n1 c2 k4 dhw9x11x18 f3 s1x2x2 p1 g2
n1 c2 k2 dhw8x9x20 f3 s2x1x1 d3x1x1 p3x1x1 g2
n1 c2 k2 dhw3x9x20 f3 d4x2x1 p6x2x1 g2
n1 c1 k1 dhw20x40x60 f3 p1
n1 c2 k2 dhw6x20x33 f1x3x3 p0x1x1 g2
n0 c3 k3 hw8 f3 p1 g3
"""


def problems(lines):
    return pytest.mark.parametrize("problem", [parse(line) for line in lines.strip().splitlines()], ids=str)


dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def explained(problem, dtype):
    return fc.explain(np.empty(problem.x_shape, dtype), np.empty(problem.w_shape, dtype), **problem.window)


def weight_gradient(problem, arrays):
    return getattr(fc.grad, f"conv{problem.rank}d_weight")(arrays.x, arrays.w.shape, arrays.gy, **problem.window)


def directions(problem, arrays):
    gradient = getattr(fc.grad, f"conv{problem.rank}d_input")
    return (
        fc.conv(arrays.x, arrays.w, arrays.b, activation="relu", **problem.window),
        fc.conv(arrays.x, arrays.w, **problem.window),
        gradient(arrays.x.shape, arrays.w, arrays.gy, **problem.window),
    )


PLANS = {
    "strips": (depthwise_strips, "Strips"),
    "lanes": (depthwise_lanes, "Lanes"),
    "rows": (depthwise, "Depthwise"),
}


@contextmanager
def without(*algorithms):
    """Every correlation as if it did not suit "strips", "lanes" or "rows"."""
    with ExitStack() as stack:
        for remembered in (convolution._forward, convolution._input_grad):
            remembered.cache_clear()
            stack.callback(remembered.cache_clear)
        for name in algorithms:
            module, planned = PLANS[name]
            stack.enter_context(mock.patch.object(module, planned, lambda _: mock.Mock(fits=False)))
        if "lanes" in algorithms:
            stack.enter_context(mock.patch.object(depthwise_weight_grad, "suits", lambda *_: False))
        yield


@dtypes
@problems(ROWS)
def test_rows_have_the_bits_of_the_shift_gemm(problem, dtype):
    arrays = problem.normal(dtype)
    with without("strips", "lanes"):
        assert explained(problem, dtype).forward == "depthwise rows"
        swept = directions(problem, arrays)
    with without(*PLANS):
        assert "depthwise" not in explained(problem, dtype).forward
        expected = directions(problem, arrays)
    for ours, theirs in zip(swept, expected):
        assert ours.tobytes() == theirs.tobytes()


@dtypes
@problems(LANES)
def test_lanes_have_the_bits_of_the_shift_gemm(problem, dtype):
    arrays = problem.normal(dtype)
    with without("strips"):
        explanation = explained(problem, dtype)
        assert explanation.forward == explanation.weight_grad == "depthwise lanes"
        ours = directions(problem, arrays)
    with without(*PLANS):
        expected = directions(problem, arrays)
    for one, other in zip(ours, expected):
        assert one.tobytes() == other.tobytes()


vectors_have_masks = pytest.mark.skipif(
    host.LANES < 8, reason="strips need masked loads: AVX2 or AVX-512, and FASTCONV_VECTOR_WIDTH of at least 8"
)


@vectors_have_masks
@dtypes
@problems(STRIPS)
@pytest.mark.parametrize("together", [1, 1 << 20], ids=["one image", "many images"])
def test_strips_have_the_bits_of_the_shift_gemm(problem, dtype, together, monkeypatch):
    monkeypatch.setattr(depthwise_strips, "TOGETHER_BYTES", together)
    arrays = problem.normal(dtype)
    with without("lanes", "rows"):
        assert explained(problem, dtype).forward == "depthwise strips"
        swept = directions(problem, arrays)
    with without(*PLANS):
        expected = directions(problem, arrays)
    for ours, theirs in zip(swept, expected):
        assert ours.tobytes() == theirs.tobytes()


@vectors_have_masks
@dtypes
@problems(STRIPS)
def test_strips_write_nothing_but_their_target(problem, dtype):
    """Whole vectors reach beyond a row of outputs, but not beyond its plane."""
    geometry = fc.geometry.ConvGeometry.of("conv", problem.x_shape, problem.w_shape, **problem.window)
    arrays = problem.normal(dtype)
    expected = fc.conv(arrays.x, arrays.w, arrays.b, **problem.window)
    memory = np.full(expected.size + 128, 7, dtype)
    plan = depthwise_strips.Strips(convolution.forward_plan(geometry, expected.itemsize))
    plan.run(arrays.x.ravel(), arrays.w.ravel(), arrays.b.ravel(), memory[64:-64], False)
    assert memory[64:-64].tobytes() == expected.tobytes()
    assert (memory[:64] == 7).all() and (memory[-64:] == 7).all()


@vectors_have_masks
@pytest.mark.parametrize("line, taken", [("n1 c1 k32 dhw64 f3 p1", False), ("n1 c1 k6 hw28 f3 p1", True)])
def test_many_filters_of_one_channel_are_left_to_the_products(line, taken):
    """They share the source, which strips read once for each."""
    assert (explained(parse(line), "float32").forward == "depthwise strips") == taken


@vectors_have_masks
def test_filters_of_many_groups_are_compared_with_the_products_of_all_groups():
    assert explained(parse("n1 c8 k64 hw14 f3 p1 g8"), "float32").forward == "depthwise strips"


@vectors_have_masks
def test_the_cheaper_of_strips_and_lanes_is_taken():
    for size, side, name in [(14, 3, "strips"), (4, 7, "lanes")]:
        geometry = fc.geometry.ConvGeometry.of("conv", (1, 32, size, size), (32, 1, side, side), 1, side // 2, 1, 32)
        correlation = convolution.forward_plan(geometry, 4)
        plans = depthwise_strips.Strips(correlation), depthwise_lanes.Lanes((correlation,))
        assert depthwise_estimates.strips_pay(*plans) == (name == "strips")
        assert convolution._forward(geometry, 4, "highest")[0].name == f"depthwise {name}"


@dtypes
@problems(LANES)
def test_weight_gradient_is_exact_where_the_sums_are(problem, dtype):
    arrays = problem.integers(dtype)
    ours = weight_gradient(problem, arrays)
    with without(*PLANS):
        assert np.array_equal(ours, weight_gradient(problem, arrays))


def test_strided_input_gradient_is_one_walk_unless_a_position_has_no_tap():
    x, narrow, wide = (np.empty(shape, "float32") for shape in [(1, 16, 9, 9), (16, 1, 1, 1), (16, 1, 3, 3)])
    assert fc.explain(x, wide, stride=2, padding=1, groups=16).input_grad == "depthwise lanes"
    assert "lanes" not in fc.explain(x, narrow, stride=2, groups=16).input_grad


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("operand", ["x", "gy"])
def test_what_is_not_finite_stays_in_its_channel(special, operand):
    """Lanes, places and sums of one channel never meet another; a last block of lanes is not full."""
    arrays = {"x": np.ones((2, 15, 9, 10), "float32"), "gy": np.ones((2, 15, 9, 10), "float32")}
    arrays[operand][1, 14, 4, 5] = special
    w = np.ones((15, 1, 3, 3), "float32")
    gw = fc.grad.conv2d_weight(arrays["x"], w.shape, arrays["gy"], padding=1, groups=15)
    gx = fc.grad.conv2d_input(arrays["x"].shape, w, arrays["gy"], padding=1, groups=15)
    assert np.isfinite(gw[:14]).all() and not np.isfinite(gw[14]).any()
    reached = np.zeros(gx.shape, bool)
    reached[1, 14, 3:6, 4:7] = operand == "gy"
    assert np.array_equal(~np.isfinite(gx), reached)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_outputs_that_read_it_and_no_other(special):
    x, w = np.zeros((1, 1, 20, 20), "float32"), np.ones((1, 1, 3, 3), "float32")
    x[0, 0, 9, 11] = special
    y = fc.conv2d(x, w, padding=1, activation="relu")
    reached = np.zeros((20, 20), bool)
    reached[8:11, 10:13] = True
    assert np.array_equal(~np.isfinite(y[0, 0]), reached)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups"),
    [((1, 4, 9, 9), (2, 2, 3, 3), 2), ((1, 1, 9, 9), (5, 1, 3, 3), 1), ((1, 3, 50), (3, 1, 3), 3)],
    ids=["two channels a group", "five rows a group", "one axis"],
)
def test_what_has_nothing_to_share_between_rows_is_left_to_the_products(x_shape, w_shape, groups):
    with without("strips", "lanes"):
        explanation = fc.explain(np.empty(x_shape, "float32"), np.empty(w_shape, "float32"), groups=groups)
        assert "depthwise" not in explanation.forward


def test_rows_too_long_for_a_box_are_left_to_the_products():
    x, w = np.empty((1, 1, 8, 30_000), "float32"), np.empty((1, 1, 7, 7), "float32")
    assert "depthwise" not in fc.explain(x, w).forward


def test_boxes_cover_every_output_once():
    """Blocks and tiles of each kind of box, counted on a geometry with all kinds."""
    for shape, kernel in [((1, 1, 300, 150), (3, 3)), ((1, 1, 40, 60, 50), (3, 3, 3))]:
        geometry = fc.geometry.ConvGeometry.of("conv", shape, (1, 1, *kernel), 1, 1)
        plan = depthwise.Depthwise(convolution.forward_plan(geometry, 4))
        assert int(plan.layout["boxes_d"][0]) * int(plan.layout["boxes_h"][0]) > 1
        kinds = [plan.blocks[a:b, 2].sum() for a, b in zip(plan.parts, plan.parts[1:])]
        assert kinds[0] == int(plan.layout["box_d"][0]) * int(plan.layout["box_h"][0])
        assert plan.tiles[:, 2].sum() == shape[-1]
