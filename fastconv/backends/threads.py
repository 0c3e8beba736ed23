"""Threads around kernels that release the GIL: how many for which work, and how they are kept ready.

Why not Numba's own `prange`: its workqueue layer dies on concurrent calls, its GNU OpenMP layer dies after a fork, and
both cost a second compilation pipeline. Here helpers are Python threads that stay in native code, without the GIL,
while they work and look for work (cpu/team.py), so that the layers of a network find them awake: a thread that sleeps
takes longer to wake than many a layer takes to compute. Helpers sleep in Python, each at a queue of its own.

Who wakes a helper keeps it off its own processor until it runs: Linux may queue it there, behind the caller, who does
not wait for it. In a third of the cases after 60 ms of rest it then came 10 ms late, on two processors of a Zen 5.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

SERIAL_NS = 20_000
"""Work below this many nanoseconds stays on the calling thread. Each further thread is asked for as much work again, if
it is awake."""

_WAKING = 4  # times as much work for each thread that has to be woken
_LATELY_NS = 1_000_000  # twice as long as a helper looks for work
_RANGE_NS = 10_000  # at least, in one piece: each begins with cold registers, tables and branches
_LOOKS = 500  # about half a millisecond: so long a helper looks for work before it sleeps
_MOST_HELPERS = 1023
_LINE_WORDS = 8  # of a cache line

LEAD, BOARD, HELPERS, LEAST, FIRST = range(5)
"""Words of a job that Python writes: where `team.lead` is, and the board; most helpers, least tasks of a range, and how
many tasks are shared out before all others."""
PARTS, PART_WORDS = 16, 8
"""Where the words of the threads' parts of a job begin, and how far apart they lie."""
JOB_WORDS = PARTS + (_MOST_HELPERS + 1) * PART_WORDS
COUNT, MAILBOXES, MAILBOX_WORDS = 0, 8, 8
"""Words of the board: how many helpers there are; their mailboxes begin at one word, and lie so many apart."""
AWAY = -1
"""What stands in the mailbox of a helper that sleeps."""


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


_processor_of_caller: Any = (
    getattr(ctypes.CDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None
)


class _Pool:
    """Daemon threads, started when first needed, that work and wait for ever."""

    def __init__(self) -> None:
        from fastconv.backends.cpu import team  # and Numba with it, which `import fastconv` can do without

        self.lead, self.serve, self.wake = team.address_of_lead(), team.serve, team.wake
        self.board = _words(MAILBOXES + _MOST_HELPERS * MAILBOX_WORDS)
        self.mailboxes = self.board[MAILBOXES::MAILBOX_WORDS].data
        self.serve(self.board, 0, 0)  # compiled here, not by the helpers
        self.queues: list[SimpleQueue[None]] = []
        self.threads: list[threading.Thread] = []
        self.processors: set[int] = set()
        """Where the last caller that woke a helper may run."""
        self.missed, self.missed_at = 0.0, 0
        """Work that too little called for to wake a helper, and when the last of it came."""
        self.lock = threading.Lock()

    def call(self, helpers: int, awake: int, cost: float) -> bool:
        """See to it that there are so many helpers, and the first `awake` of them awake; whether any of all is.

        If all sleep through one little piece of work after the other, they are woken too: this one is of `cost`. A
        helper that falls asleep just now has left word in its mailbox, and will find that it was called.
        """
        if len(self.queues) < helpers:
            with self.lock:
                self._grow(helpers)
        if not awake and all(self.mailboxes[number] == AWAY for number in range(helpers)):
            if not self._missed(cost):
                return False
            awake = helpers
        for number in range(awake):
            if self.mailboxes[number] == AWAY and self.wake(self.board, number):
                self._keep_off(self.threads[number].native_id)
                self.queues[number].put(None)
        return True

    def _missed(self, cost: float) -> bool:
        """Whether work of late, and this of `cost`, is enough together to wake helpers."""
        now = time.perf_counter_ns()
        if now - self.missed_at > _LATELY_NS:
            self.missed = 0.0
        self.missed, self.missed_at = self.missed + cost, now
        if self.missed < _WAKING * SERIAL_NS:
            return False
        self.missed = 0.0
        return True

    def _keep_off(self, helper: int | None) -> None:
        """Keep a helper off the caller's processor, until `_serve` lets it go where the caller may."""
        if _processor_of_caller is None or helper is None:
            return
        with suppress(OSError):  # where it is not allowed
            self.processors = os.sched_getaffinity(0)
            if others := self.processors - {_processor_of_caller()}:
                os.sched_setaffinity(helper, others)

    def _grow(self, size: int) -> None:
        for number in range(len(self.queues), size):
            name = f"fastconv-{number}"
            self.threads.append(threading.Thread(target=self._serve, args=(number,), name=name, daemon=True))
            self.queues.append(SimpleQueue())  # last: who finds it finds the thread as well
            self.threads[number].start()
        self.board[COUNT] = len(self.queues)

    def _serve(self, number: int) -> None:
        while True:
            self.serve(self.board, number, _LOOKS)
            if self.mailboxes[number] == AWAY:
                self.queues[number].get()
            if self.processors:
                with suppress(OSError):
                    os.sched_setaffinity(0, self.processors)


class Team:
    """The threads that may share the tasks of a call: how many, and what a `shared` kernel is told of them."""

    __slots__ = ("address", "pool", "size", "words")

    def __init__(self, pool: _Pool | None = None) -> None:
        self.pool, self.size, self.address = pool, 1, 0
        if pool is not None:
            words = _words(JOB_WORDS)
            self.address, self.words = words.ctypes.data, words.data
            self.words[LEAD], self.words[BOARD] = pool.lead, pool.board.ctypes.data


_ALONE = Team()
_pool: _Pool | None = None
_starting = threading.Lock()


class _Local(threading.local):
    team = _ALONE
    all_awake = False


_local = _Local()


@contextmanager
def all_awake() -> Iterator[None]:
    """Every helper that a call of this thread asks for is woken: whether work is shared depends on the work alone."""
    _local.all_awake = True
    try:
        yield
    finally:
        _local.all_awake = False


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


def team_for(tasks: int, cost: float, first: int = 0) -> Team:
    """Who works on so many tasks of `cost` nanoseconds in all, a rough estimate: up to `get_num_threads()` threads.

    If others wait for the `first` tasks, these are shared out by themselves. The thread's next call takes its team's
    place: ask right before the kernel is called.
    """
    if cost < SERIAL_NS or _num_threads == 1:
        return _ALONE
    helpers, awake, least = _division(tasks, cost, _num_threads, SERIAL_NS)
    if helpers < 1:
        return _ALONE
    pool = _pool or _ready_pool()
    if not pool.call(helpers, helpers if _local.all_awake else awake, cost):
        return _ALONE
    team = _local.team
    if team.pool is not pool:
        team = _local.team = Team(pool)
    team.size, words = helpers + 1, team.words
    words[HELPERS], words[LEAST], words[FIRST] = helpers, least, first
    return team


@lru_cache(maxsize=4096)
def _division(tasks: int, cost: float, threads: int, serial: float) -> tuple[int, int, int]:
    """How many helpers, how many of them are woken for it if they sleep, and the least tasks of a range."""
    serial = max(serial, 1)
    helpers = min(threads, tasks, _MOST_HELPERS + 1, 1 + int(cost / serial)) - 1
    least = min(max(1, int(tasks * _RANGE_NS / max(cost, 1))), -(-tasks // (helpers + 1)))
    return helpers, min(helpers, int(cost / (_WAKING * serial))), least


def share(kernel: Callable[..., Any], arguments: tuple[Any, ...], tasks: int, cost: float) -> None:
    """Run a `shared` kernel (cpu/team.py) on all tasks: `kernel(*arguments, team, 0, tasks)`."""
    if tasks:
        kernel(*arguments, team_for(tasks, cost).address, 0, tasks)
