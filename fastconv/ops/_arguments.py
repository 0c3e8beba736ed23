"""What every operation does first: from what the user gave to arrays a backend can take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from fastconv import backends
from fastconv.autograd import Tensor
from fastconv.errors import DeviceError

Array = Any
F = TypeVar("F", bound=Callable[..., Any])

_FLOATING = (np.dtype("float32"), np.dtype("float64"))


def ready(*operands: Any) -> bool:
    """True if `floating` would give these operands back unchanged: NumPy arrays that need nothing, and no Tensor.

    Most calls from outside a network are of this kind, and small ones would spend more time in `floating` than in the
    kernel. (False may be too careful: then `floating` has the word.)
    """
    dtype = None
    for array in operands:
        # `carray`: in C order, aligned and writeable, in one question.
        if type(array) is not np.ndarray or not array.flags.carray:
            return False
        if array.dtype is not dtype:
            if dtype is not None or array.dtype not in _FLOATING:
                return False
            dtype = array.dtype
    return True


def floating(op: str, *, optional: tuple[str, ...] = ("bias",), **operands: Any) -> Any:
    """The operands as C-contiguous arrays in native byte order, of one floating dtype and on one device.

    Takes arrays, Tensors and array-likes (`__array__`, `__dlpack__`); the `optional` ones may be None. The first
    operand sets dtype and device. One operand gives an array, several give a list in their order.

    Raises TypeError for other kinds and for dtypes that differ, DeviceError for devices that differ.
    """
    arrays: list[Array] = []
    first: tuple[str, Array] | None = None
    for name, operand in operands.items():
        if operand is None and name in optional:
            arrays.append(None)
            continue
        array = operand.data if isinstance(operand, Tensor) else operand
        if type(array) is not np.ndarray or array.dtype not in _FLOATING or not array.flags.c_contiguous:
            array = _converted(op, name, array)
        if first is None:
            first = name, array
        elif array.dtype != first[1].dtype or type(array) is not np.ndarray or type(first[1]) is not np.ndarray:
            _check_alike(op, first, (name, array))
        arrays.append(array)
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _converted(op: str, name: str, value: Any) -> Array:
    array = backends.adopted(value)
    if array is None:
        raise TypeError(
            f"{op}: {name} must be an array, a Tensor or an object with __array__ or __dlpack__, "
            f'got {type(value).__name__}; convert first, e.g. numpy.asarray({name}, dtype="float32")'
        )
    check_unmasked(op, name, array, 0)
    dtype = array.dtype
    if dtype.kind in "iub":
        kind = "boolean" if dtype.kind == "b" else "integer"
        raise TypeError(f'{op}: {kind} {name} ({dtype}) is not supported; convert first, e.g. {name}.astype("float32")')
    if dtype.name in backends.HALF and not backends.is_cupy(array):
        raise TypeError(f'{op}: {dtype} {name} runs on the GPU only; convert first, e.g. {name}.astype("float32")')
    if dtype.newbyteorder("=") not in _FLOATING and dtype.name not in backends.HALF:
        remedy = f"{name}.real" if dtype.kind == "c" else f'{name}.astype("float32")'
        raise TypeError(f"{op}: {name} must be float32 or float64, got {dtype}; convert first, e.g. {remedy}")
    if backends.is_cupy(array):
        with backends.on(array):
            return backends.of(array).xp.asarray(array, order="C")
    if backends.is_recorded(array):
        return array.astype(dtype.newbyteorder("="), order="C", copy=False)
    return np.asarray(array, dtype=dtype.newbyteorder("="), order="C")  # ascontiguousarray gives a 0-d array an axis


def check_unmasked(op: str, name: str, array: Array, fill: int) -> None:
    """Raise TypeError for a masked array with something masked, which only NumPy's own functions leave out."""
    if np.ma.is_masked(array):
        raise TypeError(
            f"{op}: {name} has masked values, which would be computed with; fill them first, e.g. {name}.filled({fill})"
        )


def _check_alike(op: str, first: tuple[str, Array], other: tuple[str, Array]) -> None:
    (name, array), (other_name, other_array) = first, other
    devices = backends.device_of(array), backends.device_of(other_array)
    if devices[0] != devices[1]:
        raise DeviceError(
            f"{op}: {other_name} is on {devices[1]} but {name} on {devices[0]}; "
            f'move one, e.g. fc.asarray({other_name}, device="{devices[0]}")'
        )
    if array.dtype != other_array.dtype:
        # The wider one: it is an array of NumPy's default dtype more often than it is the weight of a module.
        ends = (name, other_array.dtype), (other_name, array.dtype)
        wider, dtype = ends[array.dtype.itemsize <= other_array.dtype.itemsize]
        raise TypeError(
            f"{op}: {other_name} is {other_array.dtype} but {name} is {array.dtype}; "
            f'convert one, e.g. {wider}.astype("{dtype}")'
        )


def on_its_device(operation: F) -> F:
    """For an operation that computes with whole arrays: on the device of its first operand."""

    @functools.wraps(operation)
    def call(*operands: Any, **options: Any) -> Any:
        first = operands[0] if operands else options.get("input")
        array = first.data if isinstance(first, Tensor) else first
        if type(array) is np.ndarray:  # most often, and quicker than a context that does nothing
            return operation(*operands, **options)
        with backends.on(array):
            return operation(*operands, **options)

    return cast(F, call)
