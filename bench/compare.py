"""fastconv against its peers, case by case, in one process: `make bench`, or `python -m bench --help`.

Every line prints fastconv's time, its rates, its share of the roof, and the ratio to each peer and to the fastest. The
tables go to the terminal, and as JSON, Markdown and charts into files. `bench/timing.py` says how a line is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import chart, report, timing
from bench.case import Case
from bench.competitors import OURS, Competitor, names, start
from bench.cpu import Cpu
from bench.cuda import Cuda
from bench.device import Device, floor
from fastconv import get_num_threads
from fastconv.errors import DeviceError

DEVICES: dict[str, type[Device]] = {kind.name: kind for kind in (Cpu, Cuda)}
DIRECTIONS = ("forward", "backward", "step", "inference", "captured", "training")
TINY = "tiny_1_8_8"  # the cost of a call: one 8×8 image, eight 3×3 filters
RESULTS = Path(__file__).with_name("results")


def load(
    sets: Sequence[str] | None = None, name_contains: Sequence[str] = ("",), device: type[Device] = Cpu
) -> list[Case]:
    """The cases of some sets (None: of all) whose name contains one of the given strings."""
    cases = [case for case in device.cases() if sets is None or case.subset in sets]
    return [case for case in cases if any(part in case.name for part in name_contains)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, print the tables, write the files; 0 when every result was right."""
    arguments = _arguments(argv)
    kind = DEVICES[arguments.device]
    # `--set` picks among the lines unless a line is named.
    sets = None if "all" in arguments.set or arguments.cases != [""] else arguments.set
    lines = _lines(kind, sets, arguments.cases, arguments.direction)
    if not lines:
        print(f"no case contains {' or '.join(arguments.cases)} and has {' or '.join(arguments.direction)}")
        return 2
    try:
        device = kind(arguments.threads)
    except DeviceError as error:
        print(f"python -m bench --device {kind.name}: {error}", file=sys.stderr)
        return 2
    effort = timing.QUICK if arguments.quick else device.effort._replace(rounds=arguments.rounds)
    summary: dict[str, Any] = device.describe() | {"effort": effort._asdict(), "roofs": device.roofs()}
    competitors, absent = start(arguments.threads, kind.name)
    summary["peers"] = [name for name in names(kind.name) if name != OURS]
    print(report.heading(summary), *(f"{name} {reason}" for name, reason in absent.items()), sep="\n", flush=True)
    whole = lines == _lines(kind, None, [""], DIRECTIONS) and not arguments.quick
    output = arguments.output or RESULTS / (device.results_name if whole else "latest")
    comparison = Comparison(device, competitors, absent, effort, summary, output)
    comparison.run(lines)
    print("\nwrote", ", ".join(map(str, [*_write(summary, output), *chart.write(summary, output)])))
    return 1 if comparison.wrong else 0


def _lines(
    kind: type[Device], sets: Sequence[str] | None, name_contains: Sequence[str], directions: Sequence[str]
) -> list[tuple[Case, str]]:
    cases = load(sets, name_contains, kind)
    return [(case, direction) for direction in directions for case in cases if direction in case.directions]


@dataclass(frozen=True)
class Comparison:
    """One run: what takes part, and the summary that grows line by line."""

    device: Device
    competitors: Mapping[str, Competitor]
    absent: Mapping[str, str]
    effort: timing.Effort
    summary: dict[str, Any]
    output: Path
    wrong: list[str] = field(default_factory=list)
    """What kept lines from being measured."""

    def run(self, lines: Sequence[tuple[Case, str]]) -> None:
        """Measure a tiny call and all lines, printed as they come and written table by table."""
        (tiny,) = load(name_contains=[TINY])
        if row := self._line(tiny, "forward"):
            self.summary["tiny_call"] = row
            print(report.tiny_call(row), flush=True)
        by_table: dict[str, list[tuple[Case, str]]] = {}
        for case, direction in lines:
            by_table.setdefault(case.table(direction), []).append((case, direction))
        self.summary["cases"] = []
        columns = report.Columns(self.summary["peers"])
        for title, entries in by_table.items():
            print(f"\n{columns.text_row(columns.head(title))}", flush=True)
            rows = []
            for case, direction in entries:
                if row := self._line(case, direction):
                    rows.append(row)
                    print(columns.text_row(columns.cells(row)), flush=True)
            print(columns.text_footer(rows), flush=True)
            self.summary["cases"] += rows
            _write(self.summary, self.output)

    def _line(self, case: Case, direction: str) -> dict[str, Any] | None:
        """A line's figures; None, and the reason among those in `wrong`, where something fails."""
        try:
            row = timing.measure(case, direction, self.competitors, self.device, self.effort)
        except Exception as error:  # any: the other lines shall not be lost with it
            self.wrong.append(f"{case.name} {direction}: {type(error).__name__}: {error}")
            print(f"WRONG: {self.wrong[-1]}", flush=True)
            return None
        finally:
            self.device.tidy(self.competitors.values())
        row["absent"] |= self.absent
        least = floor(self.summary["roofs"], row["flops"], row["traffic"], self.device.arithmetic(case))
        return row | {"floor_ms": 1e3 * least.seconds, "roof": least.roof}


def _write(summary: dict[str, Any], output: Path) -> list[Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    json_path, table_path = (output.with_name(output.name + suffix) for suffix in (".json", ".md"))
    json_path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    table_path.write_text(report.markdown(summary), encoding="utf-8")
    return [json_path, table_path]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare fastconv with its peers.")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where everything runs (default cpu)")
    parser.add_argument("--set", nargs="+", default=["all"], help="sets of cases (default all)")
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
        "--output",
        type=Path,
        help="path of the .json, .md and .png files, no suffix (default bench/results/latest; with all lines of a GPU, "
        "named after it)",
    )
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    known = [*DEVICES[arguments.device].sets(), "all"]
    if unknown := [name for name in arguments.set if name not in known]:
        parser.error(f"--set {' '.join(unknown)}: on {arguments.device} there are {', '.join(known)}")
    return arguments
