"""The benchmark's table, its arithmetic, and one quick run from end to end."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from bench import cases, compare, report, roofs

LINE = {
    "case": "line",
    "direction": "forward",
    "flops": 4_000_000_000,
    "traffic": 1 << 20,
    "floor_ms": 10.0,
    "ms": {"fastconv": 20.0, "torch": 30.0},
    "ratio": {"torch": 1.5},
    "absent": {"onnxruntime": "not installed: onnxruntime"},
}


def test_table_has_the_19_first_and_20_extended_cases():
    table = cases.load()
    assert Counter(case.subset for case in table) == {"first": 19, "extended": 20}
    assert len({case.name for case in table}) == 39
    assert [case.name for case in cases.load("first")] == [case.name for case in table[:19]]


def test_costs_of_a_case_by_hand():
    (case,) = cases.load(name_contains=["1d_3_8_k7"])  # 32 × (3 → 8 channels), 3001 positions, 7 taps
    weights = 8 * 3 * 7 + 8
    assert case.flops("forward") == 2 * 32 * 8 * 3001 * 3 * 7
    assert case.flops("backward") == 2 * case.flops("forward")
    assert case.traffic("forward") == 4 * (32 * 3001 * (3 + 8) + weights)
    assert case.traffic("backward") == 4 * (32 * 3001 * (3 + 3 + 8) + 2 * weights)


@pytest.mark.parametrize(
    ("flops", "traffic", "seconds"),
    [(200e9, 0, 2.0), (0, 1000, 1e-7), (0, 5000, 1e-6), (0, 20_000, 4e-6), (100e9, 1000, 1.0)],
)
def test_floor_is_the_slower_of_arithmetic_and_memory(flops, traffic, seconds):
    measured = {"fma_gflops": 100.0, "copy_gbs": {1000: 10.0, 16_000: 5.0}}
    assert roofs.floor_seconds(measured, flops, traffic) == pytest.approx(seconds)


def test_rows_of_the_table_line_up_with_their_head():
    row = report.row(LINE)
    assert row.split() == ["line", "20.000", "200.0", "0.1", "50", "1.50", "-", "-"]
    assert len(row) == len(report.columns("forward")) == len(report.footer([LINE]).splitlines()[0])
    assert "- onnxruntime: not installed: onnxruntime" in report.footer([LINE])


def test_a_wrong_result_is_not_timed(monkeypatch):
    (case,) = cases.load(name_contains=[compare.TINY])
    prepare = {
        "fastconv": lambda *_: lambda: case_output(case, 1.0),
        "torch": lambda *_: lambda: case_output(case, 1.1),
    }
    monkeypatch.setattr(compare, "PREPARE", prepare)
    monkeypatch.setattr(compare, "missing", lambda name: ())
    with pytest.raises(ArithmeticError, match="tiny_1_8_8 forward: relative L2 difference to torch is"):
        compare.measure(case, "forward", threads=1, rounds=1, block_seconds=0.0)


def case_output(case, value):
    return np.full(case.geometry.output_shape(case.batch), value)


def test_quick_run_writes_table_json_and_chart(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    assert compare.main(["--quick", "--cases", compare.TINY, "--output", str(tmp_path / "quick")]) == 0
    summary = json.loads((tmp_path / "quick.json").read_text(encoding="utf-8"))
    assert [line["direction"] for line in summary["cases"]] == ["forward", "backward"]
    assert summary["tiny_call"]["ms"]["fastconv"] > 0
    assert (tmp_path / "quick.md").read_text(encoding="utf-8").splitlines()[2].startswith("| tiny_1_8_8 | ")
    assert (tmp_path / "quick.png").read_bytes()[:4] == b"\x89PNG"
    assert "geometric mean" in capsys.readouterr().out


def test_no_such_case_is_said(capsys):
    assert compare.main(["--cases", "no such"]) == 2
    assert capsys.readouterr().out == "no case of bench/cases.csv contains no such\n"
