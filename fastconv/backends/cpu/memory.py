"""Memory of large results, kept for the next ones: pages fresh from the system cost more than many a layer computes.

The system clears each page before it gives it away, and a virtual machine asks its host for it: 0.2 to 0.6 ms a MiB. A
large result therefore lies in a block, which is kept when the last array on it is gone, and serves the next result that
fits it closely. Blocks lent and kept together take up no more than `_SLACK` times the most that was ever lent at once,
and those kept no more than `KEPT_BYTES`; the longest unused go first.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Block = npt.NDArray[np.uint8]

LEAST_BYTES = 1 << 20
"""Smaller results come from NumPy: the C library keeps their memory itself."""


def _memory_bytes() -> int:
    """Memory that this process may use, as far as the system tells."""
    known = [8 << 30]
    if hasattr(os, "sysconf"):
        known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        known.append(int(text))
    return min(known)


KEPT_BYTES = _memory_bytes() // 8
"""The blocks of results that are gone take up no more than this."""

_SLACK = 1.25
_LOOSEST = 1.25  # a block may be so many times larger than the result
_LINE = 64  # bytes of a cache line, at which a result begins


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array, as of `numpy.empty`."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_BYTES:
        return np.empty(shape, dtype)
    blocks = _blocks
    return np.asarray(_Lease(blocks, blocks.take(size + _LINE), shape, dtype))


class _Lease:
    """What owns the memory of a result: gives the block back when no array holds on to it any more."""

    __slots__ = ("__array_interface__", "_block", "_blocks")

    def __init__(self, blocks: _Blocks, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._blocks, self._block = blocks, block
        address = -(-block.ctypes.data // _LINE) * _LINE
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (address, False)}

    def __del__(self) -> None:
        self._blocks.give_back(self._block)


class _Blocks:
    """The blocks that are kept, oldest first, and how many bytes are lent."""

    def __init__(self) -> None:
        self.most_kept = KEPT_BYTES  # here, because results die even when the interpreter has cleared the module
        self.returned: deque[Block] = deque()
        self.kept: list[Block] = []
        self.lent = self.most_lent = 0
        self.lock = threading.Lock()

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes."""
        with self.lock:
            self._settle()
            fitting = [i for i, block in enumerate(self.kept) if size <= block.size <= _LOOSEST * size]
            block = self.kept.pop(min(fitting, key=lambda i: self.kept[i].size)) if fitting else None
            self.lent += size if block is None else block.size
            self.most_lent = max(self.most_lent, self.lent)
            self._drop(int(_SLACK * self.most_lent) - self.lent)
        return np.empty(size, np.uint8) if block is None else block

    def give_back(self, block: Block) -> None:
        """Called wherever an array dies, even inside `take` of the same thread: it must not wait for the lock."""
        self.returned.append(block)
        if self.lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self.lock.release()

    def _settle(self) -> None:
        while self.returned:
            block = self.returned.popleft()
            self.kept.append(block)
            self.lent -= block.size
        self._drop(self.most_kept)

    def _drop(self, bytes_left: int) -> None:
        """Give the oldest blocks to the system until those that are left take up no more than that."""
        held = sum(block.size for block in self.kept)
        while self.kept and held > bytes_left:
            held -= self.kept.pop(0).size


_blocks = _Blocks()


def _forget_blocks() -> None:
    global _blocks
    _blocks = _Blocks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_blocks)  # another thread may have held the lock
