"""Activations and their gradients, one pass each: kernels/pointwise.cu."""

from __future__ import annotations

from itertools import product
from typing import Any

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for, packs
from fastconv.backends.cuda.module import TYPES, Template, computed, size

Array = Any

ACTIVATIONS = "relu leaky_relu elu selu gelu gelu_tanh silu sigmoid tanh softplus".split()
_FROM_RESULT = ("relu", "sigmoid", "tanh")

_CHOICES = list(product(TYPES.values(), map(str.upper, ACTIVATIONS)))
_ACTIVATION = Template("pointwise.cu", "activation", _CHOICES)
_ACTIVATION_GRAD = Template("pointwise.cu", "activation_grad", _CHOICES)
_ADD_RELU = Template("pointwise.cu", "add_relu", product(TYPES.values()))


@primitive
def activation_forward(x: Array, name: str, alpha: float) -> Array:
    """See contract.Backend.activation_forward."""
    y = platform.current().xp.empty_like(x)
    kernel = _ACTIVATION(TYPES[x.dtype.name], name.upper())
    kernel(blocks_for(packs(x)), (THREADS,), x, y, size(x), computed(x.dtype, alpha))
    return y


@primitive
def activation_backward(gy: Array, x: Array, y: Array, name: str, alpha: float) -> Array:
    """See contract.Backend.activation_backward."""
    gx = platform.current().xp.empty_like(gy)
    operand = y if name in _FROM_RESULT else x
    kernel = _ACTIVATION_GRAD(TYPES[gy.dtype.name], name.upper())
    kernel(blocks_for(packs(gy)), (THREADS,), gy, operand, gx, size(gy), computed(gy.dtype, alpha))
    return gx


def add(a: Any, b: Any) -> Any:
    """See contract.Backend.add."""
    return a + b  # CuPy's: one pass, on the device of both


@primitive
def add_relu(a: Array, b: Array) -> Array:
    """See contract.Backend.add_relu."""
    y = platform.current().xp.empty_like(a)
    _ADD_RELU(TYPES[a.dtype.name])(blocks_for(packs(a)), (THREADS,), a, b, y, size(a))
    return y
