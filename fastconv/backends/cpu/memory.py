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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.host import PAGE_BYTES

Array = npt.NDArray[Any]

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
_APART = 512
"""Results begin at other places of a page, one block after the other, so many bytes apart.

A processor takes a load for one of what was just stored if the last 12 bits of their addresses agree, and waits: where
rows are whole pages, input and output at one place of them, a 3×3 kernel took nearly twice as long (images of 1024²).
NumPy's large arrays begin where pages do, which is none of the places.
"""


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialised array, as of `numpy.empty`."""
    place = _place.array
    if place is not None and place.shape == shape and place.dtype == dtype:
        _place.array = None
        return place
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST_BYTES:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, (_place.blocks or _blocks).take(size))


class _Block(np.ndarray):
    """Memory from the system, for one result after the other."""

    blocks: _Blocks
    """Where it is given back."""
    skipped: int
    """Bytes in front of the result."""


class _Lease(np.ndarray):
    """The bytes of a block as long as any array holds on to them.

    An array on another that does not own its memory holds on to what owns it instead, unless that is of a subclass.
    """

    __slots__ = ()

    def __del__(self) -> None:
        blocks = getattr(self.base, "blocks", None)
        if blocks is not None:  # else a slice or a copy, which somebody made of a lease
            blocks.give_back(self.base)


class _Blocks:
    """The blocks that are kept, oldest first, and how many bytes are lent."""

    def __init__(self) -> None:
        self.most_kept = KEPT_BYTES  # here, because results die even when the interpreter has cleared the module
        self.returned: deque[_Block] = deque()
        self.kept: list[_Block] = []
        self.held = 0  # bytes of these
        self.lent = self.most_lent = 0
        self.made = 0  # blocks
        self.lock = threading.Lock()

    def take(self, size: int) -> _Lease:
        """A lease of at least `size` bytes, at the beginning of a line."""
        size += PAGE_BYTES
        with self.lock:
            if self.returned:
                self._settle()
            block = self._fitting(size)
            lent = self.lent + (size if block is None else block.size)
            most_lent = max(self.most_lent, lent)
            self._drop(int(_SLACK * most_lent) - lent)
            if block is None:  # may fail: nothing is lent until it is there
                block = _Block(size, np.uint8)
                block.blocks, block.skipped = self, self._skipped(block.ctypes.data)
            self.lent, self.most_lent = lent, most_lent
        return _Lease(size - PAGE_BYTES, np.uint8, block, block.skipped)

    def _skipped(self, address: int) -> int:
        """Bytes from the address of a new block to where its results begin."""
        place = _APART * (1 + self.made % (PAGE_BYTES // _APART - 1))
        self.made += 1
        return (place - address) % PAGE_BYTES

    def give_back(self, block: _Block) -> None:
        """Called wherever an array dies, even inside `take` of the same thread: it must not wait for the lock."""
        self.returned.append(block)
        if self.lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self.lock.release()

    def _fitting(self, size: int) -> _Block | None:
        """The smallest of the kept blocks that fit closely; of equal ones the last used, which a cache may hold."""
        best, least = -1, int(_LOOSEST * size) + 1
        for i in range(len(self.kept) - 1, -1, -1):
            if size <= self.kept[i].size < least:
                best, least = i, self.kept[i].size
                if least == size:
                    break
        if best < 0:
            return None
        self.held -= least
        return self.kept.pop(best)

    def _settle(self) -> None:
        while self.returned:
            block = self.returned.popleft()
            self.kept.append(block)
            self.held += block.size
            self.lent -= block.size
        self._drop(self.most_kept)

    def _drop(self, bytes_left: int) -> None:
        """Give the oldest blocks to the system until those that are left take up no more than that."""
        while self.kept and self.held > bytes_left:
            self.held -= self.kept.pop(0).size


_blocks = _Blocks()


class _Apart(_Blocks):
    """Blocks for the results of a pass that is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.open = True

    def give_back(self, block: _Block) -> None:
        if self.open:
            super().give_back(block)

    def _drop(self, bytes_left: int) -> None:
        """None goes to the system while it is open: what was computed in a block once is computed there again."""

    def close(self) -> None:
        """Leave the blocks to who holds them."""
        self.open = False
        self.returned.clear()
        self.kept.clear()


class _Place(threading.local):
    array: Array | None = None
    blocks: _Blocks | None = None


_place = _Place()


@contextmanager
def placed(array: Array) -> Iterator[None]:
    """The first result of this thread that is of this shape and dtype is that array, and not a new one."""
    _place.array = array
    try:
        yield
    finally:
        _place.array = None


@contextmanager
def set_apart() -> Iterator[None]:
    """Large results of this thread lie in blocks of their own, see `unheld`."""
    blocks = _place.blocks = _Apart()
    try:
        yield
    finally:
        _place.blocks = None
        blocks.close()


class _Unheld:
    """The memory of an array, and with it its block, but not the array's lease."""

    __slots__ = ("__array_interface__", "_block")

    def __init__(self, array: Array, block: _Block) -> None:
        self.__array_interface__, self._block = array.__array_interface__, block


def unheld(array: Array) -> Array:
    """The same memory, where it was `set_apart`, as it may serve other results when nobody needs the array any more.

    For who repeats what was done, in the same order: each result lies there again until it is no longer needed.
    """
    base = array.base
    while base is not None and not isinstance(base, _Lease):
        base = getattr(base, "base", None)
    block = getattr(base, "base", None)
    apart = isinstance(getattr(block, "blocks", None), _Apart)
    return np.asarray(_Unheld(array, block)) if apart else array  # type: ignore[arg-type]


def _forget_blocks() -> None:
    global _blocks
    _blocks = _Blocks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_blocks)  # another thread may have held the lock
