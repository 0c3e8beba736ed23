"""Workspace is bounded: what a forward convolution takes beyond its operands, measured as resident memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="the peak of resident memory is known on Unix only")

ROOT = Path(__file__).parent.parent

# In a process of its own, whose peak nothing else has raised: compile on small arrays, then fill the input and take
# the peak as the baseline. The first columns are compared with float64 afterwards, so that the work was done.
PROGRAM = """
import resource, sys
import numpy as np
import fastconv as fc

def peak():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size

fc.precision({precision!r})
fc.set_num_threads(2)
shape, kernel, window = {shape}, {kernel}, {window}
rng = np.random.default_rng(0)
w = rng.standard_normal(kernel, "float32")
small = (shape[0], shape[1], *[12] * (len(shape) - 2))
fc.conv(rng.standard_normal(small, "float32"), w, **window)
x = rng.standard_normal(shape, "float32")
before = peak()
y = fc.conv(x, w, **window)
extra = peak() - before
padded = x.itemsize * int(np.prod([*shape[:2], *(size + 2 * window["padding"] for size in shape[2:])]))
assert x.nbytes + y.nbytes >= 200e6, x.nbytes + y.nbytes
part = fc.conv(x[..., :8].astype("float64"), w.astype("float64"), **window)[..., :4]
assert np.linalg.norm(y[..., :4] - part) <= 1e-5 * np.linalg.norm(part)
print(extra / (padded + y.nbytes))
"""

CASES = [
    ("default", (1, 4, 160, 192, 208), (4, 4, 3, 3, 3), {"padding": 1}),
    ("default", (1, 1, 160, 192, 208), (8, 1, 3, 3, 3), {"padding": 1}),
    ("default", (2, 32, 96, 96, 96), (32, 1, 3, 3, 3), {"padding": 1, "groups": 32}),
    ("default", (1, 8, 130, 130, 130), (16, 8, 3, 3, 3), {"padding": 1, "dilation": 2}),
    ("highest", (1, 16, 1100, 1500), (16, 16, 3, 3), {"padding": 1}),
    ("default", (1, 16, 1100, 1500), (16, 16, 3, 3), {"padding": 1}),
    ("default", (1, 32, 1100, 1500), (32, 32, 3, 3), {"padding": 1, "stride": 2}),
]


@pytest.mark.parametrize("precision, shape, kernel, window", CASES)
def test_extra_memory_of_a_forward_convolution(precision, shape, kernel, window):
    """At most 1.3 times the padded input and the output; the output itself is part of what is measured."""
    program = PROGRAM.format(precision=precision, shape=shape, kernel=kernel, window=window)
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) <= 1.3
