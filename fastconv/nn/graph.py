"""A model recorded for inputs of one shape: what it computes, without what it takes to find that out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

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

    def __init__(self, model: Module, arrays: list[Array]) -> None:
        state = list(model.state_dict().values())

        def work(inputs: Sequence[Array], parameters: Sequence[Array]) -> list[Array]:
            return _forward(_with(model, state, parameters), inputs)

        with backends.on(arrays[0]):
            self._graph = backends.of(arrays[0]).capture(work, arrays, state)
        self._read = model  # the graph reads this memory, whoever else forgets it
        self._wanted = [_kind(x) for x in self._graph.inputs]

    def __call__(self, *inputs: Any) -> Any:
        given = _arrays(inputs)
        if [_kind(x) for x in given] != self._wanted:
            shapes, got = (", ".join(map(_in_words, kinds)) for kinds in (self._wanted, map(_kind, given)))
            raise ValueError(f"capture: the graph is of {shapes}, got {got}; capture the model for those too")
        graph = self._graph
        with backends.on(graph.inputs[0]):
            for place, array in zip(graph.inputs, given):
                place[...] = array
            graph.launch()
            results = [result.copy() for result in graph.results]
        outputs = [Tensor(y) for y in results] if any(isinstance(x, Tensor) for x in inputs) else results
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def capture(model: Module, *example: Any) -> Captured:
    """Record the forward pass of a model in evaluation mode, for inputs of the shapes and dtypes of the `example`.

    Small networks spend most of a pass in Python and in launching kernels. On a GPU the pass becomes a CUDA graph,
    which launches all of its kernels at once; on a CPU its kernels are called one after the other, with little or
    nothing in between. The results have the bits of the model in the precision of this moment; what is recorded with
    one thread stays with one.

    The forward pass must not look at values (`item`, `if x > 0`), nor take arrays out of what fastconv, Tensors and
    NumPy do with them (`numpy.asarray`); it gives an array or a tuple of arrays. Hooks run while it is recorded alone.

    Raises ValueError where it cannot be repeated, for a model in training mode and for no example, TypeError for what
    is no array, DeviceError for a model and an example on different devices.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("capture: the model is in training mode; call model.eval() first")
    if not example:
        raise ValueError("capture: an example of the input is needed, e.g. capture(model, x)")
    arrays = _arrays(example)
    places = {backends.device_of(array): None for array in (*arrays, *model.state_dict().values())}
    if len(places) > 1:
        raise DeviceError(
            f"capture: model and example are on {' and '.join(places)}; "
            'e.g. capture(model.to("cuda"), fc.asarray(x, device="cuda"))'
        )
    return Captured(model, arrays)


def _arrays(inputs: tuple[Any, ...]) -> list[Array]:
    arrays = [backends.adopted(raw(x)) for x in inputs]
    for array, given in zip(arrays, inputs):
        if array is None:
            raise TypeError(f"capture: an input must be an array or a Tensor, got {type(given).__name__}")
    return arrays


def _with(model: Module, state: Sequence[Array], parameters: Sequence[Array]) -> Module:
    """The model, or a copy of it with other arrays in the places of those of its state."""
    if all(old is new for old, new in zip(state, parameters, strict=True)):
        return model
    return copy.deepcopy(model, {id(old): new for old, new in zip(state, parameters, strict=True)})


def _forward(model: Module, inputs: Sequence[Array]) -> list[Array]:
    with no_grad():
        outputs = model(*inputs)
    arrays = [raw(y) for y in outputs] if isinstance(outputs, (tuple, list)) else [raw(outputs)]
    for array in arrays:
        if not hasattr(array, "dtype"):
            kind = type(array).__name__
            raise TypeError(f"capture: the model must give an array or a tuple of arrays, got {kind}")
    return arrays


def _kind(array: Any) -> tuple[Any, ...]:
    return array.shape, array.dtype, "cpu" if type(array) is np.ndarray else backends.device_of(array)


def _in_words(kind: tuple[Any, ...]) -> str:
    shape, dtype, device = kind
    return f"{dtype} {tuple(shape)} on {device}"
