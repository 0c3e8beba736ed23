"""Losses: against plain loops, PyTorch and finite differences."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from bad_calls import bad_calls, refused
from differences import check_gradients, spread_out

import fastconv as fc
from fastconv.autograd import to_device
from fastconv.backends import threads

DTYPES = ["float32", "float64"]
REDUCTIONS = ["mean", "sum", "none"]
SHAPES = [(5, 7), (7,), (3, 4, 2, 5), (2, 3, 6), (1, 1)]

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def drawn(seed, shape, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def positions_of(shape):
    """Shape of a target of class numbers, and how many classes there are."""
    return ((), shape[0]) if len(shape) == 1 else ((shape[0], *shape[2:]), shape[1])


def classes_for(shape, seed=0):
    positions, classes = positions_of(shape)
    return np.random.default_rng(seed).integers(0, classes, positions)


def scores_at(x, place):
    """The scores of one position, place being () or (n, d1, ...)."""
    return [float(value) for value in (x if not place else x[(place[0], slice(None), *place[1:])])]


def log_softmax(scores):
    largest = max(scores)
    total = math.fsum(math.exp(score - largest) for score in scores)
    return [score - largest - math.log(total) for score in scores]


def reference(x, distribution, weight, divide_by, reduction):
    """−Σ_c weight[c] · distribution(place)[c] · log p[c] for each position; "mean" divides by Σ divide_by(place)."""
    positions, classes = positions_of(x.shape)
    losses = np.empty(positions)
    for place in np.ndindex(*positions):
        log_p = log_softmax(scores_at(x, place))
        losses[place] = -math.fsum(weight[c] * distribution(place)[c] * log_p[c] for c in range(classes))
    if reduction == "none":
        return losses
    total = math.fsum(losses.ravel())
    return np.array(total if reduction == "sum" else total / math.fsum(map(divide_by, np.ndindex(*positions))))


def smoothed(label, classes, smoothing):
    """What a label is smoothed to."""
    return [(1 - smoothing) * (c == label) + smoothing / classes for c in range(classes)]


@every_dtype
@every_reduction
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@every_shape
def test_cross_entropy_of_classes(device, shape, weighted, smoothing, reduction, dtype):
    x, target, classes = drawn(0, shape, dtype) * 3, classes_for(shape), positions_of(shape)[1]
    weight = np.random.default_rng(1).uniform(0.5, 2, classes).astype(dtype) if weighted else None
    ignored = target.flat[0] if target.size > 1 else -100
    x, target, weight = (None if a is None else to_device(a, device) for a in (x, target, weight))
    y = fc.cross_entropy(x, target, weight, ignore_index=int(ignored), reduction=reduction, label_smoothing=smoothing)
    weights = np.ones(classes) if weight is None else to_device(weight, "cpu")
    target = to_device(target, "cpu")

    def distribution(place):
        if target[place] == ignored:
            return [0.0] * classes
        return smoothed(target[place], classes, smoothing)

    def divide_by(place):
        return float(weights[target[place]]) * (target[place] != ignored)

    expected = reference(to_device(x, "cpu"), distribution, weights, divide_by, reduction)
    assert y.dtype == dtype and y.shape == expected.shape
    np.testing.assert_allclose(to_device(y, "cpu"), expected, rtol=40 * np.finfo(dtype).eps)


@every_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(130, 17), (66, 3), (5, 300)])
def test_cross_entropy_of_many_rows_is_that_of_each(shape, smoothing, dtype):
    """Two blocks of short rows and a rest, one and a rest; longer rows."""
    x, target = drawn(0, shape, dtype) * 3, np.random.default_rng(1).integers(0, shape[1], shape[0])
    target[::7] = -100
    weight = np.random.default_rng(2).uniform(0.5, 2, shape[1]).astype(dtype)
    options = {"weight": weight, "reduction": "none", "label_smoothing": smoothing}
    found = fc.cross_entropy(x, target, **options)
    alone = [fc.cross_entropy(x[i : i + 1], target[i : i + 1], **options) for i in range(shape[0])]
    assert found.tobytes() == np.concatenate(alone).tobytes()
    rows = range(1, shape[0], 7)
    np.testing.assert_allclose(
        found[1::7],
        [
            reference(
                x[i : i + 1],
                lambda _, i=i: smoothed(target[i], shape[1], smoothing),
                weight.astype(float),
                lambda _: 1.0,
                "none",
            )[0]
            for i in rows
        ],
        rtol=40 * np.finfo(dtype).eps,
    )


@every_dtype
@every_reduction
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@every_shape
def test_cross_entropy_of_probabilities(device, shape, smoothing, reduction, dtype):
    positions, classes = positions_of(shape)
    x, target = drawn(0, shape, dtype) * 3, np.random.default_rng(1).random(shape).astype(dtype)
    weight = np.random.default_rng(2).uniform(0.5, 2, classes).astype(dtype)
    arrays = [to_device(a, device) for a in (x, target, weight)]
    y = fc.cross_entropy(*arrays, reduction=reduction, label_smoothing=smoothing)

    def distribution(place):
        return [(1 - smoothing) * p + smoothing / classes for p in scores_at(target, place)]

    expected = reference(x, distribution, weight.astype(float), lambda place: 1.0, reduction)
    assert y.dtype == dtype and y.shape == expected.shape == (positions if reduction == "none" else ())
    np.testing.assert_allclose(to_device(y, "cpu"), expected, rtol=40 * np.finfo(dtype).eps)


@every_reduction
@every_shape
def test_gradients_of_classification_losses(shape, reduction):
    x, target, classes = drawn(0, shape), classes_for(shape), positions_of(shape)[1]
    weight, ignored = np.random.default_rng(1).uniform(0.5, 2, classes), int(classes_for(shape, 1).flat[0])
    probabilities = np.random.default_rng(2).random(shape)
    for options in ({}, {"weight": weight}, {"ignore_index": ignored if target.size > 1 else -1}):
        check_gradients(lambda t, o=options: fc.nll_loss(t, target, **o, reduction=reduction), x)
        for smoothing in (0.0, 0.3):
            check_gradients(
                lambda t, o=options, s=smoothing: fc.cross_entropy(
                    t, target, **o, reduction=reduction, label_smoothing=s
                ),
                x,
            )
    for given, smoothing in product((None, weight), (0.0, 0.3)):
        check_gradients(
            lambda t, p, w=given, s=smoothing: fc.cross_entropy(t, p, w, reduction=reduction, label_smoothing=s),
            x,
            probabilities,
        )


@every_reduction
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "binary_cross_entropy_with_logits"])
def test_gradients_of_elementwise_losses(name, reduction):
    x, target = spread_out(np.random.default_rng(0), (3, 4)), np.random.default_rng(1).random((3, 4)) / 20
    check_gradients(lambda *t: getattr(fc, name)(*t, reduction=reduction), x, target)
    if name.startswith("binary"):
        weight, positive = np.random.default_rng(2).random((3, 1)), np.random.default_rng(3).random(4) * 3
        check_gradients(
            lambda *t: fc.binary_cross_entropy_with_logits(*t, weight, reduction=reduction, pos_weight=positive),
            x,
            target,
        )


@every_dtype
@every_reduction
def test_elementwise_losses(device, reduction, dtype):
    x, target = drawn(0, (4, 5), dtype) * 4, np.random.default_rng(1).random((4, 5)).astype(dtype)
    weight, positive = (np.random.default_rng(seed).random(5).astype(dtype) * 3 for seed in (2, 3))
    pairs = list(zip(x.astype(float).ravel(), target.astype(float).ravel()))
    weights, positives = ([float(a[i % 5]) for i in range(20)] for a in (weight, positive))
    arrays = [to_device(a, device) for a in (x, target)]

    def binary(logit, t, w=1.0, p=1.0):
        return w * (p * t * math.log1p(math.exp(-logit)) + (1 - t) * math.log1p(math.exp(logit)))

    cases = [
        (fc.mse_loss(*arrays, reduction=reduction), [(a - b) ** 2 for a, b in pairs]),
        (fc.l1_loss(*arrays, reduction=reduction), [abs(a - b) for a, b in pairs]),
        (fc.binary_cross_entropy_with_logits(*arrays, reduction=reduction), [binary(*pair) for pair in pairs]),
        (
            fc.binary_cross_entropy_with_logits(
                *arrays, to_device(weight, device), reduction=reduction, pos_weight=to_device(positive, device)
            ),
            [binary(*pair, w, p) for pair, w, p in zip(pairs, weights, positives)],
        ),
    ]
    for y, losses in cases:
        total = math.fsum(losses)
        expected = {"none": np.reshape(losses, (4, 5)), "sum": np.array(total), "mean": np.array(total / 20)}[reduction]
        assert y.dtype == dtype and y.shape == expected.shape
        np.testing.assert_allclose(
            to_device(y, "cpu"), expected, rtol=40 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps
        )


@every_reduction
@every_shape
def test_against_torch(shape, reduction):
    torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")
    functional = torch.nn.functional
    classes = positions_of(shape)[1]
    x, target, probabilities = drawn(0, shape), classes_for(shape), np.random.default_rng(2).random(shape)
    weight, ignored = np.random.default_rng(1).uniform(0.5, 2, classes), int(classes_for(shape, 1).flat[0])
    calls = [
        (name, goal, given, {"ignore_index": ignore, "reduction": reduction, **extra})
        for name, extra in (("nll_loss", {}), ("cross_entropy", {}), ("cross_entropy", {"label_smoothing": 0.1}))
        for goal in (target, probabilities)
        for given in (None, weight)
        for ignore in (-100, ignored)
        if goal is target or (name == "cross_entropy" and ignore < 0)
    ]
    calls += [(name, probabilities, None, {"reduction": reduction}) for name in ("mse_loss", "l1_loss")]
    calls += [("binary_cross_entropy_with_logits", probabilities, x**2, {"reduction": reduction, "pos_weight": x**2})]
    for name, goal, given, options in calls:
        ours, theirs = fc.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        extra = [] if given is None else [given]
        y = getattr(fc, name)(ours, goal, *extra, **options)
        options = {key: torch.tensor(o) if isinstance(o, np.ndarray) else o for key, o in options.items()}
        expected = getattr(functional, name)(theirs, torch.tensor(goal), *map(torch.tensor, extra), **options)
        np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), rtol=1e-11)
        gy = drawn(3, y.shape)
        y.backward(gy)
        expected.backward(torch.tensor(gy))
        np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_extreme_logits_neither_overflow_nor_vanish(device):
    x = to_device(np.array([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, -1000.0]], "float32"), device)
    losses = fc.cross_entropy(x, to_device(np.array([1, 0]), device), reduction="none")
    np.testing.assert_allclose(to_device(losses, "cpu"), [2000, math.log(3)], rtol=1e-6)
    ones = to_device(np.ones((2, 3), "float32"), device)
    losses = fc.binary_cross_entropy_with_logits(x, ones, reduction="none")
    assert to_device(losses, "cpu")[0, :2].tolist() == [0, 1000]


def test_the_mean_of_nothing_is_nan_with_gradient_zero(device):
    x = fc.Tensor(to_device(drawn(0, (2, 3)), device), requires_grad=True)
    loss = fc.cross_entropy(x, to_device(np.array([1, 1]), device), ignore_index=1)
    loss.backward()
    assert math.isnan(loss.item())
    assert to_device(x.grad, "cpu").tolist() == [[0, 0, 0], [0, 0, 0]]
    empty = to_device(np.zeros((0, 3)), device)
    assert math.isnan(float(fc.cross_entropy(empty, to_device(np.zeros(0, int), device))))
    assert math.isnan(float(fc.mse_loss(empty, empty)))
    assert float(fc.mse_loss(empty, empty, reduction="sum")) == 0
    assert fc.l1_loss(empty, empty, reduction="none").shape == (0, 3)


def test_an_ignored_impossible_class_counts_for_nothing(device):
    log_p = to_device(np.array([[-math.inf, 0.0], [-1.0, -2.0]]), device)
    assert float(fc.nll_loss(log_p, to_device(np.array([0, 1]), device), ignore_index=0)) == 2.0


@pytest.mark.parametrize("kind", ["uint8", "int32", "int64"])
def test_class_numbers_of_any_integer_type(device, kind):
    x, target = to_device(drawn(0, (4, 3)), device), np.array([0, 2, 1, 1], kind)
    loss = fc.cross_entropy(x, to_device(target, device))
    assert float(loss) == float(fc.cross_entropy(x, fc.Tensor(to_device(target.astype("int64"), device))))


@every_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(70, 33), (5, 7, 20, 31)], ids=str)
def test_cross_entropy_has_the_same_bits_for_any_threads_and_batch(device, shape, smoothing, dtype, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_NS", 0)
    x, weight = drawn(6, shape, dtype), to_device(np.abs(drawn(7, shape[1:2], dtype)), device)
    target = np.random.default_rng(8).integers(0, shape[1], (shape[0], *shape[2:]))
    target[0] = -100
    options = {"label_smoothing": smoothing, "reduction": "none"}

    def computed(samples):
        logits = fc.Tensor(to_device(x[samples], device), requires_grad=True)
        losses = fc.cross_entropy(logits, to_device(target[samples], device), weight, **options)
        losses.backward(np.ones(losses.shape, dtype))
        return to_device(losses.data, "cpu"), to_device(logits.grad, "cpu")

    fc.set_num_threads(1)
    expected = computed(slice(None))
    for count in (2, 3, 8):
        fc.set_num_threads(count)
        assert [array.tobytes() for array in computed(slice(None))] == [array.tobytes() for array in expected]
    for sample in (0, 2):
        alone = computed(slice(sample, sample + 1))
        assert [array.tobytes() for array in alone] == [array[sample].tobytes() for array in expected]


X = np.zeros((2, 3), "float32")
BAD_CALLS = [
    (
        lambda: fc.cross_entropy(X, np.array([0, 3])),
        ValueError,
        "cross_entropy: target must hold classes from 0 to 2 (the input has 3) or ignore_index=-100, but holds 3",
    ),
    (
        lambda: fc.nll_loss(X, np.array([0, -1])),
        ValueError,
        "nll_loss: target must hold classes from 0 to 2 (the input has 3) or ignore_index=-100, but holds -1",
    ),
    (
        lambda: fc.cross_entropy(X, np.array([[0, 1]])),
        ValueError,
        "cross_entropy: target of class numbers must have shape (2,) for input shape (2, 3) (N, C, ...), "
        "but has shape (1, 2)",
    ),
    (
        lambda: fc.cross_entropy(X, [0, 1]),
        TypeError,
        "cross_entropy: target must be an array or a Tensor of class numbers, got list; "
        'convert first, e.g. numpy.asarray(target, dtype="int64")',
    ),
    (
        lambda: fc.nll_loss(X, np.array([0.0, 1.0])),
        TypeError,
        'nll_loss: target must hold integer class numbers, got float64; convert first, e.g. target.astype("int64")',
    ),
    (
        lambda: fc.cross_entropy(X, X[:, :2]),
        ValueError,
        "cross_entropy: target of probabilities must have the input's shape (2, 3), but has shape (2, 2); "
        'classes are integers, e.g. target.astype("int64")',
    ),
    (
        lambda: fc.cross_entropy(X, X, ignore_index=1),
        ValueError,
        "cross_entropy: ignore_index=1 needs class numbers, but target holds probabilities",
    ),
    (
        lambda: fc.cross_entropy(X, np.array([0, 1]), X[0, :2]),
        ValueError,
        "cross_entropy: weight must have shape (3,), one number per class (input shape (2, 3)), but has shape (2,)",
    ),
    (
        lambda: fc.cross_entropy(X, np.array([0, 1]), label_smoothing=1.5),
        ValueError,
        "cross_entropy: label_smoothing must lie between 0 and 1, got 1.5",
    ),
    (
        lambda: fc.cross_entropy(X, np.array([0, 1]), reduction="average"),
        ValueError,
        'cross_entropy: reduction must be "mean", "sum" or "none", got \'average\'',
    ),
    (
        lambda: fc.mse_loss(X, X[:, :1]),
        ValueError,
        "mse_loss: target must have the input's shape (2, 3), but has shape (2, 1)",
    ),
    (
        lambda: fc.l1_loss(X, X.astype("float64")),
        TypeError,
        'l1_loss: target is float64 but input is float32; convert one, e.g. target.astype("float32")',
    ),
    (
        lambda: fc.binary_cross_entropy_with_logits(X, X, pos_weight=X[:, :2]),
        ValueError,
        "binary_cross_entropy_with_logits: pos_weight must broadcast against the input's shape (2, 3), but has (2, 2)",
    ),
    (
        lambda: fc.linear(np.zeros((2, 3, 4), "float32"), np.zeros((5, 12), "float32")),
        ValueError,
        "linear: weight expects 12 input features (weight shape (5, 12)) but input has 4 (input shape (2, 3, 4)); "
        "flatten the input first, e.g. x.reshape(len(x), -1)",
    ),
    (
        lambda: fc.linear(X, X[0]),
        ValueError,
        "linear: input must have at least 1 axis and weight 2 (out_features, in_features), "
        "got input shape (2, 3) and weight shape (3,)",
    ),
    (
        lambda: fc.linear(X, X, X[0]),
        ValueError,
        "linear: bias must have shape (2,), one number per output feature, but has shape (3,)",
    ),
]


@bad_calls(BAD_CALLS)
def test_bad_calls(call, kind, text):
    refused(call, kind, text)
