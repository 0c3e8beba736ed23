"""The one table of convolution problems, as lines of text. Every suite reads it; a failing test prints its line.

A line is words of a letter and numbers, in any order:

    n2         batch (0 allowed)
    c32 k16    input, output channels
    l100       input size, one axis; hw9x7 two, dhw5x6x7 three (one number stands for all: hw9, dhw5)
    f3 f3x5    kernel
    s2 s2x1    stride (default 1)
    d2 d2x1    dilation (default 1)
    p1 p1x2    padding (default 0); sides of an axis differ: p0:2, p0:2x1:1
    g4         groups (default 1)

Where an axis has no number of its own the last one given counts. A fixed bug adds its line.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

LINES = """
n1 c1 l1 k1 f1
n1 c1 l7 k1 f3
n2 c3 l20 k4 f6 s2 p1
n1 c2 l5 k3 f5
n1 c2 l5 k2 f2 p5
n3 c4 l33 k5 f4 p2:1
n2 c5 l31 k7 f3 s5
n2 c3 l16 k8 f3 p1
n2 c3 l17 k8 f3 p1
n2 c3 l48 k8 f5 p2
n2 c3 l49 k9 f5 p2
n1 c4 l64 k6 f7 p3
n1 c4 l65 k6 f7 p3 s2
n1 c1 l1500 k2 f31 p15
n2 c6 l900 k6 f31 p15 g6
n1 c8 l700 k4 f101 p50
n1 c4 l2100 k4 f7 p3 s4
n1 c8 l600 k8 f3 p64 d64
n1 c3 l40 k2 f3 d30 p25
n1 c24 l33 k24 f2 d50 p25
n2 c3 l2 k5 f2 d5 p3
n2 c3 l25 k4 f3 s7 p0:6
n1 c2 l9 k2 f2 s1 p0:1
n1 c2 l9 k2 f2 s1 p1:0
n1 c2 l3 k2 f3 p9
n0 c3 l12 k4 f3 p1
n1 c64 l10 k33 f1
n5 c2 l13 k6 f4 s3 d2 p3 g2
n1 c3 l30 k3 f2 s11
n2 c6 l11 k4 f3 p1 g2

n1 c1 hw1 k1 f1
n1 c1 hw1 k1 f3 p1
n1 c1 hw8 k8 f3
n2 c3 hw9x7 k4 f3 p1
n2 c3 hw9x7 k4 f2
n1 c3 hw10x13 k5 f4x3 p2x1
n2 c4 hw7 k3 f7
n1 c4 hw5x6 k3 f5x6
n2 c32 hw41x37 k16 f3x5 s2 p1
n1 c3 hw32 k10 f5 p2
n1 c3 hw35x41 k12 f11 s4
n2 c3 hw30x27 k16 f7 s2 p3
n1 c3 hw28 k24 f4 s4
n2 c3 hw9x11 k5 f2x3 s2x3
n1 c4 hw8x35 k6 f4 s4 g2
n2 c150 hw5 k16 f1 g2
n2 c2 dhw4x6x20 k3 f2 s2
n2 c7 hw4x42 k9 f2 s2
n1 c5 hw7x60 k4 f3x4 s3x4
n1 c2 l37 k3 f5 s5
n1 c26 hw25 k26 f3 d9 p9
n2 c64 dhw2x14x14 k64 f1x3x3 s2x1x1 p0x1x1
n2 c96 hw31x38 k96 f5 s2 p2
n1 c32 hw64x61 k40 f4 s2 p1
n2 c3 hw120 k32 f7 s2 p3
n2 c128 hw28 k128 f3 s2 p1
n1 c24 l1200 k48 f7 s2 p3
n2 c24 hw14 k30 f3 d6 p6
n1 c24 hw7x9 k24 f3 d4x6 p4x6
n2 c24 hw15 k25 f2 d18 p9
n2 c16 hw9 k20 f3 s2 p1
n1 c5 hw13x11 k7 f3x2 s2x3 p1x0 d1x2
n1 c2 hw12 k3 f2 s5
n1 c2 hw11x12 k3 f3 s4x5 p2
n1 c3 hw19 k3 f3 s16
n1 c4 hw6 k4 f3 d2 p2
n1 c4 hw6 k4 f3 d5 p5
n1 c2 hw5 k3 f3 d7 p7
n2 c2 hw6x3 k3 f1x2 d1x5 p0x3
n1 c3 hw33 k5 f3 d12 p12
n9 c5 hw4x5 k9 f3 d6 p6
n9 c32 hw5x7 k16 f3x2 s1x3 p1 g2
n1 c50 hw33x23 k7 f4x2 s3 p2x8:0
n5 c16 l9 k8 f3 p2 s2
n2 c2 hw8x9 k2 f3 d3x1 p3x1 s2x1
n2 c4 hw10 k6 f3 p1 g2
n2 c6 hw9x8 k9 f3 s2 p1 g3
n1 c32 hw14 k32 f3 p1 g8
n1 c12 hw17 k12 f3 p1 g12
n2 c5 hw11x9 k15 f3 p1 g5
n1 c6 hw15x13 k12 f5 s2 p2 g6
n1 c16 hw21 k16 f7 p3 g16
n2 c7 hw16 k7 f3 s2 p1 g7
n1 c8 hw9 k8 f3 d2 p2 g8
n1 c2 hw9x8 k3 f3 p0:2x1:1
n1 c2 hw9x8 k3 f3 p2:0x0:3
n1 c2 hw8x9 k3 f4 p1:2
n1 c3 hw8 k3 f3 s2 p0:1
n1 c2 hw4x5 k3 f3 p4
n1 c2 hw2x3 k3 f2x3 p5x7 s2
n1 c1 hw3 k2 f2 p1 s4 d3
n1 c3 hw8 k1 f1 p2
n2 c3 hw8 k4 f1 s2
n2 c8 hw11x12 k6 f1 s2x5 g2
n2 c72 hw90x86 k24 f1
n1 c33 hw15 k20 f1 s2
n2 c17 hw6x5 k19 f1
n1 c48 hw16 k24 f1
n1 c24 hw7 k64 f1
n2 c8 hw9x11 k12 f1 g4
n1 c130 hw5 k3 f3 p1
n1 c1 hw12 k65 f3 p1
n2 c9 hw7 k17 f3 p1
n2 c40 hw7 k40 f3 p1
n16 c20 hw4 k36 f3 p1
n33 c3 hw6x5 k8 f3 p1
n64 c2 hw3 k3 f2
n2 c33 hw3 k70 f3 p1
n3 c16 hw17x6 k19 f3 p0:2x2:1
n2 c36 hw9x11 k32 f3 g2
n1 c17 hw3x40 k16 f3
n1 c20 hw5 k16 f3 p3
n0 c16 hw8 k16 f3 p1
n2 c18 hw13x11 k16 f3 p2 d2
n3 c16 hw7x9 k16 f3 p3 d3
n2 c16 hw6x7 k17 f3 d3x1 p3x1
n2 c5 l37 k5 f4 s3 p2 g5
n1 c3 l70 k6 f9 p4 d2 g3
n2 c8 hw9 k8 f1 g8
n1 c4 hw6x35 k4 f5 d3 p6 g4
n1 c4 hw33x34 k8 f4 s3x2 p0:3 g4
n2 c3 dhw5x6x20 k6 f2x3x4 s1x2x1 p1 g3
n1 c3 hw17x15 k4 f3 p1
n1 c3 hw15x16 k4 f3 p1
n1 c3 hw16x17 k4 f3 p1
n1 c3 hw4x47 k8 f3 p1
n1 c3 hw4x48 k8 f3 p1
n1 c3 hw4x49 k8 f3 p1
n1 c2 hw3x63 k9 f3 p1
n1 c2 hw3x65 k9 f3
n1 c2 hw5x128 k8 f3 p1
n1 c2 hw1x300 k3 f1x9 p0x4
n1 c2 hw300x1 k3 f9x1 p4x0
n1 c64 hw20x60 k16 f3 p1
n1 c1 hw90x100 k2 f3 p1
n1 c16 hw30x200 k3 f5 p2
n0 c3 hw8 k5 f3
n0 c3 hw8 k4 f3 s2 p1

n1 c1 dhw1 k1 f1
n1 c1 dhw4x5x6 k2 f3
n2 c3 dhw5x6x7 k4 f3 p1
n1 c2 dhw4x5x6 k3 f2x3x1 p1x0x2
n1 c2 dhw3x4x5 k3 f3x4x5
n1 c3 dhw7x6x9 k5 f3 s2 p1
n1 c2 dhw5x9x8 k3 f2 s3x1x4 p1x2x0
n2 c4 dhw7x5x9 k6 f2x1x2 s3x2x2 g2
n1 c2 dhw6 k3 f3 d2x3x1 p2x3x1
n1 c2 dhw7x8x9 k3 f2 s3x4x5 p1
n2 c3 dhw3x2x4 k4 f1x2x1 s2
n1 c2 dhw3 k2 f3 d4 p4
n7 c2 dhw3 k2 f3 d4 p4
n1 c4 dhw4x6x5 k6 f3 p1 g2
n1 c6 dhw5x4x6 k6 f3 p1 g6
n1 c3 dhw4x5x4 k6 f3 s2 p1 g3
n1 c2 dhw4x3x5 k2 f2 p0:1x2:0x1:1
n1 c2 dhw2 k3 f2 p3
n2 c9 dhw3x4x5 k11 f1
n1 c8 dhw8 k8 f1x3x3 p0x1x1
n1 c1 dhw12x16x17 k8 f3 p1
n1 c8 dhw9x10x16 k9 f3 p1
n1 c3 dhw10x9x12 k4 f5 p2
n4 c8 dhw3 k34 f2 p1
n0 c2 dhw4 k3 f3 p1
"""

LARGE_LINES = """
n8 c16 hw28 k32 f3 p1
n2 c64 hw28 k48 f3 p1
n8 c56 hw7 k72 f3 p1
n4 c64 hw9 k70 f3 p1
n8 c100 hw8 k41 f3 p1
n2 c128 hw29x31 k128 f3 p5x6 d5x6 g2
n4 c128 hw14 k64 f1
n9 c256 hw7 k100 f1
n2 c3 hw96 k32 f7 s2 p3
n2 c3 hw115 k32 f11 s4
n3 c40 hw33x29 k24 f3 s2 p1
n4 c48 hw40 k48 f7 p3 g48
n1 c32 hw50x64 k32 f3 p4 d4
n1 c6 hw200x210 k5 f5
n8 c3 l3001 k8 f7 p3
n2 c32 l3000 k32 f7 p3
n2 c32 l3000 k32 f31 p15 g32
n1 c4 l40000 k4 f9 s2 p4
n1 c8 dhw20 k16 f3 p1
n1 c1 dhw32 k16 f3 p1
n2 c16 dhw16x15x18 k16 f3 p1 g16
n2 c16 dhw14x15x18 k20 f3 s2 p1
n2 c16 l1500 k17 f128 p64:63
n1 c1 l30000 k2 f601 p300
n1 c8 hw150x140 k9 f15 p7
n1 c24 l9000 k16 f5 s2 d2 p4
n1 c16 l3000 k8 f2 d2500 p2600
n1 c48 hw33 k40 f3 d12 p12
n1 c16 dhw4x40x61 k16 f3x3x2 s1x2x3 p1
"""
"""Work that is cut into several pieces: boxes, slices of a batch, threads."""


@dataclass(frozen=True)
class Problem:
    """One line, with what follows from it."""

    line: str
    batch: int
    in_channels: int
    out_channels: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def __str__(self) -> str:
        return self.line

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def window(self) -> dict:
        """The keyword arguments that convolution, its gradients and the oracle share."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def symmetric(self) -> bool:
        return all(before == after for before, after in self.padding)

    @property
    def out_spatial(self) -> tuple[int, ...]:
        axes = zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation)
        return tuple((size + sum(sides) - d * (k - 1) - 1) // s + 1 for size, k, s, sides, d in axes)

    @property
    def unused(self) -> tuple[int, ...]:
        """Input positions at the end of each axis that no window reaches: the transposed `output_padding`."""
        axes = zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation)
        return tuple((size + sum(sides) - d * (k - 1) - 1) % s for size, k, s, sides, d in axes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.spatial)

    @property
    def w_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.out_spatial)

    @property
    def multiply_adds(self) -> int:
        """Products of one forward pass."""
        return prod(self.y_shape) * prod(self.w_shape[1:])

    @property
    def forward_terms(self) -> int:
        """Products that are summed for one output, bias included; likewise for the gradients below."""
        return prod(self.w_shape[1:]) + 1

    @property
    def input_grad_terms(self) -> int:
        return self.out_channels // self.groups * prod(self.kernel) + 1

    @property
    def weight_grad_terms(self) -> int:
        return self.batch * prod(self.out_spatial)

    def integers(self, dtype="float64"):
        """x, w, b, gy of small integers: every sum of the problem is exact, even in float32."""
        shapes, rng = self._shapes(), self._generator()
        assert 9 * max(self.forward_terms, self.input_grad_terms, self.weight_grad_terms) < 2**24
        return Arrays(*(rng.integers(-3, 4, shape).astype(dtype) for shape in shapes))

    def normal(self, dtype="float64"):
        """x, w, b, gy drawn from the standard normal distribution."""
        shapes, rng = self._shapes(), self._generator()
        return Arrays(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))

    def _shapes(self):
        return self.x_shape, self.w_shape, (self.out_channels,), self.y_shape

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.line.encode()))


@dataclass(frozen=True)
class Arrays:
    """What a problem works on."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray
    gy: np.ndarray


@cache
def parse(line: str) -> Problem:
    """A line of the table as a Problem; ValueError names the word that is not understood."""
    words = {}
    for word in line.split():
        found = re.fullmatch(r"(n|c|k|l|hw|dhw|f|s|p|d|g)(\d+(?::\d+)?(?:x\d+(?::\d+)?)*)", word)
        if not found or found[1] in words:
            raise ValueError(f"{word!r} in {line!r}")
        words[found[1]] = found[2].split("x")
    axes = next(name for name in ("l", "hw", "dhw") if name in words)

    def numbers(name: str, default: str) -> tuple[int, ...]:
        given = words.get(name, [default])
        return tuple(int(number) for number in given + given[-1:] * (len(axes) - len(given)))

    sides = words.get("p", ["0"])
    sides = [tuple(int(side) for side in text.split(":")) for text in sides + sides[-1:] * (len(axes) - len(sides))]
    return Problem(
        line,
        *(int(words[name][0]) for name in "nck"),
        numbers(axes, ""),
        numbers("f", ""),
        numbers("s", "1"),
        tuple((side[0], side[-1]) for side in sides),
        numbers("d", "1"),
        int(words.get("g", ["1"])[0]),
    )


PROBLEMS = [parse(line) for line in LINES.split("\n") if line]
LARGE = [parse(line) for line in LARGE_LINES.split("\n") if line]
