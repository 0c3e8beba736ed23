"""The geometry of a convolution, of its transpose and of its two gradients, with all argument checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

from fastconv.geometry.arguments import AXES, Pairs, integer, is_plain, pairs, per_axis, shape
from fastconv.geometry.checks import (
    check_bias,
    check_channels,
    check_fit,
    check_grad_output,
    check_padding_mode,
    check_transposed_channels,
    check_volume,
    conv_rank,
    transposed_rank,
)
from fastconv.geometry.formulas import extent, output_size, transposed_size

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """A cross-correlation of rank 1, 2 or 3 without its batch: what it reads, how it steps, what it writes.

    Two geometries are equal when their numbers are, whatever the spelling of the arguments, so that a geometry
    serves as a key. `padding` holds (before, after) for each axis. Make one with `of`, which checks.
    """

    in_channels: int
    out_channels: int
    groups: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pairs
    extent: tuple[int, ...] = field(init=False, compare=False, repr=False)
    """Input positions that the dilated kernel spans, for each axis."""
    out_spatial: tuple[int, ...] = field(init=False, compare=False, repr=False)
    """Output sizes."""
    _hash: int = field(init=False, compare=False, repr=False)
    """Stored as well: a geometry is the key of what backends derive from it, several times in a call."""

    def __post_init__(self) -> None:
        # Stored, not computed on access: every call of an operation reads them.
        spans = tuple(extent(k, d) for k, d in zip(self.kernel, self.dilation))
        sizes = zip(self.spatial, self.kernel, self.stride, self.padding, self.dilation)
        object.__setattr__(self, "extent", spans)
        object.__setattr__(self, "out_spatial", tuple(output_size(m, k, s, sum(p), d) for m, k, s, p, d in sizes))
        numbers = (self.in_channels, self.out_channels, self.groups, self.spatial, self.kernel)
        object.__setattr__(self, "_hash", hash((numbers, self.stride, self.dilation, self.padding)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(
        cls,
        op: str,
        input_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias_shape: tuple[int, ...] | None = None,
        padding_mode: str = "zeros",
    ) -> ConvGeometry:
        """The geometry of `op` on input (N, C, *S) with weight (K, C/groups, *kernel), bias (K,), after all checks.

        `op` names the operation in messages; a rank in it ("conv2d") is demanded of the arrays. `stride` and
        `dilation` are an int or one int per axis; `padding` is an int, one int or (before, after) pair per axis,
        "valid" (none) or "same": d·(k − 1) in all, the smaller half before, and stride 1, as in PyTorch.
        `padding_mode` is one of "zeros", "reflect" (padding below the size), "replicate", "circular" (padding up to
        the size); the geometry does not keep it, see `padded`.

        Raises TypeError for arguments of a wrong kind, ValueError for wrong numbers and shapes that do not match.
        """
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f'{op}: padding_mode must be "zeros", "reflect", "replicate" or "circular", got {padding_mode!r}'
            )
        ints = type(stride) is type(padding) is type(dilation) is type(groups) is int  # asked first: it is quicker
        if not ints and not is_plain((stride, padding, dilation, groups)):
            rank = conv_rank(op, input_shape, weight_shape)
            stride, padding, dilation, groups = _window(op, rank, stride, padding, dilation, groups)
        return _of(op, input_shape, weight_shape, stride, padding, dilation, groups, bias_shape, padding_mode)

    @classmethod
    def transposed(
        cls,
        op: str,
        input_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias_shape: tuple[int, ...] | None = None,
    ) -> ConvGeometry:
        """The convolution whose input gradient is the transposed convolution `op`.

        Input (N, K, *O), weight (K, C/groups, *kernel), bias (C,). In the result `in_channels` is C and `spatial`
        the output size of the transposed convolution, (O − 1)·s − p + d·(k − 1) + 1 + output_padding.
        `output_padding` must stay below the stride or the dilation, as in PyTorch. Where it reaches the stride
        (possible only below the dilation), `out_spatial` exceeds O by output_padding // stride: the input then
        needs that many zeros behind it, which add nothing.

        Raises TypeError and ValueError as `of` does.
        """
        if not is_plain((stride, padding, output_padding, dilation, groups)):
            rank = transposed_rank(op, input_shape, weight_shape)
            stride, padding, dilation, groups = _window(op, rank, stride, padding, dilation, groups)
            output_padding = per_axis(op, "output_padding", output_padding, rank, 0)
        return _transposed(op, input_shape, weight_shape, stride, padding, output_padding, dilation, groups, bias_shape)

    @classmethod
    def for_input_grad(
        cls,
        op: str,
        input_size: Sequence[int],
        weight_shape: tuple[int, ...],
        grad_output_shape: tuple[int, ...],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> ConvGeometry:
        """The geometry of a convolution whose gradient in an input of `input_size` (N, C, *S) is wanted.

        `grad_output_shape` must be (N, K, *O), the shape of that convolution's output. Raises as `of` does.
        """
        input_shape = shape(op, "input_size", input_size)
        geometry = cls.of(op, input_shape, weight_shape, stride, padding, dilation, groups)
        check_grad_output(op, grad_output_shape, geometry.output_shape(input_shape[0]), input_shape, weight_shape)
        return geometry

    @classmethod
    def for_weight_grad(
        cls,
        op: str,
        input_shape: tuple[int, ...],
        weight_size: Sequence[int],
        grad_output_shape: tuple[int, ...],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> ConvGeometry:
        """The geometry of a convolution whose gradient in a weight of `weight_size` (K, C/groups, *kernel) is wanted.

        `grad_output_shape` must be (N, K, *O), the shape of that convolution's output. Raises as `of` does.
        """
        weight_shape = shape(op, "weight_size", weight_size)
        geometry = cls.of(op, input_shape, weight_shape, stride, padding, dilation, groups)
        check_grad_output(op, grad_output_shape, geometry.output_shape(input_shape[0]), input_shape, weight_shape)
        return geometry

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def taps(self) -> int:
        """Weights of one filter in one input channel."""
        return prod(self.kernel)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(K, C/groups, *kernel)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """(batch, C, *S)."""
        return (batch, self.in_channels, *self.spatial)

    def output_shape(self, batch: int) -> tuple[int, ...]:
        """(batch, K, *O)."""
        return (batch, self.out_channels, *self.out_spatial)

    def parameters(self, bias: bool = True) -> int:
        """Number of weights: Π k · C/groups · K, and K more with a bias."""
        return prod(self.weight_shape) + (self.out_channels if bias else 0)

    def multiply_adds(self, batch: int = 1) -> int:
        """Multiplications with one addition each, zero padding counted as data: batch · Π O · Π k · C/groups · K."""
        return batch * prod(self.out_spatial) * prod(self.weight_shape)

    def padded(self) -> ConvGeometry:
        """The same convolution on an input that already carries the padding: padding modes other than zeros."""
        sizes = tuple(size + sum(sides) for size, sides in zip(self.spatial, self.padding))
        return ConvGeometry(
            self.in_channels,
            self.out_channels,
            self.groups,
            sizes,
            self.kernel,
            self.stride,
            self.dilation,
            ((0, 0),) * self.rank,
        )


def output_padding_for(
    op: str,
    input_shape: tuple[int, ...],
    output_size: int | Sequence[int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Sequence[int] | Sequence[tuple[int, int]],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """The `output_padding` with which a transposed convolution of input (..., *O) gives `output_size`.

    That is an int, a tuple of ints (*S), or a whole shape (C, *S) or (N, C, *S), of which only *S counts.

    Raises ValueError for sizes that no `output_padding` gives, TypeError for what is no size.
    """
    rank = len(kernel)
    if isinstance(output_size, (tuple, list)) and len(output_size) in (rank + 1, rank + 2):
        output_size = output_size[-rank:]
    wanted = per_axis(op, "output_size", output_size, rank, 1)
    window = zip(AXES[rank], input_shape[-rank:], wanted, kernel, stride, pairs(op, padding, rank), dilation)
    extra = []
    for name, size, target, k, s, sides, d in window:
        least = transposed_size(size, k, s, sum(sides), d, 0)
        most = least + max(s, d) - 1
        if not least <= target <= most:
            choice = f"be {least}" if least == most else f"lie between {least} and {most}"
            raise ValueError(f"{op}: output_size must {choice} for the {name} {size}, got {target}")
        extra.append(target - least)
    return tuple(extra)


@lru_cache(maxsize=4096)
def _of(
    op: str,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    bias_shape: tuple[int, ...] | None,
    padding_mode: str,
) -> ConvGeometry:
    rank = conv_rank(op, input_shape, weight_shape)
    stride, padding, dilation, groups = _window(op, rank, stride, padding, dilation, groups)
    check_channels(op, input_shape, weight_shape, groups)
    check_bias(op, bias_shape, weight_shape[0])
    kernel = weight_shape[2:]
    sides = _string_padding(op, padding, kernel, stride, dilation) if isinstance(padding, str) else padding
    geometry = ConvGeometry(input_shape[1], weight_shape[0], groups, input_shape[2:], kernel, stride, dilation, sides)
    check_padding_mode(op, padding_mode, geometry.spatial, sides)
    check_fit(op, geometry.spatial, kernel, dilation, sides, geometry.out_spatial)
    check_volume(op, geometry.output_shape(input_shape[0]))
    return geometry


@lru_cache(maxsize=4096)
def _transposed(
    op: str,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: Any,
    bias_shape: tuple[int, ...] | None,
) -> ConvGeometry:
    rank = transposed_rank(op, input_shape, weight_shape)
    if isinstance(padding, str):
        raise ValueError(
            f'{op}: padding="{padding}" is not defined for a transposed convolution; give numbers, e.g. padding=1'
        )
    stride, padding, dilation, groups = _window(op, rank, stride, padding, dilation, groups)
    extra = per_axis(op, "output_padding", output_padding, rank, 0)
    out_channels, per_group, *kernel = weight_shape
    check_transposed_channels(op, input_shape, weight_shape, groups)
    check_bias(op, bias_shape, per_group * groups)
    sizes = []
    for axis, name in enumerate(AXES[rank]):
        s, d, e, k = stride[axis], dilation[axis], extra[axis], kernel[axis]
        if e >= max(s, d):
            raise ValueError(
                f"{op}: output_padding must be smaller than the stride or the dilation, "
                f"got output_padding {e} with stride {s}, dilation {d} ({name})"
            )
        before, after = padding[axis]
        size = transposed_size(input_shape[2 + axis], k, s, before + after, d, e)
        if size < 1:
            raise ValueError(
                f"{op}: padding {before}+{after} leaves no output: {name} would be {size} "
                f"(input {input_shape[2 + axis]}, kernel {k}, stride {s}, dilation {d}, output_padding {e})"
            )
        sizes.append(size)
    channels = per_group * groups
    check_volume(op, (input_shape[0], channels, *sizes))
    return ConvGeometry(channels, out_channels, groups, tuple(sizes), tuple(kernel), stride, dilation, padding)


def _window(
    op: str, rank: int, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[tuple[int, ...], Any, tuple[int, ...], int]:
    """The arguments of a window as tuples of ints, padding as pairs; a string stays one: it needs the kernel."""
    return (
        per_axis(op, "stride", stride, rank, 1),
        padding if isinstance(padding, str) else pairs(op, padding, rank),
        per_axis(op, "dilation", dilation, rank, 1),
        integer(op, "groups", groups, 1),
    )


def _string_padding(
    op: str, padding: str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pairs:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise ValueError(f'{op}: padding must be "same", "valid" or numbers, got "{padding}"')
    totals = [extent(k, d) - 1 for k, d in zip(kernel, dilation)]
    sides = tuple((total // 2, total - total // 2) for total in totals)
    if set(stride) != {1}:
        raise ValueError(f'{op}: padding="same" needs stride 1, got stride {stride}; give numbers: padding={sides}')
    return sides
