"""One line of the benchmark: results compared, then all competitors timed in interleaved rounds.

The competitors take their turns one after the other in rotating order, so that a slow spell of the machine meets all of
them; the figure that counts is the median over the rounds of peer time / fastconv time. How a block of calls is timed
is a matter of the device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.case import Call, Case, relative_error, results
from bench.competitors import OURS, Competitor, NotOffered

if TYPE_CHECKING:
    from bench.device import Device

WARM_SECONDS = 0.015
LONG_SECONDS = 0.25  # calls from here on need no warming: a slow start is lost in them
FEWEST_ROUNDS = 3
HOPELESS = 8.0  # a peer so many times slower than fastconv takes part in the first round only


class Effort(NamedTuple):
    """How long to measure: at most `rounds` rounds and about `line_seconds` for a line, blocks of `block_seconds`."""

    rounds: int = 11
    block_seconds: float = 0.04
    line_seconds: float = 5.0


QUICK = Effort(FEWEST_ROUNDS, 0.01, 1.0)


def measure(
    case: Case, direction: str, competitors: Mapping[str, Competitor], device: Device, effort: Effort
) -> dict[str, Any]:
    """Times and ratios of one line; raises ArithmeticError when no peer agrees with fastconv."""
    with ExitStack() as precisions:
        for competitor in competitors.values():
            precisions.enter_context(competitor.precision(case.precision))
        return _measure(case, direction, competitors, device, effort)


def _measure(
    case: Case, direction: str, competitors: Mapping[str, Competitor], device: Device, effort: Effort
) -> dict[str, Any]:
    calls, absent = _calls(case, direction, competitors, device)
    first_call = _compare(case, direction, competitors, calls, absent)
    single = {name: _estimate(call, device) for name, call in calls.items()}
    counts = {name: max(1, ceil(effort.block_seconds / seconds)) for name, seconds in single.items()}
    rounds = _rounds(single, counts, effort)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(max(rounds.values())):
        taking_part = [name for name in calls if number < rounds[name]]
        shift = number % len(taking_part)
        order = taking_part[shift:] + taking_part[:shift]
        for name in order if number % 2 else reversed(order):  # nobody always follows the same competitor
            times[name].append(device.block(calls[name], counts[name], warm=single[name] < LONG_SECONDS))
    own = times[OURS]
    ratio = {name: statistics.median(p / o for p, o in zip(peer, own)) for name, peer in times.items() if name != OURS}
    return {
        "case": case.name,
        "table": case.table(direction),
        "subset": case.subset,
        "algorithm": case.algorithm(direction, device.name),
        "flops": case.flops(direction),
        "traffic": case.traffic(direction),
        "first_call_ms": 1e3 * first_call,
        "rounds": rounds,
        "ms": {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()},
        "ratio": ratio,
        "absent": absent,
    }


def _calls(
    case: Case, direction: str, competitors: Mapping[str, Competitor], device: Device
) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls that can be made, and for the other competitors the reason why not."""
    prepare = case.prepare(direction)
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for name, competitor in competitors.items():
        try:
            calls[name] = device.call(competitor, prepare, case, direction)
        except NotOffered as reason:
            absent[name] = str(reason)
        except Exception as error:
            if name == OURS:
                raise
            absent[name] = _failure(error)
    return calls, absent


def _failure(error: Exception) -> str:
    """Why a peer that failed is absent, in a line."""
    return f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]


def _compare(
    case: Case,
    direction: str,
    competitors: Mapping[str, Competitor],
    calls: dict[str, Call],
    absent: dict[str, str],
) -> float:
    """Check every peer's result of its first call against fastconv's; seconds of fastconv's first call.

    A peer whose call fails, for whatever reason, is absent from then on, and so is one that fastconv disagrees with
    while it agrees with another; ArithmeticError if it agrees with none.
    """
    begin = time.perf_counter()
    output = calls[OURS]()
    seconds = time.perf_counter() - begin
    own = results(competitors[OURS], output)
    agree, differ = [], {}
    for name in [name for name in calls if name != OURS]:
        try:
            difference = relative_error(own, results(competitors[name], calls[name]()))
        except Exception as error:
            absent[name] = _failure(error)
            continue
        if difference < case.tolerance(direction):
            agree.append(name)
        else:
            differ[name] = f"relative L2 difference to {name} is {difference:.1e}"
    if differ and not agree:
        raise ArithmeticError(", ".join(differ.values()))
    absent |= {name: f"{difference}; in agreement: {', '.join(agree)}" for name, difference in differ.items()}
    for name in absent.keys() & calls.keys():
        del calls[name]
    return seconds


def _rounds(single: Mapping[str, float], counts: Mapping[str, int], effort: Effort) -> dict[str, int]:
    """Rounds for each competitor, all within the seconds of a line as far as the fewest rounds allow."""
    blocks = {name: seconds * counts[name] + max(seconds, WARM_SECONDS) for name, seconds in single.items()}
    hopeless = {name for name in single if single[name] > HOPELESS * single[OURS]}
    left = effort.line_seconds - sum(blocks[name] for name in hopeless)
    fit = int(left / sum(seconds for name, seconds in blocks.items() if name not in hopeless))
    rounds = max(min(FEWEST_ROUNDS, effort.rounds), min(effort.rounds, fit))
    return {name: 1 if name in hopeless else rounds for name in blocks}


def _estimate(call: Call, device: Device) -> float:
    """Seconds of one call."""
    cold = device.block(call, 1, warm=False)
    return device.block(call, 1, warm=True) if cold < LONG_SECONDS else cold
