"""Arrays that behave as CuPy's do towards the code under test, with NumPy behind them.

What CuPy refuses is refused: NumPy cannot reach the values without `get()`, arrays of two kinds or two devices do not
mix, and reductions give arrays, never scalars. New memory is full of NaN. While a graph is recorded, nothing is copied
from the host and nothing read there. Functions of CuPy's that no code of ours may use are not here: `concatenate`
copies a table from the host where there are more than eight arrays, `clip` has no bfloat16.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from emulator.kernels import empty

METHODS = frozenset(
    "all any argmax argmin astype copy fill flatten max mean min prod ravel repeat reshape squeeze sum swapaxes take "
    "transpose var view".split()
)
VIEWS = frozenset("ravel reshape squeeze swapaxes transpose view".split())
PROPERTIES = frozenset("dtype itemsize nbytes ndim shape size strides".split())
MAKERS = frozenset("arange empty full ones zeros".split())
FUNCTIONS = frozenset(
    "abs add argmax argsort array_equal ascontiguousarray broadcast_arrays broadcast_to cos "
    "cumsum diff divide einsum empty_like equal exp expand_dims expm1 flip full_like greater greater_equal invert "
    "isfinite isnan less less_equal log log1p logical_and logical_not logical_or maximum minimum moveaxis multiply "
    "negative nonzero not_equal ones_like power put_along_axis ravel_multi_index reshape roll sign sqrt square stack "
    "subtract sum swapaxes take take_along_axis tanh tensordot transpose unique zeros_like".split()
)
VALUES = frozenset(
    "broadcast_shapes e float16 float32 float64 inf int32 int64 nan ndindex newaxis pi result_type dtype".split()
)


class Device:
    """As `cupy.cuda.Device`: a number, and a context in which that device is the current one."""

    count = 2
    _local = threading.local()

    def __init__(self, number: int | None = None) -> None:
        self.id = Device.current() if number is None else number
        if self.id >= self.count:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before: list[int] = []

    @classmethod
    def current(cls) -> int:
        return getattr(cls._local, "number", 0)

    def __enter__(self) -> Device:
        self._before.append(Device.current())
        Device._local.number = self.id
        return self

    def __exit__(self, *exception: object) -> None:
        Device._local.number = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class Recording:
    """Whether a graph is recorded."""

    active = False

    @classmethod
    def forbids(cls, what: str) -> None:
        if cls.active:
            raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while a graph is recorded")


class Flags:
    """The three flags that CuPy's arrays have."""

    def __init__(self, array: np.ndarray) -> None:
        self.c_contiguous, self.f_contiguous = array.flags.c_contiguous, array.flags.f_contiguous
        self.owndata = array.base is None


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands in for `cupy.ndarray`."""

    __slots__ = ("_host", "device")

    def __init__(self, host: np.ndarray, device: int | None = None) -> None:
        self._host, self.device = host, Device(device)

    def __getattr__(self, name: str) -> Any:
        if name in PROPERTIES:
            return getattr(self._host, name)
        if name in METHODS:
            return functools.partial(self._call, name)
        raise AttributeError(f"the emulated device's arrays have no {name!r}; if CuPy's have, add it to METHODS")

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in VIEWS and name != "copy":
            check_operands((self,))
        result = getattr(self._host, name)(*unwrapped(args), **unwrapped(kwargs))
        # CuPy copies to the current device.
        return wrapped(result, Device.current() if name == "copy" else self.device.id)

    def get(self) -> np.ndarray:
        Recording.forbids("values were read")
        return self._host.copy()

    def set(self, values: np.ndarray) -> None:
        assert type(values) is np.ndarray and values.shape == self.shape and values.dtype == self.dtype
        self._host[...] = values

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    @property
    def T(self) -> DeviceArray:
        return self.transpose()

    @property
    def flags(self) -> Flags:
        return Flags(self._host)

    @property
    def base(self) -> Any:
        return None if self._host.base is None else self

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._host.__array_interface__, "version": 3, "stream": None}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.id

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        check_operands((*inputs, *kwargs.get("out", ())))
        if "out" in kwargs:
            kwargs["out"] = unwrapped(kwargs["out"])
        result = getattr(ufunc, method)(*unwrapped(inputs), **kwargs)
        if "out" in kwargs:
            return next(x for x in (*inputs, *kwargs["out"]) if isinstance(x, DeviceArray) and x._host is result)
        return wrapped(result, self.device.id)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called on an array of the device; use the backend's xp")

    def __getitem__(self, key: Any) -> DeviceArray:
        return wrapped(self._host[unwrapped(key)], self.device.id)

    def __setitem__(self, key: Any, value: Any) -> None:
        check_operands((self, value))
        self._host[unwrapped(key)] = unwrapped(value)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return self.get().__index__()

    def __repr__(self) -> str:
        return f"device {self.device.id}: {self._host!r}"

    def __deepcopy__(self, memo: Any) -> DeviceArray:
        return DeviceArray(self._host.copy(), self.device.id)


DeviceArray.__module__ = "cupy"  # by which fastconv tells arrays of the device


class Namespace:
    """Stands in for the module `cupy`: functions that take the device's arrays only, and make new ones."""

    ndarray = DeviceArray

    def __getattr__(self, name: str) -> Any:
        if name in VALUES:
            return self._value(name)
        if name in MAKERS:
            return lambda *args, **kwargs: make(name, *unwrapped(args), **unwrapped(kwargs))
        if name in FUNCTIONS:
            return self._function(getattr(np, name))
        raise AttributeError(f"the emulated device has no xp.{name}; if CuPy has, add it to FUNCTIONS")

    def asarray(
        self, value: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False
    ) -> DeviceArray:
        if hasattr(value, "__cuda_array_interface__") and not isinstance(value, DeviceArray):
            return self.from_dlpack(value.array)  # another library's: shared
        host = as_host(value)
        result = np.asarray(host, dtype, order=order)
        if isinstance(value, DeviceArray):
            if result is host and value.device.id == Device.current():
                return value
            if value.device.id != Device.current() and not (host.flags.c_contiguous or host.flags.f_contiguous):
                raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
            return DeviceArray(result if result is not host else host.copy())
        Recording.forbids("an array was copied from the host")
        return DeviceArray(result.copy() if np.shares_memory(result, host) else result)

    def array(self, value: Any, dtype: Any = None, order: str = "K", copy: bool = True) -> DeviceArray:
        if not isinstance(value, DeviceArray):
            Recording.forbids("an array was copied from the host")
        return DeviceArray(np.array(as_host(value), dtype, order=order, copy=copy))

    def from_dlpack(self, value: Any) -> DeviceArray:
        if value.__dlpack_device__()[0] != 2:
            raise TypeError("from_dlpack: not on a CUDA device")
        source = value if isinstance(value, DeviceArray) else value.array
        return DeviceArray(source._host.view(), source.device.id)

    def where(self, condition: DeviceArray, *choices: Any) -> Any:
        """As CuPy's: numbers must fit the dtype of the array beside them, and bfloat16 becomes float32."""
        check_operands((condition, *choices))
        dtype = np.result_type(*unwrapped(choices))
        dtype = np.dtype("float32") if dtype.name == "bfloat16" else dtype
        given = [x.astype(dtype) if isinstance(x, np.ndarray) else dtype.type(x) for x in unwrapped(choices)]
        return wrapped(np.where(condition._host, *given), Device.current())

    def _value(self, name: str) -> Any:
        if name != "result_type":
            return getattr(np, name)
        return lambda *args: np.result_type(*unwrapped(args))

    def _function(self, function: Any) -> Any:
        if isinstance(function, np.ufunc):
            return UniversalFunction(function)

        def call(*args: Any, **kwargs: Any) -> Any:
            check_operands((*flat(args), *flat(kwargs.values())))
            return wrapped(function(*unwrapped(args), **unwrapped(kwargs)), Device.current())

        return call


class UniversalFunction:
    """A ufunc for the device's arrays; numbers alone make one, as in CuPy."""

    def __init__(self, function: np.ufunc) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        check_operands(args)
        return wrapped(self._function(*unwrapped(args), **unwrapped(kwargs)), Device.current())


def make(name: str, *args: Any, **kwargs: Any) -> DeviceArray:
    """New memory; `empty` is full of NaN."""
    maker = empty if name == "empty" else getattr(np, name)
    if name == "empty":
        kwargs.setdefault("dtype", np.float64) if len(args) < 2 else None
    return DeviceArray(maker(*args, **kwargs))


def wrapped(result: Any, device: int) -> Any:
    """A NumPy result as one of the device: scalars become arrays of no axes."""
    if isinstance(result, (tuple, list)):
        return type(result)(wrapped(part, device) for part in result)
    if isinstance(result, (np.ndarray, np.generic)):
        return DeviceArray(np.asarray(result), device)
    return result


def unwrapped(value: Any) -> Any:
    """NumPy arrays in the place of the device's, anywhere in tuples, lists and dicts."""
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, (tuple, list)):
        return type(value)(unwrapped(part) for part in value)
    if isinstance(value, dict):
        return {key: unwrapped(part) for key, part in value.items()}
    return value


def as_host(value: Any) -> Any:
    """The values of anything that CuPy would copy to the device."""
    return value._host if isinstance(value, DeviceArray) else value


def flat(values: Any) -> list[Any]:
    return [part for value in values for part in (flat(value) if isinstance(value, (tuple, list)) else [value])]


def check_operands(operands: Any) -> None:
    """TypeError for an array of the host, ValueError for one of a device that is not the current one."""
    for operand in operands:
        if isinstance(operand, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        if isinstance(operand, DeviceArray) and operand.device.id != Device.current():
            raise ValueError(
                f"The device where the array resides ({operand.device.id}) is different from the current device "
                f"({Device.current()})."
            )
