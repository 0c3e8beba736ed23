"""Arrays by name in a safetensors file: the format of published weights; nothing in it is ever executed."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import backends
from fastconv.autograd import raw, to_device

Array = Any


def save_safetensors(
    state: Mapping[str, Any], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays (or Tensors), as `Module.state_dict()` gives them, and optional text `metadata`.

    The file appears whole or not at all: it is written beside `path` and then renamed, so that a file that was there
    before survives a failure. Raises OSError where the directory cannot be written.
    """
    from safetensors.numpy import save

    target = Path(path)
    arrays = {name: _for_disk(value) for name, value in state.items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        # Written by hand: the library's own files are for their owner alone, and the renamed file would stay so.
        with open(temporary, "xb") as file:
            file.write(save(arrays, dict(metadata or {})))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # also when interrupted by Ctrl-C
        temporary.unlink(missing_ok=True)
        raise


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays of a file by name, as NumPy arrays; bfloat16 comes as float32, unless ml_dtypes has been imported.

    Raises FileNotFoundError for no such file, ValueError for one that is damaged or no safetensors file.
    """
    with _opened(path) as file:
        names = list(file.keys())
        foreign = [] if _numpy_has_bfloat16() else [n for n in names if file.get_slice(n).get_dtype() == "BF16"]
        wide = _widened(path, foreign) if foreign else {}
        return {name: wide[name] if name in wide else file.get_tensor(name) for name in names}


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text metadata of a file, without its arrays; raises as `load_safetensors` does."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def _opened(path: str | os.PathLike[str]) -> Any:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"load_safetensors: there is no file {path}")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"load_safetensors: {path} is damaged or no safetensors file ({error})") from error


def _numpy_has_bfloat16() -> bool:
    try:
        np.dtype("bfloat16")
    except TypeError:
        return False
    return True


def _widened(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Array]:
    """The bfloat16 arrays of these names as float32, whose upper half they are."""
    import safetensors

    library: Any = safetensors  # has no type information
    entries = dict(library.deserialize(Path(path).read_bytes()))
    halves = {name: np.frombuffer(entries[name]["data"], "<u2").reshape(entries[name]["shape"]) for name in names}
    return {name: (half.astype(np.uint32) << 16).view(np.float32) for name, half in halves.items()}


def _for_disk(value: Any) -> Array:
    """A NumPy array in the order and byte order of the format; `ascontiguousarray` would give a 0-d array an axis."""
    value = raw(value)
    array = np.asarray(value) if not backends.is_cupy(value) else to_device(value, "cpu")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
