"""The CUDA backend without a GPU: its dispatch and its kernels on the CPU. README.md says how, and what that shows."""

from emulator.platform import in_use as in_use
from emulator.platform import why_missing as why_missing
