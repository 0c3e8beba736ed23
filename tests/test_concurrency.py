"""Many Python threads at once, also in the first call of a process, and a child process after a fork."""

from __future__ import annotations

import _thread
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from expected import exact
from problems import LARGE, PROBLEMS

import fastconv as fc
from fastconv.backends import threads
from fastconv.backends.cpu.atomics import add, load, rest
from fastconv.backends.cpu.host import pointer
from fastconv.backends.cpu.team import LAST_NUMBER, NUMBER, shared

TESTS = Path(__file__).parent
CALLERS = 8


def convolved(problem):
    """Forward and both gradients, as bytes."""
    arrays, window = problem.normal("float32"), problem.window
    name = f"conv{problem.rank}d"
    y = fc.conv(arrays.x, arrays.w, arrays.b, **window)
    gx = getattr(fc.grad, f"{name}_input")(arrays.x.shape, arrays.w, arrays.gy, **window)
    gw = getattr(fc.grad, f"{name}_weight")(arrays.x, arrays.w.shape, arrays.gy, **window)
    return y.tobytes(), gx.tobytes(), gw.tobytes()


def at_once(work, number=CALLERS):
    """Run work(n) in so many threads that begin together; the first exception of any of them is raised here."""
    barrier, errors = threading.Barrier(number), []

    def run(number):
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=run, args=(n,)) for n in range(number)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=300)
    assert not any(caller.is_alive() for caller in callers)
    if errors:
        raise errors[0]


@shared
def held_up(entered, free, done, who, begin, end):
    """Each task says that it has been entered, and waits until it is free to go on."""
    for task in range(begin, end):
        add(pointer(entered), 1)
        while load(pointer(free)) == 0:
            rest()
        done[task] += 1


def holding(tasks, free=0):
    """Operands of `held_up`."""
    return np.zeros(1, np.int64), np.full(1, free), np.zeros(tasks, np.int64)


def wait_for(word, value):
    deadline = time.monotonic() + 60
    while word[0] < value:
        assert time.monotonic() < deadline, f"{word[0]} of {value} after a minute"
        time.sleep(0.001)


def test_an_interrupt_waits_for_those_who_help():
    """Ctrl-C while threads work: the next call must not find that they still do."""
    fc.set_num_threads(2)
    held_up(*holding(2, free=1), 0, 0, 2)  # compiled: helpers do not wait for that
    entered, free, done = operands = holding(2)

    def interrupt():
        try:
            wait_for(entered, 2)
            _thread.interrupt_main()
            time.sleep(0.1)
        finally:
            free[0] = 1

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    thread = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            threads.share(held_up, operands, 2, 1e9)
            thread.join()  # the interrupt comes as soon as Python code runs again
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert list(done) == [1, 1]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_different_convolutions_in_eight_threads(threads):
    """Each caller has its own order of the problems, so that different kernels run at the same time."""
    problems = PROBLEMS[::4] + LARGE[::3]
    expected = {problem: convolved(problem) for problem in problems}
    fc.set_num_threads(threads)

    def work(number):
        for problem in problems[number:] + problems[:number]:
            assert convolved(problem) == expected[problem], problem.line

    at_once(work)


def test_the_number_of_threads_may_change_meanwhile():
    problem = LARGE[0]
    expected = convolved(problem)

    def work(number):
        for step in range(10):
            fc.set_num_threads(1 + (number + step) % 5)
            assert convolved(problem) == expected

    at_once(work)


def test_gradients_in_eight_threads():
    """Each thread records on a tape of its own; no_grad in one is not no_grad in another; nor is precision."""
    problem = LARGE[0]
    arrays = problem.integers("float32")
    expected = exact(problem)

    def work(number):
        for _ in range(5):
            x, w = (fc.Tensor(a, requires_grad=True) for a in (arrays.x, arrays.w))
            if number % 2:
                with fc.no_grad():
                    assert not fc.conv2d(x, w, arrays.b, **problem.window).requires_grad
            with fc.precision("highest"):
                y = fc.conv2d(x, w, arrays.b, **problem.window)
                assert np.array_equal(y.data, expected.forward)
                y.backward(arrays.gy)
            assert np.array_equal(x.grad, expected.input_grad)
            assert np.array_equal(w.grad, expected.weight_grad)

    at_once(work)


def test_an_error_in_one_thread_leaves_the_others_alone():
    problem = LARGE[1]
    expected = convolved(problem)

    def work(number):
        for _ in range(5):
            if number % 2:
                with pytest.raises(ValueError, match="conv2d: "):
                    fc.conv2d(np.zeros((1, 2, 3, 3)), np.zeros((1, 2, 5, 5)))
            else:
                assert convolved(problem) == expected

    at_once(work)


def test_a_caller_does_not_wait_for_the_pool_to_be_free(monkeypatch):
    """The only helper is held up by one caller; another one does all of its work itself, and returns."""
    monkeypatch.setattr(threads, "_pool", threads._Pool())
    fc.set_num_threads(2)
    held_up(*holding(2, free=1), 0, 0, 2)
    entered, free, done = operands = holding(2)
    caller = threading.Thread(target=threads.share, args=(held_up, operands, 2, 1e9))
    caller.start()
    try:
        wait_for(entered, 2)  # the caller and its helper
        alone = holding(5, free=1)
        threads.share(held_up, alone, 5, 1e9)
        assert list(alone[2]) == [1] * 5 and list(done) == [0, 0]
    finally:
        free[0] = 1
    caller.join(timeout=60)
    assert not caller.is_alive() and list(done) == [1, 1]


@shared(allocates=True)
def wasteful(sizes, done, who, begin, end):
    for task in range(begin, end):
        np.empty(sizes[task], np.uint8)
        done[task] = 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system lets no thread choose its processors")
def test_a_woken_helper_may_run_where_the_caller_may():
    pool, before = threads._Pool(), os.sched_getaffinity(0)
    try:
        for allowed in (before, {min(before)}, before):
            os.sched_setaffinity(0, allowed)
            pool.call(1, 0, 0.0)
            deadline = time.monotonic() + 30
            while pool.mailboxes[0] != threads.AWAY:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            pool.call(1, 1, 0.0)
            helper = pool.threads[0].native_id
            while os.sched_getaffinity(helper) != allowed:
                assert time.monotonic() < deadline
                time.sleep(0.001)
    finally:
        os.sched_setaffinity(0, before)


def test_little_work_in_a_row_wakes_a_helper(monkeypatch):
    """One piece is not worth it; that others came just before is, but not that some came long ago."""
    now, woken = 0, []
    monkeypatch.setattr(threads.time, "perf_counter_ns", lambda: now)
    monkeypatch.setattr(threads, "_WAKING", 3)
    pool = threads._Pool()
    pool.call(1, 0, 0.0)
    for apart in [threads._LATELY_NS + 1] * 4 + [threads._LATELY_NS] * 6:
        deadline = time.monotonic() + 30
        while pool.mailboxes[0] != threads.AWAY:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        now += apart
        woken.append(pool.call(1, 0, threads.SERIAL_NS))
    assert woken == [False] * 4 + [False, True, False, False, True, False]


@pytest.mark.parametrize("number", [1, 2])
def test_memory_that_a_task_does_not_get(number):
    """The error reaches the caller, whoever met it, and the next call finds all in order."""
    fc.set_num_threads(number)
    sizes = np.full(64, 16)
    sizes[[5, 60]] = 2**60
    for _ in range(20):
        with pytest.raises(MemoryError):
            threads.share(wasteful, (sizes, np.zeros(64)), 64, 1e9)
    done = np.zeros(64)
    threads.share(wasteful, (np.full(64, 16), done), 64, 1e9)
    assert done.all()


@shared
def signed(workers, spin, who, begin, end):
    """Each task writes down who worked on it, and takes its time."""
    for task in range(begin, end):
        total = 1.0
        for _ in range(spin):
            total = total * 1.0000001 + workers[task]
        workers[task] += 1 + who + (total < 0)


@pytest.mark.parametrize("callers", [1, 3])
def test_each_task_is_done_once_by_a_member_of_the_team(callers):
    """Teams of every size, called again and again; helpers fall asleep in between, or are about to."""

    def work(number):
        chance = random.Random(number)
        for _ in range(200):
            tasks, cost = chance.choice([2, 5, 64, 1000]), chance.choice([2e4, 1e5, 1e6])
            workers = np.zeros(tasks)
            team = threads.team_for(tasks, cost)
            if team.size > 1 and chance.random() < 0.05:
                team.words[NUMBER] = LAST_NUMBER  # the last number a job can have
            signed(workers, chance.choice([10, 100]), team.address, 0, tasks)
            assert workers.min() >= 1 and workers.max() <= team.size
            if chance.random() < 0.1:
                time.sleep(chance.random() * 0.001)

    fc.set_num_threads(4)
    at_once(work, callers)


def run(program: str, **environment: str) -> str:
    """What a program prints in a process of its own, which must end well, and in time."""
    path = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


FIRST_CALLS = """
import numpy as np
import fastconv as fc
from expected import exact
from problems import parse
from test_concurrency import at_once

problem = parse("n2 c3 l20 k4 f3 s2 p1")
arrays, expected = problem.integers("float32"), exact(problem)

def work(number):
    y = fc.conv1d(arrays.x, arrays.w, arrays.b, **problem.window)
    assert np.array_equal(y, expected.forward)
    x = fc.Tensor(arrays.x, requires_grad=True)
    fc.conv1d(x, arrays.w, **problem.window).backward(arrays.gy)
    assert np.array_equal(x.grad, expected.input_grad)

at_once(work)
print("done")
"""


def test_first_calls_of_a_process_in_eight_threads(tmp_path):
    """Nothing is compiled yet, not even on disk."""
    assert run(FIRST_CALLS, NUMBA_CACHE_DIR=str(tmp_path)) == "done\n"


FORK = """
import os, signal, sys, threading, warnings
import numpy as np
import fastconv as fc
from test_concurrency import convolved
from problems import LARGE

warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, on a fork beside threads: what is tested here
problem = LARGE[0]
fc.set_num_threads(3)
expected = convolved(problem)
assert sum(thread.name.startswith("fastconv") for thread in threading.enumerate()) >= 2
busy = threading.Event()

def keep_busy():
    while not busy.is_set():
        convolved(problem)

callers = [threading.Thread(target=keep_busy) for _ in range({callers})]
for caller in callers:
    caller.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        right = convolved(problem) == expected
        fc.set_num_threads(2)
        right = right and convolved(problem) == expected
        os._exit(0 if right else 3)
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with status {{status}}"
busy.set()
for caller in callers:
    caller.join()
assert convolved(problem) == expected
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("callers", [0, 2])
def test_child_after_fork(callers):
    """The threads of the pool do not live in the child; the parent may be in the middle of calls of its own."""
    assert run(FORK.format(callers=callers)) == "done\n"


MULTIPROCESSING = """
import multiprocessing
from test_concurrency import convolved
from problems import LARGE

if __name__ == "__main__":
    expected = convolved(LARGE[0])
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert pool.map(convolved, [LARGE[0]] * 4) == [expected] * 4
    print("done")
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_multiprocessing(method, tmp_path):
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    program = tmp_path / "program.py"
    program.write_text(MULTIPROCESSING.format(method=method))
    assert run(f"import runpy, sys; sys.argv[0] = {str(program)!r}; runpy.run_path(sys.argv[0], run_name='__main__')")
