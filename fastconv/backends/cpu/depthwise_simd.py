"""The vector code of the depthwise convolution: a sweep over input rows.

- `sweep`: a tile of mr output rows × nv vectors stays in registers while the input rows that reach it pass by. An input
  row is loaded once for each shift along the row and serves every output row of the tile that it reaches, with
  another row of taps for each: n · nv FMA for nv loads and n broadcasts.

Which output rows an input row reaches changes from input row to input row, but they are always neighbours: the loop
over the shifts exists once for every range of rows of the tile (10 for 4 rows), and a table of input rows says which.
So no code depends on a kernel size, and no product with a tap that is not there is ever computed.

Every output is one chain of FMAs in the order of its taps, whatever mr, nv, lane or vector width.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, short_loop
from fastconv.backends.cpu.host import LINE_BYTES

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)

ENTRY = 4
"""Numbers of an entry of `sweep`: range of rows, source offset, offset of the first row's taps, step to the next's."""


def ranges(rows: int) -> list[tuple[int, int]]:
    """(first, count) of every range of neighbours among the rows of a tile; a smaller tile's come first."""
    return [(first, last + 1 - first) for last in range(rows) for first in range(last + 1)]


def _prefetch(builder: Any, address: Any, write: bool) -> None:
    """Ask for the line at an address, which need not exist."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    flags = (1, 3, 1) if write else (0, 2, 1)
    builder.call(prefetch, [builder.bitcast(address, byte), *(ir.Constant(_I32, flag) for flag in flags)])


def _prefetch_lines(write: bool) -> Any:
    """The code of the two intrinsics below."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with cgutils.for_range(builder, args[1]) as loop:
            place = builder.add(args[0], builder.mul(loop.index, ir.Constant(_I64, LINE_BYTES)))
            _prefetch(builder, builder.inttoptr(place, ir.IntType(8).as_pointer()), write)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def prefetch_lines(typing_context, address, lines):  # type: ignore[no-untyped-def]
    """Ask for `lines` ≥ 0 lines from an address on, into the second-level cache."""
    return _prefetch_lines(False)


@intrinsic
def prefetch_targets(typing_context, address, lines):  # type: ignore[no-untyped-def]
    """The same for lines that will be written, into the first-level cache."""
    return _prefetch_lines(True)


@intrinsic(prefer_literal=True)
def sweep(  # type: ignore[no-untyped-def]
    typing_context, like, rows, vectors, taps, source, entries, count, shifts, width, start, c, c_stride, used, last,
    relu,
):  # fmt: skip
    """Output rows m < `used` ≤ rows of vectors · lanes columns, of which the last vector stores the first `last` ≥ 1.

    Each of `count` ≥ 1 `entries` (see ENTRY) is an input row: row m of its range adds Σ_w taps[at + w] ·
    source[offset + shifts[w] + v], w < `width` (≥ 1), in this order. All begin with the value at `start`. `c`: address
    of output row 0, rows `c_stride` elements apart.
    """
    mr, nv = rows.literal_value, vectors.literal_value
    signature = types.void(like, rows, vectors, *[types.intp] * 12)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        taps, source, entries, count, shifts, width, start, c, c_stride, used, last, relu = args[3:]
        taps, source, start, c = (emit.pointer(address) for address in (taps, source, start, c))
        entries, shifts = (builder.inttoptr(address, _I64.as_pointer()) for address in (entries, shifts))
        begin = emit.splat(builder.load(start))
        for m in range(mr):  # the lines to be written arrive while the tile is computed
            target = emit.at(c, builder.mul(c_stride, emit.index(m)))
            for v in range(nv):
                _prefetch(builder, emit.at(target, emit.index(v * emit.lanes)), True)

        def step(i: Any, values: list[list[Any]]) -> list[list[Any]]:
            entry = emit.at(entries, builder.mul(i, emit.index(ENTRY)))
            number, offset, at, next_row = (builder.load(emit.at(entry, emit.index(n))) for n in range(ENTRY))
            return _sweep_row(emit, mr, values, number, emit.at(source, offset), emit.at(taps, at), next_row,
                              shifts, width)  # fmt: skip

        result = emit.loop(count, [[begin] * nv for _ in range(mr)], step)
        _store_tile(emit, result, c, c_stride, used, last, builder.icmp_signed("!=", relu, emit.index(0)))
        return context.get_dummy_value()

    return signature, codegen


def _sweep_row(
    emit: Emitter, rows: int, values: list[list[Any]], number: Any, source: Any, taps: Any, step: Any, shifts: Any,
    width: Any,
) -> list[list[Any]]:  # fmt: skip
    """One input row: a switch to the loop over the shifts for range `number`, and the values after it."""
    builder = emit.builder
    nv = len(values[0])
    impossible, after = builder.append_basic_block("impossible"), builder.append_basic_block("swept")
    switch = builder.switch(number, impossible)
    builder.position_at_end(impossible)
    builder.unreachable()
    ends = []
    for code, (first, n) in enumerate(ranges(rows)):
        block = builder.append_basic_block(f"rows{first}x{n}")
        switch.add_case(ir.Constant(_I64, code), block)
        builder.position_at_end(block)
        tap_rows = [emit.at(taps, builder.mul(step, emit.index(m))) for m in range(n)]

        def shift(w: Any, active: list[list[Any]], tap_rows: list[Any] = tap_rows) -> list[list[Any]]:
            row = emit.at(source, builder.load(emit.at(shifts, w)))
            loaded = [emit.load(emit.at(row, emit.index(v * emit.lanes))) for v in range(nv)]
            factors = [emit.splat(builder.load(emit.at(tap_row, w))) for tap_row in tap_rows]
            return [
                [emit.fma(factor, vector, value) for vector, value in zip(loaded, row_values)]
                for factor, row_values in zip(factors, active)
            ]

        swept = short_loop(emit, width, values[first : first + n], shift)
        ends.append((builder.block, [*values[:first], *swept, *values[first + n :]]))
        builder.branch(after)
    builder.position_at_end(after)
    merged = [[builder.phi(emit.vector) for _ in range(nv)] for _ in range(rows)]
    for block, new in ends:
        for m in range(rows):
            for v in range(nv):
                merged[m][v].add_incoming(new[m][v], block)
    return merged


def _store_tile(emit: Emitter, values: list[list[Any]], c: Any, c_stride: Any, used: Any, last: Any, relu: Any) -> None:
    """Store the used rows of a tile, the last vector up to `last` lanes."""
    builder = emit.builder
    whole = builder.icmp_signed(">=", last, emit.index(emit.lanes))
    for m, row in enumerate(values):
        with builder.if_then(builder.icmp_signed("<", emit.index(m), used)):
            target = emit.at(c, builder.mul(c_stride, emit.index(m)))
            row = [emit.relu_if(relu, value) for value in row]
            for v, value in enumerate(row[:-1]):
                emit.store(value, emit.at(target, emit.index(v * emit.lanes)))
            end = emit.at(target, emit.index((len(row) - 1) * emit.lanes))
            with builder.if_else(whole) as (plain, masked):
                with plain:
                    emit.store(row[-1], end)
                with masked:
                    emit.store_first(row[-1], end, last)


@intrinsic
def spread_row(typing_context, like, target, source, count):  # type: ignore[no-untyped-def]
    """target[2i] = source[i] for i < count (≥ 1), at addresses; up to a vector of the source is read behind them."""
    signature = types.void(like, *[types.intp] * 3)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        lanes, (target, source, count) = emit.lanes, args[1:]
        target, source, end = emit.pointer(target), emit.pointer(source), builder.add(count, count)
        even = ir.Constant(ir.VectorType(ir.IntType(1), lanes), [1 - lane % 2 for lane in range(lanes)])

        def step(v: Any, values: list[list[Any]]) -> list[list[Any]]:
            at = builder.mul(v, emit.index(lanes))
            value = emit.load(emit.at(source, at))
            for half in range(2):
                twice = [half * lanes // 2 + lane // 2 for lane in range(lanes)]
                pairs = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_I32, lanes), twice))
                place = builder.add(builder.add(at, at), emit.index(half * lanes))
                mask = builder.and_(even, emit.lanes_between(emit.index(0), builder.sub(end, place)))
                emit.store_masked(pairs, emit.at(target, place), mask)
            return values

        vectors = builder.sdiv(builder.add(count, emit.index(lanes - 1)), emit.index(lanes))
        short_loop(emit, vectors, [], step)
        return context.get_dummy_value()

    return signature, codegen
