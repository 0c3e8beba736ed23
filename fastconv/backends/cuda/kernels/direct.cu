// Any correlation and its weight gradient straight from the definition, one thread for each result.
//
// For what the tiled kernels cannot take: tables or tiles beyond shared memory, sizes beyond 32-bit offsets in a tile.
// No floor is reached here: every product loads both factors, from caches at best.
#include "correlation.cuh"

constexpr int THREADS = 256;

template <typename T>
__global__ void __launch_bounds__(THREADS)
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

// gw[k, c, tap]: the sum over samples and outputs, in their order.
template <typename T>
__global__ void __launch_bounds__(THREADS)
direct_weight_grad(const T* __restrict__ gy, const T* __restrict__ x, T* __restrict__ gw, const Phase* phases,
                   const Tap* taps, Problem problem) {
  const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
  const Phase& phase = *phases;
  const int channel = i / phase.taps % problem.channels;
  const Index k = i / phase.taps / problem.channels;
  if (k >= Index(problem.groups) * problem.rows) return;
  const Tap& tap = taps[i % phase.taps];
  const int group = k / problem.rows;
  Compute<T> sum = 0;
  for (Index sample = 0; sample < problem.samples; ++sample) {
    const T* plane = x + ((sample * problem.groups + group) * problem.channels + channel) * problem.source_plane;
    const T* cotangent = gy + (sample * problem.groups * problem.rows + k) * problem.target_plane;
    for (Index d = 0; d < phase.outputs[0]; ++d)
      for (Index h = 0; h < phase.outputs[1]; ++h)
        for (Index v = 0; v < phase.outputs[2]; ++v, ++cotangent) {
          const Index output[3] = {d, h, v};
          Index at;
          if (inside_source(problem, phase, tap, output, at)) sum += Compute<T>(*cotangent) * Compute<T>(plane[at]);
        }
  }
  gw[(k * problem.channels + channel) * problem.kernel_taps + tap.kernel] = T(sum);
}
