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
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.host import inlined
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.winograd_forms import phase_of, phase_taps, phases_of, spread_of
from fastconv.backends.cpu.winograd_matrices import Matrices, Matrix, has_zero, matrices

FILTER_LANES = 8  # of a vector of filters: at least ROWS
FEW = 4  # columns of `few_columns`

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


def _has(form: Any, kind: int) -> bool:
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
        if _has(form, short):
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


def _gather(emit: Emitter, address: Any, index: Any, mask: Any) -> Any:
    """Lanes of the elements `index` (vector) behind `address` (integer) where the mask is set, else 0."""
    builder, lanes = emit.builder, emit.lanes
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    undefined = ir.Constant(index.type, ir.Undefined)
    bases = builder.shuffle_vector(builder.insert_element(undefined, address, ir.Constant(_I32, 0)), undefined, zeros)
    sizes = ir.Constant(index.type, [emit.itemsize] * lanes)
    pointers = builder.inttoptr(
        builder.add(bases, builder.mul(index, sizes)), ir.VectorType(emit.element.as_pointer(), lanes)
    )
    kind = ir.FunctionType(emit.vector, [pointers.type, _I32, mask.type, emit.vector])
    name = f"llvm.masked.gather.{emit.suffix}.v{lanes}p0"
    gather = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(gather, [pointers, ir.Constant(_I32, emit.itemsize), mask, emit.zero])


def _patch_by_elements(emit: Emitter, rows: int, columns: int, args: Any) -> list[list[Any]]:
    """The patches of `input_transform_gathered` whose columns lie apart: an element of all lanes at a time."""
    builder = emit.builder
    source, index, masks, masks_row, masks_column, row, column = args
    indices = builder.load(builder.inttoptr(index, ir.VectorType(_I64, emit.lanes).as_pointer()), align=8)
    masks = builder.inttoptr(masks, _I64.as_pointer())
    bits = ir.VectorType(ir.IntType(1), emit.lanes)

    def shift(i: int, j: int, row: Any, column: Any) -> Any:
        return builder.add(builder.mul(row, emit.index(i)), builder.mul(column, emit.index(j)))

    def element(i: int, j: int) -> Any:
        number = builder.load(emit.at(masks, shift(i, j, masks_row, masks_column)))
        mask = builder.bitcast(builder.trunc(number, ir.IntType(emit.lanes)), bits)
        address = builder.add(source, builder.mul(shift(i, j, row, column), emit.index(emit.itemsize)))
        before = builder.block
        with builder.if_then(builder.icmp_signed("!=", number, emit.index(0))):
            gathered, inside = _gather(emit, address, indices, mask), builder.block
        value = builder.phi(emit.vector)
        value.add_incoming(emit.zero, before)
        value.add_incoming(gathered, inside)
        return value

    return [[element(i, j) for j in range(columns)] for i in range(rows)]


def _end_to_end(emit: Emitter, parts: list[Any]) -> Any:
    """One vector of several parts."""
    while len(parts) > 1:
        both = ir.Constant(ir.VectorType(_I32, 2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [emit.builder.shuffle_vector(*pair, both) for pair in zip(parts[::2], parts[1::2])]
    return parts[0]


def _patch_by_rows(emit: Emitter, like: Any, rows: int, columns: int, step: int, args: Any) -> list[list[Any]]:
    """The patches whose columns lie `step` apart: a row of each lane at a time, all of them transposed.

    An instruction that gathers takes as long as its lanes one after the other, on some processors several times that.
    """
    builder, reach = emit.builder, (columns - 1) * step + 1
    source, index, masks, masks_row, masks_lane, row, first = args
    span = next(span for span in (4, 8, 16) if reach <= span)
    part = Emitter(builder, like, span)
    index, masks = (builder.inttoptr(address, _I64.as_pointer()) for address in (index, masks))
    indices = [builder.load(emit.at(index, emit.index(lane))) for lane in range(emit.lanes)]
    source, found = emit.pointer(source), []
    for i in range(rows):
        begin, loaded = emit.at(source, builder.mul(row, emit.index(i))), []
        for lane in range(emit.lanes):
            place = builder.add(builder.mul(masks_row, emit.index(i)), builder.mul(masks_lane, emit.index(lane)))
            number = builder.load(emit.at(masks, place))
            number = number if step == 1 else builder.lshr(number, first)
            mask = builder.bitcast(builder.trunc(number, ir.IntType(span)), ir.VectorType(ir.IntType(1), span))
            loaded.append(part.load_masked(emit.at(begin, indices[lane]), mask, part.zero))
        joined = [_end_to_end(emit, loaded[lane::span]) for lane in range(span)]
        found.append(emit.transposed(joined, span)[:reach:step])
    return found


@intrinsic(prefer_literal=True)
def input_transform_gathered(  # type: ignore[no-untyped-def]
    typing_context, like, form, kind, near, source, index, masks, masks_row, masks_column, row, column, target, stride
):
    """The same for tiles anywhere: element (i, j) of lane t is source[index[t] + i · row + j · column], or 0.

    `index` [lanes] are int64; masks[i · masks_row + j · masks_column] are int64 whose bit t says whether the element of
    lane t is inside. If `near` has a length, columns lie as far apart as the step of the form is, and bit `column` + j
    of masks[i · masks_row + t · masks_column] says it.
    """
    short = kind.literal_value
    signature = types.void(like, form, kind, near, *[types.intp] * 9)
    height, width = (axis.input for axis in matrices_of(form))

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if not _has(form, short):
            return context.get_dummy_value()
        emit = Emitter(builder, signature.args[0])
        *where, target, stride = args[4:]
        rows, columns = len(height) - short // 2, len(width) - short % 2
        if len(near):
            patch = _patch_by_rows(emit, signature.args[0], rows, columns, len(form[1][2]), where)
        else:
            patch = _patch_by_elements(emit, rows, columns, where)
        values = both_sides(emit, at_points, height, width, patch)
        store_frequencies(emit, emit.pointer(target), stride, values, len(width))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def few_columns(  # type: ignore[no-untyped-def]
    typing_context, like, a, a_apart, b, b_stride, count, c, c_apart, c_stride
):
    """C[block][m, n] = Σ_k A[block][k, m] · B[k, n] for two blocks, m < ROWS, n < FEW: rows lie in the lanes.

    A vector of a row of C is written, zeros behind its columns; FILTER_LANES elements of A are read for each k. As in
    simd.py every element is one chain of FMAs in the order of k: bits are those of `outer_strided`.
    """
    signature = types.void(like, *[types.intp] * 8)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit, vector = Emitter(builder, signature.args[0], FILTER_LANES), Emitter(builder, signature.args[0])
        a, a_apart, b, b_stride, count, c, c_apart, c_stride = args[1:]
        a, b, c = (emit.pointer(address) for address in (a, b, c))
        blocks = (a, c), (emit.at(a, a_apart), emit.at(c, c_apart))

        def step(k: Any, values: list[list[Any]]) -> list[list[Any]]:
            row, filters = emit.at(b, builder.mul(k, b_stride)), builder.mul(k, emit.index(ROWS))
            factors = [emit.splat(builder.load(emit.at(row, emit.index(n)))) for n in range(FEW)]
            loaded = [emit.load(emit.at(block, filters)) for block, _ in blocks]
            return [[emit.fma(f, a, s) for f, s in zip(factors, sums)] for a, sums in zip(loaded, values)]

        result = emit.loop(count, [[emit.zero] * FEW for _ in blocks], step, 4)
        for (_, target), sums in zip(blocks, result):
            by_rows = emit.interleaved(sums)  # FEW columns of each row after the other
            for m in range(ROWS):
                held, first = divmod(m * FEW, FILTER_LANES)
                lanes = [first + n if n < FEW else FILTER_LANES for n in range(vector.lanes)]
                mask = ir.Constant(ir.VectorType(_I32, vector.lanes), lanes)
                row = builder.shuffle_vector(by_rows[held], emit.zero, mask)
                vector.store(row, emit.at(target, builder.mul(c_stride, emit.index(m))))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def output_transform(  # type: ignore[no-untyped-def]
    typing_context, like, form, source, stride, apart, start, relu, target, row_step, check
):
    """Frequencies at source[stride · frequency:] to the outputs of tiles side by side, rows at target[row_step · row:].

    Those of the phases of the outputs lie `apart`; columns of all phases are stored in turns.
    `start` is the address of a value to add (the bias); with `relu` ≠ 0 negative results become 0. Of the vector at
    `check` a lane becomes NaN if a result of its tile, before relu, is not finite; the others keep what they have.
    """
    signature = types.void(like, form, *[types.intp] * 8)
    height, width = matrices_of(form)
    steps_h, steps_w = (len(axis[3]) for axis in form)
    spread = spread_of(form)
    # The phases that rows of a phase take their columns from, in turns: those with the last tap come first.
    by_place = sorted(((-h, -w), number, kind) for number in range(spread) for h, w, kind in [phase_of(form, number)])
    in_rows = [by_place[i * steps_w : (i + 1) * steps_w] for i in range(steps_h)] if spread > 1 else [[((0, 0), 0, 0)]]

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, apart, start, relu, target, row_step, check = args[2:]
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
                for number, vector in enumerate(emit.interleaved(finished)):
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
