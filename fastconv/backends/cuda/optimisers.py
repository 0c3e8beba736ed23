"""Optimiser steps: kernels/optimisers.cu."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for, packs
from fastconv.backends.cuda.module import TYPES, Kernel, Template, size
from fastconv.backends.steps import adam_numbers

Array = Any

_SGD = Template("optimisers.cu", "sgd", product(TYPES.values(), (False, True)))
_ADAM = Template("optimisers.cu", "adam", product(TYPES.values()))

_SGD_NUMBERS = np.dtype([(n, "f8") for n in ("lr", "momentum", "share", "decay")] + [("nesterov", "i4"), ("new", "i4")])
_ADAM_NUMBERS = np.dtype([(name, "f8") for name in ("rate", "first", "second", "root", "eps", "decay", "shrink")])
"""`Sgd` and `Adam` of the kernels."""


@primitive
def sgd_step(
    x: Array,
    gradient: Array,
    velocity: Array | None,
    *,
    starts: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """See contract.Backend.sgd_step."""
    numbers = np.array((lr, momentum, 1.0 - dampening, weight_decay, nesterov, starts), _SGD_NUMBERS)
    _update(_SGD(TYPES[x.dtype.name], velocity is not None), numbers, gradient, x, velocity)


@primitive
def adam_step(
    x: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """See contract.Backend.adam_step."""
    numbers = np.array(adam_numbers(step, lr, betas, eps, weight_decay, decoupled), _ADAM_NUMBERS)
    _update(_ADAM(TYPES[x.dtype.name]), numbers, gradient, x, mean, square)


def _update(kernel: Kernel, numbers: Any, gradient: Array, x: Array, *state: Array | None) -> None:
    """Run a step over the elements of all arrays; what is not contiguous, or of another dtype, through a copy."""
    xp = platform.current().xp
    gradient = xp.ascontiguousarray(gradient.astype(x.dtype, copy=False))
    changed = [x, *state]
    lines = [array if array is None else xp.ascontiguousarray(array.astype(x.dtype, copy=False)) for array in changed]
    kernel(blocks_for(packs(x)), (THREADS,), gradient, *lines, size(x), numbers)
    for array, line in zip(changed, lines):
        if array is not line:
            array[...] = line
