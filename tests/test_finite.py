"""Whether a result is finite: one value that is not, wherever it is."""

import numpy as np
import pytest

from fastconv.backends.cpu.finite import all_finite

CHUNK = 1 << 15


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 17, CHUNK, CHUNK + 1, 3 * CHUNK - 5])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_value_that_is_not_finite_is_found(size, dtype, value):
    array = np.random.default_rng(0).standard_normal(size).astype(dtype)
    for place in {0, size // 2, size - 1}:
        spoilt = array.copy()
        spoilt[place] = value
        assert not all_finite(spoilt), place
        assert not all_finite(spoilt.reshape(size, 1)), place


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_finite(dtype):
    limits = np.finfo(dtype)
    array = np.array([0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_subnormal] * 7000, dtype)
    assert all_finite(array)
    assert all_finite(array[:0])
