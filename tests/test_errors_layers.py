"""Bad calls of losses, dense layers, normalisation and activations."""

from __future__ import annotations

import numpy as np
from bad_calls import bad_calls, refused
from bad_calls import zeros as f

import fastconv as fc

X, W = f(2, 4, 32, 32), f(8, 4, 3, 3)

ROWS = [
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
        lambda: fc.cross_entropy(f(4, 10), np.ma.masked_equal([0, 1, 2, 7], 7)),
        TypeError,
        "cross_entropy: target has masked values, which would be computed with; fill them first, e.g. "
        "target.filled(-100)",
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
]


@bad_calls(ROWS)
def test_bad_call(call, kind, text):
    refused(call, kind, text)
