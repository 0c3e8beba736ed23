"""The training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastconv import random
from fastconv.autograd import raw, to_device
from fastconv.nn import Module
from fastconv.optim import Optimizer, Schedule
from fastconv.training import checkpoint as checkpoints
from fastconv.training import nonfinite
from fastconv.training.history import History
from fastconv.training.inference import Loss, Metric, accuracy, device_of, evaluate, name_of, on_device_of
from fastconv.training.interrupt import Interrupts
from fastconv.training.progress import Display

Array = Any
Data = Iterable[tuple[Array, Array]]


def fit(
    model: Module,
    data: Data,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    *,
    validation: Data | None = None,
    metric: Metric | None = accuracy,
    schedule: Schedule | None = None,
    checkpoint: str | Path | None = None,
    best_checkpoint: str | Path | None = None,
    resume: bool = False,
    seed: int | None = None,
    progress: bool = True,
) -> History:
    """Train `model` on `data` and return the history, one row per epoch.

    `data` and `validation` give batches (x, y) each time they are iterated, as `Batches` or a list does.
    `loss(output, y)` is the mean over a batch, `metric(output, y)` a number computed on arrays: give None, or your own,
    where y holds no classes. `schedule` makes a step after each epoch. `seed` starts the generator of dropout anew.

    `checkpoint` names a file that is replaced after each epoch, and on Ctrl-C, in one step. With `resume=True` training
    goes on from there, up to `epochs` in all, even from the middle of an epoch: the result has the same bits as that of
    a training that was never interrupted. This needs data whose order repeats: `Batches`, a list, or anything that
    draws from the generator of `fastconv.random` alone. For predictions, `model.load_state_dict(load_weights(path))`.

    `best_checkpoint` names a second such file, which is replaced after each epoch whose validation loss is lower than
    that of every epoch before, those before `resume=True` included: it keeps the best epoch, while `checkpoint` and
    `model` end with the last one.

    Gradients are clipped in the optimiser's step: `nn.utils.clip_grad_norm_` says how.

    Ctrl-C ends training after the batch at work, pressed twice at once, and raises KeyboardInterrupt. Raises
    FloatingPointError if the loss is no finite number, naming epoch, batch and the first layer whose output is not
    finite; model, optimizer and checkpoint are then as they were before that batch. Raises ValueError where arguments,
    or a checkpoint, do not fit, FileNotFoundError where there is none.
    """
    if resume and checkpoint is None:
        raise ValueError("fit: resume=True needs the checkpoint to resume from, e.g. checkpoint='run.safetensors'")
    if epochs < 0:
        raise ValueError(f"fit: epochs must be 0 or more, got {epochs}")
    if best_checkpoint is not None and validation is None:
        raise ValueError("fit: best_checkpoint needs validation data, whose loss says which epoch is the best")
    if best_checkpoint and checkpoint and Path(best_checkpoint).resolve() == Path(checkpoint).resolve():
        raise ValueError(f"fit: checkpoint and best_checkpoint are both {checkpoint}; give each a file of its own")
    for path in (checkpoint, best_checkpoint):
        if path is not None:
            checkpoints.require_place(path)
    if seed is not None:
        random.manual_seed(seed)
    training = _Training(model, data, loss, optimizer, validation, metric, schedule)
    with Interrupts() as interrupts, on_device_of(model):
        if resume and checkpoint is not None:
            training.load(checkpoint, best_checkpoint)
        while training.at.epoch < epochs:
            try:
                training.run_epoch(epochs, interrupts, progress)
            except KeyboardInterrupt:
                with interrupts.protected():
                    training.save(checkpoint, best_checkpoint)
                raise
            with interrupts.protected():
                training.save(checkpoint, best_checkpoint)
    return training.history


@dataclass
class _Position:
    """Where a training stands: what a checkpoint must know besides the states of its parts."""

    epoch: int = 0
    """Epochs completed; the other fields belong to the epoch at work."""
    batch: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    metric_sum: float = 0.0
    seconds: float = 0.0
    random_at_start: dict[str, Any] | None = None
    """The generator before the data were iterated: an order drawn from it can be drawn again."""


class _Snapshot:
    """What a forward pass changes besides its result: running statistics, and the generator that dropout draws from."""

    def __init__(self, model: Module) -> None:
        self._model = model
        self._buffers = [buffer.copy() for buffer in model.buffers()]
        self._random = random.get_state()

    def restore(self) -> None:
        for buffer, kept in zip(self._model.buffers(), self._buffers, strict=True):
            buffer[...] = kept
        random.set_state(self._random)


@dataclass
class _Training:
    """The parts of a training, its position and its history."""

    model: Module
    data: Data
    loss: Loss
    optimizer: Optimizer
    validation: Data | None
    metric: Metric | None
    schedule: Schedule | None
    at: _Position = field(default_factory=_Position)
    history: History = field(default_factory=History)

    def run_epoch(self, epochs: int, interrupts: Interrupts, progress: bool) -> None:
        """From the present position to the end of the epoch, with validation and the row of the history."""
        samples = getattr(self.data, "samples", None)
        with Display(progress, self.at.epoch + 1, epochs, samples, self.at.samples) as display:
            self.model.train()
            batches = self._batches()
            before = self.at.samples
            while self._step(batches, interrupts):
                display.advance(self.at.samples - before, self._means())
                before = self.at.samples
                interrupts.check()
            row = self._row(interrupts)
            with interrupts.protected():
                self.history.append(row)
                if self.schedule is not None:
                    self.schedule.step()
                self.at = _Position(epoch=self.at.epoch + 1)
            display.finish(row)

    def _batches(self) -> Iterator[tuple[Array, Array]]:
        """The batches of this epoch still to be done; the generator is where it was before the first of them."""
        here = random.get_state()
        if self.at.random_at_start is None:
            self.at.random_at_start = here
        try:
            random.set_state(self.at.random_at_start)
            _set_epoch(self.data, self.at.epoch)
            batches = iter(self.data)
            for done in range(self.at.batch):
                if next(batches, None) is None:
                    raise ValueError(
                        f"fit: the checkpoint was written after {self.at.batch} batches of epoch {self.at.epoch + 1}, "
                        f"but data gave only {done}; resume with the data it was started with"
                    )
        except BaseException:
            random.set_state(here)
            raise
        if self.at.batch:
            random.set_state(here)
        return batches

    def _step(self, batches: Iterator[tuple[Array, Array]], interrupts: Interrupts) -> bool:
        """One batch: False if there is none left. Whatever goes wrong before the optimiser's step leaves no trace."""
        started = time.perf_counter()
        before = _Snapshot(self.model)
        try:
            batch = next(batches, None)
            if batch is None:
                return False
            x, y = (to_device(raw(part), device_of(self.model)) for part in batch)
            self.optimizer.zero_grad()
            output = self.model(x)
            loss = self.loss(output, y)
            value = float(loss)
            if not math.isfinite(value):
                before.restore()
                raise FloatingPointError(self._explanation(value, x))
            metric = float(self.metric(raw(output), y)) if self.metric else 0.0
            loss.backward()
        except BaseException:
            before.restore()
            raise
        with interrupts.protected():
            self.optimizer.step()
            self.at.batch += 1
            self.at.samples += len(x)
            self.at.loss_sum += value * len(x)
            self.at.metric_sum += metric * len(x)
            self.at.seconds += time.perf_counter() - started
        return True

    def _explanation(self, loss: float, x: Array) -> str:
        return (
            f"fit: the loss is {loss} in epoch {self.at.epoch + 1}, batch {self.at.batch + 1}: "
            f"{nonfinite.origin(self.model, x)}. Model and optimizer are as they were before this batch; "
            "try a smaller learning rate or scale the inputs"
        )

    def _means(self) -> dict[str, float]:
        means = {"loss": self.at.loss_sum / self.at.samples}
        if self.metric:
            means[name_of(self.metric)] = self.at.metric_sum / self.at.samples
        return means

    def _row(self, interrupts: Interrupts) -> dict[str, float]:
        epoch = self.at.epoch + 1
        if not self.at.samples:
            raise ValueError(
                f"fit: data gave no batches in epoch {epoch}; give Batches or a list, "
                "not an iterator that is used up after one epoch"
            )
        if broken := nonfinite.not_finite(self.model):
            raise FloatingPointError(
                f"fit: not finite after epoch {epoch}: {', '.join(broken)}. A checkpoint on disk is still the last "
                "good one; try a smaller learning rate"
            )
        row = {"epoch": epoch, **self._means()}
        if self.validation is not None:
            before = _Snapshot(self.model)
            try:
                _set_epoch(self.validation, self.at.epoch)
                checked = interrupts.checked(self.validation)
                means = evaluate(self.model, checked, self.loss, self.metric)
            except BaseException:
                before.restore()
                raise
            row.update({f"validation_{name}": value for name, value in means.items()})
        return row | {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": self.at.seconds,
            "samples_per_second": self.at.samples / self.at.seconds,
        }

    # On disk

    def save(self, path: str | Path | None, best: str | Path | None) -> None:
        """Write what is asked for, the best epoch first: a training killed between the two does that epoch again."""
        if best is not None and self.at.batch == 0 and _lowest(self.history[-1:]) < _lowest(self.history[:-1]):
            checkpoints.save(best, self.model.state_dict(), self._state())
        if path is not None:
            checkpoints.save(path, self.model.state_dict(), self._state())

    def load(self, path: str | Path, best: str | Path | None) -> None:
        """Continue from a checkpoint; if any of its parts does not fit, everything stays as it is."""
        kept = {name: array.copy() for name, array in self.model.state_dict().items()}, copy.deepcopy(self._state())
        try:
            self._restore(*checkpoints.load(path))
            if best is not None and _lowest(self.history) < math.inf:
                checkpoints.require_best(best)
        except BaseException:
            self._restore(*kept)
            raise

    def _state(self) -> dict[str, Any]:
        return {
            "position": asdict(self.at),
            "history": list(self.history),
            "random": random.get_state(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def _restore(self, model: dict[str, Array], state: dict[str, Any]) -> None:
        self.model.load_state_dict(model)
        for name, part in self._parts().items():
            if name not in state:
                raise ValueError(
                    f"fit: the checkpoint has no state of the {name}; resume with the parts it was written with"
                )
            part.load_state_dict(state[name])
        self.at = _Position(**state["position"])
        self.history[:] = state["history"]
        random.set_state(state["random"])

    def _parts(self) -> dict[str, Any]:
        """What has a state of its own besides the model."""
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "data": self.data}
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}


def _lowest(rows: list[dict[str, float]]) -> float:
    """The lowest validation loss of some epochs; infinity where there is none, or NaN alone."""
    losses = [row.get("validation_loss", math.nan) for row in rows]
    return min((loss for loss in losses if not math.isnan(loss)), default=math.inf)


def _set_epoch(data: Data, epoch: int) -> None:
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)
