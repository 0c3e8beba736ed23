// Products by fused multiply-add, for implicit_gemm.cu: each thread computes 8 rows of SIDE pixels, 128 / SIDE apart, so
// that neighbours read neighbours. 16-bit numbers become floats on their way into shared memory.
#pragma once
#include "tile.cuh"

template <typename A>
struct __align__(16) Eight { A at[8]; };

template <typename T_, int SIDE>
struct Scalar {
  using T = T_;
  using Sum = Compute<T>;
  using Word = Sum;
  using Weight = Sum;
  static constexpr int ROWS = 8 * SIDE, CHANNELS = 1, STEP_WORDS = 1, STAGE_STEPS = 8, STEP_WEIGHTS = ROWS;
  static constexpr int APART = THREADS / SIDE, BLOCKS = 3;

  Sum sum[8][SIDE] = {};
  int pixel[SIDE];  // where they are in the tile
  int first_row = threadIdx.x / APART * 8, first_pixel = threadIdx.x % APART;

  __device__ __forceinline__ explicit Scalar(const Phase& phase) {
#pragma unroll
    for (int n = 0; n < SIDE; ++n) pixel[n] = pixel_in_tile(phase, first_pixel + n * APART);
  }

  __device__ __forceinline__ void multiply(const Weight* weights, const Word* tile, const int* offsets) {
    const Word* from = tile + *offsets;
    const Eight<Sum> left = *reinterpret_cast<const Eight<Sum>*>(weights + first_row);
    Sum right[SIDE];
#pragma unroll
    for (int n = 0; n < SIDE; ++n) right[n] = from[pixel[n]];
#pragma unroll
    for (int m = 0; m < 8; ++m)
#pragma unroll
      for (int n = 0; n < SIDE; ++n) sum[m][n] += left.at[m] * right[n];
  }

  // Puts item i of those of a step where `multiply` looks for it.
  static constexpr int STEP_ITEMS = ROWS;
  template <typename Tell>
  __device__ __forceinline__ static void pack(Weight* to, int i, Tell weight) {
    to[i] = Weight(weight(i, 0, 0));
  }

  // The results of this thread.
  static constexpr int OWN_PIXELS = SIDE, OWN_ROWS = 8;
  __device__ __forceinline__ int own_pixel(int p) const { return first_pixel + p * APART; }
  __device__ __forceinline__ int own_row(int r) const { return first_row + r; }
  __device__ __forceinline__ Sum value(int p, int r) const { return sum[r][p]; }
};
