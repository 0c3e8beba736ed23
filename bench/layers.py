"""The rest of a training step, from transposed convolution, pooling and resampling to losses and optimisers.

A layer is a function that `fastconv` and `torch.nn.functional` have under one name and with the same arguments. Sizes
are beyond the caches where real networks have them there: the first stage of a ResNet, the last of a U-Net; and those
of late stages, whose planes and rows are short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from bench.case import Case, Prepare
from fastconv import models

Shape = tuple[int, ...]


class Labels(NamedTuple):
    """An operand of class numbers."""

    shape: Shape
    classes: int


@dataclass(frozen=True)
class Layer(Case):
    """`function(*operands, **arguments)`, and the gradients in all floating operands.

    `second` is an argument that stands behind the first operand: what layer and group norm normalise together, the axis
    of softmax.
    `passes`: how often forward must read its input, and backward its own two, when they do not fit into a cache.
    `keeps_input`: whether backward must read the input (or the output) besides the gradient.
    """

    function: str
    operands: tuple[Shape | Labels | None, ...]
    arguments: Mapping[str, Any]
    passes: int
    keeps_input: bool
    second: Any = None

    @property
    def rank(self) -> int:
        """Spatial axes."""
        return len(self._shapes[0]) - 2

    @property
    def window(self) -> tuple[Shape, Shape, Shape]:
        """Kernel, stride and padding of a pooling, one number for each axis."""
        kernel = self.arguments["kernel_size"]
        sizes = kernel, self.arguments.get("stride", kernel), self.arguments.get("padding", 0)
        return tuple((size,) * self.rank for size in sizes)

    @property
    def output_shape(self) -> Shape:
        """() for a loss."""
        shape = self._shapes[0]
        if self.function == "cross_entropy":
            return ()
        if "pool" in self.function:
            axes = zip(shape[2:], *self.window)
            return (
                *shape[:2],
                *((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in axes),
            )
        if "transpose" in self.function:  # kernel = stride: the outputs of the inputs stand side by side
            weight = self._shapes[1]
            return (shape[0], weight[1], *(size * kernel for size, kernel in zip(shape[2:], weight[2:])))
        if self.function == "interpolate":
            return (*shape[:2], *(size * self.arguments["scale_factor"] for size in shape[2:]))
        return shape

    @property
    def _shapes(self) -> list[Shape]:
        """Shapes of the floating operands, the input first."""
        return [tuple(shape) for shape in self.operands if shape is not None and not isinstance(shape, Labels)]

    def of_operands(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with everything but the operands."""
        if self.second is None:
            return partial(function, **self.arguments)
        return lambda x, *others: function(x, self.second, *others, **self.arguments)

    def flops(self, direction: str) -> int:
        if "transpose" not in self.function:
            return 0
        forward = 2 * prod(self._shapes[0]) * prod(self._shapes[1][1:])
        return forward if direction == "forward" else 2 * forward

    def traffic(self, direction: str) -> int:
        image, parameters = prod(self._shapes[0]), sum(prod(shape) for shape in self._shapes[1:])
        output = prod(self.output_shape)
        if direction == "forward":
            return self.itemsize * (self.passes * image + parameters + output)
        read = output + (image if self.keeps_input else 0)
        return self.itemsize * (self.passes * read + image + 2 * parameters)

    def prepare(self, direction: str) -> Prepare:
        generator = np.random.default_rng(0)

        def operand(kind: Shape | Labels | None) -> np.ndarray | None:
            if isinstance(kind, Labels):
                return generator.integers(0, kind.classes, kind.shape)
            return None if kind is None else generator.standard_normal(kind, dtype=np.float32)

        operands = [operand(kind) for kind in self.operands]
        grad_output = np.asarray(generator.standard_normal(self.output_shape, dtype=np.float32))
        return lambda competitor: competitor.layer(self, direction, operands, grad_output)


@dataclass(frozen=True)
class Optimizer(Case):
    """One step of an optimiser on the parameters of a ResNet-18: `arrays` reads and writes for each parameter."""

    optimizer: str
    arguments: Mapping[str, float]
    arrays: int

    def flops(self, direction: str) -> int:
        return 0

    def traffic(self, direction: str) -> int:
        return self.itemsize * self.arrays * sum(parameter.numel() for parameter in models.ResNet().parameters())

    def prepare(self, direction: str) -> Prepare:
        generator = np.random.default_rng(0)
        shapes = [parameter.shape for parameter in models.ResNet().parameters()]
        parameters, gradients = ([generator.standard_normal(s, dtype=np.float32) for s in shapes] for _ in range(2))
        # Each in its own memory: a step changes the parameters.
        return lambda competitor: competitor.optimizer(self, [p.copy() for p in parameters], gradients)


def load() -> list[Case]:
    """All layers and optimisers."""
    early, late, volume = (8, 64, 112, 112), (16, 256, 14, 14), (1, 32, 64, 64, 64)
    return [
        _layer("transpose2d_2x2s2", "conv_transpose2d", (8, 128, 56, 56), (128, 64, 2, 2), (64,), stride=2),
        _layer("transpose3d_2x2s2", "conv_transpose3d", (1, 64, 32, 32, 32), (64, 32, 2, 2, 2), (32,), stride=2),
        _layer("max_pool_2x2s2", "max_pool2d", early, keeps_input=False, kernel_size=2),
        _layer("max_pool_3x3s2", "max_pool2d", early, keeps_input=False, kernel_size=3, stride=2, padding=1),
        _layer("max_pool_14", "max_pool2d", late, keeps_input=False, kernel_size=3, stride=2, padding=1),
        _layer("avg_pool_14", "avg_pool2d", late, keeps_input=False, kernel_size=2),
        _layer("avg_pool_3d_2s2", "avg_pool3d", volume, keeps_input=False, kernel_size=2),
        _interpolation("nearest_2x", "nearest", (8, 64, 56, 56)),
        _interpolation("bilinear_2x", "bilinear", (8, 64, 56, 56)),
        _interpolation("bilinear_14", "bilinear", late),
        _interpolation("trilinear_2x", "trilinear", (1, 32, 32, 32, 32)),
        _layer("batch_norm_train", "batch_norm", early, None, None, (64,), (64,), passes=2, training=True),
        _layer("layer_norm_768", "layer_norm", (64, 197, 768), (768,), (768,), second=(768,)),
        _layer("group_norm_volume", "group_norm", volume, (32,), (32,), second=8),
        _layer("instance_norm", "instance_norm", (8, 64, 128, 128), None, None, (64,), (64,)),
        _layer("relu", "relu", early),
        _layer("gelu", "gelu", early),
        _layer("silu", "silu", early),
        _layer("softmax_50", "softmax", (2048, 50), second=-1),
        _layer("cross_entropy_1000", "cross_entropy", (256, 1000), Labels((256,), 1000)),
        _layer("cross_entropy_50", "cross_entropy", (2048, 50), Labels((2048,), 50)),
        _layer("cross_entropy_voxels", "cross_entropy", (1, 4, 64, 64, 64), Labels((1, 64, 64, 64), 4)),
        Optimizer("sgd_momentum", "layers", ("step",), "SGD", {"lr": 1e-3, "momentum": 0.9}, arrays=5),
        Optimizer("adamw", "layers", ("step",), "AdamW", {"lr": 1e-3}, arrays=7),
    ]


def _interpolation(name: str, mode: str, shape: Shape) -> Layer:
    return _layer(name, "interpolate", shape, keeps_input=False, scale_factor=2, mode=mode)


def _layer(
    name: str,
    function: str,
    *operands: Shape | Labels | None,
    passes: int = 1,
    keeps_input: bool = True,
    second: Any = None,
    **arguments: Any,
) -> Layer:
    return Layer(name, "layers", ("forward", "backward"), function, operands, arguments, passes, keeps_input, second)
