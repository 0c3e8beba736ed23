"""What a training did, epoch by epoch."""

from __future__ import annotations

import csv
from pathlib import Path


class History(list[dict[str, float]]):
    """One row per epoch: a dict from the name of a column to its value.

    Columns: `epoch` (from 1), `loss` and the metric over the training batches (while the parameters changed),
    `validation_loss` and `validation_<metric>` if there was validation data, `learning_rate`, `seconds` and
    `samples_per_second`.
    """

    def column(self, name: str) -> list[float]:
        """The values of one column; KeyError if there is none of that name."""
        return [row[name] for row in self]

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as a CSV file under the names of the columns; the numbers read back as the same numbers."""
        names = list(dict.fromkeys(name for row in self for name in row))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=names or ["epoch"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self)
