"""The networks: their published size, and the shapes that they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import models, nn, training


@pytest.mark.parametrize(
    ("make", "shape", "parameters"),
    [
        (models.LeNet5, (1, 32, 32), 61_706),
        (models.DigitsNet, (1, 8, 8), 25_866),
        (lambda: models.DigitsNet(28), (1, 28, 28), 54_666),
        (lambda: models.ResNet((3, 3, 3), (16, 32, 64), 10, small_images=True), (3, 32, 32), 272_474),
        (models.ResNet, (3, 64, 64), 11_689_512),
    ],
    ids=["LeNet5", "DigitsNet", "DigitsNet28", "ResNet20", "ResNet18"],
)
def test_models_have_their_published_size(make: Any, shape: tuple[int, ...], parameters: int) -> None:
    model: nn.Module = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    scores = training.predict(model, np.zeros((2, *shape), np.float32))
    assert scores.shape == (2, 1000 if parameters > 1e7 else 10) and np.isfinite(scores).all()


def test_models_refuse() -> None:
    with pytest.raises(ValueError, match="DigitsNet: size must be at least 4"):
        models.DigitsNet(3)
    with pytest.raises(ValueError, match=r"ResNet: blocks and widths .* got \(1, 2\) and \(8,\)"):
        models.ResNet((1, 2), (8,))
