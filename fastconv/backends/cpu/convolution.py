"""Convolution primitives of the CPU backend: forward, input gradient, weight gradient. See contract.py."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import (
    correlate,
    depthwise,
    depthwise_lanes,
    depthwise_weight_grad,
    weight_grad,
    weight_grad_outer,
    winograd,
)
from fastconv.backends.cpu.host import flat
from fastconv.backends.cpu.plan import Correlation, forward_plan, input_grad_plans, weight_grad_plan
from fastconv.backends.cpu.pointwise import activation_forward
from fastconv.backends.cpu.scratch import call_scratch, scratch
from fastconv.backends.cpu.threads import parallel_for
from fastconv.geometry import ConvGeometry
from fastconv.precision import get_precision

Array = npt.NDArray[Any]

_NS_PER_FLOP = 0.01
_NS_PER_ELEMENT = 0.3
_MIN_TASKS = 32  # fewer pieces than this leave threads idle; pieces of output rows share a gathered source


def conv_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry, activation: str | None) -> Array:
    """See contract.Backend.conv_forward."""
    y = np.empty(geometry.output_shape(len(x)), x.dtype)
    correlation = forward_plan(geometry, x.itemsize)
    relu = activation == "relu"
    correlate_into(correlation, x, w, (w[0].size, geometry.taps), b, y, relu=relu)
    if activation is None or relu:  # only relu is cheap enough for the registers of the tile
        return y
    return activation_forward(y, activation, 0.0)


def conv_input_grad(gy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_input_grad."""
    gx = np.empty(geometry.input_shape(len(gy)), gy.dtype)
    correlations, whole = input_grad_plans(geometry, gy.itemsize)
    if _fits_lanes(correlations):
        _lanes(tuple(correlations)).run(flat(gy), flat(w), None if b is None else flat(b), gx.reshape(-1), False)
        return gx
    if not whole:  # a stride beyond the kernel leaves positions that no tap reaches: the bias alone
        gx[...] = 0 if b is None else b.reshape(-1, *[1] * geometry.rank)
    for correlation in correlations:
        correlate_into(correlation, gy, w, (geometry.taps, w[0].size), b, gx, relu=False)
    return gx


def conv_weight_grad(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_weight_grad."""
    if depthwise_weight_grad.suits(geometry, x.itemsize):
        return depthwise_weight_grad.weight_gradient(gy, x, geometry)
    if _outer_suits(geometry, x.itemsize):
        return weight_grad_outer.weight_gradient(gy, x, geometry)
    return weight_grad.weight_gradient(gy, x, geometry)


def _outer_suits(geometry: ConvGeometry, itemsize: int) -> bool:
    return weight_grad_outer.suits(weight_grad_plan(geometry, itemsize))


def explain_conv(geometry: ConvGeometry, dtype: Any, operation: str) -> str:
    """See contract.Backend.explain_conv."""
    itemsize = np.dtype(dtype).itemsize
    if operation == "input_grad":
        correlations = input_grad_plans(geometry, itemsize)[0]
        if _fits_lanes(correlations):
            return "depthwise lanes"
        names = {_algorithm(correlation) for correlation in correlations}
        return " + ".join(sorted(names)) or "constant"
    if operation == "forward":
        return _algorithm(forward_plan(geometry, itemsize))
    if depthwise_weight_grad.suits(geometry, itemsize):
        return "depthwise lanes"
    correlation = weight_grad_plan(geometry, itemsize)
    if _outer_suits(geometry, itemsize):
        return "outer-product"
    return "constant" if correlation.empty else f"inner-product {'columns' if correlation.small else 'boxes'}"


def correlate_into(
    correlation: Correlation,
    source: Array,
    w: Array,
    steps: tuple[int, int],
    b: Array | None,
    target: Array,
    *,
    relu: bool,
) -> None:
    """Write one correlation of `source` with w into its part of `target`.

    `steps`: how far apart in the flat w the rows (target channels) and the source channels of a group lie.
    """
    if not target.size:
        return
    algorithm = _algorithm(correlation)
    if algorithm == "constant":
        _fill(correlation, b, target, relu)
    elif algorithm.startswith("winograd"):
        not_finite = _winograd(correlation).run(source, w, steps, b, target, relu)
        for n in np.flatnonzero(not_finite):
            _products(correlation, source[n : n + 1], w, steps, b, target[n : n + 1], relu)
    elif algorithm == "depthwise lanes":
        bias = None if b is None else flat(b)
        _lanes((correlation,)).run(flat(source), flat(w), bias, target.reshape(-1), relu)
    elif algorithm == "depthwise rows":
        bias = None if b is None else flat(b)
        _depthwise(correlation).run(flat(source), flat(w), bias, target.reshape(-1), relu)
    else:
        _products(correlation, source, w, steps, b, target, relu)


def _algorithm(correlation: Correlation) -> str:
    """The algorithm of a correlation: never a matter of batch size or threads."""
    if correlation.empty:
        return "constant"
    if _fits_lanes([correlation]):
        return "depthwise lanes"
    fast = correlation.itemsize == 4 and get_precision() != "highest"
    if fast and winograd.suits(correlation) and _winograd(correlation).pays:
        return "winograd tiles" if _winograd(correlation).small else "winograd boxes"
    if _depthwise(correlation).fits:
        return "depthwise rows"
    if correlation.columns:
        return "shift-gemm columns"
    return "shift-gemm in place" if correlation.plan[0]["direct"] else "shift-gemm boxes"


_winograd = lru_cache(maxsize=1024)(winograd.Winograd)


def _fits_lanes(correlations: list[Correlation]) -> bool:
    """Whether the correlations, all phases of a target, are depthwise and their channels fill the lanes."""
    return bool(correlations) and _lanes(tuple(correlations)).fits


_lanes = lru_cache(maxsize=1024)(depthwise_lanes.Lanes)
_depthwise = lru_cache(maxsize=1024)(depthwise.Depthwise)


def _products(
    correlation: Correlation,
    source: Array,
    w: Array,
    steps: tuple[int, int],
    b: Array | None,
    target: Array,
    relu: bool,
) -> None:
    """The shift-GEMM of `correlate_into`."""
    plan = correlation.plan
    dtype = source.dtype
    groups, packed_rows, count = correlation.groups, correlation.packed_rows, correlation.count
    memory = call_scratch(groups * packed_rows * (count + 1), dtype)
    packed, start = memory[: groups * packed_rows * count], memory[groups * packed_rows * count :]
    row_step, channel_step = steps
    flat_w, bias, taps = flat(w), _NO_BIAS[dtype] if b is None else flat(b), correlation.kernel_taps

    def pack(begin: int, end: int) -> None:
        correlate.pack(
            flat_w, bias, packed, start, plan, taps, row_step, channel_step, correlation.kernel_size, begin, end
        )

    parallel_for(pack, groups * correlation.blocks, w.size * _NS_PER_ELEMENT)
    samples = len(source)
    cost = samples * (correlation.flops * _NS_PER_FLOP + (source.size + target.size) / samples * _NS_PER_ELEMENT)
    flat_source, flat_target = flat(source), target.reshape(-1)
    if correlation.columns:
        kernel, where, offsets = correlate.correlate_columns, correlation.positions, correlation.column_offsets
        elements = correlation.panel_elements
        pieces = groups * -(-samples * correlation.outputs // correlation.panel_columns)
    else:
        kernel, where, offsets = correlate.correlate_boxes, correlation.tables, correlation.source_offsets
        elements = correlation.box_elements
        pieces = samples * groups * correlation.boxes
    chunks = max(1, min(correlation.blocks, _MIN_TASKS // pieces))
    elements += correlate.TILE_ELEMENTS + correlate.SLACK

    def call(begin: int, end: int) -> None:
        tile = scratch(elements, dtype)
        kernel(flat_source, packed, start, flat_target, plan, where, offsets, tile, chunks, relu, begin, end)

    parallel_for(call, pieces * chunks, cost)


_NO_BIAS = {np.dtype(d): np.empty(0, d) for d in ("float32", "float64")}


def _fill(correlation: Correlation, b: Array | None, target: Array, relu: bool) -> None:
    """A part of the target that no tap reaches: the bias alone."""
    steps = [
        slice(axis.first, axis.first + axis.outputs * axis.stride, axis.stride)
        for axis in correlation.axes[-(target.ndim - 2) :]
    ]
    index = (slice(None), slice(None), *steps)
    if b is None:
        target[index] = 0
    else:
        value = np.maximum(b, 0) if relu else b
        target[index] = value.reshape(-1, *([1] * (target.ndim - 2)))
