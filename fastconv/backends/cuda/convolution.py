"""Convolution primitives of the CUDA backend: forward, input gradient, weight gradient. See contract.py."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fastconv.backends.cuda import correlation as correlations
from fastconv.backends.cuda import platform
from fastconv.backends.cuda.correlation import Correlation
from fastconv.backends.cuda.depthwise import Depthwise
from fastconv.backends.cuda.depthwise_weight_grad import DepthwiseWeightGrad
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.direct import Direct, DirectWeightGrad
from fastconv.backends.cuda.implicit_gemm import ImplicitGemm, kind_of_products
from fastconv.backends.cuda.pointwise import activation_forward
from fastconv.backends.cuda.weight_grad import WeightGrad
from fastconv.geometry import ConvGeometry
from fastconv.precision import get_precision

Array = Any


@primitive
def conv_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry, activation: str | None) -> Array:
    """See contract.Backend.conv_forward."""
    y = platform.current().xp.empty(geometry.output_shape(len(x)), x.dtype)
    relu = activation == "relu"
    if y.size:
        _forward(geometry, x.dtype.name, get_precision(), platform.current().capability()).run(x, w, b, y, relu)
    if activation is None or relu:  # others take a pass of their own
        return y
    return activation_forward(y, activation, 0.0)


@primitive
def conv_input_grad(gy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_input_grad."""
    gx = platform.current().xp.empty(geometry.input_shape(len(gy)), gy.dtype)
    if not correlations.input_grad(geometry).whole:  # positions that no tap reaches: the bias alone
        gx[...] = 0 if b is None else b.reshape(-1, *[1] * geometry.rank)
    if gx.size:
        _input_grad(geometry, gy.dtype.name, get_precision(), platform.current().capability()).run(gy, w, b, gx, False)
    return gx


@primitive
def conv_weight_grad(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_weight_grad."""
    gw = platform.current().xp.zeros(geometry.weight_shape, x.dtype)
    if gy.size:
        _weight_grad(geometry, x.dtype.name, get_precision(), platform.current().capability()).run(gy, x, gw)
    return gw


@lru_cache(maxsize=4096)
def _forward(geometry: ConvGeometry, dtype: str, precision: str, capability: int) -> Any:
    return _algorithm(correlations.forward(geometry), dtype, precision, capability)


@lru_cache(maxsize=4096)
def _input_grad(geometry: ConvGeometry, dtype: str, precision: str, capability: int) -> Any:
    return _algorithm(correlations.input_grad(geometry), dtype, precision, capability)


@lru_cache(maxsize=4096)
def _weight_grad(geometry: ConvGeometry, dtype: str, precision: str, capability: int) -> Any:
    lines = DepthwiseWeightGrad(geometry, dtype)
    if lines.fits:
        return lines
    gemm = WeightGrad(geometry, dtype, kind_of_products(dtype, precision, capability), capability)
    return gemm if gemm.fits else DirectWeightGrad(geometry)


def _algorithm(correlation: Correlation, dtype: str, precision: str, capability: int) -> Any:
    """What computes a correlation, with `name` and `run`; never a matter of the batch."""
    lines = Depthwise(correlation, dtype)
    if lines.fits:
        return lines
    gemm = ImplicitGemm(correlation, dtype, kind_of_products(dtype, precision, capability), capability)
    return gemm if gemm.fits else Direct(correlation)


def explain_conv(geometry: ConvGeometry, dtype: Any, operation: str) -> str:
    """See contract.Backend.explain_conv."""
    choose = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}[operation]
    return str(choose(geometry, dtype.name, get_precision(), platform.current().capability()).name)
