"""`fit(best_checkpoint=)`: the file of the epoch with the lowest validation loss, over interruptions too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import Counter, Run, interrupt, press_ctrl_c, without_times

from fastconv import random, training
from fastconv.autograd import to_device
from fastconv.ops import losses

pytestmark = pytest.mark.usefixtures("interruptible")


class Losses:
    """A loss that is cross-entropy in training, and in validation the numbers given, one for each epoch."""

    def __init__(self, run: Run, values: Sequence[float]) -> None:
        self.run, self.values = run, values

    def __call__(self, output: Any, target: Any) -> Any:
        loss = losses.cross_entropy(output, target)
        if self.run.model.training:
            return loss
        epoch = self.run.optimizer.state_dict()["state"][0]["step"] // 5  # batches of training in each
        return 0 * loss + self.values[epoch - 1]


def with_losses(values: Sequence[float], **options: Any) -> Run:
    run = Run(**options)
    run.loss = Losses(run, values)
    return run


def content(path: Path) -> tuple[Any, ...]:
    """All that a checkpoint holds, without times."""
    from fastconv.training.checkpoint import load

    model, state = load(path)
    history = without_times(training.History(state.pop("history")))
    del state["position"]
    return {name: array.tobytes() for name, array in model.items()}, repr(state), history


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ((3.0, 1.0, 2.0), 2),
        ((1.0, 2.0, 3.0), 1),
        ((3.0, 2.0, 1.0), 3),
        ((2.0, 1.0, 1.0), 2),  # the first of equals
        ((np.nan, 2.0, 3.0), 2),
        ((2.0, np.nan, 3.0), 1),
        ((np.nan, np.nan, np.nan), None),
    ],
)
def test_the_best_epoch_is_kept(checkpoint: Path, values: Sequence[float], best: int | None) -> None:
    path = checkpoint.with_name("best.safetensors")
    with_losses(values).fit(3, best_checkpoint=path)
    if best is None:
        assert not path.exists()
        return
    with_losses(values).fit(best, checkpoint=checkpoint)
    assert content(path) == content(checkpoint)
    model = Run().model
    model.load_state_dict(training.load_weights(path))


def test_the_best_epoch_of_a_model_on_a_gpu(checkpoint: Path, gpu: str) -> None:
    path, run, first = checkpoint.with_name("best.safetensors"), Run(), Run()
    for each, epochs, options in ((run, 2, {"best_checkpoint": path}), (first, 1, {"checkpoint": checkpoint})):
        random.manual_seed(1)
        each.loss = Losses(each, (1.0, 2.0))
        each.model.to(gpu)
        each.fit(epochs, **options)
    assert content(path) == content(checkpoint)
    assert np.array_equal(training.load_weights(path)["0.weight"], to_device(first.model[0].weight.data, "cpu"))


# Each epoch calls the metric 5 times in training and 3 times in validation.
@pytest.mark.parametrize("action", [interrupt, press_ctrl_c])
@pytest.mark.parametrize("call", [3, 6, 7, 8, 9, 15, 16, 23])
def test_the_best_epoch_of_a_resumed_training(checkpoint: Path, call: int, action: Callable[[], None]) -> None:
    values = (3.0, 1.0, 2.0)
    expected, best = (checkpoint.with_name(f"{name}.safetensors") for name in ("expected", "best"))
    whole = with_losses(values)
    whole.fit(3, best_checkpoint=expected)
    wanted = whole.bits()
    with pytest.raises(KeyboardInterrupt):
        with_losses(values).fit(3, checkpoint=checkpoint, best_checkpoint=best, metric=Counter(call, action))
    resumed = with_losses(values)
    resumed.fit(3, checkpoint=checkpoint, best_checkpoint=best, resume=True)
    assert content(best) == content(expected) and resumed.bits() == wanted


def test_a_kill_between_the_two_files_loses_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastconv.training import checkpoint as checkpoints

    values, save = (3.0, 1.0, 2.0), checkpoints.save
    expected, best = (checkpoint.with_name(f"{name}.safetensors") for name in ("expected", "best"))
    with_losses(values).fit(3, best_checkpoint=expected)
    written: list[Any] = []

    def killed(path: Path, *rest: Any) -> None:
        if len(written) == 3:  # best and checkpoint of the first epoch, best of the second
            raise SystemExit
        written.append(path)
        save(path, *rest)

    monkeypatch.setattr(checkpoints, "save", killed)
    with pytest.raises(SystemExit):
        with_losses(values).fit(3, checkpoint=checkpoint, best_checkpoint=best)
    assert written == [best, checkpoint, best]
    monkeypatch.setattr(checkpoints, "save", save)
    with_losses(values).fit(3, checkpoint=checkpoint, best_checkpoint=best, resume=True)
    assert content(best) == content(expected)


def test_a_best_epoch_before_the_interruption_stays_the_best(checkpoint: Path) -> None:
    best, values = checkpoint.with_name("best.safetensors"), (1.0, 3.0, 2.0)
    with_losses(values).fit(1, checkpoint=checkpoint, best_checkpoint=best)
    kept = best.read_bytes()
    with_losses(values).fit(3, checkpoint=checkpoint, best_checkpoint=best, resume=True)
    assert best.read_bytes() == kept
    best.unlink()
    run = Run()
    before = run.bits()
    with pytest.raises(FileNotFoundError, match=r"there is no best_checkpoint at .*; give the file that this training"):
        run.fit(4, checkpoint=checkpoint, best_checkpoint=best, resume=True)
    assert run.bits() == before


def test_a_best_epoch_may_be_asked_for_with_the_first_validation(checkpoint: Path) -> None:
    best = checkpoint.with_name("best.safetensors")
    Run().fit(1, checkpoint=checkpoint, validation=None)
    with pytest.raises(KeyboardInterrupt):
        Run().fit(3, checkpoint=checkpoint, best_checkpoint=best, resume=True, metric=Counter(0, interrupt))
    assert not best.exists()
    Run().fit(2, checkpoint=checkpoint, best_checkpoint=best, resume=True)
    assert content(best) == content(checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": None}, "best_checkpoint needs validation data, whose loss says which epoch is the best"),
        ({"checkpoint": "best.safetensors"}, "are both best.safetensors; give each a file of its own"),
    ],
)
def test_a_best_epoch_that_cannot_be_kept_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run().fit(best_checkpoint="best.safetensors", **options)
