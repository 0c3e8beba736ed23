"""The `first` cases under pytest-benchmark: `pytest bench/test_convolution.py --benchmark-group-by=group`."""

from __future__ import annotations

import pytest

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

from bench.cases import DIRECTIONS, Case, Operands, load
from bench.competitors import PREPARE, NotOffered, missing, results
from fastconv import get_num_threads


@pytest.mark.benchmark(max_time=0.3, min_rounds=3, warmup=True, warmup_iterations=1)
@pytest.mark.parametrize("competitor", PREPARE)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", load("first"), ids=lambda case: case.name)
def test_convolution(benchmark, case: Case, direction: str, competitor: str):
    if packages := missing(competitor):
        pytest.skip(f"pip install {' '.join(packages)}")
    try:
        call = PREPARE[competitor](case, Operands.of(case), direction, get_num_threads())
    except NotOffered as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{case.name} {direction}"
    benchmark.extra_info.update(flops=case.flops(direction), traffic=case.traffic(direction))
    output = results(benchmark(call))
    assert output[0].shape == (case.geometry.output_shape if direction == "forward" else case.geometry.input_shape)(
        case.batch
    )
