// Sums over batch and space, channel by channel, and what batch normalisation makes of them.
//
// An array (N, C, S) is N rows of S neighbours for each channel. A block has threads in `columns` along S and the rest
// along N; a thread gathers its share in float64, the block merges the shares along a fixed tree, and a second kernel
// merges the parts of a channel in their order. How many parts there are follows from the shape alone.
// Floor: the arrays read once (statistics, sums) or read once and written once (what is elementwise).
#include "lanes.cuh"

constexpr int THREADS = 256;

// Number, mean and squares about the mean, put together as Chan et al. (1979) do: nothing cancels.
struct Moments {
  double count = 0, mean = 0, squares = 0;
  __device__ void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, away = other.mean - mean;
    mean += away * (other.count / total);
    squares += other.squares + away * away * (count * other.count / total);
    count = total;
  }
};

// The moments of one thread's values: sums about the first of them, so that a large mean does no harm.
struct Gathering {
  double count = 0, first = 0, sum = 0, squares = 0;
  __device__ void add(double value) {
    if (count == 0) first = value;
    const double away = value - first;
    count += 1, sum += away, squares += away * away;
  }
  __device__ Moments moments() const {
    if (count == 0) return {};
    const double mean = sum / count;
    return {count, first + mean, fmax(squares - sum * mean, 0.)};
  }
};

struct Sums {
  double first = 0, second = 0;
  __device__ void merge(const Sums& other) { first += other.first, second += other.second; }
};

struct Shape {
  Index rows;    // N
  int channels;  // C
  Index plane;   // S
  int columns;   // threads along S, a power of two
};

// Calls visit(offset) for this thread's share of channel blockIdx.x, part blockIdx.y of gridDim.y.
template <typename F>
__device__ __forceinline__ void each_of_channel(const Shape& shape, F visit) {
  const int column = threadIdx.x % shape.columns, row = threadIdx.x / shape.columns, rows = THREADS / shape.columns;
  const Index start = Index(blockIdx.y) * rows + row, step = Index(gridDim.y) * rows;
  for (Index n = start; n < shape.rows; n += step) {
    const Index first = (n * shape.channels + blockIdx.x) * shape.plane;
    for (Index s = column; s < shape.plane; s += shape.columns) visit(first + s);
  }
}

template <typename State>
__device__ __forceinline__ void keep(State state, State* parts) {
  const State merged = over_block<THREADS>(state);
  if (threadIdx.x == 0) parts[Index(blockIdx.x) * gridDim.y + blockIdx.y] = merged;
}

template <typename State>
__device__ __forceinline__ State merged(const State* parts, int channel, int count) {
  State total = parts[Index(channel) * count];
  for (int i = 1; i < count; ++i) total.merge(parts[Index(channel) * count + i]);
  return total;
}

template <typename T>
__global__ void __launch_bounds__(THREADS) part_moments(const T* x, Moments* parts, const Shape shape) {
  Gathering values;
  each_of_channel(shape, [&](Index i) { values.add(double(Compute<T>(x[i]))); });
  keep(values.moments(), parts);
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
  each_of_channel(shape, [&](Index i) { sums.first += double(Compute<T>(x[i])); });
  keep(sums, parts);
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
  const double centre = mean[blockIdx.x];
  Sums sums;
  each_of_channel(shape, [&](Index i) {
    const double g = double(Compute<T>(gy[i]));
    sums.first += g;
    sums.second += g * (double(Compute<T>(x[i])) - centre);
  });
  keep(sums, parts);
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
