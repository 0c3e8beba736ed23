"""fastconv and its peers, by the names they have in tables and files."""

from __future__ import annotations

from importlib.util import find_spec

from bench.competitors.base import Competitor as Competitor
from bench.competitors.base import NotOffered as NotOffered
from bench.competitors.jax import Jax
from bench.competitors.onnxruntime import OnnxRuntime
from bench.competitors.ours import Fastconv
from bench.competitors.torch import Torch, TorchChannelsLast

OURS = "fastconv"
COMPETITORS: dict[str, type[Competitor]] = {
    OURS: Fastconv,
    "torch": Torch,
    "torch channels-last": TorchChannelsLast,
    "onnxruntime": OnnxRuntime,
    "jax": Jax,
}


def missing(kind: type[Competitor]) -> tuple[str, ...]:
    """The packages that a competitor needs and that are not installed."""
    return tuple(package for package in kind.packages if find_spec(package) is None)


def start(threads: int) -> tuple[dict[str, Competitor], dict[str, str]]:
    """All competitors that are installed, on `threads` threads, and why the others are absent."""
    absent = {name: packages for name, kind in COMPETITORS.items() if (packages := missing(kind))}
    present = {name: kind(threads) for name, kind in COMPETITORS.items() if name not in absent}
    return present, {name: f"not installed: pip install {' '.join(packages)}" for name, packages in absent.items()}
