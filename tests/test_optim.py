"""Optimisers and schedules step by step against PyTorch, their states, and their refusals."""

import copy
import math

import numpy as np
import pytest

import fastconv as fc
from fastconv.autograd import Tensor
from fastconv.backends import threads
from fastconv.optim import SGD, Adam, AdamW, CosineAnnealingLR, StepLR

SHAPES = [(3, 4), (4,), ()]

UPDATES = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "weight_decay": 0.01}),
    (SGD, {"lr": 0.05, "momentum": 0.9}),
    (SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.02}),
    (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    (Adam, {}),
    (Adam, {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    (AdamW, {"lr": 0.03}),
    (AdamW, {"lr": 0.03, "betas": (0.5, 0.9), "weight_decay": 0.2}),
]


def leaves(seed=0):
    generator = np.random.default_rng(seed)
    return [Tensor(np.asarray(generator.standard_normal(shape)), requires_grad=True) for shape in SHAPES]


def draw_gradients(parameters, generator):
    for parameter in parameters:
        parameter.grad = np.asarray(generator.standard_normal(parameter.shape))


def describe(row):
    kind, options = row[:2]
    return f"{kind.__name__} {options}"


@pytest.mark.parametrize(("kind", "options"), UPDATES, ids=map(describe, UPDATES))
def test_twenty_steps_as_torch(kind, options):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    ours = leaves()
    theirs = [torch.tensor(leaf.data, requires_grad=True) for leaf in ours]
    optimizer, reference = kind(ours, **options), getattr(torch.optim, kind.__name__)(theirs, **options)
    generator = np.random.default_rng(1)
    for step in range(20):
        draw_gradients(ours, generator)
        for mine, other in zip(ours, theirs, strict=True):
            other.grad = torch.tensor(mine.grad)
        if step == 7:  # a parameter without gradient is passed over, and its state waits
            ours[1].grad = theirs[1].grad = None
        optimizer.step()
        reference.step()
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.data, other.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), UPDATES, ids=map(describe, UPDATES))
def test_same_bits_for_any_number_of_threads(kind, options, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    results = []
    for number in (1, 2, 3, 8):
        fc.set_num_threads(number)
        generator = np.random.default_rng(4)
        parameter = Tensor(generator.standard_normal(1003).astype(dtype), requires_grad=True)
        optimizer = kind([parameter], **options)
        for _ in range(3):
            parameter.grad = generator.standard_normal(1003).astype(dtype)
            optimizer.step()
        results.append(parameter.data.tobytes())
    assert results[1:] == results[:1] * 3


@pytest.mark.parametrize(("kind", "options"), UPDATES, ids=map(describe, UPDATES))
def test_a_step_of_many_parameters_is_that_of_each_alone(kind, options, monkeypatch):
    """Whatever their sizes and dtypes, wherever the threads cut, and though one of them lags behind."""
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    fc.set_num_threads(3)
    generator = np.random.default_rng(6)
    shapes = [(5,), (0,), (40, 3), (1,), (), (7, 11), (200,)]
    values = [generator.standard_normal(s).astype(("f4", "f8")[i % 2]) for i, s in enumerate(shapes)]
    together, alone = ([Tensor(v.copy(), requires_grad=True) for v in values] for _ in range(2))
    optimizers = [kind(together, **options), *(kind([parameter], **options) for parameter in alone)]
    for step in range(3):
        draw_gradients(together, generator)
        for one, other in zip(together, alone, strict=True):
            other.grad = one.grad
        if step == 0:
            together[2].grad = alone[2].grad = None
        for optimizer in optimizers:
            optimizer.step()
    assert [t.data.tobytes() for t in together] == [t.data.tobytes() for t in alone]


@pytest.mark.parametrize(("kind", "options"), UPDATES, ids=map(describe, UPDATES))
def test_parameters_and_gradients_in_any_layout_and_dtype(kind, options):
    """Changed in place where they lie, whether or not a kernel can take them as they are."""
    generator = np.random.default_rng(5)
    values, gradients = (generator.standard_normal((6, 8)).astype("float32") for _ in range(2))
    for place, gradient in [
        (np.zeros((8, 6), "float32").T, gradients),
        (np.zeros((12, 8), "float32")[::2], gradients.astype("float64")),
        (np.zeros((6, 8), ">f4"), np.asfortranarray(gradients)),
    ]:
        plain, odd = Tensor(values.copy(), requires_grad=True), Tensor(place, requires_grad=True)
        place[...] = values
        gradient.flags.writeable = False
        for parameter, given in ((plain, gradients), (odd, gradient)):
            parameter.grad = given
            optimizer = kind([parameter], **options)
            optimizer.step()
            optimizer.step()
        assert odd.data is place
        np.testing.assert_array_equal(place, plain.data)


@pytest.mark.parametrize(("kind", "options"), [(SGD, {}), (SGD, {"momentum": 0.9}), (Adam, {})])
def test_no_decay_leaves_an_infinite_parameter_infinite(kind, options):
    parameter = Tensor(np.array([np.inf, 1.0], "float32"), requires_grad=True)
    optimizer = kind([parameter], **options)
    for _ in range(2):
        parameter.grad = np.ones(2, "float32")
        optimizer.step()
    assert parameter.data[0] == np.inf


def test_groups_as_torch():
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    ours = leaves()
    theirs = [torch.tensor(leaf.data, requires_grad=True) for leaf in ours]

    def groups(parameters):
        return [{"params": parameters[:1]}, {"params": iter(parameters[1:]), "lr": 0.5, "weight_decay": 0.1}]

    optimizer = SGD(groups(ours), lr=0.01, momentum=0.5)
    reference = torch.optim.SGD(groups(theirs), lr=0.01, momentum=0.5)
    generator = np.random.default_rng(1)
    for _ in range(3):
        draw_gradients(ours, generator)
        for mine, other in zip(ours, theirs, strict=True):
            other.grad = torch.tensor(mine.grad)
        optimizer.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.data, other.detach().numpy(), rtol=1e-12)


SCHEDULES = [
    (StepLR, {"step_size": 3}),
    (StepLR, {"step_size": 5, "gamma": 0.5}),
    (CosineAnnealingLR, {"T_max": 20}),
    (CosineAnnealingLR, {"T_max": 7, "eta_min": 0.01}),
]


@pytest.mark.parametrize(("kind", "options"), SCHEDULES, ids=map(describe, SCHEDULES))
def test_schedule_as_torch(kind, options):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    ours = leaves()
    theirs = [torch.tensor(leaf.data, requires_grad=True) for leaf in ours]

    def groups(parameters):
        return [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}]

    optimizer, reference = SGD(groups(ours), lr=0.1), torch.optim.SGD(groups(theirs), lr=0.1)
    schedule = kind(optimizer, **options)
    expected = getattr(torch.optim.lr_scheduler, kind.__name__)(reference, **options)
    for _ in range(20):
        np.testing.assert_allclose(schedule.get_last_lr(), expected.get_last_lr(), rtol=1e-12, atol=1e-15)
        reference.step()  # torch warns otherwise
        schedule.step()
        expected.step()


def test_rates_are_what_the_formulas_say():
    optimizer = SGD(leaves(), lr=1.0)
    schedule = StepLR(optimizer, 2, 0.1)
    rates = []
    for _ in range(5):
        rates += schedule.get_last_lr()
        schedule.step()
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    schedule = CosineAnnealingLR(SGD(leaves(), lr=1.0), 4)
    rates = []
    for _ in range(5):
        rates += schedule.get_last_lr()
        schedule.step()
    half = math.sqrt(0.5)
    assert rates == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2, 0])


@pytest.mark.parametrize(("kind", "options"), UPDATES, ids=map(describe, UPDATES))
def test_resuming_from_a_state_continues_bit_for_bit(kind, options):
    def run(steps, parameters, optimizer, schedule, generator):
        for _ in range(steps):
            draw_gradients(parameters, generator)
            optimizer.step()
            schedule.step()

    def fresh(parameters):
        optimizer = kind(parameters, **options)
        return optimizer, StepLR(optimizer, 3)

    whole, generator = leaves(), np.random.default_rng(2)
    run(9, whole, *fresh(whole), generator)

    first, generator = leaves(), np.random.default_rng(2)
    optimizer, schedule = fresh(first)
    run(4, first, optimizer, schedule, generator)
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    second = [Tensor(leaf.data.copy(), requires_grad=True) for leaf in first]
    optimizer, schedule = fresh(second)
    optimizer.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    run(5, second, optimizer, schedule, generator)
    for mine, expected in zip(second, whole, strict=True):
        np.testing.assert_array_equal(mine.data, expected.data)


def test_a_loaded_state_is_a_copy():
    parameters = leaves()
    optimizer = SGD(parameters, momentum=0.9)
    draw_gradients(parameters, np.random.default_rng(0))
    optimizer.step()
    saved = optimizer.state_dict()
    other = SGD(leaves(), momentum=0.9)
    other.load_state_dict(saved)
    draw_gradients(parameters, np.random.default_rng(0))
    before = saved["state"][0]["momentum_buffer"].copy()
    for parameter in other.param_groups[0]["params"]:
        parameter.grad = np.ones(parameter.shape)
    other.step()
    np.testing.assert_array_equal(saved["state"][0]["momentum_buffer"], before)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_float32_stays_float32_and_gradients_stay_as_they_are(kind):
    x = Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    array = x.data
    optimizer = kind([x], lr=0.1, weight_decay=0.1, **({"momentum": 0.9} if kind is SGD else {}))
    for _ in range(3):
        x.grad = np.full((2, 2), 0.5, np.float32)
        optimizer.step()
        assert (x.grad == 0.5).all()
    assert x.data is array and x.dtype == np.float32
    arrays = [value for value in optimizer.state[x].values() if isinstance(value, np.ndarray)]
    assert arrays and all(value.dtype == np.float32 for value in arrays)
    optimizer.zero_grad()
    assert x.grad is None


X = Tensor(np.ones(2), requires_grad=True)


def mismatched_group_sizes():
    SGD([X]).load_state_dict(SGD(leaves()).state_dict())


def mismatched_shapes():
    parameter = Tensor(np.ones(3), requires_grad=True)
    parameter.grad = np.ones(3)
    source = SGD([parameter], momentum=0.9)
    source.step()
    SGD([X], momentum=0.9).load_state_dict(source.state_dict())


def mismatched_gradient():
    parameter = Tensor(np.ones((3, 4)), requires_grad=True)
    parameter.grad = np.ones(4)
    SGD([parameter]).step()


REFUSALS = [
    (mismatched_gradient, ValueError, r"SGD: a parameter of shape \(3, 4\) has a gradient of shape \(4,\)"),
    (lambda: SGD([]), ValueError, r"SGD: no parameters given; pass model.parameters\(\)"),
    (lambda: SGD([X, X]), ValueError, "SGD: a parameter was given twice"),
    (lambda: SGD([np.ones(2)]), TypeError, "SGD: parameters must be Tensors, got ndarray"),
    (lambda: SGD([{"params": [X], "rate": 1}]), ValueError, 'SGD: a group needs "params" and may have lr, momentum'),
    (lambda: SGD([{"lr": 1}]), ValueError, 'SGD: a group needs "params"'),
    (lambda: SGD([X], lr=-1), ValueError, "SGD: lr must be at least 0, got -1"),
    (lambda: SGD([{"params": [X], "lr": -1}]), ValueError, "SGD: lr must be at least 0, got -1"),
    (lambda: SGD([X], momentum=-1), ValueError, "SGD: momentum must be at least 0, got -1"),
    (lambda: SGD([X], nesterov=True), ValueError, "SGD: nesterov=True needs a momentum > 0 and no dampening"),
    (lambda: Adam([X], betas=(0.9, 1.0)), ValueError, r"Adam: betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
    (lambda: AdamW([X], weight_decay=-1), ValueError, "AdamW: weight_decay must be at least 0, got -1"),
    (lambda: Adam([X], eps=-1), ValueError, "Adam: eps must be at least 0, got -1"),
    (lambda: StepLR(SGD([X]), 0), ValueError, "StepLR: step_size must be at least 1, got 0"),
    (lambda: CosineAnnealingLR(SGD([X]), 0), ValueError, "CosineAnnealingLR: T_max must be at least 1, got 0"),
    (
        lambda: SGD([X]).load_state_dict(Adam([X]).state_dict()),
        ValueError,
        "SGD.load_state_dict: the state is of another optimiser, without momentum, dampening, nesterov",
    ),
    (
        lambda: Adam([X]).load_state_dict(SGD([X]).state_dict()),
        ValueError,
        "Adam.load_state_dict: the state is of another optimiser, without betas, eps",
    ),
    (mismatched_group_sizes, ValueError, r"the state has groups of \[3\] parameters, this optimiser of \[1\]"),
    (mismatched_shapes, ValueError, r"momentum_buffer has shape \(3,\), its parameter \(2,\)"),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSALS)
def test_refusals(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert len(caught.value.args) == 1 and isinstance(caught.value.args[0], str)
