"""Arrays on their way between devices and libraries, several devices, memory that runs out, graphs. On the emulator."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from dataclasses import replace

import emulator
import numpy as np
import pytest
from emulator import arrays as emulated_arrays
from emulator.arrays import DeviceArray

import fastconv as fc
from fastconv import backends, cli, data, models, nn, training
from fastconv.autograd import to_device
from fastconv.backends.cuda import convolution, correlation, platform
from fastconv.backends.cuda.module import Kernel
from fastconv.backends.cuda.tables import Table
from fastconv.data import Batches
from fastconv.errors import DeviceError

pytestmark = pytest.mark.skipif(bool(emulator.why_missing()), reason=emulator.why_missing())


@pytest.fixture(autouse=True)
def _emulated():
    with emulator.in_use():
        yield


def drawn(shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


class WithDlpack:
    """An array of another library on a GPU: nothing but `__dlpack__`."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        raise AssertionError("only xp.from_dlpack of the right device knows what to do with it")

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class WithInterface:
    """An array of another library on a GPU: nothing but `__cuda_array_interface__`."""

    def __init__(self, array):
        self.array = array

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


# Between devices


def test_asarray_goes_where_it_is_told():
    x = drawn((2, 3))
    there = fc.asarray(x, device="cuda:1")
    assert backends.device_of(there) == "cuda:1" and type(there) is DeviceArray
    assert fc.asarray(there) is there and fc.asarray(there, device="cuda:1") is there
    assert backends.device_of(fc.asarray(there, device="cuda")) == "cuda:0"
    back = fc.asarray(there, device="cpu")
    assert type(back) is np.ndarray and np.array_equal(back, x)
    assert fc.asarray(x) is x and fc.asarray(fc.Tensor(x)) is x
    assert fc.asarray([[1, 2]], "float32", "cuda").dtype == np.float32
    with backends.on(there):
        there[...] = 0
    assert x.any(), "a copy on a device is no view of the host"


def test_strided_arrays_go_between_devices():
    """CuPy copies contiguous ones only."""
    x = drawn((4, 6))
    there = fc.asarray(fc.asarray(x, device="cuda")[::2, ::3], device="cuda:1")
    assert backends.device_of(there) == "cuda:1" and np.array_equal(there.get(), x[::2, ::3])


def test_a_tensor_goes_and_its_gradient_comes_back():
    x = fc.Tensor(drawn((2, 3)), requires_grad=True)
    y = (x.to("cuda") * 2).to("cuda:1").to("cpu") * 3
    assert type(y.data) is np.ndarray
    y.backward(np.ones((2, 3), "float32"))
    assert type(x.grad) is np.ndarray and (x.grad == 6).all()
    assert x.to("cuda").device == "cuda:0" and np.array_equal(x.to("cuda:1").numpy(), x.data)


@pytest.mark.parametrize("foreign", [WithDlpack, WithInterface])
def test_arrays_of_other_libraries_share_their_memory(foreign):
    x = fc.asarray(drawn((1, 1, 8)), device="cuda")
    given = foreign(x)
    adopted = fc.asarray(given)
    x[0, 0, 0] = 5
    assert float(adopted[0, 0, 0]) == 5 and float(fc.Tensor(given).data[0, 0, 0]) == 5
    y = fc.relu(given)
    assert type(y) is DeviceArray and np.array_equal(y.get(), np.maximum(x.get(), 0))


def test_a_tensor_is_handed_on_by_dlpack():
    torch = pytest.importorskip("torch")
    x = fc.Tensor(drawn((2, 3)))
    shared = torch.from_dlpack(x)
    x.data[0, 0] = 7
    assert shared[0, 0] == 7
    assert fc.Tensor(fc.asarray(x, device="cuda:1")).__dlpack_device__() == (2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda here, there: fc.conv1d(here, there), "conv1d: weight is on cuda:0 but input on cpu; move one, e.g. "),
        (lambda here, there: fc.conv1d(there, here), 'weight is on cpu .*fc.asarray.weight, device="cuda:0".'),
        (lambda here, there: fc.Tensor(here) + fc.Tensor(there), "operands are on cpu and cuda:0"),
        (lambda here, there: fc.mse_loss(there, fc.asarray(here, device="cuda:1")), "target is on cuda:1 but input on"),
        (lambda here, there: nn.capture(nn.Conv1d(1, 2, 3).eval(), there), "model and example are on cuda:0 and cpu"),
        (lambda here, there: fc.asarray(here, device="cuda:2"), "there are 2 CUDA devices, numbered from 0"),
    ],
)
def test_devices_do_not_mix(call, message):
    x = drawn((1, 1, 3))
    with pytest.raises(DeviceError, match=message):
        call(x, fc.asarray(x, device="cuda"))


def test_a_module_moves_with_its_gradients_and_buffers():
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    fc.relu(model(fc.Tensor(drawn((2, 1, 8))))).sum().backward()
    assert model.to("cuda:1") is model
    places = [p.device for p in model.parameters()] + [backends.device_of(b) for b in model.buffers()]
    assert set(places) == {"cuda:1"} and {backends.device_of(p.grad) for p in model.parameters()} == {"cuda:1"}
    model.load_state_dict(before)
    model.to("cpu")
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    assert nn.Linear(2, 3, device="cuda:1").weight.device == "cuda:1"


# Work


def test_training_on_a_device_that_is_not_the_current_one():
    """Everything happens on the model's device, and with the numbers of the CPU."""
    x, y = drawn((12, 1, 8, 8)), np.random.default_rng(1).integers(0, 10, 12)
    losses = {}
    for device in ("cpu", "cuda:1"):
        fc.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64, 10),
        ).to(device)
        optimizer = fc.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        batches = Batches(x, y, 6, shuffle=True, seed=0)
        history = training.fit(model, batches, fc.cross_entropy, optimizer, 2, validation=batches, progress=False)
        losses[device] = [row[name] for row in history for name in ("loss", "accuracy", "validation_loss")]
        assert {p.device for p in model.parameters()} == {device}
        assert training.predict(model, x).shape == (12, 10)
    np.testing.assert_allclose(losses["cuda:1"], losses["cpu"], rtol=1e-4)
    assert emulated_arrays.Device.current() == 0


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_of_one_device_continues_on_another(tmp_path, first, then):
    x, y = drawn((8, 1, 8, 8)), np.random.default_rng(1).integers(0, 10, 8)

    def run(device, epochs, resume):
        fc.manual_seed(0)
        model = models.DigitsNet(8).to(device)
        optimizer = fc.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        batches = Batches(x, y, 8, seed=0)
        path = tmp_path / "checkpoint.safetensors"
        return training.fit(
            model, batches, fc.cross_entropy, optimizer, epochs, checkpoint=path, resume=resume, progress=False
        )

    run(first, 1, False)
    history = run(then, 2, True)
    assert len(history) == 2 and history[1]["loss"] != history[0]["loss"]


def test_the_demo_runs_on_the_device(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    few = [part[:40] for part in data.load_digits()]
    monkeypatch.setattr(data, "load_digits", lambda: few)
    options = "--epochs 1 --batch-size 32 --no-plots --device cuda --out"
    assert cli.main(["train", "digits", *options.split(), str(tmp_path)]) == 0
    assert "test accuracy" in capsys.readouterr().out


def test_memory_that_runs_out_is_named_and_freed(monkeypatch):
    x, w = (fc.asarray(drawn(shape), device="cuda") for shape in ((1, 2, 9), (2, 2, 3)))
    freed = []
    monkeypatch.setattr(platform, "_platform", replaced(free_memory=lambda: freed.append(1)))

    def none_left(*args, **kwargs):
        raise MemoryError("Out of memory allocating 1,024 bytes (allocated so far: 512 bytes).")

    monkeypatch.setattr(emulated_arrays, "make", none_left)
    with pytest.raises(MemoryError, match=r"conv_forward on cuda:0: Out of memory allocating 1,024 bytes") as caught:
        fc.conv1d(x, w)
    assert freed and caught.value.__context__ is None, "an error in the background would keep arrays alive"


def replaced(**parts):
    return replace(platform.current(), **parts)


class Raw:
    """What a kernel is told before its launches."""

    max_dynamic_shared_size_bytes = 0

    def __call__(self, grid, block, arguments, shared_mem):
        assert shared_mem <= self.max_dynamic_shared_size_bytes


def test_no_launch_takes_shared_memory_from_another_thread():
    raw, allowed = Raw(), []
    for shared in (90 << 10, 50 << 10):
        Kernel(raw)((1,), (32,), shared=shared)
        allowed.append(raw.max_dynamic_shared_size_bytes)
    assert allowed == [99 << 10, 99 << 10]


# Graphs


def test_a_graph_keeps_the_tables_that_it_reads(monkeypatch):
    """The caches of geometries forget old ones, and their memory would be given to other arrays."""
    tables, on_device = [], Table.on_device

    def watched(table):
        tables.append(weakref.ref(table))
        return on_device(table)

    monkeypatch.setattr(Table, "on_device", watched)
    x = fc.asarray(drawn((2, 2, 11)), device="cuda")
    captured = nn.capture(nn.Conv1d(2, 3, 3).to("cuda").eval(), x)
    for module in (convolution, correlation):
        for function in vars(module).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
    gc.collect()
    assert tables and all(table() is not None for table in tables)
    assert captured(x).shape == (2, 3, 9)


@pytest.mark.parametrize("leave", [lambda model: model.to("cpu"), lambda model: None], ids=["moved", "forgotten"])
def test_a_graph_keeps_the_parameters_that_it_reads(leave):
    """A graph of the GPU knows addresses: here, as there, it holds nothing of the work that it recorded."""
    platform.use(replaced(record=lambda work: (lambda: None, work())))  # the fixture takes it away again
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)).to("cuda").eval()
    read = [weakref.ref(array._host) for array in model.state_dict().values()]
    captured = nn.capture(model, fc.asarray(drawn((2, 2, 11)), device="cuda"))
    leave(model)
    del model
    gc.collect()
    assert captured is not None and all(memory() is not None for memory in read)


class Reading(nn.Module):
    def forward(self, x):
        return x if float(x.sum()) else -x


def test_a_graph_is_of_nothing_that_the_host_sees():
    with pytest.raises(RuntimeError, match="StreamCapture"):
        nn.capture(Reading().eval(), fc.asarray(drawn(3), device="cuda"))


def test_a_table_is_there_before_another_stream_reads_it(monkeypatch):
    asked, asarray = [], emulated_arrays.Namespace.asarray

    def watched(xp, value, **options):
        asked.append(options)
        return asarray(xp, value, **options)

    monkeypatch.setattr(emulated_arrays.Namespace, "asarray", watched)
    Table(np.arange(3)).on_device()
    assert asked == [{"blocking": True}]


# What is missing


def test_what_is_missing_is_said(monkeypatch):
    platform.use(None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r'needs CuPy, which is not installed: pip install "fastconv\[cuda13\]"'):
        to_device(drawn(3), "cuda")


def test_a_missing_driver_is_said():
    def none():
        raise RuntimeError("cudaErrorInsufficientDriver")

    platform.use(replaced(device_count=none))  # the fixture takes it away again
    with pytest.raises(DeviceError, match=r"found no usable GPU or driver .cudaErrorInsufficient"):
        nn.ReLU().to("cuda")


def test_the_backend_does_not_import_cupy():
    code = "import sys, fastconv.backends.cuda; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The stand-in


def test_what_stands_in_for_cupy_has_nothing_that_cupy_lacks():
    cupy = pytest.importorskip("cupy")
    names = emulated_arrays.METHODS | emulated_arrays.PROPERTIES
    assert [name for name in names if not hasattr(cupy.ndarray, name)] == []
    functions = emulated_arrays.FUNCTIONS | emulated_arrays.MAKERS | emulated_arrays.VALUES
    assert [name for name in functions if not hasattr(cupy, name)] == []


def test_arrays_of_the_device_are_out_of_reach_for_numpy():
    x = fc.asarray(drawn((2, 3)), device="cuda")
    for misuse in (np.asarray, np.sum, lambda a: a + np.ones((2, 3)), lambda a: np.add(np.ones(3), a), list):
        if misuse is list:
            assert all(type(row) is DeviceArray for row in misuse(x))
            continue
        with pytest.raises(TypeError):
            misuse(x)
    assert type(x.sum()) is DeviceArray and x.sum().shape == ()
    assert np.isnan(platform.current().xp.empty((2, 2), "float32").get()).all()
