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
_SHOWN = 32  # filters or feature maps in a grid: more would be too small to see
_MISTAKES = (2, 3), (3, 4), (4, 6)  # rows and columns for few, more and many misclassified images
_PIXELS = 24  # sides of the images in a grid, at least, so that the lines between them are thin


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of that size in inches, drawn without a display. ImportError says what to install."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib, which is not installed: pip install "fastconv[plot]"') from error
    return Figure(figsize=(width, height), layout="constrained", dpi=130)


def report(path: str | Path, title: str, model: nn.Module, history: History, x: Array, y: Array) -> None:
    """Write one picture that shows a training and its result on the test set x (N, C, H, W), y (N,).

    Loss and accuracy by epoch, the confusion matrix, the filters of the first convolution, the feature maps of one
    image after the first and the last convolution, and images whose class was not recognised.
    """
    sheet = figure(16, 10)
    sheet.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    sheet.suptitle(title, fontsize=15, fontweight="bold")
    top, bottom = sheet.subfigures(2, 1)
    loss, score, table = top.subplots(1, 3, width_ratios=(1, 1, 0.9))
    curves(loss, history, "loss", "Loss")
    curves(score, history, "accuracy", "Accuracy")
    scores = predict(model, x)
    guesses = scores.argmax(axis=1)
    confusion(table, confusion_matrix(y, guesses, scores.shape[1]))
    left, middle, right = bottom.subfigures(1, 3, width_ratios=(1, 1.3, 1))
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
    columns = math.ceil(math.sqrt(len(weights)))
    image = axes.imshow(tiled(weights, columns), cmap="RdBu_r", vmin=-extreme, vmax=extreme)
    part.colorbar(image, ax=axes, shrink=0.7, aspect=30).outline.set_visible(False)
    axes.set_axis_off()
    _headline(part, f"Learned filters of {name}")


def feature_maps(part: Any, model: nn.Module, image: Array) -> None:
    """One image (C, H, W), and what it turns into after the first and after the last convolution."""
    rows = _feature_maps(model, image)
    names = [name for name, _ in rows]
    grid = part.subplot_mosaic([["image", name] for name in names], width_ratios=(1, 2.6))
    for axes in grid.values():
        axes.set_axis_off()
    grid["image"].imshow(image.mean(axis=0), cmap="gray")
    grid["image"].set_title("image", loc="left")
    _headline(part, "Feature maps")
    for name, maps in rows:
        grid[name].imshow(tiled(maps[:_SHOWN], min(8, len(maps))), cmap="magma")
        grid[name].set_title(f"after {name}", loc="left")


def mistakes(part: Any, x: Array, y: Array, guesses: Array) -> None:
    """Images whose class was not recognised, with the true and the predicted class above each."""
    wrong = np.flatnonzero(guesses != y)
    _headline(part, f"Misclassified: {len(wrong)} of {len(y)}")
    rows, columns = next((shape for shape in _MISTAKES if math.prod(shape) >= len(wrong)), _MISTAKES[-1])
    for axes in (grid := part.subplots(rows, columns).ravel()):
        axes.set_axis_off()
    for axes, index in zip(grid, wrong):
        axes.imshow(x[index].mean(axis=0), cmap="gray_r")
        axes.set_title(f"{y[index]} → {guesses[index]}", fontsize=9)


def tiled(images: Sequence[Array], columns: int) -> Array:
    """Images (K, H, W) side by side in rows of `columns`, enlarged if small, with a line of NaN between them."""
    enlarged = math.ceil(_PIXELS / max(images[0].shape))
    images = [np.kron(image, np.ones((enlarged, enlarged))) for image in images]
    height, width = images[0].shape
    rows, gap = math.ceil(len(images) / columns), 2
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _headline(part: Any, text: str) -> None:
    part.suptitle(text, x=0.03, ha="left", fontweight="bold")


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
