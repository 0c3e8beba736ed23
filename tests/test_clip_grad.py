"""Clipping gradients: as PyTorch does it, accurate, the same bits, on any device, and within `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import Run, without_times

import fastconv as fc
from fastconv import backends, nn, optim
from fastconv.autograd import Tensor, to_device
from fastconv.backends import threads
from fastconv.nn.utils import clip_grad_norm_

SHAPES = [(3, 4), (4,), (), (0, 2), (2, 3, 5)]


def drawn(dtype: str = "float64", seed: int = 0, device: str = "cpu") -> list[Tensor]:
    """Parameters with gradients; the second has none."""
    generator = np.random.default_rng(seed)
    parameters = [Tensor(fc.asarray(np.ones(shape, dtype), device=device), requires_grad=True) for shape in SHAPES]
    for number, parameter in enumerate(parameters):
        gradient = np.asarray(generator.standard_normal(parameter.shape)).astype(dtype)
        parameter.grad = None if number == 1 else fc.asarray(gradient, device=device)
    return parameters


def gradients(parameters: list[Tensor]) -> list[np.ndarray]:
    return [np.array(to_device(p.grad, "cpu")) for p in parameters if p.grad is not None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1, 5.0, 1e6, math.inf])
def test_as_torch(max_norm: float, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    ours = drawn(dtype)
    theirs = [torch.tensor(parameter.numpy(), requires_grad=True) for parameter in ours]
    for mine, other in zip(ours, theirs, strict=True):
        other.grad = None if mine.grad is None else torch.tensor(mine.grad)
    norm = clip_grad_norm_(iter(ours), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    tolerance = 4 * np.finfo(dtype).eps
    assert type(norm) is float and norm == pytest.approx(float(expected), rel=float(tolerance))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            assert mine.grad.dtype == dtype and mine.grad.shape == mine.shape
            np.testing.assert_allclose(mine.grad, other.grad.numpy(), rtol=tolerance)


@pytest.mark.parametrize("spoilt", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_does_as_in_torch(spoilt: float) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    mine = Tensor(np.ones(3), requires_grad=True)
    mine.grad = np.array([1.0, spoilt, -2.0])
    other = torch.ones(3, requires_grad=True, dtype=torch.float64)
    other.grad = torch.tensor(mine.grad)
    with np.errstate(invalid="ignore"):
        norm = clip_grad_norm_(mine, 1.0)
    expected = torch.nn.utils.clip_grad_norm_(other, 1.0)
    np.testing.assert_equal(norm, float(expected))
    np.testing.assert_array_equal(mine.grad, other.grad.numpy())


def test_gradients_of_a_smaller_norm_keep_their_bits() -> None:
    parameters = drawn("float32")
    before = [gradient.tobytes() for gradient in gradients(parameters)]
    norm = clip_grad_norm_(parameters, 100)
    assert 0 < norm < 100 and [gradient.tobytes() for gradient in gradients(parameters)] == before


def test_without_gradients_there_is_nothing_to_do() -> None:
    parameter = Tensor(np.ones(3), requires_grad=True)
    assert clip_grad_norm_([parameter], 1.0) == clip_grad_norm_([], 1.0) == 0 and parameter.grad is None


def test_the_norm_of_many_small_numbers_is_exact() -> None:
    """More than one piece, not a whole number of them; a sum in float32 would be wrong in the third digit."""
    parameter = Tensor(np.zeros((3, 100_003), "float32"), requires_grad=True)
    parameter.grad = np.full(parameter.shape, 0.1, "float32")
    parameter.grad[0, 0] = 3000
    expected = math.sqrt(math.fsum(float(value) ** 2 for value in parameter.grad.ravel()))
    assert clip_grad_norm_(parameter, 1.0) == pytest.approx(expected, rel=1e-14)
    assert clip_grad_norm_(parameter, 1.0) == pytest.approx(1, rel=1e-6)


def test_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    results = []
    for number in (1, 3):
        fc.set_num_threads(number)
        parameter = Tensor(np.zeros(200_003, "float32"), requires_grad=True)
        parameter.grad = np.random.default_rng(0).standard_normal(200_003, "float32")
        results.append((clip_grad_norm_([parameter], 1.0), parameter.grad.tobytes()))
    assert results[0] == results[1]


def check_as_on_the_cpu(dtype: Any, device: str, tolerance: float) -> None:
    here, there = drawn(dtype), drawn(dtype, device=device)
    norms = [clip_grad_norm_(parameters, 0.5) for parameters in (here, there)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-14) and type(norms[1]) is float
    assert {p.device for p in there} == {backends.device_of(p.grad) for p in there if p.grad is not None}
    for mine, other in zip(gradients(here), gradients(there), strict=True):
        assert other.dtype == dtype
        np.testing.assert_allclose(other.astype(float), mine.astype(float), rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_every_device(device: str, dtype: str) -> None:
    check_as_on_the_cpu(dtype, device, 2 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize(("name", "tolerance"), [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_half_precision_on_gpus(gpu: str, name: str, tolerance: float) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="pip install ml_dtypes")
    check_as_on_the_cpu(np.dtype(getattr(ml_dtypes, name, name)), gpu, tolerance)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: clip_grad_norm_(drawn(), -1), ValueError, "clip_grad_norm_: max_norm must be at least 0, got -1"),
        (lambda: clip_grad_norm_(drawn(), math.nan), ValueError, "max_norm must be at least 0, got nan"),
        (
            lambda: clip_grad_norm_([np.ones(3)], 1),  # type: ignore[list-item]
            TypeError,
            r"clip_grad_norm_: parameters must be Tensors, got ndarray; pass model.parameters\(\)",
        ),
        (lambda: clip_grad_norm_(nn.Sequential(nn.ReLU()), 1), TypeError, "must be Tensors, got ReLU"),
    ],
)
def test_refusals(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()
    assert len(caught.value.args) == 1 and isinstance(caught.value.args[0], str)


class ClippedSGD(optim.SGD):
    """As the docstring has it."""

    def step(self) -> None:
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
        super().step()


def test_clipping_within_fit_resumes_with_the_same_bits(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="pip install safetensors")

    def run(kind: type[optim.SGD] = ClippedSGD) -> Run:
        result = Run()
        result.optimizer = kind(result.model.parameters(), lr=0.05, momentum=0.9)
        result.schedule = optim.CosineAnnealingLR(result.optimizer, 3)
        return result

    whole = run()
    history, expected = whole.fit(3), whole.bits()
    run().fit(1, checkpoint=tmp_path / "run.safetensors")
    second = run()
    resumed = second.fit(3, checkpoint=tmp_path / "run.safetensors", resume=True)
    assert (second.bits(), without_times(resumed)) == (expected, without_times(history))
    free = run(optim.SGD)
    free.fit(3)
    assert (free.model[0].weight.data != whole.model[0].weight.data).any()
