"""Words of 64 bits that threads write and read at the same time, by their address; and waiting for one to change.

Each operation is whole, and all threads see all of them in one order.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_YIELD = "sched_yield" if os.name == "posix" else "SwitchToThread"
_PAUSES = 16  # about a third of a microsecond on x86


_I64 = ir.IntType(64)


def word_at(builder: Any, address: Any) -> Any:
    """The word at an address, for LLVM."""
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, address: Any) -> Any:
    """What stands there."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(word_at(builder, values[0]), "seq_cst", 8)

    return types.intp(types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, address: Any, value: Any) -> Any:
    """Write `value` there."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], word_at(builder, values[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def add(typing: Any, address: Any, value: Any) -> Any:
    """Add `value` to what stands there; returns what stood there before."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", word_at(builder, values[0]), values[1], "seq_cst")

    return types.intp(types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def replace(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Whether `expected` stood there, and `value` does now."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, expected, value = values
        result = builder.cmpxchg(word_at(builder, address), expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.intp, types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def rest(typing: Any) -> Any:
    """Leave the core's units to its other thread for a while, then the core to whoever waits for it."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        void, number = ir.VoidType(), ir.IntType(32)
        processor = builder.module.triple.partition("-")[0]
        if processor.startswith(("x86", "i686")):
            pause = builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(void, []))
            for _ in range(_PAUSES):
                builder.call(pause, [])
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, []), _YIELD)
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen
