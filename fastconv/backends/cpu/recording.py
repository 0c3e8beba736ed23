"""A pass of a network recorded once and repeated: without modules, Tensors, checks, geometries and choices.

Idea: the pass runs on arrays of a kind of their own, `Recorded`. All that is done to one is noted as a step, with the
arrays that were read and those that hold what came of it; the same steps in the same memory are the same pass for other
values of the inputs. A step is

- a call of a kernel with all its arguments, where a primitive is nothing but such calls: little work that one thread
  does alone, in scratch memory that nobody else uses. The Python around these kernels takes longer than they do;
- else the primitive itself, whose result goes to where it went: algorithms that look at a result, work that threads
  share if they are awake;
- or a function or method of NumPy.

Nothing tells when a pass looks at values but not at a Recorded, and goes another way for others. What a Recorded can
see of it, it refuses (`item`, `if`); for the rest the steps are tried on other values, and have to give the bits that
the pass itself gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends import cpu, threads
from fastconv.backends.cpu import calls, convolution, dense, memory, scratch
from fastconv.precision import get_precision, precision

Array = npt.NDArray[Any]
Step = tuple[Callable[..., Any], tuple[Any, ...]]
Work = Callable[[Sequence[Array], Sequence[Array]], list[Any]]


def _always(*arguments: Any) -> bool:
    return True


_OF_KERNELS: dict[str, tuple[int, Callable[..., bool]]] = {
    "activation_forward": (1, _always),
    "add_relu": (2, _always),
    "avg_pool_forward": (1, _always),
    "batch_norm_apply": (1, _always),
    "conv_forward": (3, lambda x, w, b, geometry, _: convolution.forward_is_kernels(geometry, x.itemsize)),
    "linear": (3, lambda x, w, b: dense.reads_in_place(w)),
    "max_pool_forward": (1, _always),
    "resample": (1, _always),
    "softmax": (1, _always),
}
"""Primitives that are nothing but calls of kernels, which read so many of the first arguments where they lie, and when
they are. What they make of the others beforehand must not change."""


class Graph:
    """The recorded pass, in the precision that it was recorded in: `launch()` repeats it.

    `inputs` are the arrays that it reads, `results` those that it writes.
    """

    def __init__(self, steps: list[Step], inputs: list[Array], results: list[Array]) -> None:
        self._steps, self.inputs, self.results = steps, inputs, results
        self._precision = get_precision()

    def launch(self) -> None:
        if get_precision() != self._precision:
            with precision(self._precision):
                return self.launch()
        for call, arguments in self._steps:
            call(*arguments)


def capture(work: Work, example: Sequence[Array], parameters: Sequence[Array]) -> Graph:
    """See contract.Backend.capture. Raises ValueError if the steps do not give what `work` gives for other values."""
    recording = Recording()
    inputs = [array.copy() for array in example]
    with scratch.set_apart(), memory.set_apart(), threads.all_awake():
        made = work([recording.made(x) for x in inputs], [recording.made(array) for array in parameters])
    graph = Graph(recording.steps, inputs, [_plain(y) for y in made])
    others = [_others(array, number) for number, array in enumerate(example)]
    expected = work(others, parameters)
    for place, values in zip(graph.inputs, others):
        place[...] = values
    graph.launch()
    if any(y.shape != z.shape or y.tobytes() != z.tobytes() for y, z in zip(graph.results, expected, strict=True)):
        raise ValueError(
            "capture: for other values the recorded pass gives another result than the model: it draws at random, "
            "looks at values, or takes arrays out, as numpy.asarray(x) does; keep to what Tensors and fastconv offer"
        )
    return graph


def _others(array: Array, seed: int) -> Array:
    """Other values of the same kind."""
    generator = np.random.default_rng((seed, 0x6F74686572))  # no seed that an example would be drawn with
    if array.dtype.kind == "f":
        return generator.standard_normal(array.shape).astype(array.dtype)
    return generator.permutation(array.reshape(-1)).reshape(array.shape)


class Recorded(np.ndarray):
    """An array whose values are different in each repetition; views of it are the same."""

    is_recorded_by_fastconv = True  # how backends.of tells it, without an import
    recording: Recording

    def __array_finalize__(self, source: Any) -> None:
        self.recording = getattr(source, "recording", None)  # type: ignore[assignment]

    @property
    def backend(self) -> Primitives:
        """Whose primitives take it."""
        return Primitives(self.recording)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        call = partial(getattr(ufunc, method), **_plain(options))
        return self.recording.ufunc(call, _plain(inputs), _plain(out))

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return self.recording.call(function, arguments, options)

    def __getitem__(self, key: Any) -> Any:
        return self.recording.call(np.ndarray.__getitem__, (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.recording.call(np.ndarray.__setitem__, (self, key, value), {})


def _method(name: str) -> Callable[..., Any]:
    function = getattr(np.ndarray, name)
    return lambda self, *arguments, **options: self.recording.call(function, (self, *arguments), options)


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: Recorded, *arguments: Any) -> Any:
        raise ValueError(
            f"capture: the model looks at values ({name}), which are others in every call; "
            "compute it without `if x > 0` and `x.item()`, e.g. by relu or clip"
        )

    return refuse


for _name in (
    "all any argmax argmin argpartition argsort astype choose clip compress copy cumprod cumsum diagonal dot flatten "
    "max mean min prod ravel repeat reshape round searchsorted std sum take trace var"
).split():
    setattr(Recorded, _name, _method(_name))
for _name in "__bool__ __complex__ __float__ __index__ __int__ item tobytes tolist".split():
    setattr(Recorded, _name, _refused(_name))


class Primitives:
    """The backend as it serves recorded arrays."""

    xp = np

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def __getattr__(self, name: str) -> Any:
        return partial(self._recording.primitive, name)


class Recording:
    """The steps so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def made(self, result: Any) -> Any:
        """A result as what follows gets it."""
        if type(result) in (tuple, list):
            return type(result)(map(self.made, result))
        if not isinstance(result, np.ndarray):
            return result
        array = result.view(Recorded)
        array.recording = self
        return array

    def primitive(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Run a primitive of the backend: the step is the calls of its kernels, or itself."""
        primitive, plain = getattr(cpu, name), _plain(arguments)
        with calls.noted() as noted:
            result = primitive(*plain, **options)
        if noted and _is_kernels(name, arguments) and all(map(_is_repeatable, noted)):
            for call in noted:
                self._step(call.kernel, call.arguments)
        else:
            self._again(partial(primitive, **options), plain, result)
        return self.made(result)

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call a function of NumPy: a view is no step, a result in memory of its own is one."""
        plain, options = _plain(arguments), _plain(options)
        result = function(*plain, **options)
        if isinstance(result, np.generic):
            result = np.asarray(result)
        if result is None:
            self._step(partial(function, **options), plain)
        elif not _is_view(result, [*_arrays(plain), *_arrays(list(options.values()))]):
            self._again(partial(function, **options), plain, result)
        return self.made(result)

    def ufunc(self, call: Callable[..., Any], inputs: tuple[Any, ...], out: tuple[Any, ...] | None) -> Any:
        """Call a universal function of NumPy, which in every repetition writes to the same arrays."""
        result = call(*inputs) if out is None else call(*inputs, out=out)
        if result is not None:  # that of `at`, which writes to its first operand
            results = out or tuple(map(np.asarray, result if type(result) is tuple else (result,)))
            call, result = partial(call, out=results), results if len(results) > 1 else results[0]
        self._step(call, inputs)
        return self.made(result)

    def _again(self, function: Callable[..., Any], arguments: tuple[Any, ...], result: Any) -> None:
        if _arrays(result):
            self._step(_repeat, (function, arguments, result))

    def _step(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.steps.append((call, _each(memory.unheld, np.ndarray, arguments)))


def _repeat(function: Callable[..., Any], arguments: tuple[Any, ...], result: Any) -> None:
    """Call the function again, and see to it that its result lies where the first one does."""
    first = _arrays(result)
    with memory.placed(first[0]):
        again = function(*arguments)
    if isinstance(again, np.generic):
        again = np.asarray(again)
    if again is not first[0]:
        for place, array in zip(first, _arrays(again), strict=True):
            place[...] = array


def _is_kernels(name: str, arguments: tuple[Any, ...]) -> bool:
    changing, holds = _OF_KERNELS.get(name, (0, _always))
    return changing > 0 and not _arrays(arguments[changing:], Recorded) and holds(*arguments)


def _is_repeatable(call: calls.Call) -> bool:
    """Whether the calling thread did it alone (the team of a `shared` kernel is 0), and Python has learned nothing."""
    team = call.arguments[-3:-2]
    return call.result is None and len(team) == 1 and type(team[0]) is int and team[0] == 0


def _is_view(result: Any, of: list[Array]) -> bool:
    return all(any(np.may_share_memory(array, source) for source in of) for array in _arrays(result))


def _arrays(value: Any, kind: type[Array] = np.ndarray) -> list[Array]:
    """The arrays in a value, however it is nested."""
    if type(value) in (tuple, list):
        return [array for part in value for array in _arrays(part, kind)]
    return [value] if isinstance(value, kind) else []


def _plain(value: Any) -> Any:
    """The same with NumPy's own arrays."""
    return _each(lambda array: array.view(np.ndarray), Recorded, value)


def _each(function: Callable[[Array], Array], kind: type[Array], value: Any) -> Any:
    """The value with the function of each array of this kind in it."""
    if type(value) in (tuple, list):
        return type(value)(_each(function, kind, part) for part in value)
    if type(value) is dict:
        return {key: _each(function, kind, part) for key, part in value.items()}
    return function(value) if isinstance(value, kind) else value
