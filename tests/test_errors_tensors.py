"""Bad calls of Tensors, of optimisers and of what is set for all operations."""

from __future__ import annotations

import numpy as np
import pytest
from bad_calls import bad_calls, refused
from bad_calls import zeros as f

import fastconv as fc

X, W = f(2, 4, 32, 32), f(8, 4, 3, 3)

ROWS = [
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
        lambda: fc.concatenate([f(2, 3), f(2, 4)]),
        ValueError,
        "concatenate: all sizes but that of axis 0 must agree, got shapes (2, 3) and (2, 4)",
    ),
    (lambda: fc.optim.SGD([], lr=0.1), ValueError, "SGD: no parameters given; pass model.parameters()"),
]


@bad_calls(ROWS)
def test_bad_call(call, kind, text):
    refused(call, kind, text)


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
