"""Interruptions, NaN and full disks leave no trace: a resumed training ends with the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import Counter, Run, interrupt, press_ctrl_c, stripes, without_times

from fastconv import data, nn, optim, random, training
from fastconv.io.safetensors import save_safetensors
from fastconv.ops import losses

pytestmark = pytest.mark.usefixtures("interruptible")


class StopAt:
    """Batches that raise KeyboardInterrupt instead of giving number `batch` of epoch `epoch`."""

    def __init__(self, batches: data.Batches, epoch: int, batch: int) -> None:
        self.batches, self.stop = batches, (epoch, batch)
        self.state_dict, self.load_state_dict = batches.state_dict, batches.load_state_dict

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if (self.epoch, number) == self.stop:
                raise KeyboardInterrupt
            yield batch


def uninterrupted(optimizer: str = "Adam") -> tuple[dict[str, Any], list[dict[str, float]]]:
    run = Run(optimizer=optimizer)
    history = run.fit()
    return run.bits(), without_times(history)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_resume_after_whole_epochs(checkpoint: Path, epochs: int, optimizer: str) -> None:
    Run(optimizer=optimizer).fit(epochs, checkpoint=checkpoint)
    if epochs == 0:
        assert not checkpoint.exists()
        return
    resumed = Run(optimizer=optimizer)
    random.manual_seed(99)  # the state comes from the file
    history = resumed.fit(checkpoint=checkpoint, resume=True)
    assert (resumed.bits(), without_times(history)) == uninterrupted(optimizer)


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 3), (1, 0), (1, 2), (2, 4)])
def test_resume_after_an_interrupt_from_the_data(checkpoint: Path, epoch: int, batch: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(lambda batches: StopAt(batches, epoch, batch)).fit(checkpoint=checkpoint)
    resumed = Run()
    history = resumed.fit(checkpoint=checkpoint, resume=True)
    assert (resumed.bits(), without_times(history)) == uninterrupted()


# Each epoch calls the metric 5 times in training and 3 times in validation.
@pytest.mark.parametrize("action", [interrupt, press_ctrl_c])
@pytest.mark.parametrize("call", [0, 4, 5, 7, 8, 17, 20, 23])
def test_resume_after_an_interrupt_within_a_batch(checkpoint: Path, call: int, action: Callable[[], None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run().fit(checkpoint=checkpoint, metric=Counter(call, action))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = Run()
    history = resumed.fit(checkpoint=checkpoint, resume=True)
    assert (resumed.bits(), without_times(history)) == uninterrupted()


def test_resume_with_a_joint_transform(checkpoint: Path) -> None:
    def transposing(batches: data.Batches) -> data.Batches:
        def transposed(x: Any, y: Any, generator: np.random.Generator) -> tuple[Any, Any]:
            chosen, x, y = generator.random(len(x)) < 0.5, x.copy(), y.copy()
            x[chosen], y[chosen] = x[chosen].swapaxes(2, 3), 1 - y[chosen]  # a horizontal stripe becomes a vertical one
            return x, y

        batches.joint_transform = transposed
        return batches

    whole = Run(transposing)
    history, expected = without_times(whole.fit()), whole.bits()
    with pytest.raises(KeyboardInterrupt):
        Run(transposing).fit(checkpoint=checkpoint, metric=Counter(10, interrupt))
    resumed = Run(transposing)
    assert without_times(resumed.fit(checkpoint=checkpoint, resume=True)) == history and resumed.bits() == expected
    assert (expected, history) != uninterrupted()


def test_resume_after_several_interrupts(checkpoint: Path) -> None:
    for attempt, call in enumerate((2, 1, 7, 3)):
        with pytest.raises(KeyboardInterrupt):
            Run().fit(checkpoint=checkpoint, resume=attempt > 0, metric=Counter(call, interrupt))
    resumed = Run()
    history = resumed.fit(checkpoint=checkpoint, resume=True)
    assert (resumed.bits(), without_times(history)) == uninterrupted()


def test_resume_with_data_that_draw_from_the_common_generator(checkpoint: Path) -> None:
    class Drawn:
        """Shuffles with the generator that dropout draws from too, in the middle of the epoch as well."""

        def __init__(self, batches: data.Batches) -> None:
            self.x, self.y = batches.x, batches.y

        def __iter__(self) -> Iterator[Any]:
            order = random.generator().permutation(len(self.x))
            for chosen in order.reshape(5, 8):
                yield self.x[chosen] + np.float32(random.generator().random()), self.y[chosen]

    plain = Run(Drawn)
    expected = without_times(plain.fit()), plain.bits()
    for call in (0, 2, 9):
        with pytest.raises(KeyboardInterrupt):
            Run(Drawn).fit(checkpoint=checkpoint, metric=Counter(call, interrupt))
        resumed = Run(Drawn)
        history = resumed.fit(checkpoint=checkpoint, resume=True)
        assert (without_times(history), resumed.bits()) == expected


def test_ctrl_c_waits_for_the_batch_to_end_and_twice_does_not(checkpoint: Path) -> None:
    metric = Counter(1, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        Run().fit(checkpoint=checkpoint, metric=metric)
    assert position(checkpoint)["batch"] == 2

    def press_twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        Run().fit(checkpoint=checkpoint, metric=Counter(1, press_twice))
    assert position(checkpoint)["batch"] == 1


def position(checkpoint: Path) -> dict[str, Any]:
    from fastconv.training.checkpoint import load

    return dict(load(checkpoint)[1]["position"])


def test_a_program_with_its_own_handler_keeps_it() -> None:
    pressed = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        history = Run().fit(1, metric=Counter(0, press_ctrl_c))
        assert len(history) == 1 and pressed == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, previous)


def test_fit_in_another_thread() -> None:
    histories = []
    thread = threading.Thread(target=lambda: histories.append(Run().fit(1)))
    thread.start()
    thread.join()
    assert len(histories) == 1 and without_times(histories[0]) == without_times(Run().fit(1))


# Checkpoints


def test_the_weights_of_a_checkpoint(checkpoint: Path) -> None:
    run, other = Run(), Run()
    run.fit(1, checkpoint=checkpoint)
    other.model.load_state_dict(training.load_weights(checkpoint))
    x = stripes()[0]
    assert training.predict(other.model, x).tobytes() == training.predict(run.model, x).tobytes()


def test_weights_of_what_is_no_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        training.load_weights(checkpoint)
    save_safetensors(Run().model.state_dict(), checkpoint)
    with pytest.raises(ValueError, match="is no checkpoint of fit"):
        training.load_weights(checkpoint)


# What is in a checkpoint, and when it is refused


def test_checkpoint_is_safetensors_and_json(checkpoint: Path) -> None:
    from safetensors import safe_open

    run = Run()
    run.fit(1, checkpoint=checkpoint)
    with safe_open(checkpoint, framework="numpy") as file:
        assert (file.get_tensor("model.0.weight") == run.model[0].weight.data).all()
        assert "optimizer.state.0.exp_avg" in file.keys()  # noqa: SIM118  # not a mapping
        assert json.loads(file.metadata()["fastconv.training"])["version"] == 1


def test_a_failing_disk_leaves_the_last_checkpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.fit(1, checkpoint=checkpoint)
    kept = checkpoint.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.fit(2, checkpoint=checkpoint, resume=True)
    assert checkpoint.read_bytes() == kept and list(checkpoint.parent.iterdir()) == [checkpoint]


def with_other_batch_size(run: Run) -> None:
    run.data = data.Batches(*stripes(), 10, seed=3)


def with_other_optimizer(run: Run) -> None:
    run.optimizer = optim.SGD(run.model[0].parameters(), lr=0.1)


def with_other_model(run: Run) -> None:
    run.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_other_batch_size, r"the saved order belongs to .*'batch_size': 8"),
        (
            with_other_optimizer,
            r"SGD.load_state_dict: the state has groups of \[6\] parameters, this optimiser of \[2\]",
        ),
        (with_other_model, r"load_state_dict: the state does not fit Sequential"),
    ],
)
def test_resume_with_other_parts_is_refused_and_changes_nothing(
    checkpoint: Path, change: Callable[[Run], None], message: str
) -> None:
    Run().fit(1, checkpoint=checkpoint)
    run = Run()
    change(run)
    before, order = run.bits(), run.data.state_dict()
    with pytest.raises(ValueError, match=message):
        run.fit(checkpoint=checkpoint, resume=True)
    assert run.bits() == before and run.data.state_dict() == order


def test_resume_with_less_data_is_refused(checkpoint: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(list).fit(checkpoint=checkpoint, metric=Counter(3, interrupt))
    with pytest.raises(ValueError, match="written after 3 batches of epoch 1, but data gave only 2"):
        Run(lambda batches: list(batches)[:2]).fit(checkpoint=checkpoint, resume=True)


def test_a_checkpoint_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    before = run.bits()
    for name in ("checkpoint", "best_checkpoint"):
        with pytest.raises(FileNotFoundError, match=r"the folder of checkpoint .* does not exist; make it first"):
            run.fit(**{name: tmp_path / "nowhere" / "run.safetensors"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="checkpoints need safetensors, which is not installed"):
        run.fit(checkpoint=tmp_path / "run.safetensors")
    assert run.bits() == before


def test_resume_needs_a_checkpoint_of_a_training(checkpoint: Path) -> None:
    from fastconv.io.safetensors import save_safetensors

    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*; start with resume=False"):
        Run().fit(checkpoint=checkpoint, resume=True)
    save_safetensors(Run().model.state_dict(), checkpoint)
    with pytest.raises(ValueError, match="holds weights but no training to resume"):
        Run().fit(checkpoint=checkpoint, resume=True)


# A loss that is no finite number


class Spoilt(nn.Module):
    """Passes its input on, but from call `at` (counted from 0) on it adds NaN."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def forward(self, input: Any) -> Any:
        self.calls += 1
        return input + np.float32(np.nan) if self.calls > self.at else input


def spoilt_layer(run: Run) -> None:
    setattr(run.model, "2", Spoilt(10))  # 5 batches of training and 3 of validation before the second epoch


def spoilt_data(run: Run) -> None:
    x, y = stripes()
    x[30] = np.nan
    run.data = data.Batches(x, y, 8, seed=0)


def spoilt_parameter(run: Run) -> None:
    run.model[5].weight.data[0, 3] = np.inf


def spoilt_loss(run: Run) -> None:
    run.loss = lambda output, y: losses.cross_entropy(output, y) + (np.nan if run.optimizer.state else 0.0)


@pytest.mark.parametrize(
    ("spoil", "epoch", "batch", "message"),
    [
        (
            spoilt_layer,
            2,
            3,
            r"first layer whose output is not finite is '2' \(Spoilt\), output shape \(8, 4, 4, 4\)",
        ),
        (spoilt_data, 1, 4, r"the input batch itself is not finite \(shape \(8, 1, 6, 6\)\); look at the data"),
        (
            spoilt_parameter,
            1,
            1,
            r"already not finite before this step: 5.weight; the first layer .* is '5' \(Linear\)",
        ),
        (spoilt_loss, 1, 2, r"every layer's output is finite, so it arises in the loss function or in the targets"),
    ],
)
def test_a_loss_that_is_not_finite(
    checkpoint: Path, spoil: Callable[[Run], None], epoch: int, batch: int, message: str
) -> None:
    twin = Run()
    spoil(twin)
    twin.data = StopAt(twin.data, epoch - 1, batch - 1)
    with pytest.raises(KeyboardInterrupt):
        twin.fit()
    expected = twin.bits()
    run = Run()
    spoil(run)
    with pytest.raises(
        FloatingPointError, match=rf"^fit: the loss is (nan|inf) in epoch {epoch}, batch {batch}: .*{message}"
    ):
        run.fit(checkpoint=checkpoint)
    assert run.bits() == expected
    assert checkpoint.exists() == (epoch > 1)
    if epoch > 1:
        assert (position(checkpoint)["epoch"], position(checkpoint)["batch"]) == (epoch - 1, 0)


def test_parameters_that_are_not_finite_are_not_saved(checkpoint: Path) -> None:
    run = Run()
    run.fit(1, checkpoint=checkpoint)
    kept, step = checkpoint.read_bytes(), run.optimizer.step

    def overflow() -> None:
        step()
        if run.optimizer.state_dict()["state"][0]["step"] == 10:
            run.model[0].bias.data[1] = np.inf

    run.optimizer.step = overflow  # type: ignore[method-assign]
    with pytest.raises(
        FloatingPointError, match=r"fit: not finite after epoch 2: 0.bias. A checkpoint on disk is still"
    ):
        run.fit(2, checkpoint=checkpoint, resume=True)
    assert checkpoint.read_bytes() == kept
