"""A model recorded as a CUDA graph: one launch in the place of all those of a forward pass."""

from __future__ import annotations

from typing import Any

from fastconv import backends
from fastconv.autograd import Tensor, no_grad, raw
from fastconv.errors import DeviceError
from fastconv.nn.module import Module

Array = Any


class Captured:
    """What `capture` gives: call it with inputs of the shapes and dtypes of the example.

    It keeps the memory of one forward pass. Parameters are read where they are: what an optimiser or `load_state_dict`
    writes there counts, a model that is moved leaves the graph behind. Not for use by several threads at once.
    """

    def __init__(self, model: Module, example: tuple[Any, ...]) -> None:
        arrays = [raw(x) for x in example]
        if not arrays or not all(backends.is_cupy(array) for array in arrays):
            places = ", ".join(backends.device_of(array) for array in arrays) or "nowhere"
            raise DeviceError(
                f"capture: a CUDA graph needs a model and an example on a GPU, the example is on {places}; "
                'e.g. capture(model.to("cuda"), fc.asarray(x, device="cuda"))'
            )
        with backends.on(arrays[0]):
            self._inputs = [array.copy() for array in arrays]
            self._graph = backends.of(arrays[0]).capture(lambda: _forward(model, self._inputs))
        # The graph reads this memory, whoever else forgets it.
        self._read = model, list(model.state_dict().values())

    def __call__(self, *inputs: Any) -> Any:
        given = [raw(x) for x in inputs]
        wanted = [(x.shape, x.dtype, backends.device_of(x)) for x in self._inputs]
        if [(x.shape, x.dtype, backends.device_of(x)) for x in given] != wanted:
            shapes = ", ".join(f"{dtype} {shape} on {device}" for shape, dtype, device in wanted)
            got = ", ".join(f"{x.dtype} {tuple(x.shape)} on {backends.device_of(x)}" for x in given)
            raise ValueError(f"capture: the graph is of {shapes}, got {got}; capture the model for those too")
        with backends.on(self._inputs[0]):
            for place, array in zip(self._inputs, given):
                place[...] = array
            self._graph.launch()
            results = [result.copy() for result in self._graph.results]
        outputs = [Tensor(y) for y in results] if any(isinstance(x, Tensor) for x in inputs) else results
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def capture(model: Module, *example: Any) -> Captured:
    """Record the forward pass of a model in evaluation mode, for inputs of one shape, as a CUDA graph.

    `example` are inputs on the model's GPU. Small networks spend most of a pass in launching kernels; a graph launches
    all of them at once. The forward pass must not look at values (`item`, `if x > 0`) and gives an array or a tuple of
    arrays. Raises DeviceError for arrays that are on no GPU, ValueError for a model in training mode.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("capture: the model is in training mode; call model.eval() first")
    return Captured(model, example)


def _forward(model: Module, inputs: list[Array]) -> list[Array]:
    with no_grad():
        outputs = model(*inputs)
    return [raw(y) for y in outputs] if isinstance(outputs, (tuple, list)) else [raw(outputs)]
