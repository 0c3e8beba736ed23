"""Outer products whose source does not fit with all channels: these are shared out, as if each part were a group."""

from __future__ import annotations

import numpy as np
import pytest
from problems import parse

import fastconv as fc
from fastconv.backends.cpu import weight_grad_outer
from fastconv.geometry import ConvGeometry


@pytest.mark.parametrize(
    ("line", "bytes_of_unit", "shares"),
    [
        ("n3 c96 hw9x11 k16 f3 p4 d4", 30_000, 2),
        ("n2 c128 hw9x11 k24 f3 p4 d4 g2", 1 << 14, 2),
        ("n1 c192 hw12x10 k8 f3 p5 d5", 1 << 14, 8),
        ("n2 c128 l40 k16 f3 p16 d16", 1 << 13, 4),
        ("n1 c128 dhw4x5x6 k16 f3 p2 d2", 1 << 15, 2),
        ("n2 c127 hw9x11 k16 f3 p4 d4", 1 << 12, None),  # in no equal parts
    ],
)
def test_channels_in_parts(line, bytes_of_unit, shares, monkeypatch):
    problem = parse(line)
    arrays = problem.normal("float32")
    geometry = ConvGeometry.of("conv", arrays.x.shape, arrays.w.shape, **problem.window)
    monkeypatch.setattr(weight_grad_outer, "_UNIT_BYTES", bytes_of_unit)
    found = weight_grad_outer.outer_products.__wrapped__(geometry, 4)
    assert (found.shares if found else None) == shares
    if found:
        exact = getattr(fc.grad, f"conv{problem.rank}d_weight")(
            arrays.x.astype("float64"), arrays.w.shape, arrays.gy.astype("float64"), **problem.window
        )
        result = found.run(arrays.gy, arrays.x, geometry)
        assert np.abs(result - exact).max() <= 2e-6 * np.abs(exact).max()


def test_wide_dilated_layers_take_outer_products():
    """As a head of DeepLab has them: boxes multiply by padding, half of all, and took five times as long."""
    x, w = (np.broadcast_to(np.float32(0), shape) for shape in ((1, 2048, 28, 28), (256, 2048, 3, 3)))
    assert fc.explain(x, w, padding=12, dilation=12).weight_grad == "outer-product"
