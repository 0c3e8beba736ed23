"""The vector code that brings rows of a source into scratch: padded with zeros, the phases of a stride taken apart.

A vector that lies inside the source is loaded and stored; one that reaches over an end is loaded with a mask, which
gives the zeros of the padding and touches no memory outside. So a row has no beginning and no end of its own, whatever
its padding. Cost: a load and a store for each vector, and a shuffle for each and doubling of the step.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, short_loop
from fastconv.backends.cpu.host import LINE_BYTES

_I64, _I32 = ir.IntType(64), ir.IntType(32)


def _phases(emit: Emitter, vectors: list[Any]) -> list[Any]:
    """The elements of vectors, a power of two of them, laid end to end, by their remainder modulo this number."""
    masks = [ir.Constant(ir.VectorType(_I32, emit.lanes), [2 * i + odd for i in range(emit.lanes)]) for odd in (0, 1)]
    phases = [vectors]
    while len(phases) < len(vectors):  # each round takes the even and the odd elements of a phase apart
        phases = [
            [emit.builder.shuffle_vector(a, b, mask) for a, b in zip(phase[::2], phase[1::2])]
            for mask in masks
            for phase in phases
        ]
    return [vector for (vector,) in phases]


@intrinsic(prefer_literal=True)
def split_rows(  # type: ignore[no-untyped-def]
    typing_context, like, step, target, target_row, apart, source, source_row, rows, first, last, columns, ahead
):
    """target[p · apart + j] = source[step · j + p] for p < step, j < columns; 0 unless first ≤ step · j + p < last.

    For each of `rows` rows, `target_row` and `source_row` elements apart; `target` and `source` are the addresses of
    the first ones. The step is a power of two; at least a row and a vector of columns. What counts as 0 is not read.
    What lies `ahead` elements further is asked for.
    """
    every = step.literal_value
    signature = types.void(like, step, *[types.intp] * 10)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        target, target_row, apart, source, source_row, rows, first, last, columns, ahead = args[2:]
        target, source, lanes = emit.pointer(target), emit.pointer(source), emit.index(emit.lanes)
        vectors = builder.sdiv(builder.add(columns, emit.index(emit.lanes - 1)), lanes)
        behind = builder.sub(columns, lanes)

        def row(r: Any, values: list[list[Any]]) -> list[list[Any]]:
            to, from_ = emit.at(target, builder.mul(r, target_row)), emit.at(source, builder.mul(r, source_row))

            def column(v: Any, values: list[list[Any]]) -> list[list[Any]]:
                at = builder.mul(v, lanes)
                at = builder.select(builder.icmp_signed("<", at, behind), at, behind)  # the last vector overlaps
                begin = builder.mul(at, emit.index(every))
                starts = [builder.add(begin, emit.index(n * emit.lanes)) for n in range(every)]
                end = builder.add(begin, emit.index(every * emit.lanes))
                for line in range(0, every * emit.lanes, LINE_BYTES // emit.itemsize):
                    emit.prefetch(emit.at(from_, builder.add(builder.add(begin, ahead), emit.index(line))))

                def put(vectors: list[Any]) -> None:
                    for p, vector in enumerate(_phases(emit, vectors)):
                        emit.store(vector, emit.at(to, builder.add(at, builder.mul(apart, emit.index(p)))))

                inside = builder.and_(builder.icmp_signed("<=", first, begin), builder.icmp_signed("<=", end, last))
                with builder.if_else(inside) as (plain, masked):
                    with plain:
                        put([emit.load(emit.at(from_, start)) for start in starts])
                    with masked:
                        edges = [(builder.sub(first, start), builder.sub(last, start)) for start in starts]
                        put([emit.load_between(emit.at(from_, s), *edge) for s, edge in zip(starts, edges)])
                return values

            short_loop(emit, vectors, [], column)
            return values

        short_loop(emit, rows, [], row)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def split_short_rows(  # type: ignore[no-untyped-def]
    typing_context, like, step, target, target_row, apart, source, source_row, rows, first, last, columns, ahead
):
    """As `split_rows` for fewer columns than a vector has: whole rows by masks, for processors that have such."""
    every = step.literal_value
    signature = types.void(like, step, *[types.intp] * 10)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        target, target_row, apart, source, source_row, rows, first, last, columns, ahead = args[2:]
        target, source = emit.pointer(target), emit.pointer(source)
        starts = [emit.index(n * emit.lanes) for n in range(every)]
        inside = [emit.lanes_between(builder.sub(first, start), builder.sub(last, start)) for start in starts]
        kept = emit.lanes_between(emit.index(0), columns)

        def row(r: Any, values: list[list[Any]]) -> list[list[Any]]:
            to, from_ = emit.at(target, builder.mul(r, target_row)), emit.at(source, builder.mul(r, source_row))
            for line in range(0, every * emit.lanes, LINE_BYTES // emit.itemsize):
                emit.prefetch(emit.at(from_, builder.add(ahead, emit.index(line))))
            vectors = [emit.load_masked(emit.at(from_, s), mask, emit.zero) for s, mask in zip(starts, inside)]
            for p, vector in enumerate(_phases(emit, vectors)):
                emit.store_masked(vector, emit.at(to, builder.mul(apart, emit.index(p))), kept)
            return values

        short_loop(emit, rows, [], row)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def move_vectors(typing_context, like, step, moves, count, target, channel, ahead):  # type: ignore[no-untyped-def]
    """target[to + j] = source[step · j] for j < lanes, for each of `count` moves in order (count ≥ 1); step 1, 2 or 4.

    A move is three int64: `to` in bytes, the address of a source, and a mask: all ones for one that lies `channel`
    bytes further, zero for one that stays where it is. What lies `ahead` bytes behind a source is asked for.
    """
    every = step.literal_value
    signature = types.void(like, step, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        moves, count, target, channel, ahead = args[2:]
        moves = builder.inttoptr(moves, _I64.as_pointer())

        def move(n: Any, values: list[list[Any]]) -> list[list[Any]]:
            first = builder.mul(n, emit.index(3))
            to, source, mask = (builder.load(emit.at(moves, builder.add(first, emit.index(i)))) for i in range(3))
            source = builder.add(source, builder.and_(channel, mask))
            emit.prefetch(emit.pointer(builder.add(source, ahead)))
            vectors = [emit.load(emit.at(emit.pointer(source), emit.index(n * emit.lanes))) for n in range(every)]
            emit.store(_phases(emit, vectors)[0], emit.pointer(builder.add(target, to)))
            return values

        short_loop(emit, count, [], move)
        return context.get_dummy_value()

    return signature, codegen
