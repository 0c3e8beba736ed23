"""Every argument error of a pooling: what was called, the kind of exception, its whole text."""

from __future__ import annotations

from bad_calls import bad_calls, refused

from fastconv.geometry import PoolGeometry


def pool(op="max_pool2d", x=(2, 4, 8, 8), kernel_size=3, **arguments):
    return PoolGeometry.of(op, x, kernel_size, **arguments)


def adaptive(output_size, op="adaptive_avg_pool2d", x=(2, 4, 8, 8)):
    return PoolGeometry.adaptive(op, x, output_size)


ROWS = [
    (lambda: pool(kernel_size=0), ValueError, "max_pool2d: kernel_size must be at least 1, got 0"),
    (lambda: pool(kernel_size=2.0), TypeError, "max_pool2d: kernel_size must be an int or a tuple of 2 ints, got 2.0"),
    (
        lambda: pool(kernel_size=(2, 2, 2)),
        ValueError,
        "max_pool2d: kernel_size must be an int or a tuple of 2 ints, got 3: (2, 2, 2)",
    ),
    (
        lambda: pool(kernel_size=None),
        TypeError,
        "max_pool2d: kernel_size must be an int or a tuple of 2 ints, got None",
    ),
    (lambda: pool(stride=0), ValueError, "max_pool2d: stride must be at least 1, got 0"),
    (lambda: pool(dilation=0), ValueError, "max_pool2d: dilation must be at least 1, got 0"),
    (
        lambda: pool(padding=3),
        ValueError,
        "max_pool2d: padding must leave each window an element of the height 8: a window of kernel 3 with padding 3+3 "
        "reads nothing but padding",
    ),
    (
        lambda: pool(padding=((0, 0), (0, 3)), stride=1),
        ValueError,
        "max_pool2d: padding must leave each window an element of the width 8: a window of kernel 3 with padding 0+3 "
        "reads nothing but padding",
    ),
    (lambda: pool(padding=-1), ValueError, "max_pool2d: padding must be at least 0, got -1"),
    (
        lambda: pool(padding="same"),
        TypeError,
        "max_pool2d: padding must be an int, a tuple of 2 ints or a tuple of 2 (before, after) pairs, got 'same'",
    ),
    (
        lambda: pool(kernel_size=9),
        ValueError,
        "max_pool2d: kernel of extent 9 (kernel 9, dilation 1) does not fit into padded height 8 (height 8, "
        "padding 0+0)",
    ),
    (
        lambda: pool(kernel_size=3, dilation=4, x=(1, 1, 9, 8)),
        ValueError,
        "max_pool2d: kernel of extent 9 (kernel 3, dilation 4) does not fit into padded width 8 (width 8, padding 0+0)",
    ),
    (
        lambda: pool(kernel_size=4, x=(1, 1, 2, 2), ceil_mode=True, stride=2),
        ValueError,
        "max_pool2d: kernel of extent 4 (kernel 4, dilation 1) does not fit into padded height 2 (height 2, "
        "padding 0+0)",
    ),
    (
        lambda: pool(kernel_size=2, x=(1, 1, 2, 2), padding=1, dilation=3),
        ValueError,
        "max_pool2d: dilation 3 steps over the whole height 2: a window of kernel 2 with padding 1+1 reads "
        "nothing but padding",
    ),
    (
        lambda: pool(x=(8, 8)),
        ValueError,
        "max_pool2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input shape (8, "
        "8)); a single-channel input becomes x[None, None]",
    ),
    (
        lambda: pool(x=(2, 4, 0, 8)),
        ValueError,
        "max_pool2d: input (N, C, H, W) must have sizes of at least 1, or 0 for the batch, but has shape (2, 4, 0, 8)",
    ),
    (
        lambda: pool("lp_pool", x=(8, 8)),
        ValueError,
        "lp_pool: input must have 3, 4 or 5 axes (N, C, *spatial) but has 2 (input shape (8, 8))",
    ),
    (
        lambda: pool("avg_pool2d", divisor_override=0),
        ValueError,
        "avg_pool2d: divisor_override must be at least 1, got 0",
    ),
    (
        lambda: pool("avg_pool2d", divisor_override=2.0),
        TypeError,
        "avg_pool2d: divisor_override must be an int, got 2.0",
    ),
    (lambda: adaptive(0), ValueError, "adaptive_avg_pool2d: output_size must be at least 1, got 0"),
    (lambda: adaptive((3, -1)), ValueError, "adaptive_avg_pool2d: output_size must be at least 1, got -1"),
    (
        lambda: adaptive((3, 3, 3)),
        ValueError,
        "adaptive_avg_pool2d: output_size must be an int, None or 2 of them, got 3: (3, 3, 3)",
    ),
    (lambda: adaptive(2.5), TypeError, "adaptive_avg_pool2d: output_size must be an int, got 2.5"),
    (lambda: adaptive((None, "3")), TypeError, "adaptive_avg_pool2d: output_size must be an int, got '3'"),
    (
        lambda: adaptive(3, x=(8, 8)),
        ValueError,
        "adaptive_avg_pool2d: input must have 4 axes (N, C, H, W), or 3 without the batch, but has 2 (input "
        "shape (8, 8)); a single-channel input becomes x[None, None]",
    ),
]


@bad_calls(ROWS)
def test_error_text(call, kind, text):
    refused(call, kind, text)
