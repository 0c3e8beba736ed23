"""The patches of Winograd's tiles from anywhere as LLVM vectors, and their transforms: lanes are tiles.

What the tiles of a vector read is told by tables (winograd_tile_tables.py). Where columns of a patch are neighbours,
rows are loaded and transposed; where they lie apart, columns of tiles that are neighbours are loaded together; else
elements are gathered one by one. What lies outside is 0 and is not read.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.winograd_simd import at_points, both_sides, has_kind, matrices_of, store_frequencies

_I64, _I32 = ir.IntType(64), ir.IntType(32)


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


def _element(emit: Emitter, i: int, j: int, row: Any, column: Any) -> Any:
    """Where an element lies whose rows lie `row` apart and columns `column`."""
    return emit.builder.add(emit.builder.mul(row, emit.index(i)), emit.builder.mul(column, emit.index(j)))


def _ask_for(emit: Emitter, rows: int, columns: int, args: Any, ahead: Any) -> None:
    """Ask for the lines of the patches that lie `ahead`: four of each row, or one of each column of as many."""
    builder = emit.builder
    source, index, _, _, _, row, column = args
    source, index = emit.pointer(source), builder.inttoptr(index, _I64.as_pointer())
    for lane in range(0, emit.lanes, emit.lanes // 4 if columns == 1 else emit.lanes):
        first = builder.add(builder.load(emit.at(index, emit.index(lane))), ahead)
        for i in range(rows):
            for j in range(columns):
                emit.prefetch(emit.at(source, builder.add(first, _element(emit, i, j, row, column))), 2)


def _patch_by_elements(emit: Emitter, rows: int, columns: int, args: Any) -> list[list[Any]]:
    """The patches of `input_transform_gathered` whose columns lie apart: an element of all lanes at a time."""
    builder = emit.builder
    source, index, masks, masks_row, masks_column, row, column = args
    indices = builder.load(builder.inttoptr(index, ir.VectorType(_I64, emit.lanes).as_pointer()), align=8)
    masks = builder.inttoptr(masks, _I64.as_pointer())
    bits = ir.VectorType(ir.IntType(1), emit.lanes)

    def element(i: int, j: int) -> Any:
        number = builder.load(emit.at(masks, _element(emit, i, j, masks_row, masks_column)))
        mask = builder.bitcast(builder.trunc(number, ir.IntType(emit.lanes)), bits)
        address = builder.add(source, builder.mul(_element(emit, i, j, row, column), emit.index(emit.itemsize)))
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


def _patch_by_runs(emit: Emitter, like: Any, run: int, rows: int, columns: int, args: Any) -> list[list[Any]]:
    """The patches whose columns lie apart where each `run` lanes, a power of two of them, are neighbours."""
    builder, part = emit.builder, Emitter(emit.builder, like, run)
    source, index, masks, masks_row, masks_column, row, column = args
    index, masks = (builder.inttoptr(address, _I64.as_pointer()) for address in (index, masks))
    firsts = range(0, emit.lanes, run)
    source = emit.pointer(source)
    sources = [emit.at(source, builder.load(emit.at(index, emit.index(first)))) for first in firsts]
    bits = ir.VectorType(ir.IntType(1), emit.lanes)
    undefined = ir.Constant(bits, ir.Undefined)
    lanes = [ir.Constant(ir.VectorType(_I32, run), list(range(first, first + run))) for first in firsts]

    def elements(i: int, j: int) -> Any:
        number = builder.load(emit.at(masks, _element(emit, i, j, masks_row, masks_column)))
        inside = builder.bitcast(builder.trunc(number, ir.IntType(emit.lanes)), bits)
        parts, place = [], _element(emit, i, j, row, column)
        for first, some in zip(sources, lanes):
            mask = builder.shuffle_vector(inside, undefined, some)
            parts.append(part.load_masked(emit.at(first, place), mask, part.zero))
        return _end_to_end(emit, parts)

    return [[elements(i, j) for j in range(columns)] for i in range(rows)]


def _patch_by_rows(
    emit: Emitter, like: Any, run: int, rows: int, columns: int, step: int, args: Any
) -> list[list[Any]]:
    """The patches whose columns lie `step` apart, or `run` (1 or 2): a row of each run of lanes at a time, transposed.

    An instruction that gathers takes as long as its lanes one after the other, on some processors several times that.
    """
    builder, reach = emit.builder, (columns - 1) * step + 1
    source, index, masks, masks_row, masks_lane, row, first = args
    span = next(span for span in (4, 8, 16) if reach * run <= span)
    # Runs of two are transposed as if each were one number.
    part, units = Emitter(builder, like, span), Emitter(builder, (like, types.float64)[run - 1], emit.lanes // run)
    index, masks = (builder.inttoptr(address, _I64.as_pointer()) for address in (index, masks))
    lanes = range(0, emit.lanes, run)
    indices = [builder.load(emit.at(index, emit.index(lane))) for lane in lanes]
    source, found = emit.pointer(source), []
    for i in range(rows):
        begin, loaded = emit.at(source, builder.mul(row, emit.index(i))), []
        for lane, from_ in zip(lanes, indices):
            place = builder.add(builder.mul(masks_row, emit.index(i)), builder.mul(masks_lane, emit.index(lane)))
            number = builder.load(emit.at(masks, place))
            number = number if step == 1 else builder.lshr(number, first)
            mask = builder.bitcast(builder.trunc(number, ir.IntType(span)), ir.VectorType(ir.IntType(1), span))
            loaded.append(part.load_masked(emit.at(begin, from_), mask, part.zero))
        together = span // run
        joined = [builder.bitcast(_end_to_end(emit, loaded[n::together]), units.vector) for n in range(together)]
        transposed = units.transposed(joined, together)[:reach:step]
        found.append([builder.bitcast(column, emit.vector) for column in transposed])
    return found


@intrinsic(prefer_literal=True)
def input_transform_gathered(  # type: ignore[no-untyped-def]
    typing_context,
    like,
    form,
    kind,
    order,
    source,
    index,
    masks,
    masks_row,
    masks_column,
    row,
    column,
    target,
    stride,
    ahead,
):
    """The same for tiles anywhere: element (i, j) of lane t is source[index[t] + i · row + j · column], or 0.

    `index` [lanes] are int64; masks[i · masks_row + j · masks_column] are int64 whose bit t says whether the element of
    lane t is inside. `order` is that of `Tiles`. If it says that runs are loaded by rows, columns lie as far apart as
    the step of the form is, or as the run is long, and bits from `column` on of masks[i · masks_row + t · masks_column]
    say what is inside for the run that begins with lane t. What lies `ahead` elements further is asked for: the patches
    of the next channel, which the hardware does not foresee.
    """
    short, run, whole = kind.literal_value, len(order[0]), len(order[2])
    signature = types.void(like, form, kind, order, *[types.intp] * 10)
    height, width = (axis.input for axis in matrices_of(form))

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if not has_kind(form, short):
            return context.get_dummy_value()
        emit = Emitter(builder, signature.args[0])
        *where, target, stride, ahead = args[4:]
        rows, columns = len(height) - short // 2, len(width) - short % 2
        _ask_for(emit, rows, columns if run == emit.lanes else 1, where, ahead)
        if whole:
            patch = _patch_by_rows(emit, signature.args[0], run, rows, columns, len(form[1][2]), where)
        elif run > 1:
            patch = _patch_by_runs(emit, signature.args[0], run, rows, columns, where)
        else:
            patch = _patch_by_elements(emit, rows, columns, where)
        values = both_sides(emit, at_points, height, width, patch)
        store_frequencies(emit, emit.pointer(target), stride, values, len(width))
        return context.get_dummy_value()

    return signature, codegen
