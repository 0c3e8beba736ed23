"""The vector code of a correlation with rows of weights in the lanes.

- `gathered_outer`: a tile of OUTPUTS outputs × some vectors of rows, C[m, v] (+)= Σ_k source[place[m] + off[k]] ·
  A[k, v]. Each output has a place of its own, each tap an offset, so nothing says how outputs lie in the source. Per k:
  an offset, OUTPUTS broadcasts, nv loads of whole aligned vectors, OUTPUTS · nv FMA.

As in simd.py every element is one chain of FMAs in the order of k.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.host import REGISTERS, TWO_UNITS

_I64 = ir.IntType(64)

OUTPUTS = 8 if REGISTERS == 32 else 6
"""Outputs of a tile. Their places wait in general registers, of which there are no more where vector registers are."""

VECTORS = 2
"""Vectors of rows of a whole block; one of 1 takes two thirds of the time."""

MOST_VECTORS = 3 if TWO_UNITS else VECTORS
"""Of a whole block where that is faster: two units are kept busy by fewer loads for each product, one is anyway."""

_UNROLL = 2


@intrinsic(prefer_literal=True)
def gathered_outer(  # type: ignore[no-untyped-def]
    typing_context,
    like,
    vectors,
    a,
    source,
    off,
    places,
    count,
    start,
    start_apart,
    start_step,
    c,
    c_apart,
    c_step,
    relu,
):
    """C[v][m] = start[v][m] + Σ_k source[places[m] + off[k]] · A[k][v] for v < vectors, m < OUTPUTS, k < count (≥ 1).

    All of A, C and start are vectors. Those of C lie m · `c_step` + v · `c_apart` elements behind `c`, those of start
    m · `start_step` + v · `start_apart` behind `start`. `off` and `places` are addresses of int64 element offsets. With
    `relu` ≠ 0 negative results become 0 (NaN stays NaN) before they are stored.
    """
    nv = vectors.literal_value
    signature = types.void(like, vectors, *[types.intp] * 12)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        a, source, off, places, count, start, start_apart, start_step, c, c_apart, c_step, relu = args[2:]
        a, source, start, c = (emit.pointer(address) for address in (a, source, start, c))
        off, places = (builder.inttoptr(address, _I64.as_pointer()) for address in (off, places))
        numbers = [emit.index(m) for m in range(OUTPUTS)]
        sources = [emit.at(source, builder.load(emit.at(places, m))) for m in numbers]
        starts = [emit.at(start, builder.mul(start_apart, emit.index(v))) for v in range(nv)]
        begin = [[emit.load(emit.at(vector, builder.mul(start_step, m))) for vector in starts] for m in numbers]

        def step(k: Any, values: list[list[Any]]) -> list[list[Any]]:
            at, row = builder.load(emit.at(off, k)), emit.at(a, builder.mul(k, emit.index(nv * emit.lanes)))
            weights = [emit.load(emit.at(row, emit.index(v * emit.lanes))) for v in range(nv)]
            new = []
            for place, sums in zip(sources, values):
                factor = emit.splat(builder.load(emit.at(place, at)))
                new.append([emit.fma(factor, weight, value) for weight, value in zip(weights, sums)])
            return new

        wanted = builder.icmp_signed("!=", relu, emit.index(0))
        for m, sums in enumerate(emit.loop(count, begin, step, _UNROLL)):
            for v, value in enumerate(sums):
                place = builder.add(builder.mul(c_apart, emit.index(v)), builder.mul(c_step, emit.index(m)))
                emit.store(emit.relu_if(wanted, value), emit.at(c, place))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def ask_for_rows(typing_context, like, vectors, target, apart):  # type: ignore[no-untyped-def]
    """Ask for a line of each row of some vectors, `apart` bytes apart from an address on; none of them need exist."""
    signature = types.void(like, vectors, *[types.intp] * 2)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        for row in range(vectors.literal_value * emit.lanes):
            emit.prefetch(emit.pointer(builder.add(args[2], builder.mul(args[3], emit.index(row)))))
        return context.get_dummy_value()

    return signature, codegen
