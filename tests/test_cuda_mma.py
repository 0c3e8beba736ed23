"""Tensor-core products, ldmatrix and cp.async against the layouts that kernels/mma.cuh documents."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv.autograd import to_device
from fastconv.backends.cuda import platform
from fastconv.backends.cuda.module import OPTIONS, source

PRODUCT_16 = """
extern "C" __global__ void product(const float* a, const float* b, float* c) {
  __shared__ __align__(16) TYPE as[16][16], bs[16][8];
  const int i = threadIdx.x;
  for (int k = i; k < 256; k += 32) as[k / 16][k % 16] = TYPE(a[k]);
  for (int k = i; k < 128; k += 32) bs[k / 8][k % 8] = TYPE(b[k]);
  __syncwarp();
  unsigned fa[4], fb[4];  // of fb, one half is loaded twice
  float sum[4] = {};
  ldmatrix_x4(fa, &as[i % 16][i / 16 * 8]);
  ldmatrix_x4_trans(fb, bs[i % 16]);
  PRODUCT(sum, fa, fb, sum);
  for (int r = 0; r < 4; ++r) c[(i / 4 + r / 2 * 8) * 8 + i % 4 * 2 + r % 2] = sum[r];
}
"""

PRODUCT_TF32 = """
extern "C" __global__ void product(const float* a, const float* b, float* c) {
  __shared__ __align__(16) float as[16][8];
  const int i = threadIdx.x, g = i / 4, t = i % 4;
  cp_async_16(&as[i / 2][i % 2 * 4], &a[i * 4]);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  unsigned high[4], low[4], b_high[2], b_low[2];
  for (int r = 0; r < 4; ++r) {
    const float x = as[g + 8 * (r & 1)][t + 4 * (r >> 1)];
    high[r] = to_tf32(x), low[r] = to_tf32(x - __uint_as_float(high[r]));
  }
  for (int r = 0; r < 2; ++r) {
    const float x = b[(t + 4 * r) * 8 + g];
    b_high[r] = to_tf32(x), b_low[r] = to_tf32(x - __uint_as_float(b_high[r]));
  }
  float sum[4] = {};
  mma_m16n8k8_tf32(sum, low, b_high, sum);
  mma_m16n8k8_tf32(sum, high, b_low, sum);
  mma_m16n8k8_tf32(sum, high, b_high, sum);
  for (int r = 0; r < 4; ++r) c[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)] = sum[r];
}
"""


def product(code, a, b):
    """What a warp makes of a (16, K) and b (K, 8)."""
    code = source("types.cuh") + "\n" + source("mma.cuh") + "\n" + code
    kernel = platform.current().raw_module(code=code, options=OPTIONS, name_expressions=None).get_function("product")
    a, b, c = (to_device(x, "cuda") for x in (a, b, np.full((16, 8), np.nan, "float32")))
    kernel((1,), (32,), (a, b, c))
    return to_device(c, "cpu")


@pytest.mark.parametrize(("written", "name"), [("__half", "mma_m16n8k16_f16"), ("__nv_bfloat16", "mma_m16n8k16_bf16")])
def test_half_products_with_ldmatrix(written, name, gpu):
    """ldmatrix is documented apart from mma: that both fit together checks the layout of fragments."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, shape).astype("float32") for shape in ((16, 16), (16, 8)))
    code = PRODUCT_16.replace("TYPE", written).replace("PRODUCT", name)
    np.testing.assert_array_equal(product(code, a, b), a @ b)


def test_three_tf32_products_are_as_exact_as_floats(gpu):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype("float32") for shape in ((16, 8), (8, 8)))
    exact, magnitude = a.astype("float64") @ b, np.abs(a).astype("float64") @ np.abs(b)
    error = np.abs(product(PRODUCT_TF32, a, b) - exact) / magnitude
    assert error.max() < 4 * np.finfo("float32").eps
