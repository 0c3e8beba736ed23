"""A small network for small pictures."""

from __future__ import annotations

from typing import Any

from fastconv import nn


class DigitsNet(nn.Sequential):
    """Three 3×3 convolutions and one dense layer: (N, in_channels, size, size) → scores (N, classes).

    Max pooling after the second and the third convolution, ReLU, and dropout before the dense layer. Made for the 8×8
    digits of scikit-learn, which it learns in seconds: 25,866 parameters; `size` must be at least 4.
    """

    def __init__(
        self,
        size: int = 8,
        classes: int = 10,
        in_channels: int = 1,
        *,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        if size < 4:
            raise ValueError(f"DigitsNet: size must be at least 4, for two poolings by 2, got {size}")
        place = {"device": device, "dtype": dtype}
        super().__init__(
            {
                "conv1": nn.Conv2d(in_channels, 16, 3, padding=1, **place),
                "relu1": nn.ReLU(),
                "conv2": nn.Conv2d(16, 32, 3, padding=1, **place),
                "relu2": nn.ReLU(),
                "pool2": nn.MaxPool2d(2),
                "conv3": nn.Conv2d(32, 64, 3, padding=1, **place),
                "relu3": nn.ReLU(),
                "pool3": nn.MaxPool2d(2),
                "flatten": nn.Flatten(),
                "dropout": nn.Dropout(0.25),
                "fc": nn.Linear(64 * (size // 4) ** 2, classes, **place),
            }
        )
