"""Every kernel that the CUDA backend can launch, compiled for GPUs down to machine code. Needs no GPU."""

from __future__ import annotations

import pytest
from emulator import nvrtc

import fastconv.backends.cuda  # noqa: F401  # whose modules fill TEMPLATES
from fastconv.backends.cuda.module import FOLDER, OPTIONS, TEMPLATES, source

ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")
FILES = sorted({template.file for template in TEMPLATES})

pytestmark = pytest.mark.skipif(bool(nvrtc.why_missing()), reason=nvrtc.why_missing())


def instances(file, arch):
    """The names of a file's kernels that an architecture has the instructions for."""
    number = int(arch.strip("sma_"))
    templates = [template for template in TEMPLATES if template.file == file and template.architecture <= number]
    return [name for template in templates for name in template.instances.values()]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_instance_compiles_without_spilling(file, arch):
    names = instances(file, arch)
    kernels = nvrtc.compile_for(arch, source(file), names, OPTIONS) if names else {}
    assert set(kernels) == set(names)
    for name, needs in sorted(kernels.items()):
        print(f"{arch} {name}: {needs.registers} registers, {needs.shared} bytes shared, {needs.stack} stack")
    assert {name: needs for name, needs in kernels.items() if needs.spill_stores or needs.spill_loads} == {}


def test_every_kernel_file_is_used():
    assert set(FILES) == {path.name for path in FOLDER.glob("*.cu")}


def test_a_mistake_is_shown_with_its_line():
    with pytest.raises(nvrtc.CompileError, match=r"kernel.cu\(2\): error: identifier .missing. is undefined"):
        nvrtc.compile_for("sm_80", "__global__ void kernel() {\n missing(); }")
