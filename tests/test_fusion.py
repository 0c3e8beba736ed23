"""nn.fuse: the results of the model in evaluation mode, from fewer modules; what it leaves alone; what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import fastconv as fc
from fastconv import models, nn, training
from fastconv.io.safetensors import load_safetensors, save_safetensors

LAYERS = {
    "Conv1d": (lambda **k: nn.Conv1d(3, 4, 3, stride=2, padding=1, **k), (2, 3, 9)),
    "Conv2d": (lambda **k: nn.Conv2d(3, 4, (3, 2), padding=(1, 0), **k), (2, 3, 7, 6)),
    "Conv2d groups": (lambda **k: nn.Conv2d(4, 4, 3, groups=2, **k), (2, 4, 7, 6)),
    "Conv2d depthwise": (lambda **k: nn.Conv2d(4, 4, 3, groups=4, **k), (2, 4, 7, 6)),
    "Conv2d reflect": (lambda **k: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", **k), (2, 3, 7, 6)),
    "Conv3d": (lambda **k: nn.Conv3d(2, 4, 3, padding=1, **k), (2, 2, 4, 5, 3)),
    "ConvTranspose1d": (lambda **k: nn.ConvTranspose1d(3, 4, 3, stride=2, **k), (2, 3, 5)),
    "ConvTranspose2d groups": (lambda **k: nn.ConvTranspose2d(6, 4, 3, 2, groups=2, **k), (2, 6, 4, 5)),
    "ConvTranspose3d": (lambda **k: nn.ConvTranspose3d(2, 4, 2, stride=2, **k), (2, 2, 2, 3, 2)),
    "Linear": (lambda **k: nn.Linear(5, 4, **k), (3, 5)),
}


def norm_of(name, **arguments):
    kind = {"2": nn.BatchNorm2d, "3": nn.BatchNorm3d}.get(name.split("d")[0][-1], nn.BatchNorm1d)
    return lived_in(kind(4, **arguments))


def lived_in(model, seed=0):
    """The model with running statistics and affine weights of a training, not those of the beginning."""
    rng = np.random.default_rng(seed)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean += rng.standard_normal(module.running_mean.shape)
            module.running_var *= rng.uniform(0.3, 3, module.running_var.shape)
            if module.weight is not None:
                module.weight.data += rng.uniform(-0.5, 0.5, module.weight.shape)
                module.bias.data += rng.standard_normal(module.bias.shape)
    return model


def draw(shape, dtype="float32"):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def kinds(model):
    return [type(module).__name__ for module in model]


def check_same(model, x, fused=None):
    """The results of model and fused copy agree to rounding, and the model is as before; returns the fused copy."""
    before = {key: np.copy(array) for key, array in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fused = nn.fuse(model) if fused is None else fused
    expected, actual = training.predict(model, x), fused(x).data
    tolerance = 2e-5 if actual.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    assert modes == [module.training for module in model.modules()]
    for key, array in model.state_dict().items():
        assert np.array_equal(array, before[key])
    return fused


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arguments", [{}, {"affine": False, "eps": 1e-2}], ids=["affine", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", LAYERS)
def test_batch_norm_folds_into_the_layer_before_it(name, bias, arguments, dtype):
    make, shape = LAYERS[name]
    model = nn.Sequential(make(bias=bias, dtype=dtype), norm_of(name, dtype=dtype, **arguments))
    fused = check_same(model, draw(shape, dtype))
    assert kinds(fused) == [name.split()[0], "Identity"]
    assert list(fused.state_dict()) == ["0.weight", "0.bias"]


def test_folding_is_computed_in_float64():
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1))
    model[0].weight.data[:], model[0].bias.data[:] = 3.0, 1e-3
    model[1].running_mean[:], model[1].running_var[:], model[1].eps = 1.0, 1e-4, 0.0
    fused = nn.fuse(model)
    scale = 1 / np.sqrt(np.float64(np.float32(1e-4)))
    assert fused[0].weight.data.item() == np.float32(3 * scale)
    assert fused[0].bias.data.item() == np.float32((np.float64(np.float32(1e-3)) - 1) * scale)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.SELU(), "selu"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
        (nn.LeakyReLU(), None),
        (nn.ELU(), None),
        (nn.Softmax(1), None),
    ],
    ids=repr,
)
def test_activations_become_an_argument(module, name):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), lived_in(nn.BatchNorm2d(4)), module)
    fused = check_same(model, draw((2, 2, 6, 5)))
    assert kinds(fused) == ["Conv2d", "Identity", "Identity" if name else type(module).__name__]
    assert fused[0].activation == name
    assert ("activation=" in repr(fused[0])) == (name is not None)


def test_order_matters():
    after = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), lived_in(nn.BatchNorm2d(4)))
    assert kinds(check_same(after, draw((2, 2, 6, 5)))) == ["Conv2d", "Identity", "BatchNorm2d"]
    twice = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Sigmoid())
    assert kinds(check_same(twice, draw((2, 2, 6, 5)))) == ["Conv2d", "Identity", "Sigmoid"]
    norms = nn.Sequential(nn.Conv2d(2, 4, 3), lived_in(nn.BatchNorm2d(4)), lived_in(nn.BatchNorm2d(4), 1), nn.ReLU())
    assert kinds(check_same(norms, draw((2, 2, 6, 5)))) == ["Conv2d", "Identity", "Identity", "Identity"]


def test_what_is_left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, input):
            return super().forward(input) * 2

    x = draw((2, 2, 6, 5))
    for row in (
        [Standardised(2, 4, 3), lived_in(nn.BatchNorm2d(4))],
        [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)],
        [nn.Conv2d(2, 4, 3), nn.Dropout(0.5), lived_in(nn.BatchNorm2d(4))],
        [nn.Linear(5, 4), nn.ReLU()],
    ):
        assert kinds(check_same(nn.Sequential(*row), x)) == [type(module).__name__ for module in row]
    hooked = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
    hooked[0].register_forward_hook(lambda module, inputs, output: output - 1)
    assert kinds(check_same(hooked, x)) == ["Conv2d", "ReLU"]
    misfit = nn.fuse(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(5)))
    with pytest.raises(ValueError, match="batch_norm"):
        misfit(x)


class Net(nn.Module):
    """A user's network: what `forward` does with its children cannot be seen from outside."""

    def __init__(self):
        self.conv, self.norm, self.act = nn.Conv2d(2, 4, 3), lived_in(nn.BatchNorm2d(4)), nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), lived_in(nn.BatchNorm2d(4)), nn.ReLU())

    def forward(self, input):
        z = self.conv(input)
        return self.body(self.act(self.norm(z))) + z


class Declared(Net):
    def fusible(self):
        return (("norm", "act"), ("conv",))


def test_a_module_of_the_user():
    x = draw((2, 2, 6, 5))
    fused = check_same(Net(), x)
    assert type(fused.conv) is nn.Conv2d and type(fused.norm) is nn.BatchNorm2d and kinds(fused.body)[1] == "Identity"
    check_same(Declared(), x)


def test_fusible_holds_for_the_forward_it_was_written_for():
    class Row(nn.Module):
        def __init__(self):
            self.conv, self.act = nn.Conv2d(2, 4, 3), nn.ReLU()

        def forward(self, input):
            return self.act(self.conv(input))

        def fusible(self):
            return (("conv", "act"),)

    class Child(Row):
        pass

    class Skipping(Row):
        def forward(self, input):
            z = self.conv(input)
            return self.act(z) - z

    class Backwards(nn.Sequential):
        def forward(self, input):
            for module in reversed(list(self)):
                input = module(input)
            return input

    x = draw((2, 2, 6, 5))
    assert check_same(Row(), x).conv.activation == check_same(Child(), x).conv.activation == "relu"
    assert check_same(Skipping(), x).conv.activation is None
    assert kinds(check_same(Backwards(nn.Conv2d(2, 4, 3), nn.ReLU()), x)) == ["Conv2d", "ReLU"]


def test_shared_modules():
    conv, x = nn.Conv2d(2, 2, 3, padding=1), draw((2, 2, 6, 5))
    first, second = lived_in(nn.BatchNorm2d(2)), lived_in(nn.BatchNorm2d(2), 1)
    fused = check_same(nn.Sequential(conv, first, conv, second, conv), x)
    assert kinds(fused) == ["Conv2d", "Identity", "Conv2d", "Identity", "Conv2d"]
    block = nn.Sequential(conv, first, nn.ReLU())
    fused = check_same(nn.Sequential(block, block), x)
    assert fused[0] is fused[1] and kinds(fused[0]) == ["Conv2d", "Identity", "Identity"]


@pytest.mark.parametrize("start", [models.LeNet5, models.DigitsNet], ids=["LeNet5", "DigitsNet"])
def test_sequential_models(start):
    model = start()
    size = 32 if start is models.LeNet5 else 8
    fused = check_same(model, draw((3, 1, size, size)))
    assert type(fused) is start and fused.conv1.activation == ("tanh" if start is models.LeNet5 else "relu")


@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
def test_resnet(small, tmp_path):
    def make():
        return lived_in(models.ResNet((1, 2), (8, 12), 5, small_images=small))

    model = make()
    fused = check_same(model, draw((2, 3, 32, 32)))
    left = {type(module).__name__ for module in fused.modules()}
    assert not left & {"BatchNorm2d", "ReLU"}
    assert fused.conv1.activation == fused.layer1[0].conv1.activation == "relu"
    assert fused.layer1[0].conv2.activation is fused.layer2[0].downsample[0].activation is None
    save_safetensors(fused.state_dict(), tmp_path / "fused.safetensors")
    again = nn.fuse(make())
    again.load_state_dict(load_safetensors(tmp_path / "fused.safetensors"))
    x = draw((2, 3, 32, 32))
    assert np.array_equal(again(x).data, fused(x).data)
    assert np.array_equal(fused(x[:1]).data, fused(x).data[:1])


def test_the_copy_shares_nothing_and_records_nothing():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(48, 2))
    model(draw((2, 2, 6, 5))).sum().backward()
    fused = nn.fuse(model)
    assert model.training and not any(module.training for module in fused.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in fused.parameters())
    assert not fused(draw((2, 2, 6, 5))).requires_grad
    own = [*fused.state_dict().values()]
    assert not any(np.shares_memory(a, b) for a in own for b in model.state_dict().values())
    twin = copy.deepcopy(fused)
    assert np.array_equal(twin(draw((2, 2, 6, 5))).data, fused(draw((2, 2, 6, 5))).data)


def test_the_gradient_of_the_input_remains():
    fused = nn.fuse(nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU()))
    x = fc.Tensor(draw((2, 2, 6, 5)), requires_grad=True)
    fused(x).sum().backward()
    expected = fc.Tensor(x.data, requires_grad=True)
    fc.gelu(fc.conv2d(expected, fused[0].weight, fused[0].bias)).sum().backward()
    assert np.array_equal(x.grad, expected.grad)


def test_refusals():
    with pytest.raises(TypeError, match=r"^fuse: model must be a Module, got function$"):
        nn.fuse(fc.conv2d)

    class Wrong(nn.Module):
        def __init__(self):
            self.conv = nn.Conv2d(2, 4, 3)

        def fusible(self):
            return (("conv", "norm"),)

    with pytest.raises(ValueError, match=r"^fuse: Wrong.fusible\(\) names norm, no module of it$"):
        nn.fuse(Wrong())
    with pytest.raises(ValueError, match=r"^Conv2d: activation must be None or one of"):
        nn.Conv2d(2, 4, 3, activation="softmax")
