"""What the oracle says for a line of the table, computed once and shared by all suites."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import reference
from problems import Arrays, Problem

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Results:
    """Forward with bias, both gradients, and the transposed convolution of gy with a bias of its own."""

    forward: np.ndarray
    input_grad: np.ndarray
    weight_grad: np.ndarray
    transposed: np.ndarray


def bias_of_transposed(problem: Problem, arrays: Arrays) -> np.ndarray:
    """A bias for the transposed convolution: as many numbers as the problem has input channels."""
    return np.resize(arrays.b, problem.in_channels)


def results(problem: Problem, arrays: Arrays) -> Results:
    """Everything at once."""
    x, w, b, gy = arrays.x, arrays.w, arrays.b, arrays.gy
    window = problem.window
    transposed_bias = bias_of_transposed(problem, arrays)
    return Results(
        reference.conv(x, w, b, **window),
        reference.conv_input_grad(x.shape, w, gy, **window),
        reference.conv_weight_grad(x, w.shape, gy, **window),
        reference.conv_transpose(gy, w, transposed_bias, output_padding=problem.unused, **window),
    )


@cache
def exact(problem: Problem) -> Results:
    """Results for the integers of a problem: the same in every dtype."""
    return results(problem, problem.integers())


@cache
def rounded(problem: Problem, dtype: str) -> tuple[Results, Results]:
    """Results for the random numbers of a problem, and the same sums of absolute values: see tolerance.py."""
    arrays = problem.normal(dtype)
    absolute = Arrays(*(np.abs(a) for a in (arrays.x, arrays.w, arrays.b, arrays.gy)))
    return results(problem, arrays), results(problem, absolute)
