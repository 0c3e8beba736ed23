"""Batch normalisation: one core for all ranks; the faces differ in the inputs that they take."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastconv import backends
from fastconv.autograd import to_device
from fastconv.geometry import arguments
from fastconv.nn import init
from fastconv.nn.module import Module, floating_dtype
from fastconv.ops import normalisation


class _BatchNorm(Module):
    _axes: ClassVar[dict[int, str]]  # the inputs it takes: number of axes, and how they are written
    running_mean: Any = None
    running_var: Any = None
    num_batches_tracked: Any = None

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

    def forward(self, input: Any) -> Any:
        if len(input.shape) not in self._axes:
            forms = " or ".join(self._axes.values())
            raise ValueError(f"{type(self).__name__}: input must be {forms}, got input shape {tuple(input.shape)}")
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

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


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
