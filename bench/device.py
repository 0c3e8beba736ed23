"""Where a comparison runs: the lines it has, how a block of calls is timed, and what the machine itself could do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

from bench.case import Call, Case, Prepare
from bench.competitors import Competitor
from bench.timing import Effort


class Floor(NamedTuple):
    """The least time for a line, and the roof that sets it: "copy", or the name of the arithmetic."""

    seconds: float
    roof: str


def floor(roofs: dict[str, Any], flops: int, traffic: int, arithmetic: str) -> Floor:
    """For that much direct arithmetic and that much memory traffic, whichever takes longer.

    Arithmetic whose rate could not be measured sets no floor.
    """
    fits = [rate for size, rate in roofs["copy_gbs"].items() if traffic <= size]
    bandwidth = max(fits) if fits else min(roofs["copy_gbs"].values())
    memory = Floor(traffic / (1e9 * bandwidth), "copy")
    if not flops or arithmetic not in roofs["gflops"]:
        return memory
    return max(memory, Floor(flops / (1e9 * roofs["gflops"][arithmetic]), arithmetic))


class Device:
    """The part of the benchmark that is not the same on a processor and on a GPU; `threads` are those of the host.

    Made once for a run; raises `fastconv.errors.DeviceError` where the machine has no such device.
    """

    name: ClassVar[str]
    """As in `--device` and in `fastconv.asarray(x, device=...)`."""
    effort: ClassVar[Effort] = Effort()
    results_name = "latest"
    """Of the files that a run of all lines writes."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def cases(cls) -> list[Case]:
        """All cases that are measured here."""
        raise NotImplementedError

    @classmethod
    def sets(cls) -> list[str]:
        """The values of `--set`."""
        return list(dict.fromkeys(case.subset for case in cls.cases()))

    def describe(self) -> dict[str, Any]:
        """What a figure is worth nothing without. "where" names the machine in a few words, "detail" goes on."""
        raise NotImplementedError

    def roofs(self) -> dict[str, Any]:
        """Measured limits: {"gflops": {name: GFLOP/s}, "copy_gbs": {bytes: GB/s, read plus written}}."""
        raise NotImplementedError

    def arithmetic(self, case: Case) -> str:
        """Which of the roofs of arithmetic a case can reach."""
        raise NotImplementedError

    def call(self, competitor: Competitor, prepare: Prepare, case: Case, direction: str) -> Call:
        """What is timed of a competitor; raises its NotOffered."""
        raise NotImplementedError

    def block(self, call: Call, count: int, warm: bool) -> float:
        """Mean seconds of `count` calls that nothing else disturbs, after some others that warm the machine up."""
        raise NotImplementedError

    def tidy(self, competitors: Iterable[Competitor]) -> None:
        """What is to be done after a line, so that its memory is there for the next."""
