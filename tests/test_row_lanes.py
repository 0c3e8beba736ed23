"""Correlation with rows of weights in the lanes against boxes, which it stands in for: the same bits."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from expected import DTYPES
from problems import LARGE, PROBLEMS, parse

import fastconv as fc
from fastconv.backends.cpu import row_lanes, shift_gemm
from fastconv.backends.cpu.plan import forward_plan, input_grad_plans
from fastconv.geometry import ConvGeometry

LINES = """
n2 c3 k32 hw35x31 f7 s2 p3
n2 c3 k33 hw35x41 f11 s4
n2 c3 k48 hw28 f4 s4
n1 c3 k64 hw48 f16 s16
n2 c16 k31 hw17x23 f3 s2 p1
n3 c5 k24 hw9 f3 s2 p1
n2 c7 k17 hw9x20 f3x2 s1x2 p1
n2 c7 k16 hw20x9 f2x3 s2x1 p1
n2 c3 k32 hw5 f3 s2
n2 c3 k32 hw4x3 f3x2 s2
n1 c70 k32 hw9x11 f2 s2
n2 c80 k40 hw30x27 f3 s2 p1
n1 c6 k64 hw20x18 f3 s2 p1 g2
n2 c4 k32 hw15x17 f3 s2 d2x3 p5x4
n1 c2 k32 hw7x6 f3 s2 p0:3x2:0
n1 c3 k40 l3000 f10 s5
n1 c40 k32 l3001 f9 s2 p4
n1 c9 k32 l3001 f9 s4 p100
n1 c300 k32 l9000 f3 s3
n2 c16 k32 dhw9x10x11 f3 s2 p1
n1 c3 k32 dhw8x9x10 f2 s2
n1 c2 k33 dhw9x7x8 f3x2x3 s1x2x3 p2x0x1 d2x1x1
n3 c6 k16 hw14 f5
n2 c9 k80 hw13 f3 s2 p1
n1 c40 k112 hw11x9 f3 s2 p1
n2 c8 k96 hw9 f3 s2 p1 g2
n2 c6 k160 hw11 f3 s2 p1
n2 c16 k64 hw48 f3 s2 p1
n2 c8 k224 hw9x7 f3 s2 p1 g2
n2 c9 k20 hw13x11 f3 p1
n2 c16 k9 hw6 f3 p1 g1
n2 c8 k32 hw7x9 f2x4 p1x3 g2
n2 c5 k12 hw9 f3 d7 p7
n1 c24 k40 l50 f5 p2
n2 c4 k10 dhw5x6x7 f3x2x3 p1x0x1
"""


def correlation(problem, dtype, gradient):
    """The correlation of a problem, or of its input gradient; not one that other tests have a part in."""
    g = problem
    window = g.spatial, g.kernel, g.stride, g.dilation, g.padding
    geometry = ConvGeometry(g.in_channels, g.out_channels, g.groups, *window)
    if gradient:
        return input_grad_plans.__wrapped__(geometry, np.dtype(dtype).itemsize)[0][0]
    return forward_plan.__wrapped__(geometry, np.dtype(dtype).itemsize)


def product(problem, dtype, lanes, gradient=False):
    """By lanes, as if they took no time, or by boxes."""
    time, boxes = (lambda plan: 0 if lanes else np.inf), (lambda c: False)
    with (
        mock.patch.object(row_lanes, "lanes_time", time),
        mock.patch.object(shift_gemm, "takes_columns", boxes),
    ):
        taps = int(np.prod(problem.kernel))
        steps = problem.w_shape[1] * taps, taps
        return shift_gemm.ShiftGemm(correlation(problem, dtype, gradient), steps[::-1] if gradient else steps)


def suited(problem):
    """Whether lanes can take its place."""
    if not problem.batch or not min(problem.y_shape) or correlation(problem, "float32", gradient=False).empty:
        return False
    return product(problem, "float32", lanes=True).name == "lanes"


CASES = [parse(line) for line in LINES.strip().splitlines()]
SUITED = [problem for problem in PROBLEMS + LARGE if suited(problem)]
GRADIENTS = [
    pytest.param(problem, dtype, id=f"{problem}-{dtype}")
    for problem in CASES + SUITED
    for dtype in DTYPES
    if max(problem.stride) == 1 and product(problem, dtype, lanes=True, gradient=True).name == "lanes"
]

problems = pytest.mark.parametrize("problem", CASES + SUITED, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@dtypes
@problems
@pytest.mark.parametrize("relu", [False, True])
def test_lanes_have_the_bits_of_boxes(problem, dtype, relu):
    arrays = problem.normal(dtype)
    found = []
    for lanes in (True, False):
        y = np.full(problem.y_shape, np.nan, dtype)
        one = product(problem, dtype, lanes)
        assert one.name == ("lanes" if lanes else "boxes")
        one.run(arrays.x, arrays.w, arrays.b if relu else None, y, relu)
        found.append(y)
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("problem, dtype", GRADIENTS)
def test_gradients_by_lanes_have_the_bits_of_those_by_boxes(problem, dtype):
    """Weights whose rows and channels change places, and whose taps meet the gradient in reverse."""
    arrays = problem.normal(dtype)
    found = []
    for lanes in (True, False):
        gx = np.full(problem.x_shape, np.nan, dtype)
        one = product(problem, dtype, lanes, gradient=True)
        assert one.name == ("lanes" if lanes else "boxes")
        one.run(arrays.gy, arrays.w, None, gx, False)
        found.append(gx)
    assert found[0].tobytes() == found[1].tobytes() and np.isfinite(found[0]).all()


def test_chosen_for_strides_and_small_images():
    x, small = np.empty((1, 3, 224, 224), "float32"), np.empty((1, 6, 14, 14), "float32")
    patches, first, shallow = (np.empty((64, 3, size, size), "float32") for size in (16, 7, 2))
    assert fc.explain(x, patches, stride=16).forward == "shift-gemm lanes"
    with fc.precision("highest"):  # else Winograd's tiles
        assert fc.explain(x, first, stride=4, padding=3).forward == "shift-gemm lanes"
    assert "lanes" not in fc.explain(x, first, padding=3).forward
    assert "lanes" not in fc.explain(x, shallow, stride=2).forward  # sums of 12 products
    assert fc.explain(small, np.empty((16, 6, 5, 5), "float32")).forward == "shift-gemm lanes"


def test_nothing_behind_the_source_is_read_into_an_output():
    """In place: NaN behind the last sample must not come into the last tile, which has more outputs than there are."""
    memory = np.full(2 * 3 * 9 * 9 + 64, np.nan, "float32")
    x = memory[: 2 * 3 * 9 * 9].reshape(2, 3, 9, 9)
    x[...] = 1
    y = fc.conv2d(x, np.ones((32, 3, 3, 3), "float32"), stride=2)
    assert np.array_equal(y, np.full((2, 32, 4, 4), 27, "float32"))


@pytest.mark.parametrize(
    "line, boxes",
    [
        ("n1 c3 k32 hw224 f3 s2 p1", 4),
        ("n1 c16 k64 hw48 f3 s2 p1", 3),
        ("n1 c128 k256 hw28 f3 s2 p1", 1),  # all weights would come past for few outputs
        ("n1 c16 k16 hw32 f3 s2 p1", 1),  # too little for more than one thread
    ],
)
def test_an_image_has_boxes_for_threads_to_share(line, boxes, monkeypatch):
    """Whatever fits the second-level cache of this machine."""
    monkeypatch.setattr(row_lanes, "BOX_BYTES", 3 << 18)
    assert row_lanes.RowLanes(correlation(parse(line), "float32", gradient=False)).boxes == boxes
