// Sums over batch and space, channel by channel, and what batch normalisation makes of them.
//
// How sums are gathered: channel_sums.cuh.
// Floor: the arrays read once (statistics, sums) or read once and written once (what is elementwise).
#include "channel_sums.cuh"

template <typename T>
__global__ void __launch_bounds__(THREADS) part_moments(const T* x, Moments* parts, const Shape shape) {
  Gathering values;
  each_of_channel(shape, [&](Index i, Index) { values.add(double(Compute<T>(x[i]))); });
  keep(values.moments(), parts, shape);
}

__global__ void merge_moments(const Moments* parts, double* mean, double* variance, int channels, int count) {
  const int channel = own_index();
  if (channel >= channels) return;
  const Moments total = merged(parts, channel, count);
  mean[channel] = total.mean;
  variance[channel] = total.squares / total.count;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) part_sums(const T* x, Sums* parts, const Shape shape) {
  Sums sums;
  each_of_channel(shape, [&](Index i, Index) { sums.first += double(Compute<T>(x[i])); });
  keep(sums, parts, shape);
}

template <typename T>
__global__ void merge_sums(const Sums* parts, T* y, int channels, int count) {
  const int channel = own_index();
  if (channel < channels) y[channel] = T(Compute<T>(merged(parts, channel, count).first));
}

// Sum of gy, and of gy (x - mean).
template <typename T>
__global__ void __launch_bounds__(THREADS)
part_products(const T* gy, const T* x, const double* mean, Sums* parts, const Shape shape) {
  const double centre = mean[min(own_channel(shape), shape.channels - 1)];
  Sums sums;
  each_of_channel(shape, [&](Index i, Index) {
    const double g = double(Compute<T>(gy[i]));
    sums.first += g;
    sums.second += g * (double(Compute<T>(x[i])) - centre);
  });
  keep(sums, parts, shape);
}

// gx = scale (gy - sum(gy) / n - (x - mean) inverse_std^2 sum(gy (x - mean)) / n) = a gy + b x + c; also gw and gb.
template <typename T>
__global__ void merge_products(const Sums* parts, const double* mean, const double* inverse_std, const double* scale,
                               double* numbers, T* gw, T* gb, int channels, int count, double elements) {
  const int channel = own_index();
  if (channel >= channels) return;
  const Sums total = merged(parts, channel, count);
  const double slope = -scale[channel] * inverse_std[channel] * inverse_std[channel] * (total.second / elements);
  numbers[channel] = scale[channel];
  numbers[channels + channel] = slope;
  numbers[2 * channels + channel] = -scale[channel] * (total.first / elements);
  gw[channel] = T(Compute<T>(total.second * inverse_std[channel]));
  gb[channel] = T(Compute<T>(total.first));
}

// Calls of_channel(channel)(offset) for every element; planes are shared out among blocks.
template <typename F>
__device__ __forceinline__ void each_of_plane(const Shape& shape, F of_channel) {
  const int column = threadIdx.x % shape.columns, row = threadIdx.x / shape.columns, rows = THREADS / shape.columns;
  Index plane = Index(blockIdx.x) * rows + row;
  if (plane >= shape.rows * shape.channels) return;
  const Index first = plane * shape.plane, step = Index(gridDim.y) * shape.columns;
  const auto visit = of_channel(split(plane, shape.channels));
  for (Index s = Index(blockIdx.y) * shape.columns + column; s < shape.plane; s += step) visit(first + s);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
apply(const T* x, const double* scale, const double* shift, T* y, const Shape shape) {
  using A = Compute<T>;
  each_of_plane(shape, [=](int channel) {
    const A a = scale[channel], b = shift[channel];
    return [=](Index i) { y[i] = T(fma(A(x[i]), a, b)); };
  });
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
apply_grad(const T* gy, const T* x, const double* mean, const double* numbers, T* gx, const Shape shape) {
  using A = Compute<T>;
  each_of_plane(shape, [=](int channel) {
    const A a = numbers[channel], b = numbers[shape.channels + channel], c = numbers[2 * shape.channels + channel];
    const A centre = mean[channel];
    return [=](Index i) { gx[i] = T(fma(a, A(gy[i]), fma(b, A(x[i]) - centre, c))); };
  });
}
