"""Gradients against central differences in float64, with a random cotangent."""

from __future__ import annotations

import numpy as np

from fastconv import Tensor

STEP = 1e-5
TOLERANCE = 1e-6


def check_gradients(function, *arrays, step: float = STEP) -> None:
    """Each gradient of ⟨function(*arrays), cotangent⟩, element by element, to 1e-6 of the largest one.

    The arrays are float64; the function must be smooth within `step` of them.
    """
    arrays = tuple(np.array(array, np.float64) for array in arrays)
    tensors = tuple(Tensor(array.copy(), requires_grad=True) for array in arrays)
    result = function(*tensors)
    cotangent = np.random.default_rng(0).uniform(0.5, 1.5, result.shape) * np.random.default_rng(1).choice(
        [-1.0, 1.0], result.shape
    )
    result.backward(cotangent)
    for number, (array, tensor) in enumerate(zip(arrays, tensors, strict=True)):
        expected = np.empty_like(array)
        for place in np.ndindex(*array.shape):
            values = []
            for sign in (1.0, -1.0):
                moved = list(arrays)
                moved[number] = array.copy()
                moved[number][place] += sign * step
                values.append(np.asarray(function(*moved)))
            expected[place] = np.sum((values[0] - values[1]) * cotangent) / (2 * step)
        scale = max(np.abs(expected).max(initial=0.0), 1e-3)
        np.testing.assert_allclose(tensor.grad, expected, rtol=0, atol=TOLERANCE * scale)


def spread_out(rng, shape: tuple[int, ...]) -> np.ndarray:
    """Values in [-2, 2], none near 0 and no two near each other: away from every kink and tie."""
    count = int(np.prod(shape))
    return rng.permutation(np.linspace(-2.0, 2.0, 2 * count)[::2] + 0.5 / max(count, 1)).reshape(shape)
