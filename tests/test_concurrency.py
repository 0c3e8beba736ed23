"""Many Python threads at once, also in the first call of a process, and a child process after a fork."""

from __future__ import annotations

import _thread
import os
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


def at_once(work):
    """Run work(number) in 8 threads that begin together; the first exception of any of them is raised here."""
    barrier, errors = threading.Barrier(CALLERS), []

    def run(number):
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=run, args=(number,)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=300)
    assert not any(caller.is_alive() for caller in callers)
    if errors:
        raise errors[0]


def test_an_interrupt_waits_for_those_who_help():
    """Ctrl-C while the caller waits for another thread: the next call must not find that one still at work."""
    fc.set_num_threads(2)
    caller, begun, done = threading.get_ident(), threading.Event(), []

    def call(start, stop):
        if threading.get_ident() == caller:
            begun.wait(10)
            return
        begun.set()
        time.sleep(0.1)  # by now the caller waits
        _thread.interrupt_main()
        time.sleep(0.1)
        done.append((start, stop))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.parallel_for(call, 2, 1e9)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done) == 1


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
    entered, free = threading.Semaphore(0), threading.Event()

    def held_up(begin, end):
        entered.release()
        free.wait(60)

    caller = threading.Thread(target=threads.parallel_for, args=(held_up, 2, 1e9))
    caller.start()
    for _ in range(2):
        assert entered.acquire(timeout=60)  # the caller and its helper
    done, began = [], time.monotonic()
    threads.parallel_for(lambda begin, end: done.extend(range(begin, end)), 5, 1e9)
    assert sorted(done) == list(range(5)) and time.monotonic() - began < 30
    free.set()
    caller.join(timeout=60)
    assert not caller.is_alive()


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
