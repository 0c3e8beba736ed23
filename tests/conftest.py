"""Fixtures that several suites share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import emulator
import numpy as np
import pytest
from problems import Problem

import fastconv as fc
from fastconv import backends
from fastconv.errors import DeviceError


def _devices() -> list:
    """The backends' devices: a GPU where there is one, and the emulated device wherever g++ is."""
    devices = ["cpu"]
    try:
        backends.get("cuda")
    except DeviceError:
        pass
    else:
        devices.append(pytest.param("cuda", marks=pytest.mark.gpu))
    missing = emulator.why_missing()
    return [*devices, pytest.param("emulated", marks=pytest.mark.skipif(bool(missing), reason=missing))]


DEVICES = _devices()

EMULATED_MULTIPLY_ADDS = 300_000
"""Of a problem; the emulator takes a second for two hundred times as many. Tests of batches compute 150 samples."""


def pytest_collection_modifyitems(config, items):
    """Leave out what the emulated device cannot do in time, and ways of the CPU that it does not have."""
    left_out = [item for item in items if _is_beyond_the_emulator(item)]
    config.hook.pytest_deselected(items=left_out)
    dropped = set(left_out)
    items[:] = [item for item in items if item not in dropped]


def _is_beyond_the_emulator(item) -> bool:
    given = item.callspec.params if hasattr(item, "callspec") else {}
    if given.get("device") != "emulated":
        return False
    if "any_number_of_threads" in item.name or given.get("path", "windows") != "windows":
        return True
    if isinstance(given.get("problem"), Problem):
        in_batches = "in_a_batch" in item.name
        return given["problem"].multiply_adds * (20 if in_batches else 1) > EMULATED_MULTIPLY_ADDS
    if "kernel_size" in given.get("arguments", ()):
        return np.prod(given["shape"]) * np.max(given["arguments"]["kernel_size"]) ** 2 > 100 * EMULATED_MULTIPLY_ADDS
    return False


@pytest.fixture(params=DEVICES)
def device(request) -> Iterator[str]:
    """Each device in turn: a backend that fails one of these tests is not a backend."""
    with _to_be_used(request.param):
        yield "cuda" if request.param == "emulated" else request.param


@pytest.fixture(params=DEVICES[1:])
def gpu(request) -> Iterator[str]:
    """Each device that runs CUDA kernels."""
    with _to_be_used(request.param):
        yield "cuda"


def _to_be_used(name: str) -> AbstractContextManager:
    return emulator.in_use() if name == "emulated" else nullcontext()


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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    pytest.importorskip("safetensors", reason="pip install safetensors")
    return tmp_path / "run.safetensors"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, even where pytest itself was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
