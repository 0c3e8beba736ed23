// Any correlation as a matrix product that never builds its right factor:
//   y[row, pixel] = sum over (channel, tap) of w[row, channel, tap] x[channel, pixel, tap].
//
// A block of 128 threads computes 128 pixels of up to 64 rows (target channels) of a group. The source comes in chunks
// of channels, each as a tile with its halo that serves all taps (tile.cuh), two at a time if they fit; the weights, packed
// beforehand in the order in which threads want them (`pack`), in small stages, three in flight. Sums stay in
// registers. Within a chunk the order of the sum is tap by tap, in each the channels; chunks follow one another, and
// where the outputs of a sample are few and the sum is long, its chunks are split among blocks, whose partial sums
// `combine` adds in order. All of this follows from the geometry: batch and place in it change no bit.
//
// Products: 3xTF32 (each float is a TF32 high and a low part, low x low is dropped: float32 accuracy from tensor
// cores), TF32, float16 or bfloat16 with float sums, or plain FMAs in float and double (tensor_math.cuh, fma_math.cuh).
// What comes out as infinite, NaN or nearly so is computed again as the definition says: a high and a low part of an
// infinity would make a NaN of it, and what fills up the sum multiplies by zero.
//
// Floor: the larger of 2 N K O C taps / rate of the products and bytes of x, w and y / bandwidth. Traffic beyond that:
// the halo, and x once for each 64 rows, both mostly from the second-level cache.
#include "fma_math.cuh"
#include "tensor_math.cuh"

constexpr int STAGES = 3;

// Weights in the order in which the products want them: [group][row block][chunk][step], filled up with zeros. Forward and
// input gradient, any phase of it, are packed alike: a table of taps says which of w. w is read once, at random places
// of a cache line or two; what is written is read many times.
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

template <typename Math>
__global__ void __launch_bounds__(THREADS, Math::BLOCKS)
implicit_gemm(const typename Math::T* __restrict__ x, const typename Math::Weight* __restrict__ packed,
              const typename Math::T* __restrict__ w, const typename Math::T* __restrict__ bias,
              typename Math::T* __restrict__ y, typename Math::Sum* __restrict__ partial,
              const Phase* __restrict__ phases, const Tap* __restrict__ taps, Problem problem, Grid grid) {
  using Word = typename Math::Word;
  constexpr int STAGE_WEIGHTS = Math::STAGE_STEPS * Math::STEP_WEIGHTS, COPY = 16 / sizeof(typename Math::Weight);
  const Phase& phase = phases[blockIdx.y];
  const Place place = place_of_block(grid, problem, phase);
  if (place.empty) return;

  const int count = phase.samples * phase.extent[0] * phase.extent[1] * phase.extent[2];
  const int steps = phase.steps, chunk_words = phase.chunk, tile_words = chunk_words * phase.pitch;
  extern __shared__ __align__(16) unsigned char memory[];
  auto stages = reinterpret_cast<typename Math::Weight*>(memory);
  auto tiles = reinterpret_cast<Word*>(stages + STAGES * STAGE_WEIGHTS);
  auto offsets = reinterpret_cast<int*>(tiles + grid.tiles * tile_words);
  auto positions = offsets + steps * Math::STEP_WORDS;

  for (int k = threadIdx.x; k < steps * Math::STEP_WORDS; k += THREADS) {
    const int tap = k / chunk_words < phase.taps ? k / chunk_words : 0;  // behind the sum, where weights are zero
    offsets[k] = taps[phase.first_tap + tap].tile + k % chunk_words * phase.pitch;
  }
  Source<typename Math::T> source;
  source.plane = problem.source_plane;
  source.channels = problem.channels;
  source.x = x + (place.sample * problem.groups + place.group) * problem.channels * problem.source_plane;
  source.origin = find_positions(place, problem, phase, problem.channels, count, positions);
  __syncthreads();

  const int words = (problem.channels + Math::CHANNELS - 1) / Math::CHANNELS;
  const int chunks = (words + chunk_words - 1) / chunk_words, per_split = (chunks + grid.splits - 1) / grid.splits;
  const int first_chunk = place.split * per_split, last_chunk = min(chunks, first_chunk + per_split);
  const int chunk_stages = (steps + Math::STAGE_STEPS - 1) / Math::STAGE_STEPS;
  packed += phase.weights + (Index(place.group) * grid.row_blocks + place.row_block) * chunks * steps * Math::STEP_WEIGHTS;

  auto load_stage = [&](int buffer, int chunk, int stage) {
    if (chunk < last_chunk) {
      const int first = stage * Math::STAGE_STEPS, size = min(Math::STAGE_STEPS, steps - first) * Math::STEP_WEIGHTS;
      const auto from = packed + (Index(chunk) * steps + first) * Math::STEP_WEIGHTS;
      for (int i = threadIdx.x * COPY; i < size; i += THREADS * COPY)
        cp_async_16(stages + buffer * STAGE_WEIGHTS + i, from + i);
    }
    cp_async_commit();
  };

  int ahead_chunk = first_chunk, ahead_stage = 0, ahead_buffer = 0;  // of the stage that is loaded next
  auto load_ahead = [&] {
    load_stage(ahead_buffer, ahead_chunk, ahead_stage);
    ahead_buffer = ahead_buffer + 1 == STAGES ? 0 : ahead_buffer + 1;
    if (++ahead_stage == chunk_stages) ahead_stage = 0, ++ahead_chunk;
  };

  Math math(phase);
  int buffer = 0;
  if (first_chunk < last_chunk)
    load_tile(tiles, phase.pitch, source, positions, count, first_chunk * chunk_words, chunk_words);
  load_ahead();
  load_ahead();
  for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
    auto load_chunk = [&](int which) {
      load_tile(tiles + (which - first_chunk) % grid.tiles * tile_words, phase.pitch, source, positions, count,
                which * chunk_words, chunk_words);
    };
    if (grid.tiles == 1 && chunk > first_chunk) {
      __syncthreads();  // all are done with the last one
      load_chunk(chunk);
      cp_async_commit();
    }
    const Word* tile = tiles + (chunk - first_chunk) % grid.tiles * tile_words;
    for (int stage = 0; stage < chunk_stages; ++stage) {
      if (stage == 0) cp_async_wait<0>();  // the tile, too
      else cp_async_wait<1>();
      __syncthreads();  // this stage has come for all, and all are done with what is overwritten now
      if (stage == 0 && chunk + 1 < last_chunk && grid.tiles == 2) load_chunk(chunk + 1);
      load_ahead();
      const int first = stage * Math::STAGE_STEPS, last = min(first + Math::STAGE_STEPS, steps);
      const auto weights = stages + buffer * STAGE_WEIGHTS;
#pragma unroll 1
      for (int step = first; step < last; ++step)
        math.multiply(weights + (step - first) * Math::STEP_WEIGHTS, tile, offsets + step * Math::STEP_WORDS);
      buffer = buffer + 1 == STAGES ? 0 : buffer + 1;
    }
  }
  cp_async_wait<0>();

  __syncthreads();
  int* offsets_in_target = positions;  // there is room for all pixels
  find_outputs(place, problem, phase, PIXELS, offsets_in_target);
  __syncthreads();
  const Index channels = Index(problem.groups) * problem.rows, size = problem.samples * channels * problem.target_plane;
  const int first_channel = place.group * problem.rows, first_row = place.row_block * Math::ROWS;
  const Index origin = (place.sample * channels + first_channel) * problem.target_plane +
                       target_offset(problem, phase, place.output);
  unsigned long long broken = 0;  // results that are to be computed again, a bit for each
#pragma unroll
  for (int r = 0; r < Math::OWN_ROWS; ++r) {
    const int row = first_row + math.own_row(r);
    if (row >= problem.rows) continue;
    const Index at = origin + row * problem.target_plane;
#pragma unroll
    for (int p = 0; p < Math::OWN_PIXELS; ++p) {
      const int offset = offsets_in_target[math.own_pixel(p)];
      if (offset < 0) continue;
      if (grid.splits > 1) {
        partial[place.split * size + at + offset] = math.value(p, r);
      } else {
        y[at + offset] = finished(math.value(p, r), bias, first_channel + row, problem.relu);
        if (!is_trusted(math.value(p, r))) broken |= 1ull << (p * Math::OWN_ROWS + r);
      }
    }
  }
#pragma unroll 1
  for (int i = 0; broken != 0; ++i, broken >>= 1) {
    if (!(broken & 1)) continue;
    Index output[3], sample;
    const int pixel = math.own_pixel(i / Math::OWN_ROWS), row = first_row + math.own_row(i % Math::OWN_ROWS);
    output_of_pixel(place, problem, phase, pixel, output, sample);
    const auto sum = direct_sum(x, w, problem, phase, taps, sample, place.group, row, output);
    y[origin + row * problem.target_plane + offsets_in_target[pixel]] =
        finished(sum, bias, first_channel + row, problem.relu);
  }
}

// The partial sums of all splits, one after another, for each output. Only of what has one phase, which is whole.
template <typename T>
__global__ void __launch_bounds__(256, 2)
combine(const Compute<T>* __restrict__ partial, const T* __restrict__ x, const T* __restrict__ w,
        const T* __restrict__ bias, T* __restrict__ y, const Phase* __restrict__ phase, const Tap* __restrict__ taps,
        Problem problem, int splits) {
  const Index channels = Index(problem.groups) * problem.rows, size = problem.samples * channels * problem.target_plane;
  const Index i = Index(blockIdx.x) * 256 + threadIdx.x;
  if (i >= size) return;
  Compute<T> sum = partial[i];
  for (int split = 1; split < splits; ++split) sum += partial[split * size + i];
  const int channel = i / problem.target_plane % channels;
  if (!is_trusted(sum)) {
    Index output[3], rest = i % problem.target_plane;
    for (int axis = 2; axis >= 0; --axis) output[axis] = rest % problem.target[axis], rest /= problem.target[axis];
    sum = direct_sum(x, w, problem, *phase, taps, i / problem.target_plane / channels, channel / problem.rows,
                     channel % problem.rows, output);
  }
  y[i] = finished(sum, bias, channel, problem.relu);
}
