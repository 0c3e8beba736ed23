"""Data for training: batches in a reproducible order, augmentation, and readers of two sets of handwritten digits."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastconv import backends, random

Array = Any
Transform = Callable[[Array, np.random.Generator], Array]
"""A function (batch of inputs, generator) → batch of inputs; it returns a new array."""
JointTransform = Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]
"""A function (batch of inputs, their targets, generator) → both; it returns new arrays."""

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


class Batches:
    """Batches (x, y) of a data set held in arrays; iterating gives one epoch.

    `x` and `y` have the samples along their first axis. The order of an epoch depends on the seed and the number of the
    epoch alone, and the random numbers of transforms on the number of the batch as well: so an epoch can be repeated,
    and a training that was interrupted in the middle of one continues as if nothing had happened (`fit` does that).
    Each iteration gives the next epoch; `set_epoch` says which that is.

    `shuffle=True` draws a new order in each epoch. `drop_last=True` leaves out a last batch smaller than `batch_size`.
    `transform(x_batch, generator)`, such as `random_shift`, augments each batch. Without a `seed` one is drawn from
    the generator of `fc.manual_seed`. Raises ValueError for arrays of different lengths or an empty data set.

    `joint_transform(x_batch, y_batch, generator)` returns both, for targets that must move with their inputs: masks of
    volumes, picks in seismograms. It comes before `transform`, which may then add noise to x alone. `random_flip`
    and its like move alike what they are given with the same random numbers, so that volumes are flipped with masks by

        def flip_both(x, y, generator):
            seed = generator.integers(2**63)
            return random_flip(x, np.random.default_rng(seed)), random_flip(y, np.random.default_rng(seed))

        Batches(volumes, masks, 4, shuffle=True, joint_transform=flip_both)
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Transform | None = None,
        joint_transform: JointTransform | None = None,
        seed: int | None = None,
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"Batches: x has {len(x)} samples but y has {len(y)}; they must correspond one to one")
        if batch_size < 1:
            raise ValueError(f"Batches: batch_size must be at least 1, got {batch_size}")
        if len(x) < (batch_size if drop_last else 1):
            raise ValueError(
                f"Batches: {len(x)} samples give no batch with batch_size={batch_size} and drop_last={drop_last}"
            )
        self.x, self.y, self.batch_size = x, y, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.transform, self.joint_transform = transform, joint_transform
        self.seed = int(random.generator().integers(2**63)) if seed is None else seed
        self.epoch = 0

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self.samples // self.batch_size if self.drop_last else math.ceil(len(self.x) / self.batch_size)

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        return len(self.x) - len(self.x) % self.batch_size if self.drop_last else len(self.x)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration give epoch number `epoch`, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.x)) if self.shuffle else None
        for batch, start in enumerate(range(0, self.samples, self.batch_size)):
            chosen = slice(start, min(start + self.batch_size, self.samples))
            where = chosen if order is None else order[chosen]
            x, y = self.x[where], self.y[where]
            if self.transform is not None or self.joint_transform is not None:
                x, y = self._transformed(x, y, np.random.default_rng([self.seed, epoch, batch]))
            yield x, y

    def state_dict(self) -> dict[str, Any]:
        """What decides the order of the samples, for a checkpoint."""
        return {"seed": self.seed, **self._layout()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the seed of a `state_dict`; ValueError if that one cut another data set, or cut it differently."""
        layout = {name: state.get(name) for name in self._layout()}
        if layout != self._layout():
            raise ValueError(f"Batches: the saved order belongs to {layout}, not to {self._layout()}")
        self.seed = state["seed"]

    def _transformed(self, x: Array, y: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        if self.joint_transform is not None:
            both = self.joint_transform(x, y, generator)
            if not isinstance(both, (tuple, list)) or len(both) != 2 or len(both[0]) != len(both[1]):
                raise ValueError(
                    "Batches: joint_transform must return (x, y) with as many samples in y as in x, "
                    f"got {_described(both)}"
                )
            x, y = both
        if self.transform is not None:
            x = self.transform(x, generator)
        return x, y

    def _layout(self) -> dict[str, Any]:
        return {
            "samples": len(self.x),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }


def _described(value: Any) -> str:
    """An array by its shape, a tuple by its members, for an error."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_described, value))})"
    return f"an array of shape {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)


def train_test_split(
    x: Array, y: Array, test: float = 0.2, seed: int = 0
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Split at random into ((x, y) to train with, (x, y) to test with).

    `test` is the fraction of samples in the test set, rounded to a whole number of them. The same seed gives the same
    split. Raises ValueError if either part would be empty.
    """
    if len(x) != len(y):
        raise ValueError(f"train_test_split: x has {len(x)} samples but y has {len(y)}")
    held_out = round(len(x) * test)
    if not 0 < held_out < len(x):
        raise ValueError(
            f"train_test_split: test={test} of {len(x)} samples leaves one part empty; try a fraction such as 0.2"
        )
    order = np.random.default_rng(seed).permutation(len(x))
    learn, check = order[held_out:], order[:held_out]
    return (x[learn], y[learn]), (x[check], y[check])


# Augmentation: functions of (batch (N, C, *S), generator) that return a new array and leave the batch as it is. What
# they draw does not depend on C and the dtype, so that two generators of one seed move inputs and targets alike.


def random_shift(x: Array, generator: np.random.Generator, limit: float = 1.0, fill: float = 0.0) -> Array:
    """Move each sample by up to `limit` pixels along every spatial axis, fractions of a pixel included.

    x (N, C, *S) → (N, C, *S), interpolated linearly; outside x everything is `fill`. Raises TypeError for integers.
    """
    _require_floating("random_shift", x)
    reach = math.ceil(limit)
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        shifts = generator.uniform(-limit, limit, len(x))
        padding = [(0, 0)] * x.ndim
        padding[axis] = (reach + 1, reach)
        padded = np.moveaxis(np.pad(x, padding, constant_values=fill), axis, 1)
        result = np.empty_like(x)
        for source, target, shift in zip(padded, np.moveaxis(result, axis, 1), shifts, strict=True):
            whole = math.floor(shift)
            before = source[reach - whole : reach - whole + size]
            here = source[reach - whole + 1 : reach - whole + 1 + size]
            target[...] = here + (before - here) * x.dtype.type(shift - whole)
        x = result
    return x


def random_flip(x: Array, generator: np.random.Generator, axis: int = -1, probability: float = 0.5) -> Array:
    """Mirror each sample of x (N, C, *S) along `axis` with the given probability."""
    chosen = generator.random(len(x)) < probability
    result = x.copy()
    result[chosen] = np.flip(x[chosen], axis)
    return result


def random_crop(x: Array, generator: np.random.Generator, size: Sequence[int], padding: int = 0) -> Array:
    """Cut a window of `size` out of each sample, at a random place, after `padding` zeros on each side.

    x (N, C, *S) → (N, C, *size). Raises ValueError if the window does not fit.
    """
    available = [extent + 2 * padding for extent in x.shape[2:]]
    if len(size) != len(available) or any(want > have for want, have in zip(size, available, strict=True)):
        raise ValueError(
            f"random_crop: window {tuple(size)} does not fit into {tuple(available)} "
            f"(input shape {x.shape}, padding {padding})"
        )
    padded = np.pad(x, [(0, 0), (0, 0)] + [(padding, padding)] * len(size))
    result = np.empty((*x.shape[:2], *size), x.dtype)
    starts = [generator.integers(0, have - want + 1, len(x)) for want, have in zip(size, available, strict=True)]
    for source, target, corner in zip(padded, result, zip(*starts, strict=True), strict=True):
        window = tuple(slice(start, start + extent) for start, extent in zip(corner, size, strict=True))
        target[...] = source[(slice(None), *window)]
    return result


def resize(x: Array, size: Sequence[int]) -> Array:
    """x (N, C, *S) → (N, C, *size), linear between the centres of the pixels, as torch's interpolate does by default.

    Meant for enlarging: a much smaller result skips pixels. Raises TypeError for integers.
    """
    _require_floating("resize", x)
    for axis, extent in enumerate(size, start=2):
        last = x.shape[axis] - 1
        place = np.clip((np.arange(extent) + 0.5) * (last + 1) / extent - 0.5, 0, last)
        before = np.floor(place).astype(np.int64)
        weight = (place - before).astype(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        low, high = np.take(x, before, axis), np.take(x, np.minimum(before + 1, last), axis)
        x = low + (high - low) * weight
    return x


def _require_floating(name: str, x: Array) -> None:
    if not backends.is_floating(x.dtype):
        raise TypeError(f'{name}: {x.dtype} input cannot be interpolated; convert first, e.g. x.astype("float32")')


# Data sets


def load_digits() -> tuple[Array, Array]:
    """The 1,797 real handwritten digits that come with scikit-learn: x (1797, 1, 8, 8) float32 in [0, 1], y int64.

    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998). Raises ImportError where
    scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            'load_digits needs scikit-learn, which is not installed: pip install "fastconv[examples]"'
        ) from error
    digits = load()
    return (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int64)


def load_mnist(path: str | Path) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """MNIST digits from IDX files: ((x, y) to train with, (x, y) to test with).

    x (N, 1, 28, 28) float32 in [0, 1], y (N,) int64.

    `path` is a folder with train-images…, train-labels…, t10k-images…, t10k-labels…, as published, compressed or
    not; or the common beginning of one pair of such files, as in "folder/t10k". A single pair is split without
    shuffling: the first 80 % to train with, the rest to test with. Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    folder, prefixes = (path, ("train", "t10k")) if path.is_dir() else (path.parent, (path.name,))
    found = [pair for prefix in prefixes if (pair := _idx_pair(folder, prefix)) is not None]
    if not found:
        raise FileNotFoundError(
            f"load_mnist: no MNIST files at {path}; expected a folder with train-images-idx3-ubyte(.gz) and "
            "train-labels-idx1-ubyte(.gz), or the same with t10k"
        )
    parts = [_labelled_images(*pair) for pair in found]
    if len(parts) == 2:
        return parts[0], parts[1]
    x, y = parts[0]
    border = len(x) * 4 // 5
    return (x[:border], y[:border]), (x[border:], y[border:])


def read_idx(path: str | Path) -> Array:
    """The array in an IDX file, gzipped or plain, in native byte order.

    Format: two zero bytes, one for the type, one for the rank; the sizes as big-endian 32-bit integers; the data
    (LeCun, Cortes & Burges, "The MNIST database"). Raises ValueError for a file that is not one, or not all of one.
    """
    content = Path(path).read_bytes()
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"read_idx: {path} is damaged or cut short ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES or content[3] == 0:
        raise ValueError(f"read_idx: {path} is no IDX file (it begins with {content[:4].hex(' ') or 'nothing'})")
    kind, rank = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    sizes = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(sizes) * kind.itemsize
    if len(content) < start or len(content) != expected:
        raise ValueError(
            f"read_idx: {path} should have {expected} bytes (shape {sizes} of {kind.newbyteorder('=')}) "
            f"but has {len(content)}"
        )
    return np.frombuffer(content, kind, offset=start).reshape(sizes).astype(kind.newbyteorder("="))


def _idx_pair(folder: Path, prefix: str) -> tuple[Path, Path] | None:
    """The files of images and labels that begin with `prefix`, or None if there is neither."""
    pair = []
    for part in ("images{}idx3", "labels{}idx1"):
        names = [f"{prefix}-{part.format(dot)}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
        pair.append(next((folder / name for name in names if (folder / name).is_file()), None))
    images, labels = pair
    if (images is None) != (labels is None):
        missing = f"{prefix}-labels-idx1-ubyte" if labels is None else f"{prefix}-images-idx3-ubyte"
        raise FileNotFoundError(f"load_mnist: {images or labels} is there but {missing}(.gz) is not; both are needed")
    return None if images is None or labels is None else (images, labels)


def _labelled_images(images: Path, labels: Path) -> tuple[Array, Array]:
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or y.ndim != 1 or len(x) != len(y):
        raise ValueError(
            f"load_mnist: expected images (N, H, W) and labels (N,), got {images.name} with shape {x.shape} "
            f"and {labels.name} with shape {y.shape}"
        )
    return (x[:, None] / np.float32(255)).astype(np.float32), y.astype(np.int64)
