"""The CPU backend: Numba-compiled SIMD kernels on NumPy arrays. Satisfies backends/contract.py."""

import numpy as xp  # noqa: F401  # the array namespace of this backend

from fastconv.backends.cpu.addition import add as add
from fastconv.backends.cpu.addition import add_relu as add_relu
from fastconv.backends.cpu.concatenation import concatenate as concatenate
from fastconv.backends.cpu.convolution import conv_forward as conv_forward
from fastconv.backends.cpu.convolution import conv_input_grad as conv_input_grad
from fastconv.backends.cpu.convolution import conv_weight_grad as conv_weight_grad
from fastconv.backends.cpu.convolution import explain_conv as explain_conv
from fastconv.backends.cpu.cross_entropy import cross_entropy as cross_entropy
from fastconv.backends.cpu.cross_entropy import cross_entropy_backward as cross_entropy_backward
from fastconv.backends.cpu.dense import linear as linear
from fastconv.backends.cpu.gemm import matmul as matmul
from fastconv.backends.cpu.indexing import scatter_add as scatter_add
from fastconv.backends.cpu.normalisation import batch_norm_apply as batch_norm_apply
from fastconv.backends.cpu.normalisation import batch_norm_backward as batch_norm_backward
from fastconv.backends.cpu.normalisation import batch_norm_statistics as batch_norm_statistics
from fastconv.backends.cpu.normalisation import channel_sum as channel_sum
from fastconv.backends.cpu.optimisers import adam_step as adam_step
from fastconv.backends.cpu.optimisers import sgd_step as sgd_step
from fastconv.backends.cpu.padding import pad as pad
from fastconv.backends.cpu.padding import pad_grad as pad_grad
from fastconv.backends.cpu.pointwise import activation_backward as activation_backward
from fastconv.backends.cpu.pointwise import activation_forward as activation_forward
from fastconv.backends.cpu.pooling import avg_pool_backward as avg_pool_backward
from fastconv.backends.cpu.pooling import avg_pool_forward as avg_pool_forward
from fastconv.backends.cpu.pooling import max_pool_backward as max_pool_backward
from fastconv.backends.cpu.pooling import max_pool_forward as max_pool_forward
from fastconv.backends.cpu.recording import capture as capture
from fastconv.backends.cpu.resampling import resample as resample
from fastconv.backends.cpu.row_norm import row_norm as row_norm
from fastconv.backends.cpu.row_norm import row_norm_backward as row_norm_backward
from fastconv.backends.cpu.softmax import softmax as softmax
from fastconv.backends.cpu.softmax import softmax_backward as softmax_backward
