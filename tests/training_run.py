"""A small training that has everything whose state an interruption could lose; for the suites of `fit`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import data, nn, optim, random, training
from fastconv.ops import losses

TIMES = ("seconds", "samples_per_second")


def stripes(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of 6×6 with a horizontal (0) or vertical (1) stripe."""
    generator = np.random.default_rng(0)
    y = np.arange(count) % 2
    x = generator.standard_normal((count, 1, 6, 6)) * 0.3
    for n, place in enumerate(generator.integers(0, 6, count)):
        x[(n, 0, slice(None), place) if y[n] else (n, 0, place)] += 1
    return x.astype(np.float32), y


class Run:
    """Everything a training needs, made anew from one seed: batch norm, dropout, momentum, schedule, augmentation."""

    def __init__(self, wrap: Callable[[Any], Any] = lambda batches: batches, optimizer: str = "Adam") -> None:
        random.manual_seed(1)
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(64, 2),
        )
        parameters = list(self.model.parameters())
        self.optimizer = {
            "Adam": lambda: optim.Adam(parameters, lr=0.01),
            "SGD": lambda: optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
        }[optimizer]()
        self.schedule = optim.CosineAnnealingLR(self.optimizer, 3)
        x, y = stripes()
        self.data = wrap(data.Batches(x, y, 8, shuffle=True, transform=data.random_shift, seed=2))
        self.validation = data.Batches(*stripes(12), 5)
        self.loss = losses.cross_entropy

    def fit(self, epochs: int = 3, **options: Any) -> training.History:
        options = {"validation": self.validation, "schedule": self.schedule, "progress": False, **options}
        return training.fit(self.model, self.data, self.loss, self.optimizer, epochs, **options)

    def bits(self) -> dict[str, Any]:
        """All that must be equal after two trainings that claim to be the same."""
        arrays = {name: array.copy() for name, array in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            arrays.update({f"{number}.{name}": np.array(value) for name, value in state.items()})
        numbers = [random.get_state(), self.optimizer.state_dict()["param_groups"], self.schedule.state_dict()]
        return {**{name: (array.dtype, array.tobytes()) for name, array in arrays.items()}, "numbers": numbers}


def without_times(history: training.History) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in history]


class Counter:
    """A metric that calls `action` in its call number `at`."""

    def __init__(self, at: int, action: Callable[[], None]) -> None:
        self.calls, self.at, self.action = 0, at, action
        self.__name__ = "accuracy"

    def __call__(self, output: np.ndarray, target: np.ndarray) -> float:
        self.calls += 1
        if self.calls - 1 == self.at:
            self.action()
        return training.accuracy(output, target)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def interrupt() -> None:
    raise KeyboardInterrupt
