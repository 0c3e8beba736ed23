"""The gradients of convolution on arrays, as in `torch.nn.grad`: exact adjoints, as inverse problems need them too.

With A the linear map x ↦ conv(x, w), `convNd_input` computes Aᵀ gy; with B the linear map w ↦ conv(x, w),
`convNd_weight` computes Bᵀ gy. So ⟨conv(x, w), gy⟩ = ⟨x, Aᵀ gy⟩ = ⟨w, Bᵀ gy⟩ up to rounding. Padding is zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv import backends
from fastconv.geometry import ConvGeometry
from fastconv.ops._arguments import floating, ready
from fastconv.ops.convolution import Ints, Padding

Array = Any


def conv1d_input(
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Gradient of `conv1d` in its input of shape `input_size` (N, C, L); arguments as in `conv2d_input`."""
    return _input("grad.conv1d_input", input_size, weight, grad_output, stride, padding, dilation, groups)


def conv2d_input(
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Gradient of `conv2d` in its input of shape `input_size` (N, C, H, W).

    weight (K, C/groups, kh, kw), grad_output (N, K, OH, OW); the other arguments are those of the convolution.
    Raises ValueError if `grad_output` does not have the shape of that convolution's output.
    """
    return _input("grad.conv2d_input", input_size, weight, grad_output, stride, padding, dilation, groups)


def conv3d_input(
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Gradient of `conv3d` in its input of shape `input_size` (N, C, D, H, W); arguments as in `conv2d_input`."""
    return _input("grad.conv3d_input", input_size, weight, grad_output, stride, padding, dilation, groups)


def conv1d_weight(
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Gradient of `conv1d` in its weight of shape `weight_size` (K, C/groups, k); arguments as in `conv2d_weight`."""
    return _weight("grad.conv1d_weight", input, weight_size, grad_output, stride, padding, dilation, groups)


def conv2d_weight(
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Gradient of `conv2d` in its weight of shape `weight_size` (K, C/groups, kh, kw).

    input (N, C, H, W), grad_output (N, K, OH, OW); the other arguments are those of the convolution.
    Raises ValueError if `grad_output` does not have the shape of that convolution's output.
    """
    return _weight("grad.conv2d_weight", input, weight_size, grad_output, stride, padding, dilation, groups)


def conv3d_weight(
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Array:
    """Gradient of `conv3d` in its weight of shape `weight_size` (K, C/groups, *k); arguments as in `conv2d_weight`."""
    return _weight("grad.conv3d_weight", input, weight_size, grad_output, stride, padding, dilation, groups)


def _input(
    op: str,
    input_size: Sequence[int],
    weight: Any,
    grad_output: Any,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
) -> Array:
    w, gy = weight, grad_output
    if not ready(w, gy):
        w, gy = floating(op, weight=weight, grad_output=grad_output)
    geometry = ConvGeometry.for_input_grad(op, input_size, w.shape, gy.shape, stride, padding, dilation, groups)
    return backends.of(gy).conv_input_grad(gy, w, None, geometry)


def _weight(
    op: str,
    input: Any,
    weight_size: Sequence[int],
    grad_output: Any,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
) -> Array:
    x, gy = input, grad_output
    if not ready(x, gy):
        x, gy = floating(op, input=input, grad_output=grad_output)
    geometry = ConvGeometry.for_weight_grad(op, x.shape, weight_size, gy.shape, stride, padding, dilation, groups)
    return backends.of(x).conv_weight_grad(gy, x, geometry)
