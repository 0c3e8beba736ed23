"""How threads share the tasks of a kernel: in native code, without the GIL, found and done within a microsecond.

The thread that leads a team offers its job to helpers that are awake; then all take ranges of tasks until none is left.
Ranges become ever smaller (guided self-scheduling, Polychronopoulos and Kuck 1987): who is held up on a shared core
keeps the others waiting for no more than a small one. What a task computes never depends on how the range was cut, so
neither the number of threads nor the timing can change a bit of the result.

All is said by words of 64 bits in memory that Python owns (threads.py); those that different threads write lie on lines
of the cache of their own. A helper's mailbox holds 0 while it looks for work, AWAY while it sleeps, or the address of a
job: as it is when offered, + _LATE when offered to one that is away but may be on its way, + _TAKEN while it works. The
leader takes back what nobody took, and waits for those who work: then nobody knows of its job any more.
"""

from __future__ import annotations

import inspect
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.callconv import excinfo_ptr_t
from numba.extending import intrinsic

from fastconv.backends.cpu.atomics import add, load, replace, rest, store, word_at
from fastconv.backends.cpu.host import Function, kernel, routine
from fastconv.backends.threads import AWAY, BOARD, COUNT, FIRST, HELPERS, LEAD, LEAST, MAILBOX_WORDS, MAILBOXES

_I64 = ir.IntType(64)
_CALL, _ARGUMENTS, _TASKS, _NEXT, _ARRIVED, _FAILED = 5, 6, 7, 8, 16, 17
"""Words of a job beyond those that Python writes: the kernel, its arguments and tasks; the first task that is left; how
many helpers have come; whether one has failed."""
_TAKEN, _LATE = 1, 2


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
    threads, least = load(job + 8 * HELPERS) + 1, load(job + 8 * LEAST)
    first, tasks = load(job + 8 * FIRST), load(job + 8 * _TASKS)
    while True:
        begin = load(job + 8 * _NEXT)
        if begin >= tasks:
            return
        end = begin + cut((first if begin < first else tasks) - begin, threads, least)
        if not replace(job + 8 * _NEXT, begin, end):
            continue  # another thread was faster
        if _run(load(job + 8 * _CALL), load(job + 8 * _ARGUMENTS), who, begin, end):
            store(job + 8 * _FAILED, 1)


@routine
def _lead(job: int) -> Any:
    """Do all tasks, with helpers that are free; returns 0 if none failed."""
    store(job + 8 * _NEXT, 0)
    store(job + 8 * _ARRIVED, 0)
    store(job + 8 * _FAILED, 0)
    board, helpers = load(job + 8 * BOARD), load(job + 8 * HELPERS)
    mailboxes, count = board + 8 * MAILBOXES, load(board + 8 * COUNT)
    offered, asked = 0, 0
    while asked < count and offered < helpers:
        mailbox = mailboxes + asked * 8 * MAILBOX_WORDS
        if replace(mailbox, 0, job) or replace(mailbox, AWAY, job + _LATE):
            offered += 1
        asked += 1
    _work(job, 0)
    if offered:
        for i in range(asked):
            mailbox = mailboxes + i * 8 * MAILBOX_WORDS
            if not replace(mailbox, job, 0) and not replace(mailbox, job + _LATE, AWAY):
                while load(mailbox) == job + _TAKEN:
                    rest()
    return load(job + 8 * _FAILED)


@kernel
def serve(board: Any, number: int, looks: int) -> None:
    """Work on what is offered to helper `number`, until it has looked so often for nothing."""
    mailbox = board.ctypes.data + 8 * (MAILBOXES + number * MAILBOX_WORDS)
    look = 0
    while True:
        offer = load(mailbox)
        if offer == AWAY:  # back again, or a late offer was withdrawn
            replace(mailbox, AWAY, 0)
        elif offer != 0:
            job = offer & ~_LATE
            if replace(mailbox, offer, job + _TAKEN):
                _work(job, 1 + add(job + 8 * _ARRIVED, 1))
                store(mailbox, 0)
            look = 0
        elif look < looks:
            look += 1
            rest()
        elif replace(mailbox, 0, AWAY):
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
def address_of_lead() -> Any:
    """The address of `_lead`, for word LEAD of a job."""
    return _address_of_lead(_lead)


def _lent(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """An argument as a kernel gets it: an array whose references nobody counts, for its owner waits.

    To count is to write: threads that slice the same array would wait for each other with every slice.
    """
    if not isinstance(kind, types.Array):
        return value
    array = context.make_array(kind)(context, builder, value)
    array.meminfo = ir.Constant(array.meminfo.type, None)
    return array._getvalue()


@intrinsic  # type: ignore[untyped-decorator]
def _share(typing: Any, body: Any, arguments: Any, team: Any, begin: Any, end: Any) -> Any:
    """Call `body` for the tasks, alone if `team` is 0, else with helpers; whether it failed."""
    inner = body.get_call_type(typing, (*arguments.types, types.intp, types.intp, types.intp), {})

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, given, team, begin, end = values
        function, inside = _outlined(builder, _RANGE, "range")
        loaded = inside.load(inside.bitcast(function.args[0], given.type.as_pointer()))
        elements = cgutils.unpack_tuple(inside, loaded, len(arguments.types))
        lent = [_lent(context, inside, kind, value) for kind, value in zip(arguments.types, elements)]
        context.get_function(body, inner)(inside, [*lent, *function.args[2:]])
        inside.ret(ir.Constant(ir.IntType(32), 0))

        memory = builder.bitcast(cgutils.alloca_once_value(builder, given), _BYTES)
        result = cgutils.alloca_once(builder, _I64)
        alone = builder.icmp_signed("==", team, ir.Constant(_I64, 0))
        with builder.if_else(alone) as (then, otherwise):
            with then:
                first = ir.Constant(_I64, 0)
                builder.store(_failed(builder, function, memory, _told(builder), first, begin, end), result)
            with otherwise:
                words = word_at(builder, team)
                for place, word in ((_CALL, function), (_ARGUMENTS, memory)):
                    builder.store(builder.ptrtoint(word, _I64), builder.gep(words, [ir.Constant(_I64, place)]))
                builder.store(end, builder.gep(words, [ir.Constant(_I64, _TASKS)]))
                lead = builder.load(builder.gep(words, [ir.Constant(_I64, LEAD)]))
                lead = builder.inttoptr(lead, _LEAD.as_pointer())
                builder.store(_failed(builder, lead, team, _told(builder)), result)
        return builder.load(result)

    return types.intp(body, arguments, types.intp, types.intp, types.intp), codegen


def shared(function: Function | None = None, *, fastmath: bool | set[str] = False, allocates: bool = False) -> Any:
    """A kernel whose tasks threads share: its last parameters are who, begin, end.

    Python calls it with a team's address in place of `who`, and then with all tasks from 0 on; address 0 stands for the
    calling thread alone. Inside, `who` is the number of the working thread within its team. What happens in a kernel
    cannot be told from there but for one thing: a MemoryError.
    """
    if function is None:
        return lambda f: shared(f, fastmath=fastmath, allocates=allocates)
    names = list(inspect.signature(function).parameters)
    if names[-3:] != ["who", "begin", "end"]:
        raise TypeError(f"{function.__name__}: a shared kernel's last parameters are who, begin and end, got {names}")
    fixed = "".join(f"{name}, " for name in names[:-3])
    # Written out by name: Numba would make a tuple of *arguments in Python, and find out its type, at every call.
    source = f"def entry({fixed}team, begin, end):\n if share(body, ({fixed}), team, begin, end):\n  raise MemoryError"
    scope = {"__name__": function.__module__, "share": _share}
    scope["body"] = routine(function, fastmath=fastmath, allocates=allocates)
    exec(source, scope)
    return kernel(scope["entry"], cached_as=function)
