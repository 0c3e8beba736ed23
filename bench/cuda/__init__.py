"""The benchmark on a GPU: `python -m bench --device cuda`.

A line measures throughput, as a program has it that calls a library again and again: the device is idle when the first
of many calls is made and when the last one ends. Where a call is shorter on the device than on the host, its launches
are what is measured; batches sixteen times as large (`lines.py`) show the kernels. The operands are not in the L2
cache: `clock.py` says how. float32 is float32: TF32 is off in every library but for the lines "fast".
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable
from typing import Any

from bench.case import Case, Prepare
from bench.competitors import Competitor
from bench.cuda import clock, lines, machine, roofs
from bench.device import Device
from bench.timing import Effort
from fastconv import backends


class Cuda(Device):
    """CuPy's current device. Competitors keep their memory to themselves: what they hold back goes after each line."""

    name = "cuda"
    effort = Effort(block_seconds=0.02, line_seconds=2.5)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        backends.get(self.name)  # or a DeviceError that says what is missing
        self.cupy = self._cupy()
        self.properties = self.cupy.cuda.runtime.getDeviceProperties(self.cupy.cuda.Device().id)
        self.clock = clock.Clock.of_cupy(self.cupy)

    @classmethod
    def cases(cls) -> list[Case]:
        return lines.load()

    @property
    def results_name(self) -> str:
        return re.sub("[^a-z0-9]+", "-", machine.name(self.properties).lower()).strip("-")

    def describe(self) -> dict[str, Any]:
        return machine.describe(self.cupy, self.properties)

    def roofs(self) -> dict[str, Any]:
        return roofs.measure(self.cupy, self.clock, self.properties["multiProcessorCount"])

    def arithmetic(self, case: Case) -> str:
        return roofs.of_arithmetic(case.dtype, case.precision, case.depthwise)

    def call(self, competitor: Competitor, prepare: Prepare, case: Case, direction: str) -> clock.Rotation:
        copies = clock.copies(case.traffic(direction), self.properties["l2CacheSize"]) if case.rotates else 1
        return clock.Rotation([prepare(competitor) for _ in range(copies)], competitor.wait)

    def block(self, call: Any, count: int, warm: bool) -> float:
        return self.clock.block(call, count, warm)

    def tidy(self, competitors: Iterable[Competitor]) -> None:
        gc.collect()  # autograd's nodes are in cycles
        for competitor in competitors:
            competitor.release()

    def _cupy(self) -> Any:
        import cupy

        return cupy
