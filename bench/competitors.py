"""fastconv and its peers, each as one call without arguments that does the same work on the same operands.

Every competitor gets `threads` threads and float32 operands in its own memory layout; that conversion is not timed.
Forward is the convolution with bias; backward gives the gradients in input, weight and bias. The results are returned,
so that they can be compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastconv as fc
from bench.cases import Case, Operands
from fastconv.backends import cpu

Call = Callable[[], Any]
Prepare = Callable[[Case, Operands, str, int], Call]


class NotOffered(Exception):
    """Raised by a competitor that cannot do a case; the message says why."""


def fastconv(case: Case, operands: Operands, direction: str, threads: int) -> Call:
    """`fc.conv*d`; backward is `fc.grad.conv*d_input`, `fc.grad.conv*d_weight` and the channel sum for the bias."""
    fc.set_num_threads(threads)
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


def torch_nchw(case: Case, operands: Operands, direction: str, threads: int) -> Call:
    """PyTorch in its default memory format."""
    return _torch(case, operands, direction, threads, "contiguous_format")


def torch_channels_last(case: Case, operands: Operands, direction: str, threads: int) -> Call:
    """PyTorch with all operands in channels-last format, which exists for two and three spatial axes."""
    if case.geometry.rank == 1:
        raise NotOffered("PyTorch has no channels-last format for one spatial axis")
    return _torch(case, operands, direction, threads, f"channels_last{'_3d' if case.geometry.rank == 3 else ''}")


def _torch(case: Case, operands: Operands, direction: str, threads: int, memory_format: str) -> Call:
    import torch

    torch.set_num_threads(threads)

    def tensor(array: np.ndarray) -> Any:
        return torch.from_numpy(array).contiguous(memory_format=getattr(torch, memory_format))

    geometry = case.geometry
    x, weight, grad_output = tensor(operands.x), tensor(operands.weight), tensor(operands.grad_output)
    bias = torch.from_numpy(operands.bias)
    stride, padding, dilation = list(geometry.stride), list(case.symmetric_padding), list(geometry.dilation)
    if direction == "forward":
        conv = getattr(torch.nn.functional, f"conv{geometry.rank}d")
        return lambda: conv(x, weight, bias, stride, padding, dilation, geometry.groups)
    backward = torch.ops.aten.convolution_backward
    rest = (stride, padding, dilation, False, [0] * geometry.rank, geometry.groups, [True, True, True])
    return lambda: backward(grad_output, x, weight, [geometry.out_channels], *rest)


def onnxruntime(case: Case, operands: Operands, direction: str, threads: int) -> Call:
    """ONNX Runtime: a model of one Conv whose weights are constants, as in inference."""
    if direction == "backward":
        raise NotOffered("ONNX Runtime computes no gradients")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(_onnx_model(case, operands), options, providers=["CPUExecutionProvider"])
    feed = {"x": operands.x}
    return lambda: session.run(None, feed)[0]


def _onnx_model(case: Case, operands: Operands) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    geometry = case.geometry
    node = helper.make_node(
        "Conv",
        ["x", "weight", "bias"],
        ["y"],
        strides=geometry.stride,
        pads=2 * case.symmetric_padding,
        dilations=geometry.dilation,
        group=geometry.groups,
    )
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, geometry.input_shape(case.batch))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, geometry.output_shape(case.batch))],
        [numpy_helper.from_array(operands.weight, "weight"), numpy_helper.from_array(operands.bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


PREPARE: dict[str, Prepare] = {
    "fastconv": fastconv,
    "torch": torch_nchw,
    "torch channels-last": torch_channels_last,
    "onnxruntime": onnxruntime,
}
"""Every competitor by the name it has in tables and files; fastconv first."""

_NEEDS = {
    "fastconv": (),
    "torch": ("torch",),
    "torch channels-last": ("torch",),
    "onnxruntime": ("onnx", "onnxruntime"),
}


def missing(name: str) -> tuple[str, ...]:
    """The packages that a competitor needs and that are not installed."""
    return tuple(package for package in _NEEDS[name] if find_spec(package) is None)


def results(output: Any) -> list[np.ndarray]:
    """What a call returned, as NumPy arrays: one for forward, three for backward."""
    return [np.asarray(array) for array in (output if isinstance(output, tuple) else (output,))]


def relative_error(output: Any, expected: Any) -> float:
    """Largest relative L2 difference between the results of two competitors."""
    pairs = zip(results(output), results(expected))
    return max(float(np.linalg.norm((a - b).ravel()) / np.linalg.norm(b.ravel())) for a, b in pairs)
