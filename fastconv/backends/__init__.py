"""Which backend owns this array, which serves this device. CuPy is never imported before it is asked for."""

from __future__ import annotations

import importlib
import re
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

DEVICES = ("cpu", "cuda")
"""The kinds of device that have a backend; the test-suite runs each of them, "cuda" on an emulator where it must."""

_DEVICE = re.compile(r"^(cpu|cuda(:\d+)?)$")
_CUDA_OF_DLPACK = 2  # kDLCUDA
_HERE = nullcontext()

HALF = ("float16", "bfloat16")
"""Names of the floating dtypes that only a GPU computes with."""


@lru_cache(maxsize=2)
def _backend(name: str) -> Any:
    return importlib.import_module(f"fastconv.backends.{name}")


def get(device: str) -> Any:
    """The backend module of a device ("cpu", "cuda", "cuda:1").

    Raises ValueError for anything that is no device name, DeviceError (with the remedy) for a device that is not there.
    """
    if not isinstance(device, str) or not _DEVICE.match(device):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:1" (a number after the colon), got {device!r}')
    if device == "cpu":
        return _backend("cpu")
    cuda = _backend("cuda")
    cuda.require(device)
    return cuda


def of(array: Any) -> Any:
    """The backend module that owns this array, or what stands in for it while a pass is recorded."""
    if type(array) is np.ndarray:
        return _backend("cpu")
    return array.backend if is_recorded(array) else _backend("cuda" if is_cupy(array) else "cpu")


def device_of(array: Any) -> str:
    """The device of an array: "cpu" or "cuda:<index>"."""
    if is_cupy(array):
        return f"cuda:{array.device.id}"
    return "cpu"


def to_device(array: Any, device: str) -> Any:
    """An array of a backend on `device`, where "cuda" is CuPy's current one; the array itself if it is there already.

    Raises as `get` does.
    """
    backend = get(device)
    if device == "cpu":
        return array.get() if is_cupy(array) else array
    return backend.on_device(array, device)


def on(array: Any) -> AbstractContextManager[Any]:
    """A context for work with CuPy's own functions, which is done on the current device: that of `array`."""
    return _HERE if isinstance(array, np.ndarray) or not is_cupy(array) else _backend("cuda").current(array)


def is_cupy(array: Any) -> bool:
    """True for a CuPy array, told by its type's module so that CuPy need not be imported."""
    return type(array).__module__.partition(".")[0] == "cupy"


def is_recorded(array: Any) -> bool:
    """True for an array of the CPU backend on which a pass is recorded."""
    return getattr(type(array), "is_recorded_by_fastconv", False)


def is_floating(dtype: Any) -> bool:
    """True for floating dtypes, bfloat16 (which NumPy has from ml_dtypes) among them."""
    return bool(dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16"))  # a name takes microseconds


def adopted(value: Any) -> Any:
    """The array of a backend that shares the memory of `value`, an object of another library; None if there is none.

    Taken are `__dlpack__` and `__cuda_array_interface__` on a GPU, `__array__` and `__dlpack__` on the CPU.
    """
    if isinstance(value, np.ndarray) or is_cupy(value):
        return value
    if hasattr(value, "__dlpack_device__") and value.__dlpack_device__()[0] == _CUDA_OF_DLPACK:
        return get("cuda").xp.from_dlpack(value)
    if hasattr(value, "__cuda_array_interface__"):
        return get("cuda").xp.asarray(value)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    return None
