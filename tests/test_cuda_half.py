"""float16 and bfloat16 on the GPU: computed in float, rounded once."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn
from fastconv.autograd import to_device

ml_dtypes = pytest.importorskip("ml_dtypes", reason='pip install "fastconv[test]"')
pytestmark = pytest.mark.usefixtures("gpu")

DTYPES = [np.dtype("float16"), np.dtype(ml_dtypes.bfloat16)]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(shape, dtype, seed=0):
    """Numbers of `dtype`, and the same in float64."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return values, values.astype("float64")


def check(function, dtype, *shapes, roundings=1.0):
    """Result and gradients of `function` agree with those in float64 on the CPU, but for rounding at the end."""
    arrays = [normal(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    ours = [fc.Tensor(to_device(half, "cuda"), requires_grad=True) for half, _ in arrays]
    theirs = [fc.Tensor(exact, requires_grad=True) for _, exact in arrays]
    y, expected = function(*ours), function(*theirs)
    gy, exact_gy = normal(expected.shape, dtype, 9)
    y.backward(to_device(gy, "cuda"))
    expected.backward(exact_gy)
    eps = float(ml_dtypes.finfo(dtype).eps)
    pairs = [(y.data, expected.data)] + [(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)]
    for actual, wanted in pairs:
        assert actual.dtype == dtype
        atol = roundings * eps * max(1.0, float(np.abs(wanted).max(initial=0)))
        np.testing.assert_allclose(to_device(actual, "cpu").astype("float64"), wanted, rtol=roundings * eps, atol=atol)


@dtypes
@pytest.mark.parametrize("name", "relu elu selu gelu silu sigmoid tanh softplus leaky_relu".split())
def test_activations(name, dtype):
    check(getattr(fc, name), dtype, (3, 7), roundings=2)


@dtypes
def test_pooling(dtype):
    check(lambda x: fc.max_pool2d(x, 3, 2, 1), dtype, (2, 2, 9, 7))
    check(lambda x: fc.avg_pool2d(x, 3, 2, 1), dtype, (2, 2, 9, 7))
    check(lambda x: fc.adaptive_avg_pool2d(x, (3, 1)), dtype, (2, 2, 11, 13))


@dtypes
@pytest.mark.parametrize(
    ("mode", "shape", "factor"),
    [
        ("nearest", (2, 2, 9), 1.7),
        ("bilinear", (1, 2, 5, 7), 2),
        ("bicubic", (1, 1, 6, 5), 0.6),
        ("area", (1, 2, 9, 5), 0.5),
    ],
)
def test_resampling(mode, shape, factor, dtype):
    check(lambda x: fc.interpolate(x, scale_factor=factor, mode=mode), dtype, shape)


@dtypes
def test_normalisation_and_losses(dtype):
    check(lambda x, w, b: fc.batch_norm(x, None, None, w, b, True), dtype, (3, 4, 5), (4,), (4,), roundings=4)
    check(lambda x, w, b: fc.layer_norm(x, 5, w, b), dtype, (3, 4, 5), (5,), (5,), roundings=4)
    check(lambda x, w, b: fc.group_norm(x, 2, w, b), dtype, (3, 4, 5), (4,), (4,), roundings=4)
    check(lambda x: fc.instance_norm(x), dtype, (3, 4, 5), roundings=4)
    check(lambda x: fc.softmax(x, 1), dtype, (3, 4, 5))
    check(lambda x: fc.log_softmax(x, 1), dtype, (3, 6), roundings=2)
    classes = np.array([0, 3, 1])
    for place in ("cpu", "cuda"):
        target = to_device(classes, place)
        x = to_device(normal((3, 4), dtype)[place == "cpu"], place)
        loss = float(fc.cross_entropy(x, target, label_smoothing=0.1))
        if place == "cpu":
            expected = loss
    assert loss == pytest.approx(expected, rel=4 * float(ml_dtypes.finfo(dtype).eps))


@dtypes
def test_dense_layers_and_padding(dtype):
    check(fc.linear, dtype, (5, 6), (3, 6), (3,), roundings=2)
    check(lambda a, b: fc.add_relu(a, b), dtype, (2, 3, 5), (2, 3, 5))
    check(lambda x, w: fc.conv1d(x, w, padding=1, padding_mode="reflect"), dtype, (1, 2, 7), (2, 2, 3), roundings=4)


@dtypes
def test_dropout_and_limits(dtype):
    """What CuPy's own functions lack for bfloat16."""
    x = fc.Tensor(to_device(normal((4, 5), dtype)[0], "cuda"), requires_grad=True)
    fc.manual_seed(0)
    y = fc.dropout(x, 0.5)
    y.backward(to_device(np.ones((4, 5), dtype), "cuda"))
    kept = to_device(y.data, "cpu") != 0
    assert y.dtype == x.grad.dtype == dtype and 0 < kept.sum() < 20
    assert np.array_equal(to_device(x.grad, "cpu"), 2 * kept)
    check(lambda x: fc.Tensor.clip(x, min=-0.5), dtype, (3, 7))
    check(lambda x: fc.Tensor.clip(x, -0.5, 0.5), dtype, (3, 7))


@dtypes
def test_arithmetic_with_numbers(dtype):
    """NumPy and CuPy make float32 of bfloat16 and a Python float."""
    check(lambda x: 0.5 * x + 1.5, dtype, (3, 7), roundings=2)
    check(lambda x: (x * x + 1) ** 1.5 / 2.5, dtype, (3, 7), roundings=8)
    check(lambda x: x.var(), dtype, (3, 7), roundings=8)
    check(lambda x: x.mean(1), dtype, (3, 7), roundings=4)


@dtypes
def test_ignored_classes(dtype):
    for loss in (fc.nll_loss, fc.cross_entropy):
        target = to_device(np.array([0, 255, 1], "uint8"), "cuda")
        x = fc.Tensor(to_device(normal((3, 4), dtype)[0], "cuda"), requires_grad=True)
        y = loss(x, target, ignore_index=255)
        y.backward()
        assert y.dtype == x.grad.dtype == dtype
        assert not to_device(x.grad, "cpu")[1].any()


@dtypes
def test_a_network_learns(dtype):
    fc.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    model.to("cuda", dtype)
    x, target = to_device(normal((6, 2, 8), dtype)[0], "cuda"), to_device(np.arange(6) % 3, "cuda")
    for optimizer in (
        fc.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        fc.optim.Adam(model.parameters(), lr=0.01, eps=1e-3),
    ):
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = fc.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_the_cpu_refuses_and_says_what_to_do():
    model = nn.Linear(2, 2, dtype="float16")
    with pytest.raises(TypeError, match="linear: float16 input runs on the GPU only; convert first"):
        model(np.zeros((1, 2), "float16"))
