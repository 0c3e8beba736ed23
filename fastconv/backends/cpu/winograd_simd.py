"""The three transforms of Winograd's tiles as LLVM vectors: lanes are tiles (or filters), never positions.

Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A with the matrices of the height on one side and those of the width on the other, see
winograd_matrices.py: a 6×6 patch d of the input and a 3×3 filter g give a 4×4 patch Y of the output with 36
multiplications instead of 144, a 5×5 patch a 3×3 one with 25 instead of 81. Everything stays in registers between the
loads of a patch and the stores of its transform, as far as there are registers.

Each takes the `form` of a tile: for height and width two tuples, whose lengths are its taps and its outputs there. A
length belongs to the type, so that the code is made for the form.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.host import LINE_BYTES, inlined
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.winograd_matrices import Matrices, Matrix, has_zero, matrices

FILTER_LANES = 8  # of a vector of filters: at least ROWS
FEW = 4  # columns of `few_columns`
_AHEAD = 2 * LINE_BYTES // 4  # elements from a filter that is stored to those whose lines are asked for

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)


def _matrices(form: Any) -> tuple[Matrices, Matrices]:
    height, width = (matrices(*map(len, axis)) for axis in form)
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


def _at_points(emit: Emitter, matrix: Matrix, values: list[Any]) -> list[Any]:
    """matrix · values for Bᵀ, G or A: the rows of points a and -a differ in the signs of their odd columns alone."""
    if len(matrix) == 1:
        return [_combination(emit, matrix[0], values)]
    pairs = int(has_zero(len(matrix)))  # where they begin
    results = [_combination(emit, row, values) for row in matrix[:pairs]]
    for row in matrix[pairs:-1:2]:
        even, odd = (_combination(emit, row[first::2], values[first::2]) for first in (0, 1))
        results += [emit.builder.fadd(even, odd), emit.builder.fsub(even, odd)]
    return [*results, _combination(emit, matrix[-1], values)]


def _from_points(emit: Emitter, matrix: Matrix, values: list[Any]) -> list[Any]:
    """matrix · values for Aᵀ or Gᵀ: the columns of points a and -a differ in the signs of their odd rows alone."""
    if len(values) == 1:
        return [_combination(emit, row, values) for row in matrix]
    first = int(has_zero(len(values)))
    pairs = list(zip(values[first:-1:2], values[first + 1 : -1 : 2]))
    sums = [emit.builder.fadd(a, b) for a, b in pairs]
    differences = [emit.builder.fsub(a, b) for a, b in pairs]
    ends = [*values[:first], values[-1]]
    results = []
    for i, row in enumerate(matrix):
        factors = [*row[:first], row[-1], *row[first:-1:2]]
        results.append(_combination(emit, factors, [*ends, *(differences if i % 2 else sums)]))
    return results


def _both_sides(emit: Emitter, transform: Any, height: Matrix, width: Matrix, values: list[list[Any]]) -> Any:
    """height · values · widthᵀ."""
    columns = [transform(emit, height, list(column)) for column in zip(*values)]
    return [transform(emit, width, list(row)) for row in zip(*columns)]


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix))


def _frequencies_at(emit: Emitter, source: Any, stride: Any, rows: int, columns: int) -> list[list[Any]]:
    numbers = [[emit.index(columns * i + j) for j in range(columns)] for i in range(rows)]
    return [[emit.load(emit.at(source, emit.builder.mul(stride, n))) for n in row] for row in numbers]


def _store_frequencies(emit: Emitter, target: Any, stride: Any, values: list[list[Any]]) -> None:
    for number, value in enumerate(value for row in values for value in row):
        emit.store(value, emit.at(target, emit.builder.mul(stride, emit.index(number))))


def _transform(like: Any, form: Any, height: Matrix, width: Matrix, lanes: int | None = None) -> Any:
    """An intrinsic (like, form, source, off, target, stride): patches to their frequencies, as `input_transform`."""
    signature = types.void(like, form, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0], lanes)
        source, off, target, stride = args[2:]
        source, target = emit.pointer(source), emit.pointer(target)
        off = builder.inttoptr(off, _I64.as_pointer())
        columns = len(width[0])
        patch = [
            [emit.load(emit.at(source, builder.load(emit.at(off, emit.index(n))))) for n in range(i, i + columns)]
            for i in range(0, columns * len(height[0]), columns)
        ]
        _store_frequencies(emit, target, stride, _both_sides(emit, _at_points, height, width, patch))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def input_transform(typing_context, like, form, source, off, target, stride):  # type: ignore[no-untyped-def]
    """Patches in the lanes, element number n of all at source[off[n]:], to target[stride · frequency:]."""
    height, width = _matrices(form)
    return _transform(like, form, height.input, width.input)


@intrinsic
def gradient_transform(typing_context, like, form, source, off, target, stride):  # type: ignore[no-untyped-def]
    """The same for gradients of outputs: A gy Aᵀ, the adjoint of `output_transform`; FILTER_LANES patches."""
    height, width = (_transposed(axis.output) for axis in _matrices(form))
    return _transform(like, form, height, width, FILTER_LANES)


@intrinsic
def filter_gradient(typing_context, like, form, source, stride, target):  # type: ignore[no-untyped-def]
    """Gradients of frequencies at source[stride · frequency:] to those of the filters: the adjoint of G g Gᵀ.

    Lanes are filters, which follow each other at the target, with their taps in order.
    """
    signature = types.void(like, form, *[types.intp] * 3)
    height, width = (_transposed(axis.filter) for axis in _matrices(form))

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, target = args[2:]
        source, target = emit.pointer(source), emit.pointer(target)
        values = _frequencies_at(emit, source, stride, len(height[0]), len(width[0]))
        taps = [tap for row in _both_sides(emit, _from_points, height, width, values) for tap in row]
        for number, vector in enumerate(emit.interleaved(taps)):
            emit.store(vector, emit.at(target, emit.index(number * emit.lanes)))
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


@intrinsic
def input_transform_gathered(  # type: ignore[no-untyped-def]
    typing_context, like, form, source, index, masks, row, column, target, stride
):
    """The same for tiles anywhere: element (i, j) of lane t is source[index[t] + i · row + j · column], or 0.

    `index` [lanes] are int64; `masks` [frequencies] are int64 whose bit t says whether the element of lane t is inside.
    """
    signature = types.void(like, form, *[types.intp] * 7)
    height, width = _matrices(form)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, index, masks, row, column, target, stride = args[2:]
        columns = len(width.input)
        target = emit.pointer(target)
        indices = builder.load(builder.inttoptr(index, ir.VectorType(_I64, emit.lanes).as_pointer()), align=8)
        masks = builder.inttoptr(masks, _I64.as_pointer())
        bits = ir.VectorType(ir.IntType(1), emit.lanes)
        patch: list[list[Any]] = []
        for i in range(len(height.input)):
            patch.append([])
            for j in range(columns):
                number = builder.load(emit.at(masks, emit.index(columns * i + j)))
                mask = builder.bitcast(builder.trunc(number, ir.IntType(emit.lanes)), bits)
                shift = builder.add(builder.mul(row, emit.index(i)), builder.mul(column, emit.index(j)))
                address = builder.add(source, builder.mul(shift, emit.index(emit.itemsize)))
                before = builder.block
                with builder.if_then(builder.icmp_signed("!=", number, emit.index(0))):
                    gathered, inside = _gather(emit, address, indices, mask), builder.block
                value = builder.phi(emit.vector)
                value.add_incoming(emit.zero, before)
                value.add_incoming(gathered, inside)
                patch[i].append(value)
        _store_frequencies(emit, target, stride, _both_sides(emit, _at_points, height.input, width.input, patch))
        return context.get_dummy_value()

    return signature, codegen


def _taps_of_eight(emit: Emitter, rows: list[Any], count: int) -> list[Any]:
    """Tap t of eight filters, whose taps begin at `rows`, in the lanes of vector t: transposed in registers."""
    taps: list[Any] = []
    undefined: Any = ir.Constant(emit.vector, ir.Undefined)
    while len(taps) < count:
        first, left = emit.index(len(taps)), count - len(taps)
        inside = ir.Constant(ir.VectorType(ir.IntType(1), FILTER_LANES), [t < left for t in range(FILTER_LANES)])
        places = [emit.at(row, first) for row in rows]
        some = [emit.load(p) if left >= FILTER_LANES else emit.load_masked(p, inside, emit.zero) for p in places]
        taps += emit.interleaved(some + [undefined] * (FILTER_LANES - ROWS))
    return taps[:count]


def _eight_of_two(half: Emitter, rows: list[list[Any]], count: int) -> list[Any]:
    """The same for eight filters of each of two channels, the second's behind the first's in the lanes.

    The rounds of a transposition of 8×8 in both halves of the vectors at once. Taps from eight on are loaded so that
    the last lane has the last tap: no load is masked.
    """
    builder = half.builder
    both = ir.Constant(ir.VectorType(_I32, 2 * FILTER_LANES), list(range(2 * FILTER_LANES)))

    def mixed(a: Any, b: Any, mix: list[int]) -> Any:  # lanes from 8 on are those of b, the same in both halves
        lanes = [m % 8 + 16 * (m // 8) + 8 * upper for upper in (0, 1) for m in mix]
        return builder.shuffle_vector(a, b, ir.Constant(both.type, lanes))

    def round_of(pairs: list[tuple[Any, Any]], *mixes: list[int]) -> list[Any]:
        return [mixed(a, b, mix) for a, b in pairs for mix in mixes]

    taps: list[Any] = []
    while len(taps) < count:
        first = min(len(taps), max(0, count - FILTER_LANES))
        inside = ir.Constant(ir.VectorType(ir.IntType(1), FILTER_LANES), [t < count for t in range(FILTER_LANES)])
        places = [[half.at(row, half.index(first)) for row in channel] for channel in rows]
        loaded = [
            [half.load(p) if count >= FILTER_LANES else half.load_masked(p, inside, half.zero) for p in channel]
            for channel in places
        ]
        r = [builder.shuffle_vector(lower, upper, both) for lower, upper in zip(*loaded)]
        t = round_of(list(zip(r[::2], r[1::2])), [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])
        pairs = [(t[i], t[i + 2]) for i in (0, 1, 4, 5)]
        s = round_of(pairs, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
        low = [mixed(s[i], s[i + 4], [0, 1, 2, 3, 8, 9, 10, 11]) for i in range(4)]
        high = [mixed(s[i], s[i + 4], [4, 5, 6, 7, 12, 13, 14, 15]) for i in range(4)]
        taps += [*low, *high][len(taps) - first :]
    return taps[:count]


def _filter_transform(emit: Emitter, form: Any, taps_of: Any, turned: bool, target: Any, stride: Any) -> None:
    """G g Gᵀ of the taps that `taps_of` their number gives, last first if `turned`, to target[stride · frequency:].

    The lines that the next channels write are asked for: so many streams at once are unforeseen by the hardware.
    """
    height, width = _matrices(form)
    taps_h, taps_w = (len(axis[0]) for axis in form)
    taps = taps_of(taps_h * taps_w)[:: -1 if turned else 1]
    filters = [taps[i * taps_w : (i + 1) * taps_w] for i in range(taps_h)]
    for number in range(len(height.filter) * len(width.filter)):
        line = emit.builder.add(emit.builder.mul(stride, emit.index(number)), emit.index(_AHEAD))
        emit.prefetch(emit.at(target, line), write=True)
    _store_frequencies(emit, target, stride, _both_sides(emit, _at_points, height.filter, width.filter, filters))


@intrinsic(prefer_literal=True)
def filter_transform(  # type: ignore[no-untyped-def]
    typing_context, like, form, turned, source, row_step, target, stride
):
    """ROWS filters, the taps of filter m from source[m · row_step] on, to target[stride · frequency + m].

    `turned` ones have their last tap there. Lanes are filters; FILTER_LANES elements are written for each frequency.
    """
    signature = types.void(like, form, turned, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0], FILTER_LANES)
        source, row_step, target, stride = args[3:]
        source, target = emit.pointer(source), emit.pointer(target)
        rows = [emit.at(source, builder.mul(row_step, emit.index(m))) for m in range(ROWS)]
        _filter_transform(emit, form, partial(_taps_of_eight, emit, rows), turned.literal_value, target, stride)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def filter_transform_pair(  # type: ignore[no-untyped-def]
    typing_context, like, form, turned, source, row_step, channel_step, target, stride
):
    """`filter_transform` of two channels, whose transforms follow each other: half the instructions, whole lines.

    For vectors of 16 lanes and ROWS 8.
    """
    signature = types.void(like, form, turned, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit, half = (Emitter(builder, signature.args[0], n * FILTER_LANES) for n in (2, 1))
        source, row_step, channel_step, target, stride = args[3:]
        source, target = emit.pointer(source), emit.pointer(target)
        channels = source, emit.at(source, channel_step)
        rows = [[emit.at(c, builder.mul(row_step, emit.index(m))) for m in range(ROWS)] for c in channels]
        _filter_transform(emit, form, partial(_eight_of_two, half, rows), turned.literal_value, target, stride)
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
    typing_context, like, form, source, stride, start, relu, target, row_step, check
):
    """Frequencies at source[stride · frequency:] to the outputs of tiles side by side, rows at target[row_step · row:].

    `start` is the address of a value to add (the bias); with `relu` ≠ 0 negative results become 0. Of the vector at
    `check` a lane becomes NaN if a result of its tile, before relu, is not finite; the others keep what they have.
    """
    signature = types.void(like, form, *[types.intp] * 7)
    height, width = _matrices(form)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, start, relu, target, row_step, check = args[2:]
        source, target, check = (emit.pointer(address) for address in (source, target, check))
        bias = emit.splat(builder.load(emit.pointer(start)))
        wanted = builder.icmp_signed("!=", relu, emit.index(0))
        values = _frequencies_at(emit, source, stride, len(height.input), len(width.input))
        zeros = emit.load(check)
        for i, row in enumerate(_both_sides(emit, _from_points, height.output, width.output, values)):
            for value in row:
                zeros = emit.fma(value, emit.zero, zeros)
            place = emit.at(target, builder.mul(row_step, emit.index(i)))
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
