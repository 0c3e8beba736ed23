"""The three transforms of Winograd's F(4×4, 3×3) as LLVM vectors: lanes are tiles (or filters), never positions.

Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A: a 6×6 patch d of the input and a 3×3 filter g give a 4×4 patch Y of the output, with
36 multiplications instead of 144 (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", points
0, ±1, ±2, ∞). Everything stays in registers between the loads of a patch and the stores of its transform.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.simd import ROWS

PATCH, OUTPUTS = 6, 4
FREQUENCIES = PATCH * PATCH
FILTER_LANES = 8  # of a vector of filters: at least ROWS

_BT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
       (0, 4, 0, -5, 0, 1))  # fmt: skip
_AT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
      (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)


def _combination(emit: Emitter, factors: Any, values: list[Any]) -> Any:
    """Σ factor · value, skipping zeros; every row of the matrices has at least one other factor."""
    total: Any = None
    for factor, value in zip(factors, values):
        if factor == 0:
            continue
        if total is None:
            total = value if factor == 1 else emit.builder.fmul(emit.constant(factor), value)
        elif factor == 1:
            total = emit.builder.fadd(total, value)
        elif factor == -1:
            total = emit.builder.fsub(total, value)
        else:
            total = emit.fma(emit.constant(factor), value, total)
    return total


def _both_sides(emit: Emitter, matrix: Any, values: list[list[Any]]) -> list[list[Any]]:
    """matrix · values · matrixᵀ."""
    rows = [[_combination(emit, factors, list(column)) for column in zip(*values)] for factors in matrix]
    return [[_combination(emit, factors, row) for factors in matrix] for row in rows]


def _store_frequencies(emit: Emitter, target: Any, stride: Any, values: list[list[Any]]) -> None:
    for number, value in enumerate(value for row in values for value in row):
        emit.store(value, emit.at(target, emit.builder.mul(stride, emit.index(number))))


@intrinsic
def input_transform(typing_context, like, source, off, target, stride):  # type: ignore[no-untyped-def]
    """Patches of adjacent tiles, element (i, j) of all at source[off[6i + j]:], to target[stride · (6i + j):]."""
    signature = types.void(like, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, off, target, stride = args[1:]
        source, target = emit.pointer(source), emit.pointer(target)
        off = builder.inttoptr(off, _I64.as_pointer())
        patch = [
            [emit.load(emit.at(source, builder.load(emit.at(off, emit.index(PATCH * i + j))))) for j in range(PATCH)]
            for i in range(PATCH)
        ]
        _store_frequencies(emit, target, stride, _both_sides(emit, _BT, patch))
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
    typing_context, like, source, index, masks, row, target, stride
):
    """The same for tiles anywhere: element (i, j) of lane t is source[index[t] + i · row + j], or 0.

    `index` [lanes] are int64; `masks` [36] are int64 whose bit t says whether the element of lane t is inside.
    """
    signature = types.void(like, *[types.intp] * 6)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, index, masks, row, target, stride = args[1:]
        target = emit.pointer(target)
        indices = builder.load(builder.inttoptr(index, ir.VectorType(_I64, emit.lanes).as_pointer()), align=8)
        masks = builder.inttoptr(masks, _I64.as_pointer())
        bits = ir.VectorType(ir.IntType(1), emit.lanes)
        patch: list[list[Any]] = []
        for i in range(PATCH):
            patch.append([])
            for j in range(PATCH):
                number = builder.load(emit.at(masks, emit.index(PATCH * i + j)))
                mask = builder.bitcast(builder.trunc(number, ir.IntType(emit.lanes)), bits)
                shift = builder.add(builder.mul(row, emit.index(i)), emit.index(j))
                address = builder.add(source, builder.mul(shift, emit.index(emit.itemsize)))
                patch[i].append(_gather(emit, address, indices, mask))
        _store_frequencies(emit, target, stride, _both_sides(emit, _BT, patch))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def filter_transform(typing_context, like, source, row_step, target, stride):  # type: ignore[no-untyped-def]
    """ROWS filters of 9 taps, filter m at source[m · row_step], to target[stride · frequency + m].

    Lanes are filters: eight taps of each are transposed in registers, the ninth is inserted. FILTER_LANES elements are
    written for each frequency.
    """
    signature = types.void(like, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0], FILTER_LANES)
        source, row_step, target, stride = args[1:]
        source, target = emit.pointer(source), emit.pointer(target)
        rows = [emit.at(source, builder.mul(row_step, emit.index(m))) for m in range(ROWS)]
        undefined: Any = ir.Constant(emit.vector, ir.Undefined)
        taps = emit.interleaved([emit.load(row) for row in rows] + [undefined] * (FILTER_LANES - ROWS))
        last = undefined
        for m, row in enumerate(rows):
            last = builder.insert_element(last, builder.load(emit.at(row, emit.index(8))), ir.Constant(_I32, m))
        filters = [taps[0:3], taps[3:6], [*taps[6:8], last]]
        _store_frequencies(emit, target, stride, _both_sides(emit, _G, filters))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def output_transform(typing_context, like, source, stride, start, relu, target):  # type: ignore[no-untyped-def]
    """Frequencies at source[stride · frequency:] to target[4][lanes · 4]: the outputs of the tiles, row by row.

    `start` is the address of a value to add (the bias); with `relu` ≠ 0 negative results become 0.
    """
    signature = types.void(like, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, start, relu, target = args[1:]
        source, target = emit.pointer(source), emit.pointer(target)
        bias = emit.splat(builder.load(emit.pointer(start)))
        wanted = builder.icmp_signed("!=", relu, emit.index(0))
        values = [
            [emit.load(emit.at(source, builder.mul(stride, emit.index(PATCH * i + j)))) for j in range(PATCH)]
            for i in range(PATCH)
        ]
        for i, row in enumerate(_both_sides(emit, _AT, values)):
            finished = [emit.relu_if(wanted, builder.fadd(value, bias)) for value in row]
            for number, vector in enumerate(emit.interleaved(finished)):
                emit.store(vector, emit.at(target, emit.index((i * OUTPUTS + number) * emit.lanes)))
        return context.get_dummy_value()

    return signature, codegen
