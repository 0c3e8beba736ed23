"""Resampling and its adjoint: kernels/resampling.cu."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.device import primitive
from fastconv.backends.cuda.launch import THREADS, blocks_for
from fastconv.backends.cuda.module import TYPES, Template, size
from fastconv.backends.cuda.tables import Table
from fastconv.geometry import ResampleGeometry

Array = Any

_RESAMPLE = Template("resampling.cu", "resample", product(TYPES.values()))

_RUN = np.dtype([("first", np.int32), ("taps", np.int32), ("weights", np.int64)])
"""`Run` of the kernel."""

_AXES = np.dtype([("in", np.int32, 3), ("out", np.int32, 3), ("runs", np.int64, 3)])
"""`Axes` of the kernel."""


@primitive
def resample(x: Array, geometry: ResampleGeometry) -> Array:
    """See contract.Backend.resample."""
    y = platform.current().xp.empty((*x.shape[:2], *geometry.out_spatial), x.dtype)
    axes, runs, weights = _tables(geometry, x.dtype == np.float64)
    tables = runs.on_device(), weights.on_device()
    _RESAMPLE(TYPES[x.dtype.name])(blocks_for(y.size), (THREADS,), x, y, size(y), axes, *tables)
    return y


@lru_cache(maxsize=64)
def _tables(geometry: ResampleGeometry, double: bool) -> tuple[Any, Table, Table]:
    """The axes, their runs and the weights in the type of the sums, as the kernel takes them."""
    axes, runs, weights = np.zeros((), _AXES), [], []
    missing = 3 - len(geometry.axes)
    axes["in"], axes["out"] = (1,) * missing + geometry.spatial, (1,) * missing + geometry.out_spatial
    runs.append(np.array([(0, 1, 0)], _RUN))  # of the missing axes
    weights.append(np.ones(1))
    for axis, taps in enumerate(geometry.axes, start=missing):
        axes["runs"][axis] = sum(map(len, runs))
        own = np.zeros(taps.outputs, _RUN)
        own["first"], own["taps"] = taps.first, np.diff(taps.offsets)
        own["weights"] = taps.offsets[:-1] + sum(map(len, weights))
        runs.append(own)
        weights.append(taps.weights)
    return axes, Table(np.concatenate(runs)), Table(np.concatenate(weights).astype("float64" if double else "float32"))
