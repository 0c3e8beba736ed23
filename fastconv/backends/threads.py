"""A pool of Python threads around kernels that release the GIL.

Why not Numba's own `prange`: its workqueue layer dies on concurrent calls, its GNU OpenMP layer dies after a fork, and
both cost a second compilation pipeline. Here a range of tasks is cut into chunks, the caller works on them too, and
whoever is free takes the next chunk. Chunks become ever smaller (guided self-scheduling, Polychronopoulos and Kuck
1987): who is held up on a shared core keeps the others waiting for no more than a small one. What a task computes never
depends on how the range was cut, so neither the number of threads nor the timing can change a bit of the result.

A helper that has worked looks for more (waiting.py) before it goes to sleep, so that the layers of a network find it
awake, and the caller looks for the helpers' end instead of sleeping: to be woken takes longer than many a layer.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int64]
RangeCall = Callable[[int, int], Any]

SERIAL_NS = 60_000
"""Work below this many nanoseconds stays on the calling thread: waking another costs about a third of it. Each further
one is woken for as much work again."""

_CHUNK_NS = 60_000  # at least: between two chunks a thread needs the GIL, and sleeps if another one just has it
_LOOKS = 1000  # about half a millisecond: a helper looks for work that long, the caller for the end of work
_HEAD_START = 16  # looks for which a helper leaves the GIL to the caller, who needs it on the way into the kernel
_NAP_SECONDS = 5e-5


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


@lru_cache(maxsize=4096)
def _cuts(tasks: int, threads: int, least: int) -> tuple[int, ...]:
    """Where to cut a range: each chunk has two thirds of a thread's part of what is left, and `least` tasks or more.

    None has more than a thread's part of the whole.
    """
    least = min(max(1, least), -(-tasks // threads))
    cuts = [0]
    while (left := tasks - cuts[-1]) > 0:
        cuts.append(cuts[-1] + min(left, max(least, -(-2 * left // (3 * threads)))))
    return tuple(cuts)


class _Job:
    """One parallel range: chunk numbers are handed out by a counter whose `next` is atomic under the GIL."""

    def __init__(self, call: RangeCall, tasks: int, helpers: int, cost: float) -> None:
        self.call = call
        self.cuts = _cuts(tasks, helpers + 1, int(tasks * _CHUNK_NS / max(cost, 1)))
        self.chunks = len(self.cuts) - 1
        self.counter = itertools.count()
        self.busy = np.zeros(helpers, np.int64)
        self.arrived = 0
        self.closed = False
        self.lock = threading.Lock()
        self.error: BaseException | None = None

    def work(self) -> None:
        try:
            while (chunk := next(self.counter)) < self.chunks:
                self.call(self.cuts[chunk], self.cuts[chunk + 1])
        except BaseException as error:  # carried to the calling thread by `parallel_for`
            self.error = error

    def enter(self) -> int | None:
        """The word of `busy` that the helper sets to 0 again when it has worked; None if it comes too late."""
        with self.lock:
            if self.closed:
                return None
            slot = self.arrived
            self.arrived += 1
            self.busy[slot] = 1
            return slot

    def close(self, settle: Callable[[Words, int], bool]) -> None:
        """Wait for those who are helping; who was busy elsewhere until now is not needed any more."""
        with self.lock:
            self.closed = True
        while self.arrived:
            try:
                if settle(self.busy, _LOOKS):
                    break
                time.sleep(_NAP_SECONDS)  # the cuts were uneven, or the helper's core busy
            except KeyboardInterrupt as interrupt:  # the next call would find its scratch in use
                self.error = interrupt
        del self.call  # a job that is still in the queue must not keep arrays alive


class _Pool:
    """Daemon threads, started when first needed, that wait for jobs for ever."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.bell = np.zeros(1, np.int64)
        """Rung, that is changed, for every job; helpers that are awake look at it."""
        self.size = 0
        self.lock = threading.Lock()

    def submit(self, job: _Job, helpers: int) -> None:
        if self.size < helpers:
            with self.lock:
                self._grow(helpers)
        for _ in range(helpers):
            self.jobs.put(job)
        self.bell[0] += 1

    def _grow(self, size: int) -> None:
        from fastconv.backends.cpu import waiting  # and Numba with it, which `import fastconv` can do without

        nobody = np.zeros(1, np.int64)
        self.watch, self.settle = waiting.watch, waiting.settle
        self.watch(self.bell, 0, 0, 0, nobody, 0)  # compiled here, not by the helpers
        self.settle(nobody, 0)
        for number in range(self.size, size):
            threading.Thread(target=self._serve, name=f"fastconv-{number}", daemon=True).start()
            self.size = number + 1

    def _serve(self) -> None:
        busy, slot, seen = np.zeros(1, np.int64), 0, 0
        while True:
            looks = _LOOKS if self.jobs.empty() else 0
            rung = self.watch(self.bell, seen, looks, _HEAD_START, busy, slot)
            seen = int(self.bell[0])  # before the queue is looked at: what comes behind rings again
            try:
                job = self.jobs.get(block=not rung)
            except Empty:
                continue
            entered = job.enter()
            if entered is not None:
                job.work()
                busy, slot = job.busy, entered


_pool = _Pool()


def _forget_pool() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork; the child starts its own


def parallel_for(call: RangeCall, tasks: int, cost: float) -> None:
    """Run `call(start, stop)` so that its ranges cover [0, tasks) once, on up to `get_num_threads()` threads.

    `cost` is a rough estimate of the whole work in nanoseconds; little work is done at once by the caller.
    An exception raised in any range is raised here, after all threads have let go of the arrays.
    """
    helpers = min(_num_threads, tasks, 1 + int(cost / max(SERIAL_NS, 1))) - 1
    if helpers < 1 or cost < SERIAL_NS:
        if tasks:
            call(0, tasks)
        return
    pool = _pool
    job = _Job(call, tasks, helpers, cost)
    pool.submit(job, helpers)
    job.work()
    job.close(pool.settle)
    if job.error is not None:
        raise job.error
