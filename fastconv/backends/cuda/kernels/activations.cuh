// The activations and their slopes, in the type of computation; formulas in ops/pointwise.py. Which one is a template
// argument: an activation fused into another kernel costs no branch. NaN comes out as NaN.
#pragma once
#include "types.cuh"

enum Activation { IDENTITY, RELU, LEAKY_RELU, ELU, SELU, GELU, GELU_TANH, SILU, SIGMOID, TANH, SOFTPLUS };

// Klambauer et al. (2017), "Self-normalizing neural networks"
constexpr double SELU_SCALE = 1.0507009873554804934193349852946;
constexpr double SELU_ALPHA = 1.6732632423543772848170429916717;
constexpr double SQRT_1_2 = 0.70710678118654752440, SQRT_1_2_REST = -4.8336466567264567e-17;  // what a double leaves
constexpr double SQRT_1_2PI = 0.39894228040143267794;
// Hendrycks and Gimpel (2016): gelu(x) ~ x sigmoid(GELU_LINEAR x + GELU_CUBIC x^3)
constexpr double GELU_LINEAR = 1.5957691216057307117;
constexpr double GELU_CUBIC = 0.044715 * GELU_LINEAR;

template <typename A>
__device__ __forceinline__ A sigmoid(A x) {
  const A small = exp(-fabs(x));  // never overflows
  return (x < 0 ? small : A(1)) / (A(1) + small);
}

template <typename A>
__device__ __forceinline__ A sigmoid_slope(A x) {
  const A small = exp(-fabs(x));
  return small / ((A(1) + small) * (A(1) + small));
}

// In the tails a rounded argument would cost erfc and exp x^2 times its error, so what rounding cut off is put back.
template <typename A>
__device__ __forceinline__ A normal_cdf(A x) {
  const A z = -x * A(SQRT_1_2);
  const A rest = fma(-x, A(SQRT_1_2), -z) - x * A(SQRT_1_2 - double(A(SQRT_1_2)) + SQRT_1_2_REST);
  const A tail = A(0.5) * erfc(z);
  return z > 0 && tail > 0 ? tail * (A(1) - A(2) * z * rest) : tail;
}

template <typename A>
__device__ __forceinline__ A gaussian(A x) {
  const A square = x * x, rest = fma(x, x, -square), density = exp(A(-0.5) * square);
  return density > 0 ? density * (A(1) - A(0.5) * rest) : density;
}

// `alpha` is the slope, scale or threshold of LEAKY_RELU, ELU and SOFTPLUS; the others ignore it.
template <Activation F, typename A>
__device__ __forceinline__ A activated(A x, A alpha = A(0)) {
  if constexpr (F == RELU) return x < 0 ? A(0) : x;
  else if constexpr (F == LEAKY_RELU) return x > 0 ? x : alpha * x;
  else if constexpr (F == ELU) return x > 0 ? x : alpha * expm1(x);
  else if constexpr (F == SELU) return A(SELU_SCALE) * (x > 0 ? x : A(SELU_ALPHA) * expm1(x));
  else if constexpr (F == GELU) return x * normal_cdf(x);
  else if constexpr (F == GELU_TANH) return x * sigmoid(x * (A(GELU_CUBIC) * (x * x) + A(GELU_LINEAR)));
  else if constexpr (F == SILU) return x * sigmoid(x);
  else if constexpr (F == SIGMOID) return sigmoid(x);
  else if constexpr (F == TANH) return tanh(x);
  else if constexpr (F == SOFTPLUS) return x > alpha ? x : (x < 0 ? A(0) : x) + log1p(exp(-fabs(x)));
  else return x;
}

// gy f'(x), from the result of RELU, SIGMOID and TANH, from the argument of the others.
template <Activation F, typename A>
__device__ __forceinline__ A activation_gradient(A gy, A x, A alpha) {
  if constexpr (F == RELU) return x <= 0 ? A(0) : gy;
  else if constexpr (F == LEAKY_RELU) return x > 0 ? gy : gy * alpha;
  else if constexpr (F == ELU) return x > 0 ? gy : gy * (alpha * exp(x));
  else if constexpr (F == SELU) return gy * (A(SELU_SCALE) * (x > 0 ? A(1) : A(SELU_ALPHA) * exp(x)));
  else if constexpr (F == GELU) return gy * (normal_cdf(x) + x * A(SQRT_1_2PI) * gaussian(x));
  else if constexpr (F == GELU_TANH) {
    const A end = 30;  // from here on the slope is 1 or 0, and larger cubes would overflow
    x = x > end ? end : x < -end ? -end : x;
    const A inner = x * (A(GELU_CUBIC) * (x * x) + A(GELU_LINEAR));
    return gy * (sigmoid(inner) + x * (A(3 * GELU_CUBIC) * (x * x) + A(GELU_LINEAR)) * sigmoid_slope(inner));
  }
  else if constexpr (F == SILU) return gy * (sigmoid(x) + x * sigmoid_slope(x));
  else if constexpr (F == SIGMOID) return gy * (x * (A(1) - x));
  else if constexpr (F == TANH) return gy * ((A(1) - x) * (A(1) + x));
  else if constexpr (F == SOFTPLUS) return x > alpha ? gy : gy * sigmoid(x);
  else return gy;
}
