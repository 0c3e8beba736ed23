"""The benchmark's GPU mode, without a GPU: its lines, clock, roofs and report; fastconv's calls on the emulator."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import emulator
import numpy as np
import pytest
from emulator import nvrtc
from emulator.platform import RawModule

import fastconv as fc
from bench import architectures, compare, cuda, layers, networks, report
from bench.case import relative_error, results
from bench.competitors import COMPETITORS, Fastconv, NotOffered, missing, names, start
from bench.convolution import Convolution
from bench.cuda import clock, lines, machine, roofs
from bench.device import floor
from bench.layers import Labels, Layer
from fastconv import backends
from fastconv.errors import DeviceError
from fastconv.geometry import ConvGeometry

on_emulator = pytest.mark.skipif(bool(emulator.why_missing()), reason=emulator.why_missing())
PROPERTIES = {
    "name": b"NVIDIA H100 80GB HBM3",
    "major": 9,
    "minor": 0,
    "multiProcessorCount": 2,
    "totalGlobalMem": 80 << 30,
    "l2CacheSize": 50 << 20,
}


def has_gpu() -> bool:
    try:
        backends.get("cuda")
    except DeviceError:
        return False
    return True


on_gpu = pytest.mark.skipif(not has_gpu(), reason="needs a CUDA device and CuPy")
without_gpu = pytest.mark.skipif(has_gpu(), reason="says what is missing where there is no GPU")


def line_named(name):
    (case,) = (case for case in lines.load() if case.name == name)
    return case


# Lines


def test_a_gpu_has_the_lines_of_the_cpu_and_two_sets_of_its_own():
    cases = lines.load()
    ours, theirs = ({case.name: case for case in some} for some in (cases, compare.load()))
    assert len(ours) == len(cases), "names are unique"
    assert [name for name in ours if name not in theirs] == [
        *(f"{name}_x16" for name in lines.DENSE + lines.MEMORY),
        *(f"{name}_x16_{suffix}" for name in lines.DENSE for suffix in ("f16", "bf16", "tf32")),
    ]
    assert all(ours[name] == theirs[name] for name in theirs if ours[name].subset != "networks")
    assert Counter((case.dtype, case.precision) for case in cases if case.subset == "half") == {
        ("float16", "default"): len(lines.DENSE),
        ("bfloat16", "default"): len(lines.DENSE),
        ("float32", "fast"): len(lines.DENSE),
    }
    assert cuda.Cuda.sets() == ["first", "extended", "layers", "networks", "large", "half"]


def test_large_lines_have_sixteen_times_the_batch():
    pytest.importorskip("ml_dtypes", reason="pip install ml_dtypes")
    assert line_named("dw7_96_56_x16").geometry.input_shape(128) == (128, 96, 56, 56)
    assert line_named("dw7_96_56_x16").batch == 128
    assert line_named("avg_pool_3d_2s2_x16").output_shape == (16, 32, 32, 32, 32)
    large, half = line_named("resnet_64_56_x16"), line_named("resnet_64_56_x16_bf16")
    assert (large.table("forward"), half.table("backward")) == ("large forward", "half backward")
    assert half.traffic("forward") * 2 == large.traffic("forward")
    assert half.flops("forward") == large.flops("forward") == 16 * line_named("resnet_64_56").flops("forward")


# Timing


def test_a_rotation_meets_all_operands_in_turn_and_keeps_the_results_of_a_round():
    waited = []
    call = clock.Rotation([lambda: "a", lambda: "b", lambda: "c"], waited.append)
    assert [call() for _ in range(4)] == ["a", "b", "c", "a"]
    call.wait()
    assert waited == ["a"] and call._results == ["a", "b", "c"]


@pytest.mark.parametrize(("traffic", "times"), [(0, 32), (1 << 20, 32), (10 << 20, 15), (100 << 20, 2), (1 << 30, 1)])
def test_operands_fill_the_cache_three_times(traffic, times):
    assert clock.copies(traffic, 50 << 20) == times


def test_the_first_round_of_a_rotation_is_not_timed():
    made = []
    timer = clock.Clock(Event, lambda begin, end: made.append("timed") or 1.0, lambda: None)
    call = clock.Rotation([lambda: made.append("a"), lambda: made.append("b")], lambda result: None)
    call()
    for _ in range(2):
        timer.block(call, 1, warm=False)
    assert made == ["a", "b", "a", "timed", "b", "timed"]


def test_a_block_is_timed_from_an_idle_device_to_the_end_of_the_last_call():
    done = []

    class Event:
        def __init__(self):
            self.number = sum(entry == "event" for entry in done)
            done.append("event")

        def record(self):
            done.append(f"record {self.number}")

        def synchronize(self):
            done.append(f"await {self.number}")

    def elapsed_ms(begin, end):
        assert (begin.number, end.number) == (0, 1)
        return 6.0

    timer = clock.Clock(Event, elapsed_ms, lambda: done.append("synchronise"))
    call = clock.Rotation([lambda: done.append("call")], lambda result: done.append("wait"))
    call()
    done.clear()
    assert timer.block(call, 3, warm=False) == pytest.approx(0.002)
    assert done == [*["event"] * 2, "synchronise", "record 0", *["call"] * 3, "wait", "record 1", "await 1"]
    done.clear()
    timer.block(call, 1, warm=True)
    assert done[:3] == ["call", "wait", "synchronise"], "the device is never far behind"


# Roofs


@pytest.mark.parametrize(
    ("name", "roof"),
    [
        ("vgg_256_56", "3xtf32"),
        ("vgg_256_56_x16_tf32", "tf32"),
        ("vgg_256_56_x16_f16", "float16"),
        ("vgg_256_56_x16_bf16", "bfloat16"),
        ("resnet_64_56_f64", "float64"),
        ("dw7_96_56_x16", "ffma"),
        ("sobel_1_2_1024", "3xtf32"),
        ("max_pool_2x2s2", "3xtf32"),
        ("unet1d_b1", "3xtf32"),
    ],
)
def test_which_roof_a_line_can_reach(name, roof):
    case = line_named(name)
    assert roofs.of_arithmetic(case.dtype, case.precision, case.depthwise) == roof


def test_highest_precision_is_ffma_and_a_rate_not_measured_sets_no_floor():
    assert roofs.of_arithmetic("float32", "highest", False) == "ffma"
    measured = {"gflops": {"ffma": 50e3}, "copy_gbs": {1 << 29: 3000.0}}
    assert floor(measured, 10**15, 3 * 10**9, "float16") == (pytest.approx(1e-3), "copy")


@pytest.mark.skipif(bool(nvrtc.why_missing()), reason=nvrtc.why_missing())
def test_the_kernel_of_the_multiply_add_roof_compiles_without_spills():
    code = Path(roofs.__file__).with_name("roofs.cu").read_text()
    assert f"CHAINS = {roofs.CHAINS};" in code
    (resources,) = nvrtc.compile_for("sm_90a", code).values()
    assert resources.spill_stores == resources.stack == 0 and resources.registers <= 32


# Competitors


def test_who_takes_part_on_a_gpu():
    assert names("cuda") == ["fastconv", "torch", "torch channels-last", "jax"]


@without_gpu
@pytest.mark.parametrize(("name", "reason"), [("torch", "PyTorch .* finds no GPU: "), ("jax", "JAX finds no GPU .*: ")])
def test_peers_without_a_gpu_say_so(name, reason):
    if packages := missing(COMPETITORS[name]):
        pytest.skip(f"pip install {' '.join(packages)}")
    with pytest.raises(NotOffered, match=reason + "pip install "):
        COMPETITORS[name](1, "cuda")
    with emulator.in_use():
        present, absent = start(1, "cuda")
    assert list(present) == ["fastconv"] and name in absent


def test_tf32_is_for_fast_lines_alone():
    torch = pytest.importorskip("torch", reason="pip install torch")
    before = torch.backends.cudnn.allow_tf32
    for level, allowed in (("default", False), ("fast", True), ("highest", False)):
        with COMPETITORS["torch"](1).precision(level):
            assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is before


def test_jax_is_told_the_precision_of_a_gpu():
    jax = pytest.importorskip("jax", reason="pip install jax")
    competitor = COMPETITORS["jax"](1)
    competitor.device = "cuda"
    for level, told in (("default", "highest"), ("fast", "tensorfloat32")):
        with competitor.precision(level):
            assert jax.config.jax_default_matmul_precision == told


SMALL = Convolution(
    "small", "half", ("forward", "backward"), 2, ConvGeometry.of("conv2d", (2, 3, 6, 5), (4, 3, 3, 3), padding=1)
)
TINY_UNET = networks.ARCHITECTURES["unet1d"]._replace(
    fastconv=lambda: architectures.unet(fc.nn, fc.concatenate, 1, in_channels=3, classes=3, widths=(2, 4), kernel=3),
    torch=lambda torch: architectures.unet(torch.nn, torch.cat, 1, in_channels=3, classes=3, widths=(2, 4), kernel=3),
    sample=(3, 16),
)


def small(case):
    """No size above 8; optimisers know none."""
    if not isinstance(case, Layer):
        return case

    def cut(sizes):
        if isinstance(sizes, Labels):
            return Labels(cut(sizes.shape), min(sizes.classes, 8))
        return None if sizes is None else tuple(min(size, 8) for size in sizes)

    second = cut(case.second) if isinstance(case.second, tuple) else case.second
    return replace(case, operands=tuple(map(cut, case.operands)), second=second)


LINES = {
    "float32": SMALL,
    "float16": replace(SMALL, dtype="float16"),
    "bfloat16": replace(SMALL, dtype="bfloat16"),
    "tf32": replace(SMALL, precision="fast"),
    **{case.name: small(case) for case in layers.load()},
    "network": networks.Network("unet", "networks", ("inference", "captured", "training"), "tiny unet", 2),
}


@on_emulator
@pytest.mark.parametrize("name", LINES)
def test_fastconv_on_a_gpu_and_pytorch_agree(name, monkeypatch):
    """With PyTorch's code on the CPU: it is the same but for the name of the device."""
    pytest.importorskip("torch", reason="pip install torch")
    pytest.importorskip("ml_dtypes", reason="pip install ml_dtypes")
    monkeypatch.setitem(networks.ARCHITECTURES, "tiny unet", TINY_UNET)
    monkeypatch.setattr("bench.layers.models.ResNet", lambda: fc.nn.Linear(3, 2))
    case, peer = LINES[name], COMPETITORS["torch"](1)
    with emulator.in_use():
        ours = Fastconv(1, "cuda")
        for direction in case.directions:
            prepare = case.prepare(direction)
            with ours.precision(case.precision), peer.precision(case.precision):
                output = prepare(ours)()
                first = output[0] if isinstance(output, (tuple, list)) else output
                assert backends.device_of(fc.asarray(first)) == "cuda:0"
                assert relative_error(results(ours, output), results(peer, prepare(peer)())) < case.tolerance(direction)
        ours.release()


# The run


class Event:
    """As CuPy's, for work that is done when the call returns."""

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


def stand_in():
    """What the benchmark asks of CuPy itself."""
    runtime = SimpleNamespace(
        getDeviceProperties=lambda number: PROPERTIES, driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13020
    )
    device = SimpleNamespace(id=0, pci_bus_id="0000:01:00.0", synchronize=lambda: None)
    events = {"Event": Event, "get_elapsed_time": lambda begin, end: 1e3 * (end.time - begin.time)}
    return SimpleNamespace(
        __version__="14.2.0",
        cuda=SimpleNamespace(runtime=runtime, Device=lambda: device, **events),
        RawModule=lambda code: RawModule(code, (), None),
        zeros=lambda *given: fc.asarray(np.zeros(*given), device="cuda"),
        ones=np.ones,
        copyto=np.copyto,
    )


@pytest.fixture
def emulated_run(monkeypatch):
    """`python -m bench --device cuda` with the emulator in the place of the GPU."""
    if reason := emulator.why_missing():
        pytest.skip(reason)
    monkeypatch.setattr(cuda.Cuda, "_cupy", lambda self: stand_in())
    monkeypatch.setattr(machine, "_asked", lambda bus_id: {"clocks.max.sm": "1980 MHz"})
    for name, value in {"COPY_BYTES": (1 << 12, 1 << 16), "STEPS": 16, "BLOCKS_PER_PROCESSOR": 1, "COUNT": 1}.items():
        monkeypatch.setattr(roofs, name, value)
    with emulator.in_use():
        yield


@without_gpu
def test_a_run_on_a_gpu_writes_its_tables_and_charts(emulated_run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    few = [replace(line_named("tiny_1_8_8"), name=name, subset=subset) for name, subset in NAMED]
    monkeypatch.setattr(cuda.Cuda, "cases", classmethod(lambda cls: few))
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    assert compare.main(["--device", "cuda", "--direction", "forward", "--quick"]) == 0
    summary = json.loads((tmp_path / "latest.json").read_text(encoding="utf-8"))
    assert list(report.tables(summary["cases"])) == ["convolution forward", "large forward"]
    assert {"ffma", "3xtf32"} <= set(summary["roofs"]["gflops"]) and summary["device"]["compute_capability"] == "9.0"
    assert summary["peers"] == ["torch", "torch channels-last", "jax"]
    line = summary["cases"][0]
    assert line["ms"]["fastconv"] > 0 and line["algorithm"] and line["roof"] in ("copy", "3xtf32")
    table = (tmp_path / "latest.md").read_text(encoding="utf-8")
    assert "NVIDIA H100 80GB HBM3, compute capability 9.0, 2 multiprocessors, 80 GiB, L2 50 MiB" in table
    assert "clocks.max.sm 1980 MHz" in table and "CUDA driver 13.0, CUDA runtime 13.2" in table
    assert "- torch: PyTorch" in table and "onnxruntime" not in table
    assert (tmp_path / "latest-large.png").exists()
    assert "latest-large.png" in capsys.readouterr().out


NAMED = (("tiny_1_8_8", "extended"), ("tiny_x16", "large"))


@on_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_a_quick_run_on_a_gpu(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    cases = ["tiny_1_8_8", "lenet5_b1", "adamw", "pw_192_28", "resnet_512_7_x16_bf16"]
    assert compare.main(["--device", "cuda", "--quick", "--cases", *cases, "--output", str(tmp_path / "quick")]) == 0
    summary = json.loads((tmp_path / "quick.json").read_text(encoding="utf-8"))
    assert {"networks captured", "half backward", "layers step"} <= set(report.tables(summary["cases"]))


def test_results_are_named_after_the_device(emulated_run):
    assert cuda.Cuda(1).results_name == "nvidia-h100-80gb-hbm3"


def test_a_line_that_fails_leaves_the_others(emulated_run, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    few = [replace(line_named("tiny_1_8_8"), name=name) for name in ("tiny_1_8_8", "tiny_broken")]
    monkeypatch.setattr(cuda.Cuda, "cases", classmethod(lambda cls: few))
    convolution = Fastconv.convolution

    def failing(self, case, direction, operands):
        if case.name == "tiny_broken":
            raise RuntimeError("out of everything")
        return convolution(self, case, direction, operands)

    monkeypatch.setattr(Fastconv, "convolution", failing)
    output = tmp_path / "some"
    assert compare.main(["--device", "cuda", "--direction", "forward", "--quick", "--output", str(output)]) == 1
    assert "WRONG: tiny_broken forward: RuntimeError: out of everything" in capsys.readouterr().out
    assert [line["case"] for line in json.loads(output.with_name("some.json").read_text())["cases"]] == ["tiny_1_8_8"]


@without_gpu
def test_without_a_gpu_the_run_says_what_is_missing(capsys):
    assert compare.main(["--device", "cuda", "--cases", "tiny_1_8_8"]) == 2
    assert capsys.readouterr().err.startswith('python -m bench --device cuda: device="cuda"')


def test_a_set_of_the_gpu_is_not_one_of_the_cpu(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--set", "half"])
    assert "--set half: on cpu there are first, extended, layers, networks, all" in capsys.readouterr().err
