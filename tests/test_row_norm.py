"""Layer, group and instance normalisation: against plain loops, PyTorch, differences, and themselves."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tolerance
from differences import check_gradients
from expected import DTYPES

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads

EPS = 1e-5

# Shape of the input, and the operation: "layer" with the number of axes, "group" with groups, "instance".
CASES = [
    ((3, 5), "layer", 1),
    ((7,), "layer", 1),
    ((2, 3, 4, 5), "layer", 2),
    ((70, 33), "layer", 1),  # more than one block of rows
    ((5, 1), "layer", 1),  # one value: the bias
    ((3, 3, 50, 61), "layer", 3),  # rows that are cut into runs
    ((2, 40001), "layer", 1),
    ((2, 6), "group", 3),
    ((2, 6), "group", 6),  # one value
    ((3, 6, 5), "group", 2),
    ((2, 8, 7, 9), "group", 4),
    ((2, 4, 1, 1), "group", 2),
    ((2, 4, 3, 4, 5), "group", 1),
    ((2, 4, 140, 131), "group", 2),  # long rows of long planes
    ((2, 80, 23, 20), "group", 1),  # long rows of short planes
    ((3, 5, 8), "instance", None),
    ((2, 3, 6, 7), "instance", None),
    ((1, 2, 3, 4, 5), "instance", None),
    ((2, 2, 190, 180), "instance", None),  # long rows
]
SMALL = [case for case in CASES if np.prod(case[0]) < 500]

cases = pytest.mark.parametrize(("shape", "kind", "number"), CASES, ids=str)
small = pytest.mark.parametrize(("shape", "kind", "number"), SMALL, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def drawn(seed, shape, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def parameter_shape(shape, kind, number):
    return shape[-number:] if kind == "layer" else shape[1:2]


def apply(kind, number, x, weight=None, bias=None, eps=EPS):
    """The operation of a case."""
    if kind == "layer":
        return fc.layer_norm(x, x.shape[-number:], weight, bias, eps)
    if kind == "group":
        return fc.group_norm(x, number, weight, bias, eps)
    return fc.instance_norm(x, None, None, weight, bias, eps=eps)


def groups_of(shape, kind, number):
    """Rows for each sample, which have weights of their own."""
    return {"layer": 1, "group": number}.get(kind) or shape[1]


def expected(x, weight, bias, gy, kind, number, eps=EPS):
    """The oracle's result and gradients in their shapes."""
    groups = groups_of(x.shape, kind, number)
    rows = groups * x.shape[0] if kind != "layer" else x.size // weight.size
    tables = [a.reshape(groups, -1) for a in (weight, bias)]
    y, gx, gw, gb = reference.row_norm(x.reshape(rows, -1), *tables, gy.reshape(rows, -1), eps)
    return y.reshape(x.shape), gx.reshape(x.shape), gw.reshape(weight.shape), gb.reshape(bias.shape)


def computed(x, weight, bias, gy, kind, number, device):
    """Result and gradients as NumPy arrays."""
    tensors = [fc.Tensor(to_device(a, device), requires_grad=True) for a in (x, weight, bias)]
    y = apply(kind, number, *tensors)
    y.backward(to_device(gy, device))
    return [to_device(a, "cpu") for a in (y.data, *(tensor.grad for tensor in tensors))]


@dtypes
@cases
def test_result_and_gradients(shape, kind, number, dtype, device):
    x, gy = (drawn(0, shape) * 3 + 5).astype(dtype), drawn(1, shape, dtype)
    weight, bias = (drawn(seed, parameter_shape(shape, kind, number), dtype) for seed in (2, 3))
    actual = computed(x, weight, bias, gy, kind, number, device)
    wanted = expected(x, weight, bias, gy, kind, number)
    length = x.size // (groups_of(shape, kind, number) * shape[0]) if kind != "layer" else weight.size
    # The sums are float64; each result rounds a few times in its dtype, relative to the largest of its terms.
    allowed = 8 * np.finfo(dtype).eps + tolerance.relative(length, "float64")
    spread, least_std = (1, EPS**0.5) if length == 1 else (4, 1)
    largest = [np.abs(a).max() for a in (weight, bias, gy)]
    sizes = [
        spread * largest[0] + largest[1],
        np.abs(wanted[1]).max() + largest[0] * largest[2] / least_std,
        np.abs(wanted[2]).max() + spread * largest[2],
        np.abs(wanted[3]).max() + largest[2],
    ]
    for result, value, size in zip(actual, wanted, sizes, strict=True):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, value, rtol=0, atol=allowed * size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_hand(dtype, device):
    """Mean 3, standard deviation 2: no rounding anywhere."""
    row = np.array([1.0, 5.0, 1.0, 5.0], dtype)
    weight, bias = (to_device(np.array(a, dtype), device) for a in ([1, 2, 3, 4], [10, 20, 30, 40]))
    x = to_device(np.stack([row, row + 8, 10 - row]), device)
    y = to_device(fc.layer_norm(x, 4, weight, bias, eps=0.0), "cpu")
    assert y.tolist() == [[9, 22, 27, 44], [9, 22, 27, 44], [11, 18, 33, 36]]
    groups = to_device(fc.group_norm(x[:, :, None], 2, weight, bias, eps=0.0), "cpu")
    assert groups[..., 0].tolist() == [[9, 22, 27, 44], [9, 22, 27, 44], [11, 18, 33, 36]]
    instances = to_device(fc.instance_norm(x[None], None, None, eps=0.0), "cpu")
    assert instances[0].tolist() == [[-1, 1, -1, 1], [-1, 1, -1, 1], [1, -1, 1, -1]]


@small
def test_gradients_against_finite_differences(shape, kind, number):
    x = drawn(0, shape)
    weight, bias = (drawn(seed, parameter_shape(shape, kind, number)) for seed in (1, 2))
    check_gradients(lambda *t: apply(kind, number, *t, eps=1e-2), x, weight, bias)
    check_gradients(lambda t: apply(kind, number, t, eps=1e-2), x)
    check_gradients(lambda *t: apply(kind, number, *t, eps=1e-2), x, weight)
    check_gradients(lambda *t: apply(kind, number, t[0], None, t[1], eps=1e-2), x, bias)


@pytest.mark.parametrize("affine", [True, False])
@small
def test_against_torch(shape, kind, number, affine):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    x, gy = drawn(0, shape), drawn(1, shape)
    parameters = [drawn(seed, parameter_shape(shape, kind, number)) for seed in (2, 3)] if affine else []
    ours = [fc.Tensor(a, requires_grad=True) for a in (x, *parameters)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, *parameters)]
    y = apply(kind, number, *ours)
    functions = torch.nn.functional
    if kind == "layer":
        wanted = functions.layer_norm(theirs[0], shape[-number:], *theirs[1:])
    elif kind == "group":
        wanted = functions.group_norm(theirs[0], number, *theirs[1:])
    else:
        wanted = functions.instance_norm(theirs[0], None, None, *theirs[1:])
    y.backward(gy)
    wanted.backward(torch.tensor(gy))
    np.testing.assert_allclose(y.numpy(), wanted.detach().numpy(), rtol=1e-10, atol=1e-12)
    for mine, other in zip(ours, theirs):
        scale = np.abs(other.grad.numpy()).max()
        np.testing.assert_allclose(mine.grad, other.grad.numpy(), rtol=1e-9, atol=1e-11 * max(scale, 1))


@pytest.mark.parametrize("use_input_stats", [True, False])
def test_running_statistics_as_torch(use_input_stats, device):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    x, weight, bias = drawn(0, (3, 4, 5, 6)), drawn(1, 4), drawn(2, 4)
    statistics = [drawn(3, 4), drawn(4, 4) ** 2 + 0.5]
    theirs = [torch.tensor(a) for a in (x, *statistics, weight, bias)]
    wanted = torch.nn.functional.instance_norm(*theirs, use_input_stats, 0.3)
    ours = [to_device(a.copy(), device) for a in (x, *statistics, weight, bias)]
    y = fc.instance_norm(*ours, use_input_stats, 0.3)
    np.testing.assert_allclose(to_device(y, "cpu"), wanted.numpy(), rtol=1e-11, atol=1e-13)
    for mine, other in zip(ours[1:3], theirs[1:3]):
        np.testing.assert_allclose(to_device(mine, "cpu"), other.numpy(), rtol=1e-12)
    if use_input_stats:
        before = [to_device(a, "cpu").copy() for a in ours[1:3]]
        assert fc.instance_norm(ours[0][:0], *ours[1:]).shape == (0, 4, 5, 6)
        assert [to_device(a, "cpu").tolist() for a in ours[1:3]] == [a.tolist() for a in before]


@dtypes
@pytest.mark.parametrize(("shape", "kind", "number"), [case for case in CASES if 1 not in case[0]], ids=str)
def test_far_from_zero(shape, kind, number, dtype, device):
    """An offset that x holds exactly changes nothing but, in its last bits, the mean in float64."""
    offset = 2.0**20
    x = np.random.default_rng(0).integers(-32, 33, shape).astype(dtype) / 8
    gy, size = drawn(1, shape, dtype), parameter_shape(shape, kind, number)
    ones, zeros = np.ones(size, dtype), np.zeros(size, dtype)
    near, far = (computed(a, ones, zeros, gy, kind, number, device) for a in (x, x + np.asarray(offset, dtype)))
    for a, b in zip(near, far):
        allowed = (32 * np.finfo(dtype).eps + 4 * np.finfo("float64").eps * offset) * max(1, np.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=0, atol=allowed)


@dtypes
@cases
def test_any_number_of_threads(shape, kind, number, dtype, device, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    x, gy = drawn(0, shape, dtype), drawn(1, shape, dtype)
    weight, bias = (drawn(seed, parameter_shape(shape, kind, number), dtype) for seed in (2, 3))
    found = []
    for count in (1, 2, 3, 8, 1):
        fc.set_num_threads(count)
        found.append([a.tobytes() for a in computed(x, weight, bias, gy, kind, number, device)])
    for other in found[1:]:
        assert other == found[0]


@dtypes
@pytest.mark.parametrize(("shape", "kind", "number"), [c for c in CASES if len(c[0]) > (c[2] or 1)], ids=str)
def test_sample_alone_and_in_a_batch(shape, kind, number, dtype, device):
    weight, bias = (drawn(seed, parameter_shape(shape, kind, number), dtype) for seed in (2, 3))
    x, gy = drawn(0, (7, *shape[1:]), dtype), drawn(1, (7, *shape[1:]), dtype)
    alone = [a.tobytes() for a in computed(x[:1], weight, bias, gy[:1], kind, number, device)[:2]]
    for batch in (2, 7):
        for place in (0, batch - 1):
            order = np.roll(np.arange(batch), place)
            result = computed(x[order], weight, bias, gy[order], kind, number, device)[:2]
            assert [a[place].tobytes() for a in result] == alone


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "kind", "number"), [c for c in CASES if c[0][0] > 1 and 1 not in c[0]], ids=str)
def test_what_is_not_finite_stays_in_its_row(shape, kind, number, value, device):
    x, gy, size = drawn(0, shape, "float32"), drawn(1, shape, "float32"), parameter_shape(shape, kind, number)
    weight, bias = (drawn(seed, size, "float32") for seed in (2, 3))
    clean = computed(x, weight, bias, gy, kind, number, device)[:2]
    rows = -1, np.prod(size) if kind == "layer" else x[0].size // groups_of(shape, kind, number)
    if kind == "layer" and len(shape) == number:
        return
    x.reshape(rows)[1, 0] = value
    for actual, before in zip(computed(x, weight, bias, gy, kind, number, device)[:2], clean):
        actual, before = actual.reshape(rows), before.reshape(rows)
        assert np.isnan(actual[1]).all()
        assert np.array_equal(np.delete(actual, 1, 0), np.delete(before, 1, 0))


@pytest.mark.parametrize(
    ("shape", "kind", "number"), [((0, 3, 4), "layer", 1), ((2, 0, 4), "layer", 1), ((0, 4, 3), "group", 2),
                                  ((0, 3, 4), "instance", None), ((0, 4, 300, 300), "group", 2),
                                  ((0, 40000), "layer", 1)],
)  # fmt: skip
def test_empty_batch(shape, kind, number, device):
    size = parameter_shape(shape, kind, number)
    results = computed(np.zeros(shape), np.ones(size), np.ones(size), np.zeros(shape), kind, number, device)
    assert [a.shape for a in results] == [shape, shape, size, size]
    assert not any(a.any() for a in results[2:])


@small
def test_any_layout(shape, kind, number):
    """Reversed and strided views, read-only arrays, and parameters of any layout."""
    x, size = drawn(0, shape), parameter_shape(shape, kind, number)
    weight, bias = drawn(1, size), drawn(2, size)
    wanted = apply(kind, number, x, weight, bias)
    for view in (np.asfortranarray(x), np.flip(np.flip(x).copy()), np.repeat(x, 2, 0)[::2]):
        view.flags.writeable = False
        given = np.asfortranarray(weight), np.flip(np.flip(bias).copy())
        assert np.array_equal(apply(kind, number, view, *given), wanted)
    assert np.array_equal(x, drawn(0, shape))


def test_a_view_of_the_last_axes_as_cotangent(device):
    """As the sum of a result gives one: zero strides."""
    x = fc.Tensor(to_device(drawn(0, (4, 6)), device), requires_grad=True)
    bias = fc.Tensor(to_device(np.zeros(6), device), requires_grad=True)
    fc.layer_norm(x, 6, None, bias).sum().backward()
    assert to_device(bias.grad, "cpu").tolist() == [4] * 6
    np.testing.assert_allclose(to_device(x.grad, "cpu"), 0, atol=1e-12)


def test_only_what_is_wanted_gets_a_gradient(device):
    x, weight = (fc.Tensor(to_device(drawn(0, shape), device), requires_grad=True) for shape in ((3, 4, 5), (4,)))
    frozen = fc.Tensor(to_device(drawn(1, (4,)), device))
    fc.group_norm(x, 2, frozen, weight).sum().backward()
    assert frozen.grad is None and weight.grad.shape == (4,) and x.grad.shape == (3, 4, 5)
    assert type(fc.group_norm(x.data, 2)) is type(x.data)
