// Weights in the order in which implicit_gemm.cu reads them: [group][row block][chunk][step][as the products want it],
// filled up with zeros. Forward and input gradient, any phase of it, are packed alike: a table of taps says which of w.
//
// Floor: w is read once, at random places of a cache line or two; what is written is read many times.
#include "fma_math.cuh"
#include "tensor_math.cuh"

template <typename Math>
__global__ void __launch_bounds__(THREADS)
pack(const typename Math::T* __restrict__ w, typename Math::Weight* __restrict__ packed,
     const Phase* __restrict__ phases, const Tap* __restrict__ taps, Problem problem, int row_blocks) {
  using T = typename Math::T;
  const Phase& phase = phases[blockIdx.y];
  const int words = (problem.channels + Math::CHANNELS - 1) / Math::CHANNELS;
  const int chunks = (words + phase.chunk - 1) / phase.chunk;
  const Index i = Index(blockIdx.x) * THREADS + threadIdx.x, whole_step = i / Math::STEP_ITEMS;
  const int step = whole_step % phase.steps, chunk = whole_step / phase.steps % chunks;
  const Index block = whole_step / phase.steps / chunks;
  const Index group = block / row_blocks;
  if (group >= problem.groups) return;
  w += group * problem.rows * problem.channels * problem.kernel_taps;

  Math::pack(packed + phase.weights + whole_step * Math::STEP_WEIGHTS, i % Math::STEP_ITEMS,
             [&](int row_in_block, int word_in_step, int channel_in_word) {
               const int k = step * Math::STEP_WORDS + word_in_step, tap = k / phase.chunk;
               const Index row = block % row_blocks * Math::ROWS + row_in_block;
               const Index channel = (Index(chunk) * phase.chunk + k % phase.chunk) * Math::CHANNELS + channel_in_word;
               if (tap >= phase.taps || row >= problem.rows || channel >= problem.channels) return T(0.f);
               return w[row * problem.row_step + channel * problem.channel_step + taps[phase.first_tap + tap].kernel];
             });
}
