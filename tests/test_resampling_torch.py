"""Resampling against PyTorch, over sizes and scale factors drawn by Hypothesis, the same ones each time."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")
torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
st = hypothesis.strategies

MODES = {1: ["linear"], 2: ["bilinear", "bicubic"], 3: ["trilinear"]}
FACTORS = [2.0, 3.0, 0.5, 1.5, 1 / 3, 0.7, 1.3, 2.5, 1.0]


def repeatable(examples: int):
    return hypothesis.settings(max_examples=examples, derandomize=True, deadline=None, database=None)


@st.composite
def calls(draw):
    """Input shape and arguments of a call; the output has at least one element."""
    rank = draw(st.integers(1, 3))
    largest = (300, 40, 14)[rank - 1]
    spatial = tuple(draw(st.integers(1, largest)) for _ in range(rank))
    mode = draw(st.sampled_from([*MODES[rank], "nearest", "nearest-exact", "area"]))
    arguments = {"mode": mode}
    if draw(st.booleans()):
        arguments["size"] = tuple(draw(st.integers(1, largest)) for _ in range(rank))
    else:
        fitting = [[f for f in FACTORS if int(f * size) >= 1] for size in spatial]
        arguments["scale_factor"] = tuple(draw(st.sampled_from(factors)) for factors in fitting)
        if draw(st.booleans()):
            arguments["recompute_scale_factor"] = True
    if mode in MODES[rank]:
        arguments["align_corners"] = draw(st.booleans())
    return (draw(st.integers(1, 3)), draw(st.integers(1, 9)), *spatial), arguments


def told_apart(shape, sizes, arguments):
    """The outputs of "nearest" whose positions float32 cannot miss: not nearly whole numbers, or steps of 2 or ½."""
    mask = np.ones(sizes, bool)
    factors = arguments.get("scale_factor")
    if arguments.get("recompute_scale_factor"):
        factors = None
    for axis, (size, outputs) in enumerate(zip(shape[2:], sizes)):
        step = size / outputs if factors is None else 1 / factors[axis]
        position = (np.arange(outputs) + (arguments["mode"] == "nearest-exact") / 2) * step
        clear = (abs(position - np.round(position)) > 1e-4) | (np.log2(step) % 1 == 0)
        if factors is not None and size == outputs and factors[axis] != 1:
            clear[:] = False  # where PyTorch copies, and where not, depends on the rank
        mask &= clear.reshape([-1 if i == axis else 1 for i in range(len(sizes))])
    return mask


@repeatable(600)
@hypothesis.given(call=calls())
def test_against_torch(call):
    shape, arguments = call
    x = np.random.default_rng(0).standard_normal(shape)
    tensor = torch.tensor(x, requires_grad=True)
    theirs = torch.nn.functional.interpolate(tensor, **arguments)
    ours = fc.Tensor(x, requires_grad=True)
    y = fc.interpolate(ours, **arguments)
    assert y.shape == tuple(theirs.shape)
    if arguments["mode"].startswith("nearest"):
        mask = told_apart(shape, y.shape[2:], arguments)
        np.testing.assert_array_equal(y.numpy()[..., mask], theirs.detach().numpy()[..., mask])
        return  # PyTorch's gradient does not always go to the inputs it took
    gy = np.random.default_rng(1).standard_normal(y.shape)
    theirs.backward(torch.tensor(gy))
    y.backward(gy)
    np.testing.assert_allclose(y.numpy(), theirs.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(ours.grad, tensor.grad.numpy(), rtol=0, atol=1e-10)


@repeatable(100)
@hypothesis.given(call=calls())
def test_float32_against_torch(call):
    """PyTorch's positions are float32: off by some 1e-7 of the size."""
    shape, arguments = call
    hypothesis.assume(not arguments["mode"].startswith("nearest"))
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    theirs = torch.nn.functional.interpolate(torch.tensor(x), **arguments).numpy()
    np.testing.assert_allclose(fc.interpolate(x, **arguments), theirs, rtol=0, atol=2e-6 * max(shape[2:]))
