"""The oracle and the table themselves: worked by hand, run by Python instead of Numba, and against SciPy."""

from __future__ import annotations

import numpy as np
import problems
import pytest
import reference
from expected import results
from problems import PROBLEMS, parse
from tolerance import assert_close, relative

ONE = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 1}


def test_by_hand():
    x, w = np.array([[[1, 2, 3, 4]]]), np.array([[[1, 10]]])
    assert reference.conv(x, w, **ONE).tolist() == [[[21, 32, 43]]]
    assert reference.conv(x, w, [5], **{**ONE, "stride": (2,), "padding": ((1, 0),)}).tolist() == [[[15, 37]]]
    gy = np.array([[[1, 0, 2]]])
    assert reference.conv_input_grad(x.shape, w, gy, **ONE).tolist() == [[[1, 10, 2, 20]]]
    assert reference.conv_weight_grad(x, w.shape, gy, **ONE).tolist() == [[[7, 10]]]
    y = reference.conv_transpose(gy, w, [100], output_padding=(1,), **{**ONE, "stride": (2,)})
    assert y.tolist() == [[[101, 110, 100, 100, 102, 120, 100]]]


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("zeros", [0, 0, 1, 2, 3, 0]),
        ("reflect", [3, 2, 1, 2, 3, 2]),
        ("replicate", [1, 1, 1, 2, 3, 3]),
        ("circular", [2, 3, 1, 2, 3, 1]),
    ],
)
def test_padding_by_hand(mode, expected):
    x = np.array([[[1.0, 2, 3]]])
    assert reference.pad(x, ((2, 1),), mode).tolist() == [[expected]]
    gy = np.array([[[1.0, 10, 100, 1000, 10000, 100000]]])
    gx = reference.pad_grad(gy, ((2, 1),), mode)
    assert [np.vdot(np.eye(3)[i], gx[0, 0]) for i in range(3)] == [
        np.vdot(reference.pad(np.eye(3)[i][None, None], ((2, 1),), mode), gy) for i in range(3)
    ]


@pytest.mark.parametrize(
    "line",
    ["n2 c2 l7 k3 f3 s2 p1", "n1 c4 hw5x4 k6 f2x3 d1x2 p1:2 g2", "n1 c2 dhw3x2x4 k2 f2 s1x2x1 p1", "n0 c1 l3 k1 f1"],
)
def test_compiled_loops_are_the_loops_that_are_written(line, monkeypatch):
    problem = parse(line)
    compiled = results(problem, problem.normal())
    for name in ("forward_loop", "input_grad_loop", "weight_grad_loop"):
        monkeypatch.setattr(reference, name, getattr(reference, name).py_func)
    interpreted = results(problem, problem.normal())
    for field in ("forward", "input_grad", "weight_grad", "transposed"):
        assert np.array_equal(getattr(compiled, field), getattr(interpreted, field))


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch == 1 and p.groups == 1], ids=str)
def test_against_scipy(problem):
    """Padded by NumPy, the kernel dilated with zeros, correlated by SciPy, every s-th output kept."""
    signal = pytest.importorskip("scipy.signal", reason="pip install scipy")
    arrays = problem.integers()
    padded = np.pad(arrays.x[0], ((0, 0), *problem.padding))
    extents = [d * (k - 1) + 1 for k, d in zip(problem.kernel, problem.dilation)]
    dilated = np.zeros((*problem.w_shape[:2], *extents))
    dilated[(..., *(slice(None, None, d) for d in problem.dilation))] = arrays.w
    steps = tuple(slice(None, None, s) for s in problem.stride)
    for filters, bias, y in zip(dilated, arrays.b, reference.conv(arrays.x, arrays.w, arrays.b, **problem.window)[0]):
        total = sum(signal.correlate(x, w, "valid", "direct") for x, w in zip(padded, filters)) + bias
        assert np.array_equal(total[steps], y)


def per_axis(condition):
    """A condition on (size, kernel, stride, sides of the padding, dilation) that holds along every axis."""
    return lambda p: all(map(condition, p.spatial, p.kernel, p.stride, p.padding, p.dilation))


KINDS_OF_EVERY_RANK = {
    "odd kernel": per_axis(lambda size, k, s, sides, d: k % 2 == 1 < k),
    "even kernel": per_axis(lambda size, k, s, sides, d: k % 2 == 0),
    "stride beyond the kernel": per_axis(lambda size, k, s, sides, d: s > k),
    "dilation past the edge": per_axis(lambda size, k, s, sides, d: d * (k - 1) + 1 > size),
    "padding of a kernel or more": per_axis(lambda size, k, s, sides, d: min(sides) >= k),
    "kernel as large as the input": per_axis(lambda size, k, s, sides, d: size == k > 1),
    "single pixel": per_axis(lambda size, k, s, sides, d: size == 1),
    "pointwise": lambda p: set(p.kernel) == {1} and p.in_channels > 1,
    "sides that differ": lambda p: not p.symmetric,
    "groups": lambda p: 1 < p.groups < p.in_channels,
    "depthwise": lambda p: 1 < p.groups == p.in_channels,
    "empty batch": lambda p: p.batch == 0,
}
KINDS = {
    "depthwise with a multiplier": lambda p: 1 < p.groups == p.in_channels < p.out_channels,
    "one-sided padding": lambda p: any(0 in sides != (0, 0) for sides in p.padding),
    "channels beyond a tile, and no multiple of one": lambda p: p.in_channels > 64 and p.in_channels % 8,
    "many filters, and no multiple of a tile": lambda p: p.out_channels > 64 and p.out_channels % 8,
    "small images in a large batch": lambda p: p.batch > 32 and max(p.spatial) < 10,
    "long signal": lambda p: p.rank == 1 and p.spatial[0] > 1000,
    "large stride": lambda p: max(p.stride) > 10,
    **{f"row of {n}": lambda p, n=n: p.rank > 1 and p.out_spatial[-1] == n for n in (15, 16, 17, 47, 48, 49, 63)},
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS_OF_EVERY_RANK)
def test_table_has_every_kind_in_every_rank(kind, rank):
    assert any(map(KINDS_OF_EVERY_RANK[kind], (p for p in PROBLEMS if p.rank == rank)))


@pytest.mark.parametrize("kind", KINDS)
def test_table_has_every_kind(kind):
    assert any(map(KINDS[kind], PROBLEMS))


def test_table_has_no_line_twice():
    assert len({problem.line for problem in PROBLEMS}) == len(PROBLEMS) >= 60


@pytest.mark.parametrize(
    "line", ["n1 c1 l3 k1 q3", "n1 n2 c1 l3 k1 f1", "n1 c1 l3 k1 f", "n1 c1 l3 k1 f3x", "n1 c1 l3 k1 f-1"]
)
def test_a_word_that_is_not_understood_is_named(line):
    with pytest.raises(ValueError, match="in 'n1"):
        parse(line)


def test_parse():
    problem = parse("n2 c32 hw41x37 k16 f3x5 s2 p0:2x1 d2 g4")
    assert (problem.x_shape, problem.w_shape) == ((2, 32, 41, 37), (16, 8, 3, 5))
    assert problem.padding == ((0, 2), (1, 1)) and problem.stride == problem.dilation == (2, 2)
    assert problem.y_shape == (2, 16, 20, 16) and problem.unused == (0, 0)
    assert [getattr(problem.integers("float32"), name).dtype for name in ("x", "w", "b", "gy")] == ["float32"] * 4
    assert isinstance(problem, problems.Problem)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("terms", [1, 10, 300, 100_000])
def test_tolerance_admits_rounding_and_nothing_more(terms, dtype):
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((terms, 50)).astype(dtype) for _ in range(2))
    exact, magnitude = (np.sum(f(a.astype("longdouble") * b), axis=0).astype(float) for f in (lambda v: v, np.abs))
    actual = np.zeros(50, dtype)
    for i in range(terms):
        actual += a[i] * b[i]
    assert_close(actual, exact, terms, magnitude)
    # One product more or less is seen, up to sums so long that one product is below their rounding.
    dropped = actual - a[0] * b[0]
    if relative(terms, dtype) * terms < 0.01:
        with pytest.raises(AssertionError, match="values differ"):
            assert_close(dropped, exact, terms, magnitude)
    with pytest.raises(AssertionError, match="values differ"):
        assert_close(np.where(np.arange(50) == 7, np.nan, actual).astype(dtype), exact, terms, magnitude)
