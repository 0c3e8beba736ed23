"""The loops of layer, group and instance normalisation: rows of neighbours, each with mean and variance of its own.

A row of weights is spread over a row of values: a weight for each value (layer norm), or for each plane of neighbours.
A row of up to `LONG` values is one task, which reads it from memory once: for the mean, for the squares about it, and
for the result. Longer rows are cut into runs, which are tasks twice, for the sums (put together as those of batch
normalisation, normalisation_kernels.py) and for the results. Sums are float64, those over rows for the weights likewise
but for a `FEW` rows at a time; they are taken over blocks of rows, which are put together in their order. Cost: forward
x read once and y written once, backward gy and x read once and gx written once; long rows are read twice.

A mean is kept as the number of the dtype next to it and the rest, so that x - mean loses nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.cpu.elementary import fma, like
from fastconv.backends.cpu.host import embedded, kernel, pointer
from fastconv.backends.cpu.normalisation_kernels import bounds, gradient, set_numbers
from fastconv.backends.cpu.simd import prefetch
from fastconv.backends.cpu.team import shared

LONG = 1 << 15
"""Rows of up to so many values, of two arrays, stay in the second-level cache while they are read twice."""

COLUMNS = 1024
"""Of long rows with a weight for each value: the two sums for each of them stay in the first-level cache."""

FEW = 8
"""So many rows of gradients are added up in their dtype, before the sums are added in float64."""

BLOCK = 256
"""Values of a row between which the next row is asked for: rows of planes are too long for the processor to do it."""

_LINE = 64  # bytes of a cache line
_SUMS = {"reassoc"}


@shared(fastmath=_SUMS)  # type: ignore[untyped-decorator]
def value_rows(
    x: Any, weight: Any, bias: Any, eps: float, mean: Any, variance: Any, y: Any, who: int, begin: int, end: int
) -> None:
    """Rows [begin, end) of y, mean and variance, with a weight for each value: x (rows, length)."""
    for row in range(begin, end):
        values, group = x[row], row % len(weight)
        mean[row], variance[row] = _moments(values)
        _normalise_values(values, weight[group], bias[group], mean[row], variance[row] + eps, y[row])


@shared(fastmath=_SUMS)  # type: ignore[untyped-decorator]
def plane_rows(
    x: Any, weight: Any, bias: Any, eps: float, mean: Any, variance: Any, planes: Any, y: Any, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """The same with a weight for each plane: `planes`, which are x again, and y (rows, channels, inner)."""
    for row in range(begin, end):
        group = row % len(weight)
        mean[row], variance[row] = _moments_and_ahead(x[row], y[row, 0])
        for channel in range(weight.shape[1]):
            factor, summand = weight[group, channel], bias[group, channel]
            _normalise_plane(planes[row, channel], factor, summand, mean[row], variance[row] + eps, y[row, channel])


@shared
def value_runs(
    x: Any, weight: Any, bias: Any, eps: float, mean: Any, variance: Any, y: Any, rows: int, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """Runs [begin, end) of y, with a weight for each value. All arrays are flat."""
    for run in range(begin, end):
        row, first, last = bounds(run, rows, x.size // rows)
        at, size = first % weight.size, last - first
        factors, summands = weight[at : at + size], bias[at : at + size]
        _normalise_values(x[first:last], factors, summands, mean[row], variance[row] + eps, y[first:last])


@shared
def plane_runs(
    x: Any, weight: Any, bias: Any, eps: float, mean: Any, variance: Any, y: Any, planes: int, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """Runs [begin, end) of so many planes of y, with a weight for each plane. All arrays are flat."""
    channels = planes // mean.size
    for run in range(begin, end):
        plane, first, last = bounds(run, planes, x.size // planes)
        row, number = plane // channels, plane % weight.size
        factor, summand = weight[number], bias[number]
        _normalise_plane(x[first:last], factor, summand, mean[row], variance[row] + eps, y[first:last])


@embedded
def _moments(x: Any) -> tuple[float, float]:
    """Mean and variance."""
    mean, squares = _mean(x), 0.0
    for i in range(x.size):
        squares += (x[i] - mean) * (x[i] - mean)
    return mean, squares / x.size


@embedded
def _moments_and_ahead(x: Any, y: Any) -> tuple[float, float]:
    """The same, while the row behind x and the place of the result come into the cache."""
    mean, squares = _mean(x), 0.0
    for begin in range(0, x.size, BLOCK):
        part = x[begin : min(begin + BLOCK, x.size)]
        for i in range(part.size):
            squares += (part[i] - mean) * (part[i] - mean)
        for address in range(begin * x.itemsize, (begin + part.size) * x.itemsize, _LINE):
            prefetch(x, pointer(x, x.size) + address)
            prefetch(y, pointer(y) + address)
    return mean, squares / x.size


@embedded
def _mean(x: Any) -> Any:
    total = 0.0
    for i in range(x.size):
        total += x[i]
    return total / x.size


@embedded
def _normalise_values(x: Any, weight: Any, bias: Any, mean: float, variance: float, y: Any) -> None:
    inverse_std, centre = 1.0 / math.sqrt(variance), like(x[0], mean)
    scale, shift = like(centre, inverse_std), like(centre, (centre - mean) * inverse_std)
    for i in range(x.size):
        y[i] = fma(fma(x[i] - centre, scale, shift), weight[i], bias[i])


@embedded
def _normalise_plane(x: Any, weight: Any, bias: Any, mean: float, variance: float, y: Any) -> None:
    factor, centre = weight / math.sqrt(variance), like(x[0], mean)
    scale, shift = like(centre, factor), like(centre, bias + (centre - mean) * factor)
    for i in range(x.size):
        y[i] = fma(x[i] - centre, scale, shift)


@shared(fastmath=_SUMS)  # type: ignore[untyped-decorator]
def plane_rows_grad(
    gy: Any, x: Any, weight: Any, eps: float, mean: Any, variance: Any, partial: Any, numbers: Any, gx: Any, who: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Rows [begin, end) of gx, with a weight for each plane; gy, x, gx (rows, channels, inner).

    `partial` (2, rows, channels, 1): Σ gy and Σ gy · (x - mean) of each plane.
    """
    _, channels, inner = x.shape
    for row in range(begin, end):
        for channel in range(channels):
            total, product = _products(gy[row, channel], x[row, channel], mean[row])
            partial[0, row, channel, 0], partial[1, row, channel, 0] = total, product
        _set_row_numbers(partial, weight, eps, mean, variance, numbers, inner, row)
        for channel in range(channels):
            gradient(gy[row, channel], x[row, channel], numbers, row * channels + channel, gx[row, channel])


@kernel
def plane_numbers(partial: Any, weight: Any, eps: float, mean: Any, variance: Any, numbers: Any, inner: int) -> None:
    """The numbers of batch normalisation's `run_backward` for each plane. `partial` (2, rows, channels, runs)."""
    for row in range(mean.size):
        _set_row_numbers(partial, weight, eps, mean, variance, numbers, inner, row)


@embedded
def _products(gy: Any, x: Any, mean: float) -> tuple[float, float]:
    """Σ gy and Σ gy · (x - mean)."""
    total, product = 0.0, 0.0
    for i in range(x.size):
        total += gy[i]
        product += np.float64(gy[i]) * (x[i] - mean)
    return total, product


@embedded
def _set_row_numbers(
    partial: Any, weight: Any, eps: float, mean: Any, variance: Any, numbers: Any, inner: int, row: int
) -> None:
    _, _, channels, runs = partial.shape
    group, mean_total, mean_product = row % len(weight), 0.0, 0.0
    for channel in range(channels):
        total, product = 0.0, 0.0
        for run in range(runs):
            total += partial[0, row, channel, run]
            product += partial[1, row, channel, run]
        mean_total += weight[group, channel] * total / (channels * inner)
        mean_product += weight[group, channel] * product / (channels * inner)
    inverse_std = 1.0 / math.sqrt(variance[row] + eps)
    slope = inverse_std * inverse_std * inverse_std * mean_product
    for channel in range(channels):
        scale = inverse_std * weight[group, channel]
        set_numbers(numbers, row * channels + channel, scale, mean[row], slope, inverse_std * mean_total)


@kernel
def plane_weights_grad(partial: Any, eps: float, variance: Any, gw: Any, gb: Any) -> None:
    """gw and gb (groups, channels): over the samples, in their order. `partial` (2, rows, channels, runs)."""
    groups, channels = gw.shape
    for group in range(groups):
        for channel in range(channels):
            total, product = 0.0, 0.0
            for row in range(group, variance.size, groups):
                inverse_std = 1.0 / math.sqrt(variance[row] + eps)
                for run in range(partial.shape[3]):
                    total += partial[0, row, channel, run]
                    product += partial[1, row, channel, run] * inverse_std
            gw[group, channel], gb[group, channel] = product, total


@shared(fastmath=_SUMS)  # type: ignore[untyped-decorator]
def value_rows_grad(
    gy: Any, x: Any, weight: Any, eps: float, mean: Any, variance: Any, partial: Any, block: int, gx: Any,
    memory: Any, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """gx, with a weight for each value, and the sums over the blocks [begin, end) for gw and gb.

    Arrays are (rows, length). A block is `block` samples, whose rows use the rows of weight in turn; `partial` is
    (2, blocks, *shape of weight). `memory`: for each thread twice the size of weight.
    """
    groups, length = weight.shape
    few_gw, few_gb = memory[who, : weight.size], memory[who, weight.size : 2 * weight.size]
    share = 1.0 / length
    few_gw[:], few_gb[:] = 0, 0
    for number in range(begin, end):
        last = min((number + 1) * block * groups, len(x))
        for group in range(groups):
            for i in range(length):
                partial[0, number, group, i] = partial[1, number, group, i] = 0.0
        for row in range(number * block * groups, last):
            group = row % groups
            of_gw, of_gb = (
                few_gw[group * length : (group + 1) * length], few_gb[group * length : (group + 1) * length],
            )  # fmt: skip
            total, product = _weighted_products(gy[row], x[row], weight[group], mean[row])
            _value_gradient(
                gy[row], x[row], weight[group], mean[row], variance[row] + eps, total * share, product * share,
                gx[row], of_gw, of_gb,
            )  # fmt: skip
            if (row // groups + 1) % FEW == 0 or row + groups >= last:
                for i in range(length):
                    partial[0, number, group, i] += of_gw[i]
                    partial[1, number, group, i] += of_gb[i]
                    of_gw[i] = of_gb[i] = 0


@shared(fastmath=_SUMS)  # type: ignore[untyped-decorator]
def value_runs_products(gy: Any, x: Any, weight: Any, mean: Any, partial: Any, who: int, begin: int, end: int) -> None:
    """Of the runs [begin, end) of rows with a weight for each value: what `value_columns_grad` wants of whole rows.

    All arrays but `partial` (2, runs) are flat.
    """
    for run in range(begin, end):
        row, first, last = bounds(run, mean.size, x.size // mean.size)
        factors = weight[first % weight.size : first % weight.size + last - first]
        partial[0, run], partial[1, run] = _weighted_products(gy[first:last], x[first:last], factors, mean[row])


@embedded
def _weighted_products(gy: Any, x: Any, weight: Any, mean: float) -> tuple[float, float]:
    """Σ weight · gy and Σ weight · gy · (x - mean)."""
    total, product = 0.0, 0.0
    for i in range(gy.size):
        weighted = np.float64(weight[i] * gy[i])
        total += weighted
        product += weighted * (x[i] - mean)
    return total, product


@shared
def value_columns_grad(
    gy: Any, x: Any, weight: Any, length: int, eps: float, mean: Any, variance: Any, totals: Any, gx: Any, gw: Any,
    gb: Any, memory: Any, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Columns [begin, end) of gx, gw and gb, `COLUMNS` values wide each. `totals` (2, rows): sums over whole rows.

    All other arrays but mean and variance are flat. `memory`: for each thread twice `COLUMNS` float64.
    """
    columns = (length + COLUMNS - 1) // COLUMNS
    products, sums = memory[who, :COLUMNS], memory[who, COLUMNS : 2 * COLUMNS]
    for task in range(begin, end):
        group, first = task // columns, task % columns * COLUMNS
        size = min(COLUMNS, length - first)
        at = group * length + first
        for i in range(size):
            products[i] = sums[i] = 0.0
        for row in range(group, mean.size, weight.size // length):
            low = row * length + first
            high = low + size
            _value_gradient(
                gy[low:high], x[low:high], weight[at : at + size], mean[row], variance[row] + eps,
                totals[0, row] / length, totals[1, row] / length, gx[low:high], products, sums,
            )  # fmt: skip
        for i in range(size):
            gw[at + i], gb[at + i] = products[i], sums[i]


@embedded
def _value_gradient(
    gy: Any, x: Any, weight: Any, mean: float, variance: float, mean_total: float, mean_product: float, gx: Any,
    gw: Any, gb: Any,
) -> None:  # fmt: skip
    """A part of a row of gx; what it adds to gw and gb."""
    inverse_std, centre = 1.0 / math.sqrt(variance), like(x[0], mean)
    scale, shift = like(centre, inverse_std), like(centre, (centre - mean) * inverse_std)
    slope, constant = like(centre, inverse_std * mean_product), like(centre, mean_total)
    for i in range(x.size):
        normalised = fma(x[i] - centre, scale, shift)
        gx[i] = scale * (weight[i] * gy[i] - fma(slope, normalised, constant))
        gw[i] += gy[i] * normalised
        gb[i] += gy[i]
