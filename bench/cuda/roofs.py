"""The GPU's own limits: copies beyond the L2 cache, multiply-adds in registers, products of large matrices.

A copy counts the bytes read and the bytes written. FFMA is measured by `roofs.cu`; what the tensor cores can do by
cuBLAS's products of square matrices of random numbers (through PyTorch, and not at all without it). "3xtf32" is a third
of TF32: float32 products of three TF32 products each, as fastconv computes them by default, or FFMA where that is more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.case import Call
from bench.cuda.clock import Clock, Rotation

COPY_BYTES = (512 << 20, 1 << 30, 4 << 30)  # source and destination together
SIZE = 8192  # of a matrix
PRODUCTS = {"tf32": "float32", "float16": "float16", "bfloat16": "bfloat16", "float64": "float64"}
THREADS, BLOCKS_PER_PROCESSOR, CHAINS, STEPS = 256, 32, 8, 4096
COUNT, REPEATS = 10, 5


def measure(cupy: Any, clock: Clock, multiprocessors: int) -> dict[str, Any]:
    """All roofs, in GFLOP/s and GB/s."""
    scalar = fma_gflops(cupy, clock, multiprocessors)
    products = _matmul_gflops(clock)
    gflops = {"ffma": scalar, **products, "3xtf32": max(scalar, products.get("tf32", 0) / 3)}
    return {"gflops": gflops, "copy_gbs": {size: copy_gbs(cupy, clock, size) for size in COPY_BYTES}}


def of_arithmetic(dtype: str, precision: str, depthwise: bool) -> str:
    """The roof that convolutions of a dtype at a precision can reach; depthwise ones have no sums for tensor cores."""
    if dtype != "float32":
        return dtype
    if depthwise:
        return "ffma"
    return {"highest": "ffma", "default": "3xtf32", "fast": "tf32"}[precision]


def fma_gflops(cupy: Any, clock: Clock, multiprocessors: int) -> float:
    """float32 GFLOP/s of nothing but fused multiply-adds (two operations each)."""
    kernel = cupy.RawModule(code=Path(__file__).with_name("roofs.cu").read_text()).get_function("fma_chains")
    grid, never = BLOCKS_PER_PROCESSOR * multiprocessors, cupy.zeros(1, np.float32)
    arguments = (never, np.int32(STEPS), np.float32(0.5), np.float32(1))
    seconds = _best(clock, lambda: kernel((grid,), (THREADS,), arguments))
    return 2e-9 * grid * THREADS * CHAINS * STEPS / seconds


def copy_gbs(cupy: Any, clock: Clock, nbytes: int) -> float:
    """GB/s, read plus written, of a copy of nbytes/2."""
    source, target = (cupy.ones(nbytes // 8, np.float32) for _ in range(2))
    return 1e-9 * nbytes / _best(clock, lambda: cupy.copyto(target, source))


def _matmul_gflops(clock: Clock) -> dict[str, float]:
    """Of the products in `PRODUCTS`."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    rates, before = {}, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, dtype in PRODUCTS.items():
        a, b = (torch.randn(SIZE, SIZE, dtype=getattr(torch, dtype), device="cuda") for _ in range(2))
        rates[name] = 2e-9 * SIZE**3 / _best(clock, lambda a=a, b=b: torch.matmul(a, b))
    torch.backends.cuda.matmul.allow_tf32 = before
    torch.cuda.empty_cache()
    return rates


def _best(clock: Clock, call: Call) -> float:
    """Shortest mean seconds of a call over REPEATS blocks."""
    rotation = Rotation([call], wait=lambda result: None)
    return min(clock.block(rotation, COUNT, warm=True) for _ in range(REPEATS))
