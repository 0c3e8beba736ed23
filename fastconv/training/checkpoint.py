"""A training on disk: one safetensors file that holds the arrays, and the rest as JSON in its metadata.

Arrays: `model.<key>` as in the model's state_dict, and `optimizer.<…>` for those inside the optimiser's state.
Metadata: the one entry `fastconv.training`, JSON that holds every number and string of the training's state and, where
an array was, its name in the file. The file says nothing of devices, so that it can be loaded on any.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import backends
from fastconv.autograd import raw, to_device
from fastconv.io.safetensors import load_metadata, load_safetensors, save_safetensors

Array = Any

_ENTRY = "fastconv.training"
_VERSION = 1


def require_place(path: str | Path) -> None:
    """Raise now what would otherwise be raised after the first epoch: FileNotFoundError or ImportError."""
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"fit: the folder of checkpoint {path} does not exist; make it first")
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError("fit: checkpoints need safetensors, which is not installed: pip install safetensors")


def require_best(path: str | Path) -> None:
    """FileNotFoundError where a training to be resumed had a best epoch already but the file of it is not there."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"fit: resume=True but there is no best_checkpoint at {path}, which holds the best epoch so far; "
            "give the file that this training wrote, or resume without best_checkpoint"
        )


def save(path: str | Path, model: dict[str, Array], state: dict[str, Any]) -> None:
    """Write a checkpoint in one step: a reader finds the old file or the new one, never a part."""
    arrays: dict[str, Array] = {f"model.{name}": to_device(array, "cpu") for name, array in model.items()}
    document = {"version": _VERSION, "state": _packed(state, "", arrays)}
    save_safetensors(arrays, path, {_ENTRY: json.dumps(document)})


def load(path: str | Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The model's arrays and the state of a checkpoint. Raises FileNotFoundError or ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"fit: resume=True but there is no checkpoint at {path}; start with resume=False")
    arrays, metadata = load_safetensors(path), load_metadata(path)
    if _ENTRY not in metadata:
        raise ValueError(f"fit: {path} holds weights but no training to resume; load it with model.load_state_dict")
    document = json.loads(metadata[_ENTRY])
    if document["version"] != _VERSION:
        raise ValueError(f"fit: {path} has checkpoint version {document['version']}, this fastconv reads {_VERSION}")
    return _of_model(arrays), _unpacked(document["state"], arrays)


def load_weights(path: str | Path) -> dict[str, Array]:
    """The model's arrays in a checkpoint of `fit`, for `Module.load_state_dict`: to predict with what was trained.

    Raises FileNotFoundError for no such file, ValueError for one that is no checkpoint.
    """
    arrays = load_safetensors(path)
    if _ENTRY not in load_metadata(path):
        raise ValueError(
            f"load_weights: {path} is no checkpoint of fit; fastconv.io.safetensors.load_safetensors gives its arrays"
        )
    return _of_model(arrays)


def _of_model(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}


def _packed(value: Any, name: str, arrays: dict[str, Array]) -> Any:
    """`value` as JSON can hold it; its arrays go to `arrays` under names that say where they were."""
    value = raw(value)
    if isinstance(value, dict):
        return {"dict": [[key, _packed(item, _join(name, key), arrays)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_packed(item, _join(name, i), arrays) for i, item in enumerate(value)]}
    if isinstance(value, np.ndarray) or backends.is_cupy(value):
        arrays[name] = to_device(value, "cpu")
        return {"array": name}
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any, arrays: dict[str, Array]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _unpacked(item, arrays) for key, item in content}
    items = [_unpacked(item, arrays) for item in content]
    return tuple(items) if kind == "tuple" else items


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
