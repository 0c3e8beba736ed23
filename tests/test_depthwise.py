"""The depthwise sweep against the shift-GEMM it stands in for: the same bits, whatever the geometry."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from problems import parse

import fastconv as fc
from fastconv.backends.cpu import convolution, depthwise

LINES = """
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
PROBLEMS = [parse(line) for line in LINES.strip().splitlines()]


def algorithms(problem, dtype):
    explanation = fc.explain(np.empty(problem.x_shape, dtype), np.empty(problem.w_shape, dtype), **problem.window)
    return explanation.forward, explanation.input_grad


def directions(problem, arrays):
    gradient = getattr(fc.grad, f"conv{problem.rank}d_input")
    return (
        fc.conv(arrays.x, arrays.w, arrays.b, activation="relu", **problem.window),
        fc.conv(arrays.x, arrays.w, **problem.window),
        gradient(arrays.x.shape, arrays.w, arrays.gy, **problem.window),
    )


def by_products():
    """Every correlation as if it did not suit the sweep."""
    return mock.patch.object(convolution, "_depthwise", lambda correlation: mock.Mock(fits=False))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_same_bits_as_the_shift_gemm(problem, dtype):
    arrays = problem.normal(dtype)
    assert algorithms(problem, dtype)[0] == "depthwise"
    swept = directions(problem, arrays)
    with by_products():
        assert "depthwise" not in algorithms(problem, dtype)[0]
        expected = directions(problem, arrays)
    for ours, theirs in zip(swept, expected):
        assert ours.tobytes() == theirs.tobytes()


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
