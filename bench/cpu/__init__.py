"""The benchmark on a processor: `python -m bench`."""

from __future__ import annotations

from typing import Any

from bench import convolution, layers, networks
from bench.case import Call, Case, Prepare
from bench.competitors import Competitor
from bench.cpu import clock, machine, roofs
from bench.device import Device


class Cpu(Device):
    """A call ends when its result is there; each competitor has a thread pool of its own."""

    name = "cpu"

    @classmethod
    def cases(cls) -> list[Case]:
        return [*convolution.load(), *layers.load(), *networks.load()]

    def describe(self) -> dict[str, Any]:
        return machine.describe(self.threads)

    def roofs(self) -> dict[str, Any]:
        return roofs.measure(self.threads)

    def arithmetic(self, case: Case) -> str:
        return case.dtype

    def call(self, competitor: Competitor, prepare: Prepare, case: Case, direction: str) -> Call:
        return prepare(competitor)

    def block(self, call: Call, count: int, warm: bool) -> float:
        return clock.block(call, count, warm)
