"""Resampling: every mode against dense matrices, PyTorch, finite differences, and itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import reference_resample as reference
from differences import check_gradients
from tolerance import assert_close

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads
from fastconv.backends.cpu import resampling
from fastconv.geometry import interpolation


class Case(NamedTuple):
    """Input sizes; output sizes as ints, or scale factors as floats."""

    mode: str
    spatial: tuple
    wanted: tuple
    align_corners: bool = False

    @property
    def arguments(self):
        name = "size" if isinstance(self.wanted[0], int) else "scale_factor"
        return {name: self.wanted, "mode": self.mode, **({"align_corners": True} if self.align_corners else {})}

    @property
    def matrices(self):
        scaled = isinstance(self.wanted[0], float)
        return [
            reference.matrix(
                size,
                int(size * want) if scaled else want,
                self.mode,
                want if scaled and self.mode != "area" else None,
                self.align_corners,
            )
            for size, want in zip(self.spatial, self.wanted)
        ]


CASES = [
    Case("nearest", (7,), (14,)),
    Case("nearest", (300,), (41,)),
    Case("nearest", (40,), (2.7,)),
    Case("nearest", (5, 9), (2.0, 2.0)),
    Case("nearest", (33, 17), (12, 40)),
    Case("nearest", (9, 11), (0.5, 0.3)),
    Case("nearest", (150, 3), (75, 3)),
    Case("nearest", (3, 4, 5), (2.0, 2.0, 2.0)),
    Case("nearest", (6, 1, 7), (3, 4, 1)),
    Case("nearest-exact", (7,), (3,)),
    Case("nearest-exact", (9, 8), (4, 20)),
    Case("nearest-exact", (4, 5, 3), (1.4, 0.8, 2.5)),
    Case("linear", (9,), (18,)),
    Case("linear", (1,), (5,)),
    Case("linear", (5,), (1,)),
    Case("linear", (700,), (450,)),
    Case("linear", (60,), (1.7,)),
    Case("linear", (60,), (120,)),
    Case("linear", (11,), (31,), True),
    Case("linear", (11,), (1,), True),
    Case("bilinear", (8, 8), (16, 16)),
    Case("bilinear", (9, 7), (18, 21), True),
    Case("bilinear", (1, 6), (4, 3)),
    Case("bilinear", (40, 50), (13, 21)),
    Case("bilinear", (12, 10), (0.3, 1.6)),
    Case("bilinear", (2, 9), (1.3, 1.3)),
    Case("bilinear", (13, 1), (20, 1)),
    Case("bilinear", (6, 19), (6, 40)),
    Case("bilinear", (19, 6), (40, 6)),
    Case("bilinear", (50, 6), (100, 9)),
    Case("bilinear", (90, 5), (61, 4)),
    Case("trilinear", (4, 5, 6), (8, 10, 12)),
    Case("trilinear", (5, 1, 9), (2, 6, 4)),
    Case("trilinear", (3, 4, 5), (5, 2, 11), True),
    Case("trilinear", (4, 3, 10), (1.5, 0.7, 1.2)),
    Case("bicubic", (6, 9), (12, 18)),
    Case("bicubic", (30, 20), (7, 11)),
    Case("bicubic", (3, 40), (6, 80)),
    Case("bicubic", (5, 4), (9, 13), True),
    Case("bicubic", (1, 7), (3, 7)),
    Case("bicubic", (3, 9), (1.3, 0.4)),
    Case("area", (9,), (4,)),
    Case("area", (7, 10), (3, 14)),
    Case("area", (8, 9), (0.5, 0.5)),
    Case("area", (4, 5, 6), (2, 5, 3)),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)).replace(" ", ""))
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(params=["usual", "lanes", "rows", "small"])
def blocks(request, monkeypatch):
    """As they are; small planes always or never in the lanes; blocks so small that these inputs are cut everywhere."""
    if request.param == "lanes":
        monkeypatch.setattr(resampling, "fills_lanes", lambda x: True)
    elif request.param != "usual":
        monkeypatch.setattr(resampling, "_SMALL", 0)
    if request.param == "small":
        monkeypatch.setattr(resampling, "past_caches", lambda result, read: True)
        monkeypatch.setattr(resampling, "_BLOCK", 40)
        monkeypatch.setattr(resampling, "_CHUNK", 30)
    resampling._plan.cache_clear()
    yield request.param
    resampling._plan.cache_clear()


def normal(seed, shape, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(device, x, gy=None, **arguments):
    """Result and gradient on a device; `gy` may be a function of the result's shape."""
    tensor = fc.Tensor(to_device(x, device), requires_grad=True)
    y = fc.interpolate(tensor, **arguments)
    y.backward(to_device(gy(y.shape), device))
    assert y.dtype == tensor.grad.dtype == x.dtype
    return y.numpy(), to_device(tensor.grad, "cpu")


@every_dtype
@every_case
def test_against_the_oracle(blocks, device, case, dtype):
    x, matrices = normal(0, (2, 5, *case.spatial), dtype), case.matrices
    gy = normal(1, (2, 5, *map(len, matrices)), dtype)
    y, gx = run(device, x, lambda shape: gy, **case.arguments)
    for actual, given, axes in ((y, x, matrices), (gx, gy, [weights.T for weights in matrices])):
        expected = reference.apply(axes, given.astype(float))
        if case.mode.startswith("nearest") and actual is y:
            np.testing.assert_array_equal(actual, expected)
        terms = sum(int(np.count_nonzero(weights, axis=1).max()) + 4 for weights in axes)
        assert_close(actual, expected, terms, reference.apply([abs(weights) for weights in axes], abs(given)))


@every_dtype
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("columns", [1, 5, 8, 13, 40])
def test_whole_numbers_exactly(blocks, device, rows, columns, dtype):
    """Weights of doubling are sixteenths: any tap too many, too few or in the wrong place shows."""
    x = np.random.default_rng(0).integers(-20, 21, (3, 1, rows, columns)).astype(dtype)
    for mode in ("nearest", "bilinear"):
        matrices = Case(mode, (rows, columns), (2 * rows, 2 * columns)).matrices
        gy = np.random.default_rng(1).integers(-20, 21, (3, 1, 2 * rows, 2 * columns)).astype(dtype)
        y, gx = run(device, x, lambda shape, gy=gy: gy, scale_factor=2, mode=mode)
        np.testing.assert_array_equal(y, reference.apply(matrices, x))
        np.testing.assert_array_equal(gx, reference.apply([weights.T for weights in matrices], gy))


@pytest.mark.parametrize(
    ("mode", "scale", "doubled", "halved"),
    [
        ("nearest", 2, (2, 0, 20), (1, 0, 20)),
        ("linear", 2, (2, 1, 19), (1, 1, 18)),
        ("bicubic", 2, (2, 3, 17), (1, 2, 16)),
        ("linear", 0.5, (1, 0, 10), (2, 0, 10)),
        ("linear", 0.7, (1, 0, 0), (2, 0, 0)),
    ],
)
def test_doubled_and_halved_axes_are_regular(mode, scale, doubled, halved):
    """The axis and its adjoint: outputs of a group, the first one, groups."""
    shape = (1, 1, 20) if mode != "bicubic" else (1, 1, 20, 20)
    axis = interpolation("interpolate", shape, None, scale, mode).axes[-1]
    assert (resampling._regular(axis), resampling._regular(axis.transposed)) == (doubled, halved)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"mode": "nearest"}, [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]),
        (
            {"mode": "bilinear"},
            [[1, 1.25, 1.75, 2], [1.5, 1.75, 2.25, 2.5], [2.5, 2.75, 3.25, 3.5], [3, 3.25, 3.75, 4]],
        ),
        (
            {"mode": "bilinear", "align_corners": True},
            [[1, 4 / 3, 5 / 3, 2], [5 / 3, 2, 7 / 3, 8 / 3], [7 / 3, 8 / 3, 3, 10 / 3], [3, 10 / 3, 11 / 3, 4]],
        ),
        ({"mode": "area"}, [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]),
    ],
)
def test_numbers_of_the_documentation(device, arguments, expected):
    """Those of torch.nn.Upsample's page."""
    x = to_device(np.array([[[[1.0, 2], [3, 4]]]]), device)
    y = to_device(fc.interpolate(x, scale_factor=2, **arguments), "cpu")
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-15)


@every_case
def test_gradient_is_the_adjoint(device, case):
    """⟨Ax, y⟩ = ⟨x, Aᵀy⟩."""
    x = normal(0, (2, 3, *case.spatial))
    y, gx = run(device, x, lambda shape: normal(1, shape), **case.arguments)
    products = y * normal(1, y.shape), x * gx
    np.testing.assert_allclose(*(p.sum() for p in products), rtol=0, atol=1e-13 * sum(abs(p).sum() for p in products))


@pytest.mark.parametrize("case", [case for case in CASES if np.prod(case.spatial) < 60], ids=str)
def test_gradients_against_finite_differences(case):
    check_gradients(lambda t: fc.interpolate(t, **case.arguments), normal(0, (1, 2, *case.spatial)))


@every_dtype
@every_case
def test_same_bits_for_any_threads_and_batch(blocks, device, case, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)  # small work is shared out, too
    x = normal(0, (16, 3, *case.spatial), dtype)

    def computed(batch):
        return run(device, x[:batch], lambda shape: normal(1, (16, *shape[1:]), dtype)[:batch], **case.arguments)

    fc.set_num_threads(1)
    alone, seven = ([result.tobytes() for result in computed(batch)] for batch in (1, 7))
    for count in (2, 3, 8) if device == "cpu" else ():
        fc.set_num_threads(count)
        assert [result.tobytes() for result in computed(7)] == seven
    for batch in (2, 7, 16):
        assert [result[0].tobytes() for result in computed(batch)] == alone


def weighed(matrices, finite):
    """The outputs that a non-finite input has a weight in."""
    return reference.apply([(weights != 0).astype(float) for weights in matrices], ~finite) > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("case", [case for case in CASES if case.mode != "bicubic"], ids=str)
def test_nan_and_infinity_stay_where_they_have_a_weight(device, case, value):
    x = normal(0, (1, 2, *case.spatial), "float32")
    x.reshape(-1)[:: max(x.size // 3, 1)] = value
    y, gx = run(device, x, lambda shape: np.ones(shape, "float32"), **case.arguments)
    np.testing.assert_array_equal(~np.isfinite(y), weighed(case.matrices, np.isfinite(x)))
    assert np.isfinite(gx).all()
    gy = np.ones(y.shape, "float32")
    gy.reshape(-1)[:: max(gy.size // 3, 1)] = value
    _, gx = run(device, x, lambda shape: gy, **case.arguments)
    expected = weighed([weights.T for weights in case.matrices], np.isfinite(gy))
    np.testing.assert_array_equal(~np.isfinite(gx), expected)


def test_nan_goes_no_further_than_in_torch():
    functional = pytest.importorskip("torch", reason="pip install torch==2.13.0").nn.functional
    import torch

    for case in CASES:
        for place in range(0, int(np.prod(case.spatial)), 3):
            x = normal(0, (1, 1, *case.spatial))
            x.reshape(-1)[place] = np.nan
            theirs = functional.interpolate(torch.tensor(x), **case.arguments).numpy()
            ours = fc.interpolate(x, **case.arguments)
            assert not np.any(np.isnan(ours) & np.isfinite(theirs)), case


@every_case
def test_signs_of_zeros_and_copies(case):
    """An axis that keeps its size is copied, bit for bit."""
    x = np.where(normal(0, (1, 2, *case.spatial)) > 0, -0.0, normal(1, (1, 2, *case.spatial)))
    rest = {} if not case.align_corners else {"align_corners": True}
    y = fc.interpolate(x, size=case.spatial, mode=case.mode, **rest)
    if case.mode != "area":
        assert y.tobytes() == x.tobytes()
    np.testing.assert_array_equal(y, x)
    assert not np.shares_memory(x, y)


def test_forms_of_the_input_and_the_arguments(device):
    x = normal(0, (2, 3, 8, 6), "float32")
    expected = to_device(fc.interpolate(to_device(x, device), size=(16, 12), mode="bilinear"), "cpu")
    kept = x.copy()
    read_only = x.copy()
    read_only.flags.writeable = False
    forms = [x[::-1][::-1], np.repeat(x, 2, axis=3)[..., ::2], np.asfortranarray(x), x.astype(">f4"), read_only]
    for form in forms if device == "cpu" else []:
        np.testing.assert_array_equal(fc.interpolate(form, (16, 12), mode="bilinear"), expected)
    for size, factor in [
        ([16, 12], None),
        (None, 2),
        (None, [2.0, 2]),
        (None, np.float32(2)),
        (None, (2,)),
        (None, np.array([2.0, 2.0])),
        (np.array([16, 12]), None),
        (tuple(np.array([16, 12])), None),  # NumPy's ints
    ]:
        y = fc.interpolate(to_device(x, device), size, factor, "bilinear")
        np.testing.assert_array_equal(to_device(y, "cpu"), expected)
    np.testing.assert_array_equal(x, kept)
    assert isinstance(fc.interpolate(x, 4), np.ndarray)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "area"])
def test_empty_batch(device, mode):
    empty = fc.Tensor(to_device(np.zeros((0, 3, 4, 5), "float32"), device), requires_grad=True)
    y = fc.interpolate(empty, scale_factor=2, mode=mode)
    assert y.shape == (0, 3, 8, 10)
    y.backward(to_device(np.zeros(y.shape, "float32"), device))
    assert empty.grad.shape == (0, 3, 4, 5)


def test_scale_factors_that_are_recomputed():
    """floor(11 · 1.3) = 14: positions then follow 14/11 instead of 1.3."""
    x = normal(0, (1, 1, 11))
    given, recomputed = (
        fc.interpolate(x, scale_factor=1.3, mode="linear", recompute_scale_factor=r) for r in (None, True)
    )
    np.testing.assert_array_equal(recomputed, fc.interpolate(x, 14, mode="linear"))
    assert given.shape == recomputed.shape and not np.allclose(given, recomputed)


def test_positions_are_exact():
    """o · 49 / 50 · 50 / 49 and the like: float32 arithmetic takes the input before for some of them."""
    for size in range(1, 60):
        x = np.arange(size, dtype="float64").reshape(1, 1, -1)
        for outputs in range(1, 60):
            found = fc.interpolate(x, outputs)[0, 0]
            assert found.tolist() == [o * size // outputs for o in range(outputs)]


def test_a_geometry_is_made_once():
    shape = (2, 3, 4, 5)
    first = interpolation("interpolate", shape, (8, 10), None, "bilinear")
    for size, factor in ([8, 10], None), (None, 2), (None, 2.0), ((np.int64(8), 10), None):
        assert interpolation("interpolate", shape, size, factor, "bilinear") is first
    assert first.transposed is first.transposed
    with pytest.raises(TypeError):  # though 1 == True
        interpolation("interpolate", shape, (True, 10), None, "bilinear")
    with pytest.raises(TypeError):
        interpolation("interpolate", shape, None, True, "bilinear")
