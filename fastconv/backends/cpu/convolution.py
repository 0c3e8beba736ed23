"""Convolution primitives of the CPU backend: forward, input gradient, weight gradient. See contract.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import (
    depthwise,
    depthwise_estimates,
    depthwise_lanes,
    depthwise_strips,
    depthwise_weight_grad,
    fft,
    patches,
    phases,
    weight_grad,
    weight_grad_estimates,
    weight_grad_outer,
    weight_grad_winograd,
    winograd,
    winograd_boxes,
    winograd_tiles,
)
from fastconv.backends.cpu.finite import all_finite
from fastconv.backends.cpu.host import flat, writeable
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.plan import Correlation, forward_plan, input_grad_plans, weight_grad_plan
from fastconv.backends.cpu.pointwise import activation_forward
from fastconv.backends.cpu.shift_gemm import ShiftGemm
from fastconv.geometry import ConvGeometry
from fastconv.precision import get_precision

Array = npt.NDArray[Any]


def conv_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry, activation: str | None) -> Array:
    """See contract.Backend.conv_forward."""
    y = empty(geometry.output_shape(len(x)), x.dtype)
    relu = activation == "relu"
    if y.size:
        for algorithm in _forward(geometry, x.itemsize, get_precision()):
            algorithm.run(x, w, b, y, relu)
    if activation is None or relu:  # only relu is cheap enough for the registers of the tile
        return y
    return activation_forward(y, activation, 0.0)


@lru_cache(maxsize=4096)
def _forward(geometry: ConvGeometry, itemsize: int, precision: str) -> list[Algorithm]:
    taps = geometry.taps
    steps = geometry.in_channels // geometry.groups * taps, taps
    return [algorithm(forward_plan(geometry, itemsize), steps, precision)]


def forward_is_kernels(geometry: ConvGeometry, itemsize: int) -> bool:
    """Whether `conv_forward` does nothing but call kernels, which read x, w and b where they lie."""
    return all(algorithm.is_kernels for algorithm in _forward(geometry, itemsize, get_precision()))


def conv_input_grad(gy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_input_grad."""
    gx = empty(geometry.input_shape(len(gy)), gy.dtype)
    algorithms, whole = _input_grad(geometry, gy.itemsize, get_precision())
    if not whole:  # a stride beyond the kernel leaves positions that no tap reaches: the bias alone
        gx[...] = 0 if b is None else b.reshape(-1, *[1] * geometry.rank)
    if gx.size:
        for algorithm in algorithms:
            algorithm.run(gy, w, b, gx, False)
    return gx


@lru_cache(maxsize=4096)
def _input_grad(geometry: ConvGeometry, itemsize: int, precision: str) -> tuple[list[Algorithm], bool]:
    """Algorithms for all phases of the strides, and whether they write all of the gradient."""
    if patches.suits(geometry) and patches.gaps(geometry):
        return [Algorithm("patches spread", partial(_input_grad_of_patches, geometry))], True
    if patches.suits(geometry):
        whole = all(o * k == size for o, k, size in zip(geometry.out_spatial, geometry.kernel, geometry.spatial))
        return [Algorithm("patches", patches.InputGrad(geometry, itemsize).run)], whole
    correlations, whole = input_grad_plans(geometry, itemsize)
    if len(correlations) > 1:
        lanes = depthwise_lanes.Lanes(tuple(correlations))
        if lanes.fits:  # all phases at once
            return [Algorithm("depthwise lanes", partial(_depthwise, lanes))], True
    taps = geometry.taps
    steps = taps, geometry.in_channels // geometry.groups * taps
    apart = [algorithm(correlation, steps, precision) for correlation in correlations]
    if itemsize == 4 and precision != "highest" and (tiled := _spread(correlations, apart, steps)):
        return tiled, whole
    if phases.suits(correlations) and all(one.name.startswith("shift-gemm") for one in apart):
        together = phases.Phases(correlations, steps)
        if together.pays:
            return [Algorithm("shift-gemm phases", together.run)], whole
    return apart, whole


def _spread(correlations: list[Correlation], direct: list[Algorithm], steps: tuple[int, int]) -> list[Algorithm]:
    """All phases in height and width together by Winograd's tiles, for each of the depth; none if they do not pay."""
    algorithms = []
    for depth in dict.fromkeys(correlation.axes[0] for correlation in correlations):
        here = [n for n, correlation in enumerate(correlations) if correlation.axes[0] == depth]
        found = winograd.fastest_spread([correlations[n] for n in here])
        if found is None:
            return []
        name, tiles = found
        run = partial(_where_finite, tiles, steps, [direct[n] for n in here])
        algorithms.append(Algorithm(f"winograd {name}", run))
    return algorithms


def _input_grad_of_patches(geometry: ConvGeometry, gy: Array, w: Array, b: Array | None, gx: Array, relu: bool) -> None:
    """As `Algorithm.run`, by way of the 1×1 convolution of the patches; no activation follows an input gradient."""
    of_patches = None if b is None else np.repeat(b, geometry.taps)
    patches.spread(conv_input_grad(gy, w, of_patches, patches.pointwise_geometry(geometry)), b, gx, geometry)


def conv_weight_grad(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_weight_grad."""
    if not gy.size:
        return np.zeros(geometry.weight_shape, x.dtype)
    return _weight_grad(geometry, x.itemsize, get_precision()).run(gy, x, geometry)


class WeightGrad(NamedTuple):
    """How a weight gradient is computed."""

    name: str
    run: Callable[[Array, Array, ConvGeometry], Array]


@lru_cache(maxsize=4096)
def _weight_grad(geometry: ConvGeometry, itemsize: int, precision: str) -> WeightGrad:
    if depthwise_weight_grad.suits(geometry, itemsize):
        return WeightGrad("depthwise lanes", depthwise_weight_grad.weight_gradient)
    if patches.suits(geometry):
        return WeightGrad("patches", _weight_grad_of_patches)
    correlation = weight_grad_plan(geometry, itemsize)
    if correlation.empty:
        return WeightGrad("constant", _no_weight_grad)
    name, time = weight_grad_estimates.direct_way(geometry, itemsize)
    direct = direct_weight_grads(geometry, itemsize)[name]
    tiles = weight_grad_winograd.tiles_of(geometry) if itemsize == 4 and precision != "highest" else None
    if tiles and weight_grad_estimates.pays(tiles, time):
        return WeightGrad("winograd", partial(_weight_grad_where_finite, tiles, direct))
    return WeightGrad(name, direct)


def direct_weight_grads(geometry: ConvGeometry, itemsize: int) -> dict[str, Callable[..., Array]]:
    """The ways of direct sums by the names of weight_grad_estimates.py, called with (gy, x, geometry)."""
    correlation = weight_grad_plan(geometry, itemsize)
    return {
        weight_grad_estimates.OUTER: weight_grad_outer.weight_gradient,
        weight_grad_estimates.COLUMNS: partial(weight_grad.by_columns, correlation),
        weight_grad_estimates.BOXES: partial(weight_grad.by_boxes, correlation),
    }


def _no_weight_grad(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """Of taps that meet only padding."""
    return np.zeros(geometry.weight_shape, x.dtype)


def _weight_grad_where_finite(
    tiles: weight_grad_winograd.Tiles, direct: Callable[..., Array], gy: Array, x: Array, geometry: ConvGeometry
) -> Array:
    gw = weight_grad_winograd.weight_gradient(tiles, gy, x, geometry)
    return gw if all_finite(gw) else direct(gy, x, geometry)


def _weight_grad_of_patches(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The weight gradient of a 1×1 convolution, whose weights are those of the patches in the same order."""
    taken = patches.take_apart(x, geometry)
    return conv_weight_grad(gy, taken, patches.pointwise_geometry(geometry)).reshape(geometry.weight_shape)


def explain_conv(geometry: ConvGeometry, dtype: Any, operation: str) -> str:
    """See contract.Backend.explain_conv."""
    itemsize = np.dtype(dtype).itemsize
    if operation == "weight_grad":
        return _weight_grad(geometry, itemsize, get_precision()).name
    if operation == "forward":
        used = _forward(geometry, itemsize, get_precision())
    else:
        used, _ = _input_grad(geometry, itemsize, get_precision())
    return " + ".join(sorted({algorithm.name for algorithm in used})) or "constant"


class Algorithm(NamedTuple):
    """How one correlation is computed."""

    name: str
    run: Callable[[Array, Array, Array | None, Array, bool], None]
    """run(source, w, b, target, relu) writes the correlation into its part of `target`, which is not empty."""
    is_kernels: bool = True
    """Whether a run is nothing but calls of kernels, the same for all values of its arrays."""


def algorithm(correlation: Correlation, steps: tuple[int, int], precision: str) -> Algorithm:
    """The algorithm of a correlation: never a matter of batch size or threads.

    `steps`: how far apart in the flat w the rows (target channels) and the source channels of a group lie.
    """
    if correlation.empty:
        return Algorithm("constant", partial(_fill, correlation), False)
    if correlation.itemsize == 4 and precision != "highest":
        faster = _with_more_rounding(correlation, steps)
        if faster is not None:
            return faster
    strips, lanes = depthwise_strips.Strips(correlation), depthwise_lanes.Lanes((correlation,))
    if depthwise_estimates.strips_pay(strips, lanes):
        return Algorithm("depthwise strips", partial(_depthwise, strips))
    if lanes.fits:
        return Algorithm("depthwise lanes", partial(_depthwise, lanes))
    rows = depthwise.Depthwise(correlation)
    if rows.fits:
        return Algorithm("depthwise rows", partial(_depthwise, rows))
    product = ShiftGemm(correlation, steps)
    return Algorithm(f"shift-gemm {product.name}", product.run)


def _with_more_rounding(correlation: Correlation, steps: tuple[int, int]) -> Algorithm | None:
    """The algorithm of float32 below the highest precision, if one is faster than direct sums."""
    if found := winograd.fastest(correlation):
        name, tiles = found
        run = partial(_where_finite, tiles, steps, [algorithm(correlation, steps, "highest")])
        return Algorithm(f"winograd {name}", run, False)
    if fft.suits(correlation):
        transforms = fft.Fft(correlation)
        if transforms.pays:
            direct = [algorithm(correlation, steps, "highest")]
            return Algorithm("fft", partial(_where_finite, transforms, steps, direct), False)
    return None


def _where_finite(
    faster: winograd_boxes.Boxes | winograd_tiles.Tiles | fft.Fft,
    steps: tuple[int, int],
    direct: list[Algorithm],
    source: Array,
    w: Array,
    b: Array | None,
    target: Array,
    relu: bool,
) -> None:
    """The faster algorithm; samples that it cannot compute, for what is not finite in them, by direct sums."""
    not_finite = faster.run(source, w, steps, b, target, relu)
    if np.count_nonzero(not_finite):  # in a tenth of the time of `any`
        for n in np.flatnonzero(not_finite):
            for one in direct:
                one.run(source[n : n + 1], w, b, target[n : n + 1], relu)


def _depthwise(
    plan: depthwise.Depthwise | depthwise_lanes.Lanes | depthwise_strips.Strips,
    source: Array,
    w: Array,
    b: Array | None,
    target: Array,
    relu: bool,
) -> None:
    plan.run(flat(source), flat(w), None if b is None else writeable(b), target.ravel(), relu)


def _fill(correlation: Correlation, source: Array, w: Array, b: Array | None, target: Array, relu: bool) -> None:
    """A part of the target that no tap reaches: the bias alone."""
    places = [
        slice(axis.first, axis.first + axis.outputs * axis.stride, axis.stride)
        for axis in correlation.axes[-(target.ndim - 2) :]
    ]
    index = (slice(None), slice(None), *places)
    if b is None:
        target[index] = 0
    else:
        value = np.maximum(b, 0) if relu else b
        target[index] = value.reshape(-1, *([1] * (target.ndim - 2)))
