"""What `torch.nn.utils` has for training: `clip_grad_norm_`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastconv import backends
from fastconv.autograd import Tensor

Array = Any

_PIECE = 1 << 16
"""Elements squared at a time: a large gradient is not copied in float64, and on a CPU a piece stays in the cache."""


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> float:
    """Scale the gradients in place so that their norm is at most `max_norm`; returns the norm that they had.

    The norm is that of all gradients as one vector, √Σg², summed in float64 in a fixed order; each is multiplied by
    min(1, max_norm / (norm + 10⁻⁶)), as in `torch.nn.utils.clip_grad_norm_` (Pascanu et al. 2013). Parameters without a
    gradient are passed over. A norm that is infinite or NaN leaves zeros and NaN, as in PyTorch: where that may happen,
    look at what is returned before the optimiser's step.

    Between `loss.backward()` and `optimizer.step()`; in a training by `fit`, at the beginning of the step:

        class ClippedAdam(optim.Adam):
            def step(self):
                nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1.0)
                super().step()

    Raises ValueError for a negative `max_norm`, TypeError for what is no Tensor.
    """
    members = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for member in members:
        if not isinstance(member, Tensor):
            raise TypeError(
                f"clip_grad_norm_: parameters must be Tensors, got {type(member).__name__}; pass model.parameters()"
            )
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm must be at least 0, got {max_norm}")
    gradients = [member.grad for member in members if member.grad is not None]
    squares = [_sum_of_squares(gradient) for gradient in gradients]  # on a GPU all are under way before one is read
    norm = math.sqrt(np.sum([float(square) for square in squares]))
    factor = float(max_norm) / (norm + 1e-6)
    if not factor >= 1:  # NaN too
        for member in members:
            if member.grad is not None:
                with backends.on(member.grad):
                    member.grad *= factor
    return norm


def _sum_of_squares(gradient: Array) -> Any:
    """In float64, on the gradient's device."""
    with backends.on(gradient):
        flat, total = gradient.reshape(-1), 0.0
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE].astype("float64")
            piece *= piece
            total = total + piece.sum()
        return total
