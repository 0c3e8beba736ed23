"""The LLVM IR idioms that all micro-kernels share: vectors of a host's width, loads, stores, shuffles, the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.backends.cpu.host import VECTOR_BYTES

_I64, _I32 = ir.IntType(64), ir.IntType(32)


def lanes_of(itemsize: int) -> int:
    """Elements of this size in a vector."""
    return VECTOR_BYTES // itemsize


def align_stack(builder: Any) -> None:
    """Lay vectors that the registers do not hold on aligned addresses of the stack, in the function that is built.

    LLVM decides before it knows of them, and leaves the stack as it is: by chance, from process to process, each of
    them then lies on two lines of the cache. The price is a register for addresses, more than many kernels gain.
    """
    attributes = builder.function.attributes
    attributes.alignstack = VECTOR_BYTES
    attributes.add("noinline")  # else it becomes a part of a function without the attribute


class Emitter:
    """The few IR idioms the micro-kernels share, for an element type (that of a number or an array) and some lanes."""

    def __init__(self, builder: Any, like: Any, lanes: int | None = None) -> None:
        self.builder = builder
        self.itemsize = getattr(like, "dtype", like).bitwidth // 8
        self.lanes = lanes or lanes_of(self.itemsize)
        self.element = ir.FloatType() if self.itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.itemsize}"
        self.zero = self.constant(0.0)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.vector, [float(value)] * self.lanes)

    def pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, self.element.as_pointer())

    def at(self, pointer: Any, index: Any) -> Any:
        return self.builder.gep(pointer, [index])

    def index(self, value: int) -> Any:
        return ir.Constant(_I64, value)

    def load(self, pointer: Any) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.itemsize)

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.itemsize)

    def stream(self, value: Any, pointer: Any) -> None:
        """To memory past the caches; the address is a multiple of a vector. Before others read it: `simd.fence`."""
        store = self.builder.store(
            value, self.builder.bitcast(pointer, self.vector.as_pointer()), align=self.itemsize * self.lanes
        )
        store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(_I32, 1)]))

    def lanes_between(self, first: Any, last: Any) -> Any:
        """The mask of the lanes first ≤ lane < last, both int64 that fit into 32 bits."""
        ints = ir.VectorType(_I32, self.lanes)
        numbers = ir.Constant(ints, list(range(self.lanes)))
        zeros, undefined = ir.Constant(ints, [0] * self.lanes), ir.Constant(ints, ir.Undefined)
        first, last = (
            self.builder.shuffle_vector(
                self.builder.insert_element(undefined, self.builder.trunc(scalar, _I32), ir.Constant(_I32, 0)),
                undefined,
                zeros,
            )
            for scalar in (first, last)
        )
        return self.builder.and_(
            self.builder.icmp_signed(">=", numbers, first), self.builder.icmp_signed("<", numbers, last)
        )

    def load_between(self, pointer: Any, first: Any, last: Any) -> Any:
        """Lanes first ≤ lane < last from memory, 0 in the others, whose memory is not touched."""
        return self.load_masked(pointer, self.lanes_between(first, last), self.zero)

    def load_masked(self, pointer: Any, mask: Any, others: Any) -> Any:
        """The lanes of a mask from memory, those of `others` elsewhere; their memory is not touched."""
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        kind = ir.FunctionType(self.vector, [pointer.type, _I32, mask.type, self.vector])
        load = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.load.{self.suffix}.p0")
        return self.builder.call(load, [pointer, ir.Constant(_I32, self.itemsize), mask, others])

    def store_part(self, value: Any, pointer: Any, count: int) -> None:
        """The first `count` lanes to memory, a number known beforehand: no mask is needed."""
        lanes = ir.Constant(ir.VectorType(_I32, count), list(range(count)))
        part = self.builder.shuffle_vector(value, value, lanes)
        self.builder.store(part, self.builder.bitcast(pointer, part.type.as_pointer()), align=self.itemsize)

    def store_first(self, value: Any, pointer: Any, count: Any) -> None:
        """Lanes below `count` to memory; the memory of the others is not touched."""
        self.store_masked(value, pointer, self.lanes_between(self.index(0), count))

    def store_masked(self, value: Any, pointer: Any, mask: Any) -> None:
        """The lanes of a mask to memory; the memory of the others is not touched."""
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [self.vector, pointer.type, _I32, mask.type])
        store = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.store.{self.suffix}.p0")
        self.builder.call(store, [value, pointer, ir.Constant(_I32, self.itemsize), mask])

    def prefetch(self, pointer: Any, level: int = 1, *, write: bool = False) -> None:
        """Ask for the line of an address, which need not exist, to come into the first-level cache (2: the second)."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        flags = [ir.Constant(_I32, value) for value in (int(write), 4 - level, 1)]
        self.builder.call(function, [self.builder.bitcast(pointer, byte), *flags])

    def splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
        lanes = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fma.{self.suffix}")
        return self.builder.call(function, [a, b, c])

    def lane_sums(self, vectors: list[Any]) -> list[Any]:
        """The sums over the lanes of each vector, packed in order into as few vectors as hold them, zeros behind.

        Each round adds neighbouring lanes of two vectors into one: log2(lanes) rounds, a fixed tree for every sum.
        """
        lanes = self.lanes
        even, odd = (ir.Constant(ir.VectorType(_I32, lanes), [2 * i + first for i in range(lanes)]) for first in (0, 1))
        for _ in range(lanes.bit_length() - 1):
            vectors = [*vectors, self.zero] if len(vectors) % 2 else vectors
            vectors = [
                self.builder.fadd(self.builder.shuffle_vector(a, b, even), self.builder.shuffle_vector(a, b, odd))
                for a, b in zip(vectors[::2], vectors[1::2])
            ]
        return vectors

    def added_if(self, wanted: Any, rows: list[list[Any]], places: list[list[Any]]) -> list[list[Any]]:
        """Vectors, or if `wanted` their sums with what lies at `places`, which is not read otherwise."""
        builder = self.builder
        before, add, after = builder.block, builder.append_basic_block("add"), builder.append_basic_block("stored")
        builder.cbranch(wanted, add, after)
        builder.position_at_end(add)
        sums = [[builder.fadd(self.load(place), value) for value, place in zip(*pair)] for pair in zip(rows, places)]
        builder.branch(after)
        builder.position_at_end(after)
        result = []
        for row, row_sums in zip(rows, sums):
            phis = [builder.phi(self.vector) for _ in row]
            for phi, value, total in zip(phis, row, row_sums):
                phi.add_incoming(value, before)
                phi.add_incoming(total, add)
            result.append(phis)
        return result

    def relu_if(self, wanted: Any, value: Any) -> Any:
        """max(value, 0) if `wanted`; NaN stays NaN. One instruction and no branch: else it is max(value, -inf)."""
        zero, lowest = (ir.Constant(self.element, limit) for limit in (0.0, -math.inf))
        limit = self.splat(self.builder.select(wanted, zero, lowest))
        return self.builder.select(self.builder.fcmp_ordered("<", value, limit), limit, value)

    def interleaved(self, vectors: list[Any], unit: int = 1) -> list[Any]:
        """The elements of any number of vectors, lane by lane: v0[0] v1[0] … v0[1] v1[1] …, or so many lanes at a time.

        Each round of shuffles doubles the number of vectors whose lanes lie side by side; a number that is no power of
        two is filled up, and what filled it is squeezed out at the end.
        """
        lanes, count = self.lanes, len(vectors)
        if unit == lanes:
            return vectors
        full = 1 << (count - 1).bit_length()
        mixes = [
            ir.Constant(
                ir.VectorType(_I32, lanes),
                [start + i // (2 * unit) * unit + i % unit + lanes * (i // unit % 2) for i in range(lanes)],
            )
            for start in (0, lanes // 2)
        ]
        pieces = [[vector] for vector in [*vectors, *[ir.Constant(self.vector, ir.Undefined)] * (full - count)]]
        while len(pieces) > 1:
            middle = len(pieces) // 2
            pieces = [
                [self.builder.shuffle_vector(a, b, mix) for a, b in zip(pieces[m], pieces[m + middle]) for mix in mixes]
                for m in range(middle)
            ]
        if full == count:
            return pieces[0]
        units = [first * full + m * unit for first in range(0, lanes, unit) for m in range(count)]
        kept = [first + lane for first in units for lane in range(unit)]
        return [self._picked(pieces[0], kept[i : i + lanes]) for i in range(0, len(kept), lanes)]

    def transposed(self, rows: list[Any], span: int = 0) -> list[Any]:
        """Columns of at most `lanes` rows: vector k holds lane k of each row; its lanes behind the rows are undefined.

        First within blocks of 16 bytes, whose shuffles are one instruction each, then whole blocks. Each `span` lanes
        by themselves, if given: those of so many rows.
        """
        span = span or self.lanes
        block = min(span, 16 // self.itemsize)
        rows = [*rows, *[ir.Constant(self.vector, ir.Undefined)] * (span - len(rows))]
        within = [self._unzipped(rows[first : first + block], block, 1) for first in range(0, span, block)]
        columns = [self._unzipped(list(same), span, block) for same in zip(*within)]
        return [column for same in zip(*columns) for column in same]

    def _unzipped(self, rows: list[Any], span: int, width: int) -> list[Any]:
        """In each `span` lanes the columns, `width` lanes wide, of span/width rows."""
        if len(rows) == 1:
            return rows
        halves = []
        for start in (0, span // 2):
            places = [
                row * self.lanes + first + start + unit + lane
                for first in range(0, self.lanes, span)
                for unit in range(0, span // 2, width)
                for row in (0, 1)
                for lane in range(width)
            ]
            mask = ir.Constant(ir.VectorType(_I32, self.lanes), places)
            pairs = [self.builder.shuffle_vector(a, b, mask) for a, b in zip(rows[::2], rows[1::2])]
            halves += self._unzipped(pairs, span, 2 * width)
        return halves

    def _picked(self, vectors: list[Any], places: list[int]) -> Any:
        """One vector of the elements at `places` (ascending) of the vectors laid end to end."""
        picked: Any = ir.Constant(self.vector, ir.Undefined)
        for number in sorted({place // self.lanes for place in places}):
            here = [place // self.lanes == number for place in places]
            lanes = [
                self.lanes + place % self.lanes if mine else i for i, (place, mine) in enumerate(zip(places, here))
            ]
            mask = ir.Constant(ir.VectorType(_I32, self.lanes), lanes)
            picked = self.builder.shuffle_vector(picked, vectors[number], mask)
        return picked

    def loop(
        self,
        count: Any,
        start: list[list[Any]],
        body: Callable[[Any, list[list[Any]]], list[list[Any]]],
        unroll: int = 0,
    ) -> Any:
        """for i in range(count), count ≥ 1: values = body(i, values), from `start`; returns the last values.

        LLVM makes one round of `unroll` ones, of as many as it likes if that is 0.
        """
        builder = self.builder
        before = builder.block
        block, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(block)
        builder.position_at_end(block)
        i = builder.phi(_I64)
        i.add_incoming(self.index(0), before)
        values = [[builder.phi(self.vector) for _ in row] for row in start]
        new = body(i, values)
        last = builder.block  # the body may have branched
        following = builder.add(i, self.index(1))
        i.add_incoming(following, last)
        for row, row0, row1 in zip(values, start, new):
            for phi, value0, value1 in zip(row, row0, row1):
                phi.add_incoming(value0, before)
                phi.add_incoming(value1, last)
        branch = builder.cbranch(builder.icmp_signed("<", following, count), block, after)
        if unroll:
            times = builder.module.add_metadata(["llvm.loop.unroll.count", ir.Constant(_I32, unroll)])
            node = builder.module.add_metadata([times, times])
            node.operands = (node, times)  # LLVM takes the attributes of a loop from a node that begins with itself
            branch.set_metadata("llvm.loop", node)
        builder.position_at_end(after)
        return new


def short_loop(
    emit: Emitter, count: Any, start: list[list[Any]], body: Callable[[Any, list[list[Any]]], list[list[Any]]]
) -> list[list[Any]]:
    """`Emitter.loop` for counts so small that the rest of an unrolled loop costs most."""
    values: list[list[Any]] = emit.loop(count, start, body, unroll=1)
    return values
