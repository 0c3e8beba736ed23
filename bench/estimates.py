"""Prices of the estimates that choose between the ways of a convolution, measured: python -m bench.estimates.

Random convolutions are computed by each way on one thread. Printed are how much longer than the fastest way the chosen
one took, and prices fitted to the times: what the table that `fastconv/backends/cpu/prices.py` takes on this machine
should say.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

import fastconv as fc
from fastconv.backends.cpu import (
    convolution,
    depthwise_estimates,
    depthwise_lanes,
    depthwise_strips,
    estimates,
    patches,
    plan,
    row_lanes,
    shift_gemm,
    weight_grad_estimates,
    weight_grad_winograd,
    winograd,
)
from fastconv.backends.cpu.host import LANES
from fastconv.backends.cpu.prices import PRICES
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]
Run = Callable[[Array, Array, Array], Any]
"""A call with the arrays x, w and y of a convolution, of which it writes one."""
Ways = dict[str, tuple[estimates.Bill, Run]]
"""What each way does for one of so many samples, and its call."""

_MOST_FLOPS, _LEAST_FLOPS = 4e8, 2e5
_BLOCK_SECONDS, _BLOCKS = 2e-3, 3
_ARRAY_BYTES = 8 << 20  # input and output of a timed call: in the last-level cache, like the arrays inside a network
_CALL_FLOPS = 1e9  # of a timed call, at most
_SAMPLES = 64  # of it, at most
_TRIES = 10_000  # to find better prices than those of the least squares
_CALIBRATION = 0.1  # what it counts to be off by as much as the time, against twice the time of the fastest way


def random_geometry(random: np.random.Generator) -> ConvGeometry:
    """A convolution that direct sums would take, or Winograd's tiles instead of them."""
    while True:
        rank = int(random.choice([1, 2, 2, 2, 2, 3]))
        kernel = tuple(int(k) for k in random.choice([1, 2, 3, 3, 3, 4, 5, 7], rank))
        if random.random() < 0.7:
            kernel = (kernel[0],) * rank
        if math.prod(kernel) > 125:
            continue
        stride = (int(random.choice([1, 1, 1, 2, 2, 3, 4])),) * rank
        side = {1: (8, 4000), 2: (4, 130), 3: (4, 40)}[rank]
        size = tuple(int(math.exp(random.uniform(*np.log(side)))) for _ in range(rank))
        if random.random() < 0.7:
            size = (size[0],) * rank
        channels = [int(math.exp(random.uniform(0, math.log(513)))) for _ in range(2)]
        if random.random() < 0.6:
            channels = [max(1, round(c / 8) * 8) for c in channels]
        dilation = (int(random.choice([1, 1, 1, 1, 1, 1, 2, 3, 6, 12])) if max(stride) == 1 else 1,) * rank
        spans = [e * (k - 1) + 1 for k, e in zip(kernel, dilation)]
        low = tuple(span // 2 if random.random() < 0.7 else 0 for span in spans)
        out = tuple((s + 2 * p - span) // st + 1 for s, p, span, st in zip(size, low, spans, stride))
        flops = 2 * math.prod(out) * math.prod(channels) * math.prod(kernel)
        if min(out) < 1 or not _LEAST_FLOPS < flops < _MOST_FLOPS:
            continue
        pads = tuple((p, p) for p in low)
        geometry = ConvGeometry(channels[0], channels[1], 1, size, kernel, stride, dilation, pads)
        if not plan.forward_plan(geometry, 4).empty:  # all taps may meet nothing but padding
            return geometry


def random_summed(random: np.random.Generator) -> ConvGeometry:
    """One whose weight gradient is not that of the patches, a 1×1 convolution."""
    while patches.suits(geometry := random_geometry(random)):
        pass
    return geometry


def forward_ways(geometry: ConvGeometry, itemsize: int, samples: int) -> Ways:
    """The ways of a forward convolution."""
    c = plan.forward_plan(geometry, itemsize)
    steps = c.channels * c.kernel_size, c.kernel_size

    def direct(columns: bool, lanes: float) -> Run:
        with (
            mock.patch.object(row_lanes, "lanes_time", lambda _: lanes),
            mock.patch.object(shift_gemm, "takes_columns", lambda _: columns),
        ):
            gemm = shift_gemm.ShiftGemm(c, steps)
        return lambda x, w, y: gemm.run(x, w, None, y, False)

    found = {"boxes": (estimates.boxes_bill(c, samples), direct(False, math.inf))}
    if c.rows >= plan.MANY_ROWS:
        found["columns"] = estimates.columns_bill(c, samples), direct(True, math.inf)
    with mock.patch.object(row_lanes, "lanes_time", lambda _: 0.0):
        lanes = row_lanes.row_lanes(c)
    if lanes:
        found["lanes"] = estimates.lanes_bill(lanes, samples), direct(False, 0.0)
    if itemsize == 4 and winograd.suits(c):

        def tiled(way: Any) -> Run:
            return lambda x, w, y: way.run(x, w, steps, None, y, False)

        found |= {f"winograd {name}": (way.bill(samples), tiled(way)) for name, way in winograd.ways(c).items()}
    return found


def weight_grad_ways(geometry: ConvGeometry, itemsize: int, samples: int) -> Ways:
    """The ways of a weight gradient."""
    bills = weight_grad_estimates.direct_bills(geometry, itemsize, samples)
    runs = convolution.direct_weight_grads(geometry, itemsize)

    def into(run: Any) -> Run:
        def call(x: Array, w: Array, y: Array) -> None:
            w[...] = run(y, x, geometry)

        return call

    found = {name: (bill, into(runs[name])) for name, bill in bills.items()}
    if itemsize == 4 and (tiles := weight_grad_winograd.tiles_of(geometry)):
        run = partial(weight_grad_winograd.weight_gradient, tiles)
        found["winograd"] = weight_grad_estimates.tiles_bill(tiles, samples), into(run)
    return found


def random_depthwise(random: np.random.Generator) -> ConvGeometry:
    """A depthwise convolution that both strips and lanes can compute."""
    while True:
        rank = int(random.choice([2, 2, 2, 3]))
        side, stride = int(random.choice([3, 3, 3, 5, 5, 7])), int(random.choice([1, 1, 1, 2]))
        dilation = int(random.choice([1, 1, 1, 1, 2, 3])) if stride == 1 else 1
        largest = 130 if rank == 2 else 40
        size = tuple(int(math.exp(random.uniform(math.log(4), math.log(largest)))) for _ in range(rank))
        if random.random() < 0.7:
            size = (size[0],) * rank
        channels = LANES * int(math.exp(random.uniform(0, math.log(40))))
        low = dilation * (side // 2) if random.random() < 0.8 else 0
        out = tuple((s + 2 * low - dilation * (side - 1) - 1) // stride + 1 for s in size)
        flops = 2 * math.prod(out) * channels * side**rank
        if min(out) < 1 or not _LEAST_FLOPS < flops < _MOST_FLOPS:
            continue
        pads = ((low, low),) * rank
        return ConvGeometry(channels, channels, channels, size, *((n,) * rank for n in (side, stride, dilation)), pads)


def depthwise_ways(geometry: ConvGeometry, itemsize: int, samples: int) -> Ways:
    """The ways of a depthwise convolution."""
    c = plan.forward_plan(geometry, itemsize)
    strips, lanes = depthwise_strips.Strips(c), depthwise_lanes.Lanes((c,))

    def flat(way: Any) -> Run:
        return lambda x, w, y: way.run(x.reshape(-1), w.reshape(-1), None, y.reshape(-1), False)

    found: Ways = {}
    if lanes.fits:
        found["lanes"] = depthwise_estimates.lanes_bill(lanes), flat(lanes)
    if strips.fits:
        found["strips"] = depthwise_estimates.strips_bill(strips), flat(strips)
    return found


class Operation(NamedTuple):
    """What is sampled: a random geometry, its ways, and which of x, w and y they write."""

    random: Callable[[np.random.Generator], ConvGeometry]
    ways: Callable[[ConvGeometry, int, int], Ways]
    written: int


OPERATIONS = {
    "forward": Operation(random_geometry, forward_ways, 2),
    "weight_grad": Operation(random_summed, weight_grad_ways, 1),
    "depthwise": Operation(random_depthwise, depthwise_ways, 2),
}


def measure(geometry: ConvGeometry, dtype: Any, operation: str, most: int = _SAMPLES) -> dict[str, Any]:
    """Bills and nanoseconds of a sample by each way, of at most so many samples in a call."""
    channels = geometry.in_channels // geometry.groups
    flops = 2 * math.prod(geometry.out_spatial) * geometry.out_channels * channels * geometry.taps
    sample_bytes = math.prod(geometry.input_shape(1)) + math.prod(geometry.output_shape(1))
    samples = max(1, min(most, _ARRAY_BYTES // (sample_bytes * np.dtype(dtype).itemsize), int(_CALL_FLOPS / flops)))
    random = np.random.default_rng(0)
    shapes = geometry.input_shape(samples), geometry.weight_shape, geometry.output_shape(samples)
    arrays = [random.standard_normal(shape).astype(dtype) for shape in shapes]
    target, first = arrays[OPERATIONS[operation].written], None
    found = OPERATIONS[operation].ways(geometry, target.itemsize, samples)
    for name, (_, run) in found.items():
        run(*arrays)
        first = target.copy() if first is None else first
        if not np.allclose(target, first, rtol=0, atol=1e-4 * float(abs(first).max())):  # each adds in its order
            raise AssertionError(f"{name} differs from {next(iter(found))}: {geometry}")
    times = dict.fromkeys(found, math.inf)
    for _ in range(_BLOCKS):
        for name, (_, run) in found.items():
            times[name] = min(times[name], _seconds(run, arrays) / samples * 1e9)
    given = {field.name: getattr(geometry, field.name) for field in dataclasses.fields(geometry) if field.init}
    bills = {name: bill for name, (bill, _) in found.items()}
    what = {"geometry": given, "operation": operation, "samples": samples, "itemsize": target.itemsize}
    return {**what, "times": times, "bills": bills}


def keep(path: Path, samples: list[dict[str, Any]]) -> None:
    """Write down what was measured; the bills follow from the geometry."""
    path.write_text(json.dumps([{name: value for name, value in s.items() if name != "bills"} for s in samples]))


def kept(path: Path) -> list[dict[str, Any]]:
    """What was measured, with what the ways do now."""
    samples: list[dict[str, Any]] = json.loads(path.read_text())
    for sample in samples:
        sample["geometry"] = {name: _tuples(value) for name, value in sample["geometry"].items()}
        ways = OPERATIONS[sample["operation"]].ways
        found = ways(ConvGeometry(**sample["geometry"]), sample["itemsize"], sample["samples"])
        sample["times"] = {name: time for name, time in sample["times"].items() if name in found}
        sample["bills"] = {name: found[name][0] for name in sample["times"]}
    return samples


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _seconds(run: Run, arguments: list[Array]) -> float:
    begin, calls = time.perf_counter(), 0
    while True:
        run(*arguments)
        calls += 1
        passed = time.perf_counter() - begin
        if passed > _BLOCK_SECONDS:
            return passed / calls


def _gain(way: str) -> float:
    """That of a way over others from which on it is taken."""
    return estimates.WINOGRAD_GAIN if way.startswith("winograd") else 1.0


def loss(samples: list[dict[str, Any]], prices: dict[str, float]) -> tuple[float, float]:
    """How much longer than the fastest way the one with the least estimate takes: mean, and the 95th percentile."""
    lost = []
    for sample in samples:
        estimated = {name: _gain(name) * estimates.cost(bill, prices) for name, bill in sample["bills"].items()}
        chosen = min(estimated, key=lambda name: estimated[name])
        lost.append(sample["times"][chosen] / min(sample["times"].values()) - 1)
    return float(np.mean(lost)), float(np.percentile(lost, 95))


def fitted(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Prices with the least squares of relative errors, none negative. Ways called "this of that" share prices."""
    prices: dict[str, float] = {}
    by_way: dict[tuple[str, str], list[tuple[estimates.Bill, float]]] = {}
    for sample in samples:
        for name, bill in sample["bills"].items():
            of_way = by_way.setdefault((sample["operation"], name.partition(" of ")[0]), [])
            of_way.append((bill, sample["times"][name]))
    for _, of_way in sorted(by_way.items()):
        things = sorted({thing for bill, _ in of_way for thing in bill})
        table = np.array([[bill.get(thing, 0.0) / taken for thing in things] for bill, taken in of_way])
        found, _ = nnls(table, np.ones(len(table)))
        prices.update(zip(things, found.tolist()))
    return prices


def tuned(samples: list[dict[str, Any]], prices: dict[str, float], tries: int = _TRIES) -> dict[str, float]:
    """Prices by which the chosen ways lose less: changed at random, a few at a time, where that is an improvement.

    What is lost counts most; that the estimates stay near the times keeps prices of what is seldom close in place.
    """
    things, ways = sorted(prices), sorted({name for sample in samples for name in sample["bills"]})
    counts, times = np.zeros((len(ways), len(samples), len(things))), np.full((len(ways), len(samples)), math.inf)
    for i, sample in enumerate(samples):
        for name, bill in sample["bills"].items():
            times[ways.index(name), i] = sample["times"][name]
            counts[ways.index(name), i] = [bill.get(thing, 0.0) for thing in things]
    measured, every = np.isfinite(times), np.arange(len(samples))
    gains = np.array([[_gain(way)] for way in ways])

    def badness(values: Array) -> float:
        estimated = np.where(measured, counts @ values, math.inf)
        lost = times[(gains * estimated).argmin(0), every] / times.min(0) - 1
        off = estimated[measured] / times[measured] - 1
        return float(lost.mean() + _CALIBRATION * np.sqrt((off**2).mean()))

    random = np.random.default_rng(0)
    best = np.array([max(prices[thing], 1e-3) for thing in things])
    least = badness(best)
    for _ in range(tries):
        changed = best.copy()
        some = random.integers(0, len(things), random.integers(1, 4))
        changed[some] *= np.exp(random.normal(0, 0.25, len(some)))
        found = badness(changed)
        if found < least:
            best, least = changed, found
    return dict(zip(things, best.tolist()))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS), choices=list(OPERATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--output", type=Path, help="where to keep what was measured, as JSON")
    parser.add_argument("--fit", type=Path, nargs="*", help="fit to what was kept, measure nothing")
    arguments = parser.parse_args()
    if arguments.samples < 2:
        parser.error(f"--samples must be at least 2, one to fit to and one to test, got {arguments.samples}")
    if arguments.fit:
        samples = [sample for path in arguments.fit for sample in kept(path)]
    else:
        fc.set_num_threads(1)
        random = np.random.default_rng(arguments.seed)
        operations = itertools.islice(itertools.cycle(arguments.operations), arguments.samples)
        most = itertools.cycle([_SAMPLES] * len(OPERATIONS) + [estimates.SAMPLES] * len(OPERATIONS))
        samples = [
            measure(OPERATIONS[name].random(random), arguments.dtype, name, number)
            for name, number in zip(operations, most)
        ]
        if arguments.output:
            keep(arguments.output, samples)
    half = len(samples) // 2
    print(f"{len(samples)} convolutions; time over that of the fastest way, mean and 95th percentile:")
    print("  by the prices in use  {:.1%} {:.1%}".format(*loss(samples, PRICES)))
    of_half = tuned(samples[:half], fitted(samples[:half]))
    print("  fitted to one half, of the other  {:.1%} {:.1%}".format(*loss(samples[half:], of_half)))
    prices = tuned(samples, fitted(samples))
    print("  fitted to all  {:.1%} {:.1%}".format(*loss(samples, prices)))
    for thing, price in prices.items():
        print(f"    {thing!r}: {price:.3g},")


if __name__ == "__main__":
    main()
