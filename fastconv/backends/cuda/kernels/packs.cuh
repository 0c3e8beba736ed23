// 16 bytes at a time: what a thread of an elementwise kernel reads and writes at once.
#pragma once
#include "types.cuh"

template <typename T>
struct alignas(16) Pack {
  static constexpr int SIZE = 16 / sizeof(T);
  T at[SIZE];
};

template <typename T>
__device__ __forceinline__ bool is_aligned(const T* pointer) { return reinterpret_cast<size_t>(pointer) % 16 == 0; }

// The pack that begins at x[first]; of one that hangs over the end, only the part inside is read.
template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* x, Index first, Index size) {
  if (is_aligned(x) && first + Pack<T>::SIZE <= size) return *reinterpret_cast<const Pack<T>*>(x + first);
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::SIZE; ++i) pack.at[i] = first + i < size ? x[first + i] : T(0.f);
  return pack;
}

template <typename T>
__device__ __forceinline__ void store_pack(T* y, Index first, Index size, const Pack<T>& pack) {
  if (is_aligned(y) && first + Pack<T>::SIZE <= size) {
    *reinterpret_cast<Pack<T>*>(y + first) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < Pack<T>::SIZE; ++i)
    if (first + i < size) y[first + i] = pack.at[i];
}

// The first element of this thread, in arrays that are cut into one pack for each thread of the grid.
template <typename T>
__device__ __forceinline__ Index own_pack() {
  return (Index(blockIdx.x) * blockDim.x + threadIdx.x) * Pack<T>::SIZE;
}
