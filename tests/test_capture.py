"""Models recorded on the CPU: the same bits as the model gives, and nothing but kernels where the work is little."""

from __future__ import annotations

import copy
import threading
import time
import weakref

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn
from fastconv.backends.cpu import memory, scratch
from fastconv.backends.cpu.calls import Kernel
from fastconv.errors import DeviceError


class Forward(nn.Module):
    """Parts, and what a function makes of them and the inputs."""

    def __init__(self, function, **parts):
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def gate(self, x):
    """Squeeze and excitation, with NumPy's own functions between the layers."""
    return x * fc.sigmoid(self.dense(x.mean((2, 3)))).reshape(len(x), -1, 1, 1)


def written(self, x):
    y = np.where(x > 0, x, -0.5 * x)
    y[:, 0] = np.clip(y[:, 1], None, 1)
    y += np.float32(1)
    return self.conv(np.pad(y, ((0, 0), (0, 0), (1, 1), (0, 2))))


def pieces(self, x):
    first, second = np.split(x, 2, axis=1)
    high, low = np.divmod(second, np.float32(0.5))
    return self.conv(first[:, :, ::2]), fc.concatenate([high, low], 1), x[[1, 0, 1]].sum(), x[0, 0, 0, 0]


LENET = nn.Sequential(
    nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(400, 120), nn.GELU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10), nn.Softmax(1),
)  # fmt: skip

MODELS = {
    "lenet": (LENET, (1, 28, 28)),
    "batch norm": (nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)), (2, 31)),
    "winograd": (nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1)), (32, 28, 28)),
    "fft": (nn.Conv1d(1, 2, 301), (1, 4000)),
    "two threads": (nn.Sequential(nn.Conv2d(64, 256, 1), nn.SiLU(), nn.Conv2d(256, 64, 3, stride=2)), (64, 28, 28)),
    "depthwise": (nn.Sequential(nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm((16, 16))), (8, 16, 16)),
    "no tap meets the input": (nn.Conv1d(2, 4, 2, padding=10, dilation=20), (2, 6)),
    "reflected": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", activation="gelu"), (2, 9, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Upsample(scale_factor=1.5)), (3, 6, 6)),
    "stride beyond the kernel": (nn.ConvTranspose1d(2, 3, 2, stride=3), (2, 9)),
    "few rows": (nn.Sequential(nn.Flatten(), nn.Linear(150, 2)), (150,)),
    "same size": (nn.Upsample(size=(5, 4)), (2, 5, 4)),
    "group norm": (nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4), nn.ELU(), nn.AvgPool3d(2)), (1, 8, 8, 8)),
    "residual": (Forward(lambda self, x: fc.add_relu(x, self.conv(x)), conv=nn.Conv2d(4, 4, 3, padding=1)), (4, 9, 9)),
    "gate": (Forward(gate, dense=nn.Linear(4, 4)), (4, 7, 5)),
    "written to": (Forward(written, conv=nn.Conv2d(2, 3, 3)), (2, 8, 9)),
    "pieces": (Forward(pieces, conv=nn.Conv2d(2, 1, 2)), (4, 6, 5)),
    "turned": (Forward(lambda self, x: self.conv(x.transpose(0, 1, 3, 2)), conv=nn.Conv2d(2, 3, 3)), (2, 6, 5)),
}


def drawn(shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def evaluated(model, dtype="float32"):
    """The model in evaluation mode with drawn parameters and running statistics."""
    model = copy.deepcopy(model).to(dtype=dtype).eval()
    state = {name: drawn(array.shape, i) for i, (name, array) in enumerate(model.state_dict().items())}
    model.load_state_dict({name: abs(array) if "var" in name else array for name, array in state.items()})
    return model


def bits(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [(y.shape, str(y.dtype), np.asarray(fc.Tensor(y).data).tobytes()) for y in outputs]


def eager(model, *inputs):
    with fc.no_grad():
        return model(*inputs)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_a_captured_model_gives_the_bits_of_the_model(name, dtype, count):
    """With one thread more of it is recorded as calls of kernels."""
    fc.set_num_threads(count)
    model, shape = MODELS[name]
    model = evaluated(model, dtype)
    inputs = [drawn((2, *shape), seed, dtype) for seed in range(3)]
    inputs[1].reshape(-1)[::7] = np.inf
    inputs[2][1].reshape(-1)[3::11] = np.nan
    with np.errstate(invalid="ignore", over="ignore"):
        captured = nn.capture(model, drawn((2, *shape), 9, dtype))
        expected = [bits(eager(model, x)) for x in inputs]
        results = [captured(x) for x in inputs]
    assert [bits(y) for y in results] == expected  # looked at together: none overwrites another


def test_little_work_is_nothing_but_kernels():
    """With the Python between them LeNet-5 takes four times as long."""
    captured = nn.capture(nn.fuse(LENET), drawn((1, 1, 28, 28)))
    assert {type(call) for call, _ in captured._graph._steps} == {Kernel}


def test_bare_kernels_have_scratch_of_their_own():
    """The thread that recorded them may be at work while another repeats them."""
    captured = nn.capture(nn.fuse(LENET), drawn((1, 1, 28, 28)))
    arrays = [x for _, arguments in captured._graph._steps for x in arguments if isinstance(x, np.ndarray)]
    eager(LENET, drawn((1, 1, 28, 28)))
    shared = scratch._local.tasks.buffer, scratch._local.calls.buffer
    assert not any(np.may_share_memory(x, buffer) for x in arrays for buffer in shared)


def test_work_for_several_threads_is_not_recorded_as_that_of_one():
    """Though the helpers sleep, and would not be woken for so little."""
    fc.set_num_threads(2)
    model = nn.Conv2d(16, 16, 1).eval()
    eager(model, drawn((64, 16, 40, 40)))  # now there are helpers
    time.sleep(0.05)
    captured = nn.capture(model, drawn((1, 16, 40, 40)))
    assert {type(call) for call, _ in captured._graph._steps} == {type(lambda: None)}


def test_tensors_and_several_inputs():
    model = Forward(lambda self, x, i: (self.dense(x), x + x[:, i[0]]), dense=nn.Linear(6, 3)).eval()
    x, i = drawn((4, 6)), np.arange(12).reshape(2, 6) % 6
    captured = nn.capture(model, x, i)
    for given in ((x, i), (-x, i[::-1]), (fc.Tensor(2 * x), fc.Tensor(i))):
        results = captured(*given)
        assert [type(y) for y in results] == [type(given[0])] * 2
        assert bits(results) == bits(eager(model, *given))


def test_arrays_of_other_libraries():
    class Other:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    model, x = nn.Linear(6, 3).eval(), drawn((4, 6))
    assert bits(nn.capture(model, Other(x))(Other(-x))) == bits(eager(model, -x))


@pytest.mark.parametrize("name", [name for name, (model, _) in MODELS.items() if model.state_dict()])
def test_changed_parameters_count(name):
    fc.set_num_threads(1)
    model, shape = MODELS[name]
    model, x = evaluated(model), drawn((2, *shape))
    captured = nn.capture(model, x)
    before, state = bits(captured(x)), model.state_dict()
    model.load_state_dict({name: abs(drawn(array.shape, 99 - i)) for i, (name, array) in enumerate(state.items())})
    assert bits(captured(x)) == bits(eager(model, x)) != before


def test_an_array_of_another_kind_that_has_a_recording():
    class Signal(np.ndarray):
        recording = "of an earthquake"

    x = drawn((2, 3)).view(Signal)
    assert bits(fc.relu(x)) == bits(nn.capture(nn.ReLU().eval(), x)(x)) == bits(fc.relu(np.asarray(x)))


def test_the_model_itself_is_left_alone():
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6)).eval()
    before = {name: id(array) for name, array in model.state_dict().items()}
    nn.capture(model, drawn((3, 2, 11)))
    assert {name: id(array) for name, array in model.state_dict().items()} == before
    assert {type(array) for array in model.state_dict().values()} == {np.ndarray}


@pytest.mark.parametrize(("recorded", "called"), [(1, 2), (2, 1), (2, 2)])
def test_whoever_calls_it_and_with_how_many_threads(recorded, called):
    model, shape = MODELS["two threads"]
    model, x, found = evaluated(model), drawn((2, *shape)), []
    expected = bits(eager(model, x))
    fc.set_num_threads(recorded)
    captured = nn.capture(model, x)
    fc.set_num_threads(called)
    other = threading.Thread(target=lambda: found.append(bits(captured(x))))
    other.start()
    other.join()
    for _ in range(3):
        found.append(bits(captured(x)))
        eager(model, -x)  # works in the same scratch memory as the model did when it was recorded
    assert found == [expected] * 4


def test_the_precision_is_that_of_the_recording():
    model, shape = MODELS["winograd"]
    model, x = evaluated(model), drawn((2, *shape))
    with fc.precision("highest"):
        captured = nn.capture(model, x)
        expected = bits(eager(model, x))
    assert bits(captured(x)) == expected != bits(eager(model, x))


def test_memory_of_what_is_no_longer_needed_serves_again():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(20))).eval()
    x = drawn((8, 8, 80, 80))
    captured = nn.capture(model, x)
    places = {array.ctypes.data for _, (_, arguments, y) in captured._graph._steps for array in (arguments[0], y)}
    assert len(places) <= 4
    assert bits(captured(x)) == bits(eager(model, x))


def test_what_was_recorded_is_freed_with_it():
    """By the last reference, not when Python looks for garbage."""
    model = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(4))).eval()
    x = drawn((8, 8, 80, 80))
    captured = nn.capture(model, x)
    blocks = [weakref.ref(array.base._block) for _, (_, (array, *_), _) in captured._graph._steps[1:]]
    assert all(block() is not None for block in blocks) and blocks
    del captured
    assert [block() for block in blocks] == [None] * len(blocks)


def draws(self, x):
    return x + np.random.default_rng().standard_normal(x.shape)


MISUSES = {
    "item": (lambda self, x: x * x.max().item(), r"looks at values \(item\).*by relu or clip"),
    "if": (lambda self, x: x if x.sum() > 0 else -x, r"looks at values \(__bool__\)"),
    "float": (lambda self, x: x * float(x[0, 0]), r"looks at values \(__float__\)"),
    "taken out": (lambda self, x: np.exp(np.asarray(x)), r"for other values .* numpy.asarray\(x\)"),
    "random": (draws, "it draws at random"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_model_that_cannot_be_repeated_is_refused(name):
    function, message = MISUSES[name]
    with pytest.raises(ValueError, match=message):
        nn.capture(Forward(function).eval(), drawn((2, 3)))
    assert "__call__" not in vars(Kernel), "nobody listens any more"
    assert fc.relu(drawn((600, 600))).base.base.blocks is memory._blocks, "memory is that of everybody again"
    assert bits(nn.capture(nn.ReLU().eval(), drawn(3))(drawn(3))) == bits(fc.relu(drawn(3)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: nn.capture(nn.ReLU().train(), x), ValueError, r"in training mode; call model.eval\(\) first"),
        (lambda x: nn.capture(nn.ReLU().eval()), ValueError, r"an example of the input is needed, e.g. capture\(mod"),
        (lambda x: nn.capture(nn.ReLU().eval(), [1.0]), TypeError, "input must be an array or a Tensor, got list"),
        (lambda x: nn.capture(nn.ReLU().eval(), x)([1.0]), TypeError, "input must be an array or a Tensor, got list"),
        (lambda x: nn.capture(Forward(lambda self, x: {"y": x}).eval(), x), TypeError, "tuple of arrays, got dict"),
        (
            lambda x: nn.capture(nn.ReLU().eval(), x)(x[:1]),
            ValueError,
            r"the graph is of float32 \(2, 3\) on cpu, got float32 \(1, 3\) on cpu; capture the model for those too",
        ),
        (lambda x: nn.capture(nn.ReLU().eval(), x)(x.astype("float64")), ValueError, "got float64"),
        (lambda x: nn.capture(nn.ReLU().eval(), x)(x, x), ValueError, r"got float32 \(2, 3\) on cpu, float32"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(drawn((2, 3)))


def test_model_and_example_on_different_devices(gpu):
    with pytest.raises(DeviceError, match=r"model and example are on cpu and cuda:0; e.g. capture\(model.to"):
        nn.capture(nn.Conv1d(2, 3, 3).to("cuda").eval(), drawn((1, 2, 5)))
