// Products on tensor cores, for implicit_gemm.cu: a warp computes M_TILES x 16 rows of 32 pixels, step by step of the
// sum: 8 words, which are 8 channels and taps of floats, 16 of 16-bit numbers (two channels in a word). In both cases
// lane (g, t) = (lane / 4, lane % 4) takes words t and t + 4 of pixel g of each 8 pixels. Weights come as fragments,
// four registers of each lane together.
#pragma once
#include "tile.cuh"

#if __CUDA_ARCH__ >= 800 || defined(CUDA_CPU)

struct Tf32x3 {
  using T = float;
  static constexpr int PARTS = 2, CHANNELS = 1;  // parts of a weight, channels in a word
  struct Right {
    unsigned high[2], low[2];
    __device__ __forceinline__ Right(unsigned first, unsigned second) {
      split(first, high[0], low[0]);
      split(second, high[1], low[1]);
    }
  };
  __device__ __forceinline__ static void split(unsigned bits, unsigned& high, unsigned& low) {
    const float x = __uint_as_float(bits);
    high = to_tf32(x);
    low = to_tf32(x - __uint_as_float(high));
  }
  __device__ __forceinline__ static void prepare(uint4 left[2], unsigned a, unsigned b, unsigned c, unsigned d) {
    split(a, left[0].x, left[1].x);
    split(b, left[0].y, left[1].y);
    split(c, left[0].z, left[1].z);
    split(d, left[0].w, left[1].w);
  }
  __device__ __forceinline__ static void multiply(float sum[4], const uint4 left[2], const Right& right) {
    const unsigned high[4] = {left[0].x, left[0].y, left[0].z, left[0].w};
    const unsigned low[4] = {left[1].x, left[1].y, left[1].z, left[1].w};
    float part[4] = {};  // summed apart, small terms first: mma cuts off where this addition rounds
    mma_m16n8k8_tf32(part, low, right.high, part);
    mma_m16n8k8_tf32(part, high, right.low, part);
    mma_m16n8k8_tf32(part, high, right.high, part);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part[i];
  }
  template <typename Tell>
  __device__ __forceinline__ static void pack(unsigned* to, Tell weight) {
    split(__float_as_uint(weight(0)), to[0], to[128]);
  }
};

struct Tf32 {
  using T = float;
  static constexpr int PARTS = 1, CHANNELS = 1;
  struct Right {
    unsigned bits[2];
    __device__ __forceinline__ Right(unsigned first, unsigned second)
        : bits{rounded(first), rounded(second)} {}
  };
  __device__ __forceinline__ static unsigned rounded(unsigned bits) { return to_tf32(__uint_as_float(bits)); }
  __device__ __forceinline__ static void prepare(uint4 left[1], unsigned a, unsigned b, unsigned c, unsigned d) {
    left[0] = make_uint4(rounded(a), rounded(b), rounded(c), rounded(d));
  }
  __device__ __forceinline__ static void multiply(float sum[4], const uint4 left[1], const Right& right) {
    const unsigned bits[4] = {left[0].x, left[0].y, left[0].z, left[0].w};
    mma_m16n8k8_tf32(sum, bits, right.bits, sum);
  }
  template <typename Tell>
  __device__ __forceinline__ static void pack(unsigned* to, Tell weight) {
    *to = to_tf32(weight(0));
  }
};

template <typename T_>
struct Half {
  using T = T_;
  static constexpr int PARTS = 1, CHANNELS = 2;
  struct Right {
    unsigned bits[2];
    __device__ __forceinline__ Right(unsigned first, unsigned second) : bits{first, second} {}
  };
  __device__ __forceinline__ static void prepare(uint4 left[1], unsigned a, unsigned b, unsigned c, unsigned d) {
    left[0] = make_uint4(a, b, c, d);
  }
  __device__ __forceinline__ static void multiply(float sum[4], const uint4 left[1], const Right& right) {
    const unsigned bits[4] = {left[0].x, left[0].y, left[0].z, left[0].w};
    if constexpr (IS_HALF<T>) mma_m16n8k16_f16(sum, bits, right.bits, sum);
    else mma_m16n8k16_bf16(sum, bits, right.bits, sum);
  }
  template <typename Tell>
  __device__ __forceinline__ static void pack(unsigned* to, Tell weight) {
    *to = bits_of(weight(0)) | unsigned(bits_of(weight(1))) << 16;
  }
};

template <typename Product, int M_TILES>
struct Tensor {
  using T = typename Product::T;
  using Word = unsigned;
  using Weight = unsigned;
  using Sum = float;
  static constexpr int ROWS = 16 * M_TILES, CHANNELS = Product::CHANNELS, STEP_WORDS = 8, STAGE_STEPS = 2;
  static constexpr int STEP_WEIGHTS = M_TILES * Product::PARTS * 128;
  static constexpr int N_TILES = 4;  // of 8 pixels
  static constexpr int BLOCKS = M_TILES * Product::PARTS > 4 ? 2 : 3;  // of a multiprocessor, for their registers

  float sum[M_TILES][N_TILES][4] = {};
  int pixel[N_TILES];  // where they are in the tile
  int lane = threadIdx.x % 32, first_pixel = threadIdx.x / 32 * (8 * N_TILES);

  __device__ __forceinline__ explicit Tensor(const Phase& phase) {
#pragma unroll
    for (int n = 0; n < N_TILES; ++n) pixel[n] = pixel_in_tile(phase, first_pixel + 8 * n + lane / 4);
  }

  __device__ __forceinline__ void multiply(const unsigned* weights, const unsigned* tile, const int* offsets) {
    const unsigned *first = tile + offsets[lane % 4], *second = tile + offsets[lane % 4 + 4];
    typename Product::Right right[N_TILES] = {{first[pixel[0]], second[pixel[0]]},
                                              {first[pixel[1]], second[pixel[1]]},
                                              {first[pixel[2]], second[pixel[2]]},
                                              {first[pixel[3]], second[pixel[3]]}};
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
      uint4 left[Product::PARTS];
#pragma unroll
      for (int part = 0; part < Product::PARTS; ++part)
        left[part] = reinterpret_cast<const uint4*>(weights)[(m * Product::PARTS + part) * 32 + lane];
#pragma unroll
      for (int n = 0; n < N_TILES; ++n) Product::multiply(sum[m][n], left, right[n]);
    }
  }

  // Puts item i of those of a step where `multiply` looks for it; weight(row, word, channel of the word) tells it.
  static constexpr int STEP_ITEMS = M_TILES * 128;
  template <typename Tell>
  __device__ __forceinline__ static void pack(unsigned* to, int i, Tell weight) {
    const int m = i / 128, lane = i / 4 % 32, part = i % 4;
    const int row = 16 * m + lane / 4 + 8 * (part & 1), word = lane % 4 + 4 * (part >> 1);
    Product::pack(to + m * Product::PARTS * 128 + i % 128, [&](int channel) { return weight(row, word, channel); });
  }

  // The results of this thread.
  static constexpr int OWN_PIXELS = 2 * N_TILES, OWN_ROWS = 2 * M_TILES;
  __device__ __forceinline__ int own_pixel(int p) const { return first_pixel + p / 2 * 8 + lane % 4 * 2 + p % 2; }
  __device__ __forceinline__ int own_row(int r) const { return lane / 4 + 8 * r; }
  __device__ __forceinline__ float value(int p, int r) const { return sum[r / 2][p / 2][p % 2 + r % 2 * 2]; }
};

#endif
