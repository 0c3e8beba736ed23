"""First values of parameters, drawn from the generator of `fastconv.random`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv import backends, random
from fastconv.autograd import to_device
from fastconv.nn.module import Parameter, floating_dtype


def uniform(op: str, shape: Sequence[int], bound: float, device: str | None, dtype: Any) -> Parameter:
    """Uniform in [-bound, bound). `op` is the module's name for messages; device and dtype as in modules."""
    target = floating_dtype(op, dtype)
    backends.get(device or "cpu")  # raises before anything is drawn
    draw_dtype = np.float64 if target == np.float64 else np.float32
    values = random.generator().random(tuple(shape), dtype=draw_dtype)
    values *= 2 * bound
    values -= bound
    return Parameter(to_device(values, device or "cpu"))


def constant(op: str, shape: Sequence[int], value: float, device: str | None, dtype: Any) -> Parameter:
    """The same value everywhere."""
    return Parameter(to_device(np.full(tuple(shape), value, floating_dtype(op, dtype)), device or "cpu"))


def default_bound(fan_in: int) -> float:
    """PyTorch's default for weights and biases of convolutions and dense layers: 1 / sqrt(fan_in).

    That is He's uniform bound, gain · sqrt(3 / fan_in) with gain = sqrt(2 / (1 + a²)) (He et al. 2015, eq. 14 and 15),
    for the slope a = sqrt(5) that PyTorch chose.
    """
    return 1 / math.sqrt(fan_in)
