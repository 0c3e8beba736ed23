"""The vector code of resampling: weighted sums of rows, and of neighbours within a row, in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, short_loop


@intrinsic(prefer_literal=True)
def weighted_sum(  # type: ignore[no-untyped-def]
    typing_context, like, lanes, vectors, target, source, pitch, weights, taps, streamed
):
    """target[j] = Σ_t weights[t] · source[t · pitch + j] for t < taps (taps ≥ 1) in that order, j < vectors · lanes.

    `lanes` is 1, or 0 for those of the host: the bits are the same. `target`, `source` and `weights` are addresses.
    With `streamed` ≠ 0 the target is stored past the caches and must be aligned to whole vectors.
    Most outputs have one tap or two, for which a loop would cost more than its work: it begins with the third.
    """
    wanted, count = lanes.literal_value, vectors.literal_value
    signature = types.void(like, lanes, vectors, *[types.intp] * 6)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0], wanted or None)
        target, source, pitch, weights, taps, streamed = args[3:]
        target, source, weights = (emit.pointer(address) for address in (target, source, weights))
        places = [emit.index(v * emit.lanes) for v in range(count)]

        def tap(t: Any) -> tuple[Any, list[Any]]:
            row = emit.at(source, builder.mul(t, pitch))
            return emit.splat(builder.load(emit.at(weights, t))), [emit.load(emit.at(row, place)) for place in places]

        def plus_tap(t: Any, sums: list[Any]) -> list[Any]:
            weight, row = tap(t)
            return [emit.fma(weight, value, total) for value, total in zip(row, sums)]

        def third_on(i: Any, sums: list[list[Any]]) -> list[list[Any]]:
            return [plus_tap(builder.add(i, emit.index(2)), sums[0])]

        one, two, more, after = (builder.append_basic_block(name) for name in ("one", "two", "more", "summed"))
        builder.branch(one)
        builder.position_at_end(one)
        weight, row = tap(emit.index(0))
        first = [builder.fmul(weight, value) for value in row]
        builder.cbranch(builder.icmp_signed(">", taps, emit.index(1)), two, after)
        builder.position_at_end(two)
        second = plus_tap(emit.index(1), first)
        builder.cbranch(builder.icmp_signed(">", taps, emit.index(2)), more, after)
        builder.position_at_end(more)
        last = short_loop(emit, builder.sub(taps, emit.index(2)), [second], third_on)[0]
        end = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        totals = [builder.phi(emit.vector) for _ in places]
        for total, *values in zip(totals, first, second, last):
            for value, block in zip(values, (one, two, end)):
                total.add_incoming(value, block)
        with builder.if_else(builder.icmp_signed("!=", streamed, emit.index(0))) as (past, usual):
            for branch, store in ((past, emit.stream), (usual, emit.store)):
                with branch:
                    for total, place in zip(totals, places):
                        store(total, emit.at(target, place))
        return context.get_dummy_value()

    return signature, codegen


REGULAR_TAPS = {2: (1, 2, 4), 1: (2, 4, 8)}
"""Taps of the outputs that `weighted_pairs` and `weighted_halves` compute: of nearest neighbours, lines and cubics, and
of the gradients of these.
"""


@intrinsic(prefer_literal=True)
def weighted_pairs(typing_context, like, taps, target, source, apart, weights, pairs):  # type: ignore[no-untyped-def]
    """target[2j + i] = Σ_t weights[i · taps + t] · source[i · apart + t + j] for i < 2, j < pairs (pairs ≥ lanes).

    The bits are those of `weighted_sum`.
    """
    count = taps.literal_value
    signature = types.void(like, taps, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        target, source, apart, weights, pairs = args[2:]
        target, source, weights = (emit.pointer(address) for address in (target, source, weights))
        sources = source, emit.at(source, apart)
        places = [emit.index(t) for t in range(2 * count)]
        factors = [emit.splat(builder.load(emit.at(weights, place))) for place in places]
        lanes, behind = emit.index(emit.lanes), builder.sub(pairs, emit.index(emit.lanes))

        def vector(v: Any, values: list[list[Any]]) -> list[list[Any]]:
            j = builder.mul(v, lanes)
            j = builder.select(builder.icmp_signed("<", j, behind), j, behind)  # the last vector overlaps
            sums = []
            for i, row in enumerate(sources):
                taken = [emit.load(emit.at(emit.at(row, j), place)) for place in places[:count]]
                total = builder.fmul(factors[i * count], taken[0])
                for factor, value in zip(factors[i * count + 1 :], taken[1:]):
                    total = emit.fma(factor, value, total)
                sums.append(total)
            to = emit.at(target, builder.add(j, j))
            for number, mixed in enumerate(emit.interleaved(sums)):
                emit.store(mixed, emit.at(to, emit.index(number * emit.lanes)))
            return values

        vectors = builder.sdiv(builder.add(pairs, emit.index(emit.lanes - 1)), lanes)
        short_loop(emit, vectors, [], vector)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def weighted_halves(typing_context, like, taps, target, source, weights, outputs):  # type: ignore[no-untyped-def]
    """target[j] = Σ_t weights[t] · source[2j + t] for t < taps (even), j < outputs (outputs ≥ lanes).

    The bits are those of `weighted_sum`.
    """
    count = taps.literal_value
    signature = types.void(like, taps, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        target, source, weights, outputs = args[2:]
        target, source, weights = (emit.pointer(address) for address in (target, source, weights))
        factors = [emit.splat(builder.load(emit.at(weights, emit.index(t)))) for t in range(count)]
        lanes, behind = emit.index(emit.lanes), builder.sub(outputs, emit.index(emit.lanes))

        def vector(v: Any, values: list[list[Any]]) -> list[list[Any]]:
            j = builder.mul(v, lanes)
            j = builder.select(builder.icmp_signed("<", j, behind), j, behind)  # the last vector overlaps
            begin = emit.at(source, builder.add(j, j))
            taken = []
            for t in range(0, count, 2):
                taken += _even_and_odd(emit, *(emit.load(emit.at(begin, emit.index(t + at))) for at in (0, emit.lanes)))
            total = builder.fmul(factors[0], taken[0])
            for factor, value in zip(factors[1:], taken[1:]):
                total = emit.fma(factor, value, total)
            emit.store(_in_order(emit, total), emit.at(target, j))
            return values

        vectors = builder.sdiv(builder.add(outputs, emit.index(emit.lanes - 1)), lanes)
        short_loop(emit, vectors, [], vector)
        return context.get_dummy_value()

    return signature, codegen


def _even_and_odd(emit: Emitter, a: Any, b: Any) -> list[Any]:
    """The elements with even and with odd numbers of two vectors, block of 16 bytes by block: an instruction each."""
    block = min(emit.lanes, 16 // emit.itemsize)
    return [
        emit.builder.shuffle_vector(
            a,
            b,
            _mask(
                [
                    vector * emit.lanes + begin + i
                    for begin in range(0, emit.lanes, block)
                    for vector in (0, 1)
                    for i in range(first, block, 2)
                ]
            ),
        )
        for first in (0, 1)
    ]


def _in_order(emit: Emitter, mixed: Any) -> Any:
    """A vector whose lanes lie as `_even_and_odd` leaves them."""
    half = min(emit.lanes, 16 // emit.itemsize) // 2
    places = [begin + i for first in (0, half) for begin in range(first, emit.lanes, 2 * half) for i in range(half)]
    return emit.builder.shuffle_vector(mixed, mixed, _mask(places))


def _mask(places: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
