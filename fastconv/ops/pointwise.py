"""Elementwise operations, softmax and dropout, with their gradients. Names and arguments of `torch.nn.functional`.

All take an array or a Tensor of any shape, float32 or float64, and give back one of the same kind, shape and dtype.
They raise TypeError for other kinds and dtypes. float32 is computed in float32, to a few units in the last place.
NaN stays NaN; infinities come out as the formula has them.
"""

from __future__ import annotations

from typing import Any

from fastconv import backends
from fastconv import random as fastconv_random
from fastconv.autograd import record
from fastconv.geometry import arguments
from fastconv.ops._arguments import floating, on_its_device

Array = Any

ACTIVATIONS = ("relu", "selu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
"""Names without a parameter: what `activation=` of a convolution takes."""

_FROM_RESULT = ("relu", "sigmoid", "tanh")
"""Their slope follows from the result, so the input need not be kept for the backward pass."""


def relu(input: Any) -> Any:
    """max(x, 0)."""
    return _activation("relu", input, "relu")


def leaky_relu(input: Any, negative_slope: float = 0.01) -> Any:
    """x for x > 0, else negative_slope · x."""
    return _activation("leaky_relu", input, "leaky_relu", negative_slope)


def elu(input: Any, alpha: float = 1.0) -> Any:
    """x for x > 0, else alpha · (eˣ − 1). Clevert et al. 2015."""
    return _activation("elu", input, "elu", alpha)


def selu(input: Any) -> Any:
    """1.0507… · elu(x, 1.6732…), whose activations normalise themselves. Klambauer et al. 2017."""
    return _activation("selu", input, "selu")


def gelu(input: Any, approximate: str = "none") -> Any:
    """x · Φ(x), Φ the distribution function of the normal distribution. Hendrycks and Gimpel 2016.

    approximate="tanh": x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))). Any other word raises ValueError.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return _activation("gelu", input, "gelu" if approximate == "none" else "gelu_tanh")


def silu(input: Any) -> Any:
    """x · sigmoid(x), also called Swish."""
    return _activation("silu", input, "silu")


def sigmoid(input: Any) -> Any:
    """1 / (1 + e⁻ˣ)."""
    return _activation("sigmoid", input, "sigmoid")


def tanh(input: Any) -> Any:
    """The hyperbolic tangent."""
    return _activation("tanh", input, "tanh")


@on_its_device
def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """ln(1 + e^(beta·x)) / beta; x itself where beta·x > threshold. Raises ValueError unless beta > 0."""
    if not beta > 0:
        raise ValueError(f"softplus: beta must be positive, got {beta}")
    if beta == 1.0:
        return _activation("softplus", input, "softplus", threshold)
    x = floating("softplus", input=input)
    backend = backends.of(x)
    scaled = x * x.dtype.type(beta)
    y = backend.activation_forward(scaled, "softplus", threshold)
    return record(
        y / y.dtype.type(beta),
        (input,),
        lambda gy: (backend.activation_backward(gy, scaled, y, "softplus", threshold),),
    )


def softmax(input: Any, dim: int) -> Any:
    """eˣ / Σ eˣ along the axis `dim`; a number counts as a row of one. ValueError for an axis that is not there."""
    return _softmax("softmax", input, dim, log=False)


def log_softmax(input: Any, dim: int) -> Any:
    """x − ln Σ eˣ along the axis `dim`; a number counts as a row of one. ValueError for an axis that is not there."""
    return _softmax("log_softmax", input, dim, log=True)


@on_its_device
def dropout(input: Any, p: float = 0.5, training: bool = True) -> Any:
    """In training, set each element to 0 with probability p and divide the others by 1 − p; else the input itself.

    Draws from the generator of `fastconv.manual_seed`. Srivastava et al. 2014, in the inverted form.
    Raises ValueError unless 0 ≤ p ≤ 1.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be a probability, 0 to 1, got {p}")
    x = floating("dropout", input=input)
    if not training or p == 0.0:
        return record(x, (input,), lambda gy: (gy,))
    xp = backends.of(x).xp
    kept = xp.asarray(fastconv_random.generator().random(x.shape, "float32") >= p)
    scale = x.dtype.type(0.0 if p == 1.0 else 1.0 / (1.0 - p))

    def thinned(values: Array) -> Array:
        return xp.where(kept, values * scale, 0).astype(x.dtype, copy=False)  # CuPy's has no bfloat16

    return record(thinned(x), (input,), lambda gy: (thinned(gy),))


def check_activation(op: str, name: str) -> None:
    """Raise ValueError unless `name` is an activation without a parameter."""
    if name not in ACTIVATIONS:
        names = ", ".join(f'"{known}"' for known in ACTIVATIONS)
        raise ValueError(
            f"{op}: activation must be None or one of {names}, got {name!r}; "
            f"apply any other to the result, e.g. leaky_relu({op}(...), 0.1)"
        )


def apply(name: str, input: Any) -> Any:
    """The activation called `name`, one of `ACTIVATIONS`."""
    return _activation(name, input, name)


def _activation(op: str, input: Any, name: str, alpha: float = 0.0) -> Any:
    x = floating(op, input=input)
    backend = backends.of(x)
    y = backend.activation_forward(x, name, alpha)
    kept = y if name in _FROM_RESULT else x
    return record(y, (input,), lambda gy: (backend.activation_backward(gy, kept, kept, name, alpha),))


def _softmax(op: str, input: Any, dim: int, log: bool) -> Any:
    x = floating(op, input=input)
    axis = arguments.axis(op, "dim", dim, x.shape)
    backend, shape = backends.of(x), x.shape or (1,)  # a number is a row of one, as in PyTorch
    y = backend.softmax(x.reshape(shape), axis, log)

    def backward(gy: Array) -> tuple[Array]:
        return (backend.softmax_backward(gy.reshape(shape), y, axis, log).reshape(x.shape),)

    return record(y.reshape(x.shape), (input,), backward)
