"""The geometry of a resampling: which inputs every output weighs, axis by axis, with all argument checks.

Resampling is separable: along one axis an output is a weighted sum of a few neighbouring inputs. The table of an axis
is computed once for its sizes, in exact integer arithmetic where they alone count, else in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import floor, isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from fastconv.geometry.arguments import AXES, LARGEST, for_axes, per_axis
from fastconv.geometry.checks import check_volume, pool_rank

RANK_OF_MODE = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}
"""The modes for inputs of one rank; the others take any."""

MODES = ("nearest", "nearest-exact", *RANK_OF_MODE, "area")

_CUBIC = -0.75  # a, the slope of the kernel at 1

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Taps:
    """One axis: output o is Σ weights[k] · input[first[o] + k − offsets[o]] over offsets[o] ≤ k < offsets[o + 1].

    From output to output neither the first tap nor the last one ever goes back, so that the outputs which weigh an
    input are neighbours too, and the adjoint is a table of the same kind. There outputs may have no taps: they are 0.
    """

    inputs: int
    first: Array  # int64, one for each output
    offsets: Array  # int64, and one more
    weights: Array  # float64

    @property
    def outputs(self) -> int:
        return len(self.first)

    @cached_property
    def ends(self) -> Array:
        """Behind the last tap of each output."""
        return self.first + np.diff(self.offsets)

    @cached_property
    def is_identity(self) -> bool:
        """Whether every output is the input of its number."""
        same = self.inputs == self.outputs == len(self.weights)
        return same and bool((self.weights == 1).all() and (self.first == np.arange(self.outputs)).all())

    @cached_property
    def transposed(self) -> Taps:
        """The adjoint: which outputs weigh an input, in their order, and by how much."""
        inputs = np.arange(self.inputs)
        first = np.searchsorted(self.ends, inputs, "right")
        counts = np.maximum(np.searchsorted(self.first, inputs, "right") - first, 0)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        owner = np.repeat(inputs, counts)
        output = first[owner] + np.arange(offsets[-1]) - offsets[owner]
        weights = self.weights[self.offsets[output] + owner - self.first[output]]
        return Taps(self.outputs, first, offsets, weights)


@dataclass(frozen=True, eq=False)
class ResampleGeometry:
    """A resampling of rank 1, 2 or 3, each channel for itself: a table for each axis. Make one with `interpolation`."""

    axes: tuple[Taps, ...]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Input sizes."""
        return tuple(axis.inputs for axis in self.axes)

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Output sizes."""
        return tuple(axis.outputs for axis in self.axes)

    @cached_property
    def transposed(self) -> ResampleGeometry:
        """The adjoint, from outputs to inputs."""
        return ResampleGeometry(tuple(axis.transposed for axis in self.axes))


def interpolation(
    op: str,
    input_shape: tuple[int, ...],
    size: Any,
    scale_factor: Any,
    mode: Any,
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> ResampleGeometry:
    """The geometry of `op` on input (N, C, *S), after all checks.

    An axis follows its `scale_factor` unless that is recomputed, "area" is wanted or the axis keeps its size, as in
    PyTorch (where "bicubic" follows it then, too); else the ratio of its sizes.

    Raises TypeError for arguments of a wrong kind, ValueError for wrong numbers, unknown modes and arguments that
    exclude each other.
    """
    size, scale_factor = (tuple(given) if isinstance(given, list) else given for given in (size, scale_factor))
    arguments = size, scale_factor, mode, align_corners, recompute_scale_factor
    known = all(map(_is_key, arguments))
    return (_interpolation_kept if known else _interpolation)(op, input_shape, *arguments)


def _is_key(value: object) -> bool:
    """Whether a cache that tells the types of its keys apart may have the value: it does not look into tuples."""
    if type(value) is tuple:
        return all(type(entry) in (int, float) for entry in value)
    return type(value) in (int, float, bool, str, type(None))


def _interpolation(
    op: str,
    input_shape: tuple[int, ...],
    size: Any,
    scale_factor: Any,
    mode: Any,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
) -> ResampleGeometry:
    rank = pool_rank(op, input_shape)
    _check_mode(op, input_shape, mode, align_corners)
    spatial = input_shape[2:]
    scales: tuple[float | None, ...] = (None,) * rank
    if size is not None and scale_factor is not None:
        raise ValueError(f"{op}: size={size!r} and scale_factor={scale_factor!r} exclude each other; give one of them")
    if size is not None:
        if recompute_scale_factor:
            raise ValueError(
                f"{op}: recompute_scale_factor=True goes with scale_factor, but size={size!r} is given; leave it out"
            )
        sizes = per_axis(op, "size", size, rank, 1)
    elif scale_factor is not None:
        factors = _factors(op, scale_factor, rank)
        sizes = _scaled(op, spatial, factors)
        if not recompute_scale_factor and mode != "area":
            axes = zip(factors, spatial, sizes)
            scales = tuple(f if _counts(f, length, outputs, mode) else None for f, length, outputs in axes)
    else:
        raise ValueError(f"{op}: either size or scale_factor must be given, got neither; e.g. scale_factor=2")
    check_volume(op, (*input_shape[:2], *sizes))
    return _of(spatial, sizes, scales, mode, bool(align_corners))


_interpolation_kept = lru_cache(maxsize=128, typed=True)(_interpolation)


def _counts(factor: float, length: int, outputs: int, mode: str) -> bool:
    """Whether an axis follows its scale factor: not where that is the ratio of its sizes, nor where it is copied."""
    return length * factor != outputs and (length != outputs or mode == "bicubic")


def _scaled(op: str, spatial: tuple[int, ...], scales: tuple[float, ...]) -> tuple[int, ...]:
    sizes = tuple(floor(min(length * scale, LARGEST)) for length, scale in zip(spatial, scales))
    for name, length, scale, wanted in zip(AXES[len(spatial)], spatial, scales, sizes):
        if wanted < 1:
            raise ValueError(
                f"{op}: scale_factor {scale} leaves nothing of the {name} {length}; {1 / length:.4g} leaves 1"
            )
    return sizes


def _check_mode(op: str, input_shape: tuple[int, ...], mode: Any, align_corners: bool | None) -> None:
    if mode not in MODES:
        known = ", ".join(f'"{name}"' for name in MODES[:-1])
        raise ValueError(f'{op}: mode must be {known} or "{MODES[-1]}", got {mode!r}')
    rank = len(input_shape) - 2
    needed = RANK_OF_MODE.get(mode, rank)
    if needed != rank:
        fitting = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
        raise ValueError(
            f'{op}: mode "{mode}" needs an input with {needed + 2} axes (N, C, {", ".join(AXES[needed])}) but it has '
            f'{rank + 2} (input shape {input_shape}); mode "{fitting}" takes such an input'
        )
    if align_corners is not None and mode not in RANK_OF_MODE:
        raise ValueError(
            f'{op}: align_corners must be None for mode "{mode}", got {align_corners!r}; '
            "it is for linear, bilinear, trilinear and bicubic"
        )


def _factors(op: str, value: Any, rank: int) -> tuple[float, ...]:
    """One positive number for all axes or one for each."""
    entries = for_axes(value, rank)
    wanted = f"{op}: scale_factor must be a number or a tuple of {rank} number{'s' if rank > 1 else ''}"
    if len(entries) != rank:
        raise ValueError(f"{wanted}, got {len(entries)}: {value!r}")
    if any(isinstance(entry, (bool, str, np.bool_)) or not hasattr(entry, "__float__") for entry in entries):
        raise TypeError(f"{wanted}, got {value!r}")
    factors = tuple(float(entry) for entry in entries)
    if not all(isfinite(factor) and factor > 0 for factor in factors):
        raise ValueError(f"{op}: scale_factor must be positive and finite, got {value!r}")
    return factors


# Few entries: those of a long input hold numbers for every output.
@lru_cache(maxsize=128)
def _of(
    spatial: tuple[int, ...],
    sizes: tuple[int, ...],
    scales: tuple[float | None, ...],
    mode: str,
    align_corners: bool,
) -> ResampleGeometry:
    axes = zip(spatial, sizes, scales)
    return ResampleGeometry(tuple(_taps(*axis, mode, align_corners) for axis in axes))


def _taps(size: int, outputs: int, scale: float | None, mode: str, align_corners: bool) -> Taps:
    """The table of an axis. Outside the input its first or its last element goes on."""
    if mode == "area":
        return _windows(size, outputs)
    whole, part, rest = _positions(size, outputs, scale, mode, align_corners)
    places, weights = whole[:, None], np.ones((outputs, 1))
    if mode == "bicubic" and part.any():  # single outputs without neighbours would let the first tap go back
        places, weights = places + np.arange(-1, 3), _cubic_weights(part, rest)
    elif mode in RANK_OF_MODE:
        between = (part > 0) & (whole >= 0) & (whole < size - 1)
        places = np.stack([whole, whole + between], 1)
        weights = np.stack([np.where(between, rest, 1), np.where(between, part, 0)], 1)
    places = np.clip(places, 0, size - 1)
    first, counts = places[:, 0].copy(), places[:, -1] - places[:, 0] + 1
    sums, o = np.zeros_like(weights), np.arange(outputs)
    for place, weight in zip(places.T, weights.T):
        sums[o, place - first] += weight
    used = np.arange(sums.shape[1]) < counts[:, None]
    return Taps(size, first, np.concatenate([[0], np.cumsum(counts)]), sums[used])


def _windows(size: int, outputs: int) -> Taps:
    """The mean of [floor(o·S/O), ceil((o + 1)·S/O)), as an adaptive average pooling has it."""
    o = np.arange(outputs, dtype=np.int64)
    first, ends = o * size // outputs, -(-(o + 1) * size // outputs)
    counts = ends - first
    return Taps(size, first, np.concatenate([[0], np.cumsum(counts)]), np.repeat(1 / counts, counts))


def _positions(
    size: int, outputs: int, scale: float | None, mode: str, align_corners: bool
) -> tuple[Array, Array, Array]:
    """Where the outputs lie between the inputs: number of the input before, distance from it and to the next one.

    With S inputs, O outputs and the scale s (O/S if it is None), output o lies at

        o / s                       "nearest"
        (o + ½) / s                 "nearest-exact"
        o · (S − 1) / (O − 1)       align_corners; 0 if O = 1
        (o + ½) / s − ½             others
    """
    o = np.arange(outputs, dtype=np.int64)
    centred, shifted = mode != "nearest", not mode.startswith("nearest")
    if scale is not None and not align_corners:
        position = np.minimum((o + 0.5 * centred) / scale - 0.5 * shifted, size)
        below = np.floor(position)
        return below.astype(np.int64), position - below, below + 1 - position
    if align_corners:
        numerator, denominator = o * (size - 1), max(outputs - 1, 1)
    else:
        numerator, denominator = (2 * o + centred) * size - shifted * outputs, 2 * outputs
    whole, behind = numerator // denominator, numerator % denominator
    return whole, behind / denominator, (denominator - behind) / denominator


def _cubic_weights(part: Array, rest: Array) -> Array:
    """Of the four inputs around each output, by cubic convolution (Keys, IEEE Trans. ASSP 29, 1981).

    At distance d that is (a + 2)·d³ − (a + 3)·d² + 1 up to 1 and a·d³ − 5a·d² + 8a·d − 4a up to 2, here as products, in
    which nothing cancels.
    """
    near = [q * (1 + p - (_CUBIC + 2) * p**2) for p, q in ((part, rest), (rest, part))]
    far = [_CUBIC * p * q**2 for p, q in ((part, rest), (rest, part))]
    return np.stack([far[0], *near, far[1]], 1)
