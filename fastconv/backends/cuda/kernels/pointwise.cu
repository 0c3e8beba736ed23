// Elementwise passes: activations, their gradients, and the end of a residual block.
//
// Each thread reads 16 bytes of every operand, computes in registers and writes 16 bytes; nothing is read twice.
// Floor: bytes of all operands / bandwidth (forward 2 arrays, gradient and residual 3). One or two exponentials per
// element stay below it.
#include "activations.cuh"
#include "packs.cuh"

template <typename T, Activation F>
__global__ void activation(const T* x, T* y, Index size, Compute<T> alpha) {
  const Index first = own_pack<T>();
  if (first >= size) return;
  Pack<T> pack = load_pack(x, first, size);
#pragma unroll
  for (int i = 0; i < Pack<T>::SIZE; ++i) pack.at[i] = T(activated<F>(Compute<T>(pack.at[i]), alpha));
  store_pack(y, first, size, pack);
}

template <typename T, Activation F>
__global__ void activation_grad(const T* gy, const T* x, T* gx, Index size, Compute<T> alpha) {
  const Index first = own_pack<T>();
  if (first >= size) return;
  const Pack<T> cotangent = load_pack(gy, first, size);
  Pack<T> pack = load_pack(x, first, size);
#pragma unroll
  for (int i = 0; i < Pack<T>::SIZE; ++i)
    pack.at[i] = T(activation_gradient<F>(Compute<T>(cotangent.at[i]), Compute<T>(pack.at[i]), alpha));
  store_pack(gx, first, size, pack);
}

template <typename T>
__global__ void add_relu(const T* a, const T* b, T* y, Index size) {
  const Index first = own_pack<T>();
  if (first >= size) return;
  Pack<T> pack = load_pack(a, first, size);
  const Pack<T> other = load_pack(b, first, size);
#pragma unroll
  for (int i = 0; i < Pack<T>::SIZE; ++i)
    pack.at[i] = T(activated<RELU>(Compute<T>(pack.at[i]) + Compute<T>(other.at[i])));
  store_pack(y, first, size, pack);
}
