"""Columns of a correlation: the source of single outputs side by side, across rows and samples, tap by tap.

Idea: the outputs of a panel are stretches of output rows. For each tap and channel the source of all stretches is laid
out in a line as long as the panel, by moves of whole vectors: what the last vector of a stretch holds too much, the
next stretch overwrites, and the zeros of the padding are moved like anything else. So no vector is masked, however
short the rows, and the moves of a tap are the same for all channels. The line then goes to the tiles. A panel that is
one stretch inside the source goes there directly.
Loop order: some channels → tap → channel → move. The lines stay in the first-level cache, the source of the next
channels is on its way. Floor: one read and one write of the source for each tap, where many output channels share it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.emitter import lanes_of
from fastconv.backends.cpu.gather_simd import move_vectors
from fastconv.backends.cpu.host import inlined, pointer, routine
from fastconv.backends.cpu.simd import clear, prefetch, take_every

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_VECTOR_BYTES = 4 * _LANES4
_TOGETHER = 4  # channels whose lines are laid out before they go to the tiles
_AHEAD = 12  # channels between asking for a source and reading it: far apart in memory, unforeseen by the hardware


@routine(allocates=True)  # type: ignore[untyped-decorator]
def gather_columns(
    x: Any, group: int, panel: Any, to: int, width: int, tile_step: int, plan: Any, positions: Any, first: int, count:
    int, t0: int, t1: int, c0: int, c1: int, tap_step: int, channel_step: int,
) -> None:  # fmt: skip
    """Gather `count` outputs from number `first` on (sample-major) into tiles [row][width] of panel[to:].

    Taps t0 ≤ t < t1 and channels c0 ≤ c < c1 of the group, in row (t - t0) · tap_step + (c - c0) · channel_step. Tiles
    lie `tile_step` apart; columns that fill the last one and positions outside the source are 0.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    filled = -(-count // width) * width
    pitch = filled + 2 * lanes
    # In one array with the lines, which live as long as the moves: of the zeros nothing but their address is kept.
    lines = np.empty(_TOGETHER * pitch + 4 * lanes, x.dtype)
    zeros = pointer(lines, _TOGETHER * pitch)
    for v in range(4):
        clear(x, zeros + v * lanes * size)
    moves, numbers = _moves(plan, x, zeros, group, c0, first, count, filled, positions, t0, t1)
    _gather(
        x, pointer(panel, to), moves, numbers, lines, pitch, filled // width, width // lanes, tile_step * size,
        p.step_w, p.depth * p.height * p.width * size, c1 - c0, tap_step * width * size, channel_step * width * size,
    )  # fmt: skip


@routine
def _gather(
    x: Any, panel: int, moves: Any, numbers: Any, lines: Any, pitch: int, tiles: int, vectors: int, tile_step: int,
    step: int, volume: int, channels: int, tap_step: int, channel_step: int,
) -> None:  # fmt: skip
    """All channels, `volume` bytes each, by the moves of their taps to rows of tiles at address `panel`.

    Tables and lines come from `gather_columns`: what makes no array counts no references.
    """
    together = channels if len(numbers) == 1 and numbers[0] == _ONE_RUN else _TOGETHER
    for c in range(0, channels, together):
        some = min(together, channels - c)
        for t in range(len(numbers)):
            row = panel + t * tap_step + c * channel_step
            if numbers[t] == _ONE_RUN:
                source = moves[t, 0, _FROM] + c * volume
                _copy_run(x.dtype.type(0), source, volume, some, row, channel_step, tiles, vectors, tile_step)
                continue
            for i in range(some):
                _lay_out(x, moves[t], numbers[t], lines, i * pitch, step, (c + i) * volume, volume)
            for i in range(some):
                _to_tiles(x, pointer(lines, i * pitch), row + i * channel_step, tiles, vectors, tile_step, 0)


@routine
def _copy_run(
    zero: Any, source: int, volume: int, channels: int, row: int, channel_step: int, tiles: int, vectors: int,
    tile_step: int,
) -> None:  # fmt: skip
    """Columns that lie behind each other, from address `source` on, of all channels to rows `channel_step` apart."""
    for _ in range(channels):
        _to_tiles(zero, source, row, tiles, vectors, tile_step, _AHEAD * volume)
        source += volume
        row += channel_step


@inlined
def _to_tiles(like: Any, line: int, row: int, tiles: int, vectors: int, tile_step: int, ahead: int) -> None:
    """The vectors at address `line` to the row at address `row` of each tile, and ask for those `ahead` ≠ 0 behind."""
    for _ in range(tiles):
        at, left = row, vectors
        while left >= 3:
            _copy(like, at, line, ahead)
            _copy(like, at + _VECTOR_BYTES, line + _VECTOR_BYTES, ahead)
            _copy(like, at + 2 * _VECTOR_BYTES, line + 2 * _VECTOR_BYTES, ahead)
            at, line, left = at + 3 * _VECTOR_BYTES, line + 3 * _VECTOR_BYTES, left - 3
        while left > 0:
            _copy(like, at, line, ahead)
            at, line, left = at + _VECTOR_BYTES, line + _VECTOR_BYTES, left - 1
        row += tile_step


@inlined
def _copy(like: Any, to: int, source: int, ahead: int) -> None:
    """A vector, whose successor is asked for."""
    if ahead != 0:
        prefetch(like, source + ahead)
    take_every(like, 1, 0, to, source)


@inlined
def _lay_out(x: Any, moves: Any, number: int, lines: Any, line: int, step: int, channel: int, volume: int) -> None:
    """The moves of a tap to lines[line:], for the channel of `volume` bytes that lies `channel` bytes after the first.

    Behind its moves stands the end of what they read.
    """
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    place, ahead = pointer(lines, line), _AHEAD * volume
    if step == 1 and moves[number, _FROM] + channel <= pointer(x, x.size):
        move_vectors(x, 1, pointer(moves), number, place, channel, ahead)
    elif step == 2 and moves[number, _FROM] + channel <= pointer(x, x.size):
        move_vectors(x, 2, pointer(moves), number, place, channel, ahead)
    elif step == 4 and moves[number, _FROM] + channel <= pointer(x, x.size):
        move_vectors(x, 4, pointer(moves), number, place, channel, ahead)
    else:
        for n in range(number):
            at, first = line + moves[n, _TO] // size, (moves[n, _FROM] + channel - pointer(x)) // size
            for j in range(lanes):
                inside = moves[n, _MASK] != 0 and first + j * step < x.size
                lines[at + j] = x[first + j * step] if inside else x.dtype.type(0)


_TO, _FROM, _MASK = range(3)  # of a move, see `move_vectors`
_ONE_RUN = -1  # instead of a number: the moves take whole vectors that lie behind each other


@routine(allocates=True)  # type: ignore[untyped-decorator]
def _moves(
    plan: Any, x: Any, zeros: int, group: int, c0: int, first: int, count: int, filled: int, positions: Any, t0: int,
    t1: int,
) -> Any:  # fmt: skip
    """The moves of each tap for channel c0, and their numbers: [tap][move], the end of what they read behind the last.

    Outputs from number `first` on, `count` of them, then zeros up to `filled` columns, from address `zeros`.
    """
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    most = filled // lanes + 3 * (count // p.outputs_w + 2) + 1
    moves, numbers = np.empty((t1 - t0, most, 3), np.int64), np.zeros(t1 - t0, np.int64)
    ends = np.zeros(t1 - t0, np.int64)
    sample, rest = divmod(first, p.outputs_d * p.outputs_h * p.outputs_w)
    d, rest = divmod(rest, p.outputs_h * p.outputs_w)
    h, w = divmod(rest, p.outputs_w)
    column = 0
    while column < count:
        n = min(p.outputs_w - w, count - column)
        long = n if column + n < count else filled - column
        channel = ((sample * p.groups + group) * p.channels + c0) * p.depth
        for t in range(t1 - t0):
            z, y = d * p.step_d + positions[t0 + t, 0], h * p.step_h + positions[t0 + t, 1]
            v = w * p.step_w + positions[t0 + t, 2]
            before, behind = 0, 0
            if 0 <= z < p.depth and 0 <= y < p.height:
                before, behind = _inside(v, p.step_w, p.width, n)
            source = pointer(x, ((channel + z) * p.height + y) * p.width + v)
            number = _put(moves[t], numbers[t], column, before, zeros, 0, lanes, size)
            from_ = source + before * p.step_w * size
            number = _put(moves[t], number, column + before, behind - before, from_, p.step_w, lanes, size)
            if behind > before:
                ends[t] = max(ends[t], from_ + -(-(behind - before) // lanes) * lanes * p.step_w * size)
            numbers[t] = _put(moves[t], number, column + behind, long - behind, zeros, 0, lanes, size)
        column += n
        w = 0
        sample, d, h = row_after(p, sample, d, h)
    for t in range(t1 - t0):
        moves[t, numbers[t], _FROM] = ends[t]
        if p.step_w == 1 and filled == count and _one_run(moves[t], numbers[t], filled, lanes, size):
            numbers[t] = _ONE_RUN
    return moves, numbers


@inlined
def _one_run(moves: Any, number: int, filled: int, lanes: int, size: int) -> bool:
    """Whether moves of stride 1 fill the columns with what lies in `filled` elements behind each other."""
    whole = number * lanes == filled
    for n in range(number):
        whole = whole and moves[n, _MASK] != 0 and moves[n, _FROM] == moves[0, _FROM] + n * lanes * size
    return whole


@inlined
def _inside(start: int, step: int, size: int, count: int) -> tuple[int, int]:
    """first, last: of `count` positions start + j · step, first ≤ j < last are inside 0 … size - 1."""
    if step == 1:  # most often, and without a division
        first, last = max(0, -start), min(count, size - start)
    else:
        first, last = max(0, -(start // step)), min(count, -((start - size) // step))
    first = min(first, count)
    return first, max(first, last)


@inlined
def _put(moves: Any, number: int, column: int, count: int, source: int, step: int, lanes: int, size: int) -> int:
    """Moves of `count` positions from address `source` on, `step` apart, from move `number` on; step 0: zeros."""
    for j in range(0, count, lanes):
        moves[number, _TO], moves[number, _FROM] = (column + j) * size, source + j * step * size
        moves[number, _MASK] = -1 if step else 0
        number += 1
    return number


@inlined
def row_after(p: Any, sample: int, d: int, h: int) -> tuple[int, int, int]:
    """The row of outputs behind row h of plane d."""
    h += 1
    if h == p.outputs_h:
        h = 0
        d += 1
        if d == p.outputs_d:
            d = 0
            sample += 1
    return sample, d, h
