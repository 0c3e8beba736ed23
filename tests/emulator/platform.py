"""The CUDA backend on a machine without a GPU: CuPy's place is taken by emulator.arrays and emulator.kernels."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from emulator.arrays import Device, DeviceArray, Namespace, Recording, unwrapped
from emulator.kernels import EmulatedModule, KernelError
from fastconv.backends.cuda import platform
from fastconv.backends.cuda.module import TEMPLATES, source

ARCHITECTURE = 90
"""What the emulated device says of itself."""


class ThreeSchedules:
    """A kernel that runs in every order of its threads, and must write the same bits in each.

    A difference shows a missing barrier, or two threads that write to one place. A launch of the same sizes as one
    before runs in one order only, the next one in turn.
    """

    def __init__(self, module: EmulatedModule, name: str) -> None:
        self.module, self.kernel = module, module.get_function(name)
        self.turns: dict[Any, Iterator[str]] = {}

    def schedules(self, *launch: Any) -> Sequence[str]:
        if launch in self.turns:
            return [next(self.turns[launch])]
        self.turns[launch] = itertools.cycle(EmulatedModule.SCHEDULES)
        return EmulatedModule.SCHEDULES

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self.kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        assert size <= 227 << 10, "more shared memory than any architecture has"
        self.kernel.max_dynamic_shared_size_bytes = size

    def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
        for arg in args:
            if isinstance(arg, DeviceArray):
                assert arg.flags.c_contiguous, f"{self.kernel.name}: an array that is not contiguous"
                assert arg.device.id == Device.current(), f"{self.kernel.name}: an array of another device"
            assert not isinstance(arg, np.void), f"{self.kernel.name}: CuPy takes no structured scalars, only arrays"
            assert type(arg) is not np.ndarray or arg.dtype.kind == "V", f"{self.kernel.name}: an array of the host"
        arrays = unwrapped(args)
        written = [a for a, parameter in zip(arrays, self.kernel.parameters) if parameter.pointer and parameter.written]
        written = [a for a in written if a is not None]
        before, first = [a.copy() for a in written], None
        sizes = tuple(x.shape if isinstance(x, DeviceArray) else np.asarray(x).tobytes() for x in args)
        for schedule in self.schedules(grid, block, shared_mem, sizes):
            for array, values in zip(written, before):
                array[...] = values
            self.module.schedule = schedule
            self.kernel(grid, block, arrays, shared_mem=shared_mem)
            results = [a.tobytes() for a in written]
            if first not in (None, results):
                raise KernelError(f"{self.kernel.name}: the result depends on the order of the threads ({schedule})")
            first = results


class RawModule:
    """As `cupy.RawModule`."""

    def __init__(self, code: str, options: Any, name_expressions: Any) -> None:
        names = names_beside(code, name_expressions[0]) if name_expressions else None  # extern "C"
        self.module = library(code, tuple(options), names)

    def get_function(self, name: str) -> ThreeSchedules:
        return ThreeSchedules(self.module, name)


@functools.cache
def library(code: str, options: tuple[str, ...], names: tuple[str, ...] | None) -> EmulatedModule:
    return EmulatedModule(code, options=options, name_expressions=names)


def names_beside(code: str, name: str) -> tuple[str, ...]:
    """All instances in a kernel's file for its dtype: together they compile in little more time than one."""
    templates = [template for template in TEMPLATES if source(template.file) == code]
    dtypes = {written: choice[:1] for template in templates for choice, written in template.instances.items()}
    return tuple(written for written, dtype in dtypes.items() if dtype == dtypes[name])


def record(work: Callable[[], list[Any]]) -> tuple[Callable[[], None], list[Any]]:
    """As a CUDA graph does, write what the work gives to the same memory each time."""
    work()
    Recording.active = True
    try:
        results = work()
    finally:
        Recording.active = False

    def launch() -> None:
        for place, array in zip(results, work()):
            place[...] = array

    return launch, results


@functools.cache
def emulated() -> platform.Platform:
    """Two emulated devices."""
    return platform.Platform(
        xp=Namespace(),
        raw_module=RawModule,
        device=Device,
        current_device=Device.current,
        device_count=lambda: Device.count,
        capability=lambda: ARCHITECTURE,
        free_memory=lambda: None,
        record=record,
    )


@contextmanager
def in_use() -> Iterator[None]:
    """The CUDA backend runs on the emulated devices within this block."""
    platform.use(emulated())
    try:
        yield
    finally:
        platform.use(None)


def why_missing() -> str:
    """What keeps the emulator from running here, or nothing."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the emulator of CUDA kernels runs on x86-64 Linux only"
    if shutil.which("g++") is None:
        return "the emulator of CUDA kernels needs g++: apt install g++"
    return ""
