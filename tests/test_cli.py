"""The command line: what it prints and writes, how it refuses, and images as users have them."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv import __version__, cli, data, digits, models, random, warmup
from fastconv.io.safetensors import load_metadata, load_safetensors

ROOT = Path(__file__).parents[1]
NO_SAFETENSORS = "pip install safetensors"


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """IDX files of 100 random pictures, which teach nothing but take the same way as real ones."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    generator = np.random.default_rng(0)
    arrays = {
        "images-idx3": generator.integers(0, 256, (100, 28, 28), np.uint8),
        "labels-idx1": np.arange(100, dtype=np.uint8) % 10,
    }
    for name, array in arrays.items():
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


def train(mnist: Path, out: Path, *options: str) -> int:
    arguments = ["train", "digits", "--data", "mnist", str(mnist), "--epochs", "1", "--out", str(out), "--no-plots"]
    return cli.main([*arguments, *options])


# train


@pytest.mark.parametrize("model", ["lenet5", "cnn"])
def test_train_writes_model_and_history(
    mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    out = tmp_path / "out"
    assert train(mnist, out, "--model", model, "--batch-size", "40") == 0
    shown = capsys.readouterr().out
    assert "80 images to train with, 20 to test with, 1 epochs, seed 0" in shown and "test accuracy 0." in shown
    matrix = [line.split() for line in shown.splitlines() if line[:4].strip().isdigit()]
    assert [int(row[0]) for row in matrix] == list(range(10))
    assert sum(int(cell) for row in matrix for cell in row[1:] if cell != "·") == 20
    with open(out / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and float(rows[0]["validation_accuracy"]) <= 1
    trained, preparation = digits.load(out / "model.safetensors", "cpu")
    assert type(trained).__name__ == {"lenet5": "LeNet5", "cnn": "DigitsNet"}[model]
    assert preparation == digits.RECIPES["mnist", model].preparation
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint.safetensors",
        "history.csv",
        "model.safetensors",
        "settings.json",
    ]


def test_train_twice_gives_the_same_bits(mnist: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    contents = []
    for name in ("first", "second"):
        assert train(mnist, tmp_path / name, "--seed", "3") == 0
        contents.append((tmp_path / name / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_resume_ends_where_an_uninterrupted_training_does(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--epochs", "2", "--batch-size", "16", "--seed", "1"]
    assert train(mnist, whole, *options) == 0
    calls = iter(range(100))

    def interrupted(x: np.ndarray, generator: np.random.Generator, **options: float) -> np.ndarray:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return data_random_shift(x, generator, **options)

    data_random_shift = data.random_shift
    with monkeypatch.context() as patch:
        patch.setattr(data, "random_shift", interrupted)
        assert train(mnist, parts, *options) == 130
    assert f"fastconv train digits --resume --out {parts}" in capsys.readouterr().err
    assert not (parts / "model.safetensors").exists()
    assert cli.main(["train", "digits", "--resume", "--out", str(parts), "--no-plots"]) == 0
    first, second = (load_safetensors(path / "model.safetensors") for path in (whole, parts))
    assert all((first[name] == second[name]).all() for name in first)


def test_resume_with_another_setting_is_refused(
    mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    assert train(mnist, tmp_path / "out") == 0
    assert train(mnist, tmp_path / "out", "--resume", "--seed", "5") == 2
    assert "--resume: the training was started with seed 0, not 5" in capsys.readouterr().err


def test_report_is_a_picture(mnist: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    pytest.importorskip("matplotlib", reason='pip install "fastconv[plot]"')
    arguments = ["train", "digits", "--data", "mnist", str(mnist), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_report(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["train", "digits", "--data", "mnist", str(mnist), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert 'no report.png: plots need matplotlib, which is not installed: pip install "fastconv[plot]"' in (
        capsys.readouterr().err
    )
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("seed", ["0", "1"])
def test_train_digits_reaches_98_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: str) -> None:
    pytest.importorskip("sklearn", reason='pip install "fastconv[examples]"')
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    assert cli.main(["train", "digits", "--seed", seed, "--out", str(tmp_path), "--no-plots"]) == 0
    shown = capsys.readouterr().out
    accuracy = float(shown.split("test accuracy ")[1].split()[0])
    assert accuracy >= 0.98


# How it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train digits --device cuda", 'device="cuda" needs CuPy'),
        ("predict m.safetensors i.png --device cuda:1", 'device="cuda:1" needs CuPy'),
        ("info --device cuda", 'device="cuda" needs CuPy'),
        ("info --device gpu", "device must be"),
        ("train digits --data mnist", '--data takes "digits" or "mnist PATH", got "mnist"'),
        ("train digits --data letters", '--data takes "digits" or "mnist PATH", got "letters"'),
        ("train digits --data mnist nowhere", "no MNIST files at nowhere"),
        ("train digits --resume --out nowhere", "there is no training to continue in nowhere"),
        ("predict nothing.safetensors i.png", "there is no file nothing.safetensors"),
        ("train letters", "invalid choice"),
        ("train digits --epochs 0", "0 is not at least 1"),
        ("train digits --epochs many", "invalid int value"),
        ("train digits --lr nan", "nan is not at least 0"),
        ("train", "the following arguments are required"),
        ("", "the following arguments are required"),
    ],
)
def test_user_errors_are_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    if arguments.startswith("predict nothing"):
        pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as if CuPy were not installed
    monkeypatch.setattr("fastconv.backends.cuda.platform._platform", None)
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(arguments.split())
    except SystemExit as error:  # argparse
        status = error.code  # type: ignore[assignment]
    shown = capsys.readouterr()
    assert status == 2 and shown.out == "" and message in shown.err.splitlines()[-1]
    assert "Traceback" not in shown.err and list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_is_status_1(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    monkeypatch.setattr(data, "random_shift", lambda x, generator, **options: x * np.float32(np.nan))
    assert train(mnist, tmp_path / "out") == 1
    assert "fastconv: fit: the loss is nan in epoch 1, batch 1: the input batch itself" in capsys.readouterr().err


# info


def test_info_names_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["fastconv"] == __version__ and rows["numpy"] == np.__version__
    assert rows["devices"].startswith("cpu") and "float32" in rows["SIMD"] and int(rows["threads"]) >= 1


# warmup


def test_warmup_says_what_it_did(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(warmup, "DTYPES", ("float32",))
    assert cli.main(["warmup"]) == 0
    *steps, empty, total = capsys.readouterr().out.splitlines()
    assert empty == "" and "kernels compiled" in total and "cache" in total
    for name in ("convolution: shift-gemm boxes", "convolution: winograd tiles", "max_pool2d", "gelu", "batch norm"):
        assert any(line.startswith(name) and "float32" in line and line.endswith(" s") for line in steps), name


def test_warmup_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["warmup", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Compile the kernels of usual networks ahead" in shown and "NUMBA_CACHE_DIR" in shown


def test_python_dash_m(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fastconv", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"fastconv {__version__}"


# predict


@pytest.fixture
def image() -> Any:
    return pytest.importorskip("PIL.Image", reason='pip install "fastconv[examples]"')


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no image", "is no image that Pillow can read"), (None, "there is no file"), ("blank", "shows nothing")],
)
def test_predict_refuses(
    image: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    message: str,
) -> None:
    path = tmp_path / "image.png"
    if content == "blank":
        image.new("L", (40, 40), 200).save(path)
    elif content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(
        digits, "load", lambda path, device: (models.DigitsNet(), digits.RECIPES["digits", "cnn"].preparation)
    )
    assert cli.main(["predict", "model.safetensors", str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and message in shown.err and shown.err.count("\n") == 1


def test_predict_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(
        digits, "load", lambda path, device: (models.LeNet5(), digits.RECIPES["mnist", "lenet5"].preparation)
    )
    assert cli.main(["predict", "model.safetensors", "image.png"]) == 2
    assert 'images need Pillow, which is not installed: pip install "fastconv[examples]"' in capsys.readouterr().err


def test_predict_gives_the_model_s_answer(image: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    random.manual_seed(0)
    model, settings = (
        models.LeNet5(),
        digits.settings({"data": "mnist", "path": "."}, tmp_path / "settings.json", False),
    )
    digits.save(tmp_path / "model.safetensors", model, settings)
    assert json.loads(load_metadata(tmp_path / "model.safetensors")["fastconv.digits"])["model"] == "lenet5"
    path = tmp_path / "one.png"
    image.fromarray(np.pad(np.zeros((40, 6), np.uint8), 20, constant_values=255)).save(path)
    assert cli.main(["predict", str(tmp_path / "model.safetensors"), str(path), str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = lines[:11], lines[11:]
    assert first == second and len(first) == 11
    probabilities = [float(line.split()[1]) for line in first[1:]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert first[0] == f"{path}: {int(np.argmax(probabilities))}"


def test_predict_refuses_weights_of_unknown_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors", reason=NO_SAFETENSORS)
    from fastconv.io.safetensors import save_safetensors

    save_safetensors(models.LeNet5().state_dict(), tmp_path / "model.safetensors")
    assert cli.main(["predict", str(tmp_path / "model.safetensors"), "image.png"]) == 2
    assert "give a file that `fastconv train digits` wrote" in capsys.readouterr().err
