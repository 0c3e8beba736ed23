"""Pooling layers: a core per kind of pooling, and a thin face per rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastconv.nn.module import Module
from fastconv.ops import pooling

Ints = int | Sequence[int]
OutputSize = int | None | Sequence[int | None]


class _MaxPool(Module):
    _operation: Callable[..., Any]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.dilation = padding, dilation
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Any) -> Any:
        return type(self)._operation(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}"
        )


class _AvgPool(Module):
    _operation: Callable[..., Any]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        dilation: Ints = 1,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode = padding, ceil_mode
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override
        self.dilation = dilation

    def forward(self, input: Any) -> Any:
        return type(self)._operation(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
            self.dilation,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _SumPool(Module):
    _operation: Callable[..., Any]

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        dilation: Ints = 1,
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode, self.dilation = padding, ceil_mode, dilation

    def forward(self, input: Any) -> Any:
        return type(self)._operation(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.dilation)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _AdaptiveAvgPool(Module):
    _operation: Callable[..., Any]

    def __init__(self, output_size: OutputSize) -> None:
        self.output_size = output_size

    def forward(self, input: Any) -> Any:
        return type(self)._operation(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class _AdaptiveMaxPool(_AdaptiveAvgPool):
    def __init__(self, output_size: OutputSize, return_indices: bool = False) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices

    def forward(self, input: Any) -> Any:
        return type(self)._operation(input, self.output_size, self.return_indices)


class MaxPool1d(_MaxPool):
    """The largest value of each window: (N, C, L) → (N, C, O), as `torch.nn.MaxPool1d`."""

    _operation = staticmethod(pooling.max_pool1d)


class MaxPool2d(_MaxPool):
    """The largest value of each window: (N, C, H, W) → (N, C, OH, OW), as `torch.nn.MaxPool2d`."""

    _operation = staticmethod(pooling.max_pool2d)


class MaxPool3d(_MaxPool):
    """The largest value of each window: (N, C, D, H, W) → (N, C, *O), as `torch.nn.MaxPool3d`."""

    _operation = staticmethod(pooling.max_pool3d)


class AvgPool1d(_AvgPool):
    """The mean of each window: (N, C, L) → (N, C, O), as `torch.nn.AvgPool1d`."""

    _operation = staticmethod(pooling.avg_pool1d)


class AvgPool2d(_AvgPool):
    """The mean of each window: (N, C, H, W) → (N, C, OH, OW), as `torch.nn.AvgPool2d`."""

    _operation = staticmethod(pooling.avg_pool2d)


class AvgPool3d(_AvgPool):
    """The mean of each window: (N, C, D, H, W) → (N, C, *O), as `torch.nn.AvgPool3d`."""

    _operation = staticmethod(pooling.avg_pool3d)


class SumPool1d(_SumPool):
    """The sum of each window: (N, C, L) → (N, C, O)."""

    _operation = staticmethod(pooling.sum_pool1d)


class SumPool2d(_SumPool):
    """The sum of each window: (N, C, H, W) → (N, C, OH, OW)."""

    _operation = staticmethod(pooling.sum_pool2d)


class SumPool3d(_SumPool):
    """The sum of each window: (N, C, D, H, W) → (N, C, *O)."""

    _operation = staticmethod(pooling.sum_pool3d)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """The means of `output_size` windows that cover the input: (N, C, L) → (N, C, O)."""

    _operation = staticmethod(pooling.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """The means of `output_size` windows that cover the input: (N, C, H, W) → (N, C, OH, OW)."""

    _operation = staticmethod(pooling.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """The means of `output_size` windows that cover the input: (N, C, D, H, W) → (N, C, *O)."""

    _operation = staticmethod(pooling.adaptive_avg_pool3d)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """The largest values of `output_size` windows that cover it: (N, C, L) → (N, C, O)."""

    _operation = staticmethod(pooling.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """The largest values of `output_size` windows that cover it: (N, C, H, W) → (N, C, OH, OW)."""

    _operation = staticmethod(pooling.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """The largest values of `output_size` windows that cover it: (N, C, D, H, W) → (N, C, *O)."""

    _operation = staticmethod(pooling.adaptive_max_pool3d)
