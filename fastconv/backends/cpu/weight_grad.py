"""Weight gradient: dw[m, k] = Σ over outputs of gy[m, output] · x[output + off[k]].

Idea: the same gathered box of x as in correlate.py, and the same box of gy at the same pitch with zeros between its
rows; then both operands are contiguous in the flat position and `simd.inner` takes their products, 4 rows × 6 taps in
registers, one horizontal sum a box. Loop order: unit (box) → 6 taps → 4 rows → position. The first-level cache holds the
6 shifted rows of x, gy streams from the second. Cost: one FMA for each lane of (row, tap, output). Floor: the FMA rate.

The units of a batch are cut into a fixed number of slices, each summed in order into its own partial gradient, and the
partials are added in order: the cut depends on the shapes alone, so the threads cannot change a bit.

Zeros of gy between rows multiply positions of x that belong to other outputs, harmless unless x is infinite or NaN
there. A result that is not finite is therefore computed again by plain loops over the outputs alone (`exact`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.backends.cpu.gather import copy_strided, gather_box, gather_columns, zero_bytes
from fastconv.backends.cpu.host import kernel
from fastconv.backends.cpu.plan import Correlation, weight_grad_plan
from fastconv.backends.cpu.scratch import scratch
from fastconv.backends.cpu.simd import INNER_COLUMNS, INNER_COLUMNS_ONE_ROW, INNER_ROWS, inner, lanes_of
from fastconv.backends.cpu.threads import parallel_for
from fastconv.geometry import ConvGeometry

Array = npt.NDArray[Any]

_LANES4, _LANES8 = lanes_of(4), lanes_of(8)
_TAP_BLOCK = INNER_COLUMNS * INNER_COLUMNS_ONE_ROW  # a multiple of both tile widths
_COLUMN_VECTORS = 24
_PANEL_BYTES = 1 << 20
_PARTIAL_BYTES = 4 << 20
_MAX_SLICES = 16
_MIN_TASKS = 16
_NS_PER_FLOP = 0.012


@kernel
def _products(like: Any, rows: int, taps: int, a: int, a_stride: int, b: int, off: int, vectors: int, c: int, c_stride: int) -> None:
    """C[rows, taps] += A · B over `vectors` vectors of positions; rows and taps are padded to whole tiles."""
    size = like.itemsize
    if rows == 1:
        for k in range(0, taps, INNER_COLUMNS_ONE_ROW):
            inner(like, 1, INNER_COLUMNS_ONE_ROW, a, a_stride, b, off + 8 * k, vectors, c + k * size, c_stride)
        return
    for k in range(0, taps, INNER_COLUMNS):
        for m in range(0, rows, INNER_ROWS):
            at = c + (m * c_stride + k) * size
            inner(
                like, INNER_ROWS, INNER_COLUMNS, a + m * a_stride * size, a_stride, b, off + 8 * k, vectors, at, c_stride
            )


@kernel
def _exact_products(
    gy: Any, gy_at: int, gy_stride: int, x: Any, x_at: int, off: Any, partial: Any, to: int, stride: int, plan: Any, m_count: int,
    rows: int, columns: int,
) -> None:  # fmt: skip
    """The products of one box over its outputs alone, so that nothing between the rows is ever multiplied."""
    p = plan[0]
    for m in range(m_count):
        for k in range(p.count):
            total = partial[to + m * stride + k]
            for r in range(rows):
                for column in range(columns):
                    at = r * p.pitch + column
                    total += gy[gy_at + m * gy_stride + at] * x[x_at + off[k] + at]
            partial[to + m * stride + k] = total


@kernel
def _gather_gy(
    gy: Any, base: int, row_step: int, scratch: Any, to: int, stride: int, m_count: int, rows: int, columns: int, plan: Any
) -> None:
    """Rows of outputs of `m_count` channels, at the pitch of the box of x with zeros between them and behind."""
    p = plan[0]
    size = gy.itemsize
    for m in range(m_count):
        at = to + m * stride
        for r in range(rows):
            copy_strided(scratch, at, gy, base + m * row_step + r * p.outputs_w, 1, columns)
            at += columns
            zero = p.pitch - columns if r < rows - 1 else to + (m + 1) * stride - at
            zero_bytes(scratch.ctypes.data + at * size, zero * size)
            at += zero


@kernel
def weight_grad_boxes(
    gy: Any, x: Any, partial: Any, plan: Any, tables: Any, off: Any, scratch: Any, gy_stride: int, slices: int, exact: bool,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (slice of units, group, chunk of rows); partial is [slice][group][row][tap]."""
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    volume = p.depth * p.height * p.width
    outputs = p.outputs_d * p.outputs_h * p.outputs_w
    boxes = p.outputs_d * p.boxes_h * p.boxes_w
    units = x.size // (p.groups * p.channels * volume) * boxes
    tap_stride, padded_rows = off.size, partial.size // (slices * p.groups * off.size)
    x_size = p.channels * p.channel
    gy_to = x_size + lanes
    for task in range(begin, end):
        rest, chunk = divmod(task, p.chunks)
        s, g = divmod(rest, p.groups)
        m0 = p.rows * chunk // p.chunks // INNER_ROWS * INNER_ROWS
        m1 = p.rows * (chunk + 1) // p.chunks // INNER_ROWS * INNER_ROWS if chunk < p.chunks - 1 else p.rows
        if m0 == m1:
            continue
        padded = m1 - m0 if m1 - m0 == 1 else -(-(m1 - m0) // INNER_ROWS) * INNER_ROWS
        to = ((s * p.groups + g) * padded_rows + m0) * tap_stride
        for unit in range(units * s // slices, units * (s + 1) // slices):
            rest, bw = divmod(unit, p.boxes_w)
            rest, bh = divmod(rest, p.boxes_h)
            n, d = divmod(rest, p.outputs_d)
            h0, w0 = bh * p.box_h, bw * p.box_w
            rows, columns = min(p.box_h, p.outputs_h - h0), min(p.box_w, p.outputs_w - w0)
            image = n * p.groups + g
            gather_box(x, image * p.channels * volume, scratch, 0, plan, tables, d, h0, w0)
            zero_bytes(scratch.ctypes.data + x_size * size, lanes * size)
            base = (image * p.rows + m0) * outputs + (d * p.outputs_h + h0) * p.outputs_w + w0
            _gather_gy(gy, base, outputs, scratch, gy_to, gy_stride, m1 - m0, rows, columns, plan)
            for m in range(m1 - m0, padded):
                zero_bytes(scratch.ctypes.data + (gy_to + m * gy_stride) * size, gy_stride * size)
            if exact:
                _exact_products(
                    scratch, gy_to, gy_stride, scratch, 0, off, partial, to, tap_stride, plan, m1 - m0, rows, columns
                )
            else:
                vectors = -(-((rows - 1) * p.pitch + columns) // lanes)
                a, c = scratch.ctypes.data + gy_to * size, partial.ctypes.data + to * size
                _products(x, padded, p.count, a, gy_stride, scratch.ctypes.data, off.ctypes.data, vectors, c, tap_stride)


@kernel
def weight_grad_columns(
    gy: Any, x: Any, partial: Any, plan: Any, gy_plan: Any, positions: Any, origin: Any, off: Any, scratch: Any, chunk_channels: int,
    slices: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Tasks begin ≤ task < end of (slice of units, group, chunk of channels); a unit is a panel of exact columns."""
    p = plan[0]
    size = x.itemsize
    lanes = _LANES4 if size == 4 else _LANES8
    span = _COLUMN_VECTORS * lanes
    outputs = p.outputs_d * p.outputs_h * p.outputs_w
    total = gy.size // (p.groups * p.rows)
    units = -(-total // span)
    tap_stride, padded_rows = off.size, partial.size // (slices * p.groups * off.size)
    rows = p.rows if p.rows == 1 else -(-p.rows // INNER_ROWS) * INNER_ROWS
    gy_to = chunk_channels * p.taps * span
    for task in range(begin, end):
        rest, chunk = divmod(task, p.chunks)
        s, g = divmod(rest, p.groups)
        c0, c1 = chunk * chunk_channels, min((chunk + 1) * chunk_channels, p.channels)
        to = (s * p.groups + g) * padded_rows * tap_stride + c0 * p.taps
        for unit in range(units * s // slices, units * (s + 1) // slices):
            count = min(span, total - unit * span)
            gather_columns(x, g, scratch, 0, span, plan, positions, unit * span, count, c0, c1)
            gather_columns(gy, g, scratch, gy_to, span, gy_plan, origin, unit * span, count, 0, p.rows)
            for m in range(p.rows, rows):
                zero_bytes(scratch.ctypes.data + (gy_to + m * span) * size, span * size)
            taps = (c1 - c0) * p.taps
            a, c = scratch.ctypes.data + gy_to * size, partial.ctypes.data + to * size
            vectors = -(-count // lanes)
            _products(x, rows, taps, a, span, scratch.ctypes.data, off.ctypes.data, vectors, c, tap_stride)


def weight_gradient(gy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """The whole weight gradient; see contract.Backend.conv_weight_grad."""
    correlation = weight_grad_plan(geometry, x.itemsize)
    gw = np.zeros(geometry.weight_shape, x.dtype)
    if correlation.empty or not gy.size:
        return gw
    partial = _columns(gy, x, correlation) if correlation.small else _boxes(gy, x, correlation, exact=False)
    if not correlation.small and not np.isfinite(partial).all():
        partial = _boxes(gy, x, correlation, exact=True)
    shape = (geometry.out_channels, -1, len(correlation.kernel_taps))
    found = partial[:, : correlation.rows, : correlation.count].reshape(shape)
    gw.reshape(geometry.out_channels, -1, correlation.kernel_size)[:, :, correlation.kernel_taps] = found
    return gw


def _partial(correlation: Correlation, units: int, dtype: npt.DTypeLike) -> Array:
    """Zeros [slice][group][row][tap], rows and taps padded to whole tiles, with as many slices as memory allows."""
    rows = -(-correlation.rows // INNER_ROWS) * INNER_ROWS
    taps = (-(-correlation.count // _TAP_BLOCK)) * _TAP_BLOCK
    one = correlation.groups * rows * taps * np.dtype(dtype).itemsize
    slices = max(1, min(units, _MAX_SLICES, _PARTIAL_BYTES // one))
    return np.zeros((slices, correlation.groups, rows, taps), dtype)


def _with_chunks(correlation: Correlation, chunks: int) -> Array:
    plan: Array = correlation.plan.copy()
    plan[0]["chunks"] = chunks
    return plan


def _boxes(gy: Array, x: Array, correlation: Correlation, *, exact: bool) -> Array:
    p = correlation.plan[0]
    units = len(x) * correlation.boxes
    partial = _partial(correlation, units, x.dtype)
    slices, groups, _, taps = partial.shape
    plan = _with_chunks(correlation, max(1, min(-(-correlation.rows // INNER_ROWS), _MIN_TASKS // (slices * groups))))
    lanes = lanes_of(x.itemsize)
    length = int((p["box_h"] - 1) * p["pitch"] + p["box_w"])
    gy_stride = -(-length // lanes) * lanes
    rows = -(-correlation.rows // INNER_ROWS) * INNER_ROWS
    elements = correlation.box_elements + lanes + rows * gy_stride
    off = np.zeros(taps, np.int64)
    off[: correlation.count] = correlation.box_offsets
    flat_gy, flat_x, flat_partial = gy.reshape(-1), x.reshape(-1), partial.reshape(-1)

    def call(begin: int, end: int) -> None:
        memory = scratch(elements, x.dtype)
        weight_grad_boxes(
            flat_gy, flat_x, flat_partial, plan, correlation.tables, off, memory, gy_stride, slices, exact, begin, end
        )

    parallel_for(call, slices * groups * int(plan[0]["chunks"]), len(x) * correlation.flops * _NS_PER_FLOP)
    return _sum_slices(partial)


def _columns(gy: Array, x: Array, correlation: Correlation) -> Array:
    span = _COLUMN_VECTORS * lanes_of(x.itemsize)
    units = -(-len(x) * correlation.outputs // span)
    partial = _partial(correlation, units, x.dtype)
    slices, groups, _, taps = partial.shape
    channels, kernel_taps = correlation.count // len(correlation.kernel_taps), len(correlation.kernel_taps)
    # Whole blocks of taps, so that the padding of one chunk of channels is never inside the next.
    fit = _PANEL_BYTES // (kernel_taps * span * x.itemsize) // _TAP_BLOCK * _TAP_BLOCK
    chunk_channels = min(channels, max(_TAP_BLOCK, fit))
    plan = _with_chunks(correlation, -(-channels // chunk_channels))
    elements = (chunk_channels * kernel_taps + _TAP_BLOCK + correlation.rows + INNER_ROWS) * span
    off = np.arange(taps, dtype=np.int64) * span
    flat_gy, flat_x, flat_partial = gy.reshape(-1), x.reshape(-1), partial.reshape(-1)
    gy_plan, origin = _identity_plan(correlation), np.zeros((1, 3), np.int64)

    def call(begin: int, end: int) -> None:
        memory = scratch(elements, x.dtype)
        weight_grad_columns(
            flat_gy, flat_x, flat_partial, plan, gy_plan, correlation.positions, origin, off, memory, chunk_channels,
            slices, begin, end,
        )  # fmt: skip

    parallel_for(call, slices * groups * int(plan[0]["chunks"]), len(x) * correlation.flops * _NS_PER_FLOP)
    return _sum_slices(partial)


def _identity_plan(correlation: Correlation) -> Array:
    """The plan that gathers columns of the output gradient itself: one tap, no padding."""
    plan: Array = correlation.plan.copy()
    p = plan[0]
    p["channels"], p["taps"] = p["rows"], 1
    for size, name in (("depth", "d"), ("height", "h"), ("width", "w")):
        p[size], p[f"step_{name}"] = p[f"outputs_{name}"], 1
    return plan


def _sum_slices(partial: Array) -> Array:
    """The partial gradients added one after the other."""
    total: Array = partial[0]
    for one in partial[1:]:
        total += one
    return total
