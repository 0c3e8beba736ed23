"""The GPU as the benchmark uses it."""

from __future__ import annotations

import subprocess
from typing import Any

from bench import machine

PACKAGES = ("numpy", "ml_dtypes", "torch", "jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin")
ASKED = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
"""Of nvidia-smi."""


def name(properties: dict[str, Any]) -> str:
    """As the driver says it: "NVIDIA H200"."""
    return str(properties["name"].decode())


def describe(cupy: Any, properties: dict[str, Any]) -> dict[str, Any]:
    """Also the device, its clocks, and the versions of CUDA and cuDNN."""
    device = {
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        **_asked(cupy.cuda.Device().pci_bus_id),
    }
    runtime = cupy.cuda.runtime
    found = machine.describe(PACKAGES)
    found["versions"] |= {
        "cupy": cupy.__version__,
        "CUDA driver": _version(runtime.driverGetVersion()),
        "CUDA runtime": _version(runtime.runtimeGetVersion()),
        **_of_torch(),
    }
    smi = "".join(f", {key} {device[key]}" for key in ASKED if key in device)
    detail = (
        f", compute capability {device['compute_capability']}, {device['multiprocessors']} multiprocessors, "
        f"{device['memory_bytes'] / 2**30:.0f} GiB, L2 {device['l2_bytes'] / 2**20:.0f} MiB{smi}; {found['processor']}"
    )
    return {**found, "where": name(properties), "detail": detail, "device": device}


def _version(number: int) -> str:
    """13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _of_torch() -> dict[str, str]:
    try:
        import torch
    except ImportError:
        return {}
    found = {"torch's CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return {key: str(value) for key, value in found.items() if value is not None}


def _asked(bus_id: str) -> dict[str, str]:
    """Clocks and driver, where nvidia-smi is there and knows the device."""
    command = ["nvidia-smi", "-i", bus_id, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(ASKED, map(str.strip, line.split(","))))
