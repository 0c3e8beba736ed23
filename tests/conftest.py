"""Fixtures that several suites share."""

from __future__ import annotations

import pytest

import fastconv as fc
from fastconv import backends


@pytest.fixture(params=backends.DEVICES)
def device(request) -> str:
    """Each device of this installation in turn: a backend that fails one of these tests is not a backend."""
    return request.param


@pytest.fixture
def highest_precision():
    """Sums of products only: small integers give exact results, rounding stays within tolerance.py."""
    with fc.precision("highest"):
        yield


@pytest.fixture(params=["highest", "default"])
def precision(request) -> str:
    """With and without the algorithms that round more."""
    with fc.precision(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _threads_restored():
    """A test that changes the number of threads changes it for itself only."""
    before = fc.get_num_threads()
    yield
    fc.set_num_threads(before)
