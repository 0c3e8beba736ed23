"""Batch, instance, group and layer normalisation; what has faces for each rank differs in the inputs that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fastconv import backends
from fastconv.autograd import to_device
from fastconv.geometry import arguments
from fastconv.nn import init
from fastconv.nn.module import Module, floating_dtype
from fastconv.ops import normalisation


class _ChannelNorm(Module):
    """With a weight, a bias and running statistics for each channel, as far as they are asked for."""

    _axes: ClassVar[dict[int, str]]  # the inputs it takes: number of axes, and how they are written
    running_mean: Any = None
    running_var: Any = None
    num_batches_tracked: Any = None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: str | None,
        dtype: Any,
    ) -> None:
        op = type(self).__name__
        self.num_features = arguments.integer(op, "num_features", num_features, 1)
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        shape = (self.num_features,)
        self.weight = init.constant(op, shape, 1, device, dtype) if affine else None
        self.bias = init.constant(op, shape, 0, device, dtype) if affine else None
        if track_running_stats:
            target = floating_dtype(op, dtype)
            place = device or "cpu"
            self.register_buffer("running_mean", to_device(np.zeros(shape, target), place))
            self.register_buffer("running_var", to_device(np.ones(shape, target), place))
            self.register_buffer("num_batches_tracked", to_device(np.zeros((), np.int64), place))

    def _check_axes(self, input: Any) -> None:
        if len(input.shape) not in self._axes:
            forms = " or ".join(self._axes.values())
            raise ValueError(f"{type(self).__name__}: input must be {forms}, got input shape {tuple(input.shape)}")

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class _BatchNorm(_ChannelNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)

    def forward(self, input: Any) -> Any:
        self._check_axes(input)
        updates = self.training and self.num_batches_tracked is not None
        momentum = self.momentum
        if momentum is None:  # the plain average of all batches so far
            momentum = 1 / (int(self.num_batches_tracked) + 1) if updates else 0.0
        output = normalisation.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum,
            self.eps,
        )
        if updates:
            with backends.on(self.num_batches_tracked):
                self.num_batches_tracked += 1
        return output


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L); arguments as in `BatchNorm2d`."""

    _axes: ClassVar = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W), as `torch.nn.BatchNorm2d`: (x − mean) / sqrt(var + eps) · weight + bias.

    In training, mean and variance are those of the batch, per channel, and the running ones move towards them:
    running ← (1 − momentum) · running + momentum · batch, the running variance being the unbiased one
    (`momentum=None`: the average of all batches). In evaluation the running ones are used. Ioffe and Szegedy 2015.
    """

    _axes: ClassVar = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of (N, C, D, H, W); arguments as in `BatchNorm2d`."""

    _axes: ClassVar = {5: "(N, C, D, H, W)"}


class _InstanceNorm(_ChannelNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)

    def forward(self, input: Any) -> Any:
        self._check_axes(input)
        batch = len(input.shape) == max(self._axes)
        output = normalisation.instance_norm(
            input if batch else input.reshape(1, *input.shape),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )
        return output if batch else output.reshape(*input.shape)


class InstanceNorm1d(_InstanceNorm):
    """Instance normalisation of (N, C, L) or (C, L); arguments as in `InstanceNorm2d`."""

    _axes: ClassVar = {2: "(C, L)", 3: "(N, C, L)"}


class InstanceNorm2d(_InstanceNorm):
    """Instance normalisation of (N, C, H, W) or (C, H, W), as `torch.nn.InstanceNorm2d`.

    (x − mean) / sqrt(var + eps) · weight + bias with mean and variance of each channel of each sample. Weight and bias
    are learned with `affine=True` only. With `track_running_stats=True`, running averages of both are kept in training
    (running ← (1 − momentum) · running + momentum · average over the batch, of unbiased variances; unchanged with
    `momentum=None`) and take their place in evaluation. Ulyanov, Vedaldi and Lempitsky 2016.
    """

    _axes: ClassVar = {3: "(C, H, W)", 4: "(N, C, H, W)"}


class InstanceNorm3d(_InstanceNorm):
    """Instance normalisation of (N, C, D, H, W) or (C, D, H, W); arguments as in `InstanceNorm2d`."""

    _axes: ClassVar = {4: "(C, D, H, W)", 5: "(N, C, D, H, W)"}


class GroupNorm(Module):
    """Group normalisation of (N, C, *S), as `torch.nn.GroupNorm`: (x − mean) / sqrt(var + eps) · weight + bias.

    Mean and variance are those of num_channels / num_groups neighbouring channels of each sample; weight and bias (C,)
    are learned unless `affine=False`. Wu and He 2018.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.num_groups = arguments.integer("GroupNorm", "num_groups", num_groups, 1)
        self.num_channels = arguments.integer("GroupNorm", "num_channels", num_channels, 1)
        if self.num_channels % self.num_groups:
            raise ValueError(f"GroupNorm: num_groups={num_groups} does not divide num_channels={num_channels}")
        self.eps, self.affine = eps, affine
        shape = (self.num_channels,)
        self.weight = init.constant("GroupNorm", shape, 1, device, dtype) if affine else None
        self.bias = init.constant("GroupNorm", shape, 0, device, dtype) if affine else None

    def forward(self, input: Any) -> Any:
        return normalisation.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class LayerNorm(Module):
    """Layer normalisation over the last axes, as `torch.nn.LayerNorm`: (x − mean) / sqrt(var + eps) · weight + bias.

    Input (*, *normalized_shape); an int stands for one axis. Weight and bias of that shape are learned unless
    `elementwise_affine=False`; `bias=False` leaves out the bias alone. Ba, Kiros and Hinton 2016.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.normalized_shape = arguments.sizes("LayerNorm", "normalized_shape", normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        shape = self.normalized_shape
        self.weight = init.constant("LayerNorm", shape, 1, device, dtype) if elementwise_affine else None
        self.bias = init.constant("LayerNorm", shape, 0, device, dtype) if elementwise_affine and bias else None

    def forward(self, input: Any) -> Any:
        return normalisation.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )
