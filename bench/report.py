"""The figures as tables, on the terminal and in Markdown. A ratio is peer time / fastconv time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.competitors import OURS

FIGURES = ("ms", "GFLOP/s", "GB/s", "% roof", "roof", "/ best")
NAME_WIDTH, LEAST_WIDTH = 28, 9
NOTES = (
    "Ratios are peer time / fastconv time: above 1, fastconv is faster. % roof: the larger of the least times that "
    "direct arithmetic and memory traffic need at the measured roofs, in percent of the time taken (roof says which: "
    "copy, or the name of a rate above); Winograd can exceed 100."
)


def heading(summary: dict[str, Any]) -> str:
    """Machine, versions and the measured roofs."""
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in summary["roofs"]["gflops"].items())
    copies = ", ".join(f"{rate:.0f} at {size >> 20} MiB" for size, rate in summary["roofs"]["copy_gbs"].items())
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    load = "" if summary["load"] is None else f", load before the run {summary['load']:.2f}"
    return (
        f"{summary['where']}{summary['detail']}, {summary['date']}{load}\n"
        f"{versions}\n"
        f"roofs: multiply-add GFLOP/s: {rates}; copy GB/s (read + write): {copies}"
    )


def tiny_call(line: dict[str, Any]) -> str:
    """The cost of a call, in microseconds."""
    times = ", ".join(f"{name} {1e3 * ms:.1f}" for name, ms in line["ms"].items() if name != "torch channels-last")
    return f"one call on a 1×1×8×8 image, eight 3×3 filters, µs: {times}"


def tables(lines: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines by the title of their table."""
    titles = dict.fromkeys(line["table"] for line in lines)
    return {title: [line for line in lines if line["table"] == title] for title in titles}


def best(line: dict[str, Any]) -> float | None:
    """The ratio to the fastest peer."""
    return min(line["ratio"].values(), default=None)


def absences(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Why a peer is missing, and on how many lines."""
    reasons = [f"{peer}: {reason}" for line in lines for peer, reason in line["absent"].items()]
    return [f"- {reason} ({reasons.count(reason)} of {len(lines)} lines)" for reason in dict.fromkeys(reasons)]


@dataclass(frozen=True)
class Columns:
    """Rows of cells: fastconv's own figures, then a ratio for each of the peers."""

    peers: Sequence[str]

    @property
    def _titles(self) -> list[str]:
        return [*FIGURES, *(f"/ {peer}" for peer in self.peers)]

    def head(self, title: str) -> list[str]:
        """The cells of a table's first row."""
        return [title, *self._titles]

    def cells(self, line: dict[str, Any]) -> list[str]:
        """One case: fastconv's time, its rates, how much of the roof it reaches, and the ratios."""
        ms = line["ms"][OURS]
        gflops = f"{line['flops'] / ms / 1e6:.1f}" if line["flops"] else "-"
        rates = (
            f"{ms:.3f}",
            gflops,
            f"{line['traffic'] / ms / 1e6:.1f}",
            f"{100 * line['floor_ms'] / ms:.0f}",
            line["roof"],
        )
        ratios = best(line), *(line["ratio"].get(peer) for peer in self.peers)
        return [line["case"], *rates, *map(_number, ratios)]

    def closing(self, lines: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Geometric mean and least of every column of ratios."""
        columns = [map(best, lines), *([line["ratio"].get(peer) for line in lines] for peer in self.peers)]
        ratios = [[ratio for ratio in column if ratio is not None] for column in columns]

        def row(title: str, combine: Callable[[Iterable[float]], float]) -> list[str]:
            blank = [""] * FIGURES.index("/ best")
            return [title, *blank, *(_number(combine(values) if values else None) for values in ratios)]

        return [row("geometric mean", statistics.geometric_mean), row("least", min)]

    def text_row(self, row: Sequence[str]) -> str:
        """The cells in columns as wide as the head's."""
        widths = [max(LEAST_WIDTH, len(title) + 2) for title in self._titles]
        return f"{row[0]:<{NAME_WIDTH}}" + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths))

    def text_footer(self, lines: Sequence[dict[str, Any]]) -> str:
        """What follows the rows of a table on the terminal."""
        return "\n".join([*map(self.text_row, self.closing(lines)), *absences(lines)])

    def markdown(self, title: str, lines: Sequence[dict[str, Any]]) -> str:
        """A table."""
        rows = [self.head(title), ["---"] + ["--:"] * len(self._titles), *map(self.cells, lines), *self.closing(lines)]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def markdown(summary: dict[str, Any]) -> str:
    """Machine, then every table."""
    columns = Columns(summary["peers"])
    tiny = tiny_call(summary["tiny_call"]) if "tiny_call" in summary else ""
    parts = [heading(summary).replace("\n", "  \n"), tiny, NOTES]
    for title, lines in tables(summary["cases"]).items():
        parts += [columns.markdown(title, lines), "\n".join(absences(lines))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _number(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
