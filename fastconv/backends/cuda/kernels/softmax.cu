// Softmax, log-softmax, cross-entropy, and their gradients.
//
// An array is (outer, length, inner), the sums run over `length`. Along the last axis (inner = 1) a warp owns a row, its
// lanes the elements; otherwise a thread owns a column, so that neighbouring threads read neighbours. Sums are float64,
// in an order that depends on the length alone. Three passes over a row: the first comes from memory, the others from
// the caches. Floor: the input read once, the output written once.
#include "lanes.cuh"

// The elements of one row: this thread's are at(first), at(first + LANES) ... below length.
template <int LANES>
struct Row {
  Index begin, step;  // of its elements
  Index number;       // among all rows
  int first;
  __device__ Row(int length, Index inner) {
    number = own_index() / LANES;
    const Index outer = LANES > 1 ? number : number / inner;  // inner is 1 where a warp owns a row
    begin = outer * length * inner + (number - outer * inner) * (LANES == 1);
    step = inner;
    first = LANES > 1 ? threadIdx.x % LANES : 0;
  }
  __device__ Index at(int i) const { return begin + i * step; }
};

template <typename A>
__device__ __forceinline__ A larger(A a, A b) { return a > b || a != a ? a : b; }  // NaN is larger than all

template <int LANES, typename T>
__device__ __forceinline__ Compute<T> largest(const Row<LANES>& row, const T* x, int length) {
  using A = Compute<T>;
  A result = -infinity(A());
  for (int i = row.first; i < length; i += LANES) result = larger(result, A(x[row.at(i)]));
  return over_lanes<LANES>(result, [](A a, A b) { return larger(a, b); });
}

// Sum of exp(x - largest)
template <int LANES, typename T>
__device__ __forceinline__ double sum_of_powers(const Row<LANES>& row, const T* x, int length, Compute<T> highest) {
  double sum = 0;
  for (int i = row.first; i < length; i += LANES) sum += exp(Compute<T>(x[row.at(i)]) - highest);
  return sum_over_lanes<LANES>(sum);
}

template <typename T, int LANES, bool LOG>
__global__ void softmax(const T* x, T* y, Index rows, int length, Index inner) {
  using A = Compute<T>;
  const Row<LANES> row(length, inner);
  if (row.number >= rows) return;
  const A highest = largest(row, x, length);
  const double sum = sum_of_powers(row, x, length, highest);
  const A shift = LOG ? A(log(sum)) : A(1 / sum);
  for (int i = row.first; i < length; i += LANES) {
    const A away = A(x[row.at(i)]) - highest;
    y[row.at(i)] = T(LOG ? away - shift : exp(away) * shift);
  }
}

template <typename T, int LANES, bool LOG>
__global__ void softmax_grad(const T* gy, const T* y, T* gx, Index rows, int length, Index inner) {
  using A = Compute<T>;
  const Row<LANES> row(length, inner);
  if (row.number >= rows) return;
  double sum = 0;
  for (int i = row.first; i < length; i += LANES)
    sum += double(A(gy[row.at(i)])) * (LOG ? 1. : double(A(y[row.at(i)])));
  const A total = sum_over_lanes<LANES>(sum);
  for (int i = row.first; i < length; i += LANES) {
    const A g = A(gy[row.at(i)]), value = A(y[row.at(i)]);
    gx[row.at(i)] = T(LOG ? g - exp(value) * total : value * (g - total));
  }
}

// What cross-entropy is asked for besides its arrays: (1 - smoothing) of the loss of the class, the rest of the mean.
struct Smoothing { double own, even; };  // even is smoothing / length

template <typename T>
__device__ __forceinline__ double weight_of(const T* weight, int i) { return weight ? double(Compute<T>(weight[i])) : 1; }

// losses[row] and, for the gradient, normalisers: the largest element of each row, then the logarithm of its sum.
template <typename T, int LANES>
__global__ void cross_entropy(const T* x, const Index* classes, const T* weight, T* losses, Compute<T>* normalisers,
                              Index rows, int length, Index inner, const Smoothing smoothing) {
  using A = Compute<T>;
  const Row<LANES> row(length, inner);
  if (row.number >= rows) return;
  const A highest = largest(row, x, length);
  const A shift = log(sum_of_powers(row, x, length, highest));
  double even = 0;
  if (smoothing.even != 0) {
    for (int i = row.first; i < length; i += LANES)
      even += weight_of(weight, i) * -double(A(x[row.at(i)]) - highest - shift);
    even = sum_over_lanes<LANES>(even);
  }
  if (row.first > 0) return;
  normalisers[row.number] = highest;
  normalisers[rows + row.number] = shift;
  const Index target = classes[row.number];
  double loss = 0;
  if (target >= 0) {
    loss = smoothing.own * weight_of(weight, target) * -double(A(x[row.at(target)]) - highest - shift);
    if (smoothing.even != 0) loss += smoothing.even * even;
  }
  losses[row.number] = T(A(loss));
}

template <typename T, int LANES>
__global__ void cross_entropy_grad(const T* g, const T* x, const Compute<T>* normalisers, const Index* classes,
                                   const T* weight, T* gx, Index rows, int length, Index inner,
                                   const Smoothing smoothing) {
  using A = Compute<T>;
  const Row<LANES> row(length, inner);
  if (row.number >= rows) return;
  const Index target = classes[row.number];
  if (target < 0) {
    for (int i = row.first; i < length; i += LANES) gx[row.at(i)] = T(0.f);
    return;
  }
  double weights = 0;
  if (smoothing.even != 0) {
    for (int i = row.first; i < length; i += LANES) weights += weight_of(weight, i);
    weights = sum_over_lanes<LANES>(weights);
  }
  const double cotangent = A(g[row.number]);
  const A own = cotangent * smoothing.own * weight_of(weight, target);
  const A even = cotangent * smoothing.even;
  const A factor = smoothing.even != 0 ? A(double(own) + double(even) * weights) : own;
  const A highest = normalisers[row.number], shift = normalisers[rows + row.number];
  for (int i = row.first; i < length; i += LANES) {
    A result = exp(A(x[row.at(i)]) - highest - shift) * factor;
    if (smoothing.even != 0) result -= even * A(weight_of(weight, i));
    gx[row.at(i)] = T(i == target ? result - own : result);
  }
}
