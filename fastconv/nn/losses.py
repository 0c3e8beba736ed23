"""Losses as modules: the operations of `fastconv.ops.losses`, which say the formulas, with their parameters.

`reduction` is "mean", "sum" or "none" everywhere. Weights are buffers: they move with `to` and stand in the state.
"""

from __future__ import annotations

from typing import Any

from fastconv.nn.module import Module
from fastconv.ops import losses


class _Loss(Module):
    def __init__(self, *, reduction: str = "mean") -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'{type(self).__name__}: reduction must be "mean", "sum" or "none", got {reduction!r}')
        self.reduction = reduction

    def _register(self, name: str, weight: Any) -> None:
        if weight is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, weight)


class CrossEntropyLoss(_Loss):
    """Cross-entropy of logits (N, C, ...) and classes (N, ...) or probabilities; `weight` (C,) per class."""

    weight: Any

    def __init__(
        self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
    ) -> None:
        super().__init__(reduction=reduction)
        self._register("weight", weight)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def forward(self, input: Any, target: Any) -> Any:
        return losses.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class NLLLoss(_Loss):
    """Negative log-likelihood of log-probabilities (N, C, ...) and classes (N, ...); `weight` (C,) per class."""

    weight: Any

    def __init__(self, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self._register("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, input: Any, target: Any) -> Any:
        return losses.nll_loss(input, target, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


class MSELoss(_Loss):
    """Squared differences of input and target, of one shape."""

    def forward(self, input: Any, target: Any) -> Any:
        return losses.mse_loss(input, target, reduction=self.reduction)


class L1Loss(_Loss):
    """Absolute differences of input and target, of one shape."""

    def forward(self, input: Any, target: Any) -> Any:
        return losses.l1_loss(input, target, reduction=self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of logits and targets in [0, 1]; `weight` per element, `pos_weight` for positive ones."""

    weight: Any
    pos_weight: Any

    def __init__(self, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction=reduction)
        self._register("weight", weight)
        self._register("pos_weight", pos_weight)

    def forward(self, input: Any, target: Any) -> Any:
        return losses.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )
