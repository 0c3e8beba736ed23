"""Arrays of other libraries, and other devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import backends
from fastconv.autograd import raw

Array = Any


def asarray(value: Any, dtype: Any = None, device: str | None = None) -> Array:
    """`value` as an array: NumPy's for "cpu", CuPy's for "cuda" and "cuda:1".

    `value` is an array, a Tensor, an array of another library (`__dlpack__`, `__array__`, `__cuda_array_interface__`: a
    PyTorch or JAX array on either device), or what `numpy.asarray` takes. Nothing is copied that is there already in
    the dtype asked for; without a `device` an array stays where it is. CuPy's arrays go the other way by DLPack:
    `torch.from_dlpack(x)`.

    Raises ValueError for what is no device, DeviceError for a device that is not there.
    """
    array = backends.adopted(raw(value))
    if array is None:
        array = np.asarray(value)
    if dtype is not None:
        with backends.on(array):
            array = array.astype(dtype, copy=False)
    return array if device is None else backends.to_device(array, device)
