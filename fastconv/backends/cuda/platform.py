"""What the backend runs on: an array namespace and a maker of kernels. CuPy's, unless a test has put others there.

Nothing else of the backend imports CuPy, so that its dispatch, its launch arithmetic and its kernels can run as they
are on a machine without a GPU (tests/emulator).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Platform:
    """The parts of CuPy that the backend asks for."""

    xp: Any
    """The array namespace: `cupy`."""
    raw_module: Callable[..., Any]
    """`cupy.RawModule`: code, options, name_expressions → what has `get_function(name)`."""
    device: Callable[[int], Any]
    """`cupy.cuda.Device`: a number → a context in which that device is the current one."""
    current_device: Callable[[], int]
    """The number of the current device."""
    device_count: Callable[[], int]
    """How many devices there are; RuntimeError without a driver."""
    capability: Callable[[], int]
    """Compute capability of the current device: 75, 80, 90."""
    free_memory: Callable[[], None]
    """Give back to the device what the pool keeps for later."""
    record: Callable[[Callable[[], list[Any]]], tuple[Callable[[], None], list[Any]]]
    """Run work that gives arrays, and record it: what repeats it, and its arrays."""


_platform: Platform | None = None


def current() -> Platform:
    """The platform in use; the first call imports CuPy."""
    global _platform
    if _platform is None:
        _platform = _of_cupy()
    return _platform


def chosen() -> bool:
    """Whether there is a platform in use already."""
    return _platform is not None


def use(platform: Platform | None) -> None:
    """Put another platform in the place of CuPy, or with None CuPy again."""
    global _platform
    _platform = platform


def _of_cupy() -> Platform:
    import cupy  # optional, and only when a GPU is asked for

    return Platform(
        xp=cupy,
        raw_module=cupy.RawModule,
        device=cupy.cuda.Device,
        current_device=cupy.cuda.runtime.getDevice,
        device_count=cupy.cuda.runtime.getDeviceCount,
        capability=lambda: int(cupy.cuda.Device().compute_capability),
        free_memory=lambda: cupy.get_default_memory_pool().free_all_blocks(),
        record=_record,
    )


def _record(work: Callable[[], list[Any]]) -> tuple[Callable[[], None], list[Any]]:
    import cupy

    # A pool of its own, which the graph keeps: nobody else gets the memory that its kernels use. The first run
    # compiles kernels and fills the pool, for neither can be done while recording.
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    with cupy.cuda.using_allocator(pool.malloc), stream:
        work()
        stream.synchronize()
        stream.begin_capture()
        try:
            results = work()
        finally:
            graph = stream.end_capture()

    def launch(keep: Any = pool) -> None:
        graph.launch()

    return launch, results
