"""CUDA graphs: work that is recorded once and launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.backends.cuda import platform

Array = Any


class Graph:
    """The recorded work: `launch()` repeats it on the current stream; `results` are the arrays it writes."""

    def __init__(self, launch: Callable[[], None], results: list[Array]) -> None:
        self.launch, self.results = launch, results


def capture(work: Callable[[], list[Array]]) -> Graph:
    """Record `work`, which reads and writes the same memory whenever the graph is launched."""
    return Graph(*platform.current().record(work))
