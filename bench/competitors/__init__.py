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


def names(device: str) -> list[str]:
    """Who takes part on a device."""
    return [name for name, kind in COMPETITORS.items() if device in kind.devices]


def start(threads: int, device: str = "cpu") -> tuple[dict[str, Competitor], dict[str, str]]:
    """All competitors that can be had on a device, on `threads` threads, and why the others are absent."""
    present: dict[str, Competitor] = {}
    absent: dict[str, str] = {}
    for name in names(device):
        if packages := missing(COMPETITORS[name]):
            absent[name] = f"not installed: pip install {' '.join(packages)}"
            continue
        try:
            present[name] = COMPETITORS[name](threads, device)
        except NotOffered as reason:
            absent[name] = str(reason)
    return present, absent
