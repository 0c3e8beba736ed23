"""JAX: functions that XLA compiles, for the CPU or for a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.case import Call, Case
from bench.competitors.base import Competitor, NotOffered
from fastconv.backends import is_floating

if TYPE_CHECKING:
    from bench.convolution import Convolution, Operands
    from bench.layers import Layer, Optimizer


class Jax(Competitor):
    """Everything under `jax.jit`, gradients by `jax.vjp`; a call ends when its result is ready.

    XLA makes one pool for the whole process when JAX is first used, a thread for each core the process may use. The
    environment variable PJRT_NPROC, read at that moment, is its only knob: it is set here before anything else.

    On a GPU calls return at once, and JAX takes memory as it needs it, a quarter of the device's at most.
    """

    packages = ("jax", "jaxlib")

    def __init__(self, threads: int, device: str = "cpu") -> None:
        super().__init__(threads, device)
        os.environ["PJRT_NPROC"] = str(threads)
        if device == "cpu":
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        else:
            os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
            os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.25"
        import jax

        jax.config.update("jax_enable_x64", True)  # or float64 would silently become float32
        self.jax = jax
        self._compiled: dict[tuple[str, str], tuple[Callable[..., Any], ...]] = {}
        if device == "cuda":
            try:
                jax.devices("cuda")
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise NotOffered(f'JAX finds no GPU ({reason}): pip install "jax[cuda13]" or "jax[cuda12]"') from None

    def precision(self, level: str) -> AbstractContextManager[Any]:
        """XLA computes float32 on a GPU in TF32 unless told otherwise."""
        if self.device == "cpu":
            return super().precision(level)
        return self.jax.default_matmul_precision("tensorfloat32" if level == "fast" else "highest")

    def release(self) -> None:
        self._compiled.clear()

    def wait(self, output: Any) -> None:
        self.jax.block_until_ready(output)

    def _ready(self, output: Any) -> Any:
        """The end of a call: on the CPU its result is there."""
        return self.jax.block_until_ready(output) if self.device == "cpu" else output

    def convolution(self, case: Convolution, direction: str, operands: Operands) -> Call:
        """With the channels last, which suits XLA's convolution better than NCHW on nearly every case."""
        geometry, rank = case.geometry, case.geometry.rank
        axes = "DHW"[-rank:]
        layout = f"N{axes}C", f"{axes}IO", f"N{axes}C"
        image, kernel = (0, *range(2, rank + 2), 1), (*range(2, rank + 2), 1, 0)

        def conv(x: Any, weight: Any, bias: Any) -> Any:
            window = geometry.stride, geometry.padding, None, geometry.dilation
            return self.jax.lax.conv_general_dilated(x, weight, *window, layout, geometry.groups) + bias

        given = [operands.x.transpose(image), operands.weight.transpose(kernel), operands.bias]
        call = self._call(case, conv, direction, given, operands.grad_output.transpose(image))
        if direction == "forward":
            return lambda: _InOurLayout(call(), image)

        def backward() -> list[Any]:
            gx, gw, gb = call()
            return [_InOurLayout(gx, image), _InOurLayout(gw, kernel), gb]

        return backward

    def layer(
        self, case: Layer, direction: str, operands: Sequence[np.ndarray | None], grad_output: np.ndarray
    ) -> Call:
        given = [array for array in operands if array is not None]
        return self._call(case, self._function(case), direction, given, grad_output)

    def optimizer(self, case: Optimizer, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> Call:
        jnp = self.jax.numpy
        rule, averages = {"SGD": (_sgd, 1), "AdamW": (_adamw, 2)}[case.optimizer]
        state = [[jnp.asarray(x), *(jnp.zeros_like(x) for _ in range(averages))] for x in parameters]
        given = [jnp.asarray(array) for array in gradients]
        update = self.jax.jit(
            lambda state, gradients, step: [rule(jnp, s, g, step, case.arguments) for s, g in zip(state, gradients)],
            donate_argnums=0,
        )
        steps = 0

        def step() -> list[Any]:
            nonlocal state, steps
            steps += 1
            state = self._ready(update(state, given, steps))
            return [arrays[0] for arrays in state]

        return step

    def _call(
        self,
        case: Case,
        function: Callable[..., Any],
        direction: str,
        operands: Sequence[np.ndarray],
        grad: np.ndarray,
    ) -> Call:
        """Compiled once for all calls of a line."""
        key = case.name, direction
        if key not in self._compiled:
            floating = sum(is_floating(array.dtype) for array in operands)
            self._compiled[key] = self._compile(function, direction, floating)
        arrays = [self.jax.numpy.asarray(array) for array in operands]
        if direction == "forward":
            (forward,) = self._compiled[key]
            return lambda: self._ready(forward(*arrays))
        record, backward = self._compiled[key]
        vjp, cotangent = record(*arrays), self.jax.numpy.asarray(grad)
        return lambda: self._ready(backward(vjp, cotangent))

    def _compile(self, function: Callable[..., Any], direction: str, floating: int) -> tuple[Callable[..., Any], ...]:
        """Forward: `function`. Backward: what gives its vjp in the first `floating` operands, and what that gives."""
        jit = self.jax.jit
        if direction == "forward":
            return (jit(function),)

        def record(*arrays: Any) -> Any:
            _, vjp = self.jax.vjp(lambda *inputs: function(*inputs, *arrays[floating:]), *arrays[:floating])
            return vjp

        return jit(record), jit(lambda vjp, cotangent: vjp(cotangent))

    def _function(self, case: Layer) -> Callable[..., Any]:
        """A layer in terms of JAX, for the operands that are arrays."""
        jnp, lax, nn = self.jax.numpy, self.jax.lax, self.jax.nn
        if "transpose" in case.function:
            return lambda x, weight, bias: (
                _transposed(lax, x, weight, case.arguments["stride"]) + bias.reshape(-1, *(1,) * case.rank)
            )
        if "pool" in case.function:
            kernel, stride, padding = ((a, a, *sizes) for a, sizes in zip((1, 1, 0), case.window))
            window = (kernel, stride, [(p, p) for p in padding])
            if case.function.startswith("max"):
                return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *window)
            return lambda x: lax.reduce_window(x, 0.0, lax.add, *window) / np.prod(kernel).astype("float32")
        if case.function == "interpolate":
            method = "nearest" if case.arguments["mode"] == "nearest" else "linear"
            return lambda x: self.jax.image.resize(x, case.output_shape, method, antialias=False)
        if case.function == "batch_norm":
            return lambda x, weight, bias: _batch_norm(jnp, lax, x, weight, bias)
        if case.function.endswith("_norm"):
            return lambda x, weight, bias: _row_norm(case.function, case.second, lax, x, weight, bias)
        if case.function == "cross_entropy":
            return lambda x, target: -jnp.take_along_axis(nn.log_softmax(x, 1), jnp.expand_dims(target, 1), 1).mean()
        if case.function == "gelu":
            return partial(nn.gelu, approximate=False)
        return getattr(nn, case.function)


class _InOurLayout:
    """An array of JAX whose axes are `axes` of ours: NumPy sees ours. Nothing moves before it looks."""

    def __init__(self, array: Any, axes: Sequence[int]) -> None:
        self.array, self.axes = array, axes

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.array, dtype).transpose(np.argsort(self.axes))

    def block_until_ready(self) -> None:
        self.array.block_until_ready()


def _transposed(lax: Any, x: Any, weight: Any, stride: int) -> Any:
    """The gradient of a convolution in its input: a convolution of the spread-out x with the flipped kernel."""
    rank = x.ndim - 2
    flipped = weight[(slice(None), slice(None), *[slice(None, None, -1)] * rank)].swapaxes(0, 1)
    padding = [(k - 1, k - 1) for k in weight.shape[2:]]
    return lax.conv_general_dilated(x, flipped, (1,) * rank, padding, lhs_dilation=(stride,) * rank)


def _batch_norm(jnp: Any, lax: Any, x: Any, weight: Any, bias: Any) -> Any:
    axes, each = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    mean, variance = x.mean(axes), x.var(axes)
    scale = weight * lax.rsqrt(variance + 1e-5)
    return x * scale.reshape(each) + (bias - mean * scale).reshape(each)


def _row_norm(function: str, second: Any, lax: Any, x: Any, weight: Any, bias: Any) -> Any:
    """Layer norm over the last axis, group norm, or instance norm, which has a group for each channel."""
    groups = second if function == "group_norm" else x.shape[1]
    rows = x if function == "layer_norm" else x.reshape(x.shape[0], groups, -1)
    normalised = (rows - rows.mean(-1, keepdims=True)) * lax.rsqrt(rows.var(-1, keepdims=True) + 1e-5)
    each = (-1,) if function == "layer_norm" else (-1, *(1,) * (x.ndim - 2))
    return normalised.reshape(x.shape) * weight.reshape(each) + bias.reshape(each)


def _sgd(jnp: Any, state: list[Any], gradient: Any, step: Any, numbers: Any) -> list[Any]:
    x, velocity = state
    velocity = numbers["momentum"] * velocity + gradient
    return [x - numbers["lr"] * velocity, velocity]


def _adamw(jnp: Any, state: list[Any], gradient: Any, step: Any, numbers: Any) -> list[Any]:
    """With PyTorch's defaults: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01."""
    x, mean, square = state
    mean = 0.9 * mean + 0.1 * gradient
    square = 0.999 * square + 0.001 * gradient * gradient
    denominator = (jnp.sqrt(square / (1 - 0.999**step)) + 1e-8).astype(x.dtype)
    rate = (numbers["lr"] / (1 - 0.9**step)).astype(x.dtype)
    return [x * (1 - 0.01 * numbers["lr"]) - rate * mean / denominator, mean, square]
