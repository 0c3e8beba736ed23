"""What scratch memory is kept between calls, by one thread and by many."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest

from fastconv.backends.cpu import scratch

FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def nobody(monkeypatch):
    """No thread has called yet, and 64 KiB are much."""
    monkeypatch.setattr(scratch, "KEPT_BYTES", 1 << 16)
    monkeypatch.setattr(scratch, "_callers", weakref.WeakSet())
    monkeypatch.setattr(scratch, "_local", scratch._Local())


def is_kept(workers, elements):
    first = scratch.scratch_rows(workers, elements, FLOAT32)
    return scratch.scratch_rows(workers, elements, FLOAT32) is first


def test_rows_begin_on_lines_of_the_cache_and_are_found_again(nobody):
    for elements in (1, 16, 1000):
        rows = scratch.scratch_rows(3, elements, FLOAT32)
        assert rows.shape == (3, -(-elements // 16) * 16)
        assert all(row.ctypes.data % 64 == 0 for row in rows)
    assert is_kept(3, 1000) and is_kept(2, 10) and is_kept(3, 1000)


def test_a_thread_keeps_a_share_for_each_that_works_for_it(nobody):
    assert is_kept(1, 16_000) and is_kept(4, 16_000)
    assert not is_kept(1, 17_000) and not is_kept(4, 17_000)


def test_many_shapes_of_scratch_do_not_pile_up(nobody):
    for elements in range(16, 16_000, 16):
        scratch.scratch_rows(1, elements, FLOAT32)
    assert len(scratch._local.tasks.arrays) <= scratch._MOST_ARRAYS


def test_threads_that_call_at_the_same_time_share_what_is_kept(nobody):
    """Four callers with four workers each: each keeps as much as for one worker."""
    assert is_kept(4, 16_000)
    barrier, kept = threading.Barrier(3), []

    def call():
        scratch.scratch_rows(1, 16, FLOAT32)
        barrier.wait(60)  # now all four have called
        kept.append((is_kept(4, 16_000), is_kept(4, 4_000)))
        barrier.wait(60)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert kept == [(False, True)] * 3
