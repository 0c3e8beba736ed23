"""The vector code of the depthwise convolution with channels in the lanes.

- `to_lanes`, `from_lanes`: between planes of channels in memory and vectors that hold one position of several
  channels, by transposition in registers. Every position has a vector, so where it goes is free: a table of places
  takes phases of a stride apart and leaves room for padding.
- `lane_tiles`: tiles of up to WIDEST neighbouring outputs, one vector each, stay in registers while the taps pass by:
  a vector of taps serves all of them, n FMA for n + 1 loads, all of them of whole aligned vectors.
- `tap_sums`: a tile of taps stays in registers while the outputs pass by: t · r FMA for t · r + 1 loads.

No lane ever meets another one. Lanes behind the last channel repeat it: they read, compute and write the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, short_loop

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)

WIDEST = 12
"""Outputs of a tile: with the taps they fit into 16 registers, and 8 would hide the latency of the FMA."""

SUM_TILES = [(taps, rows) for taps, most in zip(range(1, 9), (4, 4, 3, 3, 2, 2, 1, 1)) for rows in range(1, most + 1)]
"""The tiles of `tap_sums`: neighbouring taps of a row × rows of the kernel."""


def _transposed(emit: Emitter, load: Callable[[int, int], Any]) -> list[Any]:
    """As many vectors as they have lanes, transposed; load(row, first) gives the 16 bytes of a row from `first` on.

    Those of rows that lie 16 bytes apart in the result are loaded to one vector, where the bytes of an instruction's
    16-byte lanes are then transposed by unpacking: nothing has to cross these lanes.
    """
    side, numbers = 16 // emit.itemsize, range(emit.lanes)
    low = [i - i % side + i % side // 2 + emit.lanes * (i % 2) for i in numbers]
    high = [lane + side // 2 for lane in low]

    def shuffled(a: Any, b: Any, lanes: list[int]) -> Any:
        return emit.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))

    def joined(parts: list[Any]) -> Any:
        while len(parts) > 1:
            lanes = list(range(2 * parts[0].type.count))
            parts = [shuffled(a, b, lanes) for a, b in zip(parts[::2], parts[1::2])]
        return parts[0]

    result: list[Any] = []
    for first in range(0, emit.lanes, side):
        pieces = [[joined([load(row, first) for row in range(i, emit.lanes, side)])] for i in range(side)]
        while len(pieces) > 1:  # as `Emitter.interleaved`, in each 16 bytes
            pairs = zip(pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :])
            pieces = [[shuffled(a, b, half) for a, b in zip(*pair) for half in (low, high)] for pair in pairs]
        result += pieces[0]
    return result


def _planes(emit: Emitter, address: Any, apart: Any, valid: Any) -> list[Any]:
    """Where the planes of the lanes begin; those behind the last valid one are the last one."""
    builder, last = emit.builder, emit.builder.sub(valid, emit.index(1))
    numbers = [emit.index(lane) for lane in range(emit.lanes)]
    numbers = [builder.select(builder.icmp_signed("<", number, last), number, last) for number in numbers]
    return [emit.at(emit.pointer(address), builder.mul(number, apart)) for number in numbers]


def _in_vectors(emit: Emitter, count: Any, whole: Callable[[Any], None], part: Callable[[], None]) -> None:
    """whole(at) for vectors that cover `count` elements, the last overlapping; part() where there is not one."""
    builder, lanes = emit.builder, emit.index(emit.lanes)

    def step(i: Any, values: list[list[Any]]) -> list[list[Any]]:
        at, last = builder.mul(i, lanes), builder.sub(count, lanes)
        whole(builder.select(builder.icmp_signed("<", at, last), at, last))
        return values

    with builder.if_else(builder.icmp_signed(">=", count, lanes)) as (enough, few):
        with enough:
            vectors = builder.sdiv(builder.add(count, emit.index(emit.lanes - 1)), lanes)
            short_loop(emit, vectors, [], step)
        with few:
            part()


@intrinsic
def to_lanes(  # type: ignore[no-untyped-def]
    typing_context, like, target, target_row, places, pads, extent, source, plane, valid, source_row, rows, columns
):
    """target[r · target_row + places[pads + i]] = the lanes source[lane · plane + r · source_row + i], i < columns.

    For `rows` rows; all counts ≥ 1 but `pads`. 0 at the places before and from `pads` + `columns` to `extent`; up to a
    vector of the places behind these may be written, too. `valid` lanes are there. Addresses; distances in elements.
    """
    signature = types.void(like, *[types.intp] * 11)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        short = Emitter(builder, signature.args[0], 16 // emit.itemsize)
        target, target_row, places, pads, extent, source, plane, valid, source_row, rows, columns = args[1:]
        target, places = emit.pointer(target), builder.inttoptr(places, _I64.as_pointer())
        planes, inside = _planes(emit, source, plane, valid), emit.at(places, pads)
        behind = builder.add(pads, columns)

        def row(r: Any, values: list[list[Any]]) -> list[list[Any]]:
            to, from_ = emit.at(target, builder.mul(r, target_row)), builder.mul(r, source_row)

            def pad(first: Any, count: Any) -> None:
                with cgutils.for_range(builder, count) as loop:
                    place = emit.at(places, builder.add(first, loop.index))
                    emit.store(emit.zero, emit.at(to, builder.load(place)))

            def put(at: Any, load: Callable[[int, int], Any]) -> None:
                for number, vector in enumerate(_transposed(emit, load)):
                    place = emit.at(inside, builder.add(at, emit.index(number)))
                    emit.store(vector, emit.at(to, builder.load(place)))

            def place(lane: int, at: Any, first: int) -> Any:
                return emit.at(planes[lane], builder.add(builder.add(from_, at), emit.index(first)))

            def whole(at: Any) -> None:
                put(at, lambda lane, first: short.load(place(lane, at, first)))

            def part() -> None:
                none = emit.index(0)

                def load(lane: int, first: int) -> Any:
                    return short.load_between(place(lane, none, first), none, builder.sub(columns, emit.index(first)))

                put(none, load)

            pad(emit.index(0), pads)
            _in_vectors(emit, columns, whole, part)
            pad(behind, builder.sub(extent, behind))
            return values

        short_loop(emit, rows, [], row)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def from_lanes(typing_context, like, target, plane, valid, source, count):  # type: ignore[no-untyped-def]
    """target[lane · plane + i] = lane `lane` < `valid` of vector i of the source, i < count (≥ 1); addresses."""
    signature = types.void(like, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        target, plane, valid, source, count = args[1:]
        short = Emitter(builder, signature.args[0], 16 // emit.itemsize)
        source, planes = emit.pointer(source), _planes(emit, target, plane, valid)

        def vectors(at: Any) -> list[Any]:
            begin = emit.at(source, builder.mul(at, emit.index(emit.lanes)))
            return _transposed(emit, lambda i, first: short.load(emit.at(begin, emit.index(i * emit.lanes + first))))

        def whole(at: Any) -> None:
            for pointer, vector in zip(planes, vectors(at)):
                emit.store(vector, emit.at(pointer, at))

        def part() -> None:
            for pointer, vector in zip(planes, vectors(emit.index(0))):
                emit.store_first(vector, pointer, count)

        _in_vectors(emit, count, whole, part)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def lane_tiles(  # type: ignore[no-untyped-def]
    typing_context, like, tiles, number, taps, source, offsets, count, start, target, apart, relu
):
    """Output j = start + Σ_k taps[k] · source[offsets[k] + j], k < count (≥ 1), each a vector, in the order of k.

    `tiles`: address of `number` ≥ 1 pairs (first output, outputs ≤ WIDEST). Output j of the row goes to the target at
    j · `apart` elements. Offsets in elements. With `relu` ≠ 0 negative results become 0 (NaN stays NaN).
    """
    signature = types.void(like, *[types.intp] * 10)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        tiles, number, taps, source, offsets, count, start, target, apart, relu = args[1:]
        taps, source, start, target = (emit.pointer(address) for address in (taps, source, start, target))
        tiles, offsets = (builder.inttoptr(address, _I64.as_pointer()) for address in (tiles, offsets))
        begin, wanted = emit.load(start), builder.icmp_signed("!=", relu, emit.index(0))
        least = builder.select(wanted, emit.zero, emit.constant(-math.inf))

        def tile(t: Any, values: list[list[Any]]) -> list[list[Any]]:
            entry = emit.at(tiles, builder.add(t, t))
            first, width = builder.load(entry), builder.load(emit.at(entry, emit.index(1)))
            from_ = emit.at(source, builder.mul(first, emit.index(emit.lanes)))
            to = emit.at(target, builder.mul(first, apart))

            def outputs(n: int) -> None:
                def tap(k: Any, sums: list[list[Any]]) -> list[list[Any]]:
                    factor = emit.load(emit.at(taps, builder.mul(k, emit.index(emit.lanes))))
                    place = emit.at(from_, builder.load(emit.at(offsets, k)))
                    read = [emit.load(emit.at(place, emit.index(j * emit.lanes))) for j in range(n)]
                    return [[emit.fma(factor, vector, value) for vector, value in zip(read, sums[0])]]

                for j, value in enumerate(short_loop(emit, count, [[begin] * n], tap)[0]):
                    value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
                    emit.store(value, emit.at(to, builder.mul(apart, emit.index(j))))

            _choose(emit, width, {n: n for n in range(1, WIDEST + 1)}, outputs)
            return values

        short_loop(emit, number, [], tile)
        return context.get_dummy_value()

    return signature, codegen


def _choose(emit: Emitter, number: Any, cases: dict[int, Any], body: Callable[[Any], None]) -> None:
    """body(cases[number]), where `number` is known when the kernel runs: a switch."""
    builder = emit.builder
    impossible, after = builder.append_basic_block("impossible"), builder.append_basic_block("chosen")
    switch = builder.switch(number, impossible)
    builder.position_at_end(impossible)
    builder.unreachable()
    for value, case in cases.items():
        block = builder.append_basic_block(f"case{value}")
        switch.add_case(emit.index(value), block)
        builder.position_at_end(block)
        body(case)
        builder.branch(after)
    builder.position_at_end(after)


@intrinsic
def tap_sums(  # type: ignore[no-untyped-def]
    typing_context, like, kind, source, offsets, source_row, source_step, gy, gy_row, gy_step, rows, columns, sums
):
    """sums[r · taps + t] += Σ gy[i · gy_row + j · gy_step] · source[offsets[r] + t + i · source_row + j · source_step].

    Over i < rows, j < columns (both ≥ 1), one after the other; each a vector. (taps, rows of the kernel) is tile `kind`
    of SUM_TILES. Addresses; distances in elements.
    """
    signature = types.void(like, *[types.intp] * 11)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        kind, source, offsets, source_row, source_step, gy, gy_row, gy_step, rows, columns, sums = args[1:]
        source, gy, sums = (emit.pointer(address) for address in (source, gy, sums))
        offsets = builder.inttoptr(offsets, _I64.as_pointer())

        def tile(shape: tuple[int, int]) -> None:
            taps, kernel_rows = shape
            first = [emit.at(source, builder.load(emit.at(offsets, emit.index(r)))) for r in range(kernel_rows)]

            def row(i: Any, values: list[list[Any]]) -> list[list[Any]]:
                sources = [emit.at(pointer, builder.mul(i, source_row)) for pointer in first]
                gradient = emit.at(gy, builder.mul(i, gy_row))

                def column(j: Any, values: list[list[Any]]) -> list[list[Any]]:
                    factor, at = emit.load(emit.at(gradient, builder.mul(j, gy_step))), builder.mul(j, source_step)
                    new = []
                    for pointer, totals in zip(sources, values):
                        place = emit.at(pointer, at)
                        read = [emit.load(emit.at(place, emit.index(t * emit.lanes))) for t in range(taps)]
                        new.append([emit.fma(factor, vector, total) for vector, total in zip(read, totals)])
                    return new

                return short_loop(emit, columns, values, column)

            result = short_loop(emit, rows, [[emit.zero] * taps for _ in range(kernel_rows)], row)
            for number, total in enumerate(value for values in result for value in values):
                place = emit.at(sums, emit.index(number * emit.lanes))
                emit.store(builder.fadd(emit.load(place), total), place)

        _choose(emit, kind, dict(enumerate(SUM_TILES)), tile)
        return context.get_dummy_value()

    return signature, codegen
