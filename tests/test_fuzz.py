"""Geometries and cuts of work nobody thought of, drawn by Hypothesis: the same each time. A failure prints its line."""

from __future__ import annotations

import numpy as np
import pytest
from expected import results
from problems import Problem, parse

import fastconv as fc
from fastconv.backends.cpu.team import cut, part_begins

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")
st = hypothesis.strategies
pytestmark = pytest.mark.usefixtures("highest_precision")


def repeatable(examples: int):
    return hypothesis.settings(max_examples=examples, derandomize=True, deadline=None, database=None)


@st.composite
def problems(draw) -> Problem:
    """A problem with 1-3 axes of up to 40, 12 and 7 positions, in which at least one window fits."""
    rank = draw(st.integers(1, 3))
    largest = (40, 12, 7)[rank - 1]
    axes = []
    for _ in range(rank):
        k, d, s = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
        before, after = draw(st.integers(0, 6)), draw(st.integers(0, 6))
        size = draw(st.integers(max(1, d * (k - 1) + 1 - before - after), largest + d * (k - 1)))
        axes.append((size, k, s, f"{before}:{after}", d))
    size, k, s, p, d = ("x".join(map(str, numbers)) for numbers in zip(*axes))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    channels, filters = (groups * draw(st.integers(1, 40 // groups)) for _ in range(2))
    batch = draw(st.integers(0, 9))
    letters = ("l", "hw", "dhw")[rank - 1]
    return parse(f"n{batch} c{channels} {letters}{size} k{filters} f{k} s{s} p{p} d{d} g{groups}")


@repeatable(400)
@hypothesis.given(problem=problems(), dtype=st.sampled_from(["float32", "float64"]))
def test_against_the_oracle(problem, dtype):
    arrays = problem.integers(dtype)
    window = problem.window
    expected = results(problem, problem.integers())
    name = f"conv{problem.rank}d"
    y = getattr(fc, name)(arrays.x, arrays.w, arrays.b, **window)
    assert np.array_equal(y, expected.forward)
    gx = getattr(fc.grad, f"{name}_input")(problem.x_shape, arrays.w, arrays.gy, **window)
    assert np.array_equal(gx, expected.input_grad)
    gw = getattr(fc.grad, f"{name}_weight")(arrays.x, problem.w_shape, arrays.gy, **window)
    assert np.array_equal(gw, expected.weight_grad)


# What may stand in the place of a right argument.
integers = st.one_of(st.integers(-2, 9), st.sampled_from([2**40, -(2**63)]))
wrong = st.one_of(
    integers, st.sampled_from([None, 1.5, True, "same", "valid", "1", b"", {}, np.int8(3), np.float32(2)])
)
windows = st.one_of(wrong, st.lists(wrong, max_size=4), st.lists(wrong, max_size=4).map(tuple))
shapes = st.lists(st.integers(0, 5), max_size=6).map(tuple)
dtypes = st.sampled_from(
    ["float32", "float64", ">f4", "float16", "int64", "bool", "complex64", "object", "S3", "M8[s]"]
)
operands = st.one_of(
    st.builds(np.zeros, shapes, dtypes), st.sampled_from([None, 1.0, [1.0, 2.0], "x", np.zeros((2, 2, 2), "float32")])
)


@repeatable(1500)
@hypothesis.given(data=st.data(), problem=problems(), transposed=st.booleans())
def test_any_call_returns_a_result_or_says_what_is_wrong(data, problem, transposed):
    """A right call with up to two of its arguments replaced."""
    arrays = problem.integers("float32")
    name = f"conv{'_transpose' * transposed}{problem.rank}d"
    arguments = {"input": arrays.gy if transposed else arrays.x, "weight": arrays.w, **problem.window}
    if transposed:
        arguments["output_padding"] = problem.unused
    for word in data.draw(st.lists(st.sampled_from(sorted(arguments)), max_size=2)):
        arguments[word] = data.draw(operands if word in ("input", "weight") else windows)
    try:
        y = getattr(fc, name)(**arguments)
    except (ValueError, TypeError) as error:
        assert len(error.args) == 1 and isinstance(error.args[0], str)
        assert error.args[0].startswith(f"{name}: ")
    except MemoryError:
        assert str(2**40) in str(arguments)
    else:
        assert isinstance(y, np.ndarray) and y.dtype in ("float32", "float64") and np.isfinite(y).all()


@repeatable(200)
@hypothesis.given(
    tasks=st.integers(1, 10_000), number=st.integers(1, 64), least=st.integers(0, 20_000), own=st.booleans()
)
def test_pieces_of_work_cover_it_once_and_become_no_larger(tasks, number, least, own):
    begins = [part_begins.py_func(tasks, part, number) for part in range(number + 1)]
    parts = np.diff(begins)
    assert begins[0] == 0 and begins[-1] == tasks and parts.max() - parts.min() <= 1
    sizes, left = [], int(parts[-1])
    while left > 0:
        sizes.append(cut.py_func(left, least, own))
        left -= sizes[-1]
    assert left == 0 and min(sizes) > 0 and np.all(np.diff(sizes) <= 0)
    assert sizes[0] <= max(least, 2 * parts[-1] / 3 + 1) and np.all(np.array(sizes[:-1]) >= least)
