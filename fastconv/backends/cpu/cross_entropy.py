"""Cross-entropy of logits and class numbers, CPU backend: log-softmax and the loss in one. See contract.py.

The logits are (N, C, inner). Nothing of their size is stored: forward keeps the maximum and the logarithm of the sum of
exponentials of each position, backward computes the probabilities from them again. With inner = 1 a position is a row
and a task, or short rows are turned into columns, a block of them a task (row_blocks.py). Otherwise a task is up to 256
neighbouring positions of one sample, and all loops vectorise across them. What belongs to the class of a position is
then picked by comparing every class with it: a gather costs more. Sums are float64, in an order that depends on C
alone. Cost: one exponential an element and direction, as two loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu import sums
from fastconv.backends.cpu.elementary import exp_of_parts, like, log, maximum, negative_exponent
from fastconv.backends.cpu.host import flat, routine
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.row_blocks import LONGEST, ROWS, block_elements, places, to_columns
from fastconv.backends.cpu.scratch import scratch_rows
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share, team_for

Array = npt.NDArray[Any]
Loop = Callable[..., None]

_COLUMNS = 256
_NS_PER_BYTE = 0.25


def cross_entropy(x: Array, classes: Array, weight: Array | None, smoothing: float) -> tuple[Array, Array]:
    """See contract.Backend.cross_entropy."""
    samples, _, inner = x.shape
    losses, normalisers = np.empty((samples, inner), x.dtype), np.empty((2, samples * inner), x.dtype)
    arrays = (x.reshape(-1), classes.reshape(-1), _weights(x, weight), losses.reshape(-1), normalisers)
    if inner == 1 and x.shape[1] <= LONGEST:
        share(_short_rows, (*arrays, float(smoothing)), -(-samples // ROWS), _NS_PER_BYTE * x.nbytes)
    elif inner == 1:
        _over_rows(_rows, (*arrays, float(smoothing)), x, 2)
    else:
        _over_columns(_columns, (*arrays, float(smoothing), inner), x)
    return losses, normalisers


def cross_entropy_backward(
    g: Array, x: Array, normalisers: Array, classes: Array, weight: Array | None, smoothing: float
) -> Array:
    """See contract.Backend.cross_entropy_backward."""
    inner = x.shape[2]
    gx = empty(x.shape, x.dtype)
    arrays = (flat(g), x.reshape(-1), normalisers, classes.reshape(-1), _weights(x, weight), gx.reshape(-1))
    if inner == 1:
        _over_rows(_rows_grad, (*arrays, float(smoothing)), x, 1)
    else:
        _over_columns(_columns_grad, (*arrays, float(smoothing), inner), x)
    return gx


def _weights(x: Array, weight: Array | None) -> Array:
    return _ones(x.shape[1], x.dtype) if weight is None else weight


@lru_cache(maxsize=64)
def _ones(count: int, dtype: np.dtype[Any]) -> Array:
    return np.ones(count, dtype)


def _over_rows(loop: Loop, arguments: tuple[Any, ...], x: Array, lines: int) -> None:
    """With scratch for so many lines of classes."""
    samples, count, _ = x.shape
    team = team_for(samples, _NS_PER_BYTE * x.nbytes)
    memory = scratch_rows(team.size, lines * count, x.dtype)
    loop(*arguments, memory, team.address, 0, samples)


def _over_columns(loop: Loop, arguments: tuple[Any, ...], x: Array) -> None:
    share(loop, arguments, x.shape[0] * -(-x.shape[2] // _COLUMNS), _NS_PER_BYTE * x.nbytes)


@shared
def _rows(
    x: Any, classes: Any, weight: Any, losses: Any, normalisers: Any, smoothing: float, memory: Any, who: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    count = weight.size
    powers, scales, weights = memory[who, :count], memory[who, count : 2 * count], sums.total(weight)
    for row in range(begin, end):
        source, target = x[row * count : (row + 1) * count], classes[row]
        largest = source[0]
        for i in range(source.size):
            largest = maximum(largest, source[i])
        for i in range(source.size):
            powers[i], scales[i] = negative_exponent(source[i] - largest)
        for i in range(source.size):
            powers[i] = exp_of_parts(powers[i], scales[i])
        shift = like(largest, math.log(sums.total(powers)))
        normalisers[0, row], normalisers[1, row] = largest, shift
        losses[row] = _loss_of_row(source, target, weight, weights, largest, shift, smoothing)


@routine
def _loss_of_row(
    source: Any, target: int, weight: Any, weights: float, largest: Any, shift: Any, smoothing: float
) -> float:
    if target < 0:
        return 0.0
    loss = np.float64(weight[target]) * -(source[target] - largest - shift)
    if smoothing != 0.0:
        even = weights * (np.float64(largest) + shift) - sums.dot(weight, source)
        loss = (1.0 - smoothing) * loss + smoothing / weight.size * even
    return float(loss)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _short_rows(
    x: Any, classes: Any, weight: Any, losses: Any, normalisers: Any, smoothing: float, who: int, begin: int, end: int
) -> None:
    """Blocks [begin, end) of rows."""
    count, weights = weight.size, sums.total(weight)
    block, to = np.empty(block_elements(count), x.dtype), places(count)
    lines, totals = np.empty((4, ROWS), x.dtype), np.empty(ROWS)
    for task in range(begin, end):
        first = task * ROWS
        rows = min(ROWS, classes.size - first)
        to_columns(x, first, rows, count, to, block)
        _normalisers(block, 0, count, ROWS, lines[0], lines[1], lines[2], lines[3], totals)
        for i in range(rows):
            row, largest, shift = first + i, lines[0, i], lines[1, i]
            normalisers[0, row], normalisers[1, row] = largest, shift
            source = x[row * count : (row + 1) * count]
            losses[row] = _loss_of_row(source, classes[row], weight, weights, largest, shift, smoothing)


@shared
def _rows_grad(
    g: Any, x: Any, normalisers: Any, classes: Any, weight: Any, gx: Any, smoothing: float, memory: Any, who: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    count = weight.size
    scales, weights = memory[who, :count], sums.total(weight)
    for row in range(begin, end):
        source, result, target = x[row * count : (row + 1) * count], gx[row * count : (row + 1) * count], classes[row]
        if target < 0:
            result[:] = 0.0
            continue
        largest, shift = normalisers[0, row], normalisers[1, row]
        own, even = g[row] * (1.0 - smoothing) * weight[target], g[row] * smoothing / count
        factor = like(largest, own + even * weights)
        for i in range(source.size):
            result[i], scales[i] = negative_exponent(source[i] - largest - shift)
        for i in range(source.size):
            result[i] = exp_of_parts(result[i], scales[i]) * factor
        if smoothing != 0.0:
            share = like(largest, even)
            for i in range(source.size):
                result[i] -= share * weight[i]
        result[target] -= like(largest, own)


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _columns(
    x: Any, classes: Any, weight: Any, losses: Any, normalisers: Any, smoothing: float, inner: int, who: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    weights = sums.total(weight)
    lines, totals, numbers = np.empty((4, _COLUMNS), x.dtype), np.empty((2, _COLUMNS)), np.empty(_COLUMNS, np.int32)
    for task in range(begin, end):
        _columns_of_task(
            x, classes, weight, losses, normalisers, smoothing, inner, weights, lines, totals, numbers, task
        )


@routine
def _place(task: int, count: int, inner: int) -> tuple[int, int, int]:
    """Where a task's columns begin among the places and in x, and how many they are."""
    blocks = (inner + _COLUMNS - 1) // _COLUMNS
    sample, column = task // blocks, task % blocks * _COLUMNS
    return sample * inner + column, sample * count * inner + column, min(_COLUMNS, inner - column)


@routine
def _columns_of_task(
    x: Any, classes: Any, weight: Any, losses: Any, normalisers: Any, smoothing: float, inner: int, weights: float,
    line: Any, total: Any, number: Any, task: int,
) -> None:  # fmt: skip
    count = weight.size
    at, first, columns = _place(task, count, inner)
    largest, shift = normalisers[0, at : at + columns], normalisers[1, at : at + columns]
    loss = losses[at : at + columns]
    powers, scales, scores, factors = line[0, :columns], line[1, :columns], line[2, :columns], line[3, :columns]
    totals, evens, numbers = total[0, :columns], total[1, :columns], number[:columns]
    _class_numbers(classes[at : at + columns], numbers)
    _normalisers(x, first, count, inner, largest, shift, powers, scales, totals)
    for i in range(columns):
        evens[i] = 0.0
    for i in range(columns):
        scores[i] = factors[i] = like(largest[i], 0.0)
    for c in range(count):
        source, label, share = x[first + c * inner : first + c * inner + columns], np.int32(c), weight[c]
        for i in range(source.size):  # sums with one term: a choice between new and old would be a masked store
            score = source[i]
            scores[i] += score if numbers[i] == label else like(score, 0.0)
            factors[i] += share if numbers[i] == label else like(score, 0.0)
        if smoothing != 0.0:
            for i in range(source.size):
                evens[i] += np.float64(share) * source[i]
    for i in range(columns):
        cost = factors[i] * -(scores[i] - largest[i] - shift[i])
        loss[i] = cost if numbers[i] >= 0 else like(cost, 0.0)
    if smoothing != 0.0:
        for i in range(columns):
            rest = weights * (np.float64(largest[i]) + shift[i]) - evens[i]
            mixed = (1.0 - smoothing) * loss[i] + smoothing / count * rest
            loss[i] = mixed if numbers[i] >= 0 else 0.0


@routine
def _class_numbers(classes: Any, numbers: Any) -> None:
    """Classes in the width of a float32, so that comparisons with them fit its vectors."""
    for i in range(numbers.size):
        numbers[i] = np.int32(classes[i])


@routine
def _normalisers(
    x: Any, first: int, count: int, inner: int, largest: Any, shift: Any, powers: Any, scales: Any, totals: Any
) -> None:
    """The largest of `count` scores for each position, and the logarithm of the sum of all e^(score - largest).

    Those of class c are at x[first + c · inner:]. The last three are scratch.
    """
    _largest(x, first, count, inner, largest)
    for i in range(totals.size):
        totals[i] = 0.0
    for c in range(count):
        source = x[first + c * inner : first + c * inner + largest.size]
        for i in range(source.size):
            powers[i], scales[i] = negative_exponent(source[i] - largest[i])
        for i in range(source.size):
            powers[i] = exp_of_parts(powers[i], scales[i])
        for i in range(source.size):
            totals[i] += powers[i]
    for i in range(totals.size):
        shift[i] = log(totals[i])


@routine
def _largest(x: Any, first: int, count: int, inner: int, largest: Any) -> None:
    """The largest of `count` scores for each position."""
    source = x[first : first + largest.size]
    for i in range(source.size):
        largest[i] = source[i]
    for c in range(1, count):
        source = x[first + c * inner : first + c * inner + largest.size]
        for i in range(source.size):
            largest[i] = maximum(largest[i], source[i])


@shared(allocates=True)  # type: ignore[untyped-decorator]
def _columns_grad(
    g: Any, x: Any, normalisers: Any, classes: Any, weight: Any, gx: Any, smoothing: float, inner: int, who: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    weights = sums.total(weight)
    lines, numbers = np.empty((4, _COLUMNS), x.dtype), np.empty(_COLUMNS, np.int32)
    for task in range(begin, end):
        _columns_grad_of_task(g, x, normalisers, classes, weight, gx, smoothing, inner, weights, lines, numbers, task)


@routine
def _columns_grad_of_task(
    g: Any, x: Any, normalisers: Any, classes: Any, weight: Any, gx: Any, smoothing: float, inner: int, weights: float,
    line: Any, number: Any, task: int,
) -> None:  # fmt: skip
    count = weight.size
    at, first, columns = _place(task, count, inner)
    largest, shift = normalisers[0, at : at + columns], normalisers[1, at : at + columns]
    cotangents = g[at : at + columns]
    owns, evens, factors, scales = line[0, :columns], line[1, :columns], line[2, :columns], line[3, :columns]
    numbers = number[:columns]
    _class_numbers(classes[at : at + columns], numbers)
    for i in range(columns):
        owns[i] = like(owns[i], 0.0)
    for c in range(count):
        share = like(weight[c], (1.0 - smoothing) * weight[c])
        for i in range(columns):
            own_share = cotangents[i] * share
            owns[i] += own_share if numbers[i] == np.int32(c) else like(share, 0.0)
    for i in range(columns):
        evens[i] = cotangents[i] * like(owns[i], smoothing / count)
        factors[i] = owns[i] + evens[i] * like(owns[i], weights)
    for c in range(count):
        begin = first + c * inner
        source, result, label = x[begin : begin + columns], gx[begin : begin + columns], np.int32(c)
        share = weight[c]
        for i in range(source.size):
            result[i], scales[i] = negative_exponent(source[i] - largest[i] - shift[i])
        for i in range(source.size):
            slope, target = exp_of_parts(result[i], scales[i]) * factors[i], owns[i]
            slope -= target if numbers[i] == label else like(slope, 0.0)
            result[i] = slope if numbers[i] >= 0 else like(slope, 0.0)
        if smoothing != 0.0:
            for i in range(source.size):
                target = evens[i] * share
                result[i] -= target if numbers[i] >= 0 else like(share, 0.0)
