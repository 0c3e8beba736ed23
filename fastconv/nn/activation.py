"""Activations as modules: the operations of `fastconv.ops.pointwise`, which say the formulas, with their parameters."""

from __future__ import annotations

from typing import Any

from fastconv.nn.module import Module
from fastconv.ops import pointwise


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, input: Any) -> Any:
        return pointwise.relu(input)


class LeakyReLU(Module):
    """x for x > 0, else negative_slope · x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, input: Any) -> Any:
        return pointwise.leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """x for x > 0, else alpha · (eˣ − 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, input: Any) -> Any:
        return pointwise.elu(input, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class SELU(Module):
    """The scaled ELU whose activations normalise themselves (Klambauer et al. 2017)."""

    def forward(self, input: Any) -> Any:
        return pointwise.selu(input)


class GELU(Module):
    """x · Φ(x), Φ the normal distribution function; approximate="tanh" for the approximation with tanh."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, input: Any) -> Any:
        return pointwise.gelu(input, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x · sigmoid(x), also called Swish."""

    def forward(self, input: Any) -> Any:
        return pointwise.silu(input)


class Sigmoid(Module):
    """1 / (1 + e⁻ˣ)."""

    def forward(self, input: Any) -> Any:
        return pointwise.sigmoid(input)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, input: Any) -> Any:
        return pointwise.tanh(input)


class Softmax(Module):
    """eˣ / Σ eˣ along the axis `dim`."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, input: Any) -> Any:
        return pointwise.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """The logarithm of softmax along the axis `dim`."""

    def forward(self, input: Any) -> Any:
        return pointwise.log_softmax(input, self.dim)
