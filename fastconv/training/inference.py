"""A model applied to data, without recording and in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fastconv import backends
from fastconv.autograd import no_grad, raw, to_device
from fastconv.nn import Module

Array = Any
Loss = Callable[[Any, Any], Any]
Metric = Callable[[Array, Array], float]


def accuracy(output: Array, target: Array) -> float:
    """Fraction of samples whose largest score is that of their class: output (N, classes, ...), target (N, ...).

    Raises ValueError for targets that are no class numbers of these samples.
    """
    if output.ndim < 2 or target.shape != output.shape[:1] + output.shape[2:] or target.dtype.kind not in "iub":
        raise ValueError(
            f"accuracy: needs class numbers (N, ...) for output (N, classes, ...), got target shape {target.shape} "
            f"({target.dtype}) for output shape {output.shape}; for other targets give another metric, or metric=None"
        )
    return float((output.argmax(axis=1) == target).mean())


def predict(model: Module, inputs: Array, batch_size: int = 256) -> Array:
    """The model's outputs for all `inputs` (N, ...) as one array, `batch_size` samples at a time.

    The model runs in evaluation mode, without recording, on its own device, and is left in the mode it was in.
    """
    if batch_size < 1:
        raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
    inputs, device = raw(inputs), device_of(model)
    with evaluating(model), no_grad(), on_device_of(model):
        outputs = [
            raw(model(to_device(inputs[start : start + batch_size], device)))
            for start in range(0, max(len(inputs), 1), batch_size)
        ]
        return outputs[0] if len(outputs) == 1 else backends.of(outputs[0]).concatenate(outputs, 0)


def evaluate(
    model: Module, data: Iterable[tuple[Array, Array]], loss: Loss, metric: Metric | None = accuracy
) -> dict[str, float]:
    """Mean loss and metric over the batches of `data`, as {"loss": ..., "accuracy": ...} (the metric by its name).

    The batches count by their number of samples. The model runs in evaluation mode, without recording, and is left in
    the mode it was in. Raises ValueError if there is no batch.
    """
    sums, samples, device = [0.0, 0.0], 0, device_of(model)
    with evaluating(model), no_grad(), on_device_of(model):
        for x, y in data:
            target = to_device(raw(y), device)
            output = model(to_device(raw(x), device))
            sums[0] += float(loss(output, target)) * len(x)
            sums[1] += metric(raw(output), target) * len(x) if metric else 0.0
            samples += len(x)
    if not samples:
        raise ValueError("evaluate: data gave no batches")
    result = {"loss": sums[0] / samples}
    if metric:
        result[name_of(metric)] = sums[1] / samples
    return result


def name_of(metric: Metric) -> str:
    """What a metric is called in the history."""
    return getattr(metric, "__name__", type(metric).__name__)


def device_of(model: Module) -> str:
    """Where the parameters are; "cpu" for a model without any."""
    return next((parameter.device for parameter in model.parameters()), "cpu")


def on_device_of(model: Module) -> AbstractContextManager[Any]:
    """A context for the work on a model: its GPU, if it is on one, is the current one."""
    return backends.on(next((parameter.data for parameter in model.parameters()), None))


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards each module is in the mode it was in, frozen ones included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
