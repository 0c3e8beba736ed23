"""The one random generator: initialisation, dropout and data order draw from it, so one seed fixes a training."""

from __future__ import annotations

from typing import Any

import numpy as np

_generator = np.random.Generator(np.random.PCG64())


def manual_seed(seed: int) -> None:
    """Start the generator anew from `seed` (an int >= 0; ValueError otherwise)."""
    if seed < 0:
        raise ValueError(f"manual_seed: seed must be an integer >= 0, got {seed}")
    _generator.bit_generator.state = np.random.PCG64(seed).state


def generator() -> np.random.Generator:
    """The generator itself; drawing from it moves every later draw. Not for use by several threads at once."""
    return _generator


def get_state() -> dict[str, Any]:
    """The generator's state as a dict of plain Python numbers and strings, which JSON can hold."""
    state: dict[str, Any] = dict(_generator.bit_generator.state)
    return state


def set_state(state: dict[str, Any]) -> None:
    """Continue from a state that `get_state` gave."""
    _generator.bit_generator.state = state
