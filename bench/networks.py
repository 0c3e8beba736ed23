"""Whole networks: inference on batches of 1 and 16, and training steps (forward, loss, backward, SGD with momentum).

"captured" is the same inference by fastconv as a recorded pass (`nn.capture`), against the peers as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

import fastconv as fc
from bench import architectures
from bench.case import Case, Prepare
from fastconv import models, nn

INFERENCE_BATCHES = (1, 16)
SGD = {"lr": 1e-3, "momentum": 0.9}


class Architecture(NamedTuple):
    """How each library makes a network, what one sample looks like, and what the loss compares with.

    `torch` gets the module torch, which only that competitor imports.
    """

    fastconv: Callable[[], nn.Module]
    torch: Callable[[Any], Any]
    sample: tuple[int, ...]
    classes: int
    dense: bool
    """One class for each position instead of one for each sample."""
    training_batch: int


def _unet(rank: int, **sizes: Any) -> dict[str, Any]:
    return {
        "fastconv": lambda: architectures.unet(nn, fc.concatenate, rank, **sizes),
        "torch": lambda torch: architectures.unet(torch.nn, torch.cat, rank, **sizes),
        "classes": sizes["classes"],
        "dense": True,
    }


_PICKER = _unet(1, in_channels=3, classes=3, widths=(16, 32, 64, 128), kernel=7)  # phases of a seismogram
_SEGMENTER = _unet(3, in_channels=1, classes=2, widths=(16, 32, 64), kernel=3)  # organs of a CT volume

ARCHITECTURES = {
    "lenet5": Architecture(
        partial(architectures.lenet5, nn),
        lambda torch: architectures.lenet5(torch.nn),
        sample=(1, 28, 28),
        classes=10,
        dense=False,
        training_batch=64,
    ),
    "resnet18": Architecture(
        models.ResNet,
        lambda torch: architectures.resnet18(torch.nn),
        sample=(3, 224, 224),
        classes=1000,
        dense=False,
        training_batch=4,
    ),
    "unet1d": Architecture(**_PICKER, sample=(3, 3000), training_batch=32),
    "unet3d": Architecture(**_SEGMENTER, sample=(1, 64, 64, 64), training_batch=1),
}


class Data(NamedTuple):
    """The weights that every competitor starts from, and what it works on."""

    state: dict[str, np.ndarray]
    x: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Network(Case):
    """A network on one batch; training gives the loss and all gradients, inference the scores."""

    architecture: str
    batch: int

    rotates = False  # its own layers see to what is in a cache

    @property
    def rank(self) -> int:
        """Spatial axes."""
        return len(ARCHITECTURES[self.architecture].sample) - 1

    def flops(self, direction: str) -> int:
        passes = 3 if direction == "training" else 1  # forward and two gradients
        return 2 * passes * self.batch * multiply_adds(self.architecture)

    def traffic(self, direction: str) -> int:
        """The input and the parameters; in training these are also written, as are gradients and momenta, and read."""
        architecture = ARCHITECTURES[self.architecture]
        parameters = sum(parameter.numel() for parameter in architecture.fastconv().parameters())
        touched = parameters * (6 if direction == "training" else 1)
        return self.itemsize * (touched + self.batch * int(np.prod(architecture.sample)))

    def tolerance(self, direction: str) -> float:
        # A rounding error e of activations near 0 turns the slopes of their ReLUs, and moves gradients by about √e: on
        # ResNet-18 the gradients of PyTorch's own two memory formats lie 1.4e-2 apart.
        return 5e-2 if direction == "training" else 1e-4

    def prepare(self, direction: str) -> Prepare:
        architecture = ARCHITECTURES[self.architecture]
        fc.manual_seed(0)
        generator = np.random.default_rng(0)
        x = generator.standard_normal((self.batch, *architecture.sample), dtype=np.float32)
        positions = architecture.sample[1:] if architecture.dense else ()
        target = generator.integers(0, architecture.classes, (self.batch, *positions))
        data = Data(architecture.fastconv().state_dict(), x, target)
        return lambda competitor: competitor.network(self, direction, data)


@lru_cache
def multiply_adds(architecture: str) -> int:
    """Of the forward pass of one sample: convolutions, transposed convolutions and dense layers."""
    model = ARCHITECTURES[architecture].fastconv().eval()
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Every position of the output, of the input where the convolution is transposed, meets the whole weight."""
        nonlocal total
        vectors = inputs[0] if isinstance(module, transposed) else output
        total += module.weight.numel() * vectors.numel() // module.weight.shape[0]

    transposed = (nn.ConvTranspose1d, nn.ConvTranspose3d)
    counted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *transposed)
    for module in model.modules():
        if isinstance(module, counted):
            module.register_forward_hook(count)
    with fc.no_grad():
        model(np.zeros((1, *ARCHITECTURES[architecture].sample), np.float32))
    return total


def load() -> list[Network]:
    """All networks on all their batches."""
    cases = []
    for name, architecture in ARCHITECTURES.items():
        for batch in sorted({*INFERENCE_BATCHES, architecture.training_batch}):
            directions = ("inference", "captured") if batch in INFERENCE_BATCHES else ()
            if batch == architecture.training_batch:
                directions += ("training",)
            cases.append(Network(f"{name}_b{batch}", "networks", directions, name, batch))
    return cases
