"""Where did the first NaN or infinity come from? The forward pass is run once more with a probe on every module."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from fastconv import backends
from fastconv.autograd import no_grad, raw
from fastconv.nn import Module

Array = Any


def not_finite(model: Module) -> list[str]:
    """Names of the parameters and buffers that hold a NaN or an infinity."""
    return [name for name, array in model.state_dict().items() if not _finite(array)]


def origin(model: Module, x: Array) -> str:
    """A clause naming the first layer whose output for `x` is not finite, and what already was not before it.

    Runs the model on `x`, without recording: the caller restores running statistics and the state of the generator.
    """
    if not _finite(x):
        return f"the input batch itself is not finite (shape {tuple(x.shape)}); look at the data"
    broken = not_finite(model)
    state = f"already not finite before this step: {', '.join(broken)}; " if broken else ""
    found = _first_bad_output(model, x)
    if found is None:
        return f"{state}every layer's output is finite, so it arises in the loss function or in the targets"
    name, module, output = found
    layer = f"{name!r} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"
    return f"{state}the first layer whose output is not finite is {layer}, output shape {tuple(output.shape)}"


def _first_bad_output(model: Module, x: Array) -> tuple[str, Module, Array] | None:
    found: list[tuple[str, Module, Array]] = []
    names = {id(module): name for name, module in model.named_modules()}

    def probe(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        for part in output if isinstance(output, (tuple, list)) else (output,):
            if not found and hasattr(raw(part), "dtype") and not _finite(raw(part)):
                found.append((names[id(module)], module, raw(part)))

    with ExitStack() as probes, no_grad():
        for module in model.modules():
            probes.enter_context(module.register_forward_hook(probe))
        model(x)
    return found[0] if found else None


def _finite(array: Array) -> bool:
    with backends.on(array):
        return not backends.is_floating(array.dtype) or bool(backends.of(array).xp.isfinite(array).all())
