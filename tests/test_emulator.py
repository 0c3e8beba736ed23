"""What the emulator of CUDA kernels must catch, and what it must not."""

from __future__ import annotations

import emulator
import numpy as np
import pytest
from emulator.kernels import CompileError, EmulatedModule, KernelError, empty

from fastconv.backends.cuda.module import source

pytestmark = pytest.mark.skipif(bool(emulator.why_missing()), reason=emulator.why_missing())


def run(body, *, args=None, parameters="const float* x, float* y, int n", block=64, shared_mem=0, before="", **options):
    """y, after one block of a kernel with this body has run on x = 1, 2... 64."""
    code = f'{before}\nextern "C" __global__ void kernel({parameters}) {{ const int i = threadIdx.x; {body} }}'
    y = empty(64)
    args = args or (np.arange(1, 65, dtype=np.float32), y, np.int32(64))
    EmulatedModule(code, **options).get_function("kernel")((1,), (block,), args, shared_mem=shared_mem)
    return y


@pytest.mark.parametrize(
    "body, message",
    {
        "y[i + 1] = 0;": "thread \\(63, 0, 0\\).*: 0 bytes past the end of argument 1",
        "y[i - 1] = 0;": "illegal write just before argument 1",
        "const_cast<float*>(x)[i] = 0;": "byte 0 of argument 0 .*is const",
        "__shared__ float s[63]; s[i] = 0;": "array index out of bounds",
        "extern __shared__ float s[]; s[i] = 0;": "illegal memory access",
        "y[i] = *(float*)((char*)x + i);": "misaligned",
        "*(float4*)(y + 2) = float4();": "misaligned",
        "y[i] = n / i;": "division by zero",
        "y[i] = n * 100000000;": "integer overflow",
        "y[i] = 1 << n;": "shift",
        "assert(i < 9);": "kernel.cu:2: assert\\(i < 9\\).*thread \\(9, 0, 0\\)",
        "char big[200000]; big[n] = 0; y[i] = big[n + 1];": "stack overflow",
        "if (i < 32) __syncthreads(); else\n __syncthreads();": "deadlock; 32 threads, .* kernel.cu:2; 32 .*:3",
        "if (i < 40) __syncthreads(); else __syncwarp();": "deadlock; 40 .*__syncthreads.*; 24 .*\\(40, .*syncwarp",
        "y[i] = i < 16 ? __shfl_sync(~0u, 1.f, 0) : __shfl_sync(0xFFFFu, 1.f, 0);": "not in the mask",
        "if (i == 5) __syncthreads(); else __syncwarp();": "deadlock",
    }.items(),
)
def test_errors(body, message):
    with pytest.raises(KernelError, match=message):
        run(body)


def test_recovers_after_an_error():
    code = 'extern "C" __global__ void kernel(float* y, int i) { __syncthreads(); y[i + threadIdx.x] = 1; }'
    kernel = EmulatedModule(code).get_function("kernel")
    y = empty(64)
    with pytest.raises(KernelError):
        kernel((1,), (64,), (y, np.int32(1)))
    assert np.isnan(y).all()
    kernel((1,), (64,), (y, np.int32(0)))
    assert (y == 1).all()


@pytest.mark.parametrize(
    "body",
    [
        "if (i >= 10) return; __syncthreads(); y[i] = i;",
        "if (i % 2) return; __syncwarp(); y[i] = __shfl_xor_sync(0x55555555, float(i), 2);",
    ],
)
def test_exited_threads_hold_nobody_up(body):
    assert not np.isnan(run(body)[[0, 2, 4]]).any()


@pytest.mark.parametrize(
    "body, caught_by",
    [
        ("s[i] = x[i]; {} y[i] = s[63 - i];", {"forward", "reverse", "random"}),
        ("s[i] = x[i]; {} y[i] = s[i / 2];", {"reverse", "random"}),  # in forward order, thread i / 2 has written
        ("s[i] = x[i]; __syncthreads(); y[i] = s[i / 2]; {} s[i] = 0;", {"forward", "random"}),
    ],
)
def test_missing_barrier_shows(body, caught_by):
    body = "__shared__ float s[64];" + body
    correct = run(body.format("__syncthreads();"))
    results = {schedule: run(body.format(""), schedule=schedule) for schedule in EmulatedModule.SCHEDULES}
    assert {schedule for schedule, y in results.items() if not np.array_equal(y, correct)} == caught_by


@pytest.mark.parametrize(
    "body",
    [
        "cp_async_4(&s[i], &x[i]); cp_async_commit(); y[i] = s[i];",  # read before it has come
        "s[i] = 0; cp_async_4(&s[i], &x[i]); cp_async_commit(); y[i] = s[i]; cp_async_wait<0>();",  # or while it comes
    ],
)
def test_missing_wait_for_copy_shows(body):
    early, late = (
        run("__shared__ float s[64];" + body, before=source("mma.cuh"), schedule=schedule)
        for schedule in ("reverse", "forward")
    )
    assert not np.array_equal(early, late)


def test_uninitialised_memory_is_nan():
    assert np.isnan(run("__shared__ float s[64]; y[i] = s[i];")).all()
    assert np.isnan(run("extern __shared__ __align__(16) float s[]; y[i] = s[i];", shared_mem=256)).all()
    assert np.isnan(run("if (i < 10) y[i] = 0;")[10:]).all()
    assert np.isnan(run("y[i] = x[i - 1];")[0])  # between the start of a page and that of the array
    assert (run("float a[4]; y[i] = a[n % 4];") < -1e38).all()


@pytest.mark.parametrize(
    "args, message",
    [
        ((np.zeros(4), np.zeros(4, "f4"), np.int32(4)), "argument 0: float64 for float32"),
        ((np.zeros(4, "f4"), np.zeros(4, "f4"), 4), "argument 2: int64 for int32"),
        ((np.zeros(4, "f4"), np.zeros(4, "f4")), "takes 3 arguments"),
        ((np.zeros(4, "f4"), np.broadcast_to(np.float32(0), 4), np.int32(4)), "argument 1: a read-only array"),
        ((np.zeros(4, "f4"), 1, np.int32(4)), "argument 1: int for a pointer"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(TypeError, match=message):
        run("", args=args)


def test_bad_launch_and_code():
    with pytest.raises(ValueError, match="blocks of"):
        run("", block=1025)
    with pytest.raises(ValueError, match="max_dynamic_shared_size_bytes"):
        run("", shared_mem=1 << 16)
    with pytest.raises(CompileError, match=r"kernel.cu:2:.*undefined_name"):
        run("undefined_name();")


def test_views_structs_and_null():
    data = np.arange(24, dtype=np.float32).reshape(4, 6)
    point = np.array((2, 0.5), [("scale", "i4"), ("shift", "f4")])
    run(
        "if (!no) out[6 * i] = p.scale * in[6 * i] + p.shift;",
        args=(data[:, 1], data[:, 2], point, None),
        block=4,
        parameters="const float* in, float* out, Point p, int* no",
        before="struct Point { int scale; float shift; };",
    )
    np.testing.assert_array_equal(data[:, 2], 2 * data[:, 1] + 0.5)  # in and out overlap, so they share a copy
    np.testing.assert_array_equal(data[:, 3], np.arange(3, 24, 6))
    run("y[i] = x[i];", args=(data[0], data[1], np.int32(0)), block=6)  # neighbours do not
    np.testing.assert_array_equal(data[1], data[0])
    with pytest.raises(KernelError, match="0 bytes past the end of argument 0"):
        run("y[i] = x[i];", args=(data[0, :0], data[0], np.int32(0)), block=6)
