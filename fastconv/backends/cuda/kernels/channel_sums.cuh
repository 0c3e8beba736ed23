// Sums over batch and space for each channel, and the states that are summed: for normalisation.cu and row_norm.cu.
//
// An array (N, C, S) is N rows of S neighbours for each channel. A block has threads in `across` along C, in `columns`
// along S and the rest along N, so that neighbouring threads read neighbours; a thread gathers its share in float64, the
// block merges the shares along a fixed tree, and a second kernel merges the parts of a channel in their order. How many
// parts there are follows from the shape alone.
#pragma once
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
  int across;    // threads along C, a power of two
};

// The channel that this thread works for; it may lie behind the last.
__device__ __forceinline__ int own_channel(const Shape& shape) {
  return blockIdx.x * shape.across + threadIdx.x % shape.across;
}

// Calls visit(offset, n) for this thread's share of its channel, part blockIdx.y of gridDim.y.
template <typename F>
__device__ __forceinline__ void each_of_channel(const Shape& shape, F visit) {
  const int thread = threadIdx.x / shape.across, column = thread % shape.columns, row = thread / shape.columns;
  const int channel = own_channel(shape), rows = THREADS / shape.across / shape.columns;
  if (channel >= shape.channels) return;
  const Index start = Index(blockIdx.y) * rows + row, step = Index(gridDim.y) * rows;
  for (Index n = start; n < shape.rows; n += step) {
    const Index first = (n * shape.channels + channel) * shape.plane;
    for (Index s = column; s < shape.plane; s += shape.columns) visit(first + s, n);
  }
}

template <typename State>
__device__ __forceinline__ void keep(State state, State* parts, const Shape& shape) {
  const State merged = over_block<THREADS>(state, shape.across);
  const int channel = own_channel(shape);
  if (threadIdx.x < shape.across && channel < shape.channels)
    parts[Index(channel) * gridDim.y + blockIdx.y] = merged;
}

template <typename State>
__device__ __forceinline__ State merged(const State* parts, Index channel, int count) {
  State total = parts[channel * count];
  for (int i = 1; i < count; ++i) total.merge(parts[channel * count + i]);
  return total;
}
