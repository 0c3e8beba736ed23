"""The vector code of the depthwise convolution in place: strips of columns, swept from row to row.

- `sweep_strip`: as many columns of outputs as a vector has lanes, all rows of them, one after the other. Each input row
  is loaded once for each shift along it and serves all rows of outputs that it reaches, whose sums are under way in
  registers: the sum that has met its last row of taps is stored, the others move up by one.

The side of the kernel and its step are known to the compiler: a row of 3×3 is 3 loads, 9 FMA, a store and half a dozen
instructions around them. Lanes beyond the image are masked: nothing is copied to a place with room for padding.

Every output is one chain of FMAs in the order of its taps, whatever the number of lanes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter, align_stack, short_loop
from fastconv.backends.cpu.host import LINE_BYTES

_I64, _I32 = ir.IntType(64), ir.IntType(32)

LAYOUT = (
    "groups channels together asking height width row_apart column_apart volume target_volume kernel target_row blocks"
).split()
"""What all pieces have in common. `channels` are those of the target in a group; `together` images are swept piece by
piece; rows and columns of a kernel lie row_apart and column_apart apart in the source, outputs target_row elements; a
target is cut into `blocks`."""

PIECE = "narrow source inside row column taps more target outputs stored plain last ahead behind".split()
"""What one sweep needs beyond it: where it reads, begins and writes; how many rows it stores, how many lanes of each,
and how many of the rows as whole vectors, whose other lanes are written again; and where the lines of the
source and of the target begin that it asks for, as many as it reads and writes."""


class _Columns:
    """What a strip reads of a source row: for each tap along the row its columns, every one or every other.

    Those of every other one are chosen from what all taps of a row read together, each column loaded once: loads that
    lie across two lines take twice as long as a choice.
    """

    def __init__(self, emit: Emitter, step: int, side: int, column: Any, apart: Any, size: Any) -> None:
        self.emit, self.step, self.side = emit, step, side
        builder, none = emit.builder, emit.index(0)
        if step == 1:
            shifts = [builder.mul(apart, emit.index(shift)) for shift in range(side)]
        else:  # the columns of neighbouring taps are neighbours
            shifts = [emit.index(shift) for shift in range(0, 2 * emit.lanes + side - 2, emit.lanes)]
        columns = [builder.add(column, shift) for shift in shifts]
        masks = [emit.lanes_between(builder.sub(none, c), builder.sub(size, c)) for c in columns]
        self.stretches = list(zip(columns, masks))

    def load(self, row: Any) -> list[Any]:
        """The vectors of all taps, zeros outside the source."""
        emit, lanes = self.emit, self.emit.lanes
        vectors = [emit.load_masked(emit.at(row, column), mask, emit.zero) for column, mask in self.stretches]
        if self.step == 1:
            return vectors
        pairs = [*zip(vectors[::2], vectors[1::2])] + [(vectors[-1],) * 2] * (len(vectors) % 2)
        phases = [[self._chosen(*pair, range(first, first + 2 * lanes, 2)) for pair in pairs] for first in range(2)]
        taps = []
        for tap in range(self.side):
            passed, phase = divmod(tap, 2)
            number, first = divmod(passed, lanes)
            found = phases[phase][number]
            taps.append(self._chosen(found, phases[phase][number + 1], range(first, first + lanes)) if first else found)
        return taps

    def _chosen(self, first: Any, second: Any, lanes: Iterable[int]) -> Any:
        """These lanes of two vectors."""
        indices = ir.Constant(ir.VectorType(_I32, self.emit.lanes), list(lanes))
        return self.emit.builder.shuffle_vector(first, second, indices)


class _Sweep:
    """The code of a sweep over the rows of an image; `given`: the numbers of LAYOUT and PIECE by name."""

    def __init__(self, emit: Emitter, side: int, step: int, given: dict[str, Any], relu: Any, ask: bool) -> None:
        self.emit, self.side, self.step, self.given, self.relu, self.ask = emit, side, step, given, relu, ask
        self.stages = -(-side // step)  # sums under way, by how many steps of rows ago they began
        builder, none = emit.builder, emit.index(0)
        self.columns = _Columns(emit, step, side, given["column"], given["column_apart"], given["width"])
        self.kept = emit.lanes_between(none, given["stored"])
        self.more = builder.icmp_signed("!=", given["more"], none)
        self.first = builder.mul(given["row"], given["width"])
        self.apart = builder.mul(given["row_apart"], given["width"])
        self.end = builder.sub(given["outputs"], emit.index(1))

    def image(self, source: Any, taps: Any, bias: Any, target: Any) -> None:
        """One image, whose arrays begin at these pointers."""
        emit, builder, k = self.emit, self.emit.builder, self.side
        begin = emit.splat(builder.load(bias))
        factors = [[emit.splat(builder.load(emit.at(taps, emit.index(i * k + j)))) for j in range(k)] for i in range(k)]
        waiting = emit.index(self.stages - 1)
        plane, to = emit.at(source, self.given["source"]), emit.at(target, self.given["target"])

        def rows(p: Any, values: list[list[Any]]) -> list[list[Any]]:
            sums = [self._begun(p, to, begin), *values[0]]
            if self.ask:
                self._ask(p, emit.at(source, self.given["ahead"]), self.step**2, write=False)
                self._ask(p, emit.at(target, self.given["behind"]), 1, write=True)
            for t in range(self.step):
                number = builder.add(builder.mul(p, emit.index(self.step)), emit.index(t))
                from_ = emit.at(plane, builder.add(self.first, builder.mul(number, self.apart)))
                row = builder.add(self.given["row"], builder.mul(number, self.given["row_apart"]))
                inside = builder.icmp_unsigned("<", row, self.given["inside"])
                sums = self._row(inside, from_, factors[t :: self.step], sums)
            with builder.if_then(builder.icmp_signed(">=", p, waiting)):
                self._store(builder.sub(p, waiting), emit.relu_if(self.relu, sums[-1]), to)
            return [sums[:-1]]

        short_loop(emit, builder.add(self.given["outputs"], waiting), [[begin] * (self.stages - 1)], rows)

    def _ask(self, p: Any, begin: Any, lines: int, *, write: bool) -> None:
        """Ask for the lines that go with row p."""
        line = LINE_BYTES // self.emit.itemsize
        first = self.emit.builder.mul(p, self.emit.index(lines * line))
        for n in range(lines):
            place = self.emit.builder.add(first, self.emit.index(n * line))
            self.emit.prefetch(self.emit.at(begin, place), 1 if write else 2, write=write)

    def _store(self, row: Any, value: Any, target: Any) -> None:
        """A row of outputs; masked stores take a dozen cycles where vectors have no masks of their own (AVX2)."""
        emit, builder = self.emit, self.emit.builder
        place = emit.at(target, builder.mul(row, self.given["target_row"]))
        with builder.if_else(builder.icmp_signed("<", row, self.given["plain"])) as (plain, masked):
            with plain:
                emit.store(value, place)
            with masked:
                emit.store_masked(value, place, self.kept)

    def _begun(self, p: Any, target: Any, begin: Any) -> Any:
        """What the sum of output row p begins with; rows behind the last, which are not stored, with anything."""
        emit, builder = self.emit, self.emit.builder
        before = builder.block
        with builder.if_then(self.more):
            row = builder.select(builder.icmp_signed("<", p, self.end), p, self.end)
            held = emit.load_masked(emit.at(target, builder.mul(row, self.given["target_row"])), self.kept, begin)
            loading = builder.block
        value = builder.phi(emit.vector)
        value.add_incoming(begin, before)
        value.add_incoming(held, loading)
        return value

    def _row(self, inside: Any, row: Any, factors: list[list[Any]], sums: list[Any]) -> list[Any]:
        """The sums after a row, if it lies `inside` the source; `factors`: of each stage that it reaches."""
        before, new = self.emit.builder.block, list(sums)
        with self.emit.builder.if_then(inside):
            for j, loaded in enumerate(self.columns.load(row)):
                for stage, row_factors in enumerate(factors):
                    new[stage] = self.emit.fma(row_factors[j], loaded, new[stage])
            swept = self.emit.builder.block
        merged = [self.emit.builder.phi(self.emit.vector) for _ in sums]
        for phi, old, value in zip(merged, sums, new):
            phi.add_incoming(old, before)
            phi.add_incoming(value, swept)
        return merged


@intrinsic(prefer_literal=True)
def sweep_strip(  # type: ignore[no-untyped-def]
    typing_context, like, side, step, pieces, ask, layout, piece, source, taps, bias, target, images, relu
):  # fmt: skip
    """One piece of `images` (≥ 1) images, a vector wide, or half of one that is in 2 `pieces`.

    `side`, `step`, `pieces` and `ask` are known to the compiler; with `ask` = 1 it asks for what comes next.

    Lane l < stored of output p < outputs is, from the piece's place in the target on, at p · target_row + l:

        Σ taps[i · side + j] · source[row + (p · step + i) · row_apart][column + l · step + j · column_apart],

    i, j < side in this order, after the value at `bias`, or if there is `more` after what the target holds. Rows from
    `inside` on and columns from `width` on are 0, as those before the first. `layout` and `piece` are addresses of the
    numbers named in LAYOUT and PIECE, the others addresses of elements of the first image. With `relu` ≠ 0 negative
    results of the `last` piece become 0 (NaN stays NaN).
    """
    signature = types.void(like, side, step, pieces, ask, *[types.intp] * 8)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        align_stack(builder)
        whole = Emitter(builder, signature.args[0])
        emit = Emitter(builder, signature.args[0], whole.lanes // pieces.literal_value)
        layout, piece, *arrays, images, relu = args[5:]
        given: dict[str, Any] = {}
        for names, address in ((LAYOUT, layout), (PIECE, piece)):
            numbers = builder.inttoptr(address, _I64.as_pointer())
            given |= {name: builder.load(emit.at(numbers, emit.index(n))) for n, name in enumerate(names)}
        wanted = builder.icmp_signed("!=", builder.and_(relu, given["last"]), emit.index(0))
        sweep = _Sweep(emit, side.literal_value, step.literal_value, given, wanted, bool(ask.literal_value))
        source, taps, bias, target = (emit.pointer(address) for address in arrays)
        begins = source, emit.at(taps, given["taps"]), bias, target
        channels = given["channels"]
        kernels, targets = (builder.mul(channels, given[name]) for name in ("kernel", "target_volume"))
        aparts = given["volume"], kernels, channels, targets

        def image(n: Any, values: list[list[Any]]) -> list[list[Any]]:
            sweep.image(*(emit.at(first, builder.mul(n, apart)) for first, apart in zip(begins, aparts)))
            return values

        short_loop(emit, images, [], image)
        return context.get_dummy_value()

    return signature, codegen
