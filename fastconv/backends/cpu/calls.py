"""Kernels as Python compiles and calls them, and which calls a thread makes: what a recorded pass repeats.

Numba's dispatchers are called in C, and there is nothing to listen to. While some thread listens, the class of all
kernels has a `__call__` in Python, which costs 150 ns; at any other time it has none, and a call costs nothing more.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from numba.core.registry import CPUDispatcher


class Kernel(CPUDispatcher):  # type: ignore[misc]  # Numba carries no type information
    """A function that Python calls. Numba makes dispatchers of its own class; `host.kernel` gives them this one."""

    def compile(self, sig: Any) -> Any:
        """As Numba's, but Python does not look for garbage meanwhile: that took a tenth of the time."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return super().compile(sig)
        finally:
            if collects:
                gc.enable()


class Call(NamedTuple):
    """One call of a kernel and what came of it."""

    kernel: Kernel
    arguments: tuple[Any, ...]
    result: Any


class _Local(threading.local):
    calls: list[Call] | None = None


_local = _Local()
_lock = threading.Lock()
_listeners = 0


@contextmanager
def noted() -> Iterator[list[Call]]:
    """The calls that this thread makes meanwhile, in their order. Not one within another."""
    _listen(1)
    calls: list[Call] = []
    _local.calls = calls
    try:
        yield calls
    finally:
        _local.calls = None
        _listen(-1)


def _listen(more: int) -> None:
    global _listeners
    with _lock:
        _listeners += more
        if _listeners == 0:
            del Kernel.__call__
        elif _listeners == more == 1:
            Kernel.__call__ = _noted_call


def _noted_call(kernel: Kernel, *arguments: Any) -> Any:
    result = CPUDispatcher.__call__(kernel, *arguments)
    if _local.calls is not None:
        _local.calls.append(Call(kernel, arguments, result))
    return result
