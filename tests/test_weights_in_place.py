"""Weights that the shift-GEMM reads where they lie: the bits of packed ones, of few samples and of many; and exact."""

from functools import partial

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends.cpu import plan, shift_gemm
from fastconv.backends.cpu.shift_gemm import ShiftGemm
from fastconv.backends.cpu.simd import ROWS
from fastconv.geometry import ConvGeometry
from tests import reference

# channels, rows, groups, size, kernel, stride: by boxes, by columns and in place; with and without a last block of
# fewer rows, which is packed if it has 5 to 7.
GEOMETRIES = {
    "1×1": (24, 32, 1, (7, 7), 1, 1),
    "1×1, many rows": (40, 264, 1, (5, 9), 1, 1),
    "1×1, many channels": (88, 24, 1, (5, 9), 1, 1),
    "1×1, many channels of groups": (144, 16, 2, (5, 5), 1, 1),
    "1×1 of groups": (24, 36, 3, (6, 6), 1, 1),
    "1×1 at step 2": (16, 48, 1, (13, 13), 1, 2),
    "1×1, 5 rows behind whole blocks": (16, 21, 1, (8, 8), 1, 1),
    "3×3": (6, 16, 1, (9, 9), 3, 1),
    "3×3 at step 2": (8, 48, 2, (15, 15), 3, 2),
    "1-D": (5, 16, 1, (50,), 5, 1),
    "3-D": (3, 8, 1, (4, 5, 6), 2, 1),
    "3×3, a sum in several steps": (70, 32, 1, (8, 8), 3, 1),
    "more taps than a step": (2, 40, 1, (560,), 530, 1),
}


def calls(name, dtype):
    """Forward and input gradient: correlation, steps and shapes of a source and of the weights, and reference."""
    channels, rows, groups, size, kernel, stride = GEOMETRIES[name]
    rank = len(size)
    geometry = ConvGeometry(channels, rows, groups, size, *((n,) * rank for n in (kernel, stride, 1)), ((0, 0),) * rank)
    itemsize, taps = np.dtype(dtype).itemsize, kernel**rank
    window = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation, "groups": groups}
    forward = partial(reference.conv, **window)
    steps, images = (channels // groups * taps, taps), (geometry.input_shape(1)[1:], geometry.output_shape(1)[1:])
    yield plan.forward_plan(geometry, itemsize), steps, images[0], geometry.weight_shape, forward
    if stride == 1:
        (correlation,), _ = plan.input_grad_plans(geometry, itemsize)

        def input_grad(gy, w):
            return reference.conv_input_grad((len(gy), channels, *size), w, gy, **window)

        yield correlation, steps[::-1], images[1], geometry.weight_shape, input_grad


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("samples", [1, 2, 9])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_weights_in_place_give_the_bits_of_packed_ones(name, columns, threads, samples, dtype, monkeypatch):
    monkeypatch.setattr(shift_gemm.row_lanes, "row_lanes", lambda c: None)
    monkeypatch.setattr(shift_gemm, "takes_columns", lambda c: columns)
    in_place = []
    random = np.random.default_rng(0)
    before = fc.get_num_threads()
    fc.set_num_threads(threads)
    try:
        for c, steps, image, weights, expected in calls(name, dtype):
            in_place.append(ShiftGemm(c, steps).most_in_place > 0)
            for draw in (random.standard_normal, partial(random.integers, -3, 4)):
                w, source = (np.asarray(draw(size=shape)).astype(dtype) for shape in (weights, (samples, *image)))
                sums = expected(source, w)
                for bias in (None, np.asarray(draw(size=c.groups * c.rows)).astype(dtype)):
                    gemm, found = ShiftGemm(c, steps), []
                    for most in (gemm.most_in_place and samples, 0):
                        gemm.most_in_place = most
                        found.append(np.full(sums.shape, np.nan, dtype))
                        gemm.run(source, w, bias, found[-1], bias is not None)
                    assert found[0].tobytes() == found[1].tobytes()
                right = np.maximum(sums + bias.reshape(-1, *[1] * (sums.ndim - 2)), 0)
            np.testing.assert_array_equal(found[0], right)  # sums of integers, the last drawn
    finally:
        fc.set_num_threads(before)
    channels, rows, groups, _, kernel, stride = GEOMETRIES[name]
    assert in_place[0] == (rows // groups % ROWS == 0)
    assert in_place[1:] == [channels // groups % ROWS == 0 and kernel == 1] * (stride == 1)
