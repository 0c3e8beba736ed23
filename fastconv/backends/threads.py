"""Threads around kernels that release the GIL: how many for which work, and how they are kept ready.

Why not Numba's own `prange`: its workqueue layer dies on concurrent calls, its GNU OpenMP layer dies after a fork, and
both cost a second compilation pipeline. Here helpers are Python threads that stay in native code, without the GIL,
while they work and look for work (cpu/team.py), so that the layers of a network find them awake: a thread that sleeps
takes longer to wake than many a layer takes to compute. Helpers sleep in Python, each at a queue of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

SERIAL_NS = 15_000
"""Work below this many nanoseconds stays on the calling thread. Each further thread is asked for as much work again, if
it is awake."""

_WAKING = 4  # times as much work for each thread that has to be woken
_RANGE_NS = 10_000  # at least, in one piece: each begins with cold registers, tables and branches
_LOOKS = 500  # about half a millisecond: so long a helper looks for work before it sleeps
_MOST_HELPERS = 1023
_LINE_WORDS = 8  # of a cache line


def _available_cpus() -> int:
    forced = os.environ.get("FASTCONV_NUM_THREADS")
    if forced is not None:
        if not forced.isdigit() or int(forced) < 1:
            raise ValueError(f"FASTCONV_NUM_THREADS must be a positive number of threads, got {forced!r}")
        return int(forced)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_num_threads = _available_cpus()


def get_num_threads() -> int:
    """Threads that one call may use."""
    return _num_threads


def set_num_threads(n: int) -> None:
    """Let each call use up to `n` threads. Results do not depend on it.

    Raises ValueError unless n is a positive integer.
    """
    global _num_threads
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: n must be a positive integer, got {n!r}")
    _num_threads = n


def is_little(cost: float) -> bool:
    """Whether work of `cost` nanoseconds stays on the calling thread, so that nothing is gained by cutting it."""
    return cost < SERIAL_NS or _num_threads == 1


def _words(count: int) -> npt.NDArray[np.int64]:
    """Zeros that begin on a line of the cache."""
    words = np.zeros(count + _LINE_WORDS, np.int64)
    start = -words.ctypes.data // words.itemsize % _LINE_WORDS
    return words[start : start + count]


class _Pool:
    """Daemon threads, started when first needed, that work and wait for ever."""

    def __init__(self) -> None:
        from fastconv.backends.cpu import team  # and Numba with it, which `import fastconv` can do without

        self.team = team
        self.lead = team.address_of_lead()
        self.board = _words(team.MAILBOXES + _MOST_HELPERS * team.MAILBOX_WORDS)
        self.mailboxes = self.board[team.MAILBOXES :: team.MAILBOX_WORDS].data
        team.serve(self.board, 0, 0)  # compiled here, not by the helpers
        self.queues: list[SimpleQueue[None]] = []
        self.lock = threading.Lock()

    def call(self, helpers: int, cost: float) -> None:
        """See to it that so many helpers are awake, as far as the work is worth it.

        A helper that falls asleep just now has left word in its mailbox, and will find that it was called.
        """
        if len(self.queues) < helpers:
            with self.lock:
                self._grow(helpers)
        for number in range(min(helpers, int(cost / max(_WAKING * SERIAL_NS, 1)))):
            if self.mailboxes[number] == self.team.AWAY:
                self.mailboxes[number] = 0
                self.queues[number].put(None)

    def _grow(self, size: int) -> None:
        for number in range(len(self.queues), size):
            self.queues.append(SimpleQueue())
            threading.Thread(target=self._serve, args=(number,), name=f"fastconv-{number}", daemon=True).start()
        self.board[self.team.COUNT] = len(self.queues)

    def _serve(self, number: int) -> None:
        while True:
            self.team.serve(self.board, number, _LOOKS)
            if self.mailboxes[number] == self.team.AWAY:
                self.queues[number].get()


class Team:
    """The threads that may share the tasks of a call: how many, and what a `shared` kernel is told of them."""

    __slots__ = ("address", "pool", "size", "words")

    def __init__(self, pool: _Pool | None = None) -> None:
        self.pool, self.size, self.address = pool, 1, 0
        if pool is not None:
            team = pool.team
            self.words = _words(team.JOB_WORDS)
            self.words[[team.LEAD, team.BOARD]] = pool.lead, pool.board.ctypes.data
            self.address = self.words.ctypes.data


_ALONE = Team()
_pool: _Pool | None = None
_starting = threading.Lock()


class _Local(threading.local):
    team = _ALONE


_local = _Local()


def _forget_pool() -> None:
    global _pool, _starting
    _pool, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork; the child starts its own


def _ready_pool() -> _Pool:
    global _pool
    with _starting:
        if _pool is None:
            _pool = _Pool()
        return _pool


def team_for(tasks: int, cost: float) -> Team:
    """Who works on so many tasks of `cost` nanoseconds in all, a rough estimate: up to `get_num_threads()` threads.

    The thread's next call takes its team's place: ask right before the kernel is called.
    """
    helpers = min(_num_threads, tasks, _MOST_HELPERS + 1, 1 + int(cost / max(SERIAL_NS, 1))) - 1
    if helpers < 1 or cost < SERIAL_NS:
        return _ALONE
    pool = _pool or _ready_pool()
    team = _local.team
    if team.pool is not pool:
        team = _local.team = Team(pool)
    pool.call(helpers, cost)
    team.size = helpers + 1
    team.words[pool.team.HELPERS] = helpers
    team.words[pool.team.LEAST] = min(max(1, int(tasks * _RANGE_NS / max(cost, 1))), -(-tasks // team.size))
    return team


def share(kernel: Callable[..., Any], arguments: tuple[Any, ...], tasks: int, cost: float) -> None:
    """Run a `shared` kernel (cpu/team.py) on all tasks: `kernel(*arguments, team, 0, tasks)`."""
    if tasks:
        kernel(*arguments, team_for(tasks, cost).address, 0, tasks)
