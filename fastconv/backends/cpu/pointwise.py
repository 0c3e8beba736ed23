"""Elementwise activations of the CPU backend and their gradients. See contract.py.

One loop for each activation and direction, over flat arrays, without a branch: LLVM vectorises all of them, and only
those that are asked for are compiled. The cheap ones cost one pass over memory, the others one or two exponentials
(elementary.py) per element. Gradients are written so that they neither cancel nor overflow in the tails. Large results
of the rectifier are stored past the caches: it computes so little that the read of what is overwritten would show.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastconv.backends.cpu.elementary import (
    exp,
    exp_negative,
    expm1_negative,
    fma,
    gaussian,
    like,
    log1p_unit,
    magnitude,
    normal_cdf,
    sigmoid,
    sigmoid_and_slope,
    tanh,
)
from fastconv.backends.cpu.host import VECTOR_BYTES, inlined, past_caches, pointer, routine
from fastconv.backends.cpu.memory import empty
from fastconv.backends.cpu.simd import fence, stream_unless
from fastconv.backends.cpu.team import shared
from fastconv.backends.threads import share

Array = npt.NDArray[Any]

# Klambauer et al. (2017), "Self-normalizing neural networks"
_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717
_SQRT_1_2PI = 0.39894228040143267794
# Hendrycks and Gimpel (2016), "Gaussian error linear units": gelu(x) ≈ x · sigmoid(_GELU_LINEAR·x + _GELU_CUBIC·x³)
_GELU_LINEAR = 1.5957691216057307117
_GELU_CUBIC = 0.044715 * _GELU_LINEAR


def activation_forward(x: Array, name: str, alpha: float) -> Array:
    """See contract.Backend.activation_forward."""
    loop, ns = _FORWARD[name]
    y = empty(x.shape, x.dtype)
    if name == "relu" and past_caches(y.nbytes, x.nbytes):
        loop = _relu_streamed
    share(loop, (x.reshape(-1), y.reshape(-1), float(alpha)), x.size, ns * x.nbytes)
    return y


def activation_backward(gy: Array, x: Array, y: Array, name: str, alpha: float) -> Array:
    """See contract.Backend.activation_backward."""
    loop, ns = _BACKWARD[name]
    gx = empty(gy.shape, gy.dtype)
    if name == "relu" and past_caches(gx.nbytes, gy.nbytes + y.nbytes):
        loop = _relu_grad_streamed
    operand = y if name in _FROM_RESULT else x
    share(loop, (gy.reshape(-1), operand.reshape(-1), gx.reshape(-1), float(alpha)), gy.size, ns * gy.nbytes)
    return gx


# Every loop slices first: from 0 to the length of a slice LLVM sees that no index is negative.


@routine
def _relu_part(x: Any, y: Any, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = like(x[i], 0.0) if x[i] < like(x[i], 0.0) else x[i]  # a NaN is not smaller, and stays


@routine
def _relu_grad_part(gy: Any, y: Any, gx: Any, begin: int, end: int) -> None:
    gy, y, gx = gy[begin:end], y[begin:end], gx[begin:end]
    for i in range(y.size):
        gx[i] = like(y[i], 0.0) if y[i] <= like(y[i], 0.0) else gy[i]


@shared
def _relu(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    _relu_part(x, y, begin, end)


@shared
def _relu_grad(gy: Any, y: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    _relu_grad_part(gy, y, gx, begin, end)


@shared
def _relu_streamed(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    first, vectors = _whole_vectors(y, begin, end)
    last = first + vectors * (VECTOR_BYTES // y.itemsize)
    _relu_part(x, y, begin, first)
    if vectors > 0:
        stream_unless(x, "<", vectors, pointer(y, first), pointer(x, first), pointer(x, first))
    _relu_part(x, y, last, end)
    fence()


@shared
def _relu_grad_streamed(gy: Any, y: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    first, vectors = _whole_vectors(gx, begin, end)
    last = first + vectors * (VECTOR_BYTES // gx.itemsize)
    _relu_grad_part(gy, y, gx, begin, first)
    if vectors > 0:
        stream_unless(gy, "<=", vectors, pointer(gx, first), pointer(gy, first), pointer(y, first))
    _relu_grad_part(gy, y, gx, last, end)
    fence()


@routine
def _whole_vectors(y: Any, begin: int, end: int) -> tuple[int, int]:
    """The first of the elements begin ≤ i < end whose address is aligned to whole vectors, and their number then."""
    lanes = VECTOR_BYTES // y.itemsize
    first = min(end, begin + -(pointer(y, begin) // y.itemsize) % lanes)
    return first, (end - first) // lanes


@shared
def _leaky_relu(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = x[i] if x[i] > like(x[i], 0.0) else x[i] * like(x[i], alpha)


@shared
def _leaky_relu_grad(gy: Any, x: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, x, gx = gy[begin:end], x[begin:end], gx[begin:end]
    for i in range(x.size):
        gx[i] = gy[i] if x[i] > like(x[i], 0.0) else gy[i] * like(x[i], alpha)


@shared
def _elu(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = x[i] if x[i] > like(x[i], 0.0) else like(x[i], alpha) * expm1_negative(x[i])


@shared
def _elu_grad(gy: Any, x: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, x, gx = gy[begin:end], x[begin:end], gx[begin:end]
    for i in range(x.size):
        gx[i] = gy[i] if x[i] > like(x[i], 0.0) else gy[i] * (like(x[i], alpha) * exp(x[i]))


@shared
def _selu(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        bent = x[i] if x[i] > like(x[i], 0.0) else like(x[i], _SELU_ALPHA) * expm1_negative(x[i])
        y[i] = like(x[i], _SELU_SCALE) * bent


@shared
def _selu_grad(gy: Any, x: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, x, gx = gy[begin:end], x[begin:end], gx[begin:end]
    for i in range(x.size):
        slope = like(x[i], 1.0) if x[i] > like(x[i], 0.0) else like(x[i], _SELU_ALPHA) * exp(x[i])
        gx[i] = gy[i] * (like(x[i], _SELU_SCALE) * slope)


@shared
def _gelu(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = x[i] * normal_cdf(x[i], gaussian(x[i]))


@shared
def _gelu_grad(gy: Any, x: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, x, gx = gy[begin:end], x[begin:end], gx[begin:end]
    for i in range(x.size):
        density = gaussian(x[i])
        gx[i] = gy[i] * fma(x[i] * like(x[i], _SQRT_1_2PI), density, normal_cdf(x[i], density))


@shared
def _gelu_tanh(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = x[i] * sigmoid(x[i] * fma(like(x[i], _GELU_CUBIC), x[i] * x[i], like(x[i], _GELU_LINEAR)))


@shared
def _gelu_tanh_grad(gy: Any, x: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, x, gx = gy[begin:end], x[begin:end], gx[begin:end]
    for i in range(x.size):
        gx[i] = gy[i] * _gelu_tanh_slope(x[i])


@inlined
def _gelu_tanh_slope(x: Any) -> Any:
    end = like(x, 30.0)  # from here on the slope is 1 or 0, and larger cubes would overflow
    x = end if x > end else x
    x = -end if x < -end else x
    square = x * x
    s, slope = sigmoid_and_slope(x * fma(like(x, _GELU_CUBIC), square, like(x, _GELU_LINEAR)))
    inner_slope = fma(like(x, 3.0 * _GELU_CUBIC), square, like(x, _GELU_LINEAR))
    return fma(x * inner_slope, slope, s)


@shared
def _silu(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = x[i] * sigmoid(x[i])


@shared
def _silu_grad(gy: Any, x: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, x, gx = gy[begin:end], x[begin:end], gx[begin:end]
    for i in range(x.size):
        s, slope = sigmoid_and_slope(x[i])
        gx[i] = gy[i] * fma(x[i], slope, s)


@shared
def _sigmoid(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = sigmoid(x[i])


@shared
def _sigmoid_grad(gy: Any, y: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, y, gx = gy[begin:end], y[begin:end], gx[begin:end]
    for i in range(y.size):
        gx[i] = gy[i] * (y[i] * (like(y[i], 1.0) - y[i]))


@shared
def _tanh(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        y[i] = tanh(x[i])


@shared
def _tanh_grad(gy: Any, y: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, y, gx = gy[begin:end], y[begin:end], gx[begin:end]
    for i in range(y.size):
        gx[i] = gy[i] * ((like(y[i], 1.0) - y[i]) * (like(y[i], 1.0) + y[i]))


@shared
def _softplus(x: Any, y: Any, alpha: float, who: int, begin: int, end: int) -> None:
    x, y = x[begin:end], y[begin:end]
    for i in range(x.size):
        rest = log1p_unit(exp_negative(-magnitude(x[i])))
        bent = rest if x[i] < like(x[i], 0.0) else x[i] + rest
        y[i] = x[i] if x[i] > like(x[i], alpha) else bent


@shared
def _softplus_grad(gy: Any, x: Any, gx: Any, alpha: float, who: int, begin: int, end: int) -> None:
    gy, x, gx = gy[begin:end], x[begin:end], gx[begin:end]
    for i in range(x.size):
        gx[i] = gy[i] if x[i] > like(x[i], alpha) else gy[i] * sigmoid(x[i])


# The loop and its nanoseconds per byte of one array.
_FORWARD = {
    "relu": (_relu, 0.1),
    "leaky_relu": (_leaky_relu, 0.1),
    "elu": (_elu, 0.15),
    "selu": (_selu, 0.15),
    "gelu": (_gelu, 0.3),
    "gelu_tanh": (_gelu_tanh, 0.15),
    "silu": (_silu, 0.15),
    "sigmoid": (_sigmoid, 0.15),
    "tanh": (_tanh, 0.15),
    "softplus": (_softplus, 0.2),
}
_BACKWARD = {
    "relu": (_relu_grad, 0.1),
    "leaky_relu": (_leaky_relu_grad, 0.1),
    "elu": (_elu_grad, 0.15),
    "selu": (_selu_grad, 0.15),
    "gelu": (_gelu_grad, 0.3),
    "gelu_tanh": (_gelu_tanh_grad, 0.2),
    "silu": (_silu_grad, 0.2),
    "sigmoid": (_sigmoid_grad, 0.1),
    "tanh": (_tanh_grad, 0.1),
    "softplus": (_softplus_grad, 0.15),
}
_FROM_RESULT = {"relu", "sigmoid", "tanh"}
