"""Blocks of memory for large results: lent to one result at a time, kept within bounds, and for the next one."""

from __future__ import annotations

import itertools
import threading
from unittest import mock

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends.cpu import memory, patches, pointwise, resampling

FLOAT = np.dtype("float32")
FLOATS = memory.LEAST_BYTES // 4


@pytest.fixture
def blocks(monkeypatch):
    fresh = memory._Blocks()
    monkeypatch.setattr(memory, "_blocks", fresh)
    return fresh


def address(array):
    return array.__array_interface__["data"][0]


def test_the_memory_of_a_result_that_is_gone_serves_the_next(blocks):
    first = memory.empty((4, FLOATS), FLOAT)
    place = address(first)
    assert place % 64 == 0 and first.flags.carray and type(first) is np.ndarray
    del first
    assert address(memory.empty((FLOATS, 4), FLOAT)) == place
    assert address(memory.empty((2, FLOATS), np.dtype("float64"))) == place  # of another dtype
    small = memory.empty((FLOATS,), FLOAT)
    assert blocks.lent < 2 * small.nbytes  # not the block of four times the size


def test_views_hold_on_to_the_memory(blocks):
    result = memory.empty((2, FLOATS), FLOAT)
    place, view = address(result), result.reshape(-1)[5:][::2]
    del result
    assert address(memory.empty((2, FLOATS), FLOAT)) != place
    del view
    blocks.take(8)  # what came back is seen to at the next call at the latest
    assert any(0 <= place - block.ctypes.data < 4096 for block in blocks.kept)


def test_what_is_made_of_an_owner_gives_nothing_back(blocks):
    """`base` is there for everybody: slices, copies and sums of it are no leases of their own."""
    result = memory.empty((2, FLOATS), FLOAT)
    place, lent = address(result), blocks.lent
    failed = []
    with mock.patch("sys.unraisablehook", failed.append):
        for made in (result.base[8:16], result.base.copy(), result.base + 1, result.view(type(result.base))):
            assert made is not result
        del made
    assert failed == [] and blocks.lent == lent and not blocks.kept
    assert address(memory.empty((2, FLOATS), FLOAT)) != place


def test_memory_that_is_not_there_is_not_lent(blocks):
    with pytest.raises(MemoryError):
        memory.empty((1 << 52,), FLOAT)
    assert blocks.lent == blocks.most_lent == 0


def test_small_results_are_numpys_own(blocks):
    assert memory.empty((3, 5), FLOAT).base is None
    assert memory.empty((0, 5), np.dtype("float64")).shape == (0, 5)
    assert blocks.lent == 0


def test_no_more_is_held_than_results_needed_at_once(blocks):
    sizes = [FLOATS * n for n in (1, 2, 4, 8, 4, 2, 1)]
    for size in sizes:
        memory.empty((size,), FLOAT)
    held = sum(block.size for block in blocks.kept)
    assert blocks.lent == 0 and held <= 1.25 * blocks.most_lent < 4 * sum(sizes)


def test_kept_blocks_stay_within_the_limit(blocks):
    blocks.most_kept = 3 * memory.LEAST_BYTES
    results = [memory.empty((FLOATS,), FLOAT) for _ in range(6)]
    assert blocks.lent >= 6 * memory.LEAST_BYTES
    results.clear()
    assert blocks.lent == 0 and 0 < sum(block.size for block in blocks.kept) <= 3 * memory.LEAST_BYTES


def test_results_of_many_threads_do_not_meet(blocks):
    """Each writes its number, lets the others go on, and finds it unchanged."""
    wrong = []

    def work(number):
        for step in range(50):
            result = memory.empty((FLOATS + step % 3,), FLOAT)
            result[:] = number
            barrier.wait()
            if not (result == number).all():
                wrong.append(number)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and not any(thread.is_alive() for thread in threads)


def test_large_results_of_operations_come_from_blocks(blocks):
    x = np.ones((1, 8, 256, 256), np.float32)
    y = fc.relu(x)
    joined = fc.concatenate([y, fc.max_pool2d(x, 3, 1, padding=1)], 1)
    assert blocks.lent >= y.nbytes + joined.nbytes
    assert (joined == 1).all() and joined.shape == (1, 16, 256, 256)


def test_results_may_die_when_the_interpreter_has_cleared_the_module(blocks, monkeypatch):
    result = memory.empty((FLOATS,), FLOAT)
    for name in ("KEPT_BYTES", "_SLACK", "np", "_blocks", "_Lease"):
        monkeypatch.setattr(memory, name, None)
    del result
    assert blocks.lent == 0 and len(blocks.kept) == 1


@pytest.mark.parametrize("columns", [64, 56, 61])
def test_large_results_have_the_bits_of_small_ones(columns, monkeypatch):
    """They are stored past the caches, where whole vectors begin."""
    generator = np.random.default_rng(0)
    x, w = (generator.standard_normal(shape, "float32") for shape in ((1, 8, 64, columns), (8, 24, 2, 2)))
    x.reshape(-1)[::7], x.reshape(-1)[::11] = -0.0, np.nan

    def results():
        yield fc.conv_transpose2d(x, w, stride=2).tobytes()
        yield fc.interpolate(x, scale_factor=4, mode="bilinear").tobytes()
        tensor = fc.Tensor(x.reshape(-1)[3:], requires_grad=True)
        y = fc.relu(tensor)
        y.backward(x.reshape(-1)[:-3])
        yield y.numpy().tobytes()
        yield tensor.grad.tobytes()

    usual = list(results())
    for module in (patches, pointwise, resampling):
        monkeypatch.setattr(module, "past_caches", lambda result, read: True)
    assert list(results()) == usual


@pytest.mark.parametrize(
    ("columns", "stride", "streamed"), [(64, 2, True), (56, 2, True), (61, 2, False), (64, 4, False)]
)
def test_pairs_of_whole_vectors_are_stored_past_the_caches(columns, stride, streamed, monkeypatch):
    """Transposed convolutions of stride 2, where rows of results are whole vectors."""
    said = []
    multiply = patches._multiply

    def spy(*arguments):
        said.append(arguments[9])
        multiply(*arguments)

    monkeypatch.setattr(patches, "past_caches", lambda result, read: True)
    monkeypatch.setattr(patches, "_multiply", spy)
    x, w = np.ones((4, 8, 64, columns), "float32"), np.ones((8, 8, stride, stride), "float32")  # a block of its own
    assert (fc.conv_transpose2d(x, w, stride=stride) == 8).all()
    assert said == [streamed]


def test_neighbouring_results_begin_at_other_places_of_a_page(blocks):
    """And at none where NumPy's large arrays begin."""
    results = [memory.empty((FLOATS,), FLOAT) for _ in range(20)]
    places = [address(result) % 4096 for result in results]
    assert all(64 <= place <= 4096 - 64 and place % 64 == 0 for place in places)
    assert all(a != b for a, b in itertools.pairwise(places))
