"""Run CUDA C++ kernels on the CPU: EmulatedModule stands in for cupy.RawModule, NumPy arrays for CuPy's.

g++ compiles the kernels behind cuda_cpu.hpp. For a launch, the memory of the array arguments is copied to pages of its
own, placed so that the first byte past the end faults; so do writes through pointers to const. README.md says what this
can show and what it cannot.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import itertools
import math
import mmap
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

try:
    import ml_dtypes  # gives NumPy its bfloat16
except ImportError:
    ml_dtypes = None

CACHE = Path(os.environ.get("CUDA_CPU_CACHE", Path.home() / ".cache" / "cuda_cpu"))
COMPILE = (
    "g++",
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-march=native",
    "-fvisibility=hidden",
    "-w",
    "-fno-strict-aliasing",
    "-ffp-contract=fast",
    "-fno-math-errno",
    f"-I{Path(__file__).parent}",
)
CHECKS = (
    "-fsanitize=bounds,alignment,shift-exponent,signed-integer-overflow,integer-divide-by-zero",
    "-ftrivial-auto-var-init=pattern",
)
# All default libraries but libubsan, which would take SIGSEGV for itself: cuda_cpu.cpp does its part.
LINK = ("-shared", "-nodefaultlibs", "-lstdc++", "-lm", "-lgcc_s", "-lgcc", "-lc")
DTYPES = {
    "b": "?",
    "a": "i1",
    "c": "i1",
    "h": "u1",
    "s": "i2",
    "t": "u2",
    "i": "i4",
    "j": "u4",
    "l": "i8",
    "m": "u8",
    "x": "i8",
    "y": "u8",
    "f": "f4",
    "d": "f8",
    "6__half": "f2",
    "13__nv_bfloat16": "bfloat16",
}  # by mangled C++ type
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None)


class CompileError(RuntimeError):
    """The compiler's messages, in which kernel.cu is the code given."""


class KernelError(RuntimeError):
    """A deadlock, an illegal memory access or a failed check while a kernel ran."""


class Dim3(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("grid", Dim3),
        ("block", Dim3),
        ("shared_bytes", ctypes.c_size_t),
        ("schedule", ctypes.c_int),
        ("seed", ctypes.c_uint),
    ]


class Error(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char_p), ("address", ctypes.c_size_t), ("code", ctypes.c_size_t)]


class CParameter(ctypes.Structure):
    _fields_ = [("type", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class EmulatedModule:
    """Used like cupy.RawModule. Of the options, only -D, -U and -I matter here.

    schedule: "forward", "reverse" or "random" (by `seed`), who goes first of the threads that can run.
        Where the result depends on it, a __syncthreads is missing.
    checks: also check array indices, alignment and integer overflow, and fill uninitialised variables.
    """

    SCHEDULES = "forward", "reverse", "random"

    def __init__(
        self, code, *, options=(), backend="nvrtc", name_expressions=None, schedule="forward", seed=0, checks=True
    ):
        self.schedule, self.seed = schedule, seed
        self.names = list(name_expressions or extern_c_kernels(code))
        options = tuple(option for option in options if re.match("-[DUI]", option)) + CHECKS * checks
        self.path = compile_cached(library_source(code, self.names), (*options, str(runtime()), *LINK))
        self.library = ctypes.PyDLL(str(self.path))  # holds the GIL: a library runs one launch at a time
        self.library.cuda_cpu_launch.restype = ctypes.POINTER(Error)

    def get_function(self, name):
        if name not in self.names:
            raise ValueError(f"no kernel {name!r} among {self.names}")
        return EmulatedKernel(self, name)


class EmulatedKernel:
    max_dynamic_shared_size_bytes = 48 << 10  # as in CuPy: raise it before a launch that needs more

    def __init__(self, module, name):
        self.module, self.name = module, name
        number = module.names.index(name)
        self.entry = ctypes.cast(module.library[f"kernel_{number}"], ctypes.c_void_p)
        parameters = module.library[f"parameters_{number}"]
        parameters.restype = ctypes.POINTER(CParameter)
        self.parameters = [
            Parameter(parameter.type.decode(), parameter.size)
            for parameter in itertools.takewhile(lambda parameter: parameter.type, parameters())
        ]

    def __call__(self, grid, block, args, *, shared_mem=0):
        grid, block = check_dimensions(grid, block)
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise ValueError(f"{self.name}: shared_mem={shared_mem} exceeds max_dynamic_shared_size_bytes")
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, not {len(args)}")
        for i, (parameter, arg) in enumerate(zip(self.parameters, args)):
            if problem := parameter.mismatch(arg):
                raise TypeError(f"{self.name}, argument {i}: {problem}")
        regions, addresses = guard(
            {
                i: (arg, parameter.written)
                for i, (parameter, arg) in enumerate(zip(self.parameters, args))
                if parameter.pointer and arg is not None
            }
        )
        values = [
            np.uintp(addresses.get(i, 0)) if parameter.pointer else as_scalar(arg)
            for i, (parameter, arg) in enumerate(zip(self.parameters, args))
        ]
        values = [ctypes.create_string_buffer(value.tobytes()) for value in values]
        pointers = (ctypes.c_void_p * len(args))(*map(ctypes.addressof, values))
        launch = Launch(
            self.entry,
            ctypes.addressof(pointers),
            Dim3(*grid),
            Dim3(*block),
            shared_mem,
            self.module.SCHEDULES.index(self.module.schedule),
            self.module.seed,
        )
        error = self.module.library.cuda_cpu_launch(ctypes.byref(launch)).contents
        if error.text:
            where = f"{source_line(self.module.path, error.code)}: " if error.code else ""
            what = f": {describe(error.address, regions)}" if error.address else ""
            raise KernelError(f"{self.name}: {where}{error.text.decode()}{what}")
        if damage := [region.damage() for region in regions if region.damage()]:
            raise KernelError(f"{self.name}: illegal write just {damage[0]}")
        for region in regions:
            region.copy_back()


class Parameter:
    """One of a kernel's, from its mangled C++ type ("PKf" is a pointer to const float) and its size."""

    def __init__(self, mangled, size):
        pointer, const, mangled = re.fullmatch("(P?)(K?)(.*)", mangled).groups()
        self.pointer, self.written, self.size = bool(pointer), not const, size
        known = mangled in DTYPES and (DTYPES[mangled] != "bfloat16" or ml_dtypes is not None)
        self.dtype = np.dtype(DTYPES[mangled]) if known else None

    def mismatch(self, arg):
        """Why arg does not fit, or None. CuPy would not ask, but pass the bytes as they are."""
        if self.pointer and arg is None:
            return None
        if self.pointer and not isinstance(arg, np.ndarray):
            return f"{type(arg).__name__} for a pointer"
        value = arg if self.pointer else as_scalar(arg)
        if self.dtype is not None and value.dtype != self.dtype:
            return f"{value.dtype} for {self.dtype}"
        if not self.pointer and value.nbytes != self.size:
            return f"{value.nbytes} bytes for a type of {self.size} bytes"
        if self.pointer and self.written and not arg.flags.writeable:
            return "a read-only array for a pointer that is not to const"
        return None


class Region:
    """A copy of the host's bytes from start to stop, between two pages that may not be touched."""

    def __init__(self, start):
        self.start, self.stop, self.written, self.members = start, start, False, []

    def copy_in(self):
        size, self.tail = self.stop - self.start, -self.stop % 16  # the tail keeps the host's alignment
        body = math.ceil((size + self.tail) / PAGE) * PAGE
        self.head = body - size - self.tail
        self.pages = mmap.mmap(-1, PAGE + body + PAGE)
        self.first = ctypes.addressof(ctypes.c_char.from_buffer(self.pages)) + PAGE
        self.copy, self.end = self.first + self.head, self.first + self.head + size
        ctypes.memset(self.first, 0xFF, body)
        ctypes.memmove(self.copy, self.start, size)
        own = mmap.PROT_READ | mmap.PROT_WRITE if self.written else mmap.PROT_READ
        for address, length, access in (
            (self.first - PAGE, PAGE, 0),
            (self.first, body, own),
            (self.first + body, PAGE, 0),
        ):
            libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), access)

    def copy_back(self):
        if self.written:
            ctypes.memmove(self.start, self.copy, self.stop - self.start)

    def damage(self):
        """Where in the pages, but outside the copy, the kernel wrote."""
        for where, address, size in ("before", self.first, self.head), ("past the end of", self.end, self.tail):
            if ctypes.string_at(address, size).strip(b"\xff"):
                return f"{where} {self}"

    def __str__(self):
        return " and ".join(self.members)


def guard(arrays):
    """Regions for {argument: (array, written)}, one for arrays that overlap; and {argument: address of its copy}."""
    regions, homes = [], {}
    spans = sorted((*np.lib.array_utils.byte_bounds(array), i) for i, (array, written) in arrays.items())
    for start, stop, i in spans:
        array, written = arrays[i]
        if not regions or start >= regions[-1].stop:
            regions.append(Region(start))
        homes[i] = region = regions[-1]
        region.stop, region.written = max(stop, region.stop), written or region.written
        region.members.append(f"argument {i} ({array.dtype}, shape {array.shape})")
    for region in regions:
        region.copy_in()
    return regions, {i: homes[i].copy - homes[i].start + array.ctypes.data for i, (array, _) in arrays.items()}


def describe(address, regions):
    for region in regions:
        if region.first - PAGE <= address < region.end + region.tail + PAGE:
            return (
                f"{region.copy - address} bytes before {region}"
                if address < region.copy
                else f"{address - region.end} bytes past the end of {region}"
                if address >= region.end
                else f"byte {address - region.copy} of {region} is const"
            )
    return f"address {address:#x} is in no argument"


def as_scalar(arg):
    """The NumPy scalar that CuPy passes for arg. A struct comes as an array of size one."""
    if isinstance(arg, np.ndarray) and arg.size == 1:
        return arg.reshape(1)[0]
    if isinstance(arg, np.generic):
        return arg
    for kind, scalar in (bool, np.bool_), (int, np.int64), (float, np.float64), (bytes, np.void):
        if isinstance(arg, kind):
            return scalar(arg)
    raise TypeError(f"cannot pass {type(arg).__name__} by value")


def check_dimensions(grid, block):
    grid, block = (tuple(max(1, size) for size in (*sizes, 1, 1)[:3]) for sizes in (grid, block))  # as CuPy does
    if max(grid[1:]) > 65535:
        raise ValueError(f"CUDA cannot launch a grid of {grid}")
    if block[2] > 64 or math.prod(block) > 1024:
        raise ValueError(f"CUDA cannot launch blocks of {block}")
    return grid, block


def extern_c_kernels(code):
    code = re.sub(r"__launch_bounds__\s*\([^)]*\)", "", code)
    return re.findall(r'extern\s*"C"\s*__global__\s+void\s+(\w+)', code)


def library_source(code, names):
    # Dynamic shared memory is a declaration in CUDA, a pointer here.
    code = re.sub(
        r"extern\s+__shared__\s+([^;]*?)\s*(\w+)\s*\[\s*\]\s*;", r"\1* \2 = (\1*)cuda_cpu::dynamic_shared;", code
    )
    exports = "\n".join(f"CUDA_CPU_EXPORT({i}, {name})" for i, name in enumerate(names))
    return f'#include "cuda_cpu.hpp"\n#line 1 "kernel.cu"\n{code}\n#line 1 "name_expressions"\n{exports}\n'


@functools.cache
def runtime():
    return compile_cached('#include "cuda_cpu.cpp"\n', ("-c",))


def compile_cached(source, options):
    """The path of what source compiles to. Its key covers all headers, the compiler and the processor."""
    key = hashlib.sha256(repr((source, options, surroundings())).encode()).hexdigest()[:32]
    path = CACHE / f"{key}{'.o' if '-c' in options else '.so'}"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes that want it, one compiles
        if path.exists():
            return path
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            command = [*COMPILE, "-x", "c++", "-", "-x", "none", "-o", f"{directory}/new", *options]
            result = subprocess.run(command, input=source, capture_output=True, text=True)
            if result.returncode:
                raise CompileError(result.stderr)
            os.replace(f"{directory}/new", path)
    return path


@functools.cache
def surroundings():
    """All that a compilation depends on besides its source and its options."""
    own = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.[ch]pp"))]
    asked = "-v", "-march=native", "-E", "-"  # answers with its version and what the processor has
    compiler = subprocess.run([COMPILE[0], "-x", "c++", *asked], input="", capture_output=True, text=True)
    return COMPILE, own, re.findall(r"^(?:gcc version|.*cc1plus).*$", compiler.stderr, re.MULTILINE)


def source_line(library, offset):
    command = ["addr2line", "-i", "-e", library, hex(offset)]  # the line, and those it was inlined into
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
    lines = [line.split("/")[-1].split(" ")[0] for line in lines]
    return next(line for line in lines if not line.startswith("cuda_cpu."))


def empty(shape, dtype=np.float32):
    """Like np.empty, but full of NaN (-1 in integers), so that what a kernel leaves unwritten shows."""
    array = np.empty(shape, dtype)
    ctypes.memset(array.ctypes.data, 0xFF, array.nbytes)
    return array
