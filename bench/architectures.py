"""The networks that are timed, written once for both libraries: `nn` is `fastconv.nn` or `torch.nn`.

Names and state_dict keys of the two agree, so the weights of one load into the other. fastconv's own ResNet-18 is
`fastconv.models.ResNet`; `resnet18` here is its counterpart for PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any


def lenet5(nn: Any) -> Any:
    """LeNet-5 (LeCun et al. 1998) for pictures of 28×28, which the first layer pads to the paper's 32×32."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 10),
    )


def unet(nn: Any, concatenate: Callable[[tuple[Any, Any], int], Any], rank: int, **sizes: Any) -> Any:
    """A U-Net (Ronneberger, Fischer & Brox 2015) of any rank: (N, in_channels, *S) → scores (N, classes, *S).

    `widths[i]` channels on level i; two convolutions of width `kernel` with batch norm and ReLU on each, max pooling by
    2 on the way down, transposed convolution by 2 and concatenation on the way up. S must halve without remainder.
    """
    convolution, norm = getattr(nn, f"Conv{rank}d"), getattr(nn, f"BatchNorm{rank}d")
    pool, transpose = getattr(nn, f"MaxPool{rank}d"), getattr(nn, f"ConvTranspose{rank}d")

    def block(before: int, width: int, kernel: int) -> Any:
        def half(channels: int) -> tuple[Any, ...]:
            return convolution(channels, width, kernel, padding=kernel // 2, bias=False), norm(width), nn.ReLU()

        return nn.Sequential(*half(before), *half(width))

    class UNet(nn.Module):  # type: ignore[misc]
        def __init__(self, in_channels: int, classes: int, widths: tuple[int, ...], kernel: int) -> None:
            super().__init__()
            levels = list(pairwise(widths))
            self.down = nn.ModuleList(block(a, b, kernel) for a, b in pairwise((in_channels, *widths)))
            self.pool = pool(2)
            self.up = nn.ModuleList(transpose(wide, narrow, 2, 2) for narrow, wide in reversed(levels))
            self.merge = nn.ModuleList(block(2 * narrow, narrow, kernel) for narrow, _ in reversed(levels))
            self.head = convolution(widths[0], classes, 1)

        def forward(self, x: Any) -> Any:
            skipped = []
            for level, down in enumerate(self.down):
                x = down(self.pool(x) if level else x)
                skipped.append(x)
            for up, merge, beside in zip(self.up, self.merge, reversed(skipped[:-1])):
                x = merge(concatenate((beside, up(x)), 1))
            return self.head(x)

    return UNet(**sizes)


def resnet18(nn: Any) -> Any:
    """ResNet-18 (He, Zhang, Ren & Sun 2015) with torchvision's state_dict keys."""

    class BasicBlock(nn.Module):  # type: ignore[misc]
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.relu = nn.ReLU()
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.downsample = None
            if before != width:
                shortcut = nn.Conv2d(before, width, 1, stride, bias=False)
                self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

        def forward(self, x: Any) -> Any:
            z = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(z + (x if self.downsample is None else self.downsample(x)))

    class ResNet18(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU()
            self.maxpool = nn.MaxPool2d(3, 2, padding=1)
            for number, (before, width) in enumerate(pairwise((64, 64, 128, 256, 512)), 1):
                blocks = BasicBlock(before, width, 1 if number == 1 else 2), BasicBlock(width, width, 1)
                setattr(self, f"layer{number}", nn.Sequential(*blocks))
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.flatten = nn.Flatten()
            self.fc = nn.Linear(512, 1000)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(self.flatten(self.avgpool(x)))

    return ResNet18()
