"""Which backend owns this array, which serves this device. CuPy is never imported before it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import re
from functools import lru_cache
from typing import Any

import numpy as np

from fastconv.errors import DeviceError

DEVICES = ("cpu",)
"""Backends that can run in this installation; the test-suite runs each of them."""

_DEVICE = re.compile(r"^(cpu|cuda(:\d+)?)$")


@lru_cache(maxsize=1)
def _cpu() -> Any:
    return importlib.import_module("fastconv.backends.cpu")


def get(device: str) -> Any:
    """The backend module of a device ("cpu", "cuda", "cuda:1").

    Raises ValueError for anything that is no device name, DeviceError (with the remedy) for a device that is not there.
    """
    if not isinstance(device, str) or not _DEVICE.match(device):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:1" (a number after the colon), got {device!r}')
    if device == "cpu":
        return _cpu()
    raise DeviceError(_why_no_cuda(device))


def of(array: Any) -> Any:
    """The backend module that owns this array."""
    if isinstance(array, np.ndarray):
        return _cpu()
    return get(device_of(array))


def device_of(array: Any) -> str:
    """The device of an array: "cpu" or "cuda:<index>"."""
    if is_cupy(array):
        return f"cuda:{array.device.id}"
    return "cpu"


def is_cupy(array: Any) -> bool:
    """True for a CuPy array, told by its type's module so that CuPy need not be imported."""
    return type(array).__module__.partition(".")[0] == "cupy"


def _why_no_cuda(device: str) -> str:
    if importlib.util.find_spec("cupy") is None:
        return (
            f'device="{device}" needs CuPy, which is not installed: pip install "fastconv[cuda13]" '
            '(CUDA 13 driver) or "fastconv[cuda12]" (CUDA 12 driver)'
        )
    import cupy  # optional, and only when a GPU was asked for

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f'device="{device}": CuPy {cupy.__version__} is installed but found no usable GPU or driver ({error})'
    return (
        f'device="{device}": a GPU is there ({count} found), but this version of fastconv has no CUDA backend yet; '
        'use device="cpu"'
    )
