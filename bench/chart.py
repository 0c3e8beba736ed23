"""The ratios as charts: a picture for each family of cases, a panel for each direction, a row for each case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.report import best, tables

MARKERS = "os^D"


def write(summary: dict[str, Any], output: Path) -> list[Path]:
    """PNG files named after `output` (no suffix) and the family; returns their paths."""
    by_title = tables(summary["cases"])
    families = dict.fromkeys(title.split()[0] for title in by_title)
    paths = []
    for family in families:
        panels = {title: lines for title, lines in by_title.items() if title.split()[0] == family}
        paths.append(output.with_name(f"{output.name}-{family}.png"))
        _picture(summary, panels, paths[-1])
    return paths


def _picture(summary: dict[str, Any], panels: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(map(len, panels.values()))
    figure = Figure(figsize=(2 + 6 * len(panels), 2 + 0.27 * most), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        _panel(axes, title, lines, summary["peers"])
        axes.set_ylim(most - 0.5, -0.5)  # rows of one height in all panels
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    where = f"{summary['where']}, {summary['date'][:10]}"
    figure.suptitle(f"fastconv {summary['versions']['fastconv']}: {where}")
    figure.savefig(path, dpi=110)


def _panel(axes: Any, title: str, lines: list[dict[str, Any]], peers: list[str]) -> None:
    """A row for each line: a bar from 1 to the best peer, and a mark for every peer."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    measured = [(row, ratio) for row, line in enumerate(lines) if (ratio := best(line)) is not None]
    colours = ["#9fc5a0" if ratio >= 1 else "#e0a09a" for _, ratio in measured]
    rows, ratios = [row for row, _ in measured], [ratio for _, ratio in measured]
    axes.barh(rows, [ratio - 1 for ratio in ratios], 0.6, left=1, color=colours, label="best peer")
    for number, (peer, marker) in enumerate(zip(peers, MARKERS)):
        points = [(line["ratio"][peer], row) for row, line in enumerate(lines) if peer in line["ratio"]]
        if points:
            style = {"color": f"C{number}", "marker": marker, "s": 22, "zorder": 3, "label": peer}
            axes.scatter(*zip(*points), **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(lines)), [line["case"] for line in lines])
    axes.grid(axis="both", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(title)
    axes.set_xlabel("peer time / fastconv time (right of 1: fastconv is faster)")
