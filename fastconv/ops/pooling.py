"""Max, average, sum and adaptive pooling of one, two and three spatial axes, with their gradients. One core each.

Symbols: N samples, C channels, *S input sizes, *O output sizes; for each axis
O = floor((S + 2·padding − dilation·(kernel_size − 1) − 1) / stride) + 1, with ceil_mode rounded up.

Inputs are arrays or Tensors (N, C, *S) or (C, *S), float32 or float64; results have the same kind, dtype and axes, and
the same bits whatever the batch or the number of threads. `kernel_size`, `stride` (default: the kernel), `padding` and
`dilation` are an int or one int per axis, where a tuple of one stands for all; `padding` may also be one
(before, after) pair per axis, and must leave each window an element of the input. Wrong shapes and numbers raise
ValueError, wrong kinds and dtypes TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv import backends
from fastconv.autograd import needs_grad, record
from fastconv.geometry import PoolGeometry
from fastconv.ops._arguments import floating

Array = Any
Ints = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[tuple[int, int]]
OutputSize = int | None | Sequence[int | None]


def max_pool1d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest value of each window, (N, C, L) → (N, C, O); arguments as in `max_pool2d`."""
    return _max_pool(
        "max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices
    )


def max_pool2d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest value of each window, (N, C, H, W) → (N, C, OH, OW), as `torch.nn.functional.max_pool2d`.

    A window with a NaN gives NaN. With `return_indices` the pair (values, indices): the int64 place of each winner,
    the first of equal ones, in its flattened (H, W) plane. The gradient goes to the winner.
    """
    return _max_pool(
        "max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices
    )


def max_pool3d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest value of each window, (N, C, D, H, W) → (N, C, *O); arguments as in `max_pool2d`."""
    return _max_pool(
        "max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=return_indices
    )


def avg_pool1d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    dilation: Ints = 1,
) -> Any:
    """The mean of each window, (N, C, L) → (N, C, O); arguments as in `avg_pool2d`."""
    return _avg_pool(
        "avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
    )


def avg_pool2d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    dilation: Ints = 1,
) -> Any:
    """The mean of each window, (N, C, H, W) → (N, C, OH, OW), as `torch.nn.functional.avg_pool2d`.

    The sum of a window, accumulated in float64, is divided by its size: with the zeros of the padding
    (`count_include_pad`) or without; `divisor_override` takes the place of either. `dilation` spaces the taps of a
    window, as in `max_pool2d`.
    """
    return _avg_pool(
        "avg_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
    )


def avg_pool3d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    dilation: Ints = 1,
) -> Any:
    """The mean of each window, (N, C, D, H, W) → (N, C, *O); arguments as in `avg_pool2d`."""
    return _avg_pool(
        "avg_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
    )


def sum_pool1d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    dilation: Ints = 1,
) -> Any:
    """The sum of each window, (N, C, L) → (N, C, O)."""
    return _avg_pool("sum_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, True, 1, dilation)


def sum_pool2d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    dilation: Ints = 1,
) -> Any:
    """The sum of each window, (N, C, H, W) → (N, C, OH, OW)."""
    return _avg_pool("sum_pool2d", 2, input, kernel_size, stride, padding, ceil_mode, True, 1, dilation)


def sum_pool3d(
    input: Any,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    dilation: Ints = 1,
) -> Any:
    """The sum of each window, (N, C, D, H, W) → (N, C, *O)."""
    return _avg_pool("sum_pool3d", 3, input, kernel_size, stride, padding, ceil_mode, True, 1, dilation)


def adaptive_avg_pool1d(input: Any, output_size: OutputSize) -> Any:
    """The means of `output_size` windows that cover the input, (N, C, L) → (N, C, O); as `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, input, output_size)


def adaptive_avg_pool2d(input: Any, output_size: OutputSize) -> Any:
    """The means of windows that cover the input, (N, C, H, W) → (N, C, OH, OW); output size 1 is global pooling.

    Window o of an axis is [floor(o·S/O), ceil((o + 1)·S/O)). `output_size` is one int, or one per axis; None keeps
    the size of the input.
    """
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, input, output_size)


def adaptive_avg_pool3d(input: Any, output_size: OutputSize) -> Any:
    """The means of windows that cover the input, (N, C, D, H, W) → (N, C, *O); as `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, input, output_size)


def adaptive_max_pool1d(input: Any, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The largest values of `output_size` windows that cover the input, (N, C, L) → (N, C, O).

    Windows as in `adaptive_avg_pool2d`, indices as in `max_pool2d`.
    """
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Any, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The largest values of windows that cover the input, (N, C, H, W) → (N, C, OH, OW).

    Windows as in `adaptive_avg_pool2d`, indices as in `max_pool2d`.
    """
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Any, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The largest values of windows that cover the input, (N, C, D, H, W) → (N, C, *O).

    Windows as in `adaptive_avg_pool2d`, indices as in `max_pool2d`.
    """
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, return_indices)


def _max_pool(
    op: str,
    rank: int,
    input: Any,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    dilation: Ints,
    ceil_mode: bool,
    *,
    return_indices: bool,
) -> Any:
    x, batched = _batch(op, rank, input)
    geometry = PoolGeometry.of(op, x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _max(input, x, batched, geometry, return_indices)


def _adaptive_max_pool(op: str, rank: int, input: Any, output_size: OutputSize, return_indices: bool) -> Any:
    x, batched = _batch(op, rank, input)
    return _max(input, x, batched, PoolGeometry.adaptive(op, x.shape, output_size), return_indices)


def _avg_pool(
    op: str,
    rank: int,
    input: Any,
    kernel_size: Ints,
    stride: Ints | None,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    dilation: Ints,
) -> Any:
    x, batched = _batch(op, rank, input)
    geometry = PoolGeometry.of(
        op, x.shape, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad, divisor_override
    )
    return _avg(input, x, batched, geometry)


def _adaptive_avg_pool(op: str, rank: int, input: Any, output_size: OutputSize) -> Any:
    x, batched = _batch(op, rank, input)
    return _avg(input, x, batched, PoolGeometry.adaptive(op, x.shape, output_size))


def _batch(op: str, rank: int, input: Any) -> tuple[Array, bool]:
    """The input's array with a batch axis, and whether it had one."""
    x = floating(op, input=input)
    return (x[None], False) if x.ndim == rank + 1 else (x, True)


def _max(input: Any, x: Array, batched: bool, geometry: PoolGeometry, return_indices: bool) -> Any:
    backend = backends.of(x)
    values, indices = backend.max_pool_forward(x, geometry, return_indices or needs_grad(input))

    def backward(gy: Array) -> tuple[Array]:
        gx = backend.max_pool_backward(gy if batched else gy[None], indices, geometry)
        return (gx if batched else gx[0],)

    y = record(values if batched else values[0], (input,), backward)
    if not return_indices:
        return y
    return y, record(indices if batched else indices[0], (input,), None)


def _avg(input: Any, x: Array, batched: bool, geometry: PoolGeometry) -> Any:
    backend = backends.of(x)
    y = backend.avg_pool_forward(x, geometry)

    def backward(gy: Array) -> tuple[Array]:
        gx = backend.avg_pool_backward(gy if batched else gy[None], geometry)
        return (gx if batched else gx[0],)

    return record(y if batched else y[0], (input,), backward)
