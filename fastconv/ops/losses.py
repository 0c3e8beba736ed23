"""Losses, with their gradients. Names and first arguments of `torch.nn.functional`; options are keywords.

Inputs are arrays or Tensors, float32 or float64; sums are accumulated in float64. `reduction` is "mean", "sum" or
"none": the average, the sum, or the losses one by one; the mean of nothing is NaN, as in PyTorch. Wrong shapes and
values raise ValueError, wrong kinds and dtypes TypeError.
"""

from __future__ import annotations

import math
from typing import Any

from fastconv import backends
from fastconv.autograd import needs_grad, raw, record
from fastconv.ops._arguments import check_unmasked, floating, on_its_device

Array = Any


@on_its_device
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """−ln softmax(input) of the target class, as `torch.nn.functional.cross_entropy`.

    input: logits (N, C), (N, C, d1, ...) or (C,). target: class numbers of shape (N,), (N, d1, ...) or (), or
    probabilities of the input's shape and dtype. weight (C,) multiplies the loss of each class.

    Positions whose class is `ignore_index` count for nothing. "mean" divides by the sum of the weights of the target
    classes (for probabilities: by the number of positions). `label_smoothing` ε mixes the target with the uniform
    distribution: (1 − ε) · target + ε / C. Szegedy et al. 2016.
    """
    op = "cross_entropy"
    _check_reduction(op, reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{op}: label_smoothing must lie between 0 and 1, got {label_smoothing}")
    if getattr(raw(target), "dtype", None) is not None and backends.is_floating(raw(target).dtype):
        return _soft_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    x, w = floating(op, optional=("weight",), input=input, weight=weight)
    classes = _Classes(op, x, target, w, ignore_index)
    backend = backends.of(x)
    logits = x.reshape(*classes.shape[:2], math.prod(classes.shape[2:]))
    targets = classes.targets()
    losses, normalisers = backend.cross_entropy(logits, targets, w, label_smoothing)

    def gradient(g: Array) -> Array:
        """From the gradient of each loss to that of the logits."""
        g = backend.xp.ascontiguousarray(backend.xp.broadcast_to(g, classes.numbers.shape))
        gx = backend.cross_entropy_backward(g, logits, normalisers, targets, w, label_smoothing)
        return gx.reshape(x.shape)

    return classes.reduced(input, losses.reshape(classes.numbers.shape), reduction, gradient)


@on_its_device
def nll_loss(input: Any, target: Any, weight: Any = None, *, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """−input of the target class, for log-probabilities such as `log_softmax` gives.

    Shapes, `weight`, `ignore_index` and `reduction` as in `cross_entropy`, classes only.
    """
    _check_reduction("nll_loss", reduction)
    x, w = floating("nll_loss", optional=("weight",), input=input, weight=weight)
    classes = _Classes("nll_loss", x, target, w, ignore_index)
    losses = classes.losses(classes.rows(x))
    return classes.reduced(input, losses, reduction, lambda g: classes.scatter(g).reshape(x.shape))


@on_its_device
def mse_loss(input: Any, target: Any, *, reduction: str = "mean") -> Any:
    """(input − target)², two arrays of one shape."""
    x, t = _alike("mse_loss", input, target, reduction)
    difference, needed = x - t, needs_grad(target)

    def gradient(g: Array) -> tuple[Array, Array | None]:
        gx = difference * (g + g)
        return gx, -gx if needed else None

    return _elementwise(difference * difference, (input, target), reduction, gradient)


@on_its_device
def l1_loss(input: Any, target: Any, *, reduction: str = "mean") -> Any:
    """|input − target|, two arrays of one shape; slope 0 where they are equal."""
    x, t = _alike("l1_loss", input, target, reduction)
    xp = backends.of(x).xp
    difference, needed = x - t, needs_grad(target)

    def gradient(g: Array) -> tuple[Array, Array | None]:
        gx = xp.sign(difference) * g
        return gx, -gx if needed else None

    return _elementwise(xp.abs(difference), (input, target), reduction, gradient)


@on_its_device
def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, *, reduction: str = "mean", pos_weight: Any = None
) -> Any:
    """−pos_weight · t · ln σ(x) − (1 − t) · ln(1 − σ(x)) for logits x and targets t of one shape, σ the sigmoid.

    `weight` multiplies each loss, `pos_weight` its positive part; both broadcast against the input. The logarithms are
    computed as −ln σ(x) = ln(1 + e⁻ˣ) and −ln(1 − σ(x)) = ln(1 + eˣ), which neither overflow nor cancel.
    """
    op = "binary_cross_entropy_with_logits"
    x, t = _alike(op, input, target, reduction)
    _, w, p = floating(op, optional=("weight", "pos_weight"), input=input, weight=weight, pos_weight=pos_weight)
    _check_broadcast(op, x.shape, {"weight": w, "pos_weight": p})
    backend = backends.of(x)
    positive, negative = (backend.activation_forward(z, "softplus", math.inf) for z in (-x, x))
    if p is not None:
        positive = positive * p
    losses = t * positive + (1 - t) * negative
    needed = needs_grad(target)

    def gradient(g: Array) -> tuple[Array, Array | None]:
        g = g if w is None else g * w
        falling = backend.activation_forward(-x, "sigmoid", 0.0)
        rising = backend.activation_forward(x, "sigmoid", 0.0)
        gx = g * ((1 - t) * rising - t * (falling if p is None else falling * p))
        return gx, g * (positive - negative) if needed else None

    return _elementwise(losses if w is None else losses * w, (input, target), reduction, gradient)


class _Classes:
    """Class numbers as target of (N, C, ...) scores: checks, weights, and the way from a score to its loss and back."""

    def __init__(self, op: str, x: Array, target: Any, weight: Array | None, ignore_index: int) -> None:
        self.xp = backends.of(x).xp
        if x.ndim < 1:
            raise ValueError(f"{op}: input must be (N, C), (N, C, d1, ...) or (C,), got input shape {x.shape}")
        self.batched = x.ndim > 1
        self.dtype, self.shape = x.dtype, x.shape if self.batched else (1, *x.shape)
        self.count = self.shape[1]
        _check_weight(op, weight, self.count, x.shape)
        self.weight, self.ignore_index = weight, ignore_index
        self.numbers = self._numbers(op, x, target)
        self.valid = self._valid(op)

    def _numbers(self, op: str, x: Array, target: Any) -> Array:
        given = raw(target)
        if not hasattr(given, "dtype") and not hasattr(given, "__array__"):
            raise TypeError(
                f"{op}: target must be an array or a Tensor of class numbers, got {type(given).__name__}; "
                'convert first, e.g. numpy.asarray(target, dtype="int64")'
            )
        check_unmasked(op, "target", given, self.ignore_index)
        numbers = self.xp.asarray(given)
        if numbers.dtype.kind not in "iu":
            raise TypeError(
                f"{op}: target must hold integer class numbers, got {numbers.dtype}; "
                'convert first, e.g. target.astype("int64")'
            )
        expected = (*x.shape[:1], *x.shape[2:]) if self.batched else ()
        if numbers.shape != expected:
            raise ValueError(
                f"{op}: target of class numbers must have shape {expected} for input shape {x.shape} (N, C, ...), "
                f"but has shape {numbers.shape}"
            )
        numbers = numbers.astype("int64", copy=False)  # so that any ignore_index can stand beside them
        return numbers if self.batched else numbers[None]

    def _valid(self, op: str) -> Array | None:
        """Where the class counts; None where all do. Raises ValueError for one that is not there."""
        numbers, ignored = self.numbers, self.ignore_index
        unsigned = numbers.view("uint64")  # a negative one is then larger than any class
        if numbers.size and unsigned.max() < self.count and not 0 <= ignored < self.count:
            return None
        valid = numbers != ignored
        wrong = valid & ((numbers < 0) | (numbers >= self.count))
        if wrong.any():
            raise ValueError(
                f"{op}: target must hold classes from 0 to {self.count - 1} (the input has {self.count}) "
                f"or ignore_index={ignored}, but holds {int(numbers[wrong][0])}"
            )
        return valid

    def targets(self, ignored: int = -1) -> Array:
        """The classes as int64, `ignored` where they do not count."""
        numbers = self.numbers if self.valid is None else self.xp.where(self.valid, self.numbers, ignored)
        return self.xp.ascontiguousarray(numbers)

    def weights(self) -> Array:
        """The weight of each position: that of its class, 0 where ignored."""
        if self.weight is not None:
            return self.zero_ignored(self.weight[self.targets(0)])
        return self.zero_ignored(self.xp.ones(self.numbers.shape, self.dtype))

    def rows(self, x: Array) -> Array:
        """x with its batch axis."""
        return x.reshape(self.shape)

    def zero_ignored(self, losses: Array) -> Array:
        if self.valid is None:
            return losses
        return self.xp.where(self.valid, losses, 0).astype(self.dtype, copy=False)  # CuPy's has no bfloat16

    def losses(self, log_p: Array) -> Array:
        """−weight · log_p of the target class, 0 where ignored."""
        numbers = self.xp.expand_dims(self.targets(0), 1)
        return self.zero_ignored(-self.xp.take_along_axis(log_p, numbers, axis=1).squeeze(1)) * self.weights()

    def scatter(self, g: Array) -> Array:
        """Adjoint of `losses`."""
        g_log_p = self.xp.zeros(self.shape, self.dtype)
        numbers = self.xp.expand_dims(self.targets(0), 1)
        self.xp.put_along_axis(g_log_p, numbers, self.xp.expand_dims(-g * self.weights(), 1), axis=1)
        return g_log_p

    def reduced(self, input: Any, losses: Array, reduction: str, gradient: Any) -> Any:
        """The reduced losses, recorded; `gradient` maps the gradient of each loss to that of the input."""
        if reduction == "none":
            y = losses if self.batched else losses[0]
            return record(y, (input,), lambda gy: (gradient(gy.reshape(losses.shape)),))
        return _total(losses, (input,), self._divisor() if reduction == "mean" else 1, lambda g: (gradient(g),))

    def _divisor(self) -> float:
        """The sum of the weights of all positions."""
        if self.weight is None and self.valid is None:
            return float(self.numbers.size)
        return float(self.weights().sum(dtype="float64"))


def _soft_cross_entropy(
    input: Any, target: Any, weight: Any, ignore_index: int, reduction: str, label_smoothing: float
) -> Any:
    """Cross-entropy against probabilities."""
    op = "cross_entropy"
    x, t, w = floating(op, optional=("weight",), input=input, target=target, weight=weight)
    if t.shape != x.shape or x.ndim < 1:
        raise ValueError(
            f"{op}: target of probabilities must have the input's shape {x.shape}, but has shape {t.shape}; "
            'classes are integers, e.g. target.astype("int64")'
        )
    if ignore_index >= 0:
        raise ValueError(f"{op}: ignore_index={ignore_index} needs class numbers, but target holds probabilities")
    axis = min(x.ndim - 1, 1)
    classes = x.shape[axis]
    _check_weight(op, w, classes, x.shape)
    factor = None if w is None else w.reshape((-1,) + (1,) * (x.ndim - 1 - axis))
    backend = backends.of(x)
    log_p = backend.softmax(x, axis, True)
    mixed = t
    if label_smoothing:
        mixed = t * t.dtype.type(1.0 - label_smoothing) + t.dtype.type(label_smoothing / classes)
    if factor is not None:
        mixed = mixed * factor
    losses = -(mixed * log_p).sum(axis=axis)
    needed = needs_grad(target)

    def gradient(g: Array) -> tuple[Array, Array | None]:
        g = -backend.xp.expand_dims(backend.xp.broadcast_to(g, losses.shape), axis)
        gx = backend.softmax_backward(g * mixed, log_p, axis, True)
        if not needed:
            return gx, None
        gt = g * log_p * t.dtype.type(1.0 - label_smoothing)
        return gx, gt if factor is None else gt * factor

    return _elementwise(losses, (input, target), reduction, gradient)


def _elementwise(losses: Array, inputs: tuple[Any, ...], reduction: str, gradient: Any) -> Any:
    """Reduced losses, recorded; `gradient` maps the gradient of the losses (or of each loss) to those of the inputs."""
    if reduction == "none":
        return record(losses, inputs, gradient)
    return _total(losses, inputs, losses.size if reduction == "mean" else 1.0, gradient)


def _total(losses: Array, inputs: tuple[Any, ...], divisor: float, gradient: Any) -> Any:
    """The sum over `divisor`, recorded; the mean of nothing is NaN, and its gradient 0."""
    xp, dtype = backends.of(losses).xp, losses.dtype
    total = losses.sum(dtype="float64") / divisor if divisor else math.nan
    scale = dtype.type(1.0 / divisor if divisor else 0.0)
    return record(xp.asarray(total, dtype), inputs, lambda gy: gradient(gy * scale))


def _alike(op: str, input: Any, target: Any, reduction: str) -> tuple[Array, Array]:
    _check_reduction(op, reduction)
    x, t = floating(op, input=input, target=target)
    if x.shape != t.shape:
        raise ValueError(f"{op}: target must have the input's shape {x.shape}, but has shape {t.shape}")
    return x, t


def _check_reduction(op: str, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'{op}: reduction must be "mean", "sum" or "none", got {reduction!r}')


def _check_weight(op: str, weight: Array | None, classes: int, shape: tuple[int, ...]) -> None:
    if weight is not None and weight.shape != (classes,):
        raise ValueError(
            f"{op}: weight must have shape ({classes},), one number per class (input shape {shape}), "
            f"but has shape {weight.shape}"
        )


def _check_broadcast(op: str, shape: tuple[int, ...], others: dict[str, Array | None]) -> None:
    for name, other in others.items():
        if other is None:
            continue
        padded = (1,) * (len(shape) - other.ndim) + other.shape
        if len(padded) != len(shape) or any(size not in (1, own) for size, own in zip(padded, shape)):
            raise ValueError(f"{op}: {name} must broadcast against the input's shape {shape}, but has {other.shape}")
