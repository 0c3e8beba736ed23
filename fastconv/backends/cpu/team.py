"""How threads share the tasks of a kernel: in native code, without the GIL, found and done within a microsecond.

The thread that leads a team offers its job to helpers that are awake. Each thread has a part of the tasks of its own,
the same in every call, so that it finds in its caches what it has read and written there before: what another core has
written is far away, on some processors farther than memory. Who is done with its part takes from those of others.
Ranges of tasks become ever smaller (guided self-scheduling, Polychronopoulos and Kuck 1987): who is held up on a shared
core keeps the others waiting for no more than a small one. What a task computes never depends on how the range was cut,
so neither the number of threads nor the timing can change a bit of the result.

All is said by words of 64 bits in memory that Python owns (threads.py); those that different threads write lie on lines
of the cache of their own. A helper's mailbox holds 0 while it looks for work, AWAY while it sleeps, or the address of a
job and the helper's number in its team: as they are when offered, + _LATE when offered to one that is away but may be
on its way, + _TAKEN while it works. The leader takes back what nobody took, and waits for those who work: then nobody
knows of its job any more. Jobs of a team are numbered, so that nobody need clear what the last one left: a part whose
word has another number is whole.
"""

from __future__ import annotations

import inspect
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.callconv import excinfo_ptr_t
from numba.extending import intrinsic

from fastconv.backends.cpu.atomics import load, replace, rest, store, word_at
from fastconv.backends.cpu.host import Function, kernel, routine
from fastconv.backends.threads import (
    AWAY,
    BOARD,
    COUNT,
    FIRST,
    HELPERS,
    JOB_WORDS,
    LEAD,
    LEAST,
    MAILBOX_WORDS,
    MAILBOXES,
    PART_WORDS,
    PARTS,
)

_I64 = ir.IntType(64)
_CALL, _ARGUMENTS, _TASKS, NUMBER, _FAILED = 5, 6, 7, 8, 9
"""Words of a job beyond those that Python writes: the kernel, its arguments and tasks; its number; whether a helper has
failed. Of a part: how many of its first and other tasks are taken, with the number of the job."""
_TAKEN, _LATE = 1, 2
_TASK_BITS = 32  # of a part's words, below the number of the job
_TASKS_MASK, LAST_NUMBER = (1 << _TASK_BITS) - 1, (1 << 30) - 1
_WHO_BIT = 48  # of an offer; the address of a job has fewer bits, and ends with zeros
_JOB_MASK = (1 << _WHO_BIT) - 64


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
def cut(left: int, least: int, own: bool) -> int:
    """Tasks of the next range of a part of which so many are left: most of an own one, half of another's.

    But at least `least` if there are.
    """
    return min(left, max(least, (2 * left + 2) // 3 if own else (left + 1) // 2))


@routine
def part_begins(count: int, part: int, threads: int) -> int:
    """The first of so many tasks that belongs to a thread's part, or the first behind all."""
    return count * part // threads


@routine
def _work_on(job: int, who: int, first: int, tasks: int, word: int) -> None:
    """Take ranges of first ≤ task < tasks, the own part before others, until none is left."""
    threads, least, number = load(job + 8 * HELPERS) + 1, load(job + 8 * LEAST), load(job + 8 * NUMBER)
    for other in range(threads):
        part = (who + other) % threads
        at = job + 8 * (PARTS + part * PART_WORDS + word)
        begin = first + part_begins(tasks - first, part, threads)
        left = first + part_begins(tasks - first, part + 1, threads) - begin
        while True:
            seen = load(at)
            taken = seen & _TASKS_MASK if seen >> _TASK_BITS == number else 0
            if taken >= left:
                break
            count = cut(left - taken, least, other == 0)
            if not replace(at, seen, number << _TASK_BITS | taken + count):
                continue  # another thread was faster
            if _run(load(job + 8 * _CALL), load(job + 8 * _ARGUMENTS), who, begin + taken, begin + taken + count):
                store(job + 8 * _FAILED, 1)


@routine
def _work(job: int, who: int) -> None:
    """Take ranges of tasks until none is left."""
    first, tasks = load(job + 8 * FIRST), load(job + 8 * _TASKS)
    if first:
        _work_on(job, who, 0, first, 0)
    _work_on(job, who, first, tasks, 1)


@routine
def _lead(job: int) -> Any:
    """Do all tasks, with helpers that are free; returns 0 if none failed."""
    board, helpers = load(job + 8 * BOARD), load(job + 8 * HELPERS)
    if load(job + 8 * NUMBER) == LAST_NUMBER:
        for word in range(PARTS, JOB_WORDS):
            store(job + 8 * word, 0)
        store(job + 8 * NUMBER, 0)
    store(job + 8 * NUMBER, load(job + 8 * NUMBER) + 1)
    store(job + 8 * _FAILED, 0)
    mailboxes, count = board + 8 * MAILBOXES, load(board + 8 * COUNT)
    offered, asked = 0, 0
    while asked < count and offered < helpers:
        mailbox, offer = mailboxes + asked * 8 * MAILBOX_WORDS, job + (offered + 1 << _WHO_BIT)
        if replace(mailbox, 0, offer) or replace(mailbox, AWAY, offer + _LATE):
            offered += 1
        asked += 1
    _work(job, 0)
    if offered:
        for i in range(asked):
            mailbox = mailboxes + i * 8 * MAILBOX_WORDS
            while True:
                offer = load(mailbox)
                if offer == AWAY or offer & _JOB_MASK != job:
                    break
                if offer & _TAKEN:
                    rest()
                elif replace(mailbox, offer, AWAY if offer & _LATE else 0):
                    break
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
            job = offer & _JOB_MASK
            if replace(mailbox, offer, offer & ~_LATE | _TAKEN):
                _work(job, offer >> _WHO_BIT)
                store(mailbox, 0)
            look = 0
        elif look < looks:
            look += 1
            rest()
        elif replace(mailbox, 0, AWAY):
            return


@kernel
def wake(board: Any, number: int) -> bool:
    """Let helper `number` look for work again; whether it has slept, and nobody else has called it."""
    return bool(replace(board.ctypes.data + 8 * (MAILBOXES + number * MAILBOX_WORDS), AWAY, 0))


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
