"""Pictures of a trained classifier of images: curves, filters, feature maps, confusions. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import nn
from fastconv.autograd import no_grad, raw, to_device
from fastconv.training import History, predict
from fastconv.training.inference import device_of, evaluating

Array = Any

_TRAINING, _VALIDATION = "#0072B2", "#D55E00"  # two hues that colour-blind readers tell apart as well
_SHOWN = 32  # images in a grid: more would be too small to see


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of that size in inches, drawn without a display. ImportError says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib, which is not installed: pip install "fastconv[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained", dpi=130)


def report(path: str | Path, model: nn.Module, history: History, x: Array, y: Array) -> None:
    """Write one picture that shows a training and its result on the test set x (N, C, H, W), y (N,).

    Loss and accuracy by epoch, the confusion matrix, the filters of the first convolution, the feature maps of one
    image after the first and the last convolution, and images whose class was not recognised.
    """
    sheet = figure(15, 9.5)
    top, bottom = sheet.subfigures(2, 1, height_ratios=(1, 1.15))
    loss, score, table = top.subplots(1, 3, width_ratios=(1, 1, 0.9))
    curves(loss, history, "loss", "Loss")
    curves(score, history, "accuracy", "Accuracy")
    scores = predict(model, x)
    guesses = scores.argmax(axis=1)
    confusion(table, confusion_matrix(y, guesses, scores.shape[1]))
    left, middle, right = bottom.subfigures(1, 3, width_ratios=(0.8, 1.3, 1))
    filters(left, model)
    feature_maps(middle, model, x[0])
    mistakes(right, x, y, guesses)
    sheet.savefig(path)


def confusion_matrix(y: Array, guesses: Array, classes: int) -> Array:
    """Counts (classes, classes): row the true class, column the predicted one."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (y, guesses), 1)
    return matrix


def curves(axes: Any, history: History, column: str, title: str) -> None:
    """A column of the history over the epochs, for training and, where there is one, for validation."""
    epochs = history.column("epoch")
    for name, label, colour in ((column, "training", _TRAINING), (f"validation_{column}", "test", _VALIDATION)):
        if history and name in history[0]:
            axes.plot(epochs, history.column(name), color=colour, label=label, linewidth=2, marker="o", markersize=3)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def confusion(axes: Any, matrix: Array) -> None:
    """A confusion matrix: the colour is the share of the true class, the numbers are counts."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)), xlabel="predicted", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Confusion matrix", loc="left", fontweight="bold")


def filters(part: Any, model: nn.Module) -> None:
    """The weights of the first convolution, one picture per output channel (mean over input channels)."""
    name, layer = _convolutions(model)[0]
    weights = to_device(layer.weight.data, "cpu").mean(axis=1)[:_SHOWN]
    axes, extreme = part.subplots(), float(np.abs(weights).max())
    image = axes.imshow(tiled(weights, _columns(len(weights))), cmap="RdBu_r", vmin=-extreme, vmax=extreme)
    part.colorbar(image, ax=axes, shrink=0.6, aspect=30)
    axes.set_axis_off()
    axes.set_title(f"Learned filters of {name}", loc="left", fontweight="bold")


def feature_maps(part: Any, model: nn.Module, image: Array) -> None:
    """One image (C, H, W), and what it turns into after the first and after the last convolution."""
    rows = _feature_maps(model, image)
    picture, *grids = part.subplots(1, 1 + len(rows), width_ratios=(0.55, *[1] * len(rows)))
    picture.imshow(image.mean(axis=0), cmap="gray")
    picture.set_axis_off()
    picture.set_title("One digit …", loc="left", fontweight="bold")
    for axes, (name, maps) in zip(grids, rows, strict=True):
        axes.imshow(tiled(maps[:_SHOWN], 4), cmap="magma")
        axes.set_axis_off()
        axes.set_title(f"after {name}", loc="left")


def mistakes(part: Any, x: Array, y: Array, guesses: Array) -> None:
    """Images whose class was not recognised, with the true and the predicted class above each."""
    wrong = np.flatnonzero(guesses != y)
    title = f"Misclassified: {len(wrong)} of {len(y)}"
    part.suptitle(title, x=0.02, ha="left", fontweight="bold")
    if not len(wrong):
        return
    shown = wrong[: _SHOWN - 2]
    columns = max(4, _columns(len(shown)))
    grid = part.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, shown):
        axes.imshow(x[index].mean(axis=0), cmap="gray_r")
        axes.set_title(f"{y[index]} → {guesses[index]}", fontsize=9)


def tiled(images: Sequence[Array], columns: int) -> Array:
    """Images (K, H, W) side by side in rows of `columns`, one pixel apart; what is left free is NaN."""
    height, width = images[0].shape
    sheet = np.full((math.ceil(len(images) / columns) * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for number, image in enumerate(images):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _convolutions(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def _feature_maps(model: nn.Module, image: Array) -> list[tuple[str, Array]]:
    """Name and maps (K, H, W) of the first and the last convolution, after the activation or norm behind each."""
    outputs: list[tuple[nn.Module, Array]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs.append((module, to_device(raw(output), "cpu")))

    with ExitStack() as hooks, evaluating(model), no_grad():
        for module in model.modules():
            if not list(module.children()):
                hooks.enter_context(module.register_forward_hook(keep))
        model(to_device(image[None], device_of(model)))
    found = []
    layers = _convolutions(model)
    for name, layer in dict((layers[0], layers[-1])).items():
        at = next(i for i, (module, _) in enumerate(outputs) if module is layer)
        after = outputs[at + 1][1] if at + 1 < len(outputs) else outputs[at][1]
        found.append((name, (after if after.shape == outputs[at][1].shape else outputs[at][1])[0]))
    return found
