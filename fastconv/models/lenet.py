"""LeNet-5."""

from __future__ import annotations

from typing import Any

from fastconv import nn


class LeNet5(nn.Sequential):
    """LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998): (N, in_channels, 32, 32) → scores (N, classes).

    Two 5×5 convolutions with average pooling, then three dense layers, tanh throughout. As usual today, the third
    feature layer sees all maps of the second, pooling has no weights of its own and the output is linear: 61,706
    parameters for one channel and ten classes.
    """

    def __init__(
        self, classes: int = 10, in_channels: int = 1, *, device: str | None = None, dtype: Any = None
    ) -> None:
        place = {"device": device, "dtype": dtype}
        super().__init__(
            {
                "conv1": nn.Conv2d(in_channels, 6, 5, **place),
                "tanh1": nn.Tanh(),
                "pool1": nn.AvgPool2d(2),
                "conv2": nn.Conv2d(6, 16, 5, **place),
                "tanh2": nn.Tanh(),
                "pool2": nn.AvgPool2d(2),
                "flatten": nn.Flatten(),
                "fc1": nn.Linear(16 * 5 * 5, 120, **place),
                "tanh3": nn.Tanh(),
                "fc2": nn.Linear(120, 84, **place),
                "tanh4": nn.Tanh(),
                "fc3": nn.Linear(84, classes, **place),
            }
        )
