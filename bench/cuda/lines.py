"""What is measured on a GPU: the lines of the CPU, the same with large batches, and the dtypes of tensor cores.

The batches of `cases.csv` keep a processor busy; on a GPU most of them cost little more than their launches. The sets
"large" and "half" have sixteen times the batch, so that the rates of the kernels count.
"""

from __future__ import annotations

from dataclasses import replace

from bench import convolution, layers, networks
from bench.case import Case
from bench.convolution import Convolution
from bench.layers import Layer

TIMES = 16

DENSE = (
    "vgg_256_56",
    "resnet_64_56",
    "resnet_128_28",
    "resnet_512_7",
    "resnet_s2_128_256",
    "pw_256_64_56",
    "dil2_256_56",
    "1d_64_k7",
    "3d_32_32",
)
"""Bound by arithmetic."""

MEMORY = (
    "resnet_7x7s2",
    "convnext_stem_4x4s4",
    "1d_3_8_k7",
    "3d_1_32",
    "sobel_1_2_1024",
    "dw7_96_56",
    "dw3_128_56",
    "1d_dw_k31",
    "3d_dw_64",
    "max_pool_2x2s2",
    "max_pool_3x3s2",
    "avg_pool_3d_2s2",
)
"""Few channels, depthwise, pooling."""

FORMATS = {
    "f16": {"dtype": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "tf32": {"precision": "fast"},
}


def load() -> list[Case]:
    """All lines."""
    usual: list[Case] = [*convolution.load(), *layers.load(), *networks.load()]
    named = {case.name: case for case in usual}
    large = [_larger(named[name]) for name in DENSE + MEMORY]
    half = [
        replace(case, name=f"{case.name}_{suffix}", subset="half", **kind)
        for case in large[: len(DENSE)]
        for suffix, kind in FORMATS.items()
    ]
    return [*usual, *large, *half]


def _larger(case: Case) -> Case:
    names = {"name": f"{case.name}_x{TIMES}", "subset": "large"}
    if isinstance(case, Convolution):
        return replace(case, **names, batch=TIMES * case.batch)
    assert isinstance(case, Layer)
    (batch, *rest), *others = case.operands
    return replace(case, **names, operands=((TIMES * batch, *rest), *others))
