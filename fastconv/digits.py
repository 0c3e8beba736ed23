"""The recogniser of handwritten digits that `fastconv train digits` trains and `fastconv predict` applies."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import data, models, nn, optim, random
from fastconv.autograd import to_device
from fastconv.io.images import read_digit
from fastconv.io.safetensors import load_metadata, load_safetensors, save_safetensors
from fastconv.ops import losses, pointwise
from fastconv.training import History, fit, predict

Array = Any
Split = tuple[tuple[Array, Array], tuple[Array, Array]]

_ENTRY = "fastconv.digits"


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the input of a model; it is stored with the weights.

    `size`: pixels of the training images; `box`: of the longer side of a digit in them; `centre`: what of it stands in
    the middle ("box" or "mass"); `input`: pixels that the model takes, by padding if `padded`, else by enlarging;
    `mean` and `std`: of the pixels, which are standardised with them.
    """

    size: int
    box: int
    centre: str
    input: int
    padded: bool
    mean: float
    std: float

    def __call__(self, x: Array) -> Array:
        """x (N, 1, size, size), ground 0 and ink 1 → (N, 1, input, input)."""
        if self.padded:
            before = (self.input - self.size) // 2
            after = self.input - self.size - before
            x = np.pad(x, [(0, 0), (0, 0), (before, after), (before, after)])
        else:
            x = data.resize(x, (self.input, self.input))
        return (x - np.float32(self.mean)) / np.float32(self.std)

    @property
    def ground(self) -> float:
        """What the ground around a digit has become."""
        return -self.mean / self.std


@dataclass(frozen=True)
class Recipe:
    """Settings with which a model learns a data set in short time; `shift` is in pixels of the model's input."""

    preparation: Preparation
    epochs: int
    batch_size: int
    lr: float
    shift: float


RECIPES = {
    ("digits", "cnn"): Recipe(Preparation(8, 8, "box", 8, True, 0.305, 0.376), 25, 32, 3e-3, 0.5),
    ("digits", "lenet5"): Recipe(Preparation(8, 8, "box", 32, False, 0.305, 0.376), 20, 32, 2e-3, 2.0),
    ("mnist", "cnn"): Recipe(Preparation(28, 20, "mass", 28, True, 0.131, 0.308), 6, 64, 2e-3, 1.5),
    ("mnist", "lenet5"): Recipe(Preparation(28, 20, "mass", 32, True, 0.131, 0.308), 8, 64, 2e-3, 2.0),
}
"""By data set and model."""


@dataclass(frozen=True)
class Settings:
    """What decides the result of a training: two trainings with the same settings end with the same bits."""

    data: str
    path: str | None
    model: str
    epochs: int
    batch_size: int
    lr: float
    seed: int


def settings(given: dict[str, Any], file: Path, resume: bool) -> Settings:
    """The given settings, completed from the recipe or, to resume, from those that `file` keeps of the training.

    Raises ValueError where a given setting is not that of the training to be resumed, FileNotFoundError without `file`.
    """
    if resume:
        if not file.is_file():
            raise FileNotFoundError(f"--resume: there is no training to continue in {file.parent}")
        kept = Settings(**json.loads(file.read_text(encoding="utf-8")))
        for name, value in given.items():
            if value != getattr(kept, name):
                raise ValueError(f"--resume: the training was started with {name} {getattr(kept, name)}, not {value}")
        return kept
    name = given.get("data", "digits")
    model = given.get("model", "lenet5" if name == "mnist" else "cnn")
    recipe = RECIPES[name, model]
    usual = {"epochs": recipe.epochs, "batch_size": recipe.batch_size, "lr": recipe.lr, "seed": 0, "path": None}
    return Settings(**{**usual, **given, "data": name, "model": model})


def load_data(chosen: Settings) -> Split:
    """Training set and test set: "mnist" from the path, or "digits", of which a random 20 % are to test with."""
    if chosen.path is not None:
        return data.load_mnist(chosen.path)
    return data.train_test_split(*data.load_digits(), test=0.2, seed=chosen.seed)


def train(chosen: Settings, split: Split, device: str, folder: Path, resume: bool) -> tuple[nn.Module, History]:
    """Train the chosen model, with a checkpoint in `folder`; the test set is looked at, but decides nothing."""
    recipe = RECIPES[chosen.data, chosen.model]
    random.manual_seed(chosen.seed)
    model = _new_model(chosen.model, recipe.preparation.input).to(device)
    (x, y), (x_test, y_test) = split
    optimizer = optim.Adam(model.parameters(), lr=chosen.lr)
    history = fit(
        model,
        data.Batches(
            recipe.preparation(x),
            y,
            chosen.batch_size,
            shuffle=True,
            transform=partial(data.random_shift, limit=recipe.shift, fill=recipe.preparation.ground),
            seed=chosen.seed,
        ),
        losses.cross_entropy,
        optimizer,
        chosen.epochs,
        validation=data.Batches(recipe.preparation(x_test), y_test, 256),
        schedule=optim.CosineAnnealingLR(optimizer, max(chosen.epochs, 1)),
        checkpoint=folder / "checkpoint.safetensors",
        resume=resume,
    )
    return model, history


def save(path: Path, model: nn.Module, chosen: Settings) -> None:
    """Write the weights, and in the metadata all that `load` and `recognise` need to know."""
    preparation = RECIPES[chosen.data, chosen.model].preparation
    about = {"model": chosen.model, "preparation": asdict(preparation)}
    save_safetensors(model.state_dict(), path, {_ENTRY: json.dumps(about)})


def load(path: str | Path, device: str) -> tuple[nn.Module, Preparation]:
    """A trained model and what images must go through before it. Raises FileNotFoundError or ValueError."""
    metadata = load_metadata(path)
    if _ENTRY not in metadata:
        raise ValueError(
            f"{path} has no record of how to prepare images; give a file that `fastconv train digits` wrote"
        )
    about = json.loads(metadata[_ENTRY])
    preparation = Preparation(**about["preparation"])
    model = _new_model(about["model"], preparation.input)
    model.load_state_dict(load_safetensors(path))
    return model.to(device), preparation


def recognise(model: nn.Module, preparation: Preparation, image: str | Path) -> Array:
    """The probabilities (10,) of the digits 0 to 9 for an image file; errors as in `fastconv.io.images.read_digit`."""
    x = preparation(read_digit(image, preparation.size, preparation.box, preparation.centre))
    return to_device(pointwise.softmax(predict(model, x), 1), "cpu")[0]


def _new_model(name: str, size: int) -> nn.Module:
    return models.LeNet5() if name == "lenet5" else models.DigitsNet(size)
