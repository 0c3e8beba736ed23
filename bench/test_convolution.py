"""The `first` cases under pytest-benchmark: `pytest bench/test_convolution.py --benchmark-group-by=group`."""

from __future__ import annotations

import pytest

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

from bench.case import Case, results
from bench.compare import load
from bench.competitors import COMPETITORS, NotOffered, missing
from fastconv import get_num_threads


@pytest.mark.benchmark(max_time=0.3, min_rounds=3, warmup=True, warmup_iterations=1)
@pytest.mark.parametrize("name", COMPETITORS)
@pytest.mark.parametrize("direction", ("forward", "backward"))
@pytest.mark.parametrize("case", load(["first"]), ids=lambda case: case.name)
def test_convolution(benchmark, case: Case, direction: str, name: str):
    if packages := missing(COMPETITORS[name]):
        pytest.skip(f"pip install {' '.join(packages)}")
    competitor = COMPETITORS[name](get_num_threads())
    try:
        call = case.prepare(direction)(competitor)
    except NotOffered as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{case.name} {direction}"
    benchmark.extra_info.update(flops=case.flops(direction), traffic=case.traffic(direction))
    output = results(competitor, benchmark(call))
    geometry = case.geometry
    assert output[0].shape == (geometry.output_shape if direction == "forward" else geometry.input_shape)(case.batch)
