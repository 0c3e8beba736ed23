"""The training loop: what it learns, keeps and shows, and what it refuses."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_run import TIMES, Run, stripes, without_times

from fastconv import data, nn, training
from fastconv.ops import losses


def test_fit_learns_and_keeps_a_history() -> None:
    run = Run()
    history = run.fit(20, schedule=None)
    assert history.column("epoch") == list(range(1, 21))
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["validation_accuracy"] >= 0.9
    assert set(history[0]) == {
        "epoch",
        "loss",
        "accuracy",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
        *TIMES,
    }
    assert all(row["samples_per_second"] > 0 for row in history)


def test_history_says_what_evaluate_says() -> None:
    run = Run()
    row = run.fit(1)[0]
    result = training.evaluate(run.model, run.validation, losses.cross_entropy)
    assert result == {"loss": row["validation_loss"], "accuracy": row["validation_accuracy"]}


def test_learning_rate_follows_the_schedule() -> None:
    assert Run().fit(3).column("learning_rate") == pytest.approx([0.01, 0.0075, 0.0025])


def test_two_trainings_with_one_seed_have_the_same_bits() -> None:
    first, second = Run(), Run()
    histories = first.fit(2, seed=5), second.fit(2, seed=5)
    assert first.bits() == second.bits() and without_times(histories[0]) == without_times(histories[1])
    other = Run()
    other.fit(2, seed=6)
    assert other.bits() != first.bits()


def test_history_as_csv(tmp_path: Path) -> None:
    history = training.History([{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-30, "accuracy": 1.0}])
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows == history


def test_metric_can_be_another_or_none() -> None:
    def squares(output: np.ndarray, target: np.ndarray) -> float:
        return float((output**2).mean())

    assert "squares" in Run().fit(1, metric=squares)[0]
    assert set(Run().fit(1, metric=None, validation=None)[0]) == {"epoch", "loss", "learning_rate", *TIMES}


def test_a_list_of_batches_is_data() -> None:
    run = Run(wrap=list)
    assert run.fit(2).column("epoch") == [1, 2]


@pytest.mark.parametrize(
    ("wrap", "options", "message"),
    [
        (iter, {}, "data gave no batches in epoch 2; give Batches or a list"),
        (lambda batches: [], {}, "data gave no batches in epoch 1"),
        (list, {"resume": True}, "resume=True needs the checkpoint to resume from"),
        (list, {"epochs": -1}, "epochs must be 0 or more, got -1"),
    ],
)
def test_fit_refuses(wrap: Callable[[Any], Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(wrap).fit(**options)


# predict and evaluate


@pytest.mark.parametrize("batch_size", [1, 7, 40, 100])
def test_predict_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    run = Run()
    x, _ = stripes()
    run.fit(1)
    expected = run.model.eval()(x).numpy()
    run.model.train()
    result = training.predict(run.model, x, batch_size)
    assert isinstance(result, np.ndarray) and (result == expected).all()


def test_predict_of_nothing_has_the_right_shape() -> None:
    assert training.predict(Run().model, np.zeros((0, 1, 6, 6), np.float32)).shape == (0, 2)


def test_predict_and_evaluate_leave_the_model_as_it_is() -> None:
    run = Run()
    run.model[1].eval()  # a frozen layer stays frozen
    before = run.bits()
    training.predict(run.model, stripes()[0])
    training.evaluate(run.model, run.validation, losses.cross_entropy)
    assert run.bits() == before
    assert [module.training for module in run.model] == [True, False, True, True, True, True]


def test_evaluate_counts_batches_by_their_samples() -> None:
    x, y = stripes(13)
    model = Run().model
    whole, parts = (training.evaluate(model, data.Batches(x, y, size), losses.cross_entropy) for size in (13, 5))
    assert parts == pytest.approx(whole)
    assert whole["accuracy"] == training.accuracy(training.predict(model, x), y)


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (np.zeros((4, 1), "float32"), np.zeros((4, 1), "float32")),  # a regression: every class would be 0
        (np.zeros((4, 3), "float32"), np.zeros((4, 3), "float32")),  # probabilities
        (np.zeros((4, 3), "float32"), np.zeros(4, "float32")),
        (np.zeros((4, 1, 5), "float32"), np.zeros((4, 1, 5), "int64")),
        (np.zeros(4, "float32"), np.zeros(4, "int64")),
    ],
)
def test_accuracy_is_of_classes(output: Any, target: Any) -> None:
    with pytest.raises(ValueError) as caught:
        training.accuracy(output, target)
    assert caught.value.args == (
        f"accuracy: needs class numbers (N, ...) for output (N, classes, ...), got target shape {target.shape} "
        f"({target.dtype}) for output shape {output.shape}; for other targets give another metric, or metric=None",
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: training.evaluate(model, [], losses.cross_entropy), "evaluate: data gave no batches"),
        (lambda model: training.predict(model, stripes()[0], 0), "predict: batch_size must be at least 1, got 0"),
    ],
)
def test_inference_refuses(call: Callable[[nn.Module], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Run().model)


# Progress


def test_progress_without_a_terminal_is_a_line_per_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    Run().fit(2, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "  loss 0." in lines[0] and "  val_accuracy " in lines[0] and lines[0].endswith(" samples/s")


def test_progress_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm", reason="pip install tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Run().fit(2, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 2/2: 100%" in shown and "40/40" in shown and "samples/s" in shown and "loss=0." in shown


def test_missing_tqdm_is_said_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("fastconv.training.progress._advice_given", False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    Run().fit(2, progress=True)
    shown = capsys.readouterr().err
    assert shown.count("tqdm is not installed (pip install tqdm)") == 1 and shown.count("epoch ") == 2


def test_no_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    Run().fit(1, progress=False)
    assert capsys.readouterr() == ("", "")
