"""Winograd's tiles on geometries nobody thought of, each way that suits one, whatever it costs.

Prices leave small shapes to direct sums, and larger ones to one way: drawn geometries alone would meet few tiles.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from problems import Problem, parse

import fastconv as fc
from fastconv.backends import threads
from fastconv.backends.cpu import convolution, weight_grad_estimates, winograd, winograd_boxes, winograd_tiles
from fastconv.backends.cpu.prices import PRICES

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")
st = hypothesis.strategies

# Kernel and strides, as far as test_precision.py has their code compiled.
KERNELS = ("f3", "f5", "f2", "f4", "f3 s2", "f5 s2", "f1x7", "f7x1", "f3x5 s1x2")
SIGNALS = ("f3", "f5", "f7", "f3 s2")
VOLUMES = ("f3", "f1x3x3", "f1x3x3 s2x1x1", "f1x3x3 s3x1x1", "f2x3x3", "f3 s2", "f3 s1x2x2")


@st.composite
def problems(draw) -> Problem:
    """Channels and rows that tiles ask for, few of either; images and volumes small enough to have ragged ends."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = draw(st.sampled_from((SIGNALS, KERNELS, VOLUMES)[rank - 1]))
    square = rank == 2 and "s" not in kernel and "x" not in kernel
    dilation = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 6, 16])) if square else 1
    least = parse(f"n1 c1 k1 {'l hw dhw'.split()[rank - 1]}99 {kernel} d{dilation}")
    sizes, pads = [], []
    for k in least.kernel:
        before, after = (draw(st.integers(0, k if k > 1 else 0)) for _ in range(2))
        span = dilation * (k - 1) + 1
        smallest = max(1, span - before - after)
        largest = draw(st.sampled_from([smallest + 1, (70, 25, 11)[rank - 1] + span]))
        sizes.append(draw(st.integers(smallest, largest)))
        pads.append(f"{before}:{after}")
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    channels, rows = (groups * draw(st.integers(low, 26)) for low in (8, 6))
    size, padding = "x".join(map(str, sizes)), "x".join(pads)
    batch, letters = draw(st.integers(1, 4)), ("l", "hw", "dhw")[rank - 1]
    return parse(f"n{batch} c{channels} {letters}{size} k{rows} {kernel} p{padding} d{dilation} g{groups}")


def taking(number: int):
    """Of the ways that suit a correlation always the one with this number, modulo how many there are."""

    def fastest(found, direct):
        names = sorted(found)
        return (names[number % len(names)], found[names[number % len(names)]]) if names else None

    return mock.patch.object(winograd, "_fastest", fastest)


def forget():
    for choice in (convolution._forward, convolution._input_grad, convolution._weight_grad):
        choice.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def every_shape_is_worth_it():
    with (
        mock.patch.object(winograd, "_WORTH_NS", 0),
        mock.patch.object(weight_grad_estimates, "WINOGRAD_GAIN", 0),
    ):
        yield
    forget()


def calls(problem: Problem, x, w, gy):
    name, window = f"conv{problem.rank}d", problem.window
    yield getattr(fc, name)(x, w, **window)
    yield getattr(fc.grad, f"{name}_input")(x.shape, w, gy, **window)
    yield getattr(fc.grad, f"{name}_weight")(x, w.shape, gy, **window)


@hypothesis.settings(max_examples=200, derandomize=True, deadline=None, database=None)
@hypothesis.given(problem=problems(), number=st.integers(0, 11))
def test_any_way_on_any_geometry(problem, number):
    arrays = problem.normal("float32")
    operands = arrays.x, arrays.w, arrays.gy
    exact = calls(problem, *(array.astype("float64") for array in operands))
    with (
        taking(number),
        mock.patch.object(threads, "SERIAL_NS", threads.SERIAL_NS if number < 6 else 0),
        mock.patch.dict(PRICES, {"tiles shared byte": 1e9 if number % 4 < 2 else 0.0}),  # panels of its own
        mock.patch.object(winograd_tiles, "_NEAR_BYTES", 1 << (20 if number % 3 else 12)),  # few tiles: some channels
    ):
        forget()
        of_last = list(calls(problem, arrays.x[-1:], arrays.w, arrays.gy[-1:]))[:2]
        for n, (found, expected) in enumerate(zip(calls(problem, *operands), exact)):
            scale = max(float(np.abs(expected).max()), 1.0)
            assert np.abs(found - expected).max() <= 2e-5 * scale, ("forward", "input_grad", "weight_grad")[n]
            if n < 2:  # whatever the rest of the batch
                assert np.array_equal(found[-1:], of_last[n])


@pytest.mark.parametrize("taps", ["f2 d2", "f2 d4", "f2 d8", "f3 d2", "f3 d8", "f5 d2"])
def test_dilated_taps_by_every_way(taps):
    """How tiles are loaded goes by the dilation and the width of a patch."""
    problem = parse(f"n1 c9 hw37x41 k8 {taps} p2")
    arrays = problem.normal("float32")
    exact = fc.conv2d(arrays.x.astype("float64"), arrays.w.astype("float64"), **problem.window)
    for number in range(4):
        with taking(number):
            forget()
            found = fc.conv2d(arrays.x, arrays.w, **problem.window)
            assert fc.explain(arrays.x, arrays.w, **problem.window).forward.startswith("winograd")
        assert np.abs(found - exact).max() <= 2e-5 * np.abs(exact).max()


@pytest.mark.parametrize("rows", [8, 16, 24, 70])
@pytest.mark.parametrize("kernel, way", [("f3 p1", "4×4"), ("f2", "4×4"), ("f3 s2 p1", "3×3"), ("f4 s2 p1", "4×4")])
def test_a_small_image_is_the_same_in_a_batch(kernel, way, rows, monkeypatch):
    """Alone its few tiles have the rows in the lanes, and sums go on from some of the channels to the next."""
    problem = parse(f"n9 c23 hw7 k{rows} {kernel}")
    arrays = problem.normal("float32")
    monkeypatch.setattr(winograd_tiles, "_NEAR_BYTES", 1 << 14)
    monkeypatch.setattr(winograd, "_fastest", lambda found, direct: (way, found[f"tiles of {way}"]))
    forget()
    alone = fc.conv2d(arrays.x[4:5], arrays.w, **problem.window)
    assert np.array_equal(alone, fc.conv2d(arrays.x, arrays.w, **problem.window)[4:5])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    "line, parts",
    [
        ("n1 c16 l300 k16 f7 p3", {2: 2, 3: 3, 5: 5}),
        ("n1 c16 hw32 k16 f3 p1", {2: 2, 3: 3, 5: 5}),
        ("n2 c16 hw32 k16 f3 p1", {2: 1, 3: 3, 5: 5}),  # of two threads each has a sample
        ("n1 c16 hw17x40 k16 f3 p1 s2", {2: 2, 3: 3, 5: 5}),
        ("n1 c16 hw30 k16 f3 p2 d2", {2: 1, 3: 3, 5: 5}),  # four phases of the dilation
    ],
)
def test_boxes_are_smaller_where_threads_would_find_too_few(line, parts, count, monkeypatch):
    problem, taken = parse(line), set()
    arrays = problem.normal("float32")
    monkeypatch.setattr(winograd, "_fastest", lambda found, direct: ("boxes", found["boxes"]))
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    monkeypatch.setattr(winograd_boxes.Boxes, "time", lambda *_: 0.0)  # they pay by the prices of any processor
    boxes = winograd_boxes.Boxes._boxes
    monkeypatch.setattr(winograd_boxes.Boxes, "_boxes", lambda self, *args: taken.add(self.parts) or boxes(self, *args))
    before = fc.get_num_threads()
    try:
        fc.set_num_threads(1)
        forget()
        expected = fc.conv(arrays.x, arrays.w, **problem.window)
        assert taken == {1}
        taken.clear()
        fc.set_num_threads(count)
        assert np.array_equal(fc.conv(arrays.x, arrays.w, **problem.window), expected)
    finally:
        fc.set_num_threads(before)
    assert taken == {parts[count]}


def test_ways_are_taken():
    """Or the test above would test direct sums."""
    taken = set()
    for line in ("n1 c17 hw9 k8 f3 p1", "n1 c9 hw9 k8 f3 s2 p1", "n1 c9 l30 k8 f5", "n1 c9 dhw4x9x9 k8 f3"):
        problem = parse(line)
        arrays = problem.normal("float32")
        for number in range(4):
            with taking(number):
                forget()
                explained = fc.explain(arrays.x, arrays.w, **problem.window)
                taken |= {("forward", explained.forward), ("input_grad", explained.input_grad)}
                taken.add(("weight_grad", explained.weight_grad))
    tiles = {f"winograd {name}" for name in ("boxes", "tiles of 2×2", "tiles of 3×3", "tiles of 4×4")}
    assert {name for operation, name in taken if operation == "forward"} == tiles
    assert {name for operation, name in taken if operation == "input_grad"} == tiles
    assert ("weight_grad", "winograd") in taken
