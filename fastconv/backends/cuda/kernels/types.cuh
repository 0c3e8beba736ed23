// The element types of arrays, and the types in which sums of them are computed.
#pragma once

#ifndef CUDA_CPU  // tests/emulator has its own
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

using Index = long long;  // offsets into arrays: they may exceed 2^31

// Sums and functions of 16-bit numbers are computed in float, all others in their own type.
template <typename T>
struct Computed { using type = float; };
template <>
struct Computed<double> { using type = double; };
template <typename T>
using Compute = typename Computed<T>::type;

template <typename T>
constexpr bool IS_HALF = false;
template <>
constexpr bool IS_HALF<__half> = true;

// NVRTC has no limits header: these are IEEE's.
__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7F800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7FF0000000000000ll); }

// a / b for offsets that are not negative; 64-bit division is slow, and rarely needed.
__device__ __forceinline__ Index divided(Index a, int b) {
  return a >> 32 ? a / b : Index(unsigned(a) / unsigned(b));
}

// Splits off the last coordinate: returns index % size and leaves index / size.
__device__ __forceinline__ int split(Index& index, int size) {
  const Index whole = index;
  index = divided(whole, size);
  return int(whole - index * size);
}

// The number of this thread in a grid of one axis.
__device__ __forceinline__ Index own_index() { return Index(blockIdx.x) * blockDim.x + threadIdx.x; }

// The bits of a 16-bit number.
template <typename T>
__device__ __forceinline__ unsigned short bits_of(const T& x) {
  static_assert(sizeof(T) == 2);
  return reinterpret_cast<const unsigned short&>(x);
}
