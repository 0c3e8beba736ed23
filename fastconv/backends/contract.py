"""What a backend provides: the primitives that ops/ composes. The docstrings are the specification.

A backend is a module (package) with these functions at its top level; there is no registry and no class.
`Array` is the backend's own array kind. Every array that reaches a primitive is C-contiguous, in native
byte order, of one floating dtype and on one device: ops/ has seen to that. A primitive never modifies its
arguments (those of an optimiser's step excepted), returns a new C-contiguous array and works for empty arrays.
Its result does not depend on the number of threads, and sample n of a batch gets the same bits whatever the rest
of the batch (sums that run over the batch, as in `conv_weight_grad`, excepted: those are the same for the same call).

Geometry arrives checked: a primitive raises nothing but MemoryError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastconv.geometry import ConvGeometry, PoolGeometry, ResampleGeometry

Array = Any
"""An array of the backend: numpy.ndarray or cupy.ndarray."""


class Graph(Protocol):
    """Recorded work: `launch()` repeats it for what lies in `inputs`; `results` are the arrays that it writes."""

    inputs: list[Array]
    results: list[Array]
    launch: Callable[[], None]


class Backend(Protocol):
    """The primitives. Shapes: N samples, C / K input / output channels, G groups, `*S` input, `*O` output sizes."""

    xp: Any
    """The array namespace (numpy or cupy) for what is composed from whole-array operations."""

    def conv_forward(
        self, x: Array, w: Array, b: Array | None, geometry: ConvGeometry, activation: str | None
    ) -> Array:
        """Cross-correlation. x (N, C, *S), w (K, C/G, *kernel), b (K,) → activation(x ⋆ w + b) of shape (N, K, *O)."""
        ...

    def conv_input_grad(self, gy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
        """Adjoint of `conv_forward` in x. gy (N, K, *O), w (K, C/G, *kernel) → (N, C, *S).

        `b` (C,), if given, is added: with it this is the transposed convolution.
        """
        ...

    def conv_weight_grad(self, gy: Array, x: Array, geometry: ConvGeometry) -> Array:
        """Adjoint of `conv_forward` in w. gy (N, K, *O), x (N, C, *S) → (K, C/G, *kernel)."""
        ...

    def channel_sum(self, x: Array) -> Array:
        """x (N, C, *S) → (C,), the sum over batch and space: the gradient of a bias."""
        ...

    def explain_conv(self, geometry: ConvGeometry, dtype: Any, operation: str) -> str:
        """Name of the algorithm that `operation` ("forward", "input_grad", "weight_grad") takes for this geometry."""
        ...

    def linear(self, x: Array, w: Array, b: Array | None) -> Array:
        """x (N, K) @ w (M, K) transposed + b (M,) → (N, M), all C-contiguous; each element one sum in a fixed order."""
        ...

    def matmul(self, a: Array, b: Array) -> Array:
        """a (M, K) @ b (K, N) → (M, N); transposed views are welcome. Each element is one sum in the order of K."""
        ...

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array:
        """The arrays, of any strides and dtypes, one after the other along an axis; all their other axes agree."""
        ...

    def pad(self, x: Array, padding: Sequence[tuple[int, int]], mode: str, value: float = 0.0) -> Array:
        """Pad the last len(padding) axes; mode "zeros" (constant `value`), "reflect", "replicate" or "circular"."""
        ...

    def pad_grad(self, gy: Array, padding: Sequence[tuple[int, int]], mode: str, spatial: Sequence[int]) -> Array:
        """Adjoint of `pad`: gy has the padded sizes, the result the sizes `spatial` in its last axes."""
        ...

    def scatter_add(self, shape: tuple[int, ...], key: Any, gy: Array) -> Array:
        """Adjoint of x[key] for x of this shape and any NumPy index: sums in the order of the picks."""
        ...

    def max_pool_forward(
        self, x: Array, geometry: PoolGeometry, with_indices: bool = True
    ) -> tuple[Array, Array | None]:
        """x (N, C, *S) → values (N, C, *O) and int64 indices of the winners, flat in each channel's *S plane.

        The first of equal values wins; a NaN wins over everything, the last of several. `with_indices=False` saves
        the indices (None instead); the values are equal.
        """
        ...

    def max_pool_backward(self, gy: Array, indices: Array, geometry: PoolGeometry) -> Array:
        """gy, indices (N, C, *O) → (N, C, *S): each gradient goes to its winner, sums in the order of the outputs."""
        ...

    def avg_pool_forward(self, x: Array, geometry: PoolGeometry) -> Array:
        """x (N, C, *S) → (N, C, *O): window sums divided by `geometry.divisors()`."""
        ...

    def avg_pool_backward(self, gy: Array, geometry: PoolGeometry) -> Array:
        """Adjoint of `avg_pool_forward`: gy (N, C, *O) → (N, C, *S)."""
        ...

    def resample(self, x: Array, geometry: ResampleGeometry) -> Array:
        """x (N, C, *S) → (N, C, *O): each axis by its table, an input without weight not read. Gradients too.

        The adjoint is the same with `geometry.transposed`.
        """
        ...

    def activation_forward(self, x: Array, name: str, alpha: float) -> Array:
        """Elementwise `name`: those of `ops.pointwise.ACTIVATIONS`, "leaky_relu", "elu" and "softplus".

        `alpha` is the parameter of the last three (slope, scale, threshold); the others ignore it.
        """
        ...

    def activation_backward(self, gy: Array, x: Array, y: Array, name: str, alpha: float) -> Array:
        """gy · f'(x), given x and y = f(x).

        relu, sigmoid and tanh read y alone, the others x alone: what is not read may be any array.
        """
        ...

    def add(self, a: Array | float, b: Array | float) -> Array:
        """a + b as in NumPy, of any shapes and dtypes; at least one is an array."""
        ...

    def add_relu(self, a: Array, b: Array) -> Array:
        """max(a + b, 0), elementwise; a and b have one shape."""
        ...

    def softmax(self, x: Array, axis: int, log: bool) -> Array:
        """Softmax (or its logarithm) along `axis`, computed with the maximum subtracted."""
        ...

    def softmax_backward(self, gy: Array, y: Array, axis: int, log: bool) -> Array:
        """Gradient of `softmax` given its result y."""
        ...

    def cross_entropy(self, x: Array, classes: Array, weight: Array | None, smoothing: float) -> tuple[Array, Array]:
        """x (N, C, I), classes (N, I) int64, weight (C,) → losses (N, I) and what `cross_entropy_backward` wants.

        (1 − smoothing) · −weight[class] · ln p[class] + smoothing / C · Σ_c −weight[c] · ln p[c], p being the softmax
        of x along C; 0 where the class is negative.
        """
        ...

    def cross_entropy_backward(
        self, g: Array, x: Array, normalisers: Array, classes: Array, weight: Array | None, smoothing: float
    ) -> Array:
        """Gradient of `cross_entropy` in x, given g (N, I), the gradient of its losses, and its second result."""
        ...

    def batch_norm_statistics(self, x: Array) -> tuple[Array, Array]:
        """x (N, C, *S) → float64 mean (C,) and biased variance (C,) over batch and space."""
        ...

    def batch_norm_apply(self, x: Array, scale: Array, shift: Array) -> Array:
        """x (N, C, *S), scale (C,), shift (C,), both float64 → x · scale + shift, channel by channel."""
        ...

    def batch_norm_backward(
        self, gy: Array, x: Array, mean: Array, inverse_std: Array, scale: Array, of_batch: bool
    ) -> tuple[Array, Array, Array]:
        """Gradient through the normalisation → gx, gradient of weight (C,), of bias (C,), in x's dtype.

        mean, inverse_std, scale (C,) are float64; `scale` is weight · inverse_std (inverse_std alone where there is no
        weight). With `of_batch` mean and variance come from `batch_norm_statistics` of x, else they are constants.
        """
        ...

    def row_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
        """(x − mean) / √(variance + eps) · weight + bias, row by row → y, and float64 mean and biased variance (R,).

        x (R, L); weight and bias (G, K), G a divisor of R and K of L. Value i of row r has number i // (L / K) of row
        r % G of weight and bias: layer norm is (1, L), group norm (G, C / G), instance norm (C, 1). A row with a NaN or
        an infinity reaches no other row.
        """
        ...

    def row_norm_backward(
        self, gy: Array, x: Array, weight: Array, mean: Array, variance: Array, eps: float, weights_too: bool
    ) -> tuple[Array, Array | None, Array | None]:
        """Gradient of `row_norm`, given its mean and variance → gx (R, L), gradients of weight and of bias (G, K).

        Without `weights_too` the last two are not wanted, and may be None.
        """
        ...

    def capture(
        self, work: Callable[[Sequence[Array], Sequence[Array]], list[Array]], example: Sequence[Array],
        parameters: Sequence[Array],
    ) -> Graph:  # fmt: skip
        """Record what `work(inputs, parameters)` does, for inputs of the shapes and dtypes of the example.

        The arrays that it gets stand for these: it may give them to primitives and to functions of `xp`. Parameters are
        read where they are at each repetition. No primitive: work that cannot be repeated may be refused (ValueError).
        """
        ...

    def sgd_step(
        self,
        x: Sequence[Array],
        gradient: Sequence[Array],
        velocity: Sequence[Array] | None,
        *,
        starts: bool,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """One step of `optim.SGD`, whose docstring has the formulas, for any number of parameters: changes x and
        velocity (of x's shapes) in place.

        `velocity` is None without momentum; where it `starts`, what it holds is not read. All arrays of the
        optimiser's steps may be strided, and a `gradient`, of its x's shape, of another floating dtype.
        """
        ...

    def adam_step(
        self,
        x: Sequence[Array],
        gradient: Sequence[Array],
        mean: Sequence[Array],
        square: Sequence[Array],
        *,
        step: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        """Step number `step` (from 1) of `optim.Adam`, with `decoupled` of `optim.AdamW`: changes x, mean, square."""
        ...
