// Threads that work together on one result: LANES neighbours of a warp, or the whole block. Sums are put together along
// a fixed tree, so that they have the same bits in every run.
#pragma once
#include "types.cuh"

constexpr unsigned WARP = 0xFFFFFFFF;

// combine(mine, other) of all LANES, in each of them; LANES is 1 or 32. Must be reached by whole warps.
template <int LANES, typename T, typename F>
__device__ __forceinline__ T over_lanes(T value, F combine) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(WARP, value, distance));
  return value;
}

template <int LANES, typename T>
__device__ __forceinline__ T sum_over_lanes(T value) {
  return over_lanes<LANES>(value, [](T a, T b) { return a + b; });
}

// The merged states of all threads of a block of THREADS, in each of them; of those threads whose numbers agree modulo
// `across`, a power of two, where that is given, in the first `across` threads. A state has `merge(const State&)`.
template <int THREADS, typename State>
__device__ __forceinline__ State over_block(State state, int across = 1) {
  __shared__ State states[THREADS];
  states[threadIdx.x] = state;
  __syncthreads();
  for (int half = THREADS / 2; half >= across; half /= 2) {
    if (threadIdx.x < half) states[threadIdx.x].merge(states[threadIdx.x + half]);
    __syncthreads();
  }
  return states[threadIdx.x % across];
}
