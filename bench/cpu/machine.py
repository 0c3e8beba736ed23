"""The processor as the benchmark uses it."""

from __future__ import annotations

from typing import Any

from bench import machine
from fastconv.backends.cpu.host import LANES

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "onnxruntime", "jax", "jaxlib")


def describe(threads: int) -> dict[str, Any]:
    """Also threads in use and vector width."""
    found = machine.describe(PACKAGES)
    return {
        **found,
        "where": f"{found['processor']}, {threads} threads",
        "detail": f" of {found['cores']} cores, {LANES} float32 lanes",
        "threads": threads,
        "vector_lanes": LANES,
    }
