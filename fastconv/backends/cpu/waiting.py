"""Waiting for another thread without sleeping and without the GIL, for the time that the next work takes to come.

To wake a thread that sleeps costs the waker 20 µs and the work 50 to 150, on a virtual machine; a thread that looks for
its work sees it at once. Between two looks it offers its core to whoever else could run there. What is looked at are
words that one thread writes and others read.
"""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.host import kernel

_OFFER = "sched_yield" if os.name == "posix" else "SwitchToThread"


@intrinsic
def _offer_core(typing_context):  # type: ignore[no-untyped-def]
    """Let another thread run on this core if one is waiting for it: about half a microsecond if none is.

    A call into the system, so that what was read before it is read anew behind it.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        function = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function, _OFFER), [])
        return context.get_dummy_value()

    return types.void(), codegen


@kernel
def watch(bell: Any, seen: int, looks: int, delay: int, busy: Any, slot: int) -> bool:
    """Write 0 to busy[slot], then look at bell[0] until it differs from `seen`, and wait for `delay` more looks.

    False if it did not in as many `looks`.
    """
    busy[slot] = 0
    for _ in range(looks):
        if bell[0] != seen:
            for _ in range(delay):
                _offer_core()
            return True
        _offer_core()
    return False


@kernel
def settle(busy: Any, looks: int) -> bool:
    """Look at `busy` until all of it is 0; False if it is not in as many `looks`."""
    for _ in range(looks):
        working = 0
        for i in range(busy.size):
            working += busy[i]
        if working == 0:
            return True
        _offer_core()
    return False
