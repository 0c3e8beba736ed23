"""Compile CUDA C++ with NVRTC down to machine code, without a GPU, and tell what each kernel needs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

KERNEL = re.compile(
    r"entry function '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
    re.DOTALL,
)


OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to a module's options (cupy/cuda/compiler.py): float32 numbers below 1.2e-38 are zeros to kernels."""


class Resources(NamedTuple):
    """Of a kernel, from ptxas' log."""

    stack: int  # bytes per thread, as are spills
    spill_stores: int
    spill_loads: int
    registers: int
    shared: int  # static, bytes per block


class CompileError(RuntimeError):
    """What NVRTC or ptxas object to."""


def why_missing() -> str:
    """What keeps kernels from being compiled here, or nothing."""
    if importlib.util.find_spec("cupy") is None or not headers() or not _is_there():
        return 'compiling for GPUs needs CuPy and NVRTC: pip install "fastconv[test]" on x86-64 Linux'
    return ""


def _is_there() -> bool:
    try:
        from cupy.cuda import nvrtc

        return bool(nvrtc.getVersion())
    except (ImportError, RuntimeError):  # headers without the library
        return False


def compile_for(
    arch: str, code: str, names: Sequence[str] = (), options: Sequence[str] = ("-std=c++17",)
) -> dict[str, Resources]:
    """What each kernel of the code needs, compiled for an architecture such as "sm_90a"; CompileError if it fails."""
    from cupy.cuda import nvrtc  # optional; works without a driver

    program = nvrtc.createProgram(code, "kernel.cu", (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        # An sm_ architecture, not compute_, so that ptxas runs too: it checks inline PTX and assigns registers.
        included = [f"-I{folder}" for folder in headers()]
        nvrtc.compileProgram(program, (f"-arch={arch}", "--ptxas-options=-v", *included, *options, *OF_CUPY))
        lowered = {nvrtc.getLoweredName(program, name): name for name in names}
        log = nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        lines = re.sub(r"line \d+; ", "", nvrtc.getProgramLog(program)).splitlines()
        raise CompileError("\n".join([f"{arch}: {error}", *dict.fromkeys(lines)])) from None  # each complaint once
    finally:
        nvrtc.destroyProgram(program)
    return {
        lowered.get(name, name): Resources(*(int(number or 0) for number in numbers))
        for name, *numbers in KERNEL.findall(log)
    }


def headers() -> list[Path]:
    """Where cuda_fp16.h is: in the wheel nvidia-cuda-runtime, else in a CUDA installation."""
    wheel = importlib.util.find_spec("nvidia")
    roots = [*(wheel.submodule_search_locations or []), "/usr/local"] if wheel else ["/usr/local"]
    folders = [Path(root) / name / "include" for root in roots for name in ("cu13", "cuda")]
    return [folder for folder in folders if (folder / "cuda_fp16.h").exists()]
