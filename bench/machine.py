"""What a figure is worth nothing without: processor, versions, date."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastconv as fc
from fastconv.backends.cpu.host import LANES

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "onnxruntime", "jax", "jaxlib")


def describe(threads: int) -> dict[str, Any]:
    """Date (UTC), processor, cores, threads in use, vector width, load before the run, and versions."""
    versions = {"python": platform.python_version(), "fastconv": fc.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": threads,
        "vector_lanes": LANES,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text(encoding="utf-8").splitlines() if ":" in line)
        names = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in names:
            family = f", family {names['cpu family']} model {names['model']}" if "cpu family" in names else ""
            return names["model name"] + family
    return platform.processor() or platform.machine()
