"""The transforms of Winograd's filters as LLVM vectors, and their adjoint: lanes are filters (winograd_simd.py).

ROWS filters of a channel are transposed in registers, transformed, and stored side by side, as the products read them.
Cost: a load of each tap and a store of each frequency of each phase of the steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.host import LINE_BYTES
from fastconv.backends.cpu.simd import ROWS
from fastconv.backends.cpu.winograd_forms import phase_of, phases_of, spread_of, values_of
from fastconv.backends.cpu.winograd_simd import (
    FILTER_LANES,
    at_points,
    both_sides,
    frequencies_at,
    from_points,
    matrices_of,
    store_frequencies,
    transposed,
)

_AHEAD = 2 * LINE_BYTES // 4  # elements from a filter that is stored to those whose lines are asked for
_SOURCE_AHEAD = 8 * LINE_BYTES // 4  # elements from the taps of a filter to those that are asked for

_I32 = ir.IntType(32)


def _taps_of_eight(emit: Emitter, rows: list[Any], count: int) -> list[Any]:
    """Tap t of eight filters, whose taps begin at `rows`, in the lanes of vector t: transposed in registers."""
    taps: list[Any] = []
    undefined: Any = ir.Constant(emit.vector, ir.Undefined)
    while len(taps) < count:
        first, left = emit.index(len(taps)), count - len(taps)
        inside = ir.Constant(ir.VectorType(ir.IntType(1), FILTER_LANES), [t < left for t in range(FILTER_LANES)])
        places = [emit.at(row, first) for row in rows]
        some = [emit.load(p) if left >= FILTER_LANES else emit.load_masked(p, inside, emit.zero) for p in places]
        taps += emit.interleaved(some + [undefined] * (FILTER_LANES - ROWS))
    return taps[:count]


def _eight_of_two(half: Emitter, rows: list[list[Any]], count: int) -> list[Any]:
    """The same for eight filters of each of two channels, the second's behind the first's in the lanes.

    The rounds of a transposition of 8×8 in both halves of the vectors at once. Taps from eight on are loaded so that
    the last lane has the last tap: no load is masked.
    """
    builder = half.builder
    both = ir.Constant(ir.VectorType(_I32, 2 * FILTER_LANES), list(range(2 * FILTER_LANES)))

    def mixed(a: Any, b: Any, mix: list[int]) -> Any:  # lanes from 8 on are those of b, the same in both halves
        lanes = [m % 8 + 16 * (m // 8) + 8 * upper for upper in (0, 1) for m in mix]
        return builder.shuffle_vector(a, b, ir.Constant(both.type, lanes))

    def round_of(pairs: list[tuple[Any, Any]], *mixes: list[int]) -> list[Any]:
        return [mixed(a, b, mix) for a, b in pairs for mix in mixes]

    taps: list[Any] = []
    while len(taps) < count:
        first = min(len(taps), max(0, count - FILTER_LANES))
        inside = ir.Constant(ir.VectorType(ir.IntType(1), FILTER_LANES), [t < count for t in range(FILTER_LANES)])
        places = [[half.at(row, half.index(first)) for row in channel] for channel in rows]
        loaded = [
            [half.load(p) if count >= FILTER_LANES else half.load_masked(p, inside, half.zero) for p in channel]
            for channel in places
        ]
        r = [builder.shuffle_vector(lower, upper, both) for lower, upper in zip(*loaded)]
        t = round_of(list(zip(r[::2], r[1::2])), [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])
        pairs = [(t[i], t[i + 2]) for i in (0, 1, 4, 5)]
        s = round_of(pairs, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
        low = [mixed(s[i], s[i + 4], [0, 1, 2, 3, 8, 9, 10, 11]) for i in range(4)]
        high = [mixed(s[i], s[i + 4], [4, 5, 6, 7, 12, 13, 14, 15]) for i in range(4)]
        taps += [*low, *high][len(taps) - first :]
    return taps[:count]


def _filter_transform(
    emit: Emitter, form: Any, taps_of: Any, turned: bool, target: Any, stride: Any, apart: Any
) -> None:
    """G g Gᵀ of the taps that `taps_of` their number gives, last first if `turned`, of each phase of the steps.

    To target[stride · frequency + apart · phase:]. The lines that the next channels write are asked for: so many
    streams at once are unforeseen by the hardware. Only gradients turn filters; their input has no step.
    """
    if turned and phases_of(form) > 1:
        return
    phases = phases_of(form) * spread_of(form)
    height, width = matrices_of(form)
    taps_h, taps_w = (len(axis[0]) for axis in form)
    steps_h, steps_w = (len(axis[2]) * len(axis[3]) for axis in form)
    taps = taps_of(taps_h * taps_w)[:: -1 if turned else 1]
    filters = [taps[i * taps_w : (i + 1) * taps_w] for i in range(taps_h)]
    down, across = values_of(form)
    for number in range(phases):
        first_h, first_w, kind = phase_of(form, number)
        place = emit.at(target, emit.builder.mul(apart, emit.index(number)))
        for i in range(down - kind // 2):
            for j in range(across - kind % 2):
                line = emit.builder.add(emit.builder.mul(stride, emit.index(across * i + j)), emit.index(_AHEAD))
                emit.prefetch(emit.at(place, line), write=True)
        of_phase = [row[first_w::steps_w] for row in filters[first_h::steps_h]]
        values = both_sides(emit, at_points, height.filter, width.filter, of_phase)
        # Behind a phase lies one that is there already.
        lanes = FILTER_LANES if phases == 1 or emit.lanes > FILTER_LANES else ROWS
        store_frequencies(emit, place, stride, values, across, lanes)


@intrinsic(prefer_literal=True)
def filter_transform(  # type: ignore[no-untyped-def]
    typing_context, like, form, turned, source, row_step, target, stride, apart
):
    """ROWS filters, the taps of filter m from source[m · row_step] on, to target[stride · frequency + m].

    `turned` ones have their last tap there. Lanes are filters; FILTER_LANES elements are written for each frequency of
    each phase of the steps, which lie `apart`.
    """
    signature = types.void(like, form, turned, *[types.intp] * 5)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0], FILTER_LANES)
        source, row_step, target, stride, apart = args[3:]
        source, target = emit.pointer(source), emit.pointer(target)
        rows = [emit.at(source, builder.mul(row_step, emit.index(m))) for m in range(ROWS)]
        taps_of = partial(_taps_of_eight, emit, rows)
        _filter_transform(emit, form, taps_of, turned.literal_value, target, stride, apart)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def filter_transform_pair(  # type: ignore[no-untyped-def]
    typing_context, like, form, turned, source, row_step, channel_step, target, stride, apart
):
    """`filter_transform` of two channels, whose transforms follow each other: half the instructions, whole lines.

    For vectors of 16 lanes and ROWS 8.
    """
    signature = types.void(like, form, turned, *[types.intp] * 6)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit, half = (Emitter(builder, signature.args[0], n * FILTER_LANES) for n in (2, 1))
        source, row_step, channel_step, target, stride, apart = args[3:]
        source, target = emit.pointer(source), emit.pointer(target)
        channels = source, emit.at(source, channel_step)
        rows = [[emit.at(c, builder.mul(row_step, emit.index(m))) for m in range(ROWS)] for c in channels]
        for row in rows[0]:  # as many streams as rows, which the hardware follows too late if they come from memory
            emit.prefetch(emit.at(row, emit.index(_SOURCE_AHEAD)))
        taps_of = partial(_eight_of_two, half, rows)
        _filter_transform(emit, form, taps_of, turned.literal_value, target, stride, apart)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def filter_gradient(typing_context, like, form, source, stride, target):  # type: ignore[no-untyped-def]
    """Gradients of frequencies at source[stride · frequency:] to those of the filters: the adjoint of G g Gᵀ.

    Lanes are filters, which follow each other at the target, with their taps in order.
    """
    signature = types.void(like, form, *[types.intp] * 3)
    height, width = (transposed(axis.filter) for axis in matrices_of(form))

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = Emitter(builder, signature.args[0])
        source, stride, target = args[2:]
        source, target = emit.pointer(source), emit.pointer(target)
        values = frequencies_at(emit, source, stride, len(height[0]), len(width[0]))
        taps = [tap for row in both_sides(emit, from_points, height, width, values) for tap in row]
        for number, vector in enumerate(emit.interleaved(taps)):
            emit.store(vector, emit.at(target, emit.index(number * emit.lanes)))
        return context.get_dummy_value()

    return signature, codegen
