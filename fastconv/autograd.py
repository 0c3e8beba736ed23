"""Tensor, and `record`, by which an operation puts itself on the tape. Nothing here knows of convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv import _derivatives as rules
from fastconv import _tape, backends
from fastconv._tape import Backward, Node, is_grad_enabled, no_grad
from fastconv.backends import to_device
from fastconv.errors import DeviceError

__all__ = ["Tensor", "concatenate", "is_grad_enabled", "needs_grad", "no_grad", "raw", "record", "stack", "to_device"]

Array = Any


def raw(x: Any) -> Any:
    """The array of a Tensor; anything else unchanged."""
    return x.data if isinstance(x, Tensor) else x


def needs_grad(x: Any) -> bool:
    """True for a Tensor that requires a gradient while recording is on."""
    return isinstance(x, Tensor) and x.requires_grad and is_grad_enabled()


def record(y: Array, inputs: Sequence[Any], backward: Backward | None) -> Any:
    """The result of an operation in the kind of its inputs: the array `y` if no input is a Tensor, else a Tensor.

    `backward` maps the cotangent of y (an array with y's shape and dtype, C-contiguous, not to be modified) to one
    array or None per input: that cotangent, a view of it, or a new array. It must hold arrays only, no Tensors.
    None instead of a function says that the result has no gradient (indices, comparisons).
    """
    tensor = needed = False
    for x in inputs:  # a plain loop: this runs for every operation
        if isinstance(x, Tensor):
            tensor, needed = True, needed or x.requires_grad
    if not tensor:
        return y
    result = Tensor(y)
    if needed and backward is not None and is_grad_enabled():
        parents = [(x._node or x) if isinstance(x, Tensor) and x.requires_grad else None for x in inputs]
        result.requires_grad, result._node = True, Node(parents, backward)
    return result


class Extreme(NamedTuple):
    """Result of `Tensor.max(dim)` and `Tensor.min(dim)`."""

    values: Tensor
    indices: Tensor


class Tensor:
    """An array that remembers how it was computed, with the methods of `torch.Tensor` that training needs.

    `array` may be a NumPy or CuPy array, one of another library (its memory is shared), or what `numpy.asarray` takes.
    `requires_grad=True` makes it a leaf whose `grad`, an array, is filled by `backward()` of a result; only floating
    arrays can have one (TypeError). Operators take Tensors, arrays and numbers and broadcast as NumPy does; beside a
    floating operand, an integer one takes its dtype. NumPy's functions refuse a Tensor whose gradient is recorded.
    """

    __slots__ = ("_node", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # so that `array + tensor` asks the Tensor
    __array_priority__ = 1000

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        adopted = backends.adopted(raw(array))
        data = np.asarray(array) if adopted is None else adopted
        if data.dtype.kind not in "fiub" and not backends.is_floating(data.dtype):
            raise TypeError(f"Tensor: dtype {data.dtype} is not supported; floating, integer and boolean arrays are")
        if requires_grad and not backends.is_floating(data.dtype):
            raise TypeError(f'Tensor: only floating arrays have gradients, got {data.dtype}; try x.astype("float32")')
        self.data: Array = data
        self.requires_grad: bool = requires_grad
        self.grad: Array | None = None
        self._node: Node | None = None

    # What it holds

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        return int(self.data.ndim)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def device(self) -> str:
        return backends.device_of(self.data)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return int(self.data.size)

    def numpy(self) -> Any:
        """The values as a NumPy array: the Tensor's own memory on the CPU, a copy from a GPU."""
        return to_device(self.data, "cpu")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if needs_grad(self):
            raise TypeError("NumPy would lose a Tensor's gradient: use methods, fc.concatenate; x.numpy() for values")
        return np.array(self.numpy(), dtype=dtype) if copy else np.asarray(self.numpy(), dtype=dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def to(self, device: str | None = None, dtype: Any = None) -> Tensor:
        """The same values on another device, in another dtype, or both; differentiable."""
        result = self
        if dtype is not None and np.dtype(dtype) != self.dtype:
            result = _apply(rules.cast, (result,), np.dtype(dtype))
        if device is not None and device != self.device:
            source = self.device
            result = record(to_device(result.data, device), (result,), lambda gy: (to_device(gy, source),))
        return result

    def item(self) -> Any:
        """The value of a one-element Tensor as a Python number; ValueError for any other size."""
        if self.data.size != 1:
            raise ValueError(f"item: only a Tensor with one element is a number, this one has shape {self.shape}")
        return self.data.item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self.data)))

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=100)
        return f"Tensor({values}, dtype={self.dtype}{', requires_grad=True' if self.requires_grad else ''})"

    # Gradients

    def detach(self) -> Tensor:
        """The same array in a Tensor without history."""
        return Tensor(self.data)

    def backward(self, gradient: Any = None) -> None:
        """Add the gradient of this result to `grad` of every leaf it depends on, and free the graph.

        `gradient` is the cotangent of this Tensor (of its shape; default 1 for a single number). If anything fails, no
        `grad` has changed. Raises RuntimeError where nothing was recorded or the graph is already freed, ValueError for
        a missing or mis-shaped cotangent.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward: nothing was recorded for this Tensor: no input had requires_grad=True, or it was computed "
                "under no_grad()"
            )
        if gradient is None and self.data.size != 1:
            raise ValueError(
                f"backward: a result of shape {self.shape} needs its cotangent: y.backward(gradient); or reduce it "
                "to a number first: y.sum().backward()"
            )
        with backends.on(self.data):
            xp = backends.of(self.data).xp
            given = xp.ones_like(self.data) if gradient is None else raw(gradient)
            seed = xp.asarray(given, dtype=self.dtype, order="C")
        if seed.shape != self.shape:
            raise ValueError(f"backward: gradient has shape {seed.shape}, the result it belongs to {self.shape}")
        _tape.deposit({self: seed} if self._node is None else _tape.walk(self._node, seed), seed)

    # Arithmetic

    def __add__(self, other: Any) -> Tensor:
        return _binary(rules.add, self, other)

    def __sub__(self, other: Any) -> Tensor:
        return _binary(rules.subtract, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _binary(rules.subtract, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _binary(rules.multiply, self, other)

    def __truediv__(self, other: Any) -> Tensor:
        return _binary(rules.divide, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _binary(rules.divide, other, self)

    def __pow__(self, other: Any) -> Tensor:
        return _binary(rules.power, self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return _binary(rules.power, other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _binary(rules.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _binary(rules.matmul, other, self)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Tensor:
        return _apply(rules.negative, (self,))

    def __eq__(self, other: Any) -> Any:
        return _compare("equal", self, other)

    def __ne__(self, other: Any) -> Any:
        return _compare("not_equal", self, other)

    def __lt__(self, other: Any) -> Tensor:
        return _compare("less", self, other)

    def __le__(self, other: Any) -> Tensor:
        return _compare("less_equal", self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _compare("greater", self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _compare("greater_equal", self, other)

    __hash__ = object.__hash__

    def exp(self) -> Tensor:
        return _apply(rules.exp, (self,))

    def log(self) -> Tensor:
        return _apply(rules.log, (self,))

    def sqrt(self) -> Tensor:
        return _apply(rules.sqrt, (self,))

    def abs(self) -> Tensor:
        return _apply(rules.absolute, (self,))

    __abs__ = abs

    def clip(self, min: float | None = None, max: float | None = None) -> Tensor:
        """Values limited to [min, max]."""
        return _apply(rules.clip, (self,), min, max)

    # Shape

    def __getitem__(self, key: Any) -> Tensor:
        key = tuple(raw(part) for part in key) if isinstance(key, tuple) else raw(key)
        return _apply(rules.index, (self,), key)

    def reshape(self, *shape: Any) -> Tensor:
        """The same values in another shape, given as ints or as one tuple; one size may be -1."""
        return _apply(rules.reshape, (self,), _unpacked(shape))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Axes start_dim..end_dim merged into one."""
        first, last = (dim % max(self.ndim, 1) for dim in (start_dim, end_dim))
        merged = int(np.prod(self.shape[first : last + 1], dtype=np.int64))
        return self.reshape((*self.shape[:first], merged, *self.shape[last + 1 :]))

    def permute(self, *dims: Any) -> Tensor:
        """Axes in the order `dims`, given as ints or as one tuple."""
        return _apply(rules.permute, (self,), [dim % self.ndim for dim in _unpacked(dims)])

    def transpose(self, dim0: int, dim1: int) -> Tensor:
        """Axes dim0 and dim1 exchanged."""
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(order)

    @property
    def T(self) -> Tensor:
        """All axes reversed."""
        return self.permute(tuple(reversed(range(self.ndim))))

    def squeeze(self, dim: int | None = None) -> Tensor:
        """Without the axes of size 1, or without axis `dim` if its size is 1."""
        dropped = range(self.ndim) if dim is None else (dim % self.ndim,)
        return self.reshape(tuple(size for axis, size in enumerate(self.shape) if size != 1 or axis not in dropped))

    def unsqueeze(self, dim: int) -> Tensor:
        """With a new axis of size 1 at position `dim`."""
        position = dim % (self.ndim + 1)
        return self.reshape((*self.shape[:position], 1, *self.shape[position:]))

    # Reductions

    def sum(self, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
        return _apply(rules.total, (self,), dim, keepdim)

    def mean(self, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
        return _apply(rules.mean, (self,), dim, keepdim)

    def var(self, dim: int | Sequence[int] | None = None, correction: float = 1, keepdim: bool = False) -> Tensor:
        """Variance with divisor (count − correction): the unbiased estimate by default, as in PyTorch."""
        return _apply(rules.variance, (self,), dim, correction, keepdim)

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The largest value; along `dim` the pair (values, indices), where the first of equal values wins."""
        return _extreme(self, dim, keepdim, largest=True)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The smallest value; along `dim` the pair (values, indices), where the first of equal values wins."""
        return _extreme(self, dim, keepdim, largest=False)

    def argmax(self, dim: int | None = None) -> Tensor:
        """Index of the first largest value, in the flattened Tensor or along `dim`."""
        return Tensor(self.data.argmax(axis=dim))


def concatenate(tensors: Sequence[Any], axis: int = 0) -> Any:
    """Join arrays or Tensors along an existing axis; a Tensor if any of them is one."""
    if len(tensors) == 0:
        raise ValueError("concatenate: at least one array is needed, got none")
    return _apply(lambda *arrays: rules.concatenate(arrays, axis), tuple(tensors))


def stack(tensors: Sequence[Any], axis: int = 0) -> Any:
    """Join arrays or Tensors of one shape along a new axis; a Tensor if any of them is one."""
    ndim = raw(tensors[0]).ndim if tensors else 0
    key = (slice(None),) * (axis % (ndim + 1)) + (None,)
    return concatenate([tensor[key] for tensor in tensors], len(key) - 1)


def _apply(rule: Callable[..., tuple[Any, ...]], inputs: tuple[Any, ...], *options: Any) -> Tensor:
    """Run a rule of _derivatives on the arrays of `inputs`; keep the vjps of those inputs that need a gradient."""
    arrays = [raw(x) for x in inputs]
    first = arrays[0]
    if not {type(array) for array in arrays} <= {np.ndarray, float, int, bool}:
        devices = {backends.device_of(array): array for array in arrays if hasattr(array, "dtype")}
        if len(devices) > 1:
            places = " and ".join(sorted(devices))
            raise DeviceError(f"Tensor arithmetic: operands are on {places}; move one of them with x.to(device)")
        (first,) = devices.values()
    with backends.on(first):
        y, *vjps = rule(*arrays, *options)
    kept = [vjp if needs_grad(x) else None for x, vjp in zip(inputs, vjps, strict=True)]
    result: Tensor = record(y, inputs, lambda gy: [None if vjp is None else vjp(gy) for vjp in kept])
    return result


def _binary(rule: Callable[..., tuple[Any, ...]], a: Any, b: Any) -> Tensor:
    return _apply(rule, _operands(a, b))


def _operands(a: Any, b: Any) -> tuple[Any, Any]:
    """Both operands ready for NumPy: numbers as Python numbers, and integers beside floats in the dtype of those."""
    a, b = _operand(a), _operand(b)
    of_a, of_b = rules.beside(raw(b), raw(a)), rules.beside(raw(a), raw(b))
    return a if of_a is raw(a) else Tensor(of_a), b if of_b is raw(b) else Tensor(of_b)


def _operand(x: Any) -> Any:
    """A Python number, which takes the dtype of what stands beside it, or a Tensor."""
    if isinstance(x, np.generic):
        return x.item()
    return x if isinstance(x, (bool, int, float, Tensor)) else Tensor(x)


def _compare(name: str, a: Any, b: Any) -> Tensor:
    a, b = _operands(a, b)
    return Tensor(getattr(backends.of(raw(a)).xp, name)(raw(a), raw(b)))


def _extreme(a: Tensor, dim: int | None, keepdim: bool, largest: bool) -> Any:
    if dim is None:
        return _apply(rules.extreme_of_all, (a,), largest)
    values, indices, route = rules.extreme_along(a.data, dim, keepdim, largest)
    return Extreme(record(values, (a,), lambda gy: (route(gy),)), Tensor(indices))


def _unpacked(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Ints given one by one or as one sequence."""
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], (int, np.integer)) else sizes
