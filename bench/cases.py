"""The table of convolutions that are timed, with what each costs at least: arithmetic and memory traffic."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from fastconv.geometry import ConvGeometry

TABLE = Path(__file__).with_name("cases.csv")
ITEMSIZE = 4  # everything is timed in float32
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Case:
    """One line of the table: a convolution of a batch, and the subset it belongs to ("first" or "extended")."""

    name: str
    batch: int
    subset: str
    geometry: ConvGeometry

    @property
    def symmetric_padding(self) -> tuple[int, ...]:
        """One number for each axis, the only form of padding that every competitor takes."""
        return tuple(before for before, _ in self.geometry.padding)

    def flops(self, direction: str) -> int:
        """Floating-point operations of the direct method, two for each multiply-add; backward is two convolutions."""
        forward = 2 * self.geometry.multiply_adds(self.batch)
        return forward if direction == "forward" else 2 * forward

    def traffic(self, direction: str) -> int:
        """Bytes that must move when every operand is read once and every result is written once."""
        image, output = prod(self.geometry.input_shape(self.batch)), prod(self.geometry.output_shape(self.batch))
        weights = self.geometry.parameters()
        elements = image + weights + output if direction == "forward" else 2 * (image + weights) + output
        return ITEMSIZE * elements


@dataclass(frozen=True)
class Operands:
    """What one case works on: standard normal float32 arrays, the same for every competitor."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    grad_output: np.ndarray

    @classmethod
    def of(cls, case: Case) -> Operands:
        generator, geometry = np.random.default_rng(0), case.geometry
        shapes = (
            geometry.input_shape(case.batch),
            geometry.weight_shape,
            (geometry.out_channels,),
            geometry.output_shape(case.batch),
        )
        return cls(*(generator.standard_normal(shape, dtype=np.float32) for shape in shapes))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _case(row: dict[str, str]) -> Case:
    spatial, kernel, groups = _sizes(row["spatial"]), _sizes(row["kernel"]), int(row["groups"])
    batch, padding = int(row["batch"]), _sizes(row["padding"])
    geometry = ConvGeometry.of(
        f"conv{len(spatial)}d",
        (batch, int(row["in_channels"]), *spatial),
        (int(row["out_channels"]), int(row["in_channels"]) // groups, *kernel),
        stride=int(row["stride"]),
        padding=padding if len(padding) > 1 else padding[0],
        dilation=int(row["dilation"]),
        groups=groups,
    )
    return Case(row["name"], batch, row["set"], geometry)


def load(which: str = "all", name_contains: Sequence[str] = ("",)) -> list[Case]:
    """The cases of a set ("first", "extended", "all") whose name contains one of the given strings."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        cases = [_case(row) for row in csv.DictReader(file)]
    chosen = [case for case in cases if which in (case.subset, "all")]
    return [case for case in chosen if any(part in case.name for part in name_contains)]
