"""Convolutional layers: one core of any rank, and a thin face per rank with the signature of PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastconv.geometry import arguments, output_padding_for
from fastconv.nn import init
from fastconv.nn.module import Module, Parameter
from fastconv.ops import convolution, pointwise

Ints = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]


class _ConvNd(Module):
    """What convolutions of every rank and direction share: checked arguments, weight, bias, display.

    Weight and bias start uniform in ±1/sqrt(fan_in), fan_in = weight.shape[1] · taps, as in PyTorch.
    """

    _rank: int
    _transposed: bool
    _operation: Callable[..., Any]
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints,
        padding: Padding,
        output_padding: Ints,
        dilation: Ints,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: str | None,
        dtype: Any,
    ) -> None:
        op, rank = type(self).__name__, self._rank
        self.in_channels = arguments.integer(op, "in_channels", in_channels, 1)
        self.out_channels = arguments.integer(op, "out_channels", out_channels, 1)
        self.groups = arguments.integer(op, "groups", groups, 1)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{op}: groups must divide in_channels and out_channels, but groups={groups} does not divide "
                f"{in_channels} or {out_channels}"
            )
        self.kernel_size = arguments.per_axis(op, "kernel_size", kernel_size, rank, 1)
        self.stride = arguments.per_axis(op, "stride", stride, rank, 1)
        self.dilation = arguments.per_axis(op, "dilation", dilation, rank, 1)
        self.output_padding = arguments.per_axis(op, "output_padding", output_padding, rank, 0)
        self.padding = _checked_padding(op, padding, rank, self.stride)
        modes = ("zeros",) if self._transposed else ("zeros", "reflect", "replicate", "circular")
        if padding_mode not in modes:
            raise ValueError(f"{op}: padding_mode must be one of {', '.join(modes)}, got {padding_mode!r}")
        self.padding_mode = padding_mode
        ends = (self.in_channels, self.out_channels) if self._transposed else (self.out_channels, self.in_channels)
        shape = (ends[0], ends[1] // self.groups, *self.kernel_size)
        bound = init.default_bound(shape[1] * math.prod(self.kernel_size))
        self.weight = init.uniform(op, shape, bound, device, dtype)
        self.bias = init.uniform(op, (self.out_channels,), bound, device, dtype) if bias else None

    def extra_repr(self) -> str:
        none = (0,) * self._rank
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != none:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self._rank:
            text += f", dilation={self.dilation}"
        if self.output_padding != none:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


class _Conv(_ConvNd):
    _transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            0,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        if activation is not None:
            pointwise.check_activation(type(self).__name__, activation)
        self.activation = activation

    def forward(self, input: Any) -> Any:
        return type(self)._operation(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.activation is None else f"{text}, activation={self.activation}"


class _ConvTranspose(_ConvNd):
    _transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        if isinstance(padding, str):
            raise TypeError(f"{type(self).__name__}: padding must be numbers, got {padding!r}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def forward(self, input: Any, output_size: Ints | None = None) -> Any:
        extra = self.output_padding
        if output_size is not None:
            op, window = type(self).__name__, (self.kernel_size, self.stride, self.padding, self.dilation)
            extra = output_padding_for(op, getattr(input, "shape", ()), output_size, *window)
        return type(self)._operation(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            extra,
            self.groups,
            self.dilation,
        )


class Conv1d(_Conv):
    """Convolution of signals (N, in_channels, L) → (N, out_channels, O); arguments as in `Conv2d`."""

    _rank = 1
    _operation = staticmethod(convolution.conv1d)


class Conv2d(_Conv):
    """Convolution of images (N, in_channels, H, W) → (N, out_channels, OH, OW), as `torch.nn.Conv2d`.

    `padding`: an int, one int per axis, one (before, after) pair per axis, "same" or "valid". `padding_mode`: "zeros",
    "reflect", "replicate" or "circular". `activation`: None or a name as in `fastconv.conv2d`, e.g. "relu".
    weight (out_channels, in_channels/groups, kh, kw), bias (out_channels,).

    Raises ValueError and TypeError for wrong arguments (here rather than at the first call), DeviceError for a device
    that is not there.
    """

    _rank = 2
    _operation = staticmethod(convolution.conv2d)


class Conv3d(_Conv):
    """Convolution of volumes (N, in_channels, D, H, W) → (N, out_channels, *O); arguments as in `Conv2d`."""

    _rank = 3
    _operation = staticmethod(convolution.conv3d)


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution (N, in_channels, L) → (N, out_channels, O); arguments as in `ConvTranspose2d`."""

    _rank = 1
    _operation = staticmethod(convolution.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution (N, in_channels, H, W) → (N, out_channels, OH, OW), as `torch.nn.ConvTranspose2d`.

    weight (in_channels, out_channels/groups, kh, kw), bias (out_channels,). `output_padding` adds to one
    side of the output; `layer(x, output_size=...)` takes what gives that size, (OH, OW) or the shape of an array to be
    joined with. Raises as `Conv2d` does.
    """

    _rank = 2
    _operation = staticmethod(convolution.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """Transposed convolution (N, in_channels, D, H, W) → (N, out_channels, *O); arguments as in `ConvTranspose2d`."""

    _rank = 3
    _operation = staticmethod(convolution.conv_transpose3d)


def _checked_padding(op: str, padding: Padding, rank: int, stride: tuple[int, ...]) -> Any:
    """Padding in the form to keep and to show: a word, one int per axis, or one pair per axis."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f'{op}: padding must be "same", "valid" or numbers, got "{padding}"')
        if padding == "same" and stride != (1,) * rank:
            raise ValueError(f'{op}: padding="same" needs stride 1, got stride {stride}')
        return padding
    pairs = arguments.pairs(op, padding, rank)
    symmetric = all(before == after for before, after in pairs)
    return tuple(before for before, _ in pairs) if symmetric else pairs
