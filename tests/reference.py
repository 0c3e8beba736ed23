"""The oracle: operations and their gradients as plain loops in float64. Shares no code with the package.

Every convolution walks the same pairs (output o, tap t): along each axis the tap reads input position i = o·s + t·d − p
and does nothing where i lies outside the input. A pair contributes x[i]·w[t] to y[o], and by the chain rule gy[o]·w[t]
to the gradient of x[i] and gy[o]·x[i] to that of w[t]. Numba only compiles the loops; `loop.py_func` is the same code
run by Python, and a test compares the two.

Arrays are (N, C, *S), (K, C/G, *kernel), (N, K, *O) of any real dtype, the results float64. `stride` and `dilation`
hold one int, `padding` one (before, after) pair per axis.
"""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit(cache=True)
def forward_loop(x, w, y, stride, before, dilation, groups):
    """y[n, k, o] += x[n, c, i] · w[k, c, t]."""
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            group = k // (w.shape[0] // groups)
            for od in range(y.shape[2]):
                for oh in range(y.shape[3]):
                    for ow in range(y.shape[4]):
                        for c in range(w.shape[1]):
                            for td in range(w.shape[2]):
                                d = od * stride[0] + td * dilation[0] - before[0]
                                if d < 0 or d >= x.shape[2]:
                                    continue
                                for th in range(w.shape[3]):
                                    h = oh * stride[1] + th * dilation[1] - before[1]
                                    if h < 0 or h >= x.shape[3]:
                                        continue
                                    for tw in range(w.shape[4]):
                                        v = ow * stride[2] + tw * dilation[2] - before[2]
                                        if v < 0 or v >= x.shape[4]:
                                            continue
                                        y[n, k, od, oh, ow] += (
                                            x[n, group * w.shape[1] + c, d, h, v] * w[k, c, td, th, tw]
                                        )


@numba.njit(cache=True)
def input_grad_loop(gx, w, gy, stride, before, dilation, groups):
    """gx[n, c, i] += gy[n, k, o] · w[k, c, t]."""
    for n in range(gy.shape[0]):
        for k in range(gy.shape[1]):
            group = k // (w.shape[0] // groups)
            for od in range(gy.shape[2]):
                for oh in range(gy.shape[3]):
                    for ow in range(gy.shape[4]):
                        for c in range(w.shape[1]):
                            for td in range(w.shape[2]):
                                d = od * stride[0] + td * dilation[0] - before[0]
                                if d < 0 or d >= gx.shape[2]:
                                    continue
                                for th in range(w.shape[3]):
                                    h = oh * stride[1] + th * dilation[1] - before[1]
                                    if h < 0 or h >= gx.shape[3]:
                                        continue
                                    for tw in range(w.shape[4]):
                                        v = ow * stride[2] + tw * dilation[2] - before[2]
                                        if v < 0 or v >= gx.shape[4]:
                                            continue
                                        gx[n, group * w.shape[1] + c, d, h, v] += (
                                            gy[n, k, od, oh, ow] * w[k, c, td, th, tw]
                                        )


@numba.njit(cache=True)
def weight_grad_loop(x, gw, gy, stride, before, dilation, groups):
    """gw[k, c, t] += gy[n, k, o] · x[n, c, i]."""
    for n in range(gy.shape[0]):
        for k in range(gy.shape[1]):
            group = k // (gw.shape[0] // groups)
            for od in range(gy.shape[2]):
                for oh in range(gy.shape[3]):
                    for ow in range(gy.shape[4]):
                        for c in range(gw.shape[1]):
                            for td in range(gw.shape[2]):
                                d = od * stride[0] + td * dilation[0] - before[0]
                                if d < 0 or d >= x.shape[2]:
                                    continue
                                for th in range(gw.shape[3]):
                                    h = oh * stride[1] + th * dilation[1] - before[1]
                                    if h < 0 or h >= x.shape[3]:
                                        continue
                                    for tw in range(gw.shape[4]):
                                        v = ow * stride[2] + tw * dilation[2] - before[2]
                                        if v < 0 or v >= x.shape[4]:
                                            continue
                                        gw[k, c, td, th, tw] += (
                                            gy[n, k, od, oh, ow] * x[n, group * gw.shape[1] + c, d, h, v]
                                        )


def conv(x, w, b=None, *, stride, padding, dilation, groups):
    """Cross-correlation: (N, K, *O)."""
    outputs = [
        (size + sum(sides) - d * (k - 1) - 1) // s + 1
        for size, k, s, sides, d in zip(x.shape[2:], w.shape[2:], stride, padding, dilation)
    ]
    y = np.zeros((x.shape[0], w.shape[0], *outputs))
    if b is not None:
        y += np.asarray(b, np.float64).reshape(-1, *[1] * len(outputs))
    _run(forward_loop, x, w, y, stride, padding, dilation, groups)
    return y


def conv_input_grad(input_shape, w, gy, *, stride, padding, dilation, groups):
    """Gradient of ⟨conv(x, w), gy⟩ in x, of shape `input_shape`."""
    gx = np.zeros(input_shape)
    _run(input_grad_loop, gx, w, gy, stride, padding, dilation, groups)
    return gx


def conv_weight_grad(x, weight_shape, gy, *, stride, padding, dilation, groups):
    """Gradient of ⟨conv(x, w), gy⟩ in w, of shape `weight_shape`."""
    gw = np.zeros(weight_shape)
    _run(weight_grad_loop, x, gw, gy, stride, padding, dilation, groups)
    return gw


def conv_transpose(x, w, b=None, *, stride, padding, output_padding, dilation, groups):
    """Transposed convolution: x (N, K, *O), w (K, C/G, *kernel), b (C,) → (N, C, *S).

    The input gradient of the convolution whose output has the shape of x: each x[o] is spread over the taps.
    """
    sizes = [
        (size - 1) * s - sum(sides) + d * (k - 1) + 1 + extra
        for size, k, s, sides, extra, d in zip(x.shape[2:], w.shape[2:], stride, padding, output_padding, dilation)
    ]
    y = np.zeros((x.shape[0], w.shape[1] * groups, *sizes))
    if b is not None:
        y += np.asarray(b, np.float64).reshape(-1, *[1] * len(sizes))
    _run(input_grad_loop, y, w, x, stride, padding, dilation, groups)
    return y


def pad(x, padding, mode):
    """x (N, C, *S) with (before, after) more positions along each axis, taken from x as `mode` says."""
    for axis, (before, after) in enumerate(padding, start=2):
        size = x.shape[axis]
        positions = [source(position, size, mode) for position in range(-before, size + after)]
        x = np.stack([np.zeros_like(x.take(0, axis)) if i is None else x.take(i, axis) for i in positions], axis=axis)
    return x


def pad_grad(gy, padding, mode):
    """Gradient of ⟨pad(x), gy⟩ in x: every padded position gives its gradient to where it was taken from."""
    for axis, (before, after) in enumerate(padding, start=2):
        size = gy.shape[axis] - before - after
        sums = [np.zeros_like(gy.take(0, axis)) for _ in range(size)]
        for number, position in enumerate(range(-before, size + after)):
            i = source(position, size, mode)
            if i is not None:
                sums[i] = sums[i] + gy.take(number, axis)
        gy = np.stack(sums, axis=axis)
    return gy


def source(position, size, mode):
    """Which of 0..size−1 is read at `position`, None for a zero. E.g. for a b c: reflect c b|a b c|b a."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    if mode == "circular":
        return position + size if position < 0 else position - size
    if mode == "reflect":
        return -position if position < 0 else 2 * (size - 1) - position
    raise ValueError(mode)


def row_norm(x, weight, bias, gy, eps):
    """Rows x (R, L), each by its own mean and variance, and the gradients of ⟨result, gy⟩ in x, weight and bias.

    Value i of row r has the weight and the bias [r % G, i // (L / K)] of (G, K).
    """
    y, gx = np.zeros(x.shape), np.zeros(x.shape)
    gw, gb = np.zeros(weight.shape), np.zeros(bias.shape)
    groups, inner = len(weight), x.shape[1] // weight.shape[1]
    for r, row in enumerate(x.astype(np.float64)):
        mean = math.fsum(row) / len(row)
        variance = math.fsum((value - mean) ** 2 for value in row) / len(row)
        std = math.sqrt(variance + eps)
        normalised = [(value - mean) / std for value in row]
        own = [weight[r % groups, i // inner] * float(gy[r, i]) for i in range(len(row))]
        along = math.fsum(a * b for a, b in zip(own, normalised)) / len(row)
        level = math.fsum(own) / len(row)
        for i, value in enumerate(normalised):
            place = r % groups, i // inner
            y[r, i] = value * weight[place] + bias[place]
            gx[r, i] = (own[i] - level - value * along) / std
            gw[place] += value * gy[r, i]
            gb[place] += gy[r, i]
    return y, gx, gw, gb


def _run(loop, x, w, y, stride, padding, dilation, groups):
    """Call a loop with three spatial axes: fewer get leading axes of size 1. The result array is filled in place."""
    missing = 3 - (x.ndim - 2)
    lifted = [
        np.ascontiguousarray(a, np.float64).reshape(*a.shape[:2], *[1] * missing, *a.shape[2:]) for a in (x, w, y)
    ]
    ones, zeros = (1,) * missing, (0,) * missing
    before = tuple(before for before, _ in padding)
    loop(*lifted, (*ones, *stride), (*zeros, *before), (*ones, *dilation), groups)
