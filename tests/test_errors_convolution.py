"""Bad calls of convolutions: the kind of exception and its whole text. None of them may crash or hang.

What ConvGeometry and PoolGeometry refuse has tables of its own, test_conv_geometry_errors.py and
test_pool_geometry_errors.py; here and in the other test_errors_*.py stands that it reaches the user, and what
operations themselves refuse.
"""

from __future__ import annotations

import numpy as np
import pytest
from bad_calls import bad_calls, refused
from bad_calls import zeros as f

import fastconv as fc

X, W = f(2, 4, 32, 32), f(8, 4, 3, 3)

ROWS = [
    (
        lambda: fc.conv2d(f(2, 4, 32, 32), f(8, 3, 5, 5)),
        ValueError,
        (
            "conv2d: weight expects 3 input channels per group (weight shape (8, 3, 5, 5), groups=1) but "
            "input has 4 (input shape (2, 4, 32, 32))"
        ),
    ),
    (
        lambda: fc.conv2d(f(2, 32, 32, 4), f(8, 4, 5, 5)),
        ValueError,
        (
            "conv2d: weight expects 4 input channels per group (weight shape (8, 4, 5, 5), groups=1) but "
            "input has 32 (input shape (2, 32, 32, 4)); if the channels are its last axis: np.moveaxis(x, "
            "-1, 1)"
        ),
    ),
    (
        lambda: fc.conv2d(f(2, 4, 32, 32), f(8, 2, 5, 5)),
        ValueError,
        (
            "conv2d: weight expects 2 input channels per group (weight shape (8, 2, 5, 5), groups=1) but "
            "input has 4 (input shape (2, 4, 32, 32)); groups=2 would fit"
        ),
    ),
    (
        lambda: fc.conv2d(f(2, 4, 7, 9), f(8, 4, 3, 3), dilation=5, padding=1),
        ValueError,
        (
            "conv2d: kernel of extent 11 (kernel 3, dilation 5) does not fit into padded height 9 (height "
            "7, padding 1+1)"
        ),
    ),
    (
        lambda: fc.conv2d(X.astype("int16"), W),
        TypeError,
        ('conv2d: integer input (int16) is not supported; convert first, e.g. input.astype("float32")'),
    ),
    (
        lambda: fc.conv2d(X > 0, W),
        TypeError,
        ('conv2d: boolean input (bool) is not supported; convert first, e.g. input.astype("float32")'),
    ),
    (
        lambda: fc.conv2d(X.astype("float16"), W),
        TypeError,
        'conv2d: float16 input runs on the GPU only; convert first, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.conv2d(X.astype("complex64"), W),
        TypeError,
        "conv2d: input must be float32 or float64, got complex64; convert first, e.g. input.real",
    ),
    (
        lambda: fc.conv2d(X, W.astype("float64")),
        TypeError,
        ('conv2d: weight is float64 but input is float32; convert one, e.g. weight.astype("float32")'),
    ),
    (
        lambda: fc.conv2d(X, W, f(8).astype("float64")),
        TypeError,
        'conv2d: bias is float64 but input is float32; convert one, e.g. bias.astype("float32")',
    ),
    (
        lambda: fc.conv2d([[1.0, 2.0]], W),
        TypeError,
        (
            "conv2d: input must be an array, a Tensor or an object with __array__ or __dlpack__, got list; "
            'convert first, e.g. numpy.asarray(input, dtype="float32")'
        ),
    ),
    (
        lambda: fc.conv2d(None, W),
        TypeError,
        (
            "conv2d: input must be an array, a Tensor or an object with __array__ or __dlpack__, got "
            'NoneType; convert first, e.g. numpy.asarray(input, dtype="float32")'
        ),
    ),
    (
        lambda: fc.conv2d(X, None),
        TypeError,
        (
            "conv2d: weight must be an array, a Tensor or an object with __array__ or __dlpack__, got "
            'NoneType; convert first, e.g. numpy.asarray(weight, dtype="float32")'
        ),
    ),
    (
        lambda: fc.conv2d(X, 3.0),
        TypeError,
        (
            "conv2d: weight must be an array, a Tensor or an object with __array__ or __dlpack__, got "
            'float; convert first, e.g. numpy.asarray(weight, dtype="float32")'
        ),
    ),
    (
        lambda: fc.conv2d("x", W),
        TypeError,
        (
            "conv2d: input must be an array, a Tensor or an object with __array__ or __dlpack__, got str; "
            'convert first, e.g. numpy.asarray(input, dtype="float32")'
        ),
    ),
    (
        lambda: fc.conv2d(f(32, 32), W),
        ValueError,
        (
            "conv2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input shape "
            "(32, 32)); a single-channel input becomes x[None, None]"
        ),
    ),
    (
        lambda: fc.conv2d(f(1, 2, 4, 32, 32), W),
        ValueError,
        (
            "conv2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 5 (input shape "
            "(1, 2, 4, 32, 32))"
        ),
    ),
    (
        lambda: fc.conv2d(f(), W),
        ValueError,
        ("conv2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 0 (input shape ())"),
    ),
    (
        lambda: fc.conv2d(X, f(8, 4, 3)),
        ValueError,
        (
            "conv2d: weight must have 4 axes (out_channels, in_channels/groups, height, width) but has 3 "
            "(weight shape (8, 4, 3)); conv1d takes such a weight"
        ),
    ),
    (
        lambda: fc.conv2d(X, f(3, 3)),
        ValueError,
        "conv2d: weight must have 4 axes (out_channels, in_channels/groups, height, width) but has 2 (weight shape "
        "(3, 3)); a single filter becomes w[None, None]",
    ),
    (
        lambda: fc.convolve(X, f(3, 3)),
        ValueError,
        "convolve: weight must have 3, 4 or 5 axes (out_channels, in_channels/groups, *kernel) but has 2 (weight shape "
        "(3, 3)); a single filter becomes w[None, None]",
    ),
    (
        lambda: fc.conv2d(np.ma.masked_array(X, X == 0), W),
        TypeError,
        "conv2d: input has masked values, which would be computed with; fill them first, e.g. input.filled(0)",
    ),
    (
        lambda: fc.conv2d(X.astype("float64"), W),
        TypeError,
        'conv2d: weight is float32 but input is float64; convert one, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.conv2d(X, f(8, 4, 3, 3, 3)),
        ValueError,
        (
            "conv2d: weight must have 4 axes (out_channels, in_channels/groups, height, width) but has 5 "
            "(weight shape (8, 4, 3, 3, 3)); conv3d takes such a weight"
        ),
    ),
    (
        lambda: fc.conv1d(f(2, 4, 32, 32), f(8, 4, 3)),
        ValueError,
        ("conv1d: input must have 3 axes (N, C, L), or 2 without the batch, but has 4 (input shape (2, 4, 32, 32))"),
    ),
    (
        lambda: fc.conv3d(f(2, 4, 8, 8), f(8, 4, 3, 3)),
        ValueError,
        (
            "conv3d: weight must have 5 axes (out_channels, in_channels/groups, depth, height, width) but "
            "has 4 (weight shape (8, 4, 3, 3)); conv2d takes such a weight"
        ),
    ),
    (
        lambda: fc.conv(f(2, 4, 8, 8), f(8, 4)),
        ValueError,
        (
            "conv: weight must have 3, 4 or 5 axes (out_channels, in_channels/groups, *kernel) but has 2 "
            "(weight shape (8, 4)); a single filter becomes w[None, None]"
        ),
    ),
    (
        lambda: fc.conv(f(2, 4, 8, 8, 8, 8), f(8, 4, 3, 3, 3, 3)),
        ValueError,
        (
            "conv: weight must have 3, 4 or 5 axes (out_channels, in_channels/groups, *kernel) but has 6 "
            "(weight shape (8, 4, 3, 3, 3, 3))"
        ),
    ),
    (
        lambda: fc.conv2d(X, W, f(7)),
        ValueError,
        "conv2d: bias must have shape (8,), one number per output channel, but has shape (7,)",
    ),
    (
        lambda: fc.conv2d(X, W, f(8, 1)),
        ValueError,
        "conv2d: bias must have shape (8,), one number per output channel, but has shape (8, 1)",
    ),
    (lambda: fc.conv2d(X, W, stride=0), ValueError, "conv2d: stride must be at least 1, got 0"),
    (
        lambda: fc.conv2d(X, W, stride=(1, 2, 3)),
        ValueError,
        "conv2d: stride must be an int or a tuple of 2 ints, got 3: (1, 2, 3)",
    ),
    (lambda: fc.conv2d(X, W, stride=1.5), TypeError, "conv2d: stride must be an int or a tuple of 2 ints, got 1.5"),
    (
        lambda: fc.conv2d(X, W, stride=2**63),
        ValueError,
        "conv2d: stride must be at most 1099511627776, got 9223372036854775808",
    ),
    (lambda: fc.conv2d(X, W, padding=-1), ValueError, "conv2d: padding must be at least 0, got -1"),
    (
        lambda: fc.conv2d(X, W, padding="full"),
        ValueError,
        'conv2d: padding must be "same", "valid" or numbers, got "full"',
    ),
    (
        lambda: fc.conv2d(X, W, padding="same", stride=2),
        ValueError,
        ('conv2d: padding="same" needs stride 1, got stride (2, 2); give numbers: padding=((1, 1), (1, 1))'),
    ),
    (
        lambda: fc.conv2d(X, W, padding=2**62),
        ValueError,
        "conv2d: padding must be at most 1099511627776, got 4611686018427387904",
    ),
    (
        lambda: fc.conv1d(f(1, 4, 8), f(8, 4, 3), padding=(1, 2)),
        ValueError,
        (
            "conv1d: padding must be an int, a tuple of 1 int or a tuple of 1 (before, after) pair, got 2: "
            "(1, 2); for the two sides of one axis write padding=((1, 2),)"
        ),
    ),
    (lambda: fc.conv2d(X, W, dilation=0), ValueError, "conv2d: dilation must be at least 1, got 0"),
    (lambda: fc.conv2d(X, W, groups=0), ValueError, "conv2d: groups must be at least 1, got 0"),
    (
        lambda: fc.conv2d(X, W, groups=3),
        ValueError,
        ("conv2d: groups must divide the input channels, but groups=3 does not divide 4 (input shape (2, 4, 32, 32))"),
    ),
    (
        lambda: fc.conv2d(X, f(7, 2, 3, 3), groups=2),
        ValueError,
        ("conv2d: groups must divide the output channels, but groups=2 does not divide 7 (weight shape (7, 2, 3, 3))"),
    ),
    (lambda: fc.conv2d(X, W, groups=True), TypeError, "conv2d: groups must be an int, got True"),
    (
        lambda: fc.conv2d(f(2, 4, 0, 5), W),
        ValueError,
        ("conv2d: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, but has shape (2, 4, 0, 5)"),
    ),
    (
        lambda: fc.conv2d(f(2, 0, 5, 5), W),
        ValueError,
        ("conv2d: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, but has shape (2, 0, 5, 5)"),
    ),
    (
        lambda: fc.conv2d(X, f(0, 4, 3, 3)),
        ValueError,
        "conv2d: weight must have sizes of at least 1, but has shape (0, 4, 3, 3)",
    ),
    (
        lambda: fc.conv2d(X, f(8, 4, 0, 3)),
        ValueError,
        "conv2d: weight must have sizes of at least 1, but has shape (8, 4, 0, 3)",
    ),
    (
        lambda: fc.conv2d(X, W, activation="softmax"),
        ValueError,
        (
            'conv2d: activation must be None or one of "relu", "selu", "gelu", "gelu_tanh", "silu", '
            '"sigmoid", "tanh", got \'softmax\'; apply any other to the result, e.g. leaky_relu(conv2d(...), '
            "0.1)"
        ),
    ),
    (
        lambda: fc.conv2d(X, W, activation=np.tanh),
        ValueError,
        (
            'conv2d: activation must be None or one of "relu", "selu", "gelu", "gelu_tanh", "silu", '
            '"sigmoid", "tanh", got <ufunc \'tanh\'>; apply any other to the result, e.g. '
            "leaky_relu(conv2d(...), 0.1)"
        ),
    ),
    (
        lambda: fc.conv2d(X, W, padding_mode="mirror"),
        ValueError,
        'conv2d: padding_mode must be "zeros", "reflect", "replicate" or "circular", got \'mirror\'',
    ),
    (
        lambda: fc.conv2d(f(1, 4, 3, 9), W, padding=3, padding_mode="reflect"),
        ValueError,
        (
            "conv2d: reflect padding must be smaller than the input, got padding 3+3 for height 3; "
            'padding_mode="replicate" has no limit'
        ),
    ),
    (
        lambda: fc.conv2d(f(1, 4, 3, 9), W, padding=4, padding_mode="circular"),
        ValueError,
        (
            "conv2d: circular padding must not exceed the input, got padding 4+4 for height 3; "
            'padding_mode="replicate" has no limit'
        ),
    ),
    (
        lambda: fc.explain(X, f(8, 3, 3, 3)),
        ValueError,
        (
            "explain: weight expects 3 input channels per group (weight shape (8, 3, 3, 3), groups=1) but "
            "input has 4 (input shape (2, 4, 32, 32))"
        ),
    ),
    (
        lambda: fc.conv2d(X.astype(object), W),
        TypeError,
        'conv2d: input must be float32 or float64, got object; convert first, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.conv2d(X, W, b"bias"),
        TypeError,
        "conv2d: bias must be an array, a Tensor or an object with __array__ or __dlpack__, got bytes; "
        'convert first, e.g. numpy.asarray(bias, dtype="float32")',
    ),
    (
        lambda: fc.convolve(X, "kernel"),
        TypeError,
        "convolve: kernel must be an array, a Tensor or an object with __array__ or __dlpack__, got str; "
        'convert first, e.g. numpy.asarray(kernel, dtype="float32")',
    ),
    (
        lambda: fc.convolve(X, f(8, 3, 3, 3)),
        ValueError,
        "convolve: weight expects 3 input channels per group (weight shape (8, 3, 3, 3), groups=1) but input has 4 "
        "(input shape (2, 4, 32, 32))",
    ),
    (
        lambda: fc.conv2d(X[:0], W, padding=2**40),
        ValueError,
        "conv2d: the output would have shape (0, 8, 2199023255582, 2199023255582), more elements than an array "
        "can hold",
    ),
    (
        lambda: fc.nn.Conv2d(3, 8, 3, groups=2),
        ValueError,
        "Conv2d: groups must divide in_channels and out_channels, but groups=2 does not divide 3 or 8",
    ),
]


@bad_calls(ROWS)
def test_bad_call(call, kind, text):
    refused(call, kind, text)


def test_enough_of_them():
    assert len(ROWS) >= 40


@pytest.mark.parametrize(
    "call",
    [
        lambda: fc.conv2d(f(1, 1, 4, 4), f(1, 1, 1, 1), padding=(2**30, 2**20)),
        lambda: fc.conv2d(f(1, 1, 4, 4), f(1, 1, 1, 1), padding=(2**30, 2**20), padding_mode="replicate"),
        lambda: fc.conv_transpose2d(f(1, 1, 3, 3), f(1, 1, 1, 1), stride=(2**30, 2**20)),
        lambda: fc.conv2d(np.broadcast_to(np.float32(0), (2**22, 1, 2**14, 2**14)), f(1, 1, 1, 1)),
    ],
)
def test_what_no_memory_holds_is_a_memory_error_at_once(call):
    """The results have petabytes: no system hands out so many addresses."""
    with pytest.raises(MemoryError):
        call()


def test_strides_without_end_of_nothing():
    """The work does not grow with numbers that nobody will ever reach."""
    assert fc.conv_transpose2d(f(0, 1, 3, 3), f(1, 1, 2, 2), stride=2**24).shape == (0, 1, 2**25 + 2, 2**25 + 2)
    assert fc.conv2d(X, W, stride=2**40).shape == (2, 8, 1, 1)
    assert fc.conv2d(X, f(8, 4, 1, 1), dilation=2**40).shape == (2, 8, 32, 32)
    x = fc.Tensor(X, requires_grad=True)
    fc.conv2d(x, W + 1, stride=2**40).sum().backward()
    assert np.count_nonzero(x.grad) == 2 * 4 * 3 * 3
