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
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.host import LANES

CHAINS = 12  # more than latency × issue rate of any current core (4 cycles × 2), fewer than the registers of AVX2
COPY_BYTES = (
    4 << 20,
    16 << 20,
    256 << 20,
)  # source and destination together: about a core's cache, a shared one, memory
REPEATS = 5


@intrinsic
def _fma_chains(typing_context, count, a, b):  # type: ignore[no-untyped-def]
    """`count` steps of CHAINS independent v ← v·a + b on vectors of LANES float32; returns a lane of their sum.

    The compiler does not know the factors: of v·0.5 + 1 it left out a chain that began at 2, and the roof was an
    eleventh too high.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit, count = Emitter(builder, types.float32), args[0]
        a, b = emit.splat(args[1]), emit.splat(args[2])

        def step(number: Any, chains: list[list[Any]]) -> list[list[Any]]:
            return [[emit.fma(chain, a, b) for chain in chains[0]]]

        (chains,) = emit.loop(count, [[emit.constant(number) for number in range(CHAINS)]], step)
        total = chains[0]
        for chain in chains[1:]:
            total = builder.fadd(total, chain)
        return builder.extract_element(total, emit.index(0))

    return types.float32(types.intp, types.float32, types.float32), codegen


@numba.njit(nogil=True)
def _fma_kernel(count: int, a: Any, b: Any) -> Any:
    return _fma_chains(count, a, b)


def fma_gflops(threads: int) -> float:
    """float32 GFLOP/s of `threads` threads that do nothing but fused multiply-adds (two operations each)."""
    count, a, b = 20_000_000, np.float32(0.5), np.float32(1.0)
    seconds = _best(threads, [lambda: _fma_kernel(count, a, b)] * threads)
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
