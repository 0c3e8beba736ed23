// Weight gradients as matrix products: gw[row, column] = sum over pixels of gy[row, pixel] x[column, pixel], where a
// column is a channel of the source with a tap, and a pixel an output of any sample.
//
// A block of 128 threads computes up to 64 rows of 128 columns of a group. It walks over boxes of 64 outputs: of each it
// brings gy and the tile of x that serves all taps (tile.cuh) to shared memory, and adds the products to sums in
// registers. The boxes go in turn to `splits` blocks; their partial sums are added in order by `combine_weight_grad`.
// The number of splits follows from the geometry alone. Products are those of implicit_gemm.cu.
//
// Floor: the larger of 2 N K O C taps / rate of the products and bytes of x and gy / bandwidth. Traffic beyond that: the
// halo, x once for each 64 rows and gy once for each 128 columns, both mostly from the second-level cache.
#include "weight_grad_math.cuh"

struct GradGrid {  // blockIdx.x counts column blocks, then row blocks, groups, splits
  int row_blocks, column_blocks, splits;
  int width;  // columns of a block: fewer than 128 where a tile of as many channels is too large
};

template <typename Math>
__global__ void __launch_bounds__(THREADS, 2)
weight_grad(const typename Math::T* __restrict__ gy, const typename Math::T* __restrict__ x,
            typename Math::Sum* __restrict__ partial, const Phase* __restrict__ phases, const Tap* __restrict__ taps,
            Problem problem, GradGrid grid) {
  using T = typename Math::T;
  const Phase& phase = *phases;
  unsigned block = blockIdx.x;
  const int first_column = block % grid.column_blocks * grid.width;
  block /= grid.column_blocks;
  const int first_row = block % grid.row_blocks * Math::ROWS;
  block /= grid.row_blocks;
  const int group = block % problem.groups, split = block / problem.groups;

  const int columns = problem.channels * phase.taps, first_channel = first_column / phase.taps;
  const int last_column = min(first_column + grid.width, columns) - 1;
  const int tile_channels = last_column / phase.taps - first_channel + 1;
  const int count = phase.samples * phase.extent[0] * phase.extent[1] * phase.extent[2];
  extern __shared__ __align__(16) unsigned char memory[];
  auto left = reinterpret_cast<typename Math::Stored*>(memory);
  auto tile = left + Math::LEFT_WORDS;
  auto pixels = reinterpret_cast<int*>(tile + phase.chunk * phase.pitch);  // where they are in the tile
  auto outputs = pixels + BOX, positions = outputs + BOX;                  // and in gy; of the tile in x

  for (int pixel = threadIdx.x; pixel < BOX; pixel += THREADS) pixels[pixel] = pixel_in_tile(phase, pixel);
  Math math([&](int column) {  // its place in the tile; those behind the last one may be anywhere
    column = min(first_column + column, last_column);
    return (column / phase.taps - first_channel) * phase.pitch + taps[column % phase.taps].tile;
  });

  Place place;
  place.sample = 0;
  for (int box = split;; box += grid.splits) {
    if (!find_box(problem, phase, box, place)) break;
    Source<T> cotangent, source;
    cotangent.plane = problem.target_plane, source.plane = problem.source_plane;
    cotangent.channels = problem.rows - first_row, source.channels = problem.channels - first_channel;
    const Index first_sample = place.sample * problem.groups + group;
    cotangent.x = gy + (first_sample * problem.rows + first_row) * problem.target_plane;
    source.x = x + (first_sample * problem.channels + first_channel) * problem.source_plane;
    cotangent.origin = target_offset(problem, phase, place.output);
    __syncthreads();  // all are done with the last box
    source.origin = find_positions(place, problem, phase, problem.channels, count, positions);
    find_outputs(place, problem, phase, BOX, outputs);
    __syncthreads();
    load_tile(tile, phase.pitch, source, positions, count, 0, tile_channels);
    for (int i = threadIdx.x; i < Math::ROWS * BOX; i += THREADS)
      fetch(left + Math::left(i / BOX, i % BOX), cotangent, i / BOX, outputs[i % BOX]);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    math.multiply(left, tile, pixels);
  }

  const Index rows = Index(problem.groups) * problem.rows;
#pragma unroll
  for (int r = 0; r < Math::OWN_ROWS; ++r) {
    const int row = first_row + math.own_row(r);
    if (row >= problem.rows) continue;
    const Index at = ((Index(split) * rows + Index(group) * problem.rows + row)) * columns + first_column;
#pragma unroll
    for (int c = 0; c < Math::OWN_COLUMNS; ++c)
      if (first_column + math.own_column(c) <= last_column) partial[at + math.own_column(c)] = math.value(r, c);
  }
}

// The partial sums of all splits, one after another, for each weight that a tap reaches.
template <typename T>
__global__ void __launch_bounds__(256, 2)
combine_weight_grad(const Compute<T>* __restrict__ partial, const T* __restrict__ gy, const T* __restrict__ x,
                    T* __restrict__ gw, const Phase* __restrict__ phase, const Tap* __restrict__ taps, Problem problem,
                    int splits) {
  const Index size = Index(problem.groups) * problem.rows * problem.channels * phase->taps;
  const Index i = Index(blockIdx.x) * 256 + threadIdx.x, filter = i / phase->taps;
  if (i >= size) return;
  Compute<T> sum = partial[i];
  for (int split = 1; split < splits; ++split) sum += partial[split * size + i];
  const Tap& tap = taps[i % phase->taps];
  const Index k = filter / problem.channels;
  if (!is_trusted(sum))
    sum = direct_weight_sum(gy, x, problem, *phase, tap, int(k / problem.rows), int(k % problem.rows),
                            int(filter % problem.channels));
  gw[filter * problem.kernel_taps + tap.kernel] = T(sum);
}
