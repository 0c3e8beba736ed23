"""Safetensors files: what goes in comes out, a failure leaves the old file, and a wrong file is named."""

import json

import numpy as np
import pytest

from fastconv import nn
from fastconv.autograd import Tensor
from fastconv.io import safetensors
from fastconv.io.safetensors import load_metadata, load_safetensors, save_safetensors

pytest.importorskip("safetensors", reason="pip install safetensors")

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float64": np.array([0.1, -0.0, np.nan, np.inf]),
    "scalar": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "strided": np.arange(12.0).reshape(3, 4)[::-1, ::2],
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "swapped": np.arange(3, dtype=">f8"),
    "flags": np.array([True, False]),
}


def test_round_trip(tmp_path):
    path = tmp_path / "arrays.safetensors"
    save_safetensors(ARRAYS, path, {"model": "lenet5", "note": "größer"})
    loaded = load_safetensors(path)
    assert set(loaded) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].shape == array.shape and loaded[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    assert load_metadata(path) == {"model": "lenet5", "note": "größer"}
    assert [file.name for file in tmp_path.iterdir()] == ["arrays.safetensors"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    save_safetensors(ARRAYS, tmp_path / "arrays.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "arrays.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_module_comes_back(tmp_path):
    source, target = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2))
    save_safetensors(source.state_dict(), str(tmp_path / "model.safetensors"))
    target.load_state_dict(load_safetensors(str(tmp_path / "model.safetensors")))
    for key, value in source.state_dict().items():
        np.testing.assert_array_equal(target.state_dict()[key], value)
    assert load_metadata(tmp_path / "model.safetensors") == {}


@pytest.mark.parametrize("known", [False, True])
def test_bfloat16_comes_with_its_values(tmp_path, monkeypatch, known):
    """As published weights often are. NumPy has no such dtype unless ml_dtypes is there."""
    if known:
        pytest.importorskip("ml_dtypes", reason="pip install ml_dtypes")
    else:
        monkeypatch.setattr(safetensors, "_numpy_has_bfloat16", lambda: False)
    values = np.array([[1.5, -0.0, 3.0e38], [np.inf, -(2.0**-130), 257.0]], "float32")
    upper = (values.view("<u4") >> 16).astype("<u2")
    header = {"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + upper.tobytes())
    loaded = load_safetensors(tmp_path / "x")["x"]
    assert loaded.dtype.name == ("bfloat16" if known else "float32") and loaded.flags.writeable
    np.testing.assert_array_equal(loaded.astype("float32"), (upper.astype("<u4") << 16).view("float32"))
    layer = nn.Linear(3, 2, bias=False)
    layer.load_state_dict({"weight": loaded})
    np.testing.assert_array_equal(layer.weight.numpy(), loaded.astype("float32"))


def test_tensors_are_saved_by_value(tmp_path):
    save_safetensors({"x": Tensor(np.ones(2), requires_grad=True)}, tmp_path / "x")
    np.testing.assert_array_equal(load_safetensors(tmp_path / "x")["x"], [1, 1])


def test_torch_reads_what_we_write(tmp_path):
    pytest.importorskip("torch", reason="pip install torch==2.13.0")
    from safetensors.torch import load_file

    save_safetensors(ARRAYS, tmp_path / "x")
    for name, value in load_file(tmp_path / "x").items():
        np.testing.assert_array_equal(value.numpy(), ARRAYS[name], err_msg=name)


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, failure):
    path = tmp_path / "x"
    save_safetensors({"x": np.ones(2)}, path)

    def fail(*arguments):
        raise failure

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(type(failure)):
        save_safetensors({"x": np.zeros(2)}, path)
    assert load_safetensors(path)["x"].tolist() == [1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"load_safetensors: there is no file .*nothing"):
        load_safetensors(tmp_path / "nothing")
    whole = tmp_path / "whole"
    save_safetensors({"x": np.ones(100)}, whole)
    for name, content in (("text", b"no tensors here"), ("cut", whole.read_bytes()[:-10]), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"load_safetensors: .*{name} is damaged or no safetensors file"):
            load_safetensors(tmp_path / name)
