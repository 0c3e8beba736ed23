"""Module: what has parameters, buffers and children, found by attribute in the order of their definition.

There is no hidden registry: `vars(module)` is looked through by type. A Parameter is a parameter, a Module is a child,
and a buffer is an attribute whose name `register_buffer` noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastconv import backends
from fastconv.autograd import Tensor, raw, to_device

Array = Any
Hook = Callable[["Module", tuple[Any, ...], Any], Any]
M = TypeVar("M", bound="Module")


class Parameter(Tensor):
    """A Tensor that a Module learns: a leaf that requires a gradient. Optimisers change its array in place."""

    __slots__ = ()

    def __init__(self, array: Any, requires_grad: bool = True) -> None:
        super().__init__(array, requires_grad)


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` did not find in the state, and what it found but has no place for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class HookHandle:
    """Removes a hook: by `remove()`, or at the end of a `with` block."""

    def __init__(self, module: Module, hook: Hook) -> None:
        self._module, self._hook = module, hook

    def remove(self) -> None:
        self._module._forward_hooks = tuple(hook for hook in self._module._forward_hooks if hook is not self._hook)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class Module:
    """Base of all layers and networks. Subclasses assign their parts as attributes and define `forward`."""

    training: bool = True
    _buffer_names: tuple[str, ...] = ()
    _forward_hooks: tuple[Hook, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; call the module itself, so that hooks run."""
        raise NotImplementedError(f"{type(self).__name__}: a Module needs a method forward(self, ...)")

    def fusible(self) -> Sequence[Sequence[str]]:
        """Names of children in rows: those of a row `forward` calls one on the result of the other, and uses only the
        last result. What `fastconv.nn.fuse` may join; a subclass with another `forward` has to say it anew.
        """
        return ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        for hook in self._forward_hooks:
            replaced = hook(self, args, output)
            output = output if replaced is None else replaced
        return output

    def register_forward_hook(self, hook: Hook) -> HookHandle:
        """Call `hook(module, inputs, output)` after every forward; a result other than None replaces the output."""
        self._forward_hooks = (*self._forward_hooks, hook)
        return HookHandle(self, hook)

    def register_buffer(self, name: str, array: Array) -> None:
        """Make `array` the attribute `name`, part of `state_dict()` but not learned (running statistics)."""
        self._buffer_names = (*self._buffer_names, name)
        setattr(self, name, array)

    # What is inside

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one."""
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Module))

    def children(self) -> Iterator[Module]:
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """The module itself, under the name `prefix`, and all below it, parents first; each once."""
        seen: set[int] = set()
        for name, module in self._walk(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """All parameters with their dotted names; one that is shared comes once, under its first name."""
        seen: set[Parameter] = set()
        for path, module in self.named_modules(prefix):
            for name, parameter in module._own_parameters():
                if parameter not in seen:
                    seen.add(parameter)
                    yield _join(path, name), parameter

    def parameters(self) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """All buffers (arrays) with their dotted names."""
        for path, module in self.named_modules(prefix):
            for name, buffer in module._own_buffers():
                yield _join(path, name), buffer

    def buffers(self) -> Iterator[Array]:
        return (buffer for _, buffer in self.named_buffers())

    def _walk(self, path: str) -> Iterator[tuple[str, Module]]:
        yield path, self
        for name, child in self.named_children():
            yield from child._walk(_join(path, name))

    def _own_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Parameter))

    def _own_buffers(self) -> Iterator[tuple[str, Array]]:
        return ((name, vars(self)[name]) for name in self._buffer_names)

    # State

    def state_dict(self) -> dict[str, Array]:
        """The arrays of all parameters and buffers by PyTorch's keys: the arrays themselves, not copies."""
        state: dict[str, Array] = {}
        for path, module in self._walk(""):
            for name, parameter in module._own_parameters():
                state[_join(path, name)] = parameter.data
            for name, buffer in module._own_buffers():
                state[_join(path, name)] = buffer
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy arrays (or anything `numpy.asarray` takes) into the parameters and buffers of the same names.

        Values are converted to the dtype and device of their place. Everything is checked before anything changes:
        ValueError names every mis-shaped array and, with `strict`, every key that is missing or unexpected, TypeError
        what is no array.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"load_state_dict: state must map names to arrays, got {type(state).__name__}; "
                "fastconv.io.safetensors.load_safetensors(path) reads a file"
            )
        own = self.state_dict()
        missing = [key for key in own if key not in state]
        unexpected = [key for key in state if key not in own]
        given = {key: _as_array(key, state[key]) for key in own if key in state}
        problems = [
            f"{key} has shape {tuple(array.shape)} and dtype {array.dtype}, expected {own[key].shape} {own[key].dtype}"
            for key, array in given.items()
            if tuple(array.shape) != own[key].shape
            or not (array.dtype.kind in "iub" or backends.is_floating(array.dtype))
        ]
        if strict and missing:
            problems.append("missing keys: " + ", ".join(missing))
        if strict and unexpected:
            problems.append("unexpected keys: " + ", ".join(unexpected))
        if problems:
            relaxed = "; strict=False passes over missing and unexpected keys" if strict else ""
            raise ValueError(
                f"load_state_dict: the state does not fit {type(self).__name__}: {'; '.join(problems)}{relaxed}"
            )
        for key, array in given.items():
            with backends.on(own[key]):
                own[key][...] = to_device(array, backends.device_of(own[key]))
        return IncompatibleKeys(missing, unexpected)

    def to(self: M, device: str | None = None, dtype: Any = None) -> M:
        """Move parameters, gradients and buffers to a device, floating ones to a dtype; returns the module itself."""
        if device is not None:
            backends.get(device)  # raises before anything has moved
        if dtype is not None:
            dtype = floating_dtype("to", dtype)
        for module in self.modules():
            for _, parameter in module._own_parameters():
                parameter.data = _moved(parameter.data, device, dtype)
                if parameter.grad is not None:
                    parameter.grad = _moved(parameter.grad, device, dtype)
            for name, buffer in module._own_buffers():
                setattr(module, name, _moved(buffer, device, dtype))
        return self

    # Modes

    def train(self: M, mode: bool = True) -> M:
        """Training mode for this module and all below: dropout drops, batch norm uses the statistics of the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Evaluation mode for this module and all below."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Freeze (False) or thaw all parameters."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Call `function` on every module below, children first, then on this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # Display

    def extra_repr(self) -> str:
        """The arguments to show between the parentheses of `repr`."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        children = self._repr_children()
        name = type(self).__name__
        if not children:
            return f"{name}({extra})"
        lines = ([extra] if extra else []) + children
        return f"{name}(\n  " + "\n  ".join(lines) + "\n)"

    def _repr_children(self) -> list[str]:
        return [f"({name}): {indented(child)}" for name, child in self.named_children()]


def indented(module: Module) -> str:
    """The repr of a module as a part of another one's."""
    return repr(module).replace("\n", "\n  ")


def floating_dtype(op: str, dtype: Any) -> np.dtype[Any]:
    """The dtype that the argument `dtype` of a module stands for: float32 for None; TypeError for what is no float.

    With float16 and bfloat16 (which NumPy has as soon as ml_dtypes is imported) a module computes on a GPU only.
    """
    result = np.dtype(np.float32 if dtype is None else dtype)
    if result.name not in ("float32", "float64", *backends.HALF):
        raise TypeError(f'{op}: dtype must be "float32" or "float64", got {result}; on a GPU also float16 and bfloat16')
    return result


def _as_array(key: str, value: Any) -> Array:
    try:
        array = backends.adopted(raw(value))
        return np.asarray(value) if array is None else array
    except TypeError as error:  # PyTorch's bfloat16
        raise TypeError(
            f"load_state_dict: {key} cannot become a NumPy array ({error}); of a PyTorch tensor take "
            "tensor.detach().float()"
        ) from error


def _moved(array: Array, device: str | None, dtype: Any) -> Array:
    if dtype is not None and backends.is_floating(array.dtype):
        with backends.on(array):
            array = array.astype(dtype, copy=False)
    return array if device is None else to_device(array, device)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
