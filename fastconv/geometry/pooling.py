"""The geometry of a pooling: ordinary windows and adaptive ones, with all argument checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastconv.geometry.arguments import AXES, Pairs, for_axes, integer, is_plain, pairs, per_axis
from fastconv.geometry.checks import check_fit, check_volume, pool_rank
from fastconv.geometry.formulas import extent, longest_adaptive_window, output_size

Windows = tuple[tuple[int, ...], tuple[int, ...], int]
"""Along one axis: first taps, ends (exclusive), step; window o reads range(starts[o], stops[o], step)."""


@dataclass(frozen=True, slots=True)
class PoolGeometry:
    """A pooling of rank 1, 2 or 3, each channel for itself: what its windows read and what an average divides by.

    `padding` holds (before, after) for each axis. With `adaptive` the windows vary: `kernel` then is the longest of
    each axis and `stride` their mean distance, rounded down; `windows` has the truth. Make one with `of` or `adaptive`.
    """

    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pairs
    dilation: tuple[int, ...]
    out_spatial: tuple[int, ...]
    count_include_pad: bool = True
    divisor_override: int | None = None
    is_adaptive: bool = False

    @classmethod
    def of(
        cls,
        op: str,
        input_shape: tuple[int, ...],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> PoolGeometry:
        """The geometry of `op` on input (N, C, *S), after all checks.

        `op` names the operation in messages; a rank in it ("max_pool2d") is demanded of the input. `stride` defaults
        to the kernel; every window must hold an element of the input. With `ceil_mode` a last window may hang over the
        end, as long as it starts inside the input or its padding before. An average divides by `divisor_override` if
        given, else by the window's size, padding included or not (`count_include_pad`); what hangs over never counts.

        Raises TypeError for arguments of a wrong kind, ValueError for wrong numbers and windows that do not fit.
        """
        if not is_plain((kernel_size, () if stride is None else stride, padding, dilation)):
            rank = pool_rank(op, input_shape)
            kernel_size, stride, padding, dilation = _window(op, rank, kernel_size, stride, padding, dilation)
        if divisor_override is not None:
            divisor_override = integer(op, "divisor_override", divisor_override, 1)
        return _of(
            op,
            input_shape,
            kernel_size,
            stride,
            padding,
            dilation,
            bool(ceil_mode),
            bool(count_include_pad),
            divisor_override,
        )

    @classmethod
    def adaptive(
        cls, op: str, input_shape: tuple[int, ...], output_size: int | Sequence[int | None] | None
    ) -> PoolGeometry:
        """Windows that divide each axis into `output_size` parts: window o is [floor(o·S/O), ceil((o + 1)·S/O)).

        `output_size` is one number for all axes or one per axis; None keeps the size of the input. Where every O
        divides its S this is an ordinary pooling of kernel and stride S/O, and comes back as one.

        Raises TypeError for arguments of a wrong kind, ValueError for sizes below 1 and wrong numbers of axes.
        """
        rank = pool_rank(op, input_shape)
        entries = for_axes(output_size, rank)
        if len(entries) != rank:
            raise ValueError(
                f"{op}: output_size must be an int, None or {rank} of them, got {len(entries)}: {output_size!r}"
            )
        sizes = tuple(
            own if entry is None else integer(op, "output_size", entry, 1)
            for entry, own in zip(entries, input_shape[2:])
        )
        check_volume(op, (*input_shape[:2], *sizes))
        return _adaptive(input_shape[2:], sizes)

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.spatial)

    def windows(self) -> tuple[Windows, ...]:
        """For each axis (starts, stops, step): output o reads the taps range(starts[o], stops[o], step).

        All of them lie inside the input, and there is at least one.
        """
        return _windows(self)

    def divisors(self) -> tuple[tuple[int, ...], ...] | None:
        """For each axis what an average divides by, output by output: the divisor of a window is the product.

        None where `divisor_override` takes their place.
        """
        return _divisors(self)


@lru_cache(maxsize=4096)
def _of(
    op: str,
    input_shape: tuple[int, ...],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> PoolGeometry:
    rank = pool_rank(op, input_shape)
    kernel, stride, padding, dilation = _window(op, rank, kernel_size, stride, padding, dilation)
    spatial = input_shape[2:]
    sizes = [
        output_size(m, k, s, sum(sides), d, ceil_mode)
        for m, k, s, sides, d in zip(spatial, kernel, stride, padding, dilation)
    ]
    check_fit(op, spatial, kernel, dilation, padding, sizes)
    if ceil_mode:
        # A last window that hangs over and starts behind the input sees nothing of it.
        whole = [
            output_size(m, k, s, sum(sides), d) for m, k, s, sides, d in zip(spatial, kernel, stride, padding, dilation)
        ]
        limits = zip(sizes, whole, spatial, stride, padding)
        sizes = [n - 1 if n > w and (n - 1) * s >= m + before else n for n, w, m, s, (before, _) in limits]
    geometry = PoolGeometry(
        spatial, kernel, stride, padding, dilation, tuple(sizes), count_include_pad, divisor_override
    )
    _check_taps(op, geometry)
    return geometry


def _check_taps(op: str, geometry: PoolGeometry) -> None:
    """Every window reads the input: none may lie in the padding as a whole, nor step over all of the input."""
    for axis, name in enumerate(AXES[geometry.rank]):
        size, k, d = geometry.spatial[axis], geometry.kernel[axis], geometry.dilation[axis]
        before, after = geometry.padding[axis]
        first = _first_taps(geometry, axis)
        given = f"a window of kernel {k} with padding {before}+{after} reads nothing but padding"
        if before >= extent(k, d) or (len(first) > 0 and first[-1] >= size):
            raise ValueError(f"{op}: padding must leave each window an element of the {name} {size}: {given}")
        # No smaller dilation can step over the whole input.
        if d > size and any(start >= stop for start, stop in zip(*geometry.windows()[axis][:2])):
            raise ValueError(f"{op}: dilation {d} steps over the whole {name} {size}: {given}")


@lru_cache(maxsize=4096)
def _adaptive(spatial: tuple[int, ...], sizes: tuple[int, ...]) -> PoolGeometry:
    rank = len(spatial)
    steps = tuple(size // wanted for size, wanted in zip(spatial, sizes))
    none, ones = ((0, 0),) * rank, (1,) * rank
    if all(size % wanted == 0 for size, wanted in zip(spatial, sizes)):
        return PoolGeometry(spatial, steps, steps, none, ones, sizes)
    longest = tuple(longest_adaptive_window(size, wanted) for size, wanted in zip(spatial, sizes))
    return PoolGeometry(spatial, longest, steps, none, ones, sizes, is_adaptive=True)


# Few entries: those of a long 1-D input hold a number for every output.
@lru_cache(maxsize=128)
def _windows(geometry: PoolGeometry) -> tuple[Windows, ...]:
    axes: list[Windows] = []
    for axis, size in enumerate(geometry.spatial):
        outputs, d = geometry.out_spatial[axis], geometry.dilation[axis]
        if geometry.is_adaptive:
            starts, stops = _adaptive_bounds(size, outputs)
        else:
            span = extent(geometry.kernel[axis], d)
            first = _first_taps(geometry, axis)
            # A tap before the input is skipped in whole steps of the dilation, so that the others stay where they are.
            starts = tuple(start if start >= 0 else start % d for start in first)
            stops = tuple(min(start + span, size) for start in first)
        axes.append((starts, stops, d))
    return tuple(axes)


@lru_cache(maxsize=128)
def _divisors(geometry: PoolGeometry) -> tuple[tuple[int, ...], ...] | None:
    if geometry.divisor_override is not None:
        return None
    axes = []
    for axis, (starts, stops, step) in enumerate(geometry.windows()):
        if geometry.count_include_pad and not geometry.is_adaptive:
            span = extent(geometry.kernel[axis], step)
            end = geometry.spatial[axis] + geometry.padding[axis][1]
            axes.append(tuple(len(range(t, min(t + span, end), step)) for t in _first_taps(geometry, axis)))
        else:
            axes.append(tuple(len(range(start, stop, step)) for start, stop in zip(starts, stops)))
    return tuple(axes)


def _first_taps(geometry: PoolGeometry, axis: int) -> range:
    """Where the windows of an axis begin; negative inside the padding."""
    before, stride = geometry.padding[axis][0], geometry.stride[axis]
    return range(-before, -before + geometry.out_spatial[axis] * stride, stride)


def _adaptive_bounds(size: int, outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    starts = tuple(o * size // outputs for o in range(outputs))
    stops = tuple(-(-(o + 1) * size // outputs) for o in range(outputs))
    return starts, stops


def _window(
    op: str, rank: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs, tuple[int, ...]]:
    kernel = per_axis(op, "kernel_size", kernel_size, rank, 1)
    return (
        kernel,
        kernel if stride is None else per_axis(op, "stride", stride, rank, 1),
        pairs(op, padding, rank),
        per_axis(op, "dilation", dilation, rank, 1),
    )
