"""Residual networks of basic blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv import nn
from fastconv.ops.residual import add_relu


class BasicBlock(nn.Module):
    """relu(z + shortcut) with z two 3×3 convolutions, each with batch norm; the first has the stride.

    The shortcut is the input, or a 1×1 convolution with batch norm where the shape changes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, **place: Any) -> None:
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False, **place)
        self.bn1 = nn.BatchNorm2d(channels, **place)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **place)
        self.bn2 = nn.BatchNorm2d(channels, **place)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False, **place), nn.BatchNorm2d(channels, **place)
            )

    def forward(self, input: Any) -> Any:
        z = self.relu(self.bn1(self.conv1(input)))
        z = self.bn2(self.conv2(z))
        return add_relu(z, input if self.downsample is None else self.downsample(input))

    def fusible(self) -> Sequence[Sequence[str]]:
        return ("conv1", "bn1", "relu"), ("conv2", "bn2")


class ResNet(nn.Module):
    """A residual network of basic blocks (He, Zhang, Ren & Sun 2015): (N, in_channels, H, W) → scores (N, classes).

    `blocks[i]` blocks of `widths[i]` channels make stage i; every stage but the first halves the picture. The defaults
    are ResNet-18, 11,689,512 parameters, with torchvision's state_dict keys. `small_images=True` begins with a 3×3
    convolution instead of a 7×7 with stride 2 and pooling, as the paper does for pictures of 32×32:
    `ResNet((3, 3, 3), (16, 32, 64), classes=10, small_images=True)` is its ResNet-20.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        classes: int = 1000,
        in_channels: int = 3,
        *,
        small_images: bool = False,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        if len(blocks) != len(widths) or not blocks or min(*blocks, *widths) < 1:
            raise ValueError(
                "ResNet: blocks and widths must each give one number >= 1 per stage, "
                f"got {tuple(blocks)} and {tuple(widths)}"
            )
        place = {"device": device, "dtype": dtype}
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, stride, padding=kernel // 2, bias=False, **place)
        self.bn1 = nn.BatchNorm2d(widths[0], **place)
        self.relu = nn.ReLU()
        self.maxpool: nn.Module = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        self.stages = [f"layer{number}" for number in range(1, len(blocks) + 1)]
        channels = widths[0]
        for number, (name, count, width) in enumerate(zip(self.stages, blocks, widths, strict=True)):
            strides = [1 if number == 0 else 2] + [1] * (count - 1)
            inputs = [channels] + [width] * (count - 1)
            rows = [BasicBlock(before, width, stride, **place) for before, stride in zip(inputs, strides, strict=True)]
            setattr(self, name, nn.Sequential(*rows))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, classes, **place)

    def forward(self, input: Any) -> Any:
        z = self.maxpool(self.relu(self.bn1(self.conv1(input))))
        for name in self.stages:
            z = getattr(self, name)(z)
        return self.fc(self.flatten(self.avgpool(z)))

    def fusible(self) -> Sequence[Sequence[str]]:
        return (("conv1", "bn1", "relu"),)
