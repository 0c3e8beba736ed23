"""Dense layers and what stands around them: flattening, dropout, nothing at all."""

from __future__ import annotations

import math
from typing import Any

from fastconv.geometry import arguments
from fastconv.nn import init
from fastconv.nn.module import Module
from fastconv.ops import dense, pointwise


class Linear(Module):
    """Fully connected layer: (..., in_features) → (..., out_features), input @ weight.T + bias, as `torch.nn.Linear`.

    weight (out_features, in_features), bias (out_features,); both start uniform in ±1/sqrt(in_features).
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str | None = None, dtype: Any = None
    ) -> None:
        self.in_features = arguments.integer("Linear", "in_features", in_features, 1)
        self.out_features = arguments.integer("Linear", "out_features", out_features, 1)
        bound = init.default_bound(self.in_features)
        self.weight = init.uniform("Linear", (self.out_features, self.in_features), bound, device, dtype)
        self.bias = init.uniform("Linear", (self.out_features,), bound, device, dtype) if bias else None

    def forward(self, input: Any) -> Any:
        return dense.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Flatten(Module):
    """Axes start_dim..end_dim merged into one; by default everything but the batch."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Any) -> Any:
        shape = input.shape
        first, last = (range(len(shape))[dim] for dim in (self.start_dim, self.end_dim))
        return input.reshape((*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Dropout(Module):
    """In training, sets each value to 0 with probability p and divides the others by 1 − p; else passes through.

    Draws from the generator of `fastconv.random`. Srivastava et al. 2014, in the inverted form.
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must be a probability, 0 to 1, got {p}")
        self.p = p

    def forward(self, input: Any) -> Any:
        return pointwise.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """Gives back its input."""

    def forward(self, input: Any) -> Any:
        return input
