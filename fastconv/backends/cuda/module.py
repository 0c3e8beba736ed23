"""From a `.cu` file to kernels that can be launched: an instance of a template is compiled when it is first asked for.

CuPy keeps the binaries on disk under a hash of the source. It does not look into included files, so they are put into
the source here. It compiles with -ftz=true, after all options that it is given (_compile_with_cache_cuda in
cupy/cuda/compiler.py): to kernels, float32 numbers below 1.2e-38 are zeros, as operands and as results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.launch import shared_limit

FOLDER = Path(__file__).parent / "kernels"
OPTIONS = ("--std=c++17",)

TYPES = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}
"""What the kernels call the dtypes of arrays."""

TEMPLATES: list[Template] = []
"""All that the backend can launch; the tests compile each instance of each."""

STATIC_SHARED_BYTES = 48 << 10
"""Shared memory that a block may ask for without saying so beforehand."""


class Template:
    """A kernel of a file, and the template arguments that it may be asked for: `template("float", 3)`.

    `choices` are tuples of arguments, as they are written in C++. `architecture` is the lowest that has the
    instructions.
    """

    def __init__(self, file: str, name: str, choices: Iterable[tuple[Any, ...]], architecture: int = 75) -> None:
        self.file, self.name, self.architecture = file, name, architecture
        self.instances = {choice: self._written(choice) for choice in choices}
        TEMPLATES.append(self)

    def __call__(self, *arguments: Any) -> Kernel:
        """The kernel for these template arguments; KeyError if they are none of the choices."""
        return _kernel(platform.current(), self.file, self.instances[arguments])

    def _written(self, choice: tuple[Any, ...]) -> str:
        words = (str(part).lower() if isinstance(part, bool) else str(part) for part in choice)
        return f"{self.name}<{', '.join(words)}>" if choice else self.name


class Kernel:
    """One compiled instance. Called with a grid, a block and the arguments of the kernel.

    Arguments are arrays (their memory is handed over: they must be C-contiguous) or None, NumPy scalars of exactly the
    parameter's type, Python ints for `int` parameters, and structured scalars, or arrays of size one, for structs.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any, shared: int = 0) -> None:
        """Launch on the current stream; an empty grid launches nothing. `shared` counts bytes."""
        if 0 in grid:
            return
        if shared > STATIC_SHARED_BYTES:
            # Not `shared`: another thread may allow less for its own launch before this one is made.
            self._raw.max_dynamic_shared_size_bytes = shared_limit(platform.current().capability())
        self._raw(grid, block, tuple(map(_argument, arguments)), shared_mem=shared)


@cache
def source(file: str) -> str:
    """The text of a kernel file with its includes in it, each once. What is no file of ours stays an #include."""
    return _expanded(file, set())


def _expanded(file: str, done: set[str]) -> str:
    done.add(file)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate((FOLDER / file).read_text(encoding="utf-8").splitlines(), 1):
        found = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
        if found and (FOLDER / found[1]).exists():
            if found[1] not in done:
                lines.append(_expanded(found[1], done))
            lines.append(f'#line {number + 1} "{file}"')
        else:
            lines.append(line)
    return "\n".join(lines)


@cache
def _kernel(on: platform.Platform, file: str, name: str) -> Kernel:
    module = on.raw_module(code=source(file), options=OPTIONS, name_expressions=(name,))
    return Kernel(module.get_function(name))


def _argument(value: Any) -> Any:
    """As CuPy takes it: an `int` by value, a structure as an array of size one."""
    if type(value) is int:
        return np.int32(value)
    return np.asarray(value) if isinstance(value, np.void) else value


def computed(dtype: Any, value: float) -> Any:
    """A number as the type in which kernels compute with arrays of `dtype`: `Compute<T>` of kernels/types.cuh."""
    return np.float64(value) if dtype == np.float64 else np.float32(value)


def size(array: Any) -> Any:
    """The number of elements, as kernels take it: `Index` of kernels/types.cuh."""
    return np.int64(array.size)
