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

// NVRTC has no limits header: these are IEEE's.
__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7F800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7FF0000000000000ll); }
