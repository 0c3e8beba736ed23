"""Modules: what they compute and how they differentiate (against PyTorch), what they hold, and how they are saved."""

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest

from fastconv import nn, optim, random
from fastconv.autograd import Tensor, no_grad, to_device

CLASSES = np.array([1, 0, 3, 2])

# expression to build the module (in fastconv.nn and in torch.nn alike), shape of the input
LAYERS = [
    ("Conv1d(3, 4, 3)", (2, 3, 9)),
    ("Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)", (2, 4, 11)),
    ("Conv1d(3, 4, 4, padding='same', padding_mode='circular')", (2, 3, 9)),
    ("Conv2d(3, 4, (3, 2), (2, 1), (1, 0))", (2, 3, 7, 6)),
    ("Conv2d(4, 4, 3, padding=2, groups=4, padding_mode='reflect')", (2, 4, 5, 6)),
    ("Conv2d(2, 3, 3, padding='valid', padding_mode='replicate')", (2, 2, 5, 6)),
    ("Conv2d(2, 3, 3, padding=(1, 2), padding_mode='replicate')", (2, 2, 5, 6)),
    ("Conv2d(2, 3, 1)", (2, 5, 6)),
    ("Conv3d(2, 3, 2, padding=1, dilation=2)", (1, 2, 4, 5, 3)),
    ("ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1)", (2, 3, 5)),
    ("ConvTranspose2d(4, 6, (3, 2), (2, 1), groups=2, dilation=2)", (2, 4, 3, 4)),
    ("ConvTranspose3d(2, 3, 2, stride=2, bias=False)", (1, 2, 2, 3, 2)),
    ("Linear(5, 3)", (4, 5)),
    ("Linear(5, 3, bias=False)", (2, 4, 5)),
    ("BatchNorm1d(3)", (4, 3)),
    ("BatchNorm1d(3, affine=False)", (4, 3, 5)),
    ("BatchNorm2d(3, momentum=0.3, eps=1e-3)", (2, 3, 4, 5)),
    ("BatchNorm2d(3, momentum=None)", (2, 3, 4, 5)),
    ("BatchNorm3d(3, track_running_stats=False)", (2, 3, 2, 4, 5)),
    ("InstanceNorm1d(3)", (2, 3, 5)),
    ("InstanceNorm1d(3, affine=True)", (3, 5)),
    ("InstanceNorm2d(3, affine=True, track_running_stats=True)", (2, 3, 4, 5)),
    ("InstanceNorm2d(3, momentum=None, track_running_stats=True)", (3, 4, 5)),
    ("InstanceNorm3d(2, eps=1e-3, momentum=0.3, track_running_stats=True)", (3, 2, 2, 3, 4)),
    ("GroupNorm(2, 6)", (2, 6, 4, 5)),
    ("GroupNorm(3, 6, eps=1e-3, affine=False)", (4, 6)),
    ("GroupNorm(1, 4)", (2, 4, 2, 3, 4)),
    ("LayerNorm(5)", (2, 3, 5)),
    ("LayerNorm((3, 5), eps=1e-3)", (4, 3, 5)),
    ("LayerNorm((5,), elementwise_affine=False)", (4, 5)),
    ("LayerNorm(5, bias=False)", (5,)),
    ("MaxPool1d(2)", (2, 3, 9)),
    ("MaxPool2d(3, stride=2, padding=1)", (2, 3, 9, 7)),
    ("MaxPool2d((2, 3), dilation=2, ceil_mode=True)", (2, 3, 9, 8)),
    ("MaxPool3d(2)", (1, 2, 4, 5, 6)),
    ("AvgPool1d(3, 2, 1)", (2, 3, 9)),
    ("AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)", (2, 3, 8, 7)),
    ("AvgPool2d(2, divisor_override=3)", (2, 3, 8, 7)),
    ("AvgPool3d(2)", (1, 2, 4, 5, 6)),
    ("AdaptiveAvgPool1d(4)", (2, 3, 9)),
    ("AdaptiveAvgPool2d((1, None))", (2, 3, 8, 7)),
    ("AdaptiveAvgPool3d(2)", (1, 2, 4, 5, 6)),
    ("AdaptiveMaxPool1d(4)", (2, 3, 9)),
    ("AdaptiveMaxPool2d(3)", (2, 3, 8, 7)),
    ("AdaptiveMaxPool3d((1, 2, 3))", (1, 2, 4, 5, 6)),
    ("Upsample(scale_factor=2)", (2, 3, 5)),
    ("Upsample((4, 7), mode='bilinear', align_corners=True)", (2, 3, 6, 5)),
    ("Upsample(scale_factor=(1.5, 2, 0.5), mode='trilinear')", (1, 2, 4, 3, 6)),
    ("Upsample(scale_factor=1.7, mode='bicubic', recompute_scale_factor=True)", (2, 3, 6, 5)),
    ("Upsample(3, mode='area')", (2, 3, 7)),
    ("UpsamplingNearest2d(scale_factor=2)", (2, 3, 4, 5)),
    ("UpsamplingBilinear2d((9, 4))", (2, 3, 4, 5)),
    ("ReLU()", (3, 4)),
    ("LeakyReLU(0.2)", (3, 4)),
    ("ELU(0.7)", (3, 4)),
    ("SELU()", (3, 4)),
    ("GELU()", (3, 4)),
    ("GELU(approximate='tanh')", (3, 4)),
    ("SiLU()", (3, 4)),
    ("Sigmoid()", (3, 4)),
    ("Tanh()", (3, 4)),
    ("Softmax(dim=1)", (3, 4, 5)),
    ("LogSoftmax(dim=-1)", (3, 4)),
    ("Dropout(0.0)", (3, 4)),
    ("Flatten()", (3, 4, 5)),
    ("Flatten(0, -2)", (3, 4, 5)),
    ("Identity()", (3, 4)),
]

LOSSES = [
    ("CrossEntropyLoss()", (4, 5), CLASSES),
    ("CrossEntropyLoss(reduction='none')", (4, 5), CLASSES),
    ("CrossEntropyLoss(ignore_index=2, reduction='sum')", (4, 5), CLASSES),
    ("CrossEntropyLoss(label_smoothing=0.1)", (4, 5), CLASSES),
    ("NLLLoss()", (4, 5), CLASSES),
    ("MSELoss()", (4, 5), "like the input"),
    ("MSELoss(reduction='sum')", (4, 5), "like the input"),
    ("L1Loss()", (4, 5), "like the input"),
    ("BCEWithLogitsLoss()", (4, 5), "like the input"),
]


def build(expression, namespace):
    return eval(expression, {name: getattr(namespace, name) for name in dir(namespace)})


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_close(mine, other, name):
    scale = np.abs(other).max(initial=1e-30)
    np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize(("expression", "shape"), LAYERS, ids=[row[0] for row in LAYERS])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_layer_as_torch(expression, shape):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    torch.manual_seed(0)
    reference = build(expression, torch.nn).double()
    layer = build(expression, nn).to(dtype="float64")
    assert list(layer.state_dict()) == list(reference.state_dict())
    layer.load_state_dict(reference.state_dict())
    for step, training in enumerate((True, True, False)):
        layer.train(training)
        reference.train(training)
        x = Tensor(draw(shape, step), requires_grad=True)
        expected_x = torch.tensor(x.data, requires_grad=True)
        y, expected = layer(x), reference(expected_x)
        assert y.dtype == np.float64
        assert_close(y.data, expected.detach().numpy(), "output")
        cotangent = draw(y.shape, 100 + step)
        layer.zero_grad()
        reference.zero_grad()
        y.backward(cotangent)
        expected.backward(torch.tensor(cotangent))
        assert_close(x.grad, expected_x.grad.numpy(), "gradient of the input")
        for (name, mine), other in zip(layer.named_parameters(), reference.parameters(), strict=True):
            assert_close(mine.grad, other.grad.numpy(), f"gradient of {name}")
    for (name, mine), other in zip(layer.state_dict().items(), reference.state_dict().values(), strict=True):
        assert_close(mine, other.numpy(), name)


@pytest.mark.parametrize(("expression", "shape", "target"), LOSSES, ids=[row[0] for row in LOSSES])
def test_loss_as_torch(expression, shape, target):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    x = Tensor(draw(shape), requires_grad=True)
    theirs = torch.tensor(x.data, requires_grad=True)
    target = np.random.default_rng(5).uniform(0, 1, shape) if isinstance(target, str) else target
    loss, expected = build(expression, nn)(x, target), build(expression, torch.nn)(theirs, torch.tensor(target))
    loss.sum().backward()
    expected.sum().backward()
    assert_close(loss.data, expected.detach().numpy(), "loss")
    assert_close(x.grad, theirs.grad.numpy(), "gradient")


def test_weights_of_a_loss_as_torch():
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    weight, x, target = np.arange(1.0, 6.0), draw((4, 5)), np.random.default_rng(5).uniform(0, 1, (4, 5))
    rows = [
        ("CrossEntropyLoss", {"weight": weight}, CLASSES),
        ("NLLLoss", {"weight": weight}, CLASSES),
        ("BCEWithLogitsLoss", {"weight": weight, "pos_weight": weight[::-1].copy()}, target),
    ]
    for name, weights, goal in rows:
        loss = getattr(nn, name)(**weights)
        reference = getattr(torch.nn, name)(**{key: torch.tensor(value) for key, value in weights.items()})
        assert list(loss.state_dict()) == list(reference.state_dict()) == list(weights)
        assert_close(np.asarray(loss(x, goal)), reference(torch.tensor(x), torch.tensor(goal)).numpy(), name)


NOT_AS_TORCH = "Dropout", "AvgPool1d", "BatchNorm", "InstanceNorm", "GroupNorm"
SHOWN = [row[0] for row in LAYERS if not row[0].startswith(NOT_AS_TORCH)] + [
    "Conv2d(4, 8, (3, 5), stride=2, padding=(1, 2), groups=2, bias=False, padding_mode='reflect')",
    "ConvTranspose1d(3, 4, 2, stride=2, output_padding=1)",
    "Sequential(Conv2d(1, 2, 3), Sequential(ReLU(), Flatten()), Linear(4, 2))",
    "Sequential()",
    "ModuleList([Linear(2, 2), Linear(2, 2), Sequential(ReLU(), ReLU())])",
    "ModuleDict({'a': ReLU(), 'b': Tanh()})",
    "CrossEntropyLoss()",
]


@pytest.mark.parametrize("expression", SHOWN)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_repr_as_torch(expression):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    assert repr(build(expression, nn)) == repr(build(expression, torch.nn))


def test_repr_of_sizes_given_in_pairs():
    assert "padding=((1, 0), (2, 2))" in repr(nn.Conv2d(1, 1, 3, padding=((1, 0), (2, 2))))
    assert repr(nn.BatchNorm2d(3)) == "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    shown = "InstanceNorm1d(3, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False)"
    assert repr(nn.InstanceNorm1d(3)) == shown
    assert repr(nn.GroupNorm(2, 6)) == "GroupNorm(2, 6, eps=1e-05, affine=True)"
    assert repr(nn.SumPool2d(2)) == "SumPool2d(kernel_size=2, stride=2, padding=0)"
    assert repr(nn.Dropout(0.3)) == "Dropout(p=0.3)"


def test_sum_pooling_is_average_times_window():
    x = draw((2, 3, 8, 6))
    for rank, shape in ((1, (2, 3, 8)), (2, (2, 3, 8, 6)), (3, (1, 2, 4, 4, 6))):
        x = draw(shape)
        total, mean = (getattr(nn, f"{kind}Pool{rank}d")(2)(x) for kind in ("Sum", "Avg"))
        np.testing.assert_allclose(total, mean * 2**rank)


# Initialisation


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        (lambda: nn.Conv2d(8, 64, 5), 8 * 25),
        (lambda: nn.Conv3d(8, 64, 3, groups=4), 2 * 27),
        (lambda: nn.ConvTranspose2d(64, 16, 4), 16 * 16),  # PyTorch takes axis 1 of the weight as the fan-in here too
        (lambda: nn.Linear(300, 100), 300),
    ],
)
def test_initialisation_is_uniform_within_torchs_bound(make, fan_in):
    random.manual_seed(0)
    layer, bound = make(), 1 / math.sqrt(fan_in)
    for parameter in (layer.weight, layer.bias):
        assert parameter.dtype == np.float32 and parameter.requires_grad and parameter.data.flags.c_contiguous
        assert np.abs(parameter.data).max() <= bound
    assert layer.weight.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert abs(layer.weight.data.mean()) < 0.03 * bound


def test_one_seed_gives_one_network():
    def make():
        random.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 3)).state_dict()

    first, second = make(), make()
    assert all((first[key] == second[key]).all() for key in first)
    random.manual_seed(4)
    assert (nn.Conv2d(1, 2, 3).weight.data != first["0.weight"]).any()


def test_generator_state_round_trip():
    random.manual_seed(11)
    random.generator().random(3)
    state = random.get_state()
    expected = random.generator().random(4)
    random.set_state(state)
    assert (random.generator().random(4) == expected).all()
    with pytest.raises(ValueError, match="manual_seed: seed must be an integer >= 0, got -1"):
        random.manual_seed(-1)


# What a module holds


class Block(nn.Module):
    def __init__(self):
        self.first = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.parts = nn.ModuleList([nn.Linear(3, 3), nn.ReLU()])
        self.named = nn.ModuleDict({"out": nn.Linear(3, 1, bias=False)})
        self.none = None

    def forward(self, x):
        x = self.norm(self.first(x))
        for part in self.parts:
            x = part(x)
        return self.named["out"](x)


def torch_block(torch):
    block = torch.nn.Module()
    block.first = torch.nn.Linear(2, 3)
    block.norm = torch.nn.BatchNorm1d(3)
    block.parts = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.ReLU()])
    block.named = torch.nn.ModuleDict({"out": torch.nn.Linear(3, 1, bias=False)})
    return block


def test_names_as_torch():
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    reference = torch.nn.Sequential(OrderedDict(body=torch_block(torch), tail=torch.nn.Sequential(torch.nn.Tanh())))
    ours = nn.Sequential(OrderedDict(body=Block(), tail=nn.Sequential(nn.Tanh())))
    assert list(ours.state_dict()) == list(reference.state_dict())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in reference.named_modules()]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in reference.named_buffers()]


@pytest.mark.parametrize("size", [(9, 7), [10, 8], (2, 5, 9, 8), (5, 10, 7)])
def test_a_transposed_convolution_of_a_size(device, size):
    """As in PyTorch: one of the sizes that a convolution of this stride brings to the input's, or a shape with it."""
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    reference = torch.nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1).double()
    layer = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, dtype="float64")
    layer.load_state_dict(reference.state_dict())
    x = draw((2, 3, 5, 4)) if len(size) != 3 else draw((3, 5, 4))
    y = layer.to(device)(to_device(x, device), output_size=size)
    expected = reference(torch.tensor(x), output_size=size)
    assert y.shape[-2:] == tuple(size[-2:])
    assert_close(y.numpy(), expected.detach().numpy(), "output")


def test_loading_a_state():
    source, target = Block(), Block()
    arrays = [parameter.data for parameter in target.parameters()]
    source.norm.num_batches_tracked += 5
    assert target.load_state_dict(source.state_dict()) == ([], [])
    for key, value in source.state_dict().items():
        np.testing.assert_array_equal(target.state_dict()[key], value)
        assert target.state_dict()[key] is not value
    assert all(mine is parameter.data for mine, parameter in zip(arrays, target.parameters(), strict=True))


def test_a_state_that_does_not_fit_changes_nothing():
    block = Block()
    before = {key: value.copy() for key, value in block.state_dict().items()}
    state = {key: value + 1 for key, value in before.items()}
    del state["norm.running_mean"], state["first.bias"]
    state["parts.0.weight"] = np.ones((3, 2))
    state["other.weight"] = np.ones(1)
    with pytest.raises(ValueError) as caught:
        block.load_state_dict(state)
    assert caught.value.args == (
        "load_state_dict: the state does not fit Block: parts.0.weight has shape (3, 2) and dtype float64, expected "
        "(3, 3) float32; missing keys: first.bias, norm.running_mean; unexpected keys: other.weight; strict=False "
        "passes over missing and unexpected keys",
    )
    with pytest.raises(ValueError, match=r"parts\.0\.weight has shape"):
        block.load_state_dict(state, strict=False)
    for key, value in block.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    del state["parts.0.weight"]
    result = block.load_state_dict(state, strict=False)
    assert result.missing_keys == ["first.bias", "norm.running_mean", "parts.0.weight"]
    assert result.unexpected_keys == ["other.weight"]
    np.testing.assert_array_equal(block.first.weight.data, before["first.weight"] + 1)


def test_shared_parts_are_found_once_but_saved_under_both_names():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert len(list(model.parameters())) == 2 and len(list(model.modules())) == 3
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_modes_reach_everything_below():
    block = Block()
    assert block.training and block.eval() is block
    assert not any(module.training for module in block.modules())
    assert all(module.training for module in block.train().modules())


def test_freezing_and_forgetting():
    block = Block()
    block(draw((4, 2)).astype("float32")).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    block.zero_grad()
    assert all(parameter.grad is None for parameter in block.parameters())
    block.requires_grad_(False)
    assert not block(draw((4, 2)).astype("float32")).requires_grad


def test_to_converts_floats_only():
    block = Block()
    block(draw((4, 2)).astype("float32")).sum().backward()
    assert block.to("cpu", dtype="float64") is block
    assert {parameter.dtype for parameter in block.parameters()} == {np.dtype("float64")}
    assert block.first.weight.grad.dtype == np.float64 and block.norm.running_var.dtype == np.float64
    assert block.norm.num_batches_tracked.dtype == np.int64
    block(draw((4, 2))).sum().backward()


def test_apply_goes_children_first():
    names = []
    nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh())).apply(lambda module: names.append(type(module).__name__))
    assert names == ["ReLU", "Tanh", "Sequential", "Sequential"]


def test_forward_hooks():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen = []
    x = draw((1, 2)).astype("float32")
    with model[0].register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output))):
        model(x)
    model(x)
    assert len(seen) == 1 and seen[0][0] is model[0] and seen[0][1][0] is x and seen[0][2].shape == (1, 2)
    handle = model.register_forward_hook(lambda module, inputs, output: output * 0)
    assert not model(x).data.any()
    handle.remove()


def test_a_copy_is_independent():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twin = copy.deepcopy(model)
    twin[0].weight.data += 1
    twin[1].running_mean += 1
    assert (model[0].weight.data != twin[0].weight.data).all() and not model[1].running_mean.any()
    assert list(twin.state_dict()) == list(model.state_dict())


def test_containers():
    a, b, c = nn.ReLU(), nn.Tanh(), nn.SiLU()
    row = nn.Sequential(a, b)
    assert len(row) == 2 and row[-1] is b and list(row) == [a, b] and row.append(c) is row and row[2] is c
    assert [name for name, _ in row[1:].named_children()] == ["1", "2"]
    many = nn.ModuleList([a]).extend([b, c])
    assert len(many) == 3 and many[0] is a and list(many[1:]) == [b, c]
    named = nn.ModuleDict({"a": a})
    named["b"] = b
    assert list(named) == ["a", "b"] and "b" in named and len(named) == 2
    assert list(named.values()) == [a, b] and dict(named.items()) == {"a": a, "b": b}
    del named["a"]
    assert list(named.keys()) == ["b"]


def test_batch_norm_counts_and_fails_whole():
    layer = nn.BatchNorm2d(3)
    layer(draw((2, 3, 4, 4)).astype("float32"))
    assert layer.num_batches_tracked == 1 and layer.running_mean.any()
    before = {key: value.copy() for key, value in layer.state_dict().items()}
    with pytest.raises(ValueError):
        layer(draw((2, 4, 4, 4)).astype("float32"))
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


def test_dropout_draws_from_the_one_generator():
    layer, x = nn.Dropout(0.5), np.ones((50, 50), np.float32)
    random.manual_seed(1)
    first = np.asarray(layer(x))
    random.manual_seed(1)
    np.testing.assert_array_equal(np.asarray(layer(x)), first)
    assert set(np.unique(first)) == {0.0, 2.0} and abs(first.mean() - 1) < 0.1
    np.testing.assert_array_equal(np.asarray(layer.eval()(x)), x)


def test_training_lowers_the_loss():
    random.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    x = draw((16, 1, 8)).astype("float32")
    target = (x.sum((1, 2)) > 0).astype(int)
    loss, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.5)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(model(x), target)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]
    with no_grad():
        assert not model(x).requires_grad


class Unreadable:
    """As a PyTorch tensor of bfloat16 is."""

    def __array__(self, *arguments):
        raise TypeError("no such dtype")


REFUSALS = [
    (lambda: nn.Conv2d(0, 1, 3), ValueError, "Conv2d: in_channels must be at least 1, got 0"),
    (lambda: nn.Conv2d(1, 1.5, 3), TypeError, "Conv2d: out_channels must be an int, got 1.5"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "Conv2d: groups must divide in_channels and out_channels"),
    (lambda: nn.Conv2d(1, 1, (3, 3, 3)), ValueError, "Conv2d: kernel_size must be an int or a tuple of 2 ints, got 3"),
    (lambda: nn.Conv1d(1, 1, 3, stride=0), ValueError, "Conv1d: stride must be at least 1, got 0"),
    (lambda: nn.Conv1d(1, 1, 3, padding=-1), ValueError, "Conv1d: padding must be at least 0, got -1"),
    (lambda: nn.Conv1d(1, 1, 3, padding="full"), ValueError, 'Conv1d: padding must be "same", "valid" or numbers'),
    (lambda: nn.Conv1d(1, 1, 3, 2, "same"), ValueError, 'Conv1d: padding="same" needs stride 1'),
    (lambda: nn.Conv1d(1, 1, 3, padding_mode="mirror"), ValueError, "padding_mode must be one of zeros, reflect"),
    (lambda: nn.ConvTranspose1d(1, 1, 3, padding="same"), TypeError, "ConvTranspose1d: padding must be numbers"),
    (lambda: nn.ConvTranspose1d(1, 1, 3, padding_mode="reflect"), ValueError, "padding_mode must be one of zeros, got"),
    (
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2)(np.ones((1, 3, 4, 5), np.float32), output_size=(9, 14)),
        ValueError,
        "ConvTranspose2d: output_size must lie between 11 and 12 for the width 5, got 14",
    ),
    (
        lambda: nn.ConvTranspose1d(3, 4, 3)(np.ones((1, 3, 4), np.float32), output_size=7),
        ValueError,
        "ConvTranspose1d: output_size must be 6 for the length 4, got 7",
    ),
    (
        lambda: nn.ConvTranspose1d(3, 4, 3)(np.ones((1, 3, 4), np.float32), output_size=(1, 1, 1, 6)),
        ValueError,
        r"ConvTranspose1d: output_size must be an int or a tuple of 1 int, got 4: \(1, 1, 1, 6\)",
    ),
    (lambda: nn.Conv1d(1, 1, 3, dtype="int32"), TypeError, 'Conv1d: dtype must be "float32" or "float64", got int32'),
    (lambda: nn.Conv1d(1, 1, 3, device="gpu"), ValueError, 'device must be "cpu", "cuda" or "cuda:1"'),
    (lambda: nn.Linear(2, -1), ValueError, "Linear: out_features must be at least 1, got -1"),
    (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features must be at least 1, got 0"),
    (
        lambda: nn.BatchNorm2d(3)(np.ones((2, 3), np.float32)),
        ValueError,
        r"BatchNorm2d: input must be \(N, C, H, W\), got input shape \(2, 3\)",
    ),
    (lambda: nn.Dropout(1.5), ValueError, "Dropout: p must be a probability, 0 to 1, got 1.5"),
    (lambda: nn.MSELoss(reduction="average"), ValueError, "MSELoss: reduction must be"),
    (lambda: nn.Sequential(nn.ReLU(), "relu"), TypeError, "Sequential: every part must be a Module, got str for '1'"),
    (lambda: nn.ModuleDict({"a.b": nn.ReLU()}), ValueError, "ModuleDict: a name must be a string without dots"),
    (lambda: nn.ModuleDict({"forward": nn.ReLU()}), ValueError, "'forward' is an attribute of every ModuleDict"),
    (lambda: nn.ModuleList()(1), NotImplementedError, r"ModuleList: a Module needs a method forward\(self, ...\)"),
    (
        lambda: nn.Linear(2, 1).load_state_dict("weights.pt"),
        TypeError,
        r"load_state_dict: state must map names to arrays, got str; "
        r"fastconv.io.safetensors.load_safetensors\(path\) reads a file",
    ),
    (
        lambda: nn.Linear(2, 1).load_state_dict({"weight": Unreadable(), "bias": np.zeros(1)}),
        TypeError,
        r"load_state_dict: weight cannot become a NumPy array \(no such dtype\); of a PyTorch tensor take "
        r"tensor.detach\(\).float\(\)",
    ),
    (lambda: nn.ReLU().to(dtype="int8"), TypeError, 'to: dtype must be "float32" or "float64", got int8'),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSALS)
def test_refusals(call, kind, text):
    with pytest.raises(kind, match=text) as caught:
        call()
    assert len(caught.value.args) == 1 and isinstance(caught.value.args[0], str)
