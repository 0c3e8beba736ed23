"""What a training shows while it runs: a tqdm bar per epoch on a terminal, otherwise a line per epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_advice_given = False


class Display:
    """The progress of one epoch on standard error; `shown=False` shows nothing."""

    def __init__(self, shown: bool, epoch: int, epochs: int, samples: int | None, done: int) -> None:
        self._title = f"epoch {epoch}/{epochs}"
        self._shown = shown
        self._bar: Any = None
        if shown and sys.stderr.isatty() and (tqdm := _tqdm()) is not None:
            self._bar = tqdm(total=samples, initial=done, desc=self._title, unit=" samples", dynamic_ncols=True)

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, samples: int, values: Mapping[str, float]) -> None:
        """`samples` more are done, and these are the means so far."""
        if self._bar is not None:
            self._bar.set_postfix(_rounded(values), refresh=False)
            self._bar.update(samples)

    def finish(self, row: Mapping[str, float]) -> None:
        """The epoch is over; `row` is its row of the history."""
        values = {name: value for name, value in row.items() if name not in ("epoch", "learning_rate", "seconds")}
        rate = values.pop("samples_per_second")
        if self._bar is not None:
            self._bar.set_postfix(_rounded(values))
        elif self._shown:
            texts = [f"{name} {value}" for name, value in _rounded(values).items()]
            print(self._title, *texts, f"{rate:,.0f} samples/s", sep="  ", file=sys.stderr)


def _rounded(values: Mapping[str, float]) -> dict[str, str]:
    """Four decimals, and names short enough for the bar to have room beside them."""
    return {name.replace("validation_", "val_"): f"{value:.4f}" for name, value in values.items()}


def _tqdm() -> Any:
    global _advice_given
    try:
        from tqdm import tqdm
    except ImportError:
        if not _advice_given:
            print("no progress bar: tqdm is not installed (pip install tqdm)", file=sys.stderr)
        _advice_given = True
        return None
    return tqdm
