// Correlations with few channels in a group, depthwise convolution above all: every product is a plain FMA.
//
// A block of 128 threads takes a box of outputs of some units; a unit is one group of one sample. The tiles of the units
// (tile.cuh) and their weights lie in shared memory. A thread computes RUN outputs that follow one another along one
// axis, `apart` (the dilation) from each other, so that neighbours share what they read: for TAPS taps of a line it
// loads TAPS + RUN - 1 numbers and TAPS weights for TAPS RUN FMAs. Lanes lie along the last axis: no bank conflicts, whole
// lines of memory; where the run itself lies along that axis, RUN is odd, and the outputs go through shared memory.
//
// Floor: bytes of x and y / bandwidth; the halo comes from the caches. RUN = 7 fits the sizes 7, 14, 28, 56...
#include "lines.cuh"

struct LineGrid {  // blockIdx.x counts boxes, then blocks of units
  int boxes, units, axis;
};

// RUN sums over the taps of a line; outputs read it `step` from each other, and taps phase.unit.
template <int TAPS, int STRIDE, typename A>
__device__ __forceinline__ void add_line(A sum[RUN], const A* line, const A* filter, int taps, int unit, int step) {
  int tap = 0;
  if constexpr (TAPS > 1) {
#pragma unroll 1
    for (; tap + TAPS <= taps; tap += TAPS) {
      A value[(RUN - 1) * STRIDE + TAPS];
#pragma unroll
      for (int i = 0; i < (RUN - 1) * STRIDE + TAPS; ++i) value[i] = line[(tap + i) * unit];
#pragma unroll
      for (int i = 0; i < TAPS; ++i) {
        const A weight = filter[tap + i];
#pragma unroll
        for (int r = 0; r < RUN; ++r) sum[r] += value[r * STRIDE + i] * weight;
      }
    }
  }
#pragma unroll 1
  for (; tap < taps; ++tap) {
    const A weight = filter[tap];
#pragma unroll
    for (int r = 0; r < RUN; ++r) sum[r] += line[tap * unit + r * step] * weight;
  }
}

template <typename T, int TAPS, int STRIDE>
__global__ void __launch_bounds__(THREADS, 6)
depthwise(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
          const Phase* __restrict__ phases, const Tap* __restrict__ taps, Problem problem, LineGrid grid) {
  using A = Compute<T>;
  const Phase& phase = phases[blockIdx.y];
  taps += phase.first_tap;
  Place place;
  place.sample = 0;
  if (first_of_box(phase, blockIdx.x % grid.boxes, place.output)) return;
  const Index first_unit = Index(blockIdx.x / grid.boxes) * grid.units;
  const Index all_units = problem.samples * problem.groups;
  const int units = all_units - first_unit < grid.units ? int(all_units - first_unit) : grid.units;
  const int count = phase.extent[0] * phase.extent[1] * phase.extent[2];
  const int outputs = phase.box[0] * phase.box[1] * phase.box[2], runs = outputs / RUN;
  const int filters = problem.rows * problem.channels, rows = problem.rows;
  extern __shared__ __align__(16) unsigned char memory[];
  auto tile = reinterpret_cast<A*>(memory);
  auto weights = tile + grid.units * problem.channels * phase.pitch;
  auto results = weights + grid.units * filters * phase.taps;  // of a row, where the runs lie along the last axis
  auto positions = reinterpret_cast<int*>(results + (grid.axis == 2 ? grid.units * outputs : 0));

  Source<T> source;
  source.plane = problem.source_plane;
  source.channels = units * problem.channels;
  source.x = x + first_unit * problem.channels * problem.source_plane;
  source.origin = find_positions(place, problem, phase, problem.channels, count, positions);
#pragma unroll 1
  for (int i = threadIdx.x; i < units * filters * phase.taps; i += THREADS) {
    const int filter = i / phase.taps % filters, row = filter / problem.channels, channel = filter % problem.channels;
    const Index group = (first_unit + i / phase.taps / filters) % problem.groups;
    weights[i] = A(w[group * filters * problem.kernel_taps + row * problem.row_step + channel * problem.channel_step +
                     taps[i % phase.taps].kernel]);
  }
  __syncthreads();
  load_tile(tile, phase.pitch, source, positions, count, 0, units * problem.channels);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  int step[3];
  steps_in_tile(phase, step);
  const int run_step = phase.apart * of_axis(step, grid.axis);
  const Index target_step = phase.apart * line_step(problem.target, grid.axis) * of_axis(phase.stride, grid.axis);
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
#pragma unroll 1
    for (int i = threadIdx.x; i < units * runs; i += THREADS) {
      const int unit = i / runs;
      int first[3];
      first_of_run(phase, grid.axis, i % runs, first);
      const A* from = tile + unit * problem.channels * phase.pitch;
      from += first[0] * step[0] + first[1] * step[1] + first[2] * step[2];
      const A* filter = weights + (unit * rows + row) * problem.channels * phase.taps;
      A sum[RUN] = {};
#pragma unroll 1
      for (int channel = 0; channel < problem.channels; ++channel, from += phase.pitch)
#pragma unroll 1
        for (int line = 0; line < phase.taps; line += phase.line_taps, filter += phase.line_taps)
          add_line<TAPS, STRIDE>(sum, from + taps[line].tile, filter, phase.line_taps, phase.unit, run_step);

      if (grid.axis == 2) {
        A* to = results + unit * outputs + (first[0] * phase.box[1] + first[1]) * phase.box[2] + first[2];
#pragma unroll
        for (int r = 0; r < RUN; ++r) to[r * phase.apart] = sum[r];
        continue;
      }
      const Index number = first_unit + unit;
      const int channel = int(number % problem.groups) * rows + row;
      const Index output[3] = {place.output[0] + first[0], place.output[1] + first[1], place.output[2] + first[2]};
      if (output[0] >= phase.outputs[0] || output[1] >= phase.outputs[1] || output[2] >= phase.outputs[2]) continue;
      T* to = y + (number * rows + row) * problem.target_plane + target_offset(problem, phase, output);
      const Index behind = of_axis(phase.outputs, grid.axis) - of_axis(output, grid.axis);
#pragma unroll
      for (int r = 0; r < RUN; ++r)
        if (r * phase.apart < behind) to[r * target_step] = finished(sum[r], bias, channel, problem.relu);
    }
    if (grid.axis != 2) continue;
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < units * outputs; i += THREADS) {
      const Index number = first_unit + i / outputs;
      Index output[3], sample;
      if (!output_of_pixel(place, problem, phase, i % outputs, output, sample)) continue;
      y[(number * rows + row) * problem.target_plane + target_offset(problem, phase, output)] =
          finished(results[i], bias, int(number % problem.groups) * rows + row, problem.relu);
    }
    __syncthreads();
  }
}
