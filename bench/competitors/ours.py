"""fastconv itself, as a user calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

import fastconv as fc
from bench.case import Call
from bench.competitors.base import Competitor
from fastconv.backends import cpu

if TYPE_CHECKING:
    from bench.convolution import Convolution, Operands
    from bench.layers import Layer, Optimizer
    from bench.networks import Data, Network


class Fastconv(Competitor):
    """The library of this repository."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        fc.set_num_threads(threads)

    def convolution(self, case: Convolution, direction: str, operands: Operands) -> Call:
        """Backward is `fc.grad.conv*d_input`, `fc.grad.conv*d_weight` and the channel sum for the bias."""
        geometry, rank = case.geometry, case.geometry.rank
        x, weight, bias, grad_output = operands.x, operands.weight, operands.bias, operands.grad_output
        window = (geometry.stride, case.symmetric_padding, geometry.dilation, geometry.groups)
        if direction == "forward":
            conv = getattr(fc, f"conv{rank}d")
            return lambda: conv(x, weight, bias, *window)
        input_grad, weight_grad = getattr(fc.grad, f"conv{rank}d_input"), getattr(fc.grad, f"conv{rank}d_weight")
        return lambda: (
            input_grad(x.shape, weight, grad_output, *window),
            weight_grad(x, weight.shape, grad_output, *window),
            cpu.channel_sum(grad_output),
        )

    def layer(
        self, case: Layer, direction: str, operands: Sequence[np.ndarray | None], grad_output: np.ndarray
    ) -> Call:
        function = case.of_operands(getattr(fc, case.function))
        if direction == "forward":
            return lambda: function(*operands)
        recorded = [fc.Tensor(a, True) if a is not None and a.dtype.kind == "f" else a for a in operands]
        node = function(*recorded)._node  # its rule alone: a walk over the tape would free it
        return lambda: [gradient for gradient in node.backward(grad_output) if gradient is not None]

    def optimizer(self, case: Optimizer, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> Call:
        tensors = [fc.nn.Parameter(array) for array in parameters]
        for tensor, gradient in zip(tensors, gradients):
            tensor.grad = gradient
        optimizer = getattr(fc.optim, case.optimizer)(tensors, **case.arguments)

        def step() -> list[np.ndarray]:
            optimizer.step()
            return [tensor.data for tensor in tensors]

        return step

    def network(self, case: Network, direction: str, data: Data) -> Call:
        from bench.networks import ARCHITECTURES, SGD

        model = ARCHITECTURES[case.architecture].fastconv()
        model.load_state_dict(data.state)
        if direction == "inference":
            fused = fc.nn.fuse(model)
            return fc.no_grad()(lambda: fused(data.x))
        loss_function, parameters = fc.nn.CrossEntropyLoss(), list(model.parameters())
        optimizer = fc.optim.SGD(parameters, **SGD)

        def step() -> list[np.ndarray]:
            optimizer.zero_grad()
            loss = loss_function(model(data.x), data.target)
            loss.backward()
            optimizer.step()
            return [loss.data, *(parameter.grad for parameter in parameters)]

        return step
