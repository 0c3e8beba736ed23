"""Models recorded as CUDA graphs."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn


def test_a_graph_outlives_its_model(gpu):
    model = nn.Conv1d(2, 3, 3).to("cuda").eval()
    x = fc.asarray(np.random.default_rng(0).standard_normal((2, 2, 11), dtype="float32"), device="cuda")
    expected, shapes = model(x).data.get(), [parameter.shape for parameter in model.parameters()]
    captured = nn.capture(model, x)
    del model
    taken = [fc.asarray(np.full(shape, np.nan, "float32"), device="cuda") for shape in shapes * 8]
    assert np.array_equal(captured(x).get(), expected) and taken


class Dense(nn.Module):
    """Joins the results of so many layers, as DenseNet does."""

    def __init__(self, layers):
        self.layers = nn.Sequential(*(nn.Conv1d(2, 1, 3) for _ in range(layers)))

    def forward(self, x):
        return fc.concatenate([layer(x) for layer in self.layers], 1)


def test_joined_arrays_are_found_again(gpu):
    """CuPy's own concatenate would copy their addresses from the host."""
    model = Dense(9).to("cuda").eval()
    x = np.random.default_rng(0).standard_normal((2, 2, 11), dtype="float32")
    x, other = (fc.asarray(x * factor, device="cuda") for factor in (1, -2))
    captured = nn.capture(model, x)
    for given in (x, other, x):
        fc.asarray(np.zeros(1000), device="cuda")  # takes the memory from which such a copy would have come
        assert np.array_equal(captured(given).get(), model(given).data.get())


def test_a_captured_model_gives_what_the_model_gives(gpu):
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(2)).to("cuda").eval()
    x = np.random.default_rng(0).standard_normal((2, 2, 11), dtype="float32")
    x, other = (fc.asarray(x * factor, device="cuda") for factor in (1, -2))
    captured = nn.capture(model, x)
    for given in (x, other, x):
        expected = fc.asarray(model(given)).get()
        assert np.array_equal(captured(given).get(), expected)
    assert isinstance(captured(fc.Tensor(x)), fc.Tensor)
    first = captured(x)
    kept = first.get()
    captured(other)
    assert np.array_equal(first.get(), kept), "a result is not overwritten by the next call"
    with pytest.raises(ValueError, match=r"the graph is of float32 \(2, 2, 11\) on cuda:0, got float32 \(1, 2, 11\)"):
        captured(x[:1])
    with pytest.raises(ValueError, match=r"the model is in training mode; call model.eval\(\) first"):
        nn.capture(model.train(), x)
