"""A pool of Python threads around kernels that release the GIL.

Why not Numba's own `prange`: its workqueue layer dies on concurrent calls, its GNU OpenMP layer dies after a fork, and
both cost a second compilation pipeline. Here a range of tasks is cut into chunks, the caller works on them too, and
whoever is free takes the next chunk. What a task computes never depends on how the range was cut, so neither the
number of threads nor the timing can change a bit of the result.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

RangeCall = Callable[[int, int], Any]

SERIAL_NS = 60_000
"""Work below this many nanoseconds stays on the calling thread: waking another costs about a third of it."""

_CHUNKS_PER_THREAD = 4  # enough to even out a thread that was held up, few enough to cost nothing


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


class _Job:
    """One parallel range: chunk numbers are handed out by a counter whose `next` is atomic under the GIL."""

    def __init__(self, call: RangeCall, tasks: int, helpers: int) -> None:
        self.call = call
        self.tasks = tasks
        self.chunks = min(tasks, _CHUNKS_PER_THREAD * (helpers + 1))
        self.counter = itertools.count()
        self.helping = 0
        self.closed = False
        self.lock = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()
        self.error: BaseException | None = None

    def work(self) -> None:
        try:
            while (chunk := next(self.counter)) < self.chunks:
                self.call(self.tasks * chunk // self.chunks, self.tasks * (chunk + 1) // self.chunks)
        except BaseException as error:  # carried to the calling thread by `parallel_for`
            self.error = error

    def help(self) -> None:
        with self.lock:
            if self.closed:
                return
            self.helping += 1
        self.work()
        with self.lock:
            self.helping -= 1
            last = self.closed and self.helping == 0
        if last:
            self.done.release()

    def close(self) -> None:
        """Wait for those who are helping; who was busy elsewhere until now is not needed any more."""
        with self.lock:
            self.closed = True
            waiting = self.helping > 0
        if waiting:
            self.done.acquire()
        del self.call  # a job that is still in the queue must not keep arrays alive


class _Pool:
    """Daemon threads, started when first needed, that wait for jobs for ever."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.size = 0
        self.lock = threading.Lock()

    def submit(self, job: _Job, helpers: int) -> None:
        if self.size < helpers:
            with self.lock:
                for number in range(self.size, helpers):
                    threading.Thread(target=self._serve, name=f"fastconv-{number}", daemon=True).start()
                    self.size = number + 1
        for _ in range(helpers):
            self.jobs.put(job)

    def _serve(self) -> None:
        while True:
            self.jobs.get().help()


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
    helpers = min(_num_threads, tasks) - 1
    if helpers < 1 or cost < SERIAL_NS:
        if tasks:
            call(0, tasks)
        return
    job = _Job(call, tasks, helpers)
    _pool.submit(job, helpers)
    job.work()
    job.close()
    if job.error is not None:
        raise job.error
