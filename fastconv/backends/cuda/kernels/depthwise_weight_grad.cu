// Weight gradients with few channels in a group, in two stages of fixed order, without atomics.
//
// A block takes one filter (a row and a channel of its group) and, box by box, every splits-th box of outputs of all
// samples. The tile of x and the outputs' gy lie in shared memory. A job is TAPS taps of a line; the threads of a job
// share the runs of RUN outputs of the box: each loads RUN numbers of gy and RUN + TAPS - 1 of x for RUN TAPS FMAs, and
// keeps TAPS sums over all boxes. At the end the threads of a job are added one after another, and the splits, as many
// as the geometry says, by `combine_weight_grad` (weight_grad.cu).
//
// Floor: bytes of x and gy / bandwidth; the halo comes from the caches.
#include "lines.cuh"

struct LineGradGrid {  // blockIdx.x counts filters, then splits
  int splits, axis;
};

template <typename T, int TAPS, int STRIDE>
__global__ void __launch_bounds__(THREADS, 4)
depthwise_weight_grad(const T* __restrict__ gy, const T* __restrict__ x, Compute<T>* __restrict__ partial,
                      const Phase* __restrict__ phases, const Tap* __restrict__ taps, Problem problem,
                      LineGradGrid grid) {
  using A = Compute<T>;
  const Phase& phase = *phases;
  const int filters = problem.groups * problem.rows * problem.channels;
  const int filter = blockIdx.x % filters, split = blockIdx.x / filters;
  const int k = filter / problem.channels, group = k / problem.rows;
  const Index source_channel = Index(group) * problem.channels + filter % problem.channels;

  const int outputs = phase.samples * phase.box[0] * phase.box[1] * phase.box[2], runs = outputs / phase.samples / RUN;
  const int in_sample = phase.extent[0] * phase.extent[1] * phase.extent[2], count = phase.samples * in_sample;
  extern __shared__ __align__(16) unsigned char memory[];
  auto tile = reinterpret_cast<A*>(memory);
  auto cotangents = tile + count + (TAPS - 1) * phase.unit;  // taps of the last job that do not exist read between
  auto offsets = reinterpret_cast<int*>(cotangents + outputs), positions = offsets + outputs;

  const int line_jobs = (phase.line_taps + TAPS - 1) / TAPS, jobs = phase.taps / phase.line_taps * line_jobs;
  const int slices = THREADS / jobs, job = threadIdx.x / slices, slice = threadIdx.x % slices;
  const int first_tap = job % line_jobs * TAPS, line = job / line_jobs * phase.line_taps;
  const bool works = job < jobs;
  int step[3];
  steps_in_tile(phase, step);
  const int run_step = phase.apart * of_axis(step, grid.axis);
  const int run_apart = phase.apart * line_step(phase.box, grid.axis);
  const A* line_in_tile = tile + (works ? taps[line].tile + first_tap * phase.unit : 0);
  A sum[TAPS] = {};

  Place place;
  place.sample = 0;
  for (int box = split;; box += grid.splits) {
    if (!find_box(problem, phase, box, place)) break;
    Source<T> cotangent, source;
    cotangent.plane = problem.target_plane, source.plane = problem.source_plane;
    cotangent.channels = source.channels = 1;
    const Index rows = Index(problem.groups) * problem.rows, channels = Index(problem.groups) * problem.channels;
    cotangent.x = gy + (place.sample * rows + k) * problem.target_plane;
    source.x = x + (place.sample * channels + source_channel) * problem.source_plane;
    cotangent.origin = target_offset(problem, phase, place.output);
    __syncthreads();  // all are done with the last box
    source.origin = find_positions(place, problem, phase, problem.channels, count, positions);
    find_outputs(place, problem, phase, outputs, offsets);
    __syncthreads();
    load_tile(tile, count, source, positions, count, 0, 1);
    load_tile(cotangents, outputs, cotangent, offsets, outputs, 0, 1);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();

#pragma unroll 1
    for (int i = works ? slice : phase.samples * runs; i < phase.samples * runs; i += slices) {
      int first[3];
      first_of_run(phase, grid.axis, i % runs, first);
      const A* from = line_in_tile + i / runs * in_sample;
      from += first[0] * step[0] + first[1] * step[1] + first[2] * step[2];
      const A* of_run = cotangents + ((i / runs * phase.box[0] + first[0]) * phase.box[1] + first[1]) * phase.box[2];
      of_run += first[2];
      constexpr int VALUES = TAPS > 1 ? (RUN - 1) * STRIDE + TAPS : RUN;
      A value[VALUES];
#pragma unroll
      for (int v = 0; v < VALUES; ++v) value[v] = from[v * (TAPS > 1 ? phase.unit : run_step)];
#pragma unroll
      for (int r = 0; r < RUN; ++r) {
        const A weight = of_run[r * run_apart];
#pragma unroll
        for (int tap = 0; tap < TAPS; ++tap) sum[tap] += value[TAPS > 1 ? r * STRIDE + tap : r] * weight;
      }
    }
  }

  __syncthreads();
  A* sums = tile;  // [job][tap][slice]
  if (works)
#pragma unroll
    for (int tap = 0; tap < TAPS; ++tap) sums[(job * TAPS + tap) * slices + slice] = sum[tap];
  __syncthreads();
  for (int i = threadIdx.x; i < phase.taps; i += THREADS) {
    const int in_line = i % phase.line_taps;
    const A* from = sums + ((i / phase.line_taps * line_jobs + in_line / TAPS) * TAPS + in_line % TAPS) * slices;
    A all = from[0];
    for (int other = 1; other < slices; ++other) all += from[other];
    partial[(Index(split) * filters + filter) * phase.taps + i] = all;
  }
}
