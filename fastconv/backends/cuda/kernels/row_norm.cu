// Layer, group and instance normalisation: rows of neighbours, each with mean and variance of its own.
//
// A block (a warp where rows are short) owns a row and reads it twice, the second time from the caches: its moments are
// merged as channel_sums.cuh has them. A long row is cut into parts, one for a block, and three kernels take the place of
// one. Gradients of weights are sums over the rows in channels: (N, C, S) with a row for each sample and group.
// Floor: forward x read once and y written once; backward gy and x read once and gx written once, and gy and x once more
// where gradients of weights are wanted.
#include "channel_sums.cuh"

// A weight for each `inner` neighbours, in `groups` rows for as many rows of values in turn.
struct Table {
  Index length;  // of a row of values
  Index inner;
  int groups;
  __device__ Index row() const { return Index(blockIdx.x) % groups * (length / inner); }
  __device__ Index column(Index i) const {
    if (inner == 1) return i;
    return (i | inner) >> 32 ? i / inner : Index(unsigned(i) / unsigned(inner));
  }
};

// Calls visit(i) for this thread's share of a row, part blockIdx.y of gridDim.y.
template <typename F>
__device__ __forceinline__ void each_of_row(Index length, F visit) {
  const Index step = Index(gridDim.y) * blockDim.x;
  for (Index i = Index(blockIdx.y) * blockDim.x + threadIdx.x; i < length; i += step) visit(i);
}

// (x - mean) / std; the mean is the number next to it and the rest, so that nothing is lost.
template <typename A>
struct Normalised {
  A centre, scale, shift;
  __device__ Normalised(double mean, double inverse_std)
      : centre(mean), scale(inverse_std), shift((double(A(mean)) - mean) * inverse_std) {}
  __device__ A operator()(A x) const { return fma(x - centre, scale, shift); }
};

template <typename T>
__device__ __forceinline__ Moments share_of_moments(const T* x, Index length) {
  Gathering values;
  each_of_row(length, [&](Index i) { values.add(double(Compute<T>(x[i]))); });
  return values.moments();
}

template <typename T>
__device__ __forceinline__ void normalise(const T* x, const T* weight, const T* bias, double mean, double inverse_std,
                                          T* y, const Table& table) {
  using A = Compute<T>;
  const Normalised<A> normalised(mean, inverse_std);
  const Index row = table.row();
  each_of_row(table.length, [&](Index i) {
    const Index place = row + table.column(i);
    y[i] = T(fma(normalised(A(x[i])), A(weight[place]), A(bias[place])));
  });
}

template <typename T, int THREADS_OF_ROW>
__global__ void __launch_bounds__(THREADS_OF_ROW)
row_norm(const T* x, const T* weight, const T* bias, double eps, double* mean, double* variance, T* y,
         const Table table) {
  const Index first = Index(blockIdx.x) * table.length;
  const Moments total = over_block<THREADS_OF_ROW>(share_of_moments(x + first, table.length));
  const double spread = total.squares / total.count;
  if (threadIdx.x == 0) mean[blockIdx.x] = total.mean, variance[blockIdx.x] = spread;
  normalise(x + first, weight, bias, total.mean, 1 / sqrt(spread + eps), y + first, table);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) part_row_moments(const T* x, Moments* parts, Index length) {
  const Moments total = over_block<THREADS>(share_of_moments(x + blockIdx.x * length, length));
  if (threadIdx.x == 0) parts[Index(blockIdx.x) * gridDim.y + blockIdx.y] = total;
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
apply_row_norm(const T* x, const T* weight, const T* bias, double eps, const double* mean, const double* variance,
               T* y, const Table table) {
  const Index first = Index(blockIdx.x) * table.length;
  const double inverse_std = 1 / sqrt(variance[blockIdx.x] + eps);
  normalise(x + first, weight, bias, mean[blockIdx.x], inverse_std, y + first, table);
}

// Sum of weight gy, and of weight gy (x - mean).
template <typename T>
__device__ __forceinline__ Sums share_of_products(const T* gy, const T* x, const T* weight, double mean,
                                                  const Table& table) {
  Sums sums;
  const Index row = table.row();
  each_of_row(table.length, [&](Index i) {
    const double g = double(Compute<T>(gy[i])) * double(Compute<T>(weight[row + table.column(i)]));
    sums.first += g;
    sums.second += g * (double(Compute<T>(x[i])) - mean);
  });
  return sums;
}

// gx = (weight gy - sum(weight gy) / L - normalised x sum(weight gy normalised x) / L) / std
template <typename T>
__device__ __forceinline__ void gradient(const T* gy, const T* x, const T* weight, const Sums& sums, double mean,
                                         double inverse_std, T* gx, const Table& table) {
  using A = Compute<T>;
  const Normalised<A> normalised(mean, inverse_std);
  const A slope = sums.second * inverse_std / double(table.length), constant = sums.first / double(table.length);
  const Index row = table.row();
  each_of_row(table.length, [&](Index i) {
    const A g = A(gy[i]) * A(weight[row + table.column(i)]);
    gx[i] = T(normalised.scale * (g - fma(slope, normalised(A(x[i])), constant)));
  });
}

template <typename T, int THREADS_OF_ROW>
__global__ void __launch_bounds__(THREADS_OF_ROW)
row_norm_grad(const T* gy, const T* x, const T* weight, const double* mean, const double* inverse_std, T* gx,
              const Table table) {
  const Index first = Index(blockIdx.x) * table.length;
  const double centre = mean[blockIdx.x];
  const Sums total = over_block<THREADS_OF_ROW>(share_of_products(gy + first, x + first, weight, centre, table));
  gradient(gy + first, x + first, weight, total, centre, inverse_std[blockIdx.x], gx + first, table);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
part_row_products(const T* gy, const T* x, const T* weight, const double* mean, Sums* parts, const Table table) {
  const Index first = Index(blockIdx.x) * table.length;
  const Sums total = over_block<THREADS>(share_of_products(gy + first, x + first, weight, mean[blockIdx.x], table));
  if (threadIdx.x == 0) parts[Index(blockIdx.x) * gridDim.y + blockIdx.y] = total;
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
apply_row_norm_grad(const T* gy, const T* x, const T* weight, const double* mean, const double* inverse_std,
                    const Sums* parts, int count, T* gx, const Table table) {
  const Index first = Index(blockIdx.x) * table.length;
  const Sums total = merged(parts, blockIdx.x, count);
  gradient(gy + first, x + first, weight, total, mean[blockIdx.x], inverse_std[blockIdx.x], gx + first, table);
}

// Sum of gy, and of gy times the normalised x, for the channels of (N, C, S).
template <typename T>
__global__ void __launch_bounds__(THREADS)
part_weight_products(const T* gy, const T* x, const double* mean, const double* inverse_std, int groups, Sums* parts,
                     const Shape shape) {
  const Index group = own_channel(shape) / (shape.channels / groups);
  Sums sums;
  each_of_channel(shape, [&](Index i, Index n) {
    const Index row = n * groups + group;
    const double g = double(Compute<T>(gy[i]));
    sums.first += g;
    sums.second += g * ((double(Compute<T>(x[i])) - mean[row]) * inverse_std[row]);
  });
  keep(sums, parts, shape);
}

template <typename T>
__global__ void merge_weight_products(const Sums* parts, T* gw, T* gb, int channels, int count) {
  const int channel = own_index();
  if (channel >= channels) return;
  const Sums total = merged(parts, channel, count);
  gw[channel] = T(Compute<T>(total.second));
  gb[channel] = T(Compute<T>(total.first));
}
