"""How threads share the tasks of a kernel, in native code: without the GIL, without a system call, within a microsecond.

A thread that leads a team offers its job to helpers that are awake, then all take ranges of tasks until none is left.
Ranges become ever smaller (guided self-scheduling, Polychronopoulos and Kuck 1987): who is held up on a shared core
keeps the others waiting for no more than a small one. What a task computes never depends on how the range was cut, so
neither the number of threads nor the timing can change a bit of the result.

All is said by words of 64 bits in memory that Python owns (`threads.py`); words that different threads write lie on
lines of the cache of their own. A helper's mailbox holds 0 while it looks for work, the address of a job that is offered
to it, that address + 1 while it works on it, AWAY while it sleeps. An offer that was not taken is taken back.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.callconv import excinfo_ptr_t
from numba.extending import intrinsic

from fastconv.backends.cpu.host import kernel, routine

_I64 = ir.IntType(64)
_YIELD = "sched_yield" if os.name == "posix" else "SwitchToThread"
_PAUSES = 16  # about a microsecond on x86: a thread that only looks leaves its core's units to the other thread there

# Words of a job.
LEAD, BOARD, HELPERS, LEAST = 0, 1, 2, 3
_CALL, _ARGUMENTS, _TASKS, _NEXT, _ARRIVED, _FAILED = 4, 5, 6, 8, 16, 17
JOB_WORDS = 24

# Words of the board: how many helpers there are, then their mailboxes.
COUNT, MAILBOXES, MAILBOX_WORDS = 0, 8, 8
AWAY = -1


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def _load(typing: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_word(builder, values[0]), "seq_cst", 8)

    return types.intp(types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _store(typing: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], _word(builder, values[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _add(typing: Any, address: Any, value: Any) -> Any:
    """Returns what stood there before."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, values[0]), values[1], "seq_cst")

    return types.intp(types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _replace(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Whether `expected` stood there, and `value` does now."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address, expected, value = values
        result = builder.cmpxchg(_word(builder, address), expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.intp, types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _rest(typing: Any) -> Any:
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


_BYTES, _TOLD = ir.IntType(8).as_pointer(), excinfo_ptr_t
_RANGE = ir.FunctionType(ir.IntType(32), [_BYTES, _TOLD.as_pointer(), _I64, _I64, _I64])
"""A kernel with its arguments in memory: those, where an exception is told, who calls, first and last task."""
_LEAD = ir.FunctionType(ir.IntType(32), [_I64, _TOLD.as_pointer()])
"""`_lead`: the job, where an exception is told."""


def _failed(builder: Any, function: Any, *arguments: Any) -> Any:
    """Call a _RANGE or _LEAD; 1 if it raised, 0 if not."""
    status = builder.call(function, arguments)
    return builder.zext(builder.icmp_signed("!=", status, ir.Constant(status.type, 0)), _I64)


def _told(builder: Any) -> Any:
    return cgutils.alloca_once(builder, _TOLD, zfill=True)


@intrinsic  # type: ignore[untyped-decorator]
def _run(typing: Any, function: Any, arguments: Any, who: Any, begin: Any, end: Any) -> Any:
    """Call a kernel by its address; returns 0 if it did not fail."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function, arguments = builder.inttoptr(values[0], _RANGE.as_pointer()), builder.inttoptr(values[1], _BYTES)
        return _failed(builder, function, arguments, _told(builder), *values[2:])

    return types.intp(types.intp, types.intp, types.intp, types.intp, types.intp), codegen


@routine
def cut(left: int, threads: int, least: int) -> int:
    """Tasks of the next range: two thirds of a thread's part of what is left, but at least `least` if there are."""
    return min(left, max(least, -(-2 * left // (3 * threads))))


@routine
def _work(job: int, who: int) -> None:
    """Take ranges of tasks until none is left."""
    threads, least, tasks = _load(job + 8 * HELPERS) + 1, _load(job + 8 * LEAST), _load(job + 8 * _TASKS)
    while True:
        begin = _load(job + 8 * _NEXT)
        if begin >= tasks:
            return
        end = begin + cut(tasks - begin, threads, least)
        if _replace(job + 8 * _NEXT, begin, end):
            if _run(_load(job + 8 * _CALL), _load(job + 8 * _ARGUMENTS), who, begin, end):
                _store(job + 8 * _FAILED, 1)


@routine
def _lead(job: int) -> int:
    """Do all tasks, with helpers that are free; returns 0 if none failed."""
    _store(job + 8 * _NEXT, 0)
    _store(job + 8 * _ARRIVED, 0)
    _store(job + 8 * _FAILED, 0)
    board, helpers = _load(job + 8 * BOARD), _load(job + 8 * HELPERS)
    mailboxes, count = board + 8 * MAILBOXES, _load(board)
    offered, asked = 0, 0
    while asked < count and offered < helpers:
        if _replace(mailboxes + asked * 8 * MAILBOX_WORDS, 0, job):
            offered += 1
        asked += 1
    _work(job, 0)
    if offered:
        for i in range(asked):
            mailbox = mailboxes + i * 8 * MAILBOX_WORDS
            if not _replace(mailbox, job, 0):
                while _load(mailbox) == job + 1:
                    _rest()
    return _load(job + 8 * _FAILED)


@kernel
def serve(board: Any, number: int, looks: int) -> None:
    """Work on what is offered to helper `number`, until it has looked so often for nothing."""
    mailbox = board.ctypes.data + 8 * (MAILBOXES + number * MAILBOX_WORDS)
    look = 0
    while True:
        job = _load(mailbox)
        if job != 0:
            if _replace(mailbox, job, job + 1):
                _work(job, 1 + _add(job + 8 * _ARRIVED, 1))
                _store(mailbox, 0)
            look = 0
        elif look < looks:
            look += 1
            _rest()
        elif _replace(mailbox, 0, AWAY):
            return



def _outlined(builder: Any, form: Any, name: str) -> tuple[Any, Any]:
    """A function of its own beside the one that is built, and what builds it."""
    function = ir.Function(builder.module, form, builder.module.get_unique_name(name))
    function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block())


@intrinsic  # type: ignore[untyped-decorator]
def _address_of_lead(typing: Any, lead: Any) -> Any:
    inner = lead.get_call_type(typing, (types.intp,), {})

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function, body = _outlined(builder, _LEAD, "lead")
        status = context.get_function(lead, inner)(body, [function.args[0]])
        body.ret(body.trunc(status, ir.IntType(32)))
        return builder.ptrtoint(function, _I64)

    return types.intp(lead), codegen


@kernel
def address_of_lead() -> int:
    """The address of `_lead`, for word LEAD of a job."""
    return _address_of_lead(_lead)


@intrinsic  # type: ignore[untyped-decorator]
def _share(typing: Any, body: Any, arguments: Any, team: Any, begin: Any, end: Any) -> Any:
    """Call `body` for the tasks, alone if `team` is 0, else with helpers; whether it failed."""
    inner = body.get_call_type(typing, (*arguments.types, types.intp, types.intp, types.intp), {})

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, given, team, begin, end = values
        function, inside = _outlined(builder, _RANGE, "range")
        loaded = inside.load(inside.bitcast(function.args[0], given.type.as_pointer()))
        elements = cgutils.unpack_tuple(inside, loaded, len(arguments.types))
        context.get_function(body, inner)(inside, [*elements, *function.args[2:]])
        inside.ret(ir.Constant(ir.IntType(32), 0))

        memory = builder.bitcast(cgutils.alloca_once_value(builder, given), _BYTES)
        result = cgutils.alloca_once(builder, _I64)
        alone = builder.icmp_signed("==", team, ir.Constant(_I64, 0))
        with builder.if_else(alone) as (then, otherwise):
            with then:
                first = ir.Constant(_I64, 0)
                builder.store(_failed(builder, function, memory, _told(builder), first, begin, end), result)
            with otherwise:
                words = _word(builder, team)
                for place, word in ((_CALL, function), (_ARGUMENTS, memory)):
                    builder.store(builder.ptrtoint(word, _I64), builder.gep(words, [ir.Constant(_I64, place)]))
                builder.store(end, builder.gep(words, [ir.Constant(_I64, _TASKS)]))
                lead = builder.inttoptr(builder.load(words), _LEAD.as_pointer())  # word LEAD
                builder.store(_failed(builder, lead, team, _told(builder)), result)
        return builder.load(result)

    return types.intp(body, arguments, types.intp, types.intp, types.intp), codegen


def shared(function: Any = None, *, fastmath: Any = False, allocates: bool = False) -> Any:
    """A kernel whose tasks threads share: its last parameters are who, begin, end.

    Python calls it with `team` in place of `who`: 0 for the calling thread alone, else the address of a job; then
    `begin` is 0. Inside, `who` is the number of the working thread within its team. A kernel can fail for want of
    memory only.
    """
    if function is None:
        return lambda f: shared(f, fastmath=fastmath, allocates=allocates)
    names = list(inspect.signature(function).parameters)
    if names[-3:] != ["who", "begin", "end"]:
        raise TypeError(f"{function.__name__}: a shared kernel's last parameters are who, begin and end, got {names}")
    fixed = ", ".join(names[:-3])
    scope = {"__name__": function.__module__, "body": routine(function, fastmath=fastmath, allocates=allocates), "share": _share}
    exec(f"def entry({fixed}, team, begin, end):\n  if share(body, ({fixed},), team, begin, end):\n    raise MemoryError", scope)
    return kernel(scope["entry"], source=function)
