"""The numbers of an optimiser's step that all elements share, for the kernels of every backend."""

from __future__ import annotations

import math


def adam_numbers(
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool
) -> tuple[float, float, float, float, float, float, float]:
    """(rate, first, second, root, eps, decay, shrink) of step number `step`, from 1, of `optim.Adam`.

    With g + decay · x as gradient, m and v as its decaying means, x becomes shrink · x - rate · m / (root · sqrt(v) +
    eps): the corrections of the means' bias (Kingma & Ba 2015, section 3) are in rate and root, the decay is in the
    gradient or, `decoupled` (Loshchilov & Hutter 2019), in shrink.
    """
    first, second = betas
    rate, root = lr / (1.0 - first**step), 1.0 / math.sqrt(1.0 - second**step)
    decay, shrink = (0.0, 1.0 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    return float(rate), float(first), float(second), root, float(eps), float(decay), float(shrink)
