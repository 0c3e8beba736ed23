"""How much rounding an algorithm may add: `precision("highest" | "default" | "fast")`.

"highest": sums of products only, each in the array's dtype. "default": also algorithms whose result, measured against
float64 on data of unit variance, stays within a relative L2 error of 1e-5 (Winograd on float32). "fast": within 1e-3.
float64 is always computed as "highest".
"""

from __future__ import annotations

from contextvars import ContextVar

LEVELS = ("highest", "default", "fast")

_level: ContextVar[str] = ContextVar("fastconv precision", default="default")


class precision:
    """Set the precision from here on, or, as a context manager, inside the block. Threads have each their own.

    Raises ValueError for anything but "highest", "default" and "fast".
    """

    def __init__(self, level: str) -> None:
        if level not in LEVELS:
            raise ValueError(f'precision must be "highest", "default" or "fast", got {level!r}')
        self._before = _level.set(level)

    def __enter__(self) -> precision:
        return self

    def __exit__(self, *exception: object) -> None:
        _level.reset(self._before)


def get_precision() -> str:
    """The precision in force."""
    return _level.get()
