"""Convolution, transposed convolution and true convolution, with their gradients. One core for every rank.

Symbols: N samples, C input channels, K output channels, G groups, *S input sizes, *O output sizes; for each axis
O = floor((S + p_before + p_after − d·(k − 1) − 1) / s) + 1.

"Convolution" is what networks call so: cross-correlation, y[o] = Σ_i w[i] · x[s·o + d·i − p]. `convolve` is the one of
signal processing, which flips the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from fastconv import backends
from fastconv.autograd import needs_grad, record
from fastconv.geometry import ConvGeometry
from fastconv.ops import pointwise
from fastconv.ops._arguments import floating, ready

Array = Any
Ints = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]


def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> Any:
    """Cross-correlation of signals: input (N, C, L) or (C, L), weight (K, C/groups, k), bias (K,) → (N, K, O).

    Arguments as in `conv2d`.
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> Any:
    """Cross-correlation of images, as `torch.nn.functional.conv2d`.

    Shapes: input (N, C, H, W) or (C, H, W), weight (K, C/groups, kh, kw), bias (K,) → (N, K, OH, OW) or (K, OH, OW).

    `stride` and `dilation`: an int or one int per axis. `padding`: an int, one int per axis, one (before, after) pair
    per axis, "valid", or "same" (stride 1). A tuple of one stands for all axes, as in `numpy.pad`.
    `padding_mode`: "zeros", "reflect", "replicate" or "circular".
    `activation`: the name of a pointwise operation without parameters ("relu", "tanh", ...), applied to the result.

    float32 and float64; sums run in the input's dtype, in one fixed order, so that the result has the same bits
    whatever the batch or the number of threads.

    Raises ValueError for shapes and values, TypeError for kinds and dtypes, DeviceError for mixed devices.
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def conv3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> Any:
    """Cross-correlation of volumes: input (N, C, D, H, W), weight (K, C/groups, kd, kh, kw) → (N, K, OD, OH, OW).

    Arguments as in `conv2d`.
    """
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def conv(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> Any:
    """`conv1d`, `conv2d` or `conv3d`: the weight (K, C/groups, *kernel) tells the number of axes."""
    rank = len(getattr(weight, "shape", ())) - 2
    return _conv("conv", rank, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation)


def convolve(
    input: Any,
    kernel: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Any:
    """True convolution, as in signal processing: `conv` with the kernel flipped in every spatial axis.

    kernel (K, C/groups, *kernel). For one channel and padding k − 1 this is `numpy.convolve` (mode "full"). An even
    kernel with padding="same" has the larger half behind, as in `scipy.ndimage.convolve`; NumPy's "same" has it before.
    """
    floating("convolve", kernel=kernel)  # only to name it in errors: a Tensor is flipped as a Tensor
    axes = tuple(range(2, len(getattr(kernel, "shape", ()))))
    flipped = kernel[(slice(None), slice(None), *[slice(None, None, -1)] * len(axes))] if axes else kernel
    return _conv("convolve", len(axes), input, flipped, bias, stride, padding, dilation, groups, padding_mode, None)


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Any:
    """Transposed convolution of signals: input (N, K, L), weight (K, C/groups, k), bias (C,) → (N, C, O).

    Arguments as in `conv_transpose2d`.
    """
    return _conv_transpose(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Any:
    """Transposed ("fractionally strided") convolution, as `torch.nn.functional.conv_transpose2d`.

    The adjoint of `conv2d` with the same weight: input (N, K, H, W) or (K, H, W), weight (K, C/groups, kh, kw),
    bias (C,) → (N, C, OH, OW) with O = (H − 1)·s − p_before − p_after + d·(k − 1) + output_padding + 1.

    Raises ValueError for shapes and values, TypeError for kinds and dtypes, DeviceError for mixed devices.
    """
    return _conv_transpose(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def conv_transpose3d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Any:
    """Transposed convolution of volumes: input (N, K, D, H, W), weight (K, C/groups, kd, kh, kw) → (N, C, *O).

    Arguments as in `conv_transpose2d`.
    """
    return _conv_transpose(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _conv(
    op: str,
    rank: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Ints,
    padding: Padding,
    dilation: Ints,
    groups: int,
    padding_mode: str,
    activation: str | None,
) -> Any:
    if activation is not None:
        pointwise.check_activation(op, activation)
    plain = ready(input, weight) if bias is None else ready(input, weight, bias)
    x, w, b = (input, weight, bias) if plain else floating(op, input=input, weight=weight, bias=bias)
    batched = x.ndim != rank + 1
    if not batched:
        x = x[None]
    geometry = ConvGeometry.of(
        op, x.shape, w.shape, stride, padding, dilation, groups, None if b is None else b.shape, padding_mode
    )
    recorded = not plain and (needs_grad(input) or needs_grad(weight) or needs_grad(bias))
    if not recorded and padding_mode == "zeros":  # a small call is over before a closure would be made
        y = backends.of(x).conv_forward(x, w, b, geometry, activation)
        y = y if batched else y[0]
        return y if plain else record(y, (input, weight, bias), None)
    if activation not in (None, "relu") and recorded:
        # The gradient of these needs the value before the activation, which the fused form does not keep.
        linear = _conv(op, rank, input, weight, bias, stride, padding, dilation, groups, padding_mode, None)
        return pointwise.apply(activation, linear)
    return _recorded((input, weight, bias), x, w, b, batched, geometry, padding_mode, activation)


def _recorded(
    operands: tuple[Any, Any, Any],
    x: Array,
    w: Array,
    b: Array | None,
    batched: bool,
    geometry: ConvGeometry,
    padding_mode: str,
    activation: str | None,
) -> Any:
    """`_conv` of operands whose arrays have been checked, with its gradient."""
    backend = backends.of(x)
    sides, spatial = geometry.padding, geometry.spatial
    padded = padding_mode != "zeros" and any(map(any, sides))
    if padded:
        x = backend.pad(x, sides, padding_mode)
        geometry = geometry.padded()
    y = backend.conv_forward(x, w, b, geometry, activation)
    wanted = [needs_grad(operand) for operand in operands]

    def backward(gy: Array) -> tuple[Array | None, ...]:
        if not batched:
            gy = gy[None]
        if activation is not None:
            gy = backend.activation_backward(gy, y, y, activation, 0.0)
        gx = gw = gb = None
        if wanted[0]:
            gx = backend.conv_input_grad(gy, w, None, geometry)
            if padded:
                gx = backend.pad_grad(gx, sides, padding_mode, spatial)
            gx = gx if batched else gx[0]
        if wanted[1]:
            gw = backend.conv_weight_grad(gy, x, geometry)
        if wanted[2]:
            gb = backend.channel_sum(gy)
        return gx, gw, gb

    return record(y if batched else y[0], operands, backward)


def _conv_transpose(
    op: str,
    rank: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
) -> Any:
    x, w, b = floating(op, input=input, weight=weight, bias=bias)
    batched = x.ndim != rank + 1
    if not batched:
        x = x[None]
    geometry = ConvGeometry.transposed(
        op, x.shape, w.shape, stride, padding, output_padding, dilation, groups, None if b is None else b.shape
    )
    backend = backends.of(x)
    given = x.shape[2:]
    behind = [(0, out - size) for out, size in zip(geometry.out_spatial, given, strict=True)]
    extended = any(after for _, after in behind)
    if extended:  # an output_padding of at least the stride: the last outputs belong to inputs that are not there
        x = backend.pad(x, behind, "zeros")
    y = backend.conv_input_grad(x, w, b, geometry)
    wanted = needs_grad(input), needs_grad(weight), needs_grad(bias)

    def backward(gy: Array) -> tuple[Array | None, ...]:
        if not batched:
            gy = gy[None]
        gx = gw = gb = None
        if wanted[0]:
            gx = backend.conv_forward(gy, w, None, geometry, None)
            if extended:
                gx = backend.pad_grad(gx, behind, "zeros", given)
            gx = gx if batched else gx[0]
        if wanted[1]:
            gw = backend.conv_weight_grad(x, gy, geometry)
        if wanted[2]:
            gb = backend.channel_sum(gy)
        return gx, gw, gb

    return record(y if batched else y[0], (input, weight, bias), backward)


class Explanation(NamedTuple):
    """What a convolution call will do: the algorithm of each direction and the work of the forward pass."""

    forward: str
    input_grad: str
    weight_grad: str
    multiply_adds: int
    output_shape: tuple[int, ...]


def explain(
    input: Any,
    weight: Any,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Explanation:
    """Which algorithm `conv` takes for these arrays, forward and for both gradients, without computing anything.

    input (N, C, *S), weight (K, C/groups, *kernel); other arguments as in `conv2d`.
    """
    x, w = floating("explain", input=input, weight=weight)
    if x.ndim == w.ndim - 1:
        x = x[None]
    geometry = ConvGeometry.of("explain", x.shape, w.shape, stride, padding, dilation, groups)
    name = partial(backends.of(x).explain_conv, geometry, x.dtype)
    return Explanation(
        name("forward"),
        name("input_grad"),
        name("weight_grad"),
        geometry.multiply_adds(x.shape[0]),
        geometry.output_shape(x.shape[0]),
    )
