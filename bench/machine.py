"""What a figure is worth nothing without, on any device: date, versions, the processor of the machine."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastconv as fc


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """Date (UTC), system, cores, load before the run, commit, and the versions of those packages that are installed."""
    versions = {"python": platform.python_version(), "fastconv": fc.__version__, **_commit()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def _commit() -> dict[str, str]:
    """That of the checkout, where git knows it; with a plus if files have changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        return {"commit": subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text(encoding="utf-8").splitlines() if ":" in line)
        names = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in names:
            family = f", family {names['cpu family']} model {names['model']}" if "cpu family" in names else ""
            return names["model name"] + family
    return platform.processor() or platform.machine()
