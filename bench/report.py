"""The figures of `bench/compare.py` as text and as a bar chart. A ratio is peer time / fastconv time."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.cases import DIRECTIONS
from bench.competitors import PREPARE

PEERS = tuple(name for name in PREPARE if name != "fastconv")
NAME_WIDTH, PEER_WIDTH = 20, 21


def heading(summary: dict[str, Any]) -> str:
    """Machine, versions and the measured roofs."""
    copies = ", ".join(f"{rate:.0f} at {size >> 20} MiB" for size, rate in summary["roofs"]["copy_gbs"].items())
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items())
    load = "" if summary["load"] is None else f", load before the run {summary['load']:.2f}"
    return (
        f"{summary['processor']}, {summary['threads']} threads of {summary['cores']} cores, {summary['date']}{load}\n"
        f"{versions}\n"
        f"roofs: {summary['roofs']['fma_gflops']:.0f} GFLOP/s multiply-add; copy GB/s (read + write): {copies}"
    )


def tiny_call(line: dict[str, Any]) -> str:
    """The cost of a call, in microseconds."""
    times = ", ".join(f"{name} {1e3 * ms:.1f}" for name, ms in line["ms"].items() if name != "torch channels-last")
    return f"one call on a 1×1×8×8 image, eight 3×3 filters, µs: {times}"


def columns(direction: str) -> str:
    """The head of a table."""
    peers = "".join(f"{'/ ' + peer:>{PEER_WIDTH}}" for peer in PEERS)
    return f"{direction:<{NAME_WIDTH}}{'ms':>9}{'GFLOP/s':>9}{'GB/s':>7}{'% floor':>9}{peers}"


def row(line: dict[str, Any]) -> str:
    """One case: fastconv's time, its rates, how much of the floor it reaches, and the ratios."""
    ms = line["ms"]["fastconv"]
    rates = f"{line['flops'] / ms / 1e6:>9.1f}{line['traffic'] / ms / 1e6:>7.1f}{100 * line['floor_ms'] / ms:>9.0f}"
    peers = "".join(f"{_number(line['ratio'].get(peer)):>{PEER_WIDTH}}" for peer in PEERS)
    return f"{line['case']:<{NAME_WIDTH}}{ms:>9.3f}{rates}{peers}"


def footer(lines: list[dict[str, Any]]) -> str:
    """Geometric mean and least ratio to each peer, and why a peer is missing."""
    ratios = [[line["ratio"][peer] for line in lines if peer in line["ratio"]] for peer in PEERS]
    rows = [("geometric mean", statistics.geometric_mean), ("least", min)]
    table = [
        f"{title:<{NAME_WIDTH + 34}}"
        + "".join(f"{_number(combine(values) if values else None):>{PEER_WIDTH}}" for values in ratios)
        for title, combine in rows
    ]
    reasons = dict.fromkeys(f"- {peer}: {reason}" for line in lines for peer, reason in line["absent"].items())
    return "\n".join([*table, *reasons])


def markdown(summary: dict[str, Any]) -> str:
    """The ratios as one Markdown table, a row for each case, with the machine below it."""
    ratios = {
        (line["case"], line["direction"], peer): r for line in summary["cases"] for peer, r in line["ratio"].items()
    }
    cases = dict.fromkeys(line["case"] for line in summary["cases"])
    measured = {(direction, peer) for _, direction, peer in ratios}
    pairs = [(direction, peer) for direction in DIRECTIONS for peer in PEERS if (direction, peer) in measured]
    table = [
        ["case", *(f"{direction} / {peer}" for direction, peer in pairs)],
        ["---"] + ["--:"] * len(pairs),
        *([case, *(_number(ratios.get((case, *pair))) for pair in pairs)] for case in cases),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table) + f"\n\n{heading(summary)}\n"


def bar_chart(summary: dict[str, Any], path: Path) -> None:
    """All ratios as horizontal bars on a logarithmic axis, one panel for each direction; a PNG at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    directions = list(dict.fromkeys(line["direction"] for line in summary["cases"]))
    most = max(sum(line["direction"] == direction for line in summary["cases"]) for direction in directions)
    figure = Figure(figsize=(7 * len(directions), 2 + 0.45 * most), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, direction in zip(figure.subplots(1, len(directions), squeeze=False)[0], directions):
        lines = [line for line in summary["cases"] if line["direction"] == direction]
        for number, peer in enumerate(PEERS):
            bars = [
                (i + (number - 1) * 0.27, line["ratio"][peer]) for i, line in enumerate(lines) if peer in line["ratio"]
            ]
            if bars:
                positions, ratios = zip(*bars)
                axes.barh(positions, [r - 1 for r in ratios], 0.25, left=1, label=peer, color=f"C{number}")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.axvline(1, color="black", linewidth=1)
        axes.set_yticks(range(len(lines)), [line["case"] for line in lines])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_title(direction)
        axes.set_xlabel("peer time / fastconv time (right of 1: fastconv is faster)")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PEERS))
    where = f"{summary['processor']}, {summary['threads']} threads, {summary['date'][:10]}"
    figure.suptitle(f"fastconv {summary['versions']['fastconv']}: {where}")
    figure.savefig(path, dpi=110)


def _number(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
