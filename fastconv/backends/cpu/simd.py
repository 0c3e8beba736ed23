"""The two micro-kernels of every convolution, written as LLVM vectors.

LLVM's auto-vectoriser does not register-tile a convolution; these intrinsics emit the tile explicitly, so that the
compiler only has to allocate registers. Accumulators are phi nodes of the one loop and never touch memory inside it.

- `outer`: C[m, v] (+)= c0[m] + Σ_k A[k, m] · B[off[k] + v], broadcast × vector. Per k: mr broadcasts, nv loads, mr·nv
  FMA.
- `inner`: C[m, n] += Σ_p A[m, p] · B[off[n] + p], vector × vector, the lanes summed at the end, all tiles' sums
  together by a tree of shuffles. Per vector of p: mr + nr loads, mr·nr FMA.

Every element of `outer` is one chain of FMAs in the order of k, whatever mr, nv, the lane or the vector width: that is
what makes results independent of where in a tile, a batch or a thread an output happens to be computed. The floor of
both is the FMA rate: with 8 × 3 (outer) and 4 × 6 (inner) tiles, 6 × 2 where there are 16 registers, the loads stay
below what a core can do beside two FMAs a cycle.

The first argument of an intrinsic is an array that only tells the element type. Addresses are plain integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, lanes_of
from fastconv.backends.cpu.host import REGISTERS

# A tile's accumulators, the vectors of B and one broadcast must fit into the registers with one to spare, or the
# compiler spills (12 + 3 + 1 of 16 lost a fifth): (rows, vectors) of a tile for blocks of ROWS rows, for the 4, 3, 2 or
# 1 rows of a last block, and the narrow tile for what is left at the end of a row of tiles.
if REGISTERS == 32:
    ROWS = 8
    WIDE = {8: 3, 4: 6, 3: 6, 2: 8, 1: 16}
    NARROW = {8: 1, 4: 2, 3: 2, 2: 4, 1: 4}
else:
    ROWS = 6
    WIDE = {6: 2, 4: 2, 3: 3, 2: 4, 1: 6}
    NARROW = {6: 1, 4: 1, 3: 1, 2: 2, 1: 3}

TAIL_ROWS = (1, 2, 3, 4, ROWS)
"""Rows that a last block can have."""

INNER_TILE = (4, 6) if REGISTERS == 32 else (6, 2)
INNER_TILE_ONE_ROW = (1, 8)

_UNROLL = 4
"""Steps of a sum in one round of its loop. Alone on a core 2 are as good; where a second hardware thread takes half of
what the core can decode, instructions are what a tile costs, and those of the loop itself are one in fifteen."""

_I64, _I32 = ir.IntType(64), ir.IntType(32)


def _outer_product(
    emit: Emitter, shape: tuple[int, int], row_of_b: Callable[[Any], Any], args: tuple[Any, ...], ahead: Any = None
) -> None:
    """The code of `outer` and `outer_strided`; `row_of_b` gives the address of row k of B."""
    (mr, nv), builder = shape, emit.builder
    a, a_row, a_step, count, start, c, c_stride, relu, add = args
    a, c, start = (emit.pointer(address) for address in (a, c, start))
    begin = [[emit.splat(builder.load(emit.at(start, emit.index(m))))] * nv for m in range(mr)]
    rows_a = [emit.at(a, builder.mul(a_row, emit.index(m))) for m in range(mr)]

    def step(k: Any, values: list[list[Any]]) -> list[list[Any]]:
        row_b, from_a = row_of_b(k), builder.mul(k, a_step)
        if ahead is not None:
            emit.prefetch(emit.at(row_b, ahead), 2)
        vectors_b = [emit.load(emit.at(row_b, emit.index(v * emit.lanes))) for v in range(nv)]
        new = []
        for m in range(mr):
            factor = emit.splat(builder.load(emit.at(rows_a[m], from_a)))
            new.append([emit.fma(factor, vectors_b[v], values[m][v]) for v in range(nv)])
        return new

    result = emit.loop(count, begin, step, _UNROLL)
    rows_c = [emit.at(c, builder.mul(c_stride, emit.index(m))) for m in range(mr)]
    places = [[emit.at(row, emit.index(v * emit.lanes)) for v in range(nv)] for row in rows_c]
    added = builder.icmp_signed("!=", add, emit.index(0))
    result = emit.added_if(added, result, places)
    wanted = builder.icmp_signed("!=", relu, emit.index(0))
    for row, row_places in zip(result, places):
        for value, place in zip(row, row_places):
            emit.store(emit.relu_if(wanted, value), place)


def _outer_by_table(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The code of `outer`, and of `outer_prefetching` if there is another argument."""
    emit = Emitter(builder, signature.args[0])
    shape = signature.args[1].literal_value, signature.args[2].literal_value
    *a, b, off = args[3:8]
    b, off = emit.pointer(b), builder.inttoptr(off, _I64.as_pointer())
    rest, ahead = args[8:14], args[14] if len(args) > 14 else None
    _outer_product(emit, shape, lambda k: emit.at(b, builder.load(emit.at(off, k))), (*a, *rest), ahead)
    return context.get_dummy_value()


@intrinsic(prefer_literal=True)
def outer(  # type: ignore[no-untyped-def]
    typing_context, like, rows, vectors, a, a_row, a_step, b, off, count, start, c, c_stride, relu, add
):
    """C[m, v] = start[m] + Σ_k A[k, m] · B[off[k] + v] for m < rows, v < vectors · lanes, k < count (count ≥ 1).

    `a`, of which A[k, m] is number k · a_step + m · a_row, `b`, `start` [rows] and `c` (row stride `c_stride`) are
    addresses of elements, `off` of int64 element offsets. With `add` ≠ 0 the sum is added to what C holds. With `relu`
    ≠ 0 negative results become 0 (NaN stays NaN) before they are stored.
    """
    return types.void(like, rows, vectors, *[types.intp] * 11), _outer_by_table


@intrinsic(prefer_literal=True)
def outer_prefetching(  # type: ignore[no-untyped-def]
    typing_context, like, rows, vectors, a, a_row, a_step, b, off, count, start, c, c_stride, relu, add, ahead
):
    """As `outer`, and for each k the line `ahead` elements behind row k of B comes into the second-level cache.

    Where a next tile's rows lie in as many pages, the hardware does not foresee them.
    """
    return types.void(like, rows, vectors, *[types.intp] * 12), _outer_by_table


@intrinsic(prefer_literal=True)
def outer_strided(  # type: ignore[no-untyped-def]
    typing_context, like, rows, vectors, a, a_row, a_step, b, b_stride, count, start, c, c_stride, relu, add
):
    """As `outer` for a matrix B whose rows lie `b_stride` elements apart: B[k · b_stride + v].

    A load less for each k than by a table: a twentieth of the time of a tile, more where two hardware threads share
    what a core can decode.
    """
    shape = rows.literal_value, vectors.literal_value
    signature = types.void(like, rows, vectors, *[types.intp] * 11)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        *a, b, b_stride = args[3:8]
        b = emit.pointer(b)
        _outer_product(emit, shape, lambda k: emit.at(b, builder.mul(k, b_stride)), (*a, *args[8:]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def inner(typing_context, like, rows, columns, a, a_stride, b, off, vectors, c):  # type: ignore[no-untyped-def]
    """C[m, n] += Σ_p A[m, p] · B[off[n] + p] for m < rows, n < columns, p < vectors · lanes (vectors ≥ 1).

    `a` (row stride `a_stride`) and `b` are addresses of elements, `off` of int64 offsets. `c` is the address of the
    contiguous tile [rows][columns], padded to whole vectors (see `inner_tile_size`).
    """
    mr, nr = rows.literal_value, columns.literal_value
    signature = types.void(like, rows, columns, *[types.intp] * 6)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        a, a_stride, b, off, vectors, c = args[3:]
        a, b, c = (emit.pointer(address) for address in (a, b, c))
        off = builder.inttoptr(off, _I64.as_pointer())
        rows_a = [emit.at(a, builder.mul(a_stride, emit.index(m))) for m in range(mr)]
        rows_b = [emit.at(b, builder.load(emit.at(off, emit.index(n)))) for n in range(nr)]

        def step(i: Any, values: list[list[Any]]) -> list[list[Any]]:
            p = builder.mul(i, emit.index(emit.lanes))
            held, streamed = (rows_a, rows_b) if mr <= nr else (rows_b, rows_a)  # the fewer wait in registers
            waiting = [emit.load(emit.at(row, p)) for row in held]
            new: list[list[Any]] = [[None] * nr for _ in range(mr)]
            for s, row in enumerate(streamed):
                vector = emit.load(emit.at(row, p))
                for h, other in enumerate(waiting):
                    m, n = (h, s) if mr <= nr else (s, h)
                    new[m][n] = emit.fma(other, vector, values[m][n])
            return new

        result = emit.loop(vectors, [[emit.zero] * nr for _ in range(mr)], step, _UNROLL)
        for number, sums in enumerate(emit.lane_sums([value for row in result for value in row])):
            place = emit.at(c, emit.index(number * emit.lanes))
            emit.store(builder.fadd(emit.load(place), sums), place)
        return context.get_dummy_value()

    return signature, codegen


def inner_tile_size(rows: int, columns: int, itemsize: int) -> int:
    """Elements of a tile of `inner`, whole vectors."""
    lanes = lanes_of(itemsize)
    return -(-rows * columns // lanes) * lanes


def _every(emit: Emitter, source: Any, step: int, first: int) -> Any:
    """The vector of source[first + step · lane], step a power of two, first < step: de-interleaved by shuffles."""
    vectors = [emit.load(emit.at(source, emit.index(number * emit.lanes))) for number in range(step)]
    while len(vectors) > 1:
        mask = ir.Constant(ir.VectorType(_I32, emit.lanes), [2 * i + first % 2 for i in range(emit.lanes)])
        vectors = [emit.builder.shuffle_vector(a, b, mask) for a, b in zip(vectors[::2], vectors[1::2])]
        first //= 2
    return vectors[0]


@intrinsic(prefer_literal=True)
def take_every(typing_context, like, step, first, target, source):  # type: ignore[no-untyped-def]
    """target[j] = source[first + step · j] for j < lanes, step 2 or 4, first < step.

    Reads step · lanes elements from `source` on.
    """
    every, begin = step.literal_value, first.literal_value
    signature = types.void(like, step, first, *[types.intp] * 2)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        emit.store(_every(emit, emit.pointer(args[4]), every, begin), emit.pointer(args[3]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def clear(typing_context, like, target):  # type: ignore[no-untyped-def]
    """target[j] = 0 for j < lanes."""
    signature = types.void(like, types.intp)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        emit.store(emit.zero, emit.pointer(args[1]))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def prefetch(typing_context, like, address):  # type: ignore[no-untyped-def]
    """Ask for the line of an address, which need not exist, to come into the second-level cache."""
    signature = types.void(like, types.intp)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        emit.prefetch(emit.pointer(args[1]), 2)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def fence(typing_context):  # type: ignore[no-untyped-def]
    """What was stored past the caches is in memory, before any other thread can ask for it."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def copy_rows(typing_context, like, target, source):  # type: ignore[no-untyped-def]
    """target[r] = source[r] for the rows of a block."""
    signature = types.void(like, *[types.intp] * 2)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0], ROWS)
        emit.store(emit.load(emit.pointer(args[2])), emit.pointer(args[1]))
        return context.get_dummy_value()

    return signature, codegen


def _store_columns(emit: Emitter, rows: list[Any], target: Any) -> None:
    """The columns of some rows one behind the other: what a vector holds behind its column the next one overwrites."""
    columns = list(zip(*(emit.transposed(rows[m : m + emit.lanes]) for m in range(0, len(rows), emit.lanes))))
    for k, column in enumerate(columns):
        for number, vector in enumerate(column):
            first = number * emit.lanes
            place = emit.at(target, emit.index(k * len(rows) + first))
            if k == len(columns) - 1 and first + emit.lanes > len(rows):
                emit.store_part(vector, place, len(rows) - first)
            else:
                emit.store(vector, place)


@intrinsic(prefer_literal=True)
def interleave(typing_context, like, rows, source, stride, vectors, target):  # type: ignore[no-untyped-def]
    """target[k][m] = source[m · stride + k] for m < rows, k < vectors · lanes (vectors ≥ 1).

    A transposition in registers.
    """
    mr = rows.literal_value
    signature = types.void(like, rows, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, vectors, target = args[2:]
        source, target = emit.pointer(source), emit.pointer(target)
        rows_in = [emit.at(source, builder.mul(stride, emit.index(m))) for m in range(mr)]

        def step(i: Any, values: list[list[Any]]) -> list[list[Any]]:
            k = builder.mul(i, emit.index(emit.lanes))
            out = emit.at(target, builder.mul(k, emit.index(mr)))
            loaded = [emit.load(emit.at(row, k)) for row in rows_in]
            if 2 * mr > emit.lanes:
                _store_columns(emit, loaded, out)
            else:
                for number, vector in enumerate(emit.interleaved(loaded)):
                    emit.store(vector, emit.at(out, emit.index(number * emit.lanes)))
            return values

        emit.loop(vectors, [], step)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def stream_pairs(typing_context, like, source, stride, halves, target):  # type: ignore[no-untyped-def]
    """target[2 · k + m] = source[m · stride + k] for m < 2, k < halves · lanes / 2 (halves ≥ 1), past the caches.

    The target is aligned to whole vectors; `fence` comes after.
    """
    signature = types.void(like, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        half = Emitter(builder, signature.args[0], emit.lanes // 2)
        source, stride, halves, target = args[1:]
        source, target = emit.pointer(source), emit.pointer(target)
        rows = [source, emit.at(source, stride)]
        pairs = [m * half.lanes + k for k in range(half.lanes) for m in (0, 1)]
        mask = ir.Constant(ir.VectorType(_I32, emit.lanes), pairs)

        def step(i: Any, values: list[list[Any]]) -> list[list[Any]]:
            k = builder.mul(i, half.index(half.lanes))
            even, odd = (half.load(half.at(row, k)) for row in rows)
            place = emit.at(target, builder.mul(i, emit.index(emit.lanes)))
            emit.stream(builder.shuffle_vector(even, odd, mask), place)
            return values

        emit.loop(halves, [], step)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def stream_unless(typing_context, like, condition, vectors, target, source, compared):  # type: ignore[no-untyped-def]
    """target[j] = 0 where compared[j] < 0 ("<=": ≤ 0), else source[j], for j < vectors · lanes (vectors ≥ 1).

    Addresses; the target is aligned to whole vectors and stored past the caches: `fence` comes after.
    """
    operator = condition.literal_value
    signature = types.void(like, condition, *[types.intp] * 4)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        vectors, *addresses = args[2:]
        target, source, compared = (emit.pointer(address) for address in addresses)

        def step(i: Any, values: list[list[Any]]) -> list[list[Any]]:
            j = builder.mul(i, emit.index(emit.lanes))
            falls = builder.fcmp_ordered(operator, emit.load(emit.at(compared, j)), emit.zero)
            emit.stream(builder.select(falls, emit.zero, emit.load(emit.at(source, j))), emit.at(target, j))
            return values

        emit.loop(vectors, [], step)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def transpose(typing_context, like, source, stride, vectors, target, pitch):  # type: ignore[no-untyped-def]
    """target[k · pitch + m] = source[m · stride + k] for m < lanes, k < vectors · lanes (vectors ≥ 1), in registers."""
    signature = types.void(like, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, vectors, target, pitch = args[1:]
        source, target = emit.pointer(source), emit.pointer(target)

        def step(i: Any, values: list[list[Any]]) -> list[list[Any]]:
            k = builder.mul(i, emit.index(emit.lanes))
            rows = [emit.at(source, builder.add(builder.mul(stride, emit.index(m)), k)) for m in range(emit.lanes)]
            for number, vector in enumerate(emit.transposed([emit.load(row) for row in rows])):
                place = builder.mul(pitch, builder.add(k, emit.index(number)))
                emit.store(vector, emit.at(target, place))
            return values

        emit.loop(vectors, [], step)
        return context.get_dummy_value()

    return signature, codegen
