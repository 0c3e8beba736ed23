"""ONNX Runtime: models of one node, or of a network as PyTorch exports it, whose weights are constants."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.case import Call
from bench.competitors.base import Competitor, NotOffered

if TYPE_CHECKING:
    from bench.convolution import Convolution, Operands
    from bench.layers import Layer
    from bench.networks import Data, Network

NODES = {
    "conv_transpose2d": "ConvTranspose",
    "conv_transpose3d": "ConvTranspose",
    "max_pool2d": "MaxPool",
    "avg_pool2d": "AveragePool",
    "avg_pool3d": "AveragePool",
    "relu": "Relu",
}


class OnnxRuntime(Competitor):
    """Forward in float32 only."""

    packages = ("onnx", "onnxruntime")
    devices = ("cpu",)

    def convolution(self, case: Convolution, direction: str, operands: Operands) -> Call:
        if case.dtype != "float32":
            raise NotOffered("ONNX Runtime's convolution is float32 only")
        geometry = case.geometry
        attributes = {
            "strides": geometry.stride,
            "pads": 2 * case.symmetric_padding,
            "dilations": geometry.dilation,
            "group": geometry.groups,
        }
        return self._call(
            direction, "Conv", attributes, [operands.x, operands.weight, operands.bias], operands.grad_output
        )

    def layer(
        self, case: Layer, direction: str, operands: Sequence[np.ndarray | None], grad_output: np.ndarray
    ) -> Call:
        if case.function not in NODES:
            raise NotOffered(f"not measured on {case.function}")
        attributes: dict[str, Any] = {}
        if "pool" in case.function:
            kernel, stride, padding = case.window
            attributes = {"kernel_shape": kernel, "strides": stride, "pads": 2 * padding}
        elif "transpose" in case.function:
            attributes = {"strides": (case.arguments["stride"],) * case.rank}
        return self._call(direction, NODES[case.function], attributes, operands, grad_output)

    def _call(
        self, direction: str, node: str, attributes: dict[str, Any], operands: Sequence[Any], output: np.ndarray
    ) -> Call:
        """A session for one node: the first operand is the input, the others are constants; `output` has the shape."""
        self._check(direction)
        return self._session(_model(node, attributes, operands, output.shape), operands[0])

    def network(self, case: Network, direction: str, data: Data) -> Call:
        self._check(direction)
        from bench.competitors.torch import Torch

        try:
            torch = Torch(self.threads)
        except ModuleNotFoundError:
            raise NotOffered("networks are exported by PyTorch: pip install torch") from None
        model, written = torch.model(case, data).eval(), io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about the exporter that needs no other package
            torch.torch.onnx.export(model, (torch.torch.from_numpy(data.x),), written, dynamo=False)
        return self._session(written.getvalue(), data.x)

    def _check(self, direction: str) -> None:
        if direction not in ("forward", "inference", "captured"):
            raise NotOffered("ONNX Runtime computes no gradients")

    def _session(self, model: bytes, x: np.ndarray) -> Call:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: x}
        return lambda: session.run(None, feed)[0]


def _model(node: str, attributes: dict[str, Any], operands: Sequence[np.ndarray], output: tuple[int, ...]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(array, f"constant{number}") for number, array in enumerate(operands[1:])]
    graph = helper.make_graph(
        [helper.make_node(node, ["x", *(constant.name for constant in constants)], ["y"], **attributes)],
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, operands[0].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()
