"""Bad calls of pooling and resampling."""

from __future__ import annotations

from bad_calls import bad_calls, refused
from bad_calls import zeros as f

import fastconv as fc

X, W = f(2, 4, 32, 32), f(8, 4, 3, 3)

ROWS = [
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
        lambda: fc.adaptive_avg_pool2d(X, 2**40),
        ValueError,
        "adaptive_avg_pool2d: the output would have shape (2, 4, 1099511627776, 1099511627776), more elements than an "
        "array can hold",
    ),
]


@bad_calls(ROWS)
def test_bad_call(call, kind, text):
    refused(call, kind, text)
