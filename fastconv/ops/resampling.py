"""Resampling: signals, images and volumes to another size, with the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv import backends
from fastconv.autograd import record
from fastconv.geometry import interpolation
from fastconv.ops._arguments import floating


def interpolate(
    input: Any,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Any:
    """The input at another size, (N, C, *S) → (N, C, *O), as `torch.nn.functional.interpolate`.

    Either `size` (one int or one per axis) or `scale_factor` (one number or one per axis) says how large:
    O = size or floor(S · scale_factor). Each axis is resampled for itself. With s = O/S, output o lies among the inputs
    0 ... S − 1 at

        "nearest"                            floor(o / s)
        "nearest-exact"                      floor((o + ½) / s)
        "linear", "bilinear", "trilinear"    (o + ½) / s − ½, between its two neighbours in proportion
        "bicubic"                            the same, by cubic convolution of four neighbours, a = −0.75
        "area"                               the mean of [floor(o·S/O), ceil((o + 1)·S/O)), as `adaptive_avg_pool2d`

    "linear" is for one axis, "bilinear" and "bicubic" for two, "trilinear" for three, the others for any. Outside the
    input its border goes on. With `align_corners` (for the linear modes and "bicubic") the first and last outputs lie
    on the first and last inputs: output o at o · (S − 1) / (O − 1). A `scale_factor` takes the place of s = O/S unless
    `recompute_scale_factor` is set, the mode is "area" or the axis keeps its size.

    Positions are exact where they follow from the sizes, and otherwise computed in float64. PyTorch's are float32: its
    "nearest" takes the input before where o / s is a whole number that float32 misses, and its weights in float32 err
    by about S · 1e-7. An input of weight 0 counts nothing even if it is NaN or infinite, except among the four of
    "bicubic"; PyTorch adds it. The gradient is the exact adjoint.

    Raises TypeError for arguments of a wrong kind, ValueError for wrong numbers, for modes that are unknown or not for
    this input, and for arguments that exclude each other.
    """
    x = floating("interpolate", input=input)
    geometry = interpolation("interpolate", x.shape, size, scale_factor, mode, align_corners, recompute_scale_factor)
    backend = backends.of(x)
    return record(backend.resample(x, geometry), (input,), lambda gy: (backend.resample(gy, geometry.transposed),))
