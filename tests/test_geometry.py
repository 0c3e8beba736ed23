"""Shapes, counts and windows against the lectures' numbers, enumeration and PyTorch."""

from __future__ import annotations

import pickle
from itertools import product

import numpy as np
import pytest

from fastconv.geometry import ConvGeometry, PoolGeometry, output_size, receptive_field

# input and weight without the batch, arguments, output without the batch, parameters with bias
LECTURES = [
    pytest.param((3, 227, 227), (96, 3, 11, 11), {"stride": 4}, (96, 55, 55), 34944, id="alexnet-1"),
    pytest.param((3, 32, 32), (10, 3, 5, 5), {"padding": 2}, (10, 32, 32), 760, id="ten-5x5"),
    pytest.param((3, 32, 32), (16, 3, 5, 5), {}, (16, 28, 28), 1216, id="sixteen-5x5"),
    pytest.param((1, 7, 7), (1, 1, 3, 3), {}, (1, 5, 5), 10, id="7-by-3-stride-1"),
    pytest.param((1, 7, 7), (1, 1, 3, 3), {"stride": 2}, (1, 3, 3), 10, id="7-by-3-stride-2"),
    pytest.param((1, 7, 7), (1, 1, 3, 3), {"stride": 3}, (1, 2, 2), 10, id="7-by-3-stride-3"),
    pytest.param((5, 20), (12, 5, 6), {"stride": 2, "padding": 1}, (12, 9), 372, id="exercise-1d"),
    pytest.param((4, 32, 32), (16, 4, 5, 5), {"stride": 3, "padding": 2}, (16, 11, 11), 1616, id="exercise-2d"),
    pytest.param(
        (12, 64, 64), (3, 12, 7, 5), {"stride": (2, 1), "padding": (2, 2)}, (3, 31, 64), 1263, id="exercise-oblong"
    ),
]

# weight, bias, parameters
PARAMETERS = [
    ((4, 3, 5), False, 60),
    ((5, 10, 8, 8), True, 3205),
    ((2, 5, 2, 4), True, 82),
    ((2, 2, 2, 2, 3), False, 48),
    ((28 * 28 * 6, 3, 32, 32), False, 14_450_688),
]


@pytest.mark.parametrize(("x", "w", "arguments", "y", "parameters"), LECTURES)
def test_lecture_shapes(x, w, arguments, y, parameters):
    geometry = ConvGeometry.of("conv", (5, *x), w, **arguments)
    assert geometry.output_shape(5) == (5, *y)
    assert geometry.input_shape(5) == (5, *x)
    assert geometry.weight_shape == w
    assert geometry.parameters() == parameters
    assert geometry.multiply_adds(5) == 5 * np.prod(y) * np.prod(w[1:])


@pytest.mark.parametrize(("weight", "bias", "parameters"), PARAMETERS)
def test_lecture_parameters(weight, bias, parameters):
    geometry = ConvGeometry.of("conv", (1, weight[1], *weight[2:]), weight)
    assert geometry.parameters(bias=bias) == parameters
    assert geometry.taps == np.prod(weight[2:])


@pytest.mark.parametrize("channels", [1, 8, 64])
def test_stacked_and_separable_parameters(channels):
    c, h, w = channels, 7, 5
    image = (1, c, 32, 32)
    three = 3 * ConvGeometry.of("conv2d", image, (c, c, 3, 3)).parameters(bias=False)
    seven = ConvGeometry.of("conv2d", image, (c, c, 7, 7)).parameters(bias=False)
    assert (three, seven) == (27 * c**2, 49 * c**2)
    assert receptive_field([(3, 1, 1)] * 3) == receptive_field([(7, 1, 1)]) == 7
    depthwise = ConvGeometry.of("conv2d", image, (c, 1, h, w), groups=c).parameters(bias=False)
    pointwise = ConvGeometry.of("conv2d", image, (c, c, 1, 1)).parameters(bias=False)
    full = ConvGeometry.of("conv2d", image, (c, c, h, w)).parameters(bias=False)
    assert (depthwise + pointwise, full) == (h * w * c + c**2, h * w * c**2)


@pytest.mark.parametrize("radius", range(4))
@pytest.mark.parametrize("stride", range(1, 5))
def test_odd_kernel_with_padding_r(radius, stride):
    for size in range(1, 12):
        geometry = ConvGeometry.of("conv1d", (1, 1, size), (1, 1, 2 * radius + 1), stride, padding=radius)
        assert geometry.out_spatial == ((size - 1) // stride + 1,)


def test_lecture_poolings():
    assert PoolGeometry.of("max_pool2d", (1, 64, 224, 224), 2).out_spatial == (112, 112)
    assert PoolGeometry.of("max_pool2d", (1, 96, 55, 55), 3, 2).out_spatial == (27, 27)
    assert PoolGeometry.of("max_pool2d", (1, 1, 4, 4), 2, 2).windows() == (((0, 2), (2, 4), 1),) * 2


@pytest.mark.parametrize(
    ("layers", "field"),
    [
        ([], 1),
        ([(3, 1, 1)], 3),
        ([(3, 1, 1)] * 3, 7),
        ([(3, 2, 1), (3, 1, 1)], 7),
        ([(3, 1, 1), (3, 1, 2), (3, 1, 4)], 15),
        ([(7, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)], 27),
        ([(1, 5, 1), (2, 1, 1)], 6),
    ],
)
def test_receptive_field(layers, field):
    assert receptive_field(layers) == field
    seen = {0}
    for kernel, stride, dilation in reversed(layers):
        seen = {position * stride + tap * dilation for position in seen for tap in range(kernel)}
    assert max(seen) - min(seen) + 1 == field


def positions(size, kernel, stride, before, after, dilation):
    """Where a window may begin, by trying: every tap on the input or its padding."""
    return [
        start
        for start in range(-before, size + after)
        if (start + before) % stride == 0
        and all(-before <= start + tap * dilation < size + after for tap in range(kernel))
    ]


SMALL = list(product(range(1, 8), range(1, 5), range(1, 4), (0, 1, 4), (0, 2), range(1, 4)))


def test_sizes_against_enumeration():
    for size, kernel, stride, before, after, dilation in SMALL:
        line = f"size {size} kernel {kernel} stride {stride} padding {before}+{after} dilation {dilation}"
        expected = len(positions(size, kernel, stride, before, after, dilation))
        arguments = ("conv1d", (2, 3, size), (4, 3, kernel), stride, ((before, after),), dilation)
        if expected:
            assert ConvGeometry.of(*arguments).out_spatial == (expected,), line
            assert output_size(size, kernel, stride, before + after, dilation) == expected, line
        else:
            with pytest.raises(ValueError, match="does not fit"):
                ConvGeometry.of(*arguments)


def test_transposed_against_enumeration():
    for outputs, kernel, stride, before, after, dilation in SMALL:
        for extra in range(max(stride, dilation)):
            line = f"in {outputs} f {kernel} s {stride} p {before}+{after} d {dilation} extra {extra}"
            last = max(o * stride + tap * dilation for o in range(outputs) for tap in range(kernel))
            size = last + 1 + extra - before - after
            arguments = ("conv_transpose1d", (2, 4, outputs), (4, 3, kernel), stride, ((before, after),), extra)
            if size < 1:
                with pytest.raises(ValueError, match="leaves no output"):
                    ConvGeometry.transposed(*arguments, dilation)
                continue
            geometry = ConvGeometry.transposed(*arguments, dilation)
            assert geometry.input_shape(2) == (2, 3, size), line
            # The convolution of the result gives the input's size back, and more only if asked for.
            assert geometry.out_spatial == (outputs + extra // stride,), line


def test_transposed_channels():
    geometry = ConvGeometry.transposed("conv_transpose2d", (1, 6, 5, 5), (6, 4, 3, 3), 2, 1, 1, 1, 2, (8,))
    assert (geometry.in_channels, geometry.out_channels, geometry.groups) == (8, 6, 2)
    assert geometry.weight_shape == (6, 4, 3, 3)
    assert geometry.spatial == (10, 10)
    assert geometry.out_spatial == (5, 5)


@pytest.mark.parametrize("kernel", range(1, 7))
@pytest.mark.parametrize("dilation", range(1, 4))
def test_same_padding(kernel, dilation):
    for size in range(1, 9):
        geometry = ConvGeometry.of("conv1d", (1, 1, size), (1, 1, kernel), 1, "same", dilation)
        ((before, after),) = geometry.padding
        assert geometry.out_spatial == (size,)
        assert after - before in (0, 1)


PAIRS = ((1, 1), (1, 1))
SPELLINGS = [
    {"stride": 2, "padding": 1, "dilation": 1, "groups": 1},
    {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1)},
    {"stride": [2, 2], "padding": [1, 1], "dilation": [1, 1]},
    {"stride": np.int64(2), "padding": np.int8(1), "dilation": np.uint16(1), "groups": np.int64(1)},
    {"stride": (np.int64(2), 2), "padding": PAIRS},
    {"stride": 2, "padding": [[1, 1], (1, 1)]},
    {"stride": 2, "padding": (1, (1, 1))},
    {"stride": (2,), "padding": (1,), "dilation": [1]},
    {"stride": [np.int64(2)], "padding": ((1, 1),)},
    {"stride": np.array([2, 2]), "padding": np.array(PAIRS), "dilation": np.array([1])},
]


@pytest.mark.parametrize("arguments", SPELLINGS)
def test_spellings_give_one_geometry(arguments):
    geometry = ConvGeometry.of("conv2d", (2, 3, 9, 9), (4, 3, 3, 3), **arguments)
    expected = ConvGeometry(3, 4, 1, (9, 9), (3, 3), (2, 2), (1, 1), PAIRS)
    assert geometry == expected
    assert hash(geometry) == hash(expected)
    numbers = (*geometry.stride, *geometry.dilation, *sum(geometry.padding, ()), geometry.groups)
    assert {type(number) for number in numbers} == {int}


def test_valid_is_no_padding():
    assert ConvGeometry.of("conv2d", (1, 1, 9, 9), (1, 1, 3, 3), 2, "valid") == ConvGeometry.of(
        "conv2d", (1, 1, 9, 9), (1, 1, 3, 3), 2
    )


def test_batch_is_no_part_of_a_geometry():
    geometries = {ConvGeometry.of("conv1d", (n, 3, 9), (4, 3, 3)) for n in (0, 1, 7)}
    assert len(geometries) == 1
    assert geometries.pop().output_shape(0) == (0, 4, 7)


AGAIN = [2.0, (2.0, 2.0), (2, 2.0), np.float32(2), np.array([2.0, 2.0]), True, (True, 1), np.True_, "2", None]


@pytest.mark.parametrize("again", AGAIN)
def test_equal_keys_of_another_kind_are_refused_after_a_hit(again):
    for accepted in (1, (1, 1), 2, (2, 2)):
        ConvGeometry.of("conv2d", (1, 1, 9, 9), (1, 1, 3, 3), accepted)
    with pytest.raises(TypeError, match="conv2d: stride must be an int or a tuple of 2 ints"):
        ConvGeometry.of("conv2d", (1, 1, 9, 9), (1, 1, 3, 3), again)


def test_same_call_same_object():
    calls = [ConvGeometry.of("conv2d", (1, 1, 9, 9), (1, 1, 3, 3), stride, 1) for stride in (2, 2, np.int64(2), [2, 2])]
    assert calls[0] is calls[1]
    assert calls[0] == calls[2] == calls[3]
    assert PoolGeometry.of("max_pool1d", (1, 1, 9), 3) is PoolGeometry.of("max_pool1d", (1, 1, 9), 3)


def test_geometry_is_frozen_and_pickles():
    conv = ConvGeometry.of("conv3d", (1, 2, 5, 6, 7), (4, 1, 3, 3, 3), 2, "valid", 1, 2)
    pool = PoolGeometry.of("avg_pool3d", (1, 2, 5, 6, 7), 3, 2, 1, ceil_mode=True)
    for geometry in (conv, pool):
        twin = pickle.loads(pickle.dumps(geometry))
        assert twin == geometry
        assert twin.out_spatial == geometry.out_spatial
        assert geometry.rank == 3
        with pytest.raises(AttributeError):
            geometry.kernel = (1, 1, 1)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padded(mode):
    geometry = ConvGeometry.of("conv2d", (1, 2, 5, 6), (4, 2, 3, 3), 2, ((1, 2), (3, 0)), 1, padding_mode=mode)
    padded = geometry.padded()
    assert padded.spatial == (8, 9)
    assert padded.padding == ((0, 0), (0, 0))
    assert padded.out_spatial == geometry.out_spatial
    assert padded.weight_shape == geometry.weight_shape


def test_limits_of_padding_modes():
    limits = [("reflect", 4), ("circular", 5), ("replicate", 50), ("zeros", 50)]
    sizes = [
        ConvGeometry.of("conv1d", (1, 1, 5), (1, 1, 3), padding=p, padding_mode=mode).out_spatial for mode, p in limits
    ]
    assert sizes == [(11,), (13,), (103,), (103,)]


def test_gradient_geometries():
    arguments = {"stride": 2, "padding": 1, "groups": 3}
    geometry = ConvGeometry.of("conv2d", (5, 3, 8, 9), (6, 1, 3, 3), **arguments)
    grad_output = geometry.output_shape(5)
    by_input = ConvGeometry.for_input_grad("conv2d_input", [5, 3, 8, 9], (6, 1, 3, 3), grad_output, **arguments)
    by_weight = ConvGeometry.for_weight_grad("conv2d_weight", (5, 3, 8, 9), [6, 1, 3, 3], grad_output, **arguments)
    assert geometry == by_input == by_weight


def window_positions(size, kernel, stride, before, after, dilation, ceil_mode):
    """Starts of pooling windows by trying; with `ceil_mode` one more where that starts inside the input or before."""
    starts = positions(size, kernel, stride, before, after, dilation)
    following = starts[-1] + stride if starts else -before
    # Rounding up adds a window as long as some of its span lies inside.
    room = following - stride + dilation * (kernel - 1) + 1 < size + after
    if ceil_mode and room and following < size:
        starts.append(following)
    return starts


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool_windows_against_enumeration(ceil_mode):
    checked = 0
    for size, kernel, stride, before, after, dilation in product(
        range(1, 9), range(1, 5), range(1, 5), (0, 1, 2), (0, 1, 2), (1, 2, 3)
    ):
        starts = window_positions(size, kernel, stride, before, after, dilation, ceil_mode)
        taps = [[t for t in range(f, f + dilation * kernel, dilation) if 0 <= t < size] for f in starts]
        line = f"size {size} kernel {kernel} stride {stride} padding {before}+{after} dilation {dilation}"
        arguments = ("max_pool1d", (1, 1, size), kernel, stride, ((before, after),), dilation, ceil_mode)
        if not starts or not all(taps):
            with pytest.raises(ValueError, match=r"does not fit|nothing but padding"):
                PoolGeometry.of(*arguments)
            continue
        geometry = PoolGeometry.of(*arguments)
        ((first, stop, step),) = geometry.windows()
        assert geometry.out_spatial == (len(starts),), line
        assert [list(range(a, b, step)) for a, b in zip(first, stop)] == taps, line
        ((included,),) = (geometry.divisors(),)
        inside = PoolGeometry.of(*arguments, count_include_pad=False).divisors()
        assert inside == (tuple(len(t) for t in taps),), line
        padded = [[t for t in range(f, f + dilation * kernel, dilation) if t < size + after] for f in starts]
        assert included == tuple(len(t) for t in padded), line
        checked += 1
    assert checked > 1000


def test_divisor_override():
    geometry = PoolGeometry.of("avg_pool2d", (1, 1, 4, 4), 2, divisor_override=np.int64(3))
    assert geometry.divisors() is None
    assert geometry.divisor_override == 3
    assert type(geometry.divisor_override) is int


def test_adaptive_against_enumeration():
    for size, outputs in product(range(1, 20), range(1, 24)):
        geometry = PoolGeometry.adaptive("adaptive_avg_pool1d", (1, 1, size), outputs)
        ((starts, stops, step),) = geometry.windows()
        # Tap t belongs to output o when the intervals [t, t + 1) and [o·S/O, (o + 1)·S/O) overlap.
        taps = [
            [t for t in range(size) if t * outputs < (o + 1) * size and (t + 1) * outputs > o * size]
            for o in range(outputs)
        ]
        assert [list(range(a, b, step)) for a, b in zip(starts, stops)] == taps, (size, outputs)
        assert geometry.divisors() == (tuple(len(t) for t in taps),)
        assert geometry.kernel == (max(len(t) for t in taps),)
        assert geometry.is_adaptive == (size % outputs != 0)


@pytest.mark.parametrize(("wanted", "sizes"), [(None, (6, 9)), ((None, 3), (6, 3)), ([2, None], (2, 9)), (3, (3, 3))])
def test_adaptive_output_sizes(wanted, sizes):
    geometry = PoolGeometry.adaptive("adaptive_max_pool2d", (0, 3, 6, 9), wanted)
    assert geometry.out_spatial == sizes
    if not geometry.is_adaptive:
        step = tuple(size // size_out for size, size_out in zip((6, 9), sizes))
        assert geometry == PoolGeometry.of("max_pool2d", (0, 3, 6, 9), step)


# x, w, stride, padding, dilation, groups
TORCH_CONVOLUTIONS = [
    ((2, 3, 20), (4, 3, 6), 2, 1, 1, 1),
    ((1, 4, 9), (4, 1, 4), 1, "same", 3, 4),
    ((0, 3, 9), (4, 3, 3), 1, 0, 1, 1),
    ((2, 4, 17, 13), (6, 2, 5, 4), (3, 2), (2, 3), (1, 2), 2),
    ((1, 2, 5, 5), (3, 2, 5, 5), 7, 0, 1, 1),
    ((1, 2, 3, 3), (3, 2, 2, 2), 1, 6, 4, 1),
    ((1, 2, 6, 7), (3, 2, 4, 5), 1, "same", 1, 1),
    ((1, 2, 5, 6, 7), (4, 2, 3, 2, 1), (1, 2, 3), (0, 1, 2), 2, 1),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("x", "w", "stride", "padding", "dilation", "groups"), TORCH_CONVOLUTIONS)
def test_convolution_shapes_agree_with_torch(x, w, stride, padding, dilation, groups):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    op = f"conv{len(x) - 2}d"
    conv = getattr(torch.nn.functional, op)
    expected = conv(torch.zeros(x), torch.zeros(w), None, stride, padding, dilation, groups).shape
    assert ConvGeometry.of(op, x, w, stride, padding, dilation, groups).output_shape(x[0]) == tuple(expected)


@pytest.mark.parametrize(
    ("x", "w", "stride", "padding", "output_padding", "groups", "dilation"),
    [
        ((2, 3, 7), (3, 4, 5), 2, 1, 1, 1, 1),
        ((1, 4, 5, 6), (4, 3, 3, 2), (2, 3), (1, 0), (1, 2), 2, 1),
        ((1, 4, 5, 6), (4, 3, 3, 3), 1, 0, 2, 1, 3),
        ((1, 2, 3, 4, 5), (2, 2, 2, 2, 2), 2, 0, 0, 1, (1, 2, 3)),
    ],
)
def test_transposed_shapes_agree_with_torch(x, w, stride, padding, output_padding, groups, dilation):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    op = f"conv_transpose{len(x) - 2}d"
    conv = getattr(torch.nn.functional, op)
    expected = conv(torch.zeros(x), torch.zeros(w), None, stride, padding, output_padding, groups, dilation).shape
    geometry = ConvGeometry.transposed(op, x, w, stride, padding, output_padding, dilation, groups)
    assert geometry.input_shape(x[0]) == tuple(expected)


def test_pool_windows_agree_with_torch():
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    ramp = torch.arange(1.0, 31.0, dtype=torch.float64)
    checked = 0
    for size, kernel, stride, padding, ceil_mode, include in product(
        range(1, 9), range(1, 6), range(1, 5), range(3), (False, True), (False, True)
    ):
        if 2 * padding > kernel or size + 2 * padding < kernel:
            continue
        x = ramp[None, None, :size]
        expected = torch.nn.functional.avg_pool1d(x, kernel, stride, padding, ceil_mode, include)[0, 0]
        geometry = PoolGeometry.of("avg_pool1d", (1, 1, size), kernel, stride, padding, 1, ceil_mode, include)
        ((starts, stops, step),), ((divisors,),) = geometry.windows(), (geometry.divisors(),)
        means = [sum(x[0, 0, a:b:step].tolist()) / n for a, b, n in zip(starts, stops, divisors)]
        np.testing.assert_allclose(means, expected.numpy(), rtol=1e-14)
        checked += 1
    assert checked > 500
