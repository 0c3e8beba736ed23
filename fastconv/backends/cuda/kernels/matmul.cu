// C = A B for factors with any strides: what linear layers and their gradients need.
//
// A block owns 64 x 64 of C and goes along K in steps of 16: both factors' tiles through shared memory, 4 x 4 of C in the
// registers of each of 256 threads. Every element is one sum in the order of K, whatever the sizes of A and B: a row has
// the same bits in any batch, which cuBLAS, choosing its algorithm by size, does not promise.
// Floor: 2 M N K flops at the rate of FFMA; tiles are read M/64 and N/64 times.
#include "types.cuh"

constexpr int TILE = 64, DEPTH = 16, OWN = 4, THREADS = 256;

struct Factor { Index row, column; };  // strides, in elements

template <typename T>
__global__ void __launch_bounds__(THREADS)
matmul(const T* a, const T* b, T* c, int m, int n, int k, const Factor of_a, const Factor of_b) {
  using A = Compute<T>;
  __shared__ A left[DEPTH][TILE + 1], right[DEPTH][TILE + 1];  // + 1 spreads columns over the banks
  const int thread = threadIdx.x, row = thread / (TILE / OWN), column = thread % (TILE / OWN);
  const int across = (n + TILE - 1) / TILE;  // tiles of a row of C
  const int top = blockIdx.x / across * TILE, first = blockIdx.x % across * TILE;
  // Neighbouring threads load neighbours in memory: along K, or along the other axis where that one is contiguous.
  const bool a_along_k = of_a.column == 1, b_along_k = of_b.row == 1;

  A sum[OWN][OWN] = {};
  for (int k0 = 0; k0 < k; k0 += DEPTH) {
#pragma unroll
    for (int i = thread; i < TILE * DEPTH; i += THREADS) {
      const int depth = a_along_k ? i % DEPTH : i / TILE, r = a_along_k ? i / DEPTH : i % TILE;
      const bool inside = top + r < m && k0 + depth < k;
      left[depth][r] = inside ? A(a[(top + r) * of_a.row + (k0 + depth) * of_a.column]) : A(0);
    }
#pragma unroll
    for (int i = thread; i < TILE * DEPTH; i += THREADS) {
      const int depth = b_along_k ? i % DEPTH : i / TILE, s = b_along_k ? i / DEPTH : i % TILE;
      const bool inside = first + s < n && k0 + depth < k;
      right[depth][s] = inside ? A(b[(k0 + depth) * of_b.row + (first + s) * of_b.column]) : A(0);
    }
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < DEPTH; ++depth) {
      A x[OWN], y[OWN];
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
        x[i] = left[depth][row + i * (TILE / OWN)];
        y[i] = right[depth][column + i * (TILE / OWN)];
      }
#pragma unroll
      for (int i = 0; i < OWN; ++i)
#pragma unroll
        for (int j = 0; j < OWN; ++j) sum[i][j] = fma(x[i], y[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < OWN; ++i)
#pragma unroll
    for (int j = 0; j < OWN; ++j) {
      const int r = top + row + i * (TILE / OWN), s = first + column + j * (TILE / OWN);
      if (r < m && s < n) c[Index(r) * n + s] = T(sum[i][j]);
    }
}
