"""Devices: whether one is there, how an array gets to it, and what every primitive does before and after its work."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.errors import DeviceError

Array = Any
F = TypeVar("F", bound=Callable[..., Any])


def require(device: str) -> None:
    """Raise DeviceError, which says what is missing, unless "cuda" or "cuda:<index>" can be used."""
    if not platform.chosen() and importlib.util.find_spec("cupy") is None:
        raise DeviceError(
            f'device="{device}" needs CuPy, which is not installed: pip install "fastconv[cuda13]" '
            '(CUDA 13 driver) or "fastconv[cuda12]" (CUDA 12 driver)'
        )
    try:
        count = platform.current().device_count()
    except (ImportError, RuntimeError) as error:
        raise DeviceError(f'device="{device}": CuPy is installed but found no usable GPU or driver ({error})') from None
    if number(device) >= count:
        raise DeviceError(f'device="{device}": there are {count} CUDA devices, numbered from 0')


def number(device: str) -> int:
    """The index in "cuda:1"; that of the current device in "cuda"."""
    _, colon, index = device.partition(":")
    return int(index) if colon else platform.current().current_device()


def on_device(array: Array, device: str) -> Array:
    """`array`, of NumPy or CuPy, on "cuda" or "cuda:1": itself if it is there."""
    on = platform.current()
    if isinstance(array, (np.ndarray, np.generic)):
        array = np.asarray(array, array.dtype.newbyteorder("="))  # a GPU has one byte order
    elif array.device.id != number(device) and not (array.flags.c_contiguous or array.flags.f_contiguous):
        with current(array):  # between devices CuPy copies what is contiguous only
            array = on.xp.ascontiguousarray(array)
    with on.device(number(device)):
        return on.xp.asarray(array)


def current(array: Array) -> AbstractContextManager[Any]:
    """A context in which the device of `array` is the current one."""
    on = platform.current()
    return nullcontext() if array.device.id == on.current_device() else array.device


def primitive(function: F) -> F:
    """Run on the device of the first argument; say what was asked for, and let go of the rest, if memory runs out."""

    @functools.wraps(function)
    def call(first: Array, *args: Any, **kwargs: Any) -> Any:
        try:
            with current(first):
                return function(first, *args, **kwargs)
        except MemoryError as error:
            message = f"{function.__name__} on cuda:{first.device.id}: {error}"
        # Out here the error is gone, and with it the frames that held arrays of this call.
        platform.current().free_memory()
        raise MemoryError(f"{message} Free some arrays or take a smaller batch.")

    return cast(F, call)
