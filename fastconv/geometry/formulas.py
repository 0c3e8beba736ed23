"""The size formulas, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd


def extent(kernel: int, dilation: int) -> int:
    """How many input positions a dilated kernel spans: d·(k − 1) + 1."""
    return dilation * (kernel - 1) + 1


def output_size(size: int, kernel: int, stride: int, padding_total: int, dilation: int, ceil_mode: bool = False) -> int:
    """Window positions along one axis: floor((M + p − d·(k − 1) − 1) / s) + 1, where p is the padding of both sides.

    With `ceil_mode` the division rounds up, so that a last window may hang over the end. Less than 1 means that
    no window fits.
    """
    room = size + padding_total - extent(kernel, dilation)
    return (room + stride - 1 if ceil_mode else room) // stride + 1


def transposed_size(size: int, kernel: int, stride: int, padding_total: int, dilation: int, output_padding: int) -> int:
    """Output size of a transposed convolution along one axis: (O − 1)·s − p + d·(k − 1) + 1 + output_padding."""
    return (size - 1) * stride - padding_total + extent(kernel, dilation) + output_padding


def longest_adaptive_window(size: int, outputs: int) -> int:
    """The most taps that a window [floor(o·S/O), ceil((o + 1)·S/O)) has.

    With S = q·O + r its length is q + ceil((o·r mod O + r) / O), and o·r mod O reaches O − gcd(S, O).
    """
    rest = size % outputs
    return size // outputs + (rest > 0) + (rest > gcd(size, outputs))


def receptive_field(layers: Sequence[tuple[int, int, int]]) -> int:
    """Input positions along one axis that one output of a stack of layers sees.

    `layers` holds (kernel, stride, dilation) from the input upwards, for convolutions and poolings alike:
    R_k = R_{k−1} + (F_k − 1)·d_k · Π_{i<k} s_i, and R_0 = 1. Raises ValueError for a number below 1.
    """
    field, jump = 1, 1
    for layer in layers:
        kernel, stride, dilation = layer
        if min(layer) < 1:
            raise ValueError(
                f"receptive_field: each layer is (kernel, stride, dilation), all at least 1, got {tuple(layer)}"
            )
        field += (extent(kernel, dilation) - 1) * jump
        jump *= stride
    return field
