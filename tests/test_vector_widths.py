"""Every vector width on any machine: the exact part of the table, in a process of its own for each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WIDTHS = (4, 8, 16)

PROGRAM = """
import numpy as np
from expected import exact
from problems import PROBLEMS
import fastconv as fc
from fastconv.backends.cpu import host

assert host.LANES == {width}
fc.precision("highest")
for problem in PROBLEMS:
    for dtype in ("float32", "float64"):
        arrays, expected, window = problem.integers(dtype), exact(problem), problem.window
        x, w, b, gy = arrays.x, arrays.w, arrays.b, arrays.gy
        name = f"conv{{problem.rank}}d"
        gx = getattr(fc.grad, f"{{name}}_input")(x.shape, w, gy, **window)
        gw = getattr(fc.grad, f"{{name}}_weight")(x, w.shape, gy, **window)
        assert np.array_equal(fc.conv(x, w, b, **window), expected.forward), (problem.line, dtype, "forward")
        assert np.array_equal(gx, expected.input_grad), (problem.line, dtype, "input gradient")
        assert np.array_equal(gw, expected.weight_grad), (problem.line, dtype, "weight gradient")
fc.precision("default")
for problem in PROBLEMS:
    arrays, window = problem.normal("float32"), problem.window
    fast, exact = (fc.conv(arrays.x.astype(t), arrays.w.astype(t), **window) for t in ("float32", "float64"))
    error = np.linalg.norm(fast.astype("float64") - exact)
    assert error <= 1e-5 * np.linalg.norm(exact), (problem.line, "default precision")
print("lines:", len(PROBLEMS))
"""


def start(width: str, program: str) -> subprocess.Popen:
    environment = os.environ | {
        "FASTCONV_VECTOR_WIDTH": width,
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
    }
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def processes():
    """One for each width, all at once: most of their time goes into compiling."""
    started = {width: start(str(width), PROGRAM.format(width=width)) for width in WIDTHS}
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("width", WIDTHS)
def test_table(width, processes):
    output, errors = processes[width].communicate(timeout=400)
    assert processes[width].returncode == 0, errors
    assert output.startswith("lines: ")


@pytest.mark.parametrize("width", ["2", "32", "wide", ""])
def test_other_widths_are_refused(width):
    process = start(width, "import fastconv.backends.cpu")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    expected = f"FASTCONV_VECTOR_WIDTH must be 4, 8 or 16 (float32 lanes of a vector), got {width!r}"
    assert errors.strip().endswith(expected)
