"""CUDA graphs: work that is recorded once and launched as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastconv.backends.cuda import platform, tables

Array = Any


Work = Callable[[Sequence[Array], Sequence[Array]], list[Array]]


class Graph:
    """The recorded work: `launch()` repeats it on the current stream.

    `inputs` are the arrays that it reads, `results` those that it writes. It reads the parameters and the tables that
    it `used` as well, which the caches of geometries may forget meanwhile.
    """

    def __init__(
        self, launch: Callable[[], None], inputs: list[Array], results: list[Array], used: tuple[Any, ...]
    ) -> None:
        self.launch, self.inputs, self.results, self._used = launch, inputs, results, used


def capture(work: Work, example: Sequence[Array], parameters: Sequence[Array]) -> Graph:
    """See contract.Backend.capture."""
    inputs = [array.copy() for array in example]
    with tables.collected() as used:
        launch, results = platform.current().record(lambda: work(inputs, parameters))
    return Graph(launch, inputs, results, (used, parameters))
