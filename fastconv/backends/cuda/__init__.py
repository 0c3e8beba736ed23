"""The CUDA backend: CUDA C++ kernels (kernels/) on CuPy arrays. Satisfies backends/contract.py."""

from typing import Any

from fastconv.backends.cuda import platform
from fastconv.backends.cuda.convolution import conv_forward as conv_forward
from fastconv.backends.cuda.convolution import conv_input_grad as conv_input_grad
from fastconv.backends.cuda.convolution import conv_weight_grad as conv_weight_grad
from fastconv.backends.cuda.convolution import explain_conv as explain_conv
from fastconv.backends.cuda.device import current as current
from fastconv.backends.cuda.device import on_device as on_device
from fastconv.backends.cuda.device import require as require
from fastconv.backends.cuda.gemm import linear as linear
from fastconv.backends.cuda.gemm import matmul as matmul
from fastconv.backends.cuda.graph import capture as capture
from fastconv.backends.cuda.indexing import concatenate as concatenate
from fastconv.backends.cuda.indexing import scatter_add as scatter_add
from fastconv.backends.cuda.normalisation import batch_norm_apply as batch_norm_apply
from fastconv.backends.cuda.normalisation import batch_norm_backward as batch_norm_backward
from fastconv.backends.cuda.normalisation import batch_norm_statistics as batch_norm_statistics
from fastconv.backends.cuda.normalisation import channel_sum as channel_sum
from fastconv.backends.cuda.optimisers import adam_step as adam_step
from fastconv.backends.cuda.optimisers import sgd_step as sgd_step
from fastconv.backends.cuda.padding import pad as pad
from fastconv.backends.cuda.padding import pad_grad as pad_grad
from fastconv.backends.cuda.pointwise import activation_backward as activation_backward
from fastconv.backends.cuda.pointwise import activation_forward as activation_forward
from fastconv.backends.cuda.pointwise import add as add
from fastconv.backends.cuda.pointwise import add_relu as add_relu
from fastconv.backends.cuda.pooling import avg_pool_backward as avg_pool_backward
from fastconv.backends.cuda.pooling import avg_pool_forward as avg_pool_forward
from fastconv.backends.cuda.pooling import max_pool_backward as max_pool_backward
from fastconv.backends.cuda.pooling import max_pool_forward as max_pool_forward
from fastconv.backends.cuda.resampling import resample as resample
from fastconv.backends.cuda.row_norm import row_norm as row_norm
from fastconv.backends.cuda.row_norm import row_norm_backward as row_norm_backward
from fastconv.backends.cuda.softmax import cross_entropy as cross_entropy
from fastconv.backends.cuda.softmax import cross_entropy_backward as cross_entropy_backward
from fastconv.backends.cuda.softmax import softmax as softmax
from fastconv.backends.cuda.softmax import softmax_backward as softmax_backward


def __getattr__(name: str) -> Any:
    """`xp`, the array namespace, which is not imported with the backend."""
    if name == "xp":
        return platform.current().xp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
