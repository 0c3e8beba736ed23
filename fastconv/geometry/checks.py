"""Checks of shapes against each other; arguments one by one are checked in `arguments`.

Every function takes the name of the operation first, for its messages, and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fastconv.geometry.arguments import AXES, Pairs, rank_in_name
from fastconv.geometry.formulas import extent

_LETTERS = {1: "L", 2: "H, W", 3: "D, H, W"}


def check_input(op: str, input_shape: tuple[int, ...], rank: int) -> None:
    """The input has a batch axis, a channel axis and `rank` spatial axes; only the batch may be empty."""
    letters = _LETTERS[rank]
    axes = len(input_shape)
    if axes != rank + 2:
        # The operations add a missing batch axis, so that this form is only news to whoever did not use it.
        unbatched = "" if axes == rank + 1 or op.startswith("grad.") else f", or {rank + 1} without the batch,"
        remedy = "; a single-channel input becomes x[None, None]" if axes == rank else ""
        raise ValueError(
            f"{op}: input must have {rank + 2} axes (N, C, {letters}){unbatched} "
            f"but has {axes} (input shape {input_shape}){remedy}"
        )
    if input_shape[0] < 0 or min(input_shape[1:]) < 1:
        raise ValueError(
            f"{op}: input (N, C, {letters}) must have sizes of at least 1, or 0 for the batch, "
            f"but has shape {input_shape}"
        )


def conv_rank(op: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> int:
    """The rank of a convolution, after checking both arrays for it."""
    return _weight_rank(op, input_shape, weight_shape, "out_channels, in_channels/groups")


def transposed_rank(op: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> int:
    """The rank of a transposed convolution, after checking both arrays for it."""
    return _weight_rank(op, input_shape, weight_shape, "in_channels, out_channels/groups")


def pool_rank(op: str, input_shape: tuple[int, ...]) -> int:
    """The rank of a pooling, after checking the input for it."""
    rank = rank_in_name(op) or len(input_shape) - 2
    if rank not in AXES:
        raise ValueError(
            f"{op}: input must have 3, 4 or 5 axes (N, C, *spatial) "
            f"but has {len(input_shape)} (input shape {input_shape})"
        )
    check_input(op, input_shape, rank)
    return rank


def check_channels(op: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int) -> None:
    """The channels of input (N, C, ...) and weight (K, C/groups, ...) agree, and `groups` divides C and K."""
    channels, (out_channels, per_group) = input_shape[1], weight_shape[:2]
    _check_groups(op, "input", 1, input_shape, groups)
    if channels != per_group * groups:
        remedy = ""
        if input_shape[-1] == per_group * groups:
            remedy = "; if the channels are its last axis: np.moveaxis(x, -1, 1)"
        elif channels % per_group == 0 and out_channels % (channels // per_group) == 0:
            remedy = f"; groups={channels // per_group} would fit"
        raise ValueError(
            f"{op}: weight expects {per_group} input channels per group (weight shape {weight_shape}, "
            f"groups={groups}) but input has {channels // groups} (input shape {input_shape}){remedy}"
        )
    _check_groups(op, "weight", 0, weight_shape, groups)


def check_transposed_channels(
    op: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int
) -> None:
    """The channels of input (N, K, ...) and weight (K, C/groups, ...) agree, and `groups` divides K."""
    _check_groups(op, "input", 1, input_shape, groups)
    if input_shape[1] != weight_shape[0]:
        remedy = "; if its first axis is the output: w.swapaxes(0, 1)" if input_shape[1] == weight_shape[1] else ""
        raise ValueError(
            f"{op}: weight expects {weight_shape[0]} input channels, its first axis (weight shape {weight_shape}), "
            f"but input has {input_shape[1]} (input shape {input_shape}){remedy}"
        )


def check_bias(op: str, bias_shape: tuple[int, ...] | None, channels: int) -> None:
    """The bias, if there is one, has a number for each output channel."""
    if bias_shape is not None and bias_shape != (channels,):
        raise ValueError(
            f"{op}: bias must have shape ({channels},), one number per output channel, but has shape {bias_shape}"
        )


def check_padding_mode(op: str, mode: str, spatial: Sequence[int], padding: Pairs) -> None:
    """Reflection has the input less its edge to read from, circular padding the input once."""
    for name, size, (before, after) in zip(AXES[len(spatial)], spatial, padding):
        if mode == "reflect" and max(before, after) >= size:
            raise ValueError(
                f"{op}: reflect padding must be smaller than the input, "
                f'got padding {before}+{after} for {name} {size}; padding_mode="replicate" has no limit'
            )
        if mode == "circular" and max(before, after) > size:
            raise ValueError(
                f"{op}: circular padding must not exceed the input, "
                f'got padding {before}+{after} for {name} {size}; padding_mode="replicate" has no limit'
            )


def check_fit(
    op: str,
    spatial: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Pairs,
    out_spatial: Sequence[int],
) -> None:
    """At least one window fits into every axis."""
    for axis, (name, size, (before, after)) in enumerate(zip(AXES[len(spatial)], spatial, padding)):
        if out_spatial[axis] < 1:
            k, d = kernel[axis], dilation[axis]
            raise ValueError(
                f"{op}: kernel of extent {extent(k, d)} (kernel {k}, dilation {d}) does not fit into "
                f"padded {name} {size + before + after} ({name} {size}, padding {before}+{after})"
            )


def check_grad_output(
    op: str,
    grad_output_shape: tuple[int, ...],
    expected: tuple[int, ...],
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
) -> None:
    """A gradient has the shape of the output that it belongs to."""
    if grad_output_shape != expected:
        raise ValueError(
            f"{op}: grad_output must have the shape {expected} of the convolution's output "
            f"(input shape {input_shape}, weight shape {weight_shape}) but has {grad_output_shape}"
        )


def _weight_rank(op: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], channels: str) -> int:
    axes = len(weight_shape)
    named = rank_in_name(op)
    rank = named or axes - 2
    is_filter = axes == named or (named is None and axes in (1, 2))
    remedy = "; a single filter becomes w[None, None]" if is_filter else ""
    if rank not in AXES:
        raise ValueError(
            f"{op}: weight must have 3, 4 or 5 axes ({channels}, *kernel) "
            f"but has {axes} (weight shape {weight_shape}){remedy}"
        )
    if axes != rank + 2:
        if not remedy and axes - 2 in AXES:
            remedy = f"; {op.replace(f'{rank}d', f'{axes - 2}d')} takes such a weight"
        raise ValueError(
            f"{op}: weight must have {rank + 2} axes ({channels}, {', '.join(AXES[rank])}) "
            f"but has {axes} (weight shape {weight_shape}){remedy}"
        )
    if min(weight_shape) < 1:
        raise ValueError(f"{op}: weight must have sizes of at least 1, but has shape {weight_shape}")
    check_input(op, input_shape, rank)
    return rank


def _check_groups(op: str, array: str, axis: int, array_shape: tuple[int, ...], groups: int) -> None:
    if array_shape[axis] % groups:
        side = "input" if array == "input" else "output"
        raise ValueError(
            f"{op}: groups must divide the {side} channels, but groups={groups} does not divide {array_shape[axis]} "
            f"({array} shape {array_shape})"
        )


def check_volume(op: str, shape: tuple[int, ...]) -> None:
    """The result must be an array that can exist: its bytes are counted in 64 bits."""
    if prod(shape[1:]) * max(shape[0], 1) > 2**59:  # NumPy makes no empty arrays of such shapes either
        raise ValueError(f"{op}: the output would have shape {shape}, more elements than an array can hold")
