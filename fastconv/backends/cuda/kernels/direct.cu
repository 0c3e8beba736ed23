// Any correlation and its weight gradient straight from the definition, one thread for each result.
//
// For what the tiled kernels cannot take: tables or tiles beyond shared memory, sizes beyond 32-bit offsets in a tile.
// No floor is reached here: every product loads both factors, from caches at best.
#include "correlation.cuh"

constexpr int THREADS = 256;

template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
direct(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
       const Phase* phases, const Tap* taps, Problem problem) {
  const Phase& phase = phases[blockIdx.y];
  Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
  Index output[3];
  for (int axis = 2; axis >= 0; --axis) output[axis] = i % phase.outputs[axis], i /= phase.outputs[axis];
  const int row = i % problem.rows, group = i / problem.rows % problem.groups;
  const Index sample = i / problem.rows / problem.groups;
  if (sample >= problem.samples) return;
  const int channel = group * problem.rows + row;
  const Compute<T> sum = direct_sum(x, w, problem, phase, taps, sample, group, row, output);
  y[(sample * problem.groups * problem.rows + channel) * problem.target_plane + target_offset(problem, phase, output)] =
      finished(sum, bias, channel, problem.relu);
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 2)
direct_weight_grad(const T* __restrict__ gy, const T* __restrict__ x, T* __restrict__ gw, const Phase* phase,
                   const Tap* taps, Problem problem) {
  const Index i = Index(blockIdx.x) * THREADS + threadIdx.x, filter = i / phase->taps;
  const Tap& tap = taps[i % phase->taps];
  const int channel = filter % problem.channels;
  const Index k = filter / problem.channels;
  if (k >= Index(problem.groups) * problem.rows) return;
  gw[filter * problem.kernel_taps + tap.kernel] =
      T(direct_weight_sum(gy, x, problem, *phase, tap, int(k / problem.rows), int(k % problem.rows), channel));
}
