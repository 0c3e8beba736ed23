"""The convolution families of the CUDA backend: every kind of products on the edges of its tiles.

test_convolution.py has the whole table under precision("highest"); here are the tensor cores, the 16-bit dtypes, what
chooses a family, and the launch arithmetic.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import emulator
import numpy as np
import pytest
from emulator.platform import emulated
from expected import exact, rounded
from problems import PROBLEMS, parse

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends.cuda import convolution, correlation, depthwise, implicit_gemm, platform
from fastconv.backends.cuda.direct import Direct, DirectWeightGrad
from fastconv.backends.cuda.launch import tiles_grid
from fastconv.geometry import ConvGeometry

on_gpu = pytest.mark.usefixtures("gpu")

# dtype, precision, name of the products
KINDS = [
    ("float32", "highest", "fma"),
    ("float32", "default", "3xtf32"),
    ("float32", "fast", "tf32"),
    ("float16", "default", "float16"),
    ("bfloat16", "default", "bfloat16"),
    ("float64", "fast", "fma"),
]

# Rows beyond one block of 64 and below 16; channels that fill no word, no step, no chunk; several chunks; sums that
# are split; several samples in a box; groups; strides, in which an input gradient has phases of several sizes;
# dilation with and without a common divisor; padding that only some taps reach; one to three axes.
GEMM_LINES = """
n2 c3 hw9x7 k4 f3 p1
n1 c5 hw6x5 k70 f3 p1
n3 c19 l31 k17 f3 p1
n1 c70 hw5x4 k18 f1
n5 c9 hw3 k20 f3 p1
n1 c200 hw3 k9 f3 p1
n2 c12 hw8x7 k40 f3 p1 g2
n1 c3 hw19x17 k12 f7 s2 p3
n1 c4 hw12x11 k10 f4 s4 p1
n2 c5 l23 k9 f5 s3 d2 p4
n1 c6 hw11x12 k9 f3 s2 d3 p3
n1 c3 hw9 k10 f3 d12 p12
n1 c4 dhw4x5x6 k10 f2x3x3 s1x2x1 p1
n1 c2 hw2x70 k9 f1x9 p0x4
n1 c4 l5000 k4 f700 s300
n1 c2 dhw19 k9 f7 s4
"""
GEMM_PROBLEMS = [parse(line) for line in GEMM_LINES.strip().splitlines()]

# Runs along each axis; taps of a line that are no multiple of those computed at a time; strides 2 and 3; dilation; few
# channels and few rows in a group; planes that share a block, and planes of several blocks.
NARROW_LINES = """
n2 c5 hw9x8 k5 f3 p1 g5
n1 c3 hw16x33 k3 f7 p3 g3
n1 c4 hw15x13 k4 f5 s2 p2 g4
n2 c3 hw13x9 k3 f3 s2 p1 g3
n1 c2 hw20x9 k2 f11x2 p5x1 g2
n1 c2 hw14x9 k2 f4 s3 p2 g2
n1 c3 hw17x9 k3 f3 d3 p3 g3
n1 c2 hw9 k2 f3 d9 p9 g2
n2 c3 l90 k3 f31 p15 g3
n1 c2 l61 k4 f8 s2 d2 p3 g2
n1 c2 l1000 k2 f3 p1 g2
n2 c3 dhw5x6x7 k3 f3 p1 g3
n1 c2 dhw9x3x4 k2 f5x1x1 g2
n1 c3 dhw5x6x4 k6 f3 s2 p1 g3
n2 c1 hw12x10 k6 f3 p1
n2 c6 hw9x10 k1 f3 p1
n1 c8 hw7 k8 f1 g8
"""
NARROW_PROBLEMS = [parse(line) for line in NARROW_LINES.strip().splitlines()]

problems = pytest.mark.parametrize("problem", GEMM_PROBLEMS + NARROW_PROBLEMS, ids=str)
kinds = pytest.mark.parametrize("dtype, precision, name", KINDS, ids=lambda value: value)


def on_device(arrays, dtype):
    return [to_device(a.astype(dtype), "cuda") for a in (arrays.x, arrays.w, arrays.b, arrays.gy)]


def all_directions(problem, x, w, b, gy):
    """Forward with a fused ReLU, and both gradients, as the host's arrays."""
    name, window = f"conv{problem.rank}d", problem.window
    y = fc.conv(x, w, b, activation="relu", **window)
    gx = getattr(fc.grad, f"{name}_input")(x.shape, w, gy, **window)
    gw = getattr(fc.grad, f"{name}_weight")(x, w.shape, gy, **window)
    return [to_device(a, "cpu") for a in (y, gx, gw)]


def expected_of(results, dtype):
    arrays = np.maximum(results.forward, 0), results.input_grad, results.weight_grad
    return [a.astype(dtype) for a in arrays]


def dtype_named(name):
    return np.dtype(name if name != "bfloat16" else pytest.importorskip("ml_dtypes").bfloat16)


@on_gpu
@kinds
@problems
def test_integers_are_exact(problem, dtype, precision, name):
    """Sums of small integers are exact in every kind of products; 16-bit results are rounded once."""
    dtype = dtype_named(dtype)
    operands = on_device(problem.integers(), dtype)
    with fc.precision(precision):
        for actual, expected in zip(all_directions(problem, *operands), expected_of(exact(problem), dtype)):
            assert actual.dtype == dtype
            assert np.array_equal(actual, expected)


@pytest.mark.skipif(bool(emulator.why_missing()), reason=emulator.why_missing())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("problem", GEMM_PROBLEMS[::3] + NARROW_PROBLEMS[::5], ids=str)
def test_old_architectures_multiply_16_bit_numbers_by_fma(problem, dtype):
    dtype = dtype_named(dtype)
    with emulator.in_use():
        platform.use(replace(emulated(), capability=lambda: 75))
        operands = on_device(problem.integers(), dtype)
        for actual, expected in zip(all_directions(problem, *operands), expected_of(exact(problem), dtype)):
            assert np.array_equal(actual, expected)
        explained = fc.explain(*operands[:2], **problem.window)
    assert all(way in ("implicit-gemm fma", "depthwise", "few-channel") for way in explained[:3])


@on_gpu
@pytest.mark.parametrize(
    "dtype, precision, allowed",
    [
        ("float32", "highest", 5e-7),
        ("float32", "default", 5e-7),
        ("float32", "fast", 1e-3),
        ("float64", "default", 1e-15),
        ("float16", "default", 1e-3),
        ("bfloat16", "default", 8e-3),
    ],
)
@pytest.mark.parametrize("line", ["n1 c64 hw6 k20 f3 p1", "n2 c3 hw11x9 k16 f5 s2 p2", "n1 c8 hw9x7 k8 f3 p1 g8"])
def test_rounding(line, dtype, precision, allowed):
    """Against float64, in the L2 norm; inputs are numbers of the dtype."""
    problem, dtype = parse(line), dtype_named(dtype)
    arrays = [a.astype(dtype) for a in problem.normal().__dict__.values()]
    operands = [to_device(a, "cuda") for a in arrays]
    wide = [to_device(a.astype("float64"), "cuda") for a in arrays]
    with fc.precision(precision):
        for actual, expected in zip(all_directions(problem, *operands), all_directions(problem, *wide)):
            error = np.linalg.norm(actual.astype("float64") - expected)
            assert error <= allowed * np.linalg.norm(expected)


@on_gpu
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("precision", ["highest", "default", "fast"])
@pytest.mark.parametrize("line", ["n3 c9 hw5x4 k18 f3 p1", "n1 c70 hw5 k5 f3 p1", "n2 c3 hw9x8 k3 f3 p1 g3"])
def test_what_is_not_finite_stays_in_its_windows(line, precision, value):
    """A high and a low part of an infinity would make a NaN; a NaN of one sample must not show in those beside it."""
    problem = parse(line)
    arrays = problem.normal("float32")
    x, w = arrays.x.copy(), arrays.w * np.float32(1e-3)
    x[(0, 0, *[size // 2 for size in problem.spatial])] = value
    with np.errstate(all="ignore"):
        expected = all_directions(problem, *(a.astype("float64") for a in (x, w, arrays.b, arrays.gy)))
        overflowed = [np.isinf(a.astype("float32")) for a in expected]
    with fc.precision(precision):
        actual = all_directions(problem, *(to_device(a, "cuda") for a in (x, w, arrays.b, arrays.gy)))
    for ours, exact_, infinite in zip(actual, expected, overflowed):
        assert np.array_equal(np.isnan(ours), np.isnan(exact_))
        assert np.array_equal(np.isinf(ours), infinite)


@on_gpu
@pytest.mark.parametrize("precision", ["highest", "default"])
@pytest.mark.parametrize("line", ["n9 c9 hw5x4 k18 f3 p1", "n7 c3 hw4 k20 f3 s2 p1", "n9 c3 hw6x5 k3 f3 p1 g3"])
def test_the_place_in_a_batch_changes_no_bit(line, precision):
    """Nor do its neighbours, with which a sample shares a box."""
    problem = parse(line)
    arrays = problem.normal("float32")
    x, gy = arrays.x.copy(), arrays.gy.copy()
    x[1], gy[1] = np.nan, np.inf
    w = to_device(arrays.w, "cuda")
    with fc.precision(precision):
        for sample in (0, 2, problem.batch - 1):
            of_batch = [fc.conv(to_device(x, "cuda"), w, **problem.window)]
            of_batch.append(fc.grad.conv2d_input(x.shape, w, to_device(gy, "cuda"), **problem.window))
            one = slice(sample, sample + 1)
            alone = [fc.conv(to_device(x[one], "cuda"), w, **problem.window)]
            alone.append(fc.grad.conv2d_input((1, *x.shape[1:]), w, to_device(gy[one], "cuda"), **problem.window))
            for a, b in zip(of_batch, alone):
                assert to_device(a, "cpu")[sample].tobytes() == to_device(b, "cpu").tobytes()


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("problem", (GEMM_PROBLEMS + NARROW_PROBLEMS)[::4], ids=str)
def test_direct_sums(problem, dtype, monkeypatch):
    """The family for what no other one takes."""
    monkeypatch.setattr(convolution, "_algorithm", lambda found, *_: Direct(found))
    monkeypatch.setattr(convolution, "_weight_grad", lambda geometry, *_: DirectWeightGrad(geometry))
    for cached in (convolution._forward, convolution._input_grad):
        monkeypatch.setattr(convolution, cached.__name__, cached.__wrapped__)
    dtype = dtype_named(dtype)
    operands = on_device(problem.integers(), dtype)
    assert fc.explain(*operands[:2], **problem.window)[:3] == ("direct",) * 3
    for actual, expected in zip(all_directions(problem, *operands), expected_of(exact(problem), dtype)):
        assert np.array_equal(actual, expected)


def geometry_of(line):
    problem = parse(line)
    return ConvGeometry.of("conv", problem.x_shape, problem.w_shape, **problem.window)


@on_gpu
@kinds
def test_names_of_the_families(dtype, precision, name):
    """What explain_conv says, for layers of well-known networks."""
    dtype = dtype_named(dtype)
    for line, family in (
        ("n1 c64 hw56 k64 f3 p1", f"implicit-gemm {name}"),  # ResNet
        ("n1 c3 hw224 k64 f7 s2 p3", f"implicit-gemm {name}"),
        ("n1 c256 hw14 k1024 f1", f"implicit-gemm {name}"),
        ("n1 c128 hw56 k128 f3 p1 g32", f"implicit-gemm {name}"),  # ResNeXt
        ("n1 c256 hw33 k256 f3 p12 d12", f"implicit-gemm {name}"),  # DeepLab
        ("n1 c64 l6000 k64 f7 p3", f"implicit-gemm {name}"),
        ("n1 c96 hw56 k96 f7 p3 g96", "depthwise"),  # ConvNeXt
        ("n1 c32 hw112 k32 f3 s2 p1 g32", "depthwise"),  # MobileNet
        ("n1 c64 l6000 k64 f31 p15 g64", "depthwise"),
        ("n1 c64 dhw32 k64 f3 p1 g64", "depthwise"),
        ("n1 c8 dhw64 k8 f3 s2 p1 g8", "depthwise"),
        ("n1 c8 dhw64 k16 f7 s4 p3", f"implicit-gemm {name}"),
        ("n1 c1 hw1024 k2 f3 p1", "few-channel"),
    ):
        geometry = geometry_of(line)
        with fc.precision(precision):
            for operation in ("forward", "input_grad", "weight_grad"):
                assert convolution.explain_conv(geometry, dtype, operation) == family, (line, operation)


@on_gpu
def test_taps_without_reach_leave_the_bias():
    with fc.precision("default"):
        x, w = (to_device(np.ones(shape, "float32"), "cuda") for shape in ((1, 2, 1, 1), (3, 2, 2, 2)))
        b = to_device(np.array([1, -2, 3], "float32"), "cuda")
        y = to_device(fc.conv2d(x, w, b, padding=4, dilation=7, activation="relu"), "cpu")
        assert np.array_equal(y, np.maximum([1, -2, 3], 0).reshape(1, 3, 1, 1) * np.ones_like(y))


# Launch arithmetic


@pytest.mark.parametrize("pixels", [64, 128])
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch], ids=str)
def test_boxes_cover_the_outputs_and_tiles_hold_what_they_read(problem, pixels):
    geometry = ConvGeometry.of("conv", problem.x_shape, problem.w_shape, **problem.window)
    for found in (correlation.forward(geometry), correlation.input_grad(geometry)):
        for axes in found.phases:
            if not all(axis.offsets for axis in axes):
                continue
            tile = correlation.tile(axes, pixels)
            assert tile.samples * prod(tile.box) == pixels
            assert tile.samples == 1 or prod(tile.boxes) == 1
            assert tile.pitch % 32 == 8 and tile.pitch >= tile.positions
            for axis, box, boxes, spacing, extent in zip(axes, tile.box, tile.boxes, tile.spacing, tile.extent):
                assert (boxes - 1) * box < axis.outputs <= boxes * box
                read = {axis.step * j + offset - axis.low for j in range(box) for offset in axis.offsets}
                assert {position % spacing for position in read} == {0}
                assert max(read) // spacing == extent - 1


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.batch], ids=str)
def test_runs_cover_the_outputs(problem):
    geometry = ConvGeometry.of("conv", problem.x_shape, problem.w_shape, **problem.window)
    for found in (correlation.forward(geometry), correlation.input_grad(geometry)):
        if not found.phases or not all(axis.offsets for axes in found.phases for axis in axes):
            continue
        lines = depthwise.lines(found)
        for axes, apart in zip(found.phases, lines.apart):
            tile = depthwise.box_of_lines(axes, lines.axis, apart, 1 << 20)
            assert tile.box[lines.axis] % (depthwise.RUN * apart) == 0
            assert all(box * boxes >= axis.outputs for axis, box, boxes in zip(axes, tile.box, tile.boxes))


def test_chunks_fit_into_shared_memory_and_hold_all_channels():
    for line in ("n1 c512 hw7 k512 f3 p1", "n1 c3 hw224 k64 f7 s2 p3", "n1 c2 l30000 k8 f101 p50", "n1 c9 dhw9 k9 f7"):
        found = correlation.forward(geometry_of(line))
        taps = prod(len(axis.offsets) for axis in found.phases[0])
        tile = correlation.tile(found.phases[0], implicit_gemm.PIXELS)
        for products in [one for kinds_ in implicit_gemm.TENSOR.values() for one in kinds_]:
            cut = implicit_gemm.chunks(found.channels, taps, tile, products)
            assert implicit_gemm.shared_bytes(cut, tile, products) <= implicit_gemm.SHARED_BYTES
            assert cut.count * cut.words * products.channels >= found.channels
            assert cut.steps * products.step_words >= cut.words * taps > (cut.steps - 1) * products.step_words


def test_places_of_all_pixels_fit_where_the_positions_were():
    """Also where a box has fewer outputs than a block has threads."""
    found = correlation.forward(geometry_of("n1 c4 l16 k4 f1"))
    tile, products = correlation.tile(found.phases[0], 16), implicit_gemm.TENSOR["tf32"][0]
    cut = implicit_gemm.Chunks(words=4, steps=1, count=1)
    before = (3 * 2 * products.step_weights + 4 * tile.pitch + products.step_words) * 4
    assert tile.positions == 16
    assert implicit_gemm.shared_bytes(cut, tile, products, 1) == before + 4 * implicit_gemm.PIXELS


def test_a_product_of_many_columns_stays_below_the_limit_of_a_grid():
    assert tiles_grid(65, 64 * 70_000, 64) == (2 * 70_000,)


def test_long_sums_of_few_outputs_are_split_whatever_the_batch():
    few, many = (
        implicit_gemm.ImplicitGemm(correlation.forward(geometry_of(line)), "float32", "3xtf32", 90)
        for line in ("n1 c512 hw7 k512 f3 p1", "n1 c256 hw56 k256 f3 p1")
    )
    assert few.splits > 1
    assert many.splits == 1


def test_what_reaches_beyond_32_bits_or_shared_memory_is_summed_directly():
    for line in ("n1 c16 l5000000000 k16 f3 p2000000000 d2000000000", "n1 c4 hw300 k4 f200", "n1 c4 dhw60 k4 f50"):
        found = correlation.forward(geometry_of(line))
        assert not implicit_gemm.ImplicitGemm(found, "float32", "3xtf32", 90).fits


@on_gpu
def test_sums_of_a_split_are_those_of_the_oracle():
    problem = parse("n2 c60 hw4x3 k10 f3 p1")
    geometry = ConvGeometry.of("conv", problem.x_shape, problem.w_shape, **problem.window)
    assert implicit_gemm.ImplicitGemm(correlation.forward(geometry), "float32", "3xtf32", 90).splits > 1
    x, w, b, _ = on_device(problem.normal(), "float32")
    y, magnitude = rounded(problem, "float32")
    actual = to_device(fc.conv2d(x, w, b, **problem.window), "cpu")
    assert np.all(np.abs(actual - y.forward) <= 1e-6 * magnitude.forward)
