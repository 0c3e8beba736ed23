"""Convolution, pooling and their gradients for NumPy and CuPy arrays. `import fastconv as fc`."""

from fastconv import grad as grad
from fastconv.autograd import Tensor as Tensor
from fastconv.autograd import concatenate as concatenate
from fastconv.autograd import is_grad_enabled as is_grad_enabled
from fastconv.autograd import no_grad as no_grad
from fastconv.autograd import stack as stack
from fastconv.backends.cpu.threads import get_num_threads as get_num_threads
from fastconv.backends.cpu.threads import set_num_threads as set_num_threads
from fastconv.errors import DeviceError as DeviceError
from fastconv.ops.convolution import conv as conv
from fastconv.ops.convolution import conv1d as conv1d
from fastconv.ops.convolution import conv2d as conv2d
from fastconv.ops.convolution import conv3d as conv3d
from fastconv.ops.convolution import conv_transpose1d as conv_transpose1d
from fastconv.ops.convolution import conv_transpose2d as conv_transpose2d
from fastconv.ops.convolution import conv_transpose3d as conv_transpose3d
from fastconv.ops.convolution import convolve as convolve
from fastconv.ops.convolution import explain as explain
from fastconv.random import manual_seed as manual_seed

__version__ = "0.1.0"
