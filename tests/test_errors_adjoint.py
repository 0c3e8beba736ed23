"""Bad calls of transposed convolutions and of the gradients on arrays."""

from __future__ import annotations

from bad_calls import bad_calls, refused
from bad_calls import zeros as f

import fastconv as fc

X, W = f(2, 4, 32, 32), f(8, 4, 3, 3)

ROWS = [
    (
        lambda: fc.conv_transpose2d(X, f(3, 4, 3, 3)),
        ValueError,
        (
            "conv_transpose2d: weight expects 3 input channels, its first axis (weight shape (3, 4, 3, 3)), "
            "but input has 4 (input shape (2, 4, 32, 32)); if its first axis is the output: w.swapaxes(0, 1)"
        ),
    ),
    (
        lambda: fc.conv_transpose2d(X, f(3, 4, 3, 3), groups=2),
        ValueError,
        (
            "conv_transpose2d: weight expects 3 input channels, its first axis (weight shape (3, 4, 3, 3)), "
            "but input has 4 (input shape (2, 4, 32, 32)); if its first axis is the output: w.swapaxes(0, 1)"
        ),
    ),
    (
        lambda: fc.conv_transpose2d(X, W.swapaxes(0, 1)[:, :, 0]),
        ValueError,
        (
            "conv_transpose2d: weight must have 4 axes (in_channels, out_channels/groups, height, width) "
            "but has 3 (weight shape (4, 8, 3)); conv_transpose1d takes such a weight"
        ),
    ),
    (
        lambda: fc.conv_transpose2d(X, f(4, 8, 3, 3), output_padding=1),
        ValueError,
        (
            "conv_transpose2d: output_padding must be smaller than the stride or the dilation, got "
            "output_padding 1 with stride 1, dilation 1 (height)"
        ),
    ),
    (
        lambda: fc.conv_transpose2d(X, f(4, 8, 3, 3), padding="same"),
        ValueError,
        ('conv_transpose2d: padding="same" is not defined for a transposed convolution; give numbers, e.g. padding=1'),
    ),
    (
        lambda: fc.conv_transpose2d(X, f(4, 8, 3, 3), f(4)),
        ValueError,
        ("conv_transpose2d: bias must have shape (8,), one number per output channel, but has shape (4,)"),
    ),
    (
        lambda: fc.conv_transpose1d(f(1, 4, 2), f(4, 8, 3), padding=2),
        ValueError,
        (
            "conv_transpose1d: padding 2+2 leaves no output: length would be 0 (input 2, kernel 3, stride "
            "1, dilation 1, output_padding 0)"
        ),
    ),
    (
        lambda: fc.conv_transpose1d(f(1, 4, 2), f(4, 8, 3), stride=2**63),
        ValueError,
        "conv_transpose1d: stride must be at most 1099511627776, got 9223372036854775808",
    ),
    (
        lambda: fc.grad.conv2d_input((2, 4, 32, 32), W, f(2, 8, 31, 30)),
        ValueError,
        (
            "grad.conv2d_input: grad_output must have the shape (2, 8, 30, 30) of the convolution's output "
            "(input shape (2, 4, 32, 32), weight shape (8, 4, 3, 3)) but has (2, 8, 31, 30)"
        ),
    ),
    (
        lambda: fc.grad.conv2d_input(32, W, f(2, 8, 30, 30)),
        TypeError,
        "grad.conv2d_input: input_size must be a tuple of ints, got 32",
    ),
    (
        lambda: fc.grad.conv2d_weight(X, (8, 4, 3, 3), f(2, 7, 30, 30)),
        ValueError,
        (
            "grad.conv2d_weight: grad_output must have the shape (2, 8, 30, 30) of the convolution's output "
            "(input shape (2, 4, 32, 32), weight shape (8, 4, 3, 3)) but has (2, 7, 30, 30)"
        ),
    ),
    (
        lambda: fc.grad.conv2d_weight(X, (8, 4, 3, 3), f(3, 8, 30, 30)),
        ValueError,
        (
            "grad.conv2d_weight: grad_output must have the shape (2, 8, 30, 30) of the convolution's output "
            "(input shape (2, 4, 32, 32), weight shape (8, 4, 3, 3)) but has (3, 8, 30, 30)"
        ),
    ),
    (
        lambda: fc.grad.conv1d_weight(X, (8, 4, 3), f(2, 8, 30)),
        ValueError,
        "grad.conv1d_weight: input must have 3 axes (N, C, L) but has 4 (input shape (2, 4, 32, 32))",
    ),
]


@bad_calls(ROWS)
def test_bad_call(call, kind, text):
    refused(call, kind, text)
