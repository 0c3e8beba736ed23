"""The benchmark's cases, its arithmetic, and one quick run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fastconv as fc
from bench import architectures, compare, convolution, networks, report, timing
from bench.case import relative_error, results
from bench.competitors import COMPETITORS, Fastconv, NotOffered, missing, start
from bench.cpu import Cpu
from bench.device import floor

LINE = {
    "case": "line",
    "table": "convolution forward",
    "flops": 4_000_000_000,
    "traffic": 1 << 20,
    "floor_ms": 10.0,
    "roof": "float32",
    "ms": {"fastconv": 20.0, "torch": 30.0, "jax": 25.0},
    "ratio": {"torch": 1.5, "jax": 1.25},
    "absent": {"onnxruntime": "not installed: pip install onnx onnxruntime"},
}


def case_named(name):
    (case,) = (case for case in compare.load() if case.name == name)
    return case


def test_table_has_the_19_first_and_20_extended_cases_and_six_in_float64():
    table = convolution.load()
    assert Counter((case.subset, case.dtype) for case in table) == {
        ("first", "float32"): 19,
        ("extended", "float32"): 20,
        ("extended", "float64"): 6,
    }


def test_names_are_unique_and_sets_choose():
    names = [case.name for case in compare.load()]
    assert len(set(names)) == len(names)
    assert {case.family for case in compare.load(["layers", "networks"])} == {"layers", "networks"}
    assert [case.name for case in compare.load(["first"])] == names[:19]


def test_costs_of_a_convolution_by_hand():
    case = case_named("1d_3_8_k7")  # 32 × (3 → 8 channels), 3001 positions, 7 taps
    weights = 8 * 3 * 7 + 8
    assert case.flops("forward") == 2 * 32 * 8 * 3001 * 3 * 7
    assert case.flops("backward") == 2 * case.flops("forward")
    assert case.traffic("forward") == 4 * (32 * 3001 * (3 + 8) + weights)
    assert case.traffic("backward") == 4 * (32 * 3001 * (3 + 3 + 8) + 2 * weights)
    assert case_named("1d_3_8_k7_f64").traffic("forward") == 2 * case.traffic("forward")


@pytest.mark.parametrize(
    ("name", "direction", "elements"),
    [
        ("relu", "forward", 2 * 8 * 64 * 112**2),
        ("relu", "backward", 3 * 8 * 64 * 112**2),
        ("max_pool_2x2s2", "forward", 8 * 64 * (112**2 + 56**2)),
        ("max_pool_3x3s2", "backward", 8 * 64 * (112**2 + 56**2)),
        ("bilinear_2x", "backward", 8 * 64 * (112**2 + 56**2)),
        ("batch_norm_train", "forward", 3 * 8 * 64 * 112**2 + 128),
        ("batch_norm_train", "backward", 5 * 8 * 64 * 112**2 + 256),
        ("group_norm_volume", "forward", 2 * 32 * 64**3 + 64),
        ("group_norm_volume", "backward", 3 * 32 * 64**3 + 128),
        ("sgd_momentum", "step", 5 * 11_689_512),
    ],
)
def test_traffic_of_layers_by_hand(name, direction, elements):
    assert case_named(name).traffic(direction) == 4 * elements


def test_multiply_adds_of_networks_by_hand(monkeypatch):
    assert networks.multiply_adds("lenet5") == 28**2 * 150 + 10**2 * 2400 + 48_000 + 10_080 + 840
    sizes = {"in_channels": 1, "classes": 2, "widths": (2, 4), "kernel": 3}
    tiny = networks.ARCHITECTURES["unet1d"]._replace(
        fastconv=lambda: architectures.unet(fc.nn, fc.concatenate, 1, **sizes), sample=(1, 8)
    )
    monkeypatch.setitem(networks.ARCHITECTURES, "tiny", tiny)
    down, up, merge, head = 8 * (2 + 4) * 3 + 4 * (8 + 16) * 3, 4 * (4 * 2 * 2), 8 * (8 + 4) * 3, 8 * 2 * 2
    assert networks.multiply_adds("tiny") == down + up + merge + head


@pytest.mark.parametrize(
    ("flops", "traffic", "seconds"),
    [(200e9, 0, 2.0), (0, 1000, 1e-7), (0, 5000, 1e-6), (0, 20_000, 4e-6), (100e9, 1000, 1.0)],
)
def test_floor_is_the_slower_of_arithmetic_and_memory(flops, traffic, seconds):
    measured = {"gflops": {"float32": 100.0, "float64": 50.0}, "copy_gbs": {1000: 10.0, 16_000: 5.0}}
    assert floor(measured, flops, traffic, "float32") == (pytest.approx(seconds), "float32" if flops else "copy")
    if flops:
        assert floor(measured, flops, traffic, "float64") == (pytest.approx(2 * seconds), "float64")


def test_rows_of_the_table_line_up_with_their_head():
    columns = report.Columns(["torch", "torch channels-last", "onnxruntime", "jax"])
    row = columns.text_row(columns.cells(LINE))
    assert row.split() == ["line", "20.000", "200.0", "0.1", "50", "float32", "1.25", "1.50", "-", "-", "1.25"]
    footer = columns.text_footer([LINE]).splitlines()
    assert len(row) == len(columns.text_row(columns.head("convolution forward"))) == len(footer[0])
    assert footer[0].split() == ["geometric", "mean", "1.25", "1.50", "-", "-", "1.25"]
    assert footer[2] == "- onnxruntime: not installed: pip install onnx onnxruntime (1 of 1 lines)"


def test_an_absent_peer_is_said_with_its_install_line(monkeypatch):
    monkeypatch.setattr(COMPETITORS["jax"], "packages", ("no_such_package",))
    monkeypatch.setattr(COMPETITORS["torch"], "packages", ("no_such_package",))
    present, absent = start(1)
    assert "fastconv" in present and "jax" not in present
    assert absent["jax"] == "not installed: pip install no_such_package"


class Constant(Fastconv):
    """Answers every convolution with one number, and counts its calls."""

    def __init__(self, value):
        super().__init__(1)
        self.value, self.calls = value, 0

    def convolution(self, case, direction, operands):
        def call():
            self.calls += 1
            return np.full(case.geometry.output_shape(case.batch), self.value)

        return call


def test_a_wrong_result_is_not_timed():
    competitors = {"fastconv": Constant(1.0), "torch": Constant(1.1)}
    with pytest.raises(ArithmeticError, match="relative L2 difference to torch is"):
        timing.measure(case_named(compare.TINY), "forward", competitors, Cpu(1), timing.QUICK)
    assert competitors["fastconv"].calls == 1


def test_a_peer_that_differs_from_all_others_is_not_timed():
    competitors = {"fastconv": Constant(1.0), "torch": Constant(1.0), "jax": Constant(1.1)}
    line = timing.measure(case_named(compare.TINY), "forward", competitors, Cpu(1), timing.QUICK)
    assert list(line["ratio"]) == ["torch"] and competitors["jax"].calls == 1
    assert line["absent"] == {"jax": "relative L2 difference to jax is 9.1e-02; in agreement: torch"}


def test_a_long_call_takes_few_rounds_and_a_hopeless_peer_one():
    effort = timing.Effort(rounds=11, block_seconds=0.04, line_seconds=6.0)
    names = "fastconv", "torch", "jax"
    assert timing._rounds(dict.fromkeys(names, 0.01), dict.fromkeys(names, 4), effort) == dict.fromkeys(names, 11)
    assert timing._rounds(dict.fromkeys(names, 4.0), dict.fromkeys(names, 1), effort) == dict.fromkeys(names, 3)
    slow = {"fastconv": 0.04, "torch": 0.05, "jax": 0.4}
    assert timing._rounds(slow, dict.fromkeys(names, 1), effort) == {"fastconv": 11, "torch": 11, "jax": 1}


@pytest.mark.parametrize("name", [name for name in COMPETITORS if name != "fastconv"])
def test_peers_agree_on_a_tiny_convolution(name):
    if packages := missing(COMPETITORS[name]):
        pytest.skip(f"pip install {' '.join(packages)}")
    case, ours, peer = case_named(compare.TINY), Fastconv(1), COMPETITORS[name](1)
    for direction in case.directions:
        prepare = case.prepare(direction)
        try:
            call = prepare(peer)
        except NotOffered as reason:
            assert str(reason) == "ONNX Runtime computes no gradients"
            continue
        assert relative_error(results(ours, prepare(ours)()), results(peer, call())) < case.tolerance(direction)


@pytest.mark.parametrize("name", ["torch", "torch channels-last", "onnxruntime"])
def test_peers_agree_on_the_inference_of_a_network(name):
    pytest.importorskip("torch", reason="pip install torch")
    if packages := missing(COMPETITORS[name]):
        pytest.skip(f"pip install {' '.join(packages)}")
    case, ours, peer = case_named("lenet5_b1"), Fastconv(1), COMPETITORS[name](1)
    for direction in ("inference", "captured"):
        prepare = case.prepare(direction)
        assert relative_error(results(ours, prepare(ours)()), results(peer, prepare(peer)())) < 1e-5


def test_inference_is_captured_too():
    captured = [case.name for case in networks.load() if "captured" in case.directions]
    assert captured == [case.name for case in networks.load() if "inference" in case.directions]
    assert "unet1d_b1" in captured and "unet1d_b32" not in captured


@pytest.mark.parametrize("name", networks.ARCHITECTURES)
def test_both_libraries_make_the_same_network(name):
    torch = pytest.importorskip("torch", reason="pip install torch")
    entry = networks.ARCHITECTURES[name]
    own, theirs = entry.fastconv().state_dict(), entry.torch(torch).state_dict()
    assert {key: array.shape for key, array in own.items()} == {key: tuple(t.shape) for key, t in theirs.items()}


def test_a_training_step_agrees_with_pytorch():
    pytest.importorskip("torch", reason="pip install torch")
    case = case_named("lenet5_b64")
    competitors = Fastconv(1), COMPETITORS["torch"](1)
    calls = [case.prepare("training")(competitor) for competitor in competitors]
    for _ in range(2):  # the second begins with the weights that the first changed
        ours, theirs = (results(competitor, call()) for competitor, call in zip(competitors, calls))
        assert relative_error(ours, theirs) < 1e-4


def test_jax_gets_no_more_threads_than_asked():
    if packages := missing(COMPETITORS["jax"]):
        pytest.skip(f"pip install {' '.join(packages)}")
    if not Path("/proc/self/task").exists():
        pytest.skip("the threads of a process are counted in Linux's /proc")
    code = (
        "from pathlib import Path; from bench.competitors.jax import Jax; jnp = Jax(3).jax.numpy; jnp.ones(3).sum()\n"
        "print(sum('XLAEigen' in (task / 'comm').read_text() for task in Path('/proc/self/task').iterdir()))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "3\n"


def test_quick_run_writes_tables_json_and_charts(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    assert compare.main(["--quick", "--cases", compare.TINY, "lenet5_b1", "--output", str(tmp_path / "quick")]) == 0
    summary = json.loads((tmp_path / "quick.json").read_text(encoding="utf-8"))
    titles = ["convolution forward", "convolution backward", "networks inference", "networks captured"]
    assert list(report.tables(summary["cases"])) == titles
    assert summary["tiny_call"]["ms"]["fastconv"] > 0
    table = (tmp_path / "quick.md").read_text(encoding="utf-8")
    assert all(f"| {title} | ms |" in table for title in titles)
    for family in ("convolution", "networks"):
        assert (tmp_path / f"quick-{family}.png").read_bytes()[:4] == b"\x89PNG"
    assert "geometric mean" in capsys.readouterr().out


def test_no_such_case_is_said(capsys):
    assert compare.main(["--cases", "no such", "--direction", "step"]) == 2
    assert capsys.readouterr().out == "no case contains no such and has step\n"
