"""Batches, splits, augmentation, and the readers of IDX files and digits."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import backends, data, random
from fastconv.autograd import to_device

MNIST = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"


def numbered(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples that can be told apart: sample n of x is filled with n, and y[n] = n."""
    y = np.arange(count)
    return np.broadcast_to(y[:, None, None, None], (count, 1, 4, 4)).astype(np.float32), y


def labels(batches: data.Batches) -> list[int]:
    return [int(label) for _, y in batches for label in y]


@pytest.mark.parametrize(
    ("count", "batch_size", "drop_last", "sizes"),
    [(10, 4, False, [4, 4, 2]), (10, 4, True, [4, 4]), (8, 4, True, [4, 4]), (3, 8, False, [3]), (1, 1, True, [1])],
)
def test_batches_cut_the_data(count: int, batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    batches = data.Batches(*numbered(count), batch_size, drop_last=drop_last)
    assert [len(y) for _, y in batches] == sizes
    assert len(batches) == len(sizes) and batches.samples == sum(sizes)
    assert labels(batches) == list(range(sum(sizes)))


def test_shuffled_epochs_keep_pairs_and_visit_every_sample() -> None:
    batches = data.Batches(*numbered(23), 5, shuffle=True, seed=7)
    for _ in range(2):
        visited = []
        for x, y in batches:
            assert (x[:, 0, 0, 0] == y).all()
            visited.extend(y)
        assert sorted(visited) == list(range(23)) and visited != list(range(23))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def make(seed: int) -> data.Batches:
        return data.Batches(*numbered(23), 5, shuffle=True, seed=seed)

    first, again, other = make(7), make(7), make(8)
    epochs = [labels(first) for _ in range(3)]
    assert epochs[0] != epochs[1] and epochs[0] != labels(other)
    again.set_epoch(2)
    next(iter(again))  # an iteration that was given up counts as its epoch and changes no other
    assert again.epoch == 3
    again.set_epoch(1)
    assert labels(again) == epochs[1]


def test_without_a_seed_the_common_generator_gives_one() -> None:
    def draw() -> int:
        random.manual_seed(3)
        return data.Batches(*numbered(4)).seed

    assert draw() == draw() != data.Batches(*numbered(4)).seed


def test_state_carries_the_order_to_another_loader() -> None:
    first = data.Batches(*numbered(20), 4, shuffle=True, seed=1)
    second = data.Batches(*numbered(20), 4, shuffle=True, seed=2)
    second.load_state_dict(first.state_dict())
    assert labels(first) == labels(second)


def test_state_of_other_data_is_refused() -> None:
    batches = data.Batches(*numbered(20), 4, seed=1)
    with pytest.raises(ValueError, match=r"the saved order belongs to .*'batch_size': 5.*not to .*'batch_size': 4"):
        batches.load_state_dict(data.Batches(*numbered(20), 5, seed=2).state_dict())
    assert batches.seed == 1


def test_transform_is_reproducible_and_leaves_the_data_alone() -> None:
    x, y = numbered(6)
    kept = x.copy()

    def noise(batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return batch + generator.standard_normal(batch.shape).astype(batch.dtype)

    batches = data.Batches(x, y, 3, transform=noise, seed=5)
    first, second = [b for b, _ in batches], [b for b, _ in batches]
    batches.set_epoch(0)
    assert all((a == b).all() for a, b in zip(first, [b for b, _ in batches], strict=True))
    assert (first[0] - x[:3] != first[1] - x[3:]).any() and (first[0] != second[0]).any()
    assert (x == kept).all()


def numbered_maps(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures whose pixels all differ, and a class number for each pixel."""
    y = np.arange(count * 30).reshape(count, 5, 6)
    return np.stack([y, -y], axis=1).astype(np.float32), y


def flip_both(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    seed = generator.integers(2**63)
    return data.random_flip(x, np.random.default_rng(seed)), data.random_flip(y, np.random.default_rng(seed))


def crop_both(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    seed = generator.integers(2**63)
    parts = [data.random_crop(part, np.random.default_rng(seed), (4, 4)) for part in (x, y[:, None])]
    return parts[0], parts[1][:, 0]


def shift_both(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    seed = generator.integers(2**63)
    parts = [data.random_shift(part, np.random.default_rng(seed)) for part in (x, y[:, None].astype(np.float32))]
    return parts[0], parts[1][:, 0]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("both", [flip_both, crop_both, shift_both])
def test_joint_transform_moves_inputs_with_their_targets(both: data.JointTransform, shuffle: bool) -> None:
    x, y = numbered_maps(11)
    kept = x.copy(), y.copy()
    batches = data.Batches(x, y, 4, shuffle=shuffle, joint_transform=both, seed=5)
    epochs = [list(batches) for _ in range(2)]
    batches.set_epoch(0)
    for (x_batch, y_batch), (x_again, y_again) in zip(epochs[0], batches, strict=True):
        assert (x_batch[:, 0] == y_batch).all() and (x_batch[:, 1] == -y_batch).all()
        assert (x_batch == x_again).all() and (y_batch == y_again).all()
    first, second = (np.concatenate([y_batch for _, y_batch in epoch]) for epoch in epochs)
    assert (first != second).any() and (both is crop_both or (first != y).any())
    assert (x == kept[0]).all() and (y == kept[1]).all()


def test_transform_follows_the_joint_one_and_changes_inputs_alone() -> None:
    def negative(batch: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return -batch

    for x, y in data.Batches(*numbered_maps(6), 3, joint_transform=flip_both, transform=negative):
        assert (x[:, 0] == -y).all()


@pytest.mark.parametrize(
    ("joint", "got"),
    [
        (lambda x, y, generator: x, r"an array of shape \(2, 2, 5, 6\)"),  # two samples could pass for (x, y)
        (
            lambda x, y, generator: (x, y[:1]),
            r"\(an array of shape \(2, 2, 5, 6\), an array of shape \(1, 5, 6\)\)",
        ),
        (lambda x, y, generator: (x, y, y), r"\(an array .*, an array .*, an array .*\)"),
        (lambda x, y, generator: None, "None"),
    ],
)
def test_joint_transform_must_return_both(joint: data.JointTransform, got: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^Batches: joint_transform must return \(x, y\) with .* as in x, got {got}$"
    ):
        next(iter(data.Batches(*numbered_maps(2), joint_transform=joint)))


def test_transforms_are_given_arrays_of_the_device(device: str) -> None:
    """Batches and their order are of any array's kind; a transform is given what the data are made of."""

    def negative(x: Any, y: Any, generator: np.random.Generator) -> tuple[Any, Any]:
        kinds.append((backends.is_cupy(x), backends.is_cupy(y)))
        return -x, -y

    kinds: list[tuple[bool, bool]] = []
    x, y = numbered(5)
    moved = [fc.asarray(part, device=device) for part in (x, y.astype(np.float32))]
    batches = data.Batches(*moved, 2, shuffle=True, joint_transform=negative, seed=1)
    given = [tuple(to_device(part, "cpu") for part in batch) for batch in batches]
    assert kinds == [(device == "cuda",) * 2] * 3
    assert sorted(-np.concatenate([y for _, y in given])) == list(range(5))
    assert all((x[:, 0, 0, 0] == y).all() for x, y in given)


@pytest.mark.parametrize(
    ("counts", "arguments", "message"),
    [
        ((4, 3), {}, "x has 4 samples but y has 3"),
        ((4, 4), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ((0, 0), {}, "0 samples give no batch"),
        ((4, 4), {"batch_size": 5, "drop_last": True}, "4 samples give no batch with batch_size=5 and drop_last=True"),
    ],
)
def test_batches_refuse(counts: tuple[int, int], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.Batches(np.zeros(counts[0]), np.zeros(counts[1]), **arguments)


def test_split_parts_are_disjoint_and_complete() -> None:
    x, y = numbered(10)
    (x_train, y_train), (x_test, y_test) = data.train_test_split(x, y, 0.25, seed=3)
    assert len(y_test) == 2 and sorted([*y_train, *y_test]) == list(range(10))
    assert (x_train[:, 0, 0, 0] == y_train).all() and (x_test[:, 0, 0, 0] == y_test).all()
    assert (data.train_test_split(x, y, 0.25, seed=3)[1][1] == y_test).all()


@pytest.mark.parametrize("test", [0.0, 1.0, 0.01])
def test_split_refuses_an_empty_part(test: float) -> None:
    with pytest.raises(ValueError, match="leaves one part empty"):
        data.train_test_split(*numbered(10), test)


# Augmentation


@pytest.mark.parametrize("shape", [(3, 2, 9), (3, 1, 6, 7), (2, 2, 4, 5, 6)])
def test_shift_by_nothing_changes_nothing(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape)
    assert (data.random_shift(x, np.random.default_rng(1), 0.0) == x).all()


def test_shift_interpolates_and_brings_in_zeros() -> None:
    class Fixed:
        """A generator whose shifts are known: -1.25, 0.5 and 2 pixels."""

        def uniform(self, low: float, high: float, count: int) -> np.ndarray:
            return np.array([-1.25, 0.5, 2.0])

    x = np.tile(np.array([4.0, 8.0, 12.0, 16.0], np.float32), (3, 1, 1))
    moved = data.random_shift(x, Fixed(), 2.0)  # type: ignore[arg-type]
    raised = data.random_shift(x - 4, Fixed(), 2.0, fill=-4)  # type: ignore[arg-type]
    assert moved.dtype == np.float32 and (raised == moved - 4).all()
    assert moved[:, 0].tolist() == [[9, 13, 12, 0], [2, 6, 10, 14], [0, 0, 4, 8]]


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, False), (1.0, True)])
def test_flip(probability: float, flipped: bool) -> None:
    x = np.random.default_rng(0).random((3, 2, 4, 5))
    expected = x[:, :, ::-1] if flipped else x
    assert (data.random_flip(x, np.random.default_rng(1), axis=-2, probability=probability) == expected).all()


def test_crop_takes_windows_of_the_padded_sample() -> None:
    x = np.arange(1, 41, dtype=np.float32).reshape(2, 1, 4, 5)
    cropped = data.random_crop(x, np.random.default_rng(0), (3, 5), padding=1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 5), (2, 3))
    assert cropped.shape == (2, 1, 3, 5)
    for sample, places in zip(cropped, windows, strict=True):
        assert (places == sample[:, None, None]).all(axis=(-1, -2)).any()


@pytest.mark.parametrize("size", [(5, 5), (4,), (4, 6)])
def test_crop_refuses_what_does_not_fit(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"random_crop: window \(.*\) does not fit into \(4, 5\)"):
        data.random_crop(np.zeros((1, 1, 4, 5)), np.random.default_rng(0), size)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("random_shift", lambda x: data.random_shift(x, np.random.default_rng(0))),
        ("resize", lambda x: data.resize(x, (9, 9))),
    ],
)
def test_what_cannot_be_interpolated_is_refused(name: str, call: Any, dtype: str) -> None:
    """Weights between pixels would be cut to zero in silence."""
    with pytest.raises(TypeError, match=rf"^{name}: .*{dtype}.* cannot be interpolated"):
        call(np.zeros((2, 1, 5, 5), dtype))


@pytest.mark.parametrize("augment", [data.random_shift, data.random_flip])
def test_augmentation_is_pure(augment: data.Transform) -> None:
    x = np.random.default_rng(0).random((4, 1, 5, 5))
    x.flags.writeable = False
    first, second = (augment(x, np.random.default_rng(2)) for _ in range(2))
    assert (first == second).all() and (first != x).any()


# IDX files

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(code: int, array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(IDX_TYPES[code]).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("code", IDX_TYPES)
def test_read_idx(tmp_path: Path, code: int, pack: object) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    file = tmp_path / "file"
    file.write_bytes(pack(idx(code, array)))  # type: ignore[operator]
    result = data.read_idx(file)
    assert result.dtype == np.dtype(IDX_TYPES[code]).newbyteorder("=") and result.dtype.isnative
    assert (result == array).all()


WHOLE = idx(0x0C, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file"),
        (b"\x89PNG", "is no IDX file .it begins with 89 50 4e 47"),
        (b"\0\0\x07\x01" + bytes(5), "is no IDX file"),
        (WHOLE[:-1], "should have 36 bytes .shape .2, 3. of int32. but has 35"),
        (WHOLE + b"\0", "should have 36 bytes .* but has 37"),
        (WHOLE[:9], "bytes"),
        (bytes([0, 0, 8, 4]) + b"\xff" * 16, "should have"),
        (gzip.compress(WHOLE)[:-9], "is damaged or cut short"),
        (gzip.compress(WHOLE)[:12] + b"garbage", "is damaged or cut short"),
    ],
    ids=["empty", "png", "type", "short", "long", "header", "huge", "cut gzip", "damaged gzip"],
)
def test_read_idx_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.read_idx(file)


def write_pair(folder: Path, images: str, labels: str, count: int) -> None:
    (folder / images).write_bytes(idx(0x08, np.full((count, 28, 28), 255)))
    (folder / labels).write_bytes(idx(0x08, np.arange(count) % 10))


@pytest.mark.parametrize(
    ("pairs", "path", "sizes"),
    [
        ({"train-images-idx3-ubyte": 6, "t10k-images-idx3-ubyte": 4}, "", (6, 4)),
        ({"train-images.idx3-ubyte": 6, "t10k-images.idx3-ubyte": 4}, "", (6, 4)),
        ({"t10k-images-idx3-ubyte": 10}, "", (8, 2)),
        ({"train-images-idx3-ubyte": 6, "t10k-images-idx3-ubyte": 10}, "t10k", (8, 2)),
    ],
)
def test_load_mnist(tmp_path: Path, pairs: dict[str, int], path: str, sizes: tuple[int, int]) -> None:
    for images, count in pairs.items():
        write_pair(tmp_path, images, images.replace("images", "labels").replace("idx3", "idx1"), count)
    (x_train, y_train), (x_test, y_test) = data.load_mnist(tmp_path / path)
    assert (len(x_train), len(x_test)) == (len(y_train), len(y_test)) == sizes
    assert x_train.dtype == np.float32 and y_train.dtype == np.int64
    assert x_test.shape[1:] == (1, 28, 28) and x_test.min() == x_test.max() == 1


def test_load_mnist_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no MNIST files at"):
        data.load_mnist(tmp_path)
    write_pair(tmp_path, "train-images-idx3-ubyte", "train-labels-idx1-ubyte", 3)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte.*is not; both are needed"):
        data.load_mnist(tmp_path)


def test_load_mnist_refuses_images_as_labels(tmp_path: Path) -> None:
    write_pair(tmp_path, "train-images-idx3-ubyte", "train-labels-idx1-ubyte", 3)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(0x08, np.zeros((4, 2))))
    with pytest.raises(ValueError, match=r"shape \(3, 28, 28\) and train-labels-idx1-ubyte with shape \(4, 2\)"):
        data.load_mnist(tmp_path)


@pytest.mark.skipif(not MNIST.is_dir(), reason="the MNIST files are not at ../shared/data/mnist")
def test_load_the_real_mnist() -> None:
    (x_train, y_train), (x_test, y_test) = data.load_mnist(MNIST)
    assert x_train.shape == (8000, 1, 28, 28) and x_test.shape == (2000, 1, 28, 28)
    assert y_train[:5].tolist() == [7, 2, 1, 0, 4] and np.bincount(np.concatenate([y_train, y_test])).min() == 892
    assert x_train.min() == 0 and x_train.max() == 1


def test_load_digits() -> None:
    pytest.importorskip("sklearn", reason='pip install "fastconv[examples]"')
    x, y = data.load_digits()
    assert x.shape == (1797, 1, 8, 8) and x.dtype == np.float32 and y.dtype == np.int64
    assert x.min() == 0 and x.max() == 1 and y[:10].tolist() == list(range(10))


def test_load_digits_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "fastconv\[examples\]"'):
        data.load_digits()


@pytest.mark.parametrize(("shape", "size"), [((2, 1, 8, 8), (32, 32)), ((1, 2, 5, 7), (11, 9)), ((2, 3, 6), (6,))])
def test_resize_is_torchs(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    x = np.random.default_rng(0).random(shape)
    mode = "bilinear" if len(size) == 2 else "linear"
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), size=size, mode=mode)
    np.testing.assert_allclose(data.resize(x, size), expected.numpy(), rtol=0, atol=1e-15)
