"""Every argument error of a convolution: what was called, the kind of exception, its whole text."""

from __future__ import annotations

from bad_calls import bad_calls, refused

from fastconv.geometry import ConvGeometry, receptive_field


def conv(op="conv2d", x=(2, 4, 32, 32), w=(8, 4, 3, 3), **arguments):
    return ConvGeometry.of(op, x, w, **arguments)


def conv1(x=(2, 4, 9), w=(8, 4, 3), **arguments):
    return ConvGeometry.of("conv1d", x, w, **arguments)


def transposed(x=(2, 4, 8, 8), w=(4, 6, 3, 3), **arguments):
    return ConvGeometry.transposed("conv_transpose2d", x, w, **arguments)


def input_grad(size=(2, 4, 8, 8), w=(6, 4, 3, 3), gy=(2, 6, 6, 6), **arguments):
    return ConvGeometry.for_input_grad("conv2d_input", size, w, gy, **arguments)


def weight_grad(x=(2, 4, 8, 8), size=(6, 4, 3, 3), gy=(2, 6, 6, 6), **arguments):
    return ConvGeometry.for_weight_grad("conv2d_weight", x, size, gy, **arguments)


PADDING = "an int, a tuple of 2 ints or a tuple of 2 (before, after) pairs"

ROWS = [
    # stride, dilation
    (lambda: conv(stride=0), ValueError, "conv2d: stride must be at least 1, got 0"),
    (lambda: conv(stride=(1, -2)), ValueError, "conv2d: stride must be at least 1, got (1, -2)"),
    (lambda: conv(stride=1.5), TypeError, "conv2d: stride must be an int or a tuple of 2 ints, got 1.5"),
    (lambda: conv(stride="2"), TypeError, "conv2d: stride must be an int or a tuple of 2 ints, got '2'"),
    (lambda: conv(stride=True), TypeError, "conv2d: stride must be an int or a tuple of 2 ints, got True"),
    (lambda: conv(stride=None), TypeError, "conv2d: stride must be an int or a tuple of 2 ints, got None"),
    (lambda: conv(stride=(1, 2.0)), TypeError, "conv2d: stride must be an int or a tuple of 2 ints, got (1, 2.0)"),
    (
        lambda: conv(stride=(1, 1, 1)),
        ValueError,
        "conv2d: stride must be an int or a tuple of 2 ints, got 3: (1, 1, 1)",
    ),
    (lambda: conv(stride=[]), ValueError, "conv2d: stride must be an int or a tuple of 2 ints, got 0: []"),
    (lambda: conv1(stride=(1, 1)), ValueError, "conv1d: stride must be an int or a tuple of 1 int, got 2: (1, 1)"),
    (lambda: conv(dilation=0), ValueError, "conv2d: dilation must be at least 1, got 0"),
    (lambda: conv(stride=2**63), ValueError, f"conv2d: stride must be at most {2**40}, got {2**63}"),
    (lambda: conv(padding=2**62), ValueError, f"conv2d: padding must be at most {2**40}, got {2**62}"),
    (lambda: conv(stride=(2.0,)), TypeError, "conv2d: stride must be an int or a tuple of 2 ints, got (2.0,)"),
    (lambda: conv(dilation={2}), TypeError, "conv2d: dilation must be an int or a tuple of 2 ints, got {2}"),
    # padding
    (lambda: conv(padding=-1), ValueError, "conv2d: padding must be at least 0, got -1"),
    (lambda: conv(padding=(1, -1)), ValueError, "conv2d: padding must be at least 0, got (1, -1)"),
    (lambda: conv(padding=((0, 1), (-1, 0))), ValueError, "conv2d: padding must be at least 0, got ((0, 1), (-1, 0))"),
    (lambda: conv(padding=1.0), TypeError, f"conv2d: padding must be {PADDING}, got 1.0"),
    (lambda: conv(padding=False), TypeError, f"conv2d: padding must be {PADDING}, got False"),
    (lambda: conv(padding=(1, 2, 3)), ValueError, f"conv2d: padding must be {PADDING}, got 3: (1, 2, 3)"),
    (lambda: conv(padding=(1, 2, 3, 4)), ValueError, f"conv2d: padding must be {PADDING}, got 4: (1, 2, 3, 4)"),
    (lambda: conv(padding=((1, 2, 3), 1)), TypeError, f"conv2d: padding must be {PADDING}, got ((1, 2, 3), 1)"),
    (lambda: conv(padding=("same", 1)), TypeError, f"conv2d: padding must be {PADDING}, got ('same', 1)"),
    (
        lambda: conv1(padding=(1, 2)),
        ValueError,
        "conv1d: padding must be an int, a tuple of 1 int or a tuple of 1 (before, after) pair, got 2: (1, "
        "2); for the two sides of one axis write padding=((1, 2),)",
    ),
    (lambda: conv(padding="full"), ValueError, 'conv2d: padding must be "same", "valid" or numbers, got "full"'),
    (
        lambda: conv(padding="same", stride=2),
        ValueError,
        'conv2d: padding="same" needs stride 1, got stride (2, 2); give numbers: padding=((1, 1), (1, 1))',
    ),
    (
        lambda: conv(padding="same", stride=(1, 2), dilation=3),
        ValueError,
        'conv2d: padding="same" needs stride 1, got stride (1, 2); give numbers: padding=((3, 3), (3, 3))',
    ),
    (
        lambda: conv1(padding="same", stride=2, w=(8, 4, 4)),
        ValueError,
        'conv1d: padding="same" needs stride 1, got stride (2,); give numbers: padding=((1, 2),)',
    ),
    # padding modes
    (
        lambda: conv(padding_mode="wrap"),
        ValueError,
        'conv2d: padding_mode must be "zeros", "reflect", "replicate" or "circular", got \'wrap\'',
    ),
    (
        lambda: conv(padding_mode=None),
        ValueError,
        'conv2d: padding_mode must be "zeros", "reflect", "replicate" or "circular", got None',
    ),
    (
        lambda: conv(padding_mode=["reflect"]),
        ValueError,
        'conv2d: padding_mode must be "zeros", "reflect", "replicate" or "circular", got [\'reflect\']',
    ),
    (
        lambda: conv(x=(1, 4, 8, 5), padding=5, padding_mode="reflect"),
        ValueError,
        "conv2d: reflect padding must be smaller than the input, got padding 5+5 for width 5; "
        'padding_mode="replicate" has no limit',
    ),
    (
        lambda: conv1(padding=((0, 9),), padding_mode="reflect"),
        ValueError,
        "conv1d: reflect padding must be smaller than the input, got padding 0+9 for length 9; "
        'padding_mode="replicate" has no limit',
    ),
    (
        lambda: conv(x=(1, 4, 5, 8), padding=((6, 0), (0, 0)), padding_mode="circular"),
        ValueError,
        "conv2d: circular padding must not exceed the input, got padding 6+0 for height 5; "
        'padding_mode="replicate" has no limit',
    ),
    # arrays
    (
        lambda: conv(x=(32, 32)),
        ValueError,
        "conv2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input shape (32, "
        "32)); a single-channel input becomes x[None, None]",
    ),
    (
        lambda: conv(x=(4, 32, 32)),
        ValueError,
        "conv2d: input must have 4 axes (N, C, H, W) but has 3 (input shape (4, 32, 32))",
    ),
    (
        lambda: conv(x=(2, 4, 8, 32, 32)),
        ValueError,
        "conv2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 5 (input shape (2, 4, "
        "8, 32, 32))",
    ),
    (
        lambda: conv1(x=()),
        ValueError,
        "conv1d: input must have 3 axes (N, C, L), or 2 without the batch, but has 0 (input shape ())",
    ),
    (
        lambda: conv("conv3d", x=(4, 8, 8), w=(1, 1, 2, 2, 2)),
        ValueError,
        "conv3d: input must have 5 axes (N, C, D, H, W), or 4 without the batch, but has 3 (input shape (4, "
        "8, 8)); a single-channel input becomes x[None, None]",
    ),
    (
        lambda: conv(w=(8, 4, 3)),
        ValueError,
        "conv2d: weight must have 4 axes (out_channels, in_channels/groups, height, width) but has 3 (weight "
        "shape (8, 4, 3)); conv1d takes such a weight",
    ),
    (
        lambda: conv(w=(3, 3)),
        ValueError,
        "conv2d: weight must have 4 axes (out_channels, in_channels/groups, height, width) but has 2 (weight "
        "shape (3, 3)); a single filter becomes w[None, None]",
    ),
    (
        lambda: conv("conv", w=(3, 3)),
        ValueError,
        "conv: weight must have 3, 4 or 5 axes (out_channels, in_channels/groups, *kernel) but has 2 (weight "
        "shape (3, 3)); a single filter becomes w[None, None]",
    ),
    (
        lambda: conv("conv", w=(8, 4, 3, 3, 3, 3)),
        ValueError,
        "conv: weight must have 3, 4 or 5 axes (out_channels, in_channels/groups, *kernel) but has 6 (weight "
        "shape (8, 4, 3, 3, 3, 3))",
    ),
    (
        lambda: conv("conv", w=(8, 4, 3)),
        ValueError,
        "conv: input must have 3 axes (N, C, L), or 2 without the batch, but has 4 (input shape (2, 4, 32, 32))",
    ),
    (
        lambda: conv(w=(8, 4, 0, 3)),
        ValueError,
        "conv2d: weight must have sizes of at least 1, but has shape (8, 4, 0, 3)",
    ),
    (
        lambda: conv(w=(0, 4, 3, 3)),
        ValueError,
        "conv2d: weight must have sizes of at least 1, but has shape (0, 4, 3, 3)",
    ),
    (
        lambda: conv(x=(2, 4, 0, 32)),
        ValueError,
        "conv2d: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, but has shape (2, 4, 0, 32)",
    ),
    (
        lambda: conv(x=(2, 0, 32, 32), w=(8, 0, 3, 3)),
        ValueError,
        "conv2d: weight must have sizes of at least 1, but has shape (8, 0, 3, 3)",
    ),
    (
        lambda: conv(x=(2, 0, 32, 32)),
        ValueError,
        "conv2d: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, but has shape (2, 0, 32, 32)",
    ),
    # channels, groups, bias
    (
        lambda: conv(w=(8, 3, 5, 5)),
        ValueError,
        "conv2d: weight expects 3 input channels per group (weight shape (8, 3, 5, 5), groups=1) but input "
        "has 4 (input shape (2, 4, 32, 32))",
    ),
    (
        lambda: conv(w=(8, 2, 3, 3)),
        ValueError,
        "conv2d: weight expects 2 input channels per group (weight shape (8, 2, 3, 3), groups=1) but input "
        "has 4 (input shape (2, 4, 32, 32)); groups=2 would fit",
    ),
    (
        lambda: conv(w=(8, 3, 3, 3), groups=2),
        ValueError,
        "conv2d: weight expects 3 input channels per group (weight shape (8, 3, 3, 3), groups=2) but input "
        "has 2 (input shape (2, 4, 32, 32))",
    ),
    (
        lambda: conv(x=(2, 32, 32, 4)),
        ValueError,
        "conv2d: weight expects 4 input channels per group (weight shape (8, 4, 3, 3), groups=1) but input "
        "has 32 (input shape (2, 32, 32, 4)); if the channels are its last axis: np.moveaxis(x, -1, 1)",
    ),
    (
        lambda: conv(groups=3),
        ValueError,
        "conv2d: groups must divide the input channels, but groups=3 does not divide 4 (input shape (2, 4, 32, 32))",
    ),
    (
        lambda: conv(w=(7, 2, 3, 3), groups=2),
        ValueError,
        "conv2d: groups must divide the output channels, but groups=2 does not divide 7 (weight shape (7, 2, 3, 3))",
    ),
    (lambda: conv(groups=0), ValueError, "conv2d: groups must be at least 1, got 0"),
    (lambda: conv(groups=1.0), TypeError, "conv2d: groups must be an int, got 1.0"),
    (lambda: conv(groups=True), TypeError, "conv2d: groups must be an int, got True"),
    (lambda: conv(groups=(1, 1)), TypeError, "conv2d: groups must be an int, got (1, 1)"),
    (
        lambda: conv(bias_shape=(4,)),
        ValueError,
        "conv2d: bias must have shape (8,), one number per output channel, but has shape (4,)",
    ),
    (
        lambda: conv(bias_shape=(8, 1)),
        ValueError,
        "conv2d: bias must have shape (8,), one number per output channel, but has shape (8, 1)",
    ),
    (
        lambda: conv(bias_shape=()),
        ValueError,
        "conv2d: bias must have shape (8,), one number per output channel, but has shape ()",
    ),
    # kernels that do not fit
    (
        lambda: conv(x=(1, 4, 9, 7), padding=1, dilation=5),
        ValueError,
        "conv2d: kernel of extent 11 (kernel 3, dilation 5) does not fit into padded width 9 (width 7, padding 1+1)",
    ),
    (
        lambda: conv("conv3d", x=(1, 1, 2, 8, 8), w=(1, 1, 3, 3, 3)),
        ValueError,
        "conv3d: kernel of extent 3 (kernel 3, dilation 1) does not fit into padded depth 2 (depth 2, padding 0+0)",
    ),
    (
        lambda: conv1(x=(1, 4, 2)),
        ValueError,
        "conv1d: kernel of extent 3 (kernel 3, dilation 1) does not fit into padded length 2 (length 2, padding 0+0)",
    ),
    # transposed
    (
        lambda: transposed(output_padding=1),
        ValueError,
        "conv_transpose2d: output_padding must be smaller than the stride or the dilation, got "
        "output_padding 1 with stride 1, dilation 1 (height)",
    ),
    (
        lambda: transposed(output_padding=(0, 3), stride=2, dilation=3),
        ValueError,
        "conv_transpose2d: output_padding must be smaller than the stride or the dilation, got "
        "output_padding 3 with stride 2, dilation 3 (width)",
    ),
    (lambda: transposed(output_padding=-1), ValueError, "conv_transpose2d: output_padding must be at least 0, got -1"),
    (
        lambda: transposed(output_padding=0.5),
        TypeError,
        "conv_transpose2d: output_padding must be an int or a tuple of 2 ints, got 0.5",
    ),
    (
        lambda: transposed(output_padding=(1, 1, 1)),
        ValueError,
        "conv_transpose2d: output_padding must be an int or a tuple of 2 ints, got 3: (1, 1, 1)",
    ),
    (
        lambda: transposed(padding="same"),
        ValueError,
        'conv_transpose2d: padding="same" is not defined for a transposed convolution; give numbers, e.g. padding=1',
    ),
    (
        lambda: transposed(padding=6),
        ValueError,
        "conv_transpose2d: padding 6+6 leaves no output: height would be -2 (input 8, kernel 3, stride 1, "
        "dilation 1, output_padding 0)",
    ),
    (lambda: transposed(stride=0), ValueError, "conv_transpose2d: stride must be at least 1, got 0"),
    (
        lambda: transposed(x=(2, 6, 8, 8)),
        ValueError,
        "conv_transpose2d: weight expects 4 input channels, its first axis (weight shape (4, 6, 3, 3)), but "
        "input has 6 (input shape (2, 6, 8, 8)); if its first axis is the output: w.swapaxes(0, 1)",
    ),
    (
        lambda: transposed(groups=3),
        ValueError,
        "conv_transpose2d: groups must divide the input channels, but groups=3 does not divide 4 (input "
        "shape (2, 4, 8, 8))",
    ),
    (
        lambda: transposed(bias_shape=(4,), groups=2),
        ValueError,
        "conv_transpose2d: bias must have shape (12,), one number per output channel, but has shape (4,)",
    ),
    (
        lambda: transposed(w=(4, 6, 3)),
        ValueError,
        "conv_transpose2d: weight must have 4 axes (in_channels, out_channels/groups, height, width) but has "
        "3 (weight shape (4, 6, 3)); conv_transpose1d takes such a weight",
    ),
    (
        lambda: transposed(x=(8, 8)),
        ValueError,
        "conv_transpose2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input "
        "shape (8, 8)); a single-channel input becomes x[None, None]",
    ),
    (
        lambda: transposed(x=(2, 4, 0, 8)),
        ValueError,
        "conv_transpose2d: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, but has "
        "shape (2, 4, 0, 8)",
    ),
    # gradients
    (
        lambda: input_grad(gy=(2, 6, 8, 8)),
        ValueError,
        "conv2d_input: grad_output must have the shape (2, 6, 6, 6) of the convolution's output (input shape "
        "(2, 4, 8, 8), weight shape (6, 4, 3, 3)) but has (2, 6, 8, 8)",
    ),
    (
        lambda: input_grad(gy=(1, 6, 6, 6)),
        ValueError,
        "conv2d_input: grad_output must have the shape (2, 6, 6, 6) of the convolution's output (input shape "
        "(2, 4, 8, 8), weight shape (6, 4, 3, 3)) but has (1, 6, 6, 6)",
    ),
    (
        lambda: input_grad(size=(2, 4, 8, 8.0)),
        TypeError,
        "conv2d_input: input_size must be a tuple of ints, got (2, 4, 8, 8.0)",
    ),
    (lambda: input_grad(size=8), TypeError, "conv2d_input: input_size must be a tuple of ints, got 8"),
    (
        lambda: input_grad(size=(8, 8)),
        ValueError,
        "conv2d_input: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input shape "
        "(8, 8)); a single-channel input becomes x[None, None]",
    ),
    (
        lambda: input_grad(size=(-1, 4, 8, 8)),
        ValueError,
        "conv2d_input: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, but has shape "
        "(-1, 4, 8, 8)",
    ),
    (
        lambda: weight_grad(gy=(2, 4, 6, 6)),
        ValueError,
        "conv2d_weight: grad_output must have the shape (2, 6, 6, 6) of the convolution's output (input "
        "shape (2, 4, 8, 8), weight shape (6, 4, 3, 3)) but has (2, 4, 6, 6)",
    ),
    (
        lambda: weight_grad(size=(6, 4, 3)),
        ValueError,
        "conv2d_weight: weight must have 4 axes (out_channels, in_channels/groups, height, width) but has 3 "
        "(weight shape (6, 4, 3)); conv1d_weight takes such a weight",
    ),
    (lambda: weight_grad(size="6433"), TypeError, "conv2d_weight: weight_size must be a tuple of ints, got '6433'"),
    # receptive field
    (
        lambda: receptive_field([(3, 1, 1), (3, 0, 1)]),
        ValueError,
        "receptive_field: each layer is (kernel, stride, dilation), all at least 1, got (3, 0, 1)",
    ),
]


@bad_calls(ROWS)
def test_error_text(call, kind, text):
    refused(call, kind, text)
