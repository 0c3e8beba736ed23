"""The host as the kernels see it: vector width, register budget, and a JIT cache that knows both.

`FASTCONV_VECTOR_WIDTH` (4, 8 or 16: float32 lanes) overrides the width found, so that every width can be tested on any
machine: LLVM lowers wide vectors to what the processor has.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.runtime import rtsys
from numba.core.types.misc import Omitted, unliteral
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastconv.backends.cpu.calls import Kernel

Function = TypeVar("Function", bound=Callable[..., Any])

_ENVIRONMENT = "FASTCONV_VECTOR_WIDTH"


def _lanes_of_host() -> int:
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    if features.get("avx2") or features.get("avx"):
        return 8
    return 4


def _lanes() -> int:
    forced = os.environ.get(_ENVIRONMENT)
    if forced is None:
        return _lanes_of_host()
    if forced not in ("4", "8", "16"):
        raise ValueError(f"{_ENVIRONMENT} must be 4, 8 or 16 (float32 lanes of a vector), got {forced!r}")
    return int(forced)


PROCESSOR: str = llvm.get_host_cpu_name()

LANES = _lanes()
"""float32 lanes of a vector; float64 has half as many."""

VECTOR_BYTES = 4 * LANES

REGISTERS = 32 if LANES == 16 or (LANES == 4 and "arm" in llvm.get_default_triple()) else 16
"""Vector registers a micro-kernel may plan with (AVX-512 and NEON have 32, SSE and AVX2 16)."""

TWO_UNITS = LANES == 16 and PROCESSOR != "znver4"
"""Whether a core can multiply and add two vectors of 512 bits in a cycle: Intel's server processors, Zen 5."""

LINE_BYTES = 64
"""Line of the caches."""

PAGE_BYTES = 4096
"""Page of memory, at least: all of it can be read, or nothing."""


def _cache_bytes(level: int, unknown: int) -> int:
    try:
        size = Path(f"/sys/devices/system/cpu/cpu0/cache/index{level}/size").read_text().strip()
        return int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):  # another system, or none that tells
        return unknown


SECOND_LEVEL_BYTES = _cache_bytes(2, unknown=1 << 20)
"""Second-level cache of a core. Work is cut by it; no sum is."""

_LAST_CACHE_BYTES = min(_cache_bytes(3, unknown=32 << 20), 32 << 20)
"""Of the last cache, what may be found again. A larger one has many cores, and others use it too: on two cores of a
Xeon with 300 MB, transposed convolutions and a ReLU with results of 26 to 34 MB are 1.2 to 1.3 times as fast past the
caches, and together with what reads them next as fast (a pooling .98, a convolution 1.01 to 1.09) or faster.
"""


def past_caches(result: int, read: int) -> bool:
    """Whether a result of so many bytes, for which `read` bytes are read, is better stored past the caches.

    If it would not stay in the last cache until somebody reads it: then the read of each line is saved that an ordinary
    store begins with, a third of the time of a fill. (A smaller one would have to be fetched from memory by who reads
    it next, and one that fits with what is read has most of its lines there already.) No bit of a result depends on how
    it is stored.
    """
    return result >= _LAST_CACHE_BYTES * 3 // 4 and result + read > _LAST_CACHE_BYTES


def _source_digest() -> str:
    """Numba's cache watches only the file of the cached function; a kernel also depends on the files beside it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_SOURCES = _source_digest()  # at import: of the sources as they are in memory, even if the files change later


class _KernelFiles(IndexDataCacheFile):  # type: ignore[misc]  # Numba carries no type information
    """The compiled forms of a kernel on disk: a file for each, whose name says all that it depends on.

    Numba's own way is an index of numbered files. Processes that compile one kernel for float32 and for float64 at the
    same time may take the same number; from then on every process runs the code of one on arrays of the other.
    """

    def save(self, key: Any, data: Any) -> None:
        """Keep a form, and drop what older sources left."""
        self._save_data(self._name(key), data)
        for path in Path(self._cache_path).glob(f"{glob.escape(self._base)}.*.nbc"):  # whole ones, none being written
            if not path.name.startswith(self._current):
                path.unlink(missing_ok=True)

    def load(self, key: Any) -> Any:
        """The form that was kept, or None."""
        try:
            return self._load_data(self._name(key))
        except FileNotFoundError:
            return None

    @property
    def _base(self) -> str:
        return str(self._index_name).removesuffix(".nbi")

    @property
    def _current(self) -> str:
        return f"{self._base}.{_SOURCES[:12]}-"

    def _name(self, key: Any) -> str:
        return f"{self._current}{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.nbc"


class _HostCache(FunctionCache):  # type: ignore[misc]
    """Numba's file cache, safe among processes, with its version and the vector width in the key."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = _KernelFiles(self._cache_path, self._impl.filename_base, None)

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return (*super()._index_key(signature, codegen), numba.__version__, LANES)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """As Numba's, without setting up what only the compiler needs: nearly half of a process' first call."""
        rtsys.initialize(target)  # the memory of arrays that kernels make
        with self._guard_against_spurious_io_errors():
            return self._load_overload(signature, target)


def kernel(
    function: Function | None = None, *, fastmath: bool | set[str] = False, cached_as: Function | None = None
) -> Any:
    """Compile a kernel on its first call, without the GIL, cached on disk.

    `fastmath` may name only flags that keep NaN and infinity: {"reassoc", "contract"}. A function that stands in no
    file is cached as the one that it was made of.
    """
    if function is None:
        return lambda f: kernel(f, fastmath=fastmath)
    dispatcher = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath, no_cfunc_wrapper=True)(function)
    dispatcher.__class__ = Kernel
    dispatcher._cache = _HostCache(cached_as or function)
    _kernels.append(dispatcher)
    return dispatcher


class _RoutineLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a routine as it was written down: LLVM sees it first with the kernel that it becomes a part of.

    Numba would optimise and translate each routine by itself too, for a call that never comes.
    """

    def _optimize_functions(self, module: Any) -> None:
        pass

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


class _RoutineCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler up to LLVM."""

    def compile_extra(self, function: Any) -> Any:
        state = self.state
        state.library = _RoutineLibrary(state.targetctx.codegen(), function.__qualname__)
        state.flags.no_compile = True
        result = super().compile_extra(function)
        returned = state.targetctx.data_model_manager[result.signature.return_type]
        if returned.contains_nrt_meminfo() and not state.flags.nrt:
            raise TypeError(f"{function.__name__} hands back an array: it must be a @routine(allocates=True)")
        entry: Any = [].append  # never entered: Numba knows a compiled function by a builtin that is its own
        state.targetctx.insert_user_function(entry, result.fndesc, [result.library])
        return result._replace(entry_point=entry)


def routine(
    function: Function | None = None,
    *,
    fastmath: bool | set[str] = False,
    allocates: bool = False,
    forceinline: bool = False,
) -> Any:
    """Compile a part of kernels: called by kernels alone, compiled when one of them is, and kept with it.

    It is typed and written down once, however many kernels call it. A constant argument is a number like any other:
    Numba would compile the routine once more for each. There is nothing that Python could call; so nothing but
    `@kernel` functions may have callers in plain Python (tests/test_project.py sees to that).

    Numba counts the references of a function's arrays by two locked instructions for each, which short work in
    innermost loops cannot afford. A routine's caller holds them anyway; only one that makes arrays, or hands them back,
    has to count: it `allocates`.
    """
    if function is None:
        return lambda f: routine(f, fastmath=fastmath, allocates=allocates, forceinline=forceinline)
    dispatcher = numba.njit(
        nogil=True,
        error_model="numpy",
        fastmath=fastmath,
        forceinline=forceinline,
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=_RoutineCompiler,
        _nrt=allocates,
    )(function)
    typed = dispatcher.get_call_template
    dispatcher.get_call_template = lambda args, kws: typed(tuple(map(unliteral, args)), kws)
    return dispatcher


_kernels: list[Any] = []


def cache_path() -> str:
    """The folder of the compiled kernels."""
    return str(FunctionCache(flat).cache_path)


def compilations() -> int:
    """How often a kernel was compiled in this process, not found in the cache."""
    return sum(sum(dispatcher.stats.cache_misses.values()) for dispatcher in _kernels)


def inlined(function: Callable[..., Any]) -> Any:
    """A routine for innermost loops: LLVM puts its code in place of every call."""
    return routine(function, forceinline=True)


def embedded(function: Callable[..., Any]) -> Any:
    """A piece of a kernel that becomes part of every caller before anything is compiled, with the caller's `fastmath`.

    Every caller compiles it anew: where neither that nor a constant matters, `inlined` costs less.
    """
    return numba.njit(inline="always", error_model="numpy")(function)


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing: Any, array: Any, index: Any = 0) -> Any:
    """The address of an element of an array, by default of the first, as a signed number.

    An instruction where `array.ctypes.data` is a call that counts references, and unsigned: Numba adds unsigned and
    signed numbers as float64.
    """
    given = isinstance(index, types.Integer)
    itemsize = array.dtype.bitwidth // 8

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        address = builder.ptrtoint(data, context.get_value_type(types.intp))
        if not given:
            return address
        count = context.cast(builder, values[1], signature.args[1], types.intp)
        return builder.add(address, builder.mul(count, context.get_constant(types.intp, itemsize)))

    return types.intp(array, index if given else Omitted(0)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def array_at(typing: Any, like: Any, address: Any, first: Any, count: Any) -> Any:
    """Elements [first, first + count) of an array at an address, of `like`'s type; somebody else holds its memory."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, address, first, count = values
        size = context.get_constant(types.intp, like.dtype.bitwidth // 8)
        data = builder.add(address, builder.mul(first, size))
        made = context.make_array(like)(context, builder)
        data = builder.inttoptr(data, context.get_data_type(like.dtype).as_pointer())
        shape, strides = (cgutils.pack_array(builder, [value]) for value in (count, size))
        populate_array(made, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
        return made._getvalue()

    return like(like, types.intp, types.intp, types.intp), codegen


class _Memory:
    """The memory of an array, offered for writing; holds the array."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, array: npt.NDArray[Any]) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self._owner = array


def writeable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array as kernels take it.

    A read-only array is another type to Numba, and a kernel would be compiled once more for it; kernels do not write to
    their inputs, so they get the same memory as an ordinary array.
    """
    return array if array.flags.writeable else np.asarray(_Memory(array))


def flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The elements of a contiguous array in one axis, as kernels take them."""
    array = array.ravel()
    return array if array.flags.writeable else writeable(array)  # asked here first: a call for each array would show
