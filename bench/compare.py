"""fastconv against its peers, case by case, in one process: `make bench`, or `python -m bench --help`.

Every line prints fastconv's time, its rates, its share of the roof, and the ratio to each peer and to the fastest. The
tables go to the terminal, and as JSON, Markdown and charts into files. `bench/timing.py` says how a line is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import chart, report, timing
from bench.case import Case
from bench.competitors import COMPETITORS, OURS, Competitor, start
from bench.cpu import Cpu
from bench.device import Device, floor
from fastconv import get_num_threads

SETS = ("first", "extended", "layers", "networks")
DIRECTIONS = ("forward", "backward", "step", "inference", "training")
TINY = "tiny_1_8_8"  # the cost of a call: one 8×8 image, eight 3×3 filters
RESULTS = Path(__file__).with_name("results")


def load(sets: Sequence[str] = SETS, name_contains: Sequence[str] = ("",)) -> list[Case]:
    """The cases of some sets whose name contains one of the given strings."""
    return [case for case in Cpu.cases() if case.subset in sets and any(part in case.name for part in name_contains)]


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
    device = Cpu(arguments.threads)
    effort = timing.QUICK if arguments.quick else device.effort._replace(rounds=arguments.rounds)
    summary: dict[str, Any] = device.describe() | {"effort": effort._asdict(), "roofs": device.roofs()}
    competitors, absent = start(arguments.threads)
    summary["peers"] = [name for name in COMPETITORS if name != OURS]
    print(report.heading(summary), *(f"{name} {reason}" for name, reason in absent.items()), sep="\n", flush=True)
    (tiny,) = load(name_contains=[TINY])
    summary["tiny_call"] = timing.measure(tiny, "forward", competitors, device, effort)
    print(report.tiny_call(summary["tiny_call"]), flush=True)
    comparison = Comparison(device, competitors, absent, effort, summary)
    wrong = comparison.run(lines)
    _write(summary, arguments.output)
    return 1 if wrong else 0


@dataclass(frozen=True)
class Comparison:
    """One run: what takes part, and the summary that grows line by line."""

    device: Device
    competitors: Mapping[str, Competitor]
    absent: Mapping[str, str]
    effort: timing.Effort
    summary: dict[str, Any]

    def run(self, lines: Sequence[tuple[Case, str]]) -> list[str]:
        """Measure all lines, printed table by table as they come; gives what was wrong with others."""
        by_table: dict[str, list[tuple[Case, str]]] = {}
        for case, direction in lines:
            by_table.setdefault(f"{case.family} {direction}", []).append((case, direction))
        self.summary["cases"] = []
        wrong: list[str] = []
        columns = report.Columns(self.summary["peers"])
        for title, entries in by_table.items():
            print(f"\n{columns.text_row(columns.head(title))}", flush=True)
            rows = []
            for case, direction in entries:
                try:
                    rows.append(self._line(case, direction))
                except ArithmeticError as error:
                    wrong.append(str(error))
                    print(f"WRONG: {error}", flush=True)
                    continue
                print(columns.text_row(columns.cells(rows[-1])), flush=True)
            print(columns.text_footer(rows), flush=True)
            self.summary["cases"] += rows
        return wrong

    def _line(self, case: Case, direction: str) -> dict[str, Any]:
        row = timing.measure(case, direction, self.competitors, self.device, self.effort)
        row["absent"] |= self.absent
        least = floor(self.summary["roofs"], row["flops"], row["traffic"], self.device.arithmetic(case))
        return row | {"floor_ms": 1e3 * least.seconds, "roof": least.roof}


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
