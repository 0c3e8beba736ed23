"""Optimiser steps: kernels/optimisers.cu."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for, packs
from fastconv.backends.cuda.module import TYPES, Template, size
from fastconv.backends.steps import adam_numbers

Array = Any

_SGD = Template("optimisers.cu", "sgd", product(TYPES.values(), (False, True)))
_ADAM = Template("optimisers.cu", "adam", product(TYPES.values()))

_SGD_NUMBERS = np.dtype([(n, "f8") for n in ("lr", "momentum", "share", "decay")] + [("nesterov", "i4"), ("new", "i4")])
_ADAM_NUMBERS = np.dtype([(name, "f8") for name in ("rate", "first", "second", "root", "eps", "decay", "shrink")])
"""`Sgd` and `Adam` of the kernels."""


def sgd_step(
    x: Sequence[Array],
    gradient: Sequence[Array],
    velocity: Sequence[Array] | None,
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
    for arrays in zip(x, gradient, [None] * len(x) if velocity is None else velocity):
        _update(*arrays, template=_SGD, choice=(velocity is not None,), numbers=numbers)


def adam_step(
    x: Sequence[Array],
    gradient: Sequence[Array],
    mean: Sequence[Array],
    square: Sequence[Array],
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
    for arrays in zip(x, gradient, mean, square):
        _update(*arrays, template=_ADAM, choice=(), numbers=numbers)


@primitive
def _update(
    x: Array, gradient: Array, *state: Array | None, template: Template, choice: tuple[bool, ...], numbers: Any
) -> None:
    """Run a step over the elements of all arrays; what is not contiguous, or of another dtype, through a copy."""
    xp, kernel = platform.current().xp, template(TYPES[x.dtype.name], *choice)
    gradient = xp.ascontiguousarray(gradient.astype(x.dtype, copy=False))
    changed = [x, *state]
    lines = [array if array is None else xp.ascontiguousarray(array.astype(x.dtype, copy=False)) for array in changed]
    kernel(blocks_for(packs(x)), (THREADS,), gradient, *lines, size(x), numbers)
    for array, line in zip(changed, lines):
        if array is not line:
            array[...] = line
