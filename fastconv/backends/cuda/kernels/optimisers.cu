// Optimiser steps, each one pass over a parameter and its state, which change in place.
//
// A thread reads 16 bytes of each array and writes what changes where it was read. What a number switches off (no decay,
// the first step) is selected, not multiplied by zero, so that infinities cannot turn into NaN.
// Floor: the traffic, 12 bytes an element for plain SGD in float32, 20 with momentum, 28 for Adam.
#include "packs.cuh"

struct Sgd {
  double lr, momentum, share, decay;  // share of the gradient in the velocity: 1 - dampening
  int nesterov, starts;
};

struct Adam { double rate, first, second, root, eps, decay, shrink; };

template <typename A>
__device__ __forceinline__ A decayed(A gradient, A x, double decay) {
  return decay != 0 ? fma(A(decay), x, gradient) : gradient;
}

template <typename T, bool MOMENTUM>
__global__ void sgd(const T* gradient, T* x, T* velocity, Index size, const Sgd numbers) {
  using A = Compute<T>;
  const Index first = own_pack<T>();
  if (first >= size) return;
  const Pack<T> gradients = load_pack(gradient, first, size);
  Pack<T> values = load_pack(x, first, size), velocities = gradients;
  if (MOMENTUM && !numbers.starts) velocities = load_pack(velocity, first, size);
#pragma unroll
  for (int i = 0; i < Pack<T>::SIZE; ++i) {
    const A value = A(values.at[i]);
    A g = decayed(A(gradients.at[i]), value, numbers.decay);
    if constexpr (MOMENTUM) {
      const A before = A(velocities.at[i]);
      const A v = numbers.starts ? g : fma(A(numbers.momentum), before, A(numbers.share) * g);
      velocities.at[i] = T(v);
      g = numbers.nesterov ? fma(A(numbers.momentum), v, g) : v;
    }
    values.at[i] = T(fma(A(-numbers.lr), g, value));
  }
  if constexpr (MOMENTUM) store_pack(velocity, first, size, velocities);
  store_pack(x, first, size, values);
}

template <typename T>
__global__ void adam(const T* gradient, T* x, T* mean, T* square, Index size, const Adam numbers) {
  using A = Compute<T>;
  const Index first = own_pack<T>();
  if (first >= size) return;
  const Pack<T> gradients = load_pack(gradient, first, size);
  Pack<T> values = load_pack(x, first, size), means = load_pack(mean, first, size);
  Pack<T> squares = load_pack(square, first, size);
#pragma unroll
  for (int i = 0; i < Pack<T>::SIZE; ++i) {
    const A value = A(values.at[i]), before = A(means.at[i]);
    const A g = decayed(A(gradients.at[i]), value, numbers.decay);
    const A m = fma(A(1 - numbers.first), g - before, before);
    const A s = fma(A(numbers.second), A(squares.at[i]), A(1 - numbers.second) * (g * g));
    means.at[i] = T(m), squares.at[i] = T(s);
    const A denominator = fma(sqrt(s), A(numbers.root), A(numbers.eps));
    values.at[i] = T(fma(A(-numbers.rate), m / denominator, value * A(numbers.shrink)));
  }
  store_pack(mean, first, size, means);
  store_pack(square, first, size, squares);
  store_pack(x, first, size, values);
}
