// Products for weight_grad.cu: 128 threads multiply gy[row][pixel] with x[column][pixel] for the pixels of a box, on
// tensor cores or by FMAs. Columns are found through offsets into the tile of x, pixels through others.
#pragma once
#include "fma_math.cuh"
#include "tensor_math.cuh"

constexpr int COLUMNS = 128, BOX = 64;

#if __CUDA_ARCH__ >= 800 || defined(CUDA_CPU)

// A warp computes M_TILES x 16 rows of 32 columns; a word is one pixel of floats, two neighbours of 16-bit numbers.
template <typename Product, int M_TILES>
struct GradTensor {
  using T = typename Product::T;
  using Stored = T;
  using Sum = float;
  static constexpr int ROWS = 16 * M_TILES, N_TILES = 4, IN_WORD = Product::CHANNELS;
  static constexpr int PITCH = BOX + 4 * IN_WORD, LEFT_WORDS = ROWS * PITCH;  // 4 words more: no bank conflicts
  __device__ __forceinline__ static int left(int row, int pixel) { return row * PITCH + pixel; }

  float sum[M_TILES][N_TILES][4] = {};
  int column[N_TILES];  // where they are in the tile
  int lane = threadIdx.x % 32, first_column = threadIdx.x / 32 * (8 * N_TILES);

  template <typename Find>
  __device__ __forceinline__ explicit GradTensor(Find find) {
#pragma unroll
    for (int n = 0; n < N_TILES; ++n) column[n] = find(first_column + 8 * n + lane / 4);
  }

  __device__ __forceinline__ static unsigned word(const T* tile, const int* pixels) {
    if constexpr (IN_WORD == 1) return __float_as_uint(tile[pixels[0]]);
    else return bits_of(tile[pixels[0]]) | unsigned(bits_of(tile[pixels[1]])) << 16;
  }

  __device__ __forceinline__ void multiply(const T* left, const T* tile, const int* pixels) {
#pragma unroll 1
    for (int first = 0; first < BOX; first += 8 * IN_WORD) {
      const int low = first + lane % 4 * IN_WORD, high = low + 4 * IN_WORD;
      using Right = typename Product::Right;
      const Right right[N_TILES] = {{word(tile + column[0], pixels + low), word(tile + column[0], pixels + high)},
                                    {word(tile + column[1], pixels + low), word(tile + column[1], pixels + high)},
                                    {word(tile + column[2], pixels + low), word(tile + column[2], pixels + high)},
                                    {word(tile + column[3], pixels + low), word(tile + column[3], pixels + high)}};
#pragma unroll
      for (int m = 0; m < M_TILES; ++m) {
        const T* row = left + (16 * m + lane / 4) * PITCH;
        uint4 weights[Product::PARTS];
        Product::prepare(weights, bits(row + low), bits(row + 8 * PITCH + low), bits(row + high),
                         bits(row + 8 * PITCH + high));
#pragma unroll
        for (int n = 0; n < N_TILES; ++n) Product::multiply(sum[m][n], weights, right[n]);
      }
    }
  }
  __device__ __forceinline__ static unsigned bits(const T* word) { return *reinterpret_cast<const unsigned*>(word); }

  // The results of this thread.
  static constexpr int OWN_ROWS = 2 * M_TILES, OWN_COLUMNS = 2 * N_TILES;
  __device__ __forceinline__ int own_row(int r) const { return lane / 4 + 8 * r; }
  __device__ __forceinline__ int own_column(int c) const { return first_column + c / 2 * 8 + lane % 4 * 2 + c % 2; }
  __device__ __forceinline__ float value(int r, int c) const { return sum[r / 2][c / 2][c % 2 + r % 2 * 2]; }
};

#endif

// Each thread computes 8 rows of SIDE columns, 128 / SIDE apart.
template <typename T_, int SIDE>
struct GradScalar {
  using T = T_;
  using Sum = Compute<T>;
  using Stored = Sum;
  static constexpr int ROWS = 8 * SIDE, APART = THREADS / SIDE, PITCH = ROWS + 4, LEFT_WORDS = BOX * PITCH;
  __device__ __forceinline__ static int left(int row, int pixel) { return pixel * PITCH + row; }

  Sum sum[8][SIDE] = {};
  int column[SIDE];  // where they are in the tile
  int first_row = threadIdx.x / APART * 8, first_column = threadIdx.x % APART;

  template <typename Find>
  __device__ __forceinline__ explicit GradScalar(Find find) {
#pragma unroll
    for (int n = 0; n < SIDE; ++n) column[n] = find(first_column + n * APART);
  }

  __device__ __forceinline__ void multiply(const Sum* left, const Sum* tile, const int* pixels) {
#pragma unroll 1
    for (int pixel = 0; pixel < BOX; ++pixel) {
      const Sum* from = tile + pixels[pixel];
      const Eight<Sum> rows = *reinterpret_cast<const Eight<Sum>*>(left + pixel * PITCH + first_row);
      Sum right[SIDE];
#pragma unroll
      for (int n = 0; n < SIDE; ++n) right[n] = from[column[n]];
#pragma unroll
      for (int m = 0; m < 8; ++m)
#pragma unroll
        for (int n = 0; n < SIDE; ++n) sum[m][n] += rows.at[m] * right[n];
    }
  }

  // The results of this thread.
  static constexpr int OWN_ROWS = 8, OWN_COLUMNS = SIDE;
  __device__ __forceinline__ int own_row(int r) const { return first_row + r; }
  __device__ __forceinline__ int own_column(int c) const { return first_column + c * APART; }
  __device__ __forceinline__ Sum value(int r, int c) const { return sum[r][c]; }
};
