"""Tensor and the tape: every operation's gradient, the walk itself, and what it does with wrong calls."""

import gc
import threading
import weakref

import numpy as np
import pytest

from fastconv.autograd import Tensor, concatenate, is_grad_enabled, needs_grad, no_grad, raw, record, stack, to_device
from fastconv.backends.cpu import memory

MASK = np.arange(12).reshape(3, 4) % 3 == 1
ROWS = np.array([0, 2, 2, 0])

# name, function of the operands, shapes of the operands; all values are drawn from [0.2, 2), signs as in SIGNED
OPERATIONS = [
    ("add", lambda a, b: a + b, [(3, 4), (3, 4)]),
    ("add broadcast", lambda a, b: a + b, [(3, 1), (2, 1, 4)]),
    ("add number", lambda a: 2.5 + a, [(3, 4)]),
    ("subtract", lambda a, b: a - b, [(4,), (3, 4)]),
    ("subtract from number", lambda a: 1 - a, [(3, 4)]),
    ("multiply", lambda a, b: a * b, [(3, 4), (4,)]),
    ("multiply by itself", lambda a: a * a, [(3, 4)]),
    ("multiply by a single number's Tensor", lambda a, b: a * b, [(3, 4), ()]),
    ("divide", lambda a, b: a / b, [(3, 4), (3, 1)]),
    ("divide number", lambda a: 2 / a, [(3, 4)]),
    ("power", lambda a, b: a**b, [(3, 4), (4,)]),
    ("power of number", lambda a: 2.5**a, [(3, 4)]),
    ("square", lambda a: a**2, [(3, 4)]),
    ("power -1.5", lambda a: a**-1.5, [(3, 4)]),
    ("power 0", lambda a: a**0 + a, [(3, 4)]),
    ("negative", lambda a: -a, [(3, 4)]),
    ("exp", lambda a: a.exp(), [(3, 4)]),
    ("log", lambda a: a.log(), [(3, 4)]),
    ("sqrt", lambda a: a.sqrt(), [(3, 4)]),
    ("abs", lambda a: (a - 1).abs() + abs(a), [(3, 4)]),
    ("clip", lambda a: a.clip(0.5, 1.2), [(3, 4)]),
    ("clip below", lambda a: a.clip(min=0.5), [(3, 4)]),
    ("clip above", lambda a: a.clip(max=1.2), [(3, 4)]),
    ("reshape", lambda a: a.reshape(2, -1), [(3, 4)]),
    ("view", lambda a: a.view((4, 3)), [(3, 4)]),
    ("flatten", lambda a: a.flatten(1), [(2, 3, 4)]),
    ("flatten all", lambda a: a.flatten(), [(2, 3, 4)]),
    ("transpose", lambda a: a.transpose(0, -1), [(2, 3, 4)]),
    ("permute", lambda a: a.permute(1, -1, 0), [(2, 3, 4)]),
    ("T", lambda a: a.T, [(3, 4)]),
    ("squeeze", lambda a: a.squeeze(), [(3, 1, 4, 1)]),
    ("squeeze one", lambda a: a.squeeze(1), [(3, 1, 4, 1)]),
    ("unsqueeze", lambda a: a.unsqueeze(-1), [(3, 4)]),
    ("index int", lambda a: a[1], [(3, 4)]),
    ("index slices", lambda a: a[::2, 1:3], [(3, 4)]),
    ("index ellipsis", lambda a: a[..., None, -1], [(3, 4)]),
    ("index mask", lambda a: a[MASK], [(3, 4)]),
    ("index array", lambda a: a[ROWS], [(3, 4)]),
    ("index arrays", lambda a: a[ROWS, ROWS + 1], [(3, 4)]),
    ("sum", lambda a: a.sum(), [(3, 4)]),
    ("sum dim", lambda a: a.sum(1), [(3, 4)]),
    ("sum dims", lambda a: a.sum((0, -1), keepdim=True), [(2, 3, 4)]),
    ("mean", lambda a: a.mean(), [(3, 4)]),
    ("mean dim", lambda a: a.mean(-1), [(3, 4)]),
    ("mean dims", lambda a: a.mean((0, 2)), [(2, 3, 4)]),
    ("var", lambda a: a.var(), [(3, 4)]),
    ("var dim", lambda a: a.var(1, keepdim=True), [(3, 4)]),
    ("var biased", lambda a: a.var((0, 2), correction=0), [(2, 3, 4)]),
    ("max", lambda a: a.max(), [(3, 4)]),
    ("min", lambda a: a.min(), [(3, 4)]),
    ("max dim", lambda a: a.max(1)[0], [(3, 4)]),
    ("min dim", lambda a: a.min(0, keepdim=True)[0], [(3, 4)]),
    ("matmul", lambda a, b: a @ b, [(3, 4), (4, 2)]),
    ("matmul vector", lambda a, b: a @ b, [(3, 4), (4,)]),
    ("vector matmul", lambda a, b: a @ b, [(3,), (3, 4)]),
    ("dot", lambda a, b: a @ b, [(4,), (4,)]),
    ("matmul batch", lambda a, b: a @ b, [(2, 1, 3, 4), (5, 4, 2)]),
    ("matmul batch vector", lambda a, b: a @ b, [(2, 3, 4), (4,)]),
    ("used twice", lambda a, b: (a * b).exp() / (a * b + b), [(3, 4), (3, 4)]),
]


def operands(shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.uniform(0.2, 2, shape) for shape in shapes]


def gradients(function, arrays, cotangent):
    leaves = [Tensor(array.copy(), requires_grad=True) for array in arrays]
    function(*leaves).backward(cotangent)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize(("name", "function", "shapes"), OPERATIONS, ids=[row[0] for row in OPERATIONS])
def test_gradient_against_finite_differences(name, function, shapes):
    arrays = operands(shapes)
    y = function(*map(Tensor, arrays))
    generator = np.random.default_rng(1)
    cotangent = generator.standard_normal(y.shape)
    got = gradients(function, arrays, cotangent)
    for i, array in enumerate(arrays):
        assert got[i].shape == array.shape and got[i].dtype == array.dtype and got[i].flags.c_contiguous
        direction = generator.standard_normal(array.shape)
        step = 1e-5

        def shifted(distance, i=i, direction=direction):
            moved = [a + distance * direction if j == i else a for j, a in enumerate(arrays)]
            return float((function(*map(Tensor, moved)).data * cotangent).sum())

        difference = (shifted(step) - shifted(-step)) / (2 * step)
        # The slope is a sum of signed terms: relative to the size of its terms, not to what is left after cancellation.
        scale = np.abs(got[i] * direction).sum() + 1e-3
        assert abs((got[i] * direction).sum() - difference) <= 1e-6 * scale, name


@pytest.mark.parametrize(("name", "function", "shapes"), OPERATIONS, ids=[row[0] for row in OPERATIONS])
def test_value_and_gradient_against_torch(name, function, shapes):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    arrays = operands(shapes)
    theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = function(*theirs) if name != "T" else theirs[0].mT
    got = function(*map(Tensor, arrays))
    assert got.shape == tuple(expected.shape)
    np.testing.assert_allclose(got.data, expected.detach().numpy(), rtol=1e-13)
    cotangent = np.random.default_rng(1).standard_normal(got.shape)
    expected.backward(torch.tensor(cotangent))
    for mine, other in zip(gradients(function, arrays, cotangent), theirs, strict=True):
        np.testing.assert_allclose(mine, other.grad.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("join", [concatenate, stack])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_joining(join, axis):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    reference = {concatenate: torch.concatenate, stack: torch.stack}[join]
    arrays = operands([(2, 3), (2, 3)])
    ours = [Tensor(array, requires_grad=True) for array in arrays]
    theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
    y, expected = join(ours, axis), reference(theirs, axis)
    np.testing.assert_array_equal(y.data, expected.detach().numpy())
    cotangent = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.grad, other.grad.numpy())


def test_matmul_of_swapped_bytes_and_odd_strides():
    a, b = operands([(5, 4), (4, 6)])
    for left in (a.astype(">f8"), a[::-1][::-1], np.asfortranarray(a), np.repeat(a, 2, axis=1)[:, ::2]):
        for right in (b.astype(">f8"), b[:, ::-1][:, ::-1], np.asfortranarray(b)):
            np.testing.assert_allclose((Tensor(left) @ right).data, a @ b, rtol=1e-14)


def test_joining_on_each_device(device):
    arrays = [np.arange(n * 6.0, dtype=dtype).reshape(2, n, 3) for n, dtype in ((1, "float32"), (4, "float64"))]
    ours = [Tensor(to_device(array, device), requires_grad=True) for array in arrays]
    y = concatenate(ours, -2)
    np.testing.assert_array_equal(y.numpy(), np.concatenate(arrays, -2), strict=True)
    y.backward(to_device(y.numpy(), device))
    for tensor, array in zip(ours, arrays):
        np.testing.assert_array_equal(to_device(tensor.grad, "cpu"), array, strict=True)
    np.testing.assert_array_equal(stack([ours[0], ours[0]], 1).numpy(), np.stack([arrays[0]] * 2, 1), strict=True)


def test_joining_arrays_gives_an_array():
    assert isinstance(concatenate([np.ones((2, 2)), np.ones((1, 2))]), np.ndarray)
    assert concatenate(np.ones((3, 2))).shape == (6,)  # an array of arrays, as np.concatenate takes
    assert isinstance(stack([np.ones(2), Tensor(np.ones(2))]), Tensor)
    unequal = [Tensor(np.ones((1, 2), np.float32), requires_grad=True), np.ones((3, 2))]
    concatenate(unequal).sum().backward()
    np.testing.assert_array_equal(unequal[0].grad, np.ones((1, 2), np.float32), strict=True)


EDGES = [  # operation at points where a formula could give NaN or choose differently: value of x, function
    ("power at 0", [0.0, 1.0, -2.0], lambda x: x**2),
    ("power 0 at 0", [0.0, 2.0], lambda x: x**0),
    ("power 1 at 0", [0.0, 2.0], lambda x: x**1),
    ("clip on the limits", [0.0, 0.5, 1.0], lambda x: x.clip(0.0, 1.0)),
    ("abs at 0", [0.0, -1.0], lambda x: x.abs()),
    ("max with ties", [1.0, 3.0, 3.0, 2.0], lambda x: x.max()),
    ("min with ties", [1.0, 1.0, 3.0], lambda x: x.min()),
    ("max along with ties", [[1.0, 3.0, 3.0]], lambda x: x.max(1)[0]),
    ("max with NaN", [1.0, float("nan"), 3.0], lambda x: x.max()),
    ("max along with NaN", [[1.0, float("nan"), 3.0]], lambda x: x.max(1)[0]),
    ("log at 0", [0.0, 1.0], lambda x: x.log()),
    ("sqrt at 0", [0.0, 1.0], lambda x: x.sqrt()),
]


@pytest.mark.parametrize(("name", "values", "function"), EDGES, ids=[row[0] for row in EDGES])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_edges_agree_with_torch(name, values, function):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    mine, other = Tensor(np.array(values), requires_grad=True), torch.tensor(values, requires_grad=True)
    y, expected = function(mine), function(other)
    y.backward(np.ones(y.shape))
    expected.backward(torch.ones_like(expected))
    np.testing.assert_array_equal(y.data, expected.detach().numpy(), err_msg=name)
    np.testing.assert_array_equal(mine.grad, other.grad.numpy(), err_msg=name)


def test_exponent_gradient_at_base_zero():
    base, exponent = np.zeros(2), Tensor(np.array([0.0, 2.0]), requires_grad=True)
    (base**exponent).sum().backward()
    np.testing.assert_array_equal(exponent.grad, [0.0, 0.0])


def test_winners_along_an_axis():
    x = Tensor(np.array([[1.0, 5.0, 5.0], [7.0, 2.0, 0.0]]))
    assert x.max(1).indices.data.tolist() == [1, 0]
    assert x.min(0).indices.data.tolist() == [0, 1, 1]
    assert x.max(1, keepdim=True).values.shape == (2, 1)
    assert x.argmax().item() == 3 and x.argmax(1).data.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, x: a + x, np.float32),
        (lambda a, x: x - a, np.float32),
        (lambda a, x: a @ x, np.float32),
        (lambda a, x: a.astype("float64") @ x, np.float64),
        (lambda a, x: np.float64(2) * x, np.float32),
        (lambda a, x: x * 2, np.float32),
        (lambda a, x: x + np.arange(3), np.float32),
        (lambda a, x: np.arange(3) + x, np.float32),
        (lambda a, x: x * (x > 0), np.float32),
        (lambda a, x: x.sum(), np.float32),
        (lambda a, x: x.mean(), np.float32),
        (lambda a, x: x + np.ones(3), np.float64),
        (lambda a, x: x < a, np.bool_),
        (lambda a, x: a == x, np.bool_),
        (lambda a, x: x.to(dtype="float64"), np.float64),
    ],
)
def test_arrays_and_numbers_beside_a_tensor(function, expected):
    x = Tensor(np.ones((3, 3), np.float32), requires_grad=True)
    y = function(np.full((3, 3), 2, np.float32), x)
    assert isinstance(y, Tensor) and y.dtype == expected
    if y.requires_grad:
        y.sum().backward()
        assert x.grad.dtype == np.float32 and x.grad.shape == (3, 3)


def test_ten_thousand_operations_need_no_recursion():
    x = Tensor(np.ones(2), requires_grad=True)
    y = x
    for _ in range(10_000):
        y = y * 1.0 + 0.0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1.0, 1.0])
    for _ in range(30_000):  # letting go of a long graph that was never walked must not recurse either
        x = x + 1.0
    del x, y
    gc.collect()


def test_wide_reuse_is_summed_once_per_use():
    x = Tensor(np.array(3.0), requires_grad=True)
    y = x
    for _ in range(30):  # 2^30 paths, 30 nodes
        y = y + y
    y.backward()
    assert x.grad == 2.0**30


def test_cotangents_are_released_during_the_walk():
    alive, most = set(), 0

    def step(x):
        def backward(gy):
            nonlocal most
            gx = gy + 1
            key = id(gx)
            alive.add(key)
            weakref.finalize(gx, alive.discard, key)
            most = max(most, len(alive))
            return (gx,)

        return record(raw(x) + 1, (x,), backward)

    x = Tensor(np.zeros(1), requires_grad=True)
    y = x
    for _ in range(50):
        y = step(y)
    y.backward()
    assert x.grad == 51 and most <= 3


def test_arrays_that_no_gradient_needs_are_not_kept():
    x = Tensor(np.ones(3), requires_grad=True)
    middle = x + 1
    kept = weakref.ref(middle.data)
    y = middle + 1
    del middle
    assert kept() is None and y.requires_grad


def test_gradients_accumulate_in_memory_of_their_own():
    a, b = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    seed = np.ones(3)
    (a + b).backward(seed)
    a.grad *= 5
    assert b.grad.tolist() == [1, 1, 1] and seed.tolist() == [1, 1, 1]
    (a * 2).sum().backward()
    assert a.grad.tolist() == [7, 7, 7]
    c = Tensor(np.ones((2, 3)), requires_grad=True)
    c.sum().backward()
    assert c.grad.flags.writeable and c.grad.base is None


def test_the_gradient_of_a_large_leaf_is_not_copied():
    made = []

    def backward(gy):
        made.append(memory.empty(gy.shape, gy.dtype))
        made[0][:] = 2 * gy
        return (made[0],)

    x = Tensor(np.ones(1 << 20), requires_grad=True)
    record(2 * x.data, (x,), backward).backward(np.ones(1 << 20))
    assert x.grad is made[0] and made[0].base is not None  # it lies on a block of the backend's memory


@pytest.mark.parametrize("size", [3, 1 << 20])
def test_a_cotangent_that_is_handed_on_stays_the_callers(size):
    for operation in (lambda x: x + 0, lambda x: x.reshape(size, 1).reshape(size), lambda x: x):
        x, seed = Tensor(np.ones(size), requires_grad=True), np.ones(size)
        operation(x).backward(seed)
        x.grad *= 5
        assert (x.grad == 5).all() and (seed == 1).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_sums_are_those_of_numpy(dtype, device):
    a, b = (np.random.default_rng(i).standard_normal((3, 5, 70_001)).astype(dtype) for i in range(2))
    x, y = (Tensor(to_device(array, device), requires_grad=True) for array in (a, b))
    for left, right, expected in [(x, y, a + b), (x, y[:1], a + b[:1]), (x, 2, a + 2), (2, x, a + 2), (x, x, a + a)]:
        np.testing.assert_array_equal((left + right).numpy(), expected)
    turned = x.transpose(0, 2)
    np.testing.assert_array_equal((turned + turned).numpy(), 2 * a.T)
    (x + y + x).backward(to_device(a, device))
    np.testing.assert_array_equal(to_device(x.grad, "cpu"), a + a)


def test_no_grad():
    x = Tensor(np.ones(2), requires_grad=True)

    @no_grad()
    def inside():
        with no_grad():
            assert not needs_grad(x)
        return x * 2, is_grad_enabled()

    y, enabled = inside()
    assert not y.requires_grad and not enabled and is_grad_enabled() and needs_grad(x)
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert is_grad_enabled()


def test_no_grad_holds_for_its_own_thread_only():
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append(is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_record_passes_arrays_through():
    y = np.ones(2)
    assert record(y, (y, None), lambda gy: (gy, None)) is y
    x = Tensor(y)
    assert isinstance(record(y, (x, None), lambda gy: (gy, None)), Tensor)
    assert not record(y, (Tensor(y, requires_grad=True),), None).requires_grad


def test_backward_reaches_only_what_requires_a_gradient():
    a, b = Tensor(np.ones(2), requires_grad=True), Tensor(np.ones(2))
    (a * b).sum().backward()
    assert a.grad.tolist() == [1, 1] and b.grad is None
    a.requires_grad = False  # frozen
    assert not (a * b).requires_grad
    detached = (Tensor(np.ones(2), requires_grad=True) * 3).detach()
    assert not detached.requires_grad and detached.data.tolist() == [3, 3]


def test_a_second_walk_changes_nothing():
    x = Tensor(np.ones(2), requires_grad=True)
    shared = x * 3
    shared.sum().backward()
    before = x.grad.copy()
    with pytest.raises(RuntimeError, match="already walked and is freed; compute the result again"):
        (shared.exp() + x).sum().backward()
    np.testing.assert_array_equal(x.grad, before)


def test_leaf_backward():
    x = Tensor(np.array(2.0), requires_grad=True)
    x.backward()
    assert x.grad == 1


def leaf():
    return Tensor(np.ones((2, 3)), requires_grad=True)


BAD_CALLS = [
    (lambda: Tensor(np.ones(2)).backward(), RuntimeError, "backward: nothing was recorded for this Tensor"),
    (lambda: (leaf() * 2).backward(), ValueError, r"backward: a result of shape \(2, 3\) needs its cotangent"),
    (
        lambda: (leaf() * 2).backward(np.ones(3)),
        ValueError,
        r"backward: gradient has shape \(3,\), the result it belongs to \(2, 3\)",
    ),
    (
        lambda: leaf().item(),
        ValueError,
        r"item: only a Tensor with one element is a number, this one has shape \(2, 3\)",
    ),
    (lambda: Tensor(np.ones(2, int), requires_grad=True), TypeError, "only floating arrays have gradients, got int64"),
    (lambda: Tensor(np.ones(2, complex)), TypeError, "Tensor: dtype complex128 is not supported"),
    (lambda: Tensor("text"), TypeError, "Tensor: dtype <U4 is not supported"),
    (lambda: leaf().to("gpu"), ValueError, 'device must be "cpu", "cuda" or "cuda:1"'),
    (lambda: leaf() @ leaf(), ValueError, r"matmul: the last axis of the left .* got shapes \(2, 3\) and \(2, 3\)"),
    (lambda: leaf() @ np.ones(2), ValueError, r"got shapes \(2, 3\) and \(2,\)"),
    (lambda: leaf() @ np.array(2.0), ValueError, r"got shapes \(2, 3\) and \(\)"),
    (lambda: leaf() @ 2, TypeError, "matmul: both factors must be float32 or float64, got float64 and int"),
    (lambda: Tensor(np.ones((2, 2), int)) @ np.ones((2, 2), int), TypeError, "got int64 and int64"),
    (lambda: leaf() @ np.ones((3, 2), np.float16), TypeError, "got float64 and float16"),
    (lambda: concatenate([]), ValueError, "concatenate: at least one array is needed, got none"),
    (lambda: concatenate(np.ones((0, 2))), ValueError, "at least one array is needed, got none"),
    (lambda: stack([]), ValueError, "at least one array is needed, got none"),
    (
        lambda: concatenate([leaf(), np.ones((2, 2, 2))]),
        ValueError,
        r"all sizes but that of axis 0 must agree, got shapes \(2, 3\) and \(2, 2, 2\)",
    ),
    (lambda: np.exp(leaf()), TypeError, "does not support ufuncs"),
    (lambda: np.asarray(leaf()), TypeError, "NumPy would lose a Tensor's gradient"),
    (lambda: np.concatenate([leaf() * 2, np.ones((2, 3))]), TypeError, r"x.numpy\(\) for values"),
]


@pytest.mark.parametrize(("call", "kind", "text"), BAD_CALLS)
def test_bad_calls(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert len(caught.value.args) == 1 and isinstance(caught.value.args[0], str)


def test_what_a_tensor_tells():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    assert (x.shape, x.ndim, x.size(), x.size(1), x.numel(), len(x)) == ((2, 3), 2, (2, 3), 3, 6, 2)
    assert x.dtype == np.float64 and x.device == "cpu" and x.to("cpu") is x
    assert x.numpy() is x.data and np.asarray(x) is x.data and np.array(x) is not x.data
    with no_grad():
        assert np.asarray(leaf()).tolist() == leaf().detach().numpy().tolist()
    assert [row.shape for row in x] == [(3,), (3,)]
    assert float(x[0, 1]) == 1.0 and int(x[1, 0]) == 3 and bool(x[0, 1])
    assert f"{x[0, 1]:.2f}" == "1.00" and f"{x[0, 1]}" == str(x[0, 1]) == "Tensor(1., dtype=float64)"
    assert repr(Tensor(np.ones(2), requires_grad=True)) == "Tensor([1., 1.], dtype=float64, requires_grad=True)"
    assert x in {x} and (x != x).data.sum() == 0 and (x >= 3).data.sum() == 3 and (x <= 3).data.sum() == 4


def test_concurrent_graphs():
    results = {}

    def work(seed):
        x = Tensor(np.random.default_rng(seed).standard_normal((20, 20)), requires_grad=True)
        for _ in range(20):
            x.grad = None
            ((x * x).exp() + x).sum().backward()
        results[seed] = x

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x in results.values():
        np.testing.assert_allclose(x.grad, 2 * x.data * np.exp(x.data**2) + 1)
    assert len(results) == 8
