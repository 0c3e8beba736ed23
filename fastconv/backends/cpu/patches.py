"""Kernels as large as their stride: patches that do not overlap, one channel for each position in a patch.

Idea: with kernel = stride and no padding every input position belongs to one output. After one pass that turns
(N, C, *O·k) into (N, C·k…, *O) (space to depth) such a convolution is a 1×1 convolution with the same weights, and its
input gradient (a transposed convolution that upsamples) is a 1×1 convolution and the way back. Loop order: image,
output row, position in the patch; a row of the source stays in the first-level cache while its columns are taken apart.
Floor: one read and one write of the input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.axes import lifted
from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather import copy_strided
from fastconv.backends.cpu.host import flat, kernel, pointer
from fastconv.backends.cpu.simd import interleave
from fastconv.backends.threads import parallel_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_NS_PER_ELEMENT = 0.5


def suits(geometry: ConvGeometry) -> bool:
    """Patches that do not overlap, and more than one channel in a group: depthwise kernels do without."""
    apart = geometry.kernel == geometry.stride and math.prod(geometry.kernel) > 1
    plain = all(d == 1 for d in geometry.dilation) and not any(map(any, geometry.padding))
    return apart and plain and geometry.in_channels > geometry.groups


def pointwise_geometry(geometry: ConvGeometry) -> ConvGeometry:
    """The 1×1 convolution of the patches: a channel for each position in a patch."""
    rank = geometry.rank
    ones = (1,) * rank
    channels = geometry.in_channels * geometry.taps
    nothing = ((0, 0),) * rank
    return ConvGeometry(
        channels, geometry.out_channels, geometry.groups, geometry.out_spatial, ones, ones, ones, nothing
    )


@kernel
def _take_apart(x: Any, patches: Any, sizes: Any, begin: int, end: int) -> None:
    """patches[image][i, j, k][d, h, w] = x[image][d · kd + i, h · kh + j, w · kw + k]; tasks are (image, d)."""
    depth, height, width, kd, kh, kw, od, oh, ow = sizes
    for task in range(begin, end):
        image, d = divmod(task, od)
        for i in range(kd):
            for h in range(oh):
                for j in range(kh):
                    source = ((image * depth + d * kd + i) * height + h * kh + j) * width
                    for k in range(kw):
                        channel = ((image * kd + i) * kh + j) * kw + k
                        copy_strided(patches, ((channel * od + d) * oh + h) * ow, x, source + k, kw, ow)


@kernel
def _put_together(patches: Any, x: Any, sizes: Any, begin: int, end: int) -> None:
    """The way back; positions behind the last whole patch are not written."""
    depth, height, width, kd, kh, kw, od, oh, ow = sizes
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    apart = od * oh * ow
    vectors = ow // lanes if kw in (2, 3, 4) else 0
    for task in range(begin, end):
        image, d = divmod(task, od)
        for i in range(kd):
            for h in range(oh):
                for j in range(kh):
                    target = ((image * depth + d * kd + i) * height + h * kh + j) * width
                    source = (((((image * kd + i) * kh + j) * kw) * od + d) * oh + h) * ow
                    to, origin = pointer(x) + target * size, pointer(patches) + source * size
                    if vectors > 0 and kw == 2:
                        interleave(x, 2, origin, apart, vectors, to)
                    elif vectors > 0 and kw == 3:
                        interleave(x, 3, origin, apart, vectors, to)
                    elif vectors > 0:
                        interleave(x, 4, origin, apart, vectors, to)
                    for k in range(kw):
                        line = np.uintp(source + k * apart)
                        for w in range(np.uintp(vectors * lanes), np.uintp(ow)):
                            x[np.uintp(target + k) + w * np.uintp(kw)] = patches[line + w]


def take_apart(x: Array, geometry: ConvGeometry) -> Array:
    """The patches of x (N, C, *S) as channels: (N, C · taps, *O)."""
    patches = np.empty((len(x), geometry.in_channels * geometry.taps, *geometry.out_spatial), x.dtype)
    source, target, sizes = flat(x), patches.reshape(-1), _sizes(geometry)

    def call(begin: int, end: int) -> None:
        _take_apart(source, target, sizes, begin, end)

    parallel_for(call, len(x) * geometry.in_channels * sizes[6], patches.size * _NS_PER_ELEMENT)
    return patches


def put_together(patches: Array, x: Array, geometry: ConvGeometry) -> None:
    """Write the patches (N, C · taps, *O) to where they lie in x (N, C, *S)."""
    source, target, sizes = flat(patches), x.reshape(-1), _sizes(geometry)

    def call(begin: int, end: int) -> None:
        _put_together(source, target, sizes, begin, end)

    parallel_for(call, len(x) * geometry.in_channels * sizes[6], patches.size * _NS_PER_ELEMENT)


def _sizes(geometry: ConvGeometry) -> tuple[int, ...]:
    triples = (geometry.spatial, geometry.kernel, geometry.out_spatial)
    return tuple(size for values in triples for size in lifted(values, 1))
