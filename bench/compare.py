"""fastconv against its peers, case by case, in one process: `make bench`, or `python -m bench --help`.

All competitors of a case are timed in rounds, one after the other and in rotating order, so that a slow spell of the
machine meets all of them; the figure that counts is the median over the rounds of peer time / fastconv time. Before a
timed block the thread pools of the others are given time to stop spinning, and one call warms the caches. Results are
compared before anything is timed. One table goes to the terminal, and as JSON, Markdown and a bar chart into files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from bench import machine, report, roofs
from bench.cases import DIRECTIONS, Case, Operands, load
from bench.competitors import PREPARE, Call, NotOffered, missing, relative_error
from fastconv import get_num_threads
from fastconv.backends import cpu

TINY = "tiny_1_8_8"  # the cost of a call: one 8×8 image, eight 3×3 filters
TOLERANCE = 1e-4  # relative L2: far above float32 rounding here, far below any mistake
WARM_SECONDS = 0.015
RESULTS = Path(__file__).with_name("results")


def measure(case: Case, direction: str, threads: int, rounds: int, block_seconds: float) -> dict[str, Any]:
    """One line of the report: times, ratios, floors; raises ArithmeticError when fastconv disagrees with a peer."""
    operands = Operands.of(case)
    calls, absent = _prepare(case, operands, direction, threads)
    begin = time.perf_counter()
    output = calls["fastconv"]()
    first_call = time.perf_counter() - begin
    for name, call in calls.items():
        error = relative_error(output, call())
        if not error < TOLERANCE:
            raise ArithmeticError(f"{case.name} {direction}: relative L2 difference to {name} is {error:.1e}")
    counts = {name: max(1, ceil(block_seconds / _block(call, 1))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in order if number % 2 else reversed(order):  # nobody always follows the same competitor
            times[name].append(_block(calls[name], counts[name]))
    own = times.pop("fastconv")
    seconds = statistics.median(own)
    return {
        "case": case.name,
        "direction": direction,
        "algorithm": _algorithm(case, direction),
        "flops": case.flops(direction),
        "traffic": case.traffic(direction),
        "first_call_ms": 1e3 * first_call,
        "ms": {"fastconv": 1e3 * seconds} | {name: 1e3 * statistics.median(peer) for name, peer in times.items()},
        "ratio": {name: statistics.median(p / o for p, o in zip(peer, own)) for name, peer in times.items()},
        "absent": absent,
    }


def _prepare(case: Case, operands: Operands, direction: str, threads: int) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls that can be made, and for the other competitors the reason why not."""
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for name, prepare in PREPARE.items():
        if packages := missing(name):
            absent[name] = f"not installed: {', '.join(packages)}"
            continue
        try:
            calls[name] = prepare(case, operands, direction, threads)
        except NotOffered as reason:
            absent[name] = str(reason)
    return calls, absent


def _algorithm(case: Case, direction: str) -> str:
    operations = ("forward",) if direction == "forward" else ("input_grad", "weight_grad")
    return ", ".join(cpu.explain_conv(case.geometry, "float32", operation) for operation in operations)


def _block(call: Call, count: int) -> float:
    """Mean seconds of `count` calls, after the other pools have come to rest and the cores are awake again.

    Cores that idled while a pool came to rest are slow for some milliseconds; who follows the longest rest would pay.
    """
    _settle()
    awake = time.perf_counter() + WARM_SECONDS
    call()
    while time.perf_counter() < awake:
        call()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def _settle(quiet: float = 0.003, longest: float = 0.3) -> None:
    """Wait until no thread of this process spins: OpenMP's do for some 5 ms after a call, ONNX Runtime's up to 50."""
    end = time.perf_counter() + longest
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(quiet)
        if time.process_time() - used < quiet / 10:
            return


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare fastconv with its peers.")
    parser.add_argument("--set", choices=("first", "extended", "all"), default="first", help="lines of bench/cases.csv")
    parser.add_argument(
        "--cases", nargs="+", default=[""], metavar="TEXT", help="only cases whose name contains a TEXT"
    )
    parser.add_argument("--direction", choices=(*DIRECTIONS, "both"), default="both")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds of each case (default 11)")
    parser.add_argument("--quick", action="store_true", help="three short rounds: a smoke test, not a measurement")
    parser.add_argument("--threads", type=int, default=get_num_threads(), help="threads of every competitor")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "latest", help="path of the .json, .md and .png, no suffix"
    )
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, print the table, write the files; 0 when every result was right."""
    arguments = _arguments(argv)
    # `--set` picks among the lines unless a line is named.
    cases = load("all" if arguments.cases != [""] else arguments.set, arguments.cases)
    if not cases:
        print(f"no case of bench/cases.csv contains {' or '.join(arguments.cases)}")
        return 2
    rounds, block_seconds = (3, 0.01) if arguments.quick else (arguments.rounds, 0.04)
    directions = DIRECTIONS if arguments.direction == "both" else (arguments.direction,)
    summary: dict[str, Any] = machine.describe(arguments.threads)
    summary |= {"rounds": rounds, "roofs": roofs.measure(arguments.threads)}
    print(report.heading(summary), flush=True)
    summary["tiny_call"] = measure(load(name_contains=[TINY])[0], "forward", arguments.threads, rounds, block_seconds)
    print(report.tiny_call(summary["tiny_call"]), flush=True)
    summary["cases"] = lines = []
    for direction in directions:
        print(f"\n{report.columns(direction)}", flush=True)
        for case in cases:
            line = measure(case, direction, arguments.threads, rounds, block_seconds)
            line["floor_ms"] = 1e3 * roofs.floor_seconds(summary["roofs"], line["flops"], line["traffic"])
            lines.append(line)
            print(report.row(line), flush=True)
        print(report.footer([line for line in lines if line["direction"] == direction]), flush=True)
    _write(summary, arguments.output)
    return 0


def _write(summary: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    json_path, table_path, chart_path = (output.with_name(output.name + suffix) for suffix in (".json", ".md", ".png"))
    json_path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    table_path.write_text(report.markdown(summary), encoding="utf-8")
    report.bar_chart(summary, chart_path)
    print(f"\nwrote {json_path}, {table_path} and {chart_path}")
