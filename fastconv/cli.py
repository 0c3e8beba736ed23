"""The `fastconv` command: a recogniser of digits, what fastconv found on this machine, and compiling ahead."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from fastconv import __version__, backends, digits, plotting
from fastconv.autograd import to_device
from fastconv.backends import threads
from fastconv.errors import DeviceError
from fastconv.training import predict as predict_scores

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130

_PACKAGES = ("numpy", "numba", "llvmlite", "safetensors", "tqdm", "scikit-learn", "pillow", "matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 failure, 2 user error, 130 interrupted."""
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except (DeviceError, ImportError, OSError, ValueError) as error:
        print(f"fastconv: {error}", file=sys.stderr)
        return USER_ERROR
    except FloatingPointError as error:
        print(f"fastconv: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("fastconv: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastconv", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a network on handwritten digits")
    train.set_defaults(run=_train)
    train.add_argument("task", choices=["digits"], help="what to learn")
    train.add_argument(
        "--data",
        nargs="+",
        metavar=("NAME", "PATH"),
        help='"digits" of scikit-learn (default), or "mnist PATH": a folder of IDX files',
    )
    train.add_argument("--model", choices=["lenet5", "cnn"], help="default: cnn for digits, lenet5 for MNIST")
    train.add_argument("--epochs", type=_at_least(int, 1), help="passes over the training set")
    train.add_argument("--batch-size", type=_at_least(int, 1), help="samples per step")
    train.add_argument("--lr", type=_at_least(float, 0), help="learning rate at the start")
    train.add_argument("--seed", type=_at_least(int, 0), help="fixes the split, the weights and the order (default 0)")
    train.add_argument("--out", type=Path, default=Path("runs/digits"), metavar="DIR", help="default: %(default)s")
    train.add_argument("--resume", action="store_true", help="continue the training in DIR where it was interrupted")
    train.add_argument("--no-plots", action="store_true", help="write no report.png")

    predict = commands.add_parser(
        "predict",
        help="recognise the digit in an image",
        epilog="A model trained on MNIST reads handwriting in general; one trained on the 8×8 digits, only their kind.",
    )
    predict.set_defaults(run=_predict)
    predict.add_argument("model", metavar="MODEL", help="model.safetensors, as `fastconv train digits` wrote it")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="a PNG or JPEG with one digit")

    info = commands.add_parser("info", help="show devices, SIMD width, threads, versions and the cache")
    info.set_defaults(run=_info)
    ahead = commands.add_parser(
        "warmup",
        help="compile the kernels of usual networks ahead",
        description="Compile the kernels of usual networks ahead: convolution by each algorithm, pooling, activations, "
        "normalisation, linear layers and cross entropy, forward and backward, in float32 and float64. They stay in "
        "the kernel cache that `fastconv info` names, for every later process of this machine, until fastconv, Numba "
        "or the processor changes; NUMBA_CACHE_DIR moves the cache. Without it each process compiles what it lacks "
        "when it is first called, some seconds for each algorithm.",
    )
    ahead.set_defaults(run=_warmup)

    for command in (train, predict, info):
        command.add_argument("--device", default="cpu", help='"cpu" (default), "cuda" or "cuda:1"')
    return parser


def _at_least(kind: Callable[[str], Any], smallest: int) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not value >= smallest:
            raise argparse.ArgumentTypeError(f"{text} is not at least {smallest}")
        return value

    number.__name__ = kind.__name__  # argparse says "invalid int value"
    return number


# train


def _train(given: argparse.Namespace) -> None:
    backends.get(given.device)
    folder: Path = given.out
    chosen = digits.settings(_given_settings(given), folder / "settings.json", given.resume)
    split = digits.load_data(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(asdict(chosen), indent=2) + "\n", encoding="utf-8")
    print(
        f"{chosen.model} on {chosen.data}: {len(split[0][0]):,} images to train with, {len(split[1][0]):,} to test "
        f"with, {chosen.epochs} epochs, seed {chosen.seed}, {threads.get_num_threads()} threads",
        flush=True,  # before the progress, which goes to standard error
    )
    try:
        model, history = digits.train(chosen, split, given.device, folder, given.resume)
    except KeyboardInterrupt:
        print(f"continue with: fastconv train digits --resume --out {folder}", file=sys.stderr)
        raise
    digits.save(folder / "model.safetensors", model, chosen)
    history.to_csv(folder / "history.csv")
    x, y = split[1]
    x = digits.RECIPES[chosen.data, chosen.model].preparation(x)
    guesses = to_device(predict_scores(model, x), "cpu").argmax(axis=1)
    matrix = plotting.confusion_matrix(y, guesses, 10)
    _print_result(matrix)
    title = f"{chosen.model} on {chosen.data}: test accuracy {matrix.trace() / matrix.sum():.4f}"
    written = ["model.safetensors", "history.csv"]
    if not given.no_plots:
        try:
            plotting.report(folder / "report.png", title, model, history, x, y)
            written.append("report.png")
        except ImportError as error:
            print(f"no report.png: {error}", file=sys.stderr)
    print(f"\nwritten to {folder}: {', '.join(written)}")


def _given_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Only what the user said: the rest comes from the recipe, or from the training to be resumed."""
    said = {"model": given.model, "epochs": given.epochs, "batch_size": given.batch_size, "lr": given.lr}
    said["seed"] = given.seed
    if given.data is not None:
        name, *path = given.data
        if (name, len(path)) not in (("digits", 0), ("mnist", 1)):
            raise ValueError(f'--data takes "digits" or "mnist PATH", got "{" ".join(given.data)}"')
        said["data"] = name
        said["path"] = path[0] if path else None
    return {name: value for name, value in said.items() if value is not None}


def _print_result(matrix: Any) -> None:
    right, total = int(matrix.trace()), int(matrix.sum())
    print(f"\ntest accuracy {right / total:.4f} ({right} of {total})\n")
    print("true class, and what it was taken for:\n")
    print("    " + "".join(f"{digit:5}" for digit in range(len(matrix))))
    for digit, counts in enumerate(matrix):
        print(f"{digit:4}" + "".join(f"{count:5}" if count else "    ·" for count in counts))


# predict


def _predict(given: argparse.Namespace) -> None:
    backends.get(given.device)
    model, preparation = digits.load(given.model, given.device)
    for image in given.images:
        probabilities = digits.recognise(model, preparation, image)
        print(f"{image}: {probabilities.argmax()}")
        for digit, probability in enumerate(probabilities):
            print(f"  {digit}  {probability:6.4f}  {'█' * round(40 * float(probability))}".rstrip())


# info


def _info(given: argparse.Namespace) -> None:
    from fastconv.backends.cpu import host  # Numba takes half a second to import: not for every command

    backends.get(given.device)
    rows = {
        "fastconv": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "devices": "cpu" if (missing := _why_no_cuda()) is None else f"cpu ({missing})",
        "processor": f"{host.PROCESSOR}, {os.cpu_count()} logical processors",
        "SIMD": f"{host.VECTOR_BYTES * 8} bits: {host.LANES} float32 or {host.LANES // 2} float64 per vector",
        "threads": str(threads.get_num_threads()),
        "kernel cache": host.cache_path(),
        **{name: _version(name) for name in _PACKAGES},
    }
    for name, value in rows.items():
        print(f"{name:13} {value}")


def _why_no_cuda() -> str | None:
    try:
        backends.get("cuda")
    except DeviceError as error:
        return str(error)
    return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


# warmup


def _warmup(given: argparse.Namespace) -> None:
    from fastconv import warmup
    from fastconv.backends.cpu import host

    compiled, seconds = 0, 0.0
    for step in warmup.run():
        what = f"{step.compiled} compiled" if step.compiled else "in the cache"
        print(f"{step.name:64} {step.dtype}  {what:12} {step.seconds:6.2f} s", flush=True)
        compiled, seconds = compiled + step.compiled, seconds + step.seconds
    print(f"\n{compiled} kernels compiled, {seconds:.1f} s; they are in {host.cache_path()}")
