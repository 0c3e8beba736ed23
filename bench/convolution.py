"""Convolutions: the lines of `cases.csv`, six of them in float64 as well."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

import fastconv as fc
from bench.case import Case, Prepare, dtype_named
from fastconv import backends
from fastconv.geometry import ConvGeometry

TABLE = Path(__file__).with_name("cases.csv")
FLOAT64 = ("resnet_64_56", "resnet_7x7s2", "pw_256_64_56", "dw3_128_56", "1d_3_8_k7", "3d_32_32")

TOLERANCES = {"float64": 1e-12, "float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Convolution(Case):
    """A convolution of a batch with bias; backward gives the gradients in input, weight and bias."""

    batch: int
    geometry: ConvGeometry
    dtype: str = "float32"
    precision: str = "default"

    @property
    def symmetric_padding(self) -> tuple[int, ...]:
        """One number for each axis, the only form of padding that every competitor takes."""
        return tuple(before for before, _ in self.geometry.padding)

    def flops(self, direction: str) -> int:
        forward = 2 * self.geometry.multiply_adds(self.batch)
        return forward if direction == "forward" else 2 * forward

    def traffic(self, direction: str) -> int:
        image, output = prod(self.geometry.input_shape(self.batch)), prod(self.geometry.output_shape(self.batch))
        weights = self.geometry.parameters()
        elements = image + weights + output if direction == "forward" else 2 * (image + weights) + output
        return self.itemsize * elements

    def tolerance(self, direction: str) -> float:
        return TOLERANCES["tf32" if self.precision == "fast" else self.dtype]

    def algorithm(self, direction: str, device: str) -> str:
        operations, explain = ("forward",), backends.get(device).explain_conv
        if direction == "backward":
            operations = ("input_grad", "weight_grad")
        with fc.precision(self.precision):
            return ", ".join(explain(self.geometry, dtype_named(self.dtype), operation) for operation in operations)

    @property
    def depthwise(self) -> bool:  # type: ignore[override]
        return 1 < self.geometry.in_channels == self.geometry.groups

    def prepare(self, direction: str) -> Prepare:
        operands = Operands.of(self)
        return lambda competitor: competitor.convolution(self, direction, operands)


@dataclass(frozen=True)
class Operands:
    """What one convolution works on: standard normal numbers, the same for every competitor."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    grad_output: np.ndarray

    @classmethod
    def of(cls, case: Convolution) -> Operands:
        generator, geometry = np.random.default_rng(0), case.geometry
        shapes = (
            geometry.input_shape(case.batch),
            geometry.weight_shape,
            (geometry.out_channels,),
            geometry.output_shape(case.batch),
        )
        drawn = "float64" if case.dtype == "float64" else "float32"
        dtype = dtype_named(case.dtype)
        return cls(*(generator.standard_normal(shape, dtype=drawn).astype(dtype, copy=False) for shape in shapes))


def load() -> list[Convolution]:
    """All convolutions: those of the table, then the float64 ones, which belong to the set "extended"."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        table = [_case(row) for row in csv.DictReader(file)]
    doubles = [
        replace(case, name=f"{case.name}_f64", subset="extended", dtype="float64")
        for case in table
        if case.name in FLOAT64
    ]
    return table + doubles


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x"))


def _case(row: dict[str, str]) -> Convolution:
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
    return Convolution(row["name"], row["set"], ("forward", "backward"), batch, geometry)
