"""fastconv itself, as a user calls it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

import fastconv as fc
from bench.case import Call
from bench.competitors.base import Competitor
from fastconv import backends
from fastconv.backends import cuda

if TYPE_CHECKING:
    from bench.convolution import Convolution, Operands
    from bench.layers import Layer, Optimizer
    from bench.networks import Data, Network


class Fastconv(Competitor):
    """The library of this repository."""

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        fc.set_num_threads(threads)

    def precision(self, level: str) -> AbstractContextManager[Any]:
        return fc.precision(level)

    def release(self) -> None:
        cuda.platform.current().free_memory()

    def to_host(self, array: Any) -> np.ndarray:
        return np.array(fc.asarray(array, device="cpu"))

    def _there(self, array: np.ndarray) -> Any:
        return fc.asarray(array, device=self.device)

    def convolution(self, case: Convolution, direction: str, operands: Operands) -> Call:
        """Backward is `fc.grad.conv*d_input`, `fc.grad.conv*d_weight` and the channel sum for the bias."""
        geometry, rank = case.geometry, case.geometry.rank
        x, weight, bias, grad_output = map(self._there, vars(operands).values())
        window = (geometry.stride, case.symmetric_padding, geometry.dilation, geometry.groups)
        if direction == "forward":
            conv = getattr(fc, f"conv{rank}d")
            return lambda: conv(x, weight, bias, *window)
        backend = backends.of(x)
        input_grad, weight_grad = getattr(fc.grad, f"conv{rank}d_input"), getattr(fc.grad, f"conv{rank}d_weight")
        return lambda: (
            input_grad(x.shape, weight, grad_output, *window),
            weight_grad(x, weight.shape, grad_output, *window),
            backend.channel_sum(grad_output),
        )

    def layer(
        self, case: Layer, direction: str, operands: Sequence[np.ndarray | None], grad_output: np.ndarray
    ) -> Call:
        function = case.of_operands(getattr(fc, case.function))
        arrays = [None if array is None else self._there(array) for array in operands]
        if direction == "forward":
            return lambda: function(*arrays)
        recorded = [fc.Tensor(a, True) if a is not None and a.dtype.kind == "f" else a for a in arrays]
        node = function(*recorded)._node  # its rule alone: a walk over the tape would free it
        grad = self._there(grad_output)
        return lambda: [gradient for gradient in node.backward(grad) if gradient is not None]

    def optimizer(self, case: Optimizer, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> Call:
        tensors = [fc.nn.Parameter(self._there(array)) for array in parameters]
        for tensor, gradient in zip(tensors, gradients):
            tensor.grad = self._there(gradient)
        optimizer = getattr(fc.optim, case.optimizer)(tensors, **case.arguments)

        def step() -> list[Any]:
            optimizer.step()
            return [tensor.data for tensor in tensors]

        return step

    def network(self, case: Network, direction: str, data: Data) -> Call:
        from bench.networks import ARCHITECTURES, SGD

        model = ARCHITECTURES[case.architecture].fastconv().to(self.device)
        model.load_state_dict(data.state)
        x, target = self._there(data.x), self._there(data.target)
        if direction != "training":
            fused = fc.nn.fuse(model)
            if direction == "captured":
                fused = fc.nn.capture(fused, x)
            return fc.no_grad()(lambda: fused(x))
        loss_function, parameters = fc.nn.CrossEntropyLoss(), list(model.parameters())
        optimizer = fc.optim.SGD(parameters, **SGD)

        def step() -> list[Any]:
            optimizer.zero_grad()
            loss = loss_function(model(x), target)
            loss.backward()
            optimizer.step()
            return [loss.data, *(parameter.grad for parameter in parameters)]

        return step
