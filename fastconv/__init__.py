"""Convolution, pooling and their gradients for NumPy and CuPy arrays. `import fastconv as fc`.

On arrays and Tensors, with the names and arguments of `torch.nn.functional`; `help(fc.conv2d)` says more:

    convolution     conv1d, conv2d, conv3d, conv, convolve, conv_transpose1d (2d, 3d), explain
    pooling         max_pool1d, avg_pool1d, sum_pool1d, adaptive_avg_pool1d, adaptive_max_pool1d (2d, 3d); interpolate
    activations     relu, leaky_relu, elu, selu, gelu, silu, sigmoid, tanh, softplus, softmax, log_softmax, add_relu
    layers          linear, dropout, batch_norm, layer_norm, group_norm, instance_norm
    losses          cross_entropy, nll_loss, mse_loss, l1_loss, binary_cross_entropy_with_logits
    gradients       Tensor, concatenate, stack, no_grad, is_grad_enabled; fc.grad: of convolution, on arrays
    arrays          asarray, manual_seed
    settings        precision, get_precision, set_num_threads, get_num_threads

Networks are in `fc.nn` and `fc.optim`; to be imported are `fastconv.data` (batches), `fastconv.training` (fit,
predict), `fastconv.models` and `fastconv.io` (files of weights).
"""

from fastconv import grad as grad
from fastconv import nn as nn
from fastconv import optim as optim
from fastconv.autograd import Tensor as Tensor
from fastconv.autograd import concatenate as concatenate
from fastconv.autograd import is_grad_enabled as is_grad_enabled
from fastconv.autograd import no_grad as no_grad
from fastconv.autograd import stack as stack
from fastconv.backends.threads import get_num_threads as get_num_threads
from fastconv.backends.threads import set_num_threads as set_num_threads
from fastconv.errors import DeviceError as DeviceError
from fastconv.ops.conversion import asarray as asarray
from fastconv.ops.convolution import Explanation as Explanation
from fastconv.ops.convolution import conv as conv
from fastconv.ops.convolution import conv1d as conv1d
from fastconv.ops.convolution import conv2d as conv2d
from fastconv.ops.convolution import conv3d as conv3d
from fastconv.ops.convolution import conv_transpose1d as conv_transpose1d
from fastconv.ops.convolution import conv_transpose2d as conv_transpose2d
from fastconv.ops.convolution import conv_transpose3d as conv_transpose3d
from fastconv.ops.convolution import convolve as convolve
from fastconv.ops.convolution import explain as explain
from fastconv.ops.dense import linear as linear
from fastconv.ops.losses import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from fastconv.ops.losses import cross_entropy as cross_entropy
from fastconv.ops.losses import l1_loss as l1_loss
from fastconv.ops.losses import mse_loss as mse_loss
from fastconv.ops.losses import nll_loss as nll_loss
from fastconv.ops.normalisation import batch_norm as batch_norm
from fastconv.ops.normalisation import group_norm as group_norm
from fastconv.ops.normalisation import instance_norm as instance_norm
from fastconv.ops.normalisation import layer_norm as layer_norm
from fastconv.ops.pointwise import dropout as dropout
from fastconv.ops.pointwise import elu as elu
from fastconv.ops.pointwise import gelu as gelu
from fastconv.ops.pointwise import leaky_relu as leaky_relu
from fastconv.ops.pointwise import log_softmax as log_softmax
from fastconv.ops.pointwise import relu as relu
from fastconv.ops.pointwise import selu as selu
from fastconv.ops.pointwise import sigmoid as sigmoid
from fastconv.ops.pointwise import silu as silu
from fastconv.ops.pointwise import softmax as softmax
from fastconv.ops.pointwise import softplus as softplus
from fastconv.ops.pointwise import tanh as tanh
from fastconv.ops.pooling import adaptive_avg_pool1d as adaptive_avg_pool1d
from fastconv.ops.pooling import adaptive_avg_pool2d as adaptive_avg_pool2d
from fastconv.ops.pooling import adaptive_avg_pool3d as adaptive_avg_pool3d
from fastconv.ops.pooling import adaptive_max_pool1d as adaptive_max_pool1d
from fastconv.ops.pooling import adaptive_max_pool2d as adaptive_max_pool2d
from fastconv.ops.pooling import adaptive_max_pool3d as adaptive_max_pool3d
from fastconv.ops.pooling import avg_pool1d as avg_pool1d
from fastconv.ops.pooling import avg_pool2d as avg_pool2d
from fastconv.ops.pooling import avg_pool3d as avg_pool3d
from fastconv.ops.pooling import max_pool1d as max_pool1d
from fastconv.ops.pooling import max_pool2d as max_pool2d
from fastconv.ops.pooling import max_pool3d as max_pool3d
from fastconv.ops.pooling import sum_pool1d as sum_pool1d
from fastconv.ops.pooling import sum_pool2d as sum_pool2d
from fastconv.ops.pooling import sum_pool3d as sum_pool3d
from fastconv.ops.resampling import interpolate as interpolate
from fastconv.ops.residual import add_relu as add_relu
from fastconv.precision import get_precision as get_precision
from fastconv.precision import precision as precision
from fastconv.random import manual_seed as manual_seed

__version__ = "0.1.0"
