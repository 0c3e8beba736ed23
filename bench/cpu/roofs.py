"""The machine's own limits: fused multiply-adds in registers, and copies of three sizes.

Both are measured on the same number of threads as the convolutions. The multiply-add kernel keeps independent chains of
`llvm.fma` on full vectors in registers and touches no memory; a copy counts the bytes read and the bytes written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.host import LANES

CHAINS = 12  # more than latency × issue rate of any current core (4 cycles × 2), fewer than the registers of AVX2
COPY_BYTES = (
    4 << 20,
    16 << 20,
    256 << 20,
)  # source and destination together: about a core's cache, a shared one, memory
REPEATS = 5


@intrinsic
def _fma_chains(typing_context, count):  # type: ignore[no-untyped-def]
    """`count` steps of CHAINS independent v ← v·a + b on vectors of LANES float32; returns a lane of their sum."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        index, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), LANES)
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        a, b = (ir.Constant(vector, [value] * LANES) for value in (0.5, 1.0))
        before, loop, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        step, chains = builder.phi(index), [builder.phi(vector) for _ in range(CHAINS)]
        results = [builder.call(fma, [chain, a, b]) for chain in chains]
        following = builder.add(step, index(1))
        step.add_incoming(index(0), before)
        step.add_incoming(following, loop)
        for number, (chain, result) in enumerate(zip(chains, results)):
            chain.add_incoming(ir.Constant(vector, [float(number)] * LANES), before)
            chain.add_incoming(result, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[0]), loop, after)
        builder.position_at_end(after)
        total = results[0]
        for result in results[1:]:
            total = builder.fadd(total, result)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.intp), codegen


@numba.njit(nogil=True)
def _fma_kernel(count: int) -> Any:
    return _fma_chains(count)


def fma_gflops(threads: int) -> float:
    """float32 GFLOP/s of `threads` threads that do nothing but fused multiply-adds (two operations each)."""
    count = 20_000_000
    seconds = _best(threads, [lambda: _fma_kernel(count)] * threads)
    return 2e-9 * threads * count * CHAINS * LANES / seconds


def copy_gbs(threads: int, nbytes: int) -> float:
    """GB/s, read plus written, of `threads` threads that copy arrays of nbytes/2 each other's share apart."""
    share = nbytes // 2 // threads
    repeats = max(1, (1 << 29) // nbytes)

    def copier() -> Callable[[], None]:
        source, target = np.ones(share, np.uint8), np.ones(share, np.uint8)

        def copy() -> None:
            for _ in range(repeats):
                np.copyto(target, source)

        return copy

    seconds = _best(threads, [copier() for _ in range(threads)])
    return 1e-9 * 2 * share * threads * repeats / seconds


def measure(threads: int) -> dict[str, Any]:
    """All roofs. A register holds half as many float64 as float32, at the same rate of instructions."""
    single = fma_gflops(threads)
    return {
        "gflops": {"float32": single, "float64": single / 2},
        "copy_gbs": {size: copy_gbs(threads, size) for size in COPY_BYTES},
    }


def _best(threads: int, calls: list[Callable[[], Any]]) -> float:
    """Shortest wall time, over REPEATS rounds, in which `threads` threads run one call each at the same time.

    The workers look at the clock themselves: where they fill all cores, an onlooker is woken late and sees too little.
    """
    barrier, spans = threading.Barrier(threads), []

    def work(call: Callable[[], Any]) -> None:
        call()
        for number in range(REPEATS):
            barrier.wait()
            begin = time.perf_counter()
            call()
            spans.append((number, begin, time.perf_counter()))

    workers = [threading.Thread(target=work, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rounds = [[span[1:] for span in spans if span[0] == number] for number in range(REPEATS)]
    return min(max(end for _, end in spans) - min(begin for begin, _ in spans) for spans in rounds)
