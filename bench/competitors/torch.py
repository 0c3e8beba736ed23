"""PyTorch, in its default memory format and in channels-last."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.case import Call
from bench.competitors.base import Competitor, NotOffered

if TYPE_CHECKING:
    from bench.convolution import Convolution, Operands
    from bench.layers import Layer, Optimizer
    from bench.networks import Data, Network


class Torch(Competitor):
    """PyTorch's eager mode with contiguous (NCHW) tensors, on a GPU with the fastest algorithm that cuDNN finds.

    cuDNN tries its algorithms on the first call of each shape, those that are not deterministic among them.
    """

    packages = ("torch",)

    def __init__(self, threads: int, device: str = "cpu") -> None:
        import torch

        super().__init__(threads, device)
        if device == "cuda" and not torch.cuda.is_available():
            raise NotOffered(f"PyTorch {torch.__version__} finds no GPU: pip install torch, a build with CUDA")
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = device == "cuda"
        self.torch = torch

    @contextmanager
    def precision(self, level: str) -> Iterator[None]:
        """TF32 for "fast" alone; PyTorch's own choice is TF32 in convolutions and float32 in products of matrices."""
        switches = self.torch.backends.cudnn, self.torch.backends.cuda.matmul
        before = [switch.allow_tf32 for switch in switches]
        for switch in switches:
            switch.allow_tf32 = level == "fast"
        try:
            yield
        finally:
            for switch, allowed in zip(switches, before):
                switch.allow_tf32 = allowed

    def release(self) -> None:
        self.torch.cuda.empty_cache()

    def to_host(self, array: Any) -> np.ndarray:
        array = array.detach().cpu()
        return (array.float() if array.dtype == self.torch.bfloat16 else array).numpy().copy()

    def _there(self, array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":  # which NumPy's arrays cannot tell PyTorch
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16).to(self.device)
        return self.torch.from_numpy(array).to(self.device)

    def memory_format(self, rank: int) -> Any:
        """The format for `rank` spatial axes."""
        return self.torch.contiguous_format

    def tensor(self, array: np.ndarray, rank: int) -> Any:
        """A tensor in the memory format, where the array has batch, channels and `rank` spatial axes."""
        tensor = self._there(array)
        return tensor.contiguous(memory_format=self.memory_format(rank)) if array.ndim == rank + 2 else tensor

    def convolution(self, case: Convolution, direction: str, operands: Operands) -> Call:
        geometry = case.geometry
        x, weight, bias, grad_output = (self.tensor(array, geometry.rank) for array in vars(operands).values())
        stride, padding, dilation = list(geometry.stride), list(case.symmetric_padding), list(geometry.dilation)
        if direction == "forward":
            conv = getattr(self.torch.nn.functional, f"conv{geometry.rank}d")
            return lambda: conv(x, weight, bias, stride, padding, dilation, geometry.groups)
        backward = self.torch.ops.aten.convolution_backward
        rest = (stride, padding, dilation, False, [0] * geometry.rank, geometry.groups, [True, True, True])
        return lambda: backward(grad_output, x, weight, [geometry.out_channels], *rest)

    def layer(
        self, case: Layer, direction: str, operands: Sequence[np.ndarray | None], grad_output: np.ndarray
    ) -> Call:
        function = case.of_operands(getattr(self.torch.nn.functional, case.function))
        tensors = [None if array is None else self.tensor(array, case.rank) for array in operands]
        if direction == "forward":
            return lambda: function(*tensors)
        inputs = [t.requires_grad_() for t in tensors if t is not None and t.is_floating_point()]
        output, grad = function(*tensors), self.tensor(grad_output, case.rank)
        return lambda: self.torch.autograd.grad(output, inputs, grad, retain_graph=True)

    def optimizer(self, case: Optimizer, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> Call:
        tensors = [self.torch.nn.Parameter(self._there(array)) for array in parameters]
        for tensor, gradient in zip(tensors, gradients):
            tensor.grad = self._there(gradient)
        optimizer = getattr(self.torch.optim, case.optimizer)(tensors, **case.arguments, fused=True)

        def step() -> list[Any]:
            optimizer.step()
            return [tensor.detach() for tensor in tensors]

        return step

    def network(self, case: Network, direction: str, data: Data) -> Call:
        from bench.networks import SGD

        model, x = self.model(case, data), self.tensor(data.x, case.rank)
        if direction != "training":
            folded = _batch_norm_folded(model.eval())
            return self.torch.inference_mode()(lambda: folded(x))
        loss_function, target = self.torch.nn.CrossEntropyLoss(), self._there(data.target)
        parameters = list(model.parameters())
        optimizer = self.torch.optim.SGD(parameters, **SGD, fused=True)

        def step() -> list[Any]:
            optimizer.zero_grad()
            loss = loss_function(model(x), target)
            loss.backward()
            optimizer.step()
            return [loss.detach(), *(parameter.grad for parameter in parameters)]

        return step

    def model(self, case: Network, data: Data) -> Any:
        """With the given weights, and with every ReLU in place, as torchvision has them."""
        from bench.networks import ARCHITECTURES

        model = ARCHITECTURES[case.architecture].torch(self.torch)
        model.load_state_dict({name: self.torch.tensor(array) for name, array in data.state.items()})
        for module in model.modules():
            if isinstance(module, self.torch.nn.ReLU):
                module.inplace = True
        return model.to(self.device, memory_format=self.memory_format(case.rank))


def _batch_norm_folded(model: Any) -> Any:
    """A copy for inference whose convolutions hold their batch norms, as `fastconv.nn.fuse` makes one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about what the module imports, not what is used
        from torch.fx.experimental.optimization import fuse
    return fuse(model)


class TorchChannelsLast(Torch):
    """PyTorch with all operands in channels-last format, which exists for two and three spatial axes."""

    def memory_format(self, rank: int) -> Any:
        if rank == 1:
            raise NotOffered("PyTorch has no channels-last format for one spatial axis")
        return self.torch.channels_last_3d if rank == 3 else self.torch.channels_last

    def layer(
        self, case: Layer, direction: str, operands: Sequence[np.ndarray | None], grad_output: np.ndarray
    ) -> Call:
        if case.rank not in (2, 3):
            raise NotOffered("memory formats differ for two and three spatial axes only")
        return super().layer(case, direction, operands, grad_output)

    def optimizer(self, case: Optimizer, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> Call:
        raise NotOffered("an optimiser knows no memory format")
