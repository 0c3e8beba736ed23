"""What Numba compiles: nothing again for another shape, nothing that was not asked for, all that is usual ahead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba

from fastconv.backends.cpu import host

ROOT = Path(__file__).parent.parent

# Forward and both gradients over 60 shapes of every rank and algorithm, writable and read-only arrays, then over 60
# other shapes; prints the number of compiled signatures of each kernel after the first and after the second round.
CALLS = '''
import json, sys
from unittest import mock
import numpy as np
import fastconv as fc
from fastconv.backends.cpu import weight_grad_estimates, winograd
from numba.core.registry import CPUDispatcher

def tiles_of(outputs):
    """What makes every choice fall on such tiles, or the only ones there are: each is a form of its own."""
    def fastest(found, direct):
        name = f"tiles of {outputs}" if f"tiles of {outputs}" in found else "boxes"
        return (name, found[name]) if found else None
    return mock.patch.multiple(winograd, _fastest=fastest)

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
        with fc.precision("highest"):  # no tiles, which some of these shapes pay for and others do not
            for number in range(18):
                c, k = (1, 3, 16, 40)[number % 4], (2, 8, 20)[number % 3]
                call(rank, c, k, first + number, 1 + number % 4, stride=1 + number % 3, padding=number % 2)
            call(rank, 6, 6, first + 21, 3, groups=6)
            call(rank, 64, 32, first, 1)
            call(rank, 64, 32, first, 1, stride=2)
        with mock.patch.object(weight_grad_estimates, "pays", lambda tiles, direct: True):
            for more, outputs in ((11, "4×4"), (13, "3×3")):
                with tiles_of(outputs):
                    call(rank, 32, 32, first + more, 3, padding=1)

def signatures():
    return {
        f"{value.py_func.__module__}.{attribute}": len(value.signatures)
        for name, module in list(sys.modules.items())
        if name.startswith("fastconv.backends.cpu")
        for attribute, value in vars(module).items()
        if isinstance(value, CPUDispatcher) and value.signatures
        if attribute != "wake"  # a matter of time, not of shapes
    }

shapes(9)
before = signatures()
shapes(10)
print(json.dumps([before, signatures()]))
'''


def test_nothing_is_compiled_again_for_another_shape():
    output = subprocess.run([sys.executable, "-c", CALLS], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    before, after = json.loads(output.stdout)
    kernels = "correlate.correlate_boxes", "columns.correlate_columns", "winograd_tile_kernels.winograd_tiles"
    assert {f"fastconv.backends.cpu.{kernel}" for kernel in kernels} <= set(before)
    assert after == before
    assert not any("pool" in name or "softmax" in name for name in after)


# A training step of a small network and a layer for each algorithm, after the warm-up; prints what was compiled for it.
NETWORK = """
import json, sys
import numpy as np
import fastconv as fc
from fastconv import warmup
from fastconv.backends.cpu import host

names = [step.name for step in warmup.run()]
loaded = {kernel: len(kernel.signatures) for kernel in host._kernels}
for dtype in warmup.DTYPES:
    x = fc.Tensor(np.ones((2, 3, 31, 30), dtype))
    net = fc.nn.Sequential(
        fc.nn.Conv2d(3, 24, 5, stride=2, padding=2), fc.nn.BatchNorm2d(24), fc.nn.ReLU(), fc.nn.MaxPool2d(2),
        fc.nn.Conv2d(24, 64, 3, padding=1), fc.nn.SiLU(), fc.nn.GroupNorm(8, 64),
        fc.nn.Conv2d(64, 64, 3, groups=64), fc.nn.InstanceNorm2d(64), fc.nn.Conv2d(64, 8, 1),
        fc.nn.AvgPool2d(2), fc.nn.Flatten(), fc.nn.LayerNorm(48), fc.nn.Linear(48, 10),
    ).to(dtype=dtype)
    fc.cross_entropy(net(x), np.zeros(2, np.int64)).backward()
compiled = {
    kernel.py_func.__name__: [str(signature) for signature in kernel.signatures[loaded[kernel] :]]
    for kernel in host._kernels
    if len(kernel.signatures) > loaded[kernel]
}
print(json.dumps([names, compiled]))
"""


def test_nothing_is_left_to_compile_after_the_warmup():
    output = subprocess.run([sys.executable, "-c", NETWORK], cwd=ROOT, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    names, compiled = json.loads(output.stdout)
    assert compiled == {}
    algorithms = [f"shift-gemm {kind}" for kind in ("boxes", "columns", "in place", "lanes")]
    algorithms += ["depthwise rows", "depthwise lanes", "fft"]
    algorithms += ["winograd boxes", "winograd tiles of 3×3", "winograd tiles of 4×4"]
    algorithms += ["depthwise strips"] * (host.LANES >= 8)
    algorithms += ["inner-product boxes", "inner-product columns", "outer-product", "winograd"]
    for algorithm in algorithms:
        assert any(algorithm in name for name in names), algorithm


# Depthwise 3×3 or 5×5 or both, of ones: prints how many taps an output in the middle has met.
SIDES = """
import sys
import numpy as np
import fastconv as fc

for side in map(int, sys.argv[1:]):
    y = fc.conv2d(np.ones((1, 1, 20, 20), "float32"), np.ones((1, 1, side, side), "float32"))
    print(int(y[0, 0, 5, 5]))
"""


def test_kernels_compiled_by_different_processes_do_not_meet(tmp_path):
    """Numba tells kernels of one name apart by a number that every process begins anew; the cache keeps them all."""
    found = [_printed(SIDES, sides, tmp_path) for sides in (["3"], ["5"], ["3", "5"], ["5", "3"])]
    assert found == [["9"], ["25"], ["9", "25"], ["25", "9"]]


def test_forms_of_a_kernel_kept_at_the_same_time_do_not_meet(tmp_path, monkeypatch):
    """Threads stand for processes that compile a kernel for different types: each has a cache of its own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    caches = [host._HostCache(host.flat)._cache_file for _ in range(4)]
    gate = threading.Barrier(len(caches))

    def keep(cache, form):
        gate.wait()
        cache.save(form, form)

    with ThreadPoolExecutor(len(caches)) as pool:
        for number in range(50):
            forms = [(dtype, number) for dtype in ("float32", "float64", "int32", "int64")]
            list(pool.map(keep, caches, forms))
            assert [caches[0].load(form) for form in forms] == forms


def test_forms_of_older_sources_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    cache, other = (host._HostCache(function)._cache_file for function in (host.flat, host.writeable))
    other.save("form", 3)
    for number, sources in enumerate(["a" * 64, "b" * 64]):
        monkeypatch.setattr(host, "_SOURCES", sources)
        assert cache.load("form") is None
        cache.save("form", number)
        cache.save("another form", 5)
        assert (cache.load("form"), cache.load("another form")) == (number, 5)
    monkeypatch.undo()
    assert len(list(Path(cache._cache_path).iterdir())) == 3 and other.load("form") == 3


# A convolution, and with "pool" a pooling; after each: what was compiled so far, whether Numba's compiler was set up.
START = """
import sys
import numpy as np
import fastconv as fc
from fastconv.backends.cpu import host

x, w = np.ones((1, 1, 20, 20), "float32"), np.ones((1, 1, 3, 3), "float32")
print(fc.conv2d(x, w).sum(), host.compilations(), "numba.cpython.heapq" in sys.modules)
if "pool" in sys.argv:
    print(fc.max_pool2d(x, 2).sum(), host.compilations(), "numba.cpython.heapq" in sys.modules)
"""


def test_only_what_is_not_cached_sets_up_the_compiler(tmp_path):
    found = [_printed(START, asked, tmp_path) for asked in ([], [], ["pool"], ["pool"])]
    compiled, cached = ["2916.0 1 True"], ["2916.0 0 False"]
    assert found == [compiled, cached, [*cached, "100.0 1 True"], [*cached, "100.0 0 False"]]


# Whether Python looks for garbage before, while and after a kernel is compiled; with "disabled" its user had said no.
GARBAGE = """
import gc
import sys
import numpy as np
import fastconv as fc
from numba.core import event

class Listener(event.Listener):
    def on_start(self, event): found.add(gc.isenabled())
    def on_end(self, event): found.add(gc.isenabled())

if "disabled" in sys.argv:
    gc.disable()
before, found = gc.isenabled(), set()
event.register("numba:compile", Listener())
fc.relu(np.ones(3, "float32"))
print(before, found, gc.isenabled())
"""


def test_nobody_looks_for_garbage_while_a_kernel_is_compiled(tmp_path):
    assert _printed(GARBAGE, [], tmp_path / "1") == ["True {False} True"]
    assert _printed(GARBAGE, ["disabled"], tmp_path / "2") == ["False {False} False"]


def _printed(script: str, arguments: list[str], cache: Path) -> list[str]:
    """The lines that a process with a cache of its own prints."""
    command, environment = [sys.executable, "-c", script, *arguments], {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()
