"""Argument forms that convolution and pooling share: int or tuple, padding in all its spellings, number of axes.

Every function takes the name of the operation first, for its messages.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import numpy as np

Pairs = tuple[tuple[int, int], ...]
"""Padding per axis: (before, after)."""

AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""What the spatial axes are called in messages, by rank."""

LARGEST = 2**40
"""No stride, dilation, padding or kernel is larger: arithmetic with it would leave 64 bits."""

_RANK = re.compile(r"([123])d")


def is_plain(value: object) -> bool:
    """True for ints, strings and (nested) tuples of them.

    Only such values may serve as cache keys: 1, 1.0 and True are equal keys, so that a float would be accepted
    whenever its int has been seen before, and refused otherwise.
    """
    kind = type(value)
    if kind is int or kind is str:
        return True
    if kind is not tuple:
        return False
    # A plain loop: this runs on every call of an operation, and all() would double its time.
    for item in value:  # type: ignore[attr-defined]  # noqa: SIM110  # mypy does not see that this is a tuple
        if type(item) is not int and not is_plain(item):
            return False
    return True


def rank_in_name(op: str) -> int | None:
    """The rank that an operation carries in its name (2 for "conv2d"), None for "conv"."""
    found = _RANK.search(op)
    return int(found.group(1)) if found else None


def integer(op: str, name: str, value: Any, minimum: int) -> int:
    """One int of at least `minimum`; NumPy's ints count, floats and bools do not."""
    number = _index(value)
    if number is None:
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    _check_range(op, name, minimum, number, number, number)
    return number


def axis(op: str, name: str, value: Any, input_shape: tuple[int, ...]) -> int:
    """One of the axes of an input, counted from its end if negative; a number without axes is a row of one."""
    number, axes = _index(value), max(len(input_shape), 1)
    if number is None:
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if not -axes <= number < axes:
        raise ValueError(
            f"{op}: {name} must lie between {-axes} and {axes - 1} for input shape {input_shape}, got {number}"
        )
    return number


def shape(op: str, name: str, value: Any) -> tuple[int, ...]:
    """A shape that a user wrote: a tuple or list of ints."""
    if type(value) is tuple:  # most often that of an array
        for item in value:
            if type(item) is not int:
                break
        else:
            return value
    numbers = [_index(item) for item in value] if isinstance(value, (tuple, list)) else [None]
    sizes = tuple(number for number in numbers if number is not None)
    if len(sizes) != len(numbers):
        raise TypeError(f"{op}: {name} must be a tuple of ints, got {value!r}")
    return sizes


def sizes(op: str, name: str, value: Any) -> tuple[int, ...]:
    """One int, or a tuple (list) of one or more, each at least 1 → a tuple."""
    given = value if isinstance(value, (tuple, list)) else (value,)
    numbers = tuple(number for number in map(_index, given) if number is not None)
    if len(numbers) != len(given) or not given:
        raise TypeError(f"{op}: {name} must be an int or a tuple of one or more ints, got {value!r}")
    _check_range(op, name, 1, min(numbers), max(numbers), value)
    return numbers


def for_axes(value: Any, rank: int) -> tuple[Any, ...]:
    """The entries of a tuple, list or array; a single one, bare or in a tuple, is for all axes, as in `numpy.pad`."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return entries * rank if len(entries) == 1 else entries


def per_axis(op: str, name: str, value: Any, rank: int, minimum: int) -> tuple[int, ...]:
    """One int for all axes or a tuple (list) of `rank` ints, each at least `minimum` → a tuple of `rank` ints."""
    entries = for_axes(value, rank)
    if len(entries) != rank:
        raise ValueError(f"{op}: {name} must be an int or {_count(rank)}, got {len(entries)}: {value!r}")
    sizes = tuple(number for number in map(_index, entries) if number is not None)
    if len(sizes) != rank:
        raise TypeError(f"{op}: {name} must be an int or {_count(rank)}, got {value!r}")
    _check_range(op, name, minimum, min(sizes), max(sizes), value)
    return sizes


def pairs(op: str, value: Any, rank: int) -> Pairs:
    """Padding as int, as `rank` ints or as `rank` (before, after) pairs → pairs."""
    entries = for_axes(value, rank)
    forms = f"an int, {_count(rank)} or {_count(rank, '(before, after) pair')}"
    if len(entries) != rank:
        remedy = (
            f"; for the two sides of one axis write padding=({value!r},)" if rank == 1 and len(entries) == 2 else ""
        )
        raise ValueError(f"{op}: padding must be {forms}, got {len(entries)}: {value!r}{remedy}")
    result = []
    for entry in entries:
        sides = entry if isinstance(entry, (tuple, list)) else (entry, entry)
        before, after = (_index(side) for side in sides) if len(sides) == 2 else (None, None)
        if before is None or after is None:
            raise TypeError(f"{op}: padding must be {forms}, got {value!r}")
        _check_range(op, "padding", 0, min(before, after), max(before, after), value)
        result.append((before, after))
    return tuple(result)


def _check_range(op: str, name: str, minimum: int, least: int, most: int, value: Any) -> None:
    if least < minimum:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {value!r}")
    if most > LARGEST:
        raise ValueError(f"{op}: {name} must be at most {LARGEST}, got {value!r}")


def _index(value: Any) -> int | None:
    """The int that `value` stands for, None if it is none. A bool is none: it is always a misplaced flag."""
    if (
        isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"
    ):  # NumPy 2.0's bool is also an index
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _count(rank: int, what: str = "int") -> str:
    return f"a tuple of {rank} {what}{'s' if rank > 1 else ''}"
