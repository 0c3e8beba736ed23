"""An inference copy of a model: batch norm folded into the layer before it, activations computed by the convolution."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from fastconv import backends
from fastconv.nn import activation
from fastconv.nn.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from fastconv.nn.linear import Identity, Linear
from fastconv.nn.module import Module, Parameter
from fastconv.nn.normalisation import BatchNorm1d, BatchNorm2d, BatchNorm3d

Array = Any
M = TypeVar("M", bound=Module)

_CONVOLUTIONS = (Conv1d, Conv2d, Conv3d)
_TRANSPOSED = (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d)
_NORMS = {
    Linear: BatchNorm1d,
    Conv1d: BatchNorm1d,
    Conv2d: BatchNorm2d,
    Conv3d: BatchNorm3d,
    ConvTranspose1d: BatchNorm1d,
    ConvTranspose2d: BatchNorm2d,
    ConvTranspose3d: BatchNorm3d,
}
"""The layers that take in a batch norm, and which. Exact types: a subclass may compute something else."""

_ACTIVATIONS = {
    activation.ReLU: "relu",
    activation.SELU: "selu",
    activation.SiLU: "silu",
    activation.Sigmoid: "sigmoid",
    activation.Tanh: "tanh",
}


def fuse(model: M) -> M:
    """A copy of `model` for inference, with the same results up to rounding as `model.eval()`, and faster.

    Batch norm with running statistics is folded into the convolution, transposed convolution or linear layer before it
    (computed in float64), and an activation without parameters becomes the `activation` of the convolution before it;
    an `Identity` stands where they were. Joined are neighbours in a `Sequential`, and what the `fusible()` of any other
    module names, unless a forward hook sits on one of them. A `Linear` before a `BatchNorm1d` is taken to work on
    (N, in_features). Whoever reads the result of a part, as in `features[0](x)`, gets that of the fused part.

    The copy shares no memory with `model`, is in evaluation mode whatever the mode of `model`, and its parameters
    require no gradient. Its `state_dict()` has the keys of what is left: it loads into `fuse` of an equal model.

    Raises TypeError for what is no Module, ValueError where `fusible()` names what is no child.
    """
    if not isinstance(model, Module):
        raise TypeError(f"fuse: model must be a Module, got {type(model).__name__}")
    fused = copy.deepcopy(model).requires_grad_(False)
    fused.zero_grad()
    for module in list(fused.modules()):
        for names in _rows(module):
            _join_neighbours(module, names)
    return fused.eval()


def _rows(module: Module) -> Sequence[Sequence[str]]:
    """`module.fusible()`, or nothing if the class that says so is not the one whose `forward` runs."""
    for kind in type(module).__mro__:  # the first that defines either of them
        if "fusible" in vars(kind):
            return module.fusible()
        if "forward" in vars(kind):
            break
    return ()


def _join_neighbours(parent: Module, names: Sequence[str]) -> None:
    """Put joined modules in the place of the first of them. Only places change: a module may stand in several."""
    children = dict(parent.named_children())
    if unknown := [name for name in names if name not in children]:
        raise ValueError(f"fuse: {type(parent).__name__}.fusible() names {', '.join(unknown)}, no module of it")
    last = None
    for name in names:
        joined = None if last is None else _joined(children[last], children[name])
        if joined is None:
            last = name
        else:
            children[last] = joined
            setattr(parent, last, joined)
            setattr(parent, name, Identity())


def _joined(first: Any, second: Any) -> Any:
    """One module that computes second(first(x)), or None if there is none."""
    if first._forward_hooks or second._forward_hooks or getattr(first, "activation", None) is not None:
        return None
    if _folds(first, second):
        return _folded(first, second)
    if type(first) in _CONVOLUTIONS and (name := _activation_name(second)):
        joined = copy.copy(first)
        joined.activation = name
        return joined
    return None


def _activation_name(module: Module) -> str | None:
    if type(module) is activation.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return _ACTIVATIONS.get(type(module))


def _folds(layer: Any, norm: Any) -> bool:
    """Whether the norm is one with running statistics that fits the layer; a model that fails goes on failing."""
    if _NORMS.get(type(layer)) is not type(norm) or norm.running_mean is None:
        return False
    channels = layer.out_features if type(layer) is Linear else layer.out_channels
    weight, mean = layer.weight.data, norm.running_mean
    return bool(
        norm.num_features == channels
        and mean.dtype == weight.dtype
        and backends.device_of(mean) == backends.device_of(weight)
    )


def _folded(layer: Any, norm: Any) -> Any:
    """A layer with weight · scale and (bias − mean) · scale + shift; scale = norm's weight / sqrt(var + eps)."""
    weight = layer.weight.data
    scale = (norm.running_var.astype("float64") + norm.eps) ** -0.5
    if norm.weight is not None:
        scale *= norm.weight.data
    bias = -norm.running_mean * scale if layer.bias is None else (layer.bias.data - norm.running_mean) * scale
    if norm.bias is not None:
        bias += norm.bias.data
    if type(layer) in _TRANSPOSED:  # (in_channels, out_channels / groups, ...): the groups lie along the first axis
        rows = layer.in_channels // layer.groups
        per_weight = scale.reshape(layer.groups, -1).repeat(rows, axis=0)
        per_weight = per_weight.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    else:
        per_weight = scale.reshape(-1, *[1] * (weight.ndim - 1))
    folded = copy.copy(layer)
    folded.weight = Parameter((weight * per_weight).astype(weight.dtype), requires_grad=False)
    folded.bias = Parameter(bias.astype(weight.dtype), requires_grad=False)
    return folded
