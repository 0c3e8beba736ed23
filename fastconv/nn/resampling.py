"""Resampling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.nn.module import Module
from fastconv.ops import resampling

Size = int | Sequence[int]
Factor = float | Sequence[float]


class Upsample(Module):
    """The input at another size: (N, C, *S) → (N, C, *O), as `torch.nn.Upsample`; see `fastconv.interpolate`."""

    def __init__(
        self,
        size: Size | None = None,
        scale_factor: Factor | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        self.size, self.scale_factor, self.mode = size, scale_factor, mode
        self.align_corners, self.recompute_scale_factor = align_corners, recompute_scale_factor

    def forward(self, input: Any) -> Any:
        return resampling.interpolate(
            input, self.size, self.scale_factor, self.mode, self.align_corners, self.recompute_scale_factor
        )

    def extra_repr(self) -> str:
        factor = self.scale_factor
        if factor is None:
            return f"size={self.size}, mode={self.mode!r}"
        numbers = tuple(map(float, factor)) if isinstance(factor, Sequence) else float(factor)
        return f"scale_factor={numbers}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """`Upsample` with mode "nearest"."""

    def __init__(self, size: Size | None = None, scale_factor: Factor | None = None) -> None:
        super().__init__(size, scale_factor)


class UpsamplingBilinear2d(Upsample):
    """`Upsample` with mode "bilinear" and align_corners=True."""

    def __init__(self, size: Size | None = None, scale_factor: Factor | None = None) -> None:
        super().__init__(size, scale_factor, "bilinear", align_corners=True)
