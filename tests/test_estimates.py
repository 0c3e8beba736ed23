"""The estimates that choose between the ways of a convolution: bills, prices, and how they are fitted."""

import numpy as np
import pytest

from fastconv.backends.cpu import (
    convolution,
    estimates,
    patches,
    plan,
    prices_xeon,
    prices_zen3,
    prices_zen4,
    prices_zen5,
    shift_gemm,
    winograd,
    winograd_boxes,
)
from fastconv.geometry import ConvGeometry

pytest.importorskip("scipy", reason="bench.estimates fits by scipy: pip install 'fastconv[test]'")
from bench import estimates as bench

GEOMETRIES = {
    "1d": ConvGeometry(16, 32, 1, (100,), (7,), (1,), (1,), ((3, 3),)),
    "1d long steps": ConvGeometry(16, 32, 1, (100,), (5,), (3,), (1,), ((0, 0),)),
    "1x1": ConvGeometry(200, 64, 1, (14, 14), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "1x1, every second": ConvGeometry(200, 64, 1, (14, 14), (1, 1), (2, 2), (1, 1), ((0, 0), (0, 0))),
    "3x3": ConvGeometry(32, 32, 1, (30, 30), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "3x3, small": ConvGeometry(64, 64, 1, (9, 9), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "1d, cut": ConvGeometry(16, 16, 1, (7000,), (5,), (2,), (2,), ((4, 4),)),
    "1d, much padding": ConvGeometry(16, 16, 1, (3000,), (2,), (1,), (2500,), ((2600, 2600),)),
    "dilated, small": ConvGeometry(64, 64, 1, (33, 31), (3, 3), (1, 1), (6, 6), ((6, 6), (6, 6))),
    "dilated beyond": ConvGeometry(64, 64, 1, (20, 20), (3, 3), (1, 1), (12, 12), ((12, 12), (12, 12))),
    "step 4": ConvGeometry(8, 40, 1, (60, 60), (5, 5), (4, 4), (1, 1), ((2, 2), (2, 2))),
    "3d": ConvGeometry(16, 32, 1, (10, 12, 14), (3, 3, 3), (1, 1, 1), (1, 1, 1), ((1, 1),) * 3),
}
DEPTHWISE = {
    "3x3": ConvGeometry(32, 32, 32, (14, 14), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
    "5x5, every second": ConvGeometry(48, 48, 48, (31, 30), (5, 5), (2, 2), (1, 1), ((2, 2), (2, 2))),
    "7x7, beyond": ConvGeometry(16, 16, 16, (4, 5), (7, 7), (1, 1), (1, 1), ((3, 3), (3, 3))),
    "3d, dilated": ConvGeometry(16, 32, 16, (6, 9, 20), (3, 3, 3), (1, 1, 1), (1, 2, 1), ((1, 1), (2, 2), (1, 1))),
}
given = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
both = pytest.mark.parametrize(
    "operation, geometry",
    [
        pytest.param(operation, geometry, id=f"{operation} {name}")
        for operation in bench.OPERATIONS
        for name, geometry in (DEPTHWISE if operation == "depthwise" else GEOMETRIES).items()
    ],
)


@both
@pytest.mark.parametrize("itemsize", [4, 8])
def test_every_thing_on_a_bill_has_a_price(operation, geometry, itemsize):
    ways = bench.OPERATIONS[operation].ways(geometry, itemsize, 4)
    priced = set().union(*(table.PRICES for table in (prices_zen3, prices_zen4, prices_xeon, prices_zen5)))
    assert {thing for bill, _ in ways.values() for thing in bill} <= priced
    assert all(estimates.cost(bill) > 0 for bill, _ in ways.values())


@given
def test_the_cheapest_direct_way_is_taken(geometry):
    c = plan.forward_plan(geometry, 4)
    ways = bench.forward_ways(geometry, 4, estimates.SAMPLES)
    costs = {name: estimates.cost(bill) for name, (bill, _) in ways.items() if not name.startswith("winograd")}
    taken = shift_gemm.ShiftGemm(c, (c.channels * c.kernel_size, c.kernel_size)).name
    assert {"in place": "boxes"}.get(taken, taken) == min(costs, key=costs.get)
    assert shift_gemm.direct_time(c) == pytest.approx(min(costs.values()))


def test_no_boxes_are_planned_for_each_phase_of_a_large_dilation():
    """There are 1,296 of them here: to plan them took seconds, and none of them could pay."""
    geometry = ConvGeometry(64, 64, 1, (65, 65), (3, 3), (1, 1), (36, 36), ((36, 36), (36, 36)))
    assert winograd.ways(plan.forward_plan(geometry, 4)).keys() == {"tiles of 4×4", "tiles of 3×3"}


@pytest.mark.parametrize(
    ("channels", "rows", "size", "in_place"), [(64, 64, 128, False), (64, 4, 128, True), (64, 64, 129, True)]
)
def test_channels_that_share_sets_of_the_cache_are_copied(channels, rows, size, in_place):
    geometry = ConvGeometry(channels, rows, 1, (size, size), (1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))
    assert plan.forward_plan(geometry, 4).plan[0]["direct"] == in_place


@pytest.mark.parametrize("geometry", DEPTHWISE.values(), ids=DEPTHWISE)
@pytest.mark.parametrize("itemsize", [4, 8])
def test_the_cheapest_depthwise_way_is_taken(geometry, itemsize):
    ways = bench.depthwise_ways(geometry, itemsize, estimates.SAMPLES)
    costs = {name: estimates.cost(bill) for name, (bill, _) in ways.items()}
    assert convolution._forward(geometry, itemsize, "highest")[0].name == f"depthwise {min(costs, key=costs.get)}"


@given
@pytest.mark.parametrize("itemsize, precision", [(4, "highest"), (4, "default"), (8, "default")])
def test_the_cheapest_weight_gradient_is_taken(geometry, itemsize, precision):
    ways = bench.weight_grad_ways(geometry, itemsize, estimates.SAMPLES)
    costs = {name: estimates.cost(bill) for name, (bill, _) in ways.items()}
    if "winograd" in costs:
        costs["winograd"] *= estimates.WINOGRAD_GAIN if precision == "default" else np.inf
    cheapest = "patches" if patches.suits(geometry) else min(costs, key=costs.get)
    assert convolution._weight_grad(geometry, itemsize, precision).name == cheapest


@both
def test_all_ways_compute_the_same(operation, geometry):
    measured = bench.measure(geometry, "float32", operation)  # raises where they differ
    assert measured["times"].keys() == measured["bills"].keys()
    assert min(measured["times"].values()) > 0


@pytest.mark.parametrize("channels, side", [(64, 56), (256, 56), (128, 28)])
@pytest.mark.parametrize("operation", ["forward", "input_grad", "weight_grad"])
def test_tiles_are_taken_by_the_prices_of_every_processor(channels, side, operation):
    """Layers of usual networks; the tests of what tiles round take them whatever the prices."""
    geometry = ConvGeometry(channels, channels, 1, (side, side), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    assert convolution.explain_conv(geometry, np.dtype("float32"), operation).startswith("winograd")


@pytest.mark.parametrize("side", [28, 31, 56, 75, 112, 224])
@pytest.mark.parametrize("channels", [3, 32, 64, 256])
def test_boxes_of_an_image_are_about_equally_large(channels, side):
    """Of two very different ones a thread waits for the other."""
    geometry = ConvGeometry(channels, 64, 1, (side, side), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    direct = plan.forward_plan(geometry, 4)
    for correlation in (direct, winograd_boxes.Boxes(direct).tiles):
        rows, boxes = (int(correlation.plan[0][name]) for name in ("box_h", "boxes_h"))
        assert 0 <= rows * boxes - correlation.axes[1].outputs < boxes


def test_prices_are_found_again():
    random = np.random.default_rng(0)
    prices = {"boxes": {"a": 2.0, "b": 0.5}, "lanes": {"c": 30.0, "d": 0.0}}
    samples = []
    for _ in range(20):
        bills = {way: {thing: random.uniform(1, 100) for thing in things} for way, things in prices.items()}
        times = {way: sum(prices[way][thing] * n for thing, n in bill.items()) for way, bill in bills.items()}
        samples.append({"operation": "forward", "bills": bills, "times": times})
    found = bench.fitted(samples)
    assert found == pytest.approx({"a": 2.0, "b": 0.5, "c": 30.0, "d": 0.0}, abs=1e-9)
    assert bench.loss(samples, found) == pytest.approx((0, 0), abs=1e-12)
    assert bench.loss(samples, {"a": 1.0})[0] > 1  # lanes for nothing are always taken


def test_tuned_prices_lose_less():
    random = np.random.default_rng(0)
    samples = []
    for _ in range(60):
        few, many = random.uniform(1, 100, 2)
        bills = {"boxes": {"a": few}, "lanes": {"c": many}}
        samples.append({"operation": "forward", "bills": bills, "times": {"boxes": 2 * few, "lanes": many}})
    skewed = {"a": 1.0, "c": 1.0}
    found = bench.tuned(samples, skewed, tries=300)
    assert found["a"] / found["c"] == pytest.approx(2, rel=0.1)
    assert bench.loss(samples, found)[0] < 0.1 * bench.loss(samples, skewed)[0]


def test_what_was_measured_is_read_again(tmp_path):
    samples = [bench.measure(GEOMETRIES["3x3"], "float64", operation) for operation in ("forward", "weight_grad")]
    samples.append(bench.measure(DEPTHWISE["3x3"], "float64", "depthwise"))
    path = tmp_path / "measured.json"
    bench.keep(path, samples)
    assert bench.kept(path) == samples
