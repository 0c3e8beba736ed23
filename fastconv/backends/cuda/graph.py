"""CUDA graphs: work that is recorded once and launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.backends.cuda import platform, tables

Array = Any


class Graph:
    """The recorded work: `launch()` repeats it on the current stream; `results` are the arrays it writes.

    It reads the tables that it `used`, which the caches of geometries may forget meanwhile.
    """

    def __init__(self, launch: Callable[[], None], results: list[Array], used: list[tables.Table]) -> None:
        self.launch, self.results, self._used = launch, results, used


def capture(work: Callable[[], list[Array]]) -> Graph:
    """Record `work`, which reads and writes the same memory whenever the graph is launched."""
    with tables.collected() as used:
        launch, results = platform.current().record(work)
    return Graph(launch, results, used)
