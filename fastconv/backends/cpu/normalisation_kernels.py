"""The loops of batch normalisation, for planes and for single values.

With space, an array (N, C, *S) is N·C planes, each cut into runs of at most `RUN` elements: a run is a task and stays
in the first-level cache while it is read twice, for its mean and for the squares about that mean. Without, an array
(N, C) is cut into blocks of `ROWS` samples that stay in the second-level cache, and the loops vectorise across the
channels. Sums are float64; those of the parts (kind, N or blocks, C, runs) are put together in that order.
Cost: one pass over memory for sums, one for what is elementwise; one for both where a channel of all samples stays in a
cache between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.elementary import fma
from fastconv.backends.cpu.host import embedded, inlined, kernel, routine
from fastconv.backends.cpu.team import shared

RUN = 8192

ROWS = 64


@inlined
def bounds(task: int, channels: int, plane: int) -> tuple[int, int, int]:
    """Channel, first and last element (exclusive) of a run."""
    if plane <= RUN:
        return task % channels, task * plane, (task + 1) * plane
    runs = (plane + RUN - 1) // RUN
    first = task % runs * RUN
    begin = task // runs * plane + first
    return task // runs % channels, begin, begin + min(RUN, plane - first)


@shared
def run_sums(x: Any, partial: Any, total: Any, plane: int, who: int, begin: int, end: int) -> None:
    """Of the runs [begin, end) of partial (N, C, runs). Who does all combines them as well: small work is one call."""
    channels, parts = total.size, partial.reshape(partial.size)
    for task in range(begin, end):
        _, first, last = bounds(task, channels, plane)
        parts[task] = sums.total(x[first:last])
    if begin == 0 and end == partial.size:
        _combine_sums(partial, total)


@shared
def run_moments(x: Any, partial: Any, channels: int, plane: int, who: int, begin: int, end: int) -> None:
    """Mean, and squares about it, of the runs [begin, end)."""
    for task in range(begin, end):
        _, first, last = bounds(task, channels, plane)
        mean = sums.total(x[first:last]) / (last - first)
        partial[0, task] = mean
        partial[1, task] = sums.squares_about(x[first:last], mean)


@shared
def run_products(
    gy: Any, x: Any, mean: Any, scale: Any, gx: Any, partial: Any, channels: int, plane: int, who: int, begin: int,
    end: int,
) -> None:  # fmt: skip
    """Σ gy and Σ gy · (x - mean) of the runs [begin, end); gx = gy · scale, unless gx is None."""
    for task in range(begin, end):
        channel, first, last = bounds(task, channels, plane)
        partial[0, task] = sums.total(gy[first:last])
        partial[1, task] = sums.dot_about(gy[first:last], x[first:last], mean[channel])
        if gx is not None:
            cotangent, target, factor = gy[first:last], gx[first:last], scale[channel]
            for i in range(cotangent.size):
                target[i] = cotangent[i] * factor


@shared
def run_apply(
    x: Any, scale: Any, shift: Any, y: Any, channels: int, plane: int, who: int, begin: int, end: int
) -> None:
    """Runs [begin, end) of y = x · scale + shift."""
    for task in range(begin, end):
        channel, first, last = bounds(task, channels, plane)
        source, target = x[first:last], y[first:last]
        a, b = scale[channel], shift[channel]
        for i in range(source.size):
            target[i] = fma(source[i], a, b)


@shared
def run_backward(
    gy: Any, x: Any, numbers: Any, gx: Any, channels: int, plane: int, who: int, begin: int, end: int
) -> None:
    """Runs [begin, end) of gx = scale · gy - slope · (x - mean) - constant, which are the rows of `numbers`."""
    for task in range(begin, end):
        channel, first, last = bounds(task, channels, plane)
        gradient(gy[first:last], x[first:last], numbers, channel, gx[first:last])


@shared
def channels_backward(
    gy: Any, x: Any, mean: Any, inverse_std: Any, scale: Any, numbers: Any, gw: Any, gb: Any, gx: Any, samples: int,
    plane: int, who: int, begin: int, end: int,
) -> None:  # fmt: skip
    """`run_products`, `combine_products` and `run_backward` for channels [begin, end), one after the other.

    What a channel reads the first time it finds in a cache the second time.
    """
    channels = mean.size
    for c in range(begin, end):
        total, product = 0.0, 0.0
        for n in range(samples):
            first = (n * channels + c) * plane
            for at in range(first, first + plane, RUN):
                stop = min(at + RUN, first + plane)
                total += sums.total(gy[at:stop])
                product += sums.dot_about(gy[at:stop], x[at:stop], mean[c])
        _finish_products(c, total, product, mean, inverse_std, scale, samples * plane, numbers, gw, gb)
        for n in range(samples):
            first = (n * channels + c) * plane
            stop = first + plane
            gradient(gy[first:stop], x[first:stop], numbers, c, gx[first:stop])


@embedded
def gradient(gy: Any, x: Any, numbers: Any, column: int, gx: Any) -> None:
    """A run of gx, given the column of `numbers` that is for it."""
    scale, mean, slope, constant = numbers[0, column], numbers[1, column], numbers[2, column], numbers[3, column]
    for i in range(x.size):
        gx[i] = fma(scale, gy[i], fma(-slope, x[i] - mean, -constant))


@shared
def rows_sums(x: Any, partial: Any, total: Any, who: int, begin: int, end: int) -> None:
    """Of the blocks of samples [begin, end) of partial (blocks, C, 1). Who does all combines them as well."""
    channels, parts = total.size, partial.reshape(partial.size)
    for block in range(begin, end):
        part = parts[block * channels : (block + 1) * channels]
        part[:] = 0.0
        for at in range(block * ROWS * channels, min((block + 1) * ROWS * channels, x.size), channels):
            _add(part, x[at : at + channels])
    if begin == 0 and end == len(partial):
        _combine_sums(partial, total)


@inlined
def _add(total: Any, row: Any) -> None:
    for i in range(total.size):
        total[i] += row[i]


@shared
def rows_moments(x: Any, partial: Any, channels: int, who: int, begin: int, end: int) -> None:
    """Mean, and squares about it, of the blocks of samples [begin, end)."""
    for block in range(begin, end):
        mean = partial[0, block * channels : (block + 1) * channels]
        squares = partial[1, block * channels : (block + 1) * channels]
        first, last = block * ROWS * channels, min((block + 1) * ROWS * channels, x.size)
        mean[:] = 0.0
        squares[:] = 0.0
        for at in range(first, last, channels):
            _add(mean, x[at : at + channels])
        for i in range(mean.size):
            mean[i] /= (last - first) // channels
        for at in range(first, last, channels):
            row = x[at : at + channels]
            for i in range(squares.size):
                squares[i] += (row[i] - mean[i]) * (row[i] - mean[i])


@shared
def rows_products(
    gy: Any, x: Any, mean: Any, scale: Any, gx: Any, partial: Any, channels: int, who: int, begin: int, end: int
) -> None:
    """Σ gy and Σ gy · (x - mean) of the blocks of samples [begin, end); gx = gy · scale, unless gx is None."""
    for block in range(begin, end):
        total = partial[0, block * channels : (block + 1) * channels]
        product = partial[1, block * channels : (block + 1) * channels]
        total[:] = 0.0
        product[:] = 0.0
        for at in range(block * ROWS * channels, min((block + 1) * ROWS * channels, x.size), channels):
            cotangent, row = gy[at : at + channels], x[at : at + channels]
            for i in range(total.size):
                total[i] += cotangent[i]
                product[i] += np.float64(cotangent[i]) * (row[i] - mean[i])
            if gx is not None:
                target = gx[at : at + channels]
                for i in range(scale.size):
                    target[i] = cotangent[i] * scale[i]


@shared
def rows_apply(x: Any, scale: Any, shift: Any, y: Any, channels: int, who: int, begin: int, end: int) -> None:
    """Samples [begin, end) of y."""
    for at in range(begin * channels, end * channels, channels):
        source, target = x[at : at + channels], y[at : at + channels]
        for i in range(scale.size):
            target[i] = fma(source[i], scale[i], shift[i])


@shared
def rows_backward(gy: Any, x: Any, numbers: Any, gx: Any, channels: int, who: int, begin: int, end: int) -> None:
    """Samples [begin, end) of gx."""
    scale, mean, slope, constant = numbers[0], numbers[1], numbers[2], numbers[3]
    for at in range(begin * channels, end * channels, channels):
        cotangent, source, target = (
            gy[at : at + channels], x[at : at + channels], gx[at : at + channels],
        )  # fmt: skip
        for i in range(scale.size):
            target[i] = fma(scale[i], cotangent[i], fma(-slope[i], source[i] - mean[i], -constant[i]))


@kernel
def combine_sums(partial: Any, total: Any) -> None:
    """Over samples and runs, for each channel."""
    _combine_sums(partial, total)


@routine
def _combine_sums(partial: Any, total: Any) -> None:
    samples, channels, runs = partial.shape
    for c in range(channels):
        result = 0.0
        for n in range(samples):
            for r in range(runs):
                result += partial[n, c, r]
        total[c] = result


@kernel
def combine_moments(means: Any, squares: Any, sizes: Any, mean: Any, variance: Any) -> None:
    """Of parts of `sizes` (samples, runs), as Chan, Golub and LeVeque (1983) combine them."""
    samples, channels, runs = means.shape
    count = sizes.sum()
    for c in range(channels):
        total = 0.0
        for n in range(samples):
            for r in range(runs):
                total += means[n, c, r] * sizes[n, r]
        centre = total / count
        total = 0.0
        for n in range(samples):
            for r in range(runs):
                distance = means[n, c, r] - centre
                total += squares[n, c, r] + sizes[n, r] * (distance * distance)
        mean[c], variance[c] = centre, total / count


@kernel
def combine_products(
    totals: Any, products: Any, mean: Any, inverse_std: Any, scale: Any, count: int, numbers: Any, gw: Any, gb: Any
) -> None:
    """Gradients of weight and bias, and the numbers of `run_backward` for each channel."""
    samples, channels, runs = totals.shape
    for c in range(channels):
        total, product = 0.0, 0.0
        for n in range(samples):
            for r in range(runs):
                total += totals[n, c, r]
                product += products[n, c, r]
        _finish_products(c, total, product, mean, inverse_std, scale, count, numbers, gw, gb)


@routine
def _finish_products(
    c: int, total: float, product: float, mean: Any, inverse_std: Any, scale: Any, count: int, numbers: Any, gw: Any,
    gb: Any,
) -> None:  # fmt: skip
    """The same for channel c from its Σ gy and Σ gy · (x - mean)."""
    gw[c], gb[c] = product * inverse_std[c], total
    slope = scale[c] * (inverse_std[c] * inverse_std[c]) * product / count
    set_numbers(numbers, c, scale[c], mean[c], slope, scale[c] * total / count)


@embedded
def set_numbers(numbers: Any, column: int, scale: float, mean: float, slope: float, constant: float) -> None:
    """Those of `gradient`; what its mean loses by rounding goes into the constant."""
    numbers[0, column], numbers[1, column], numbers[2, column] = scale, mean, slope
    numbers[3, column] = constant + slope * (numbers[1, column] - mean)
