"""Convolution and its gradients."""

from __future__ import annotations

from typing import Any

from fastconv.geometry import ConvGeometry

Array = Any


def conv_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry, activation: str | None) -> Array:
    """See contract.Backend.conv_forward."""
    raise NotImplementedError


def conv_input_grad(gy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_input_grad."""
    raise NotImplementedError


def conv_weight_grad(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """See contract.Backend.conv_weight_grad."""
    raise NotImplementedError


def explain_conv(geometry: ConvGeometry, dtype: Any, operation: str) -> str:
    """See contract.Backend.explain_conv."""
    raise NotImplementedError
