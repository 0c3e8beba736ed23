"""fastconv against its peers, case by case, in one process: `make bench`, or `python -m bench --help`.

Every line prints fastconv's time, its rates, its share of the roof, and the ratio to each peer and to the fastest. The
tables go to the terminal, and as JSON, Markdown and charts into files. `bench/timing.py` says how a line is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import chart, convolution, layers, machine, networks, report, roofs, timing
from bench.case import Case
from bench.competitors import Competitor, start
from fastconv import get_num_threads

SETS = ("first", "extended", "layers", "networks")
DIRECTIONS = ("forward", "backward", "step", "inference", "training")
TINY = "tiny_1_8_8"  # the cost of a call: one 8×8 image, eight 3×3 filters
RESULTS = Path(__file__).with_name("results")


def load(sets: Sequence[str] = SETS, name_contains: Sequence[str] = ("",)) -> list[Case]:
    """The cases of some sets whose name contains one of the given strings."""
    cases: list[Case] = [*convolution.load(), *layers.load(), *networks.load()]
    return [case for case in cases if case.subset in sets and any(part in case.name for part in name_contains)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, print the tables, write the files; 0 when every result was right."""
    arguments = _arguments(argv)
    # `--set` picks among the lines unless a line is named.
    sets = SETS if "all" in arguments.set or arguments.cases != [""] else arguments.set
    lines = [
        (case, direction)
        for direction in arguments.direction
        for case in load(sets, arguments.cases)
        if direction in case.directions
    ]
    if not lines:
        print(f"no case contains {' or '.join(arguments.cases)} and has {' or '.join(arguments.direction)}")
        return 2
    effort = timing.QUICK if arguments.quick else timing.Effort(rounds=arguments.rounds)
    summary: dict[str, Any] = machine.describe(arguments.threads) | {"effort": effort._asdict()}
    summary["roofs"] = roofs.measure(arguments.threads)
    competitors, absent = start(arguments.threads)
    print(report.heading(summary), *(f"{name} {reason}" for name, reason in absent.items()), sep="\n", flush=True)
    (tiny,) = load(name_contains=[TINY])
    summary["tiny_call"] = timing.measure(tiny, "forward", competitors, effort)
    print(report.tiny_call(summary["tiny_call"]), flush=True)
    summary["cases"], wrong = _run(lines, competitors, absent, effort, summary["roofs"])
    _write(summary, arguments.output)
    return 1 if wrong else 0


def _run(
    lines: Sequence[tuple[Case, str]],
    competitors: Mapping[str, Competitor],
    absent: dict[str, str],
    effort: timing.Effort,
    measured_roofs: dict[str, Any],
) -> tuple[list[dict[str, Any]], list[str]]:
    """All lines, printed table by table as they come, and what was wrong with the others."""
    by_table: dict[str, list[tuple[Case, str]]] = {}
    for case, direction in lines:
        by_table.setdefault(f"{case.family} {direction}", []).append((case, direction))
    done: list[dict[str, Any]] = []
    wrong: list[str] = []
    for title, entries in by_table.items():
        print(f"\n{report.text_row(report.head(title))}", flush=True)
        rows = []
        for case, direction in entries:
            try:
                row = timing.measure(case, direction, competitors, effort)
            except ArithmeticError as error:
                wrong.append(str(error))
                print(f"WRONG: {error}", flush=True)
                continue
            row["absent"] |= absent
            row["floor_ms"] = 1e3 * roofs.floor_seconds(measured_roofs, row["flops"], row["traffic"], case.itemsize)
            rows.append(row)
            print(report.text_row(report.cells(row)), flush=True)
        print(report.text_footer(rows), flush=True)
        done += rows
    return done, wrong


def _write(summary: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    json_path, table_path = (output.with_name(output.name + suffix) for suffix in (".json", ".md"))
    json_path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    table_path.write_text(report.markdown(summary), encoding="utf-8")
    print("\nwrote", ", ".join(map(str, [json_path, table_path, *chart.write(summary, output)])))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare fastconv with its peers.")
    parser.add_argument("--set", nargs="+", choices=(*SETS, "all"), default=["all"], help="sets of cases (default all)")
    parser.add_argument(
        "--cases", nargs="+", default=[""], metavar="TEXT", help="only cases whose name contains a TEXT, of any set"
    )
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument(
        "--rounds", type=int, default=timing.Effort().rounds, help="timed rounds of a case (default 11)"
    )
    parser.add_argument("--quick", action="store_true", help="three short rounds: a smoke test, not a measurement")
    parser.add_argument("--threads", type=int, default=get_num_threads(), help="threads of every competitor")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "latest", help="path of the .json, .md and .png files, no suffix"
    )
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    return arguments
