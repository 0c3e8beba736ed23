"""The vector code of pooling: a run of neighbouring outputs, all their taps, results in registers.

An output of a regular window reads its taps at fixed offsets from its own first tap, and neighbouring outputs lie
`stride` elements apart. So a vector of outputs needs one load for each tap at stride 1, two and a shuffle at stride 2,
and one for each lane at others; values, places of winners and float64 sums are phi nodes of the loop over the taps.

- `largest`: the largest value of each window and, if asked for, where it lies.
- `averages`: the sum of each window over its divisor.

What an output computes depends neither on the lane nor on the number of vectors. Nothing behind the last tap of the
last lane is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)


class _Windows:
    """The loop over the taps of neighbouring outputs."""

    def __init__(self, emit: Emitter, stride: int, distance: Any, source: Any, offsets: Any) -> None:
        self.emit, self.stride, self.distance = emit, stride, distance
        self.source = emit.pointer(source)
        self.offsets = emit.builder.inttoptr(offsets, _I64.as_pointer())

    def tap(self, t: Any, vector: int) -> Any:
        """Tap t of the outputs of a vector: elements at distance `stride` (1, 2, or any `distance` where 0)."""
        emit, builder = self.emit, self.emit.builder
        place = emit.at(self.source, builder.load(builder.gep(self.offsets, [t])))
        if self.stride:
            place = emit.at(place, emit.index(vector * emit.lanes * self.stride))
        if self.stride == 1:
            return emit.load(place)
        if self.stride == 2:
            # The second load begins one element early, to end with the last lane's.
            low, high = emit.load(place), emit.load(emit.at(place, emit.index(emit.lanes - 1)))
            every_other = [2 * i if 2 * i < emit.lanes else 2 * i + 1 for i in range(emit.lanes)]
            return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, emit.lanes), every_other))
        value = emit.zero
        for lane in range(emit.lanes):
            at = emit.at(place, builder.mul(self.distance, emit.index(vector * emit.lanes + lane)))
            value = builder.insert_element(value, builder.load(at), ir.Constant(_I32, lane))
        return value

    def over_taps(self, taps: Any, start: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """values = body(t, values) for t < taps (taps ≥ 1), from `start`."""
        builder = self.emit.builder
        before, block = builder.block, builder.append_basic_block("tap")
        after = builder.append_basic_block("taps_end")
        builder.branch(block)
        builder.position_at_end(block)
        t = builder.phi(_I64)
        t.add_incoming(self.emit.index(0), before)
        values = [builder.phi(value.type) for value in start]
        new = body(t, values)
        following = builder.add(t, self.emit.index(1))
        t.add_incoming(following, block)
        for phi, first, later in zip(values, start, new):
            phi.add_incoming(first, before)
            phi.add_incoming(later, block)
        builder.cbranch(builder.icmp_signed("<", following, taps), block, after)
        builder.position_at_end(after)
        return new


def _splat(builder: Any, scalar: Any, kind: ir.VectorType) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))


@intrinsic(prefer_literal=True)
def largest(  # type: ignore[no-untyped-def]
    typing_context, like, indices, stride, vectors, source, distance, offsets, taps, y, places, firsts, first, base, to
):
    """y[i] = the largest of source[offsets[t] + i · distance], t < taps, for i < vectors · lanes (0 vectors: i < 1).

    Unless `indices` is None also to[i] = base + i · distance + places[t] of the winner t: the first of equal ones, the
    last NaN; where all are -inf, firsts[i] + first takes the place of places[t]. `source`, `y`, and, of int64 numbers,
    `offsets`, `places`, `firsts` and `to` are addresses; `stride` is `distance` if that is 1 or 2, else 0.
    """
    step, count = stride.literal_value, vectors.literal_value
    signature = types.void(like, indices, stride, vectors, *[types.intp] * 10)
    indexed = not isinstance(indices, types.NoneType)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit, nv = Emitter(builder, signature.args[0], None if count else 1), count or 1
        source, distance, offsets, taps, y, places, firsts, first, base, to = args[4:]
        windows = _Windows(emit, step, distance, source, offsets)
        integer = ir.IntType(8 * emit.itemsize)  # as wide as a value, so that one mask serves both
        whole, wide = ir.VectorType(integer, emit.lanes), ir.VectorType(_I64, emit.lanes)
        places, firsts, to = (builder.inttoptr(address, _I64.as_pointer()) for address in (places, firsts, to))

        def fitting(value: Any, kind: Any) -> Any:
            return value if integer == _I64 else builder.trunc(value, kind)

        def of_vector(pointer: Any, v: int) -> Any:
            return builder.bitcast(builder.gep(pointer, [emit.index(v * emit.lanes)]), wide.as_pointer())

        def step_over(t: Any, values: list[Any]) -> list[Any]:
            new, winners = [], []
            place = (
                _splat(builder, fitting(builder.load(builder.gep(places, [t])), integer), whole) if indexed else None
            )
            for v in range(nv):
                challenger = windows.tap(t, v)
                wins = builder.or_(
                    builder.fcmp_ordered(">", challenger, values[v]),
                    builder.fcmp_unordered("uno", challenger, challenger),
                )
                new.append(builder.select(wins, challenger, values[v]))
                if indexed:
                    winners.append(builder.select(wins, place, values[nv + v]))
            return new + winners

        start = [emit.constant(float("-inf"))] * nv
        if indexed:
            for v in range(nv):
                clipped = builder.load(of_vector(firsts, v), align=8)
                start.append(fitting(builder.add(clipped, _splat(builder, first, wide)), whole))
        result = windows.over_taps(taps, start, step_over)
        for v in range(nv):
            emit.store(result[v], emit.at(emit.pointer(y), emit.index(v * emit.lanes)))
            if indexed:
                found = result[nv + v] if integer == _I64 else builder.sext(result[nv + v], wide)
                lanes = ir.Constant(wide, list(range(v * emit.lanes, (v + 1) * emit.lanes)))
                own = builder.add(_splat(builder, base, wide), builder.mul(_splat(builder, distance, wide), lanes))
                builder.store(builder.add(found, own), of_vector(to, v), align=8)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def averages(  # type: ignore[no-untyped-def]
    typing_context, like, stride, vectors, source, distance, offsets, taps, y, divisors, factor
):
    """y[i] = Σ_t source[offsets[t] + i · distance] / (divisors[i] · factor) for i < vectors · lanes (0 vectors: i < 1).

    Sums and divisors are float64; for float32 the divisors are given as inverses, because a division takes as long as
    ten products, and what those round does not show. Addresses and `stride` as for `largest`; `divisors` is one, too.
    """
    step, count = stride.literal_value, vectors.literal_value
    signature = types.void(like, stride, vectors, *[types.intp] * 6, types.float64)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit, nv = Emitter(builder, signature.args[0], None if count else 1), count or 1
        source, distance, offsets, taps, y, divisors, factor = args[3:]
        windows = _Windows(emit, step, distance, source, offsets)
        double = ir.VectorType(ir.DoubleType(), emit.lanes)
        narrow = emit.itemsize == 4

        def step_over(t: Any, values: list[Any]) -> list[Any]:
            terms = [windows.tap(t, v) for v in range(nv)]
            return [
                builder.fadd(value, builder.fpext(term, double) if narrow else term)
                for value, term in zip(values, terms)
            ]

        totals = windows.over_taps(taps, [ir.Constant(double, [0.0] * emit.lanes)] * nv, step_over)
        divisors = builder.inttoptr(divisors, ir.DoubleType().as_pointer())
        for v, total in enumerate(totals):
            at = builder.bitcast(builder.gep(divisors, [emit.index(v * emit.lanes)]), double.as_pointer())
            divisor = builder.fmul(builder.load(at, align=8), _splat(builder, factor, double))
            mean = (
                builder.fptrunc(builder.fmul(total, divisor), emit.vector) if narrow else builder.fdiv(total, divisor)
            )
            emit.store(mean, emit.at(emit.pointer(y), emit.index(v * emit.lanes)))
        return context.get_dummy_value()

    return signature, codegen
