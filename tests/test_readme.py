"""The README's Python, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text("utf-8"), re.DOTALL)


def test_both_ways_to_a_gradient_agree():
    names: dict[str, Any] = {}
    for block in BLOCKS[:2]:
        exec(block, names)
    assert names["y"].shape == (1, 8, 64, 64)
    np.testing.assert_array_equal(names["weight"].grad, names["gw"])


def test_the_training_loop_learns(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="pip install scikit-learn")
    pytest.importorskip("safetensors", reason="pip install safetensors")
    pytest.importorskip("tqdm", reason="pip install tqdm")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(BLOCKS[2], names)
    assert names["history"][-1]["validation_accuracy"] > 0.95
    assert (tmp_path / "digits.safetensors").exists()
