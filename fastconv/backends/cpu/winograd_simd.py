"""The transforms of Winograd's tiles as LLVM vectors: lanes are tiles, never positions.

Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A with the matrices of the height on one side and those of the width on the other, see
winograd_matrices.py: a 6×6 patch d of the input and a 3×3 filter g give a 4×4 patch Y of the output with 36
multiplications instead of 144, a 5×5 patch a 3×3 one with 25 instead of 81. Everything stays in registers between the
loads of a patch and the stores of its transform, as far as there are registers. The transforms of filters are in
winograd_filters_simd.py.

Each takes the `form` of a tile (winograd_forms.py): for height and width tuples whose lengths are its taps, its outputs
and its step there. A length belongs to the type, so that the code is made for the form.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, lanes_of
from fastconv.backends.cpu.host import inlined
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.winograd_forms import phase_of, phase_taps, phases_of, spread_of
from fastconv.backends.cpu.winograd_matrices import Matrices, Matrix, has_zero, matrices

FILTER_LANES = 8  # of a vector of filters: at least ROWS
FEW = 4  # columns of `few_columns`
_FEW_LANES = max(lanes_of(4), FILTER_LANES)  # of its vectors of rows
FEW_BLOCKS = 2 * _FEW_LANES // FILTER_LANES  # blocks of rows at once: two such vectors
_BLOCKS = range(FEW_BLOCKS)

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)


def matrices_of(form: Any) -> tuple[Matrices, Matrices]:
    """Of height and width."""
    height, width = (
        matrices(phase_taps(len(taps), len(step) * len(spread)), len(outputs)) for taps, outputs, step, spread in form
    )
    return height, width


def _combination(emit: Emitter, factors: Any, values: list[Any]) -> Any:
    """Σ factor · value, skipping zeros; None if all are zero."""
    total: Any = None
    for factor, value in zip(factors, values):
        if factor == 0:
            continue
        if total is None:
            total = value if factor == 1 else emit.builder.fmul(emit.constant(factor), value)
        elif factor == 1:
            total = emit.builder.fadd(total, value)
        else:
            total = emit.fma(emit.constant(factor), value, total)
    return total


def at_points(emit: Emitter, matrix: Matrix, values: list[Any]) -> list[Any]:
    """matrix · values for Bᵀ, G or A: the rows of points a and -a differ in the signs of their odd columns alone.

    Without the last value, of a short phase, there is none at infinity, and the others do not need it.
    """
    if len(matrix) == 1:
        return [_combination(emit, matrix[0], values)]
    pairs = int(has_zero(len(matrix)))  # where they begin
    results = [_combination(emit, row, values) for row in matrix[:pairs]]
    for row in matrix[pairs:-1:2]:
        even, odd = (_combination(emit, row[first::2], values[first::2]) for first in (0, 1))
        results += [even, even] if odd is None else [emit.builder.fadd(even, odd), emit.builder.fsub(even, odd)]
    return results if len(values) < len(matrix[-1]) else [*results, _combination(emit, matrix[-1], values)]


def from_points(emit: Emitter, matrix: Matrix, values: list[Any]) -> list[Any]:
    """matrix · values for Aᵀ or Gᵀ: the columns of points a and -a differ in the signs of their odd rows alone.

    Short phases lack the last value, at infinity.
    """
    if len(values) == 1:
        return [_combination(emit, row, values) for row in matrix]
    first = int(has_zero(len(matrix[0])))
    points, infinity = values[: len(matrix[0]) - 1], values[len(matrix[0]) - 1 :]
    pairs = list(zip(points[first::2], points[first + 1 :: 2]))
    sums = [emit.builder.fadd(a, b) for a, b in pairs]
    differences = [emit.builder.fsub(a, b) for a, b in pairs]
    ends = points[:first] + infinity
    results = []
    for i, row in enumerate(matrix):
        factors = [*row[:first], *row[-1:][: len(infinity)], *row[first:-1:2]]
        results.append(_combination(emit, factors, [*ends, *(differences if i % 2 else sums)]))
    return results


def both_sides(emit: Emitter, transform: Any, height: Matrix, width: Matrix, values: list[list[Any]]) -> Any:
    """height · values · widthᵀ."""
    columns = [transform(emit, height, list(column)) for column in zip(*values)]
    return [transform(emit, width, list(row)) for row in zip(*columns)]


def transposed(matrix: Matrix) -> Matrix:
    """Columns as rows."""
    return tuple(zip(*matrix))


def frequencies_at(emit: Emitter, source: Any, stride: Any, rows: int, columns: int, short: int = 0) -> list[list[Any]]:
    """Vectors at source[stride · frequency:], but for those that short phases lack (`phase_of`)."""
    numbers = [[emit.index(columns * i + j) for j in range(columns - short % 2)] for i in range(rows - short // 2)]
    return [[emit.load(emit.at(source, emit.builder.mul(stride, n))) for n in row] for row in numbers]


def store_frequencies(
    emit: Emitter, target: Any, stride: Any, values: list[list[Any]], across: int, lanes: int = FILTER_LANES
) -> None:
    """Vectors to target[stride · frequency:], `across` of them in a whole row; of each fewer `lanes`, if asked for."""
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            place = emit.at(target, emit.builder.mul(stride, emit.index(across * i + j)))
            if lanes < FILTER_LANES:
                emit.store_part(value, place, lanes)
            else:
                emit.store(value, place)


def _transform(emit: Emitter, height: Matrix, width: Matrix, short: int, args: Any) -> None:
    """The code of `input_transform` and `gradient_transform`; `short` as in `phase_of`."""
    source, off, target, stride = args
    source, target = emit.pointer(source), emit.pointer(target)
    off = emit.builder.inttoptr(off, _I64.as_pointer())
    rows, columns = len(height[0]) - short // 2, len(width[0]) - short % 2
    patch = [
        [emit.load(emit.at(source, emit.builder.load(emit.at(off, emit.index(n))))) for n in range(i, i + columns)]
        for i in range(0, columns * rows, columns)
    ]
    store_frequencies(emit, target, stride, both_sides(emit, at_points, height, width, patch), len(width))


def has_kind(form: Any, kind: int) -> bool:
    """Whether a form has phases of the input of that kind: there is no code for others."""
    if phases_of(form) == 1:
        return kind == 0
    return any(phase_of(form, number)[2] == kind for number in range(phases_of(form)))


@intrinsic(prefer_literal=True)
def input_transform(typing_context, like, form, kind, source, off, target, stride):  # type: ignore[no-untyped-def]
    """Patches in the lanes, element number n of all at source[off[n]:], to target[stride · frequency:].

    `kind` is that of a phase, see `phase_of`.
    """
    short = kind.literal_value
    height, width = matrices_of(form)
    signature = types.void(like, form, kind, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if has_kind(form, short):
            _transform(Emitter(builder, signature.args[0]), height.input, width.input, short, args[3:])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def gradient_transform(typing_context, like, form, source, off, target, stride):  # type: ignore[no-untyped-def]
    """The same for gradients of outputs: A gy Aᵀ, the adjoint of `output_transform`; FILTER_LANES patches."""
    height, width = (transposed(axis.output) for axis in matrices_of(form))
    signature = types.void(like, form, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _transform(Emitter(builder, signature.args[0], FILTER_LANES), height, width, 0, args[2:])
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def few_columns(  # type: ignore[no-untyped-def]
    typing_context, like, last, a, a_apart, b, b_stride, count, c, c_apart, c_stride, before, after
):
    """C[block][m, n] = Σ_k A[block][k, m] · B[k, n] for blocks ≤ last, m < ROWS, n < FEW: rows lie in the lanes.

    At most FEW_BLOCKS blocks; of fewer the last one is computed for those that are missing. With `after` ≠ 0 the sums
    have more terms, and stay at C as they are until a call with `before` ≠ 0 goes on. A vector of a row of C is
    written, zeros behind its columns; FILTER_LANES elements of A are read for each k. As in simd.py every element is
    one chain of FMAs in the order of k: bits are those of `outer_strided`.
    """
    signature = types.void(like, *[types.intp] * 11)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit, row_of_c = Emitter(builder, signature.args[0], FILTER_LANES), Emitter(builder, signature.args[0])
        vector = Emitter(builder, signature.args[0], _FEW_LANES)
        last, a, a_apart, b, b_stride, count, c, c_apart, c_stride, before, after = args[1:]
        a, b, c = (emit.pointer(address) for address in (a, b, c))
        numbers = [builder.select(builder.icmp_signed("<", emit.index(n), last), emit.index(n), last) for n in _BLOCKS]
        blocks = [emit.at(a, builder.mul(n, a_apart)) for n in numbers]
        targets = [emit.at(c, builder.mul(n, c_apart)) for n in numbers]
        together = vector.lanes // FILTER_LANES  # blocks in the lanes of a vector
        whole = ir.Constant(ir.VectorType(_I32, vector.lanes), list(range(vector.lanes)))
        kept = [[emit.at(at, emit.index(n * vector.lanes)) for n in range(FEW)] for at in targets[::together]]

        def step(k: Any, values: list[list[Any]]) -> list[list[Any]]:
            row, filters = emit.at(b, builder.mul(k, b_stride)), builder.mul(k, emit.index(ROWS))
            factors = [vector.splat(builder.load(emit.at(row, emit.index(n)))) for n in range(FEW)]
            loaded = [emit.load(emit.at(block, filters)) for block in blocks]
            if together == 2:
                loaded = [builder.shuffle_vector(*pair, whole) for pair in zip(loaded[::2], loaded[1::2])]
            return [[vector.fma(f, a, s) for f, s in zip(factors, sums)] for a, sums in zip(loaded, values)]

        begun = builder.icmp_signed("!=", before, emit.index(0))
        start = [[builder.select(begun, vector.load(place), vector.zero) for place in places] for places in kept]
        result = vector.loop(count, start, step, 4)
        with builder.if_else(builder.icmp_signed("!=", after, emit.index(0))) as (keep, finish):
            with keep:
                for sums, places in zip(result, kept):
                    for value, place in zip(sums, places):
                        vector.store(value, place)
            with finish:
                for number, target in enumerate(targets):
                    by_rows = vector.interleaved(result[number // together])  # FEW columns of each row after the other
                    for m in range(ROWS):
                        held, first = divmod((number % together * FILTER_LANES + m) * FEW, vector.lanes)
                        lanes = [first + n if n < FEW else vector.lanes for n in range(row_of_c.lanes)]
                        mask = ir.Constant(ir.VectorType(_I32, row_of_c.lanes), lanes)
                        row = builder.shuffle_vector(by_rows[held], vector.zero, mask)
                        row_of_c.store(row, emit.at(target, builder.mul(c_stride, emit.index(m))))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def output_transform(  # type: ignore[no-untyped-def]
    typing_context, like, form, unit, source, stride, apart, start, relu, target, row_step, check
):
    """Frequencies at source[stride · frequency:] to the outputs of tiles side by side, rows at target[row_step · row:].

    Those of the phases of the outputs lie `apart`; columns of all phases are stored in turns, as many tiles at a time
    as the tuple `unit` is long.
    `start` is the address of a value to add (the bias); with `relu` ≠ 0 negative results become 0. Of the vector at
    `check` a lane becomes NaN if a result of its tile, before relu, is not finite; the others keep what they have.
    """
    signature = types.void(like, form, unit, *[types.intp] * 8)
    height, width = matrices_of(form)
    steps_h, steps_w = (len(axis[3]) for axis in form)
    spread = spread_of(form)
    # The phases that rows of a phase take their columns from, in turns: those with the last tap come first.
    by_place = sorted(((-h, -w), number, kind) for number in range(spread) for h, w, kind in [phase_of(form, number)])
    in_rows = [by_place[i * steps_w : (i + 1) * steps_w] for i in range(steps_h)] if spread > 1 else [[((0, 0), 0, 0)]]

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, apart, start, relu, target, row_step, check = args[3:]
        source, target, check = (emit.pointer(address) for address in (source, target, check))
        bias = emit.splat(builder.load(emit.pointer(start)))
        wanted = builder.icmp_signed("!=", relu, emit.index(0))
        zeros = emit.load(check)
        for turn, phases in enumerate(in_rows):
            outputs = []
            for _, number, kind in phases:
                of_phase = emit.at(source, builder.mul(apart, emit.index(number)))
                values = frequencies_at(emit, of_phase, stride, len(height.input), len(width.input), kind)
                outputs.append(both_sides(emit, from_points, height.output, width.output, values))
            for i, rows in enumerate(zip(*outputs)):
                row = [value for values in zip(*rows) for value in values]
                for value in row:
                    zeros = emit.fma(value, emit.zero, zeros)
                place = emit.at(target, builder.mul(row_step, emit.index(i * steps_h + turn)))
                finished = [emit.relu_if(wanted, builder.fadd(value, bias)) for value in row]
                for number, vector in enumerate(emit.interleaved(finished, len(unit))):
                    emit.store(vector, emit.at(place, emit.index(number * emit.lanes)))
        emit.store(zeros, check)
        return context.get_dummy_value()

    return signature, codegen


@inlined
def all_zero(check: Any) -> Any:
    """Whether no lane has met what is not finite: NaN and infinity times zero are no zero."""
    total = check[0]
    for lane in range(1, check.size):
        total += check[lane]
    return total == 0
