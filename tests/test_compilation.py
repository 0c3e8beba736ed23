"""What Numba compiles: nothing again for another shape, nothing that was not asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Forward and both gradients over 60 shapes of every rank and algorithm, writable and read-only arrays, then over 60
# other shapes; prints the number of compiled signatures of each kernel after the first and after the second round.
CALLS = """
import json, sys
import numpy as np
import fastconv as fc
from numba.core.registry import CPUDispatcher

def call(rank, c, k, size, kernel, groups=1, **window):
    x = np.ones((2, c) + (size,) * rank, "float32")
    w = np.ones((k, c // groups) + (kernel,) * rank, "float32")
    for writeable in (True, False):
        x.flags.writeable = w.flags.writeable = writeable
        y = getattr(fc, f"conv{rank}d")(x, w, groups=groups, **window)
        getattr(fc.grad, f"conv{rank}d_input")(x.shape, w, y, groups=groups, **window)
        getattr(fc.grad, f"conv{rank}d_weight")(x, w.shape, y, groups=groups, **window)

def shapes(first):
    for rank in (1, 2, 3):
        for number in range(18):
            c, k = (1, 3, 16, 40)[number % 4], (2, 8, 20)[number % 3]
            call(rank, c, k, first + number, 1 + number % 4, stride=1 + number % 3, padding=number % 2)
        call(rank, 6, 6, first + 21, 3, groups=6)
        call(rank, 32, 32, first + 11, 3, padding=1)

def signatures():
    return {
        f"{value.py_func.__module__}.{attribute}": len(value.signatures)
        for name, module in list(sys.modules.items())
        if name.startswith("fastconv.backends.cpu")
        for attribute, value in vars(module).items()
        if isinstance(value, CPUDispatcher) and value.signatures
    }

shapes(9)
before = signatures()
shapes(10)
print(json.dumps([before, signatures()]))
"""


def test_nothing_is_compiled_again_for_another_shape():
    output = subprocess.run([sys.executable, "-c", CALLS], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    before, after = json.loads(output.stdout)
    assert {f"fastconv.backends.cpu.correlate.correlate_{kind}" for kind in ("boxes", "columns")} <= set(before)
    assert after == before
    assert not any("pool" in name or "softmax" in name for name in after)
