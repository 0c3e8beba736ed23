"""Bad calls of the public operations: the kind of exception and its whole text. None of them may crash or hang.

What ConvGeometry and PoolGeometry refuse has tables of its own, test_conv_geometry_errors.py and
test_pool_geometry_errors.py; here stands that it reaches the user, and what operations themselves refuse.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc


def f(*shape):
    """A float32 array of that shape."""
    return np.zeros(shape, "float32")


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
            "(weight shape (8, 4))"
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
        lambda: fc.explain(X, f(8, 3, 3, 3)),
        ValueError,
        (
            "explain: weight expects 3 input channels per group (weight shape (8, 3, 3, 3), groups=1) but "
            "input has 4 (input shape (2, 4, 32, 32))"
        ),
    ),
    (lambda: fc.max_pool2d(X, 0), ValueError, "max_pool2d: kernel_size must be at least 1, got 0"),
    (
        lambda: fc.max_pool2d(X, 3, padding=3),
        ValueError,
        "max_pool2d: padding must leave each window an element of the height 32: a window of kernel 3 with padding 3+3 "
        "reads nothing but padding",
    ),
    (
        lambda: fc.max_pool2d(X, 33),
        ValueError,
        (
            "max_pool2d: kernel of extent 33 (kernel 33, dilation 1) does not fit into padded height 32 "
            "(height 32, padding 0+0)"
        ),
    ),
    (
        lambda: fc.max_pool2d(X, (2, 2, 2)),
        ValueError,
        "max_pool2d: kernel_size must be an int or a tuple of 2 ints, got 3: (2, 2, 2)",
    ),
    (lambda: fc.max_pool2d(X, 2, stride=0), ValueError, "max_pool2d: stride must be at least 1, got 0"),
    (lambda: fc.max_pool2d(X, 2.0), TypeError, "max_pool2d: kernel_size must be an int or a tuple of 2 ints, got 2.0"),
    (
        lambda: fc.max_pool2d(f(4, 4), 2),
        ValueError,
        (
            "max_pool2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input "
            "shape (4, 4)); a single-channel input becomes x[None, None]"
        ),
    ),
    (
        lambda: fc.max_pool2d(X.astype("int64"), 2),
        TypeError,
        ('max_pool2d: integer input (int64) is not supported; convert first, e.g. input.astype("float32")'),
    ),
    (
        lambda: fc.max_pool1d(X, 2),
        ValueError,
        (
            "max_pool1d: input must have 3 axes (N, C, L), or 2 without the batch, but has 4 (input shape "
            "(2, 4, 32, 32))"
        ),
    ),
    (
        lambda: fc.avg_pool2d(X, 2, divisor_override=0),
        ValueError,
        "avg_pool2d: divisor_override must be at least 1, got 0",
    ),
    (lambda: fc.avg_pool3d(X, 2, padding=-1), ValueError, "avg_pool3d: padding must be at least 0, got -1"),
    (
        lambda: fc.sum_pool2d(X, 40),
        ValueError,
        (
            "sum_pool2d: kernel of extent 40 (kernel 40, dilation 1) does not fit into padded height 32 "
            "(height 32, padding 0+0)"
        ),
    ),
    (lambda: fc.adaptive_avg_pool2d(X, 0), ValueError, "adaptive_avg_pool2d: output_size must be at least 1, got 0"),
    (
        lambda: fc.adaptive_max_pool2d(X, (2, 2, 2)),
        ValueError,
        "adaptive_max_pool2d: output_size must be an int, None or 2 of them, got 3: (2, 2, 2)",
    ),
    (
        lambda: fc.interpolate(X),
        ValueError,
        "interpolate: either size or scale_factor must be given, got neither; e.g. scale_factor=2",
    ),
    (
        lambda: fc.interpolate(X, 16, 0.5),
        ValueError,
        "interpolate: size=16 and scale_factor=0.5 exclude each other; give one of them",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=2, mode="cubic"),
        ValueError,
        'interpolate: mode must be "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear" or "area", '
        "got 'cubic'",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=2, mode="linear"),
        ValueError,
        'interpolate: mode "linear" needs an input with 3 axes (N, C, length) but it has 4 (input shape '
        '(2, 4, 32, 32)); mode "bilinear" takes such an input',
    ),
    (
        lambda: fc.interpolate(f(2, 4), 3),
        ValueError,
        "interpolate: input must have 3, 4 or 5 axes (N, C, *spatial) but has 2 (input shape (2, 4))",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=2, align_corners=False),
        ValueError,
        'interpolate: align_corners must be None for mode "nearest", got False; it is for linear, bilinear, trilinear '
        "and bicubic",
    ),
    (
        lambda: fc.interpolate(X, 16, recompute_scale_factor=True),
        ValueError,
        "interpolate: recompute_scale_factor=True goes with scale_factor, but size=16 is given; leave it out",
    ),
    (lambda: fc.interpolate(X, 0), ValueError, "interpolate: size must be at least 1, got 0"),
    (lambda: fc.interpolate(X, 16.0), TypeError, "interpolate: size must be an int or a tuple of 2 ints, got 16.0"),
    (
        lambda: fc.interpolate(X, (8, 8, 8)),
        ValueError,
        "interpolate: size must be an int or a tuple of 2 ints, got 3: (8, 8, 8)",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=(2.0, 2.0, 2.0)),
        ValueError,
        "interpolate: scale_factor must be a number or a tuple of 2 numbers, got 3: (2.0, 2.0, 2.0)",
    ),
    (
        lambda: fc.interpolate(X, scale_factor="2"),
        TypeError,
        "interpolate: scale_factor must be a number or a tuple of 2 numbers, got '2'",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=(2, True)),
        TypeError,
        "interpolate: scale_factor must be a number or a tuple of 2 numbers, got (2, True)",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=-1),
        ValueError,
        "interpolate: scale_factor must be positive and finite, got -1",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=(1, 0.01)),
        ValueError,
        "interpolate: scale_factor 0.01 leaves nothing of the width 32; 0.03125 leaves 1",
    ),
    (
        lambda: fc.interpolate(X, scale_factor=1e30),
        ValueError,
        "interpolate: the output would have shape (2, 4, 1099511627776, 1099511627776), more elements than an array "
        "can hold",
    ),
    (
        lambda: fc.interpolate(X.astype("int64"), 16),
        TypeError,
        'interpolate: integer input (int64) is not supported; convert first, e.g. input.astype("float32")',
    ),
    (
        lambda: fc.nn.Upsample(scale_factor=2, mode="bilinear")(f(2, 4, 32)),
        ValueError,
        'interpolate: mode "bilinear" needs an input with 4 axes (N, C, height, width) but it has 3 (input shape '
        '(2, 4, 32)); mode "linear" takes such an input',
    ),
    (
        lambda: fc.cross_entropy(f(4, 10), np.zeros(5, "int64")),
        ValueError,
        (
            "cross_entropy: target of class numbers must have shape (4,) for input shape (4, 10) (N, C, "
            "...), but has shape (5,)"
        ),
    ),
    (
        lambda: fc.cross_entropy(f(4, 10), np.array([0, 1, 2, 10])),
        ValueError,
        ("cross_entropy: target must hold classes from 0 to 9 (the input has 10) or ignore_index=-100, but holds 10"),
    ),
    (
        lambda: fc.cross_entropy(f(4, 10), np.array([0, 1, 2, -1])),
        ValueError,
        ("cross_entropy: target must hold classes from 0 to 9 (the input has 10) or ignore_index=-100, but holds -1"),
    ),
    (
        lambda: fc.cross_entropy(f(4, 10), np.zeros(4, "int64"), reduction="avg"),
        ValueError,
        'cross_entropy: reduction must be "mean", "sum" or "none", got \'avg\'',
    ),
    (
        lambda: fc.cross_entropy(f(4, 10), np.zeros(4, "int64"), weight=f(9)),
        ValueError,
        ("cross_entropy: weight must have shape (10,), one number per class (input shape (4, 10)), but has shape (9,)"),
    ),
    (
        lambda: fc.cross_entropy(f(4, 10), np.zeros(4, "int64"), label_smoothing=2.0),
        ValueError,
        "cross_entropy: label_smoothing must lie between 0 and 1, got 2.0",
    ),
    (
        lambda: fc.nll_loss(f(4, 10), f(4)),
        TypeError,
        ('nll_loss: target must hold integer class numbers, got float32; convert first, e.g. target.astype("int64")'),
    ),
    (
        lambda: fc.nll_loss(f(4, 10), np.arange(5)),
        ValueError,
        (
            "nll_loss: target of class numbers must have shape (4,) for input shape (4, 10) (N, C, ...), "
            "but has shape (5,)"
        ),
    ),
    (
        lambda: fc.mse_loss(f(4, 2), f(4, 1)),
        ValueError,
        "mse_loss: target must have the input's shape (4, 2), but has shape (4, 1)",
    ),
    (
        lambda: fc.l1_loss(f(4, 2), f(4, 2).astype("float64")),
        TypeError,
        ('l1_loss: target is float64 but input is float32; convert one, e.g. target.astype("float32")'),
    ),
    (
        lambda: fc.binary_cross_entropy_with_logits(f(4), f(5)),
        ValueError,
        ("binary_cross_entropy_with_logits: target must have the input's shape (4,), but has shape (5,)"),
    ),
    (
        lambda: fc.linear(f(2, 3), f(4, 5)),
        ValueError,
        ("linear: weight expects 5 input features (weight shape (4, 5)) but input has 3 (input shape (2, 3))"),
    ),
    (
        lambda: fc.linear(f(2, 3), f(4, 3), f(3)),
        ValueError,
        "linear: bias must have shape (4,), one number per output feature, but has shape (3,)",
    ),
    (
        lambda: fc.linear(f(2, 3), f(3)),
        ValueError,
        (
            "linear: input must have at least 1 axis and weight 2 (out_features, in_features), got input "
            "shape (2, 3) and weight shape (3,)"
        ),
    ),
    (
        lambda: fc.batch_norm(X, f(3), f(3)),
        ValueError,
        (
            "batch_norm: running_mean must have shape (4,), one number per channel of the input (input "
            "shape (2, 4, 32, 32)), but has shape (3,)"
        ),
    ),
    (
        lambda: fc.batch_norm(X, None, None),
        ValueError,
        ("batch_norm: evaluation needs running_mean and running_var; training=True normalises by the batch"),
    ),
    (
        lambda: fc.batch_norm(f(4), f(4), f(4)),
        ValueError,
        (
            "batch_norm: input must be (N, C, *spatial) with sizes of at least 1, or 0 for the batch, got "
            "input shape (4,)"
        ),
    ),
    (
        lambda: fc.batch_norm(f(1, 4), f(4), f(4), training=True),
        ValueError,
        (
            "batch_norm: training needs more than one value per channel, got input shape (1, 4); use a "
            "larger batch, or training=False"
        ),
    ),
    (
        lambda: fc.instance_norm(f(2, 4, 1, 1)),
        ValueError,
        (
            "instance_norm: needs more than one value per channel of a sample, got input shape (2, 4, 1, 1); "
            "use_input_stats=False normalises by running statistics"
        ),
    ),
    (
        lambda: fc.instance_norm(X, use_input_stats=False),
        ValueError,
        "instance_norm: evaluation needs running_mean and running_var; use_input_stats=True normalises by the input",
    ),
    (
        lambda: fc.instance_norm(X, weight=f(3)),
        ValueError,
        (
            "instance_norm: weight must have shape (4,), one number per channel of the input (input shape "
            "(2, 4, 32, 32)), but has shape (3,)"
        ),
    ),
    (
        lambda: fc.group_norm(X, 3),
        ValueError,
        (
            "group_norm: num_groups=3 does not divide the 4 channels of the input (input shape (2, 4, 32, 32)); "
            "num_groups=2 would fit"
        ),
    ),
    (lambda: fc.group_norm(X, 0), ValueError, "group_norm: num_groups must be at least 1, got 0"),
    (lambda: fc.group_norm(X, 2.0), TypeError, "group_norm: num_groups must be an int, got 2.0"),
    (
        lambda: fc.group_norm(f(4), 2),
        ValueError,
        (
            "group_norm: input must be (N, C, *spatial) with sizes of at least 1, or 0 for the batch, got "
            "input shape (4,)"
        ),
    ),
    (
        lambda: fc.group_norm(X, 2, f(4).astype("float64")),
        TypeError,
        'group_norm: weight is float64 but input is float32; convert one, e.g. weight.astype("float32")',
    ),
    (
        lambda: fc.layer_norm(X, 4),
        ValueError,
        (
            "layer_norm: normalized_shape (4,) must be the last axes of the input, which has shape "
            "(2, 4, 32, 32); normalized_shape=(32,) would fit"
        ),
    ),
    (
        lambda: fc.layer_norm(f(3), (2, 3)),
        ValueError,
        "layer_norm: normalized_shape (2, 3) must be the last axes of the input, which has shape (3,)",
    ),
    (
        lambda: fc.layer_norm(X, (32, 32), f(32)),
        ValueError,
        "layer_norm: weight must have shape (32, 32), that of normalized_shape, but has shape (32,)",
    ),
    (
        lambda: fc.layer_norm(X, ()),
        TypeError,
        "layer_norm: normalized_shape must be an int or a tuple of one or more ints, got ()",
    ),
    (
        lambda: fc.layer_norm(X, 32.0),
        TypeError,
        "layer_norm: normalized_shape must be an int or a tuple of one or more ints, got 32.0",
    ),
    (lambda: fc.layer_norm(X, (32, 0)), ValueError, "layer_norm: normalized_shape must be at least 1, got (32, 0)"),
    (lambda: fc.nn.GroupNorm(3, 4), ValueError, "GroupNorm: num_groups=3 does not divide num_channels=4"),
    (
        lambda: fc.nn.InstanceNorm2d(4)(f(4, 32)),
        ValueError,
        "InstanceNorm2d: input must be (C, H, W) or (N, C, H, W), got input shape (4, 32)",
    ),
    (
        lambda: fc.softmax(X, dim=4),
        ValueError,
        "softmax: dim must lie between -4 and 3 for input shape (2, 4, 32, 32), got 4",
    ),
    (
        lambda: fc.softmax(X.astype("int32"), dim=1),
        TypeError,
        ('softmax: integer input (int32) is not supported; convert first, e.g. input.astype("float32")'),
    ),
    (
        lambda: fc.relu(np.zeros(3, "int32")),
        TypeError,
        ('relu: integer input (int32) is not supported; convert first, e.g. input.astype("float32")'),
    ),
    (
        lambda: fc.relu("x"),
        TypeError,
        (
            "relu: input must be an array, a Tensor or an object with __array__ or __dlpack__, got str; "
            'convert first, e.g. numpy.asarray(input, dtype="float32")'
        ),
    ),
    (lambda: fc.dropout(X, p=1.5), ValueError, "dropout: p must be a probability, 0 to 1, got 1.5"),
    (lambda: fc.gelu(X, approximate="erf"), ValueError, 'gelu: approximate must be "none" or "tanh", got \'erf\''),
    (lambda: fc.softplus(X, beta=0), ValueError, "softplus: beta must be positive, got 0"),
    (lambda: fc.set_num_threads(0), ValueError, "set_num_threads: n must be a positive integer, got 0"),
    (lambda: fc.set_num_threads(2.5), ValueError, "set_num_threads: n must be a positive integer, got 2.5"),
    (lambda: fc.precision("exact"), ValueError, 'precision must be "highest", "default" or "fast", got \'exact\''),
    (
        lambda: fc.Tensor(np.zeros(3, "complex64")),
        TypeError,
        "Tensor: dtype complex64 is not supported; floating, integer and boolean arrays are",
    ),
    (
        lambda: fc.Tensor(np.zeros(3, "int32"), requires_grad=True),
        TypeError,
        'Tensor: only floating arrays have gradients, got int32; try x.astype("float32")',
    ),
    (
        lambda: fc.Tensor(f(3), requires_grad=True).backward(),
        ValueError,
        (
            "backward: a result of shape (3,) needs its cotangent: y.backward(gradient); or reduce it to a "
            "number first: y.sum().backward()"
        ),
    ),
    (
        lambda: fc.Tensor(f(3)).backward(),
        RuntimeError,
        (
            "backward: nothing was recorded for this Tensor: no input had requires_grad=True, or it was "
            "computed under no_grad()"
        ),
    ),
    (
        lambda: fc.Tensor(f(3)).item(),
        ValueError,
        "item: only a Tensor with one element is a number, this one has shape (3,)",
    ),
    (
        lambda: fc.conv2d(fc.Tensor(X, True), W).backward(f(2, 8, 30, 31)),
        ValueError,
        "backward: gradient has shape (2, 8, 30, 31), the result it belongs to (2, 8, 30, 30)",
    ),
    (
        lambda: fc.Tensor(f(3)).to("gpu"),
        ValueError,
        'device must be "cpu", "cuda" or "cuda:1" (a number after the colon), got \'gpu\'',
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
        lambda: fc.adaptive_avg_pool2d(X, 2**40),
        ValueError,
        "adaptive_avg_pool2d: the output would have shape (2, 4, 1099511627776, 1099511627776), more elements than an "
        "array can hold",
    ),
    (
        lambda: fc.grad.conv1d_weight(X, (8, 4, 3), f(2, 8, 30)),
        ValueError,
        "grad.conv1d_weight: input must have 3 axes (N, C, L) but has 4 (input shape (2, 4, 32, 32))",
    ),
    (
        lambda: fc.concatenate([f(2, 3), f(2, 4)]),
        ValueError,
        "concatenate: all sizes but that of axis 0 must agree, got shapes (2, 3) and (2, 4)",
    ),
    (
        lambda: fc.nn.Conv2d(3, 8, 3, groups=2),
        ValueError,
        "Conv2d: groups must divide in_channels and out_channels, but groups=2 does not divide 3 or 8",
    ),
    (lambda: fc.optim.SGD([], lr=0.1), ValueError, "SGD: no parameters given; pass model.parameters()"),
]


@pytest.mark.parametrize("call, error, text", ROWS, ids=[text[:60] for _, _, text in ROWS])
def test_bad_call(call, error, text):
    with pytest.raises(error) as raised:
        call()
    assert raised.type is error
    assert raised.value.args == (text,)


def test_enough_of_them():
    assert len(ROWS) >= 40


def test_a_failed_call_changes_nothing():
    """Neither its operands, nor running statistics, nor gradients that are already there."""
    mean, variance = np.zeros(4, "float32"), np.ones(4, "float32")
    with pytest.raises(ValueError, match="weight must have shape"):
        fc.batch_norm(X + 1, mean, variance, weight=f(3), training=True)
    assert not mean.any() and (variance == 1).all()

    w = fc.Tensor(W, requires_grad=True)
    fc.conv2d(X + 1, w).sum().backward()
    before = w.grad.copy()
    y = fc.conv2d(X + 1, w)
    with pytest.raises(ValueError, match="gradient has shape"):
        y.backward(f(2, 8, 30, 29))
    assert np.array_equal(w.grad, before)
    with pytest.raises(ValueError, match="weight expects 4 input channels"):
        fc.conv2d(fc.conv2d(X, w), w)
    assert np.array_equal(w.data, W)


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
