"""precision("highest" | "default" | "fast"): what it lets an algorithm round, and that Winograd keeps to it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from problems import parse

import fastconv as fc
from fastconv.autograd import to_device

# Winograd on whole and ragged tiles, small images over several samples, groups, volumes, odd numbers of channels.
LINES = (
    "n2 c24 hw56 k24 f3 p1",
    "n1 c28 hw31x37 k25 f3",
    "n3 c32 hw14 k40 f3 p1",
    "n8 c64 hw7 k64 f3 p1",
    "n2 c64 hw33x101 k64 f3 p2 g2",
    "n1 c24 dhw5x32x40 k24 f3 p1",
    "n1 c24 hw5x1200 k24 f3 p1",
    "n1 c256 hw12x20 k24 f3 p1:0x0:1",
    "n2 c1024 hw8 k24 f3 p1",
    "n1 c32 hw40x44 k24 f3 p2 d2",
    "n2 c24 hw60 k24 f3 p3x1 d3x1",
    "n1 c24 dhw4x33x64 k24 f2x3x3 p1 d2x1x2",
)
winograd = pytest.mark.parametrize("problem", [parse(line) for line in LINES], ids=str)


def conv(problem, x, w, b=None, **keywords):
    return fc.conv(x, w, b, **problem.window, **keywords)


def input_grad(problem, w, gy):
    return getattr(fc.grad, f"conv{problem.rank}d_input")(problem.x_shape, w, gy, **problem.window)


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@winograd
def test_winograd_stays_within_the_default_precision(problem, device):
    arrays = problem.normal("float32")
    x, w, b, gy = (to_device(a, device) for a in (arrays.x, arrays.w, arrays.b, arrays.gy))
    explained = fc.explain(x, w, **problem.window)
    assert explained.forward.startswith("winograd")
    assert explained.input_grad.startswith("winograd")
    wide = [a.astype("float64") for a in (x, w, b, gy)]
    y, gx = conv(problem, *wide[:3]), input_grad(problem, wide[1], wide[3])
    error = relative_error(conv(problem, x, w, b), y)
    assert error < 1e-5
    assert relative_error(input_grad(problem, w, gy), gx) < 1e-5
    with fc.precision("highest"):
        assert relative_error(conv(problem, x, w, b), y) < error


@winograd
def test_winograd_fuses_bias_and_relu(problem, device):
    x, w, b = (
        to_device(a, device)
        for a in (problem.normal("float32").x, problem.normal("float32").w, problem.normal("float32").b)
    )
    y = conv(problem, x, w, b)
    assert np.array_equal(conv(problem, x, w, b, activation="relu"), np.maximum(y, 0))


@winograd
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_windows_and_its_sample(problem, value, device):
    """A tile mixes all its inputs; a NaN, an infinity or an overflow must not show where direct sums have none."""
    arrays = problem.normal("float32")
    x, w = arrays.x.copy(), arrays.w
    x[(-1, 0, *[size // 2 for size in problem.spatial])] = value
    y = conv(problem, to_device(x, device), to_device(w, device))
    with fc.precision("highest"):
        direct = conv(problem, x, w)
    assert np.array_equal(np.isfinite(to_device(y, "cpu")), np.isfinite(direct))
    clean = conv(problem, to_device(arrays.x, device), to_device(w, device))
    assert np.array_equal(y[:-1], clean[:-1])


def test_highest_and_float64_never_take_a_fast_algorithm():
    x, w = np.zeros((1, 64, 28, 28), "float32"), np.zeros((64, 64, 3, 3), "float32")
    assert fc.explain(x, w, padding=1).forward.startswith("winograd")
    assert fc.explain(x.astype("float64"), w.astype("float64"), padding=1).forward.startswith("shift-gemm")
    with fc.precision("highest"):
        assert fc.explain(x, w, padding=1).forward.startswith("shift-gemm")


def test_precision_is_a_function_and_a_context_manager_of_its_thread():
    assert fc.get_precision() == "default"
    with fc.precision("highest"):
        assert fc.get_precision() == "highest"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(fc.get_precision()))
        thread.start()
        thread.join()
        assert seen == ["default"]
    assert fc.get_precision() == "default"
    fc.precision("fast")
    try:
        assert fc.get_precision() == "fast"
    finally:
        fc.precision("default")


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"precision must be .*, got 'medium'"):
        fc.precision("medium")
