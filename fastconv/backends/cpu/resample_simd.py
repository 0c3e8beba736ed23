"""The vector code of resampling: a weighted sum of rows, in registers."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, short_loop


@intrinsic(prefer_literal=True)
def weighted_sum(typing_context, like, lanes, vectors, target, source, pitch, weights, taps):  # type: ignore[no-untyped-def]
    """target[j] = Σ_t weights[t] · source[t · pitch + j] for t < taps (taps ≥ 1) in that order, j < vectors · lanes.

    `lanes` is 1, or 0 for those of the host: the bits are the same. `target`, `source` and `weights` are addresses.
    Most outputs have one tap or two, for which a loop would cost more than its work: it begins with the third.
    """
    wanted, count = lanes.literal_value, vectors.literal_value
    signature = types.void(like, lanes, vectors, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0], wanted or None)
        target, source, pitch, weights, taps = args[3:]
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
        for total, place in zip(totals, places):
            emit.store(total, emit.at(target, place))
        return context.get_dummy_value()

    return signature, codegen
