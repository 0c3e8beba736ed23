"""Value and derivative of every Tensor operation, on plain arrays: the tape knows none of this mathematics.

A rule takes arrays (or Python numbers) and returns (y, vjp_0, vjp_1, ...): the result and, for each operand, the
vector-Jacobian product gy → gradient of that operand. A vjp captures only what it needs, so that the tape, which
drops those nobody asks for, frees their arrays as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastconv import backends

Array = Any
Vjp = Callable[[Array], Array]
Index = Any


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum `gradient` over the axes along which an operand of `shape` was broadcast; the result has that shape."""
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    stretched = tuple(extra + axis for axis, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=tuple(range(extra)) + stretched).reshape(shape)


def _to(operand: Array | float) -> Vjp:
    """The vjp of "broadcast this operand": back to its shape and dtype, without holding on to its values."""
    if isinstance(operand, (bool, int, float)):
        return lambda gy: None  # a Python number has no gradient
    shape, dtype = operand.shape, operand.dtype
    return lambda gy: unbroadcast(gy, shape).astype(dtype, copy=False)


def beside(other: Array | float, x: Array | float) -> Array | float:
    """`x` as it stands beside `other`: beside a floating array, an integer one has the dtype of that.

    So has a Python float beside bfloat16: NumPy and CuPy would take both to float32.
    """
    dtype = getattr(other, "dtype", None)
    if dtype is None or not backends.is_floating(dtype):
        return x
    if isinstance(x, float) and dtype.name == "bfloat16":
        with backends.on(other):
            return backends.of(other).xp.full((), x, dtype)
    return x if isinstance(x, (bool, int, float)) or x.dtype.kind not in "iub" else x.astype(dtype)


def add(a: Array, b: Array) -> tuple[Array, Vjp, Vjp]:
    backend = backends.of(b if isinstance(a, (bool, int, float)) else a)
    return backend.add(a, b), _to(a), _to(b)


def subtract(a: Array, b: Array) -> tuple[Array, Vjp, Vjp]:
    to_b = _to(b)
    return a - b, _to(a), lambda gy: to_b(-gy)


def multiply(a: Array, b: Array) -> tuple[Array, Vjp, Vjp]:
    to_a, to_b = _to(a), _to(b)
    return a * b, lambda gy: to_a(gy * b), lambda gy: to_b(gy * a)


def divide(a: Array, b: Array) -> tuple[Array, Vjp, Vjp]:
    to_a, to_b = _to(a), _to(b)
    return a / b, lambda gy: to_a(gy / b), lambda gy: to_b(-gy * (a / b) / b)


def power(a: Array, b: Array) -> tuple[Array, Vjp, Vjp]:
    """a ** b; where b = 0 the slope in a is 0, and where a = 0 <= b the slope in b is 0, as in PyTorch."""
    y = a**b
    xp = backends.of(y).xp
    to_a, to_b = _to(a), _to(b)

    def grad_base(gy: Array) -> Array:
        # 0 · a^(-1) would be NaN at a = 0, so an exponent of 0 is lowered to itself.
        lowered = (b - 1 if b else b) if isinstance(b, (int, float)) else xp.where(b == 0, b, b - 1)
        return to_a(gy * (b * a**lowered))

    def grad_exponent(gy: Array) -> Array:
        flat = xp.logical_and(xp.equal(a, 0), xp.greater_equal(b, 0))
        return to_b(gy * y * xp.log(xp.where(flat, 1, a).astype(y.dtype)))

    return y, grad_base, grad_exponent


def negative(a: Array) -> tuple[Array, Vjp]:
    return -a, lambda gy: -gy


def exp(a: Array) -> tuple[Array, Vjp]:
    y = backends.of(a).xp.exp(a)
    return y, lambda gy: gy * y


def log(a: Array) -> tuple[Array, Vjp]:
    return backends.of(a).xp.log(a), lambda gy: gy / a


def sqrt(a: Array) -> tuple[Array, Vjp]:
    y = backends.of(a).xp.sqrt(a)
    return y, lambda gy: gy / (2 * y)


def absolute(a: Array) -> tuple[Array, Vjp]:
    """|a|, with slope 0 at 0."""
    xp = backends.of(a).xp
    return xp.abs(a), lambda gy: gy * xp.sign(a)


def clip(a: Array, low: float | None, high: float | None) -> tuple[Array, Vjp]:
    """a limited to [low, high]; the slope is 1 on the limits themselves, as in PyTorch."""
    xp = backends.of(a).xp
    inside = xp.ones(a.shape, bool)
    if low is not None:
        inside &= a >= low
    if high is not None:
        inside &= a <= high
    # Not by xp.clip, which has no bfloat16 in CuPy; beside a Python float that dtype would become float32.
    limit = a.dtype.type if backends.is_floating(a.dtype) else lambda number: number
    y = a if low is None else xp.maximum(a, limit(low))
    return y if high is None else xp.minimum(y, limit(high)), lambda gy: gy * inside


def cast(a: Array, dtype: Any) -> tuple[Array, Vjp]:
    source = a.dtype
    return a.astype(dtype, copy=False), lambda gy: gy.astype(source, copy=False)


def reshape(a: Array, shape: Sequence[int]) -> tuple[Array, Vjp]:
    source = a.shape
    return a.reshape(tuple(shape)), lambda gy: gy.reshape(source)


def permute(a: Array, axes: Sequence[int]) -> tuple[Array, Vjp]:
    inverse = [0] * a.ndim
    for to, origin in enumerate(axes):
        inverse[origin] = to
    return a.transpose(tuple(axes)), lambda gy: gy.transpose(tuple(inverse))


def index(a: Array, key: Index) -> tuple[Array, Vjp]:
    """a[key] for any NumPy index; an element picked twice gets both gradients."""
    backend = backends.of(a)
    shape = a.shape
    parts = key if isinstance(key, tuple) else (key,)
    picks_once = all(
        part is None or part is Ellipsis or isinstance(part, (int, slice)) or _is_mask(part) for part in parts
    )

    def scatter(gy: Array) -> Array:
        if not picks_once:
            return backend.scatter_add(shape, key, gy)
        gx = backend.xp.zeros(shape, gy.dtype)
        gx[key] = gy
        return gx

    return a[key], scatter


def _is_mask(part: Any) -> bool:
    return hasattr(part, "dtype") and bool(part.dtype.kind == "b")


def _axes(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(ndim))
    return tuple(axis % ndim if ndim else axis for axis in ((dim,) if isinstance(dim, int) else dim))


def _restore(axes: tuple[int, ...], shape: tuple[int, ...]) -> Vjp:
    """gy of a reduction over `axes`, with or without kept axes, as an array that broadcasts against `shape`."""
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return lambda gy: gy.reshape(kept)


def total(a: Array, dim: int | Sequence[int] | None, keepdim: bool) -> tuple[Array, Vjp]:
    xp = backends.of(a).xp
    shape, axes = a.shape, _axes(dim, a.ndim)
    restore = _restore(axes, shape)
    y = a.sum(axis=dim if dim is None or isinstance(dim, int) else tuple(dim), keepdims=keepdim)
    return y, lambda gy: xp.broadcast_to(restore(gy), shape)


def mean(a: Array, dim: int | Sequence[int] | None, keepdim: bool) -> tuple[Array, Vjp]:
    y, spread = total(a, dim, keepdim)
    count = _count(a, dim)
    return y / count, lambda gy: spread(gy / count)


def variance(a: Array, dim: int | Sequence[int] | None, correction: float, keepdim: bool) -> tuple[Array, Vjp]:
    """Sum of squared deviations over (count − correction)."""
    axes = _axes(dim, a.ndim)
    restore = _restore(axes, a.shape)
    deviation = a - a.mean(axis=axes, keepdims=True)
    degrees, number = _count(a, dim) - correction, deviation.dtype.type
    y = (deviation * deviation).sum(axis=axes, keepdims=keepdim) / number(degrees)
    return y, lambda gy: deviation * restore(gy * number(2 / degrees))


def _count(a: Array, dim: int | Sequence[int] | None) -> int:
    count = 1
    for axis in _axes(dim, a.ndim):
        count *= a.shape[axis]
    return count


def extreme_of_all(a: Array, largest: bool) -> tuple[Array, Vjp]:
    """Maximum or minimum over everything; equal winners share the gradient evenly, as in PyTorch."""
    y = a.max() if largest else a.min()

    def share(gy: Array) -> Array:
        winners = (a == y) | ((a != a) & (y != y))
        return winners * (gy / winners.sum().astype(gy.dtype))

    return y, share


def extreme_along(a: Array, dim: int, keepdim: bool, largest: bool) -> tuple[Array, Array, Vjp]:
    """Maximum or minimum along one axis and the index of the first winner, which alone gets the gradient."""
    xp = backends.of(a).xp
    shape, dtype = a.shape, a.dtype
    indices = xp.expand_dims(a.argmax(axis=dim) if largest else a.argmin(axis=dim), dim)
    values = xp.take_along_axis(a, indices, axis=dim)
    restore = _restore(_axes(dim, a.ndim), shape)

    def route(gy: Array) -> Array:
        gx = xp.zeros(shape, dtype)
        xp.put_along_axis(gx, indices, restore(gy), axis=dim)
        return gx

    if keepdim:
        return values, indices, route
    return values.squeeze(dim), indices.squeeze(dim), route


def matmul(a: Array, b: Array) -> tuple[Array, Vjp, Vjp]:
    """a (..., M, K) @ b (..., K, N) as in NumPy: vectors are promoted, leading axes broadcast."""
    a, b, dtypes = _factors(a, b)
    row, column = a.ndim == 1, b.ndim == 1
    left = a[None, :] if row else a
    right = b[:, None] if column else b
    y = _products(left, right)
    full = y.shape

    def grad_a(gy: Array) -> Array:
        gradient = unbroadcast(_products(gy.reshape(full), right.swapaxes(-1, -2)), left.shape)
        return gradient.reshape(a.shape).astype(dtypes[0], copy=False)

    def grad_b(gy: Array) -> Array:
        gradient = unbroadcast(_products(left.swapaxes(-1, -2), gy.reshape(full)), right.shape)
        return gradient.reshape(b.shape).astype(dtypes[1], copy=False)

    outer = full[:-2] + (() if row else full[-2:-1]) + (() if column else full[-1:])
    return y.reshape(outer), grad_a, grad_b


def _factors(a: Array, b: Array) -> tuple[Array, Array, tuple[Any, Any]]:
    """Both factors in one floating dtype, and the dtypes they had; with sizes that fit, as the backend checks none."""
    kinds = [x.dtype.name if hasattr(x, "dtype") else type(x).__name__ for x in (a, b)]
    known = ("float32", "float64", *(backends.HALF if backends.is_cupy(a) else ()))
    if any(kind not in known for kind in kinds):
        raise TypeError(
            f'matmul: both factors must be float32 or float64, got {" and ".join(kinds)}; try x.to(dtype="float32")'
        )
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(
            f"matmul: the last axis of the left factor must fit the rows of the right one, got shapes {a.shape} "
            f"and {b.shape}"
        )
    common = backends.of(a).xp.result_type(a, b).newbyteorder("=")
    return a.astype(common, copy=False), b.astype(common, copy=False), (a.dtype, b.dtype)


def _products(a: Array, b: Array) -> Array:
    """Matrix products over broadcast leading axes, each by the backend, which sums every element in one fixed order."""
    backend = backends.of(a)
    if a.ndim == 2 and b.ndim == 2:
        return backend.matmul(a, b)
    xp = backend.xp
    batch = xp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = xp.empty((*batch, a.shape[-2], b.shape[-1]), xp.result_type(a, b))
    stack_a = xp.broadcast_to(a, (*batch, *a.shape[-2:]))
    stack_b = xp.broadcast_to(b, (*batch, *b.shape[-2:]))
    for position in xp.ndindex(*batch):
        y[position] = backend.matmul(stack_a[position], stack_b[position])
    return y


def concatenate(arrays: Sequence[Array], axis: int) -> tuple[Any, ...]:
    _check_joinable([array.shape for array in arrays], axis)
    y = backends.of(arrays[0]).concatenate(arrays, axis)
    vjps, start = [], 0
    for array in arrays:
        stop = start + array.shape[axis]
        vjps.append(_part((slice(None),) * (axis % y.ndim) + (slice(start, stop),), array.dtype))
        start = stop
    return (y, *vjps)


def _check_joinable(shapes: Sequence[tuple[int, ...]], axis: int) -> None:
    first = shapes[0]
    if not -len(first) <= axis < len(first):
        raise ValueError(f"concatenate: axis {axis} is not one of the {len(first)} axes of shape {first}")
    axis %= len(first)
    for shape in shapes:
        if shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :] or len(shape) != len(first):
            raise ValueError(
                f"concatenate: all sizes but that of axis {axis} must agree, got shapes {first} and {shape}"
            )


def _part(key: tuple[slice, ...], dtype: Any) -> Vjp:
    return lambda gy: gy[key].astype(dtype, copy=False)
