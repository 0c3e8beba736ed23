"""A second opinion: the table, padding modes and PyTorch's own operator samples, against PyTorch."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from expected import DTYPES, bias_of_transposed, rounded
from problems import PROBLEMS, parse
from tolerance import assert_close

import fastconv as fc

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
F = torch.nn.functional
pytestmark = pytest.mark.usefixtures("highest_precision")


def tensors(*arrays):
    """Pairs of leaves with the same values: PyTorch's and ours."""
    return [torch.from_numpy(a.copy()).requires_grad_() for a in arrays], [
        fc.Tensor(a, requires_grad=True) for a in arrays
    ]


def assert_alike(theirs, ours, terms, magnitude):
    """Both are within the tolerance of the exact result, so within two of each other."""
    assert_close(ours, theirs.detach().numpy().astype("float64"), terms, 2 * magnitude)


def check_leaves(theirs, ours, terms, magnitudes):
    for their, our, count, magnitude in zip(theirs, ours, terms, magnitudes):
        assert_alike(their.grad, our.grad, count, magnitude)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_convolution(problem, dtype):
    arrays = problem.normal(dtype)
    _, magnitude = rounded(problem, dtype)
    theirs, ours = tensors(arrays.x, arrays.w, arrays.b)
    x, w, b = theirs
    sides = [side for pair in reversed(problem.padding) for side in pair]  # F.pad begins with the last axis
    convolution = getattr(F, f"conv{problem.rank}d")
    y = convolution(F.pad(x, sides), w, b, problem.stride, 0, problem.dilation, problem.groups)
    y.backward(torch.from_numpy(arrays.gy))
    z = fc.conv(*ours, **problem.window)
    z.backward(arrays.gy)
    assert_alike(y, z.data, problem.forward_terms, magnitude.forward)
    terms = problem.input_grad_terms, problem.weight_grad_terms, problem.weight_grad_terms
    bias = np.abs(arrays.gy).sum(axis=(0, *range(2, arrays.gy.ndim)), dtype="float64")
    check_leaves(theirs, ours, terms, (magnitude.input_grad, magnitude.weight_grad, bias))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.symmetric], ids=str)
def test_transposed_convolution(problem, dtype):
    arrays = problem.normal(dtype)
    _, magnitude = rounded(problem, dtype)
    theirs, ours = tensors(arrays.gy, arrays.w, bias_of_transposed(problem, arrays))
    before = tuple(before for before, _ in problem.padding)
    name = f"conv_transpose{problem.rank}d"
    arguments = problem.stride, before, problem.unused, problem.groups, problem.dilation
    y = getattr(F, name)(*theirs, *arguments)
    y.backward(torch.from_numpy(arrays.x))
    z = getattr(fc, name)(*ours, *arguments)
    z.backward(arrays.x)
    assert_alike(y, z.data, problem.input_grad_terms, magnitude.transposed)
    terms = problem.forward_terms, problem.weight_grad_terms, problem.batch * int(np.prod(problem.spatial))
    bias = np.abs(arrays.x).sum(axis=(0, *range(2, arrays.x.ndim)), dtype="float64")
    check_leaves(theirs, ours, terms, (magnitude.forward, magnitude.weight_grad, bias))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "problem",
    [parse(line) for line in ("n2 c3 l9 k4 f3 p2", "n1 c2 hw6x7 k4 f3 s2 p1x3", "n1 c2 dhw4x3x5 k2 f2 p1x2x0")],
    ids=str,
)
def test_padding_modes(problem, mode):
    """Integers, so that both are exact."""
    arrays = problem.integers()
    padding = tuple(before for before, _ in problem.padding)
    layer = getattr(torch.nn, f"Conv{problem.rank}d")(
        problem.in_channels, problem.out_channels, problem.kernel, problem.stride, padding, padding_mode=mode
    ).double()
    layer.load_state_dict({"weight": torch.from_numpy(arrays.w), "bias": torch.from_numpy(arrays.b)})
    (x,), ours = tensors(arrays.x)
    y = layer(x)
    y.backward(torch.from_numpy(arrays.gy))
    w = fc.Tensor(arrays.w, requires_grad=True)
    z = fc.conv(*ours, w, arrays.b, problem.stride, padding, padding_mode=mode)
    z.backward(arrays.gy)
    assert np.array_equal(y.detach().numpy(), z.numpy())
    assert np.array_equal(x.grad.numpy(), ours[0].grad)
    assert np.array_equal(layer.weight.grad.numpy(), w.grad)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_same_padding(rank, kernel, dilation):
    rng = np.random.default_rng(6)
    x, w = (rng.integers(-3, 4, s).astype("float64") for s in ((2, 3, *[7] * rank), (4, 3, *[kernel] * rank)))
    call = getattr(F, f"conv{rank}d")
    y = call(torch.from_numpy(x), torch.from_numpy(w), padding="same", dilation=dilation)
    assert np.array_equal(fc.conv(x, w, padding="same", dilation=dilation), y.numpy())


NAMES = [f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)]


def samples(name):
    """PyTorch's own sample calls of an operator."""
    pytest.importorskip("expecttest", reason="pip install expecttest")
    # The import forbids to set flags of backends for the rest of the process, which other tests do.
    with mock.patch.object(torch.backends, "disable_global_flags"):
        from torch.testing._internal.common_methods_invocations import op_db
    (operator,) = (operator for operator in op_db if operator.name == f"nn.functional.{name}")
    torch.manual_seed(7)
    return list(operator.sample_inputs("cpu", torch.float64, requires_grad=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_operator_samples(name):
    found = samples(name)
    assert len(found) >= 10
    for sample in found:
        theirs = [sample.input, *sample.args]
        ours = [None if t is None else fc.Tensor(t.detach().numpy(), requires_grad=True) for t in theirs]
        absolute = [None if t is None else t.detach().abs().requires_grad_() for t in theirs]
        y, magnitude = (getattr(F, name)(*leaves, **sample.kwargs) for leaves in (theirs, absolute))
        z = getattr(fc, name)(*ours, **sample.kwargs)
        gy = torch.randn_like(y)
        y.backward(gy)
        magnitude.backward(gy.abs())
        z.backward(gy.numpy())
        terms = max(sample.args[0].numel(), y.numel()) + 1  # no sum is longer
        assert_alike(y, z.data, terms, magnitude.detach().numpy())
        for their, our, largest in zip(theirs, ours, absolute):
            if their is not None:
                assert_alike(their.grad, our.grad, terms, largest.grad.numpy())
